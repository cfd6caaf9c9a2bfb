"""What mount processes say of themselves, on its way to the log of their supervisor.

What lives here: the pipe of each mount process, and how much of it is heard. What must not: the log itself (`log`).

A mount process has no descriptor of the log. One that a guest has taken over could write there what it likes, as if it
came from others, and change the file's attributes. So its standard error is a pipe, and its supervisor says whose words
these are. A supervisor that takes over opens the pipe again; what is said between two supervisors is lost.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.log import STDERR

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.supervisor.loop import Loop

__all__ = ["Said", "reopen"]

_ENOUGH: Final = 64 * 1024
"""Bytes that are heard of one mount: some 600 lines, and no mount that is served has so many reasons."""
_AT_A_TIME: Final = 4096


def reopen(pid: int) -> int | None:
    """Open what a mount process says, which was another supervisor's to hear; None when that cannot be had."""
    try:
        pipe = os.open(f"/proc/{pid}/fd/{STDERR}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISFIFO(os.fstat(pipe).st_mode):
        return pipe
    os.close(pipe)
    return None


class Said:
    """What one mount process says. `log` takes each line."""

    def __init__(self, loop: Loop, pipe: int, log: Callable[[str], None]) -> None:
        """Hear what comes through the pipe's reading end, which does not block and is taken over."""
        self._loop = loop
        self._pipe = pipe
        self._log = log
        self._left = _ENOUGH
        self._rest = b""
        self._is_open = True
        loop.watch(pipe, lambda _: self._turn())

    def _hear(self) -> bool:
        """Read what is there, a page at most; say whether there may be more."""
        try:
            data = os.read(self._pipe, _AT_A_TIME)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._log(line.decode(errors="backslashreplace"))
        self._left -= len(data)
        if data and self._left > 0:
            return True
        if data:
            self._log("it says too much, and is not listened to any more")
        self._stop()
        return False

    def _turn(self) -> None:
        self._hear()

    def hear_all(self) -> None:
        """Log what was said until now."""
        while self._is_open and self._hear():
            pass

    def close(self) -> None:
        """Log what was said until now, and hear no more."""
        self.hear_all()
        if self._is_open:
            self._stop()

    def _stop(self) -> None:
        self._is_open = False
        self._loop.forget(self._pipe)
        os.close(self._pipe)
