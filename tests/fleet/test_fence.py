"""Real hosts that serve one VM at a time, over a real etcd: links cut, processes stopped and killed, and never two."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.fleet.fenced_hosts import FENCE, fenced_hosts, runs
from tests.processes import DEADLINE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.fleet.fenced_hosts import FencedHost

RECORD = Path(__file__).parents[2] / ".cache" / "fence-takes.json"
_WAYS = ("cut", "stop", "stop all", "kill", "nothing")


@contextlib.asynccontextmanager
async def _in_trouble(host: FencedHost, way: str) -> AsyncIterator[None]:
    """Have something happen to a host for the length of the block."""
    match way:
        case "cut":
            host.link.whole.clear()
        case "stop" | "stop all":
            host.signal(signal.SIGSTOP, all_of_it=way == "stop all")
        case "kill":
            host.kill()
    try:
        yield
    finally:
        match way:
            case "cut":
                host.link.whole.set()
            case "stop" | "stop all":
                host.signal(signal.SIGCONT, all_of_it=way == "stop all")
            case "kill":
                host.start()


async def _takes(folder: Path, ways: list[str]) -> dict[str, list[float]]:
    """Have the VM be taken while these things happen; return how many seconds each take needed."""
    taken: dict[str, list[float]] = {way: [] for way in _WAYS}
    async with fenced_hosts(folder, "h1", "h2") as fleet:
        await fleet.writes("h1")
        order = ["h1"]
        for number, way in enumerate(ways):
            old = order[-1]
            new = "h2" if old == "h1" else "h1"
            if number:  # it is back since the last time
                await fleet.until(lambda new=new: fleet.lives(new))  # type: ignore[misc]  # mypy cannot infer a default's type
            async with _in_trouble(fleet.hosts[old], way):
                taken[way].append(await fleet.take(new, forget=way != "nothing"))
                order.append(new)
                await fleet.writes(new)
            await fleet.writes(new)
        assert runs(fleet.records.read_bytes()) == order
    return taken


@contextlib.contextmanager
def _noting(words: str) -> Iterator[None]:
    """Have whatever fails say this too."""
    try:
        yield
    except BaseException as error:
        error.add_note(words)
        raise


def _record(taken: dict[str, list[float]]) -> None:
    """Leave how long takes needed, for whoever measures (`benchmarks/fleet.py`)."""
    seconds = {
        way: {"takes": len(each), "p50_s": round(statistics.median(each), 2), "longest_s": round(max(each), 2)}
        for way, each in taken.items()
        if each
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps({"takes": sum(map(len, taken.values())), "fence_s": FENCE, **seconds}))


@pytest.mark.long
def test_of_real_hosts_never_two_serve_a_vm_when_one_is_cut_off_or_stopped(tmp_path: Path) -> None:
    async def main() -> None:
        async with asyncio.timeout(4 * DEADLINE):
            _record(await _takes(tmp_path, ["stop all", "cut"]))

    asyncio.run(main())


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_of_real_hosts_never_two_serve_a_vm_over_200_takes(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    with _noting(f"seed {seed}"):
        _record(asyncio.run(_takes(tmp_path, random.Random(seed).choices(_WAYS, k=200))))


def test_the_records_tell_who_wrote_in_order() -> None:
    assert runs(b"h1\nh1\nh2\nh1\n") == ["h1", "h2", "h1"]
