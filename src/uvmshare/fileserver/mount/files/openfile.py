"""Files that are open: descriptors for reading and writing, and who closes them.

What lives here: `OpenFile`, its kinds, and `OpenFiles`, all that is open in a session. What must not: which fid has one
open (`mount.fids`).
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.files.listing import AllowedListing, Listing
    from uvmshare.fileserver.mount.files.node import Node

__all__ = ["CreatedFile", "ForeignFile", "OpenFile", "OpenFiles", "closes_here"]

_thread: Final = threading.local()
"""`closes`: whether this thread may wait for a file system that may never answer."""


def closes_here() -> None:
    """Have this thread close foreign files itself from now on."""
    _thread.closes = True


_CANNOT_TELL: Final[set[int]] = set()
"""Devices whose file systems have said so (preadv2(2), EOPNOTSUPP). Asking each open file again was 8 to 10 % of
opening and reading small files."""
_MOST_DEVICES: Final = 64


class OpenFile:
    """An open descriptor. It is closed when the last who uses it lets go: its fid, or a job that runs aside.

    `key` is the file's (device, inode). `nowait` is False once its file system has said that it cannot
    tell what it would wait for (`cannot_tell`); `splices` when splice(2) may write to it; `sync` when each write
    waits for the disk; `listing` is there when it is a directory. A descriptor that was let go meanwhile (`idle`) is
    opened again when it is asked for, which raises `OSError`: ESTALE where the file is gone. `away` then does it, and
    is None otherwise.
    """

    __slots__ = ("away", "fd", "key", "listing", "nowait", "splices", "sync", "writable")

    def __init__(
        self, fd: int, key: tuple[int, int], *, writable: bool = False, sync: bool = False, splices: bool = False
    ) -> None:
        self.fd = fd
        self.key = key
        self.writable = writable
        self.sync = sync
        self.splices = splices
        self.listing: Listing | AllowedListing | None = None
        self.nowait = key[0] not in _CANNOT_TELL
        self.away: Callable[[], int] | None = None

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> int:
            # As for a node (`tree`): a descriptor that is there costs nothing.
            if name != "fd":
                raise AttributeError(name)
            self.come_back()
            return self.fd

    def let_go(self, open_again: Callable[[], int]) -> None:
        """Close the descriptor; what is given opens the file again. Raises nothing."""
        descriptor = self.fd
        self.away = open_again
        del self.fd
        os.close(descriptor)

    def cannot_tell(self) -> None:
        """Take note that its file system cannot tell whether a read waits: it is asked for none of its files again."""
        self.nowait = False
        if len(_CANNOT_TELL) >= _MOST_DEVICES:
            _CANNOT_TELL.clear()
        _CANNOT_TELL.add(self.key[0])

    def come_back(self) -> None:
        """Have the descriptor again, if it was let go. Raises `OSError`."""
        if self.away is not None:
            self.fd = self.away()
            self.away = None

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if self.away is None:
            close(self.fd)

    def write(self, data: bytes | memoryview, offset: int) -> int:
        """Write all of the data and return its length. Raises `OSError` for what stopped that; a part may be written.

        A guest is never told of a part. Linux 6.12's client takes a count that is short wrongly (seen with cache=none
        and cache=mmap,directio): it sends what is left to the offset of the first byte, over what was written, and then
        tells its program that all is.
        """
        written, length = os.pwrite(self.fd, data, offset), len(data)
        while written < length:
            more = os.pwrite(self.fd, data[written:], offset + written)
            if not more:
                raise OSError(errno.EIO, "nothing was written")  # it would be asked for ever
            written += more
        return written


class ForeignFile(OpenFile):
    """An open file of a file system that may never answer, where close(2) may wait as any call.

    So the loop's thread never closes one; another thread is started where it drops one all the same.
    """

    __slots__ = ()

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if getattr(_thread, "closes", False):
            with suppress(OSError):  # EIO and ENOSPC of what was written: close(2) tells nobody here
                close(self.fd)
            return
        with suppress(RuntimeError):  # no room for a thread: it goes with the process
            threading.Thread(target=close, args=(self.fd,), daemon=True).start()


class CreatedFile(OpenFile):
    """The open file that was created: its descriptor is its node's, which closes it, and no other fid has that node.

    A second descriptor for the node took a fifth of a create (profiled: opened by way of /proc, 2.8 us). Once it was
    let go, it has a descriptor of its own.
    """

    __slots__ = ("node",)

    def __init__(self, node: Node, key: tuple[int, int], *, writable: bool, sync: bool, splices: bool) -> None:
        super().__init__(node.fd, key, writable=writable, sync=sync, splices=splices)
        self.node: Node | None = node

    def let_go(self, open_again: Callable[[], int]) -> None:
        """Leave the descriptor to the node, which is let go next."""
        if self.node is None:
            super().let_go(open_again)
            return
        self.node = None
        self.away = open_again
        del self.fd

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Leave the descriptor to the node, if it is the node's."""
        if self.node is None and self.away is None:
            close(self.fd)


class OpenFiles:
    """All that is open in a session, by its inode: one file may be open many times. Asked by any thread."""

    __slots__ = ("_by_inode", "_lock", "count")

    def __init__(self) -> None:
        self._by_inode: dict[int, OpenFile | set[OpenFile]] = {}
        self.count = 0
        """How many there are."""
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.count

    def of_inode(self, inode: int) -> tuple[OpenFile, ...]:
        """Return what is open of the files that have this inode number, each on a device of its own."""
        with self._lock:
            found = self._by_inode.get(inode, ())
            return (found,) if isinstance(found, OpenFile) else tuple(found)

    def of(self, key: tuple[int, int]) -> list[OpenFile]:
        """Return what is open of a file, named by (device, inode)."""
        return [file for file in self.of_inode(key[1]) if file.key == key]

    def add(self, file: OpenFile) -> None:
        """Take one in."""
        with self._lock:
            there = self._by_inode.setdefault(file.key[1], file)
            if there is not file:
                if isinstance(there, set):
                    there.add(file)
                else:
                    self._by_inode[file.key[1]] = {there, file}
            self.count += 1

    def discard(self, file: OpenFile) -> None:
        """Forget one, if it is there: a new session forgets all, whatever threads are still at."""
        with self._lock:
            there = self._by_inode.get(file.key[1])
            if there is not file:
                if not isinstance(there, set) or file not in there:
                    return
                there.remove(file)
            if there is file or not there:
                del self._by_inode[file.key[1]]
            self.count -= 1

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            files, self._by_inode = self._by_inode, {}
            self.count = 0
        del files  # what is closed with them may take its time
