"""What a fleet is measured by, a row each: adds through a gate, the end of an owner, restarts of etcd, chaos, takes.

    make bench-fleet BENCH_ARGS="--json add owner"

What lives here: the rows, and how each is measured. What must not: a fleet (`uvmshare.demo.stage`), or what tests
measure by themselves (`tests/fleet`): rows of theirs run the test. It needs root, Linux and etcd: three members, two
gates and two hosts are processes in network namespaces of this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.rows import command_line, read, tell
from uvmshare.demo.stage import HOSTS, TENANT, Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uvmshare.daemon.client import AsyncClient

Row = dict[str, Any]

LEASE: Final = 3
"""Seconds of an owner's lease."""
_ROOT: Final = Path(__file__).parents[1]
_RECORDS: Final = _ROOT / ".cache"
_TESTS: Final = {
    "relist": ("tests/fleet/test_store_scale.py", "thousand_followers", "store-scale.json"),
    "chaos": ("tests/fleet/test_fleet_chaos.py", "a_hundred_rounds", "fleet-chaos.json"),
    "takes": ("tests/fleet/test_fence.py", "over_200_takes", "fence-takes.json"),
}
"""Rows that a test measures: its file, which one it is, and where it leaves its record."""
_QUICK_TESTS: Final = {
    "relist": ("tests/fleet/test_store_scale.py", "a_few_followers", "store-scale-quick.json"),
    "chaos": ("tests/fleet/test_fleet_chaos.py", "disks_are_full", "fleet-chaos-quick.json"),
    "takes": ("tests/fleet/test_fence.py", "cut_off_or_stopped", "fence-takes.json"),
}
"""The same to try them."""


def _address(stage: Stage, vm: str) -> str:
    return f"unix:{stage.directory}/{vm}.9p"


async def _timed(work: Awaitable[object]) -> float:
    begun = time.perf_counter()
    await work
    return (time.perf_counter() - begun) * 1000


async def measure_add(stage: Stage, fleet: AsyncClient, *, quick: bool) -> Row:
    """Return how long an add takes through a gate, and the same on the host alone, in turns."""
    await fleet.vms.add("through", listen=[_address(stage, "through")], on=HOSTS[0])
    through, alone = [], []
    async with stage.daemon(HOSTS[0]) as own:
        await own.vms.add("alone", listen=[_address(stage, "alone")])
        for number in range(10 if quick else 200):
            made = stage.make(f"add-{number}", "")
            through.append(await _timed(fleet.shares.add("through", made, owner="bench")))
            alone.append(await _timed(own.shares.add("alone", made, owner="bench")))
        await own.vms.remove("alone", force=True)
    await fleet.vms.remove("through", force=True)
    p50 = {"through_ms": round(statistics.median(through), 1), "alone_ms": round(statistics.median(alone), 1)}
    return {**p50, "more_ms": round(p50["through_ms"] - p50["alone_ms"], 1), "adds": len(through), "wanted_ms": 15}


async def measure_owner(stage: Stage, fleet: AsyncClient, *, quick: bool) -> Row:
    """Return how long after an owner's last word all hosts have released what they held, in seconds."""
    made, took = stage.make("owned", ""), []
    for host in HOSTS:
        await fleet.vms.add(f"on-{host}", listen=[_address(stage, f"on-{host}")], on=host)

    async def released(host: str) -> None:
        async with stage.daemon(host) as own:
            await stage.in_time(lambda: own.shares(f"{TENANT}:on-{host}"), lambda shares: not shares)

    for _ in range(1 if quick else 20):
        for host in HOSTS:
            await fleet.shares.add(f"on-{host}", made, owner="laptop", lease=LEASE)
        await fleet.owners.renew("laptop")
        begun = time.perf_counter()
        await asyncio.gather(*map(released, HOSTS))
        took.append(time.perf_counter() - begun)
    for host in HOSTS:
        await fleet.vms.remove(f"on-{host}", force=True)
    return {"longest_s": round(max(took), 2), "lease_s": LEASE, "ends": len(took), "wanted_s": LEASE + 2}


_MEASURED: Final[dict[str, Callable[..., Awaitable[Row]]]] = {"add": measure_add, "owner": measure_owner}
ROWS: Final = (*_MEASURED, *_TESTS)


async def _on_stage(rows: list[str], *, quick: bool) -> dict[str, Row]:
    """Measure some rows in one fleet."""
    found = {}
    with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
        stage = Stage(folder)
        async with stage.machines:
            await stage.start_etcd()
            await stage.start_gates_and_hosts()
            async with stage.client() as fleet:
                for row in rows:
                    found[row] = await _MEASURED[row](stage, fleet, quick=quick)
    return found


def _by_test(row: str, *, quick: bool) -> Row:
    """Run the test that measures a row, and return its record."""
    path, name, record = (_QUICK_TESTS if quick else _TESTS)[row]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", path, "-k", name],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    row_found: Row = {"passed": done.returncode == 0, "seconds": round(time.perf_counter() - begun)}
    if record is not None and done.returncode == 0:
        row_found |= json.loads((_RECORDS / record).read_text(encoding="utf-8"))
    if done.returncode != 0:
        row_found["why"] = done.stdout[-4000:]
    return row_found


def main() -> int:
    """Measure what was asked for."""
    chosen = read(command_line(__doc__, ROWS), ROWS)
    rows = chosen.rows
    on_stage = [row for row in rows if row in _MEASURED]
    found = asyncio.run(_on_stage(on_stage, quick=chosen.quick)) if on_stage else {}
    found |= {row: _by_test(row, quick=chosen.quick) for row in rows if row in _TESTS}
    tell(found, as_json=chosen.json, load=os.getloadavg()[0], quick=chosen.quick)
    return 0 if all(values.get("passed", True) is not False for values in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
