"""Closing a Manager takes everything out, and says what it could not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import ONE, OTHER, WRITABLE, only
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemError, ManagerClosed, OutcomeUnknown, SharesLeft
from uvmshare.share.manager import RETRY_LONGEST, Manager
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeReply

if TYPE_CHECKING:
    from uvmshare.testing.fakes import FakeVM


async def test_closing_takes_everything_out(vm: FakeVM) -> None:
    async with Manager(vm) as manager:
        await manager.add(ONE, owner="a")
        await manager.add(ONE)
        await manager.add(OTHER)
        manager.resolve_share_name(WRITABLE)
    assert not vm.shares
    assert not manager.shares()
    for attempt in (manager.add(ONE), manager.share(ONE).__aenter__()):
        with pytest.raises(ManagerClosed, match="make a new one"):
            await attempt
    with pytest.raises(ManagerClosed):
        manager.resolve_share_name(ONE)
    await manager.remove("0")
    await manager.aclose()


async def test_closing_says_what_it_could_not_take_out_and_can_be_repeated(vm: FakeVM, manager: Manager) -> None:
    await manager.add(ONE)
    await manager.add(ONE, owner="a")
    await manager.add(OTHER)
    vm.replies.extend([FakeReply.FAIL, FakeReply.SUCCEED])
    with pytest.raises(SharesLeft, match="share 0: remove of share 0") as raised:
        await manager.aclose()
    assert raised.value.names == ("0",)
    assert (only(manager).references, only(manager).state) == (0, ShareState.ADDED)  # nobody's any more
    await asyncio.sleep(RETRY_LONGEST)
    assert list(vm.shares) == ["0"]  # nothing goes on behind the back of those who closed it
    vm.replies.append(FakeReply.LOSE_BEFORE)
    with pytest.raises(SharesLeft):
        await manager.aclose()
    await asyncio.sleep(RETRY_LONGEST)
    assert vm.shares
    await manager.aclose()
    assert not vm.shares


async def test_what_closing_left_can_still_be_removed_by_name(vm: FakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(SharesLeft):
        await manager.aclose()
    await manager.remove("0", owner="a")
    assert not vm.shares


async def test_closing_takes_orphans_out_and_ends_their_retries(vm: FakeVM, manager: Manager) -> None:
    vm.replies.extend([FakeReply.LOSE_AFTER, FakeReply.FAIL, FakeReply.FAIL])
    with pytest.raises(OutcomeUnknown):
        await manager.add(ONE)
    with pytest.raises(SharesLeft):
        await manager.aclose()
    await asyncio.sleep(RETRY_LONGEST)
    assert len(vm.calls) == 3
    await manager.aclose()
    assert not vm.shares


async def test_closing_waits_for_an_add_in_flight_and_takes_it_out(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    closing = asyncio.create_task(manager.aclose())
    await settle()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    with pytest.raises(ManagerClosed):
        await add
    assert not closing.done()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await closing
    assert not vm.shares


async def test_an_add_behind_a_remove_is_refused_when_the_manager_closes(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove(name))
    await settle()
    add = asyncio.create_task(manager.add(ONE))
    await settle()
    closing = asyncio.create_task(manager.aclose())
    await settle()
    vm.in_flight[name].answer(FakeReply.SUCCEED)
    await closing
    await removal
    with pytest.raises(ManagerClosed):
        await add


async def test_closing_tries_again_what_was_being_removed_and_failed(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove(name))
    await settle()
    first, second = (asyncio.create_task(manager.aclose()) for _ in range(2))
    await settle()
    vm.in_flight[name].answer(FakeReply.FAIL)
    await settle()
    vm.in_flight[name].answer(FakeReply.SUCCEED)
    await asyncio.gather(first, second)
    with pytest.raises(ComputeSystemError):
        await removal
    assert not vm.shares


async def test_a_cancelled_close_can_be_called_again(vm: FakeVM, manager: Manager) -> None:
    await manager.add(ONE)
    vm.hold = True
    closing = asyncio.create_task(manager.aclose())
    await settle()
    closing.cancel()
    await settle()
    again = asyncio.create_task(manager.aclose())
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await again
    assert not vm.shares
