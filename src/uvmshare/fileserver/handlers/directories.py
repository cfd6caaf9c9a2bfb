"""Reading directories.

What lives here: readdir. What must not: how entries are encoded and kept (`uvmshare.fileserver.listing`).
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import READ_HEADER_SIZE

if TYPE_CHECKING:
    from uvmshare.fileserver.session import Session

_HEADER: Final = struct.Struct("<IBHI")


def readdir(session: Session, tag: int, message: m.Treaddir) -> bytes:
    """List an open directory from an offset on (protocol.md, readdir). "." and ".." are among its entries.

    A listing that begins anew is refused when the directory has left the share.
    """
    fid = session.open_fid(message.fid)
    if fid.listing is None:
        raise OSError(errno.ENOTDIR, "not a directory")
    if message.offset == 0:
        session.tree.require_inside(fid.node)
    data = fid.listing.read(message.offset, min(message.count, session.msize - READ_HEADER_SIZE))
    return _HEADER.pack(READ_HEADER_SIZE + len(data), m.Rreaddir.type, tag, len(data)) + data
