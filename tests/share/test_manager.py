"""What a Manager does with adds and removes, one story at a time. All orders of events are in test_interleavings."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from tests.share.harness import HERE, ONE, OTHER, WRITABLE, kinds, only
from tests.virtual_time import settle

from uvmshare.errors import (
    ComputeSystemError,
    ComputeSystemGone,
    InvalidOptions,
    OperationDenied,
    ShareExists,
    ShareNotFound,
    WrongType,
)
from uvmshare.share.manager import RETRY_LONGEST, Manager, ShareInfo
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeReply

if TYPE_CHECKING:
    from pathlib import Path

    from uvmshare.share.interfaces import NamedShare
    from uvmshare.testing.fakes import FakeVM


# ---------------------------------------------------------------------- one share for equal options


async def test_the_first_add_calls_the_vm_and_later_ones_count(vm: FakeVM, manager: Manager) -> None:
    assert await manager.add(ONE) == await manager.add(AddOptions(str(HERE), read_only=True)) == "0"
    assert kinds(vm) == [("add", "0")]
    assert vm.shares == {"0": ONE}
    assert only(manager).references == 2


async def test_the_last_release_takes_the_share_out(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE)
    await manager.add(ONE)
    await manager.remove(name)
    assert vm.shares
    await manager.remove(name)
    assert not vm.shares
    assert not manager.shares()


async def test_names_are_decimal_and_never_used_again(manager: Manager) -> None:
    for expected in ("0", "1", "2"):
        name = await manager.add(ONE)
        assert name == expected
        await manager.remove(name)


async def test_those_who_ask_meanwhile_share_the_one_call(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    adds = [asyncio.create_task(manager.add(ONE)) for _ in range(3)]
    await settle()
    assert only(manager).busy == "adding"
    assert only(manager).state is ShareState.PENDING
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    assert await asyncio.gather(*adds) == ["0", "0", "0"]
    assert kinds(vm) == [("add", "0")]
    assert only(manager).references == 3


async def test_shares_do_not_wait_for_each_other(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(FakeReply.NEVER)
    stuck = asyncio.create_task(manager.add(ONE))
    await settle()
    assert await manager.add(OTHER) == "1"
    await manager.remove("1")
    assert not stuck.done()


async def test_an_unknown_name_is_no_error(vm: FakeVM, manager: Manager) -> None:
    await manager.remove("17")
    await manager.remove("17", owner="a")
    assert not vm.calls


# ---------------------------------------------------------------------- names before shares


async def test_a_name_can_be_had_before_the_share(vm: FakeVM, manager: Manager) -> None:
    assert manager.resolve_share_name(ONE) == manager.resolve_share_name(ONE) == "0"
    assert only(manager).state is ShareState.PENDING
    assert not vm.calls
    assert await manager.add(ONE) == "0"
    assert manager.resolve_share_name(ONE) == "0"
    assert only(manager).references == 1


async def test_a_pending_share_that_nobody_adds_is_dropped_without_a_call(vm: FakeVM, manager: Manager) -> None:
    await manager.remove(manager.resolve_share_name(ONE), owner="anybody")
    assert not manager.shares()
    assert not vm.calls
    assert await manager.add(ONE) == "1"


async def test_a_share_being_removed_still_gives_its_name(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE)
    vm.hold = True
    removal = asyncio.create_task(manager.remove(name))
    await settle()
    assert manager.resolve_share_name(ONE) == name
    assert only(manager).busy == "removing"
    vm.in_flight[name].answer(FakeReply.SUCCEED)
    await removal


# ---------------------------------------------------------------------- owners


async def test_an_owner_holds_a_share_once(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE, owner="a")
    await manager.add(ONE, owner="a")
    assert (only(manager).references, only(manager).owners) == (1, ("a",))
    await manager.remove(name, owner="a")
    assert not vm.shares


async def test_a_retried_release_does_not_take_somebody_elses(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE, owner="a")
    await manager.add(ONE, owner=("b", 2))
    for _ in range(3):
        await manager.remove(name, owner="a")
    assert only(manager).owners == (("b", 2),)
    assert vm.shares


async def test_an_anonymous_release_does_not_take_an_owners(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE, owner="a")
    await manager.remove(name)
    assert only(manager).owners == ("a",)
    await manager.add(ONE)
    await manager.remove(name, owner="a")
    await manager.remove(name, owner="a")
    assert (only(manager).references, only(manager).owners) == (1, ())
    assert vm.shares


async def test_an_owner_that_has_no_hash_is_refused_before_anything_is_touched(vm: FakeVM, manager: Manager) -> None:
    with pytest.raises(TypeError):
        await manager.add(ONE, owner=["a"])  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(TypeError):
        await manager.remove("0", owner=["a"])  # type: ignore[arg-type]  # the mistake that is tested
    assert not vm.calls


async def test_a_path_and_keywords_say_what_options_say(manager: Manager, vm: FakeVM, tmp_path: Path) -> None:
    name = await manager.add(tmp_path, read_only=True, hide=["x"], owner="a")
    assert await manager.add(AddOptions(tmp_path, read_only=True, hide=["x"]), owner="b") == name
    assert manager.resolve_share_name(str(tmp_path), read_only=True, hide=["x"]) == name
    async with manager.share(tmp_path, read_only=True, hide=["x"]) as shared:
        assert shared == name
    assert len(vm.calls) == 1


async def test_options_and_keywords_together_are_refused(manager: Manager, vm: FakeVM) -> None:
    with pytest.raises(InvalidOptions, match="read_only: pass it to AddOptions"):
        await manager.add(ONE, read_only=True)
    with pytest.raises(WrongType, match=r"readonly is no option of a share: pass one of .*; did you mean read_only\?"):
        await manager.add("/", readonly=True)  # type: ignore[call-arg]  # the mistake that is tested
    assert not vm.calls


# ---------------------------------------------------------------------- add meets remove


async def test_add_that_meets_a_remove_waits_and_starts_fresh(vm: FakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.hold = True
    removal = asyncio.create_task(manager.remove("0", owner="a"))
    await settle()
    adds = [asyncio.create_task(manager.add(ONE, owner=owner)) for owner in "ab"]
    await settle()
    assert kinds(vm) == [("add", "0"), ("remove", "0")]
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    vm.in_flight["1"].answer(FakeReply.SUCCEED)
    assert await asyncio.gather(*adds) == ["1", "1"]
    await removal
    assert vm.shares == {"1": ONE}


async def test_add_that_meets_a_remove_that_fails_joins_the_share(vm: FakeVM, manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    vm.hold = True
    removal = asyncio.create_task(manager.remove("0", owner="a"))
    await settle()
    add = asyncio.create_task(manager.add(ONE, owner="b"))
    await settle()
    vm.in_flight["0"].answer(FakeReply.FAIL)
    assert await add == "0"
    with pytest.raises(ComputeSystemError):
        await removal
    assert only(manager).owners == ("a", "b")


async def test_remove_that_meets_an_add_waits_for_it(vm: FakeVM, manager: Manager) -> None:
    vm.hold = True
    add = asyncio.create_task(manager.add(ONE, owner="a"))
    await settle()
    removal = asyncio.create_task(manager.remove("0", owner="a"))
    await settle()
    assert kinds(vm) == [("add", "0")]
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await settle()
    assert add.done()
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await removal
    assert not vm.shares


async def test_of_two_removes_for_one_reference_the_second_does_nothing(vm: FakeVM, manager: Manager) -> None:
    await manager.add(ONE)
    await asyncio.gather(manager.remove("0"), manager.remove("0"))
    assert kinds(vm) == [("add", "0"), ("remove", "0")]


# ---------------------------------------------------------------------- failure


async def test_a_failed_add_gives_everybody_the_error_and_the_next_starts_fresh(vm: FakeVM, manager: Manager) -> None:
    reason = ShareExists("there is another 0")
    vm.replies.append(reason)
    results = await asyncio.gather(*(manager.add(ONE) for _ in range(3)), return_exceptions=True)
    assert [result is reason for result in results] == [True] * 3
    assert not manager.shares()
    assert await manager.add(ONE) == "1"


async def test_an_error_of_any_other_kind_is_a_failure_too(vm: FakeVM, manager: Manager) -> None:
    vm.replies.append(ZeroDivisionError("a bug in a VM"))
    with pytest.raises(ZeroDivisionError):
        await manager.add(ONE)
    assert not manager.shares()


async def test_a_vm_that_cannot_even_be_called_is_a_failure(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(share: NamedShare) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(manager._engine.vm, "add_plan9", broken)
    with pytest.raises(ZeroDivisionError):
        await manager.add(ONE)
    assert not manager.shares()


async def test_a_failed_remove_keeps_the_last_reference_and_can_be_retried(vm: FakeVM, manager: Manager) -> None:
    name = await manager.add(ONE, owner="a")
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(ComputeSystemError):
        await manager.remove(name, owner="a")
    info = only(manager)
    assert (info.state, info.owners, info.orphan, info.busy) == (ShareState.ADDED, ("a",), False, None)
    assert isinstance(info.last_error, ComputeSystemError)
    await asyncio.sleep(2 * RETRY_LONGEST)
    assert len(vm.calls) == 2  # its holder decides, not the background
    await manager.remove(name, owner="a")
    assert not vm.shares
    assert not manager.shares()


@pytest.mark.parametrize("reason", [ShareNotFound("no such share"), ComputeSystemGone("no such VM")])
async def test_what_is_not_there_any_more_counts_as_removed(vm: FakeVM, manager: Manager, reason: Exception) -> None:
    name = await manager.add(ONE)
    vm.replies.append(reason)
    await manager.remove(name)
    assert not manager.shares()


async def test_adding_to_a_vm_that_is_gone_fails(vm: FakeVM, manager: Manager) -> None:
    vm.gone = True
    with pytest.raises(ComputeSystemGone):
        await manager.add(ONE)
    assert not manager.shares()


# ---------------------------------------------------------------------- policy


async def test_writable_shares_can_be_forbidden(vm: FakeVM) -> None:
    manager = Manager(vm, no_writable_file_shares=True)
    with pytest.raises(OperationDenied, match="pass read_only=True"):
        manager.resolve_share_name(WRITABLE)
    with pytest.raises(PermissionError):
        await manager.add(WRITABLE)
    with pytest.raises(OperationDenied):
        await manager.share(WRITABLE).__aenter__()
    assert not vm.calls
    assert not manager.shares()
    assert await manager.add(ONE) == "0"


# ---------------------------------------------------------------------- what is seen


async def test_shares_tells_all_there_is_to_know(vm: FakeVM) -> None:
    now = 1000.0
    manager = Manager(vm, clock=lambda: now)
    manager.resolve_share_name(ONE)
    now = 2000.0
    await manager.add(OTHER, owner="a")
    await manager.add(OTHER)
    now = 3000.0
    await manager.add(OTHER, owner="b")
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


async def test_shares_tells_of_one_name_or_of_one_owner(manager: Manager) -> None:
    await manager.add(ONE, owner="a")
    await manager.add(OTHER, owner="a")
    await manager.add(OTHER, owner="b")
    await manager.add(WRITABLE)

    def names(**of: str) -> list[str]:
        return [info.name for info in manager.shares(**of)]

    assert names(name="1") == ["1"]
    assert names(owner="a") == ["0", "1"]
    assert names(name="0", owner="b") == names(name="7") == names(owner="c") == []
