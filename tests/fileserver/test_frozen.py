"""What mount processes make lies on pages of its own, not between what they share with their supervisor."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

_PROGRAM: Final = """
import gc
from uvmshare.fileserver.supervisor.frozen import freeze

SIZES = range(48, 513, 16)
PAGE, COUNT = 4096, 20

def pages(size):
    made = [bytes(size - len(b"") - 33) for _ in range(COUNT)]
    return len({id(each) // PAGE for each in made})

there = {size: [bytes(size - 33) for _ in range(2000)] for size in SIZES}
for some in there.values():
    del some[::7]  # holes
scattered = sum(map(pages, SIZES))
freeze()
print(scattered, sum(map(pages, SIZES)), sum(COUNT * size // PAGE + 2 for size in SIZES), gc.get_freeze_count() > 0)
"""


def test_new_objects_lie_close_together_once_the_supervisor_has_frozen_what_it_shares() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    scattered, together, few, is_frozen = done.stdout.split()
    assert int(scattered) > int(few), "this says nothing where objects are not scattered before"
    assert int(together) <= int(few)
    assert is_frozen == "True"
