"""Where a directory is when it is reached by several paths: the kernel's table of mounts, proc_pid_mountinfo(5).

What lives here: `Place`, what shows below a directory, and nothing else. What must not: what may be shown (`rundir`).

A bind mount shows a directory at a second path, and no path tells: only the file system that it is on, and where in it.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

__all__ = ["Place", "place_of", "shown_below"]

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Place(NamedTuple):
    """A file system, as the kernel numbers it, and a path from that one's own root."""

    device: str
    path: str

    def holds(self, other: Place) -> bool:
        """Say whether the other place is this one or below it."""
        return self.device == other.device and os.path.commonpath([self.path, other.path]) == self.path


class _Mount(NamedTuple):
    number: int
    root: Place
    point: str


def _table() -> list[_Mount]:
    mounts = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            number, _, device, root, point, *_ = line.split(b" ")
            mounts.append(_Mount(int(number), Place(device.decode(), _unescaped(root)), _unescaped(point)))
    return mounts


def _unescaped(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), field))


def place_of(directory: str) -> Place:
    """Return where a directory is; the path has no symbolic link in it. Raises `OSError`."""
    opened = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        # As bytes: a supervisor that has become another user may be able to load no codec.
        with open(f"/proc/self/fdinfo/{opened}", "rb") as file:
            number = int(file.read().partition(b"mnt_id:")[2].split()[0])
    finally:
        os.close(opened)
    for mount in _table():
        if mount.number == number:
            inside = os.path.relpath(directory, mount.point)
            return Place(mount.root.device, os.path.normpath(os.path.join(mount.root.path, inside)))
    return Place("", directory)  # its mount is not in the table: what is left is to compare paths


def shown_below(directory: str) -> list[Place]:
    """Return what a guest sees below a directory that is shared: that one, and all that is mounted below it.

    What another mount covers is among it. The path has no symbolic link in it. Raises `OSError`.
    """
    below = os.path.join(directory, "")
    return [place_of(directory), *(mount.root for mount in _table() if mount.point.startswith(below))]
