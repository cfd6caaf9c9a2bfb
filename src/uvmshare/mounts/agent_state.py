"""Whether the agent in a guest is reached: the states of that, the one table of transitions, and what callers see.

What lives here: `AgentEntry`, which an `AgentClient` owns and alone changes, and `Reach`, the snapshot of it. What must
not: how an agent is reached, or how its silence is noticed (`uvmshare.mounts.connection` asks it for a word).

It is built as `uvmshare.mounts.state` is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from uvmshare.lifecycle.transitions import Transitions
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TRANSITIONS", "AgentEntry", "AgentLife", "AgentState", "AgentTrigger", "Reach"]

AgentState = Literal["reached", "unreachable"]


class AgentLife(enum.Enum):
    """Where the connection with an agent is in its life."""

    SOUGHT = "sought"
    """It was not reached yet since the client was started."""
    REACHED = "reached"
    """It has said hello, and a word whenever it was asked for one since."""
    LOST = "lost"
    """Its connection ended, or it said nothing any more. It is sought again."""
    CLOSED = "closed"
    """The client was closed: nobody seeks it any more."""


class AgentTrigger(enum.Enum):
    """What can happen to it."""

    GREETED = "greeted"
    CUT = "connection ended"
    CLIENT_CLOSED = "client closed"


TRANSITIONS: Final = Transitions(
    thing="guest's agent",
    initial=AgentLife.SOUGHT,
    table=MappingProxyType(
        {
            (AgentLife.SOUGHT, AgentTrigger.GREETED): AgentLife.REACHED,
            (AgentLife.REACHED, AgentTrigger.CUT): AgentLife.LOST,
            (AgentLife.LOST, AgentTrigger.GREETED): AgentLife.REACHED,
            **{(life, AgentTrigger.CLIENT_CLOSED): AgentLife.CLOSED for life in AgentLife},
        }
    ),
)


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether an agent is reached: a snapshot, never changed afterwards."""

    state: AgentState
    """"unreachable" also before it was reached for the first time."""
    since: datetime
    """When that began (UTC)."""
    losses: int
    """How often it was lost since the client was started."""
    error: str | None
    """Why it is not reached, as far as that is known; None while it is."""

    @property
    def unreachable_since(self) -> datetime | None:
        """Since when it is out of reach (UTC); None while it is reached."""
        return self.since if self.state == "unreachable" else None


class AgentEntry:
    """The reach of one agent. Only its client changes it, in one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives the seconds since the epoch."""
        self._clock = clock
        self._life = TRANSITIONS.initial
        self._since = clock()
        self._losses = 0

    def apply(self, trigger: AgentTrigger) -> None:
        """Change the state as the table says. Raises `InvalidTransition`, and changes nothing then."""
        before, self._life = self._life, TRANSITIONS.following(self._life, trigger)
        if (before is AgentLife.REACHED) is not (self._life is AgentLife.REACHED):
            self._since = self._clock()
        self._losses += self._life is AgentLife.LOST

    def seen(self, why: Exception | None) -> Reach:
        """Return what callers may see; `why` is the last failure to reach it."""
        reached = self._life is AgentLife.REACHED
        return Reach(
            state="reached" if reached else "unreachable",
            since=datetime.fromtimestamp(self._since, UTC),
            losses=self._losses,
            error=None if reached or why is None else reason_of(why),
        )
