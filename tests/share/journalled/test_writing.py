"""What is written down when, and a journal that cannot be written."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import HERE, ONE, OTHER
from tests.share.journalled.harness import only, records_in_flight
from tests.virtual_time import settle

from uvmshare.errors import (
    ComputeSystemError,
    InvalidOptions,
    JournalError,
    OutcomeNotWritten,
    OutcomeUnknown,
    SharesLeft,
)
from uvmshare.share import journal as written
from uvmshare.share.journal import JournalledShare
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.recovery import Done
from uvmshare.share.state import ShareLife, ShareState
from uvmshare.testing.fakes import FakeReply, FakeVM

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from uvmshare.testing.fakes import FakeJournal, ListingFakeVM


# ---------------------------------------------------------------------- what is written when


async def test_the_intent_is_on_the_disk_before_the_call_and_the_reference_before_the_answer(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    journal.hold = vm.hold = True
    add = asyncio.create_task(manager.add(ONE, owner="a"))
    await settle()
    assert records_in_flight(journal) == [written.Begun("0", ShareLife.ADDING, ONE)]
    assert not vm.calls
    journal.in_flight[0].answer(FakeReply.SUCCEED)
    await settle()
    assert journal.state.shares == {"0": JournalledShare("0", ONE, ShareLife.ADDING)}
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    assert records_in_flight(journal) == [written.Changed("0", ShareLife.ADDED), written.Referred("0", "a")]
    assert not add.done()
    journal.in_flight[0].answer(FakeReply.SUCCEED)
    assert await add == "0"
    assert journal.state.shares == {"0": JournalledShare("0", ONE, ShareLife.ADDED, ("a",))}

    remove = asyncio.create_task(manager.remove("0", owner="a"))
    await settle()
    assert records_in_flight(journal) == [written.Changed("0", ShareLife.REMOVING)]
    assert len(vm.calls) == 1
    journal.in_flight[0].answer(FakeReply.SUCCEED)
    await settle()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    assert records_in_flight(journal) == [written.Forgotten("0")]
    assert not remove.done()
    journal.in_flight[0].answer(FakeReply.SUCCEED)
    await remove
    assert not journal.state.shares
    assert not manager.shares()


async def test_many_adds_of_one_turn_go_to_the_disk_together(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    before = len(journal.appended)
    every = [AddOptions(HERE, allowed_names=(f"n{number}",)) for number in range(50)]
    names = await asyncio.gather(*(manager.add(options, owner="a") for options in every))
    assert len(set(names)) == len(vm.shares) == 50
    assert len(journal.appended) - before == 2, "the intents, then the outcomes with the references"


async def test_references_are_counted_by_the_journal_as_by_the_manager(journal: FakeJournal, manager: Manager) -> None:
    for owner in (None, "b", None, "a", "b"):
        await manager.add(ONE, owner=owner)
    assert journal.state.shares["0"] == JournalledShare("0", ONE, ShareLife.ADDED, ("b", "a"), 2)
    await manager.remove("0")
    await manager.remove("0", owner="b")
    await manager.remove("0", owner="never")
    assert journal.state.shares["0"] == JournalledShare("0", ONE, ShareLife.ADDED, ("a",), 1)
    await manager.release_owner("a")
    await manager.remove("0")
    assert not journal.state.shares


async def test_a_cancelled_add_leaves_no_reference_in_the_journal(journal: FakeJournal, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    journal.hold = True
    for owner in ("b", None):
        add = asyncio.create_task(manager.add(ONE, owner=owner))
        await settle()
        add.cancel()
        while not add.done() or journal.in_flight:
            await settle()
            if journal.in_flight:
                journal.in_flight[0].answer(FakeReply.SUCCEED)
        assert add.cancelled()
        await settle()
        assert journal.state.shares["0"] == JournalledShare("0", ONE, ShareLife.ADDED, ("a",))
    assert manager.shares()[0].owners == ("a",)


async def test_one_owner_that_asks_twice_and_is_cancelled_once_keeps_its_reference(
    journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE)
    journal.hold = True
    first, second = (asyncio.create_task(manager.add(ONE, owner="a")) for _ in range(2))
    await settle()
    first.cancel()
    while not second.done():
        await settle()
        if journal.in_flight:
            journal.in_flight[0].answer(FakeReply.SUCCEED)
    assert journal.state.shares["0"].owners == manager.shares()[0].owners == ("a",)


async def test_a_block_is_nothing_that_outlives_the_process(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    async with manager.share(ONE) as name:
        assert journal.state.shares == {name: JournalledShare(name, ONE, ShareLife.ADDED)}
        report = await Manager(vm, journal=journal).recover()
        assert only(report).done is Done.TAKEN_OUT
        assert not vm.shares


@pytest.mark.parametrize(("owner", "error"), [(1, TypeError), (("a", 1), TypeError), ("\ud800", InvalidOptions)])
async def test_an_owner_that_cannot_be_written_down_is_refused_before_anything_is_touched(
    vm: ListingFakeVM, manager: Manager, owner: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match="owner"):
        await manager.add(ONE, owner=owner)
    with pytest.raises(error, match="owner"):
        await manager.remove("0", owner=owner)
    with pytest.raises(error, match="owner"):
        await manager.release_owner(owner)
    assert not vm.calls


# ---------------------------------------------------------------------- a journal that cannot be written


@pytest.mark.parametrize("reply", [FakeReply.FAIL, FakeReply.LOSE_AFTER])
async def test_an_add_whose_intent_cannot_be_written_is_refused_before_the_vm_is_touched(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager, reply: FakeReply
) -> None:
    await manager.recover()
    journal.replies.append(reply)
    with pytest.raises(JournalError, match="the append fails"):
        await manager.add(ONE, owner="a")
    assert not vm.calls
    assert not manager.shares()
    assert await manager.add(ONE, owner="a") == "1"
    assert journal.state.shares == {"1": JournalledShare("1", ONE, ShareLife.ADDED, ("a",))}


@pytest.mark.parametrize("reply", [FakeReply.FAIL, FakeReply.LOSE_AFTER])
async def test_an_add_whose_outcome_cannot_be_written_is_no_reference_and_is_taken_out(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager, reply: FakeReply
) -> None:
    await manager.recover()
    journal.replies += [FakeReply.SUCCEED, reply]
    with pytest.raises(JournalError):
        await manager.add(ONE, owner="a")
    assert manager.shares()[0].state is ShareState.ADDED
    assert manager.shares()[0].references == 0
    await asyncio.sleep(2)
    assert not manager.shares()
    assert not vm.shares
    assert not journal.state.shares


async def test_while_a_journal_cannot_be_written_nothing_is_added(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(ONE, owner="b")
    journal.broken = True
    with pytest.raises(JournalError):
        await manager.add(OTHER, owner="a")
    before = manager.shares()
    calls = len(vm.calls)
    changes: tuple[Callable[[], Coroutine[object, object, object]], ...] = (
        lambda: manager.add(OTHER, owner="a"),
        lambda: manager.add(ONE, owner="c"),
        manager.recover,
    )
    for change in changes:
        with pytest.raises(JournalError):
            await change()
    assert manager.shares() == before
    assert len(vm.calls) == calls
    line = manager._engine.ledger and len(manager._engine.ledger._line)
    await asyncio.sleep(3600)
    assert manager._engine.ledger is not None
    assert len(manager._engine.ledger._line) == line, "what is in line does not grow"
    journal.broken = False
    await asyncio.sleep(60)
    assert not manager._engine.ledger._line, "and is written by itself"
    await manager.remove("0", owner="b")
    assert journal.state.shares["0"].owners == ("a",)


async def test_a_broken_journal_keeps_no_directory_in_the_guest(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(ONE, owner="b")
    journal.broken = True
    with pytest.raises(JournalError):
        await manager.remove("0", owner="a")
    assert vm.shares, "the other one holds it"
    with pytest.raises(OutcomeNotWritten, match="share 0 is off the VM"):
        await manager.remove("0", owner="b")
    assert not vm.shares
    (info,) = manager.shares()
    assert (info.orphan, info.owners) == (True, ("b",))
    with pytest.raises(JournalError):
        await manager.add(ONE, owner="c")
    assert manager._engine.ledger is not None
    await asyncio.sleep(120)
    line = len(manager._engine.ledger._line)
    await asyncio.sleep(3600)
    assert len(manager._engine.ledger._line) == line, "trying it again and again puts nothing more in line"
    assert not vm.shares
    journal.broken = False
    await asyncio.sleep(60)
    assert not manager.shares()
    assert not journal.state.shares


async def test_an_owner_that_is_gone_loses_all_it_holds_whatever_the_journal_says(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(OTHER, owner="a")
    journal.broken = True
    with pytest.raises(SharesLeft, match="off the VM"):
        await manager.release_owner("a")
    assert not vm.shares


async def test_a_removal_that_was_not_written_down_is_undone_by_a_crash_and_can_be_asked_for_again(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    journal.broken = True
    with pytest.raises(OutcomeNotWritten):
        await manager.remove("0", owner="a")
    journal.broken = False
    later = Manager(vm, journal=journal)
    found = only(await later.recover())
    assert (found.done, found.owners) == (Done.ADDED_AGAIN, ("a",))
    await later.remove("0", owner="a")
    assert not vm.shares
    await later.aclose()


async def test_the_vm_fails_while_the_journal_does_and_the_owner_keeps_the_share(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    journal.broken = True
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(ComputeSystemError, match="the test says that it fails"):
        await manager.remove("0", owner="a")
    assert manager.shares()[0].owners == ("a",)
    journal.broken = False
    await asyncio.sleep(60)
    assert journal.state.shares["0"] == JournalledShare("0", ONE, ShareLife.ADDED, ("a",))


@pytest.mark.parametrize("reply", [FakeReply.FAIL, FakeReply.LOSE_AFTER])
async def test_a_vm_that_cannot_tell_what_it_has_is_asked_for_no_removal_that_is_not_written_down(
    journal: FakeJournal, reply: FakeReply
) -> None:
    vm = FakeVM()
    manager = Manager(vm, journal=journal)
    await manager.add(ONE, owner="a")
    journal.replies.append(reply)
    with pytest.raises(JournalError):
        await manager.remove("0", owner="a")
    assert vm.shares
    assert manager.shares()[0].owners == ("a",)
    await settle()
    await asyncio.sleep(1)
    assert journal.state.shares["0"] == JournalledShare("0", ONE, ShareLife.ADDED, ("a",))
    await manager.remove("0", owner="a")
    assert not vm.shares
    await manager.aclose()


async def test_a_removal_whose_outcome_cannot_be_written_stays_visible_and_is_in_nobodys_way(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    journal.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    with pytest.raises(OutcomeNotWritten, match="share 0 is off the VM"):
        await manager.remove("0", owner="a")
    (info,) = manager.shares()
    assert info.orphan
    assert isinstance(info.last_error, OutcomeNotWritten)
    assert await manager.add(ONE, owner="a") == "1"
    await asyncio.sleep(60)
    assert [info.name for info in manager.shares()] == ["1"]
    assert list(journal.state.shares) == ["1"]


async def test_what_failed_on_the_vm_and_in_the_journal_says_both(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    vm.replies.append(FakeReply.FAIL)
    journal.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    with pytest.raises(ComputeSystemError, match="the test says that it fails") as raised:
        await manager.add(ONE, owner="a")
    assert "could not be written down yet" in raised.value.__notes__[0]
    await asyncio.sleep(2)
    assert not journal.state.shares


async def test_an_unknown_outcome_is_in_the_journal_until_it_is_settled(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    vm.replies += [FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE]
    with pytest.raises(OutcomeUnknown):
        await manager.add(ONE, owner="a")
    await settle()
    assert manager.shares()[0].orphan
    assert journal.state.shares["0"].life is ShareLife.INVALID
    assert await manager.add(ONE, owner="a") == "1"
    await asyncio.sleep(1)
    assert vm.shares == {"1": ONE}
    assert list(journal.state.shares) == ["1"]


async def test_an_append_that_is_interrupted_is_no_cancellation_of_those_who_wait(
    journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    journal.hold = True
    add = asyncio.create_task(manager.add(ONE, owner="a"))
    await settle()
    assert manager._engine.ledger is not None
    assert manager._engine.ledger._task is not None
    manager._engine.ledger._task.cancel()
    with pytest.raises(JournalError, match="was interrupted"):
        await add
    with pytest.raises(JournalError, match="was interrupted"):
        await manager.add(ONE, owner="a")


# ---------------------------------------------------------------------- names


async def test_names_that_were_told_are_never_used_again_even_after_a_crash(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    told = manager.resolve_share_name(ONE)
    assert manager.resolve_share_name(ONE) == told == "0"
    assert await manager.add(OTHER, owner="a") == "1"
    told_last = manager.resolve_share_name(AddOptions(HERE))  # and at once, the process dies
    again = Manager(vm, journal=journal)
    report = await again.recover()
    assert [(share.name, share.done) for share in report] == [("0", Done.KEPT), ("1", Done.KEPT)]
    assert again.resolve_share_name(ONE) == told
    assert int(again.resolve_share_name(AddOptions(HERE))) > int(told_last)


async def test_no_name_is_told_that_a_crash_could_give_to_another_share(journal: FakeJournal, manager: Manager) -> None:
    with pytest.raises(JournalError, match="await recover"):
        manager.resolve_share_name(ONE)
    await manager.recover()
    journal.hold = True
    every = [AddOptions(HERE, allowed_names=(f"n{number}",)) for number in range(80)]
    told: list[str] = []
    with pytest.raises(JournalError, match="no name is reserved"):
        told.extend(manager.resolve_share_name(options) for options in every)
    told = [info.name for info in manager.shares()]
    assert len(told) == journal.state.next_name == 64
    await settle()
    journal.hold = False
    journal.in_flight[0].answer(FakeReply.SUCCEED)
    await settle()
    assert manager.resolve_share_name(every[64]) == "65", "the name that was not told is not used either"


async def test_a_manager_that_ends_in_order_leaves_no_gap(vm: ListingFakeVM, journal: FakeJournal) -> None:
    async with Manager(vm, journal=journal) as manager:
        assert await manager.add(ONE, owner="a") == "0"
    async with Manager(vm, journal=journal) as manager:
        assert await manager.add(ONE, owner="a") == "1"
        await manager.detach()
    async with Manager(vm, journal=journal) as manager:
        assert await manager.add(ONE, owner="b") == "1"
        assert await manager.add(OTHER, owner="b") == "2"
