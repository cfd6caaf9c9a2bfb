"""One line on a terminal while a command takes longer than a second.

What lives here: that line, and its end before anything else is written. What must not: what is waited for.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from typing import TYPE_CHECKING, Final

from uvmshare.cli import output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Progress", "waiting"]

_FIRST: Final = 1.0
"""Seconds in which nothing is said: most things are done by then."""
_NEXT: Final = 1.0


class Progress:
    """A line that is written over itself, by a thread of its own."""

    def __init__(self, words: str, write: Callable[[str], None], pause: Callable[[float], bool]) -> None:
        """`pause` waits so many seconds and tells whether it is over."""
        self._words = words
        self._write = write
        self._pause = pause
        self._lock = threading.Lock()
        self._is_shown = False

    def run(self) -> None:
        """Write the line again each second until it is over."""
        seconds = 0.0
        wait = _FIRST
        while not self._pause(wait):
            seconds += wait
            wait = _NEXT
            with self._lock:
                self._is_shown = True
                self._write(f"\r\x1b[2K{self._words} ({seconds:.0f} s; Ctrl-C stops waiting)")

    def clear(self) -> None:
        """Take the line away, so that another one can be written."""
        with self._lock:
            if self._is_shown:
                self._is_shown = False
                self._write("\r\x1b[2K")


@contextlib.contextmanager
def waiting(words: str) -> Iterator[None]:
    """Say so, on a terminal, while the block takes longer than a second; commands write in it as ever."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()
    progress = Progress(words, output.write_raw, over.wait)
    thread = threading.Thread(target=progress.run, daemon=True)
    with output.cleared_by(progress.clear):
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            progress.clear()
