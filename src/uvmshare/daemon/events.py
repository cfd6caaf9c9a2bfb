"""What happened: the events that clients follow, and the log line of each.

What lives here: the last events of each user's VMs, and those who wait for the next. What must not: which kinds there
are (`event_kinds`), or how they are sent (`app`).
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import defaultdict, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog

from uvmshare.daemon.documents import Event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from uvmshare.daemon.event_kinds import EventKind
    from uvmshare.daemon.identity import Identity

__all__ = ["BEGINNING", "EventLog", "KeptEvent"]

_KEPT: Final = 10_000
"""Events of each user's VMs, some MB: nobody pushes out another's. Who was away for longer is told that some are
missing."""

_KEPT_CHARACTERS: Final = 4 << 20
"""In the details of these events: paths may be long."""

_LONGEST_DETAIL: Final = 10_000
"""Characters. A reason may come from a user's own process."""

BEGINNING: Final = "0"
"""The id that is before every event."""

_MOST_DIGITS: Final = 20
"""Of an event's number: nobody makes int() work on a long one."""


class KeptEvent(msgspec.Struct, frozen=True):
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


def _size(event: KeptEvent) -> int:
    return sum(len(value) for value in event.detail.values() if isinstance(value, str))


class _Kept:
    """The last events of one user's VMs, oldest first, and the number of the last that is not kept any more."""

    def __init__(self, most: int) -> None:
        self.events: deque[KeptEvent] = deque()
        self._dropped = 0
        self._dropped_of_theirs = 0
        """As `_dropped`, of those alone that the VMs' own user may see."""
        self._most = most
        self._size = 0
        """Characters in their details, which are nearly all that differs in size."""

    def add(self, event: KeptEvent) -> None:
        self.events.append(event)
        self._size += _size(event)
        while len(self.events) > self._most or self._size > _KEPT_CHARACTERS:
            gone = self.events.popleft()
            self._dropped = gone.number
            if gone.uid in (None, gone.vm_uid):
                self._dropped_of_theirs = gone.number
            self._size -= _size(gone)

    def dropped(self, who: Identity) -> int:
        """Return the number of the last event that is not kept, and that `who` could have seen: one user, or root."""
        return self._dropped if who.is_root else self._dropped_of_theirs

    def behind(self, position: int) -> KeptEvent | None:
        """Return the first event with a greater number."""
        at = bisect_right(self.events, position, key=lambda event: event.number)
        return self.events[at] if at < len(self.events) else None


class EventLog:
    """The events of one daemon process, numbered in the order in which they came.

    `instance` tells this process from those before it: after a restart, an id of an earlier one is known to be
    so, and the client is told that it may have missed something.
    """

    def __init__(self, instance: str, clock: Callable[[], float], kept: int = _KEPT) -> None:
        self.instance = instance
        self._clock = clock
        self._of_user: defaultdict[int, _Kept] = defaultdict(lambda: _Kept(kept))
        """By whose VMs they are about."""
        self._last = 0
        self._waiting: set[asyncio.Event] = set()
        self._closed = False
        self._log = structlog.get_logger("uvmshare.daemon")

    def emit(
        self,
        kind: EventKind,
        vm: tuple[int, str],
        *,
        uid: int | None = None,
        share: str | None = None,
        owner: str | None = None,
        **detail: object,
    ) -> None:
        """Note that something happened, log it, and wake those who follow."""
        self._last += 1
        detail = {key: value[:_LONGEST_DETAIL] if isinstance(value, str) else value for key, value in detail.items()}
        event = KeptEvent(self._last, self._clock(), kind.value, *vm, uid, share, owner, detail)
        self._of_user[vm[0]].add(event)
        self._log.info(kind.value, vm=f"{vm[0]}:{vm[1]}", share=share, owner=owner, **detail)
        for waiting in self._waiting:
            waiting.set()

    def id_of(self, event: KeptEvent) -> str:
        """Return the id that a client gives back to go on behind this event."""
        return f"{self.instance}-{event.number}"

    def close(self) -> None:
        """End every `follow`, because the daemon ends."""
        self._closed = True
        for waiting in self._waiting:
            waiting.set()

    async def follow(self, who: Identity, after: str | None, *, wait: bool = True) -> AsyncIterator[KeptEvent | None]:
        """Give `who` the events behind the one of id `after` (None: from now on), then new ones as they come.

        Those of their own VMs that are about nobody else's holding; to root all. `after` "0" is all that are kept. A
        None among them says that some behind the one before it are missing, or may be: behind an id that this daemon
        did not give, an earlier one may have had more. Without `wait` it ends with the last that there is.
        """
        position = self._last
        if after is not None:
            instance, _, number = after.rpartition("-")
            digits = number.isascii() and number.isdigit() and len(number) <= _MOST_DIGITS
            known = instance == self.instance and digits and int(number) <= self._last
            position = int(number) if known else 0
            if not known and after != BEGINNING:
                yield None
        told = 0
        waiting = asyncio.Event()
        self._waiting.add(waiting)
        try:
            while True:
                waiting.clear()
                kept = self._kept_for(who)
                dropped = max((each.dropped(who) for each in kept), default=0)
                if dropped > max(position, told):  # they were away for long, or are slow
                    told = dropped
                    yield None
                    continue
                found = [event for each in kept if (event := each.behind(position)) is not None]
                if found:
                    event = min(found, key=lambda each: each.number)
                    position = event.number
                    if who.is_root or event.uid in (None, who.uid):
                        yield event
                    continue
                position = self._last
                if self._closed or not wait:
                    return
                await waiting.wait()
        finally:
            self._waiting.discard(waiting)

    def _kept_for(self, who: Identity) -> list[_Kept]:
        return [kept for uid, kept in self._of_user.items() if who.is_root or uid == who.uid]

    def document(self, event: KeptEvent, vm: str) -> Event:
        """Return the event as it is sent; `vm` is the VM's name for the one who gets it."""
        return Event(
            id=self.id_of(event),
            time=datetime.fromtimestamp(event.time, UTC),
            kind=event.kind,
            vm=vm,
            share=event.share,
            owner=event.owner,
            detail=event.detail,
        )
