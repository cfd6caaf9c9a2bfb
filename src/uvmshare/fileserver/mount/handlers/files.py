"""Opening, creating, reading and writing files.

What lives here: lopen, lcreate, read, write, fsync. What must not: names being changed (`names`),
listings (`readdir`).
"""

from __future__ import annotations

import errno
import os
import stat
from functools import partial
from typing import TYPE_CHECKING, Final, TypedDict

from uvmshare.fileserver.mount.fids import Changes, XattrValue, XattrWrite
from uvmshare.fileserver.mount.files.listing import AllowedListing, Listing
from uvmshare.fileserver.mount.files.node import ForeignNode, Node
from uvmshare.fileserver.mount.files.openfile import CreatedFile, ForeignFile, OpenFile
from uvmshare.fileserver.mount.files.ownership import FileOwner
from uvmshare.fileserver.mount.files.tree import check_name
from uvmshare.fileserver.mount.handlers import watching, xattrs
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests
from uvmshare.ninep.constants import READ_HEADER_SIZE, OpenFlag

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.ownership import Known
    from uvmshare.fileserver.mount.session import Session

_RLOPEN: Final = m.packer(m.Rlopen)
_RLCREATE: Final = m.packer(m.Rlcreate)
_RWRITE: Final = m.packer(m.Rwrite)
_PACK_RWRITE, _RWRITE_SIZE, _RWRITE_TYPE = m.frame_of(m.Rwrite)
_RFSYNC: Final = m.packer(m.Rfsync)

_ACCESS: Final = int(OpenFlag.NOACCESS)
_EXCL: Final = int(OpenFlag.EXCL)
_SYNC: Final = int(OpenFlag.SYNC | OpenFlag.DSYNC)
_TRUNC: Final = int(OpenFlag.TRUNC)
_ACCESS_OR_TRUNC: Final = _ACCESS | _TRUNC
_S_IFMT: Final = 0o170000
_DIRECTORY: Final = int(OpenFlag.DIRECTORY)

_PASSED_ON: Final = (
    (int(OpenFlag.TRUNC), os.O_TRUNC),
    (int(OpenFlag.APPEND), os.O_APPEND),  # the offset of a Twrite is not reliable then
    (int(OpenFlag.DSYNC), os.O_DSYNC),
    (int(OpenFlag.SYNC) & ~int(OpenFlag.DSYNC), os.O_SYNC),
)
"""Flags with a meaning here. Others are the guest's own affair, or would hurt: O_DIRECT refuses odd
sizes, O_NONBLOCK changes nothing of a regular file."""
_SYNC_OR_APPEND: Final = _SYNC | int(OpenFlag.APPEND)
_ACCESS_OR_SYNC: Final = _ACCESS | _SYNC
_LIST_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_SOME_PASSED_ON: Final = _TRUNC | _SYNC_OR_APPEND


def _host_flags(flags: int) -> int:
    access = flags & _ACCESS
    host = os.O_RDWR if access == _ACCESS else access
    if flags & _SOME_PASSED_ON:
        for guest, passed in _PASSED_ON:
            if flags & guest:
                host |= passed
    return host


class _Kind(TypedDict):
    writable: bool
    sync: bool
    splices: bool


def _kind_of(flags: int) -> _Kind:
    """Return what the flags of an open say of the file: splice(2) writes to none that appends."""
    writable = flags & _ACCESS != 0
    return {"writable": writable, "sync": flags & _SYNC != 0, "splices": writable and not flags & _SYNC_OR_APPEND}


def open_node(session: Session, node: Node, flags: int) -> tuple[OpenFile, Known]:
    """Open a node for I/O; return the open file and what is known of it."""
    session.require_room_to_open()
    tree = session.tree
    boundary = tree.boundary
    if not boundary.has_landlock:
        boundary.require_inside(node)
    found = os.fstat(node.fd)
    known = session.ownership.known(node, found)
    mode = known.attributes[0]
    kind = mode & _S_IFMT
    writes = flags & _ACCESS_OR_TRUNC
    if kind == stat.S_IFDIR:
        if writes:
            raise OSError(errno.EISDIR, "a directory is only read")
        with boundary.kept_by_landlock(node):
            return _open_directory(session, node, found), known
    if writes and session.export.read_only:
        raise OSError(errno.EROFS, "the share is read-only")
    if flags & _DIRECTORY:
        raise OSError(errno.ENOTDIR, "not a directory")
    if kind == stat.S_IFLNK:
        raise OSError(errno.ELOOP, "a symbolic link is read with readlink")
    if kind != stat.S_IFREG or found.st_mode & _S_IFMT != stat.S_IFREG:
        # Opening a FIFO blocks, and opening a device acts on the host: the guest has its own.
        raise OSError(errno.ENXIO, "only regular files and directories are opened")
    try:
        descriptor = tree.reopen(node, _host_flags(flags))
    except OSError:
        boundary.require_inside(node)  # no error of what lies outside is told
        raise
    key = found.st_dev, found.st_ino
    if node.is_foreign:
        return ForeignFile(descriptor, key, **_kind_of(flags)), known
    if not flags & _ACCESS_OR_SYNC:
        return OpenFile(descriptor, key), known
    return OpenFile(descriptor, key, **_kind_of(flags)), known


def _open_directory(session: Session, node: Node, found: os.stat_result) -> OpenFile:
    tree, device, is_root = session.tree, found.st_dev, node.parent is None
    descriptor = tree.lending.during(lambda: os.open(".", _LIST_FLAGS, dir_fd=node.fd), node)
    file = (ForeignFile if node.is_foreign else OpenFile)(descriptor, (device, found.st_ino))
    regular_type = session.ownership.regular_type()
    if tree.allowed is not None and is_root:
        file.listing = AllowedListing(tree.allowed, found, qid_path=tree.qid_path, regular_type=regular_type)
        return file
    hidden = tree.hidden
    state = None if hidden is None else tree.state(node)
    file.listing = Listing(
        file.fd,
        qid_path=lambda inode: tree.qid_path(device, inode),
        qid_base=tree.qid_base(device),
        regular_type=regular_type,
        root_inode=found.st_ino if is_root else None,
        kept=session.listings,
        state=state,
        hides=None if hidden is None or state is None else hidden.filter(state, descriptor),
    )
    return file


def lopen(session: Session, tag: int, number: int, at: int, stop: int) -> bytes:
    """Open a fid for I/O (protocol.md, lopen). A read-only share refuses flags that would change it."""
    flags = requests.lopen(session.buffer, at, stop)
    fid = session.fids.get(number) or session.fid(number)
    if fid.file is not None or fid.xattr is not None:
        raise OSError(errno.EINVAL, "fid is open already")
    file, known = open_node(session, fid.node, flags)
    session.opened(fid, file)
    return _RLOPEN(tag, *known.qid, 0)


def lcreate(session: Session, tag: int, number: int, at: int, stop: int) -> bytes:
    """Create a file and open it; the fid of the directory becomes the file's (protocol.md, lcreate).

    A file that is there already is opened, unless O_EXCL is asked for; what is no regular file is
    refused then as lopen refuses it.
    """
    name, flags, permissions, gid = requests.lcreate(session.buffer, at, stop)
    fid = session.fids.get(number) or session.fid(number)
    directory = fid.node
    if fid.file is not None or fid.xattr is not None:
        raise OSError(errno.EINVAL, "fid is open already")
    check_name(name)
    session.require_room_to_open()
    session.require_changeable(directory)
    tree = session.tree
    boundary = tree.boundary
    if not boundary.has_landlock:
        boundary.require_directory_inside(directory)
    if tree.hidden is not None:
        tree.require_makeable(directory, name, is_directory=False)
    # What is created is empty: O_TRUNC has nothing to do.
    how = directory, name, _host_flags(flags & ~_TRUNC), permissions, FileOwner(fid.uid, gid)
    try:
        try:
            io, found = session.ownership.create(*how)
        except PermissionError as error:
            io, found = tree.lending.after_refusal(error, partial(session.ownership.create, *how), directory)
    except OSError as error:
        boundary.require_inside(directory)  # no error of what lies outside is told
        if flags & _EXCL or error.errno != errno.EEXIST:
            raise
        node = tree.child(directory, name)
        file, known = open_node(session, node, flags)
        qid = known.qid
    else:
        key = found.st_dev, found.st_ino
        if directory.is_foreign:  # also the root of a share that is on such a file system
            file = ForeignFile(io, key, **_kind_of(flags))
            node = ForeignNode(tree.open_again(io, os.O_PATH), directory, name)
        else:
            node = Node(io, directory, name)
            file = CreatedFile(node, key, **_kind_of(flags))
        qid = tree.qid_numbers(found, found.st_mode)
    session.opened(fid, file, node)
    return _RLCREATE(tag, *qid, 0)


def read(session: Session, tag: int, number: int, at: int, stop: int) -> bytes | None:
    """Read from an open file or extended attribute (read(5)).

    A count that would not fit a message is cut to what does. What the page cache does not hold is
    read aside.
    """
    offset, count = requests.read(session.buffer, at, stop)
    fid = session.fids.get(number) or session.fid(number)
    most = session.msize - READ_HEADER_SIZE
    count = min(count, most)
    file = fid.file
    if file is None:
        _read_xattr(session, tag, fid, offset, count)
        return None
    if file.listing is not None:
        raise OSError(errno.EISDIR, "a directory is read with readdir")
    if not session.outbox.reply_read(tag, file, offset, count):
        session.read_later(tag, file, offset, count)
    return None


def _read_xattr(session: Session, tag: int, fid: Fid, offset: int, count: int) -> None:
    if fid.xattr is None:
        raise OSError(errno.EBADF, "fid is not open")
    if isinstance(fid.xattr, Changes):
        watching.read(session, tag, offset, count)
        return
    if not isinstance(fid.xattr, XattrValue):
        raise OSError(errno.EBADF, "fid is open for writing an attribute")
    session.outbox.reply(m.Rread(fid.xattr.value[offset : offset + count]).encode(tag))


def write(session: Session, tag: int, number: int, at: int, stop: int) -> bytes | None:
    """Write to an open file or extended attribute (write(5)): all of it, or the answer is the error.

    A write that waits for the disk, because the file was opened so, runs aside; but not where it is noted down how it
    leaves the file (`noting`).
    """
    offset, start = requests.write(session.buffer, at, stop)
    data = session.view[start:stop]
    fid = session.fids.get(number) or session.fid(number)
    file = fid.file
    if file is None:
        return _RWRITE(tag, _write_xattr(fid, data, offset))
    if file.writable:
        session.ownership.before_write(fid.node, file.fd, fid.uid)
    if file.sync and not (session.watched is not None and session.watched.keeps_ledger):
        copied, descriptor = bytes(data), file  # the buffer it stands in is used again
        if session.run_aside(tag, 0, file, lambda: _rwrite(tag, descriptor.write(copied, offset))):
            return None
    return _rwrite(tag, file.write(data, offset))


def _rwrite(tag: int, count: int) -> bytes:
    return _PACK_RWRITE(_RWRITE_SIZE, _RWRITE_TYPE, tag, count)


def _write_xattr(fid: Fid, data: memoryview, offset: int) -> int:
    if fid.xattr is None:
        raise OSError(errno.EBADF, "fid is not open")
    if not isinstance(fid.xattr, XattrWrite):
        raise OSError(errno.EBADF, "fid is open for reading an attribute")
    return xattrs.write(fid.xattr, data, offset)


def fsync(session: Session, tag: int, message: m.Tfsync) -> bytes | None:
    """Bring a file or directory to stable storage, aside (protocol.md, fsync).

    On a read-only share there is nothing to bring: what the host's programs have written is theirs to see to, and each
    fsync(2) would hold these up. A file system that is mounted read-only does nothing either (ext4).
    """
    file = session.open_file(message.fid)
    if session.export.read_only:
        return _RFSYNC(tag)

    def sync() -> bytes:
        if message.datasync:
            os.fdatasync(file.fd)
        else:
            os.fsync(file.fd)
        return _RFSYNC(tag)

    return None if session.run_aside(tag, 0, file, sync) else sync()
