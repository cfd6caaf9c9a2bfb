"""One mount as the MountManager keeps it, and what it shows of it.

What lives here: the entry and the snapshot that callers see. What must not: any decision. Those are
`uvmshare.mounts.manager`'s, which alone changes an entry, always between two awaits of one event loop, so
that there is nothing to lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from uvmshare.mounts.state import TRANSITIONS, MountState, Trigger
from uvmshare.share.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Hashable

    from uvmshare.mounts.options import MountOptions

__all__ = ["Mount", "MountInfo"]


@dataclass(frozen=True, slots=True)
class MountInfo:
    """What `MountManager.mounts` tells about one mount: a snapshot, never changed afterwards."""

    mount_path: str
    """Where it is in the guest."""
    share_name: str | None
    """The name of the share, which the guest passes as aname; None while a share to be added has none."""
    options: MountOptions
    state: MountState
    references: int
    """How many hold it: each owner once, and each anonymous reference."""
    owners: tuple[Hashable, ...]
    """The owners among them, in the order in which they came."""
    since: datetime
    """When it entered its state (UTC)."""
    busy: Literal["mounting", "unmounting"] | None
    """The call to the guest that is in flight for it."""
    last_error: Exception | None
    """The last failure of a call for it; None when there was none."""


class Mount(Entry[MountState, Trigger]):
    """One entry of the MountManager's table. Only the MountManager changes it."""

    __slots__ = ("lazy", "maybe_in_guest", "options", "share_name", "unmounting")

    transitions = TRANSITIONS

    def __init__(self, options: MountOptions, now: float) -> None:
        super().__init__(now)
        self.options = options
        """Immutable."""
        self.share_name = options.share if isinstance(options.share, str) else None
        """For a share of `AddOptions`: its name while the mount holds it, else None."""
        self.maybe_in_guest = False
        """Whether the guest may have it."""
        self.unmounting = False
        """Whether the call in flight takes it away."""
        self.lazy = False
        """Whether somebody asked to detach it even if it is in use."""

    @property
    def path(self) -> str:
        """Its key: a path of the guest has one mount at most."""
        return self.options.mount_path

    @property
    def mapped(self) -> bool:
        """Whether its share comes and goes with it."""
        return not isinstance(self.options.share, str)

    @property
    def left_behind(self) -> bool:
        """Whether anything of it may be there: in the guest, or a share that it holds."""
        return self.maybe_in_guest or (self.mapped and self.share_name is not None)

    @property
    def to_be_taken_away(self) -> bool:
        """Whether it may be there though it should not, and no call in flight will change that."""
        return self.operation is None and (self.state is MountState.INVALID or not self.wanted)

    @property
    def to_be_mounted(self) -> bool:
        """Whether the guest lost it while somebody holds it, and no call in flight will change that."""
        return self.operation is None and self.state is MountState.RESERVED and self.references > 0

    def info(self) -> MountInfo:
        """Return what callers may see."""
        busy: Literal["mounting", "unmounting"] | None = None
        if self.operation is not None:
            busy = "unmounting" if self.unmounting else "mounting"
        return MountInfo(
            mount_path=self.path,
            share_name=self.share_name,
            options=self.options,
            state=self.state,
            references=self.references,
            owners=tuple(self.owners),
            since=datetime.fromtimestamp(self.since, UTC),
            busy=busy,
            last_error=self.last_error,
        )
