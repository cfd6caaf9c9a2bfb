"""Events of states that a guest may change as often as it likes, without a flood.

What lives here: `Damped`, which tells every change as long as few come, and of a crowd of changes only what they came
to. What must not: what is told, or to whom (`agents`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable

__all__ = ["AT_ONCE", "EVERY", "Damped"]

T = TypeVar("T")

AT_ONCE: Final = 6
"""Changes of one thing that are told at once."""
EVERY: Final = 60.0
"""Seconds after which one more of them is, up to `AT_ONCE` again."""


@dataclass(slots=True, eq=False)
class _Told(Generic[T]):
    """What was told of one thing, and what is so."""

    told: str
    now: str
    what: T
    """The newest that is known with it."""
    room: float
    """How many changes may be told, `at` that time of the loop."""
    at: float
    untold: int = 0
    """Changes since the last that was told."""
    timer: asyncio.TimerHandle | None = None


class Damped(Generic[T]):
    """The states of some things, each known by a key.

    `tell` is called with key, state, what is known, and how many changes before this one were not told. What is told
    last is always what is so, at most `EVERY` seconds late. Belongs to one event loop.
    """

    def __init__(self, tell: Callable[[Hashable, str, T, int], None]) -> None:
        self._tell = tell
        self._things: dict[Hashable, _Told[T]] = {}

    def note(self, key: Hashable, state: str, what: T, *, first: str) -> None:
        """Take note of a state; `first` is that of a thing of which nothing was noted yet."""
        now = asyncio.get_running_loop().time()
        thing = self._things.get(key)
        if thing is None:
            thing = self._things[key] = _Told(first, first, what, AT_ONCE, now)
        thing.what = what
        if state == thing.now:
            return
        thing.now = state
        thing.untold += 1
        self._see_to(key, thing)

    def forget(self, key: Hashable) -> None:
        """Tell nothing more of a thing."""
        thing = self._things.pop(key, None)
        if thing is not None and thing.timer is not None:
            thing.timer.cancel()

    def keep(self, keys: Collection[Hashable]) -> None:
        """Tell nothing more of anything but these."""
        for key in [key for key in self._things if key not in keys]:
            self.forget(key)

    def __len__(self) -> int:
        return len(self._things)

    def close(self) -> None:
        """Tell nothing more of anything."""
        self.keep(())

    def _see_to(self, key: Hashable, thing: _Told[T]) -> None:
        if thing.now == thing.told or thing.timer is not None:
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        thing.room, thing.at = min(AT_ONCE, thing.room + (now - thing.at) / EVERY), now
        if thing.room < 1:
            # The timer goes on while the state is as it was told: the next change finds it.
            thing.timer = loop.call_at(now + (1 - thing.room) * EVERY, partial(self._again, key, thing))
            return
        thing.room -= 1
        untold, thing.untold = thing.untold - 1, 0
        thing.told = thing.now
        self._tell(key, thing.now, thing.what, untold)

    def _again(self, key: Hashable, thing: _Told[T]) -> None:
        thing.timer = None
        thing.room, thing.at = 1.0, asyncio.get_running_loop().time()
        self._see_to(key, thing)
