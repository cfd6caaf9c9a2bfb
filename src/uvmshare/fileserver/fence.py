"""Until when a file server may serve: eight bytes that its supervisor writes, and each mount process reads.

What lives here: `Fence`, and the look at it before each request. What must not: when it is
moved on (`device`).

The time is that of CLOCK_BOOTTIME (clock_gettime(2)), which goes on while the machine is suspended, and which nobody
sets. A mount process looks before it carries out a request: so the fence holds also when the daemon and the supervisor
are dead, and when a process was stopped for a while. What the kernel has begun by then cannot be taken back.
"""

from __future__ import annotations

import errno
import mmap
import os
import time
from typing import TYPE_CHECKING, TypeVar

from uvmshare.errors import FileServerError, RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Fence"]

S = TypeVar("S")

_SIZE = 8
_LATEST = (1 << 63) - 1


class Fence:
    """The time until which one VM's file server may serve. It begins with 0, which is long past.

    `path` is a file that a supervisor which takes over finds again; None for memory that has no name. Raises
    `FileServerError`.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is None:
            memory = mmap.mmap(-1, _SIZE)
        else:
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    # Room that is promised: a page that the disk has no room for would be the process's end (SIGBUS).
                    os.posix_fallocate(descriptor, 0, _SIZE)
                    memory = mmap.mmap(descriptor, _SIZE)
                finally:
                    os.close(descriptor)
            except OSError as error:
                msg = f"cannot write the fence {path!r}: {error.strerror or error}: make room there"
                raise FileServerError(msg) from error
        self._until = memoryview(memory).cast("Q")  # one store and one load: nobody sees half a number

    @property
    def left(self) -> float:
        """Seconds until it is past; 0 or less when it is."""
        return (self._until[0] - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9

    def move(self, until: float) -> None:
        """Serve until then, in seconds of CLOCK_BOOTTIME."""
        self._until[0] = min(max(0, int(until * 1e9)), _LATEST)

    @property
    def is_past(self) -> bool:
        """Whether nothing may be served now."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) >= self._until[0]

    def require(self) -> None:
        """See that it may be served. Raises `RemoteProtocolError`, which ends the connection."""
        if self.is_past:
            msg = "the time is over until which this host may serve the VM (its fence)"
            raise RemoteProtocolError(msg)

    def require_beside(self) -> None:
        """As `require`, for a thread, which ends no connection. Raises `OSError`: EIO."""
        if self.is_past:
            raise OSError(errno.EIO, "the time is over until which this host may serve the VM (its fence)")

    def looked_at_beside(self, work: Callable[[], bytes]) -> Callable[[], bytes]:
        """Return what a thread is to do, with a look at the fence before it."""

        def looking() -> bytes:
            self.require_beside()
            return work()

        return looking

    def looked_at(
        self, served: list[Callable[[S, int, int, int, int], bytes | None] | None]
    ) -> list[Callable[[S, int, int, int, int], bytes | None] | None]:
        """Return what serves each message type, with a look at the fence before it."""
        return [None if serve is None else self._looking(serve) for serve in served]

    def _looking(
        self, serve: Callable[[S, int, int, int, int], bytes | None]
    ) -> Callable[[S, int, int, int, int], bytes | None]:
        until, clock, which = self._until, time.clock_gettime_ns, time.CLOCK_BOOTTIME

        def looking(session: S, tag: int, fid: int, start: int, stop: int) -> bytes | None:
            if clock(which) >= until[0]:
                self.require()
            return serve(session, tag, fid, start, stop)

        return looking
