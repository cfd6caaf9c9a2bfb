"""What happened: the events that clients follow, and the log line of each.

What lives here: the last events, and those who wait for the next. What must not: how they are sent (`app`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from uvmshare.daemon.documents import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

__all__ = ["EventLog", "Happening"]

_KEPT: Final = 10_000
"""Some MB. Who was away for longer is told that events are missing."""

_MOST_DIGITS: Final = 20
"""Of an event's number: nobody makes int() work on a long one."""


class Happening(msgspec.Struct, frozen=True):
    """An event with what decides who may see it: the VM's user, and the user whose share it is about."""

    number: int
    time: float
    kind: str
    vm_uid: int
    vm: str
    uid: int | None
    share: str | None
    owner: str | None
    detail: dict[str, Any]


class EventLog:
    """The events of one daemon process, oldest first.

    `instance` tells this process from those before it: after a restart, an id of an earlier one is known to be
    so, and the client is told that it may have missed something.
    """

    def __init__(self, instance: str, clock: Callable[[], float], kept: int = _KEPT) -> None:
        self.instance = instance
        self._clock = clock
        self._events: deque[Happening] = deque(maxlen=kept)
        self._last = 0
        self._waiting: set[asyncio.Event] = set()
        self._closed = False
        self._log = structlog.get_logger("uvmshare.daemon")

    def emit(
        self,
        kind: str,
        vm: tuple[int, str],
        *,
        uid: int | None = None,
        share: str | None = None,
        owner: str | None = None,
        **detail: object,
    ) -> None:
        """Note that something happened, log it, and wake those who follow."""
        self._last += 1
        happening = Happening(self._last, self._clock(), kind, *vm, uid, share, owner, detail)
        self._events.append(happening)
        self._log.info(kind, vm=f"{vm[0]}:{vm[1]}", share=share, owner=owner, **detail)
        for waiting in self._waiting:
            waiting.set()

    def id_of(self, happening: Happening) -> str:
        """Return the id that a client gives back to go on behind this event."""
        return f"{self.instance}-{happening.number}"

    def close(self) -> None:
        """End every `follow`, because the daemon ends."""
        self._closed = True
        for waiting in self._waiting:
            waiting.set()

    async def follow(
        self, after: str | None, may_see: Callable[[Happening], bool], *, wait: bool = True
    ) -> AsyncIterator[Happening | None]:
        """Give the events behind the one of id `after` (None: from now on), then new ones as they come.

        A None among them says that events are missing between the one before and the one behind it. Without `wait`
        it ends with the last that there is.
        """
        position = self._last
        if after is not None:
            instance, _, number = after.rpartition("-")
            digits = number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS
            known = instance == self.instance and digits and int(number) <= self._last
            position = int(number) if known else 0
            if not known:
                yield None
        waiting = asyncio.Event()
        self._waiting.add(waiting)
        try:
            while True:
                waiting.clear()
                if self._events and self._events[0].number > position + 1:
                    position = self._events[0].number - 1
                    yield None
                while position < self._last:
                    happening = self._at(position + 1)
                    if happening is None:  # it fell out while the client was slow
                        break
                    position += 1
                    if may_see(happening):
                        yield happening
                if position < self._last:
                    continue
                if self._closed or not wait:
                    return
                await waiting.wait()
        finally:
            self._waiting.discard(waiting)

    def _at(self, number: int) -> Happening | None:
        first = self._events[0].number if self._events else number + 1
        return self._events[number - first] if number >= first else None

    def document(self, happening: Happening, vm: str) -> Event:
        """Return the event as it is sent; `vm` is the VM's name for the one who gets it."""
        return Event(
            id=self.id_of(happening),
            time=datetime.fromtimestamp(happening.time, UTC),
            kind=happening.kind,
            vm=vm,
            share=happening.share,
            owner=happening.owner,
            detail=happening.detail,
        )
