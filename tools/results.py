"""What tests found and write down for the pages of docs/, one file a test.

What lives here: the forms of these files, where they are, writing and reading them. What must not: what is tried
(the tests), and what a page says (`tools/conformance.py`, `tools/reliability.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

import commits

if TYPE_CHECKING:
    from collections.abc import Callable

TREE: Final = Path(__file__).resolve().parent.parent
CONFORMANCE: Final = TREE / ".cache" / "conformance" / "results"
"""Where a `Run` of each conformance test is."""
RELIABILITY: Final = TREE / ".cache" / "reliability"
"""Where the `Tries` of each reliability test are."""
NO_CAUSE: Final = "none known"
"""The cause of what nothing explains; its test fails."""


class Record(msgspec.Struct, frozen=True):
    """What a conformance test found in one setting. `failures` maps what came out otherwise to its cause."""

    test: str
    kernel: str
    model: str
    cache: str
    msize: int
    access: str
    more: str
    figures: dict[str, str]
    failures: dict[str, str] = {}


class Run(msgspec.Struct, frozen=True):
    """One conformance test as pytest knows it, how it ended, and what it found before it did.

    `ended` is the time in UTC, `seconds` how long it took, `on` what it ran on, and `commit` what was run.
    """

    node: str
    passed: bool
    records: tuple[Record, ...]
    ended: str
    seconds: float
    on: str
    commit: str = commits.UNKNOWN


class Tries(msgspec.Struct, frozen=True):
    """What a reliability test tried and lost.

    `name` is the file's and never changes; its beginning says which table of the page the row is in. `points` are the
    places where something was made to go wrong, `kills` the processes that were killed with SIGKILL, `more` what else
    there is to count. What `make test` tries of a longer test has the same name with `-short`.
    """

    name: str
    what: str
    points: int
    kills: int
    losses: int
    more: dict[str, int]
    commit: str = commits.UNKNOWN


Form = TypeVar("Form", Run, Tries)


def write(directory: Path, name: str, found: Run | Tries) -> None:
    """Write down what a test found, in the place of what its last run left."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)))


def write_page(page: Path, directory: Path, form: type[Form], made: Callable[[list[Form]], str]) -> int:
    """Write a page from all that lies in a directory, and return an exit status."""
    found = [msgspec.json.decode(path.read_bytes(), type=form) for path in sorted(directory.glob("*.json"))]
    if not found:
        sys.stderr.write(f"{sys.argv[0]}: nothing below {directory.relative_to(TREE)}: run make test-long first\n")
        return 1
    page.write_text(made(found), encoding="utf-8")
    return 0
