"""Lines for whoever runs the file server, on standard error.

What lives here: `Log`, which a guest cannot use to fill the host's disk. What must not: what is worth
a line (each place decides).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Log"]

_BURST: Final = 200
_PER_SECOND: Final = 10
"""A guest that is misused makes a few lines; one that is hostile makes as many as it gets. At this rate a
day's lines are some 100 MB."""

_STDERR: Final = 2


class Log:
    """Writes lines, `_BURST` at once and `_PER_SECOND` after that; says how many were left out.

    A mount process goes on with its own copy, so that the rate is that of each process.
    """

    def __init__(self, descriptor: int = _STDERR, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._last = clock()
        self._room = float(_BURST)
        self._left_out = 0

    def __call__(self, line: str) -> None:
        """Write one line, if there is room for it. Never raises: who reads it may be gone."""
        now = self._clock()
        self._room = min(_BURST, self._room + (now - self._last) * _PER_SECOND)
        self._last = now
        if self._room < 1:
            self._left_out += 1
            return
        self._room -= 1
        if self._left_out:
            line = f"{line} ({self._left_out} lines before this one were left out)"
            self._left_out = 0
        with suppress(OSError):
            os.write(self._descriptor, f"uvmshare: {line}\n".encode(errors="backslashreplace"))
