"""POSIX locks: lock, getlock.

What lives here: the two messages, what a request is that waits for a lock, and how often it is tried again. What must
not: trying it again (`serving`, `foreign`), or who holds what (`uvmshare.fileserver.mount.files.locks`).
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.files.locks import END
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import HEADER_SIZE, LockFlag, LockStatus, LockType

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.locks import LockOwner, Range
    from uvmshare.fileserver.mount.session import Session

__all__ = ["AGAIN_SECONDS", "Waiting", "answer", "getlock", "is_granted", "lock"]

AGAIN_SECONDS: Final = 0.01
"""How often a lock that somebody else holds is tried again: no host call waits for one and can be stopped."""

_RLOCK: Final = m.packer(m.Rlock)
_KINDS: Final = {
    int(LockType.RDLCK): fcntl.F_RDLCK,
    int(LockType.WRLCK): fcntl.F_WRLCK,
    int(LockType.UNLCK): fcntl.F_UNLCK,
}
_TYPES: Final = {host: guest for guest, host in _KINDS.items()}
_BLOCK: Final = int(LockFlag.BLOCK)
_TYPE_AT: Final = 4
"""Where a message has its type: behind its size."""


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A lock request that somebody else is in the way of. `try_again` says whether it has been granted."""

    tag: int
    deadline: float
    try_again: Callable[[], bool]


def answer(waiting: Waiting, now: float) -> bytes | None:
    """Return the answer to a request that waits, or None while it goes on waiting. Raises `OSError`."""
    if waiting.try_again():
        return _RLOCK(waiting.tag, LockStatus.SUCCESS)
    if now >= waiting.deadline:
        return _RLOCK(waiting.tag, LockStatus.BLOCKED)
    return None


def is_granted(reply: bytes) -> bool:
    """Say whether a reply, whole and of any type, is that a lock was granted or given up."""
    return reply[_TYPE_AT] == m.Rlock.type and reply[HEADER_SIZE] == LockStatus.SUCCESS


def _span(start: int, length: int) -> Range:
    if start >= END or length > END:
        raise OSError(errno.EINVAL, "a range past the largest file")
    stop = start + length if length else END
    return start, min(stop, END)


def _file_of(session: Session, number: int) -> tuple[int, int]:
    """Return the key of the open file of a fid. Directories are not locked: EISDIR."""
    file = session.open_file(number)
    if file.listing is not None:
        raise OSError(errno.EISDIR, "a directory is not locked")
    return file.key


def _reopen(session: Session, fid: Fid) -> Callable[[int], int]:
    node, tree, read_only = fid.node, session.tree, session.export.read_only

    def reopen(flags: int) -> int:
        if read_only and flags != os.O_RDONLY:
            raise OSError(errno.EROFS, "the share is read-only")
        return tree.reopen(node, flags)

    return reopen


def _asked(session: Session, message: m.Tlock | m.Tgetlock) -> tuple[int, Fid, tuple[int, int], Range, LockOwner]:
    """Return the kind of lock, its fid, the key of its file, the range and the owner. Raises `OSError`."""
    kind = _KINDS.get(message.lock_type)
    if kind is None:
        raise OSError(errno.EINVAL, "no lock type")
    fid = session.fid(message.fid)
    key = _file_of(session, message.fid)
    return kind, fid, key, _span(message.start, message.length), (message.client_id, message.proc_id)


def lock(session: Session, tag: int, message: m.Tlock) -> bytes | None:
    """Take or drop a lock (protocol.md, lock).

    A request that may block waits aside until the lock is free, its time is up (then BLOCKED: the
    client asks again) or a Tflush takes it back. Others are answered at once.
    """
    kind, fid, key, span, owner = _asked(session, message)
    reopen = _reopen(session, fid)

    def take() -> bool:
        if session.fids.get(message.fid) is not fid:  # clunked while it waited: its locks went with it
            raise OSError(errno.EBADF, "unknown fid")
        if kind != fcntl.F_UNLCK or session.locks.splits(key, owner, span):
            session.require_room_to_lock()
        return session.locks.set(key, owner, kind, span, reopen)

    if take():
        return _RLOCK(tag, LockStatus.SUCCESS)
    if message.flags & _BLOCK:
        session.wait_for_lock(tag, take)
        return None
    return _RLOCK(tag, LockStatus.BLOCKED)


def getlock(session: Session, tag: int, message: m.Tgetlock) -> bytes:
    """Say which lock stands in the way (protocol.md, getlock); type UNLCK when none does.

    Linux's client asks with type UNLCK, which nothing can be in the way of. Which process of the host has a
    lock is not told: its number is 0.
    """
    kind, fid, key, span, owner = _asked(session, message)
    found = None
    if kind != fcntl.F_UNLCK:
        found = session.locks.conflict(key, owner, kind, span, _reopen(session, fid))
    if found is None:
        reply = m.Rgetlock(LockType.UNLCK, message.start, message.length, message.proc_id, message.client_id)
    else:
        reply = m.Rgetlock(_TYPES[found.kind], found.start, found.length, found.owner[1], found.owner[0])
    return reply.encode(tag)
