"""Measure everything and say how it compares: ``make bench``, or ``python -m benchmarks.run --quick``.

What lives here: the order of measuring, one measurement, and the command line. What must not: what is
measured (`cases`, `manager_cost`, `lives`) and how it is shown (`report`, `plots`).

The servers take turns on each row, A B C D A B C D, so that whatever else the machine does falls on all alike.
Beside what a clock says, each measurement has the CPU time that client and server used for a message: on
one CPU that is what the clock would say on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks import floor, lives, manager_cost, manager_large, plots, report, servers
from benchmarks.cases import cases
from benchmarks.trees import evict, make_tree

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.cases import Case
    from benchmarks.servers import Server

HERE: Final = Path(__file__).parent
CACHE: Final = HERE.parent / ".cache" / "bench"
RESULTS: Final = HERE / "results" / "results.json"

WARM_MS: Final = 50


def say(line: str) -> None:
    """Show progress."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def measure(server: Server, case: Case, tree: Path, run_ms: int) -> dict[str, Any]:
    """Drive one server through one row, once. An error reply, or no end, is the result then: {"error": reason}."""
    cpus = os.sched_getaffinity(0)
    held = frozenset([max(cpus)] if case.cpus == 1 else cpus)
    server.hold_to(held)
    if case.workload == "cold-reads":
        evict(tree / "cold")
    arguments = [case.workload, case.depth, case.connections, WARM_MS, run_ms, case.uid]
    command = [CACHE / "load", server.addresses[case.transport], server.aname, *arguments]
    on = ",".join(map(str, held))
    load = subprocess.Popen(
        ["taskset", "-c", on, *map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with load:
        assert load.stdin is not None
        assert load.stdout is not None
        assert load.stderr is not None
        load.stdout.readline()
        before = server.cpu_seconds()
        with suppress(BrokenPipeError):
            load.stdin.write(b"\n")
            load.stdin.flush()
        line = load.stdout.readline()
        used = server.cpu_seconds() - before  # while the processes of its connections are still there
        with suppress(BrokenPipeError):
            load.stdin.close()
        errors = load.stderr.read().decode()
    if load.returncode:
        return {"error": errors.strip() or f"status {load.returncode}"}
    result: dict[str, Any] = json.loads(line)
    result["server_cpu_us"] = used * 1e6 / result["messages"]
    result["cpu_us"] = result["server_cpu_us"] + result["client_cpu_us"] / result["messages"]
    return result


def measure_servers(rows: Sequence[Case], rounds: int, run_ms: int) -> list[dict[str, Any]]:
    """Measure every row on every server."""
    results: list[dict[str, Any]] = []
    begun = time.monotonic()
    with ExitStack() as stack:
        running: dict[str, tuple[Path, list[Server]]] = {}
        for medium, below in (("tmpfs", Path("/dev/shm")), ("disk", CACHE)):  # noqa: S108  a tmpfs is what is wanted
            if not any(row.medium == medium for row in rows):
                continue
            say(f"making the files on {medium}")
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="uvmshare-bench-", dir=below)))
            tree = place / "tree"
            tree.mkdir()
            place.chmod(0o755)
            make_tree(tree, with_cold=medium == "disk")
            started = [server for name in servers.NAMES for server in servers.start(name, tree, place, CACHE)]
            for server in started:
                stack.enter_context(server)
            running[medium] = tree, started
        for number, row in enumerate(rows):
            say(f"[{time.monotonic() - begun:4.0f} s] {number + 1}/{len(rows)} {row.describe()}")
            tree, started = running[row.medium]
            taking_part = [server for server in started if row.transport in server.addresses]
            samples: dict[str, list[dict[str, Any]]] = {server.name: [] for server in taking_part}
            for _ in range(rounds):
                for server in taking_part:
                    samples[server.name].append(measure(server, row, tree, run_ms))
            results.append(report.summarise(row, samples))
            say(f"         {report.one_line(results[-1])}")
    return results


def measure_floor() -> dict[str, float]:
    """Measure the bare Python loop on files of its own."""
    with tempfile.TemporaryDirectory(prefix="uvmshare-bench-", dir="/dev/shm") as place:
        make_tree(Path(place), with_cold=False)
        return floor.measure(Path(place))


def describe_machine() -> dict[str, Any]:
    """Say what this was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cpu": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "diod": servers.describe_diod(),
        "disk": file_system_of(CACHE),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit that is measured, and whether files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE)
    return found.stdout.strip() or "unknown"


def file_system_of(path: Path) -> str:
    """Return the type of the file system that a path is on."""
    command = ["findmnt", "--noheadings", "--output", "FSTYPE", "--target", str(path)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    return found.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for, print the table, and write JSON, plots and the page."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a try: one round of 100 ms, 10 VMs; writes no results")
    parser.add_argument("--rounds", type=int, default=5, help="how often each server takes its turn (%(default)s)")
    parser.add_argument("--run-ms", type=int, default=120, help="how long each turn is measured (%(default)s)")
    parser.add_argument("--vms", type=int, default=100, help="how many VMs are put on this host (%(default)s)")
    parser.add_argument(
        "--shares", type=int, default=100_000, help="how many one Manager has; 1000000 takes minutes (%(default)s)"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="rows that have this in their names; writes nothing")
    parser.add_argument(
        "--show", action="store_true", help="measure nothing: make page and plots from the last results"
    )
    parser.add_argument("--parts", default="servers,manager,lives,floor", help="which parts (%(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.run_ms, options.vms, options.shares = 1, 100, 10, 2_000
    if options.show:
        show(report.load(RESULTS))
        return 0
    parts = options.parts.split(",")

    # As an exception, so that the servers and their files go away with a run that is ended.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    CACHE.mkdir(parents=True, exist_ok=True)
    for program in ("taskset", "cc"):
        if shutil.which(program) is None:
            say(f"make bench needs {program}, which is not installed")
            return 1
    results: dict[str, Any] = {
        "machine": describe_machine(),
        "rounds": options.rounds,
        "run_ms": options.run_ms,
        "load_before": os.getloadavg()[0],
    }
    begun = time.monotonic()
    try:
        servers.build(CACHE)
        if "manager" in parts:
            say("the Manager")
            results["manager"] = manager_cost.measure(quick=options.quick)
            say(f"  one Manager with {options.shares} shares and a journal")
            results["manager"]["large"] = manager_large.measure(options.shares)
        if "lives" in parts:
            say("adding, removing, mount processes, many VMs")
            results["lives"] = lives.measure(vms=options.vms, rounds=10 if options.quick else 50, say=say)
        if "servers" in parts:
            rows = [row for row in cases() if options.only in row.describe()]
            results["servers"] = measure_servers(rows, options.rounds, options.run_ms)
        if "floor" in parts:
            results["floor"] = measure_floor()
    except servers.Failed as error:
        say(f"make bench: {error}")
        return 1
    results["load_after"] = os.getloadavg()[0]
    results["seconds"] = round(time.monotonic() - begun)
    sys.stdout.write(report.text(results))
    whole = not options.quick and not options.only and set(parts) == {"servers", "manager", "lives", "floor"}
    if whole:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        show(results)
    return 0


def show(results: dict[str, Any]) -> None:
    """Write the tables into docs/performance.md and the plots beside it."""
    docs = HERE.parent / "docs"
    for name, drawing in plots.draw(results).items():
        (docs / name).write_text(drawing, encoding="utf-8")
    page = docs / "performance.md"
    page.write_text(report.filled(page.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
