"""Reading the agent's mounts, one after the other, to see which can be read.

What lives here: `Check`. What must not: what follows from it (`uvmshare.guest.table`). Standard library only (Python
3.9): it runs in guests.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from uvmshare.guest import work
from uvmshare.guest.loop import Child

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from uvmshare.guest.loop import Loop
    from uvmshare.guest.table import AgentMount

__all__ = ["Check"]


class Check:
    """A child that reads mounts, one after the other."""

    def __init__(
        self,
        loop: Loop,
        records: dict[str, AgentMount],
        paths: deque[str],
        within: float,
        *,
        tell: Callable[[str, dict[str, Any]], None],
        ended: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._records = records
        self._paths = paths
        self._within = within
        self._tell = tell
        self._ended = ended
        self._begin()

    def _begin(self) -> None:
        if not self._paths:
            self._ended()
            return
        try:
            self._child = Child(self._loop, work.reading([*self._paths]), self._message, self._end)
        except OSError:  # there are too many processes
            self._timer = self._loop.later(0.0, self._end)
            return
        self._timer = self._loop.later(self._within, self._hangs)
        self._reads(self._paths[0])

    def _reads(self, path: str) -> None:
        record = self._records.get(path)
        if record is not None:
            record.reader = self._child

    def _message(self, message: dict[str, Any], _: list[int]) -> None:
        self._timer.cancel()
        self._timer = self._loop.later(self._within, self._hangs)
        path = self._paths.popleft()
        record = self._records.get(path)
        if record is not None and record.reader is self._child:
            record.reader, record.read_until = None, time.monotonic()
        if self._paths:
            self._reads(self._paths[0])
        self._tell(path, message)

    def _hangs(self) -> None:
        path = self._paths.popleft()
        self._child.give_up()
        self._tell(path, {"status": "slow", "error": f"no answer within {self._within:g} s"})
        self._begin()

    def _end(self) -> None:
        self._timer.cancel()
        for path in self._paths:
            self._tell(path, {"status": "failing", "error": "the child that reads it was broken off"})
        self._ended()
