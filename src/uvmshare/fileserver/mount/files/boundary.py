"""The boundary of a share: whether a file lies inside, by the kernel's paths of descriptors. No limits are here.

What lives here: `Boundary`. What must not: how files are reached (`tree`), and no path is ever resolved.

A directory that the host moves out of the share keeps its descriptors, and a walk on from one of them
would leave the share. So whatever the guest would gain something new by is looked at after it was
reached: its path must be below the root's at that moment.

There are two ways to ask. `require_inside` reads the links of /proc/self/fd, which always works and costs 2.5 us a
link. A process that is a mount's own asks for its working directory instead, 0.4 us to go there and 0.6 us to ask
(getcwd(2)): `before` notes where a walk begins, `after` says whether the directory in which it ended is just where
the walk's names say, and so everything that was opened on the way below the root. The root's own path is read once
before the first walk of a turn and once, in `confirm`, before any reply of that turn leaves. What is made, removed and
listed in a directory is looked at so too, each time, where the root's path is fixed (`require_directory_inside`).

In a mount namespace of the process's own the root is a mount, whose path is the same for ever (`enclosure`), and is
read once. Elsewhere no two paths are read at one moment, so both ways read the root's again, behind the others. One
move of the host's is seen then, whatever it moves. Two are not that take the root away, put something in its place, and
bring it back before that: names and attributes of one walk may be told of a directory that the guest had in the share
before. It can neither open, list, change nor walk on from what it got, and cannot move the root of its own share.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from uvmshare.errors import RemoteProtocolError
from uvmshare.fileserver.syscalls import working_directory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvmshare.fileserver.mount.files.hidden import Hidden
    from uvmshare.fileserver.mount.files.node import Node

__all__ = ["Boundary"]

_MOST_LET_IN: Final = 256
"""Nodes that wait for `confirm`: each holds a descriptor."""

_REMOVED: Final = b" (deleted)"
"""What the kernel puts behind the path of a file whose name was removed (proc_pid_fd(5))."""

_MOST_CLIMBED: Final = 1024
"""Directories that are climbed where the kernel tells no path. A step is openat, fstat and close: 7 us, measured over
1,000 directories. A walk may climb 16 times, 0.12 s at most: a guest that puts trees of its own below each other would
else have each of its walks take seconds."""

_UP_FLAGS: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class Boundary:
    """The boundary of one share.

    `proc` is a descriptor of /proc/self/fd, `only` the names of the root that are shared.

    With an allow-list, inside is below one of these names: what the host moves elsewhere in the root has left. So has
    what it moves to where `hidden` hides it.
    """

    def __init__(self, root: Node, proc: int, only: frozenset[bytes] | None, hidden: Hidden | None = None) -> None:
        found = os.fstat(root.fd)
        self._root = root
        self._root_id = found.st_dev, found.st_ino
        self._proc = proc
        self._only = only
        self._hidden = hidden
        self.is_alone = False
        self.has_landlock = False
        """Whether the kernel itself refuses to open, make and remove what is not below the root: landlock(7)."""
        self._is_fixed = False
        """Whether the root's path is `_root_path` for ever."""
        self.inside: bytes | None = None
        """What the kernel's path of everything inside begins with, for ever, and of nothing that is not inside.

        None where there is more to ask (`is_inside`)."""
        self._root_path = b""
        self._at: Node | None = None
        """The working directory; None while it is the root, whose path has not been read in this turn."""
        self._here = b""
        """The path that it was seen to have in this turn, below the root's; empty when it was not."""
        self._let_in: list[Node] = []
        """What was let in because of these paths, until `confirm`."""

    def take_process(self, *, has_landlock: bool, enclosed: bool = False) -> None:
        """Use the working directory, which nobody else in this process may; `has_landlock` as it says.

        Landlock knows no allow-list and no patterns: with these, its word is not enough. Nor is it for one that is
        `enclosed`, where the root is that of a mount: what was moved out of a mount counts there as if it were still
        below (seen on Linux 6.18, which goes on at the mount's root where it loses the way). But that root has one path
        for ever, so that a look at where something is takes one call. Raises `OSError`.
        """
        os.fchdir(self._root.fd)
        self.is_alone = True
        self.has_landlock = has_landlock and self._only is None and self._hidden is None and not enclosed
        if enclosed:
            # Another process's mount (`enclosure`) has no path here.
            self._root_path = working_directory()
            self._is_fixed = self._root_path.startswith(b"/")
            if self._is_fixed and self._only is None and self._hidden is None:
                self.inside = self._root_path.rstrip(b"/") + b"/"

    def like(self, boundary: Boundary) -> None:
        """Know of the root what the loop's does, for threads, which have no working directory of their own."""
        self.has_landlock = boundary.has_landlock
        self._root_path = boundary._root_path
        self._is_fixed = boundary._is_fixed
        self.inside = boundary.inside

    # By the working directory

    def before(self, start: Node) -> bytes:
        """Return the path of the directory where a walk begins, inside; empty when that cannot be told."""
        try:
            if self._is_fixed:
                if self._at is not start and start is not self._root:
                    self._go(start)
            elif self._at is None:
                self._root_path = working_directory()
                if start is not self._root:
                    self._go(start)
            elif self._at is not start and start is not self._root:
                self._go(start)
        except OSError:
            return b""
        return self._root_path if start is self._root else self._here

    def _go(self, directory: Node) -> None:
        os.fchdir(directory.fd)
        self._at = directory
        self._here = b""
        here = working_directory()
        if self._is_below(here, self._root_path):
            self._here = here

    def _path_now(self, directory: Node) -> bytes:
        """Work in a directory from now on, and return its path as the kernel tells it now. Raises `OSError`."""
        if self._at is not directory:
            os.fchdir(directory.fd)
            self._at = directory
        self._here = b""
        return working_directory()

    def after(self, directory: Node, expected: bytes, nodes: list[Node]) -> bool:
        """Say whether a walk ended where it must, and let `nodes` in then.

        They were opened one in the other, the last one in `directory`, whose path must be `expected`: the
        one of `before` and the names in between.
        """
        try:
            here = self._path_now(directory)
        except OSError:
            return False
        if here != expected:
            return False
        self._here = here
        self._let_in += nodes
        if len(self._let_in) >= _MOST_LET_IN:
            self.confirm()
        return True

    def confirm(self) -> None:
        """Make sure that the root is still where this turn's paths were compared with; before replies are sent.

        When it was moved, everything that was let in is looked at again. Raises `RemoteProtocolError` when
        that shows something to be outside: the host has put it where the root was, within this turn.
        """
        if self._at is None:
            return
        self._at = None
        if self._is_fixed:
            self._let_in.clear()
            return
        let_in, self._let_in = self._let_in, []
        try:
            os.fchdir(self._root.fd)
        except OSError:
            # The host lets nobody in any more. The working directory is not the root's, and is never asked again.
            self.is_alone = False
        else:
            with suppress(OSError):  # the root was removed
                if working_directory() == self._root_path:
                    return
        try:
            are_inside = all(map(self.is_inside, let_in))
        except OSError:  # no request's error: the head of a large reply may wait already, its data would be missed
            are_inside = False
        if not are_inside:
            msg = "the share was moved while it was walked, and something else is in its place"
            raise RemoteProtocolError(msg)

    # By the links of /proc/self/fd

    def require_inside(self, node: Node) -> None:
        """Refuse a node that no longer lies below the share's root: ENOENT.

        Asked at the moment the guest would gain something new by it. Raises `OSError`.
        """
        if node.parent is None:
            return
        inside = self.inside
        if inside is not None:
            # What `is_inside` does, of a path that the kernel tells: its calls took as long as the link (cProfile).
            try:
                path = os.readlink(b"%d" % node.fd, dir_fd=self._proc)
            except OSError:
                pass  # such as one that is too long
            else:
                if path.startswith(inside) and path != inside:
                    return
        if not self.is_inside(node):
            raise OSError(errno.ENOENT, "moved out of the share")

    def require_directory_inside(self, directory: Node) -> None:
        """Do what `require_inside` does, of what is a directory, as far as is known. Raises `OSError`.

        Where it can, by way of the working directory: 2.4 us instead of a link's 3.2, and 1.8 where the last request of
        the turn has left it there (least of 60 timings on one machine).
        """
        inside = self.inside
        if directory.parent is not None and inside is not None and self.is_alone:
            try:
                here = self._path_now(directory)
            except OSError:
                pass  # no directory, one that may not be entered, or one that was removed
            else:
                if here.startswith(inside) and here != inside:
                    self._here = here
                    return
        self.require_inside(directory)

    @contextmanager
    def kept_by_landlock(self, node: Node) -> Iterator[None]:
        """Do what Landlock refuses outside; no error is told then but that it lies there. Raises `OSError`."""
        try:
            yield
        except OSError:
            self.require_inside(node)
            raise

    def is_inside(self, node: Node) -> bool:
        """Say whether the kernel's path of a node is below the root's. Raises `OSError`."""
        try:
            if self._is_fixed:
                return self._is_below(self._path(node), self._root_path, node)
            root = self._path(self._root)
            while True:
                is_below = self._is_below(self._path(node), root, node)
                before, root = root, self._path(self._root)
                if root == before:
                    return is_below
                # The host has renamed the root, or a directory above it, in between.
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG or self._hidden is not None:
                raise  # what is hidden is told by its path
            return self._climbs_to_root(node)  # the kernel tells paths of up to a page

    def below(self, directory: Node) -> bytes:
        """Return the path of a directory below the root, empty for the root itself.

        Raises `OSError`: ENOENT for what is not inside, ENAMETOOLONG where the kernel tells no path.
        """
        if directory is self._root:
            return b""
        while True:
            root = self._root_path if self._is_fixed else self._path(self._root)
            path = self._path(directory)
            if not self._is_below(path, root, directory):
                raise OSError(errno.ENOENT, "moved out of the share, or hidden")
            if self._is_fixed or root == self._path(self._root):
                return self.relative(path, root)

    def relative(self, path: bytes, root: bytes | None = None) -> bytes:
        """Return a path that is inside as one below the root, whose own is that of `before` unless it is given."""
        return path[len(self._root_path if root is None else root) :].removeprefix(b"/")

    def _path(self, node: Node) -> bytes:
        if node is self._root and self.is_alone and self._at is None:
            with suppress(OSError):  # the host has removed it
                here = working_directory()
                if here.startswith(b"/"):
                    return here
        return os.readlink(b"%d" % node.fd, dir_fd=self._proc)

    def _is_below(self, path: bytes, root: bytes, node: Node | None = None) -> bool:
        """Say whether a path is one of the share's; `node` is whose it is when it may have been removed."""
        above = root if root.endswith(b"/") else root + b"/"
        if not path.startswith(above) or path == above:  # which is how a mount's root tells of what was moved out of it
            return False
        if self._only is None and self._hidden is None:
            return True
        below = path[len(above) :]
        readings = [below]
        if node is not None and below.endswith(_REMOVED):
            without = below.removesuffix(_REMOVED)
            # With links left, nobody can say whether that is a name, or a name that was removed.
            readings = [below, without] if os.fstat(node.fd).st_nlink else [without]
        if self._only is not None and readings[0].partition(b"/")[0] not in self._only:
            return False
        hidden = self._hidden
        if hidden is None:
            return True
        return all(
            hidden.shows(each, lambda: node is None or stat.S_ISDIR(os.fstat(node.fd).st_mode)) for each in readings
        )

    def _climbs_to_root(self, node: Node) -> bool:
        """Say whether going up from the node, or from its directory, comes to the root.

        Raises `OSError`: ENAMETOOLONG for what is too deep to be looked at.
        """
        start = node if stat.S_ISDIR(os.fstat(node.fd).st_mode) or node.parent is None else node.parent
        at = os.dup(start.fd)
        try:
            found = os.fstat(node.fd)
            below = found.st_dev, found.st_ino
            found = os.fstat(at)
            here = found.st_dev, found.st_ino
            steps = 0
            while here != self._root_id:
                steps += 1
                if steps > _MOST_CLIMBED:
                    raise OSError(errno.ENAMETOOLONG, "too deep below the share's root")
                below = here
                above = os.open("..", _UP_FLAGS, dir_fd=at)
                os.close(at)
                at = above
                found = os.fstat(at)
                if (found.st_dev, found.st_ino) == here:
                    return False  # the root of all file systems is its own parent
                here = found.st_dev, found.st_ino
            return self._only is None or any(self._is_entry(name, below) for name in self._only)
        finally:
            os.close(at)

    def _is_entry(self, name: bytes, number: tuple[int, int]) -> bool:
        """Say whether a name of the root is the file of that device and inode."""
        try:
            found = os.stat(name, dir_fd=self._root.fd, follow_symlinks=False)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == number
