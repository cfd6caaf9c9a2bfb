"""The values that 9P messages are made of, beyond plain numbers.

What lives here: `Qid` and the entries of a directory listing. What must not: messages.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import msgspec

from uvmshare.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DirectoryEntry", "Qid", "decode_entries"]


class Qid(msgspec.Struct, frozen=True, gc=False):
    """The server's name for a file (intro(5)): unique in a share by `path`.

    `version` changes when the data does; `type` is a `QidType`.
    """

    type: int
    version: int
    path: int


class DirectoryEntry(msgspec.Struct, frozen=True, gc=False):
    """One entry of Rreaddir: qid[13] offset[8] type[1] name[s] (protocol.md, readdir).

    `offset` resumes the listing behind this entry; `type` is a ``DT_*`` value, 0 when not known.
    """

    qid: Qid
    offset: int
    type: int
    name: bytes


_ENTRY: Final = struct.Struct("<BIQQBH")


def decode_entries(data: bytes | memoryview) -> Iterator[DirectoryEntry]:
    """Read the data of an Rreaddir. Raises `RemoteProtocolError` when it ends inside an entry."""
    at = 0
    while at < len(data):
        stop = at + _ENTRY.size
        if stop > len(data):
            msg = "the listing ends inside an entry"
            raise RemoteProtocolError(msg)
        kind, version, path, offset, entry_type, length = _ENTRY.unpack_from(data, at)
        at = stop + length
        if at > len(data):
            msg = "the listing ends inside a name"
            raise RemoteProtocolError(msg)
        yield DirectoryEntry(Qid(kind, version, path), offset, entry_type, bytes(data[stop:at]))
