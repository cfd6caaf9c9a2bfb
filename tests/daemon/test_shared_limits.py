"""What a daemon keeps for all its users: nobody pushes out another's, and nobody takes all there is."""

from __future__ import annotations

import asyncio

import pytest

from uvmshare.daemon.events import EventLog
from uvmshare.daemon.identity import Identity
from uvmshare.daemon.operations import Operations
from uvmshare.errors import NotThere

ROOT, ALICE, BOB = Identity(0, 0), Identity(12345, 12345), Identity(65534, 65534)


def clock() -> float:
    return 0.0


async def nothing() -> None:
    pass


async def told(events: EventLog, who: Identity, after: str | None = "me-0") -> list[str | None]:
    """What somebody is told who asks once: the kinds, and None where some are missing."""
    return [None if each is None else each.kind async for each in events.follow(who, after, wait=False)]


def test_one_user_pushes_out_no_events_of_another() -> None:
    events = EventLog("me", clock, kept=3)
    events.emit("hers", (ALICE.uid, "vm"))
    for number in range(10):
        events.emit(f"his-{number}", (BOB.uid, "vm"))
    his: list[str | None] = ["his-7", "his-8", "his-9"]
    assert asyncio.run(told(events, ALICE)) == ["hers"]
    assert asyncio.run(told(events, BOB)) == [None, *his]
    assert asyncio.run(told(events, ROOT)) == [None, "hers", *his]
    assert asyncio.run(told(events, BOB, "me-7")) == [None, *his]
    assert asyncio.run(told(events, BOB, "me-8")) == his, "of those behind it, all are kept"
    assert asyncio.run(told(events, BOB, "me-11")) == []


def test_one_who_reads_slowly_misses_only_what_is_not_kept_any_more() -> None:
    async def test() -> None:
        events = EventLog("me", clock, kept=3)
        for number in range(3):
            events.emit(f"his-{number}", (BOB.uid, "vm"))
        following = events.follow(BOB, "me-0")

        async def next_kind() -> str | None:
            happening = await anext(following)
            return None if happening is None else happening.kind

        assert await next_kind() == "his-0"
        for number in range(3, 7):
            events.emit(f"his-{number}", (BOB.uid, "vm"))
        assert [await next_kind() for _ in range(4)] == [None, "his-4", "his-5", "his-6"]
        events.emit("hers", (ALICE.uid, "vm"))
        later = asyncio.create_task(next_kind())
        events.emit("his-7", (BOB.uid, "vm"))
        assert await later == "his-7"
        events.close()
        with pytest.raises(StopAsyncIteration):
            await anext(following)

    asyncio.run(test())


def test_what_is_about_anothers_holding_is_told_to_him_and_root_alone() -> None:
    events = EventLog("me", clock)
    events.emit("vm.added", (ALICE.uid, "vm"))
    events.emit("roots", (ALICE.uid, "vm"), uid=ROOT.uid)
    events.emit("hers", (ALICE.uid, "vm"), uid=ALICE.uid)
    assert asyncio.run(told(events, ALICE)) == ["vm.added", "hers"]
    assert asyncio.run(told(events, ROOT)) == ["vm.added", "roots", "hers"]
    assert asyncio.run(told(events, BOB)) == []


def test_one_user_pushes_out_no_operations_of_another() -> None:
    async def test() -> None:
        operations = Operations("me", clock, kept=2)
        hers = operations.start("add VM", "vm", ALICE.uid, nothing())
        his = [operations.start("add VM", "vm", BOB.uid, nothing()) for _ in range(5)]
        await operations.settle()
        assert operations.find(hers.id, ALICE.uid) is hers
        assert operations.list(BOB.uid) == his[-2:]
        assert operations.list(ROOT.uid) == [hers, *his[-2:]]
        assert operations.find(hers.id, ROOT.uid) is hers
        for id_ in (his[0].id, hers.id):
            with pytest.raises(NotThere, match="the last 2 of each user"):
                operations.find(id_, BOB.uid)

    asyncio.run(test())
