"""The bodies of the requests that a guest sends most, read without making a message.

What lives here: one function a message, from where its body stands in a buffer to its values. What must
not: the other messages (`messages`, which these must agree with: `tests/ninep/test_requests.py` holds
them to it on any bytes), what a message does.

`at` is where the body begins, `stop` where it ends; the caller has seen that all of it is there. The fid
that each of these bodies begins with is not read again. A body that is not exactly one of its kind raises
the `RemoteProtocolError` of `messages`. Indexes past `stop` are never looked at before they are compared
with it, so that a count or length that lies leads nowhere.

Why: making the message, its list of values and the calls of its layout took 1.2 us of the 4 us of a
getattr (cProfile and `perf`, getattr at depth 32), and 3 us of a walk with three names.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, NoReturn

from uvmshare.errors import RemoteProtocolError
from uvmshare.ninep import messages
from uvmshare.ninep.constants import MAXWELEM

if TYPE_CHECKING:
    from mmap import mmap

__all__ = ["clunk", "getattr_", "lcreate", "lopen", "read", "readdir", "unlinkat", "walk", "write"]

_FID: Final = 4
_GETATTR: Final = 12
_LOPEN: Final = struct.Struct("<4xI")
_READ: Final = struct.Struct("<4xQI")
_WALK: Final = struct.Struct("<4xIH")
_AFTER_NAME_CREATE: Final = struct.Struct("<III")
_U32: Final = struct.Struct("<I")

_unpack_lopen: Final = _LOPEN.unpack_from
_unpack_read: Final = _READ.unpack_from
_unpack_walk: Final = _WALK.unpack_from


def _malformed(cls: type[messages.Message], buffer: mmap | bytes, at: int, stop: int) -> NoReturn:
    """Raise what `messages` has to say of a body."""
    cls.layout.read(buffer[at:stop], 0, stop - at)
    msg = f"a {cls.__name__} that cannot be"  # unreachable as long as the two agree
    raise RemoteProtocolError(msg)


def clunk(buffer: mmap | bytes, at: int, stop: int) -> None:
    """Tclunk has nothing but the fid."""
    if stop - at != _FID:
        _malformed(messages.Tclunk, buffer, at, stop)


def getattr_(buffer: mmap | bytes, at: int, stop: int) -> None:
    """Tgetattr: the request_mask is not looked at."""
    if stop - at != _GETATTR:
        _malformed(messages.Tgetattr, buffer, at, stop)


def lopen(buffer: mmap | bytes, at: int, stop: int) -> int:
    """Return the flags."""
    if stop - at != _LOPEN.size:
        _malformed(messages.Tlopen, buffer, at, stop)
    flags: int
    (flags,) = _unpack_lopen(buffer, at)
    return flags


def read(buffer: mmap | bytes, at: int, stop: int) -> tuple[int, int]:
    """Return offset and count."""
    if stop - at != _READ.size:
        _malformed(messages.Tread, buffer, at, stop)
    return _unpack_read(buffer, at)


def readdir(buffer: mmap | bytes, at: int, stop: int) -> tuple[int, int]:
    """Return offset and count."""
    if stop - at != _READ.size:
        _malformed(messages.Treaddir, buffer, at, stop)
    return _unpack_read(buffer, at)


def write(buffer: mmap | bytes, at: int, stop: int) -> tuple[int, int]:
    """Return the offset and where the data begins; it ends where the body does."""
    start = at + _READ.size
    if start <= stop:
        offset, count = _unpack_read(buffer, at)
        if start + count == stop:
            return offset, start
    _malformed(messages.Twrite, buffer, at, stop)


def walk(buffer: mmap | bytes, at: int, stop: int) -> tuple[int, list[bytes]]:
    """Return newfid and the names."""
    names: list[bytes] = []
    end = at + _WALK.size
    if end > stop:
        _malformed(messages.Twalk, buffer, at, stop)
    newfid, count = _unpack_walk(buffer, at)
    if count > MAXWELEM:
        _malformed(messages.Twalk, buffer, at, stop)
    while count:
        start = end + 2
        if start > stop:
            _malformed(messages.Twalk, buffer, at, stop)
        end = start + buffer[start - 2] + (buffer[start - 1] << 8)
        if end > stop:
            _malformed(messages.Twalk, buffer, at, stop)
        name = buffer[start:end]
        if b"\0" in name:
            _malformed(messages.Twalk, buffer, at, stop)
        names.append(name)
        count -= 1
    if end != stop:
        _malformed(messages.Twalk, buffer, at, stop)
    return newfid, names


def lcreate(buffer: mmap | bytes, at: int, stop: int) -> tuple[bytes, int, int, int]:
    """Return name, flags, mode and gid."""
    start = at + _FID + 2
    if start <= stop:
        end = start + buffer[start - 2] + (buffer[start - 1] << 8)
        if end + _AFTER_NAME_CREATE.size == stop:
            name = buffer[start:end]
            if b"\0" not in name:
                return name, *_AFTER_NAME_CREATE.unpack_from(buffer, end)
    _malformed(messages.Tlcreate, buffer, at, stop)


def unlinkat(buffer: mmap | bytes, at: int, stop: int) -> tuple[bytes, int]:
    """Return name and flags."""
    start = at + _FID + 2
    if start <= stop:
        end = start + buffer[start - 2] + (buffer[start - 1] << 8)
        if end + _U32.size == stop:
            name = buffer[start:end]
            if b"\0" not in name:
                return name, _U32.unpack_from(buffer, end)[0]
    _malformed(messages.Tunlinkat, buffer, at, stop)
