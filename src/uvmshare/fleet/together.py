"""Some work at the same time, until the first of it ends.

What lives here: `together`. What must not: what the work is.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

__all__ = ["together"]


@asynccontextmanager
async def together(*work: Coroutine[Any, Any, None]) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Do some work for as long as the block lasts, each in a task of its own.

    The block gets a function that waits until the first of it has ended, and raises what that raised. At the block's
    end, what still runs is cancelled, and waited for.
    """
    tasks = [asyncio.ensure_future(each) for each in work]

    async def first_end() -> None:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()

    try:
        yield first_end
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
