"""Who holds a thing of which the VM has one, however many want it: a share, or a mount in the guest.

What lives here: the count. What must not: what a first or a last reference sets off; that is the managers'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable

__all__ = ["BlockOwner", "References"]


class References:
    """References and claims. Owners are a set, those without one are counted."""

    __slots__ = ("anonymous", "claims", "owners")

    def __init__(self) -> None:
        self.owners: dict[Hashable, None] = {}
        """The owners that hold it: a set that keeps its order."""
        self.anonymous = 0
        """How many hold it without saying who they are."""
        self.claims = 0
        """How many calls want it that have not returned yet. Unlike a reference, a claim is that one
        call's: it goes away with the call, and whoever else has the same owner is not touched."""

    @property
    def references(self) -> int:
        """How many hold it."""
        return len(self.owners) + self.anonymous

    @property
    def wanted(self) -> bool:
        """Whether anybody holds it, or is about to."""
        return bool(self.owners or self.anonymous or self.claims)

    def held_by(self, owner: Hashable | None) -> bool:
        """Whether `owner` (None: anybody anonymous) holds a reference."""
        return self.anonymous > 0 if owner is None else owner in self.owners

    def refer(self, owner: Hashable | None) -> None:
        """Give `owner` a reference, unless it has one; None always gets one more."""
        if owner is None:
            self.anonymous += 1
        else:
            self.owners[owner] = None

    def unrefer(self, owner: Hashable | None) -> None:
        """Take the reference of `owner` away. It must hold one."""
        if owner is None:
            self.anonymous -= 1
        else:
            del self.owners[owner]


class BlockOwner:
    """The owner of the reference that one ``async with`` block holds; equal to itself alone."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<async with block>"
