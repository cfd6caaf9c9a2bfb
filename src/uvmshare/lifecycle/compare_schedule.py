"""When a manager compares its table with what is there, and when again: until that succeeds, however long that takes.

What lives here: `CompareSchedule`, for shares and mounts alike. What must not: how they are compared, and what follows
(of shares `uvmshare.share.recovery`, of mounts `uvmshare.mounts.manager`), or how waits grow (`retry`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from uvmshare.lifecycle.operation import loop_is_ending
from uvmshare.lifecycle.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["CompareSchedule"]

T = TypeVar("T")


class CompareSchedule(Generic[T]):
    """Comparing, each time that something happened elsewhere: one at a time, and once more if asked for meanwhile.

    `settle` compares; it does not begin when `useful` says no. `done` is called with the task each time that it was
    not cancelled, and tells whether all is well; if not, it is tried again after `first` seconds, and after a longer
    wait each time.
    """

    def __init__(
        self,
        settle: Callable[[], Coroutine[object, object, T]],
        useful: Callable[[], bool],
        done: Callable[[asyncio.Task[T]], bool],
        *,
        first: float,
    ) -> None:
        self._settle = settle
        self._useful = useful
        self._done = done
        self._retry = Retry(first)
        self._again = False
        self.task: asyncio.Task[T] | None = None
        """The comparison under way."""

    @property
    def pending(self) -> bool:
        """Whether a comparison is under way, or is to be tried again."""
        return self.task is not None or self._retry.waiting

    def ask(self) -> None:
        """Begin, or begin again after what is under way."""
        self._retry.withdraw()
        if not self._useful():
            return
        self._again = self.task is not None
        if self.task is None:
            self.task = asyncio.get_running_loop().create_task(self._settle())
            self.task.add_done_callback(self._ended)

    def withdraw(self) -> None:
        """Try nothing again by itself."""
        self._retry.withdraw()

    def cancel(self) -> None:
        """Stop what is under way, and try nothing again."""
        self.withdraw()
        if self.task is not None:
            self.task.cancel()

    def _ended(self, task: asyncio.Task[T]) -> None:
        self.task = None
        ending = loop_is_ending(task)
        if self._again and not ending:
            self.ask()
        if task.cancelled():
            return
        if self._done(task):
            self._retry.reset()
        elif self.task is None and not ending and self._useful():
            self._retry.later(self.ask)
