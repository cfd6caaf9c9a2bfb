"""Lines for whoever runs the file server, on standard error.

What lives here: `Log`, which a guest cannot use to fill the host's disk, and `say`, for mount processes. What
must not: what is worth a line (each place decides).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CUT_BYTES", "KEPT_BYTES", "MOST_BYTES", "STDERR", "Log", "say"]

_BURST: Final = 200
_PER_SECOND: Final = 10
"""A guest that is misused makes a few lines; one that is hostile makes as many as it gets. At this rate a
day's lines are some 100 MB."""

_LONGEST: Final = 2000
"""Bytes of a line; what is longer is cut."""

CUT_BYTES: Final = 4 << 20
KEPT_BYTES: Final = 1 << 20
MOST_BYTES: Final = 8 << 20
"""A log of the file server's own is cut to its newest lines, `KEPT_BYTES` of them, when it has more than `CUT_BYTES`.
Where it cannot be cut, no more lines are written beyond `MOST_BYTES`."""

STDERR: Final = 2


class Log:
    """Writes lines, `_BURST` at once and `_PER_SECOND` after that; says how many were left out.

    It is the supervisor's alone; what mount processes say comes to it through pipes (`said`). So all of them draw on
    one account, and a guest gets no more lines for connecting again.
    """

    def __init__(self, descriptor: int = STDERR, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._descriptor = descriptor
        self._clock = clock
        self._reader: int | None = None
        self._settled = clock()
        self._room: float = _BURST
        self._left_out = 0

    def bound(self, reader: int | None) -> None:
        """Keep the log small from now on: it is a file of this server's own, and `reader` a descriptor to read it.

        None is for what is no such file.
        """
        self._reader = reader

    def cut(self) -> None:
        """Leave the newest lines alone when there are too many. For the supervisor; never raises."""
        if self._reader is None:
            return
        with suppress(OSError):
            size = os.fstat(self._descriptor).st_size
            if size <= CUT_BYTES:
                return
            newest = os.pread(self._reader, KEPT_BYTES, size - KEPT_BYTES).partition(b"\n")[2]
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, b"uvmshare: older lines were cut\n" + newest)

    def _is_full(self) -> bool:
        with suppress(OSError):
            return self._reader is not None and os.fstat(self._descriptor).st_size > MOST_BYTES
        return False

    def __call__(self, line: str) -> None:
        """Write one line, made printable, if there is room for it. Never raises: who reads it may be gone."""
        now = self._clock()
        self._room = min(_BURST, self._room + (now - self._settled) * _PER_SECOND)
        self._settled = now
        if self._room < 1 or self._is_full():
            self._left_out += 1
            return
        self._room -= 1
        if self._left_out:
            line = f"{line} ({self._left_out} lines before this one were left out)"
            self._left_out = 0
        with suppress(OSError):
            os.write(self._descriptor, f"uvmshare: {printable(line)}".encode()[:_LONGEST] + b"\n")


def say(line: str) -> None:
    """Say a line, as a mount process. Never raises: nobody may be there to hear it."""
    with suppress(OSError):
        os.write(STDERR, f"{printable(line)}\n".encode())
