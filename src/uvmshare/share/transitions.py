"""A table of states: what can become of a thing, and nothing else can.

What lives here: the one function that reads such a table. What must not: a state or a trigger. Those of a share are
`uvmshare.share.state`'s, those of a mount in the guest `uvmshare.mounts.state`'s; the diagrams in the documentation are
drawn from both.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from uvmshare.errors import InvalidTransition

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Transitions"]

S = TypeVar("S", bound=enum.Enum)
T = TypeVar("T", bound=enum.Enum)


@dataclass(frozen=True, slots=True)
class Transitions(Generic[S, T]):
    """The states `S` of one kind of thing, and the triggers `T` that lead from one to another."""

    thing: str
    """What it is that has a state, as messages and diagrams call it."""
    initial: S
    table: Mapping[tuple[S, T], S]
    """Every transition there is. What is not here cannot happen."""

    def following(self, state: S, trigger: T) -> S:
        """Return the state that `trigger` leads to from `state`. Raises `InvalidTransition` when there is none."""
        try:
            return self.table[state, trigger]
        except KeyError:
            msg = (
                f"a {self.thing} that is {state.value} has no transition for {trigger.value!r}; "
                f"please report this as a bug"
            )
            raise InvalidTransition(msg) from None
