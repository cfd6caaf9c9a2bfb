"""One share as the Manager keeps it, and what it shows of it.

What lives here: the entry with its references and claims, the call in flight for it, and the snapshot
that callers see. What must not: any decision. Those are `uvmshare.share.manager`'s, which alone
changes an entry, always between two awaits of one event loop, so that there is nothing to lock.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from uvmshare.share.state import INITIAL_STATE, ShareState, next_state

if TYPE_CHECKING:
    from collections.abc import Hashable

    from uvmshare.share.options import AddOptions
    from uvmshare.share.state import Trigger

__all__ = ["Operation", "Share", "ShareInfo"]


@dataclass(frozen=True, slots=True)
class ShareInfo:
    """What `Manager.shares` tells about one share: a snapshot, never changed afterwards."""

    name: str
    """The decimal name, which a guest passes as aname."""
    options: AddOptions
    state: ShareState
    references: int
    """How many hold it: each owner once, and each anonymous reference."""
    owners: tuple[Hashable, ...]
    """The owners among them, in the order in which they came."""
    since: datetime
    """When it entered its state (UTC)."""
    busy: Literal["adding", "removing"] | None
    """The call to the VM that is in flight for it."""
    orphan: bool
    """The answer to a call was lost, so the VM may or may not have it. It is being taken out; adding
    the same options starts a fresh share."""
    last_error: Exception | None
    """The last failure of a call to the VM for it; None when there was none."""


class Operation:
    """A call to the VM in flight for one share, and those who wait for its end.

    Each waiter has a future of its own: cancelling one reaches neither the call nor the other waiters.
    """

    __slots__ = ("_waiters", "error", "task")

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] | None = []
        """None when the operation has ended."""
        self.error: Exception | None = None
        """Why it failed. Set before it ends."""
        self.task: asyncio.Task[None] | None = None
        """The call to the VM. Kept because an event loop keeps no task that waits from the garbage collector."""

    async def wait(self) -> None:
        """Return when the operation has ended. Does not raise its error."""
        if self._waiters is not None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def end(self) -> None:
        """Wake the waiters, in the order in which they came."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)


class Share:
    """One entry of the Manager's tables. Only the Manager changes it."""

    __slots__ = (
        "anonymous",
        "claims",
        "last_error",
        "name",
        "operation",
        "options",
        "orphan",
        "owners",
        "retry",
        "retry_delay",
        "since",
        "state",
    )

    def __init__(self, name: str, options: AddOptions, now: float) -> None:
        self.name = name
        """Immutable."""
        self.options = options
        """Immutable."""
        self.state = INITIAL_STATE
        """Changed by `apply` alone."""
        self.since = now
        """Changed by `apply` alone. Seconds since the epoch."""
        self.owners: dict[Hashable, None] = {}
        """The owners that hold it: a set that keeps its order."""
        self.anonymous = 0
        """How many hold it without saying who they are."""
        self.claims = 0
        """How many calls want it that have not returned yet. Unlike a reference, a claim is that one
        call's: it goes away with the call, and whoever else has the same owner is not touched."""
        self.operation: Operation | None = None
        """The call in flight; at most one. In PENDING it is an add, in any other state a remove."""
        self.orphan = False
        """The answer to a call was lost. An orphan is not found by its options any more."""
        self.last_error: Exception | None = None
        """The last failure of a call to the VM."""
        self.retry: asyncio.TimerHandle | None = None
        """The next attempt to take it out, when nobody wants it and it is still there."""
        self.retry_delay = 0.0
        """How long the attempt after the last one had to wait, in seconds; 0 before the first."""

    def apply(self, trigger: Trigger, now: float) -> None:
        """Make the transition. Raises `InvalidTransition` and changes nothing when there is none."""
        state = next_state(self.state, trigger)
        if state is not self.state:
            self.state = state
            self.since = now

    @property
    def references(self) -> int:
        """How many hold it."""
        return len(self.owners) + self.anonymous

    @property
    def wanted(self) -> bool:
        """Whether anybody holds it, or is about to."""
        return bool(self.owners or self.anonymous or self.claims)

    @property
    def to_be_taken_out(self) -> bool:
        """Whether the VM may have it though it should not, and no call in flight will change that."""
        return self.operation is None and (self.orphan or (self.state is ShareState.ADDED and not self.wanted))

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

    def info(self) -> ShareInfo:
        """Return what callers may see."""
        busy: Literal["adding", "removing"] | None = None
        if self.operation is not None:
            busy = "adding" if self.state is ShareState.PENDING else "removing"
        return ShareInfo(
            name=self.name,
            options=self.options,
            state=self.state,
            references=self.references,
            owners=tuple(self.owners),
            since=datetime.fromtimestamp(self.since, UTC),
            busy=busy,
            orphan=self.orphan,
            last_error=self.last_error,
        )
