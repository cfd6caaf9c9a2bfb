"""A VM that may have lost shares says so, and nobody has to call anything: the Manager settles what follows."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import ONE, OTHER, kinds, only, until
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemGone, JournalError, SharesLeft
from uvmshare.mounts.manager import MountManager
from uvmshare.share.interfaces import TellsTakeover
from uvmshare.share.manager import RETRY_FIRST, RETRY_LONGEST, Manager
from uvmshare.share.recovery import Done, RecoveryReport
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeAgent, FakeJournal, FakeReply, FakeVM, ListingFakeVM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvmshare.share.options import AddOptions


@pytest.fixture(name="vm")
def _vm() -> ListingFakeVM:
    return ListingFakeVM()


def test_only_a_vm_that_can_tell_is_asked_to() -> None:
    assert isinstance(ListingFakeVM(), TellsTakeover)
    assert not isinstance(FakeVM(), TellsTakeover)
    Manager(FakeVM())


async def test_what_was_lost_is_added_again_under_its_name_and_whoever_wants_to_know_is_told(
    vm: ListingFakeVM, manager: Manager
) -> None:
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    await manager.add(OTHER, owner="b")
    vm.take_over("1")
    await until(lambda: bool(told))
    assert vm.shares == {"0": ONE, "1": OTHER}
    assert [(info.name, info.owners, info.state) for info in manager.shares()] == [
        ("0", ("a",), ShareState.ADDED),
        ("1", ("b",), ShareState.ADDED),
    ]
    (report,) = told
    assert isinstance(report, RecoveryReport)
    assert [(share.name, share.done) for share in report] == [("0", Done.KEPT), ("1", Done.ADDED_AGAIN)]


async def test_what_cannot_be_added_again_yet_is_told_and_tried_again(vm: ListingFakeVM, manager: Manager) -> None:
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    vm.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    vm.take_over("0")
    await until(lambda: bool(told))
    (report,) = told
    assert isinstance(report, RecoveryReport)
    assert [share.name for share in report.unsettled] == ["0"]
    assert only(manager).state is ShareState.PENDING
    await until(lambda: only(manager).state is ShareState.ADDED, 1)


@pytest.mark.parametrize("lost", [FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE])
async def test_what_an_attempt_without_an_answer_brought_back_is_not_taken_out_again(
    vm: ListingFakeVM, manager: Manager, lost: FakeReply
) -> None:
    await manager.add(ONE, owner="a")
    vm.replies += [FakeReply.SUCCEED, lost]
    vm.take_over("0")
    await until(lambda: not vm.replies)
    calls = len(vm.calls)
    await until(lambda: only(manager).state is ShareState.ADDED, 1)
    assert kinds(vm)[calls:] == [("add", "0")], "a guest may have mounted it meanwhile"
    assert vm.shares == {"0": ONE}
    await manager.aclose()
    assert not vm.shares


async def test_another_share_under_the_name_of_one_that_is_added_again_is_replaced(
    vm: ListingFakeVM, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    vm.replies += [FakeReply.SUCCEED, FakeReply.LOSE_BEFORE]
    vm.take_over("0")
    await until(lambda: not vm.replies)
    vm.shares["0"] = OTHER
    vm.take_over()
    await until(lambda: only(manager).state is ShareState.ADDED, 1)
    assert vm.shares == {"0": ONE}


async def test_what_came_back_while_the_vm_was_asked_is_not_taken_for_lost(vm: ListingFakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    vm.take_over("0")
    await until(lambda: not vm.replies)
    answers, asked = vm.list_plan9, asyncio.Event()

    async def takes_its_time() -> Mapping[str, AddOptions]:
        had = await answers()
        await asked.wait()
        return had

    vm.list_plan9 = takes_its_time  # type: ignore[method-assign]
    vm.take_over()
    await until(lambda: only(manager).state is ShareState.ADDED, 1)
    calls = len(vm.calls)
    asked.set()
    await until(lambda: not manager._comparisons.pending)
    assert len(vm.calls) == calls
    assert vm.shares == {"0": ONE}


async def test_one_that_comes_while_another_is_settled_is_settled_after_it(vm: ListingFakeVM, manager: Manager) -> None:
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    vm.hold = True
    vm.take_over("0")
    await until(lambda: "0" in vm.in_flight)
    vm.take_over()
    vm.take_over()
    vm.hold = False
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await until(lambda: len(told) == 2)
    await settle()
    assert len(told) == 2
    assert vm.shares == {"0": ONE}


async def test_a_journal_that_was_not_read_yet_is_not_read_for_it(vm: ListingFakeVM) -> None:
    journal = FakeJournal()
    first = Manager(vm, journal=journal)
    await first.add(ONE, owner="a")
    await first.detach()
    calls = len(vm.calls)
    manager = Manager(vm, journal=journal)
    vm.take_over("0")
    await settle()
    assert len(vm.calls) == calls, "neither the one that let go nor the one that has not begun does anything"
    await manager.recover()
    assert vm.shares == {"0": ONE}


async def test_what_keeps_it_from_being_settled_is_told_once_and_it_is_tried_again_by_itself(vm: ListingFakeVM) -> None:
    journal = FakeJournal()
    manager = Manager(vm, journal=journal)
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    journal.broken = True
    with pytest.raises(JournalError):
        await manager.add(OTHER, owner="a")
    vm.take_over("0")
    await until(lambda: bool(told))
    assert isinstance(told[0], JournalError)
    assert only(manager).state is ShareState.ADDED, "what it was is what is known of it"
    await asyncio.sleep(10 * RETRY_LONGEST)
    assert len(told) == 1
    journal.broken = False
    await until(lambda: len(told) == 2, 1)
    assert isinstance(told[1], RecoveryReport)
    assert vm.shares == {"0": ONE}
    assert not manager._comparisons.pending


async def test_a_vm_that_does_not_tell_what_it_has_is_asked_again(vm: ListingFakeVM, manager: Manager) -> None:
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    answers = vm.list_plan9
    failures = deque([OSError("one"), OSError("one"), OSError("other")])

    async def refuses() -> Mapping[str, AddOptions]:
        if failures:
            raise failures.popleft()
        return await answers()

    vm.list_plan9 = refuses  # type: ignore[method-assign]  # as a file server that is still starting
    vm.take_over("0")
    await until(lambda: vm.shares == {"0": ONE}, 1)
    await settle()
    errors = [str(report.listing_error) if isinstance(report, RecoveryReport) else report for report in told]
    assert errors == ["one", "other", "None"]
    assert (only(manager).owners, only(manager).state) == (("a",), ShareState.ADDED)
    vm.take_over("0")
    failures.append(OSError("one"))
    before = asyncio.get_running_loop().time()
    await until(lambda: vm.shares == {"0": ONE}, 0.25)
    assert asyncio.get_running_loop().time() - before <= 2 * RETRY_FIRST, "the first wait is short again"


async def test_a_share_that_was_under_way_meanwhile_is_not_forgotten(vm: ListingFakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.hold = True
    adding = asyncio.create_task(manager.add(OTHER, owner="a"))
    await until(lambda: "1" in vm.in_flight)
    vm.hold = False
    vm.take_over("0")
    await until(lambda: vm.shares == {"0": ONE})
    vm.in_flight["1"].answer(FakeReply.SUCCEED)
    await until(lambda: "1" in vm.shares)
    del vm.shares["1"]  # it had it, and its answer was still on the way when it lost that
    await adding
    await until(lambda: vm.shares == {"0": ONE, "1": OTHER})


def _never() -> asyncio.Future[Mapping[str, AddOptions]]:
    return asyncio.get_running_loop().create_future()


@pytest.mark.parametrize("where", ["retry", "listing", "adding", "journal"])
@pytest.mark.parametrize("how", ["aclose", "detach", "exit"])
async def test_the_end_ends_it_wherever_it_is(vm: ListingFakeVM, where: str, how: str) -> None:
    journal = FakeJournal()
    manager = Manager(vm, journal=journal)
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    answer = _never()
    if where == "retry":
        answer.set_exception(OSError("not now"))
    if where in ("retry", "listing"):
        vm.list_plan9 = lambda: answer  # type: ignore[method-assign,assignment,return-value]  # any awaitable does
    if where == "adding":
        vm.replies += [FakeReply.SUCCEED]
        vm.hold = True
    if where == "journal":
        journal.replies += [FakeReply.NEVER]
    vm.take_over("0")
    await settle()
    assert manager._comparisons.pending
    ended = asyncio.create_task(_end(manager, vm, how))
    await settle()
    for call in vm.in_flight.values():
        call.answer(FakeReply.SUCCEED)
    vm.hold = False
    for append in tuple(journal.in_flight):
        append.answer(FakeReply.SUCCEED) if append.held else None
    if where == "journal":
        manager._engine.ledger._task.cancel()  # type: ignore[union-attr]  # what never answers ends with its loop alone
    with suppress(JournalError, SharesLeft):
        await ended
    if not answer.done():
        answer.set_result({})
    await settle()
    calls = len(vm.calls)
    await asyncio.sleep(10 * RETRY_LONGEST)
    assert not manager._comparisons.pending
    assert len(vm.calls) == calls, "nothing is tried after the end"
    assert len(told) <= 1 + (how == "exit")


async def _end(manager: Manager, vm: ListingFakeVM, how: str) -> None:
    if how == "exit":
        vm.gone = True
        manager.vm_exited(ComputeSystemGone("it exited"))
    else:
        await getattr(manager, how)()


async def test_a_caller_who_gives_up_takes_nothing_from_it(vm: ListingFakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.hold = True
    vm.take_over("0")
    await until(lambda: "0" in vm.in_flight)
    asks = [asyncio.create_task(manager.recover()), asyncio.create_task(manager.add(ONE, owner="b"))]
    await settle()
    for task in asks:
        task.cancel()
    await asyncio.wait(asks)
    vm.hold = False
    while vm.in_flight:
        vm.in_flight["0"].answer(FakeReply.SUCCEED)
        await settle()
    assert vm.shares == {"0": ONE}
    assert only(manager).owners == ("a",)
    assert not manager._comparisons.pending


async def test_what_is_released_while_it_is_tried_again_is_not_brought_back(
    vm: ListingFakeVM, manager: Manager
) -> None:
    await manager.add(ONE, owner="a")
    answers = vm.list_plan9
    vm.list_plan9 = _refuses  # type: ignore[method-assign]
    vm.take_over("0")
    await settle()
    await manager.remove("0", owner="a")
    assert manager.shares() == ()
    vm.list_plan9 = answers  # type: ignore[method-assign]
    await until(lambda: not manager._comparisons.pending, 1)
    assert vm.shares == {}


async def _refuses() -> Mapping[str, AddOptions]:
    raise OSError


@pytest.mark.parametrize("how", ["aclose", "detach"])
async def test_a_manager_that_ends_meanwhile_ends_it_too(vm: ListingFakeVM, how: str) -> None:
    manager = Manager(vm, journal=FakeJournal())
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    vm.take_over()
    await getattr(manager, how)()
    await settle()
    assert manager._comparisons.task is None
    assert told == []
    assert vm.shares == ({} if how == "aclose" else {"0": ONE})


async def test_then_the_guest_is_asked_what_it_has(vm: ListingFakeVM, manager: Manager) -> None:
    agent = FakeAgent()
    mounts = MountManager(agent, shares=manager)
    await mounts.map(ONE, "/run/one", owner="a")
    agent.mounts.clear()  # it ended with the share, and the guest took it away
    vm.take_over("0")
    await until(lambda: "/run/one" in agent.mounts, 1)
    assert kinds(vm)[-1] == ("add", "0")
    assert [info.owners for info in mounts.mounts()] == [("a",)]


@pytest.mark.parametrize("first", [True, False])
async def test_whoever_asks_meanwhile_is_told_of_every_share(vm: ListingFakeVM, manager: Manager, first: bool) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(OTHER, owner="a")
    vm.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    vm.take_over("0")
    if not first:
        await settle()
    report = await manager.recover()
    assert [(share.name, share.done) for share in report] == [("0", Done.ADDED_AGAIN), ("1", Done.KEPT)]
    await until(lambda: vm.shares == {"0": ONE, "1": OTHER}, 1)
