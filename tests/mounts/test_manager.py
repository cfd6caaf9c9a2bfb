"""The MountManager around a guest's agent whose answers the test decides, and around the Manager of the shares."""

from __future__ import annotations

import asyncio

import pytest
from tests.mounts.harness import MAPPED, OPTIONS, PATH, Bench, only
from tests.virtual_time import settle

from uvmshare.errors import (
    ComputeSystemGone,
    GuestAgentError,
    InvalidOptions,
    ManagerClosed,
    MountBusy,
    MountConflict,
    MountsLeft,
    OutcomeUnknown,
)
from uvmshare.mounts import MountManager, MountOptions, MountState
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.testing.fakes import FakeAgent, FakeReply

# ---------------------------------------------------------------------- one mount however many callers


async def test_the_first_mounts_the_last_unmounts() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    for owner in ("a", "b", None):
        info = await mounts.mount(OPTIONS, owner=owner)
        assert (info.state, info.mount_path, info.share_name) == (MountState.MOUNTED, PATH, "0")
    assert agent.mounts == {PATH: GuestMount("0", PATH, read_only=False, cache="auto", msize=None)}
    assert only(mounts).references == 3
    for owner in (None, "a"):
        await mounts.unmount(PATH, owner=owner)
        assert PATH in agent.mounts
    await mounts.unmount(PATH, owner="b")
    assert not agent.mounts
    assert not mounts.mounts()
    assert [call.kind for call in agent.calls] == ["add", "remove"]


async def test_a_release_by_who_does_not_hold_it_changes_nothing() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    await mounts.mount(OPTIONS, owner="a")
    await mounts.mount(OPTIONS, owner="a")
    await mounts.unmount(PATH, owner="b")
    await mounts.unmount(PATH)
    await mounts.unmount("/run/uvmshare/other", owner="a")
    assert only(mounts).owners == ("a",)
    await mounts.unmount(PATH, owner="a")
    await mounts.unmount(PATH, owner="a")
    assert not agent.mounts


@pytest.mark.parametrize(
    "other",
    [
        MountOptions("1", PATH),
        MountOptions("0", PATH, read_only=True),
        MountOptions("0", PATH, cache="mmap"),
        MountOptions("0", PATH, msize=8192),
        MountOptions("0", PATH, posixacl=True),
    ],
)
async def test_a_path_that_is_taken_by_other_options_is_a_clear_error(other: MountOptions) -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    await mounts.mount(OPTIONS, owner="a")
    with pytest.raises(MountConflict, match=rf"{PATH} in the guest is taken by share 0 .* asked for") as raised:
        await mounts.mount(other, owner="b")
    assert "another path" in str(raised.value)
    assert only(mounts).owners == ("a",)
    assert len(agent.calls) == 1


async def test_those_who_wait_share_one_call_and_its_error_and_the_next_call_tries_again() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    agent.hold = True
    waiting = [asyncio.create_task(mounts.mount(OPTIONS, owner=owner)) for owner in "abc"]
    await settle()
    assert only(mounts).busy == "mounting"
    error = GuestAgentError("no 9p in this kernel")
    agent.in_flight[PATH].answer(error)
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert outcomes == [error] * 3
    assert not mounts.mounts()
    agent.hold = False
    await mounts.mount(OPTIONS, owner="a")
    assert [call.kind for call in agent.calls] == ["add", "add"]


async def test_a_failed_unmount_keeps_the_last_reference_and_can_be_tried_again() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    await mounts.mount(OPTIONS, owner="a")
    agent.replies.append(MountBusy("sh (pid 7) works in it"))
    with pytest.raises(MountBusy):
        await mounts.unmount(PATH, owner="a")
    info = only(mounts)
    assert (info.state, info.owners) == (MountState.MOUNTED, ("a",))
    assert isinstance(info.last_error, MountBusy)
    await mounts.unmount(PATH, owner="a", lazy=True)
    assert agent.calls[-1].lazy
    assert not mounts.mounts()


async def test_a_mount_that_meets_an_unmount_in_flight_starts_afresh_with_options_of_its_own() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    await mounts.mount(OPTIONS, owner="a")
    agent.hold = True
    unmounting = asyncio.create_task(mounts.unmount(PATH, owner="a"))
    await settle()
    mounting = asyncio.create_task(mounts.mount(MountOptions("7", PATH), owner="b"))
    late = asyncio.create_task(mounts.unmount(PATH, owner="b"))
    await settle()
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    await settle()
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    assert (await mounting).share_name == "7"
    await asyncio.gather(unmounting, late)
    assert only(mounts).owners == ("b",)


async def test_an_anonymous_release_that_waited_for_the_end_of_a_mount_takes_nothing_of_the_next() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    await mounts.mount(OPTIONS)
    agent.hold = True
    first = asyncio.create_task(mounts.unmount(PATH))
    await settle()
    second = asyncio.create_task(mounts.unmount(PATH))
    fresh = asyncio.create_task(mounts.mount(OPTIONS))
    await settle()
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    await settle()
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    await asyncio.gather(first, second, fresh)
    assert only(mounts).references == 1


# ---------------------------------------------------------------------- lost answers


@pytest.mark.parametrize("reply", [FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER])
async def test_a_mount_whose_answer_is_lost_is_undone_before_the_error_is_told(reply: FakeReply) -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    agent.replies.append(reply)
    with pytest.raises(OutcomeUnknown):
        await mounts.mount(OPTIONS, owner="a")
    assert [call.kind for call in agent.calls] == ["add", "remove"]
    assert not agent.mounts
    assert not mounts.mounts()


async def test_what_cannot_be_undone_keeps_its_path_and_is_retried() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    agent.replies += [FakeReply.LOSE_AFTER, FakeReply.FAIL, FakeReply.FAIL]
    with pytest.raises(OutcomeUnknown) as raised:
        await mounts.mount(OPTIONS, owner="a")
    assert "may still be in the guest" in raised.value.__notes__[0]
    info = only(mounts)
    assert (info.state, info.references) == (MountState.INVALID, 0)
    with pytest.raises(GuestAgentError):  # the next one finds the path taken, and says why
        await mounts.mount(MountOptions("1", PATH), owner="b")
    await asyncio.sleep(120)
    assert not agent.mounts
    assert not mounts.mounts()
    await mounts.mount(MountOptions("1", PATH), owner="b")
    assert agent.mounts[PATH].share_name == "1"


async def test_an_unmount_whose_answer_is_lost_is_retried_by_whoever_comes() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    await mounts.mount(OPTIONS, owner="a")
    agent.replies.append(FakeReply.LOSE_AFTER)
    with pytest.raises(OutcomeUnknown):
        await mounts.unmount(PATH, owner="a")
    assert only(mounts).state is MountState.INVALID
    await mounts.mount(OPTIONS, owner="b")  # takes the old one away first
    assert [call.kind for call in agent.calls] == ["add", "remove", "remove", "add"]
    assert only(mounts).owners == ("b",)


# ---------------------------------------------------------------------- cancellation


async def test_a_cancelled_caller_withdraws_its_own_claim_alone() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    agent.hold = True
    leader, waiter = (asyncio.create_task(mounts.mount(OPTIONS, owner=owner)) for owner in "ab")
    await settle()
    leader.cancel()
    await settle()
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    await waiter
    assert leader.cancelled()
    assert only(mounts).owners == ("b",)


async def test_a_mount_that_nobody_wants_in_the_end_is_taken_away() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    agent.hold = True
    leader = asyncio.create_task(mounts.mount(OPTIONS, owner="a"))
    await settle()
    leader.cancel()
    await settle()
    agent.hold = False
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    await settle()
    assert not agent.mounts
    assert not mounts.mounts()


async def test_a_cancelled_unmount_counts_all_the_same() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    await mounts.mount(OPTIONS, owner="a")
    agent.hold = True
    unmounting = asyncio.create_task(mounts.unmount(PATH, owner="a"))
    await settle()
    unmounting.cancel()
    await settle()
    agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    await settle()
    assert unmounting.cancelled()
    assert not mounts.mounts()


# ---------------------------------------------------------------------- ends


async def test_an_owner_that_is_gone_gives_back_everything_it_holds_and_nothing_else() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="gone")
    await bench.mounts.map(MAPPED, PATH + "2", owner="gone")
    await bench.mounts.map(MAPPED, PATH + "2", owner="here")
    bench.agent.replies.append(MountBusy("in use"))
    with pytest.raises(MountsLeft, match=PATH) as raised:
        await bench.mounts.release_owner("gone")
    assert raised.value.paths == (PATH,)
    assert await bench.mounts.release_owner("gone", lazy=True) == (PATH,)
    assert only(bench.mounts).owners == ("here",)
    with pytest.raises(TypeError, match="anonymous"):
        await bench.mounts.release_owner(None)


async def test_a_vm_that_is_gone_has_no_mounts() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    await bench.mounts.map(MAPPED, PATH + "2", owner="a")
    bench.agent.hold = True
    waiting = asyncio.create_task(bench.mounts.map(MAPPED, PATH + "3", owner="a"))
    removing = asyncio.create_task(bench.mounts.unmap(PATH + "2", owner="a"))
    await settle()
    gone = ComputeSystemGone("the VM has exited")
    bench.shares.vm_exited(gone)
    bench.mounts.vm_exited(gone)
    for call in tuple(bench.agent.in_flight.values()):
        call.answer(FakeReply.LOSE_BEFORE)
    with pytest.raises(ComputeSystemGone):
        await waiting
    await removing
    assert not bench.mounts.mounts()
    with pytest.raises(ComputeSystemGone, match="nothing can be mounted any more"):
        await bench.mounts.mount(OPTIONS)
    bench.agent.reconnect(restarted=True)


async def test_a_removal_from_a_vm_that_is_gone_succeeds() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.gone = bench.vm.gone = True
    await bench.mounts.unmap(PATH, owner="a")
    assert not bench.mounts.mounts()


async def test_closing_takes_everything_away_or_says_what_stays() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    await bench.mounts.map(MAPPED, PATH + "2", owner="b")
    bench.agent.replies.append(MountBusy("in use"))
    with pytest.raises(MountsLeft, match="in use") as raised:
        await bench.mounts.aclose()
    assert raised.value.paths == (PATH,)
    with pytest.raises(ManagerClosed):
        await bench.mounts.mount(OPTIONS)
    async with bench.mounts:
        pass
    assert bench.empty()


async def test_closing_while_one_is_being_mounted_takes_it_away_again() -> None:
    bench = Bench()
    bench.agent.hold = True
    mounting = asyncio.create_task(bench.mounts.map(MAPPED, PATH, owner="a"))
    await settle()
    closing = asyncio.create_task(bench.mounts.aclose())
    await settle()
    bench.agent.hold = False
    bench.agent.in_flight[PATH].answer(FakeReply.SUCCEED)
    with pytest.raises(ManagerClosed):
        await mounting
    await closing
    assert bench.empty()


async def test_what_is_no_options_is_a_type_error_before_anything() -> None:
    bench = Bench()
    with pytest.raises(TypeError, match=r"options is AddOptions.*pass MountOptions"):
        await bench.mounts.mount(MAPPED)  # type: ignore[arg-type]  # that it is refused is what is tested
    with pytest.raises(InvalidOptions, match="/nowhere/0: No such file"):
        await bench.mounts.map("/nowhere/0", PATH)
    with pytest.raises(TypeError, match="no shares to add to"):
        await MountManager(FakeAgent()).map(MAPPED, PATH)
    with pytest.raises(TypeError, match="pass a str or another hashable value"):
        await bench.mounts.mount(OPTIONS, owner=[])  # type: ignore[arg-type]  # that it is refused is what is tested
    assert bench.empty()
    assert not bench.agent.calls
