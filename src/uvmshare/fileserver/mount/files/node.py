"""One file of a share: `Node`, a descriptor of its path, and what of it may never answer.

What lives here: how long such a descriptor lives. What must not: how one is reached (`tree`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from uvmshare.directory import place_of
from uvmshare.fileserver.filesystems import LOCAL_NUMBERS
from uvmshare.fileserver.syscalls import file_system_type

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ForeignNode", "Node", "Root", "is_foreign"]


def is_foreign(descriptor: int) -> bool:
    """Say whether a file is on a file system that may never answer. Waits for it. Raises nothing."""
    try:
        return file_system_type(descriptor) not in LOCAL_NUMBERS
    except OSError:
        return True


class Node:
    """One file of the tree: an O_PATH descriptor that lives as long as a fid, or a node below, holds it.

    `parent` is the directory it was reached through, None for the root; `name` is its name there. A descriptor that
    was let go meanwhile (`idle`) is opened again when it is asked for, which raises `OSError` where the file is gone;
    `seal` then says which file it was, and is None otherwise.
    """

    __slots__ = ("fd", "name", "parent", "seal")
    is_foreign = False
    """Whether its file system may never answer: then nothing is asked of it in the loop's thread (`foreign`)."""
    mount = ""
    device = 0

    def __init__(self, fd: int, parent: Node | None, name: bytes) -> None:
        self.fd = fd
        self.parent = parent
        self.name = name
        self.seal: int | None = None

    if not TYPE_CHECKING:  # a type checker would take every name for an attribute

        def __getattr__(self, name: str) -> int:
            # Python asks here for an attribute that is not set. So a descriptor that is there costs nothing.
            if name != "fd":
                raise AttributeError(name)
            top = self
            while top.parent is not None:
                top = top.parent
            top.find_again(self)
            return self.fd

    def let_go(self, seal: int) -> None:
        """Close the descriptor; `seal` tells the file from any other."""
        descriptor = self.fd
        self.seal = seal
        del self.fd
        os.close(descriptor)

    def give_away(self) -> int:
        """Return the descriptor, which is the caller's from now on."""
        descriptor = self.fd
        self.seal = 0  # nothing to close
        return descriptor

    def took(self, descriptor: int) -> None:
        """Have a descriptor of the same file again."""
        self.fd = descriptor
        self.seal = None

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # The last fid that knows a node drops it, and CPython calls this at once: no table of
        # descriptors that could disagree with the fids.
        if self.seal is None:
            close(self.fd)


class ForeignNode(Node):
    """A file on a file system that may never answer: that of `mount`, whose number is `device` (stat(2)).

    Its own mount and device are those of its parent, unless others are given.
    """

    __slots__ = ("device", "mount")
    is_foreign = True

    def __init__(self, fd: int, parent: Node | None, name: bytes, place: tuple[str, int] | None = None) -> None:
        super().__init__(fd, parent, name)
        self.mount, self.device = place or ((parent.mount, parent.device) if parent is not None else ("", 0))


class Root(Node):
    """The root, whose descriptor is the export's. `find_again` opens what was let go below it."""

    __slots__ = ("device", "find_again", "is_foreign", "mount")

    def __init__(self, fd: int) -> None:
        super().__init__(fd, None, b"")
        self.mount, self.device = place_of(fd)
        self.is_foreign = is_foreign(fd)
        self.find_again: Callable[[Node], None]

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        """Leave the descriptor open."""
