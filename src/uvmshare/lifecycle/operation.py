"""A call that is under way, those who wait for it, and how it ended.

What lives here: what the managers of shares and of mounts have to know of any such call. What must not: what
the call is, or what its end means for a share or a mount.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvmshare.errors import OutcomeNotWritten, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Mapping

__all__ = ["OUTCOME_UNKNOWN", "Operation", "failure_of", "failures_of", "loop_is_ending"]

OUTCOME_UNKNOWN = (OutcomeUnknown, TimeoutError, ConnectionError, EOFError, OutcomeNotWritten)
"""The errors after which a call may have been carried out or not (see `uvmshare.share.interfaces.VMPlan9`)."""


class Operation:
    """A call in flight, and those who wait for its end.

    Each waiter has a future of its own: cancelling one reaches neither the call nor the other waiters.
    """

    __slots__ = ("_waiters", "error", "task")

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] | None = []
        """None when the operation has ended."""
        self.error: Exception | None = None
        """Why it failed. Set before it ends."""
        self.task: asyncio.Task[None] | None = None
        """The call. Kept because an event loop keeps no task that waits from the garbage collector."""

    def begin(self, call: Coroutine[object, object, None], ended: Callable[[asyncio.Task[None]], None]) -> None:
        """Make a call, in a task of its own that no caller's cancellation reaches, and have `ended` called after it.

        That either makes the next call or ends the operation.
        """
        self.task = asyncio.get_running_loop().create_task(call)
        self.task.add_done_callback(ended)

    async def wait(self) -> None:
        """Return when the operation has ended. Does not raise its error."""
        if self._waiters is not None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    async def finish(self) -> None:
        """Wait for the end and raise the error, if it has one."""
        await self.wait()
        if self.error is not None:
            raise self.error

    def end(self) -> None:
        """Wake the waiters, in the order in which they came."""
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)


def loop_is_ending(task: asyncio.Task[object]) -> bool:
    """Tell whether the call was ended from outside. Only an event loop that ends does that.

    It waits for the tasks that it cancelled and for no others, so that nothing new may be started.
    """
    if task.cancelling():
        return True
    return not task.cancelled() and isinstance(task.exception(), KeyboardInterrupt | SystemExit)


def failure_of(task: asyncio.Task[None], interrupted: str) -> Exception | None:
    """Return how a call failed, as an error that can be raised in those who wait for it.

    They must never see a cancellation or an interrupt that was not theirs: they get `OutcomeUnknown` with the
    message `interrupted`.
    """
    cause = asyncio.CancelledError() if task.cancelled() else task.exception()
    if cause is None or isinstance(cause, Exception):
        return cause
    error = OutcomeUnknown(interrupted)
    error.__cause__ = cause
    return error


async def failures_of(calls: Mapping[str, Awaitable[object]]) -> dict[str, BaseException]:
    """Make all the calls, beside each other, and return why those failed that did."""
    outcomes = await asyncio.gather(*calls.values(), return_exceptions=True)
    return {name: outcome for name, outcome in zip(calls, outcomes, strict=True) if isinstance(outcome, BaseException)}
