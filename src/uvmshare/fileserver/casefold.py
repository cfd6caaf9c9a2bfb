"""Directories in which one file has several names: where upper and lower case are one, or names have short forms.

What lives here: how the kernel tells them. What must not: what follows from it (`export`, `mount.files.tree`).
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from uvmshare.fileserver.syscalls import file_system_type

__all__ = ["folds", "lists"]

_FOLDS: Final = frozenset(
    (0x4D44, 0x2011BAB0, 0x5346544E, 0x7366746E, 0xFF534D42, 0xFE534D42, 0x517B, 0x4244, 0x482B, 0x9660, 0x564C)
)
"""vfat, exfat, ntfs, ntfs3, cifs, smb2, smb, hfs, hfs+, isofs and ncp (statfs(2), linux/magic.h)."""

_EXACT: Final = frozenset((0x58465342, 0x9123683E, 0x858458F6))
"""XFS, btrfs and ramfs: names are bytes."""

_MAY_FOLD: Final = frozenset((0xEF53, 0xF2F52010, 0x01021994, 0xCA451A4E, 0x794C7630))
"""ext4, f2fs, tmpfs, bcachefs and overlayfs, which say it of each directory."""

_FS_IOC_GETFLAGS: Final = 0x80086601
_CASEFOLD: Final = 0x40000000
"""FS_CASEFOLD_FL of linux/fs.h."""

_LIST_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def folds(directory: int) -> bool | None:
    """Say whether a directory, a descriptor of any kind, may know one file by several names; None: nobody can say.

    Raises `OSError`.
    """
    kind = file_system_type(directory)
    if kind in _EXACT:
        return False
    if kind in _FOLDS:
        return True
    if kind not in _MAY_FOLD:
        return None
    reading = os.open(b".", _LIST_FLAGS, dir_fd=directory)
    try:
        flags = fcntl.ioctl(reading, _FS_IOC_GETFLAGS, bytes(8))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False  # it has no such flags
    finally:
        os.close(reading)
    return bool(int.from_bytes(flags[:4], "little") & _CASEFOLD)


def lists(directory: int, name: bytes) -> bool:
    """Say whether a directory lists just this name. Raises `OSError`."""
    reading = os.open(b".", _LIST_FLAGS, dir_fd=directory)
    try:
        with os.scandir(reading) as entries:
            return any(os.fsencode(entry.name) == name for entry in entries)
    finally:
        os.close(reading)
