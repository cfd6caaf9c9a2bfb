"""Opening, creating, reading and writing files.

What lives here: lopen, lcreate, read, write, fsync. What must not: names being changed (`names`),
listings (`directories`).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.fid import Fid
from uvmshare.fileserver.listing import Listing
from uvmshare.fileserver.ownership import Owner
from uvmshare.fileserver.tree import check_name
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import READ_HEADER_SIZE, OpenFlag

if TYPE_CHECKING:
    from uvmshare.fileserver.session import Session
    from uvmshare.fileserver.tree import Node

_RLOPEN: Final = m.packer(m.Rlopen)
_RLCREATE: Final = m.packer(m.Rlcreate)
_RWRITE: Final = m.packer(m.Rwrite)
_RFSYNC: Final = m.packer(m.Rfsync)

_ACCESS: Final = int(OpenFlag.NOACCESS)
_EXCL: Final = int(OpenFlag.EXCL)
_TRUNC: Final = int(OpenFlag.TRUNC)
_DIRECTORY: Final = int(OpenFlag.DIRECTORY)

_PASSED_ON: Final = (
    (int(OpenFlag.TRUNC), os.O_TRUNC),
    (int(OpenFlag.APPEND), os.O_APPEND),  # the offset of a Twrite is not reliable then
    (int(OpenFlag.DSYNC), os.O_DSYNC),
    (int(OpenFlag.SYNC) & ~int(OpenFlag.DSYNC), os.O_SYNC),
)
"""Flags with a meaning here. Others are the guest's own affair, or would hurt: O_DIRECT refuses odd
sizes, O_NONBLOCK changes nothing of a regular file."""

SENDFILE_MIN: Final = 256 * 1024
"""From this count on the file goes to the socket without passing through the process: at 1 MiB that
was measured at 1.6 times diod against 1.3 for a copy, and below 256 KiB the second call costs more."""


def _host_flags(flags: int) -> int:
    access = flags & _ACCESS
    host = os.O_RDWR if access == _ACCESS else access
    for guest, passed in _PASSED_ON:
        if flags & guest:
            host |= passed
    return host


def _open(session: Session, node: Node, flags: int) -> tuple[Fid, os.stat_result, int]:
    """Open a node for I/O; return what a fid of it is to hold, its stat and the mode that is seen."""
    session.tree.require_inside(node)
    found = os.fstat(node.fd)
    mode = session.ownership.seen(node, found)[0]
    kind = stat.S_IFMT(mode)
    opened = Fid(node, 0)
    writes = bool(flags & (_ACCESS | _TRUNC))
    if kind == stat.S_IFDIR:
        if writes:
            raise OSError(errno.EISDIR, "a directory is only read")
        opened.io = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=node.fd)
        tree, device, is_root = session.tree, found.st_dev, node.parent is None
        opened.listing = Listing(
            opened.io,
            lambda inode: tree.qid_path(device, inode),
            session.ownership.entry_type,
            tree.only if is_root else None,
            found.st_ino if is_root else None,
        )
        return opened, found, mode
    if writes and session.export.read_only:
        raise OSError(errno.EROFS, "the share is read-only")
    if flags & _DIRECTORY:
        raise OSError(errno.ENOTDIR, "not a directory")
    if kind == stat.S_IFLNK:
        raise OSError(errno.ELOOP, "a symbolic link is read with readlink")
    if kind != stat.S_IFREG or not stat.S_ISREG(found.st_mode):
        # Opening a FIFO blocks, and opening a device acts on the host: the guest has its own.
        raise OSError(errno.ENXIO, "only regular files and directories are opened")
    opened.io = session.tree.reopen(node, _host_flags(flags))
    opened.writable = bool(flags & _ACCESS)
    return opened, found, mode


def lopen(session: Session, tag: int, message: m.Tlopen) -> bytes:
    """Open a fid for I/O (protocol.md, lopen). A read-only share refuses flags that would change it."""
    fid = session.fid(message.fid)
    if fid.io >= 0:
        raise OSError(errno.EINVAL, "fid is open already")
    opened, found, mode = _open(session, fid.node, message.flags)
    fid.take(opened)
    return _RLOPEN(tag, *session.tree.qid_numbers(found, mode), 0)


def lcreate(session: Session, tag: int, message: m.Tlcreate) -> bytes:
    """Create a file and open it; the fid of the directory becomes the file's (protocol.md, lcreate).

    A file that is there already is opened, unless O_EXCL is asked for; what is no regular file is
    refused then as lopen refuses it.
    """
    fid = session.fid(message.fid)
    directory = fid.node
    if fid.io >= 0:
        raise OSError(errno.EINVAL, "fid is open already")
    check_name(message.name)
    session.tree.require_inside(directory)
    session.require_changeable(directory)
    flags = message.flags
    owner = Owner(fid.uid, message.gid)
    try:
        # What is created is empty: O_TRUNC has nothing to do.
        io = session.ownership.create(directory, message.name, _host_flags(flags & ~_TRUNC), message.mode, owner)
    except FileExistsError:
        if flags & _EXCL:
            raise
        opened, found, mode = _open(session, session.tree.child(directory, message.name), flags)
    else:
        try:
            node = session.tree.node_of(io, directory, message.name)
        except BaseException:
            os.close(io)
            raise
        opened = Fid(node, 0)
        opened.io = io
        opened.writable = bool(flags & _ACCESS)
        found = os.fstat(io)
        mode = found.st_mode
    fid.take(opened)
    return _RLCREATE(tag, *session.tree.qid_numbers(found, mode), 0)


def read(session: Session, tag: int, message: m.Tread) -> None:
    """Read from an open file (read(5)). A count that would not fit a message is cut to what does."""
    fid = session.open_fid(message.fid)
    count = min(message.count, session.msize - READ_HEADER_SIZE)
    if count >= SENDFILE_MIN and fid.listing is None:
        session.reply_sendfile(tag, fid.io, message.offset, count)
    else:
        session.reply_read(tag, fid.io, message.offset, count)


def write(session: Session, tag: int, message: m.Twrite) -> bytes:
    """Write to an open file (write(5)); as many bytes as the host takes."""
    fid = session.open_fid(message.fid)
    count = session.ownership.write(fid.uid, fid.io, message.data, message.offset)
    if not count and len(message.data):
        raise OSError(errno.EIO, "nothing was written")  # a count of 0 would make Linux's client try for ever
    return _RWRITE(tag, count)


def fsync(session: Session, tag: int, message: m.Tfsync) -> bytes:
    """Bring a file or directory to stable storage (protocol.md, fsync)."""
    io = session.open_fid(message.fid).io
    if message.datasync:
        os.fdatasync(io)
    else:
        os.fsync(io)
    return _RFSYNC(tag)
