"""What a Manager does when its VM tells that it has exited, whatever is in flight."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import ComputeSystemGone, ComputeSystemStopped, OutcomeUnknown
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.share.interfaces import TellsExit
from uvmshare.share.manager import RETRY_LONGEST, Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.fakes import FakeVM, Reply
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.hcs.schema import ModifySettingRequest

HERE = Path(__file__).parent
ONE = AddOptions(HERE, read_only=True)
OTHER = AddOptions(HERE)


class MortalVM(FakeVM):
    """A fake VM that tells its exit."""

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        self.tell = callback

    def die(self) -> None:
        self.gone = True
        self.shares.clear()
        self.tell(ComputeSystemStopped("the VM has exited"))


async def turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_only_a_vm_that_can_tell_is_asked_to() -> None:
    assert isinstance(MortalVM(), TellsExit)
    assert not isinstance(FakeVM(), TellsExit)

    class Silent:
        async def modify(self, request: ModifySettingRequest) -> None: ...

    Manager(UtilityVM(Silent()))  # the Linux file server, say


def test_shares_that_nothing_is_in_flight_for_are_released_without_a_call() -> None:
    async def main() -> None:
        vm = MortalVM()
        manager = Manager(vm)
        name = await manager.add_to_vm(ONE, owner="a")
        manager.resolve_share_name(OTHER)
        vm.die()
        assert manager.shares() == ()
        await manager.remove_from_vm(name, owner="a")
        for ask in (manager.add_to_vm(ONE), manager.add_to_vm(OTHER)):
            with pytest.raises(ComputeSystemGone, match="no share can be added any more: the VM has exited"):
                await ask
        assert len(vm.calls) == 1

    run(main())


@pytest.mark.parametrize("reply", [Reply.SUCCEED, Reply.FAIL, Reply.LOSE_BEFORE, Reply.LOSE_AFTER])
def test_an_add_in_flight_ends_as_gone_whatever_its_answer(reply: Reply) -> None:
    async def main() -> None:
        vm = MortalVM()
        vm.hold = True
        manager = Manager(vm)
        adding = [asyncio.create_task(manager.add_to_vm(ONE, owner=owner)) for owner in "ab"]
        await turns()
        vm.tell(ComputeSystemStopped("the VM has exited"))
        assert [task.done() for task in adding] == [False, False]
        vm.in_flight["0"].answer(reply)
        for task in adding:
            with pytest.raises(Exception, match=r"exited|the test says that it fails"):
                await task
        assert manager.shares() == ()
        assert len(vm.calls) == 1

    run(main())


@pytest.mark.parametrize("reply", [Reply.SUCCEED, Reply.FAIL, Reply.LOSE_BEFORE])
def test_a_removal_in_flight_succeeds_whatever_its_answer(reply: Reply) -> None:
    async def main() -> None:
        vm = MortalVM()
        manager = Manager(vm)
        name = await manager.add_to_vm(ONE)
        vm.hold = True
        removing = asyncio.create_task(manager.remove_from_vm(name))
        await turns()
        vm.tell(ComputeSystemStopped("the VM has exited"))
        vm.in_flight[name].answer(reply)
        await removing
        assert manager.shares() == ()

    run(main())


def test_what_was_to_be_retried_is_not() -> None:
    async def main() -> None:
        vm = MortalVM()
        manager = Manager(vm)
        vm.replies += [Reply.LOSE_AFTER, Reply.LOSE_BEFORE]
        with pytest.raises(OutcomeUnknown):
            await manager.add_to_vm(ONE)
        assert [share.orphan for share in manager.shares()] == [True]
        vm.die()
        assert manager.shares() == ()
        await asyncio.sleep(2 * RETRY_LONGEST)  # virtual
        assert len(vm.calls) == 2

    run(main())


def test_a_block_ends_well_when_the_vm_has_exited_inside() -> None:
    async def main() -> None:
        vm = MortalVM()
        manager = Manager(vm)
        async with manager.share(ONE):
            vm.die()
        await manager.aclose()
        assert len(vm.calls) == 1

    run(main())


def test_a_waiter_that_wakes_after_the_exit_gets_no_share() -> None:
    async def main() -> None:
        vm = MortalVM()
        vm.hold = True
        manager = Manager(vm)
        adding = asyncio.create_task(manager.add_to_vm(ONE))
        await turns()
        vm.in_flight["0"].answer(Reply.SUCCEED)
        # The answer has come; the caller has yet to wake up when the VM exits.
        while manager.shares()[0].busy:  # noqa: ASYNC110  what is waited for is inside the thing under test
            await asyncio.sleep(0)
        vm.die()
        with pytest.raises(ComputeSystemGone):
            await adding
        assert manager.shares() == ()

    run(main())
