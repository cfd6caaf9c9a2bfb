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
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls
from uvmshare.ninep.constants import QidType

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Listing"]

_BUFFER_SIZE: Final = 64 * 1024
_LARGE: Final = 256 * 1024
"""A directory's own size in bytes (not its files') from which reading it may wait for the disk for long."""

_DIRENT: Final = struct.Struct("<QQHB")
_ENTRY: Final = struct.Struct("<BIQQBH")
_DT_DIR: Final = 4
_DT_LNK: Final = 10
_QID_TYPES: Final = {_DT_DIR: int(QidType.DIR), _DT_LNK: int(QidType.SYMLINK)}
_DOTS: Final = (b".", b"..")


class Listing:
    """The entries of one open directory.

    `qid_path` makes the number of a qid from an inode; `entry_type` says which types may be told;
    `only` are the names that exist, None for all; `is_root` hides what is above the share.
    """

    def __init__(
        self,
        descriptor: int,
        qid_path: Callable[[int], int],
        entry_type: Callable[[int], int],
        only: frozenset[bytes] | None,
        root_inode: int | None,
    ) -> None:
        self._descriptor = descriptor
        self._qid_path = qid_path
        self._entry_type = entry_type
        self._only = only
        self._root_inode = root_inode
        self.is_large = os.fstat(descriptor).st_size >= _LARGE
        self._lock = threading.Lock()  # large ones are read on several threads
        self._entries: list[tuple[bytes, int]] = []
        self._next = 0
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
            self._entries = []
            self._next = 0
            self._position = offset
        taken: list[bytes] = []
        room = count
        while True:
            for index in range(self._next, len(self._entries)):
                entry, behind = self._entries[index]
                room -= len(entry)
                if room < 0:
                    self._next = index
                    if not taken:
                        raise OSError(errno.EINVAL, "count is smaller than the next entry")
                    return b"".join(taken)
                taken.append(entry)
                self._position = behind
            self._next = 0
            self._entries = self._more()
            if not self._entries:
                return b"".join(taken)

    def _more(self) -> list[tuple[bytes, int]]:
        """Encode what the host gives next; empty at the end of the directory."""
        buffer = ctypes.create_string_buffer(_BUFFER_SIZE)
        while True:
            size = syscalls.getdents64(self._descriptor, buffer)
            if not size:
                return []
            entries = self._encode(buffer.raw[:size])
            if entries:
                return entries

    def _encode(self, raw: bytes) -> list[tuple[bytes, int]]:
        entries: list[tuple[bytes, int]] = []
        unpack, pack, qid_path, only = _DIRENT.unpack_from, _ENTRY.pack, self._qid_path, self._only
        types = {number: self._entry_type(number) for number in range(16)}
        at = 0
        while at < len(raw):
            inode, behind, length, d_type = unpack(raw, at)
            name = raw[at + 19 : raw.index(0, at + 19)]
            at += length
            if only is not None and name not in only and name not in _DOTS:
                continue
            if self._root_inode is not None and name == b"..":
                inode = self._root_inode
            qid_type = _QID_TYPES.get(d_type, 0)
            entries.append((pack(qid_type, 0, qid_path(inode), behind, types.get(d_type, 0), len(name)) + name, behind))
        return entries
