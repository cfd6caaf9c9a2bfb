"""The table of docs/security.md: what code in a mount process may try, and what stops it.

What lives here: its lines. What must not: the attempts (`taken_over`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

import pytest
from tests.hostile.taken_over import ATTEMPTS

if TYPE_CHECKING:
    from tests.hostile.taken_over import Attempt

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

__all__ = ["rows"]

_LANDLOCK_CAME_WITH: Final = {1: "5.13", 2: "5.19", 3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12"}
_LAYERS: Final = {
    "namespace": "mount namespace",
    "seccomp": "seccomp",
    "capabilities": "capabilities",
    "closed": "closed before",
}


def _what_stops(attempt: Attempt) -> str:
    layers = [told for layer, told in _LAYERS.items() if layer in attempt.stopped_by]
    if attempt.changes and "seccomp" not in attempt.stopped_by:
        layers.append("on a read-only share seccomp")
    if attempt.landlock:
        layers.append(f"Landlock of ABI {attempt.landlock} (Linux {_LANDLOCK_CAME_WITH[attempt.landlock]})")
    if attempt.not_in_passthrough:
        names = sorted(_LAYERS.get(layer, "Landlock") for layer in attempt.not_in_passthrough)
        layers.append(f"but for {' and '.join(names)} under passthrough")
    return "; ".join(layers)


def rows() -> list[str]:
    """Return the lines of the table for docs/security.md: attempts that the same layers stop share one."""
    grouped: dict[str, list[str]] = {}
    for attempt in ATTEMPTS:
        grouped.setdefault(_what_stops(attempt), []).append(attempt.name)
    return [f"| {', '.join(names)} | {layers} |" for layers, names in grouped.items()]
