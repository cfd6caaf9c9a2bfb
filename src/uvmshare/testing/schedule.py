"""An event loop whose time and order a test decides.

    run(main())    # as asyncio.run does, but an hour of sleep takes no time

What lives here: `VirtualLoop` and `run`. What must not: sockets, threads or clocks (the loop has none, and
what needs them fails at once), or the search through all orders (that is `uvmshare.testing.explore`).
"""

from __future__ import annotations

import asyncio
import gc
import heapq
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
    from contextvars import Context

    # typeshed calls the 30 methods for sockets and processes abstract. They are not: they raise NotImplementedError.
    _Loop = asyncio.BaseEventLoop
else:
    _Loop = asyncio.AbstractEventLoop

__all__ = ["Deadlock", "Noise", "VirtualLoop", "run"]

_SHORTEST = 1e-9
"""Seconds that pass where somebody waits at all."""
T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class Deadlock(AssertionError):
    """Something waits, and nothing can happen any more that would wake it."""


class Noise(AssertionError):
    """asyncio complained: a task destroyed while pending, an exception never retrieved."""


class VirtualLoop(_Loop):
    """An asyncio event loop in which only callbacks and timers exist, and no time passes by itself.

    Ready callbacks run in the order in which they came, as in every asyncio loop. When none is ready, the
    clock jumps to the next timer. `step` runs one callback, for those who want to do something in between.
    """

    def __init__(self) -> None:
        self.noise: list[str] = []
        """What asyncio complained of."""
        self._now = 0.0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0
        self._closed = False
        self._running = False

    # What a test does with it.

    @property
    def ready(self) -> bool:
        """Whether a callback is ready to run."""
        self._discard_cancelled()
        return bool(self._ready)

    @property
    def next_timer(self) -> float | None:
        """When the next timer fires, in seconds from now; None when there is none."""
        self._discard_cancelled()
        return self._timers[0][0] - self._now if self._timers else None

    @property
    def pending(self) -> tuple[tuple[asyncio.Handle, ...], tuple[tuple[float, asyncio.TimerHandle], ...]]:
        """What is ready, in order, and the timers, with the seconds from now and in order."""
        ready = tuple(handle for handle in self._ready if not handle.cancelled())
        timers = tuple((when - self._now, handle) for when, _, handle in sorted(self._timers) if not handle.cancelled())
        return ready, timers

    def step(self) -> None:
        """Run the callback that is first in the queue."""
        self._discard_cancelled()
        handle = self._ready.popleft()
        with self._as_running_loop():
            handle._run()  # noqa: SLF001  an event loop is what runs handles

    def tick(self) -> None:
        """Move the clock to the next timer and make what is due ready."""
        self._discard_cancelled()
        self._now = max(self._now, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._now:
            self._ready.append(heapq.heappop(self._timers)[2])

    def settle(self) -> None:
        """Run callbacks until none is ready. The clock stays."""
        while self.ready:
            self.step()

    @contextmanager
    def _as_running_loop(self) -> Iterator[None]:
        self._running = True
        asyncio._set_running_loop(self)  # noqa: SLF001  asyncio.events gives it to implementations of loops
        try:
            yield
        finally:
            asyncio._set_running_loop(None)  # noqa: SLF001  as above
            self._running = False

    def _discard_cancelled(self) -> None:
        while self._ready and self._ready[0].cancelled():
            self._ready.popleft()
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)

    # What asyncio does with it.

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Add to the queue."""
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Add a timer, `delay` seconds from now. Of more than 0, at least a nanosecond passes, as it does on a machine.

        Or whoever waits for the rest of a time, as another clock has it, would never see the end of it: so small a part
        of a second is lost beside the time that the loop has.
        """
        delay = max(delay, _SHORTEST) if delay > 0 else delay
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Add a timer. Timers of the same moment fire in the order in which they were made."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to count: cancelled timers are discarded when their turn comes."""

    def time(self) -> float:
        """Return the virtual time in seconds; it starts at 0."""
        return self._now

    def create_future(self) -> asyncio.Future[T]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: object = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Start a task."""
        return asyncio.Task(coro, loop=self, name=None if name is None else str(name), context=context)

    def call_exception_handler(self, context: dict[str, object]) -> None:
        """Keep the complaint: `run` and `explore` raise it."""
        self.noise.append(f"{context.get('message')}: {context.get('exception') or context.get('task')!r}")

    def get_debug(self) -> bool:
        """Say no: debug mode measures real time."""
        return False

    def set_debug(self, enabled: bool) -> None:  # noqa: FBT001  the signature is asyncio's
        """Do nothing (asyncio.Runner asks when it is told to)."""

    def is_running(self) -> bool:
        """Tell whether a callback is running."""
        return self._running

    def is_closed(self) -> bool:
        """Tell whether `close` was called."""
        return self._closed

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        """Run until the future is done, and return its result. Raises `Deadlock` if it never will be."""
        task = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]  # typeshed: no generators here
        while not task.done():
            if self.ready:
                self.step()
            elif self._timers:
                self.tick()
            else:
                msg = f"{task!r} waits for ever"
                raise Deadlock(msg)
        return task.result()

    async def shutdown_asyncgens(self) -> None:
        """Do nothing: asynchronous generators are not followed."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109  as asyncio has it from Python 3.12 on
        """Do nothing: there are no threads."""

    def close(self) -> None:
        """Forget what never ran."""
        self._ready.clear()
        self._timers.clear()
        self._closed = True


def run(main: Coroutine[object, object, T]) -> T:
    """Run a coroutine in a `VirtualLoop`, and end what it leaves behind, as `asyncio.run` does.

    Raises `Deadlock` if it can never end, and `Noise` if asyncio complained.
    """
    loop = VirtualLoop()
    try:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            return runner.run(main)
    finally:
        gc.collect()  # asyncio complains when a forgotten task is destroyed
        if loop.noise:
            raise Noise("; ".join(loop.noise))
