"""A VM that may have lost shares says so, and nobody has to call anything: the Manager settles what follows."""

from __future__ import annotations

import pytest
from tests.share.harness import ONE, OTHER, kinds, only, until
from tests.virtual_time import settle

from uvmshare.errors import JournalError
from uvmshare.mounts.manager import MountManager
from uvmshare.share.interfaces import TellsTakeover
from uvmshare.share.manager import Manager
from uvmshare.share.recovery import Done, RecoveryReport
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeAgent, FakeJournal, FakeVM, ListingFakeVM, Reply


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
    vm.replies += [Reply.SUCCEED, Reply.FAIL]
    vm.take_over("0")
    await until(lambda: bool(told))
    (report,) = told
    assert isinstance(report, RecoveryReport)
    assert [share.name for share in report.unsettled] == ["0"]
    assert only(manager).state is ShareState.PENDING
    await until(lambda: only(manager).state is ShareState.ADDED, 1)


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
    vm.in_flight["0"].answer(Reply.SUCCEED)
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


async def test_what_keeps_it_from_being_settled_is_told(vm: ListingFakeVM) -> None:
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
    journal.broken = False
    vm.take_over()
    await until(lambda: len(told) == 2)
    assert vm.shares == {"0": ONE}


@pytest.mark.parametrize("how", ["aclose", "detach"])
async def test_a_manager_that_ends_meanwhile_ends_it_too(vm: ListingFakeVM, how: str) -> None:
    manager = Manager(vm, journal=FakeJournal())
    told: list[RecoveryReport | Exception] = []
    manager.on_settled(told.append)
    await manager.add(ONE, owner="a")
    vm.take_over()
    await getattr(manager, how)()
    await settle()
    assert manager._settling.task is None
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
    vm.replies += [Reply.SUCCEED, Reply.FAIL]
    vm.take_over("0")
    if not first:
        await settle()
    report = await manager.recover()
    assert [(share.name, share.done) for share in report] == [("0", Done.ADDED_AGAIN), ("1", Done.KEPT)]
    await until(lambda: vm.shares == {"0": ONE, "1": OTHER}, 1)
