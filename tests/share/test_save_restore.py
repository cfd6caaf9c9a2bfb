"""A table that moves: saved while shares are live and calls in flight, restored in another process or host."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from tests.virtual_time import settle

from uvmshare import blocking
from uvmshare.errors import (
    ComputeSystemError,
    InvalidSavedState,
    JournalError,
    OperationDenied,
    OutcomeUnknown,
    RestoreFailed,
    ShareExists,
)
from uvmshare.share.journal import JournalledShare
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareLife, ShareState
from uvmshare.testing.fakes import FakeJournal, FakeReply, FakeVM, ListingFakeVM

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(name="one")
def _one(tmp_path: Path) -> AddOptions:
    (tmp_path / "one").mkdir()
    return AddOptions(tmp_path / "one", read_only=True)


@pytest.fixture(name="other")
def _other(tmp_path: Path) -> AddOptions:
    (tmp_path / "other").mkdir()
    return AddOptions(tmp_path / "other", allowed_names=("a", "b"))


async def test_a_snapshot_finds_its_shares_under_their_old_names_and_their_holders_have_them(
    one: AddOptions, other: AddOptions
) -> None:
    manager = Manager(FakeVM())
    await manager.remove(await manager.add(one))  # so that names do not begin at 0
    for owner in (None, "b", "a", None):
        await manager.add(one, owner=owner)
    await manager.add(other, owner="a")
    state = manager.save()
    vm = FakeVM()
    moved = await Manager.restore(state, vm)
    assert vm.shares == {"1": one, "2": other}
    assert [(info.name, info.references, info.owners, info.state) for info in moved.shares()] == [
        ("1", 4, ("b", "a"), ShareState.ADDED),
        ("2", 1, ("a",), ShareState.ADDED),
    ]
    assert moved.save() == state
    assert await moved.add(one, owner="c") == "1"
    assert await moved.add(AddOptions(one.host_path)) == "3"
    for owner in (None, None, "a", "b", "c"):
        assert "1" in vm.shares
        await moved.remove("1", owner=owner)
    assert "1" not in vm.shares


async def test_what_is_hidden_and_mapped_is_so_where_it_is_restored(one: AddOptions) -> None:
    hiding = AddOptions(one.host_path, hide=["*", "!a"], map_owner="1000:0")
    manager = Manager(FakeVM())
    await manager.add(hiding, owner="a")
    assert await manager.add(AddOptions(one.host_path), owner="a") == "1"
    vm = FakeVM()
    moved = await Manager.restore(manager.save(), vm)
    assert vm.shares == {"0": hiding, "1": AddOptions(one.host_path)}
    assert moved.save() == manager.save()


async def test_names_that_were_told_are_told_again(one: AddOptions, other: AddOptions) -> None:
    manager = Manager(FakeVM())
    await manager.add(other)
    assert manager.resolve_share_name(one) == "1"
    vm = FakeVM()
    moved = await Manager.restore(manager.save(), vm)
    assert vm.shares == {"0": other}
    assert moved.resolve_share_name(one) == "1"
    assert await moved.add(one) == "1"


async def test_what_is_under_way_is_in_nobodys_hands_yet_or_any_more(one: AddOptions, other: AddOptions) -> None:
    vm = FakeVM()
    manager = Manager(vm)
    writable = AddOptions(one.host_path)
    await manager.add(one, owner="a")
    vm.replies.append(FakeReply.LOSE_AFTER)
    with pytest.raises(OutcomeUnknown):
        await manager.remove("0", owner="a")  # an orphan
    await manager.add(one, owner="a")
    vm.hold = True
    removing = asyncio.create_task(manager.remove("1", owner="a"))
    adding = asyncio.create_task(manager.add(other, owner="a"))
    await settle()
    moved = await Manager.restore(manager.save(), FakeVM())
    assert [(info.name, info.state, info.references) for info in moved.shares()] == [("2", ShareState.PENDING, 0)]
    assert moved.resolve_share_name(other) == "2"
    assert moved.resolve_share_name(writable) == "3", "and no name is used again"
    for name in "12":
        vm.in_flight[name].answer(FakeReply.SUCCEED)
    await asyncio.gather(removing, adding)
    vm.hold = False
    async with manager.share(one):
        assert [share["name"] for share in json.loads(manager.save())["shares"]] == ["2"], (
            "a block ends with its process"
        )


async def test_every_path_that_is_missing_is_named_and_nothing_is_touched(
    one: AddOptions, other: AddOptions, tmp_path: Path
) -> None:
    manager = Manager(FakeVM())
    await manager.add(one)
    await manager.add(other)
    await manager.add(AddOptions(tmp_path))
    state = manager.save()
    (tmp_path / "one").rmdir()
    (tmp_path / "other").rmdir()
    (tmp_path / "other").symlink_to("nowhere")
    vm = FakeVM()
    with pytest.raises(RestoreFailed, match="nothing was restored, because 2 share") as raised:
        await Manager.restore(state, vm)
    assert set(raised.value.errors) == {"0", "1"}
    assert f"{tmp_path}/one: No such file" in str(raised.value)
    assert f"{tmp_path}/other: No such file" in str(raised.value)
    assert not vm.calls


async def test_what_this_manager_may_not_share_is_refused_before_anything_is_touched(
    one: AddOptions, other: AddOptions
) -> None:
    manager = Manager(FakeVM())
    await manager.add(one)
    await manager.add(other)
    vm = FakeVM()
    with pytest.raises(RestoreFailed, match="no writable shares") as raised:
        await Manager.restore(manager.save(), vm, no_writable_file_shares=True)
    assert [(name, type(error)) for name, error in raised.value.errors.items()] == [("1", OperationDenied)]
    assert not vm.calls


@pytest.mark.parametrize("reply", [FakeReply.FAIL, FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER])
@pytest.mark.parametrize("journalled", [False, True])
async def test_one_share_that_cannot_be_added_takes_the_others_out_again(
    one: AddOptions, other: AddOptions, reply: FakeReply, *, journalled: bool
) -> None:
    manager = Manager(FakeVM())
    await manager.add(one, owner="a")
    await manager.add(other, owner="a")
    vm, journal = FakeVM(), FakeJournal()
    vm.replies += [FakeReply.SUCCEED, reply]
    with pytest.raises(RestoreFailed, match="share 1: add of share 1") as raised:
        await Manager.restore(manager.save(), vm, journal=journal if journalled else None)
    assert isinstance(raised.value.errors["1"], ComputeSystemError)
    assert not vm.shares
    assert not journal.state.shares
    assert (await Manager.restore(manager.save(), vm)).shares()


async def test_what_could_not_be_taken_out_again_is_said(one: AddOptions, other: AddOptions) -> None:
    manager = Manager(FakeVM())
    await manager.add(one)
    await manager.add(other)
    vm = FakeVM()
    vm.replies += [FakeReply.SUCCEED, FakeReply.FAIL, FakeReply.FAIL]
    with pytest.raises(RestoreFailed) as raised:
        await Manager.restore(manager.save(), vm)
    assert raised.value.__notes__ == ["and these could not be removed again yet: 0"]


async def test_a_restore_that_is_cancelled_leaves_nothing(one: AddOptions, other: AddOptions) -> None:
    manager = Manager(FakeVM())
    await manager.add(one)
    await manager.add(other)
    vm = FakeVM()
    vm.hold = True
    restoring = asyncio.create_task(Manager.restore(manager.save(), vm))
    await settle()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    restoring.cancel()
    await settle()
    vm.hold = False
    for call in tuple(vm.in_flight.values()):
        call.answer(FakeReply.SUCCEED)
    with pytest.raises(asyncio.CancelledError):
        await restoring
    assert not vm.shares


async def test_a_vm_that_has_them_already_is_not_asked_again(one: AddOptions, other: AddOptions) -> None:
    vm = ListingFakeVM()
    manager = Manager(vm)
    await manager.add(one, owner="a")
    await manager.add(other, owner="a")
    state = manager.save()
    del vm.shares["1"]
    calls = len(vm.calls)
    moved = await Manager.restore(state, vm)
    assert [(call.kind, call.name) for call in vm.calls[calls:]] == [("add", "1")]
    await moved.release_owner("a")
    assert not vm.shares


async def test_a_restore_that_fails_leaves_what_the_vm_had(one: AddOptions, other: AddOptions) -> None:
    vm = ListingFakeVM()
    manager = Manager(vm)
    await manager.add(one, owner="a")
    await manager.add(other, owner="a")
    state = manager.save()
    vm.shares["1"] = one
    with pytest.raises(RestoreFailed, match="under the name 1") as raised:
        await Manager.restore(state, vm)
    assert isinstance(raised.value.errors["1"], ShareExists)
    assert vm.shares == {"0": one, "1": one}


async def test_a_vm_that_cannot_tell_is_believed_when_it_says_that_it_has_one(one: AddOptions) -> None:
    vm = FakeVM()
    manager = Manager(vm)
    await manager.add(one, owner="a")
    moved = await Manager.restore(manager.save(), vm)
    assert vm.shares == {"0": one}
    await moved.remove("0", owner="a")
    assert not vm.shares


async def test_a_listing_vm_that_says_it_has_one_that_it_does_not_list_is_not_believed(
    one: AddOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = ListingFakeVM()
    manager = Manager(vm)
    await manager.add(one, owner="a")

    async def nothing() -> dict[str, object]:
        return {}

    monkeypatch.setattr(vm, "list_plan9", nothing)
    with pytest.raises(RestoreFailed, match="already has"):
        await Manager.restore(manager.save(), vm)


async def test_a_restored_table_goes_into_the_journal_of_its_new_place(one: AddOptions, other: AddOptions) -> None:
    manager = Manager(FakeVM())
    for owner in ("a", "b", None):
        await manager.add(one, owner=owner)
    manager.resolve_share_name(other)
    journal = FakeJournal()
    moved = await Manager.restore(manager.save(), FakeVM(), journal=journal)
    assert journal.state.shares == {
        "0": JournalledShare("0", one, ShareLife.ADDED, ("a", "b"), 1),
        "1": JournalledShare("1", other, ShareLife.PENDING),
    }
    assert journal.state.next_name > 2
    assert await moved.add(other, owner="a") == "1"
    with pytest.raises(JournalError, match="already has shares"):
        await Manager.restore(manager.save(), FakeVM(), journal=journal)


@pytest.mark.parametrize("fails", range(1, 4))
async def test_a_journal_that_fails_in_the_middle_undoes_all(one: AddOptions, other: AddOptions, fails: int) -> None:
    manager = Manager(FakeVM())
    await manager.add(one, owner="a")
    await manager.add(other, owner="a")
    vm, journal = FakeVM(), FakeJournal()
    journal.replies += [FakeReply.SUCCEED] * (fails - 1) + [FakeReply.LOSE_AFTER]
    with pytest.raises((JournalError, RestoreFailed)):
        await Manager.restore(manager.save(), vm, journal=journal)
    assert not vm.shares
    assert not journal.state.shares


async def test_what_the_journal_says_must_be_read_before_it_can_be_saved() -> None:
    with pytest.raises(JournalError, match="await recover"):
        Manager(FakeVM(), journal=FakeJournal()).save()


async def test_an_owner_that_is_no_string_cannot_move(one: AddOptions) -> None:
    manager = Manager(FakeVM())
    await manager.add(one, owner=("a", 1))
    with pytest.raises(TypeError, match="share 0 cannot be saved: owner"):
        manager.save()


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "what Manager.save"),
        (b"[]", "what Manager.save"),
        (b'{"uvmshare_shares":"1"}', "what Manager.save"),
        (b'{"uvmshare_shares":1,"next_name":0}', "what Manager.save"),
        (b'{"uvmshare_shares":4,"anything":0}', "a later uvmshare"),
        (b'{"uvmshare_shares":1,"next_name":1,"shares":[{"name":"1","host_path":"/"}]}', "no name below 1"),
        (b'{"uvmshare_shares":1,"next_name":9,"shares":[{"name":"01","host_path":"/"}]}', "no name below 9"),
        (b'{"uvmshare_shares":1,"next_name":9,"shares":[{"name":"x","host_path":"/"}]}', "no name below 9"),
        (b'{"uvmshare_shares":1,"next_name":9,"shares":[{"name":"1","host_path":"/","anonymous":-1}]}', "negative"),
        (
            b'{"uvmshare_shares":1,"next_name":9,"shares":[{"name":"1","host_path":"/"},{"name":"1","host_path":"/"}]}',
            "there twice",
        ),
    ],
)
async def test_what_no_manager_saved_is_refused_before_anything_is_touched(document: bytes, reason: str) -> None:
    vm = FakeVM()
    with pytest.raises(InvalidSavedState, match=reason):
        await Manager.restore(document, vm)
    assert not vm.calls


def test_threads_save_and_restore_too(one: AddOptions) -> None:
    vm = FakeVM()
    with blocking.Manager(FakeVM()) as manager:
        manager.add(one, owner="a")
        state = manager.save()
        with blocking.Manager.restore(state, vm) as moved:
            assert vm.shares == {"0": one}
            assert moved.save() == state
        with pytest.raises(InvalidSavedState):
            blocking.Manager.restore(b"", vm)


def test_threads_have_a_journal_too(one: AddOptions) -> None:
    vm, journal = FakeVM(), FakeJournal()
    with blocking.Manager(vm, journal=journal) as manager:
        assert manager.recover().shares == ()
        assert manager.add(one, owner="a") == "0"
        assert [info.name for info in manager.detach()] == ["0"]
    assert journal.state.shares["0"].owners == ("a",)
    with blocking.Manager(vm, journal=journal) as manager:
        assert manager.release_owner("a") == ("0",)
    assert not vm.shares
    journal.broken = True
    with pytest.raises(JournalError), blocking.Manager(vm, journal=journal):
        pass
