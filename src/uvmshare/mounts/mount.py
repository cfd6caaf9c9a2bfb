"""One mount as the MountManager keeps it, and what it shows of it.

What lives here: the entry and the snapshot that callers see. What must not: any decision. Those are
`uvmshare.mounts.engine`'s and `uvmshare.mounts.manager`'s, always between two awaits of one event loop, so
that there is nothing to lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal

from uvmshare.lifecycle.entry import Entry
from uvmshare.mounts.interfaces import TellsReach
from uvmshare.mounts.state import TRANSITIONS, MountLife, MountState, MountTrigger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Hashable

    from uvmshare.lifecycle.operation import Operation
    from uvmshare.mounts.options import MountOptions

__all__ = ["RETRY_FIRST", "Mount", "MountInfo"]

RETRY_FIRST: Final = 0.5
"""Seconds before what could not be taken away, or mounted again, is tried again: a guest that is started again
needs about that long until its agent answers."""


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
    busy: Literal["mounting", "unmounting", "revoking"] | None
    """The call to the guest that is in flight for it; or that its share is being removed without the guest."""
    last_error: Exception | None
    """The last failure of a call for it; None when there was none."""
    chosen: str | None = None
    """What cache and msize came to in the guest, in its kernel's words; None before it was mounted, and when its agent
    does not tell."""
    no_events: str | None = None
    """Why what is changed on the host is no event in the guest, although the options ask for that; None while it is,
    and before it was mounted."""
    taken_from: tuple[Hashable, ...] = ()
    """The owners who held it until it was to be taken away whatever the guest says; None among them for anonymous."""
    unreachable_since: datetime | None = None
    """Since when the guest's agent is out of reach (UTC): `state` is then what was known before. None while it is
    reached, and for an agent that does not tell."""


class Mount(Entry[MountLife, MountTrigger]):
    """One entry of the MountManager's table. Only the MountManager changes it.

    A call to the guest is in flight for it (`operation`) while its state says so (`MountLife.busy`), and at no other
    time.
    """

    __slots__ = (
        "_agent",
        "adding",
        "again",
        "asked_name",
        "broken",
        "chosen",
        "grace",
        "lazy",
        "maybe_in_guest",
        "no_events",
        "options",
        "revocation",
        "share_name",
        "taken_from",
    )

    transitions = TRANSITIONS
    retry_first = RETRY_FIRST

    def __init__(self, options: MountOptions, now: float, agent: object = None) -> None:
        super().__init__(now, TRANSITIONS.initial)
        self.options = options
        """Immutable."""
        self._agent = agent
        """Whom to ask since when it is out of reach, if it tells."""
        self.share_name = options.share if isinstance(options.share, str) else None
        """For a share of `AddOptions`: its name while the mount holds it, else None."""
        self.asked_name = self.share_name
        """The name under which the guest was asked for it, also when the share is gone: agents want it back."""
        self.chosen: str | None = None
        """What the guest told when it mounted it, the last time."""
        self.no_events: str | None = None
        """Why the guest has no events of it, as the guest told the last time."""
        self.broken = False
        """Whether the agent has said that its connection is lost, and was not heard to have mounted it again."""
        self.again = 0
        """How often the agent has said that it mounted it again by itself."""
        self.adding: Operation | None = None
        """The call that adds its share, while that is in flight."""
        self.revocation: Operation | None = None
        """While its share is to go, or goes, whatever the guest does; it ends when the share is gone, when that failed,
        or when somebody wants the mount again."""
        self.grace: asyncio.TimerHandle | None = None
        """When the share is removed; None once that has begun."""
        self.taken_from: dict[Hashable, None] = {}
        """Who held it before that."""
        self.maybe_in_guest = False
        """Whether the guest may have it."""
        self.lazy = False
        """Whether somebody asked to detach it even if it is in use."""

    @staticmethod
    def seen(state: MountLife) -> MountState:
        """Return what callers see of a state."""
        return state.state

    @property
    def path(self) -> str:
        """Its key: a path of the guest has one mount at most."""
        return self.options.mount_path

    @property
    def mapped(self) -> bool:
        """Whether its share comes and goes with it."""
        return not isinstance(self.options.share, str)

    @property
    def doomed(self) -> bool:
        """Whether it goes: nobody wants it, or nobody can have it any more."""
        return self.state.state in {MountState.INVALID, MountState.REVOKED} or not self.wanted

    @property
    def is_revoked(self) -> bool:
        """Whether its share goes without the guest, or has gone."""
        return self.state.state is MountState.REVOKED

    @property
    def holds_share(self) -> bool:
        """Whether a share is there, or may be, that comes and goes with it."""
        return self.mapped and (self.share_name is not None or self.adding is not None)

    @property
    def taking_share(self) -> bool:
        """Whether its share is being removed now, without the guest."""
        return self.revocation is not None and self.grace is None

    @property
    def left_behind(self) -> bool:
        """Whether anything of it may be there: in the guest, or a share that it holds."""
        return self.maybe_in_guest or (self.mapped and self.share_name is not None)

    @property
    def live(self) -> bool:
        """Whether the guest has it, and is not being asked to unmount it."""
        return self.state is MountLife.MOUNTED

    @property
    def to_be_taken_away(self) -> bool:
        """Whether it may be there though it should not, and no call in flight will change that."""
        return self.state.busy is None and self.doomed

    @property
    def to_be_restored(self) -> bool:
        """Whether the guest lost it while somebody holds it, and no call in flight will change that."""
        return self.state is MountLife.LOST and self.references > 0

    def under_way(self) -> tuple[Operation, ...]:
        """Return what is under way for it, in the guest and for its share."""
        return super().under_way() if self.revocation is None else (*super().under_way(), self.revocation)

    def refer(self, owner: Hashable | None) -> None:
        """Give `owner` a reference, and with it what was taken from them."""
        super().refer(owner)
        self.taken_from.pop(owner, None)

    def drop_references(self) -> tuple[Hashable | None, ...]:
        """Take every reference away, because the mount goes whoever held it; return whose they were."""
        owners = super().drop_references()
        self.taken_from.update(dict.fromkeys(owners))
        return owners

    def info(self) -> MountInfo:
        """Return what callers may see."""
        return MountInfo(
            mount_path=self.path,
            share_name=self.share_name,
            options=self.options,
            state=self.state.state,
            references=self.references,
            owners=tuple(self.owners),
            since=datetime.fromtimestamp(self.since, UTC),
            busy="revoking" if self.taking_share else self.state.busy,
            last_error=self.last_error,
            chosen=self.chosen,
            no_events=self.no_events,
            taken_from=tuple(self.taken_from),
            unreachable_since=self._agent.reach.unreachable_since if isinstance(self._agent, TellsReach) else None,
        )
