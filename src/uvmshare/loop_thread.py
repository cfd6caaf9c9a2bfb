"""An event loop in a thread of its own, for objects whose callers have threads instead.

What lives here: `LoopThread`, and `Claim`, by which a thread gets a share or a mount there. What must not: what
runs there.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from uvmshare.lifecycle.entry import Entry
from uvmshare.process import require_process

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable

    from uvmshare.errors import UvmshareError
    from uvmshare.lifecycle.claims import Claims

__all__ = ["Claim", "LoopThread"]

T = TypeVar("T")
E = TypeVar("E", bound=Entry[Any, Any])
O = TypeVar("O")  # noqa: E741  for options


class LoopThread:
    """The event loop in which `owner` lives, and its thread. `ended` makes the error of whoever comes too late."""

    def __init__(self, owner: object, ended: Callable[[], UvmshareError]) -> None:
        self._owner = owner
        self._why_ended = ended
        self._process = os.getpid()
        self._lock = threading.Lock()
        """Guards `_ended` together with handing something to the loop: after it is set, nothing is."""
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._result: concurrent.futures.Future[None] = concurrent.futures.Future()
        """How the thread ended."""
        self._thread: threading.Thread | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing runs there any more."""
        return self._ended

    @property
    def is_of_another_process(self) -> bool:
        """Whether this is a forked child of the process that made it, where nothing of it may be used."""
        return os.getpid() != self._process

    def start(self, make: Callable[[AsyncExitStack], Coroutine[Any, Any, T]]) -> T:
        """Start the thread, and return what `make` makes there. What that enters in the stack is left in the end.

        Raises what `make` raises; then there is no thread.
        """
        ready: concurrent.futures.Future[T] = concurrent.futures.Future()

        async def main() -> None:
            async with AsyncExitStack() as stack:
                ready.set_result(await make(stack))
                await self._end.wait()

        self._thread = threading.Thread(target=self._serve, args=(main(), ready), name="uvmshare", daemon=True)
        try:
            self._thread.start()
            return ready.result()
        except BaseException:
            self.post(self._cancel_everything)  # which ends the thread, if it has not ended
            raise

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there and return its result. When the caller is interrupted, it is cancelled.

        Raises what `ended` makes when the loop has ended, or ends meanwhile.
        """
        future = self._submit(coroutine)
        try:
            return self._result_of(future)
        except BaseException:
            future.cancel()
            raise

    def run_to_its_end(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """As `run`, but it is not cancelled when the caller is interrupted."""
        return self._result_of(self._submit(coroutine))

    def post(self, callback: Callable[..., None], *args: object) -> None:
        """Have something done in the loop, after what was handed to it before. Not done when it has ended."""
        if self.is_of_another_process:
            return
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(callback, *args)

    def stop(self) -> None:
        """End the thread and raise what it ended with."""
        require_process(self._owner, self._process)
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._end.set)
        assert self._thread is not None, "it was started"
        self._thread.join()
        self._result.result()

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self.is_of_another_process:  # before the lock, which a thread of the parent's may have had
            coroutine.close()
            require_process(self._owner, self._process)
        if threading.current_thread() is self._thread:
            coroutine.close()
            name = type(self._owner).__name__
            msg = f"called in the {name}'s own event loop, where waiting would wait for ever: use the asyncio {name}"
            raise RuntimeError(msg)
        with self._lock:
            if not self._ended:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise self._why_ended()

    def _result_of(self, future: concurrent.futures.Future[T]) -> T:
        try:
            while True:
                try:
                    return future.result(_LOOK_FOR_SIGNALS)
                except TimeoutError:  # of this wait, or of what was waited for
                    if future.done():
                        return future.result()
        except concurrent.futures.CancelledError:
            raise self._why_ended() from None

    # ------------------------------------------------------------------ in the background thread

    def _serve(self, main: Coroutine[Any, Any, None], ready: concurrent.futures.Future[T]) -> None:
        try:
            # Cancels what is still running in the end, which tells those who wait for it.
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                try:
                    runner.run(main)
                finally:
                    with self._lock:
                        self._ended = True
                    runner.run(asyncio.sleep(0))  # begins what was handed over last, so that it is cancelled too
            self._result.set_result(None)
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            if ready.done():
                self._result.set_exception(error)
            else:
                self._result.set_result(None)
                ready.set_exception(error)

    def _cancel_everything(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()


class Claim(Generic[E, O]):
    """A claim on a share or a mount that a thread waits for. All of it but `hold` happens in the loop's thread."""

    def __init__(self, claims: Claims[E, O]) -> None:
        self._claims = claims
        self._owner: Hashable | None = None
        self._entry: E | None = None
        """The share or the mount, while the claim stands."""
        self._given_up = False

    def hold(self, thread: LoopThread, options: O, owner: Hashable | None) -> E:
        """Return the entry with a reference of `owner` on it, to the thread that calls this.

        Until that has the answer, there is only a claim. So an interrupt leaves nothing behind, however it falls
        together with the answer.
        """
        try:
            entry = thread.run(self.make(options, owner))
            thread.post(self.keep)
        except BaseException:
            thread.post(self.give_up)
            raise
        return entry

    async def make(self, options: O, owner: Hashable | None) -> E:
        """Make the claim."""
        self._owner = owner
        self._entry = entry = await self._claims.hold(options, owner)
        if self._given_up:
            self.give_up()
        return entry

    def keep(self) -> None:
        """Make a reference of it, if it stands."""
        if self._entry is not None:
            self._claims.keep(self._entry, self._owner)
            self._entry = None

    def give_up(self) -> None:
        """Withdraw it, if it stands, or as soon as it is made."""
        self._given_up = True
        if self._entry is not None:
            self._claims.withdraw(self._entry, self._owner)
            self._entry = None


_LOOK_FOR_SIGNALS = 1.0
"""Seconds. A wait ends at once for a signal that comes to this very thread while it waits, but not for one that came a
moment before, or that another thread of the process took; and on Windows for none (threading, signal)."""
