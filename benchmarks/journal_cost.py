"""What a journal costs: adds a second with one on a disk file system, by how many ask at the same time.

What lives here: the Manager with an SQLite journal and a VM that answers at once. What must not: the Manager without
one (`manager_cost`). Unlike there, the time is the clock's, since what takes it is the disk; the CPU time of the
process is beside it. The journal lies below the current directory, or in UVMSHARE_BENCH_DIR: not on a tmpfs.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any, Final

from uvmshare.share.manager import Manager
from uvmshare.sqlite_journal import SqliteJournal

if TYPE_CHECKING:
    from uvmshare.share.interfaces import VMPlan9
    from uvmshare.share.options import AddOptions

__all__ = ["measure"]

CALLERS: Final = (1, 16, 64, 256)
_ADDS_OF_ONE: Final = 200
"""Each of them waits for the disk twice."""


async def _adds(vm: VMPlan9, every: list[AddOptions], callers: int) -> dict[str, float]:
    directory = os.environ.get("UVMSHARE_BENCH_DIR", ".")
    with tempfile.TemporaryDirectory(dir=directory) as place, SqliteJournal(f"{place}/journal.db") as journal:
        manager = Manager(vm, journal=journal.for_vm())
        await manager.recover()
        wanted = iter(every[:_ADDS_OF_ONE] if callers == 1 else every)

        async def add_one_after_the_other() -> None:
            for options in wanted:
                await manager.add(options, owner="owner")

        begun, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(add_one_after_the_other() for _ in range(callers)))
        elapsed, used = time.perf_counter() - begun, time.process_time() - cpu
        count = len(manager.shares())
        await manager.detach()
    return {"adds_per_second": count / elapsed, "cpu_us": used / count * 1e6}


def measure(vm: VMPlan9, every: list[AddOptions], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Return by the number of callers what each round measured."""
    return {str(callers): [asyncio.run(_adds(vm, every, callers)) for _ in range(rounds)] for callers in CALLERS}
