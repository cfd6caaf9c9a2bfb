"""What shares and mounts have in common: the VM has one of each, however many callers want it.

What lives here: what the entries of both managers have in common, which is who holds the thing, its state, the call in
flight for it, and when it is tried again. What must not: any decision. What a first or a last reference sets off, and
what the end of a call means, is the managers'.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from uvmshare.lifecycle.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Hashable

    from uvmshare.lifecycle.operation import Operation
    from uvmshare.lifecycle.transitions import Transitions

__all__ = ["BlockOwner", "Entry"]

S = TypeVar("S", bound=enum.Enum)
T = TypeVar("T", bound=enum.Enum)


class Entry(ABC, Generic[S, T]):
    """References, claims, a state and what is under way. Owners are a set, those without one are counted."""

    __slots__ = ("anonymous", "claims", "last_error", "operation", "owners", "retry", "since", "state")

    transitions: Transitions[S, T]
    """The table of its states; each subclass has its own."""
    retry_first: ClassVar[float]
    """Seconds before what could not be done for it is tried again."""

    def __init__(self, now: float, state: S) -> None:
        self.owners: dict[Hashable, None] = {}
        """The owners that hold it: a set that keeps its order."""
        self.anonymous = 0
        """How many hold it without saying who they are."""
        self.claims = 0
        """How many calls want it that have not returned yet. Unlike a reference, a claim is that one
        call's: it goes away with the call, and whoever else has the same owner is not touched."""
        self.state = state
        """Changed by `apply` alone."""
        self.since = now
        """When callers last saw it change its state; changed by `apply` alone. Seconds since the epoch."""
        self.operation: Operation | None = None
        """The call in flight; at most one."""
        self.last_error: Exception | None = None
        """The last failure of a call for it."""
        self.retry = Retry(self.retry_first)
        """The next attempt, when it is not as it should be: to take it away, or to have it back."""

    def apply(self, trigger: T, now: float) -> None:
        """Make the transition. Raises `InvalidTransition` and changes nothing when there is none."""
        state = self.transitions.following(self.state, trigger)
        if self.seen(state) is not self.seen(self.state):
            self.since = now
        self.state = state

    @staticmethod
    def seen(state: S) -> object:
        """Return what callers see of a state."""
        return state

    # ------------------------------------------------------------------ what is to become of it

    @property
    @abstractmethod
    def live(self) -> bool:
        """Whether it is there, and nothing is under way for it."""

    @property
    @abstractmethod
    def to_be_taken_away(self) -> bool:
        """Whether it may be there though it should not, and no call in flight will change that."""

    @property
    @abstractmethod
    def to_be_restored(self) -> bool:
        """Whether it was lost while somebody holds it, and no call in flight will change that."""

    def under_way(self) -> tuple[Operation, ...]:
        """Return what is under way for it."""
        return () if self.operation is None else (self.operation,)

    # ------------------------------------------------------------------ who holds it

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

    def drop_references(self) -> tuple[Hashable | None, ...]:
        """Take every reference away, because it goes whoever holds it; return whose they were (None: anonymous)."""
        owners = (*self.owners, *(None,) * bool(self.anonymous))
        self.owners.clear()
        self.anonymous = 0
        return owners


class BlockOwner:
    """The owner of the reference that one ``async with`` block holds; equal to itself alone."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<async with block>"
