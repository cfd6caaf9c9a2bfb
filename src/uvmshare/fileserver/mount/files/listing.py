"""Directory entries from the host, encoded once for the guest.

What lives here: `Listing`, the position of one open directory and what is encoded ahead of it, `Kept`, whole listings
for the next time, and `AllowedListing`, which reads no directory. What must not: the message that asks for one
(`handlers.readdir`).

Entries are encoded from what getdents64(2) tells, without a stat each, and kept until the guest has
taken them: it asks again from the last offset.

Offsets count entries: the first is behind 1, the next behind 2. The host's own (d_off) have up to 63 bits, and a
32-bit program of the guest cannot list a directory with offsets of more than 31 (EOVERFLOW, getdents(2)). The
host's offset behind each entry is kept as long as the directory is open, so that an old offset leads to where it
led, while entries come and go.

A directory that was read from end to end and has not changed since is not read again: 10,000 entries take
6 ms to encode and 0.1 ms to send once more (`readdir` of benchmarks/).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import threading
import time
from array import array
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import speed, syscalls
from uvmshare.fileserver.mount.files import virtfs
from uvmshare.fileserver.mount.files.ownership import is_settled
from uvmshare.fileserver.mount.files.tree import MAX_INODE
from uvmshare.ninep.constants import QidType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvmshare.fileserver.mount.files.allowed import AllowedNames
    from uvmshare.hiding import MatchState

__all__ = ["MAX_OFFSET", "AllowedListing", "Kept", "Listing"]

_BUFFER_SIZE: Final = 64 * 1024
_LARGE: Final = 256 * 1024
"""A directory's own size in bytes (not its files') from which reading it may wait for the disk for long."""

_DIRENT: Final = struct.Struct("<QqHB")
_ENTRY: Final = struct.Struct("<BIQQBH")
_OFFSET: Final = struct.Struct("<Q")
_OFFSET_AT: Final = 13
"""Where an entry has its offset: behind the qid."""
_NAME_LENGTH: Final = struct.Struct("<H")
_NAME_LENGTH_AT: Final = 22
_DT_DIR: Final = 4
_DT_REG: Final = 8
_DT_LNK: Final = 10
_DT_COUNT: Final = 16
_QID_TYPES: Final = [0] * _DT_COUNT
_QID_TYPES[_DT_DIR] = int(QidType.DIR)
_QID_TYPES[_DT_LNK] = int(QidType.SYMLINK)

_MARK: Final = virtfs.MODE.encode()
"""The attribute that a regular file of the host has where it stands for another type."""

_TYPE_SHIFT: Final = 12
"""From ``S_IFMT`` of a mode to the type of a directory entry: ``IFTODT`` of dirent.h."""

MAX_OFFSET: Final = 0x7FFFFFFF
"""The largest offset that a 32-bit program of the guest can take."""

_MOST_KEPT: Final = 1 << 20
"""Bytes that a mount keeps of directories that nobody is reading, and as many of those that are being read."""

_Key = tuple[int, int, bool, "MatchState | None"]
"""Device and inode, whether it is the root, and what the patterns of hidden names have come to there."""

_EACH_KEPT: Final = 512
"""What a listing takes beside its entries: keys, numbers and where they end; a guest may list empty directories."""

_EXACT: Final = frozenset(
    (0xEF53, 0x58465342, 0x9123683E, 0xF2F52010, 0x2FC12FC1, 0xCA451A4E, 0x01021994, 0x794C7630),
)
"""ext2 to ext4, XFS, btrfs, f2fs, ZFS, bcachefs, tmpfs and overlayfs (statfs(2)): a directory's times change there
with its entries, by this host's clock. Those of procfs, of kernfs and of many a file system in user space do not."""

_Encoded = tuple[bytes, "array[int]"]
"""Entries end to end, and where each ends."""

_Stamp = tuple[int, int]
"""ctime and mtime of a directory in nanoseconds: one of them changes with its entries, and with its parent."""


class Kept:
    """Whole listings of one session, by a key of the directory; the one kept first goes first."""

    def __init__(self, most: int = _MOST_KEPT) -> None:
        self._most = most
        self._size = 0
        self._kept: dict[_Key, tuple[_Stamp, bytes, array[int]]] = {}
        self._lock = threading.RLock()  # large directories are read on several threads
        self._being_read = 0
        self._exact: dict[int, bool] = {}

    def is_exact(self, descriptor: int, device: int) -> bool:
        """Say whether the file system of an open directory tells by a directory's times that it has changed."""
        known = self._exact.get(device)
        if known is None:
            known = self._exact[device] = syscalls.file_system_type(descriptor) in _EXACT
        return known

    def take_room(self, size: int) -> bool:
        """Take room for what is being read, until it is given back with a negative `size`; False when there is none."""
        with self._lock:
            if size > 0 and self._being_read + size > self._most:
                return False
            self._being_read += size
            return True

    def get(self, key: _Key, stamp: _Stamp) -> tuple[bytes, array[int]] | None:
        """Return the entries and where each ends, if the directory is as it was."""
        kept = self._kept.get(key)
        return None if kept is None or kept[0] != stamp else kept[1:]

    def put(self, key: _Key, stamp: _Stamp, encoded: bytes, ends: array[int]) -> None:
        """Keep a listing that was whole when the directory had that stamp."""
        size = len(encoded) + _EACH_KEPT
        if size > self._most:
            return
        with self._lock:
            self._drop(key)
            while self._size + size > self._most:
                self._drop(next(iter(self._kept)))
            self._kept[key] = stamp, encoded, ends
            self._size += size

    def _drop(self, key: _Key) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._size -= len(kept[1]) + _EACH_KEPT


class Listing:
    """The entries of one open directory.

    `qid_path` makes the number of a qid from an inode; `qid_base` is what it adds to one below
    `MAX_INODE`, None when it does not simply add; `regular_type` tells the type that a regular file of the host, given
    by a path, has for the guest, and is None where that is a regular file always;
    `root_inode` hides what is above the share. `kept` has whole listings. `state` is what the patterns of hidden names
    have come to in this directory, None where there are none; `hides` says by name and d_type which entries they hide.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        qid_path: Callable[[int], int],
        qid_base: int | None,
        regular_type: Callable[[bytes], int] | None,
        root_inode: int | None,
        kept: Kept,
        state: MatchState | None = None,
        hides: Callable[[bytes, int], bool] | None = None,
    ) -> None:
        self.state = state
        self._hides = hides
        self._descriptor = descriptor
        self._stamp: _Stamp | None = None
        """That of the directory when it was begun; None when what is read will not be kept."""
        self._read_so_far: list[bytes] = []
        self._qid_path = qid_path
        self._qid_base = qid_base
        self._regular_type = regular_type
        self.looks_at_files = regular_type is not None
        self._root_inode = root_inode
        found = os.fstat(descriptor)
        self.is_large = found.st_size >= _LARGE
        # The root's own listing hides what is above.
        self._key: _Key = found.st_dev, found.st_ino, root_inode is not None, state
        self._kept = kept
        self._is_exact = kept.is_exact(descriptor, found.st_dev)
        self._lock = threading.Lock()  # large ones are read on several threads
        self._buffer: ctypes.Array[ctypes.c_char] | None = None
        self._encoded = b""
        """Entries that the host gave, end to end; those before `_start` have been taken."""
        self._ends: array[int] = array("I")
        """Where each of them ends."""
        self._start = 0
        self._position = 0
        """The offset behind what was taken last."""
        self._is_whole = False
        """Whether `_encoded` is the whole directory."""
        self._places: array[int] = array("q")
        """The host's offset behind each entry that was encoded: that of the guest's offset N is the Nth."""
        self._offsets: dict[int, int] | None = None
        """The guest's offset by the host's, once entries are read for a second time; None before."""

    def __del__(self) -> None:
        self._forget_read()

    def is_ready(self, offset: int) -> bool:
        """Say whether a read from there needs nothing of the host."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if offset == 0:
                self._begin()
            return self._is_whole
        finally:
            self._lock.release()

    def read(self, offset: int, count: int) -> list[bytes | memoryview]:
        """Return, in pieces, as many whole entries from `offset` on as `count` bytes hold; none at the end.

        Raises `OSError`: EINVAL when the next entry is larger than `count`, or for an offset past `MAX_OFFSET`.
        """
        if offset > MAX_OFFSET:
            raise OSError(errno.EINVAL, "no offset of a directory")
        with self._lock:
            return self._read(offset, count)

    def _read(self, offset: int, count: int) -> list[bytes | memoryview]:
        if offset == 0:
            self._begin()
        elif offset != self._position:
            self._seek(offset)
        taken: list[bytes | memoryview] = []
        room = count
        while True:
            if self._start < len(self._encoded):
                piece = self._take(room)
                room -= len(piece)
                taken.append(piece)
                if self._start < len(self._encoded):
                    if room == count:
                        raise OSError(errno.EINVAL, "count is smaller than the next entry")
                    return taken
            if self._is_whole:
                return taken
            encoded, ends = self._more()
            if not ends:
                self._end()
                return taken
            self._encoded, self._ends = encoded, ends
            self._start = 0
            if self._stamp is not None:
                if self._kept.take_room(len(self._encoded)):
                    self._read_so_far.append(self._encoded)
                else:
                    self._forget_read()

    def _begin(self) -> None:
        """Go to the beginning: to what is kept, if the directory is still the same."""
        found = os.fstat(self._descriptor)
        stamp = found.st_ctime_ns, found.st_mtime_ns
        kept = self._kept.get(self._key, stamp)
        if kept is not None:
            self._forget_read()
            self._is_whole = True
            self._encoded, self._ends = kept
            self._start = self._position = 0
            return
        self._read_from(0, 0)
        self._places, self._offsets = array("q"), None
        # A directory may change again within a clock tick and have the same times: git's rule.
        if self._is_exact and is_settled(time.time_ns(), *stamp):
            self._stamp = stamp

    def _forget_read(self) -> None:
        """Keep nothing of what is being read."""
        self._stamp = None
        pieces, self._read_so_far = self._read_so_far, []
        if pieces:
            self._kept.take_room(-sum(map(len, pieces)))

    def _seek(self, offset: int) -> None:
        """Go to an offset that was told, or to one that was not, by counting entries; past the last one is the end."""
        if self._is_whole:
            offset = min(offset, len(self._ends))
            self._start = self._ends[offset - 1] if offset else 0
            self._position = offset
            return
        known = min(offset, len(self._places))
        if self._offsets is None and known < len(self._places):
            self._offsets = {place: number for number, place in enumerate(self._places, 1)}
        self._read_from(known, self._places[known - 1] if known else 0)
        while self._position < offset:
            encoded, ends = self._more()
            if not ends:
                return
            skipped = min(offset - self._position, len(ends))
            self._encoded, self._ends = encoded, ends
            self._start = ends[skipped - 1]
            self._position += skipped

    def _read_from(self, position: int, place: int) -> None:
        """Have the host's entries read from one of its offsets."""
        os.lseek(self._descriptor, place, os.SEEK_SET)
        self._encoded, self._ends = b"", array("I")
        self._start, self._position = 0, position
        self._is_whole = False
        self._forget_read()

    def _end(self) -> None:
        """Keep what was read from the beginning to the end, if nothing has changed meanwhile."""
        if self._stamp is None:
            return
        stamp, whole = self._stamp, b"".join(self._read_so_far)
        self._forget_read()
        found = os.fstat(self._descriptor)
        if stamp == (found.st_ctime_ns, found.st_mtime_ns):
            self._kept.put(self._key, stamp, whole, _ends_of(whole))

    def _take(self, room: int) -> memoryview:
        """Return the entries that fit, of those that are kept."""
        fitting = bisect_right(self._ends, self._start + room)
        end = self._ends[fitting - 1] if fitting else 0
        if end <= self._start:
            return memoryview(b"")
        piece = memoryview(self._encoded)[self._start : end]
        self._start = end
        begin = self._ends[fitting - 2] if fitting > 1 else 0
        (self._position,) = _OFFSET.unpack_from(self._encoded, begin + _OFFSET_AT)
        return piece

    def _more(self) -> _Encoded:
        """Encode what the host gives next; nothing at the end of the directory."""
        if self._buffer is None:
            self._buffer = ctypes.create_string_buffer(_BUFFER_SIZE)
        while True:
            size = syscalls.getdents64(self._descriptor, self._buffer)
            if not size:
                return b"", array("I")
            raw = ctypes.string_at(self._buffer, size)
            encoded = self._encode_plain(raw) or _joined(self._encode(raw))
            if encoded[1]:
                return encoded

    def _encode_plain(self, raw: bytes) -> _Encoded | None:
        """Do what `_encode` does with the compiled encoder; None where not all of it is plain, or there is none.

        Plain is what hides nothing, is read for the first time, and has inode numbers that fit a qid as they are. A
        regular file that has `_MARK` is looked at by the same `regular_type`.
        """
        base = self._qid_base
        if speed.compiled is None or base is None or self._hides is not None or self._offsets is not None:
            return None
        found = speed.compiled.encode(
            raw,
            base,
            MAX_INODE,
            self._root_inode or 0,
            bytes(_QID_TYPES),
            len(self._places),
            self._descriptor,
            _MARK,
            self._regular_type,
        )
        if found is None:
            return None
        ends: array[int] = array("I")
        ends.frombytes(found[1])
        self._places.frombytes(found[2])
        return found[0], ends

    def _encode(self, raw: bytes) -> list[bytes]:
        # A listing is this loop and little else: profiled at 80 % of reading 10,000 entries. Plain numbers
        # instead of a call for each qid, and `_take` instead of a second loop, cut the CPU time of such a
        # listing by a quarter (`readdir` of benchmarks/, 1.8 to 1.4 ms a message); 0.6 us an entry are left.
        entries: list[bytes] = []
        append, unpack, pack, index = entries.append, _DIRENT.unpack_from, _ENTRY.pack, raw.index
        qid_base, qid_path, root_inode = self._qid_base, self._qid_path, self._root_inode
        qid_types, regular_type, here = _QID_TYPES, self._regular_type, b"/proc/self/fd/%d/" % self._descriptor
        places, offsets, hides = self._places, self._offsets, self._hides
        offset = len(places)
        at, stop = 0, len(raw)
        while at < stop:
            inode, behind, length, d_type = unpack(raw, at)
            start = at + 19
            name = raw[start : index(0, start)]
            at += length
            if root_inode is not None and name == b"..":
                inode = root_inode
            if d_type >= _DT_COUNT:
                d_type = 0  # a file system in user space may say anything
            if hides is not None and hides(name, d_type):
                continue
            if d_type == _DT_REG and regular_type is not None:
                d_type = regular_type(here + name)
            if offsets is not None and behind in offsets:
                told = offsets[behind]
            else:
                told = offset = offset + 1
                places.append(behind)
                if offsets is not None:
                    offsets[behind] = told
            path = qid_base | inode if qid_base is not None and inode < MAX_INODE else qid_path(inode)
            append(pack(qid_types[d_type], 0, path, told, d_type, len(name)) + name)
        return entries


def _joined(entries: list[bytes]) -> _Encoded:
    """Return entries end to end, and where each ends."""
    return b"".join(entries), array("I", accumulate(map(len, entries)))


def _ends_of(encoded: bytes) -> array[int]:
    """Return where each entry ends."""
    ends = array("I")
    at, append, length = 0, ends.append, _NAME_LENGTH.unpack_from
    while at < len(encoded):
        at += _ENTRY.size + length(encoded, at + _NAME_LENGTH_AT)[0]
        append(at)
    return ends


class AllowedListing:
    """The entries of the root: ".", "..", and the allowed names that are there, in the order of their bytes.

    An offset is the place in that order, whether a name is there or not: it stays good while they come and go.
    `qid_path` makes the number of a qid from device and inode; `regular_type` is that of a `Listing`.
    """

    is_large = False
    state: MatchState | None = None

    def __init__(
        self,
        allowed: AllowedNames,
        root: os.stat_result,
        *,
        qid_path: Callable[[int, int], int],
        regular_type: Callable[[bytes], int] | None,
    ) -> None:
        self._allowed = allowed
        self._dots = root
        self._qid_path = qid_path
        self._regular_type = regular_type
        self.looks_at_files = regular_type is not None

    def is_ready(self, offset: int) -> bool:
        """Say whether a read from there needs nothing of the host."""
        del offset
        return False

    def read(self, offset: int, count: int) -> list[bytes]:
        """Return as many whole entries from `offset` on as `count` bytes hold; none at the end.

        Raises `OSError`: EINVAL when the next entry is larger than `count`, or for an offset past `MAX_OFFSET`.
        """
        if offset > MAX_OFFSET:
            raise OSError(errno.EINVAL, "no offset of a directory")
        taken: list[bytes] = []
        room = count
        for name, behind, found in self._from(offset):
            d_type = stat.S_IFMT(found.st_mode) >> _TYPE_SHIFT
            if self._regular_type is not None and stat.S_ISREG(found.st_mode):
                d_type = self._regular_type(self._allowed.path_of(name))
            path = self._qid_path(found.st_dev, found.st_ino)
            entry = _ENTRY.pack(_QID_TYPES[d_type], 0, path, behind, d_type, len(name)) + name
            if len(entry) > room:
                if not taken:
                    raise OSError(errno.EINVAL, "count is smaller than the next entry")
                break
            taken.append(entry)
            room -= len(entry)
        return taken

    def _from(self, offset: int) -> Iterator[tuple[bytes, int, os.stat_result]]:
        """Give each name that is there from an offset on, the offset behind it, and its lstat(2)."""
        names = (b".", b"..", *self._allowed.names)
        for place in range(offset, len(names)):
            found = self._dots if place < 2 else self._allowed.look(names[place])
            if found is not None:
                yield names[place], place + 1, found
