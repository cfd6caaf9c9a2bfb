"""Fids: what a guest's numbers stand for.

What lives here: `Fid`. What must not: the table of them (`session`), what is done with one (`handlers`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvmshare.fileserver.listing import Listing
    from uvmshare.fileserver.tree import Node

__all__ = ["Fid"]


class Fid:
    """What a guest's number stands for: a node, for one of the guest's users.

    Clones share the node; each opens it for itself. `io` is the open descriptor or -1; `listing` is
    there when an open directory is. `uid` is that of the attach the fid descends from.
    """

    __slots__ = ("io", "listing", "node", "uid", "writable")

    def __init__(self, node: Node, uid: int) -> None:
        self.node = node
        self.uid = uid
        self.io = -1
        self.writable = False
        self.listing: Listing | None = None

    def take(self, opened: Fid) -> None:
        """Become what was just opened; who speaks through the fid stays."""
        self.node = opened.node
        self.io, opened.io = opened.io, -1
        self.writable = opened.writable
        self.listing = opened.listing

    def close(self) -> None:
        """Close the open file, if it is open."""
        if self.io >= 0:
            io, self.io = self.io, -1
            os.close(io)
