"""What a Manager does, one story at a time. All orders of events together are in test_interleavings."""

from __future__ import annotations

import asyncio
import gc
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import (
    ComputeSystemError,
    ComputeSystemGone,
    ManagerClosed,
    OperationDenied,
    OutcomeUnknown,
    ShareExists,
    ShareNotFound,
    SharesLeft,
)
from uvmshare.share.manager import RETRY_FIRST, RETRY_LONGEST, Manager, ShareInfo
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeVM, Reply
from uvmshare.testing.schedule import VirtualLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.share.interfaces import Plan9Share

HERE = Path(__file__).parent
ONE = AddOptions(HERE, read_only=True)
OTHER = AddOptions(HERE.parent, read_only=True)
WRITABLE = AddOptions(HERE)


@pytest.fixture(name="vm")
def _vm() -> FakeVM:
    return FakeVM()


@pytest.fixture(name="manager")
def _manager(vm: FakeVM) -> Manager:
    return Manager(vm)


async def settle() -> None:
    """Let everything happen that needs no time."""
    await asyncio.sleep(1e-6)


async def until(condition: Callable[[], bool], step: float = 0) -> None:
    """Let one round of callbacks happen, or `step` seconds pass, until it is so."""
    while not condition():  # noqa: ASYNC110  what is waited for is inside the thing under test
        await asyncio.sleep(step)


def kinds(vm: FakeVM) -> list[tuple[str, str]]:
    """The calls that the VM was given."""
    return [(call.kind, call.name) for call in vm.calls]


def only(manager: Manager) -> ShareInfo:
    """The one share there is."""
    (info,) = manager.shares()
    return info


# ---------------------------------------------------------------------- one share for equal options


async def test_the_first_add_calls_the_vm_and_later_ones_count(vm: FakeVM, manager: Manager) -> None:
    assert await manager.add_to_vm(ONE) == await manager.add_to_vm(AddOptions(str(HERE), read_only=True)) == "0"
    assert kinds(vm) == [("add", "0")]
    assert vm.shares == {"0": ONE}
    assert only(manager).references == 2


async def test_the_last_release_takes_the_share_out(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE)
    await manager.add_to_vm(ONE)
    await manager.remove_from_vm(name)
    assert vm.shares
    await manager.remove_from_vm(name)
    assert not vm.shares
    assert not manager.shares()


async def test_names_are_decimal_and_never_used_again(manager: Manager) -> None:
    for expected in ("0", "1", "2"):
        name = await manager.add_to_vm(ONE)
        assert name == expected
        await manager.remove_from_vm(name)


async def test_those_who_ask_meanwhile_share_the_one_call(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    adds = [asyncio.create_task(manager.add_to_vm(ONE)) for _ in range(3)]
    await settle()
    assert only(manager).busy == "adding"
    assert only(manager).state is ShareState.PENDING
    vm.in_flight["0"].answer(Reply.SUCCEED)
    assert await asyncio.gather(*adds) == ["0", "0", "0"]
    assert kinds(vm) == [("add", "0")]
    assert only(manager).references == 3


async def test_shares_do_not_wait_for_each_other(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(Reply.NEVER)
    stuck = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    assert await manager.add_to_vm(OTHER) == "1"
    await manager.remove_from_vm("1")
    assert not stuck.done()


async def test_an_unknown_name_is_no_error(vm: FakeVM, manager: Manager) -> None:
    await manager.remove_from_vm("17")
    await manager.remove_from_vm("17", owner="a")
    assert not vm.calls


# ---------------------------------------------------------------------- names before shares


async def test_a_name_can_be_had_before_the_share(vm: FakeVM, manager: Manager) -> None:
    assert manager.resolve_share_name(ONE) == manager.resolve_share_name(ONE) == "0"
    assert only(manager).state is ShareState.PENDING
    assert not vm.calls
    assert await manager.add_to_vm(ONE) == "0"
    assert manager.resolve_share_name(ONE) == "0"
    assert only(manager).references == 1


async def test_a_pending_share_that_nobody_adds_is_dropped_without_a_call(vm: FakeVM, manager: Manager) -> None:
    await manager.remove_from_vm(manager.resolve_share_name(ONE), owner="anybody")
    assert not manager.shares()
    assert not vm.calls
    assert await manager.add_to_vm(ONE) == "1"


async def test_a_share_being_removed_still_gives_its_name(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove_from_vm(name))
    await settle()
    assert manager.resolve_share_name(ONE) == name
    assert only(manager).busy == "removing"
    vm.in_flight[name].answer(Reply.SUCCEED)
    await removal


# ---------------------------------------------------------------------- owners


async def test_an_owner_holds_a_share_once(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE, owner="a")
    await manager.add_to_vm(ONE, owner="a")
    assert (only(manager).references, only(manager).owners) == (1, ("a",))
    await manager.remove_from_vm(name, owner="a")
    assert not vm.shares


async def test_a_retried_release_does_not_take_somebody_elses(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE, owner="a")
    await manager.add_to_vm(ONE, owner=("b", 2))
    for _ in range(3):
        await manager.remove_from_vm(name, owner="a")
    assert only(manager).owners == (("b", 2),)
    assert vm.shares


async def test_an_anonymous_release_does_not_take_an_owners(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE, owner="a")
    await manager.remove_from_vm(name)
    assert only(manager).owners == ("a",)
    await manager.add_to_vm(ONE)
    await manager.remove_from_vm(name, owner="a")
    await manager.remove_from_vm(name, owner="a")
    assert (only(manager).references, only(manager).owners) == (1, ())
    assert vm.shares


async def test_an_owner_that_has_no_hash_is_refused_before_anything_is_touched(vm: FakeVM, manager: Manager) -> None:
    with pytest.raises(TypeError):
        await manager.add_to_vm(ONE, owner=["a"])  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(TypeError):
        await manager.remove_from_vm("0", owner=["a"])  # type: ignore[arg-type]  # the mistake that is tested
    assert not vm.calls


async def test_a_path_instead_of_options_is_refused(manager: Manager) -> None:
    with pytest.raises(TypeError, match="expected AddOptions, got '/srv'"):
        await manager.add_to_vm("/srv")  # type: ignore[arg-type]  # the mistake that is tested


# ---------------------------------------------------------------------- add meets remove


async def test_add_that_meets_a_remove_waits_and_starts_fresh(vm: FakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.hold = True
    removal = asyncio.create_task(manager.remove_from_vm("0", owner="a"))
    await settle()
    adds = [asyncio.create_task(manager.add_to_vm(ONE, owner=owner)) for owner in "ab"]
    await settle()
    assert kinds(vm) == [("add", "0"), ("remove", "0")]
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    vm.in_flight["1"].answer(Reply.SUCCEED)
    assert await asyncio.gather(*adds) == ["1", "1"]
    await removal
    assert vm.shares == {"1": ONE}


async def test_add_that_meets_a_remove_that_fails_joins_the_share(vm: FakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.hold = True
    removal = asyncio.create_task(manager.remove_from_vm("0", owner="a"))
    await settle()
    add = asyncio.create_task(manager.add_to_vm(ONE, owner="b"))
    await settle()
    vm.in_flight["0"].answer(Reply.FAIL)
    assert await add == "0"
    with pytest.raises(ComputeSystemError):
        await removal
    assert only(manager).owners == ("a", "b")


async def test_remove_that_meets_an_add_waits_for_it(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE, owner="a"))
    await settle()
    removal = asyncio.create_task(manager.remove_from_vm("0", owner="a"))
    await settle()
    assert kinds(vm) == [("add", "0")]
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    assert add.done()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await removal
    assert not vm.shares


async def test_of_two_removes_for_one_reference_the_second_does_nothing(vm: FakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE)
    await asyncio.gather(manager.remove_from_vm("0"), manager.remove_from_vm("0"))
    assert kinds(vm) == [("add", "0"), ("remove", "0")]


# ---------------------------------------------------------------------- failure


async def test_a_failed_add_gives_everybody_the_error_and_the_next_starts_fresh(vm: FakeVM, manager: Manager) -> None:
    reason = ShareExists("there is another 0")
    vm.replies.append(reason)
    results = await asyncio.gather(*(manager.add_to_vm(ONE) for _ in range(3)), return_exceptions=True)
    assert [result is reason for result in results] == [True] * 3
    assert not manager.shares()
    assert await manager.add_to_vm(ONE) == "1"


async def test_an_error_of_any_other_kind_is_a_failure_too(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(ZeroDivisionError("a bug in a VM"))
    with pytest.raises(ZeroDivisionError):
        await manager.add_to_vm(ONE)
    assert not manager.shares()


async def test_a_vm_that_cannot_even_be_called_is_a_failure(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(share: Plan9Share) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(manager._vm, "add_plan9", broken)
    with pytest.raises(ZeroDivisionError):
        await manager.add_to_vm(ONE)
    assert not manager.shares()


async def test_a_failed_remove_keeps_the_last_reference_and_can_be_retried(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE, owner="a")
    vm.replies.append(Reply.FAIL)
    with pytest.raises(ComputeSystemError):
        await manager.remove_from_vm(name, owner="a")
    info = only(manager)
    assert (info.state, info.owners, info.orphan, info.busy) == (ShareState.ADDED, ("a",), False, None)
    assert isinstance(info.last_error, ComputeSystemError)
    await asyncio.sleep(2 * RETRY_LONGEST)
    assert len(vm.calls) == 2  # its holder decides, not the background
    await manager.remove_from_vm(name, owner="a")
    assert not vm.shares
    assert not manager.shares()


@pytest.mark.parametrize("reason", [ShareNotFound("no such share"), ComputeSystemGone("no such VM")])
async def test_what_is_not_there_any_more_counts_as_removed(vm: FakeVM, manager: Manager, reason: Exception) -> None:
    name = await manager.add_to_vm(ONE)
    vm.replies.append(reason)
    await manager.remove_from_vm(name)
    assert not manager.shares()


async def test_adding_to_a_vm_that_is_gone_fails(vm: FakeVM, manager: Manager) -> None:
    vm.gone = True
    with pytest.raises(ComputeSystemGone):
        await manager.add_to_vm(ONE)
    assert not manager.shares()


# ---------------------------------------------------------------------- cancellation


async def test_a_cancelled_leader_does_not_take_the_share_from_those_who_wait(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    leader = asyncio.create_task(manager.add_to_vm(ONE, owner="a"))
    waiter = asyncio.create_task(manager.add_to_vm(ONE, owner="b"))
    await settle()
    leader.cancel()
    await settle()
    assert leader.cancelled()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    assert await waiter == "0"
    assert only(manager).owners == ("b",)


async def test_one_of_two_adds_of_one_owner_is_cancelled_and_the_other_keeps(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    first, second = (asyncio.create_task(manager.add_to_vm(ONE, owner="a")) for _ in range(2))
    await settle()
    second.cancel()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await first
    await settle()
    assert only(manager).owners == ("a",)


async def test_an_add_that_nobody_wants_any_more_is_taken_out(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    add.cancel()
    await settle()
    assert only(manager).busy == "adding"  # a call to a VM is never abandoned
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    assert (only(manager).state, only(manager).busy) == (ShareState.ADDED, "removing")
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    assert not vm.shares
    assert not manager.shares()


async def test_a_caller_cancelled_between_the_answer_and_its_turn_leaves_nothing(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    vm.in_flight["0"].answer(Reply.SUCCEED)
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
    assert await manager.add_to_vm(ONE, owner="a") == "0"
    await asyncio.sleep(RETRY_LONGEST)
    assert kinds(vm) == [("add", "0"), ("remove", "0")]  # wanted again: the retry lets it be
    vm.replies.append(Reply.FAIL)
    async with asyncio.timeout(1):
        with pytest.raises(ComputeSystemError):
            await manager.remove_from_vm("0", owner="a")
    assert only(manager).owners == ("a",)


async def test_a_removal_nobody_waited_for_is_retried_in_the_end(vm: FakeVM, manager: Manager) -> None:
    await _leave_unwanted(vm, manager)
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert not vm.shares
    assert not manager.shares()


async def test_anybody_may_remove_what_nobody_holds(vm: FakeVM, manager: Manager) -> None:
    await _leave_unwanted(vm, manager)
    await manager.remove_from_vm("0", owner="a passer-by")
    assert not vm.shares


async def _leave_unwanted(vm: FakeVM, manager: Manager) -> None:
    """Leave a share that nobody holds, and whose removal failed for certain."""
    vm.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    add.cancel()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    vm.in_flight["0"].answer(Reply.FAIL)
    await settle()
    vm.hold = False


async def test_a_cancelled_remover_does_not_stop_the_removal(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove_from_vm(name))
    await settle()
    removal.cancel()
    await settle()
    assert removal.cancelled()
    vm.in_flight[name].answer(Reply.SUCCEED)
    await settle()
    assert not manager.shares()


async def test_a_cancelled_remover_of_a_removal_that_fails_still_holds(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE, owner="a")
    vm.hold = True
    removal = asyncio.create_task(manager.remove_from_vm(name, owner="a"))
    await settle()
    removal.cancel()
    vm.in_flight[name].answer(Reply.FAIL)
    await settle()
    assert only(manager).owners == ("a",)


# ---------------------------------------------------------------------- unknown outcome


@pytest.mark.parametrize("reply", [Reply.LOSE_BEFORE, Reply.LOSE_AFTER])
async def test_an_add_without_an_answer_is_undone_before_anybody_is_told(
    vm: FakeVM, manager: Manager, reply: Reply
) -> None:
    vm.hold = True
    adds = [asyncio.create_task(manager.add_to_vm(ONE)) for _ in range(2)]
    await settle()
    vm.in_flight["0"].answer(reply)
    await settle()
    assert not any(add.done() for add in adds)
    info = only(manager)
    assert (info.state, info.busy, info.orphan) == (ShareState.INVALID, "removing", True)
    vm.in_flight["0"].answer(Reply.SUCCEED)
    first, second = await asyncio.gather(*adds, return_exceptions=True)
    assert isinstance(first, OutcomeUnknown)
    assert second is first
    assert not hasattr(first, "__notes__")
    assert not manager.shares()
    assert not vm.shares


@pytest.mark.parametrize(
    "reason", [OutcomeUnknown("?"), TimeoutError(), ConnectionResetError(), asyncio.IncompleteReadError(b"", 1)]
)
async def test_each_error_that_leaves_the_outcome_open_is_undone(
    vm: FakeVM, manager: Manager, reason: Exception
) -> None:
    vm.replies.append(reason)
    with pytest.raises(type(reason)):
        await manager.add_to_vm(ONE)
    assert kinds(vm) == [("add", "0"), ("remove", "0")]
    assert not manager.shares()


async def test_an_add_does_not_wait_for_another_being_undone(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([Reply.LOSE_AFTER, Reply.NEVER])
    lost = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    assert await manager.add_to_vm(ONE) == "1"
    assert [(info.name, info.orphan) for info in manager.shares()] == [("0", True), ("1", False)]
    assert not lost.done()


async def test_an_add_that_cannot_be_undone_is_an_orphan_and_is_retried(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([Reply.LOSE_AFTER, Reply.FAIL])
    with pytest.raises(OutcomeUnknown) as raised:
        await manager.add_to_vm(ONE)
    assert "share 0 may still be on the VM" in raised.value.__notes__[0]
    info = only(manager)
    assert (info.state, info.orphan, info.busy, info.references) == (ShareState.INVALID, True, None, 0)
    assert isinstance(info.last_error, ComputeSystemError)
    assert vm.shares
    assert await manager.add_to_vm(ONE) == "1"  # a fresh share, at once
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert list(vm.shares) == ["1"]
    assert only(manager).name == "1"


async def test_retries_wait_longer_each_time_up_to_a_minute(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([Reply.LOSE_AFTER] + [Reply.FAIL, Reply.LOSE_BEFORE] * 5)
    loop = asyncio.get_running_loop()
    with pytest.raises(OutcomeUnknown):
        await manager.add_to_vm(ONE)
    tries = []
    last = loop.time()
    while manager.shares():
        before = len(vm.calls)
        await until(lambda: len(vm.calls) > before, step=0.5)  # noqa: B023  called at once
        tries.append(loop.time() - last)
        last = loop.time()
        await settle()
    assert tries == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60, 60], abs=0.6)
    assert not vm.shares


async def test_what_was_wanted_in_between_is_retried_soon_again(vm: FakeVM, manager: Manager) -> None:
    await _leave_unwanted(vm, manager)
    vm.replies.extend([Reply.FAIL, Reply.FAIL])
    await asyncio.sleep(4 * RETRY_FIRST)
    await manager.add_to_vm(ONE, owner="a")
    await asyncio.sleep(RETRY_LONGEST)
    assert len(vm.calls) == 4
    leaving = manager.share(ONE)
    await leaving.__aenter__()
    await manager.remove_from_vm("0", owner="a")
    vm.replies.append(Reply.FAIL)
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
    await manager.remove_from_vm("0")
    assert loop.next_timer is None


async def test_removing_an_orphan_by_its_name_retries_now(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([Reply.LOSE_AFTER, Reply.LOSE_BEFORE, Reply.FAIL])
    with pytest.raises(OutcomeUnknown):
        await manager.add_to_vm(ONE)
    with pytest.raises(ComputeSystemError, match="remove of share 0"):
        await manager.remove_from_vm("0")
    await manager.remove_from_vm("0")
    assert not vm.shares
    assert not manager.shares()


@pytest.mark.parametrize("reply", [Reply.LOSE_BEFORE, Reply.LOSE_AFTER])
async def test_a_remove_without_an_answer_leaves_an_orphan_that_no_add_joins(
    vm: FakeVM, manager: Manager, reply: Reply
) -> None:
    name = await manager.add_to_vm(ONE, owner="a")
    vm.replies.append(reply)
    with pytest.raises(OutcomeUnknown):
        await manager.remove_from_vm(name, owner="a")
    info = only(manager)
    assert (info.state, info.owners, info.orphan) == (ShareState.ADDED, ("a",), True)
    assert await manager.add_to_vm(ONE, owner="a") == "1"
    await manager.remove_from_vm(name, owner="a")
    assert list(vm.shares) == ["1"]
    assert only(manager).owners == ("a",)


async def test_a_remove_without_an_answer_is_retried_in_the_background(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE, owner="a")
    vm.replies.extend([Reply.LOSE_BEFORE, Reply.LOSE_BEFORE])
    with pytest.raises(OutcomeUnknown):
        await manager.remove_from_vm(name, owner="a")
    await asyncio.sleep(3 * RETRY_FIRST)
    await settle()
    assert not vm.shares
    assert not manager.shares()


class Interrupted(FakeVM):
    """A VM whose next add ends in what is no error of it."""

    def __init__(self, reason: BaseException) -> None:
        super().__init__()
        self.reason: BaseException | None = reason

    async def add_plan9(self, share: Plan9Share) -> None:
        await super().add_plan9(share)
        reason, self.reason = self.reason, None
        if reason is not None:
            raise reason


async def test_callers_never_see_a_cancellation_that_was_not_theirs() -> None:
    vm = Interrupted(asyncio.CancelledError())
    manager = Manager(vm)
    with pytest.raises(OutcomeUnknown, match=r"share 0: .*interrupted") as raised:
        await manager.add_to_vm(ONE)
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    assert not vm.shares
    assert not manager.shares()


def test_an_interrupt_in_a_call_ends_the_loop_and_leaves_an_orphan() -> None:
    vm = Interrupted(KeyboardInterrupt())
    manager = Manager(vm)
    with pytest.raises(KeyboardInterrupt):
        run(manager.add_to_vm(ONE))
    assert only(manager).orphan
    assert kinds(vm) == [("add", "0")]  # nothing new is begun in a loop that ends


# ---------------------------------------------------------------------- policy


async def test_writable_shares_can_be_forbidden(vm: FakeVM) -> None:
    manager = Manager(vm, no_writable_file_shares=True)
    with pytest.raises(OperationDenied, match="pass read_only=True"):
        manager.resolve_share_name(WRITABLE)
    with pytest.raises(PermissionError):
        await manager.add_to_vm(WRITABLE)
    with pytest.raises(OperationDenied):
        await manager.share(WRITABLE).__aenter__()
    assert not vm.calls
    assert not manager.shares()
    assert await manager.add_to_vm(ONE) == "0"


# ---------------------------------------------------------------------- async with share()


async def test_a_block_holds_the_share_and_gives_it_back(vm: FakeVM, manager: Manager) -> None:
    async with manager.share(ONE) as name, manager.share(ONE) as again:
        assert name == again == "0"
        assert only(manager).references == 2
        assert repr(only(manager).owners[0]) == "<async with block>"
        await manager.remove_from_vm(name)
        await manager.remove_from_vm(name, owner="a")
        assert only(manager).references == 2
    assert kinds(vm) == [("add", "0"), ("remove", "0")]


async def test_a_block_gives_back_its_own_reference_only(vm: FakeVM, manager: Manager) -> None:
    async with manager.share(ONE) as name:
        await manager.add_to_vm(ONE, owner="a")
    assert only(manager).owners == ("a",)
    assert name in vm.shares


async def test_a_block_that_fails_gives_back_too(vm: FakeVM, manager: Manager) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        async with manager.share(ONE):
            raise ZeroDivisionError
    assert not vm.shares
    assert not hasattr(raised.value, "__notes__")


async def test_a_block_that_is_cancelled_gives_back_too(vm: FakeVM, manager: Manager) -> None:
    async def block() -> None:
        async with manager.share(ONE):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(block())
    await settle()
    assert vm.shares
    task.cancel()
    await settle()
    assert task.cancelled()
    assert not vm.shares


async def test_a_block_cancelled_again_while_it_gives_back_still_gives_back(vm: FakeVM, manager: Manager) -> None:
    async def block() -> None:
        async with manager.share(ONE):
            vm.hold = True

    task = asyncio.create_task(block())
    await settle()
    task.cancel()
    await settle()
    assert task.cancelled()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    assert not vm.shares
    assert not manager.shares()


async def test_a_block_whose_share_cannot_be_taken_out_says_so(vm: FakeVM, manager: Manager) -> None:
    with pytest.raises(ComputeSystemError, match="remove of share 0"):
        async with manager.share(ONE):
            vm.replies.append(Reply.FAIL)
    assert only(manager).references == 0
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert not vm.shares


async def test_an_error_of_the_block_comes_before_that_of_giving_back(vm: FakeVM, manager: Manager) -> None:
    async def block() -> None:
        async with manager.share(ONE):
            vm.replies.append(Reply.FAIL)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        await block()
    assert "share 0 could not be taken out yet" in raised.value.__notes__[0]


async def test_a_block_that_cannot_begin_leaves_nothing(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(Reply.FAIL)
    with pytest.raises(ComputeSystemError):
        await manager.share(ONE).__aenter__()
    assert not manager.shares()


async def test_a_block_that_outlives_the_manager_ends_quietly(vm: FakeVM, manager: Manager) -> None:
    async with manager.share(ONE):
        await manager.aclose()
        assert not vm.shares
    assert kinds(vm) == [("add", "0"), ("remove", "0")]


# ---------------------------------------------------------------------- closing


async def test_closing_takes_everything_out(vm: FakeVM) -> None:
    async with Manager(vm) as manager:
        await manager.add_to_vm(ONE, owner="a")
        await manager.add_to_vm(ONE)
        await manager.add_to_vm(OTHER)
        manager.resolve_share_name(WRITABLE)
    assert not vm.shares
    assert not manager.shares()
    for attempt in (manager.add_to_vm(ONE), manager.share(ONE).__aenter__()):
        with pytest.raises(ManagerClosed, match="make a new one"):
            await attempt
    with pytest.raises(ManagerClosed):
        manager.resolve_share_name(ONE)
    await manager.remove_from_vm("0")
    await manager.aclose()


async def test_closing_says_what_it_could_not_take_out_and_can_be_repeated(vm: FakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE)
    await manager.add_to_vm(ONE, owner="a")
    await manager.add_to_vm(OTHER)
    vm.replies.extend([Reply.FAIL, Reply.SUCCEED])
    with pytest.raises(SharesLeft, match="share 0: remove of share 0") as raised:
        await manager.aclose()
    assert raised.value.names == ("0",)
    assert (only(manager).references, only(manager).state) == (0, ShareState.ADDED)  # nobody's any more
    await asyncio.sleep(RETRY_LONGEST)
    assert list(vm.shares) == ["0"]  # nothing goes on behind the back of those who closed it
    vm.replies.append(Reply.LOSE_BEFORE)
    with pytest.raises(SharesLeft):
        await manager.aclose()
    await asyncio.sleep(RETRY_LONGEST)
    assert vm.shares
    await manager.aclose()
    assert not vm.shares


async def test_what_closing_left_can_still_be_removed_by_name(vm: FakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE, owner="a")
    vm.replies.append(Reply.FAIL)
    with pytest.raises(SharesLeft):
        await manager.aclose()
    await manager.remove_from_vm("0", owner="a")
    assert not vm.shares


async def test_closing_takes_orphans_out_and_ends_their_retries(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([Reply.LOSE_AFTER, Reply.FAIL, Reply.FAIL])
    with pytest.raises(OutcomeUnknown):
        await manager.add_to_vm(ONE)
    with pytest.raises(SharesLeft):
        await manager.aclose()
    await asyncio.sleep(RETRY_LONGEST)
    assert len(vm.calls) == 3
    await manager.aclose()
    assert not vm.shares


async def test_closing_waits_for_an_add_in_flight_and_takes_it_out(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    closing = asyncio.create_task(manager.aclose())
    await settle()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await settle()
    with pytest.raises(ManagerClosed):
        await add
    assert not closing.done()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await closing
    assert not vm.shares


async def test_an_add_behind_a_remove_is_refused_when_the_manager_closes(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove_from_vm(name))
    await settle()
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    closing = asyncio.create_task(manager.aclose())
    await settle()
    vm.in_flight[name].answer(Reply.SUCCEED)
    await closing
    await removal
    with pytest.raises(ManagerClosed):
        await add


async def test_closing_tries_again_what_was_being_removed_and_failed(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add_to_vm(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove_from_vm(name))
    await settle()
    first, second = (asyncio.create_task(manager.aclose()) for _ in range(2))
    await settle()
    vm.in_flight[name].answer(Reply.FAIL)
    await settle()
    vm.in_flight[name].answer(Reply.SUCCEED)
    await asyncio.gather(first, second)
    with pytest.raises(ComputeSystemError):
        await removal
    assert not vm.shares


async def test_a_cancelled_close_can_be_called_again(vm: FakeVM, manager: Manager) -> None:
    await manager.add_to_vm(ONE)
    vm.hold = True
    closing = asyncio.create_task(manager.aclose())
    await settle()
    closing.cancel()
    await settle()
    again = asyncio.create_task(manager.aclose())
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await again
    assert not vm.shares


# ---------------------------------------------------------------------- a VM that tells its exit


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
        for callback in self.tell:
            callback(ComputeSystemGone("the VM has exited"))


async def test_a_vm_that_exits_releases_every_share_without_a_call() -> None:
    vm = Mortal()
    manager = Manager(vm)
    vm.replies.extend([Reply.SUCCEED, Reply.LOSE_AFTER, Reply.FAIL])
    await manager.add_to_vm(ONE, owner="a")
    with pytest.raises(OutcomeUnknown):
        await manager.add_to_vm(OTHER)
    manager.resolve_share_name(WRITABLE)
    calls = len(vm.calls)
    vm.exit()
    assert not manager.shares()
    await asyncio.sleep(RETRY_LONGEST)
    await manager.remove_from_vm("0", owner="a")
    with pytest.raises(ComputeSystemGone, match="no share can be added any more: the VM has exited"):
        await manager.add_to_vm(ONE)
    await manager.aclose()
    assert len(vm.calls) == calls


@pytest.mark.parametrize("reply", [Reply.SUCCEED, Reply.LOSE_AFTER, TimeoutError()])
async def test_an_add_that_meets_the_exit_of_the_vm_fails_whatever_the_answer(reply: Reply | Exception) -> None:
    vm = Mortal()
    vm.hold = True
    manager = Manager(vm)
    adds = [asyncio.create_task(manager.add_to_vm(ONE)) for _ in range(2)]
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
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    vm.in_flight["0"].answer(Reply.SUCCEED)
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
        name = await manager.add_to_vm(ONE)
        vm.hold = True
        removal = asyncio.create_task(manager.remove_from_vm(name))
        await settle()
        vm.in_flight[name].answer(TimeoutError())
        vm.exit()
        await removal
    assert not manager.shares()


async def test_a_caller_whose_share_goes_before_its_turn_is_told() -> None:
    vm = Mortal()
    vm.hold = True
    manager = Manager(vm)
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    vm.in_flight["0"].answer(Reply.SUCCEED)
    await until(lambda: only(manager).state is ShareState.ADDED)
    vm.exit()
    with pytest.raises(ComputeSystemGone):
        await add
    assert not manager.shares()


# ---------------------------------------------------------------------- what is seen


async def test_shares_tells_all_there_is_to_know(vm: FakeVM) -> None:
    now = 1000.0
    manager = Manager(vm, clock=lambda: now)
    manager.resolve_share_name(ONE)
    now = 2000.0
    await manager.add_to_vm(OTHER, owner="a")
    await manager.add_to_vm(OTHER)
    now = 3000.0
    await manager.add_to_vm(OTHER, owner="b")
    pending, added = manager.shares()
    assert pending == ShareInfo(
        name="0",
        options=ONE,
        state=ShareState.PENDING,
        references=0,
        owners=(),
        since=datetime.fromtimestamp(1000, UTC),
        busy=None,
        orphan=False,
        last_error=None,
    )
    assert (added.name, added.references, added.owners) == ("1", 3, ("a", "b"))
    assert added.since == datetime.fromtimestamp(2000, UTC)


# ---------------------------------------------------------------------- event loops


async def test_a_call_that_nothing_else_refers_to_is_not_collected(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(Reply.NEVER)  # waits for a future that it alone knows
    add = asyncio.create_task(manager.add_to_vm(ONE))
    await settle()
    gc.collect()
    assert "0" in vm.in_flight
    assert not add.done()


class Unstoppable(FakeVM):
    """A VM whose calls go on to their end when they are cancelled, as those of HCS must."""

    async def add_plan9(self, share: Plan9Share) -> None:
        adding = asyncio.ensure_future(super().add_plan9(share))
        while not adding.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(adding)


def test_a_call_that_ends_well_after_all_in_a_loop_that_ends_is_not_forgotten() -> None:
    vm = Unstoppable()
    vm.hold = True
    manager = Manager(vm)

    async def main() -> None:
        add = asyncio.create_task(manager.add_to_vm(ONE))
        await settle()
        asyncio.get_running_loop().call_later(1, vm.in_flight["0"].answer, Reply.SUCCEED)
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
    vm.replies.extend([Reply.SUCCEED, Reply.NEVER, Reply.NEVER, Reply.LOSE_AFTER, Reply.FAIL])
    manager = Manager(vm)

    async def main() -> set[asyncio.Task[object]]:
        name = await manager.add_to_vm(ONE)
        tasks: set[asyncio.Task[object]] = {
            asyncio.create_task(manager.remove_from_vm(name)),
            asyncio.create_task(manager.add_to_vm(OTHER)),
            asyncio.create_task(manager.add_to_vm(OTHER)),
            asyncio.create_task(manager.add_to_vm(WRITABLE)),
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
