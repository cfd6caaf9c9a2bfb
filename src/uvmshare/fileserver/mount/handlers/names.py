"""Changes of the name space: making, linking, renaming and removing; and reading links.

What lives here: mkdir, symlink, mknod, link, rename, renameat, unlinkat, remove, readlink. What must
not: who owns what is made (`files.ownership`).

Every one of them acts on a directory's descriptor and one checked name, and only while the directory
lies in the share.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.files.ownership import FileOwner
from uvmshare.fileserver.mount.files.tree import check_name
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests
from uvmshare.ninep.constants import AT_REMOVEDIR

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.session import Session

_RMKDIR: Final = m.packer(m.Rmkdir)
_RSYMLINK: Final = m.packer(m.Rsymlink)
_RMKNOD: Final = m.packer(m.Rmknod)
_RLINK: Final = m.packer(m.Rlink)
_RRENAME: Final = m.packer(m.Rrename)
_RRENAMEAT: Final = m.packer(m.Rrenameat)
_PACK_RUNLINKAT, _RUNLINKAT_SIZE, _RUNLINKAT = m.frame_of(m.Runlinkat)
_RREMOVE: Final = m.packer(m.Rremove)


def _directory_to_make_in(session: Session, number: int, name: bytes, *, is_directory: bool = False) -> Fid:
    """Return the fid of a directory in which `name` may be made."""
    fid = _changeable(session, number, name)
    session.tree.require_makeable(fid.node, name, is_directory=is_directory)
    return fid


def _changeable(session: Session, number: int, name: bytes) -> Fid:
    """Return the fid of a directory in which `name` may be changed, for what looks itself whether it is hidden."""
    fid = session.fid(number)
    check_name(name)
    session.tree.boundary.require_directory_inside(fid.node)
    session.require_changeable(fid.node)
    return fid


def _qid_of(session: Session, directory: Node, name: bytes) -> tuple[int, int, int]:
    """Return the qid of what has just been made."""
    node = session.tree.child(directory, name)
    return session.ownership.known(node, os.fstat(node.fd)).qid


def mkdir(session: Session, tag: int, message: m.Tmkdir) -> bytes:
    """Make a directory (protocol.md, mkdir)."""
    fid = _directory_to_make_in(session, message.dfid, message.name, is_directory=True)
    owner = FileOwner(fid.uid, message.gid)
    session.tree.lending.during(lambda: session.ownership.mkdir(fid.node, message.name, message.mode, owner), fid.node)
    return _RMKDIR(tag, *_qid_of(session, fid.node, message.name))


def symlink(session: Session, tag: int, message: m.Tsymlink) -> bytes:
    """Make a symbolic link (protocol.md, symlink). Its target is the guest's: nothing here follows it."""
    fid = _directory_to_make_in(session, message.fid, message.name)
    if not message.target:
        raise OSError(errno.ENOENT, "a link needs a target")
    if len(message.target) >= _PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, "the target is too long")
    owner = FileOwner(fid.uid, message.gid)
    session.tree.lending.during(
        lambda: session.ownership.symlink(fid.node, message.name, message.target, owner), fid.node
    )
    return _RSYMLINK(tag, *_qid_of(session, fid.node, message.name))


_PATH_MAX: Final = 4096


def mknod(session: Session, tag: int, message: m.Tmknod) -> bytes:
    """Make a device node, FIFO, socket or regular file (protocol.md, mknod)."""
    fid = _directory_to_make_in(session, message.dfid, message.name)
    rdev = os.makedev(message.major, message.minor)
    owner = FileOwner(fid.uid, message.gid)
    session.tree.lending.during(
        lambda: session.ownership.mknod(fid.node, message.name, message.mode, rdev, owner), fid.node
    )
    return _RMKNOD(tag, *_qid_of(session, fid.node, message.name))


def link(session: Session, tag: int, message: m.Tlink) -> bytes:
    """Make a hard link (protocol.md, link)."""
    directory = _directory_to_make_in(session, message.dfid, message.name)
    source = session.fid(message.fid).node
    session.tree.require_inside(source)
    session.tree.link(source, directory.node, message.name)
    return _RLINK(tag)


def renameat(session: Session, tag: int, message: m.Trenameat) -> bytes:
    """Rename (protocol.md, renameat). Fids of what moves stay what they are."""
    old = _changeable(session, message.olddirfid, message.oldname)
    new = _changeable(session, message.newdirfid, message.newname)
    session.idle.before_removal(new.node, message.newname)
    session.tree.rename(old.node, message.oldname, new.node, message.newname)
    session.idle.note_rename(old.node, message.oldname, new.node, message.newname)
    return _RRENAMEAT(tag)


def rename(session: Session, tag: int, message: m.Trename) -> bytes:
    """Rename what a fid stands for (protocol.md, rename), for clients that know no renameat."""
    node = session.fid(message.fid).node
    parent, name = _place(session, node)
    new = _changeable(session, message.dfid, message.name)
    session.idle.before_removal(new.node, message.name)
    session.tree.rename(parent, name, new.node, message.name)
    session.idle.note_rename(parent, name, new.node, message.name)
    session.tree.move(node, new.node, message.name)
    return _RRENAME(tag)


def unlinkat(session: Session, tag: int, number: int, at: int, stop: int) -> bytes:
    """Remove a name (protocol.md, unlinkat)."""
    name, flags = requests.unlinkat(session.buffer, at, stop)
    fid = session.fids.get(number) or session.fid(number)
    check_name(name)
    directory = fid.node
    tree = session.tree
    boundary = tree.boundary
    if not boundary.has_landlock:
        boundary.require_directory_inside(directory)
    session.require_changeable(directory)
    if flags & ~AT_REMOVEDIR:
        raise OSError(errno.EINVAL, "unknown flags")
    tree.require_shown(directory, name)
    session.idle.before_removal(directory, name)
    try:
        tree.unlink(directory, name, is_directory=flags != 0)
    except OSError:
        boundary.require_inside(directory)  # no error of what lies outside is told
        raise
    return _PACK_RUNLINKAT(_RUNLINKAT_SIZE, _RUNLINKAT, tag)


def remove(session: Session, tag: int, message: m.Tremove) -> bytes:
    """Remove what a fid stands for, and clunk it.

    remove(5): "the fid is clunked even if the remove fails".
    """
    fid = session.drop_fid(message.fid)
    if session.export.read_only:
        raise OSError(errno.EROFS, "the share is read-only")
    parent, name = _place(session, fid.node)
    session.idle.before_removal(parent, name)
    session.tree.unlink(parent, name, is_directory=os.path.isdir(session.tree.path_of(fid.node)))
    return _RREMOVE(tag)


def _place(session: Session, node: Node) -> tuple[Node, bytes]:
    """Return the directory and name of a node that may be moved or removed.

    9P says these of a fid, the host says them of a name: the name must still be this file's. When it
    was renamed in its directory, the kernel knows the new name. Raises `OSError`: EBUSY for the root,
    ENOENT when the file is no longer in that directory.
    """
    parent = node.parent
    if parent is None:
        raise OSError(errno.EBUSY, "the root of the share stays")
    session.tree.require_inside(parent)
    session.require_changeable(parent)
    for name in (node.name, session.tree.name_of(node)):
        if session.tree.is_entry(parent, name, node):
            session.tree.require_shown(parent, name)
            return parent, name
    raise OSError(errno.ENOENT, "no longer in the directory it was walked to in")


def readlink(session: Session, tag: int, message: m.Treadlink) -> bytes:
    """Read a symbolic link (protocol.md, readlink). A target that does not fit a message is an error.

    One that was moved out of the share is not read: its target may be content of a file (`ownership.Mapped`).
    """
    node = session.fid(message.fid).node
    with session.tree.boundary.kept_by_landlock(node):
        target = session.ownership.readlink(node)
    session.tree.require_inside(node)
    reply = m.Rreadlink(target).encode(tag)
    if len(reply) > session.msize:
        raise OSError(errno.ENAMETOOLONG, "the target is longer than msize allows")
    return reply
