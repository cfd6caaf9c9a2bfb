"""What the Manager costs: adds, duplicate adds and releases with many shares, and memory.

What lives here: the Manager and the published algorithm with a VM that answers at once. What must not: file servers.

Times are CPU time of this process, so that a busy machine does not add to them, with the cyclic garbage collector
as a program has it. The options are built beforehand, since that reads the file system; building them is a
row of its own.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from benchmarks import journal_cost, published
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uvmshare.share.interfaces import NamedShare

__all__ = ["measure"]

SIZES: Final = (1_000, 16_000, 100_000)
_BATCH: Final = 500
_ROUNDS: Final = 15


class InstantVM:
    """Answers at once, and keeps nothing."""

    async def add_plan9(self, share: NamedShare) -> None:
        """Say yes."""

    async def remove_plan9(self, share: NamedShare) -> None:
        """Say yes."""


def options(first: int, count: int) -> list[AddOptions]:
    """Build distinct options: allowed names need not exist."""
    return [AddOptions("/", allowed_names=(f"n{n}",)) for n in range(first, first + count)]


async def _each(calls: list[Callable[[], Awaitable[object]]]) -> float:
    """Make the calls in turn and return the microseconds that one took."""
    begun = time.process_time()
    for call in calls:
        await call()
    return (time.process_time() - begun) / len(calls) * 1e6


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


_CALLS: Final = ("add_us", "duplicate_us", "release_us", "remove_us")


async def _turn(
    manager: Manager | published.Manager, present: list[AddOptions], fresh: list[AddOptions]
) -> dict[str, float]:
    """Measure each call once on a manager that has the shares `present`; `fresh` it has not."""
    names: list[str] = []

    async def add(wanted: AddOptions) -> None:
        names.append(await manager.add(wanted))

    some = present[:: max(1, len(present) // len(fresh))][: len(fresh)]
    added = await _each([partial(add, wanted) for wanted in fresh])
    removed = await _each([partial(manager.remove, name) for name in names])
    names.clear()
    duplicate = await _each([partial(add, wanted) for wanted in some])
    released = await _each([partial(manager.remove, name) for name in names])
    return dict(zip(_CALLS, (added, duplicate, released, removed), strict=True))


async def _in_turns(
    managers: dict[int, Manager] | dict[int, published.Manager], every: list[AddOptions], rounds: int, batch: int
) -> dict[str, Any]:
    """Let the sizes take turns, so that a machine that gets slower meanwhile does not look like growth."""
    gc.collect()
    turns: dict[int, list[dict[str, float]]] = {size: [] for size in managers}
    for _ in range(rounds):
        for size, manager in managers.items():
            turns[size].append(await _turn(manager, every[:size], every[-batch:]))
    sizes = list(managers)
    growth = [last["add_us"] / first["add_us"] for first, last in zip(turns[sizes[0]], turns[sizes[-1]], strict=True)]
    by_size = {
        str(size): {call: _spread([turn[call] for turn in some]) for call in _CALLS} for size, some in turns.items()
    }
    return {"sizes": by_size, "growth": _spread(growth)}


async def _ours(sizes: tuple[int, ...], every: list[AddOptions]) -> dict[str, Any]:
    managers = {size: Manager(InstantVM()) for size in sizes}
    for size, manager in managers.items():
        for wanted in every[:size]:
            await manager.add(wanted)
    return await _in_turns(managers, every, _ROUNDS, _BATCH)


async def _published(sizes: tuple[int, ...], every: list[AddOptions]) -> dict[str, Any]:
    managers = {}
    for size in sizes:
        managers[size] = manager = published.Manager(InstantVM())
        # As if they had been added: adding them one by one would take the square of the time.
        manager.shares = {
            str(n): published.Share(str(n), wanted, ShareState.ADDED, 1) for n, wanted in enumerate(every[:size])
        }
        manager.next_name = size
    return await _in_turns(managers, every, 3, 10)


async def _throughput(every: list[AddOptions]) -> dict[str, float]:
    """Add every share, then remove every one; calls a second."""
    manager = Manager(InstantVM())
    begun = time.process_time()
    names = [await manager.add(wanted) for wanted in every]
    between = time.process_time()
    for name in names:
        await manager.remove(name)
    ended = time.process_time()
    return {
        "shares": len(every),
        "adds_per_second": len(every) / (between - begun),
        "removes_per_second": len(every) / (ended - between),
        "adds_and_removes_per_second": 2 * len(every) / (ended - begun),
    }


async def _memory(count: int) -> dict[str, float]:
    """Return the bytes that a share takes in the Manager, and those of its options."""
    gc.collect()
    tracemalloc.start()
    every = options(0, count)
    with_options, _ = tracemalloc.get_traced_memory()
    manager = Manager(InstantVM())
    for wanted in every:
        await manager.add(wanted, owner="owner")
    gc.collect()
    with_shares, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    list_bytes = 8 * count  # the list that holds the options here
    return {
        "manager_bytes": (with_shares - with_options) / count,
        "options_bytes": (with_options - list_bytes) / count,
    }


def measure(*, quick: bool) -> dict[str, Any]:
    """Measure all of it; about a minute, or a few seconds when `quick`."""
    sizes = SIZES[:2] if quick else SIZES
    begun = time.process_time()
    every = options(0, sizes[-1] + _BATCH)
    building = (time.process_time() - begun) / len(every) * 1e6
    ours, theirs = asyncio.run(_ours(sizes, every)), asyncio.run(_published(sizes, every))
    return {
        "uvmshare": ours["sizes"],
        "growth": ours["growth"],
        "published": theirs["sizes"],
        "throughput": [asyncio.run(_throughput(every[: sizes[-1]])) for _ in range(1 if quick else 3)],
        "journal": journal_cost.measure(InstantVM(), every[: 2_000 if quick else 10_000], 1 if quick else 3),
        "memory": asyncio.run(_memory(10_000)),
        "building_options_us": building,
    }
