"""Writes docs/conformance.md from what the last runs of the conformance tests found.

    python tools/conformance.py [reports]

With "reports" only the section of these is written anew, into the page that is there: their tests can be run alone.

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
from typing import Final

import commits
from results import CONFORMANCE, NO_CAUSE, TREE, Record, Run, write_page

PAGE: Final = TREE / "docs" / "conformance.md"
REPORTS: Final = "reports"
"""The test whose records are one row a report; "real-hosts" has the same form."""
SHARES: Final = "/var/tmp"  # noqa: S108  only looked at: the tests make their own directories below it

_MOST_NAMED: Final = 4
"""Checks that are named for one cause; the rest is counted."""

_HEAD: Final = """# Conformance

Can a Linux guest tell a share from a good local disk? A real guest mounts shares with its kernel's own 9P client and
works in them: POSIX checks, each held against the same check on an ext4 of the guest's own; programs that verify what
they wrote; locks, attributes and listings while others interfere; and a hostile guest that only tries to break out.
This page is written by `make conformance` from what the last `make test`, `make test-long` and `make soak`
found, and by nothing else.
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
    "real-hosts": "What nobody's report is named for",
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


def _table(records: Found, *, with_commits: bool) -> list[str]:
    figures = list(dict.fromkeys(name for record, _ in records for name in record.figures))
    settings = [name for name in _SETTING if any(name in _cells(record) for record, _ in records)]
    lines = _head(
        *settings,
        *("otherwise" if name == "differ" else name for name in figures),
        "result",
        *(["commit"] if with_commits else []),
    )
    for record, run in sorted(records, key=lambda pair: _order(pair[0])):
        cells = _cells(record)
        lines.append(
            _row(
                *(cells.get(name, "") for name in settings),
                *(record.figures.get(name, "") for name in figures),
                "passes" if run.passed else "**fails**",
                *([f"`{run.commit}`"] if with_commits else []),
            )
        )
    return lines


def _mounted(record: Record) -> str:
    return ", ".join([*([record.model] if record.model != "passthrough" else []), f"`cache={record.cache}`"])


def _report(name: str) -> str:
    repository, _, number = name.partition("#")
    return f"[{name}](https://github.com/{repository}/issues/{number})" if number else ""


def _reported(records: Found) -> list[str]:
    """Lay out one row a report: what it is, what was tried, and each result with where it was."""
    rows: dict[tuple[str, str], dict[tuple[str, str], list[Record]]] = {}
    for record, _ in sorted(records, key=lambda pair: int(pair[0].figures["number"])):
        figures = record.figures
        result = f"**fails**: {figures['outcome']}" if NO_CAUSE in record.failures.values() else figures["outcome"]
        found = rows.setdefault((figures["report"], figures["tried"]), {})
        found.setdefault((result, next(iter(record.failures.values()), "")), []).append(record)
    lines = _head("report", "tried", "result")
    for (report, what), results in rows.items():
        cells = []
        for (result, why), of_it in results.items():
            places = ", ".join(dict.fromkeys(map(_mounted, of_it)))
            kernels = ", ".join(sorted({record.kernel for record in of_it}))
            cells.append(f"{result}: {places} ({kernels})" + (f". {why[0].upper()}{why[1:]}" if why else ""))
        lines.append(_row(_report(report), what, "; ".join(cells).replace("|", "\\|")))
    return lines


def _reports_section(records: Found) -> list[str]:
    runs = [run for _, run in records]
    count = len({record.figures["report"] for record, _ in records})
    failed = sum(NO_CAUSE in record.failures.values() for record, _ in records)
    said = f"{count} reports, {len(records)} checks, " + (f"**{failed} failed**" if failed else "all passed")
    ended = max(run.ended[:16].replace("T", " ") for run in runs)
    of = ", ".join(f"`{name}`" for name in sorted({run.commit for run in runs}))
    on = "; ".join(sorted({run.on for run in runs if run.on}))
    head = [_REPORTED, f"{said}. Run until {ended} UTC, of {of}. Guests: {on}.", ""]
    return [*head, *_reported(records)]


def _section(name: str, records: Found, *, with_commits: bool) -> list[str]:
    if name == REPORTS:
        lines = _reports_section(records)
    elif all("tried" in record.figures for record, _ in records):
        lines = _reported(records)
    else:
        lines = _table(records, with_commits=with_commits)
    return [f"## {_TITLES.get(name, name)}", "", *lines, ""]


def with_section(written: str, name: str, runs: list[Run]) -> str:
    """Return a page that is there with the section of one test anew, before the last section if it had none."""
    records = [(record, run) for run in runs for record in run.records if record.test == name]
    section = "\n".join(_section(name, records, with_commits=False))
    before, mark, rest = written.partition(f"## {_TITLES[name]}\n")
    if not mark:
        before, mark, rest = written.rpartition("\n## ")
        return f"{before}\n{section}{mark}{rest}"
    _, following, after = rest.partition("\n## ")
    return f"{before}{section}{following}{after}"


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def _summary(by_test: dict[str, Found], runs: list[Run]) -> list[str]:
    checks = Counter[str]()
    otherwise = Counter[str]()
    for name, records in by_test.items():
        for record, _ in records:
            checks[name] += _number(record.figures.get("checks", ""))
            otherwise[name] += _number(record.figures.get("differ", ""))
    failed = sum(not run.passed for run in runs)
    unexplained = sum(cause == NO_CAUSE for run in runs for record in run.records for cause in record.failures.values())
    largest = max(
        (_number(record.figures["checks"]), _number(record.figures["differ"]), record)
        for record, _ in by_test["posix"]
        if record.model == "passthrough"
    ) if "posix" in by_test else None  # fmt: skip
    lines = [
        f"{len(runs)} tests ran in {sum(map(len, by_test.values()))} settings; "
        + (f"**{failed} failed**" if failed else "all passed")
        + f". They made {sum(checks.values()):,} single checks, of which {sum(otherwise.values())} came out otherwise"
        + (f", **{unexplained} without a known cause**." if unexplained else ", each with a known cause (below)."),
    ]
    if largest:
        count, differ, record = largest
        lines.append(
            f"Of the {count:,} POSIX checks under `{record.model}`, kernel {record.kernel}, `cache={record.cache}`, "
            f"{differ} differ from ext4."
        )
    lines += ["", *_head("what", "settings", "checks", "otherwise", "failed")]
    for name, records in by_test.items():
        title = _TITLES.get(name, name)
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        lines.append(
            _row(
                f"[{title}](#{anchor})",
                len(records),
                f"{checks[name]:,}" if checks[name] else "",
                otherwise[name] if checks[name] else "",
                sum(not run.passed for _, run in records) or "",
            )
        )
    return lines


def _causes(runs: list[Run]) -> list[str]:
    found: defaultdict[str, dict[str, list[str]]] = defaultdict(dict)
    where: defaultdict[str, set[str]] = defaultdict(set)
    count = Counter[str]()
    for run in runs:
        for record in run.records:
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
    return lines or ["Nothing did."]


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
    """Say when the runs were and on what."""
    times = sorted(run.ended[:16].replace("T", " ") for run in runs)
    guests = sorted({run.on for run in runs if run.on})
    cores = len(re.findall("^processor", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE))
    qemu = re.search(r"version (\S+)", _said("qemu-system-x86_64", "--version"))
    disk = _said("stat", "-f", "-c", "%T", SHARES).replace("ext2/ext3", "ext4")
    return [
        f"Run from {times[0]} to {times[-1]} UTC, {commits.said([run.commit for run in runs], 'tests')},",
        f"on {cores} cores ({_processor()}), Linux {platform.release()}, Python {platform.python_version()},",
        f"with shares on {disk}.",
        f"Guests: {'; '.join(guests)}" + (f" (QEMU {qemu[1]})." if qemu else "."),
    ]


def page(runs: list[Run], ran: list[str]) -> str:
    """Return the page for these runs; `ran` says when and on what."""
    by_test: defaultdict[str, Found] = defaultdict(list)
    for run in runs:
        for record in run.records:
            by_test[record.test].append((record, run))
    order = [*(name for name in _TITLES if name in by_test), *sorted(by_test.keys() - _TITLES.keys())]
    ordered = {name: by_test[name] for name in order}
    with_commits = len({run.commit for run in runs}) > 1
    lines = [_HEAD, *ran, "", "## In short", "", *_summary(ordered, runs), "", _READING]
    lines += ["## What came out otherwise, and why", "", *_causes(runs), ""]
    died = sorted(
        f"- `{run.node}`" + (f", of `{run.commit}`" if with_commits else "")
        for run in runs
        if not run.passed and not run.records
    )
    if died:
        lines += ["## Tests that failed before they found anything", "", *died, ""]
    for name, records in ordered.items():
        lines += _section(name, records, with_commits=with_commits)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == [REPORTS]:
        sys.exit(write_page(PAGE, CONFORMANCE, Run, lambda runs: with_section(PAGE.read_text("utf-8"), REPORTS, runs)))
    sys.exit(write_page(PAGE, CONFORMANCE, Run, lambda runs: page(runs, _ran(runs))))
