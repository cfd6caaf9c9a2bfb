"""The pins of a mount, as the table of mounts has them: a child that holds them, and its end.

What lives here: `Pins`. What must not: what the child does (`pinning`). Standard library only (Python 3.9): it runs in
guests.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from uvmshare.guest.loop import Child
from uvmshare.guest.pinning import pinning

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.guest.loop import Loop

__all__ = ["MOST_MOUNTS", "Pins"]

MOST_MOUNTS = 8
"""Mounts that have pins: each has a process of its own, which waits for the file server. The guest's kernel counts what
waits for a server to its load."""
_READY = 2.0
"""Seconds that a mount is not told to be ready because its directories are being pinned; it goes on afterwards."""
_LOOK = 0.01
"""Seconds between two looks whether the child has ended."""


class Pins:
    """The child that holds directories of the mount at a path, `most` at most. It ends with the mount's connection.

    With `events` it also repeats what the host does in them. `changed` is called when it is told anew why it does not.
    """

    def __init__(
        self,
        loop: Loop,
        path: str,
        prefixes: list[str],
        most: int,
        *,
        events: bool,
        changed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._changed = changed
        self.directories = 0
        """How many are pinned."""
        self.full = False
        """Whether there are more directories than may be pinned."""
        self.ended = ""
        """Why nothing is pinned."""
        self.events: dict[str, Any] | None = None
        """How many changes of the host were repeated, and failed, and why none are; None where none are asked for."""
        self._then: Callable[[], None] | None = None
        self._ready = False
        self._child: Child | None = None
        try:
            self._child = Child(loop, pinning(path, prefixes, most, events=events), self._message, self._over)
        except OSError as error:
            self.ended = f"no process can be started for it: {error.strerror}"
            self._ready = True

    def told(self) -> dict[str, Any]:
        """Return what the host is told of them."""
        told = {"directories": self.directories, "full": self.full, "ended": self.ended}
        return told if self.events is None else {**told, "events": self.events}

    @property
    def no_events(self) -> str:
        """Why what the host does is not repeated, if it was to be; "" while it is, and until that is known."""
        why: str = self.ended or (self.events or {}).get("ended", "")
        return why

    def when_ready(self, then: Callable[[], None]) -> None:
        """Call back once, when the directories are pinned, when there will be no pins, or when it takes too long."""
        if self._ready:
            then()
            return
        self._then = then
        self._loop.later(_READY, self._be_ready)

    def end(
        self,
        then: Callable[[], None] | None = None,
        *,
        within: float = 0.0,
        late: Callable[[], None] | None = None,
    ) -> None:
        """Let go of all, and call back when that is done.

        Letting go asks the file server. When it takes longer than `within` seconds, `late` is called, which cuts the
        connection, and it is waited for as long once more.
        """
        child, self._child = self._child, None
        if child is not None:
            child.give_up()
        if then is not None:
            self._wait(child, then, within, time.monotonic() + within, late)
        self._be_ready()

    def _wait(
        self,
        child: Child | None,
        then: Callable[[], None],
        within: float,
        until: float,
        late: Callable[[], None] | None,
    ) -> None:
        if child is None or _has_ended(child.pid):
            then()
        elif time.monotonic() < until:
            self._loop.later(_LOOK, partial(self._wait, child, then, within, until, late))
        elif late is not None:
            late()
            self._wait(child, then, within, until + within, None)
        else:
            then()

    def _message(self, message: dict[str, Any], _: list[int]) -> None:
        before = self.no_events
        self.directories = message.get("directories", 0)
        self.full = message.get("full", False)
        self.ended = message.get("ended", "")
        self.events = message.get("events", self.events)
        self._be_ready()
        if self.no_events != before:
            self._changed()

    def _over(self) -> None:
        self.directories, self.full = 0, False
        if not self.ended:
            self.ended = "the process that held its directories has ended"
            self._changed()
        self._child = None
        self._be_ready()

    def _be_ready(self) -> None:
        self._ready = True
        then, self._then = self._then, None
        if then is not None:
            then()


def _has_ended(pid: int) -> bool:
    """Say whether a child holds nothing any more. It may have been waited for already."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True
