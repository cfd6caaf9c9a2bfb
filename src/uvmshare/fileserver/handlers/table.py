"""From a message to what it does.

What lives here: the table from message to function, and which of them change the share. What must
not: the functions; buffers and connections (`uvmshare.fileserver.session`).

A handler takes the session, the tag and the message, and returns the whole reply, or nothing when it
has put the reply into the session's buffer itself. It raises `OSError` for what the guest is to be
told as an errno, and leaves things then as they were. Messages without a handler are answered with
EOPNOTSUPP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from uvmshare.fileserver.handlers import attributes, directories, files, locking, names, walking, xattrs
from uvmshare.ninep import messages as m

if TYPE_CHECKING:
    from uvmshare.fileserver.session import Session

__all__ = ["CHANGES", "HANDLERS", "Handler"]

Handler = Callable[["Session", int, Any], bytes | None]

_READS: Final[dict[type[m.Message], Handler]] = {
    m.Twalk: walking.walk,
    m.Tclunk: walking.clunk,
    m.Tgetattr: attributes.getattr_,
    m.Tstatfs: attributes.statfs,
    m.Tlopen: files.lopen,  # refuses flags that change by itself
    m.Tread: files.read,
    m.Tfsync: files.fsync,
    m.Treaddir: directories.readdir,
    m.Treadlink: names.readlink,
    m.Tlock: locking.lock,
    m.Tgetlock: locking.getlock,
    m.Txattrwalk: xattrs.xattrwalk,
}

_WRITES: Final[dict[type[m.Message], Handler]] = {
    m.Tsetattr: attributes.setattr_,
    m.Tlcreate: files.lcreate,
    m.Twrite: files.write,
    m.Txattrcreate: xattrs.xattrcreate,
    m.Tmkdir: names.mkdir,
    m.Tsymlink: names.symlink,
    m.Tmknod: names.mknod,
    m.Tlink: names.link,
    m.Trename: names.rename,
    m.Trenameat: names.renameat,
    m.Tunlinkat: names.unlinkat,
    m.Tremove: names.remove,  # clunks its fid even on a read-only share
}

HANDLERS: Final = {cls.type: handler for table in (_READS, _WRITES) for cls, handler in table.items()}
"""Every handler by the number of its message."""

CHANGES: Final = frozenset(m.BY_TYPE) - frozenset(cls.type for cls in _READS)
"""The messages that a read-only share refuses: all that are not known to leave it as it is."""
