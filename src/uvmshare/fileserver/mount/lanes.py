"""Threads for what may never return: some for each file system, so that one that hangs stops no other.

What lives here: `Lanes`, a queue and threads for each file system, and `Clock`, what is to be done later. What must
not: what a job does (`foreign`).

A system call on a file system that hangs cannot be broken off. So a lane has a thread for each of its jobs, up to
`EACH`; others of that file system wait behind them, and no other lane does.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.mount.files.openfile import closes_here

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EACH", "MOST_BYTES", "MOST_WAITING", "Clock", "Lane", "Lanes"]

EACH: Final = 6
"""Threads of one file system: what keeps a server of files over a network busy, and is left behind when it hangs."""

_MOST: Final = 48
"""Threads of all: eight file systems may hang at once, and a ninth waits."""

MOST_WAITING: Final = 1024
"""Requests that wait in one lane. Linux's client has one for each program that waits."""

MOST_BYTES: Final = 16 << 20
"""What they may hold in memory."""

_PATIENCE: Final = 2.0
"""Seconds that a full lane is waited for, once: one that works has room again sooner."""

Job = tuple["Callable[[], None]", int]
"""What is done, and how many bytes it holds until then."""


class Lane:
    """The jobs of one file system.

    `place` is its mount, or the name at which one begins; `device` its number (stat(2)), 0 as long as it is not known.
    """

    __slots__ = ("bytes", "device", "is_stuck", "place", "running", "waiting")

    def __init__(self, place: tuple[int, int, bytes] | str = "", device: int = 0) -> None:
        self.place = place
        self.device = device
        self.waiting: deque[Job] = deque()
        self.running = 0
        self.bytes = 0
        self.is_stuck = False
        """Whether it was full, and had no room in time. Until one of its jobs has ended."""


class Lanes:
    """The threads of one mount. `changed` is told, in any thread, how many jobs run, and on which device one is."""

    def __init__(self, changed: Callable[[int, int], None]) -> None:
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._ended = threading.Condition(self._lock)
        self._ready: dict[Lane, None] = {}
        """Those with jobs that wait, in turn."""
        self._busy: dict[Lane, None] = {}
        """Those with jobs that run, the one that began first at the front."""
        self._running = 0
        self._threads = 0
        self._idle = 0
        self._closed = False
        self._changed = changed

    @property
    def is_busy(self) -> bool:
        """Whether any job runs."""
        return self._running > 0

    def require_room(self, lane: Lane, size: int) -> None:
        """See that a lane takes another job that holds so many bytes.

        One that is full is waited for, for a moment and once, since a file system that works has room again. Raises
        `OSError`: ETIMEDOUT where it does not.
        """

        def has_room() -> bool:
            return len(lane.waiting) < MOST_WAITING and (lane.bytes + size <= MOST_BYTES or not lane.bytes)

        with self._lock:
            if has_room() or (not lane.is_stuck and self._ended.wait_for(has_room, _PATIENCE)):
                return
            lane.is_stuck = True
        raise OSError(errno.ETIMEDOUT, "the file system does not answer, and enough requests wait for it")

    def submit(self, lane: Lane, work: Callable[[], None], size: int = 0) -> None:
        """Have a job done, which never raises. Raises `OSError`: EAGAIN where there is no room for a thread."""
        with self._lock:
            lane.waiting.append((work, size))
            lane.bytes += size
            self._ready[lane] = None
            if lane.running >= EACH:
                return
            if self._idle:
                self._idle -= 1
                self._work.notify()
            elif self._threads < _MOST:
                self._begin_thread(lane)

    def _begin_thread(self, lane: Lane) -> None:
        try:
            threading.Thread(target=self._serve, name="foreign", daemon=True).start()
            self._threads += 1
        except RuntimeError as error:
            if not self._threads:  # nobody would ever come to it
                _, size = lane.waiting.pop()
                lane.bytes -= size
                if not lane.waiting:
                    del self._ready[lane]
                raise OSError(errno.EAGAIN, "no room for another thread") from error

    def withdraw(self, lane: Lane, work: Callable[[], None]) -> bool:
        """Take back a job that waits. Returns False when there is none: it was begun, or never submitted."""
        with self._lock:
            for job in lane.waiting:
                if job[0] is work:
                    lane.waiting.remove(job)
                    lane.bytes -= job[1]
                    if not lane.waiting:
                        del self._ready[lane]
                    self._ended.notify_all()
                    return True
        return False

    def close(self) -> None:
        """Let threads end, once nothing waits. Those that hang are not waited for."""
        with self._lock:
            self._closed = True
            self._work.notify_all()

    def _take(self) -> tuple[Lane, Job] | None:
        """Return the next job of a lane that may have another thread, with the lock held."""
        for lane in self._ready:
            if lane.running < EACH:
                job = lane.waiting.popleft()
                del self._ready[lane]
                if lane.waiting:
                    self._ready[lane] = None
                return lane, job
        return None

    def _serve(self) -> None:
        closes_here()
        while True:
            with self._lock:
                while (taken := self._take()) is None:
                    if self._closed:
                        self._threads -= 1
                        return
                    self._idle += 1
                    self._work.wait()
                lane, (work, size) = taken
                lane.bytes -= size
                self._count(lane, 1)
            del taken
            try:
                work()
            finally:
                del work  # what it held goes before others are told
                with self._lock:
                    self._count(lane, -1)
                    lane.is_stuck = False
                    self._ended.notify_all()

    def _count(self, lane: Lane, change: int) -> None:
        lane.running += change
        self._running += change
        if not lane.running:
            del self._busy[lane]
        elif lane not in self._busy:
            self._busy[lane] = None
        self._changed(self._running, next(iter(self._busy)).device if self._busy else 0)


class Clock:
    """Calls back later, on a thread that is there as long as there is something to call.

    It closes no foreign file itself (`fid.closes_here`): whoever is called later would wait for that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._runs = False

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call back once, no sooner. What is called must not wait."""
        with self._lock:
            heapq.heappush(self._calls, (time.monotonic() + seconds, next(self._numbers), call))
            if self._runs:
                return
            try:
                threading.Thread(target=self._serve, name="clock", daemon=True).start()
                self._runs = True
            except RuntimeError:
                return  # no room for a thread: the next call finds it

    def _serve(self) -> None:
        while True:
            with self._lock:
                if not self._calls:
                    self._runs = False
                    return
                wait = min(self._calls[0][0] - time.monotonic(), _TICK)
                call = heapq.heappop(self._calls)[2] if wait <= 0 else None
            if call is None:
                time.sleep(wait)
            else:
                call()


_TICK: Final = 0.01
"""How late a call that comes in while another is waited for may be."""
