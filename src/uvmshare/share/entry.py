"""A thing of which the VM has one, however many want it: a share, or a mount in the guest.

What lives here: what the entries of both managers have in common, which is who holds the thing, its state, the call in
flight for it, and when it is tried again. What must not: any decision. What a first or a last reference sets off, and
what the end of a call means, is the managers'.
"""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from uvmshare.share.operation import Operation
    from uvmshare.share.transitions import Transitions

__all__ = ["RETRY_LONGEST", "BlockOwner", "Entry"]

S = TypeVar("S", bound=enum.Enum)
T = TypeVar("T", bound=enum.Enum)

RETRY_LONGEST: Final = 60.0
"""Seconds between two attempts at most; the wait doubles up to it, so that what stays broken is not flooded, and
what comes back is in order within a minute."""


class Entry(Generic[S, T]):
    """References, claims, a state and what is under way. Owners are a set, those without one are counted."""

    __slots__ = ("anonymous", "claims", "last_error", "operation", "owners", "retry", "retry_delay", "since", "state")

    transitions: Transitions[S, T]
    """The table of its states; each subclass has its own."""

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
        self.retry: asyncio.TimerHandle | None = None
        """The next attempt, when it is not as it should be: to take it away, or to have it back."""
        self.retry_delay = 0.0
        """How long the last attempt had to wait, in seconds; 0 before the first, and when all is well again."""

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

    # ------------------------------------------------------------------ what nobody waits for

    def retry_later(self, first: float, again: Callable[[], None]) -> None:
        """Have `again` called after `first` seconds, and after twice as long each time, up to `RETRY_LONGEST`.

        A timer rather than a task that sleeps: nothing is left to cancel when the event loop ends.
        """
        self.retry_delay = min(2 * self.retry_delay, RETRY_LONGEST) or first
        self.retry = asyncio.get_running_loop().call_later(self.retry_delay, again)

    def cancel_retry(self) -> None:
        """Let no attempt begin by itself; how long the next one waits stays as it is."""
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None


class BlockOwner:
    """The owner of the reference that one ``async with`` block holds; equal to itself alone."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<async with block>"
