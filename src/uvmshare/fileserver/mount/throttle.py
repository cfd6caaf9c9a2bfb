"""A mount held to its rates: requests and bytes a second.

What lives here: `Throttle`, and how much may be used at once. What must not: which rates there are
(`uvmshare.fileserver.limits`).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.limits import Limits

__all__ = ["Throttle"]

_BURST_SECONDS: Final = 0.25
"""How much of a second's worth may be used at once after a pause."""


class Throttle:
    """Holds one mount to its rates, by sleeping in the mount's own process.

    Two buckets that fill with time; a request may overdraw them and then waits until they are even
    again, so that a large one is delayed, never refused.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        on_first_wait: Callable[[], None] | None = None,
    ) -> None:
        self._on_first_wait = on_first_wait
        self._rates = (limits.operations_per_second or 0, limits.bytes_per_second or 0)
        self._levels = [rate * _BURST_SECONDS for rate in self._rates]
        self._clock = clock
        self._sleep = sleep
        self._last = clock()

    @property
    def is_needed(self) -> bool:
        """Whether there is any rate to hold."""
        return any(self._rates)

    def spend(self, operations: int, size: int) -> None:
        """Account for that many requests and bytes, and wait as long as they cost too much."""
        now = self._clock()
        passed, self._last = now - self._last, now
        delay = 0.0
        for index, (rate, cost) in enumerate(zip(self._rates, (operations, size), strict=True)):
            if rate:
                level = min(self._levels[index] + passed * rate, rate * _BURST_SECONDS) - cost
                self._levels[index] = level
                delay = max(delay, -level / rate)
        if delay > 0:
            if self._on_first_wait is not None:
                self._on_first_wait()
                self._on_first_wait = None
            self._sleep(delay)
