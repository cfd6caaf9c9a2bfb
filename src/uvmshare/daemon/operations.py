"""What takes a while: it runs to its end whether or not the client waits, and can be looked up meanwhile.

What lives here: the operations under way and the last that ended, of each user his own. What must not: what they do
(`service`), or how an error is said (`problems`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from uvmshare.errors import NotThere

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["Operations", "Running"]

_KEPT: Final = 1000
"""Operations that ended, of each user: nobody pushes out another's."""


@dataclass(slots=True, eq=False)
class Running:
    """One operation. `outcome` is what `task` returned or raised, once it has ended."""

    id: str
    action: str
    vm: str
    uid: int
    """Who asked."""
    started: float
    task: asyncio.Task[Any] = field(repr=False)
    ended: float | None = None


class Operations:
    """The operations of one daemon."""

    def __init__(self, instance: str, clock: Callable[[], float], kept: int = _KEPT) -> None:
        self._instance = instance
        self._clock = clock
        self._kept = kept
        self._of_user: defaultdict[int, dict[str, Running]] = defaultdict(dict)
        """By who asked, oldest first."""
        self._last = 0

    def start(self, action: str, vm: str, uid: int, work: Coroutine[Any, Any, Any]) -> Running:
        """Begin an operation."""
        self._last += 1
        task = asyncio.get_running_loop().create_task(work)
        running = Running(f"{self._instance}-{self._last}", action, vm, uid, self._clock(), task)
        self._of_user[uid][running.id] = running
        task.add_done_callback(lambda _: self._note_end(running))
        return running

    def _note_end(self, running: Running) -> None:
        running.ended = self._clock()
        if not running.task.cancelled():
            running.task.exception()  # taken note of: nobody may wait for it
        mine = self._of_user[running.uid]
        over = [each.id for each in mine.values() if each.ended is not None]
        for id_ in over[: -self._kept]:
            del mine[id_]

    def find(self, id_: str, uid: int) -> Running:
        """Return an operation. Raises `NotThere` for none, and for another user's, unless root asks."""
        for user, mine in self._of_user.items():
            if uid in (0, user) and id_ in mine:
                return mine[id_]
        msg = f"there is no operation {id_!r}, or none of yours: the last {self._kept} of each user that ended are kept"
        raise NotThere(msg)

    def list(self, uid: int) -> list[Running]:
        """Return the operations that a user asked for; root sees all. Oldest first."""
        found = [running for user, mine in self._of_user.items() if uid in (0, user) for running in mine.values()]
        return sorted(found, key=lambda running: running.started)

    def under_way(self, uid: int) -> int:
        """Count what a user asked for and has not ended."""
        return sum(running.ended is None for running in self._of_user[uid].values())

    async def settle(self) -> None:
        """Wait until every operation has ended."""
        while running := [each.task for each in self.list(0) if not each.task.done()]:
            await asyncio.wait(running)
