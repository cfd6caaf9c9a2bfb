"""Attach, walk and clunk: how fids come and go.

What lives here: attach(5), walk(5), clunk(5). What must not: how a component is opened (`tree`).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.fid import Fid, XattrWrite
from uvmshare.fileserver.handlers import xattrs
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import MAXWELEM, NOFID

if TYPE_CHECKING:
    from uvmshare.fileserver.session import Session

_RATTACH: Final = m.packer(m.Rattach)
_RCLUNK: Final = m.packer(m.Rclunk)
_RWALK: Final = tuple(struct.Struct("<IBHH" + "BIQ" * count) for count in range(MAXWELEM + 1))


def attach(session: Session, tag: int, message: m.Tattach) -> bytes:
    """Make a fid the root of this connection's share, for one of the guest's users.

    attach(5): "The attach message serves as a fresh introduction". Later ones on a connection must
    name the same share: another one is not there (ENOENT), whether the VM has it or not.
    """
    if message.aname != session.export.name.encode():
        raise OSError(errno.ENOENT, "not the share of this connection")
    if message.afid != NOFID:
        raise OSError(errno.EINVAL, "no authentication fid can exist")
    session.require_free(message.fid)
    root = session.tree.root
    found = os.fstat(root.fd)
    reply = _RATTACH(tag, *session.tree.qid_numbers(found, found.st_mode))
    session.fids[message.fid] = Fid(root, session.uid_of(message))
    return reply


def walk(session: Session, tag: int, message: m.Twalk) -> bytes:
    """Make newfid what the names lead to.

    walk(5): "If the first element cannot be walked for any reason, Rerror is returned. Otherwise, the
    walk will return an Rwalk message containing nwqid qids corresponding, in order, to the files that
    are visited by the nwqid successful elementwise walks"; newfid is affected only when all succeed.
    An open fid may be walked from: Linux's client does.
    """
    fid = session.fid(message.fid)
    if message.newfid != message.fid:
        session.require_free(message.newfid)
    tree, ownership = session.tree, session.ownership
    node = fid.node
    numbers: list[int] = []
    walked = 0
    for name in message.names:
        try:
            node = tree.child(node, name)
            found = os.fstat(node.fd)
            numbers += tree.qid_numbers(found, ownership.seen(node, found)[0])
        except OSError:
            if not walked:
                raise
            break
        walked += 1
    if walked == len(message.names):
        if message.newfid == message.fid:
            session.drop_fid(message.fid)
        session.fids[message.newfid] = Fid(node, fid.uid)
    frame = _RWALK[walked]
    return frame.pack(frame.size, m.Rwalk.type, tag, walked, *numbers)


def clunk(session: Session, tag: int, message: m.Tclunk) -> bytes:
    """Forget a fid, which goes even when an error is returned (clunk(5)).

    An extended attribute that was written through it is set now; the error is that of setting it.
    """
    fid = session.drop_fid(message.fid)
    if isinstance(fid.xattr, XattrWrite):
        xattrs.finish(session, fid, fid.xattr)
    return _RCLUNK(tag)
