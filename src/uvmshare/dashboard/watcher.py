"""Keeps what the daemon says: asked again and again, and at once when an event tells that something has changed.

What lives here: when the daemon is asked, what it said last and how long ago, the last events, the rates. What must
not: HTTP, in either direction (`source`, `site`).

One watcher serves all who look, so that many viewers cost the daemon no more than one. Each VM is asked by a task of
its own: one whose file server does not answer keeps what it said last, which grows old, and holds up no other. While
nobody looks, only counters are read.
"""

from __future__ import annotations

import asyncio
import math
import os
import pwd
import socket
import time
from collections import deque
from contextlib import aclosing, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeVar

import msgspec

from uvmshare.dashboard.rates import Counts, RateHistory, summed
from uvmshare.dashboard.view import (
    MOST_ROWS,
    MOST_VMS,
    DaemonView,
    Part,
    Totals,
    View,
    VmView,
    rate_of,
    series_of,
    shown,
)
from uvmshare.errors import UvmshareError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator

    from uvmshare.daemon.documents import Event, Info, Mount, Share, Stats, Vm

__all__ = ["KEPT_EVENTS", "Happened", "WatchedDaemon", "Watcher"]

T = TypeVar("T")

INTERVAL: Final = 2.0
"""Seconds between two questions about the same VM."""

_VMS_A_SECOND: Final = 8
"""VMs that are asked in a second. With more than twice as many, each is asked less often."""

_AT_ONCE: Final = 16
"""VMs that are asked beside each other. One that does not answer takes 15 s at most."""

_PAUSE: Final = 0.2
"""Seconds from an answer to the next question, however much happens."""

_FIRST: Final = "0"
"""An id that no event has: all events that are kept come behind it."""

KEPT_EVENTS: Final = 200


class WatchedDaemon(Protocol):
    """Whom the watcher asks."""

    @property
    def path(self) -> str:
        """Where the daemon's socket is."""
        ...

    @property
    def info(self) -> Callable[[], Awaitable[Info]]:
        """Returns what the daemon is."""
        ...

    @property
    def vms(self) -> Callable[[], Awaitable[list[Vm]]]:
        """Returns the VMs."""
        ...

    @property
    def shares(self) -> Callable[[str], Awaitable[list[Share]]]:
        """Returns the shares of a VM."""
        ...

    @property
    def mounts(self) -> Callable[[str], Awaitable[list[Mount]]]:
        """Returns the mounts in a VM's guest."""
        ...

    @property
    def stats(self) -> Callable[[str], Awaitable[list[Stats]]]:
        """Returns what a VM's guest has done."""
        ...

    def events(self, since: str) -> AsyncGenerator[Event | None, None]:
        """Give events as they happen; None where some are missing."""
        ...


class Happened(NamedTuple):
    """An event as the page gets it, or None where some are missing; numbered as they came."""

    number: int
    event: dict[str, Any] | None


class _Answer:
    """What was said last to one question, when, and what went wrong since."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.time: float | None = None
        self.error: str | None = None

    def part(self, now: float, items: list[dict[str, Any]]) -> Part:
        return Part(items, len(self.items), None if self.time is None else now - self.time, self.error)


class _Machine:
    """What is known of one VM."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.wake = asyncio.Event()
        self.shares = _Answer()
        self.mounts = _Answer()
        self.counters = _Answer()
        self.rates: dict[str, RateHistory] = {}
        """By share."""


class Watcher:
    """Asks one daemon, and gives what it said as a `View`.

    `clock` counts seconds, by any zero; `now` gives those since the epoch.
    """

    def __init__(
        self,
        source: WatchedDaemon,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._source = source
        self._least = interval
        self._clock = clock
        self._now = now
        self._host = shown(socket.gethostname())
        self._user = shown(_name_of(os.geteuid()))
        self._machines: dict[str, _Machine] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._listed = _Answer()
        self._info: dict[str, Any] | None = None
        self._reached = asyncio.Event()
        self._since = now()
        self._error: str | None = None
        self._wake = asyncio.Event()
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._viewers: set[asyncio.Event] = set()
        self.events: deque[Happened] = deque(maxlen=KEPT_EVENTS)
        self.version = 0
        """Counts the changes of what a `view` would say, ages aside."""

    async def run(self) -> None:
        """Watch, until it is cancelled. Raises only what is a defect."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_daemon(tasks))
            tasks.create_task(self._follow_events())

    @contextmanager
    def looking(self) -> Iterator[asyncio.Event]:
        """Be a viewer for the length of a block; what it gives is set when there is something new."""
        news = asyncio.Event()
        first = not self._viewers
        self._viewers.add(news)
        if first:
            self._wake_all()
        try:
            yield news
        finally:
            self._viewers.discard(news)

    @property
    def viewers(self) -> int:
        """How many are looking."""
        return len(self._viewers)

    @property
    def interval(self) -> float:
        """Seconds between two questions about the same VM."""
        return max(self._least, self._least * len(self._machines) / (INTERVAL * _VMS_A_SECOND))

    # Asking

    async def _watch_daemon(self, tasks: asyncio.TaskGroup) -> None:
        while True:
            try:
                info, vms = await self._source.info(), await self._source.vms()
            except UvmshareError as error:
                self._lost(error)
            else:
                self._found(info, vms, tasks)
            self._changed()
            await self._pause(self._wake)

    def _lost(self, error: UvmshareError) -> None:
        if self._reached.is_set() or self._error is None:
            self._since = self._now() if self._listed.time is None else self._now() - self._clock() + self._listed.time
        self._reached.clear()
        self._error = shown(str(error))

    def _found(self, info: Info, vms: list[Vm], tasks: asyncio.TaskGroup) -> None:
        if not self._reached.is_set():
            self._since = self._now()
            self._error = None
        self._info = shown(msgspec.to_builtins(info))
        self._listed.items = [shown(msgspec.to_builtins(vm)) for vm in vms]
        self._listed.time = self._clock()
        there = {vm.id: document for vm, document in zip(vms, self._listed.items, strict=True)}
        for gone in self._machines.keys() - there.keys():
            del self._machines[gone]
            self._tasks.pop(gone).cancel()
        for name, document in there.items():
            if name in self._machines:
                self._machines[name].document = document
            else:
                self._machines[name] = _Machine(document)
                self._tasks[name] = tasks.create_task(self._watch_vm(name, self._machines[name]))
        if not self._reached.is_set():
            self._reached.set()
            self._wake_all()

    async def _watch_vm(self, name: str, machine: _Machine) -> None:
        source = self._source
        while True:
            await self._reached.wait()
            if machine.document["state"] != "finding":  # what it has is not known yet
                async with self._at_once, asyncio.TaskGroup() as asking:
                    if self._viewers:
                        asking.create_task(self._ask(machine.shares, source.shares(name)))
                        asking.create_task(self._ask(machine.mounts, source.mounts(name)))
                    asking.create_task(self._count(name, machine))
            await self._pause(machine.wake)

    async def _ask(self, answer: _Answer, asked: Awaitable[list[Any]]) -> bool:
        try:
            items = await asked
        except UvmshareError as error:
            answer.error = shown(str(error))
            found = False
        else:
            answer.items = [shown(msgspec.to_builtins(each)) for each in items]
            answer.time, answer.error = self._clock(), None
            found = True
        self._changed()
        return found

    async def _count(self, name: str, machine: _Machine) -> None:
        if not await self._ask(machine.counters, self._source.stats(name)):
            return
        assert machine.counters.time is not None, "it was just answered"
        tick, found = self._tick(), {each["share"]: each for each in machine.counters.items}
        for gone in machine.rates.keys() - found.keys():
            del machine.rates[gone]
        for share, counted in found.items():
            counts = Counts(*(float(counted[field]) for field in Counts._fields))
            machine.rates.setdefault(share, RateHistory()).read(tick, machine.counters.time, counts)

    async def _follow_events(self) -> None:
        since = _FIRST
        while True:
            await self._reached.wait()
            with suppress(UvmshareError):
                async with aclosing(self._source.events(since)) as events:
                    async for event in events:
                        since = since if event is None else event.id
                        self._take(event)
            self._wake.set()  # is the daemon there still?
            await asyncio.sleep(_PAUSE)

    def _take(self, event: Event | None) -> None:
        if event is None and not self.events:
            return  # at first, what is not kept is nothing that was missed
        number = self.events[-1].number + 1 if self.events else 1
        self.events.append(Happened(number, None if event is None else shown(msgspec.to_builtins(event))))
        self.tell()
        self._wake.set()
        if event is not None and event.vm in self._machines:
            self._machines[event.vm].wake.set()

    # Time

    def _tick(self) -> int:
        return int(self._clock() / self._least)

    async def _pause(self, wake: asyncio.Event) -> None:
        """Wait for the next tick of this interval, or to be woken, and a moment in any case."""
        await asyncio.sleep(min(_PAUSE, self._least))
        try:
            async with asyncio.timeout(self.interval - self._clock() % self.interval):
                await wake.wait()
        except TimeoutError:
            pass
        wake.clear()

    def _wake_all(self) -> None:
        self._wake.set()
        for machine in self._machines.values():
            machine.wake.set()

    def _changed(self) -> None:
        self.version += 1
        self.tell()

    def tell(self) -> None:
        """Wake all who look."""
        for news in self._viewers:
            news.set()

    # What it says

    def view(self) -> View:
        """Return everything that is known now."""
        at = _Moment(self._clock(), self._tick(), math.ceil(self.interval / self._least))
        machines = list(self._machines.values())
        series = [summed(at.series(rates) for rates in machine.rates.values()) for machine in machines]
        room = [MOST_ROWS, MOST_ROWS]
        vms = [_view_of(machine, rates, at, room) for machine, rates in zip(machines[:MOST_VMS], series, strict=False)]
        return View(
            now=self._now(),
            host=self._host,
            user=self._user,
            interval=self.interval,
            daemon=DaemonView(self._reached.is_set(), self._since, self._error, shown(self._source.path), self._info),
            age=None if self._listed.time is None else at.clock - self._listed.time,
            vms=vms,
            totals=Totals(
                vms=len(machines),
                shares=sum(self._number(machine.shares, machine.document["shares"]) for machine in machines),
                mounts=sum(self._number(machine.mounts, machine.document["mounts"]) for machine in machines),
                leases=sum(
                    reference["lease"] is not None
                    for machine in machines
                    for item in (*machine.shares.items, *machine.mounts.items)
                    for reference in item["references"]
                ),
                rate=rate_of(_last(machines, at)),
                series=series_of(summed(series)),
            ),
        )

    def _number(self, answer: _Answer, listed: int) -> int:
        """Return how many of something a VM has, by the newer of two answers: its own list, or that of all VMs."""
        newer = answer.time is not None and (self._listed.time is None or answer.time >= self._listed.time)
        return len(answer.items) if newer else listed


class _Moment(NamedTuple):
    """When a view is made: the clock, its tick, and how many ticks lie between two readings of a VM's counters."""

    clock: float
    tick: int
    between: int

    def series(self, rates: RateHistory) -> list[Counts | None]:
        return rates.series(self.tick, self.between)

    def now(self, rates: RateHistory) -> Counts | None:
        return rates.now(self.tick, self.between)


def _view_of(machine: _Machine, series: list[Counts | None], at: _Moment, room: list[int]) -> VmView:
    """Return the view of one VM, with as many shares and mounts as there is room for, which is taken."""
    shares, mounts = machine.shares.items[: room[0]], machine.mounts.items[: room[1]]
    room[0] -= len(shares)
    room[1] -= len(mounts)
    counted = {each["share"]: each for each in machine.counters.items}
    rows = []
    for share in shares:
        rates = machine.rates.get(share["name"])
        more = {
            "counted": counted.get(share["name"]),
            "rate": None if rates is None else rate_of(at.now(rates)),
            "series": None if rates is None else series_of(at.series(rates)),
        }
        rows.append(share | more)
    return VmView(
        vm=machine.document,
        shares=machine.shares.part(at.clock, rows),
        mounts=machine.mounts.part(at.clock, mounts),
        counters_age=None if machine.counters.time is None else at.clock - machine.counters.time,
        counters_error=machine.counters.error,
        rate=rate_of(_last([machine], at)),
        series=series_of(series),
    )


def _last(machines: list[_Machine], at: _Moment) -> Counts | None:
    """Return the sum of the rates that are known now; None where none is."""
    found = [rate for machine in machines for rates in machine.rates.values() if (rate := at.now(rates)) is not None]
    return Counts(*map(sum, zip(*found, strict=True))) if found else None


def _name_of(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
