"""A guest that loses its mounts: it gets back what somebody holds."""

from __future__ import annotations

import asyncio

import pytest
from tests.mounts.harness import MAPPED, PATH, Bench, only
from tests.virtual_time import settle

from uvmshare.errors import ComputeSystemGone
from uvmshare.mounts import MountManager, MountOptions, MountState
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.mounts.manager import RETRY_FIRST
from uvmshare.share.manager import Manager
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeAgent, FakeReply, ListingFakeVM


async def test_a_guest_that_was_started_again_gets_its_mounts_back() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    await bench.mounts.mount(MountOptions("5", PATH + "5"), owner="a")
    before = dict(bench.agent.mounts)
    bench.agent.reconnect(restarted=True)
    await settle()
    assert bench.agent.mounts == before
    assert {info.state for info in bench.mounts.mounts()} == {MountState.MOUNTED}
    assert len(bench.vm.shares) == 1
    await bench.mounts.unmap(PATH, owner="a")
    await bench.mounts.unmount(PATH + "5", owner="a")
    assert bench.empty()


async def test_a_guest_that_mounts_what_came_back_without_an_answer_keeps_its_share() -> None:
    vm, agent = ListingFakeVM(), FakeAgent()
    shares = Manager(vm)
    mounts = MountManager(agent, shares=shares)
    agent.hold = True
    mapping = asyncio.create_task(mounts.map(MAPPED, PATH, owner="a"))
    await settle()
    vm.replies += [FakeReply.SUCCEED, FakeReply.LOSE_AFTER]
    vm.take_over("0")  # while the guest is being asked to mount it
    await settle()
    assert "0" in vm.shares
    agent.hold = False
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    await mapping
    calls = len(vm.calls)
    await asyncio.sleep(600)
    assert [call.kind for call in vm.calls[calls:]] == ["add"]
    assert shares.shares()[0].state is ShareState.ADDED
    assert only(mounts).state is MountState.MOUNTED
    await mounts.unmap(PATH, owner="a")
    assert not vm.shares


async def test_a_connection_that_came_back_to_the_same_guest_changes_nothing() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.reconnect(restarted=False)
    await settle()
    assert [call.kind for call in bench.agent.calls] == ["add", "list"]


async def test_what_cannot_be_mounted_again_yet_is_retried_and_can_be_given_up() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.replies += [FakeReply.SUCCEED, FakeReply.FAIL, FakeReply.LOSE_AFTER, FakeReply.FAIL]
    bench.agent.reconnect(restarted=True)
    await settle()
    info = only(bench.mounts)
    assert (info.state, info.owners, info.busy) == (MountState.PENDING, ("a",), None)
    await asyncio.sleep(120)
    assert PATH in bench.agent.mounts
    assert only(bench.mounts).state is MountState.MOUNTED
    bench.agent.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    bench.agent.reconnect(restarted=True)
    await settle()
    await bench.mounts.unmap(PATH, owner="a")
    assert bench.empty()


async def test_whoever_asks_for_a_lost_mount_has_it_mounted_at_once() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    bench.agent.reconnect(restarted=True)
    await settle()
    await bench.mounts.map(MAPPED, PATH, owner="b")
    assert only(bench.mounts).owners == ("a", "b")
    assert only(bench.mounts).state is MountState.MOUNTED


async def test_a_mount_made_while_the_guest_was_asked_is_not_taken_for_lost() -> None:
    bench = Bench()
    bench.agent.hold = True
    bench.agent.reconnect(restarted=True)
    bench.agent.reconnect(restarted=True)  # twice is asked one after the other
    await settle()
    bench.agent.hold = False
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.in_flight["/list/1"].answer(FakeReply.SUCCEED)
    await settle()
    assert [call.kind for call in bench.agent.calls] == ["list", "add", "list"]
    assert only(bench.mounts).state is MountState.MOUNTED


async def test_what_others_mounted_through_the_agent_is_told_and_left_alone() -> None:
    bench = Bench()
    strange = GuestMount("9", PATH + "9", read_only=True, cache="none", msize=8192)
    bench.agent.mounts[strange.mount_path] = strange
    assert await bench.mounts.settle() == (strange,)
    assert strange.mount_path in bench.agent.mounts


async def test_an_agent_that_cannot_be_asked_is_asked_again_by_itself() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.replies += [FakeReply.FAIL, FakeReply.LOSE_AFTER]
    bench.agent.reconnect(restarted=True)
    await settle()
    assert not bench.agent.mounts
    await asyncio.sleep(4 * RETRY_FIRST)
    assert PATH in bench.agent.mounts
    assert only(bench.mounts).state is MountState.MOUNTED


@pytest.mark.parametrize("how", ["close", "exit"])
async def test_it_is_not_asked_again_after_the_end(how: str) -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.replies += [FakeReply.FAIL]
    bench.agent.reconnect(restarted=True)
    await settle()
    if how == "close":
        await bench.mounts.aclose()
    else:
        bench.mounts.vm_exited(ComputeSystemGone("it exited"))
    calls = len(bench.agent.calls)
    await asyncio.sleep(600)
    assert len(bench.agent.calls) == calls


async def test_an_agent_that_cannot_be_asked_is_asked_when_it_is_reached_again() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.replies.append(FakeReply.FAIL)
    bench.agent.reconnect(restarted=True)
    await settle()
    assert not bench.agent.mounts
    bench.agent.reconnect(restarted=False)
    await settle()
    assert PATH in bench.agent.mounts
