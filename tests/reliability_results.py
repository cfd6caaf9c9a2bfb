"""What the tests of reliability tried and lost, written down for docs/reliability.md and printed.

What lives here: what every one of them does with its counts. What must not: the form of the files (`tools/results.py`).
"""

from __future__ import annotations

from typing import Final

import commits
import results

COMMIT: Final = commits.current(results.TREE)
"""Asked when the tests are loaded, as what they test is."""


def write_down(name: str, what: str, *, points: int, kills: int, losses: int, **more: int) -> None:
    """Write down what a test tried and what was lost, and print it."""
    results.write(results.RELIABILITY, name, results.Tries(name, what, points, kills, losses, more, COMMIT))
    print(f"{what}: {points:,} points, {kills:,} kills, {losses} losses {more or ''}")  # noqa: T201  it is the count
