"""What the next Manager finds in the journal, asks the VM and does about it, one story at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from tests.share.harness import HERE, ONE, OTHER
from tests.share.journalled.harness import only
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemError, ComputeSystemGone, JournalError, OperationDenied, OutcomeUnknown
from uvmshare.share.journal import JournalledShare, JournalState
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.recovery import Done
from uvmshare.share.state import ShareLife, ShareState
from uvmshare.testing.fakes import FakeJournal, FakeReply, FakeVM, ListingFakeVM


async def test_what_was_shared_is_shared_by_the_next_manager_and_its_owners_have_it(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    for owner in ("a", "b", None, None):
        await manager.add(ONE, owner=owner)
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
    assert await again.add(ONE, owner="c") == "0"
    assert await again.release_owner("a") == ("0",)
    for owner in ("b", "c", None, None):
        assert vm.shares
        await again.remove("0", owner=owner)
    assert not vm.shares


@pytest.mark.parametrize("first", ["add", "remove", "release", "with"])
async def test_recovery_comes_by_itself_before_anything_else(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager, first: str
) -> None:
    await manager.add(ONE, owner="a")
    again = Manager(vm, journal=journal)
    assert again.shares() == ()
    if first == "add":
        assert await again.add(ONE, owner="b") == "0"
    elif first == "remove":
        await again.remove("0", owner="a")
        assert not vm.shares
    elif first == "release":
        assert await again.release_owner("a") == ("0",)
    else:
        async with again:
            assert again.shares()[0].owners == ("a",)


async def test_an_add_without_an_outcome_is_undone(vm: ListingFakeVM, journal: FakeJournal, manager: Manager) -> None:
    await manager.recover()
    vm.hold = True
    add = asyncio.create_task(manager.add(ONE, owner="a"))
    await settle()
    new_life = ListingFakeVM()
    new_life.shares["0"] = ONE  # carried out, and the process dies before the answer
    report = await Manager(new_life, journal=journal).recover()
    assert only(report).done is Done.TAKEN_OUT
    assert only(report).found == "a call for it has no outcome"
    assert not new_life.shares
    assert not journal.state.shares
    add.cancel()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)


async def test_a_share_that_the_server_lost_is_added_again_under_its_name(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(OTHER, owner="a")
    del vm.shares["0"]
    vm.shares["1"] = ONE
    report = await Manager(vm, journal=journal).recover()
    assert [(share.name, share.done, share.owners) for share in report] == [
        ("0", Done.ADDED_AGAIN, ("a",)),
        ("1", Done.ADDED_AGAIN, ("a",)),
    ]
    assert vm.shares == {"0": ONE, "1": OTHER}
    assert {share.life for share in journal.state.shares.values()} == {ShareLife.ADDED}


async def test_a_lost_share_that_cannot_be_added_yet_stays_its_owners_and_is_tried_again(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies += [FakeReply.FAIL, FakeReply.FAIL, FakeReply.LOSE_AFTER, FakeReply.SUCCEED, FakeReply.LOSE_AFTER]
    report = await again.recover()
    assert [share.name for share in report.unsettled] == ["0"]
    assert "not yet: remove of share 0: the test says" in str(report.unsettled[0])
    (info,) = again.shares()
    assert (info.state, info.owners) == (ShareState.PENDING, ("a",))
    assert journal.state.shares["0"].life is ShareLife.RESTORING
    crashed_meanwhile = FakeJournal()
    crashed_meanwhile.state = JournalState(64, dict(journal.state.shares))
    await asyncio.sleep(60)
    assert again.shares()[0].state is ShareState.ADDED
    assert vm.shares == {"0": ONE}
    assert journal.state.shares["0"] == JournalledShare("0", ONE, ShareLife.ADDED, ("a",))
    vm.shares.clear()
    report = await Manager(vm, journal=crashed_meanwhile).recover()
    assert only(report).done is Done.ADDED_AGAIN
    assert vm.shares == {"0": ONE}


async def test_who_asks_for_a_lost_share_gets_it_back_for_all(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies.append(FakeReply.FAIL)
    await again.recover()
    vm.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    with pytest.raises(ComputeSystemError):
        await again.add(ONE, owner="b")
    assert again.shares()[0].owners == ("a",)
    assert await again.add(ONE, owner="b") == "0"
    assert again.shares()[0].owners == journal.state.shares["0"].owners == ("a", "b")


async def test_a_lost_share_that_its_owner_gives_back_is_taken_out_since_it_may_be_there(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(ONE, owner="b")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies += [FakeReply.FAIL]
    await again.recover()
    await again.remove("0", owner="b")
    assert journal.state.shares["0"].owners == ("a",)
    await again.remove("0", owner="a")
    assert vm.calls[-1].kind == "remove"
    assert not again.shares()
    assert not journal.state.shares


async def test_closing_takes_a_lost_share_out_too(vm: ListingFakeVM, journal: FakeJournal, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.shares.clear()
    again = Manager(vm, journal=journal)
    vm.replies += [FakeReply.FAIL]
    await again.recover()
    vm.shares["0"] = ONE
    await again.aclose()
    assert not vm.shares
    assert not journal.state.shares


async def test_a_running_manager_brings_back_what_a_server_that_was_started_again_lost(
    vm: ListingFakeVM, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    async with manager.share(OTHER):
        vm.shares.clear()
        assert [share.done for share in await manager.recover()] == [Done.ADDED_AGAIN, Done.ADDED_AGAIN]
        assert vm.shares == {"0": ONE, "1": OTHER}
        async with asyncio.timeout(1):
            assert [share.done for share in await manager.recover()] == [Done.KEPT, Done.KEPT]


async def test_a_manager_without_a_journal_can_ask_too(vm: ListingFakeVM) -> None:
    manager = Manager(vm)
    await manager.add(ONE, owner=("not", "a", "string"))
    vm.shares.clear()
    assert only(await manager.recover()).done is Done.ADDED_AGAIN
    assert vm.shares == {"0": ONE}
    vm.shares.clear()
    vm.replies.append(FakeReply.FAIL)
    await manager.recover()
    async with asyncio.timeout(5):
        while manager.shares()[0].state is not ShareState.ADDED:  # noqa: ASYNC110  until it was tried again
            await asyncio.sleep(1)
    assert vm.shares == {"0": ONE}


async def test_a_block_that_ends_while_its_share_is_lost_takes_it_out(vm: ListingFakeVM) -> None:
    manager = Manager(vm)
    async with manager.share(ONE):
        vm.shares.clear()
        vm.replies.append(FakeReply.FAIL)
        await manager.recover()
    assert not manager.shares()


async def test_what_is_under_way_when_the_vm_is_asked_is_no_difference(vm: ListingFakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.hold = True
    adding = asyncio.create_task(manager.add(OTHER, owner="a"))
    removing = asyncio.create_task(manager.remove("0", owner="a"))
    await settle()
    report = await manager.recover()
    assert list(report) == []
    for call in tuple(vm.in_flight.values()):
        call.answer(FakeReply.SUCCEED)
    await asyncio.gather(adding, removing)
    assert vm.shares == {"1": OTHER}


async def test_a_share_that_nobody_knows_goes_if_its_name_was_ours(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    assert await manager.add(ONE, owner="a") == "0"
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
    assert await again.add(OTHER, owner="a") == "101", "and no share of ours gets a name that is there"
    for patient in (again, Manager(vm, journal=journal)):
        assert ("100", Done.LEFT_ALONE) in [(share.name, share.done) for share in await patient.recover()]
    report = await again.recover(take_out_unknown=True)
    assert [(share.name, share.done) for share in report][2:] == [
        ("007", Done.LEFT_ALONE),
        ("100", Done.TAKEN_OUT),
        ("home", Done.LEFT_ALONE),
    ]
    assert vm.shares.keys() == {"0", "101", "home", "007"}


async def test_what_an_earlier_process_brought_back_is_not_taken_out_again(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    vm.shares.clear()
    vm.replies += [FakeReply.SUCCEED, FakeReply.LOSE_AFTER]
    assert only(await manager.recover()).error is not None
    assert journal.state.shares["0"].life is ShareLife.RESTORING
    calls = len(vm.calls)
    again = Manager(vm, journal=journal)
    assert only(await again.recover()).error is None
    assert [call.kind for call in vm.calls[calls:]] == ["add"], "a guest may have mounted it meanwhile"
    assert again.shares()[0].state is ShareState.ADDED
    assert vm.shares == {"0": ONE}


async def test_a_vm_that_tells_of_many_shares_and_takes_out_none_is_believed_so_many(
    vm: ListingFakeVM, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvmshare.share.recovery._MOST_UNKNOWN", 3)
    vm.replies += [FakeReply.LOSE_BEFORE] * 6
    for most in (5, 10):
        vm.shares |= {str(number): OTHER for number in range(most)}
        await manager.recover(take_out_unknown=True)
        assert len(manager.shares()) == 3


async def test_a_vm_that_cannot_tell_is_believed_to_have_what_was_added(journal: FakeJournal) -> None:
    vm = FakeVM()
    manager = Manager(vm, journal=journal)
    await manager.add(ONE, owner="a")
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
    await manager.add(ONE, owner="a")

    async def no_answer() -> dict[str, AddOptions]:
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
    await manager.add(ONE, owner="a")
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
    await manager.add(ONE, owner="a")
    manager.resolve_share_name(OTHER)
    late = Manager(vm, journal=journal)
    manager.vm_exited(ComputeSystemGone("it has exited"))
    late.vm_exited(ComputeSystemGone("it has exited"))
    report = await late.recover()
    assert [share.found for share in report] == ["the VM has exited"] * 1
    await settle()
    assert not journal.state.shares
    with pytest.raises(ComputeSystemGone, match="it has exited"):
        await late.add(ONE, owner="a")


async def test_an_orphan_of_the_last_life_is_in_nobodys_way(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    vm.replies.append(FakeReply.LOSE_BEFORE)
    with pytest.raises(OutcomeUnknown):
        await manager.remove("0", owner="a")
    await settle()
    again = Manager(vm, journal=journal)
    vm.hold = True
    add = asyncio.create_task(again.add(ONE, owner="a"))
    await settle()
    assert vm.in_flight.keys() == {"0", "64"}, "the orphan is being taken out, and the add does not wait for it"
    vm.in_flight["64"].answer(FakeReply.SUCCEED)
    assert await add == "64"
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    assert vm.shares == {"64": ONE}


async def test_a_journal_that_cannot_be_read_is_an_error_each_time_and_read_when_it_can_be(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    again = Manager(vm, journal=journal)
    journal.broken = True
    for _ in range(2):
        with pytest.raises(JournalError, match="cannot be read"):
            await again.recover()
        with pytest.raises(JournalError, match="cannot be read"):
            await again.add(ONE, owner="b")
    with pytest.raises(JournalError, match="cannot be read"):
        await again.__aenter__()
    journal.broken = False
    adds = await asyncio.gather(again.add(ONE, owner="b"), again.add(OTHER, owner="b"))
    assert list(adds) == ["0", "64"]
    assert again.shares()[0].owners == ("a", "b")


async def test_what_may_not_be_shared_is_refused_before_the_journal_is_read(
    vm: ListingFakeVM, journal: FakeJournal
) -> None:
    manager = Manager(vm, journal=journal, no_writable_file_shares=True)
    journal.broken = True
    with pytest.raises(OperationDenied):
        await manager.add(AddOptions(HERE), owner="a")


async def test_a_caller_that_is_cancelled_while_the_journal_is_read_stops_nobody(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    journal.hold = True
    first = asyncio.create_task(manager.add(ONE, owner="a"))
    second = asyncio.create_task(manager.recover())
    await settle()
    first.cancel()
    await settle()
    journal.hold = False
    journal.in_flight[0].answer(FakeReply.SUCCEED)
    assert list(await second) == []
    assert not vm.calls


async def test_a_lost_share_that_is_tried_again_and_again_on_a_full_disk_puts_no_more_in_line(
    vm: ListingFakeVM, journal: FakeJournal, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    vm.shares.clear()
    journal.broken = True
    with suppress(JournalError):
        await manager.recover()
    assert manager._engine.ledger is not None
    await asyncio.sleep(600)
    line = len(manager._engine.ledger._line)
    await asyncio.sleep(36000)
    assert len(manager._engine.ledger._line) == line
    journal.broken = False
    await asyncio.sleep(60)
    assert list(vm.shares) == ["0"]
