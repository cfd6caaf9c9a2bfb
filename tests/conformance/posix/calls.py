"""The system calls that are checked, each as a function of paths and numbers.

What lives here: thin functions that another process can be told to call by their names. What must not: what they
should give.
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import subprocess

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_longlong), ("nanoseconds", ctypes.c_long))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int], flags: int = 0) -> None:
    """utimensat(2), which Python has without UTIME_OMIT."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    if _libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def touch(path: str) -> None:
    utimensat(path, (0, UTIME_NOW), (0, UTIME_NOW))


def set_times(path: str) -> None:
    utimensat(path, (1_000_000_000, 0), (1_000_000_000, 0))


def open_(path: str, flags: int, mode: int = 0o644) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK, mode))


def read(path: str) -> None:
    open_(path, os.O_RDONLY)


def create(path: str) -> None:
    open_(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def mkdir(path: str, mode: int = 0o755) -> None:
    os.mkdir(path, mode)


def mkfifo(path: str, mode: int = 0o644) -> None:
    os.mkfifo(path, mode)


def mknod(path: str, mode: int = stat.S_IFIFO | 0o644, device: int = 0) -> None:
    os.mknod(path, mode, device)


def bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def symlink(path: str) -> None:
    os.symlink("target", path)


def link(source: str, path: str) -> None:
    os.link(source, path, follow_symlinks=False)


def link_from(path: str) -> None:
    os.link(path, "linked", follow_symlinks=False)


def rename(source: str, path: str) -> None:
    os.rename(source, path)


def rename_from(path: str) -> None:
    os.rename(path, "renamed")


def unlink(path: str) -> None:
    os.unlink(path)


def rmdir(path: str) -> None:
    os.rmdir(path)


def chmod(path: str, mode: int = 0o600) -> None:
    os.chmod(path, mode)


def chown(path: str, uid: int, gid: int) -> None:
    os.chown(path, uid, gid)


def lchown(path: str, uid: int, gid: int) -> None:
    os.chown(path, uid, gid, follow_symlinks=False)


def chown_to_root(path: str) -> None:
    os.chown(path, 0, 0)


def lchown_to_root(path: str) -> None:
    os.chown(path, 0, 0, follow_symlinks=False)


def chown_to_itself(path: str) -> None:
    os.chown(path, os.getuid(), os.getgid())


def truncate(path: str, length: int = 0) -> None:
    os.truncate(path, length)


def stat_(path: str) -> None:
    os.stat(path)


def lstat(path: str) -> None:
    os.lstat(path)


def statfs(path: str) -> None:
    os.statvfs(path)


def readlink(path: str) -> None:
    os.readlink(path)


def listdir(path: str) -> None:
    os.listdir(path)


def chdir(path: str) -> None:
    at = os.open(".", os.O_PATH)
    try:
        os.chdir(path)
        os.fchdir(at)
    finally:
        os.close(at)


def access(path: str, mode: int) -> str:
    return "ok" if os.access(path, mode) else "no"


def listxattr(path: str) -> None:
    os.listxattr(path)


def write(path: str, flags: int = os.O_WRONLY) -> None:
    descriptor = os.open(path, flags)
    try:
        os.write(descriptor, b"x")
    finally:
        os.close(descriptor)


def write_nothing(path: str) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.write(descriptor, b"")
    finally:
        os.close(descriptor)


def content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def fchmod(path: str, mode: int) -> None:
    with open(path, "rb") as file:
        os.fchmod(file.fileno(), mode)


def fchown(path: str, uid: int, gid: int) -> None:
    with open(path, "rb") as file:
        os.fchown(file.fileno(), uid, gid)


def fsync(path: str) -> None:
    with open(path, "r+b") as file:
        os.fsync(file.fileno())


def truncate_to_one(path: str) -> None:
    os.truncate(path, 1)


def open_truncating(path: str) -> None:
    open_(path, os.O_WRONLY | os.O_TRUNC)


def run(*command: str) -> str:
    """Run a program and return what it said; who cannot be started is an error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def umask_and(mask: int, call: str, path: str, mode: int) -> None:
    """Create a file of a type with a mode under a umask."""
    os.umask(mask)
    try:
        if call == "open":
            open_(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        elif call == "mkdir":
            os.mkdir(path, mode)
        elif call == "mkfifo":
            os.mkfifo(path, mode)
        elif call == "mknod":
            os.mknod(path, stat.S_IFREG | mode)
        else:
            os.symlink("target", path)
    finally:
        os.umask(0)
