"""The kernel's table of mounts, proc_pid_mountinfo(5).

What lives here: reading it. What must not: what follows from what is mounted where. `uvmshare.guest.mount`, which is
copied into guests alone, reads the options of its one mount by itself.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["TABLE", "Mounted", "has_below", "mounted"]

TABLE = "/proc/self/mountinfo"

_PIECE = 64 * 1024
_ESCAPE = re.compile(rb"\\([0-7]{3})")
_BEFORE_PATH = 3


class Mounted(NamedTuple):
    """One line of the table."""

    number: int
    """Its mount ID."""
    device: str
    """The number of its file system, as ``8:1``."""
    root: str
    """Which directory of that file system is mounted."""
    path: str
    """Where."""
    kind: str
    """The type of its file system."""
    source: str
    options: str
    """The file system's own."""


def mounted(table: int | None = None) -> list[Mounted]:
    """Return what is mounted in this mount namespace, or in that of an open table, in the kernel's order.

    Raises `OSError`.
    """
    found = []
    # As bytes: a process that has become another user may be able to load no codec.
    with open(TABLE if table is None else os.dup(table), "rb") as file:
        file.seek(0)
        for line in file:
            number, _, device, root, path, *rest = line.rstrip(b"\n").split(b" ")
            kind, source, options = rest[rest.index(b"-") + 1 :]
            fields = (device, root, path, kind, source, options)
            found.append(Mounted(int(number), *(_plain(field) for field in fields)))
    return found


def has_below(directory: str, table: int) -> bool:
    """Say whether anything is mounted below a directory, by an open table and without a look at it. Raises `OSError`.

    What is mounted at the directory itself is not below it. Each process of a mount asks, twice, so it looks for the
    path as the kernel writes it and takes no line apart, which made 250 KiB of memory its own.
    """
    read = b""
    while piece := os.pread(table, _PIECE, len(read)):
        read += piece
    wanted = b" " + _escaped(os.fsencode(directory).rstrip(b"/") + b"/")
    at = read.find(wanted)
    while at >= 0:
        # The fifth word: three spaces come before the one that it begins with. The fourth is a path as well.
        is_mount_point = read.count(b" ", read.rfind(b"\n", 0, at) + 1, at) == _BEFORE_PATH
        if is_mount_point and not read.startswith(b" ", at + len(wanted)):
            return True
        at = read.find(wanted, at + 1)
    return False


def _plain(field: bytes) -> str:
    return os.fsdecode(_unescaped(field))


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda escaped: bytes([int(escaped[1], 8)]), field)


def _escaped(path: bytes) -> bytes:
    """Return a path as the kernel writes it (``show_mountinfo``): these four, and no others."""
    for odd in (b"\\", b" ", b"\t", b"\n"):
        path = path.replace(odd, b"\\%03o" % odd[0])
    return path
