"""Looks at file systems that may never answer, for which nobody waits longer than a moment.

What lives here: `Looking`, one look at a time. What must not: what is looked at, or what comes of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Looking"]


class Looking:
    """The look that is under way, which whoever comes meanwhile joins. Belongs to one event loop."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def wait(self, look: Callable[[], Coroutine[Any, Any, None]], patience: float) -> None:
        """Begin a look unless one is under way; return when it is over, or after so many seconds of it."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(look())
            self._task.add_done_callback(self._ended)
        await asyncio.wait({self._task}, timeout=patience)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled():
            task.exception()  # none, or the host has no room for a thread: what is known stays
