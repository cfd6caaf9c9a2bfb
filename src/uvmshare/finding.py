"""The form of what `uvmshare doctor` finds, on the host and in a guest.

What lives here: `Finding`. What must not: looking (`uvmshare.fileserver.host`, `uvmshare.mounts.doctor`) or
showing (`uvmshare.cli.doctor`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Verdict"]

Verdict = Literal["good", "warning", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `breaks` and `remedy` are empty when it is good."""

    subject: str
    verdict: Verdict
    found: str
    breaks: str = ""
    remedy: str = ""
