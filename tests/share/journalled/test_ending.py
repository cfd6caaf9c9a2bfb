"""Closing, detaching, and an event loop that ends: what the journal then says."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import ONE, OTHER
from tests.share.journalled.harness import only
from tests.virtual_time import settle

from uvmshare.errors import JournalError, ManagerClosed, SharesLeft
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.journal import JournalledShare, JournalState
from uvmshare.share.manager import Manager
from uvmshare.share.recovery import Done
from uvmshare.share.state import ShareLife
from uvmshare.testing.fakes import FakeReply
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from uvmshare.testing.fakes import FakeJournal, ListingFakeVM


async def test_closing_takes_out_what_earlier_lives_left_too(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    async with Manager(vm, journal=journal) as again:
        assert again.shares()[0].owners == ("a",)
    assert not vm.shares
    assert journal.state == JournalState(64)


async def test_what_closing_could_not_take_out_is_taken_out_by_the_next_life(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(ONE)
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(SharesLeft, match="share 0"):
        await manager.aclose()
    assert journal.state.shares == {"0": JournalledShare("0", ONE, ShareLife.ADDED)}
    report = await Manager(vm, journal=journal).recover()
    assert only(report).done is Done.TAKEN_OUT
    assert not vm.shares


@pytest.mark.parametrize(
    ("appends", "error", "words"),
    [
        ([FakeReply.SUCCEED, FakeReply.FAIL], SharesLeft, "could not be written down"),
        ([FakeReply.SUCCEED, FakeReply.SUCCEED, FakeReply.FAIL], JournalError, "the append fails"),
    ],
)
async def test_closing_says_when_the_journal_does_not_know_of_it(
    journal: FakeJournal, manager: Manager, appends: list[FakeReply], error: type[Exception], words: str
) -> None:
    await manager.add(ONE, owner="a")
    journal.replies += appends
    with pytest.raises(error, match=words):
        await manager.aclose()
    await manager.aclose()
    assert journal.state == JournalState(1)


async def test_closing_says_what_is_left_rather_than_that_the_journal_is_broken(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    journal.broken = True
    with pytest.raises(SharesLeft, match=r"share 0 is off the VM.* the test says that the append fails"):
        await manager.aclose()
    assert not vm.shares
    journal.broken = False
    await manager.aclose()
    assert journal.state == JournalState(1)


async def test_closing_that_is_interrupted_says_what_stays(vm: ListingFakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.hold = True
    closing = asyncio.create_task(manager.aclose())
    await settle()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await closing
    assert raised.value.__notes__ == ["the Manager was being closed; shares that the VM still had or may have had: 0"]
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await manager.aclose()
    assert not vm.shares


async def test_a_manager_that_is_closed_while_it_recovers_settles_nothing_more(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    again = Manager(vm, journal=journal)
    journal.hold = True
    recovering = asyncio.create_task(again.recover())
    await settle()
    closing = asyncio.create_task(again.aclose())
    await settle()
    journal.hold = False
    journal.in_flight[0].answer(FakeReply.SUCCEED)
    await closing
    assert list(await recovering) == []
    assert not vm.shares
    with pytest.raises(ManagerClosed):
        await again.recover()


async def test_a_journal_that_was_never_read_is_left_alone(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    await Manager(vm, journal=journal).aclose()
    assert vm.shares
    assert journal.state.shares


async def test_detaching_leaves_everything_to_the_next_manager(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    vm.hold = True
    adding = asyncio.create_task(manager.add(OTHER, owner="a"))
    await settle()
    detaching = asyncio.create_task(manager.detach())
    await settle()
    assert not detaching.done(), "it waits for the call in flight"
    vm.hold = False
    vm.in_flight["1"].answer(FakeReply.SUCCEED)
    there = await detaching
    assert [info.name for info in there] == ["0", "1"]
    with pytest.raises(ManagerClosed):
        await adding
    assert await manager.detach() == ()
    await manager.aclose()
    assert vm.shares.keys() == {"0", "1"}
    with pytest.raises(ManagerClosed, match="was detached"):
        await manager.remove("0", owner="a")
    with pytest.raises(ManagerClosed):
        await manager.add(ONE, owner="a")
    report = await Manager(vm, journal=journal).recover()
    assert [(share.name, share.done) for share in report] == [("0", Done.KEPT), ("1", Done.TAKEN_OUT)]
    assert journal.state.shares.keys() == {"0"}


async def test_detaching_without_a_journal_would_lose_everything(vm: ListingFakeVM) -> None:
    manager = Manager(vm)
    await manager.add(ONE)
    with pytest.raises(ValueError, match="without a journal"):
        await manager.detach()
    await manager.remove("0")
    assert not vm.shares


async def test_a_broken_journal_keeps_a_manager_from_detaching_but_not_from_closing(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    journal.replies.append(FakeReply.FAIL)
    with pytest.raises(JournalError):
        await manager.detach()
    await manager.aclose()
    assert not vm.shares


def test_a_loop_that_ends_in_the_middle_leaves_what_the_next_can_settle(
    vm: ListingFakeVM, journal: FakeJournal
) -> None:
    async def ends() -> None:
        manager = Manager(vm, journal=journal)
        await manager.add(OTHER, owner="a")
        vm.replies.append(FakeReply.NEVER)
        asyncio.ensure_future(manager.add(ONE, owner="a"))  # noqa: RUF006  left behind is the point
        await settle()

    async def begins() -> None:
        report = await Manager(vm, journal=journal).recover()
        assert [(share.name, share.done) for share in report] == [("0", Done.KEPT), ("1", Done.TAKEN_OUT)]

    run(ends())
    run(begins())
    assert vm.shares == {"0": OTHER}


async def test_a_fake_vm_tells_what_it_has(vm: ListingFakeVM) -> None:
    await vm.add_plan9(NamedShare("0", ONE))
    assert await vm.list_plan9() == {"0": ONE}
