"""Where a directory is when it is reached by several paths, by the kernel's table of mounts.

What lives here: `Place`, what shows below a directory, and which file system something is on. What
must not: what may be shown (`rundir`).

A bind mount shows a directory at a second path, and no path tells: only the file system that it is on, and where in it.
"""

from __future__ import annotations

import os
import select
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from uvmshare.fileserver.filesystems import LOCAL
from uvmshare.linux.mountinfo import mounted

if TYPE_CHECKING:
    from uvmshare.linux.mountinfo import Mounted

__all__ = ["Place", "file_system_of", "is_changed", "may_hang", "place_of", "shown_below"]


class Place(NamedTuple):
    """A file system, as the kernel numbers it, and a path from that one's own root."""

    device: str
    path: str

    def holds(self, other: Place) -> bool:
        """Say whether the other place is this one or below it."""
        return self.device == other.device and os.path.commonpath([self.path, other.path]) == self.path


def _root(mount: Mounted) -> Place:
    return Place(mount.device, mount.root)


def place_of(directory: str) -> Place:
    """Return where a directory is; the path has no symbolic link in it. Raises `OSError`."""
    opened = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        # As bytes: a supervisor that has become another user may be able to load no codec.
        with open(f"/proc/self/fdinfo/{opened}", "rb") as file:
            number = int(file.read().partition(b"mnt_id:")[2].split()[0])
    finally:
        os.close(opened)
    for mount in mounted():
        if mount.number == number:
            inside = os.path.relpath(directory, mount.path)
            return Place(mount.device, os.path.normpath(os.path.join(mount.root, inside)))
    return Place("", directory)  # its mount is not in the table: what is left is to compare paths


def shown_below(directory: str) -> list[Place]:
    """Return what a guest sees below a directory that is shared: that one, and all that is mounted below it.

    What another mount covers is among it. The path has no symbolic link in it. Raises `OSError`.
    """
    below = os.path.join(directory, "")
    return [place_of(directory), *(_root(mount) for mount in mounted() if mount.path.startswith(below))]


def file_system_of(device: int) -> str:
    """Return the kind of file system that has a number (stat(2)), and where it is mounted; "" when none is seen.

    It is not asked anything itself. Raises nothing.
    """
    number = f"{os.major(device)}:{os.minor(device)}"
    with suppress(OSError):
        for mount in mounted():
            if device and mount.device == number:
                return f"{mount.kind} at {mount.path!r} ({mount.source})"
    return ""


def may_hang(path: str) -> bool:
    """Say whether a look at a path, or at a name in the directory there, may never be answered. It is itself no such.

    It may be where anything on the way there, or mounted below, is on a file system that is not known to answer, or
    where a symbolic link leads nobody knows where. Raises nothing.
    """
    if os.path.normpath(path) != path or not path.startswith("/"):
        return True
    try:
        mounts = mounted()
        above = [path[:at] for at in range(1, len(path)) if path[at] == "/"]
        if any(mount.kind not in LOCAL and _are_in_line(mount.path, path) for mount in mounts):
            return True
        return any(stat.S_ISLNK(os.lstat(each).st_mode) for each in (*above, path))
    except (OSError, ValueError):
        return False  # of one that answers, or no path at all, as with NUL in it


def _are_in_line(one: str, other: str) -> bool:
    """Say whether one path is the other, or above or below it."""
    return f"{one.rstrip('/')}/".startswith(f"{other.rstrip('/')}/") or f"{other.rstrip('/')}/".startswith(
        f"{one.rstrip('/')}/"
    )


def is_changed(table: int, seconds: float | None) -> bool:
    """Wait until mounts come or go in the namespace of an open table, or the time is over; say whether they did.

    Each change is told once, see proc_pid_mounts(5).
    """
    changed = select.poll()
    changed.register(table, select.POLLPRI)
    return bool(changed.poll(None if seconds is None else seconds * 1000))
