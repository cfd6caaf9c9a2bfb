"""The directory that every server shares in the benchmarks, the same bytes each time.

What lives here: its files. Their names and sizes are those that load.c expects. What must not: servers.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["evict", "make_tree"]

_MIB: Final = 1 << 20
_BULK: Final = 64 * _MIB
_COLD: Final = 256 * _MIB


def make_tree(root: Path, *, with_cold: bool) -> None:
    """Make the tree below `root`, which must be empty; `with_cold` adds the file that is read past the page cache."""
    root.chmod(0o777)  # diod acts as the user of the attach
    _write(root / "file", 4096)
    (root / "one" / "two").mkdir(parents=True)
    _write(root / "one" / "two" / "three", 4096)
    for number in range(64):
        _write(root / f"small{number:02}", 4096)
    (root / "scratch").mkdir()
    (root / "scratch").chmod(0o777)
    _write(root / "bulk", _BULK)
    _write(root / "bulk-write0", _BULK)
    (root / "bulk-write0").chmod(0o666)
    (root / "listed").mkdir()
    for number in range(10_000):
        _write(root / "listed" / f"entry{number:05}", 0)
    for directory in range(20):
        inside = root / "status" / f"d{directory:02}"
        inside.mkdir(parents=True)
        for number in range(50):
            _write(inside / f"f{number:02}", 1024)
    if with_cold:
        _write(root / "cold", _COLD)
    os.sync()  # what is written back later would be measured as somebody's work


def evict(path: Path) -> None:
    """Take a file out of the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _write(path: Path, size: int) -> None:
    piece = bytes(range(256)) * 4096
    with path.open("wb") as file:
        for offset in range(0, size, _MIB):
            file.write(piece[: min(_MIB, size - offset)])
