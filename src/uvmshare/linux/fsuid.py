"""The user and group as whom a thread reaches files.

What lives here: setfsuid(2) and setfsgid(2), which do not say whether they worked. What must not: who that is to be.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Final

__all__ = ["acting_uid", "set_fs_identity"]

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.setfsuid.restype = _libc.setfsgid.restype = ctypes.c_uint32

_NOBODY_AT_ALL: Final = ctypes.c_uint32(0xFFFFFFFF)
"""No id: the calls then change nothing and tell the one in force."""


def acting_uid() -> int:
    """Return the uid with which this thread reaches files: its own, or that of whom it acts for."""
    return int(_libc.setfsuid(_NOBODY_AT_ALL))


def set_fs_identity(uid: int, gid: int) -> None:
    """Have this thread, and it alone, reach and make files as `uid` and `gid` from now on.

    The capabilities of root that reach past permissions come and go with it (capabilities(7)). Raises `OSError`: EPERM
    when one of the numbers cannot be had, as in a user namespace that does not map it.
    """
    _libc.setfsgid(ctypes.c_uint32(gid))
    _libc.setfsuid(ctypes.c_uint32(uid))
    if (_libc.setfsuid(_NOBODY_AT_ALL), _libc.setfsgid(_NOBODY_AT_ALL)) != (uid, gid):
        msg = f"files cannot be made as user {uid} and group {gid} here"
        raise OSError(errno.EPERM, msg)
