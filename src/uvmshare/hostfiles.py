"""Files of this process among the files of others: sockets, logs and directories in places that are not its alone.

What lives here: binding a unix socket, removing a socket file, opening a log, and seeing whose a directory is, each so
that whoever owns a directory on the way cannot turn it against a third user. What must not: what the files are for.

A path says where something is to be and nothing about what is there a moment later. So a path is resolved once, to a
descriptor of the directory, and everything after that is done below this descriptor. What a name leads to is never
changed after it was made. Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from uvmshare.errors import OperationDenied
from uvmshare.linux.fsuid import acting_uid
from uvmshare.linux.sockets import make_room

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Runner",
    "SocketFile",
    "bind_socket",
    "make_directories",
    "make_own_directory",
    "open_lock",
    "open_log",
    "open_path",
    "require_access",
    "require_own_directory",
    "require_safe_way",
    "run_here",
]

T = TypeVar("T")

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_PERMISSIONS: Final = 0o777
_CLONE_FS: Final = 0x200
_LONGEST_PID: Final = 32
"""Bytes of a pid and a line feed, and then some."""

_SYS_OPENAT2: Final = 437
"""The same on every architecture."""
_SYS_FACCESSAT2: Final = 439
"""As above."""
_AT_EACCESS: Final = 0x200
_AT_FDCWD: Final = -100
_HOW: Final = struct.Struct("=QQQ")
"""``struct open_how``: flags, mode, resolve."""
_RESOLVE_NO_MAGICLINKS: Final = 0x02

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Runner(Protocol):
    """Runs what touches the file system: with rights that it decides about, and where it may take its time."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return what `work` returns."""


async def run_here(work: Callable[[], T], /) -> T:
    """Run it in the event loop, with this process's rights: for directories that nobody else has a say in."""
    return work()


def open_path(path: str, flags: int = 0) -> int:
    """Open a path (O_PATH) that leads through no magic link of /proc (openat2(2), RESOLVE_NO_MAGICLINKS).

    Such a link, as ``/proc/PID/root`` and ``/proc/PID/fd/3``, leads to what another process has, or this one: to the
    latter whatever rights this thread has. Kernels before 5.6 cannot refuse them. Raises `OSError`, ELOOP for such a
    link.
    """
    how = _HOW.pack(os.O_PATH | os.O_CLOEXEC | flags, 0, _RESOLVE_NO_MAGICLINKS)
    opened: int = _libc.syscall(_SYS_OPENAT2, _AT_FDCWD, os.fsencode(path), how, ctypes.c_size_t(_HOW.size))
    if opened >= 0:
        return opened
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        return os.open(path, os.O_PATH | os.O_CLOEXEC | flags)
    if number == errno.ELOOP:
        raise OSError(number, "it leads through a link of /proc to what a process has, or through too many links", path)
    raise OSError(number, os.strerror(number), path)


# Sockets


class SocketFile:
    """The file of a unix socket that was bound here, known by its directory's descriptor and its name in it."""

    def __init__(self, directory: int, name: str) -> None:
        """Take over the descriptor of the directory. Raises `OSError` when the file is gone again."""
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        self._directory = directory
        self._name = name
        self._identity = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove the file if it is still the one that was bound, and let go of the directory. Again is a no-op."""
        directory, self._directory = self._directory, -1
        if directory < 0:
            return
        try:
            with suppress(OSError):
                found = os.stat(self._name, dir_fd=directory, follow_symlinks=False)
                if (found.st_dev, found.st_ino) == self._identity:
                    os.unlink(self._name, dir_fd=directory)
        finally:
            os.close(directory)


def bind_socket(path: str, mode: int, *, group: int | None = None) -> tuple[socket.socket, SocketFile]:
    """Return a unix stream socket that is bound at `path`, with that mode from its first moment, and its file.

    A socket there that nobody listens on is replaced if it belongs to the user who binds; nothing else is. With
    `group` the file is of that group, for which the directory must be one where nobody else renames files.

    The file is the socket's inode as bind(2) makes it: its mode is what the umask leaves of 0777, and it is not
    looked up by its path again. Raises `OSError`, EADDRINUSE for what is in the way.
    """
    above, name = os.path.split(os.path.abspath(path))
    directory = open_path(above, os.O_DIRECTORY)
    try:
        make_room(directory, name, acting_uid())
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Below the descriptor: another directory that is put at `above` now gets no socket.
            _with_umask(_PERMISSIONS & ~mode, lambda: bound.bind(f"/proc/self/fd/{directory}/{name}"))
            if group is not None:
                _give_to_group(directory, name, group)
            return bound, SocketFile(directory, name)
        except BaseException:
            bound.close()
            raise
    except BaseException:
        os.close(directory)
        raise


def _with_umask(mask: int, work: Callable[[], None]) -> None:
    """Do `work` under that umask, which no other thread sees: it is done in a thread with an own one (unshare(2)).

    Where unshare(2) is refused (seccomp in some containers), the umask of the process changes for that moment.
    """
    failures: list[BaseException] = []

    def run() -> None:
        own = _libc.unshare(_CLONE_FS) == 0
        before = os.umask(mask)
        try:
            work()
        except BaseException as error:  # noqa: BLE001  it belongs to the one who waits
            failures.append(error)
        finally:
            if not own:
                os.umask(before)

    thread = threading.Thread(target=run, name="umask")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _give_to_group(directory: int, name: str, group: int) -> None:
    """Give a file to a group, by descriptor, in a directory where nobody else can put another in its place."""
    if not _is_safe(os.fstat(directory)):
        raise OSError(errno.EPERM, "its directory can be changed by other users, so its group is not set there")
    file = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.chown(f"/proc/self/fd/{file}", -1, group)
    finally:
        os.close(file)


# Logs


def open_log(path: str) -> tuple[int, int | None]:
    """Open a log for appending, made with mode 0600 where there is none; return that, and a descriptor to read it.

    A FIFO has none. It must be a file or FIFO of this user with no second name: what somebody else put there, a link
    above all, would have lines written into another file. Raises `OSError`.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    found = os.fstat(descriptor)
    is_file = stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)
    if not is_file or found.st_uid != acting_uid() or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EPERM, f"it is no file of uid {acting_uid()} with one name", path)
    if stat.S_ISFIFO(found.st_mode):
        return descriptor, None
    try:
        return descriptor, os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except BaseException:
        os.close(descriptor)
        raise


# Locks


def open_lock(path: str) -> int:
    """Open a lock file, made with mode 0600 where there is none; return the descriptor.

    Whoever holds it will write a pid there, so a file that has anything else in it is not opened: it is somebody's who
    lost it to this name. Raises `OSError`.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    found = os.fstat(descriptor)
    said = os.pread(descriptor, _LONGEST_PID + 1, 0) if stat.S_ISREG(found.st_mode) else b"?"
    if found.st_nlink > 1 or len(said) > _LONGEST_PID or not (said.strip().isdigit() or not said):
        os.close(descriptor)
        raise OSError(errno.EEXIST, "there is a file that is no lock: move it away", path)
    return descriptor


# Directories


def require_own_directory(path: str) -> None:
    """See that a directory, and no link to one, is this user's, and that nobody else writes in it or can replace it.

    Raises `OSError`, EPERM with the reason.
    """
    found = os.stat(path, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != acting_uid() or found.st_mode & _OTHERS_WRITE:
        msg = (
            f"it must be a directory of user {acting_uid()} where nobody else writes, and belongs to user "
            f"{found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}"
        )
        raise OSError(errno.EPERM, msg, path)
    require_safe_way(path)


def require_safe_way(path: str) -> None:
    """See that no other user can have `path` lead elsewhere: what is above it is this user's or root's, links too.

    A directory that everybody writes in is one too if it is sticky, as /tmp. In a user namespace, root is also whoever
    owns ``/``. Raises `OSError`, EPERM with the directory.
    """
    for way in {os.path.abspath(path), os.path.realpath(path)}:
        at = way
        while at != "/":
            found = os.lstat(at)
            if stat.S_ISLNK(found.st_mode) and not _is_trusted(found):
                msg = f"the link {at!r} on the way to it belongs to user {found.st_uid}"
                raise OSError(errno.EPERM, msg, path)
            at = os.path.dirname(at)
            above = os.stat(at)
            if not _is_safe(above, groups=False):
                msg = f"{at!r} on the way to it belongs to user {above.st_uid}, or everybody writes in it"
                raise OSError(errno.EPERM, msg, path)


def make_directories(path: str, mode: int = 0o777) -> None:
    """Make a directory with that mode, and those above it with the umask's; one that is there is left as it is.

    As `os.makedirs`, which raises `RecursionError` for a deep path. Raises `OSError`.
    """
    missing = [os.path.abspath(path)]
    while not os.path.lexists(missing[-1]):
        missing.append(os.path.dirname(missing[-1]))
    for directory in reversed(missing):
        try:
            os.mkdir(directory, mode if directory == missing[0] else 0o777)
        except FileExistsError:
            if not os.path.isdir(directory):
                what = "it" if directory == missing[0] else repr(directory)
                raise NotADirectoryError(errno.ENOTDIR, f"{what} is there, and is no directory", path) from None


def make_own_directory(path: str, mode: int = 0o700) -> None:
    """Make a directory, and those above it, unless it is there; then see that it is this user's alone.

    Raises `OSError`.
    """
    there = path
    while not os.path.lexists(there):
        there = os.path.dirname(os.path.abspath(there))
    require_safe_way(there)
    make_directories(path, mode)
    require_safe_way(path)
    require_own_directory(os.path.realpath(path))


def _is_trusted(found: os.stat_result) -> bool:
    return found.st_uid in (0, acting_uid(), os.stat("/").st_uid)


def _is_safe(found: os.stat_result, *, groups: bool = True) -> bool:
    """Say whether none but this user and root renames what is this user's there; `groups`: nor a group's members."""
    others = _OTHERS_WRITE if groups else stat.S_IWOTH
    return _is_trusted(found) and (not found.st_mode & others or bool(found.st_mode & stat.S_ISVTX))


def require_access(path: str, uid: int, *, read_only: bool) -> None:
    """See that this thread, which acts as `uid`, may list a directory or read a file, and write to it.

    Write to it unless it is `read_only`: a guest that was told that a share is writable would get EACCES for whatever
    it does. It refuses early and says why, and keeps nobody from anything: the path may lead elsewhere a moment later.

    Raises `OperationDenied`, and `OSError` for a path that leads nowhere.
    """
    is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    wanted = os.R_OK | (os.X_OK if is_directory else 0) | (0 if read_only else os.W_OK)
    if _libc.syscall(_SYS_FACCESSAT2, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), wanted, _AT_EACCESS) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        msg = f"{path}: whether uid {uid} may share it cannot be told: that needs Linux 5.8 or later"
    elif number == errno.EROFS:
        msg = f"{path}: it is on a file system that is mounted read-only: share it read-only"
    else:
        what = "read" if read_only else "read and write"
        msg = f"{path}: uid {uid} may not {what} it ({os.strerror(number)}): share what that user may {what} themselves"
        if not read_only:
            msg += ", or share it read-only"
    raise OperationDenied(msg)
