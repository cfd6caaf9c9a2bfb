"""Writes docs/reliability.md from what the last runs of the reliability tests tried and lost.

    make soak && .venv/bin/python tools/reliability.py

Each test leaves its `Tries` below .cache/reliability (`results.py` says what they are); the beginning of their name
says which table the row is in (`_TABLES`). A test that finds a loss fails, and writes nothing; so the page also says
which of those that have to be there (`_EXPECTED`) are not.

What lives here: how the tables are laid out, and the words around them. What must not: a figure.
"""

from __future__ import annotations

import sys
from typing import Final

import commits
from results import RELIABILITY, TREE, Tries, write_page

PAGE: Final = TREE / "docs" / "reliability.md"

_HEAD: Final = """# Reliability

Tests cause crashes and errors at every point where they can happen, and then check whether anything was lost. These
are the figures of the last runs; `make test` runs a selection, `make soak` everything, and
`python tools/reliability.py` writes this page. What holds, and what you have to do for it, is in
[journal.md](journal.md) and [architecture.md](architecture.md).

Each of these counts as a **loss**: a reference that its owner was told of and that is not there; a released reference
that is there again; a share that nobody holds, or a holder without a share; a name that two shares had; a guest's open
file that is not served any more although its share is; a process, a descriptor or a file that is left behind.
"""

_TABLES: Final = {
    "orders-": "Every order of events",
    "faults-": "Calls and journal writes that fail",
    "manager-": "The Manager's process killed (kill -9)",
    "journal-": "The journal's disk",
    "supervisor-": "The file server killed (kill -9)",
    "soak": "Soak",
}

_WORDS: Final = {
    "orders-": """\
A search through every order in which calls, answers, appends to the journal, faults and crashes can happen around
one share. A point is a step of it, after which everything was checked; a kill is a crash in one state, with the
calls in flight carried out or not. No process is involved, and the time is virtual.""",
    "faults-": """\
Each call to the VM and each append of a life fails before or after it was done, or never answers. Then time passes, or
the process ends at once; the next one recovers.""",
    "manager-": """\
Real processes with a real journal on a disk, and a VM that outlives them. There is a point before every callback of
the event loop, before every SQL statement, after every commit, and before and after the VM acts.""",
    "journal-": "Full, read-only, cut off and damaged files and file systems.",
    "supervisor-": """\
A supervisor dies before every line that it runs, and the next one takes over, with guests that have files open.""",
    "soak": "Random adds, removes, guests that come and go, and crashes of any part.",
}

_EXPECTED: Final = (
    "orders-of-events",
    "faults-of-calls",
    "manager-killed-lists",
    "manager-killed-lists-twice",
    "manager-killed-cannot-tell",
    "manager-killed-cannot-tell-twice",
    "journal-disk",
    "supervisor-add",
    "supervisor-remove",
    "supervisor-attach",
    "supervisor-attach-in-the-mount-process",
    "supervisor-hang-up",
    "supervisor-end",
    "supervisor-start",
    "supervisor-takeover",
    "soak",
)

_TAIL: Final = """## What was not tried

- A power failure. SQLite is told to wait for the disk at every commit (`synchronous=FULL`); whether a disk does what it
  says was not tried. A log that was cut off or had a hole was tried: it loses whole transactions from its end.
- Recovery on a real Host Compute Service. It cannot list its shares; the runs above include a VM that cannot either.
- Clocks that jump. Retries use the event loop's clock, which does not.
"""


def _table(results: list[Tries], *, with_commits: bool) -> list[str]:
    columns = list(dict.fromkeys(column for result in results for column in result.more))
    head = ["", "points", "kills", *columns, "losses"]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    if with_commits:
        lines = [lines[0] + " commit |", lines[1] + " --- |"]
    for result in results:
        more = [f"{result.more[column]:,}" if column in result.more else "" for column in columns]
        losses = str(result.losses) if result.losses == 0 else f"**{result.losses}**"
        commit = [f"`{result.commit}`"] if with_commits else []
        cells = [result.what, f"{result.points:,}", f"{result.kills:,}", *more, losses, *commit]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def page(results: list[Tries]) -> str:
    """Return the page for these results."""
    known = {result.name for result in results}
    # What make test tries is a part of what make soak does.
    every = [result for result in results if result.name.removesuffix("-short") not in known - {result.name}]
    with_commits = len({result.commit for result in every}) > 1
    lines = [_HEAD]
    if every:
        lines += [f"The runs were {commits.said([result.commit for result in every], 'tests')}.", ""]
    left = list(every)
    for beginning, title in _TABLES.items():
        mine = [result for result in left if result.name.startswith(beginning)]
        left = [result for result in left if result not in mine]
        if mine:
            lines += [f"## {title}", "", _WORDS[beginning], "", *_table(mine, with_commits=with_commits), ""]
    if left:
        lines += ["## More", "", *_table(left, with_commits=with_commits), ""]
    points, kills, losses = (sum(getattr(result, name) for result in every) for name in ("points", "kills", "losses"))
    lines += ["## All together", "", f"{points:,} points, {kills:,} kills, {losses or 'no'} losses.", ""]
    missing = [name for name in _EXPECTED if name not in known]
    if missing:
        lines += ["**Not run, or failed, the last time:** " + ", ".join(missing) + ".", ""]
    lines.append(_TAIL)
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.exit(write_page(PAGE, RELIABILITY, Tries, page))
