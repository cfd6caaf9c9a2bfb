"""When leases end: their deadlines, on a clock that is given.

What lives here: `Deadlines`, and which of them are over. What must not: what is leased, or what happens when a lease
ends (`leases`).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

__all__ = ["Deadlines", "Lease"]

K = TypeVar("K", bound="Hashable")


@dataclass(frozen=True, slots=True)
class Lease:
    """How long a lease is, in seconds, and when it ends, by the clock of its `Deadlines`."""

    seconds: float
    deadline: float


class Deadlines(Generic[K]):
    """Deadlines by key. Looking for those that are over costs nothing for those that are not."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._leases: dict[K, Lease] = {}
        self._order: list[tuple[float, int, K]] = []
        """A heap of (deadline, tie breaker, key). What was renewed or dropped since stays until it comes up."""
        self._entries = 0

    def __len__(self) -> int:
        return len(self._leases)

    def __contains__(self, key: K) -> bool:
        return key in self._leases

    def get(self, key: K) -> Lease | None:
        """Return the lease of a key, if it has one."""
        return self._leases.get(key)

    def left(self, key: K) -> float | None:
        """Return the seconds left, never below 0; None without a lease."""
        lease = self._leases.get(key)
        return None if lease is None else max(0.0, lease.deadline - self._clock())

    def grant(self, key: K, seconds: float) -> None:
        """Let the lease of a key run afresh for `seconds`."""
        self._put(key, Lease(seconds, self._clock() + seconds))

    def postpone(self, key: K, seconds: float) -> None:
        """Let a lease end `seconds` from now, and be as long as before when it is renewed."""
        lease = self._leases.get(key)
        if lease is not None:
            self._put(key, Lease(lease.seconds, self._clock() + seconds))

    def _put(self, key: K, lease: Lease) -> None:
        self._leases[key] = lease
        self._entries += 1
        heapq.heappush(self._order, (lease.deadline, self._entries, key))
        if len(self._order) > 64 + 4 * len(self._leases):
            self._order = [(each.deadline, n, k) for n, (k, each) in enumerate(self._leases.items())]
            self._entries = len(self._order)
            heapq.heapify(self._order)

    def renew(self, key: K) -> bool:
        """Let a lease run afresh for as long as before; False when there is none."""
        lease = self._leases.get(key)
        if lease is not None:
            self.grant(key, lease.seconds)
        return lease is not None

    def drop(self, key: K) -> bool:
        """Forget the lease of a key; False when there was none."""
        return self._leases.pop(key, None) is not None

    def held(self) -> tuple[K, ...]:
        """Return every key that has a lease."""
        return tuple(self._leases)

    def due(self) -> list[K]:
        """Return the keys whose leases are over, longest over first. They stay until they are dropped or granted."""
        now = self._clock()
        over: list[K] = []
        again: list[tuple[float, int, K]] = []
        while self._order and self._order[0][0] <= now:
            entry = heapq.heappop(self._order)
            lease = self._leases.get(entry[2])
            if lease is not None and lease.deadline == entry[0]:
                again.append(entry)
                over.append(entry[2])
        for entry in again:
            heapq.heappush(self._order, entry)
        return list(dict.fromkeys(over))

    def next_deadline(self) -> float | None:
        """Return when the next lease ends, by the clock; None when there is none."""
        while self._order:
            deadline, _, key = self._order[0]
            lease = self._leases.get(key)
            if lease is not None and lease.deadline == deadline:
                return deadline
            heapq.heappop(self._order)
        return None
