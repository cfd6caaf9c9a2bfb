"""What one VM, and one mount of it, may use of the host.

What lives here: the numbers and their reasons, and the `Throttle` that holds a mount to a rate. What
must not: enforcing the others, which each place does, with a line in the log.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Limits", "Throttle"]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one file server. Counts, bytes and seconds; None is no limit."""

    # Of a VM

    connections: int = 2048
    """Connections of any kind. One more is closed at once."""

    half_open: int = 64
    """Connections that have not attached yet. One more, and the oldest of them is closed: a guest
    that opens silent connections cannot keep a good one out."""

    handshake_seconds: float = 10.0
    """How long a connection may take from accept to attach."""

    mounts: int = 1024
    """Mount processes, one a connection that has attached."""

    # Of a mount

    msize: int = 1 << 20
    """The largest message, in bytes. 1 MiB is the most that Linux's fd transport takes."""

    fids: int = 65536
    """Fids. Linux's client holds one a directory entry it remembers, and one an open file."""

    open_files: int = 16384
    """Fids that are open."""

    descriptors: int = 262144
    """Descriptors of a mount process (RLIMIT_NOFILE). A fid holds one for its file and one for each
    directory on the way that no other fid holds: without this, deep trees would use up the host's."""

    locks: int = 4096
    """Byte ranges that are locked, and lock requests that wait."""

    lock_wait_seconds: float = 10.0
    """How long a lock request may wait for its answer. Linux's client then asks again by itself, every
    30 seconds, and can only be interrupted in between."""

    xattr_bytes: int = 4 << 20
    """Values of extended attributes that open fids hold."""

    memory_bytes: int = 512 << 20
    """The data of a mount process (RLIMIT_DATA). A request that needs more is answered with ENOMEM."""

    idle_seconds: float | None = None
    """How long a mount may send nothing, or take none of its replies. Linux's client sends nothing while
    nobody uses the mount."""

    bytes_per_second: int | None = None
    """Bandwidth, of requests and replies together."""

    operations_per_second: int | None = None
    """Requests."""


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
    ) -> None:
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
            self._sleep(delay)
