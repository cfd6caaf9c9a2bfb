"""A share's directory is replaced: the file server adds the one that was meant, and no supervisor serves another."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare.directory import of_descriptor
from uvmshare.errors import HostPathReplaced
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.ledger import Entry, Ledger
from uvmshare.hcs.schema import Plan9Share
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.share.interfaces import Plan9Share as Wanted
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.client import Client
from uvmshare.testing.fakes import FakeJournal

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fileserver.takeover.harness import Place


def replace(place: Place, *names: str) -> None:
    place.shared.rename(place.directory / "aside")
    place.shared.mkdir()
    for name in names:
        (place.shared / name).touch()


def names_in(place: Place, share: str) -> list[bytes]:
    with Client.connect(place.address, share) as guest:
        return sorted(guest.listdir(""))


def test_a_path_that_was_replaced_after_it_was_asked_for_is_not_added(place: Place) -> None:
    server = place.start()
    vm = UtilityVM(server)
    wanted = AddOptions(place.shared)
    replace(place)
    with pytest.raises(HostPathReplaced, match="leads to another directory than when it was asked for"):
        place.run(vm.add_plan9(Wanted("0", wanted)))
    assert place.run(vm.list_plan9()) == {}
    found = AddOptions(place.shared)
    assert place.run(vm.add_plan9(Wanted("0", found))) == found.directory
    assert place.run(vm.add_plan9(Wanted("1", found.of_directory(None)))) == found.directory


def test_each_share_of_a_path_goes_on_with_its_own_directory_through_a_takeover(place: Place) -> None:
    server = place.start()
    manager = Manager(UtilityVM(server), journal=FakeJournal())
    old = place.run(manager.add_to_vm(AddOptions(place.shared), owner="job-1"))
    guest = place.guest(old)
    before = AddOptions(place.shared)
    replace(place, "new")
    new = place.run(manager.add_to_vm(AddOptions(place.shared), owner="job-2"))
    assert (names_in(place, old), names_in(place, new)) == ([b"file"], [b"new"])
    place.kill_under(server)
    assert {each.error for each in place.run(manager.recover())} == {None}
    assert guest.listdir("") == [b"file"]
    listed = place.run(UtilityVM(server).list_plan9())
    assert {name: each.directory for name, each in listed.items()} == {
        old: before.directory,
        new: AddOptions(place.shared).directory,
    }
    # Without a mount nobody has the old directory open, and the one at its path is not served in its place.
    guest.close()
    place.kill_under(server)
    report = place.run(manager.recover())
    (left,) = report.unsettled
    assert left.name == old
    assert isinstance(left.error, HostPathReplaced)
    assert names_in(place, new) == [b"new"]
    place.run(manager.release_owner("job-1"))
    assert list(place.run(UtilityVM(server).list_plan9())) == [new]


def test_a_table_of_an_earlier_version_is_taken_over(place: Place, tmp_path: Path) -> None:
    document = Plan9Share(name="0", access_name="0", path=os.path.realpath(tmp_path))
    export = Export.open(document, "none")
    short = export._short_root_id()
    assert export.has_root(short)
    assert export.has_root(export.root_id())
    assert not export.has_root(short[:-1])
    assert export.root_id() == of_descriptor(export.root)
    export.close()


def test_the_supervisor_of_an_earlier_version_leaves_shares_that_are_found(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    table = Ledger.read(str(place.run_dir / "shares"))
    assert table is not None
    (entry,) = table.entries
    place.kill(server)
    device, inode, handle = entry.root.split(":")[1:4]
    short = Entry(entry.serial, f"{device}:{inode}:{handle}", entry.document)
    Ledger(str(place.run_dir / "shares"), table.configuration, [short])
    server = place.start()
    listed: Any = place.run(UtilityVM(server).list_plan9())
    assert listed["0"].directory == AddOptions(place.shared).directory
    assert server.lost == ()
