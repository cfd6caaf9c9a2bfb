"""Extended attributes: xattrwalk, xattrcreate, and what a clunk does to them.

What lives here: the two messages. What must not: which names a guest may use, and under which names
the host keeps them (`files.ownership`).

Sizes and limits are those of xattr(7): 255 bytes a name, 64 KiB a value.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.fids import XattrValue, XattrWrite
from uvmshare.fileserver.mount.handlers import watching
from uvmshare.ninep import messages as m

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.session import Session

_RXATTRWALK: Final = m.packer(m.Rxattrwalk)
_RXATTRCREATE: Final = m.packer(m.Rxattrcreate)

_NAME_MAX: Final = 255
_VALUE_MAX: Final = 65536
_KNOWN_FLAGS: Final = os.XATTR_CREATE | os.XATTR_REPLACE


def xattrwalk(session: Session, tag: int, message: m.Txattrwalk) -> bytes:
    """Make newfid read an attribute, or the list of names when the name is empty (protocol.md, xattrwalk)."""
    fid = session.fid(message.fid)
    if message.newfid != message.fid:
        session.require_free(message.newfid)
    elif fid.is_open:
        raise OSError(errno.EBUSY, "fid is open")
    session.tree.require_inside(fid.node)
    value = watching.answer(session, fid.node, message.name) or XattrValue(_value(session, fid.node, message.name))
    reading = fid.like(fid.node_for_clone(session.tree))
    session.require_xattr_room(value.size)
    reading.xattr = value
    session.fids[message.newfid] = reading
    return _RXATTRWALK(tag, value.size)


def _value(session: Session, node: Node, name: bytes) -> bytes:
    """Return an attribute, or the list of their names when the name is empty. Raises `OSError`.

    The root of a share with an allow-list has none for the guest: they are of a directory that is not shared.
    """
    is_shared = session.tree.is_shared(node)
    if name and not is_shared:
        raise OSError(errno.ENODATA, "the directory itself is not shared")
    path = session.tree.path_of(node)
    if name:
        host_name = session.ownership.xattr_name(name)
        return session.tree.lending.during(lambda: os.getxattr(path, host_name), node)
    if not is_shared:
        return b""
    names = (session.ownership.xattr_seen(os.fsencode(each)) for each in os.listxattr(path))
    return b"".join(each + b"\0" for each in names if each is not None)


def xattrcreate(session: Session, tag: int, message: m.Txattrcreate) -> bytes:
    """Make a fid write an attribute, which is set when it is clunked (protocol.md, xattrcreate).

    An announced size of 0 removes it when it must exist (XATTR_REPLACE), as Linux's client asks for
    removexattr(2), and sets an empty value otherwise.
    """
    fid = session.fid(message.fid)
    if fid.is_open:
        raise OSError(errno.EBUSY, "fid is open")
    if not message.name or len(message.name) > _NAME_MAX:
        raise OSError(errno.ERANGE, "an attribute's name has 1 to 255 bytes")
    if message.attr_size > _VALUE_MAX:
        raise OSError(errno.E2BIG, "an attribute's value has at most 64 KiB")
    if message.flags & ~_KNOWN_FLAGS:
        raise OSError(errno.EINVAL, "unknown flags")
    session.require_shared(fid.node)
    session.tree.require_inside(fid.node)
    name = session.ownership.xattr_name(message.name)
    session.require_xattr_room(message.attr_size)  # last, because what it counts is only given back with the fid
    session.began_xattr(fid, XattrWrite(name, message.attr_size, message.flags))
    return _RXATTRCREATE(tag)


def write(writing: XattrWrite, data: bytes | memoryview, offset: int) -> int:
    """Take a part of a value: in order, and not past the announced size. Raises `OSError`."""
    if offset != len(writing.value) or offset + len(data) > writing.size:
        raise OSError(errno.EINVAL, "not the next part of the announced value")
    writing.value += data
    return len(data)


def finish(session: Session, fid: Fid, writing: XattrWrite) -> None:
    """Set, or remove, what a clunked fid has written. Raises `OSError`: EINVAL when it was not written whole."""
    if len(writing.value) != writing.size:
        raise OSError(errno.EINVAL, "the value was not written whole")
    session.tree.require_inside(fid.node)
    path = session.tree.path_of(fid.node)
    if not writing.size and writing.flags == os.XATTR_REPLACE:
        session.tree.lending.during(lambda: os.removexattr(path, writing.name), fid.node)
    else:
        session.tree.lending.during(lambda: os.setxattr(path, writing.name, writing.value, writing.flags), fid.node)
