"""A share that comes and goes with its mount: both or neither, whatever fails between the two."""

from __future__ import annotations

import asyncio

import pytest
from tests.mounts.harness import ABOVE, HERE, MAPPED, PATH, Bench, only

from uvmshare.errors import ComputeSystemError, GuestAgentError, MountConflict, OperationDenied, OutcomeUnknown
from uvmshare.lifecycle.retry import RETRY_LONGEST
from uvmshare.mounts import MountState
from uvmshare.share.options import AddOptions
from uvmshare.testing.fakes import FakeReply


async def test_map_and_unmap_do_both() -> None:
    bench = Bench()
    info = await bench.mounts.map(MAPPED, PATH, owner="a", cache="mmap")
    assert info.share_name == "0"
    assert bench.vm.shares == {"0": MAPPED}
    assert bench.agent.mounts[PATH].share_name == "0"
    assert bench.agent.mounts[PATH].cache == "mmap"
    await bench.mounts.map(MAPPED, PATH, owner="b", cache="mmap")
    await bench.mounts.unmap(PATH, owner="a")
    assert bench.vm.shares
    await bench.mounts.unmap(PATH, owner="b")
    assert bench.empty()


async def test_a_read_only_share_is_mounted_read_only() -> None:
    bench = Bench()
    await bench.mounts.map(AddOptions(HERE, read_only=True), PATH)
    assert bench.agent.mounts[PATH].read_only


async def test_what_a_mapping_says_of_set_user_id_and_devices_is_what_the_guest_is_asked_for() -> None:
    bench = Bench()
    for suid, dev in ((False, False), (True, False), (False, True), (True, True)):
        await bench.mounts.map(MAPPED, PATH, suid=suid, dev=dev)
        assert (bench.agent.mounts[PATH].suid, bench.agent.mounts[PATH].dev) == (suid, dev)
        await bench.mounts.unmap(PATH)
        async with bench.mounts.mapped(MAPPED, PATH, msize=8192, suid=suid, dev=dev):
            assert (bench.agent.mounts[PATH].suid, bench.agent.mounts[PATH].dev) == (suid, dev)
            assert bench.agent.mounts[PATH].msize == 8192
    assert bench.empty()


async def test_one_share_at_two_paths_goes_with_the_second() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    await bench.mounts.map(MAPPED, PATH + "2", owner="a")
    assert len(bench.vm.shares) == 1
    await bench.mounts.unmap(PATH, owner="a")
    assert bench.vm.shares
    await bench.mounts.unmap(PATH + "2", owner="a")
    assert bench.empty()


async def test_somebody_elses_reference_to_the_share_is_not_touched() -> None:
    bench = Bench()
    name = await bench.shares.add(MAPPED)
    await bench.mounts.map(MAPPED, PATH)
    await bench.mounts.unmap(PATH)
    assert bench.vm.shares == {name: MAPPED}


async def test_when_the_add_fails_the_guest_is_not_asked() -> None:
    bench = Bench()
    bench.vm.replies.append(FakeReply.FAIL)
    with pytest.raises(ComputeSystemError):
        await bench.mounts.map(MAPPED, PATH, owner="a")
    assert not bench.agent.calls
    assert bench.empty()


async def test_when_the_mount_fails_the_share_is_taken_out_again() -> None:
    bench = Bench()
    bench.agent.replies.append(FakeReply.FAIL)
    with pytest.raises(GuestAgentError):
        await bench.mounts.map(MAPPED, PATH, owner="a")
    assert [call.kind for call in bench.vm.calls] == ["add", "remove"]
    assert [call.kind for call in bench.agent.calls] == ["add"]
    assert bench.empty()


async def test_when_the_mount_fails_and_the_share_stays_it_is_retried() -> None:
    bench = Bench()
    bench.agent.replies.append(FakeReply.FAIL)
    bench.vm.replies += [FakeReply.SUCCEED, FakeReply.FAIL]
    with pytest.raises(GuestAgentError) as raised:
        await bench.mounts.map(MAPPED, PATH, owner="a")
    assert raised.value.__notes__
    assert bench.vm.shares
    assert only(bench.mounts).state is MountState.INVALID
    await asyncio.sleep(1)
    assert bench.empty()


async def test_a_share_of_which_nobody_knows_is_the_managers_to_remove_and_in_nobodys_way() -> None:
    bench = Bench()
    bench.vm.replies += [FakeReply.LOSE_AFTER, FakeReply.FAIL]
    with pytest.raises(OutcomeUnknown):
        await bench.mounts.map(MAPPED, PATH, owner="a")
    assert not bench.mounts.mounts(), "the guest was never asked"
    (left,) = bench.shares.shares()
    assert left.orphan
    assert await bench.mounts.unmap(PATH, owner="a", force=True) is None
    assert bench.vm.shares.keys() == {left.name}, "there was no mount to force"
    await bench.mounts.map(MAPPED, PATH, owner="b")
    assert only(bench.mounts).share_name != left.name
    await bench.mounts.unmap(PATH, owner="b", force=True)
    await asyncio.sleep(RETRY_LONGEST)
    assert bench.empty()


@pytest.mark.parametrize("owner", ["a", "somebody", None])
async def test_whoever_knows_of_it_can_have_it_removed_at_once(owner: str | None) -> None:
    bench = Bench()
    bench.vm.replies += [FakeReply.LOSE_AFTER, FakeReply.FAIL]
    with pytest.raises(OutcomeUnknown):
        await bench.mounts.map(MAPPED, PATH, owner="a")
    (left,) = bench.shares.shares()
    await bench.shares.remove(left.name, owner=owner)
    assert bench.empty()


async def test_when_the_unmount_fails_the_share_is_not_pulled_from_under_it() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.replies.append(FakeReply.FAIL)
    with pytest.raises(GuestAgentError):
        await bench.mounts.unmap(PATH, owner="a")
    assert bench.vm.shares
    assert PATH in bench.agent.mounts
    assert only(bench.mounts).owners == ("a",)
    await bench.mounts.unmap(PATH, owner="a")
    assert bench.empty()


async def test_when_the_share_cannot_be_taken_out_calling_again_does_only_that() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.vm.replies.append(FakeReply.FAIL)
    with pytest.raises(ComputeSystemError):
        await bench.mounts.unmap(PATH, owner="a")
    assert only(bench.mounts).state is MountState.INVALID
    await bench.mounts.unmap(PATH, owner="a")
    assert [call.kind for call in bench.agent.calls] == ["add", "remove"]
    assert bench.empty()


async def test_a_retry_that_finds_other_options_does_not_tear_down_the_live_mount() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    with pytest.raises(MountConflict):
        await bench.mounts.map(MAPPED, PATH, owner="a", read_only=True)
    with pytest.raises(MountConflict):
        await bench.mounts.map(AddOptions(ABOVE), PATH, owner="a")
    assert bench.vm.shares == {"0": MAPPED}
    assert PATH in bench.agent.mounts
    assert len(bench.vm.calls) == 1, "a share of nobody was added for a moment"


async def test_policy_is_the_managers() -> None:
    bench = Bench(no_writable_file_shares=True)
    with pytest.raises(OperationDenied):
        await bench.mounts.map(MAPPED, PATH)
    assert bench.empty()


async def test_a_block_holds_the_mapping_and_gives_it_back_once() -> None:
    bench = Bench()
    async with bench.mounts.mapped(MAPPED, PATH) as info:
        assert info.state is MountState.MOUNTED
        assert repr(only(bench.mounts).owners[0]) == "<async with block>"
    assert bench.empty()

    async def leave_with(error: BaseException | None) -> None:
        async with bench.mounts.mapped(MAPPED, PATH):
            bench.agent.replies.append(FakeReply.FAIL)
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


async def test_a_guest_that_answers_nothing_keeps_no_share_that_nobody_holds() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.hold = True
    left = await bench.mounts.unmap(PATH, owner="a", force=True)
    assert left is not None
    assert (left.state, left.share_name, left.taken_from) == (MountState.REVOKED, None, ("a",))
    assert not bench.vm.shares
    bench.agent.in_flight[PATH].answer(FakeReply.FAIL)
    bench.agent.hold = False
    bench.agent.reconnect(restarted=False)
    await asyncio.sleep(60)
    assert bench.empty(), "it was mounted again, or its path is kept for ever"


async def test_a_mount_that_failed_leaves_no_share_although_the_guest_does_not_undo_it() -> None:
    bench = Bench()
    bench.agent.replies += [FakeReply.LOSE_AFTER, FakeReply.FAIL]
    with pytest.raises(OutcomeUnknown):
        await bench.mounts.map(MAPPED, PATH, owner="a")
    await asyncio.sleep(0.1)
    assert not bench.vm.shares
    assert only(bench.mounts).state is MountState.REVOKED


async def test_a_share_that_cannot_be_taken_out_is_an_error_and_is_tried_again() -> None:
    bench = Bench()
    await bench.mounts.map(MAPPED, PATH, owner="a")
    bench.agent.replies.append(FakeReply.FAIL)
    bench.vm.replies += [FakeReply.FAIL]
    with pytest.raises(ComputeSystemError):
        await bench.mounts.revoke(PATH)
    assert only(bench.mounts).share_name == "0"
    await asyncio.sleep(60)
    assert bench.empty()


async def test_a_block_whose_manager_was_closed_meanwhile_ends_quietly() -> None:
    bench = Bench()
    async with bench.mounts.mapped(MAPPED, PATH):
        await bench.mounts.aclose()
    assert bench.empty()
