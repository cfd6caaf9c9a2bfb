#!/usr/bin/env python3
"""Use a share with twelve threads until it is taken away: ``python until_lost.py SAID BUSY OVER``, in the share.

In a guest, with a file ``f`` in the share. BUSY and OVER are FIFOs: one is opened when the threads are at work, the
other when they have all been told that they may no more. How many were told, and by which errors, is in the file SAID.
"""

from __future__ import annotations

import errno
import os
import sys
import threading

THREADS = 12


def use(number: int) -> str:
    """Use the file until that fails; return the error's name."""
    try:
        if number % 3 == 0:
            while True:
                os.stat("f")
        file = os.open("f", os.O_RDONLY)
        while True:
            if number % 3 == 1:
                os.pread(file, 65536, 0)
            else:
                os.close(os.open("f", os.O_RDONLY))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def main() -> None:
    """Do as the command line says."""
    said, busy, over = sys.argv[1:]
    seen: list[str] = []
    workers = [threading.Thread(target=lambda number=number: seen.append(use(number))) for number in range(THREADS)]
    for worker in workers:
        worker.start()
    with open(busy, "w", encoding="ascii"):
        pass
    for worker in workers:
        worker.join()
    os.chdir("/")  # so that it can be unmounted
    with open(said, "w", encoding="ascii") as file:
        file.write(" ".join([str(len(seen)), *sorted({*seen})]))
    with open(over, "w", encoding="ascii"):
        pass


if __name__ == "__main__":
    main()
