"""Writes docs/conformance.md from what the last runs of the conformance tests found.

    python tools/conformance.py [reports]

A row without a new record keeps what it says, with its commit and date: tests can be run alone. With "reports" only
records of these are looked at.

What lives here: how the figures are laid out. What must not: a figure or a cause; the tests write them down in
the form that is in results.py.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import commits
from kept_rows import Cause, Written
from results import CONFORMANCE, NO_CAUSE, TREE, Record, Run, write_page

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kept_rows import Row

PAGE: Final = TREE / "docs" / "conformance.md"
REPORTS: Final = "reports"
"""The test whose records are one row a report."""
_AS_REPORTS: Final = (REPORTS, "real-hosts")
"""These have a form of their own."""
_CAUSES: Final = "What came out otherwise, and why"
"""The title of the section of causes."""
SHARES: Final = "/var/tmp"  # noqa: S108  only looked at: the tests make their own directories below it

_MOST_NAMED: Final = 4
"""Checks that are named for one cause; the rest is counted."""

_HEAD: Final = """# Conformance

Can a Linux guest tell a share from a good local disk? A real guest mounts shares with its kernel's own 9P client and
works in them: POSIX checks, each held against the same check on an ext4 of the guest's own; programs that verify what
they wrote; locks, attributes and listings while others interfere; and a hostile guest that only tries to break out.
This page is written by `make conformance` from what the last `make test`, `make test-long` and `make soak`
found, and by nothing else. A row stays until its test is run again: its commit and date say what was run, and when.
"""

_READING: Final = """A setting is the guest's kernel, the server's security model, and the client's mount options:
cache mode, `msize`, and how it tells its users apart (`access`). "Otherwise" counts what came out otherwise than
wanted. A test passes when each of these has a cause in `tests/conformance/causes.py` that lies in the client, whatever
the server; `tests/conformance/test_causes.py` shows each of them on the wire.
"""

_TITLES: Final = {
    "posix": "POSIX checks, all of them",
    "posix-names-and-contents": "POSIX checks of names and contents",
    "posix-short": "POSIX checks, the selection of `make test`",
    "posix-read-only": "POSIX checks of a read-only share",
    "features": "Locks, extended attributes, special files, holes, listings",
    "acls": "Access control lists",
    "locks": "Locks between two mounts and the host",
    "guarantees": "What each way of mounting gives",
    "devices": "Files on two devices below one share",
    "peers": "What other 9P servers get wrong",
    "fsx": "Random operations against a model (fsx)",
    "fsx-direct": "The same with O_DIRECT",
    "fsx-short": "The same, the selection of `make test`",
    "fio": "fio with verification",
    "dbench": "dbench, two clients",
    "stress-ng": "stress-ng's file system stressors",
    "git": "git: commit, clone, fsck",
    "build": "A C program unpacked and built",
    "sqlite-delete": "SQLite with a rollback journal, two processes",
    "sqlite-wal": "SQLite with a write-ahead log, two processes",
    "find": "Requests of find over 500 files",
    REPORTS: "What people reported elsewhere",
    "real-hosts": "Further checks of this kind, without a report",
    "races": "A hostile guest: directories swapped for links while they are walked",
}

_REPORTED: Final = """Reports in the trackers of other projects by people who share directories with VMs,
containers and sandboxes. What they did is done in a real guest, by the checks of `tests/conformance/reports`. A result
is what came of it, with how the share was mounted and the guest's kernels; what does not work has its reason beside it.
Mounts are `access=client,msize=1048576`; "a user's" is a server that is not root, "real links" one with `links=real`,
"few descriptors" one that may have 256.
"""

_SETTING: Final = ("kernel", "model", "cache", "msize", "access")


Found = list[tuple[Record, Run]]
"""What one test found in all its settings, each beside the run that it is of."""


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*("---" for _ in names))]


def _cells(record: Record) -> dict[str, str]:
    """Return what names a record's setting; nothing is said of a client where none took part."""
    access = record.access + (f", {record.more}" if record.more else "")
    all_of_them = (record.kernel, record.model, record.cache, str(record.msize or ""), access)
    return {name: cell for name, cell in zip(_SETTING, all_of_them, strict=True) if cell}


def _order(record: Record) -> tuple[bool, str, str, str, int]:
    return record.kernel != "6.12", record.model, record.cache, record.access, record.msize


def _rows(name: str, records: Found, written: Written) -> list[Row]:
    """Return the rows of a table: those of the records, and those that the page has of other settings."""
    rows = []
    for record, run in sorted(records, key=lambda pair: _order(pair[0])):
        figures = {"otherwise" if figure == "differ" else figure: cell for figure, cell in record.figures.items()}
        passes = "passes" if run.passed else "**fails**"
        rows.append(
            {**_cells(record), **figures, "result": passes, "commit": f"`{run.commit}`", "date": run.ended[:10]}
        )
    new = {_key(row) for row in rows}
    kept = [row for row in written.rows(_title(name)) if _key(row) not in new]
    return [*rows, *({"commit": written.commit, "date": written.date, **row} for row in kept)]


def _key(row: Row) -> tuple[str, ...]:
    """Return what tells a row from the others of its table."""
    return tuple(row.get(column, "") for column in (*_SETTING, "attack"))


def _table(rows: list[Row]) -> list[str]:
    last = ("result", "commit", "date")
    figures = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in (*_SETTING, *last)]
    settings = [name for name in _SETTING if any(row.get(name) for row in rows)]
    columns = [*settings, *figures, *last]
    return [*_head(*columns), *(_row(*(row.get(column, "") for column in columns)) for row in rows)]


def _mounted(record: Record) -> str:
    return ", ".join([*([record.model] if record.model != "passthrough" else []), f"`cache={record.cache}`"])


def _report(name: str) -> str:
    repository, _, number = name.partition("#")
    return f"[{name}](https://github.com/{repository}/issues/{number})" if number else ""


def _reported(name: str, records: Found, written: Written) -> list[Row]:
    """Return one row a report: what it is, what was tried, and each result with where it was; others as they are."""
    found: dict[tuple[str, str], Found] = {}
    for pair in sorted(records, key=lambda pair: int(pair[0].figures["number"])):
        figures = pair[0].figures
        found.setdefault((_report(figures["report"]), figures["tried"].replace("|", "\\|")), []).append(pair)
    rows = [
        {"report": report, "tried": what, "result": _results(of_it), "run": _of(run for _, run in of_it)}
        for (report, what), of_it in found.items()
    ]
    kept = [row for row in written.rows(_title(name)) if (row["report"], row["tried"]) not in found]
    return [*rows, *kept]


def _results(records: Found) -> str:
    """Say what came of a report's check, each outcome once, with where it was."""
    outcomes: dict[tuple[str, str], list[Record]] = {}
    for record, _ in records:
        outcome, why = record.figures["outcome"], next(iter(record.failures.values()), "")
        said = f"**fails**: {outcome}" if why == NO_CAUSE else outcome
        outcomes.setdefault((said, why), []).append(record)
    cells = []
    for (outcome, why), of_it in outcomes.items():
        places = ", ".join(dict.fromkeys(map(_mounted, of_it)))
        kernels = ", ".join(sorted({record.kernel for record in of_it}, key=_by_number))
        cells.append(f"{outcome}: {places} ({kernels})" + (f". {why[0].upper()}{why[1:]}" if why else ""))
    return "; ".join(cells).replace("|", "\\|")


def _by_number(kernel: str) -> list[int]:
    return [int(part) for part in kernel.split(".")]


def _of(runs: Iterable[Run]) -> str:
    """Say of which commits runs are, and of which day the last."""
    ran = list(runs)
    return (
        f"{', '.join(f'`{name}`' for name in sorted({run.commit for run in ran}))} {max(run.ended for run in ran)[:10]}"
    )


def _section(name: str, rows: list[Row]) -> list[str]:
    lines = _table(rows)
    if name in _AS_REPORTS:
        failed = sum("**fails**" in row["result"] for row in rows)
        said = f"{len(rows)} rows" + (f", **{failed} failed**." if failed else ": each works, or has its reason.")
        columns = ("report", "tried", "result", "run")
        lines = [*_head(*columns), *(_row(*(row.get(column, "") for column in columns)) for row in rows)]
        lines = [*([_REPORTED] if name == REPORTS else []), said, "", *lines]
    return [f"## {_title(name)}", "", *lines, ""]


def _title(name: str) -> str:
    return _TITLES.get(name, name)


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _summary(by_test: dict[str, list[Row]], runs: list[Run]) -> list[str]:
    every = [row for rows in by_test.values() for row in rows]
    checks, otherwise = (sum(_number(row.get(column, "")) for row in every) for column in ("checks", "otherwise"))
    failed = sum(map(_fails, every)) + sum(not run.passed and not run.records for run in runs)
    unexplained = sum(cause == NO_CAUSE for run in runs for record in run.records for cause in record.failures.values())
    lines = [
        f"{len(every)} settings were tried; "
        + (f"**{failed} failed**" if failed else "all passed")
        + f". They made {checks:,} single checks, of which {otherwise} came out otherwise"
        + (f", **{unexplained} without a known cause**." if unexplained else ", each with a known cause (below)."),
    ]
    posix = [row for row in by_test.get("posix", []) if row["model"] == "passthrough"]
    if posix:
        largest = max(posix, key=lambda row: _number(row["checks"]))
        lines.append(
            f"Of the {_number(largest['checks']):,} POSIX checks under `passthrough`, kernel {largest['kernel']}, "
            f"`cache={largest['cache']}`, {largest.get('otherwise', 0)} differ from ext4."
        )
    lines += ["", *_head("what", "settings", "checks", "otherwise", "failed")]
    for name, rows in by_test.items():
        title = _title(name)
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        count = sum(_number(row.get("checks", "")) for row in rows)
        differ = sum(_number(row.get("otherwise", "")) for row in rows)
        cells = (f"{count:,}", differ) if count else ("", "")
        lines.append(_row(f"[{title}](#{anchor})", len(rows), *cells, sum(map(_fails, rows)) or ""))
    return lines


def _fails(row: Row) -> bool:
    return "**fails**" in row["result"]


def _causes(runs: list[Run], kept: list[Cause]) -> list[str]:
    found: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    where: defaultdict[str, set[str]] = defaultdict(set)
    count = Counter[str]()
    for run in runs:
        for record in run.records:
            if record.test in _AS_REPORTS:
                continue  # their rows have the reasons
            for what, cause in record.failures.items():
                found[cause].setdefault(what, []).append(record.test)
                where[cause].add(", ".join(_cells(record).values()))
                count[cause] += 1
    lines = []
    for cause in sorted(found, key=lambda cause: (cause != NO_CAUSE, cause)):
        names = sorted(found[cause])
        shown = names if cause == NO_CAUSE else names[:_MOST_NAMED]
        lines += [
            f"- {cause}. {count[cause]} in {len(where[cause])} settings: "
            + ", ".join(f"`{name}`" for name in shown)
            + (" ..." if len(names) > len(shown) else ""),
            *(f"  - {setting}" for setting in sorted(where[cause])),
        ]
    for cause_line, settings in kept:
        lines += [cause_line, *(f"  - {setting}" for setting in settings)]
    return lines or ["Nothing did."]


def _kept_causes(causes: list[Cause], rows: Iterable[Row]) -> list[Cause]:
    """Return what is still so of the causes that the page has: where a row that is kept came out otherwise."""
    settings = {", ".join(filter(None, (row.get(name, "") for name in _SETTING))) for row in rows}
    kept = []
    for line, of_it in causes:
        left = tuple(setting for setting in of_it if setting in settings)
        if left == of_it:
            kept.append(Cause(line, left))
        elif left:
            kept.append(Cause(re.sub(r"\. \d+ in \d+ settings: ", f". In {len(left)} settings: ", line), left))
    return kept


def _said(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, cwd=TREE, capture_output=True, text=True, check=False).stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _ran(runs: list[Run]) -> list[str]:
    """Say when the last runs were and on what."""
    times = sorted(run.ended[:16].replace("T", " ") for run in runs)
    guests = sorted({run.on for run in runs if run.on})
    cores = len(re.findall("^processor", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE))
    qemu = re.search(r"version (\S+)", _said("qemu-system-x86_64", "--version"))
    disk = _said("stat", "-f", "-c", "%T", SHARES).replace("ext2/ext3", "ext4")
    return [
        f"The last runs were from {times[0]} to {times[-1]} UTC,",
        f"{commits.said([run.commit for run in runs], 'tests')},",
        f"on {cores} cores ({_processor()}), Linux {platform.release()}, Python {platform.python_version()},",
        f"with shares on {disk}.",
        f"Guests: {'; '.join(guests)}" + (f" (QEMU {qemu[1]})." if qemu else "."),
    ]


def page(runs: list[Run], ran: list[str], was: str = "") -> str:
    """Return the page for these runs; `ran` says when and on what, `was` is the page that is there."""
    written = Written(was)
    by_test: defaultdict[str, Found] = defaultdict(list)
    for run in runs:
        for record in run.records:
            by_test[record.test].append((record, run))
    names = [name for name in _TITLES if name in by_test or written.rows(_title(name))]
    tables: dict[str, list[Row]] = {}
    kept: list[Row] = []
    for name in [*names, *sorted(by_test.keys() - _TITLES.keys())]:
        if name in _AS_REPORTS:
            tables[name] = _reported(name, by_test[name], written)
        else:
            tables[name] = _rows(name, by_test[name], written)
            kept += [row for row in tables[name][len(by_test[name]) :] if row.get("otherwise", "0") != "0"]
    lines = [_HEAD, *ran, "", "## In short", "", *_summary(tables, runs), "", _READING, f"## {_CAUSES}", ""]
    lines += [*_causes(runs, _kept_causes(written.causes(_CAUSES), kept)), ""]
    died = sorted(f"- `{run.node}`, of `{run.commit}`" for run in runs if not run.passed and not run.records)
    if died:
        lines += ["## Tests that failed before they found anything", "", *died, ""]
    for name, rows in tables.items():
        lines += _section(name, rows)
    return "\n".join(lines).rstrip() + "\n"


def _of_reports(run: Run) -> bool:
    return any(record.test in _AS_REPORTS for record in run.records)


if __name__ == "__main__":
    only_reports = sys.argv[1:] == [REPORTS]
    there = PAGE.read_text("utf-8") if PAGE.exists() else ""

    def made(runs: list[Run]) -> str:
        """Return the page of these runs, or of those of reports among them."""
        chosen = [run for run in runs if _of_reports(run)] if only_reports else runs
        return page(chosen, _ran(chosen), there)

    sys.exit(write_page(PAGE, CONFORMANCE, Run, made))
