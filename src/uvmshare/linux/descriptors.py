"""The descriptors that a process has open.

What lives here: closing what a forked process is not to have. What must not: which those are.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["close_all_but"]


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor past standard error that is not in `keep`."""
    start = 3
    for descriptor in sorted(keep):
        if descriptor >= start:
            os.closerange(start, descriptor)
            start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))
