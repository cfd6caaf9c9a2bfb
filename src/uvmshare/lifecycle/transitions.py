"""A table of states: every transition that a share or a mount can make.

What lives here: what such a table is made of, and the one function that reads it. What must not: a state or a trigger.
Those of a share are `uvmshare.share.state`'s, those of a mount in the guest `uvmshare.mounts.state`'s; the diagrams in
the documentation are drawn from both.

A state of such a table is resting, or a call is under way in it. A call begins with one trigger and ends with one of
several, and nothing else happens meanwhile, unless the table says so.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from uvmshare.errors import InvalidTransition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Transitions", "call", "show", "transitions_of"]


class Seen(Protocol):
    """A state of which callers see less: a state of another enum, and the call that is under way."""

    state: Any
    busy: Any


V = TypeVar("V", bound=Seen)
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


def show(rows: Iterable[tuple[V, object, object]]) -> None:
    """Give each state what callers see of it, and the call that is under way in it."""
    for life, state, busy in rows:
        life.state, life.busy = state, busy


def call(begun: T, ends: Sequence[T], rows: Iterable[tuple[S | None, S, tuple[S, ...]]]) -> dict[tuple[S, T], S]:
    """Return the transitions of one kind of call.

    Each row is a state in which it may begin (None: it is under way already when one gets there), the state meanwhile,
    and what follows each of its `ends`.
    """
    table: dict[tuple[S, T], S] = {}
    for before, during, following in rows:
        if before is not None:
            table[before, begun] = during
        table |= {(during, end): after for end, after in zip(ends, following, strict=True)}
    return table


def transitions_of(
    thing: str, initial: S, table: Mapping[tuple[S, T], S], *, exited: T, gone: S, resting: Iterable[S]
) -> Transitions[S, T]:
    """Return a table of states in which a thing is `gone` when its VM has `exited`, from every state that is resting.

    A state that nothing leaves stays as it is.
    """
    left = {state for state, _ in table}
    exits = {(state, exited): gone for state in resting if state in left}
    return Transitions(thing, initial, MappingProxyType({**table, **exits}))
