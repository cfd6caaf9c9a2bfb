"""Attributes of files and of the file system: getattr, setattr, statfs.

What lives here: how stat(2) becomes an Rgetattr and a Tsetattr becomes system calls. What must not:
who owns what (`files.ownership`).
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests
from uvmshare.ninep.constants import IO_HEADER_SIZE, NONUNAME, V9FS_MAGIC, GetattrMask, SetattrValid

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.ownership import Known
    from uvmshare.fileserver.mount.session import Session

_RSETATTR: Final = m.packer(m.Rsetattr)
_RSTATFS: Final = m.packer(m.Rstatfs)

_FRAME: Final = struct.Struct("<IBH").pack
_RGETATTR_SIZE: Final = 160
_RGETATTR_TYPE: Final = m.Rgetattr.type
_BODY: Final = struct.Struct("<QBIQIIIQQQQQQQQQQQQQQQ").pack

_BASIC: Final = int(GetattrMask.BASIC)
_NS: Final = 1_000_000_000
_SMALLEST_BLOCK: Final = 4096
_LARGEST_BLOCK: Final = 128 * 1024
_U64: Final = 0xFFFFFFFFFFFFFFFF

# Plain numbers, because operations on enum flags cost more than the system calls here.
_MODE: Final = int(SetattrValid.MODE)
_UID: Final = int(SetattrValid.UID)
_GID: Final = int(SetattrValid.GID)
_SIZE: Final = int(SetattrValid.SIZE)
_ATIME: Final = int(SetattrValid.ATIME)
_MTIME: Final = int(SetattrValid.MTIME)
_CTIME: Final = int(SetattrValid.CTIME)
_OTHERS: Final = _MODE | _UID | _GID | _SIZE | _ATIME | _MTIME
"""Changes after which the host's file has a new ctime."""
_ATIME_SET: Final = int(SetattrValid.ATIME_SET)
_MTIME_SET: Final = int(SetattrValid.MTIME_SET)


def getattr_(session: Session, tag: int, number: int, at: int, stop: int) -> bytes:
    """Answer with everything of stat(2), whatever was asked for (protocol.md, getattr).

    Times before 1970 are two's complement, as Linux's client takes them.

    That client asks twice for each stat(2), and git for every file each time: so the answer is kept until
    anything that it was made of is different, which saves the 1.5 us of making it (timed).
    """
    requests.getattr_(session.buffer, at, stop)
    fid = session.fids.get(number) or session.fid(number)
    found = os.fstat(fid.node.fd)
    known = session.ownership.known(fid.node, found)
    atime, blocks, body = known.made
    if not body or atime != found.st_atime_ns or blocks != found.st_blocks:
        body = _encode(session.tree.told(fid.node, found), known, _block_size(session.msize))
        known.made = found.st_atime_ns, found.st_blocks, body
    return _FRAME(_RGETATTR_SIZE, _RGETATTR_TYPE, tag) + body


def _block_size(msize: int) -> int:
    """Return the st_blksize to tell: the largest power of two of which one message holds that much data.

    Programs read and write in such pieces (stdio, cp, Python): in a guest that keeps no cache, 8 MiB through stdio took
    7.4 s with the host's 4,096, and 0.9 s with 128 KiB. More is not told, since each open file of a program takes
    a buffer of this size.
    """
    return min(_LARGEST_BLOCK, 1 << (max(msize - IO_HEADER_SIZE, _SMALLEST_BLOCK).bit_length() - 1))


def _encode(found: os.stat_result, known: Known, block_size: int) -> bytes:
    mode, uid, gid, rdev = known.attributes
    atime, mtime, ctime = found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns
    return _BODY(
        _BASIC,
        *known.qid,
        mode,
        uid,
        gid,
        found.st_nlink,
        rdev,
        found.st_size,
        block_size,
        found.st_blocks,
        atime // _NS & _U64,
        atime % _NS,
        mtime // _NS & _U64,
        mtime % _NS,
        ctime // _NS & _U64,
        ctime % _NS,
        0,
        0,
        0,
        0,
    )


def setattr_(session: Session, tag: int, message: m.Tsetattr) -> bytes:
    """Change what is named in `valid`: size, owner, mode, times, in this order.

    The owner comes before the mode, because chown(2) takes setuid bits off; the times come last,
    because everything before touches them. A change of ctime happens by itself, but for that of a chown(2)
    with -1 and -1, of which nothing else is asked for.
    """
    fid = session.fid(message.fid)
    session.require_shared(fid.node)
    session.tree.require_inside(fid.node)
    valid = message.valid
    # What can be wrong with the message itself is found before anything is changed.
    atime = _time(valid & _ATIME, valid & _ATIME_SET, message.atime_sec, message.atime_nsec)
    mtime = _time(valid & _MTIME, valid & _MTIME_SET, message.mtime_sec, message.mtime_nsec)
    uid = _number(message.uid) if valid & _UID else -1
    gid = _number(message.gid) if valid & _GID else -1
    if valid & _SIZE:
        _truncate(session, fid, message.size)
        session.ownership.before_write(fid.node, session.tree.path_of(fid.node), fid.uid)
    if valid & (_UID | _GID):
        session.ownership.chown(fid.node, uid, gid)
    if valid & _MODE:
        session.ownership.chmod(fid.node, message.mode)
    if valid & (_ATIME | _MTIME):
        _set_times(session.tree.path_of(fid.node), atime, mtime)
    if valid & _CTIME and not valid & _OTHERS:
        os.chown(session.tree.path_of(fid.node), -1, -1)
    return _RSETATTR(tag)


def _set_times(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    try:
        syscalls.set_times(path, atime, mtime)
    except PermissionError:
        # Whoever may write a file may set both of its times to now, and its owner alone each of them (utimensat(2)).
        if {atime[1], mtime[1]} - {syscalls.UTIME_NOW, syscalls.UTIME_OMIT}:
            raise
        now = 0, syscalls.UTIME_NOW
        syscalls.set_times(path, now, now)


def _number(number: int) -> int:
    """Refuse the number that means no user or group (``INVALID_UID``); chown(2) would leave the owner alone."""
    if number == NONUNAME:
        raise OSError(errno.EINVAL, "no user or group has that number")
    return number


def _time(change: int, to: int, seconds: int, nanoseconds: int) -> tuple[int, int]:
    if not change:
        return 0, syscalls.UTIME_OMIT
    if not to:
        return 0, syscalls.UTIME_NOW
    if nanoseconds >= _NS:
        raise OSError(errno.EINVAL, "more than a second of nanoseconds")
    return seconds - (_U64 + 1) if seconds >> 63 else seconds, nanoseconds


def _truncate(session: Session, fid: Fid, size: int) -> None:
    """Set the size, through the open file when it can be written: its permissions may have changed since."""
    if fid.file is not None and fid.file.writable:
        os.truncate(fid.file.fd, size)
        return
    found = os.fstat(fid.node.fd)
    kind = stat.S_IFMT(session.ownership.seen(fid.node, found)[0])
    if kind == stat.S_IFDIR:
        raise OSError(errno.EISDIR, "a directory has no size to set")
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, "not a regular file")
    io = session.tree.reopen(fid.node, os.O_WRONLY)
    try:
        os.truncate(io, size)
    finally:
        os.close(io)


def statfs(session: Session, tag: int, message: m.Tstatfs) -> bytes:
    """Tell how full the file system is that holds the file, as its manual page lists (statfs(2))."""
    found = os.fstatvfs(session.fid(message.fid).node.fd)
    return _RSTATFS(
        tag,
        V9FS_MAGIC,
        found.f_frsize,
        found.f_blocks,
        found.f_bfree,
        found.f_bavail,
        found.f_files,
        found.f_ffree,
        found.f_fsid & _U64,
        found.f_namemax,
    )
