"""One share as the Manager keeps it, and what it shows of it.

What lives here: the entry, the snapshot that callers see, and the first wait before what failed is tried again. What
must not: any decision. Those are made in `uvmshare.lifecycle.claims`, `uvmshare.share.engine` and
`uvmshare.share.recovery`, always between two awaits of one event loop, so that there is nothing to lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from uvmshare.lifecycle.entry import Entry
from uvmshare.share.state import TRANSITIONS, ShareLife, ShareTrigger

if TYPE_CHECKING:
    from collections.abc import Hashable

    from uvmshare.share.options import AddOptions
    from uvmshare.share.state import ShareState

__all__ = ["RETRY_FIRST", "Share", "ShareInfo"]

RETRY_FIRST: Final = 1.0
"""Seconds before what could not be done is tried again: long enough for a restarting file server."""


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
    """The answer to a call was lost, so the VM may or may not have it. It is being removed; adding
    the same options starts a fresh share."""
    last_error: Exception | None
    """The last failure of a call to the VM for it; None when there was none."""


class Share(Entry[ShareLife, ShareTrigger]):
    """One entry of the Manager's tables. Only the Manager changes it.

    A call is in flight for it (`operation`) while its state says so (`ShareLife.busy`), and at no other time.
    """

    __slots__ = ("believed", "directory", "found", "name", "options")

    transitions = TRANSITIONS
    retry_first = RETRY_FIRST

    def __init__(self, name: str, options: AddOptions, now: float, state: ShareLife = ShareLife.PENDING) -> None:
        super().__init__(now, state)
        self.name = name
        """Immutable."""
        self.options = options
        """Immutable, but for the directory, which may become known (`ShareEngine.identify`)."""
        self.directory: str | None = None
        """Which directory the VM told that it added, the last time."""
        self.believed = False
        """Whether a VM that says that it has a share of this name has this one: while it is being restored, and when it
        was lost and an attempt to add it again may have succeeded."""
        self.found = False
        """Whether the VM had it before it was restored."""

    @staticmethod
    def seen(state: ShareLife) -> ShareState:
        """Return what callers see of a state."""
        return state.state

    @property
    def live(self) -> bool:
        """Whether the VM has it, and nothing is under way for it."""
        return self.state is ShareLife.ADDED

    @property
    def to_be_taken_away(self) -> bool:
        """Whether the VM may have it though it should not, and no call in flight will change that."""
        return self.state in {ShareLife.INVALID, ShareLife.DOUBTFUL} or (
            self.state in {ShareLife.ADDED, ShareLife.LOST} and not self.wanted
        )

    @property
    def to_be_restored(self) -> bool:
        """Whether somebody holds it, the VM lost it, and no call in flight will change that."""
        return self.state is ShareLife.LOST and self.references > 0

    def info(self) -> ShareInfo:
        """Return what callers may see."""
        return ShareInfo(
            name=self.name,
            options=self.options,
            state=self.state.state,
            references=self.references,
            owners=tuple(self.owners),
            since=datetime.fromtimestamp(self.since, UTC),
            busy=self.state.busy,
            orphan=self.state.orphan,
            last_error=self.last_error,
        )
