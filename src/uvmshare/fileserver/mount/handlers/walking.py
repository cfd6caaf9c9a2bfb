"""Attach, walk and clunk: how fids come and go.

What lives here: attach(5), walk(5), clunk(5). What must not: how a component is opened (`files.tree`).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.fids import Fid, GhostFid, XattrWrite
from uvmshare.fileserver.mount.handlers import xattrs
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests
from uvmshare.ninep.constants import MAXWELEM, NOFID, NONUNAME

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.session import Session

_NOBODY: Final = 65534
_MOST_DIGITS: Final = 10
"""Of a uid."""

_RATTACH: Final = m.packer(m.Rattach)
_PACK_RCLUNK, _RCLUNK_SIZE, _RCLUNK = m.frame_of(m.Rclunk)
_RWALK_TYPE: Final = m.Rwalk.type
_RWALK_FRAMES: Final = [struct.Struct("<IBHH" + "BIQ" * count) for count in range(MAXWELEM + 1)]
_RWALK: Final = [(frame.pack, frame.size) for frame in _RWALK_FRAMES]


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
    reply = _RATTACH(tag, *session.ownership.known(root, found).qid)
    uid, watched = _uid_of(message), session.watched
    if watched is not None and uid == watched.reserved:
        session.began_pretending()
        session.fids[message.fid] = GhostFid(root, uid)
    else:
        session.fids[message.fid] = Fid(root, uid)
    return reply


def _uid_of(message: m.Tattach) -> int:
    """Return the uid that an attach speaks for: n_uname, or what uname says when there is none."""
    if message.n_uname != NONUNAME:
        return message.n_uname
    if message.uname == b"root":
        return 0
    if message.uname.isdigit() and len(message.uname) <= _MOST_DIGITS and int(message.uname) < NONUNAME:
        return int(message.uname)
    return _NOBODY


def walk(session: Session, tag: int, number: int, at: int, stop: int) -> bytes:
    """Make newfid what the names lead to.

    walk(5): "If the first element cannot be walked for any reason, Rerror is returned. Otherwise, the
    walk will return an Rwalk message containing nwqid qids corresponding, in order, to the files that
    are visited by the nwqid successful elementwise walks"; newfid is affected only when all succeed.
    An open fid may be walked from: Linux's client does.
    """
    newfid, names = requests.walk(session.buffer, at, stop)
    fids = session.fids
    fid = fids.get(number) or session.fid(number)
    if newfid != number and (newfid in fids or newfid == NOFID or len(fids) >= session.limits.fids):
        session.require_free(newfid)
    node = fid.node
    numbers: list[int] = []
    walked = 0
    if names:
        known = session.ownership.known
        for node in session.tree.walk(fid.node, names):
            try:
                numbers += known(node, os.fstat(node.fd)).qid
            except OSError:
                if not walked:
                    raise
                break
            walked += 1
    elif fid.file is not None:
        node = fid.node_for_clone(session.tree)
    if walked == len(names):
        if newfid == number:
            session.drop_fid(number)
        fids[newfid] = Fid(node, fid.uid)
        if names and node.fd > session.most_descriptors:
            session.require_room(node.fd)
    pack, size = _RWALK[walked]
    return pack(size, _RWALK_TYPE, tag, walked, *numbers)


def clunk(session: Session, tag: int, number: int, at: int, stop: int) -> bytes:
    """Forget a fid, which goes even when an error is returned (clunk(5)).

    An extended attribute that was written through it is set now; the error is that of setting it.
    """
    requests.clunk(session.buffer, at, stop)
    fid = session.drop_fid(number)
    if fid.xattr is not None and isinstance(fid.xattr, XattrWrite):
        xattrs.finish(session, fid, fid.xattr)
    return _PACK_RCLUNK(_RCLUNK_SIZE, _RCLUNK, tag)
