"""Reading directories.

What lives here: which part of a directory one reply has. What must not: how entries are encoded and kept
(`uvmshare.fileserver.mount.files.listing`).
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.syscalls import MountCrossed
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests
from uvmshare.ninep.constants import READ_HEADER_SIZE

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.session import Session

_HEADER: Final = struct.Struct("<IBHI")


def readdir(session: Session, tag: int, number: int, at: int, stop: int) -> bytes | None:
    """List an open directory from an offset on (protocol.md, readdir). "." and ".." are among its entries.

    Refused when the directory has left the share, also in the middle: names may be new to it since. A
    large directory is read aside.
    """
    offset, count = requests.readdir(session.buffer, at, stop)
    file = session.open_file(number)
    listing = file.listing
    if listing is None:
        raise OSError(errno.ENOTDIR, "not a directory")
    if offset >> 63:
        raise OSError(errno.EINVAL, "no offset of a directory")
    node = session.fids[number].node
    if listing.state is None:
        session.tree.boundary.require_directory_inside(node)
    elif session.tree.state(node) != listing.state:
        raise OSError(errno.ENOENT, "moved to where other names are hidden: open it again")
    if session.tree.has_mounts and listing.looks_at_files and not listing.is_ready(offset):
        raise MountCrossed(file.fd, b"")  # for a thread: something may be mounted over one of the files
    count = min(count, session.msize - READ_HEADER_SIZE)

    # The job has the open file: a Tclunk while it runs would close the descriptor under the listing,
    # whose number may be another directory's a moment later.
    def encode() -> bytes:
        pieces = listing.read(offset, count)
        size = sum(map(len, pieces))
        return b"".join((_HEADER.pack(READ_HEADER_SIZE + size, m.Rreaddir.type, tag, size), *pieces))

    if listing.is_large and not listing.is_ready(offset) and session.run_aside(tag, count, file, encode):
        return None
    session.outbox.reply(encode())
    return None
