"""What becomes of a share whose directory is replaced: an add joins what the path still leads to, and nothing else."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from uvmshare import directory
from uvmshare.errors import HostPathReplaced, RestoreFailed
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.recovery import Done
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeJournal, FakeReply, FakeVM, ListingFakeVM

if TYPE_CHECKING:
    from pathlib import Path

    from uvmshare.share.interfaces import NamedShare


class DirectoryVM(ListingFakeVM):
    """A VM that tells which directory it opened, and refuses another one than was asked for: as the file server."""

    def __init__(self) -> None:
        super().__init__()
        self.now: dict[str, str] = {}
        """What a path leads to, where that is not what the options say."""

    async def add_plan9(self, share: NamedShare) -> str | None:
        wanted = share.options.directory
        found = self.now.get(share.options.host_path, wanted)
        if not directory.may_be_same(wanted, found):
            raise HostPathReplaced(share.options.host_path)
        await super().add_plan9(share)
        self.shares[share.name] = share.options.of_directory(found)
        return found


def options_of(identity: str | None, path: str = "/srv/ws") -> AddOptions:
    return AddOptions.recalled(path, read_only=False).of_directory(identity)


BOOT = directory._BOOT
HERE = directory._NAMESPACE
OLD = f"{BOOT}:fe00:1:aa:{HERE}:20"
NEW = f"{BOOT}:fe00:1:bb:{HERE}:20"
"""The same inode number, given anew."""
MOUNTED = f"{BOOT}:fe00:1:aa:{HERE}:21"
"""The same directory, through another mount."""
ELSEWHERE = f"{BOOT}:fe00:1:aa:7:900"
"""The same directory and mount, seen in another mount namespace, where the mount has another number."""
UNMOUNTED = f"{BOOT}:fe00:1:aa::"
BEFORE_BOOT = "0-0:fe00:1:aa:7:900"


# Which directory it is


def test_what_replaced_a_directory_is_told_from_it(tmp_path: Path) -> None:
    path = tmp_path / "ws"
    seen: set[AddOptions] = set()
    for _ in range(3):  # inode numbers are given again at once
        path.mkdir()
        assert AddOptions(path) == AddOptions(path)
        seen.add(AddOptions(path))
        path.rmdir()
    assert len(seen) == 3


def test_a_directory_that_is_moved_away_and_back_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "ws"
    path.mkdir()
    before = AddOptions(path)
    path.rename(tmp_path / "aside")
    path.mkdir()
    assert AddOptions(path) != before
    path.rmdir()
    (tmp_path / "aside").rename(path)
    assert AddOptions(path) == before


def test_a_file_that_is_saved_by_a_rename_is_the_same_share(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("old")
    before = AddOptions(path)
    (tmp_path / "new").write_text("new")
    os.replace(tmp_path / "new", path)
    assert AddOptions(path) == before
    assert AddOptions(tmp_path, allowed_names=["settings"]) == before


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (OLD, OLD, True),
        (OLD, NEW, False),
        (OLD, MOUNTED, False),
        (OLD, ELSEWHERE, True),
        (NEW, ELSEWHERE, False),
        (OLD, UNMOUNTED, True),
        (OLD, None, True),
        (None, None, True),
        (OLD, "nonsense", False),
        (OLD, ":".join(OLD.split(":")[:4]), True),
    ],
)
def test_two_identities_are_compared_as_far_as_both_are_known(one: str | None, other: str | None, same: bool) -> None:
    assert directory.may_be_same(one, other) is same
    assert directory.may_be_same(other, one) is same


def test_what_was_written_down_says_less_after_a_boot_and_in_another_mount_namespace() -> None:
    assert directory.recalled(OLD) == OLD
    assert directory.recalled(ELSEWHERE) == UNMOUNTED
    assert [directory.recalled(each) for each in (BEFORE_BOOT, "nonsense", "", None)] == [None] * 4


def test_the_fate_of_a_directory_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ws"
    path.mkdir()
    identity = AddOptions(path).directory
    assert directory.fate_of(str(path), identity) == "there"
    path.rmdir()
    assert directory.fate_of(str(path), identity) == "gone"
    path.write_text("a file")
    assert directory.fate_of(str(path), identity) == "replaced"
    path.unlink()
    path.symlink_to(tmp_path)
    assert directory.fate_of(str(path), identity) == "replaced"
    assert directory.fate_of("x" * 300, identity) == "unknown"
    assert directory.fate_of(str(path), None) == "unknown"


# Adding


async def test_an_add_after_a_replacement_is_a_share_of_its_own_and_each_owner_releases_the_right_one() -> None:
    vm = DirectoryVM()
    manager = Manager(vm)
    first = await manager.add(options_of(OLD), owner="job-1")
    second = await manager.add(options_of(NEW), owner="job-2")
    assert first != second
    assert await manager.add(options_of(NEW), owner="job-3") == second
    assert manager.resolve_share_name(options_of(OLD)) == first
    assert manager.resolve_share_name(options_of(NEW)) == second
    assert await manager.release_owner("job-1") == (first,)
    assert list(vm.shares) == [second]
    # The one that was there before is put back: it is another share, of a name that was never used.
    assert await manager.add(options_of(OLD), owner="job-1") not in (first, second)


async def test_an_add_joins_no_share_through_another_mount() -> None:
    manager = Manager(DirectoryVM())
    first = await manager.add(options_of(OLD), owner="one")
    assert await manager.add(options_of(MOUNTED), owner="two") != first


async def test_a_name_that_was_told_is_of_the_directory_that_was_there_then() -> None:
    vm = DirectoryVM()
    manager = Manager(vm)
    name = manager.resolve_share_name(options_of(OLD))
    vm.now["/srv/ws"] = NEW
    with pytest.raises(HostPathReplaced):
        await manager.add(options_of(OLD))
    assert not vm.shares
    assert manager.resolve_share_name(options_of(NEW)) != name


async def test_adds_of_both_directories_that_are_under_way_at_once_do_not_meet() -> None:
    vm = DirectoryVM()
    vm.hold = True
    manager = Manager(vm)
    calls = [asyncio.ensure_future(manager.add(options_of(each), owner="o")) for each in (OLD, NEW, OLD)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    for call in tuple(vm.in_flight.values()):
        call.answer(FakeReply.SUCCEED)
    names = await asyncio.gather(*calls)
    assert names[0] == names[2] != names[1]


async def test_where_no_directory_is_known_equal_options_are_one_share_as_before() -> None:
    manager = Manager(FakeVM())
    first = await manager.add(options_of(None), owner="one")
    assert await manager.add(options_of(None), owner="two") == first
    assert await manager.add(options_of(None, "/srv/other"), owner="two") != first


# After a restart


async def restarted(manager: Manager, vm: FakeVM, journal: FakeJournal) -> Manager:
    await manager.detach()
    return Manager(vm, journal=journal)


async def test_after_a_restart_an_add_joins_the_directory_that_it_joined_before() -> None:
    vm, journal = DirectoryVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    old = await manager.add(options_of(OLD), owner="job-1")
    new = await manager.add(options_of(NEW), owner="job-2")
    manager = await restarted(manager, vm, journal)
    assert {each.done for each in await manager.recover()} == {Done.KEPT}
    assert await manager.add(options_of(OLD), owner="job-3") == old
    assert await manager.add(options_of(NEW), owner="job-3") == new


def forget_directories(journal: FakeJournal) -> None:
    """Have the journal say what one of an earlier uvmshare says, or what one says after a boot."""
    for name, share in journal.state.shares.items():
        journal.state.shares[name] = replace(share, options=options_of(None))


async def test_a_journal_that_knows_no_directories_learns_them_of_a_vm_that_tells() -> None:
    vm, journal = DirectoryVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    name = await manager.add(options_of(OLD), owner="job-1")
    await manager.detach()
    forget_directories(journal)
    manager = Manager(vm, journal=journal)
    await manager.recover()
    assert manager.shares()[0].options == options_of(OLD)
    assert await manager.add(options_of(OLD), owner="job-1") == name
    assert await manager.add(options_of(NEW), owner="job-2") != name


async def test_what_nobody_can_tell_the_directory_of_is_joined_by_nobody_who_knows_one() -> None:
    vm, journal = FakeVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    name = await manager.add(options_of(None), owner="job-1")
    manager = await restarted(manager, vm, journal)
    assert await manager.add(options_of(NEW), owner="job-2") != name


async def test_after_a_boot_a_share_is_what_its_path_leads_to_then_and_keeps_its_name() -> None:
    vm, journal = DirectoryVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    name = await manager.add(options_of(OLD), owner="job-1")
    await manager.detach()
    forget_directories(journal)  # what AddOptions.recalled makes of another boot's
    vm.shares.clear()
    vm.now["/srv/ws"] = NEW
    manager = Manager(vm, journal=journal)
    report = await manager.recover(vm_is_new=True)
    assert [(each.name, each.done) for each in report] == [(name, Done.ADDED_AGAIN)]
    assert journal.state.shares[name].options == options_of(NEW)
    assert await manager.add(options_of(NEW), owner="job-1") == name
    # Whoever knows no directory, of an earlier process, means the one that is there.
    assert await manager.add(options_of(None), owner="job-2") == name


async def test_a_name_that_was_told_before_a_boot_is_kept() -> None:
    vm, journal = DirectoryVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    await manager.recover()
    name = manager.resolve_share_name(options_of(OLD))
    await manager.detach()
    forget_directories(journal)
    manager = Manager(vm, journal=journal)
    await manager.recover(vm_is_new=True)
    assert manager.resolve_share_name(options_of(NEW)) == name
    assert await manager.add(options_of(NEW), owner="job-1") == name
    assert journal.state.shares[name].options == options_of(NEW)


async def test_a_share_of_a_daemon_in_another_mount_namespace_is_joined() -> None:
    vm, journal = DirectoryVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    name = await manager.add(options_of(UNMOUNTED), owner="job-1")
    manager = await restarted(manager, vm, journal)
    await manager.recover()
    assert await manager.add(options_of(OLD), owner="job-1") == name
    assert await manager.add(options_of(MOUNTED), owner="job-1") != name


async def test_a_lost_share_whose_directory_was_replaced_is_not_added_as_another_one() -> None:
    vm, journal = DirectoryVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    name = await manager.add(options_of(OLD), owner="job-1")
    vm.shares.clear()
    vm.now["/srv/ws"] = NEW
    report = await manager.recover()
    assert isinstance(report.unsettled[0].error, HostPathReplaced)
    (info,) = manager.shares()
    assert (info.name, info.state, info.owners) == (name, ShareState.PENDING, ("job-1",))
    assert isinstance(info.last_error, HostPathReplaced)
    assert not vm.shares
    assert await manager.add(options_of(NEW), owner="job-2") != name
    # It is put back: so is the share.
    vm.now.clear()
    await manager.recover()
    assert vm.shares[name] == options_of(OLD)


async def test_recovery_sees_that_the_vm_has_another_directory_under_a_name() -> None:
    vm, journal = DirectoryVM(), FakeJournal()
    manager = Manager(vm, journal=journal)
    name = await manager.add(options_of(OLD), owner="job-1")
    vm.shares[name] = options_of(NEW)
    (found,) = (await manager.recover()).shares
    assert found.done is Done.ADDED_AGAIN
    assert vm.shares[name] == options_of(OLD)


# Saved and restored


async def saved_of(path: Path) -> tuple[DirectoryVM, bytes]:
    vm = DirectoryVM()
    manager = Manager(vm)
    await manager.add(AddOptions(path), owner="job-1")
    return vm, manager.save()


async def test_a_replaced_directory_is_not_restored_to_another_vm(tmp_path: Path) -> None:
    path = tmp_path / "ws"
    path.mkdir()
    _, document = await saved_of(path)
    path.rmdir()
    path.mkdir()
    vm = DirectoryVM()
    with pytest.raises(RestoreFailed) as caught:
        await Manager.restore(document, vm)
    assert isinstance(caught.value.errors["0"], HostPathReplaced)
    assert not vm.shares


async def test_a_vm_that_has_the_replaced_directory_keeps_it_when_it_is_restored(tmp_path: Path) -> None:
    path = tmp_path / "ws"
    path.mkdir()
    before = AddOptions(path)
    vm, document = await saved_of(path)
    path.rmdir()
    path.mkdir()
    manager = await Manager.restore(document, vm)
    assert vm.shares == {"0": before}
    assert await manager.add(AddOptions(path), owner="job-2") == "1"
    assert await manager.add(before, owner="job-2") == "0"


async def test_what_was_saved_on_another_host_or_boot_is_what_the_path_leads_to(tmp_path: Path) -> None:
    path = tmp_path / "ws"
    path.mkdir()
    identity = AddOptions(path).directory
    _, document = await saved_of(path)
    assert identity is not None
    moved = document.replace(identity.encode(), identity.replace(BOOT, "another-boot").encode())
    assert moved != document
    path.rmdir()
    path.mkdir()
    vm = DirectoryVM()
    manager = await Manager.restore(moved, vm)
    assert await manager.add(AddOptions(path), owner="job-2") == "0"
