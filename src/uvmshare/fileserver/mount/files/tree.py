"""The tree below a share's root, as descriptors, and what keeps a guest inside.

What lives here: `Tree`, and the rules that keep a guest inside: one component at a time,
never through a symbolic link, no names that are more than names, and nothing that is not below the
root when it is reached. What must not: 9P messages (`handlers`), who owns what (`ownership`).

No path string is ever resolved again. The kernel is asked for the path of a descriptor only to see
whether it lies below the root: a directory that the host moved out of the share keeps its
descriptors, and a walk on from one of them would otherwise leave the share.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from uvmshare.directory import place_of
from uvmshare.fileserver.casefold import folds, lists
from uvmshare.fileserver.digest import blake2b
from uvmshare.fileserver.mount.files.allowed import AllowedNames
from uvmshare.fileserver.mount.files.boundary import Boundary
from uvmshare.fileserver.mount.files.hidden import Hidden, not_there
from uvmshare.fileserver.mount.files.lending import Lending
from uvmshare.fileserver.mount.files.node import ForeignNode, Node, Root, is_foreign
from uvmshare.fileserver.syscalls import MountCrossed, open_entry
from uvmshare.hiding import Visibility
from uvmshare.ninep.constants import QidType
from uvmshare.ninep.types import Qid

if TYPE_CHECKING:
    from uvmshare.fileserver.export import Export
    from uvmshare.hiding import MatchState

__all__ = ["MAX_INODE", "Tree", "WaitingTree", "check_name"]

_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

_INODE_BITS: Final = 48
MAX_INODE: Final = 1 << _INODE_BITS
"""Inode numbers below this are part of a qid's path as they are."""
_MAX_DEVICES: Final = 1 << 14

_REOPEN: Final = os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

_NO_NAMES: Final = frozenset((b"", b".", b".."))

_QID_DIR: Final = int(QidType.DIR)
_QID_SYMLINK: Final = int(QidType.SYMLINK)


def check_name(name: bytes) -> None:
    """Refuse what is not one name of a directory entry (intro(5)): EINVAL.

    NUL never gets here, because no string of a message may have it. Raises `OSError`.
    """
    if name in _NO_NAMES or b"/" in name:
        raise OSError(errno.EINVAL, "not a name")


class Tree:
    """A share's tree: where walks start, how they go on, and what names a file in a qid."""

    def __init__(self, export: Export) -> None:
        self.root = Root(export.root)
        self.only = export.only
        self.hidden = Hidden(export.hide) if export.hide else None
        self.allowed = None if export.only is None else AllowedNames(export.root, export.only, self.hidden)
        """Of a share with an allow-list: what is told of its root, which is not shared itself."""
        found = os.fstat(export.root)
        self._devices = {found.st_dev: 0}
        self._numbering = threading.Lock()
        self.has_mounts = True
        """Whether anything may be mounted below the root. What is not known is taken to be."""
        self._proc = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.boundary = Boundary(self.root, self._proc, export.only, self.hidden)
        self.lending = Lending(
            is_on=os.geteuid() != 0 and not export.read_only,
            require_inside=self.boundary.require_inside,
            is_shared=self.is_shared,
        )

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors that the tree itself holds: its root's and that of /proc/self/fd."""
        return self.root.fd, self._proc

    def close(self) -> None:
        """Close what the tree opened itself; the root's descriptor is the export's."""
        os.close(self._proc)

    # Reaching files

    def child(self, parent: Node, name: bytes) -> Node:
        """Open one entry of a directory, not through a symbolic link; ``..`` goes back the way that was come.

        Raises `OSError`: ENOENT also for names that an allow-list leaves out, and for what lies outside
        the share because the host has moved its directory there.
        """
        if name == b"..":
            if not stat.S_ISDIR(os.fstat(parent.fd).st_mode):
                raise OSError(errno.ENOTDIR, "not a directory")
            return parent.parent or parent
        node = self._open(parent, name)
        # Each step, not the last alone: a walk out and back in would tell what lies outside. What the
        # kernel has just found in the root itself lies below it.
        if parent.parent is not None:
            self.require_inside(node)
        return node

    def _open(self, parent: Node, name: bytes) -> Node:
        if name in _NO_NAMES or b"/" in name:
            check_name(name)
        if self.only is not None and not self.is_allowed(parent, name):
            raise OSError(errno.ENOENT, "not an allowed name")
        fate = Visibility.SHOWN if self.hidden is None else self._fate(parent, name)
        try:
            descriptor = self.open_entry(name, parent.fd)
        except PermissionError as error:
            descriptor = self.lending.after_refusal(error, partial(self.open_entry, name, parent.fd), parent)
        node = Node(descriptor, parent, name)
        if self.hidden is None:
            return node
        if fate.depends and fate.hides(directory=stat.S_ISDIR(os.fstat(node.fd).st_mode)):
            raise not_there()
        self._require_listed(parent, name)
        return node

    def open_entry(self, name: bytes, directory: int) -> int:
        """Open an entry of a directory for its path alone. Raises `MountCrossed`, and `OSError`."""
        return open_entry(name, directory) if self.has_mounts else os.open(name, _PATH_FLAGS, dir_fd=directory)

    def look(self, directory: Node, name: bytes) -> os.stat_result:
        """Return what lstat(2) says of an entry of a directory. Raises `MountCrossed`, and `OSError`."""
        if not self.has_mounts:
            return self.lending.during(lambda: os.stat(name, dir_fd=directory.fd, follow_symlinks=False), directory)
        descriptor = self.lending.during(lambda: open_entry(name, directory.fd), directory)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def found_mounts(self, *, any_there: bool) -> None:
        """Take note whether anything is mounted below the root. Looking for it takes 1.5 us for each name (timed)."""
        self.has_mounts = any_there
        if self.allowed is not None:
            self.allowed.has_mounts = any_there

    def is_allowed(self, directory: Node, name: bytes) -> bool:
        """Say whether an allow-list leaves a name in a directory."""
        return self.only is None or directory.parent is not None or name in self.only

    # What is hidden

    def state(self, directory: Node) -> MatchState:
        """Return what the patterns have come to in a directory, as the kernel says where it is now.

        Raises `OSError`: ENOENT when it is hidden itself, or outside.
        """
        assert self.hidden is not None
        state = self.hidden.state(self.boundary.below(directory))
        if state is None:
            raise not_there()
        self._lists_all(directory)
        return state

    def _lists_all(self, directory: Node) -> bool:
        """Say whether a directory is known to have no names but those that it lists.

        Raises `OSError`: ENOENT when it has others, by which the guest could reach what is hidden.
        """
        may_fold = self.lending.during(lambda: folds(directory.fd), directory)
        if may_fold:
            raise not_there()
        return may_fold is False

    def _require_listed(self, directory: Node, name: bytes) -> None:
        """Refuse a name that is not listed just so where others may lead to a file: ENOENT. Raises `OSError`."""
        if self.hidden is None or self._lists_all(directory):
            return
        if not self.lending.during(lambda: lists(directory.fd, name), directory):
            raise not_there()

    def _fate(self, directory: Node, name: bytes) -> Visibility:
        """Return what the patterns make of a name. Raises `OSError`: ENOENT when it is hidden whatever it is."""
        if self.hidden is None:
            return Visibility.SHOWN
        fate = self.hidden.fate(self.state(directory), name)
        if fate is Visibility.HIDDEN:
            raise not_there()
        return fate

    def require_shown(self, directory: Node, name: bytes) -> None:
        """Refuse a name that a directory does not have for the guest: ENOENT. Raises `OSError`."""
        if self.hidden is None:
            return
        fate = self._fate(directory, name)
        if fate.depends and fate.hides(directory=self._has_directory(directory, name)):
            raise not_there()
        self._require_listed(directory, name)

    def require_makeable(self, directory: Node, name: bytes, *, is_directory: bool) -> None:
        """Refuse to make what would be hidden at once, or has a name that something hidden has: EACCES.

        Raises `OSError`.
        """
        if self.hidden is None:
            return
        fate = self.hidden.fate(self.state(directory), name)
        is_hidden = fate.hides(directory=is_directory)
        lists_all = self._lists_all(directory)
        if not is_hidden and (fate.depends or not lists_all):
            with suppress(FileNotFoundError):
                is_hidden = fate.hides(directory=self._has_directory(directory, name))
                if not lists_all and not self.lending.during(lambda: lists(directory.fd, name), directory):
                    is_hidden = True
        if is_hidden:
            raise OSError(errno.EACCES, "a name that is hidden")

    def _require_movable(self, directory: Node, name: bytes, to: Node, new_name: bytes) -> bytes:
        """Refuse a rename that would change what is hidden below what is renamed: EXDEV.

        That is asked of a file as well: it may be a directory a moment later, by another mount of this guest's. Where a
        directory of one of the names is hidden and a file is not, or the other way round, a file is not renamed, and
        what is returned has to be put after both names: rename(2) then takes directories alone. Raises `OSError`, also
        as `require_shown` and `require_makeable` do.
        """
        if self.hidden is None:
            return b""
        is_directory = self._has_directory(directory, name)
        self.require_shown(directory, name)
        self.require_makeable(to, new_name, is_directory=is_directory)
        here, there = self.state(directory), self.state(to)
        depends = self.hidden.fate(here, name).depends or self.hidden.fate(there, new_name).depends
        if self.hidden.below(here, name) != self.hidden.below(there, new_name) or (depends and not is_directory):
            raise OSError(errno.EXDEV, "other names are hidden there")
        return b"/" if depends else b""

    def _has_directory(self, directory: Node, name: bytes) -> bool:
        """Say whether a directory has another one under that name. Raises `MountCrossed`, and `OSError`."""
        return stat.S_ISDIR(self.look(directory, name).st_mode)

    # Walks

    def walk(self, start: Node, names: list[bytes]) -> list[Node]:
        """Open what the names lead to, one after the other, as `child` does; as many as there are.

        Raises `OSError` when there is not even the first.

        A mount's own process looks where it was before and after (`boundary`), not at each step: two paths for
        each step were half of what a walk cost (cProfile; a path 2.8 us, a component opened and closed 1.9 us).
        """
        boundary, root = self.boundary, self.root
        path = b""
        if boundary.is_alone and b".." not in names:
            if start is root and len(names) == 1:
                return [self._open(root, names[0])]  # what the kernel finds in the root itself is inside
            path = boundary.before(start)
        if not path:
            return self._walk_by_steps(start, names)
        nodes: list[Node] = []
        state = None if self.hidden is None else self.hidden.state(boundary.relative(path))
        try:
            self._open_each(start, names, nodes, state)
        except OSError as error:
            if error.errno == errno.EACCES and self.lending.is_on:
                return self._walk_by_steps(start, names)
            if not nodes:
                raise
        else:
            if len(names) > 1:
                path = b"/".join((path, *names[:-1]))
            if boundary.after(nodes[-1].parent or root, path, nodes):
                return nodes
        for node in nodes:
            boundary.require_inside(node)
        return nodes

    def _open_each(self, node: Node, names: list[bytes], nodes: list[Node], state: MatchState | None) -> None:
        root, only, hidden, has_mounts = self.root, self.only, self.hidden, self.has_mounts
        for name in names:
            if name in _NO_NAMES or b"/" in name:
                check_name(name)
            if only is not None and node is root and name not in only:
                raise OSError(errno.ENOENT, "not an allowed name")
            if hidden is None or state is None:
                if has_mounts:
                    node = Node(open_entry(name, node.fd), node, name)
                else:
                    node = Node(os.open(name, _PATH_FLAGS, dir_fd=node.fd), node, name)
            else:
                fate = hidden.fate(state, name)
                if fate is Visibility.HIDDEN:
                    raise not_there()
                state = hidden.below(state, name)
                directory = node
                node = Node(self.open_entry(name, directory.fd), directory, name)
                self._require_listed(directory, name)
                if fate.depends and fate.hides(directory=stat.S_ISDIR(os.fstat(node.fd).st_mode)):
                    raise not_there()
            nodes.append(node)

    def _walk_by_steps(self, start: Node, names: list[bytes]) -> list[Node]:
        nodes: list[Node] = []
        node = start
        try:
            for name in names:
                node = self.child(node, name)
                nodes.append(node)
        except OSError:
            if not nodes:
                raise
        return nodes

    def require_inside(self, node: Node) -> None:
        """See `Boundary.require_inside`."""
        self.boundary.require_inside(node)

    def reopen(self, node: Node, flags: int) -> int:
        """Open a regular file or directory for I/O: the very file of the descriptor, wherever it is now.

        The caller has checked its type: opening a FIFO or device could block or act.
        Raises `OSError`.
        """
        try:
            return os.open(b"%d" % node.fd, flags | _REOPEN, dir_fd=self._proc)
        except PermissionError as error:
            return self.lending.after_refusal(error, partial(self.open_again, node.fd, flags), node)

    def open_again(self, descriptor: int, flags: int) -> int:
        """Open the very file of a descriptor once more. Raises `OSError`."""
        return os.open(b"%d" % descriptor, flags | _REOPEN, dir_fd=self._proc)

    def apart(self, node: Node) -> Node:
        """Return another node of the very file, in the same place. Raises `OSError`."""
        return type(node)(self.reopen(node, os.O_PATH), node.parent, node.name)

    def move(self, node: Node, directory: Node, name: bytes) -> None:
        """Have a node be where it was renamed to.

        The kernel moves no directory below itself. Where the nodes above the new place say that it is there, the host,
        or another fid, has moved one of them since: it goes below the root then, for nodes that hold each other
        would never be closed.
        """
        above = directory
        while above.parent is not None:
            if above.parent is node:
                above.parent = self.root
            above = above.parent
        node.parent, node.name = directory, name

    def name_of(self, node: Node) -> bytes:
        """Return the name that the kernel has for a node now. Raises `OSError`."""
        return os.path.basename(os.readlink(os.fsencode(str(node.fd)), dir_fd=self._proc))

    def is_entry(self, directory: Node, name: bytes, node: Node) -> bool:
        """Say whether a directory has the node's very file under that name."""
        try:
            there = self.look(directory, name)
        except (FileNotFoundError, MountCrossed):
            return False
        return os.path.samestat(there, os.fstat(node.fd))

    def link(self, node: Node, directory: Node, name: bytes) -> None:
        """Make a hard link to the very file of a node. Raises `OSError`."""
        source = str(node.fd)
        self.lending.during(
            lambda: os.link(source, name, src_dir_fd=self._proc, dst_dir_fd=directory.fd, follow_symlinks=True),
            directory,
        )

    def rename(self, directory: Node, name: bytes, to: Node, new_name: bytes) -> None:
        """Rename what a directory has under a name. Raises `OSError`."""
        after = self._require_movable(directory, name, to, new_name)

        def call() -> None:
            os.rename(name + after, new_name + after, src_dir_fd=directory.fd, dst_dir_fd=to.fd)

        try:
            call()
        except PermissionError as error:
            if not self.lending.is_on or error.errno != errno.EACCES:
                raise
            # A directory that comes to another one is itself written to: its ".." is.
            self.lending.during(call, directory, to, self._open(directory, name))

    def unlink(self, directory: Node, name: bytes, *, is_directory: bool) -> None:
        """Remove a name. Raises `OSError`."""
        remove = os.rmdir if is_directory else os.unlink
        try:
            remove(name, dir_fd=directory.fd)
        except PermissionError as error:
            self.lending.after_refusal(error, partial(remove, name, dir_fd=directory.fd), directory)

    @staticmethod
    def path_of(node: Node) -> str:
        """Return a path that leads to the very file of a node, for calls that take no descriptor of it."""
        return f"/proc/self/fd/{node.fd}"

    # What is told of files

    def told(self, node: Node, found: os.stat_result) -> os.stat_result:
        """Return what a guest may know of a node whose fstat(2) is `found`."""
        return found if self.allowed is None or node.parent is not None else self.allowed.told(found)

    def is_shared(self, node: Node) -> bool:
        """Say whether the file itself is shared: not the root of a share with an allow-list."""
        return self.allowed is None or node.parent is not None

    def qid_path(self, device: int, inode: int) -> int:
        """Return a number that is the file's alone in this share.

        It is the inode number on the root's file system, so that guests see the host's; on other file
        systems below the root the device is mixed in above 48 bits, and inode numbers past these are
        hashed (QEMU remaps both likewise).
        """
        index = self._devices.get(device)
        if index is None:
            with self._numbering:
                index = self._devices.get(device, len(self._devices))
                if index < _MAX_DEVICES:
                    self._devices[device] = index
        if inode < MAX_INODE and index < _MAX_DEVICES:
            return index << _INODE_BITS | inode
        digest = blake2b(f"{device}:{inode}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") | 1 << 63

    def qid_base(self, device: int) -> int | None:
        """Return what `qid_path` adds to inode numbers below `MAX_INODE`; None when it hashes them."""
        base = self.qid_path(device, 0)
        return None if base >> 63 else base

    def qid(self, found: os.stat_result, mode: int) -> Qid:
        """Return the qid of a file with the `mode` that the guest sees.

        `version` changes with the data's time and size (intro(5)), which is what lets a guest cache.
        """
        return Qid(*self.qid_numbers(found, mode))

    def qid_numbers(self, found: os.stat_result, mode: int) -> tuple[int, int, int]:
        """Return type, version and path of `qid` as numbers."""
        kind = stat.S_IFMT(mode)
        return (
            _QID_DIR if kind == stat.S_IFDIR else _QID_SYMLINK if kind == stat.S_IFLNK else 0,
            (found.st_mtime_ns ^ found.st_size << 8) & 0xFFFFFFFF,
            self.qid_path(found.st_dev, found.st_ino),
        )


class WaitingTree(Tree):
    """The same tree for threads that may wait: it enters mounts, and uses no working directory.

    What it opens on a file system that may never answer are `ForeignNode`s; below one, all are.
    """

    def __init__(self, tree: Tree) -> None:
        """Share all that is no thread's own."""
        self.root = tree.root
        self.only = tree.only
        self.hidden = tree.hidden
        self.allowed = tree.allowed
        if tree.root.is_foreign and tree.only is not None:
            self.allowed = AllowedNames(tree.root.fd, tree.only, tree.hidden, may_wait=True)
        self.has_mounts = False
        self._devices = tree._devices  # noqa: SLF001  its own, shared
        self._numbering = tree._numbering  # noqa: SLF001  likewise
        self._proc = tree._proc  # noqa: SLF001  likewise
        self.boundary = Boundary(self.root, self._proc, self.only, self.hidden)
        self.lending = Lending(
            is_on=tree.lending.is_on, require_inside=self.boundary.require_inside, is_shared=self.is_shared
        )

    def _open(self, parent: Node, name: bytes) -> Node:
        node = super()._open(parent, name)
        if parent.is_foreign:
            return ForeignNode(node.give_away(), parent, name)
        place = place_of(node.fd)
        if is_foreign(node.fd):
            return ForeignNode(node.give_away(), parent, name, place)
        return node

    def walk(self, start: Node, names: list[bytes]) -> list[Node]:
        """Open what the names lead to, a step at a time: as `Tree.walk`."""
        return self._walk_by_steps(start, names)
