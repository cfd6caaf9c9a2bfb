"""When what failed is tried again: after a while, and after a longer one each time.

What lives here: `Wait`: how waits grow, and the longest; and `Retry`, the one timer of a share or mount. What must not:
how long the first wait is (`uvmshare.share.share`, `uvmshare.mounts.mount`), what is tried, or whether it is worth it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RETRY_LONGEST", "Retry", "Wait"]

RETRY_LONGEST: Final = 60.0
"""Seconds between two attempts at most; the wait doubles up to it, so that what stays broken is not flooded, and
what comes back is in order within a minute."""


class Wait:
    """The waits before one attempt after the other: `first` seconds, then twice the last one, up to `longest`."""

    __slots__ = ("_first", "_longest", "last")

    def __init__(self, first: float, longest: float = RETRY_LONGEST) -> None:
        self._first = first
        self._longest = longest
        self.last = 0.0
        """The last one, in seconds; 0 before the first, and when all is well again."""

    def next(self) -> float:
        """Return how long to wait now, in seconds."""
        self.last = min(2 * self.last, self._longest) or self._first
        return self.last

    def reset(self) -> None:
        """Note that all is well: the next failure waits as the first did."""
        self.last = 0.0


class Retry:
    """The next attempt at one thing. There is one at most, and none until one is asked for.

    A timer rather than a task that sleeps: nothing is left to cancel when the event loop ends.
    """

    __slots__ = ("_timer", "_wait")

    def __init__(self, first: float) -> None:
        self._wait = Wait(first)
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Whether an attempt is to come."""
        return self._timer is not None

    def later(self, again: Callable[[], object]) -> None:
        """Have `again` called after the first wait, and after twice the last one from then on, up to `RETRY_LONGEST`.

        Without effect while an attempt is to come.
        """
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._wait.next(), self._try, again)

    def _try(self, again: Callable[[], object]) -> None:
        self._timer = None
        again()

    def withdraw(self) -> None:
        """Let no attempt begin by itself; how long the next one waits stays as it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def reset(self) -> None:
        """Note that all is well: no attempt is to come, and the next failure waits as the first did."""
        self.withdraw()
        self._wait.reset()
