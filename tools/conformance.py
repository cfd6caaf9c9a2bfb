"""Writes docs/conformance.md from what the last runs of the conformance tests found.

    python tools/conformance.py

What lives here: how the figures are laid out. What must not: a figure or a cause; the tests write them below
.cache/conformance/results, one file a test.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from typing import Final

import msgspec

TREE: Final = Path(__file__).resolve().parent.parent
RESULTS: Final = TREE / ".cache" / "conformance" / "results"
PAGE: Final = TREE / "docs" / "conformance.md"

_HEAD: Final = """# Conformance

A real Linux guest mounts a share with its kernel's own 9P client and works in it. These are the figures of the last
runs, by kernel, security model and cache mode. "Otherwise" counts what came out otherwise than it should; every one
has its cause below. `make test` runs a short selection, `make test-long` everything, and
`python tools/conformance.py` writes this page.

The POSIX checks run on the share and on an ext4 of the guest's own, and each outcome is compared.
"""

_TITLES: Final = {
    "posix": "POSIX checks, all of them",
    "posix-short": "POSIX checks, the selection of `make test`",
    "posix-names-and-contents": "POSIX checks of names and contents",
    "posix-read-only": "POSIX checks of a read-only share",
    "features": "Locks, extended attributes, special files, holes, listings",
    "acls": "Access control lists",
    "locks": "Locks between two mounts and the host",
    "devices": "Files on two devices below one share",
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
}


class Record(msgspec.Struct, frozen=True):
    """What a test found in one setting, as the tests write it."""

    test: str
    kernel: str
    model: str
    cache: str
    msize: int
    access: str
    more: str
    figures: dict[str, str]
    failures: dict[str, str]


class Run(msgspec.Struct, frozen=True):
    """One test, how it ended, and what it found."""

    node: str
    passed: bool
    records: tuple[Record, ...]


def _table(records: list[tuple[Record, bool]]) -> list[str]:
    names = list(dict.fromkeys(name for record, _ in records for name in record.figures))
    shown = ["otherwise" if name == "differ" else name for name in names]
    lines = [
        "| kernel | model | cache | msize | access | " + " | ".join(shown) + " | |",
        "| --- | --- | --- | --- | --- |" + " --- |" * (len(names) + 1),
    ]
    for record, passed in sorted(records, key=lambda pair: _order(pair[0])):
        access = record.access + (f", {record.more}" if record.more else "")
        figures = " | ".join(record.figures.get(name, "") for name in names)
        setting = f"{record.kernel} | {record.model} | {record.cache} | {record.msize} | {access}"
        lines.append(f"| {setting} | {figures} | {'passes' if passed else '**fails**'} |")
    return lines


def _order(record: Record) -> tuple[bool, str, str, str, int]:
    return record.kernel != "6.12", record.model, record.cache, record.access, record.msize


def page(runs: list[Run]) -> str:
    """Return the page for these runs."""
    by_test: defaultdict[str, list[tuple[Record, bool]]] = defaultdict(list)
    causes: defaultdict[str, list[str]] = defaultdict(list)
    for run in runs:
        for record in run.records:
            by_test[record.test].append((record, run.passed))
            where = f"{record.kernel}, {record.model}, {record.cache}"
            for what, cause in record.failures.items():
                causes[cause].append(f"{record.test} ({where}): {what}")
    lines = [_HEAD]
    for test in [*(name for name in _TITLES if name in by_test), *sorted(by_test.keys() - _TITLES.keys())]:
        lines += [f"## {_TITLES.get(test, test)}", "", *_table(by_test[test]), ""]
    lines += ["## What came out otherwise, and why", ""]
    for cause in sorted(causes):
        lines += [f"- {cause}:", *(f"  - {what}" for what in sorted(set(causes[cause])))]
    if not causes:
        lines.append("Nothing.")
    died = [run.node for run in runs if not run.passed and not run.records]
    if died:
        lines += ["", "## Tests that failed before they found anything", "", *(f"- `{node}`" for node in sorted(died))]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write the page and return the exit status."""
    runs = [msgspec.json.decode(path.read_bytes(), type=Run) for path in sorted(RESULTS.glob("*.json"))]
    if not runs:
        sys.stderr.write(f"tools/conformance.py: nothing below {RESULTS.relative_to(TREE)}: run make test-long first\n")
        return 1
    PAGE.write_text(page(runs), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
