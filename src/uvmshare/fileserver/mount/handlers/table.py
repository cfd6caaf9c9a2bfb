"""From a message to what it does.

What lives here: the table from message to function, and which of them change the share. What must
not: the functions; buffers and connections (`uvmshare.fileserver.mount.serving`).

A handler takes the session, the tag and the message, and returns the whole reply, or nothing when it
has put the reply into the session's outbox itself. It raises `OSError` for what the guest is to be
told as an errno, and leaves things then as they were. Messages without a handler are answered with
EOPNOTSUPP.

What a guest sends most is served without a message object: such a handler gets the fid that the body
begins with and where the body stands in ``session.buffer``, and reads the rest with `ninep.requests`.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from uvmshare.fileserver.mount.handlers import attributes, files, locking, names, readdir, walking, xattrs
from uvmshare.ninep import messages as m

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.session import Serve, Session

__all__ = ["HANDLERS", "Handler", "served"]

Handler = Callable[["Session", int, Any], bytes | None]


def _decoded(cls: type[m.Message], handler: Handler) -> Serve:
    """Read the message first."""
    read = cls.layout.read

    def serve(session: Session, tag: int, _: int, at: int, stop: int) -> bytes | None:
        return handler(session, tag, cls(*read(session.view, at, stop)))

    return serve


def _refused(cls: type[m.Message]) -> Serve:
    """Refuse what a read-only share does not do; what is no message of that type still breaks the protocol."""
    read = cls.layout.read

    def serve(session: Session, tag: int, _: int, at: int, stop: int) -> bytes | None:
        read(session.view, at, stop)
        session.counters.count_error(errno.EROFS)
        return _RLERROR(tag, errno.EROFS)

    return serve


_RLERROR: Final = m.packer(m.Rlerror)

_READS: Final[dict[type[m.Message], Serve]] = {
    m.Twalk: walking.walk,
    m.Tclunk: walking.clunk,
    m.Tgetattr: attributes.getattr_,
    m.Tstatfs: _decoded(m.Tstatfs, attributes.statfs),
    m.Tlopen: files.lopen,  # refuses flags that change by itself
    m.Tread: files.read,
    m.Tfsync: _decoded(m.Tfsync, files.fsync),
    m.Treaddir: readdir.readdir,
    m.Treadlink: _decoded(m.Treadlink, names.readlink),
    m.Tlock: _decoded(m.Tlock, locking.lock),
    m.Tgetlock: _decoded(m.Tgetlock, locking.getlock),
    m.Txattrwalk: _decoded(m.Txattrwalk, xattrs.xattrwalk),
    m.Tremove: _decoded(m.Tremove, names.remove),  # clunks its fid even on a read-only share
}

_WRITES: Final[dict[type[m.Message], Serve]] = {
    m.Tsetattr: _decoded(m.Tsetattr, attributes.setattr_),
    m.Tlcreate: files.lcreate,
    m.Twrite: files.write,
    m.Txattrcreate: _decoded(m.Txattrcreate, xattrs.xattrcreate),
    m.Tmkdir: _decoded(m.Tmkdir, names.mkdir),
    m.Tsymlink: _decoded(m.Tsymlink, names.symlink),
    m.Tmknod: _decoded(m.Tmknod, names.mknod),
    m.Tlink: _decoded(m.Tlink, names.link),
    m.Trename: _decoded(m.Trename, names.rename),
    m.Trenameat: _decoded(m.Trenameat, names.renameat),
    m.Tunlinkat: names.unlinkat,
}

HANDLERS: Final = frozenset(cls.type for cls in (*_READS, *_WRITES))
"""The numbers of the messages that have a handler."""


def _by_number(*, read_only: bool) -> list[Serve | None]:
    found: list[Serve | None] = [None] * 256
    for cls, serve in _READS.items():
        found[cls.type] = serve
    for cls, serve in _WRITES.items():
        found[cls.type] = _refused(cls) if read_only else serve
    return found


_SERVED: Final = {read_only: _by_number(read_only=read_only) for read_only in (False, True)}
"""Made once, and not in each mount process."""


def served(*, read_only: bool) -> list[Serve | None]:
    """Return what serves each message type. A read-only share refuses all that is not known to leave it as it is."""
    return _SERVED[read_only]
