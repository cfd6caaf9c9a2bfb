"""What the tests of reliability tried and lost, for docs/reliability.md: one file a test.

What lives here: the form of the files. What must not: what the page says (`tools/reliability.py`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import commits

TREE: Final = Path(__file__).parent.parent
RESULTS: Final = TREE / ".cache" / "reliability"
COMMIT: Final = commits.current(TREE)
"""Asked when the tests are loaded, as what they test is."""


def write_down(name: str, what: str, *, points: int, kills: int, losses: int, **more: int) -> None:
    """Write down what a test tried and what was lost, in the place of what its last run left, and print it."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = {"name": name, "what": what, "points": points, "kills": kills, "losses": losses, "more": more}
    found["commit"] = COMMIT
    (RESULTS / f"{name}.json").write_text(json.dumps(found) + "\n")
    print(f"{what}: {points:,} points, {kills:,} kills, {losses} losses {more or ''}")  # noqa: T201  it is the count
