"""The kernel's table of mounts, proc_pid_mountinfo(5).

What lives here: reading it. What must not: what follows from what is mounted where. `uvmshare.guest.mount`, which is
copied into guests alone, reads the options of its one mount by itself.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["TABLE", "Mounted", "mount_points", "mounted"]

TABLE = "/proc/self/mountinfo"

_PIECE = 64 * 1024
_ESCAPE = re.compile(rb"\\([0-7]{3})")


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


def mount_points(table: int) -> list[bytes]:
    """Return where something is mounted, by an open table, as bytes. Raises `OSError`.

    Each process of a mount asks, so it makes as few objects as it can (`mounted` made 300 KB of memory its own).
    """
    read = b""
    while piece := os.pread(table, _PIECE, len(read)):
        read += piece
    points = [line.split(b" ", 5)[4] for line in read.splitlines()]
    return [_unescaped(point) if b"\\" in point else point for point in points]


def _plain(field: bytes) -> str:
    return os.fsdecode(_unescaped(field))


def _unescaped(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda escaped: bytes([int(escaped[1], 8)]), field)
