"""The numbers of 9P2000.L.

What lives here: message types, flags and limits, with the names that diod's protocol.md and Linux's
``include/net/9p/9p.h`` give them. What must not: code.

The open flags and errnos of 9P2000.L are Linux's generic ones, whatever the host; they are spelt out
here instead of taken from `os`, so that nothing depends on the architecture.
"""

from __future__ import annotations

import enum
from typing import Final

VERSION: Final = b"9P2000.L"
VERSION_UNKNOWN: Final = b"unknown"

NOTAG: Final = 0xFFFF
NOFID: Final = 0xFFFFFFFF
NONUNAME: Final = 0xFFFFFFFF

HEADER_SIZE: Final = 7
"""size[4] type[1] tag[2]; the size counts itself."""

MAXWELEM: Final = 16
"""At most this many names in one Twalk (walk(5))."""

IO_HEADER_SIZE: Final = 24
"""``P9_IOHDRSZ``: what a Twrite may add to its data; iounit and Rread counts are msize less this."""

READ_HEADER_SIZE: Final = 11
"""Header and count[4] of Rread and Rreaddir."""

MIN_MSIZE: Final = 4096
"""Linux's client refuses less; a name of 255 bytes and its frame fit many times over."""

DEFAULT_MSIZE: Final = 1 << 20
"""1 MiB, the most that Linux's fd transport takes."""


class QidType(enum.IntFlag):
    """``QT*``: the type byte of a qid."""

    DIR = 0x80
    APPEND = 0x40
    EXCL = 0x20
    MOUNT = 0x10
    AUTH = 0x08
    TMP = 0x04
    SYMLINK = 0x02
    LINK = 0x01
    FILE = 0x00


class OpenFlag(enum.IntFlag):
    """``P9_DOTL_*``: the flags of Tlopen and Tlcreate."""

    RDONLY = 0o0
    WRONLY = 0o1
    RDWR = 0o2
    NOACCESS = 0o3
    CREATE = 0o100
    EXCL = 0o200
    NOCTTY = 0o400
    TRUNC = 0o1000
    APPEND = 0o2000
    NONBLOCK = 0o4000
    DSYNC = 0o10000
    FASYNC = 0o20000
    DIRECT = 0o40000
    LARGEFILE = 0o100000
    DIRECTORY = 0o200000
    NOFOLLOW = 0o400000
    NOATIME = 0o1000000
    CLOEXEC = 0o2000000
    SYNC = 0o4000000


class GetattrMask(enum.IntFlag):
    """``P9_STATS_*``: request_mask and valid of getattr."""

    MODE = 0x1
    NLINK = 0x2
    UID = 0x4
    GID = 0x8
    RDEV = 0x10
    ATIME = 0x20
    MTIME = 0x40
    CTIME = 0x80
    INO = 0x100
    SIZE = 0x200
    BLOCKS = 0x400
    BTIME = 0x800
    GEN = 0x1000
    DATA_VERSION = 0x2000
    BASIC = 0x7FF
    ALL = 0x3FFF


class SetattrValid(enum.IntFlag):
    """``P9_ATTR_*``: valid of setattr. Without ``*_SET`` a time is set to now."""

    MODE = 0x1
    UID = 0x2
    GID = 0x4
    SIZE = 0x8
    ATIME = 0x10
    MTIME = 0x20
    CTIME = 0x40
    ATIME_SET = 0x80
    MTIME_SET = 0x100


class LockType(enum.IntEnum):
    """Types of Tlock and Tgetlock."""

    RDLCK = 0
    WRLCK = 1
    UNLCK = 2


class LockFlag(enum.IntFlag):
    """Flags of Tlock."""

    BLOCK = 1
    RECLAIM = 2


class LockStatus(enum.IntEnum):
    """Status of Rlock."""

    SUCCESS = 0
    BLOCKED = 1
    ERROR = 2
    GRACE = 3


AT_REMOVEDIR: Final = 0x200
"""The flag of Tunlinkat for directories, Linux's own."""

V9FS_MAGIC: Final = 0x01021997
"""File system type that Rstatfs carries."""
