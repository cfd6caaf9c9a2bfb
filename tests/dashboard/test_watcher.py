"""What is kept of what the daemon says, in virtual time: who is slow holds up nobody, and nothing grows without end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from uvmshare.daemon.documents import Event, Info, Share, Stats, Vm
from uvmshare.dashboard.stream import ViewerStreams
from uvmshare.dashboard.view import MOST_ROWS, MOST_VMS, shown
from uvmshare.dashboard.watcher import KEPT_EVENTS, Watcher
from uvmshare.errors import DaemonError, FileServerError
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from uvmshare.daemon.documents import Mount

BEGAN = datetime(2026, 1, 2, tzinfo=UTC)


@functools.cache
def empty(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Return an empty value for each field; those that a later version adds are empty too."""
    return {
        field.name: () if "tuple" in str(field.type) else {} if "dict" in str(field.type) else None
        for field in msgspec.structs.fields(kind)
    }


def document(kind: type[msgspec.Struct], **more: Any) -> Any:
    """Return a document with empty values where none are given."""
    return kind(**{**empty(kind), **more})


class Daemon:
    """A daemon that says what a test wants."""

    path = "/run/x"

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self.answers = True
        self.silent: set[str] = set()
        self.broken: set[str] = set()
        self.operations = 0
        self.asked: list[str] = []
        self.rows = 1
        self.happened: asyncio.Queue[Event | None] = asyncio.Queue()

    async def _say(self, what: str) -> None:
        self.asked.append(what)
        if not self.answers:
            msg = "no daemon answers at /run/x"
            raise DaemonError(msg)

    async def info(self) -> Info:
        await self._say("info")
        return Info(version="1", pid=1, uid=0, started=BEGAN, you=0, notes=())

    async def vms(self) -> list[Vm]:
        await self._say("vms")
        return [
            document(Vm, id=name, uid=0, state="running", restarts=0, shares=self.rows, mounts=0, read_only=False)
            for name in self.names
        ]

    async def shares(self, vm: str) -> list[Share]:
        await self._say(f"shares {vm}")
        if vm in self.silent:
            await asyncio.sleep(15)
        if vm in self.silent | self.broken:
            msg = f"VM {vm}: its file server does not answer"
            raise FileServerError(msg)
        return [
            document(
                Share,
                vm=vm,
                name=str(n),
                path=f"/{vm}",
                read_only=True,
                state="added",
                orphan=False,
                since=BEGAN,
                directory="there",
            )
            for n in range(self.rows)
        ]

    async def mounts(self, vm: str) -> list[Mount]:
        await self._say(f"mounts {vm}")
        return []

    async def stats(self, vm: str) -> list[Stats]:
        await self._say(f"stats {vm}")
        self.operations += 100
        counted = {"operations": self.operations, "errors": 0, "received": 0, "sent": 0}
        return [document(Stats, vm=vm, share="0", path=f"/{vm}", read_only=True, connections=1, **counted)]

    async def events(self, since: str) -> AsyncGenerator[Event | None, None]:
        await self._say(f"events {since}")
        while True:
            yield await self.happened.get()


class Watched:
    """A watcher that runs, on the loop's own clock."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        clock = asyncio.get_running_loop().time
        self.watcher = Watcher(daemon, clock=clock, now=lambda: 1000 + clock())
        self._task = asyncio.create_task(self.watcher.run())

    async def __aenter__(self) -> Watcher:
        return self.watcher

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


def test_a_vm_that_does_not_answer_keeps_what_it_said_and_holds_up_no_other() -> None:
    async def story() -> None:
        daemon = Daemon("slow", "quick")
        async with Watched(daemon) as watcher:
            with watcher.looking():
                await asyncio.sleep(5)
                daemon.silent.add("slow")
                await asyncio.sleep(30)
                slow, quick = watcher.view().vms
                assert slow.shares.age is not None
                assert quick.shares.age is not None
                assert slow.shares.age > 20
                assert quick.shares.age < 3
                assert slow.shares.error == "VM slow: its file server does not answer"
                assert (len(slow.shares.items), quick.shares.error) == (1, None)
                daemon.silent.clear()
                await asyncio.sleep(20)
                slow = watcher.view().vms[0]
                assert slow.shares.age is not None
                assert (slow.shares.age < 3, slow.shares.error) == (True, None)

    run(story())


def test_while_nobody_looks_only_counters_are_read_and_the_charts_go_on() -> None:
    async def story() -> None:
        daemon = Daemon("vm")
        async with Watched(daemon) as watcher:
            await asyncio.sleep(60)
            assert not [asked for asked in daemon.asked if asked.startswith(("shares", "mounts"))]
            assert watcher.view().totals.series.operations[-10:] == [50.0] * 10
            with watcher.looking():
                await asyncio.sleep(1)
                assert len(watcher.view().vms[0].shares.items) == 1, "asked at once, when somebody looks"

    run(story())


def test_many_viewers_cost_the_daemon_no_more_than_one() -> None:
    async def story(viewers: int) -> int:
        daemon = Daemon("vm")
        async with Watched(daemon) as watcher:
            with contextlib.ExitStack() as looking:
                for _ in range(viewers):
                    looking.enter_context(watcher.looking())
                await asyncio.sleep(60)
        return len(daemon.asked)

    assert run(story(50)) == run(story(1))


def test_many_vms_are_asked_less_often_and_the_view_says_how_often() -> None:
    async def story() -> None:
        daemon = Daemon(*(f"vm{n}" for n in range(160)))
        async with Watched(daemon) as watcher:
            with watcher.looking():
                await asyncio.sleep(61)
                before = len(daemon.asked)
                await asyncio.sleep(60)
                assert len(daemon.asked) - before < 60 * 8 * 3 * 1.5
                view = watcher.view()
                assert (view.interval, view.totals.vms, len(view.vms)) == (20, 160, MOST_VMS)
                assert view.totals.rate is not None
                assert all(vm.shares.age is not None and vm.shares.age < 25 for vm in view.vms)

    run(story())


def test_no_more_rows_and_events_are_kept_than_are_shown_and_totals_count_all() -> None:
    async def story() -> None:
        daemon = Daemon("one", "two")
        daemon.rows = MOST_ROWS - 1
        async with Watched(daemon) as watcher:
            with watcher.looking():
                for n in range(3 * KEPT_EVENTS):
                    daemon.happened.put_nowait(
                        Event(
                            id=f"a-{n}",
                            time=BEGAN,
                            kind="x",
                            vm="one",
                            share=None,
                            owner=None,
                            detail={"path": "/" * 9999},
                        )
                    )
                await asyncio.sleep(5)
                view = watcher.view()
                assert [len(vm.shares.items) for vm in view.vms] == [MOST_ROWS - 1, 1]
                assert [vm.shares.total for vm in view.vms] == [MOST_ROWS - 1] * 2
                assert view.totals.shares == 2 * (MOST_ROWS - 1)
                assert len(watcher.events) == KEPT_EVENTS
                assert watcher.events[-1].event is not None
                assert len(watcher.events[-1].event["detail"]["path"]) < 1100

    run(story())


def test_a_viewer_that_takes_nothing_gets_the_newest_view_afterwards_and_hears_that_it_missed_events() -> None:
    async def story() -> None:
        daemon = Daemon("vm")
        async with Watched(daemon) as watcher:
            messages = ViewerStreams(watcher).messages(asyncio.Event())
            daemon.happened.put_nowait(
                Event(id="a-0", time=BEGAN, kind="first", vm="vm", share=None, owner=None, detail={})
            )
            got = [await anext(messages) for _ in range(3)]
            kinds = [message.partition(b"\n")[0] for message in got]
            assert kinds == [b"retry: 2000", b"event: happened", b"event: view"]
            for n in range(1, 2 * KEPT_EVENTS):
                daemon.happened.put_nowait(
                    Event(id=f"a-{n}", time=BEGAN, kind="late", vm="vm", share=None, owner=None, detail={})
                )
            await asyncio.sleep(600)
            version = watcher.version
            message = await anext(messages)
            while not message.startswith(b"event: happened"):
                message = await anext(messages)
            events = msgspec.json.decode(message.partition(b"data: ")[2])
            assert events[0] is None
            assert len(events) == KEPT_EVENTS + 1
            message = await anext(messages)
            view = msgspec.json.decode(message.partition(b"data: ")[2])
            assert view["now"] >= 1600, "one view, the newest, of some hundred"
            assert watcher.version == version
            await messages.aclose()
            assert watcher.viewers == 0

    run(story())


def test_events_go_on_behind_the_last_and_what_was_missed_is_marked() -> None:
    async def story() -> None:
        daemon = Daemon("vm")
        async with Watched(daemon) as watcher:
            daemon.happened.put_nowait(None)  # at first: older ones are not kept
            daemon.happened.put_nowait(
                Event(id="a-7", time=BEGAN, kind="x", vm="vm", share=None, owner=None, detail={})
            )
            daemon.happened.put_nowait(None)
            await asyncio.sleep(3)
            assert [each.event and each.event["id"] for each in watcher.events] == ["a-7", None]

    run(story())


def test_what_is_shown_is_printable_and_has_an_end_however_deep_it_lies() -> None:
    value = {"\u202e": ["\x1b[2J", {"x": ("\ud83d" * 9999,)}], "names": [str(n) for n in range(1024)], "n": 1.5}
    found = shown(value)
    assert msgspec.json.encode(found).decode().isprintable()
    assert len(found["names"]) == 51
    assert found["names"][-1] == "and 974 more"
    assert len(msgspec.json.encode(found)) < 3000
