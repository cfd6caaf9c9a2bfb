"""From measurements to tables: medians, spread, ratios, and whether a figure is reached.

What lives here: the summary of a row, the text that is printed, the tables of docs/performance.md. What must
not: measuring (`run`), pictures (`plots`).

A ratio is made of two medians. Its spread is that of the rounds: in each the servers took turns, so that
the ratio of one round is that of neighbours in time. Figures are judged by the CPU time of client and server together;
by throughput where the servers do not send the same messages.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from benchmarks.reasons import REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from benchmarks.cases import Case

__all__ = ["COMPARED", "filled", "judged", "load", "not_met", "one_line", "summarise", "text", "verdicts"]

_MIB: Final = 1 << 20
COMPARED: Final = {
    "diod": ("uvmshare", "diod", "to_diod"),
    "minimal": ("uvmshare", "minimal", "to_minimal"),
    "pure": ("pure", "diod", "pure_to_diod"),
}
"""What is compared: whose work, with whose, and the field of a row that has the figure."""
_WORDS: Final = {"diod": "diod", "minimal": "limit", "pure": "pure Python to diod"}
_HEADS: Final = {"uvmshare": "uvmshare", "pure": "pure Python", "diod": "diod", "minimal": "limit"}
"""The servers, as the tables name them."""
_PEERS: Final = ("diod", "minimal")


def _spread(values: Iterable[float]) -> dict[str, float]:
    known = list(values)
    return {"median": statistics.median(known), "min": min(known), "max": max(known)}


def _value(row: Case, sample: dict[str, Any]) -> float:
    """Return what a row compares: more is better, but for latencies."""
    if row.by_latency:
        return float(sample["p99_us"])
    return float(sample["bytes_per_second"] if row.moves_bytes else sample["operations_per_second"])


def _ratios(ours: list[float], theirs: list[float]) -> dict[str, float] | None:
    if not all(theirs):
        return None
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {**_spread(each), "median": statistics.median(ours) / statistics.median(theirs)}


def summarise(row: Case, samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return a row's medians, spreads and ratios; a server that refused has its reason instead."""
    result: dict[str, Any] = {"row": asdict(row), "name": row.describe(), "servers": {}, "ratios": {}, "cpu_ratios": {}}
    for name, taken in samples.items():
        errors = [sample["error"] for sample in taken if "error" in sample]
        if errors:
            result["servers"][name] = {"error": errors[0]}
            continue
        keys = ("p50_us", "p99_us", "p999_us", "cpu_us", "server_cpu_us")
        result["servers"][name] = {
            "value": _spread(_value(row, sample) for sample in taken),
            "msize": taken[0]["msize"],
            "unlinkat": taken[0]["unlinkat"],
            **{key: statistics.median(sample[key] for sample in taken) for key in keys},
        }
    for key, (name, peer, _) in COMPARED.items():
        if any("error" in result["servers"].get(each, {"error": "not there"}) for each in (name, peer)):
            continue
        ours, theirs = samples[name], samples[peer]
        result["ratios"][key] = _ratios(
            [_value(row, sample) for sample in ours], [_value(row, sample) for sample in theirs]
        )
        result["cpu_ratios"][key] = _cpu_ratio(row, ours, theirs)
    return result


def _cpu_ratio(row: Case, ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float] | None:
    """Return by how much less CPU time client and server need for the same work.

    A message of a large transfer carries as much as msize allows.
    """
    size = _size_of_a_message(row, ours[0], theirs[0])
    if size is None or row.by_latency:
        return None
    return _ratios([size * sample["cpu_us"] for sample in theirs], [sample["cpu_us"] for sample in ours])


def _size_of_a_message(row: Case, ours: dict[str, Any], other: dict[str, Any]) -> float | None:
    """Return how much more work one of our messages does than one of another server's; None where nobody can say."""
    size = 1.0
    if row.moves_bytes and not row.workload.startswith("random"):
        words = {"64k": 64 << 10, "128k": (128 << 10) - 24, "512k": 512 << 10, "1m": _MIB}
        count = words[row.workload.rpartition("-")[2]]
        size = min(count, ours["msize"] - 24) / min(count, other["msize"] - 24)
    elif ours["unlinkat"] != other["unlinkat"]:
        size = 6 / 5  # the peer takes a message more for the same operation
    elif row.workload.startswith("readdir") and ours["msize"] != other["msize"]:
        return None  # the number of messages is another
    return size


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _shown(result: dict[str, Any], server: str) -> str:
    found = result["servers"].get(server, {"error": "not there"})
    if "error" in found:
        return "refused"
    value = found["value"]
    row = result["row"]
    if row["by_latency"]:
        return f"p99 {_number(value['median'])} us"
    if row["workload"].startswith(("read-", "write-")):
        return f"{_number(value['median'] / _MIB)} MiB/s"
    return f"{_number(value['median'])}/s"


def _ratio(ratio: dict[str, float] | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


def judged(result: dict[str, Any], key: str) -> dict[str, float] | None:
    """Return the ratio that a figure is about: by CPU time where there is one."""
    ratio: dict[str, float] | None = result["cpu_ratios"].get(key) or result["ratios"].get(key)
    return ratio


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    """Say of each figure of a row whether it is met. "met" is said only where every round says so."""
    row = result["row"]
    found = {}
    for key, (_, _, figure) in COMPARED.items():
        if row[figure] is not None:
            ratio = judged(result, key)
            found[key] = "not compared" if ratio is None else _settled(ratio, row[figure], at_most=row["by_latency"])
    return found


def _settled(ratio: dict[str, float], goal: float, *, at_most: bool) -> str:
    reached = {key: value <= goal if at_most else value >= goal for key, value in ratio.items()}
    if reached["min"] and reached["max"]:
        return "met"
    if reached["median"]:
        return "not met: the median is, not every round"
    return "not met" if reached["min"] == reached["max"] else "not met: some rounds are, the median is not"


def _verdict(result: dict[str, Any]) -> str:
    row = result["row"]
    said = verdicts(result)
    most = "at most " if row["by_latency"] else ""
    words = [f"{_WORDS[key]} {most}{row[COMPARED[key][2]]:g}: {said[key]}" for key in said]
    return "; ".join(words) or "none set"


def not_met(results: list[dict[str, Any]]) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Return what is not met: workload, what is compared, and the rows. Each has a reason in `reasons`."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        for key, said in verdicts(result).items():
            if said != "met":
                found.setdefault((result["row"]["workload"], key), []).append(result)
    return [(*key, rows) for key, rows in found.items()]


def _reasons_table(results: list[dict[str, Any]]) -> str:
    def line(workload: str, key: str, rows: list[dict[str, Any]]) -> tuple[str, ...]:
        ratios = [ratio["median"] for row in rows if (ratio := judged(row, key))]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}" if ratios else "not compared"
        goals = sorted({row["row"][COMPARED[key][2]] for row in rows})
        wanted = ", ".join(f"{goal:g}" for goal in goals)
        reason = REASONS.get((workload, key), "no reason is known yet")
        return workload, _WORDS[key], f"{len(rows)}", spread, wanted, reason

    missed = not_met(results)
    if not missed:
        return "Every figure is met.\n"
    head = ("workload", "against", "rows", "medians", "figures", "why, and what was tried")
    return _table(head, (line(*each) for each in missed))


def _floor_table(results: dict[str, Any]) -> str:
    """Show a bare Python loop beside the two servers, at depth 32 on one CPU, where sockets count least."""

    def cpu(workload: str, server: str) -> str:
        for result in results["servers"]:
            row = result["row"]
            if (row["workload"], row["depth"], row["medium"]) == (workload, 32, "tmpfs"):
                found = result["servers"].get(server, {})
                return f"{found['server_cpu_us']:.2f}" if "server_cpu_us" in found else "-"
        return "-"

    return _table(
        ("CPU time of a message (us)", "bare Python loop, no sockets", *_HEADS.values()),
        (
            (workload, f"{least:.2f}", *(cpu(workload, server) for server in _HEADS))
            for workload, least in results["floor"].items()
        ),
    )


def one_line(result: dict[str, Any]) -> str:
    """Return one row's outcome in a line."""
    values = ", ".join(f"{name} {_shown(result, name)}" for name in result["servers"])
    ratios = ", ".join(f"to {_WORDS[key]} {_ratio(judged(result, key))}" for key in _PEERS)
    return f"{values}; {ratios}, {_WORDS['pure']} {_ratio(judged(result, 'pure'))}; {_verdict(result)}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _server_table(results: list[dict[str, Any]]) -> str:
    head = (
        "workload",
        *_HEADS.values(),
        "to diod",
        "to limit",
        "pure Python to diod",
        "p50, p99, p99.9 (us)",
        "figures",
    )
    return _table(
        head,
        (
            (
                result["name"],
                *(_shown(result, name) for name in _HEADS),
                *(_ratio(judged(result, key)) for key in COMPARED),
                _percentiles(result["servers"]["uvmshare"]),
                _verdict(result),
            )
            for result in results
        ),
    )


def _percentiles(server: dict[str, Any]) -> str:
    return "-" if "error" in server else ", ".join(_number(server[key]) for key in ("p50_us", "p99_us", "p999_us"))


def _refusals(results: list[dict[str, Any]]) -> str:
    said = {
        f"- {name}, {result['row']['workload']}: {server['error']}"
        for result in results
        for name, server in result["servers"].items()
        if "error" in server
    }
    for name in _PEERS:
        found = [result["servers"][name] for result in results if name in result["servers"]]
        if any(server.get("unlinkat") is False for server in found):
            said.add(f"- {name} refuses Tunlinkat; it gets a walk and a Tremove instead, as Linux's client does it.")
        sizes = {server["msize"] for server in found if "msize" in server}
        if sizes and max(sizes) < _MIB:
            said.add(
                f"- {name} takes messages of {max(sizes) // 1024} KiB at most; its larger transfers are cut to that."
            )
    return "\n".join(sorted(said)) + "\n" if said else "Nothing was refused.\n"


def _us(spread: dict[str, float]) -> str:
    return f"{_number(spread['median'])} ({_number(spread['min'])} to {_number(spread['max'])})"


def _manager_table(manager: dict[str, Any]) -> str:
    calls = (
        ("add_us", "add"),
        ("duplicate_us", "duplicate add"),
        ("release_us", "release"),
        ("remove_us", "last release"),
    )
    head = ("call (us of CPU)", "shares", "uvmshare", "published algorithm")
    return _table(
        head,
        (
            (label, f"{int(size):,}", _us(ours[key]), _us(manager["published"][size][key]))
            for key, label in calls
            for size, ours in manager["uvmshare"].items()
        ),
    )


def _met(reached: bool) -> str:  # noqa: FBT001  said of one thing
    return "met" if reached else "not met"


def _manager_facts(manager: dict[str, Any]) -> str:
    sizes = list(manager["uvmshare"])
    through = manager["throughput"]
    last = manager["uvmshare"][sizes[-1]]["add_us"]["median"] / manager["uvmshare"][sizes[0]]["add_us"]["median"]
    growth = manager.get("growth", {"median": last, "min": last, "max": last})  # older results have no turns
    pairs = [run["adds_and_removes_per_second"] / 2 for run in through]
    shares = through[0]["shares"]
    duplicate = manager["uvmshare"][sizes[-1]]["duplicate_us"]
    fits = manager["memory"]["manager_bytes"] < 1024
    return _table(
        ("", "measured", "figure", ""),
        (
            (
                f"cost of an add, {int(sizes[-1]):,} shares against {int(sizes[0]):,}",
                "{median:.2f} ({min:.2f} to {max:.2f})".format(**growth),
                "1.2 or less",
                _met(growth["median"] <= 1.2),
            ),
            (
                f"{shares:,} distinct adds, then as many removes (each pair counts once)",
                f"{statistics.median(pairs):,.0f} shares a second ({min(pairs):,.0f} to {max(pairs):,.0f})",
                "25,000 or more",
                _met(min(pairs) >= 25_000),
            ),
            ("duplicate add", _us(duplicate) + " us", "under 15 us", _met(duplicate["max"] < 15)),
            ("a share in the Manager", f"{manager['memory']['manager_bytes']:.0f} bytes", "under 1024", _met(fits)),
            ("its options", f"{manager['memory']['options_bytes']:.0f} bytes", "", ""),
            ("building options (reads the file system)", f"{manager['building_options_us']:.1f} us", "", ""),
        ),
    )


def _journal_table(journal: dict[str, list[dict[str, float]]]) -> str:
    rows = []
    for callers, rounds in journal.items():
        adds = [run["adds_per_second"] for run in rounds]
        rows.append(
            (
                f"{callers} at a time",
                f"{statistics.median(adds):,.0f} adds a second ({min(adds):,.0f} to {max(adds):,.0f})",
                f"{statistics.median(run['cpu_us'] for run in rounds):.0f} us",
                "5,000 or more" if callers == "256" else "",
            )
        )
    return _table(("callers", "with a journal", "CPU time an add", "figure"), rows)


def _large_table(large: dict[str, float]) -> str:
    count = large["shares"]

    def took(name: str) -> tuple[str, str]:
        return f"{large[f'{name}_seconds']:.1f} s", f"{large[f'{name}_cpu_us']:.0f} us"

    return _table(
        (f"{count:,} shares in one Manager, with a journal", "in all", "CPU time a share"),
        (
            ("to add them, 256 at a time, the options built as well", *took("add")),
            (
                f"an add of the last {large['few']:,}, to one of the first",
                "1.2 times or less",
                f"{large['last_add_cpu_us'] / large['first_add_cpu_us']:.2f} times",
            ),
            ("to recover them from the journal", *took("recover")),
            ("to release them, 256 at a time", *took("release")),
            ("memory", f"{large['share_bytes'] * count / _MIB:,.0f} MiB", f"{large['share_bytes']:,.0f} bytes"),
            (
                "the journal's files",
                f"{large['journal_bytes'] * count / _MIB:,.0f} MiB",
                f"{large['journal_bytes']:,.0f} bytes",
            ),
        ),
    )


def _small_mounts_table(found: dict[str, Any]) -> str:
    most = 1.5 * 1024 * found["mounts"] / 1000  # 1.5 GiB for 1,000
    return _table(
        (f"{found['mounts']:,} mounts of one file server", "measured", "figure", ""),
        (
            (
                "attaches a second, one after the other, each with a getattr",
                f"{found['attaches_per_second']:.0f}",
                "200 or more",
                _met(found["attaches_per_second"] >= 200),
            ),
            (
                "private memory of one that does nothing",
                f"{found['mount_private_bytes'] / _MIB:.2f} MiB",
                "under 1.5",
                _met(found["mount_private_bytes"] < 1.5 * _MIB),
            ),
            (
                "private memory of all, and of the supervisor",
                f"{found['private_bytes'] / _MIB:,.0f} MiB",
                f"under {most:,.0f}",
                _met(found["private_bytes"] < most * _MIB),
            ),
        ),
    )


def _lives_table(found: dict[str, Any]) -> str:
    one, many = found["one"], found["many"]

    def milliseconds(spread: dict[str, float]) -> str:
        return f"{spread['median']:.2f} ms ({spread['min']:.2f} to {spread['max']:.2f})"

    def mebibytes(size: float) -> tuple[str, str, str]:
        return f"{size / _MIB:.2f} MiB", "under 4", _met(size < 4 * _MIB)

    first_byte = one["add_to_first_byte_ms"]
    return _table(
        ("", "measured", "figure", ""),
        (
            (
                "add to the guest's first byte",
                milliseconds(first_byte),
                "under 10 ms",
                "met" if first_byte["max"] < 10 else f"{_met(first_byte['median'] < 10)} by the median",
            ),
            ("last remove to the guest's first error", milliseconds(one["remove_to_first_error_ms"]), "", ""),
            ("attach to the mount process's first answer", milliseconds(one["attach_to_first_answer_ms"]), "", ""),
            ("private memory of a mount process, fresh", *mebibytes(one["mount_private_bytes_fresh"])),
            ("the same after some work", *mebibytes(one["mount_private_bytes_used"])),
            (
                f"{many['vms']} VMs with {many['mounts']} mounts: to start them",
                f"{many['start_seconds']:.1f} s",
                "",
                "",
            ),
            ("a getattr on each of their mounts", milliseconds(many["getattr_ms"]), "", ""),
            ("private memory of a mount process", *mebibytes(many["mount_private_bytes"])),
            ("private memory of a supervisor", f"{many['supervisor_private_bytes'] / _MIB:.2f} MiB", "", ""),
            ("private memory of them all", f"{many['private_bytes'] / _MIB:,.0f} MiB", "", ""),
            ("to end them all", f"{many['end_seconds']:.1f} s", "", ""),
        ),
    )


_OLD: Final = "Measured before the file server's small requests, listings, large writes and cold reads were rebuilt"


def _version(machine: dict[str, Any]) -> str:
    if "commit" in machine:
        return f"Measured on {machine['date']} at commit {machine['commit']}."
    return f"{_OLD}: `make bench` measures them anew."


def _machine(results: dict[str, Any]) -> str:
    machine = results["machine"]
    return (
        f"{machine['cpus']} CPUs ({machine['cpu']}), Linux {machine['kernel']}, Python {machine['python']}, "
        f"diod {machine['diod']}, disk {machine['disk']}; {results['rounds']} rounds of {results['run_ms']} ms; "
        f"load average {results['load_before']:.1f} before and {results['load_after']:.1f} after; "
        f"{results['seconds']} s in all. {_version(machine)}\n"
    )


def _parts(results: dict[str, Any]) -> dict[str, str]:
    parts = {"machine": _machine(results)}
    if "servers" in results:
        parts["servers"] = _server_table(results["servers"])
        parts["refusals"] = _refusals(results["servers"])
        is_old = "commit" not in results["machine"]  # the reasons are of what is measured now
        parts["not-met"] = f"{_OLD}.\n" if is_old else _reasons_table(results["servers"])
        if "floor" in results:
            parts["floor"] = _floor_table(results)
    if "manager" in results:
        parts["manager"] = _manager_table(results["manager"])
        parts["manager-figures"] = _manager_facts(results["manager"])
        if "journal" in results["manager"]:  # results of before there was one have none
            parts["journal"] = _journal_table(results["manager"]["journal"])
        if "large" in results["manager"]:
            parts["manager-large"] = _large_table(results["manager"]["large"])
    if "small-mounts" in results.get("lives", {}):
        parts["small-mounts"] = _small_mounts_table(results["lives"]["small-mounts"])
    if "lives" in results:
        parts["lives"] = _lives_table(results["lives"])
    return parts


def text(results: dict[str, Any]) -> str:
    """Return everything as text for a terminal, which is also Markdown."""
    return "\n".join(_parts(results).values())


def filled(page: str, results: dict[str, Any]) -> str:
    """Return the page with the tables between their marks; what stands around them is written by hand."""
    for name, part in _parts(results).items():
        mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page = mark.sub(lambda found, part=part: f"{found[1]}\n{part}\n{found[2]}", page)  # type: ignore[misc]  # mypy cannot type a lambda's default
    return page


def load(path: Path) -> dict[str, Any]:
    """Return results that were written."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results
