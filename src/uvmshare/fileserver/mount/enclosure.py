"""A mount namespace of a mount process's own, in which its share is all that a path can lead to.

What lives here: how it is made, and whether this host allows it. What must not: what else a mount process gives
up (`confinement`).

The namespace's root is an empty directory, never to be written, with two mounts: the share at ``/share``, with
the host's mounts below it, and the process's own ``/proc/self/fd`` at the same path, because calls that take no
descriptor are given its paths (`tree`). No other path leads anywhere, also not ``..`` from the share's root. What the
host mounts below the share, or unmounts there, later happens here too where its mounts are shared ones
(mount_namespaces(7)), as systemd makes them.

Root has no need of a user namespace. Others need one of their own (user_namespaces(7)), in which this user and group
are the only ones that have numbers: owners of other files would be told as 65534. So others enclose directories of
their own alone; a directory of another user's is served outside, by the server's checks and Landlock.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from functools import cache
from typing import Final

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.syscalls import MountFlag
from uvmshare.linux.mountinfo import TABLE

__all__ = ["DirectoryGone", "enclose", "trouble"]

_SHARE: Final = "share"
_FDS: Final = "/proc/self/fd"
_BASE: Final = "/proc"
"""Where the new root is made: the one directory that every host has and that the new root hides."""

_STRICT: Final = MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
_MOST_TOLD: Final = 256


class DirectoryGone(FileNotFoundError):
    """The directory of a share is not there any more."""


def enclose(root: int, *, read_only: bool, table: int) -> bool:
    """Have this process see the directory of the descriptor `root` and nothing else, for ever.

    The descriptor is the same directory in the namespace afterwards, and `table` its table of mounts
    (/proc/self/mountinfo), which can be watched. Returns whether that was done, which it is where
    `trouble` finds none and the directory is for this user to enclose. Raises `OSError`, which is `DirectoryGone` where
    there is no such directory any more: then the process must end.
    """
    if trouble() or not _is_own(root):
        return False
    _enclose(root, read_only=read_only, table=table)
    return True


def trouble() -> str:
    """Say why this user cannot have such a namespace on this host; nothing when they can."""
    return _trouble(os.geteuid())


def _is_own(root: int) -> bool:
    found = os.fstat(root)
    return os.geteuid() == 0 or (found.st_uid, found.st_gid) == (os.geteuid(), os.getegid())


def _enclose(root: int, *, read_only: bool, table: int | None = None) -> None:
    # The working directory is what the kernel takes along into the new namespace, wherever its path leads by now.
    os.fchdir(root)
    if os.geteuid() == 0:
        syscalls.new_namespaces(users=False)
    else:
        _become_alone()
    if table is not None:
        own = os.open(TABLE, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(own, table, inheritable=False)
        os.close(own)
    syscalls.mount("/", MountFlag.REC | MountFlag.SLAVE)
    try:
        share = syscalls.clone_mounts(".", below=True)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Not a directory of the host's namespace: a supervisor that took over has it from a mount process, of whose
        # namespace it is. No path leads out of that one either.
        share = -1
    fds = syscalls.clone_mounts(_FDS)
    syscalls.mount(_BASE, _STRICT, kind="tmpfs", options="size=16k,nr_inodes=8,mode=755")
    for made in (_SHARE, *_parents(_FDS)):
        os.mkdir(os.path.join(_BASE, made))
    syscalls.move_mount(fds, _BASE + _FDS)
    os.close(fds)
    if share >= 0:
        at = os.path.join(_BASE, _SHARE)
        try:
            syscalls.move_mount(share, at)
        except FileNotFoundError as error:
            msg = "the shared directory was removed on the host: share the path again"
            raise DirectoryGone(msg) from error
        syscalls.set_mount_flags(at, _STRICT | (MountFlag.RDONLY if read_only else 0))
    syscalls.mount(_BASE, MountFlag.REMOUNT | MountFlag.BIND | MountFlag.RDONLY | _STRICT)
    os.chdir(_BASE)
    syscalls.pivot_root(".", ".")  # the old root then lies over the new one, see pivot_root(2)
    syscalls.unmount(".")
    os.chdir("/")
    if share >= 0:
        # Not by its path: what the host has mounted over the share's directory since would lie there.
        os.dup2(share, root, inheritable=False)
        os.close(share)


def _parents(path: str) -> list[str]:
    """Return a path and those above it, without the first slash and in the order in which they are made."""
    names = path.strip("/").split("/")
    return ["/".join(names[: count + 1]) for count in range(len(names))]


def _become_alone() -> None:
    """Enter a user namespace that has this user and group and no others."""
    user, group = os.geteuid(), os.getegid()
    # A process that changed its user belongs to root in procfs, and could not write its own maps (proc(5)).
    before = syscalls.set_dumpable(1)
    try:
        syscalls.new_namespaces(users=True)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            writing = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(writing, text.encode())
            finally:
                os.close(writing)
    finally:
        syscalls.set_dumpable(1 if before == 1 else 0)


@cache
def _trouble(_user: int) -> str:
    """Try it in a child, which then ends."""
    told, telling = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            _enclose(os.open("/proc/self/fdinfo", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), read_only=True)
        except BaseException as error:  # noqa: BLE001  whatever it is, nothing may unwind into the caller's frames
            with suppress(OSError):
                os.write(telling, str(error).encode()[:_MOST_TOLD] or b"unknown")
        finally:
            os._exit(0)
    os.close(telling)
    try:
        return os.read(told, _MOST_TOLD).decode(errors="replace")
    finally:
        os.close(told)
        os.waitpid(child, 0)
