"""Why a figure is not met, and what was tried: written by hand, for what the last results miss.

What lives here: one text for each workload and peer. What must not: numbers of the results, which are in the
tables beside it; a reason for what is met is taken out again (the tests say which).
"""

from __future__ import annotations

from typing import Final

__all__ = ["REASONS"]

_INTERPRETER: Final = (
    "The C server's whole message costs less than the bare Python loop's ("
    "the table of the floor below). Tried: no message objects, no layouts, handlers in a list, one try a turn, replies "
    "joined once, what is known of a file kept, system calls through ctypes (not faster than os)."
)

REASONS: Final[dict[tuple[str, str], str]] = {
    ("getattr", "minimal"): _INTERPRETER,
}
