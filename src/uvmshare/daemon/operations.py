"""Operations: they take a while, run to their end whether or not the client waits, and can be looked up.

What lives here: the operations under way and the last that ended, of each user their own. What must not: what they do
(`service`), or how an error is said (`problems`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.daemon.problems import problem_of
from uvmshare.errors import NotThere

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from uvmshare.daemon.documents import Problem

__all__ = ["Operations", "Running"]

_KEPT: Final = 1000
"""Operations that ended, of each user: nobody pushes out another's."""


_KEPT_BYTES: Final = 4 << 20
"""Of what these came to, as documents."""


def _size(result: object) -> int:
    return len(msgspec.json.encode(result))


@dataclass(slots=True, eq=False)
class Running:
    """One operation. Once it has ended it has no `task`; `result` is what that returned, or `problem` why it failed.

    The exception itself is not kept: its traceback would keep the frames, and these the request's whole document.
    """

    id: str
    action: str
    vm: str
    uid: int
    """Who asked."""
    started: float
    task: asyncio.Task[Any] | None = field(repr=False)
    ended: float | None = None
    result: Any = None
    problem: Problem | None = None
    size: int = 0
    """Bytes: while it runs of the request's document, then of what it came to."""


class Operations:
    """The operations of one daemon."""

    def __init__(self, instance: str, clock: Callable[[], float], kept: int = _KEPT) -> None:
        self._instance = instance
        self._clock = clock
        self._kept = kept
        self._of_user: defaultdict[int, dict[str, Running]] = defaultdict(dict)
        """By who asked, oldest first."""
        self._last = 0

    def start(self, action: str, vm: str, uid: int, work: Coroutine[Any, Any, Any], size: int = 0) -> Running:
        """Begin an operation; `size` is that of the request's document, in bytes."""
        self._last += 1
        task = asyncio.get_running_loop().create_task(work)
        running = Running(f"{self._instance}-{self._last}", action, vm, uid, self._clock(), task, size=size)
        self._of_user[uid][running.id] = running
        task.add_done_callback(lambda ended: self._note_end(running, ended))
        return running

    def _note_end(self, running: Running, task: asyncio.Task[Any]) -> None:
        running.ended = self._clock()
        running.task = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        if error is None:
            running.result = task.result()
        else:
            running.problem = problem_of(error, f"{running.action}, VM {running.vm}")
        mine = self._of_user[running.uid]
        running.size = _size(running.result if error is None else running.problem)
        over = [each for each in mine.values() if each.ended is not None]
        size = sum(each.size for each in over)
        for each in over:
            if len(over) <= self._kept and size <= _KEPT_BYTES:
                break
            size -= each.size
            over = over[1:]
            del mine[each.id]

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

    def under_way(self, uid: int) -> tuple[int, ...]:
        """Return the size of each operation that a user asked for and that has not ended."""
        return tuple(running.size for running in self._of_user[uid].values() if running.ended is None)

    async def settle(self, seconds: float | None = None) -> None:
        """Wait until every operation has ended. What takes longer than `seconds` is cancelled."""
        running = [each.task for each in self.list(0) if each.task is not None]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=seconds)
        for task in late:
            task.cancel()
