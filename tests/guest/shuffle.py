"""Makes, renames and removes directories and files below one, at random; on the host or, as a program, in a guest.

``shuffle.py DIRECTORY SEED TIMES PREFIX``. What somebody else has taken away meanwhile is passed over. Standard library
only.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from contextlib import suppress


def shuffle(top: str, seed: int, times: int, prefix: str) -> None:
    """Make so many changes. `prefix` begins the names that are made."""
    choose = random.Random(seed)
    for number in range(times):
        with suppress(OSError):
            directories = [path for path, _, _ in os.walk(top)]
            at, other = choose.choice(directories), choose.choice(directories)
            change = choose.randrange(6)
            if change <= 1:
                os.mkdir(f"{at}/{prefix}{number}")
            elif change == 2:
                with open(f"{at}/{prefix}{number}.txt", "w", encoding="ascii") as file:
                    file.write(prefix)
            elif at == top:
                continue
            elif change == 3:
                os.rename(at, f"{other}/{os.path.basename(at)}")
            elif change == 4:
                os.rename(at, f"{os.path.dirname(at)}/{prefix}{number}-renamed")
            else:
                shutil.rmtree(at)
                if choose.random() < 0.5:
                    os.mkdir(at)


if __name__ == "__main__":
    shuffle(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
