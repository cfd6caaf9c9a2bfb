"""A call whose answer is lost: it is undone, or kept as an orphan and retried."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import ONE, kinds, only, until
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemError, OutcomeUnknown
from uvmshare.share.manager import RETRY_FIRST
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeReply

if TYPE_CHECKING:
    from uvmshare.share.manager import Manager
    from uvmshare.testing.fakes import FakeVM


@pytest.mark.parametrize("reply", [FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER])
async def test_an_add_without_an_answer_is_undone_before_anybody_is_told(
    vm: FakeVM, manager: Manager, reply: FakeReply
) -> None:
    vm.hold = True
    adds = [asyncio.create_task(manager.add(ONE)) for _ in range(2)]
    await settle()
    vm.in_flight["0"].answer(reply)
    await settle()
    assert not any(add.done() for add in adds)
    info = only(manager)
    assert (info.state, info.busy, info.orphan) == (ShareState.INVALID, "removing", True)
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
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
        await manager.add(ONE)
    assert kinds(vm) == [("add", "0"), ("remove", "0")]
    assert not manager.shares()


async def test_an_add_does_not_wait_for_another_being_undone(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([FakeReply.LOSE_AFTER, FakeReply.NEVER])
    lost = asyncio.create_task(manager.add(ONE))
    await settle()
    assert await manager.add(ONE) == "1"
    assert [(info.name, info.orphan) for info in manager.shares()] == [("0", True), ("1", False)]
    assert not lost.done()


async def test_an_add_that_cannot_be_undone_is_an_orphan_and_is_retried(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([FakeReply.LOSE_AFTER, FakeReply.FAIL])
    with pytest.raises(OutcomeUnknown) as raised:
        await manager.add(ONE)
    assert "share 0 may still be on the VM" in raised.value.__notes__[0]
    info = only(manager)
    assert (info.state, info.orphan, info.busy, info.references) == (ShareState.INVALID, True, None, 0)
    assert isinstance(info.last_error, ComputeSystemError)
    assert vm.shares
    assert await manager.add(ONE) == "1"  # a fresh share, at once
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert list(vm.shares) == ["1"]
    assert only(manager).name == "1"


async def test_retries_wait_longer_each_time_up_to_a_minute(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([FakeReply.LOSE_AFTER] + [FakeReply.FAIL, FakeReply.LOSE_BEFORE] * 5)
    loop = asyncio.get_running_loop()
    with pytest.raises(OutcomeUnknown):
        await manager.add(ONE)
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


async def test_removing_an_orphan_by_its_name_retries_now(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE, FakeReply.FAIL])
    with pytest.raises(OutcomeUnknown):
        await manager.add(ONE)
    with pytest.raises(ComputeSystemError, match="remove of share 0"):
        await manager.remove("0")
    await manager.remove("0")
    assert not vm.shares
    assert not manager.shares()


@pytest.mark.parametrize("reply", [FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER])
async def test_a_remove_without_an_answer_leaves_an_orphan_that_no_add_joins(
    vm: FakeVM, manager: Manager, reply: FakeReply
) -> None:
    name = await manager.add(ONE, owner="a")
    vm.replies.append(reply)
    with pytest.raises(OutcomeUnknown):
        await manager.remove(name, owner="a")
    info = only(manager)
    assert (info.state, info.owners, info.orphan) == (ShareState.ADDED, ("a",), True)
    assert await manager.add(ONE, owner="a") == "1"
    await manager.remove(name, owner="a")
    assert list(vm.shares) == ["1"]
    assert only(manager).owners == ("a",)


async def test_a_remove_without_an_answer_is_retried_in_the_background(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE, owner="a")
    vm.replies.extend([FakeReply.LOSE_BEFORE, FakeReply.LOSE_BEFORE])
    with pytest.raises(OutcomeUnknown):
        await manager.remove(name, owner="a")
    await asyncio.sleep(3 * RETRY_FIRST)
    await settle()
    assert not vm.shares
    assert not manager.shares()
