"""Large writes whose data is still on its way when their header is there.

What lives here: which of them go from the socket straight to the file, and the answer. What must not: how
(`splicing`). All others are received whole first and served as any message is (`handlers.files`).
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.handlers import files
from uvmshare.fileserver.mount.splicing import SPLICE_MIN
from uvmshare.ninep import messages as m

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.files.openfile import OpenFile
    from uvmshare.fileserver.mount.session import ServedConnection

__all__ = ["FIELDS", "write"]

_HEADER: Final = struct.Struct("<IBHIQI")
_TWRITE: Final = m.Twrite.type
_RWRITE: Final = m.packer(m.Rwrite)

FIELDS: Final = _HEADER.size
"""Where the data of a Twrite begins."""


def write(session: ServedConnection, start: int, end: int) -> bool:
    """Carry out the Twrite that begins at `start` of the session's buffer, of which `end - start` bytes are there.

    Returns False, and has taken nothing, for everything that is not just that: what is wrong with a message, or
    refused, is for the ordinary way to say. What is there of the data is written from the buffer. Raises
    `RemoteProtocolError` when the rest does not come.
    """
    size, number, tag, fid, offset, count = _HEADER.unpack_from(session.buffer, start)
    splicer = session.splicer
    if number != _TWRITE or size - (end - start) < SPLICE_MIN or splicer is None:
        return False
    file = _file(session, fid)
    if file is None or count != size - FIELDS or session.is_waited_for or not splicer.prepare():
        return False
    data = session.view[start + FIELDS : end]
    try:
        session.ownership.before_write(session.fids[fid].node, file.fd, session.fids[fid].uid)
        if os.pwrite(file.fd, data, offset) < len(data):
            return False
    except (OSError, OverflowError):
        return False
    if session.throttle.is_needed:
        session.throttle.spend(1, size)
    error = splicer.write(file, offset + len(data), count - len(data), session.bear_silence)
    session.counters.slots[_TWRITE] += 1
    session.counters.count_received(count - len(data))
    if error is None:
        session.outbox.reply(_RWRITE(tag, count))
    else:
        session.outbox.reply(session.error(tag, error))  # also where a part is written: `OpenFile.write`
    session.outbox.flush()
    return True


def _file(session: ServedConnection, number: int) -> OpenFile | None:
    """Return the open file of a fid if splice(2) may write to it."""
    fid = session.fids.get(number)
    if fid is None or fid.file is None or fid.node.is_foreign or session.serves(_TWRITE) is not files.write:
        return None
    if session.watched is not None and session.watched.keeps_ledger:  # its handler is to note it down
        return None
    return fid.file if fid.file.splices else None
