"""POSIX locks of a guest: as open-file-description locks of the host (fcntl(2)), or for the guest alone.

What lives here: `LockTable` and `GuestLocks`: which owner holds which ranges of which file. What must not: the
messages (`handlers.locking`), or how long they wait (`serving`; `foreign` where the file system may hang).

An owner is a process of the guest: (client_id, proc_id) on this connection. The host sees one open
file description for each owner and file, so that two descriptors of one process do not exclude each
other, two processes do, and host programs and other mounts take part. The kernel's own rules decide;
`LockTable` only knows when a description is needed no more.

9P has one kind of lock. Linux's client sends a flock(2) of the guest as a lock on the whole file, so a lock on a whole
file is taken as flock(2) on the host too: programs of the host that use flock(2) take no part in locks of ranges.

`GuestLocks` are those of a read-only share, which may not keep a program of the host waiting: they exist in the table
alone, by the same rules.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Conflict", "GuestLocks", "LockOwner", "LockTable", "Range"]

LockOwner = tuple[bytes, int]
"""client_id and proc_id."""

Range = tuple[int, int]
"""First byte and the one behind the last; `END` is behind all."""

END: Final = 1 << 63

_FLOCK: Final = struct.Struct("hhqqi4x")
"""``struct flock`` of 64-bit Linux: type, whence, start, length, pid."""

_UNLOCK: Final = fcntl.F_UNLCK

_WHOLE: Final[Range] = (0, END)

_OF_THE_NETWORK: Final = frozenset((0x6969, 0x517B, 0xFF534D42, 0xFE534D42, 0x01021997))
"""NFS, SMB in its three forms, and 9P (statfs(2))."""

_READ_ALONE: Final = "the file can only be opened for reading"


@dataclass(frozen=True, slots=True)
class Conflict:
    """A lock that stands in the way. `owner` is who has it in this mount; a process of the host has no number there."""

    kind: int
    start: int
    length: int
    owner: LockOwner = (b"", 0)


@dataclass(slots=True, eq=False)
class _Holding:
    """What one owner holds of one file: a description of its own, and the ranges (disjoint, sorted)."""

    fd: int
    writable: bool
    ranges: list[Range] = field(default_factory=list)
    whole: int = fcntl.LOCK_UN
    """What flock(2) has of the file: LOCK_SH or LOCK_EX as long as an owner has all of it, else LOCK_UN."""

    def flock(self, operation: int) -> bool:
        """Hold that much of the file on the host, or what was held before and return False. Raises `OSError`."""
        before = self.whole
        if operation == before:
            return True
        try:
            fcntl.flock(self.fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            # The kernel takes away what was held before it sees that it cannot give the other (flock(2)).
            if before != fcntl.LOCK_UN:
                try:
                    fcntl.flock(self.fd, before | fcntl.LOCK_NB)
                except BlockingIOError:  # a program of the host was faster
                    self.whole = fcntl.LOCK_UN
            return False
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP):  # a file system in user space may have none
                raise
        self.whole = operation
        return True

    def __del__(self) -> None:
        os.close(self.fd)  # and with it go the locks


class LockTable:
    """The locks of one session. Files are named by (device, inode)."""

    def __init__(self) -> None:
        self.holdings: dict[tuple[tuple[int, int], LockOwner], _Holding] = {}
        """What is locked, by file and owner; empty when nothing is."""

    def __len__(self) -> int:
        """Return the number of locked ranges."""
        return sum(len(holding.ranges) for holding in list(self.holdings.values()))

    def set(
        self, file: tuple[int, int], owner: LockOwner, kind: int, span: Range, reopen: Callable[[int], int]
    ) -> bool:
        """Lock or unlock a range; `kind` is fcntl's. Returns False when somebody else is in the way.

        `reopen(flags)` opens the file anew. How many there may be is for the caller to say. Raises `OSError`.
        """
        key = file, owner
        holding = self.holdings.get(key)
        if kind == _UNLOCK:
            if holding is not None:
                _apply(holding.fd, _UNLOCK, span)
                holding.ranges = _without(holding.ranges, span)
                holding.flock(fcntl.LOCK_UN)  # of what is not empty a part is left
                if not holding.ranges:
                    del self.holdings[key]
            return True
        write = kind == fcntl.F_WRLCK
        if holding is None:
            holding = _Holding(*_open(reopen, write=write))
        elif write and not holding.writable:
            raise OSError(errno.EBADF, _READ_ALONE)
        if not self._lock(holding, kind, span):
            return False
        holding.ranges = _with(holding.ranges, span)
        self.holdings[key] = holding
        return True

    @staticmethod
    def _lock(holding: _Holding, kind: int, span: Range) -> bool:
        """Lock a range, and the whole file with flock(2) too; both or neither. Raises `OSError`."""
        before = holding.whole
        wanted = fcntl.LOCK_UN
        if span == _WHOLE and not _has_one_kind_of_lock(holding.fd):
            wanted = fcntl.LOCK_EX if kind == fcntl.F_WRLCK else fcntl.LOCK_SH
        if wanted != fcntl.LOCK_UN and not holding.flock(wanted):
            return False
        if not _apply(holding.fd, kind, span):
            holding.flock(before)
            return False
        return True

    def splits(self, file: tuple[int, int], owner: LockOwner, span: Range) -> bool:
        """Say whether unlocking a range would leave more of them than there are."""
        holding = self.holdings.get((file, owner))
        return holding is not None and len(_without(holding.ranges, span)) > len(holding.ranges)

    def conflict(
        self, file: tuple[int, int], owner: LockOwner, kind: int, span: Range, reopen: Callable[[int], int]
    ) -> Conflict | None:
        """Return the lock that stands in the way of one, or None. Raises `OSError`.

        Asking needs no description that could be locked so.
        """
        holding = self.holdings.get((file, owner)) or _Holding(reopen(os.O_RDONLY), writable=False)
        return _on_host(holding.fd, kind, span)

    def forget_file(self, file: tuple[int, int]) -> None:
        """Drop every lock on a file that no fid of the session has open any more."""
        for key in [key for key in list(self.holdings) if key[0] == file]:
            self.holdings.pop(key, None)

    def clear(self) -> None:
        """Drop every lock."""
        self.holdings.clear()


@dataclass(slots=True, eq=False)
class _Ranges:
    """What one owner holds of one file in the table alone (each list disjoint and sorted, and so both together)."""

    read: list[Range] = field(default_factory=list)
    write: list[Range] = field(default_factory=list)

    def change(self, kind: int, span: Range) -> None:
        """Have a range locked so, or not at all."""
        self.read = _with(self.read, span) if kind == fcntl.F_RDLCK else _without(self.read, span)
        self.write = _with(self.write, span) if kind == fcntl.F_WRLCK else _without(self.write, span)

    def __len__(self) -> int:
        return len(self.read) + len(self.write)


class GuestLocks:
    """The locks of one session that keep nobody on the host waiting.

    A lock of a host program is looked at when one is asked for, and is in the way as any other. What was granted
    says no more about the host than that: its programs do not see these locks.
    """

    def __init__(self) -> None:
        self.holdings: dict[tuple[tuple[int, int], LockOwner], _Ranges] = {}
        """What is locked, by file and owner; empty when nothing is."""

    def __len__(self) -> int:
        """Return the number of locked ranges."""
        return sum(map(len, list(self.holdings.values())))

    def set(
        self, file: tuple[int, int], owner: LockOwner, kind: int, span: Range, reopen: Callable[[int], int]
    ) -> bool:
        """Lock or unlock a range as `LockTable.set` does; an exclusive lock needs no file that may be written."""
        if kind != _UNLOCK and self.conflict(file, owner, kind, span, reopen) is not None:
            return False
        key = file, owner
        holding = self.holdings.pop(key, None) or _Ranges()
        holding.change(kind, span)
        if len(holding):
            self.holdings[key] = holding
        return True

    def splits(self, file: tuple[int, int], owner: LockOwner, span: Range) -> bool:
        """Say whether unlocking a range would leave more of them than there are."""
        holding = self.holdings.get((file, owner))
        if holding is None:
            return False
        return len(_without(holding.read, span)) + len(_without(holding.write, span)) > len(holding)

    def conflict(
        self, file: tuple[int, int], owner: LockOwner, kind: int, span: Range, reopen: Callable[[int], int]
    ) -> Conflict | None:
        """Return the lock that stands in the way of one, in the table or on the host, or None. Raises `OSError`."""
        for (locked, other), holding in list(self.holdings.items()):
            if locked != file or other == owner:
                continue
            kinds = [(fcntl.F_WRLCK, holding.write)]
            if kind == fcntl.F_WRLCK:
                kinds.append((fcntl.F_RDLCK, holding.read))
            for theirs, ranges in kinds:
                for held in ranges:
                    if held[0] < span[1] and span[0] < held[1]:
                        return Conflict(theirs, held[0], _length(held), other)
        descriptor = reopen(os.O_RDONLY)
        try:
            return _on_host(descriptor, kind, span)
        finally:
            os.close(descriptor)

    def forget_file(self, file: tuple[int, int]) -> None:
        """Drop every lock on a file that no fid of the session has open any more."""
        for key in [key for key in list(self.holdings) if key[0] == file]:
            self.holdings.pop(key, None)

    def clear(self) -> None:
        """Drop every lock."""
        self.holdings.clear()


def _has_one_kind_of_lock(descriptor: int) -> bool:
    """Say whether flock(2) locks ranges on the file's server, where it would be in the way of the same owner's."""
    return syscalls.file_system_type(descriptor) in _OF_THE_NETWORK


def _on_host(descriptor: int, kind: int, span: Range) -> Conflict | None:
    """Return the lock on the host that stands in the way of one through this descriptor. Raises `OSError`."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, span[0], _length(span), 0)
    found, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return None if found == _UNLOCK else Conflict(found, start, length)


def _open(reopen: Callable[[int], int], *, write: bool) -> tuple[int, bool]:
    """Open for both, so that an owner may take either kind later; for reading alone where that is all there is.

    Also what the guest has open for reading alone: flock(2), which Linux's client turns into these locks, may lock it
    for writing all the same. Raises `OSError`: EBADF when it can only be locked for reading, see fcntl(2).
    """
    try:
        return reopen(os.O_RDWR), True
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
            raise
        if write:
            raise OSError(errno.EBADF, _READ_ALONE) from error
        return reopen(os.O_RDONLY), False


def _length(span: Range) -> int:
    return 0 if span[1] >= END else span[1] - span[0]


def _apply(descriptor: int, kind: int, span: Range) -> bool:
    asked = _FLOCK.pack(kind, os.SEEK_SET, span[0], _length(span), 0)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, asked)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES: fcntl(2) allows both
        return False
    return True


def _without(ranges: list[Range], span: Range) -> list[Range]:
    """Return the ranges less one."""
    left: list[Range] = []
    for start, stop in ranges:
        if start < span[0]:
            left.append((start, min(stop, span[0])))
        if stop > span[1]:
            left.append((max(start, span[1]), stop))
    return left


def _with(ranges: list[Range], span: Range) -> list[Range]:
    """Return the ranges and one more, without overlaps."""
    return sorted([*_without(ranges, span), span])
