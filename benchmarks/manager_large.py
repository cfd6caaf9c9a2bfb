"""A million shares in one process: memory, and the time to add them, to recover them from the journal, and to release.

What lives here: one Manager with a journal and a VM that answers at once, in a process of its own for its memory. What
must not: how a single call's cost grows (`manager_cost`).

    python -m benchmarks.manager_large COUNT
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.manager_cost import InstantVM
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.sqlite_journal import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["measure"]

_CALLERS: Final = 256
"""At the same time, so that their records go to the disk together."""

_FEW: Final = 2_000
"""The first adds, of which the middle one is made beside 1,000 shares, and as many last ones are compared."""


def _resident() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.findall(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024


def _size_of(directory: str) -> int:
    return sum(each.stat().st_size for each in os.scandir(directory))


class _Timer:
    """The time and the CPU time of a stretch, for each of the shares."""

    def __init__(self, into: dict[str, Any], name: str, count: int) -> None:
        self._into, self._name, self._count = into, name, count

    def __enter__(self) -> None:
        self._begun, self._cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self._into[f"{self._name}_seconds"] = time.perf_counter() - self._begun
        self._into[f"{self._name}_cpu_us"] = (time.process_time() - self._cpu) / self._count * 1e6


async def _from_many(work: Iterator[Any], call: Callable[[Any], Any]) -> None:
    async def one_after_the_other() -> None:
        for each in work:
            await call(each)

    await asyncio.gather(*(one_after_the_other() for _ in range(_CALLERS)))


async def _run(count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"shares": count}
    directory = os.environ.get("UVMSHARE_BENCH_DIR", ".")
    with tempfile.TemporaryDirectory(dir=directory) as place:
        file = f"{place}/journal.db"
        with SqliteJournal(file) as journal:
            manager = Manager(InstantVM(), journal=journal.for_vm())
            await manager.recover()
            before = _resident()
            few = found["few"] = min(_FEW, count // 2)

            async def add(first: int, behind: int) -> None:
                # Options are made as they are used, as a program does, and are part of both figures.
                every = (AddOptions("/", allowed_names=(f"n{number}",)) for number in range(first, behind))
                await _from_many(every, lambda options: manager.add(options, owner="owner"))

            with _Timer(found, "add", count):
                with _Timer(found, "first_add", few):
                    await add(0, few)
                await add(few, count - few)
                with _Timer(found, "last_add", few):
                    await add(count - few, count)
            found["share_bytes"] = (_resident() - before) / count
            await manager.detach()
            found["journal_bytes"] = _size_of(place) / count
        del manager
        with SqliteJournal(file) as journal:
            manager = Manager(InstantVM(), journal=journal.for_vm())
            with _Timer(found, "recover", count):
                await manager.recover()
            names = [share.name for share in manager.shares()]
            if len(names) != count:
                msg = f"{len(names)} shares of {count} came back"
                raise AssertionError(msg)
            with _Timer(found, "release", count):
                await _from_many(iter(names), lambda name: manager.remove(name, owner="owner"))
            await manager.aclose()
    return found


def measure(count: int) -> dict[str, Any]:
    """Measure it in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.manager_large", str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parents[1])
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_run(int(sys.argv[1])))) + "\n")
