"""A share's directory is replaced: the file server adds the one that was meant, and no supervisor serves another."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from uvmshare.directory import of_descriptor
from uvmshare.errors import HostPathReplaced, InvalidDocument, OperationDenied
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.rundir.sharetable import ShareTable, TakenShare
from uvmshare.hcs.schema import Plan9Share
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.client import NinePClient
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
    with NinePClient.connect(place.address, share) as guest:
        return sorted(guest.listdir(""))


def test_a_path_that_was_replaced_after_it_was_asked_for_is_not_added(place: Place) -> None:
    server = place.start()
    wanted = AddOptions(place.shared)
    replace(place)
    with pytest.raises(HostPathReplaced, match="leads to another directory than when it was asked for"):
        place.run(server.add_plan9(NamedShare("0", wanted)))
    assert place.run(server.list_plan9()) == {}
    found = AddOptions(place.shared)
    assert place.run(server.add_plan9(NamedShare("0", found))) == found.directory
    assert place.run(server.add_plan9(NamedShare("1", found.of_directory(None)))) == found.directory


def test_each_share_of_a_path_goes_on_with_its_own_directory_through_a_takeover(place: Place) -> None:
    server = place.start()
    manager = Manager(server, journal=FakeJournal())
    old = place.run(manager.add(AddOptions(place.shared), owner="job-1"))
    guest = place.guest(old)
    before = AddOptions(place.shared)
    replace(place, "new")
    new = place.run(manager.add(AddOptions(place.shared), owner="job-2"))
    assert (names_in(place, old), names_in(place, new)) == ([b"file"], [b"new"])
    place.kill_under(server)
    assert {each.error for each in place.run(manager.recover())} == {None}
    assert guest.listdir("") == [b"file"]
    listed = place.run(server.list_plan9())
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
    assert list(place.run(server.list_plan9())) == [new]


def test_a_table_of_an_earlier_version_is_taken_over(place: Place, tmp_path: Path) -> None:
    document = Plan9Share(name="0", access_name="0", path=os.path.realpath(tmp_path))
    export = Export.open(document, "none")
    short = export._short_root_id()
    assert export.has_root(short)
    assert export.has_root(export.root_id())
    assert not export.has_root(short[:-1])
    assert export.root_id() == of_descriptor(export.root)
    export.close()


def test_what_is_hidden_stays_so_through_a_takeover_and_for_the_mounts_that_come_after(place: Place) -> None:
    for name in ("shown", "x.key"):
        (place.shared / name).touch()
    server = place.start()
    manager = Manager(server, journal=FakeJournal())
    options = AddOptions(place.shared, hide=["*.key"], map_owner="all:7")
    name = place.run(manager.add(options, owner="job"))
    guest = place.guest(name)
    place.kill_under(server)
    assert {each.error for each in place.run(manager.recover())} == {None}
    assert place.run(server.list_plan9()) == {name: options}
    assert b"x.key" not in guest.listdir("")
    assert b"x.key" not in names_in(place, name)
    with NinePClient.connect(place.address, name) as another:
        assert not another.exists("x.key")
        assert (another.stat("shown").uid, another.stat("shown").gid) == (7, 7)


def test_a_table_that_knows_nothing_of_hiding_is_read_and_the_next_is_not_by_who_knows_that_one(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.kill(server)
    path = place.run_dir / "shares"
    line, rest = path.read_bytes().split(b"\n", 1)
    older = line[11:].replace(b'"version":2', b'"version":1')
    assert older != line[11:]
    path.write_bytes(b"+ %08x %s\n%s" % (zlib.crc32(older), older, rest))
    server = place.start()
    listed: Any = place.run(server.list_plan9())
    assert (listed["0"].hide, listed["0"].map_owner) == ((), None)
    assert b'"version":2' in path.read_bytes()


def test_a_supervisor_of_an_earlier_version_is_not_asked_to_hide(place: Place) -> None:
    """It would pass over what it does not know, and show all."""
    server = place.start()
    server._link.greeting = msgspec.structs.replace(server._link.greeting, can_hide=False)
    for more in ({"hide": ["x"]}, {"map_owner": "1:2"}):
        with pytest.raises(OperationDenied, match="started by an earlier uvmshare"):
            place.run(server.add_plan9(NamedShare("0", AddOptions(place.shared, **more))))
    assert place.run(server.list_plan9()) == {}
    place.run(server.add_plan9(NamedShare("0", AddOptions(place.shared))))


@pytest.mark.parametrize(
    ("unchecked", "wrong"),
    [
        ({"hide": ("a//b",)}, "a part that no path has"),
        ({"hide": ("x",) * 1000}, "more than 256 patterns"),
        ({"map_owner": "x"}, "has no colon"),
    ],
)
def test_a_supervisor_checks_what_it_is_to_hide_and_map(place: Place, unchecked: dict[str, Any], wrong: str) -> None:
    server = place.start()
    options = AddOptions.recalled(str(place.shared), read_only=False, **unchecked)
    with pytest.raises(InvalidDocument, match=f"share 0: .*{wrong}"):
        place.run(server.add_plan9(NamedShare("0", options)))


def test_the_supervisor_of_an_earlier_version_leaves_shares_that_are_found(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    table = ShareTable.read(str(place.run_dir / "shares"))
    assert table is not None
    (entry,) = table.entries
    place.kill(server)
    device, inode, handle = entry.root.split(":")[1:4]
    short = TakenShare(entry.serial, f"{device}:{inode}:{handle}", entry.document)
    ShareTable(str(place.run_dir / "shares"), table.configuration, [short])
    server = place.start()
    listed: Any = place.run(server.list_plan9())
    assert listed["0"].directory == AddOptions(place.shared).directory
    assert server.lost == ()
