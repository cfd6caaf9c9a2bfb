"""For the tests that try every order of events: callers that do one thing after the other, and what is reported.

What lives here: what such tests of shares and of mounts have in common. What must not: what must hold of either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import pytest

from uvmshare.testing.explore import explore

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvmshare.testing.explore import Explored, World


@dataclass(frozen=True)
class Caller:
    """What one caller does, one call after the other."""

    owner: str | None
    does: tuple[str, ...]


def may_start(callers: Sequence[Caller], progress: Sequence[int], number: int) -> bool:
    """Tell whether that caller, which waits for nothing, has a call to make; `progress` says how many each has made."""
    caller = callers[number]
    if progress[number] == len(caller.does):
        return False
    # Of callers that are alike, the first starts first: other orders differ in nothing but their numbers.
    alike = number > 0 and callers[number - 1] == caller and progress[number] == 0
    return not alike or progress[number - 1] > 0


def cancel_everything(loop: asyncio.AbstractEventLoop, *, newest_first: bool = False) -> None:
    """Cancel every task, as `asyncio.run` does in the end, in no order that one may rely on."""
    for task in sorted(
        asyncio.all_tasks(loop), key=lambda task: int(task.get_name().removeprefix("Task-")), reverse=newest_first
    ):
        task.cancel()


class Bounds(Protocol):
    """What one search covers; its title is what it is called."""

    @property
    def title(self) -> str: ...

    def make(self) -> World: ...


def searches(short: Sequence[Bounds], long: Sequence[Bounds], soak: Sequence[Bounds]) -> pytest.MarkDecorator:
    """Make a test one of each of these; `make test-long` has the long ones, `make soak` the rest."""
    return pytest.mark.parametrize(
        "bounds",
        [
            *short,
            *(pytest.param(bounds, marks=pytest.mark.long) for bounds in long),
            *(pytest.param(bounds, marks=pytest.mark.soak) for bounds in soak),
        ],
        ids=lambda bounds: bounds.title,
    )


def try_every_order(bounds: Bounds, record_property: Callable[[str, object], None]) -> Explored:
    """Search, and have the report of the tests say how much that was."""
    found = explore(bounds.make)
    record_property("orders", found.orders)
    record_property("explored", f"{bounds.title}: {found}")
    return found
