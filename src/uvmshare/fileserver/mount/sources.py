"""Where word comes from of what happens to names in watched directories: fanotify(7), or inotify(7).

What lives here: `Source`, its two kinds, and which of them a mount has. What must not: what a name has come to
(`listening`), or who did it where the kernel does not say (`ledger`).

fanotify says which process changed something. A host may refuse it: Linux before 5.13, a container's filter, a file
system without file handles such as overlayfs. Then inotify tells the same, but not who did it.
"""

from __future__ import annotations

import errno
import os
import struct
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from uvmshare.directory import file_handle
from uvmshare.fileserver import syscalls
from uvmshare.fileserver.mount.seccomp import LISTEN_MASK, MARK, NOTICE_MASK
from uvmshare.fileserver.syscalls import Fanotify, Notify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["MAX_WATCHES", "Group", "Source", "Told", "Watches", "open_source", "open_to_spare"]

_SPARE: Final = 32
"""Groups, and queues, that must be left to other programs of this user; there are 128 of each (``max_user_groups``,
``max_user_instances``)."""
_MOST_MARKS: Final = 4096
"""Twice as many as directories may be watched (`watched`). A mark keeps its directory in the kernel's memory. It stays
when the directory has left its place, since only a path could take it away."""
_SHARE_OF_ALL: Final = 64
"""One mount takes no more than so small a part of what a user may watch and mark, and 16 mounts of one VM a quarter."""
_MAX_MARKS: Final = "/proc/sys/fs/fanotify/max_user_marks"
MAX_WATCHES: Final = "/proc/sys/fs/inotify/max_user_watches"
_PIECE: Final = 64 * 1024
_MOST_PIECES: Final = 64
"""That are read at once: a guest that makes changes faster than they are read is not to keep all else waiting."""
_METADATA: Final = struct.Struct("=IBBHQii")
_RECORD: Final = struct.Struct("=BBH8sIi")
"""An info record with a handle: type, padding, length, fsid, and how long the handle is, and of which type."""
_DFID_NAME: Final = 2
_EVENT: Final = struct.Struct("=iIII")


def open_to_spare(make: Callable[[], int], limit: str, most: int) -> tuple[int, int] | None:
    """Return a queue of the kernel's that `make` makes, and how many directories it may be told of, `most` at most.

    `limit` is the file with how many the user may have. None where this host has none to spare. Raises nothing.
    """
    try:
        with open(limit, "rb") as file:
            most = min(most, int(file.read()) // _SHARE_OF_ALL)
        return (syscalls.with_spare(make, _SPARE), most) if most else None
    except (OSError, ValueError):
        return None


class Told(NamedTuple):
    """What the kernel says: something happened to a name in a directory that has this number.

    `mask` has the bits of ``FAN_*``, which are inotify's too. The name of the directory itself is ".". With no
    `number`, more happened than the kernel keeps.
    """

    number: int | None
    name: bytes
    mask: int


_TOO_MUCH: Final = Told(None, b"", Fanotify.Q_OVERFLOW)


class Source(ABC):
    """The kernel's queue of what happens to names in directories, and of how many it may be told (`most`)."""

    says_who: bool
    """Whether what this process has done itself is left out."""

    def __init__(self, descriptor: int, most: int) -> None:
        self.descriptor = descriptor
        self.most = most

    def close(self) -> None:
        """Give it back."""
        os.close(self.descriptor)

    def require_told(self, descriptor: int, path: str) -> None:
        """Refuse where the kernel cannot tell of a directory: EOPNOTSUPP. Nothing else is told then. Raises `OSError`.

        It asks the file system, and so waits for it.
        """
        try:
            self.watch(0, descriptor, path)
        except OSError as error:
            raise OSError(errno.EOPNOTSUPP, f"no events of this file system: {error.strerror}") from error
        finally:
            self.clear()

    @abstractmethod
    def watch(self, number: int, descriptor: int, path: str) -> bool:
        """Be told of a directory. Raises `OSError` for what the kernel does not tell of.

        False when that is because too many directories have left their places.
        """

    @abstractmethod
    def forget(self, number: int, *, is_gone: bool) -> None:
        """Be told of a directory no more. `is_gone`: the kernel has forgotten it by itself. Raises nothing."""

    @abstractmethod
    def clear(self) -> None:
        """Be told of nothing any more, and drop what was not read yet. Raises nothing."""

    @abstractmethod
    def _told_in(self, data: bytes) -> Iterator[Told]:
        """Return what is said in what was read."""

    def read(self) -> tuple[list[Told], bool]:
        """Return what the kernel has to say, and whether that is all of it. Raises nothing."""
        told: list[Told] = []
        for _ in range(_MOST_PIECES):
            try:
                data = os.read(self.descriptor, _PIECE)
            except OSError:
                return told, True
            told += self._told_in(data)
        return told, False

    def _drop(self) -> None:
        with suppress(OSError):
            while os.read(self.descriptor, _PIECE):
                pass


class Group(Source):
    """A group of fanotify."""

    says_who = True

    def __init__(self, descriptor: int, most: int) -> None:
        super().__init__(descriptor, most)
        self._own = os.getpid()
        self._numbers: dict[bytes, int] = {}
        """By the handle of a directory."""
        self._handles: dict[int, bytes] = {}
        self._marked: set[bytes] = set()
        """The handles of all that the kernel was asked to tell of, and may still tell of."""

    @classmethod
    def open(cls) -> Group | None:
        """Return a group; None where this host has none (Linux before 5.13), or none to spare. Raises nothing."""
        found = open_to_spare(syscalls.fanotify_init, _MAX_MARKS, _MOST_MARKS)
        return None if found is None else cls(*found)

    def watch(self, number: int, descriptor: int, path: str) -> bool:
        """Mark a directory."""
        handle = file_handle(descriptor)
        if not handle:
            raise OSError(errno.EOPNOTSUPP, "the file system has no handles")
        if handle not in self._marked and len(self._marked) >= self.most:
            if 2 * len(self._handles) > len(self._marked):
                raise OSError(errno.ENOSPC, "no more directories are marked")
            return False
        syscalls.fanotify_mark(self.descriptor, MARK, LISTEN_MASK, path)
        self._marked.add(handle)
        self._numbers[handle] = number
        self._handles[number] = handle
        return True

    def forget(self, number: int, *, is_gone: bool) -> None:
        """Pass over what is told of a directory from now on: its mark stays."""
        handle = self._handles.pop(number, None)
        if handle is None:
            return
        if is_gone:
            self._marked.discard(handle)
        if self._numbers.get(handle) == number:
            del self._numbers[handle]

    def clear(self) -> None:
        """Take all marks away."""
        for each in (self._numbers, self._handles, self._marked):
            each.clear()
        with suppress(OSError):
            syscalls.fanotify_mark(self.descriptor, Fanotify.MARK_FLUSH, 0, "/")
        self._drop()

    def _told_in(self, data: bytes) -> Iterator[Told]:
        at = 0
        while at < len(data):
            size, _, _, header, mask, _, pid = _METADATA.unpack_from(data, at)
            if mask & Fanotify.Q_OVERFLOW:
                yield _TOO_MUCH
            elif pid != self._own:
                yield from self._records(data, at + header, at + size, mask)
            at += size

    def _records(self, data: bytes, at: int, stop: int, mask: int) -> Iterator[Told]:
        while at + _RECORD.size <= stop:
            kind, _, size, _, length, _ = _RECORD.unpack_from(data, at)
            if kind == _DFID_NAME:
                start = at + _RECORD.size
                number = self._numbers.get(data[start : start + length])
                if number is not None:
                    yield Told(number, data[start + length : at + size].split(b"\0", 1)[0], mask)
            at += max(size, 1)


class Watches(Source):
    """A queue of inotify."""

    says_who = False

    def __init__(self, descriptor: int, most: int) -> None:
        super().__init__(descriptor, most)
        self._numbers: dict[int, int] = {}
        """By the kernel's number of a watch, which it gives to no other one."""
        self._watches: dict[int, int] = {}

    @classmethod
    def open(cls) -> Watches | None:
        """Return a queue; None where this host has none to spare. Raises nothing."""
        found = open_to_spare(syscalls.inotify_init_at_once, MAX_WATCHES, _MOST_MARKS)
        return None if found is None else cls(*found)

    def watch(self, number: int, descriptor: int, path: str) -> bool:
        """Watch a directory."""
        del descriptor
        if len(self._watches) >= self.most:
            raise OSError(errno.ENOSPC, "no more directories are watched")
        watch = syscalls.inotify_add_watch(self.descriptor, path, NOTICE_MASK)
        self._numbers[watch] = number
        self._watches[number] = watch
        return True

    def forget(self, number: int, *, is_gone: bool) -> None:
        """Take a watch away."""
        del is_gone
        watch = self._watches.pop(number, None)
        if watch is not None and self._numbers.get(watch) == number:
            del self._numbers[watch]
            with suppress(OSError):  # the directory is gone, and the watch with it
                syscalls.inotify_rm_watch(self.descriptor, watch)

    def clear(self) -> None:
        """Take all watches away."""
        for number in list(self._watches):
            self.forget(number, is_gone=False)
        self._drop()

    def _told_in(self, data: bytes) -> Iterator[Told]:
        at = 0
        while at < len(data):
            watch, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size + size
            number = self._numbers.get(watch)
            if mask & Notify.Q_OVERFLOW:
                yield _TOO_MUCH
            elif number is not None and size:  # of the directory itself, the one above tells by its name
                yield Told(number, data[at - size : at].rstrip(b"\0"), mask)


def open_source(root: int) -> Source | None:
    """Return the best source for directories below this one; None where this host has none to spare. Raises nothing.

    It asks the file system nothing, which may never answer.
    """
    try:
        has_handles = bool(file_handle(root))
    except OSError:
        has_handles = False
    return (Group.open() if has_handles else None) or Watches.open()
