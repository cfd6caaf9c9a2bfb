"""Descriptors that are closed while nobody uses them, and how their files are found again.

What lives here: `Idle`, which lets the descriptors of a mount's nodes and open files go and finds them again by name.
What must not: what a node is (`files.node`), an open file (`files.openfile`), when there are too many (`session`).

A guest's kernel keeps a fid for every file that it remembers, and with `cache=loose` it remembers all that it has
seen; before Linux 6.4 it also keeps each that was written to open. A descriptor for each of them would use up what the
host allows, keep the space of deleted files in use, and their file systems from being unmounted.

A file is found again by its name in its directory, and has to be the very same: the same device and inode, and what
tells two files apart that had the same inode one after the other, which is the file handle where there is one
(name_to_handle_at(2)) and otherwise the time of its birth. What the guest renamed meanwhile is followed. What
cannot be found any more, because the host removed, replaced or renamed it, is not there (ENOENT): Linux's client
then looks its name up again.

An open file is let go only when nothing else is left to close, for a program may be at work with it: what the host then
removes, replaces or renames is lost to that program (ESTALE). What the guest itself removes is opened again before.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from collections import Counter, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvmshare.directory import birth_time, file_handle
from uvmshare.fileserver.mount.files.node import ForeignNode
from uvmshare.fileserver.mount.files.openfile import ForeignFile
from uvmshare.fileserver.syscalls import MountCrossed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.openfile import OpenFile, OpenFiles
    from uvmshare.fileserver.mount.files.tree import Tree

__all__ = ["Idle", "InUse"]

_KEPT_FLAGS: Final = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC
"""What is asked for again of how a file was opened."""

_INODE_BITS: Final = 64
_INODE: Final = (1 << _INODE_BITS) - 1

_MOST_RENAMES: Final = 4096
"""Renames that are remembered: the last ones. A file that was let go before an older one is looked up again."""

_MOST_STEPS: Final = 64
"""Renames of one file that are followed."""


class InUse:
    """The nodes that threads beside the loop use now: their descriptors stay open. The lock guards closing them too."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: Counter[Node] = Counter()

    def pin(self, nodes: Iterable[Node]) -> list[Node]:
        """Keep these nodes and those above them open; return all of them."""
        pinned: list[Node] = []
        with self.lock:
            for node in nodes:
                at: Node | None = node
                while at is not None:
                    pinned.append(at)
                    at = at.parent
            self.counts.update(pinned)
        return pinned

    def unpin(self, pinned: list[Node]) -> None:
        """Need them no more."""
        with self.lock:
            for node in pinned:
                self.counts[node] -= 1
                if not self.counts[node]:
                    del self.counts[node]
        pinned.clear()


class Idle:
    """The descriptors of one session's nodes.

    `fids` is the session's table, `opened` what is open in it: a file without a name is found again by whoever has it
    open. `in_use` returns the open files that other threads work with now, `came_back` is told each descriptor of an
    open file that is there again.
    """

    def __init__(
        self,
        tree: Tree,
        fids: dict[int, Fid],
        opened: OpenFiles,
        pins: InUse,
        *,
        in_use: Callable[[], set[OpenFile]],
        came_back: Callable[[int], None],
        is_foreign: bool = False,
    ) -> None:
        self.pins = pins
        self._is_foreign = is_foreign
        self._tree = tree
        self._fids = fids
        self._opened = opened
        self._in_use = in_use
        self._came_back = came_back
        self._queue: deque[int] = deque()
        """Fids whose descriptors may be let go next, those that came first at the front."""
        self._renames: dict[tuple[int, int, bytes], tuple[Node, bytes]] = {}
        """Where the guest put what had a name in a directory: those of the last renames."""
        self.any_let_go = False
        self._any_file_let_go = False

    # Letting go

    def let_go_all(self, mount: str) -> None:
        """Close the descriptors of all idle foreign nodes of one mount. Waits for its file system."""
        for fid in list(self._fids.values()):
            node: Node | None = fid.node
            if not fid.is_open and isinstance(node, ForeignNode) and node.mount == mount:
                while node is not None and self._close(node):
                    node = node.parent

    def let_go(self, most: int, *, opened_too: bool = False) -> int:
        """Close the descriptors of idle nodes until `most` are closed or there are no more; return how many were.

        Idle is what no fid has open. A directory goes with what was reached through it. `opened_too`: regular files
        that fids have open go as well, but for those without a name.
        """
        closed = 0
        is_whole = False
        in_use: set[OpenFile] = self._in_use() if opened_too else set()
        while closed < most:
            if not self._queue:
                if is_whole:
                    break
                self._queue.extend(self._fids)
                is_whole = True
                continue
            fid = self._fids.get(self._queue.popleft())
            if fid is None or fid.xattr is not None:
                continue
            node: Node | None = fid.node
            if fid.file is not None:
                if not opened_too or fid.file in in_use or not self._close_file(fid.file, fid.node):
                    continue
                closed += 1
            while node is not None and self._close(node):
                closed += 1
                node = node.parent
        return closed

    def _close(self, node: Node) -> bool:
        """Close a node's descriptor, unless its file could not be found again."""
        if node.parent is None or node.seal is not None or node.is_foreign is not self._is_foreign:
            return False
        try:
            found = os.fstat(node.fd)
            if found.st_nlink:
                name = self._name_of(node)
                if name is None:
                    return False
                node.name = name
            elif stat.S_ISDIR(found.st_mode):
                return False  # somebody's working directory, perhaps; it takes no space
            seal = _seal(node.fd, found)
        except OSError:
            return False
        with self.pins.lock:
            if node in self.pins.counts or node.seal is not None:
                return False
            node.let_go(seal)
        self.any_let_go = True
        return True

    def _close_file(self, file: OpenFile, node: Node) -> bool:
        """Close an open file's descriptor, unless it could not be found again.

        One on a foreign file system stays open. To close it is to write it back there (NFS close(2), FUSE's FLUSH),
        and the error of that belongs to the guest's own clunk; to open it again is to ask there, which may take for
        ever, for what may be refused by then.
        """
        if file.away is not None or file.listing is not None or node.parent is None or node.is_foreign:
            return False
        try:
            if not os.fstat(file.fd).st_nlink:
                return False
            name = self._name_of(node)
            if name is None:
                return False
            node.name = name
            flags = fcntl.fcntl(file.fd, fcntl.F_GETFL) & _KEPT_FLAGS
        except OSError:
            return False
        file.let_go(lambda: self.open_again(node, flags))
        self._any_file_let_go = True
        return True

    def _name_of(self, node: Node) -> bytes | None:
        """Return the name by which a node's directory has it now; None when it has not, or the name is not its own."""
        tree, parent = self._tree, node.parent
        assert parent is not None
        if tree.is_entry(parent, node.name, node):
            return node.name
        name = tree.name_of(node)
        return name if tree.is_entry(parent, name, node) else None

    # Finding again

    def note_rename(self, directory: Node, name: bytes, to: Node, new_name: bytes) -> None:
        """Remember where the guest has put what had a name, for nodes of it that were let go before."""
        if not self.any_let_go:
            return
        key = _place(directory, name)
        with self.pins.lock:
            self._renames.pop(key, None)
            self._renames[key] = to, new_name
            if len(self._renames) > _MOST_RENAMES:
                del self._renames[next(iter(self._renames))]

    def open_again(self, node: Node, flags: int) -> int:
        """Open the file of a node for I/O once more. Raises `OSError`: ESTALE when it is gone."""
        try:
            descriptor = self._tree.reopen(node, flags)
        except FileNotFoundError as error:
            raise OSError(errno.ESTALE, "no longer where it was") from error
        self._came_back(descriptor)
        return descriptor

    def before_removal(self, directory: Node, name: bytes) -> None:
        """Have the descriptors again of what the guest has open and is about to take a name from."""
        if not self._any_file_let_go:
            return
        with suppress(OSError, MountCrossed):  # what something is mounted over cannot be removed
            found = self._tree.look(directory, name)
            for file in self._opened.of((found.st_dev, found.st_ino)):
                file.come_back()

    def find_again(self, node: Node) -> None:
        """Open what was let go, and the directories above it that were. Raises `OSError`: ENOENT when it is gone."""
        closed: list[Node] = []
        at: Node | None = node
        while at is not None and at.seal is not None:
            closed.append(at)
            at = at.parent
        while closed:
            self._find(closed.pop())
        self._tree.require_inside(node)

    def _find(self, node: Node) -> None:
        seal, parent, name = node.seal, node.parent, node.name
        assert parent is not None
        if seal is None:
            return  # by another thread
        for _ in range(_MOST_STEPS):
            descriptor = self._open(parent, name, seal)
            if descriptor is not None:
                if not self._took(node, descriptor):
                    return
                if parent is not node.parent:
                    self._tree.move(node, parent, name)
                node.name = name
                return
            moved = self._renames.get(_place(parent, name)) if self._renames else None
            if moved is None:
                break
            parent, name = moved
        for file in self._opened.of_inode(seal & _INODE):
            # A foreign one that happens to have this inode number may never answer.
            if isinstance(file, ForeignFile) is not self._is_foreign:
                continue
            if file.away is None and _seal(file.fd, os.fstat(file.fd)) == seal:
                self._took(node, self._tree.open_again(file.fd, os.O_PATH))
                return
        raise OSError(errno.ENOENT, "no longer where it was")

    def _took(self, node: Node, descriptor: int) -> bool:
        """Give a node its descriptor, unless another thread was faster."""
        with self.pins.lock:
            if node.seal is not None:
                node.took(descriptor)
                return True
        os.close(descriptor)
        return False

    def _open(self, parent: Node, name: bytes, seal: int) -> int | None:
        """Open what a directory has under a name, if it is what the seal is of."""
        if not self._tree.is_allowed(parent, name):
            return None
        try:
            descriptor = self._tree.lending.during(lambda: self._tree.open_entry(name, parent.fd), parent)
        except MountCrossed:
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise
            return None
        try:
            is_same = _seal(descriptor, os.fstat(descriptor)) == seal
        except OSError:
            is_same = False
        if is_same:
            return descriptor
        os.close(descriptor)
        return None


def _place(directory: Node, name: bytes) -> tuple[int, int, bytes]:
    found = os.fstat(directory.fd)
    return found.st_dev, found.st_ino, name


def _seal(descriptor: int, found: os.stat_result) -> int:
    """Return a number that is a file's alone for as long as this process lives: its inode in the low bits."""
    handle = file_handle(descriptor)
    other: object = handle or birth_time(descriptor)
    return (hash((found.st_dev, other)) & _INODE) << _INODE_BITS | found.st_ino & _INODE
