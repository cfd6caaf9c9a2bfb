"""Which commit something was run on, and how a page says it.

What lives here: asking git, and the words. What must not: what was run, and where that is written down.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["UNKNOWN", "current", "said"]

UNKNOWN: Final = "unknown"
"""The commit of a tree that is no checkout of its own, or where there is no git."""

_DIRTY: Final = "-dirty"
_DIGITS: Final = 10


def current(tree: Path) -> str:
    """Return the commit of a checkout, ``-dirty`` behind it when files differ or are in no commit; or `UNKNOWN`."""
    place = _git(tree, "rev-parse", "--show-toplevel", "HEAD").splitlines()
    if len(place) != 2 or Path(place[0]).resolve() != tree.resolve():
        return UNKNOWN
    return place[1][:_DIGITS] + (_DIRTY if _git(tree, "status", "--porcelain") else "")


def _git(tree: Path, *arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]  # others may be committing at this moment
    try:
        return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""


def said(commits: Sequence[str], what: str) -> str:
    """Say which commit runs were of, one entry a run; `what` is the word for several of them."""
    counted = Counter(commits)
    note = " (`-dirty`: with changes that are in no commit)" if any(name.endswith(_DIRTY) for name in counted) else ""
    if len(counted) == 1:
        (name,) = counted
        return ("of an unknown commit" if name == UNKNOWN else f"of commit `{name}`") + note
    names = ", ".join(f"`{name}` ({count} {what})" for name, count in counted.most_common())
    return f"**of different commits**: {names}; each row says which{note}"
