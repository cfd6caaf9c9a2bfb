"""Fids: what a guest's numbers stand for.

What lives here: `Fid`, and extended attributes that one has open. What must not: the table of them (`session`),
what is done with one (`handlers`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uvmshare.fileserver.mount.files.openfile import CreatedFile

if TYPE_CHECKING:
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.openfile import OpenFile
    from uvmshare.fileserver.mount.files.tree import Tree

__all__ = ["Changes", "Fid", "GhostFid", "XattrValue", "XattrWrite"]


@dataclass(frozen=True, slots=True)
class XattrValue:
    """What a Txattrwalk made readable: an extended attribute's value, or the list of names."""

    value: bytes

    @property
    def size(self) -> int:
        """How many bytes there are."""
        return len(self.value)


@dataclass(frozen=True, slots=True)
class Changes:
    """What a Txattrwalk made readable that has no value yet: a read waits until something has changed (`watched`).

    `size` is how many bytes there may be.
    """

    size: int


@dataclass(slots=True)
class XattrWrite:
    """What a Txattrcreate made writable; it is set when the fid is clunked.

    `name` is the host's name, `size` what was announced.
    """

    name: bytes
    size: int
    flags: int
    value: bytearray = field(default_factory=bytearray)


class Fid:
    """What a guest's number stands for: a node, for one of the guest's users.

    Clones share the node; each opens it for itself, as a file or as an extended attribute. `uid` is
    that of the attach the fid descends from.
    """

    __slots__ = ("file", "node", "uid", "xattr")

    def __init__(self, node: Node, uid: int) -> None:
        self.node = node
        self.uid = uid
        self.file: OpenFile | None = None
        self.xattr: XattrValue | Changes | XattrWrite | None = None

    def like(self, node: Node) -> Fid:
        """Return another fid of the same user, for a node that is there."""
        return type(self)(node, self.uid)

    def node_for_clone(self, tree: Tree) -> Node:
        """Return the node for another fid of the same file. Raises `OSError`.

        That of a created file would stay open for writing with the other fid, and not be counted.
        """
        return tree.apart(self.node) if isinstance(self.file, CreatedFile) else self.node

    @property
    def is_open(self) -> bool:
        """Whether the fid was opened, as a file or as an extended attribute."""
        return self.file is not None or self.xattr is not None


class GhostFid(Fid):
    """A fid of the reserved user, as whom an agent repeats in its guest what the host did (`handlers.ghosts`).

    `pretended` is the mode of what is not there any more, 0 where the node is what the fid stands for. A class of its
    own, so that the compiled hot path leaves it alone.
    """

    __slots__ = ("pretended",)

    def __init__(self, node: Node, uid: int, pretended: int = 0) -> None:
        super().__init__(node, uid)
        self.pretended = pretended
