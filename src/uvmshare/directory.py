"""Which directory a path leads to: an identity that no other directory at the same path has.

What lives here: identities of directories, how they are found, and how two of them are compared. What must not: shares,
or what follows when a directory was replaced.

A path is not a directory: ``rm -rf ws; mkdir ws``, a rename, a mount or an unmount put another one in its place. An
identity is text with the parts of `_PARTS`, for whoever keeps it opaque:

- the boot of the host, since device numbers and mounts are others after the next one;
- device and inode, and what tells two files apart that had one inode number after each other: the file handle
  (name_to_handle_at(2)), or the time of birth where the file system has no handles;
- the mount through which it is reached, and the mount namespace in which that has this number.

Other systems than Linux have none: None stands for a directory that is not known, and nothing is refused for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import Final, Literal

from uvmshare.linux.boot import boot_id

__all__ = [
    "Fate",
    "birth_time",
    "fate_of",
    "file_handle",
    "look",
    "may_be_same",
    "of_descriptor",
    "place_of",
    "recalled",
    "weaker",
    "without_mount",
]

Fate = Literal["there", "replaced", "gone", "unknown"]
"""What a path leads to now, compared with a directory that it led to: the same one, another one, none, or nobody can
tell."""

_PARTS: Final = ("boot", "device", "inode", "generation", "namespace", "mount")
_SEPARATOR: Final = ":"

_libc: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
for _name in ("name_to_handle_at", "statx"):  # as in `fileserver.syscalls`: looked up once, not in each mount process
    getattr(_libc, _name, None)

_AT_EMPTY_PATH: Final = 0x1000


class _FileHandle(ctypes.Structure):
    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("handle", ctypes.c_ubyte * 128))


def file_handle(descriptor: int) -> bytes:
    """Return what the file system calls an open file, see name_to_handle_at(2): its inode and generation.

    Empty where the file system has no such handles. Raises `OSError` for anything else.
    """
    assert _libc is not None, "for Linux"
    handle = _FileHandle(bytes=128)
    mount = ctypes.c_int()
    if _libc.name_to_handle_at(descriptor, b"", ctypes.byref(handle), ctypes.byref(mount), _AT_EMPTY_PATH) < 0:
        number = ctypes.get_errno()
        if number in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM):  # EPERM: a container's seccomp filter
            return b""
        raise OSError(number, f"name_to_handle_at: {os.strerror(number)}")
    return bytes(handle.handle[: handle.bytes])


_STATX_BTIME: Final = 0x800
_STATX_MNT_ID: Final = 0x1000
_STATX_MNT_ID_UNIQUE: Final = 0x4000
_StatX: Final = ctypes.c_char * 256
"""``struct statx``."""
_STATX_BTIME_AT: Final = 80
_STATX_MNT_ID_AT: Final = 144
_STATX_TIME: Final = struct.Struct("=qI")
_STATX_DEVICE: Final = struct.Struct("=II")
_STATX_DEVICE_AT: Final = 136
_AT_STATX_DONT_SYNC: Final = 0x4000


def _statx(descriptor: int, mask: int, flags: int = 0) -> tuple[int, bytes]:
    """Return what of `mask` was found, and the ``struct statx``. Raises `OSError`."""
    assert _libc is not None, "for Linux"
    found = _StatX()
    if _libc.statx(descriptor, b"", _AT_EMPTY_PATH | flags, ctypes.c_uint(mask), found) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"statx: {os.strerror(number)}")
    return int.from_bytes(found.raw[:4], sys.byteorder) & mask, found.raw


def birth_time(descriptor: int) -> tuple[int, int] | None:
    """Return when a file was made, in seconds and nanoseconds, see statx(2); None where its file system does not tell.

    Raises `OSError`.
    """
    found, data = _statx(descriptor, _STATX_BTIME)
    if not found:
        return None
    seconds, nanoseconds = _STATX_TIME.unpack_from(data, _STATX_BTIME_AT)
    return seconds, nanoseconds


def _mount(descriptor: int) -> str:
    """Return the number of a file's mount: one that is never used again where the kernel has such (6.8), "" before 5.8.

    The other kind is not used again for as long as anybody has a file of the mount open.
    """
    found, data = _statx(descriptor, _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE)
    return str(int.from_bytes(data[_STATX_MNT_ID_AT : _STATX_MNT_ID_AT + 8], sys.byteorder)) if found else ""


def place_of(descriptor: int) -> tuple[str, int]:
    """Return the number of a file's mount, and that of its file system (stat(2)), which is not asked anything.

    Raises nothing: what cannot be told is "" and 0.
    """
    if sys.platform == "win32":
        return "", 0
    try:
        found, data = _statx(descriptor, _STATX_MNT_ID | _STATX_MNT_ID_UNIQUE, _AT_STATX_DONT_SYNC)
    except OSError:
        return "", 0
    mount = str(int.from_bytes(data[_STATX_MNT_ID_AT : _STATX_MNT_ID_AT + 8], sys.byteorder)) if found else ""
    return mount, os.makedev(*_STATX_DEVICE.unpack_from(data, _STATX_DEVICE_AT))


def _read_boot() -> str:
    try:
        return boot_id()
    except OSError:
        return ""


def _read_namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/mnt").st_ino)
    except OSError:
        return ""


_BOOT: Final = _read_boot()
"""Of this host, see proc_sys_kernel_random(5); "" where nobody can tell, and then no directory has an identity."""
_NAMESPACE: Final = _read_namespace()
"""The mount namespace of this process: the numbers of mounts are others in each."""


def of_descriptor(descriptor: int) -> str | None:
    """Return the identity of an open directory; None where there are none. Raises `OSError`."""
    if not _BOOT:
        return None
    found = os.fstat(descriptor)
    generation = file_handle(descriptor).hex()
    if not generation:
        born = birth_time(descriptor)
        generation = "" if born is None else f"{born[0]}.{born[1]}"
    mount = _mount(descriptor)
    return _SEPARATOR.join(
        (_BOOT, f"{found.st_dev:x}", f"{found.st_ino:x}", generation, _NAMESPACE if mount else "", mount)
    )


def look(path: str) -> str | None:
    """Return the identity of the directory that a path leads to, whose last part is no symbolic link.

    None where there are none. Raises `OSError`, also for what is no directory.
    """
    if sys.platform != "linux":
        return None
    descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return of_descriptor(descriptor)
    finally:
        os.close(descriptor)


def may_be_same(one: str | None, other: str | None) -> bool:
    """Tell whether two identities may be of one directory: False only when they cannot.

    One that is not known may be any. Mounts are compared where both were seen in one mount namespace.
    """
    if one is None or other is None or one == other:
        return True
    mine, yours = one.split(_SEPARATOR), other.split(_SEPARATOR)
    if mine[:4] != yours[:4]:
        return False
    return mine[4:5] != yours[4:5] or not any(mine[4:5])


def without_mount(identity: str) -> str:
    """Return an identity that says nothing of the mount."""
    return _without_mount(identity.split(_SEPARATOR))


def recalled(identity: str | None) -> str | None:
    """Return what an identity that was written down says now: None after a new boot, without a foreign mount."""
    if identity is None:
        return None
    parts = identity.split(_SEPARATOR)
    if len(parts) != len(_PARTS) or parts[0] != _BOOT:
        return None
    return identity if parts[4] == _NAMESPACE else _without_mount(parts)


def weaker(identity: str | None) -> tuple[str | None, ...]:
    """Return what an earlier process may have known of the same directory, the most first: no mount, or nothing."""
    if identity is None:
        return ()
    without = _without_mount(identity.split(_SEPARATOR))
    return (without, None) if without != identity else (None,)


def _without_mount(parts: list[str]) -> str:
    return _SEPARATOR.join((*parts[:4], "", ""))


def fate_of(path: str, identity: str | None) -> Fate:
    """Return what a path leads to now, compared with the directory of that identity. Waits for the file system."""
    if identity is None:
        return "unknown"
    try:
        return "there" if may_be_same(look(path), identity) else "replaced"
    except FileNotFoundError:
        return "gone"
    except OSError as error:
        # ENOTDIR, ELOOP: something else is at the path, or on the way to it.
        return "replaced" if error.errno in (errno.ENOTDIR, errno.ELOOP) else "unknown"
