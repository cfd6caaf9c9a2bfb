"""The MountManager around a guest's agent whose answers the test decides, and around the Manager of the shares."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import (
    ComputeSystemError,
    ComputeSystemGone,
    GuestAgentError,
    ManagerClosed,
    MountBusy,
    MountConflict,
    MountsLeft,
    OperationDenied,
    OutcomeUnknown,
)
from uvmshare.mounts import MountManager, MountOptions, MountState
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.fakes import FakeAgent, FakeVM, Reply

if TYPE_CHECKING:
    from uvmshare.mounts import MountInfo

HERE = os.path.dirname(__file__)
ABOVE = os.path.dirname(HERE)
PATH = "/run/uvmshare/x"
OPTIONS = MountOptions("0", PATH)
MAPPED = AddOptions(HERE)


def only(mounts: MountManager) -> MountInfo:
    (info,) = mounts.mounts()
    return info


async def settle() -> None:
    """Let everything happen that can happen without the test; in virtual time a second costs nothing."""
    await asyncio.sleep(0.01)


class Bench:
    """A guest and a VM with their managers."""

    def __init__(self, *, no_writable_file_shares: bool = False) -> None:
        self.agent = FakeAgent()
        self.vm = FakeVM()
        self.shares = Manager(self.vm, no_writable_file_shares=no_writable_file_shares)
        self.mounts = MountManager(self.agent, shares=self.shares)

    def empty(self) -> bool:
        return not (self.agent.mounts or self.vm.shares or self.mounts.mounts() or self.shares.shares())


# ---------------------------------------------------------------------- one mount however many callers


async def test_the_first_mounts_the_last_unmounts() -> None:
    agent = FakeAgent()
    mounts = MountManager(agent)
    for owner in ("a", "b", None):
        info = await mounts.mount(OPTIONS, owner=owner)
        assert (info.state, info.mount_path, info.share_name) == (MountState.MOUNTED, PATH, "0")
    assert agent.mounts == {PATH: GuestMount("0", PATH, read_only=False, cache="none", msize=131072)}
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
    agent.in_flight[PATH].answer(Reply.SUCCEED)
    await settle()
    agent.in_flight[PATH].answer(Reply.SUCCEED)
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
    agent.in_flight[PATH].answer(Reply.SUCCEED)
    await settle()
    agent.in_flight[PATH].answer(Reply.SUCCEED)
    await asyncio.gather(first, second, fresh)
    assert only(mounts).references == 1


# ---------------------------------------------------------------------- lost answers


@pytest.mark.parametrize("reply", [Reply.LOSE_BEFORE, Reply.LOSE_AFTER])
async def test_a_mount_whose_answer_is_lost_is_undone_before_the_error_is_told(reply: Reply) -> None:
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
    agent.replies += [Reply.LOSE_AFTER, Reply.FAIL, Reply.FAIL]
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
    agent.replies.append(Reply.LOSE_AFTER)
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
    agent.in_flight[PATH].answer(Reply.SUCCEED)
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
    agent.in_flight[PATH].answer(Reply.SUCCEED)
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
    agent.in_flight[PATH].answer(Reply.SUCCEED)
    await settle()
    assert unmounting.cancelled()
    assert not mounts.mounts()


# ---------------------------------------------------------------------- share and mount together


async def test_map_and_unmap_do_both() -> None:
    bench = Bench()
    info = await bench.mounts.map_to_guest(MAPPED, PATH, owner="a", cache="mmap")
    assert info.share_name == "0"
    assert bench.vm.shares == {"0": MAPPED}
    assert bench.agent.mounts[PATH].share_name == "0"
    assert bench.agent.mounts[PATH].cache == "mmap"
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="b", cache="mmap")
    await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert bench.vm.shares
    await bench.mounts.unmap_from_guest(PATH, owner="b")
    assert bench.empty()


async def test_a_read_only_share_is_mounted_read_only() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(AddOptions(HERE, read_only=True), PATH)
    assert bench.agent.mounts[PATH].read_only


async def test_one_share_at_two_paths_goes_with_the_second() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    await bench.mounts.map_to_guest(MAPPED, PATH + "2", owner="a")
    assert len(bench.vm.shares) == 1
    await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert bench.vm.shares
    await bench.mounts.unmap_from_guest(PATH + "2", owner="a")
    assert bench.empty()


async def test_somebody_elses_reference_to_the_share_is_not_touched() -> None:
    bench = Bench()
    name = await bench.shares.add_to_vm(MAPPED)
    await bench.mounts.map_to_guest(MAPPED, PATH)
    await bench.mounts.unmap_from_guest(PATH)
    assert bench.vm.shares == {name: MAPPED}


async def test_when_the_add_fails_the_guest_is_not_asked() -> None:
    bench = Bench()
    bench.vm.replies.append(Reply.FAIL)
    with pytest.raises(ComputeSystemError):
        await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    assert not bench.agent.calls
    assert bench.empty()


async def test_when_the_mount_fails_the_share_is_taken_out_again() -> None:
    bench = Bench()
    bench.agent.replies.append(Reply.FAIL)
    with pytest.raises(GuestAgentError):
        await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    assert [call.kind for call in bench.vm.calls] == ["add", "remove"]
    assert [call.kind for call in bench.agent.calls] == ["add"]
    assert bench.empty()


async def test_when_the_mount_fails_and_the_share_stays_it_is_retried() -> None:
    bench = Bench()
    bench.agent.replies.append(Reply.FAIL)
    bench.vm.replies += [Reply.SUCCEED, Reply.FAIL]
    with pytest.raises(GuestAgentError) as raised:
        await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    assert raised.value.__notes__
    assert bench.vm.shares
    assert only(bench.mounts).state is MountState.INVALID
    await asyncio.sleep(1)
    assert bench.empty()


async def test_when_the_unmount_fails_the_share_is_not_pulled_from_under_it() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.agent.replies.append(Reply.FAIL)
    with pytest.raises(GuestAgentError):
        await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert bench.vm.shares
    assert PATH in bench.agent.mounts
    assert only(bench.mounts).owners == ("a",)
    await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert bench.empty()


async def test_when_the_share_cannot_be_taken_out_calling_again_does_only_that() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.vm.replies.append(Reply.FAIL)
    with pytest.raises(ComputeSystemError):
        await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert only(bench.mounts).state is MountState.INVALID
    await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert [call.kind for call in bench.agent.calls] == ["add", "remove"]
    assert bench.empty()


async def test_a_retry_that_finds_other_options_does_not_tear_down_the_live_mount() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    with pytest.raises(MountConflict):
        await bench.mounts.map_to_guest(MAPPED, PATH, owner="a", read_only=True)
    with pytest.raises(MountConflict):
        await bench.mounts.map_to_guest(AddOptions(ABOVE), PATH, owner="a")
    assert bench.vm.shares == {"0": MAPPED}
    assert PATH in bench.agent.mounts
    assert len(bench.vm.calls) == 1, "a share of nobody was added for a moment"


async def test_policy_is_the_managers() -> None:
    bench = Bench(no_writable_file_shares=True)
    with pytest.raises(OperationDenied):
        await bench.mounts.map_to_guest(MAPPED, PATH)
    assert bench.empty()


async def test_a_block_holds_the_mapping_and_gives_it_back_once() -> None:
    bench = Bench()
    async with bench.mounts.mapped(MAPPED, PATH) as info:
        assert info.state is MountState.MOUNTED
        assert repr(only(bench.mounts).owners[0]) == "<async with block>"
    assert bench.empty()

    async def leave_with(error: BaseException | None) -> None:
        async with bench.mounts.mapped(MAPPED, PATH):
            bench.agent.replies.append(Reply.FAIL)
            if error is not None:
                raise error

    with pytest.raises(KeyError) as raised:
        await leave_with(KeyError())
    assert "could not be unmounted yet" in raised.value.__notes__[0]
    await asyncio.sleep(1)
    assert bench.empty()
    with pytest.raises(GuestAgentError):
        await leave_with(None)
    await asyncio.sleep(1)
    assert bench.empty()


async def test_a_block_whose_manager_was_closed_meanwhile_ends_quietly() -> None:
    bench = Bench()
    async with bench.mounts.mapped(MAPPED, PATH):
        await bench.mounts.aclose()
    assert bench.empty()


# ---------------------------------------------------------------------- the guest loses mounts


async def test_a_guest_that_was_started_again_gets_its_mounts_back() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    await bench.mounts.mount(MountOptions("5", PATH + "5"), owner="a")
    before = dict(bench.agent.mounts)
    bench.agent.reconnect(restarted=True)
    await settle()
    assert bench.agent.mounts == before
    assert {info.state for info in bench.mounts.mounts()} == {MountState.MOUNTED}
    assert len(bench.vm.shares) == 1
    await bench.mounts.unmap_from_guest(PATH, owner="a")
    await bench.mounts.unmount(PATH + "5", owner="a")
    assert bench.empty()


async def test_a_connection_that_came_back_to_the_same_guest_changes_nothing() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.agent.reconnect(restarted=False)
    await settle()
    assert [call.kind for call in bench.agent.calls] == ["add", "list"]


async def test_what_cannot_be_mounted_again_yet_is_retried_and_can_be_given_up() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.agent.replies += [Reply.SUCCEED, Reply.FAIL, Reply.LOSE_AFTER, Reply.FAIL]
    bench.agent.reconnect(restarted=True)
    await settle()
    info = only(bench.mounts)
    assert (info.state, info.owners, info.busy) == (MountState.RESERVED, ("a",), None)
    await asyncio.sleep(120)
    assert PATH in bench.agent.mounts
    assert only(bench.mounts).state is MountState.MOUNTED
    bench.agent.replies += [Reply.SUCCEED, Reply.FAIL]
    bench.agent.reconnect(restarted=True)
    await settle()
    await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert bench.empty()


async def test_whoever_asks_for_a_lost_mount_has_it_mounted_at_once() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.agent.replies += [Reply.SUCCEED, Reply.FAIL]
    bench.agent.reconnect(restarted=True)
    await settle()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="b")
    assert only(bench.mounts).owners == ("a", "b")
    assert only(bench.mounts).state is MountState.MOUNTED


async def test_a_mount_made_while_the_guest_was_asked_is_not_taken_for_lost() -> None:
    bench = Bench()
    bench.agent.hold = True
    bench.agent.reconnect(restarted=True)
    bench.agent.reconnect(restarted=True)  # twice is asked one after the other
    await settle()
    bench.agent.hold = False
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.agent.in_flight["/list/1"].answer(Reply.SUCCEED)
    await settle()
    assert [call.kind for call in bench.agent.calls] == ["list", "add", "list"]
    assert only(bench.mounts).state is MountState.MOUNTED


async def test_what_others_mounted_through_the_agent_is_told_and_left_alone() -> None:
    bench = Bench()
    strange = GuestMount("9", PATH + "9", read_only=True, cache="none", msize=8192)
    bench.agent.mounts[strange.mount_path] = strange
    assert await bench.mounts.settle() == (strange,)
    assert strange.mount_path in bench.agent.mounts


async def test_an_agent_that_cannot_be_asked_is_asked_when_it_is_reached_again() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.agent.replies.append(Reply.FAIL)
    bench.agent.reconnect(restarted=True)
    await settle()
    assert not bench.agent.mounts
    bench.agent.reconnect(restarted=False)
    await settle()
    assert PATH in bench.agent.mounts


# ---------------------------------------------------------------------- ends


async def test_an_owner_that_is_gone_gives_back_everything_it_holds_and_nothing_else() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="gone")
    await bench.mounts.map_to_guest(MAPPED, PATH + "2", owner="gone")
    await bench.mounts.map_to_guest(MAPPED, PATH + "2", owner="here")
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
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    await bench.mounts.map_to_guest(MAPPED, PATH + "2", owner="a")
    bench.agent.hold = True
    waiting = asyncio.create_task(bench.mounts.map_to_guest(MAPPED, PATH + "3", owner="a"))
    removing = asyncio.create_task(bench.mounts.unmap_from_guest(PATH + "2", owner="a"))
    await settle()
    gone = ComputeSystemGone("the VM has exited")
    bench.shares.vm_exited(gone)
    bench.mounts.vm_exited(gone)
    for call in tuple(bench.agent.in_flight.values()):
        call.answer(Reply.LOSE_BEFORE)
    with pytest.raises(ComputeSystemGone):
        await waiting
    await removing
    assert not bench.mounts.mounts()
    with pytest.raises(ComputeSystemGone, match="nothing can be mounted any more"):
        await bench.mounts.mount(OPTIONS)
    bench.agent.reconnect(restarted=True)


async def test_a_removal_from_a_vm_that_is_gone_succeeds() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    bench.agent.gone = bench.vm.gone = True
    await bench.mounts.unmap_from_guest(PATH, owner="a")
    assert not bench.mounts.mounts()


async def test_closing_takes_everything_away_or_says_what_stays() -> None:
    bench = Bench()
    await bench.mounts.map_to_guest(MAPPED, PATH, owner="a")
    await bench.mounts.map_to_guest(MAPPED, PATH + "2", owner="b")
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
    mounting = asyncio.create_task(bench.mounts.map_to_guest(MAPPED, PATH, owner="a"))
    await settle()
    closing = asyncio.create_task(bench.mounts.aclose())
    await settle()
    bench.agent.hold = False
    bench.agent.in_flight[PATH].answer(Reply.SUCCEED)
    with pytest.raises(ManagerClosed):
        await mounting
    await closing
    assert bench.empty()


async def test_what_is_no_options_is_a_type_error_before_anything() -> None:
    bench = Bench()
    with pytest.raises(TypeError, match="expected MountOptions"):
        await bench.mounts.mount(MAPPED)  # type: ignore[arg-type]  # that it is refused is what is tested
    with pytest.raises(TypeError, match="expected AddOptions"):
        await bench.mounts.map_to_guest("0", PATH)  # type: ignore[arg-type]  # that it is refused is what is tested
    with pytest.raises(TypeError, match="no shares to add to"):
        await MountManager(FakeAgent()).map_to_guest(MAPPED, PATH)
    with pytest.raises(TypeError, match="unhashable"):
        await bench.mounts.mount(OPTIONS, owner=[])  # type: ignore[arg-type]  # that it is refused is what is tested
    assert bench.empty()
    assert not bench.agent.calls
