"""How much a guest does over time: rates from counters, one for each tick of the clock, and only the last of them.

What lives here: `RateHistory`. What must not: asking for counters, or showing rates.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["KEPT", "NOTHING", "Counts", "RateHistory", "summed"]

KEPT: Final = 60
"""Ticks that are kept."""


class Counts(NamedTuple):
    """What was counted since the guest's connections began; or, as a rate, what was counted in a second."""

    operations: float
    errors: float
    received: float
    sent: float


NOTHING: Final = Counts(0.0, 0.0, 0.0, 0.0)


class RateHistory:
    """What one share did in each of the last ticks.

    Between two readings of the counters that lie several ticks apart, each tick has their mean: the counters say no
    more. Where the last reading is older than a tick, what came since is not known.
    """

    def __init__(self) -> None:
        self._rates: deque[Counts] = deque(maxlen=KEPT)
        self._tick = 0
        """The tick of the last reading, which is that of the last rate."""
        self._time = 0.0
        self._counted: Counts | None = None

    def read(self, tick: int, time: float, counted: Counts) -> None:
        """Take a reading, made in this tick and at this time in seconds. A second one in a tick is ignored."""
        before, since = self._counted, time - self._time
        if before is not None and (tick <= self._tick or since <= 0):
            return
        if before is not None:
            # A connection that ended took its numbers with it.
            rate = Counts(*(max(0.0, now - then) / since for now, then in zip(counted, before, strict=True)))
            self._rates.extend([rate] * min(tick - self._tick, KEPT))
        self._tick, self._time, self._counted = tick, time, counted

    def now(self, tick: int, between: int = 1) -> Counts | None:
        """Return the last rate, unless it is older than `between`, the ticks from one reading to the next."""
        return self._rates[-1] if self._rates and tick - self._tick <= between else None

    def series(self, tick: int, between: int = 1) -> list[Counts | None]:
        """Return the rates of the ticks up to this one, oldest first; None where it is not known."""
        # The next reading may be under way: that is no gap.
        gap = max(0, min(tick - self._tick - between, KEPT))
        return [*self._rates, *([None] * gap)][-KEPT:]


def summed(series: Iterable[list[Counts | None]]) -> list[Counts | None]:
    """Add up series that end with the same tick; a tick is known where one of them knows it."""
    total: list[Counts | None] = []
    for each in series:
        total[:0] = [None] * (len(each) - len(total))
        for at, rate in enumerate(each, len(total) - len(each)):
            so_far = total[at]
            if rate is not None:
                total[at] = rate if so_far is None else Counts(*(a + b for a, b in zip(rate, so_far, strict=True)))
    return total
