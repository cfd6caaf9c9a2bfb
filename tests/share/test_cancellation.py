"""A caller that is cancelled, a call that is interrupted, and an event loop that ends in the middle of one."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import ONE, OTHER, WRITABLE, kinds, only, until
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemError, OutcomeUnknown
from uvmshare.share.manager import RETRY_FIRST, RETRY_LONGEST, Manager
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeReply, FakeVM
from uvmshare.testing.schedule import VirtualLoop, run

if TYPE_CHECKING:
    from uvmshare.share.interfaces import NamedShare


# ---------------------------------------------------------------------- cancellation


async def test_a_cancelled_leader_does_not_take_the_share_from_those_who_wait(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    leader = asyncio.create_task(manager.add(ONE, owner="a"))
    waiter = asyncio.create_task(manager.add(ONE, owner="b"))
    await settle()
    leader.cancel()
    await settle()
    assert leader.cancelled()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    assert await waiter == "0"
    assert only(manager).owners == ("b",)


async def test_one_of_two_adds_of_one_owner_is_cancelled_and_the_other_keeps(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    first, second = (asyncio.create_task(manager.add(ONE, owner="a")) for _ in range(2))
    await settle()
    second.cancel()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await first
    await settle()
    assert only(manager).owners == ("a",)


async def test_an_add_that_nobody_wants_any_more_is_taken_out(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    add.cancel()
    await settle()
    assert only(manager).busy == "adding"  # a call to a VM is never abandoned
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    assert (only(manager).state, only(manager).busy) == (ShareState.ADDED, "removing")
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    assert not vm.shares
    assert not manager.shares()


async def test_a_caller_cancelled_between_the_answer_and_its_turn_leaves_nothing(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await until(lambda: only(manager).state is ShareState.ADDED)
    vm.hold = False
    add.cancel()
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert add.cancelled()
    assert not vm.shares
    assert not manager.shares()


async def test_a_removal_nobody_waited_for_that_fails_is_retried_and_stays_joinable(
    vm: FakeVM, manager: Manager
) -> None:
    await _leave_unwanted(vm, manager)
    assert (only(manager).references, only(manager).orphan) == (0, False)
    assert await manager.add(ONE, owner="a") == "0"
    await asyncio.sleep(RETRY_LONGEST)
    assert kinds(vm) == [("add", "0"), ("remove", "0")]  # wanted again: the retry lets it be
    vm.replies.append(FakeReply.FAIL)
    async with asyncio.timeout(1):
        with pytest.raises(ComputeSystemError):
            await manager.remove("0", owner="a")
    assert only(manager).owners == ("a",)


async def test_a_removal_nobody_waited_for_is_retried_in_the_end(vm: FakeVM, manager: Manager) -> None:
    await _leave_unwanted(vm, manager)
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert not vm.shares
    assert not manager.shares()


async def test_anybody_may_remove_what_nobody_holds(vm: FakeVM, manager: Manager) -> None:
    await _leave_unwanted(vm, manager)
    await manager.remove("0", owner="a passer-by")
    assert not vm.shares


async def _leave_unwanted(vm: FakeVM, manager: Manager) -> None:
    """Leave a share that nobody holds, and whose removal failed for certain."""
    vm.hold = True
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    add.cancel()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    vm.in_flight["0"].answer(FakeReply.FAIL)
    await settle()
    vm.hold = False


async def test_a_cancelled_remover_does_not_stop_the_removal(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove(name))
    await settle()
    removal.cancel()
    await settle()
    assert removal.cancelled()
    vm.in_flight[name].answer(FakeReply.SUCCEED)
    await settle()
    assert not manager.shares()


async def test_a_cancelled_remover_of_a_removal_that_fails_still_holds(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE, owner="a")
    vm.hold = True
    removal = asyncio.create_task(manager.remove(name, owner="a"))
    await settle()
    removal.cancel()
    vm.in_flight[name].answer(FakeReply.FAIL)
    await settle()
    assert only(manager).owners == ("a",)


# ---------------------------------------------------------------------- unknown outcome


async def test_what_was_wanted_in_between_is_retried_soon_again(vm: FakeVM, manager: Manager) -> None:
    await _leave_unwanted(vm, manager)
    vm.replies.extend([FakeReply.FAIL, FakeReply.FAIL])
    await asyncio.sleep(4 * RETRY_FIRST)
    await manager.add(ONE, owner="a")
    await asyncio.sleep(RETRY_LONGEST)
    assert len(vm.calls) == 4
    leaving = manager.share(ONE)
    await leaving.__aenter__()
    await manager.remove("0", owner="a")
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(ComputeSystemError):
        await leaving.__aexit__(None, None, None)
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert not vm.shares


async def test_what_was_taken_out_by_name_leaves_no_timer(vm: FakeVM, manager: Manager) -> None:
    await _leave_unwanted(vm, manager)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    assert loop.next_timer is not None
    await manager.remove("0")
    assert loop.next_timer is None


class Interrupted(FakeVM):
    """A VM whose next add ends in what is no error of it."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason: BaseException | None = reason

    async def add_plan9(self, share: NamedShare) -> None:
        await super().add_plan9(share)
        reason, self.reason = self.reason, None
        if reason is not None:
            raise reason


async def test_callers_never_see_a_cancellation_that_was_not_theirs() -> None:
    vm = Interrupted(asyncio.CancelledError())
    manager = Manager(vm)
    with pytest.raises(OutcomeUnknown, match=r"share 0: .*interrupted") as raised:
        await manager.add(ONE)
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert not vm.shares
    assert not manager.shares()


def test_an_interrupt_in_a_call_ends_the_loop_and_leaves_an_orphan() -> None:
    vm = Interrupted(KeyboardInterrupt())
    manager = Manager(vm)
    with pytest.raises(KeyboardInterrupt):
        run(manager.add(ONE))
    assert only(manager).orphan
    assert kinds(vm) == [("add", "0")]  # nothing new is begun in a loop that ends


# ---------------------------------------------------------------------- event loops


async def test_a_call_that_nothing_else_refers_to_is_not_collected(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(FakeReply.NEVER)  # waits for a future that it alone knows
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    gc.collect()
    assert "0" in vm.in_flight
    assert not add.done()


class Unstoppable(FakeVM):
    """A VM whose calls go on to their end when they are cancelled, as those of HCS must."""

    async def add_plan9(self, share: NamedShare) -> None:
        adding = asyncio.ensure_future(super().add_plan9(share))
        while not adding.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(adding)


def test_a_call_that_ends_well_after_all_in_a_loop_that_ends_is_not_forgotten() -> None:
    vm = Unstoppable()
    vm.hold = True
    manager = Manager(vm)

    async def main() -> None:
        add = asyncio.create_task(manager.add(ONE))
        await settle()
        asyncio.get_running_loop().call_later(1, vm.in_flight["0"].answer, FakeReply.SUCCEED)
        (call,) = asyncio.all_tasks() - {add, asyncio.current_task()} - _serving(vm)
        add.cancel()
        call.cancel()
        await asyncio.sleep(2)

    run(main())
    assert (only(manager).state, only(manager).references) == (ShareState.ADDED, 0)
    assert kinds(vm) == [("add", "0")]
    vm.hold = False
    run(manager.aclose())
    assert not vm.shares


def _serving(vm: FakeVM) -> set[asyncio.Task[object]]:
    """The tasks inside an `Unstoppable`."""
    return {task for task in asyncio.all_tasks() if "add_plan9" in repr(task.get_coro())}


def test_a_loop_that_ends_with_calls_in_flight_ends_quietly(caplog: pytest.LogCaptureFixture) -> None:
    vm = FakeVM()
    vm.replies.extend([FakeReply.SUCCEED, FakeReply.NEVER, FakeReply.NEVER, FakeReply.LOSE_AFTER, FakeReply.FAIL])
    manager = Manager(vm)

    async def main() -> set[asyncio.Task[object]]:
        name = await manager.add(ONE)
        tasks: set[asyncio.Task[object]] = {
            asyncio.create_task(manager.remove(name)),
            asyncio.create_task(manager.add(OTHER)),
            asyncio.create_task(manager.add(OTHER)),
            asyncio.create_task(manager.add(WRITABLE)),
        }
        await until(lambda: len(vm.calls) == 5)
        return tasks

    tasks = asyncio.run(main())
    assert all(task.done() for task in tasks)
    assert not vm.in_flight
    assert [(info.name, info.busy, info.orphan) for info in manager.shares()] == [
        ("0", None, True),
        ("1", None, True),
        ("2", None, True),
    ]
    assert not caplog.records
    asyncio.run(manager.aclose())  # another loop may clean up
    assert not manager.shares()
