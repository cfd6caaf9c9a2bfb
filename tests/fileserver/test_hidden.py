"""A share that hides names: for the guest they do not exist, however it asks and whatever is renamed."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.fileserver.harness import IN_AND_OUT, one_of

from uvmshare.errors import InvalidDocument
from uvmshare.fileserver.casefold import folds
from uvmshare.fileserver.mount.files.hidden import Hidden
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

HIDE = ("node_modules", "**/.env", "/a/secret", "*.key", "build/", "!/shown.key")
SECRET = b"what nobody may see"


model = one_of(*IN_AND_OUT)


def put(host: Host, *paths: str) -> None:
    for path in paths:
        made = host.root / path
        made.parent.mkdir(parents=True, exist_ok=True)
        if path.endswith("/"):
            made.mkdir()
        else:
            made.write_bytes(SECRET)


@pytest.fixture
def guest(host: Host) -> NinePClient:
    put(host, "node_modules/x", "sub/node_modules/x", ".env", "sub/.env", "a/secret", "a/plain", "id.key", "shown.key")
    put(host, "build/out", "sub/build", "b/plain", "sub/deep/er/file")
    return host.connect(host.share(hide=HIDE))


HIDDEN = ("node_modules", "node_modules/x", "sub/node_modules/x", ".env", "sub/.env", "a/secret", "id.key", "build/out")


def test_hidden_names_are_not_there(guest: NinePClient, refused: Refused) -> None:
    for path in HIDDEN:
        assert not guest.exists(path), path
        *above, name = path.encode().split(b"/")
        if above in ([], [b"a"], [b"sub"]):
            with refused(errno.ENOENT):
                guest.rpc(m.Twalk(guest.walk(b"/".join(above)), 900, (name,)))


def test_listings_leave_them_out(guest: NinePClient) -> None:
    fid = guest.open("", O.DIRECTORY)
    for count in (None, 60, 100):
        names = sorted(entry.name for entry in guest.readdir(fid, count=count))
        assert names == [b".", b"..", b"a", b"b", b"shown.key", b"sub"]
    assert sorted(guest.listdir("sub")) == [b"build", b"deep"]
    assert guest.listdir("a") == [b"plain"]


def test_every_offset_of_a_listing_leads_to_a_shown_name(guest: NinePClient) -> None:
    fid = guest.open("", O.DIRECTORY)
    every = guest.readdir(fid)
    for place, entry in enumerate(every):
        assert [each.name for each in guest.readdir_some(fid, entry.offset)] == [
            each.name for each in every[place + 1 :]
        ]


def test_what_is_shown_again_is_there(guest: NinePClient) -> None:
    assert guest.read_file("shown.key") == SECRET
    assert guest.read_file("sub/build") == SECRET


def test_a_long_walk_stops_before_what_is_hidden(guest: NinePClient) -> None:
    guest.send(m.Twalk(guest.root, 900, (b"sub", b"node_modules", b"x")))
    reply = guest.recv()[1]
    assert isinstance(reply, m.Rwalk)
    assert len(reply.qids) == 1
    guest.send(m.Twalk(guest.root, 900, (b"sub", b"..", b"node_modules")))
    reply = guest.recv()[1]
    assert isinstance(reply, m.Rwalk)
    assert len(reply.qids) == 2


MADE = (b"node_modules", b".env", b"new.key", b"id.key")


@pytest.mark.parametrize("name", MADE)
def test_nothing_with_a_hidden_name_is_made(host: Host, guest: NinePClient, refused: Refused, name: bytes) -> None:
    before = sorted(os.listdir(host.root))
    file = guest.walk("b/plain")
    for message in (
        m.Tlcreate(guest.walk(), name, O.RDWR, 0o644, 0),
        m.Tlcreate(guest.walk(), name, O.RDWR | O.EXCL, 0o644, 0),
        m.Tmkdir(guest.root, name, 0o755, 0),
        m.Tsymlink(guest.root, name, b"x", 0),
        m.Tmknod(guest.root, name, 0o010644, 0, 0, 0),
        m.Tmknod(guest.root, name, 0o100644, 0, 0, 0),
        m.Tlink(guest.root, file, name),
        m.Trename(file, guest.root, name),
        m.Trenameat(guest.walk("b"), b"plain", guest.root, name),
    ):
        with refused(errno.EACCES):
            guest.rpc(message)
    assert sorted(os.listdir(host.root)) == before
    assert (host.root / ".env").read_bytes() == SECRET


@pytest.mark.parametrize("name", [b"node_modules", b".env", b"id.key", b"absent.key", b"build"])
def test_hidden_names_are_neither_renamed_nor_removed(
    host: Host, guest: NinePClient, refused: Refused, name: bytes
) -> None:
    for message in (
        m.Trenameat(guest.root, name, guest.root, b"found"),
        m.Tunlinkat(guest.root, name, 0),
        m.Tunlinkat(guest.root, name, AT_REMOVEDIR),
    ):
        with refused(errno.ENOENT):
            guest.rpc(message)
    assert (host.root / "build" / "out").exists()


def test_names_that_are_hidden_for_directories_alone_are_free_for_files(
    host: Host, guest: NinePClient, refused: Refused
) -> None:
    with refused(errno.EACCES):
        guest.mkdir("b/build")
    guest.write_file("b/build", b"a file")
    for old, new in (("b/build", "a/build"), ("b/build", "b/other"), ("b/plain", "a/build")):
        with refused(errno.EXDEV):  # it may be a directory a moment later: mv(1) copies it
            guest.rename(old, new)
    assert guest.read_file("b/build") == b"a file"
    with refused(errno.EACCES):
        guest.rename("sub/deep", "b/build")
    with refused(errno.EACCES):  # the host has a directory of that name, which is hidden
        guest.write_file("build", b"a file")
    with refused(errno.EACCES):
        guest.rename("b/plain", "build")
    assert (host.root / "build" / "out").read_bytes() == SECRET


@pytest.mark.parametrize("model", ["in-process"])
def test_a_directory_does_not_become_what_a_file_may_be_between_the_look_and_the_rename(
    host: Host, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(host, "made/", "program")
    guest = host.connect(host.share(hide=("*.exe", "!*.exe/")))
    rename = os.rename

    def swapped(*args: Any, **more: Any) -> None:
        """Another mount of the guest's puts a file in the directory's place just then."""
        rename(host.root / "made", host.root / "away")
        rename(host.root / "program", host.root / "made")
        rename(*args, **more)

    monkeypatch.setattr(os, "rename", swapped)
    with refused(errno.ENOTDIR):
        guest.rename("made", "it.exe")
    assert not (host.root / "it.exe").exists()


def test_a_hidden_file_that_was_removed_is_not_reached_by_another_link_of_it(
    host: Host, guest: NinePClient, refused: Refused
) -> None:
    file = guest.walk("b/plain")
    os.link(host.root / "b" / "plain", host.outside / "backup")
    os.rename(host.root / "b" / "plain", host.root / "b" / "x.key")
    os.unlink(host.root / "b" / "x.key")  # " (deleted)" is what the kernel puts behind its path
    for request in (m.Tlopen(file, O.RDONLY), m.Tlink(guest.root, file, b"shown-again")):
        with refused(errno.ENOENT):
            guest.rpc(request)


def test_a_directory_that_holds_hidden_names_alone_is_not_empty(
    host: Host, guest: NinePClient, refused: Refused
) -> None:
    put(host, "full/.env")
    assert guest.listdir("full") == []
    with refused(errno.ENOTEMPTY):
        guest.rmdir("full")
    assert (host.root / "full" / ".env").exists()


def test_no_rename_of_a_guest_shows_what_a_path_hides(host: Host, guest: NinePClient, refused: Refused) -> None:
    for old, new in (("a", "c"), ("a", "sub/a"), ("b", "a2"), ("sub/deep", "deep")):
        if old != "a":
            guest.rename(old, new)
            continue
        with refused(errno.EXDEV):
            guest.rename(old, new)
    with refused(errno.EXDEV):  # it would hide what it holds
        os.rename(host.root / "a", host.root / "elsewhere")
        guest.rename("sub", "a")
    assert guest.read_file("elsewhere/secret") == SECRET  # the host has moved it


def test_a_name_below_what_no_path_hides_moves_freely(guest: NinePClient) -> None:
    guest.rename("sub", "renamed")
    assert not guest.exists("renamed/node_modules/x")
    guest.rename("a/plain", "a/other")
    guest.rename("a/other", "b/other")
    assert guest.read_file("b/other") == SECRET


def test_fids_below_what_the_host_hides_by_a_rename_lead_no_further(
    host: Host, guest: NinePClient, refused: Refused
) -> None:
    top, below, file = guest.walk("sub"), guest.walk("sub/deep"), guest.walk("sub/deep/er/file")
    opened = guest.open("sub/deep", O.DIRECTORY)
    os.rename(host.root / "sub", host.root / "build2")
    os.rename(host.root / "build2", host.root / "node_modules" / "sub")
    for message in (
        m.Twalk(top, 900, (b"deep",)),
        m.Twalk(below, 900, (b"er", b"file")),
        m.Tlopen(file, O.RDONLY),
        m.Treaddir(opened, 0, 8192),
        m.Tmkdir(below, b"new", 0o755, 0),
        m.Tsetattr(file, 1, 0o600, 0, 0, 0, 0, 0, 0, 0),
        m.Txattrwalk(file, 900, b""),
        m.Tunlinkat(below, b"er", AT_REMOVEDIR),
        m.Tlink(guest.root, file, b"found"),
        m.Trename(file, guest.root, b"found"),
        m.Tremove(file),
    ):
        with refused(errno.ENOENT):
            guest.rpc(message)
    assert (host.root / "node_modules/sub/deep/er/file").read_bytes() == SECRET


def test_an_open_directory_that_the_host_moves_to_where_more_is_hidden_is_not_read_on(
    host: Host, guest: NinePClient, refused: Refused
) -> None:
    put(host, "dir/secret")
    opened = guest.open("dir", O.DIRECTORY)
    assert b"secret" in [entry.name for entry in guest.readdir(opened)]
    os.rename(host.root / "a", host.root / "old")
    os.rename(host.root / "dir", host.root / "a")
    with refused(errno.ENOENT):
        guest.readdir(opened)
    assert guest.listdir("a") == []


def test_links_of_the_host_lead_nowhere_hidden(host: Host, guest: NinePClient) -> None:
    os.symlink("../.env", host.root / "b" / "link")
    assert guest.readlink("b/link") == b"../.env"
    assert not guest.exists("b/../.env")


def test_with_an_allow_list_both_hold(host: Host, guest: NinePClient) -> None:
    client = host.connect(host.share(allowed=("sub", ".env", "id.key"), hide=HIDE))
    assert client.listdir() == [b"sub"]
    assert sorted(client.listdir("sub")) == [b"build", b"deep"]
    assert not client.exists(".env")


def test_what_lies_deeper_than_a_path_can_say_is_out_of_reach(host: Host, guest: NinePClient, refused: Refused) -> None:
    fid = guest.walk()
    with refused(errno.ENAMETOOLONG):
        for _ in range(20):
            guest.rpc(m.Tmkdir(fid, b"d" * 250, 0o755, 0))
            guest.rpc(m.Twalk(fid, fid, (b"d" * 250,)))


def test_all_patterns_are_those_of_one_share(host: Host, guest: NinePClient) -> None:
    assert host.connect(host.share()).read_file(".env") == SECRET
    assert not guest.exists(".env")


@pytest.mark.parametrize("model", ["in-process"])
def test_a_name_that_is_not_listed_just_so_is_none_where_others_may_lead_to_a_file(
    host: Host, guest: NinePClient, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a host file system of which nobody can say whether it tells upper from lower case: look-ups are folded."""
    opening, looking = os.open, os.stat

    def found(path: Any, directory: int | None) -> Any:
        if not isinstance(path, bytes) or b"/" in path or directory is None:
            return path
        listed = {os.fsencode(name).lower(): os.fsencode(name) for name in os.listdir(f"/proc/self/fd/{directory}")}
        return listed.get(path.lower(), path)

    def folding_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        return opening(found(path, dir_fd), flags, mode, dir_fd=dir_fd)

    def folding_stat(path: Any, *, dir_fd: int | None = None, follow_symlinks: bool = True) -> os.stat_result:
        return looking(found(path, dir_fd), dir_fd=dir_fd, follow_symlinks=follow_symlinks)

    put(host, "Shown")
    monkeypatch.setattr("uvmshare.fileserver.mount.files.tree.folds", lambda directory: None)
    monkeypatch.setattr(os, "open", folding_open)
    monkeypatch.setattr(
        "uvmshare.fileserver.mount.files.tree.open_entry",
        lambda name, directory: folding_open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory),
    )
    monkeypatch.setattr(os, "stat", folding_stat)
    assert guest.read_file("Shown") == SECRET
    assert guest.read_file("sub/deep/er/file") == SECRET
    for name in (b".ENV", b"Node_Modules", b"ID.key2", b"ID.KEY", b"shown"):
        for message in (
            m.Twalk(guest.root, 900, (name,)),
            m.Tunlinkat(guest.root, name, 0),
            m.Trenameat(guest.root, name, guest.root, b"found"),
        ):
            with refused(errno.ENOENT):
                guest.rpc(message)
    for name in (b".ENV", b"Node_Modules", b"ID.KEY", b"shown"):
        with refused(errno.EACCES):
            guest.rpc(m.Tlcreate(guest.walk(), name, O.RDWR, 0o644, 0))
        with refused(errno.EACCES):
            guest.rpc(m.Trenameat(guest.root, b"shown.key", guest.root, name))
    guest.write_file("New", b"new")
    assert (host.root / "New").read_bytes() == b"new"


@pytest.mark.parametrize("model", ["in-process"])
def test_nothing_is_there_in_a_directory_where_upper_and_lower_case_are_one(
    host: Host, guest: NinePClient, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    inode = (host.root / "sub").stat().st_ino
    folds = "uvmshare.fileserver.mount.files.tree.folds"
    monkeypatch.setattr(folds, lambda directory: os.fstat(directory).st_ino == inode)
    assert guest.read_file("a/plain") == SECRET
    with guest.walked("sub") as fid:
        for message in (
            m.Twalk(fid, 900, (b"deep",)),
            m.Tmkdir(fid, b"new", 0o755, 0),
            m.Tlopen(fid, O.DIRECTORY),
            m.Tunlinkat(fid, b"build", 0),
        ):
            with refused(errno.ENOENT):
                guest.rpc(message)
    monkeypatch.setattr("uvmshare.fileserver.export.folds", lambda directory: True)
    with pytest.raises(InvalidDocument, match="one file has several names"):
        host.share(hide=HIDE)
    host.share()


def test_what_another_thread_forgets_in_between_is_found_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetting(dict[bytes, Any]):
        """Another thread clears it behind each look."""

        def __contains__(self, path: object) -> bool:
            found = super().__contains__(path)
            self.clear()
            return found

        def __getitem__(self, path: bytes) -> Any:
            found = super().__getitem__(path)
            self.clear()
            return found

    paths = (b"", b"a", b"sub", b"sub/deep", b"sub/deep/er")
    expected = {path: Hidden(HIDE).state(path) for path in paths}
    hidden = Hidden(HIDE)
    monkeypatch.setattr(hidden, "_known", Forgetting())
    for _ in range(3):
        for path in paths:
            assert hidden.state(path) == expected[path]
        assert hidden.state(b"sub/node_modules") is None
        assert hidden.state(b"sub/node_modules/x") is None


@pytest.mark.parametrize(
    ("kind", "expected"), [(0x4D44, True), (0x9123683E, False), (0x65735546, None), (0x6969, None)]
)
def test_a_file_system_says_by_its_kind_whether_names_are_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch, kind: int, *, expected: bool | None
) -> None:
    monkeypatch.setattr("uvmshare.fileserver.casefold.file_system_type", lambda directory: kind)
    descriptor = os.open(root, os.O_PATH)
    try:
        assert folds(descriptor) is expected
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(("flags", "expected"), [(0x80000, False), (0x40080000, True)])
def test_a_directory_says_itself_whether_it_folds(
    root: Path, monkeypatch: pytest.MonkeyPatch, flags: int, *, expected: bool
) -> None:
    monkeypatch.setattr("uvmshare.fileserver.casefold.file_system_type", lambda directory: 0xEF53)
    monkeypatch.setattr("fcntl.ioctl", lambda descriptor, request, given: flags.to_bytes(8, "little"))
    descriptor = os.open(root, os.O_PATH)
    try:
        assert folds(descriptor) is expected
    finally:
        os.close(descriptor)
