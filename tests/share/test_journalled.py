"""A Manager with a journal, one story at a time: what is written down when, and what the next Manager finds.

Every order of events together is in test_interleavings, every point of a real crash in tests/reliability.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import (
    ComputeSystemError,
    ComputeSystemGone,
    InvalidOptions,
    JournalError,
    ManagerClosed,
    OperationDenied,
    OutcomeNotWritten,
    OutcomeUnknown,
    SharesLeft,
)
from uvmshare.share import journal as written
from uvmshare.share.interfaces import ListedShare, Plan9Share
from uvmshare.share.journal import JournalledShare, JournalState, Phase
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.recovery import Done
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeJournal, FakeVM, ListingFakeVM, Reply
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from uvmshare.share.recovery import RecoveredShare, RecoveryReport

HERE = Path(__file__).parent
ONE = AddOptions(HERE, read_only=True)
OTHER = AddOptions(HERE.parent, read_only=True)


@pytest.fixture(name="vm")
def _vm() -> ListingFakeVM:
    return ListingFakeVM()


@pytest.fixture(name="journal")
def _journal() -> FakeJournal:
    return FakeJournal()


@pytest.fixture(name="manager")
def _manager(vm: ListingFakeVM, journal: FakeJournal) -> Manager:
    return Manager(vm, journal=journal)


async def settle() -> None:
    """Let everything happen that needs no time."""
    await asyncio.sleep(1e-6)


def records_in_flight(journal: FakeJournal) -> list[written.Record]:
    (append,) = journal.in_flight
    return list(append.records)


def only(report: RecoveryReport) -> RecoveredShare:
    (share,) = report
    return share


# ---------------------------------------------------------------------- what is written when


async def test_the_intent_is_on_the_disk_before_the_call_and_the_reference_before_the_answer(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    journal.hold = vm.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE, owner="a"))
    await settle()
    assert records_in_flight(journal) == [written.AddIntended("0", ONE)]
    assert not vm.calls
    journal.in_flight[0].answer(Reply.SUCCEED)
    await settle()
    assert journal.state.shares == {"0": JournalledShare("0", ONE, Phase.ADDING)}
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    assert records_in_flight(journal) == [written.Added("0"), written.Referred("0", "a")]
    assert not add.done()
    journal.in_flight[0].answer(Reply.SUCCEED)
    assert await add == "0"
    assert journal.state.shares == {"0": JournalledShare("0", ONE, Phase.ADDED, ("a",))}

    remove = asyncio.create_task(manager.remove_from_vm("0", owner="a"))
    await settle()
    assert records_in_flight(journal) == [written.RemoveIntended("0")]
    assert len(vm.calls) == 1
    journal.in_flight[0].answer(Reply.SUCCEED)
    await settle()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    assert records_in_flight(journal) == [written.Forgotten("0")]
    assert not remove.done()
    journal.in_flight[0].answer(Reply.SUCCEED)
    await remove
    assert not journal.state.shares
    assert not manager.shares()


async def test_many_adds_of_one_turn_go_to_the_disk_together(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    before = len(journal.appended)
    every = [AddOptions(HERE, restrict=True, allowed_names=(f"n{number}",)) for number in range(50)]
    names = await asyncio.gather(*(manager.add_to_vm(options, owner="a") for options in every))
    assert len(set(names)) == len(vm.shares) == 50
    assert len(journal.appended) - before == 2, "the intents, then the outcomes with the references"


async def test_references_are_counted_by_the_journal_as_by_the_manager(journal: FakeJournal, manager: Manager) -> None:
    for owner in (None, "b", None, "a", "b"):
        await manager.add_to_vm(ONE, owner=owner)
    assert journal.state.shares["0"] == JournalledShare("0", ONE, Phase.ADDED, ("b", "a"), 2)
    await manager.remove_from_vm("0")
    await manager.remove_from_vm("0", owner="b")
    await manager.remove_from_vm("0", owner="never")
    assert journal.state.shares["0"] == JournalledShare("0", ONE, Phase.ADDED, ("a",), 1)
    await manager.release_owner("a")
    await manager.remove_from_vm("0")
    assert not journal.state.shares


async def test_a_cancelled_add_leaves_no_reference_in_the_journal(journal: FakeJournal, manager: Manager) -> None:
    await manager.add_to_vm(ONE, owner="a")
    journal.hold = True
    for owner in ("b", None):
        add = asyncio.create_task(manager.add_to_vm(ONE, owner=owner))
        await settle()
        add.cancel()
        while not add.done() or journal.in_flight:
            await settle()
            if journal.in_flight:
                journal.in_flight[0].answer(Reply.SUCCEED)
        assert add.cancelled()
        await settle()
        assert journal.state.shares["0"] == JournalledShare("0", ONE, Phase.ADDED, ("a",))
    assert manager.shares()[0].owners == ("a",)


async def test_one_owner_that_asks_twice_and_is_cancelled_once_keeps_its_reference(
    journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE)
    journal.hold = True
    first, second = (asyncio.create_task(manager.add_to_vm(ONE, owner="a")) for _ in range(2))
    await settle()
    first.cancel()
    while not second.done():
        await settle()
        if journal.in_flight:
            journal.in_flight[0].answer(Reply.SUCCEED)
    assert journal.state.shares["0"].owners == manager.shares()[0].owners == ("a",)


async def test_a_block_is_nothing_that_outlives_the_process(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    async with manager.share(ONE) as name:
        assert journal.state.shares == {name: JournalledShare(name, ONE, Phase.ADDED)}
        report = await Manager(vm, journal=journal).recover()
        assert only(report).done is Done.TAKEN_OUT
        assert not vm.shares


@pytest.mark.parametrize(("owner", "error"), [(1, TypeError), (("a", 1), TypeError), ("\ud800", InvalidOptions)])
async def test_an_owner_that_cannot_be_written_down_is_refused_before_anything_is_touched(
    vm: ListingFakeVM, manager: Manager, owner: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match="owner"):
        await manager.add_to_vm(ONE, owner=owner)
    with pytest.raises(error, match="owner"):
        await manager.remove_from_vm("0", owner=owner)
    with pytest.raises(error, match="owner"):
        await manager.release_owner(owner)
    assert not vm.calls


# ---------------------------------------------------------------------- a journal that cannot be written


@pytest.mark.parametrize("reply", [Reply.FAIL, Reply.LOSE_AFTER])
async def test_an_add_whose_intent_cannot_be_written_is_refused_before_the_vm_is_touched(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager, reply: Reply
) -> None:
    await manager.recover()
    journal.replies.append(reply)
    with pytest.raises(JournalError, match="the append fails"):
        await manager.add_to_vm(ONE, owner="a")
    assert not vm.calls
    assert not manager.shares()
    assert await manager.add_to_vm(ONE, owner="a") == "1"
    assert journal.state.shares == {"1": JournalledShare("1", ONE, Phase.ADDED, ("a",))}


@pytest.mark.parametrize("reply", [Reply.FAIL, Reply.LOSE_AFTER])
async def test_an_add_whose_outcome_cannot_be_written_is_no_reference_and_is_taken_out(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager, reply: Reply
) -> None:
    await manager.recover()
    journal.replies += [Reply.SUCCEED, reply]
    with pytest.raises(JournalError):
        await manager.add_to_vm(ONE, owner="a")
    assert manager.shares()[0].state is ShareState.ADDED
    assert manager.shares()[0].references == 0
    await asyncio.sleep(2)
    assert not manager.shares()
    assert not vm.shares
    assert not journal.state.shares


async def test_while_a_journal_cannot_be_written_what_is_held_stays_and_nothing_changes(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    await manager.add_to_vm(ONE, owner="b")
    journal.broken = True
    with pytest.raises(JournalError):
        await manager.add_to_vm(OTHER, owner="a")
    before = manager.shares()
    calls = len(vm.calls)
    changes: tuple[Callable[[], Coroutine[object, object, object]], ...] = (
        lambda: manager.add_to_vm(OTHER, owner="a"),
        lambda: manager.add_to_vm(ONE, owner="c"),
        lambda: manager.remove_from_vm("0", owner="b"),
        lambda: manager.release_owner("a"),
        manager.recover,
    )
    for change in changes:
        with pytest.raises(JournalError):
            await change()
    assert manager.shares() == before
    assert len(vm.calls) == calls
    line = manager._ledger and len(manager._ledger._line)
    await asyncio.sleep(3600)
    assert manager._ledger is not None
    assert len(manager._ledger._line) == line, "what is in line does not grow"
    journal.broken = False
    await asyncio.sleep(60)
    assert not manager._ledger._line, "and is written by itself"
    await manager.remove_from_vm("0", owner="b")
    assert journal.state.shares["0"].owners == ("a",)


async def test_a_removal_whose_intent_cannot_be_written_leaves_the_share_to_its_owner(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    journal.replies.append(Reply.LOSE_AFTER)
    with pytest.raises(JournalError):
        await manager.remove_from_vm("0", owner="a")
    assert vm.shares
    assert manager.shares()[0].owners == ("a",)
    await settle()
    await asyncio.sleep(1)
    assert journal.state.shares["0"] == JournalledShare("0", ONE, Phase.ADDED, ("a",))
    await manager.remove_from_vm("0", owner="a")
    assert not vm.shares


async def test_a_removal_whose_outcome_cannot_be_written_stays_visible_and_is_in_nobodys_way(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    journal.replies += [Reply.SUCCEED, Reply.FAIL]
    with pytest.raises(OutcomeNotWritten, match="share 0 is off the VM"):
        await manager.remove_from_vm("0", owner="a")
    (info,) = manager.shares()
    assert info.orphan
    assert isinstance(info.last_error, OutcomeNotWritten)
    assert await manager.add_to_vm(ONE, owner="a") == "1"
    await asyncio.sleep(60)
    assert [info.name for info in manager.shares()] == ["1"]
    assert list(journal.state.shares) == ["1"]


async def test_what_failed_on_the_vm_and_in_the_journal_says_both(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    vm.replies.append(Reply.FAIL)
    journal.replies += [Reply.SUCCEED, Reply.FAIL]
    with pytest.raises(ComputeSystemError, match="the test says that it fails") as raised:
        await manager.add_to_vm(ONE, owner="a")
    assert "could not be written down yet" in raised.value.__notes__[0]
    await asyncio.sleep(2)
    assert not journal.state.shares


async def test_an_unknown_outcome_is_in_the_journal_until_it_is_settled(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    vm.replies += [Reply.LOSE_AFTER, Reply.LOSE_BEFORE]
    with pytest.raises(OutcomeUnknown):
        await manager.add_to_vm(ONE, owner="a")
    await settle()
    assert manager.shares()[0].orphan
    assert journal.state.shares["0"].phase is Phase.IN_DOUBT
    assert await manager.add_to_vm(ONE, owner="a") == "1"
    await asyncio.sleep(1)
    assert vm.shares == {"1": ONE}
    assert list(journal.state.shares) == ["1"]


async def test_an_append_that_is_interrupted_is_no_cancellation_of_those_who_wait(
    journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    journal.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE, owner="a"))
    await settle()
    assert manager._ledger is not None
    assert manager._ledger._task is not None
    manager._ledger._task.cancel()
    with pytest.raises(JournalError, match="was interrupted"):
        await add
    with pytest.raises(JournalError, match="was interrupted"):
        await manager.add_to_vm(ONE, owner="a")


# ---------------------------------------------------------------------- names


async def test_names_that_were_told_are_never_used_again_even_after_a_crash(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.recover()
    told = manager.resolve_share_name(ONE)
    assert manager.resolve_share_name(ONE) == told == "0"
    assert await manager.add_to_vm(OTHER, owner="a") == "1"
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
    every = [AddOptions(HERE, restrict=True, allowed_names=(f"n{number}",)) for number in range(80)]
    told: list[str] = []
    with pytest.raises(JournalError, match="no name is reserved"):
        told.extend(manager.resolve_share_name(options) for options in every)
    told = [info.name for info in manager.shares()]
    assert len(told) == journal.state.next_name == 64
    await settle()
    journal.hold = False
    journal.in_flight[0].answer(Reply.SUCCEED)
    await settle()
    assert manager.resolve_share_name(every[64]) == "65", "the name that was not told is not used either"


async def test_a_manager_that_ends_in_order_leaves_no_gap(vm: ListingFakeVM, journal: FakeJournal) -> None:
    async with Manager(vm, journal=journal) as manager:
        assert await manager.add_to_vm(ONE, owner="a") == "0"
    async with Manager(vm, journal=journal) as manager:
        assert await manager.add_to_vm(ONE, owner="a") == "1"
        await manager.detach()
    async with Manager(vm, journal=journal) as manager:
        assert await manager.add_to_vm(ONE, owner="b") == "1"
        assert await manager.add_to_vm(OTHER, owner="b") == "2"


# ---------------------------------------------------------------------- what the next Manager finds


async def test_what_was_shared_is_shared_by_the_next_manager_and_its_owners_have_it(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    for owner in ("a", "b", None, None):
        await manager.add_to_vm(ONE, owner=owner)
    calls = len(vm.calls)
    again = Manager(vm, journal=journal)
    report = await again.recover()
    assert report.asked
    assert not report.unsettled
    assert only(report).done is Done.KEPT
    assert only(report).owners == ("a", "b")
    assert str(only(report)) == f"share 0 ({HERE}): it was added, and the VM has it: kept"
    assert len(vm.calls) == calls
    assert again.shares()[0].references == 4
    assert await again.add_to_vm(ONE, owner="c") == "0"
    assert await again.release_owner("a") == ("0",)
    for owner in ("b", "c", None, None):
        assert vm.shares
        await again.remove_from_vm("0", owner=owner)
    assert not vm.shares


@pytest.mark.parametrize("first", ["add", "remove", "release", "with"])
async def test_recovery_comes_by_itself_before_anything_else(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager, first: str
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    again = Manager(vm, journal=journal)
    assert again.shares() == ()
    if first == "add":
        assert await again.add_to_vm(ONE, owner="b") == "0"
    elif first == "remove":
        await again.remove_from_vm("0", owner="a")
        assert not vm.shares
    elif first == "release":
        assert await again.release_owner("a") == ("0",)
    else:
        async with again:
            assert again.shares()[0].owners == ("a",)


async def test_an_add_without_an_outcome_is_undone(vm: ListingFakeVM, journal: FakeJournal, manager: Manager) -> None:
    await manager.recover()
    vm.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE, owner="a"))
    await settle()
    new_life = ListingFakeVM()
    new_life.shares["0"] = ONE  # carried out, and the process dies before the answer
    report = await Manager(new_life, journal=journal).recover()
    assert only(report).done is Done.TAKEN_OUT
    assert only(report).found == "a call for it has no outcome"
    assert not new_life.shares
    assert not journal.state.shares
    add.cancel()
    vm.in_flight["0"].answer(Reply.SUCCEED)


async def test_a_share_that_the_server_lost_is_added_again_under_its_name(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    await manager.add_to_vm(OTHER, owner="a")
    del vm.shares["0"]
    vm.shares["1"] = ONE
    report = await Manager(vm, journal=journal).recover()
    assert [(share.name, share.done, share.owners) for share in report] == [
        ("0", Done.ADDED_AGAIN, ("a",)),
        ("1", Done.ADDED_AGAIN, ("a",)),
    ]
    assert vm.shares == {"0": ONE, "1": OTHER}
    assert {share.phase for share in journal.state.shares.values()} == {Phase.ADDED}


async def test_a_lost_share_that_cannot_be_added_yet_stays_its_owners_and_is_tried_again(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies += [Reply.FAIL, Reply.FAIL, Reply.LOSE_AFTER, Reply.SUCCEED, Reply.LOSE_AFTER]
    report = await again.recover()
    assert [share.name for share in report.unsettled] == ["0"]
    assert "not yet: remove of share 0: the test says" in str(report.unsettled[0])
    (info,) = again.shares()
    assert (info.state, info.owners) == (ShareState.PENDING, ("a",))
    assert journal.state.shares["0"].phase is Phase.ADDING
    crashed_meanwhile = FakeJournal()
    crashed_meanwhile.state = JournalState(64, dict(journal.state.shares))
    await asyncio.sleep(60)
    assert again.shares()[0].state is ShareState.ADDED
    assert vm.shares == {"0": ONE}
    assert journal.state.shares["0"] == JournalledShare("0", ONE, Phase.ADDED, ("a",))
    vm.shares.clear()
    report = await Manager(vm, journal=crashed_meanwhile).recover()
    assert only(report).done is Done.ADDED_AGAIN
    assert vm.shares == {"0": ONE}


async def test_who_asks_for_a_lost_share_gets_it_back_for_all(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies.append(Reply.FAIL)
    await again.recover()
    vm.replies += [Reply.SUCCEED, Reply.FAIL]
    with pytest.raises(ComputeSystemError):
        await again.add_to_vm(ONE, owner="b")
    assert again.shares()[0].owners == ("a",)
    assert await again.add_to_vm(ONE, owner="b") == "0"
    assert again.shares()[0].owners == journal.state.shares["0"].owners == ("a", "b")


async def test_a_lost_share_that_its_owner_gives_back_is_taken_out_since_it_may_be_there(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    await manager.add_to_vm(ONE, owner="b")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies += [Reply.FAIL]
    await again.recover()
    await again.remove_from_vm("0", owner="b")
    assert journal.state.shares["0"].owners == ("a",)
    await again.remove_from_vm("0", owner="a")
    assert vm.calls[-1].kind == "remove"
    assert not again.shares()
    assert not journal.state.shares


async def test_closing_takes_a_lost_share_out_too(vm: ListingFakeVM, journal: FakeJournal, manager: Manager) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies += [Reply.FAIL]
    await again.recover()
    vm.shares["0"] = ONE
    await again.aclose()
    assert not vm.shares
    assert not journal.state.shares


async def test_a_running_manager_brings_back_what_a_server_that_was_started_again_lost(
    vm: ListingFakeVM, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    async with manager.share(OTHER):
        vm.shares.clear()
        assert [share.done for share in await manager.recover()] == [Done.ADDED_AGAIN, Done.ADDED_AGAIN]
        assert vm.shares == {"0": ONE, "1": OTHER}
        async with asyncio.timeout(1):
            assert [share.done for share in await manager.recover()] == [Done.KEPT, Done.KEPT]


async def test_a_manager_without_a_journal_can_ask_too(vm: ListingFakeVM) -> None:
    manager = Manager(vm)
    await manager.add_to_vm(ONE, owner=("not", "a", "string"))
    vm.shares.clear()
    assert only(await manager.recover()).done is Done.ADDED_AGAIN
    assert vm.shares == {"0": ONE}
    vm.shares.clear()
    vm.replies.append(Reply.FAIL)
    await manager.recover()
    async with asyncio.timeout(5):
        while manager.shares()[0].state is not ShareState.ADDED:  # noqa: ASYNC110  until it was tried again
            await asyncio.sleep(1)
    assert vm.shares == {"0": ONE}


async def test_a_block_that_ends_while_its_share_is_lost_takes_it_out(vm: ListingFakeVM) -> None:
    manager = Manager(vm)
    async with manager.share(ONE):
        vm.shares.clear()
        vm.replies.append(Reply.FAIL)
        await manager.recover()
    assert not manager.shares()


async def test_what_is_under_way_when_the_vm_is_asked_is_no_difference(vm: ListingFakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.hold = True
    adding = asyncio.create_task(manager.add_to_vm(OTHER, owner="a"))
    removing = asyncio.create_task(manager.remove_from_vm("0", owner="a"))
    await settle()
    report = await manager.recover()
    assert list(report) == []
    for call in tuple(vm.in_flight.values()):
        call.answer(Reply.SUCCEED)
    await asyncio.gather(adding, removing)
    assert vm.shares == {"1": OTHER}


async def test_a_share_that_nobody_knows_goes_if_its_name_was_ours(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    assert await manager.add_to_vm(ONE, owner="a") == "0"
    vm.shares |= {"3": OTHER, "100": OTHER, "home": OTHER, "007": OTHER}
    again = Manager(vm, journal=journal)
    report = await again.recover()
    assert [(share.name, share.done) for share in report] == [
        ("0", Done.KEPT),
        ("3", Done.TAKEN_OUT),
        ("007", Done.LEFT_ALONE),
        ("100", Done.LEFT_ALONE),
        ("home", Done.LEFT_ALONE),
    ]
    assert vm.shares.keys() == {"0", "100", "home", "007"}
    assert await again.add_to_vm(OTHER, owner="a") == "101", "and no share of ours gets a name that is there"
    for patient in (again, Manager(vm, journal=journal)):
        assert ("100", Done.LEFT_ALONE) in [(share.name, share.done) for share in await patient.recover()]
    report = await again.recover(take_out_unknown=True)
    assert [(share.name, share.done) for share in report][2:] == [
        ("007", Done.LEFT_ALONE),
        ("100", Done.TAKEN_OUT),
        ("home", Done.LEFT_ALONE),
    ]
    assert vm.shares.keys() == {"0", "101", "home", "007"}


async def test_a_vm_that_cannot_tell_is_believed_to_have_what_was_added(journal: FakeJournal) -> None:
    vm = FakeVM()
    manager = Manager(vm, journal=journal)
    await manager.add_to_vm(ONE, owner="a")
    async with manager.share(OTHER):
        again = Manager(vm, journal=journal)
        report = await again.recover()
        assert not report.asked
        assert [(share.name, share.done) for share in report] == [("0", Done.KEPT), ("1", Done.TAKEN_OUT)]
        assert vm.shares == {"0": ONE}
    vm.shares.clear()
    report = await again.recover(vm_is_new=True)
    assert only(report).done is Done.ADDED_AGAIN
    assert vm.shares == {"0": ONE}


async def test_a_vm_that_would_tell_and_cannot_now_is_believed_too_and_the_report_says_why(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    await manager.add_to_vm(ONE, owner="a")

    async def no_answer() -> dict[str, ListedShare]:
        msg = "no answer"
        raise OutcomeUnknown(msg)

    monkeypatch.setattr(vm, "list_plan9", no_answer)
    report = await Manager(vm, journal=journal).recover()
    assert str(report.listing_error) == "no answer"
    assert not report.asked
    assert only(report).done is Done.KEPT


async def test_a_vm_that_is_gone_has_nothing_and_neither_has_anybody(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    async with manager.share(OTHER):
        vm.gone = True
        again = Manager(vm, journal=journal)
        report = await again.recover()
        assert [type(share.error) for share in report] == [ComputeSystemGone, type(None)]
        assert not again.shares()
        assert not journal.state.shares


async def test_a_vm_that_exits_takes_its_shares_out_of_the_journal(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    manager.resolve_share_name(OTHER)
    late = Manager(vm, journal=journal)
    manager.vm_exited(ComputeSystemGone("it has exited"))
    late.vm_exited(ComputeSystemGone("it has exited"))
    report = await late.recover()
    assert [share.found for share in report] == ["the VM has exited"] * 1
    await settle()
    assert not journal.state.shares
    with pytest.raises(ComputeSystemGone, match="it has exited"):
        await late.add_to_vm(ONE, owner="a")


async def test_an_orphan_of_the_last_life_is_in_nobodys_way(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.replies.append(Reply.LOSE_BEFORE)
    with pytest.raises(OutcomeUnknown):
        await manager.remove_from_vm("0", owner="a")
    await settle()
    again = Manager(vm, journal=journal)
    vm.hold = True
    add = asyncio.create_task(again.add_to_vm(ONE, owner="a"))
    await settle()
    assert vm.in_flight.keys() == {"0", "64"}, "the orphan is being taken out, and the add does not wait for it"
    vm.in_flight["64"].answer(Reply.SUCCEED)
    assert await add == "64"
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    assert vm.shares == {"64": ONE}


async def test_a_journal_that_cannot_be_read_is_an_error_each_time_and_read_when_it_can_be(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    again = Manager(vm, journal=journal)
    journal.broken = True
    for _ in range(2):
        with pytest.raises(JournalError, match="cannot be read"):
            await again.recover()
        with pytest.raises(JournalError, match="cannot be read"):
            await again.add_to_vm(ONE, owner="b")
    with pytest.raises(JournalError, match="cannot be read"):
        await again.__aenter__()
    journal.broken = False
    adds = await asyncio.gather(again.add_to_vm(ONE, owner="b"), again.add_to_vm(OTHER, owner="b"))
    assert list(adds) == ["0", "64"]
    assert again.shares()[0].owners == ("a", "b")


async def test_what_may_not_be_shared_is_refused_before_the_journal_is_read(
    vm: ListingFakeVM, journal: FakeJournal
) -> None:
    manager = Manager(vm, journal=journal, no_writable_file_shares=True)
    journal.broken = True
    with pytest.raises(OperationDenied):
        await manager.add_to_vm(AddOptions(HERE), owner="a")


async def test_a_caller_that_is_cancelled_while_the_journal_is_read_stops_nobody(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    journal.hold = True
    first = asyncio.create_task(manager.add_to_vm(ONE, owner="a"))
    second = asyncio.create_task(manager.recover())
    await settle()
    first.cancel()
    await settle()
    journal.hold = False
    journal.in_flight[0].answer(Reply.SUCCEED)
    assert list(await second) == []
    assert not vm.calls


# ---------------------------------------------------------------------- ends


async def test_closing_takes_out_what_earlier_lives_left_too(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    async with Manager(vm, journal=journal) as again:
        assert again.shares()[0].owners == ("a",)
    assert not vm.shares
    assert journal.state == JournalState(64)


async def test_what_closing_could_not_take_out_is_taken_out_by_the_next_life(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    await manager.add_to_vm(ONE)
    vm.replies.append(Reply.FAIL)
    with pytest.raises(SharesLeft, match="share 0"):
        await manager.aclose()
    assert journal.state.shares == {"0": JournalledShare("0", ONE, Phase.ADDED)}
    report = await Manager(vm, journal=journal).recover()
    assert only(report).done is Done.TAKEN_OUT
    assert not vm.shares


@pytest.mark.parametrize(
    ("appends", "error", "words"),
    [
        ([Reply.SUCCEED, Reply.FAIL], SharesLeft, "could not be written down"),
        ([Reply.SUCCEED, Reply.SUCCEED, Reply.FAIL], JournalError, "the append fails"),
    ],
)
async def test_closing_says_when_the_journal_does_not_know_of_it(
    journal: FakeJournal, manager: Manager, appends: list[Reply], error: type[Exception], words: str
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    journal.replies += appends
    with pytest.raises(error, match=words):
        await manager.aclose()
    await manager.aclose()
    assert journal.state == JournalState(1)


async def test_closing_says_what_is_left_rather_than_that_the_journal_is_broken(
    journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    journal.broken = True
    with pytest.raises(SharesLeft, match="share 0: the test says that the append fails"):
        await manager.aclose()
    journal.broken = False
    await manager.aclose()
    assert journal.state == JournalState(1)


async def test_closing_that_is_interrupted_says_what_stays(vm: ListingFakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.hold = True
    closing = asyncio.create_task(manager.aclose())
    await settle()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError) as raised:
        await closing
    assert raised.value.__notes__ == ["the Manager was being closed; shares that the VM still had or may have had: 0"]
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await manager.aclose()
    assert not vm.shares


async def test_a_manager_that_is_closed_while_it_recovers_settles_nothing_more(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    again = Manager(vm, journal=journal)
    journal.hold = True
    recovering = asyncio.create_task(again.recover())
    await settle()
    closing = asyncio.create_task(again.aclose())
    await settle()
    journal.hold = False
    journal.in_flight[0].answer(Reply.SUCCEED)
    await closing
    assert list(await recovering) == []
    assert not vm.shares
    with pytest.raises(ManagerClosed):
        await again.recover()


async def test_a_journal_that_was_never_read_is_left_alone(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    await Manager(vm, journal=journal).aclose()
    assert vm.shares
    assert journal.state.shares


async def test_detaching_leaves_everything_to_the_next_manager(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.hold = True
    adding = asyncio.create_task(manager.add_to_vm(OTHER, owner="a"))
    await settle()
    detaching = asyncio.create_task(manager.detach())
    await settle()
    assert not detaching.done(), "it waits for the call in flight"
    vm.hold = False
    vm.in_flight["1"].answer(Reply.SUCCEED)
    there = await detaching
    assert [info.name for info in there] == ["0", "1"]
    with pytest.raises(ManagerClosed):
        await adding
    assert await manager.detach() == ()
    await manager.aclose()
    assert vm.shares.keys() == {"0", "1"}
    with pytest.raises(ManagerClosed, match="was detached"):
        await manager.remove_from_vm("0", owner="a")
    with pytest.raises(ManagerClosed):
        await manager.add_to_vm(ONE, owner="a")
    report = await Manager(vm, journal=journal).recover()
    assert [(share.name, share.done) for share in report] == [("0", Done.KEPT), ("1", Done.TAKEN_OUT)]
    assert journal.state.shares.keys() == {"0"}


async def test_detaching_without_a_journal_would_lose_everything(vm: ListingFakeVM) -> None:
    manager = Manager(vm)
    await manager.add_to_vm(ONE)
    with pytest.raises(ValueError, match="without a journal"):
        await manager.detach()
    await manager.remove_from_vm("0")
    assert not vm.shares


async def test_a_broken_journal_keeps_a_manager_from_detaching_but_not_from_closing(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add_to_vm(ONE, owner="a")
    journal.replies.append(Reply.FAIL)
    with pytest.raises(JournalError):
        await manager.detach()
    await manager.aclose()
    assert not vm.shares


def test_a_loop_that_ends_in_the_middle_leaves_what_the_next_can_settle(
    vm: ListingFakeVM, journal: FakeJournal
) -> None:
    async def ends() -> None:
        manager = Manager(vm, journal=journal)
        await manager.add_to_vm(OTHER, owner="a")
        vm.replies.append(Reply.NEVER)
        asyncio.ensure_future(manager.add_to_vm(ONE, owner="a"))  # noqa: RUF006  left behind is the point
        await settle()

    async def begins() -> None:
        report = await Manager(vm, journal=journal).recover()
        assert [(share.name, share.done) for share in report] == [("0", Done.KEPT), ("1", Done.TAKEN_OUT)]

    run(ends())
    run(begins())
    assert vm.shares == {"0": OTHER}


async def test_a_fake_vm_tells_what_it_has(vm: ListingFakeVM) -> None:
    await vm.add_plan9(Plan9Share("0", ONE))
    assert await vm.list_plan9() == {"0": ListedShare(str(HERE), read_only=True)}
