"""A share with an owner map: whose its files are for the guest, and on the host what the guest makes."""

from __future__ import annotations

import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import MODELS, one_of
from tests.root import require_root

from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fileserver.harness import Host

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


model = one_of(*[model for model in MODELS if model != "in-process"])


def owner(guest: NinePClient, path: str) -> tuple[int, int]:
    found = guest.stat(path)
    return found.uid, found.gid


def on_host(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


@pytest.fixture
def tree(host: Host) -> Host:
    """What a user 1000 of the host has, in a directory of its own, and one file of somebody else's."""
    require_root("files of several owners need root")
    (host.root / "directory").mkdir()
    os.symlink("file", host.root / "link")
    for name in ("file", "other"):
        (host.root / name).write_bytes(b"content")
    for name in (".", "directory", "file", "link"):
        os.chown(host.root / name, 1000, 100, follow_symlinks=False)
    os.chown(host.root / "other", 7, 8)
    return host


def test_files_of_the_one_owner_are_the_others_and_no_more(tree: Host) -> None:
    guest = tree.connect(tree.share(map_owner="1000/100:0/5"))
    assert {owner(guest, name) for name in ("", "directory", "file", "link")} == {(0, 5)}
    assert owner(guest, "other") == (7, 8)


def test_all_files_belong_to_one(tree: Host) -> None:
    guest = tree.connect(tree.share(map_owner="all:33/44"))
    assert {owner(guest, name) for name in ("", "directory", "file", "link", "other")} == {(33, 44)}


def made(guest: NinePClient, gid: int) -> list[str]:
    guest.clunk(guest.create("new", O.RDWR, 0o644, gid=gid))
    guest.mkdir("newdir", gid=gid)
    guest.symlink("x", "newlink", gid=gid)
    guest.mknod("newfifo", stat.S_IFIFO | 0o600, gid=gid)
    return ["new", "newdir", "newlink", "newfifo"]


def test_what_the_guest_makes_as_the_mapped_owner_is_shown_as_its_own(tree: Host) -> None:
    guest = tree.connect(tree.share(map_owner="1000/100:0/5"), n_uname=0)
    names = made(guest, 5)
    expected = (0, 5) if tree.model != "none" else (0, 0)  # there it is the server's user's, root, whatever is asked
    assert {owner(guest, name) for name in names} == {expected}
    if tree.model == "passthrough":
        assert {on_host(tree.root / name) for name in names} == {(1000, 100)}
    else:
        assert {on_host(tree.root / name) for name in names} == {(0, 0)}


def test_what_is_made_where_all_are_one_owners_belongs_to_the_owner_of_its_directory(tree: Host) -> None:
    guest = tree.connect(tree.share(map_owner="all:33"), n_uname=12)
    names = made(guest, 13)
    assert {owner(guest, name) for name in names} == {(33, 33)}
    hosts = {on_host(tree.root / name) for name in names}
    assert hosts == ({(1000, 100)} if tree.model == "passthrough" else {(0, 0)})
    assert not [name for name in os.listxattr(tree.root / "new") if name in ("user.virtfs.uid", "user.virtfs.gid")]


def test_a_change_of_owner_goes_by_the_map(tree: Host) -> None:
    guest = tree.connect(tree.share(map_owner="1000/100:0/5"))
    with guest.walked("other") as fid:
        guest.setattr(fid, uid=0, gid=5)
    assert owner(guest, "other") == ((7, 8) if tree.model == "none" else (0, 5))
    assert on_host(tree.root / "other") == ((1000, 100) if tree.model == "passthrough" else (7, 8))
    with guest.walked("file") as fid:
        guest.setattr(fid, gid=6)
    assert owner(guest, "file") == ((0, 5) if tree.model == "none" else (0, 6))


def test_where_all_are_one_owners_a_change_of_owner_changes_nothing(tree: Host) -> None:
    guest = tree.connect(tree.share(map_owner="all:33"))
    with guest.walked("file") as fid:
        guest.setattr(fid, uid=1, gid=2)
    assert owner(guest, "file") == (33, 33)
    assert on_host(tree.root / "file") == (1000, 100)
    with guest.walked("file") as fid:
        guest.setattr(fid, mode=0o640)
    assert stat.S_IMODE(guest.stat("file").mode) == 0o640
    assert owner(guest, "file") == (33, 33)


@pytest.mark.parametrize("model", ["mapped-xattr"])
def test_what_was_kept_of_a_guests_owner_is_the_guests_still(tree: Host) -> None:
    plain = tree.guest()
    with plain.walked("other") as fid:
        plain.setattr(fid, uid=1000, gid=100)
    assert owner(tree.connect(tree.share(map_owner="1000/100:0/5")), "other") == (1000, 100)
    assert owner(tree.connect(tree.share(map_owner="all:33")), "other") == (33, 33)
    assert owner(plain, "other") == (1000, 100)


@pytest.mark.parametrize("model", ["passthrough"])
def test_a_map_gives_a_guest_no_owner_of_the_host_that_it_did_not_have(tree: Host) -> None:
    guest = tree.connect(tree.share(map_owner="1000:0"), n_uname=0)
    guest.clunk(guest.create("asroot", O.RDWR, 0o4755))
    assert on_host(tree.root / "asroot") == (1000, 1000)
