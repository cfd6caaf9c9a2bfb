"""A VM that tells its exit: every share is released, and nobody gets one any more."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import ONE, OTHER, WRITABLE, only, until
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemGone, ComputeSystemStopped, OutcomeUnknown
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.share.interfaces import TellsExit
from uvmshare.share.manager import RETRY_LONGEST, Manager
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeReply, FakeVM

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.hcs.schema import ModifySettingRequest


class Mortal(FakeVM):
    """A VM that tells its exit."""

    def __init__(self) -> None:
        super().__init__()
        self.tell: list[Callable[[ComputeSystemGone], None]] = []

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        self.tell.append(callback)

    def exit(self) -> None:
        self.gone = True
        self.shares.clear()
        self.tell_exit()

    def tell_exit(self) -> None:
        """Tell of it before it is seen in any other way."""
        for callback in self.tell:
            callback(ComputeSystemStopped("the VM has exited"))


async def test_a_vm_that_exits_releases_every_share_without_a_call() -> None:
    vm = Mortal()
    manager = Manager(vm)
    vm.replies.extend([FakeReply.SUCCEED, FakeReply.LOSE_AFTER, FakeReply.FAIL])
    await manager.add(ONE, owner="a")
    with pytest.raises(OutcomeUnknown):
        await manager.add(OTHER)
    manager.resolve_share_name(WRITABLE)
    calls = len(vm.calls)
    vm.exit()
    assert not manager.shares()
    await asyncio.sleep(RETRY_LONGEST)
    await manager.remove("0", owner="a")
    with pytest.raises(ComputeSystemGone, match="no share can be added any more: the VM has exited"):
        await manager.add(ONE)
    await manager.aclose()
    assert len(vm.calls) == calls


@pytest.mark.parametrize("reply", [FakeReply.SUCCEED, FakeReply.LOSE_AFTER, TimeoutError()])
async def test_an_add_that_meets_the_exit_of_the_vm_fails_whatever_the_answer(reply: FakeReply | Exception) -> None:
    vm = Mortal()
    vm.hold = True
    manager = Manager(vm)
    adds = [asyncio.create_task(manager.add(ONE)) for _ in range(2)]
    await settle()
    vm.in_flight["0"].answer(reply)
    vm.exit()
    for add in adds:
        with pytest.raises(ComputeSystemGone):
            await add
    assert not manager.shares()
    assert len(vm.calls) == 1


async def test_an_add_that_the_vm_took_just_before_its_exit_fails_too() -> None:
    vm = Mortal()
    vm.hold = True
    manager = Manager(vm)
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await until(lambda: bool(vm.shares))
    vm.exit()
    assert only(manager).busy == "adding"
    with pytest.raises(ComputeSystemGone):
        await add
    assert not manager.shares()


async def test_a_remove_that_meets_the_exit_of_the_vm_is_done_whatever_the_answer() -> None:
    vm = Mortal()
    manager = Manager(vm)
    async with manager.share(OTHER):
        name = await manager.add(ONE)
        vm.hold = True
        removal = asyncio.create_task(manager.remove(name))
        await settle()
        vm.in_flight[name].answer(TimeoutError())
        vm.exit()
        await removal
    assert not manager.shares()


async def test_a_caller_whose_share_goes_before_its_turn_is_told() -> None:
    vm = Mortal()
    vm.hold = True
    manager = Manager(vm)
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await until(lambda: only(manager).state is ShareState.ADDED)
    vm.exit()
    with pytest.raises(ComputeSystemGone):
        await add
    assert not manager.shares()


def test_only_a_vm_that_can_tell_is_asked_to() -> None:
    assert isinstance(Mortal(), TellsExit)
    assert not isinstance(FakeVM(), TellsExit)

    class Silent:
        async def modify(self, request: ModifySettingRequest) -> None: ...

    Manager(UtilityVM(Silent()))  # the Linux file server, say


async def test_shares_that_nothing_is_in_flight_for_are_released_without_a_call() -> None:
    vm = Mortal()
    manager = Manager(vm)
    name = await manager.add(ONE, owner="a")
    manager.resolve_share_name(OTHER)
    vm.exit()
    assert manager.shares() == ()
    await manager.remove(name, owner="a")
    for ask in (manager.add(ONE), manager.add(OTHER)):
        with pytest.raises(ComputeSystemGone, match="no share can be added any more: the VM has exited"):
            await ask
    assert len(vm.calls) == 1


@pytest.mark.parametrize("reply", [FakeReply.SUCCEED, FakeReply.FAIL, FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER])
async def test_an_add_in_flight_ends_as_gone_whatever_its_answer(reply: FakeReply) -> None:
    vm = Mortal()
    vm.hold = True
    manager = Manager(vm)
    adding = [asyncio.create_task(manager.add(ONE, owner=owner)) for owner in "ab"]
    await settle()
    vm.tell_exit()
    assert [task.done() for task in adding] == [False, False]
    vm.in_flight["0"].answer(reply)
    for task in adding:
        with pytest.raises(Exception, match=r"exited|the test says that it fails"):
            await task
    assert manager.shares() == ()
    assert len(vm.calls) == 1


@pytest.mark.parametrize("reply", [FakeReply.SUCCEED, FakeReply.FAIL, FakeReply.LOSE_BEFORE])
async def test_a_removal_in_flight_succeeds_whatever_its_answer(reply: FakeReply) -> None:
    vm = Mortal()
    manager = Manager(vm)
    name = await manager.add(ONE)
    vm.hold = True
    removing = asyncio.create_task(manager.remove(name))
    await settle()
    vm.tell_exit()
    vm.in_flight[name].answer(reply)
    await removing
    assert manager.shares() == ()


async def test_what_was_to_be_retried_is_not() -> None:
    vm = Mortal()
    manager = Manager(vm)
    vm.replies += [FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE]
    with pytest.raises(OutcomeUnknown):
        await manager.add(ONE)
    assert [share.orphan for share in manager.shares()] == [True]
    vm.exit()
    assert manager.shares() == ()
    await asyncio.sleep(2 * RETRY_LONGEST)  # virtual
    assert len(vm.calls) == 2


async def test_a_block_ends_well_when_the_vm_has_exited_inside() -> None:
    vm = Mortal()
    manager = Manager(vm)
    async with manager.share(ONE):
        vm.exit()
    await manager.aclose()
    assert len(vm.calls) == 1
