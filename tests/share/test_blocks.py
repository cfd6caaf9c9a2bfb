"""``async with manager.share()``: the reference of a block is given back exactly once, however the block ends."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import ONE, kinds, only
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemError
from uvmshare.share.manager import RETRY_FIRST
from uvmshare.testing.fakes import FakeReply

if TYPE_CHECKING:
    from uvmshare.share.manager import Manager
    from uvmshare.testing.fakes import FakeVM


async def test_a_block_holds_the_share_and_gives_it_back(vm: FakeVM, manager: Manager) -> None:
    async with manager.share(ONE) as name, manager.share(ONE) as again:
        assert name == again == "0"
        assert only(manager).references == 2
        assert repr(only(manager).owners[0]) == "<async with block>"
        await manager.remove(name)
        await manager.remove(name, owner="a")
        assert only(manager).references == 2
    assert kinds(vm) == [("add", "0"), ("remove", "0")]


async def test_a_block_gives_back_its_own_reference_only(vm: FakeVM, manager: Manager) -> None:
    async with manager.share(ONE) as name:
        await manager.add(ONE, owner="a")
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
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    assert not vm.shares
    assert not manager.shares()


async def test_a_block_whose_share_cannot_be_taken_out_says_so(vm: FakeVM, manager: Manager) -> None:
    with pytest.raises(ComputeSystemError, match="remove of share 0"):
        async with manager.share(ONE):
            vm.replies.append(FakeReply.FAIL)
    assert only(manager).references == 0
    await asyncio.sleep(RETRY_FIRST)
    await settle()
    assert not vm.shares


async def test_an_error_of_the_block_comes_before_that_of_giving_back(vm: FakeVM, manager: Manager) -> None:
    async def block() -> None:
        async with manager.share(ONE):
            vm.replies.append(FakeReply.FAIL)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        await block()
    assert "share 0 could not be removed yet" in raised.value.__notes__[0]


async def test_a_block_that_cannot_begin_leaves_nothing(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(ComputeSystemError):
        await manager.share(ONE).__aenter__()
    assert not manager.shares()


async def test_a_block_that_outlives_the_manager_ends_quietly(vm: FakeVM, manager: Manager) -> None:
    async with manager.share(ONE):
        await manager.aclose()
        assert not vm.shares
    assert kinds(vm) == [("add", "0"), ("remove", "0")]
