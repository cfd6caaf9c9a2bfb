"""What a mount changes itself, of which the guest is not to be told.

What lives here: which files and names each request changes. What must not: what becomes of the notes (`listening`,
`ledger`).

Names are noted where an agent is told of names at all. Files are noted too where a ledger is kept, since the host's
kernel does not say who changed something. What cannot be told before is no harm to what is served: it is told to the
guest as if the host had done it. Permissions that are lent meanwhile are noted where that is done (`files.lending`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.fids import GhostFid, XattrWrite
from uvmshare.fileserver.mount.files.tree import check_name
from uvmshare.fileserver.mount.listening import Change
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests
from uvmshare.ninep.constants import OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.session import Serve, Session

    About = Callable[[Session, Fid, int, int], Change | None]
    """Says what a request changes: takes the session, its first fid, and where the body begins and ends."""

__all__ = ["served"]

_OPEN_FOR_WRITING: Final = int(OpenFlag.NOACCESS | OpenFlag.TRUNC)


def served(plain: list[Serve | None], *, keeps_ledger: bool) -> list[Serve | None]:
    """Return what serves each message type and notes what it changes, while an agent is told of names."""
    made = list(plain)
    for cls, about in (*_OF_NAMES.items(), *(_OF_FILES.items() if keeps_ledger else ())):
        serve = plain[cls.type]
        if serve is not None:
            made[cls.type] = _noting(serve, about)
    return made


def _noting(plain: Serve, about: About) -> Serve:
    def serve(session: Session, tag: int, number: int, at: int, stop: int) -> bytes | None:
        listening = None if session.watched is None else session.watched.listening
        fid = session.fids.get(number)
        if listening is None or fid is None or session.export.read_only:
            return plain(session, tag, number, at, stop)
        try:
            change = about(session, fid, at, stop)
        except Exception:  # noqa: BLE001  its handler meets the same, and answers
            change = None
        if change is None:
            return plain(session, tag, number, at, stop)
        return listening.own(change, lambda: plain(session, tag, number, at, stop))

    return serve


def _in_directory(directory: Node, name: bytes, what: str) -> Change:
    check_name(name)
    return Change((directory,), ((directory, name),), what)


def _lopen(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
    """To open a file for writing may give it a new ctime: overlayfs copies it first."""
    return Change((fid.node,)) if requests.lopen(session.buffer, at, stop) & _OPEN_FOR_WRITING else None


def _lcreate(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
    name, *_ = requests.lcreate(session.buffer, at, stop)
    return _in_directory(fid.node, name, "create")


def _write(_: Session, fid: Fid, __: int, ___: int) -> Change | None:
    return None if fid.file is None else Change((fid.file,))


def _clunk(_: Session, fid: Fid, __: int, ___: int) -> Change | None:
    return Change((fid.node,)) if isinstance(fid.xattr, XattrWrite) else None


def _setattr(_: Session, fid: Fid, __: int, ___: int) -> Change | None:
    return Change((fid.node,))


def _make(cls: type[m.Tmkdir | m.Tmknod | m.Tsymlink]) -> About:
    def about(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
        return _in_directory(fid.node, cls(*cls.layout.read(session.view, at, stop)).name, "make")

    return about


def _link(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
    message = m.Tlink(*m.Tlink.layout.read(session.view, at, stop))
    check_name(message.name)
    return Change((fid.node, session.fid(message.fid).node), ((fid.node, message.name),), "make")


def _rename(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
    message = m.Trename(*m.Trename.layout.read(session.view, at, stop))
    return _renamed(fid.node.parent, session.tree.name_of(fid.node), session.fid(message.dfid).node, message.name)


def _renameat(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
    message = m.Trenameat(*m.Trenameat.layout.read(session.view, at, stop))
    return _renamed(fid.node, message.oldname, session.fid(message.newdirfid).node, message.newname)


def _renamed(old: Node | None, name: bytes, new: Node, to: bytes) -> Change | None:
    check_name(name)
    check_name(to)
    return None if old is None else Change((old, new), ((old, name), (new, to)), "rename")


def _unlinkat(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
    name, _ = requests.unlinkat(session.buffer, at, stop)
    return _in_directory(fid.node, name, "remove")


def _remove(session: Session, fid: Fid, _: int, __: int) -> Change | None:
    parent = fid.node.parent
    return None if parent is None else _in_directory(parent, session.tree.name_of(fid.node), "remove")


def _of_programs(about: About) -> About:
    """Leave out the reserved user, of whom nothing but a write is carried out (`ghosts`)."""

    def of_programs(session: Session, fid: Fid, at: int, stop: int) -> Change | None:
        return None if type(fid) is GhostFid else about(session, fid, at, stop)

    return of_programs


_OF_NAMES: Final[dict[type[m.Message], About]] = {
    m.Tlcreate: _of_programs(_lcreate),
    m.Tmkdir: _of_programs(_make(m.Tmkdir)),
    m.Tmknod: _of_programs(_make(m.Tmknod)),
    m.Tsymlink: _of_programs(_make(m.Tsymlink)),
    m.Tlink: _of_programs(_link),
    m.Trename: _of_programs(_rename),
    m.Trenameat: _of_programs(_renameat),
    m.Tunlinkat: _of_programs(_unlinkat),
    m.Tremove: _of_programs(_remove),
}
"""What changes names, and with them files."""
_OF_FILES: Final[dict[type[m.Message], About]] = {
    m.Twrite: _write,
    m.Tlopen: _lopen,
    m.Tclunk: _of_programs(_clunk),
    m.Tsetattr: _of_programs(_setattr),
}
"""What changes a file, and no name."""
