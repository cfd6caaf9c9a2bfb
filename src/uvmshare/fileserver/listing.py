"""Directory entries from the host, encoded once for the guest.

What lives here: `Listing`, the position of one open directory and what is encoded ahead of it.
What must not: the message that asks for it (`handlers.directories`).

Entries are encoded from what getdents64(2) tells, without a stat each, and kept until the guest has
taken them: it asks again from the last offset. Offsets are the host's own (d_off), so that they stay
good while entries come and go.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.tree import MAX_INODE
from uvmshare.ninep.constants import QidType

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Listing"]

_BUFFER_SIZE: Final = 64 * 1024
_LARGE: Final = 256 * 1024
"""A directory's own size in bytes (not its files') from which reading it may wait for the disk for long."""

_DIRENT: Final = struct.Struct("<QQHB")
_ENTRY: Final = struct.Struct("<BIQQBH")
_OFFSET: Final = struct.Struct("<Q")
_OFFSET_AT: Final = 13
"""Where an entry has its offset: behind the qid."""
_DT_DIR: Final = 4
_DT_LNK: Final = 10
_DT_COUNT: Final = 16
_QID_TYPES: Final = [0] * _DT_COUNT
_QID_TYPES[_DT_DIR] = int(QidType.DIR)
_QID_TYPES[_DT_LNK] = int(QidType.SYMLINK)
_DOTS: Final = (b".", b"..")


class Listing:
    """The entries of one open directory.

    `qid_path` makes the number of a qid from an inode; `qid_base` is what it adds to one below
    `MAX_INODE`, None when it does not simply add; `entry_type` says which types may be told;
    `only` are the names that exist, None for all; `is_root` hides what is above the share.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        qid_path: Callable[[int], int],
        qid_base: int | None,
        entry_type: Callable[[int], int],
        only: frozenset[bytes] | None,
        root_inode: int | None,
    ) -> None:
        self._descriptor = descriptor
        self._qid_path = qid_path
        self._qid_base = qid_base
        self._entry_type = entry_type
        self._only = only
        self._root_inode = root_inode
        self.is_large = os.fstat(descriptor).st_size >= _LARGE
        self._lock = threading.Lock()  # large ones are read on several threads
        self._buffer = ctypes.create_string_buffer(_BUFFER_SIZE)
        self._encoded = b""
        """Entries that the host gave, end to end; those before `_start` have been taken."""
        self._ends: list[int] = []
        """Where each of them ends."""
        self._start = 0
        self._position = 0

    def read(self, offset: int, count: int) -> bytes:
        """Return as many whole entries from `offset` on as `count` bytes hold; none at the end.

        Raises `OSError`: EINVAL when the next entry is larger than `count`.
        """
        with self._lock:
            return self._read(offset, count)

    def _read(self, offset: int, count: int) -> bytes:
        if offset != self._position or offset == 0:
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            self._keep([])
            self._position = offset
        taken: list[bytes] = []
        room = count
        while True:
            if self._start < len(self._encoded):
                piece = self._take(room)
                room -= len(piece)
                taken.append(piece)
                if self._start < len(self._encoded):
                    if room == count:
                        raise OSError(errno.EINVAL, "count is smaller than the next entry")
                    return b"".join(taken)
            entries = self._more()
            self._keep(entries)
            if not entries:
                return b"".join(taken)

    def _keep(self, entries: list[bytes]) -> None:
        self._encoded = b"".join(entries)
        self._ends = list(accumulate(map(len, entries)))
        self._start = 0

    def _take(self, room: int) -> bytes:
        """Return the entries that fit, of those that are kept."""
        fitting = bisect_right(self._ends, self._start + room)
        end = self._ends[fitting - 1] if fitting else 0
        if end <= self._start:
            return b""
        piece = self._encoded[self._start : end]
        self._start = end
        begin = self._ends[fitting - 2] if fitting > 1 else 0
        (self._position,) = _OFFSET.unpack_from(self._encoded, begin + _OFFSET_AT)
        return piece

    def _more(self) -> list[bytes]:
        """Encode what the host gives next; empty at the end of the directory."""
        while True:
            size = syscalls.getdents64(self._descriptor, self._buffer)
            if not size:
                return []
            entries = self._encode(ctypes.string_at(self._buffer, size))
            if entries:
                return entries

    def _encode(self, raw: bytes) -> list[bytes]:
        # A listing is this loop and little else: profiled at 80 % of reading 10,000 entries. Plain numbers
        # instead of a call for each qid, and `_take` instead of a second loop, cut the CPU time of such a
        # listing by a quarter (`readdir` of benchmarks/, 1.8 to 1.4 ms a message); 0.6 us an entry are left.
        entries: list[bytes] = []
        append, unpack, pack, index = entries.append, _DIRENT.unpack_from, _ENTRY.pack, raw.index
        qid_base, qid_path, only, root_inode = self._qid_base, self._qid_path, self._only, self._root_inode
        qid_types, types = _QID_TYPES, [self._entry_type(number) for number in range(_DT_COUNT)]
        at, stop = 0, len(raw)
        while at < stop:
            inode, behind, length, d_type = unpack(raw, at)
            start = at + 19
            name = raw[start : index(0, start)]
            at += length
            if d_type >= _DT_COUNT:
                d_type = 0  # a file system in user space may say anything
            if only is not None and name not in only and name not in _DOTS:
                continue
            if root_inode is not None and name == b"..":
                inode = root_inode
            path = qid_base | inode if qid_base is not None and inode < MAX_INODE else qid_path(inode)
            append(pack(qid_types[d_type], 0, path, behind, types[d_type], len(name)) + name)
        return entries
