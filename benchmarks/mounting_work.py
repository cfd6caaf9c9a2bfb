"""What a program does in a guest while `mounting` measures. It runs there, by the standard library alone.

``python3 -I mounting_work.py DIRECTORY MOUNT_PY REQUESTS ANSWERS``: takes one request a line from one pipe, and answers
through the other. "mount ADDRESS OPTIONS" mounts on the directory, "umount" unmounts it, and the number of a piece of
work does that and tells the seconds that it took. One process does it all: starting Python takes an emulated guest
long.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

SMALL: Final = 100
"""Files in each of the directories that are looked through."""
LARGE: Final = 8 << 20
"""Bytes of the large file."""
_BLOCK: Final = os.urandom(1 << 20)


def _stat() -> None:
    for number in range(SMALL):
        os.stat(f"looked-at/{number:03}")


def _read_small() -> None:
    for number in range(SMALL):
        with open(f"small/{number:03}", "rb", buffering=0) as file:
            file.read(8192)


def _read(piece: int) -> None:
    with open("large", "rb", buffering=0) as file:
        while file.read(piece):
            pass


def _write(piece: int) -> None:
    with open("written", "wb", buffering=0) as file:
        file.writelines(_BLOCK[:piece] for _ in range(LARGE // 2 // piece))
        os.fsync(file.fileno())


def _make() -> None:
    for number in range(SMALL):
        with open(f"new-{number}", "wb", buffering=0) as file:
            file.write(_BLOCK[:4096])
    for number in range(SMALL):
        os.unlink(f"new-{number}")


def _git_status() -> None:
    words = ("git", "-c", "safe.directory=*", "-C", "repository", "status", "--porcelain")
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


WORK: Final[dict[str, Callable[[], None]]] = {
    "stat 100 files": _stat,
    "read 100 files of 4 KiB": _read_small,
    "read 8 MiB by 128 KiB": lambda: _read(128 << 10),
    "read 8 MiB by 1 MiB": lambda: _read(1 << 20),
    "write 4 MiB by 128 KiB": lambda: _write(128 << 10),
    "write 4 MiB by 1 MiB": lambda: _write(1 << 20),
    "make and remove 100 files of 4 KiB": _make,
    "git status of 190 files": _git_status,
}


def main(directory: str, mount_py: str, requests: str, answers: str) -> None:
    """Serve requests until the guest ends."""
    spec = importlib.util.spec_from_file_location("mount", mount_py)
    assert spec is not None
    assert spec.loader is not None
    mount = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mount)
    work = list(WORK.values())
    while True:
        with open(requests, encoding="ascii") as asked:
            words = asked.read().split()
        os.chdir("/")
        if words[0] == "mount":
            address = mount.parse_address(words[1])
            with mount.connect(address) as connected:
                said: object = mount.attach(connected, words[1], directory, words[2], read_only=False)
        elif words[0] == "umount":
            said = subprocess.run(("umount", directory), check=False).returncode
        else:
            os.chdir(directory)
            began = time.perf_counter()
            work[int(words[0])]()
            said = time.perf_counter() - began
            os.chdir("/")
        with open(answers, "w", encoding="ascii") as told:
            told.write(str(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
