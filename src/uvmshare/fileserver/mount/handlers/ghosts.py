"""What is pretended to an agent that repeats in its guest what the host did (docs/events.md).

What lives here: the handlers of `GhostFid`s. What must not: what may be pretended (`listening`).

A guest's kernel fires its events for operations of the guest alone. So the agent makes each change of the host once
more, as the reserved user, for whom the kernel attaches apart; here it is answered as if it were done, and nothing is.
That is no right that the guest does not have: what reads or writes goes to the handlers of all others, and what changes
names or attributes is only pretended, to this guest. What has not just been told is refused (EPERM).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from uvmshare.fileserver.counters import PRETENDED, REFUSED
from uvmshare.fileserver.mount.fids import GhostFid
from uvmshare.fileserver.mount.handlers import files
from uvmshare.fileserver.mount.listening import Absent, Gone, Moved
from uvmshare.fileserver.syscalls import MountCrossed
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests
from uvmshare.ninep.constants import AT_REMOVEDIR, GetattrMask, OpenFlag, QidType
from uvmshare.ninep.types import Qid

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.openfile import OpenFile
    from uvmshare.fileserver.mount.listening import Key, Pretence
    from uvmshare.fileserver.mount.session import Serve, Session

    Ghost = Callable[[Session, int, int, GhostFid, int, int], bytes | None]
    """Serves one type of message for a fid of the reserved user."""

__all__ = ["served"]

_PROBE: Final = Gone(stat.S_IFREG)
"""There for the reserved user, and never to be removed."""
_P = TypeVar("_P", Absent, Gone, Moved)

_TRUNC: Final = int(OpenFlag.TRUNC)
_ACCESS: Final = int(OpenFlag.NOACCESS)
_BASIC: Final = int(GetattrMask.BASIC)
_BLOCK: Final = 4096
_INODE: Final = (1 << 64) - 1
_NOBODYS: Final = 1 << 63
"""The path of the qid of what is not there; no file's is so large."""

_RLOPEN: Final = m.packer(m.Rlopen)
_RLCREATE: Final = m.packer(m.Rlcreate)
_RWRITE: Final = m.packer(m.Rwrite)
_RMKDIR: Final = m.packer(m.Rmkdir)
_RMKNOD: Final = m.packer(m.Rmknod)
_RSYMLINK: Final = m.packer(m.Rsymlink)


def served(plain: list[Serve | None]) -> list[Serve | None]:
    """Return what serves each message type where some fids are those of the reserved user."""
    made = list(plain)
    for cls, ghost in (*_ALWAYS.items(), *_OF_GONE.items()):
        server = plain[cls.type]
        assert server is not None, "each of these messages has a handler"
        made[cls.type] = _either(server, ghost, always=cls in _ALWAYS, pretends=cls in _PRETENDING)
    return made


def _either(plain: Serve, ghost: Ghost, *, always: bool, pretends: bool) -> Serve:
    def serve(session: Session, tag: int, number: int, at: int, stop: int) -> bytes | None:
        fid = session.fids.get(number)
        if type(fid) is GhostFid and (always or fid.pretended):
            counted = session.counters.slots
            try:
                reply = ghost(session, tag, number, fid, at, stop)
            except MountCrossed as error:  # what is behind it would be served by `foreign`, which pretends nothing
                counted[REFUSED] += 1
                raise OSError(errno.EPERM, "nothing is pretended below a mount") from error
            except PermissionError as error:
                counted[REFUSED] += error.errno == errno.EPERM
                raise
            counted[PRETENDED] += pretends
            return reply
        return plain(session, tag, number, at, stop)

    return serve


def _plan(session: Session) -> dict[Key, Pretence]:
    """Return what may be pretended; when more is told, a thread puts another one in its place."""
    listening = None if session.watched is None else session.watched.listening
    return {} if listening is None else listening.plan


def _pretence(session: Session, fid: Fid, node: Node, name: bytes) -> Pretence | None:
    """Return what may be pretended of a name in a directory."""
    if node.parent is None and name == b".uvmshare-%d" % fid.uid:
        return _PROBE  # by which the agent sees that it is the reserved user
    plan = _plan(session)
    if not plan:
        return None
    found = os.fstat(node.fd)
    return plan.get(((found.st_dev, found.st_ino), name))


def _told(session: Session, fid: GhostFid, name: bytes, kind: type[_P]) -> _P:
    """Return what is pretended of a name. Raises `OSError`: EPERM when nothing of this kind is.

    Nor is it where the guest has another file there by now, which its kernel would take for the one that is gone.
    """
    pretence = None if fid.pretended else _pretence(session, fid, fid.node, name)
    if not isinstance(pretence, kind):
        raise OSError(errno.EPERM, "the host did not do that just now")
    if isinstance(pretence, Gone | Moved):
        inode = _inode(session, fid.node, name)
        if inode and _is_in_use(session, name, inode):
            raise OSError(errno.EPERM, "the name is another file's by now")
    return pretence


def _is_in_use(session: Session, name: bytes, inode: int) -> bool:
    """Say whether the guest has walked to a file by that name: its kernel has it as long as it has the fid."""
    for fid in tuple(session.fids.values()):
        node = fid.node
        if node.name == name and type(fid) is not GhostFid and not node.is_foreign:
            seal = node.seal  # while its descriptor is let go, the low half is the inode (`idle`)
            if (os.fstat(node.fd).st_ino if seal is None else seal & _INODE) == inode:
                return True
    return False


def _take(session: Session, fid: GhostFid, name: bytes, kind: type[_P]) -> None:
    """Have a name be pretended of no more. Raises `OSError` as `_told` does."""
    _told(session, fid, name, kind)
    found = os.fstat(fid.node.fd)
    _plan(session).pop(((found.st_dev, found.st_ino), name), None)


def _inode(session: Session, directory: Node, name: bytes) -> int:
    """Return the inode of what a directory has under a name for the guest; 0 for nothing. Raises `OSError`."""
    try:
        node = session.tree.child(directory, name)
    except FileNotFoundError:
        return 0
    return os.fstat(node.fd).st_ino


def _qid_of_gone(mode: int) -> Qid:
    return Qid(int(QidType.DIR) if stat.S_ISDIR(mode) else 0, 0, _NOBODYS)


def _walk(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    newfid, names = requests.walk(session.buffer, at, stop)
    is_same = session.fids.get(newfid) is fid
    if not is_same:
        session.require_free(newfid)
    node, pretended = fid.node, fid.pretended
    qids: list[Qid] = []
    try:
        for name in names:
            node, pretended, qid = _step(session, fid, node, name, pretended)
            qids.append(qid)
    except OSError:
        if not qids:
            raise
    if not names and fid.file is not None:
        node = fid.node_for_clone(session.tree)
    if len(qids) == len(names):
        if is_same:
            session.drop_fid(newfid)
        session.fids[newfid] = GhostFid(node, fid.uid, pretended)
        session.require_room(node.fd)
    return m.Rwalk(tuple(qids)).encode(tag)


def _step(session: Session, fid: GhostFid, node: Node, name: bytes, pretended: int) -> tuple[Node, int, Qid]:
    if pretended:
        raise OSError(errno.ENOENT, "it is gone")
    pretence = _pretence(session, fid, node, name)
    if isinstance(pretence, Absent):
        raise OSError(errno.ENOENT, "it is not there yet")
    if isinstance(pretence, Gone):
        return node, pretence.mode, _qid_of_gone(pretence.mode)
    if isinstance(pretence, Moved):
        path = pretence.path.split(b"/")
        found = session.tree.walk(session.tree.root, path)
        if len(found) != len(path):
            raise OSError(errno.ENOENT, "it was moved on")
        node = found[-1]
    else:
        node = session.tree.child(node, name)
    return node, 0, Qid(*session.ownership.known(node, os.fstat(node.fd)).qid)


def _getattr(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    """Tell of what is gone what a guest's kernel needs to have it removed."""
    requests.getattr_(session.buffer, at, stop)
    mode, links = fid.pretended, 2 if stat.S_ISDIR(fid.pretended) else 1
    qid = _qid_of_gone(mode)
    return m.Rgetattr(_BASIC, qid, mode, 0, 0, links, 0, 0, _BLOCK, 0, *[0] * 10).encode(tag)


def _not_there(*_: object) -> bytes:
    raise OSError(errno.ENOENT, "it is gone")


def _no_attribute(*_: object) -> bytes:
    raise OSError(errno.ENODATA, "it is gone")


def _refused(*_: object) -> bytes:
    raise OSError(errno.EPERM, "nothing is changed as this user")


def _remove(session: Session, _: int, number: int, __: GhostFid, ___: int, ____: int) -> bytes:
    session.drop_fid(number)  # remove(5): "the fid is clunked even if the remove fails"
    raise OSError(errno.EPERM, "nothing is changed as this user")


def _lopen(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    """Open the file itself, for reading: who watches it on the host is not to hear that it was open for writing."""
    flags = requests.lopen(session.buffer, at, stop)
    if fid.pretended:
        _not_there()
    if flags & _TRUNC:
        _refused()
    if fid.is_open:
        raise OSError(errno.EINVAL, "fid is open already")
    file, known = files.open_node(session, fid.node, flags & ~_ACCESS)
    session.opened(fid, file)
    return _RLOPEN(tag, *known.qid, 0)


def _write(session: Session, tag: int, number: int, *rest: Any) -> bytes | None:
    """Write to the file itself: a guest's kernel writes a program's data back through any fid, this one too."""
    fid, at, stop = rest
    if fid.file is not None and not fid.file.writable:
        try:
            file, _ = files.open_node(session, fid.node, os.O_RDWR)
        except OSError:
            opened = _open_by_a_program(session, fid.file)
            if opened is None:
                raise
            offset, start = requests.write(session.buffer, at, stop)
            session.ownership.before_write(fid.node, opened.fd, fid.uid)
            return _RWRITE(tag, opened.write(session.view[start:stop], offset))
        session.opened_files.discard(fid.file)
        session.opened(fid, file)
    return files.write(session, tag, number, at, stop)


def _open_by_a_program(session: Session, file: OpenFile) -> OpenFile | None:
    """Return the same file as a program of the guest has it open for writing; None where none has.

    Its data may come by this fid, and is not to be lost because the host lets nobody open the file any more.
    """
    for other in session.opened_files.of(file.key):
        if other.writable and not fcntl.fcntl(other.fd, fcntl.F_GETFL) & os.O_APPEND:  # pwrite(2) would append
            return other
    return None


def _setattr(session: Session, tag: int, _: int, __: GhostFid, at: int, stop: int) -> bytes:
    m.Tsetattr.layout.read(session.view, at, stop)
    return m.Rsetattr().encode(tag)


def _made(session: Session, fid: GhostFid, name: bytes) -> tuple[Node, tuple[int, int, int]]:
    """Return what the host made under a name, and its qid: it is there for this user from now on."""
    _take(session, fid, name, Absent)
    node = session.tree.child(fid.node, name)
    return node, session.ownership.known(node, os.fstat(node.fd)).qid


def _lcreate(session: Session, tag: int, _: object, fid: GhostFid, at: int, stop: int) -> bytes:
    name, *_ = requests.lcreate(session.buffer, at, stop)
    if fid.is_open or fid.pretended:
        raise OSError(errno.EINVAL, "not the fid of a directory")
    node, qid = _made(session, fid, name)
    file, _ = files.open_node(session, node, os.O_RDONLY)
    session.opened(fid, file, node)
    return _RLCREATE(tag, *qid, 0)


def _mkdir(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    message = m.Tmkdir(*m.Tmkdir.layout.read(session.view, at, stop))
    return _RMKDIR(tag, *_made(session, fid, message.name)[1])


def _mknod(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    message = m.Tmknod(*m.Tmknod.layout.read(session.view, at, stop))
    return _RMKNOD(tag, *_made(session, fid, message.name)[1])


def _symlink(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    message = m.Tsymlink(*m.Tsymlink.layout.read(session.view, at, stop))
    return _RSYMLINK(tag, *_made(session, fid, message.name)[1])


def _unlinkat(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    name, flags = requests.unlinkat(session.buffer, at, stop)
    if flags & ~AT_REMOVEDIR:
        raise OSError(errno.EINVAL, "unknown flags")
    _take(session, fid, name, Gone)
    return m.Runlinkat().encode(tag)


def _renameat(session: Session, tag: int, _: int, fid: GhostFid, at: int, stop: int) -> bytes:
    message = m.Trenameat(*m.Trenameat.layout.read(session.view, at, stop))
    to = session.fid(message.newdirfid)
    if not isinstance(to, GhostFid):
        raise OSError(errno.EPERM, "nothing is changed as this user")
    moved = _told(session, fid, message.oldname, Moved)
    if _inode(session, to.node, message.newname) != moved.inode:
        raise OSError(errno.EPERM, "the file has another name, or the name another file")
    _take(session, fid, message.oldname, Moved)
    with suppress(OSError):  # it was there before, and was replaced
        _take(session, to, message.newname, Absent)
    return m.Rrenameat().encode(tag)


_ALWAYS: Final[dict[type[m.Message], Ghost]] = {
    m.Twalk: _walk,
    m.Tlopen: _lopen,
    m.Twrite: _write,
    m.Tsetattr: _setattr,
    m.Tlcreate: _lcreate,
    m.Tmkdir: _mkdir,
    m.Tmknod: _mknod,
    m.Tsymlink: _symlink,
    m.Tunlinkat: _unlinkat,
    m.Trenameat: _renameat,
    m.Tlink: _refused,
    m.Trename: _refused,
    m.Txattrcreate: _refused,
    m.Tremove: _remove,
}
_OF_GONE: Final[dict[type[m.Message], Ghost]] = {
    m.Tgetattr: _getattr,
    m.Txattrwalk: _no_attribute,
    m.Treadlink: _not_there,
    m.Tstatfs: _not_there,
}
"""Where nothing is there; of all else the messages are those of any user."""
_PRETENDING: Final = frozenset(
    (m.Tsetattr, m.Tlcreate, m.Tmkdir, m.Tmknod, m.Tsymlink, m.Tunlinkat, m.Trenameat),
)
"""What is answered as if it were done."""
