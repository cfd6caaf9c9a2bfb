"""Opening, creating, reading and writing files.

What lives here: lopen, lcreate, read, write, fsync. What must not: names being changed (`names`),
listings (`directories`).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.fid import OpenFile, XattrValue, XattrWrite
from uvmshare.fileserver.handlers import xattrs
from uvmshare.fileserver.listing import Listing
from uvmshare.fileserver.ownership import Owner
from uvmshare.fileserver.tree import check_name
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import READ_HEADER_SIZE, OpenFlag

if TYPE_CHECKING:
    from uvmshare.fileserver.fid import Fid
    from uvmshare.fileserver.session import Session
    from uvmshare.fileserver.tree import Node

_RLOPEN: Final = m.packer(m.Rlopen)
_RLCREATE: Final = m.packer(m.Rlcreate)
_RWRITE: Final = m.packer(m.Rwrite)
_RFSYNC: Final = m.packer(m.Rfsync)

_ACCESS: Final = int(OpenFlag.NOACCESS)
_EXCL: Final = int(OpenFlag.EXCL)
_SYNC: Final = int(OpenFlag.SYNC | OpenFlag.DSYNC)
SET_ID: Final = stat.S_ISUID | stat.S_ISGID
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


def _host_flags(flags: int) -> int:
    access = flags & _ACCESS
    host = os.O_RDWR if access == _ACCESS else access
    for guest, passed in _PASSED_ON:
        if flags & guest:
            host |= passed
    return host


def _open(session: Session, node: Node, flags: int) -> tuple[OpenFile, os.stat_result, int]:
    """Open a node for I/O; return the open file, its stat and the mode that is seen."""
    session.require_room_to_open()
    session.tree.require_inside(node)
    found = os.fstat(node.fd)
    mode = session.ownership.seen(node, found)[0]
    kind = stat.S_IFMT(mode)
    writes = bool(flags & (_ACCESS | _TRUNC))
    if kind == stat.S_IFDIR:
        if writes:
            raise OSError(errno.EISDIR, "a directory is only read")
        return _open_directory(session, node, found), found, mode
    if writes and session.export.read_only:
        raise OSError(errno.EROFS, "the share is read-only")
    if flags & _DIRECTORY:
        raise OSError(errno.ENOTDIR, "not a directory")
    if kind == stat.S_IFLNK:
        raise OSError(errno.ELOOP, "a symbolic link is read with readlink")
    if kind != stat.S_IFREG or not stat.S_ISREG(found.st_mode):
        # Opening a FIFO blocks, and opening a device acts on the host: the guest has its own.
        raise OSError(errno.ENXIO, "only regular files and directories are opened")
    file = _file(session.tree.reopen(node, _host_flags(flags)), found, flags)
    file.set_id = bool(mode & SET_ID)
    return file, found, mode


def _file(descriptor: int, found: os.stat_result, flags: int) -> OpenFile:
    key = found.st_dev, found.st_ino
    return OpenFile(descriptor, key, writable=bool(flags & _ACCESS), sync=bool(flags & _SYNC))


def _open_directory(session: Session, node: Node, found: os.stat_result) -> OpenFile:
    tree, device, is_root = session.tree, found.st_dev, node.parent is None
    file = OpenFile(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=node.fd), (device, found.st_ino))
    file.listing = Listing(
        file.fd,
        qid_path=lambda inode: tree.qid_path(device, inode),
        qid_base=tree.qid_base(device),
        entry_type=session.ownership.entry_type,
        only=tree.only if is_root else None,
        root_inode=found.st_ino if is_root else None,
    )
    return file


def lopen(session: Session, tag: int, message: m.Tlopen) -> bytes:
    """Open a fid for I/O (protocol.md, lopen). A read-only share refuses flags that would change it."""
    fid = session.fid(message.fid)
    if fid.is_open:
        raise OSError(errno.EINVAL, "fid is open already")
    file, found, mode = _open(session, fid.node, message.flags)
    session.opened(fid, file)
    return _RLOPEN(tag, *session.tree.qid_numbers(found, mode), 0)


def lcreate(session: Session, tag: int, message: m.Tlcreate) -> bytes:
    """Create a file and open it; the fid of the directory becomes the file's (protocol.md, lcreate).

    A file that is there already is opened, unless O_EXCL is asked for; what is no regular file is
    refused then as lopen refuses it.
    """
    fid = session.fid(message.fid)
    directory = fid.node
    if fid.is_open:
        raise OSError(errno.EINVAL, "fid is open already")
    check_name(message.name)
    session.require_room_to_open()
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
        node = session.tree.child(directory, message.name)
        file, found, mode = _open(session, node, flags)
    else:
        found = os.fstat(io)
        mode = found.st_mode
        file = _file(io, found, flags)
        file.set_id = bool(message.mode & SET_ID)
        node = session.tree.node_of(io, directory, message.name)
    fid.node = node
    session.opened(fid, file)
    return _RLCREATE(tag, *session.tree.qid_numbers(found, mode), 0)


def read(session: Session, tag: int, message: m.Tread) -> bytes | None:
    """Read from an open file or extended attribute (read(5)).

    A count that would not fit a message is cut to what does. What the page cache does not hold is
    read aside.
    """
    fid = session.fid(message.fid)
    count = min(message.count, session.msize - READ_HEADER_SIZE)
    if fid.xattr is not None:
        if not isinstance(fid.xattr, XattrValue):
            raise OSError(errno.EBADF, "fid is open for writing an attribute")
        return m.Rread(fid.xattr.value[message.offset : message.offset + count]).encode(tag)
    file = session.open_file(message.fid)
    if file.listing is not None:
        raise OSError(errno.EISDIR, "a directory is read with readdir")
    if not session.outbox.reply_read(tag, file, message.offset, count):
        session.read_aside(tag, file, message.offset, count)
    return None


def write(session: Session, tag: int, message: m.Twrite) -> bytes | None:
    """Write to an open file or extended attribute (write(5)); as many bytes as the host takes.

    A write that waits for the disk, because the file was opened so, runs aside.
    """
    fid = session.fid(message.fid)
    if fid.xattr is not None:
        if not isinstance(fid.xattr, XattrWrite):
            raise OSError(errno.EBADF, "fid is open for reading an attribute")
        return _RWRITE(tag, xattrs.write(fid.xattr, message.data, message.offset))
    file = session.open_file(message.fid)
    offset = message.offset
    if file.set_id and fid.uid:
        _take_set_id_off(session, fid, file)
    if file.sync:
        data = bytes(message.data)  # the buffer it stands in is used again
        if session.run_aside(tag, 0, lambda: _written(tag, len(data), os.pwrite(file.fd, data, offset))):
            return None
    return _written(tag, len(message.data), os.pwrite(file.fd, message.data, offset))


def _take_set_id_off(session: Session, fid: Fid, file: OpenFile) -> None:
    """Take the setuid bit off, and the setgid bit of what the group may execute, as write(2) by a user does.

    The server writes as its own user, so that the host does not do it.
    """
    mode = session.ownership.seen(fid.node, os.fstat(fid.node.fd))[0]
    off = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    if mode & off:
        session.ownership.chmod(fid.node, mode & ~off)
    file.set_id = False


def _written(tag: int, asked: int, count: int) -> bytes:
    if not count and asked:
        raise OSError(errno.EIO, "nothing was written")  # a count of 0 would make Linux's client try for ever
    return _RWRITE(tag, count)


def fsync(session: Session, tag: int, message: m.Tfsync) -> bytes | None:
    """Bring a file or directory to stable storage, aside (protocol.md, fsync)."""
    file = session.open_file(message.fid)

    def sync() -> bytes:
        if message.datasync:
            os.fdatasync(file.fd)
        else:
            os.fsync(file.fd)
        return _RFSYNC(tag)

    return None if session.run_aside(tag, 0, sync) else sync()
