"""Directories and names: readdir, mkdir, symlink, link, mknod, rename, renameat, unlinkat of protocol.md."""

from __future__ import annotations

import errno
import gc
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

import pytest
from tests.fileserver.harness import MODELS
from tests.thinned import crossed

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR, QidType
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

DOTS = {b".", b".."}


def fill(directory: Path, count: int) -> set[bytes]:
    names = {f"entry-{n:05}-{'x' * (n % 60)}".encode() for n in range(count)}
    for name in names:
        os.close(os.open(bytes(directory) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    return names


# readdir


def test_an_empty_directory_has_its_dots(guest: NinePClient) -> None:
    entries = guest.readdir(guest.open("", O.DIRECTORY))
    assert {entry.name for entry in entries} == DOTS
    assert all(entry.type in {0, 4} and entry.qid.type == QidType.DIR for entry in entries)


def test_the_dots_name_the_directory_and_the_one_above_it(host: Host, guest: NinePClient) -> None:
    (host.root / "d" / "e").mkdir(parents=True)
    for path, above in (("", ""), ("d", ""), ("d/e", "d")):  # above the root is the root
        qids = {entry.name: entry.qid for entry in guest.readdir(guest.open(path, O.DIRECTORY))}
        assert qids[b"."].path == guest.stat(path).qid.path
        assert qids[b".."].path == guest.stat(above).qid.path


def test_entries_say_what_they_are(host: Host, guest: NinePClient) -> None:
    (host.root / "file").write_bytes(b"")
    (host.root / "directory").mkdir()
    os.symlink("x", host.root / "link")
    os.mkfifo(host.root / "fifo")
    guest.symlink("x", "guest's link")
    guest.mknod("guest's fifo", stat.S_IFIFO | 0o644)
    kinds = {
        b"file": 8,
        b"directory": 4,
        b"link": 10,
        b"fifo": 1,
        b"guest's link": 10,
        b"guest's fifo": 1,
    }
    entries = {entry.name: entry for entry in guest.entries()}
    assert entries.keys() == kinds.keys()
    for name, entry in entries.items():
        assert entry.type == kinds[name], name  # with 0, find(1) and overlayfs ask for the attributes of each
        found = guest.stat(name).qid
        assert (entry.qid.path, entry.qid.type) == (found.path, found.type), name


@pytest.mark.parametrize("model", ["mapped-xattr"])
@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (stat.S_IFCHR, 2),  # with rdev 0, a whiteout of overlayfs
        (stat.S_IFBLK, 6),
        (stat.S_IFSOCK, 12),
        (stat.S_IFLNK, 10),
        (stat.S_IFREG, 8),
        (stat.S_IFDIR, 8),  # a regular file stands for no directory
        (0, 8),
        (0o030000, 8),
    ],
)
def test_an_entry_has_the_type_that_the_hosts_attribute_gives_it(
    host: Host, guest: NinePClient, mode: int, kind: int
) -> None:
    """Another server of the same format may have written it."""
    path = host.root / "f"
    path.write_bytes(b"target")
    os.setxattr(path, "user.virtfs.mode", (mode | 0o640).to_bytes(4, "little"))
    (entry,) = guest.entries()
    assert entry.type == kind
    assert stat.S_IFMT(guest.stat("f").mode) >> 12 == kind
    assert entry.qid.type == guest.stat("f").qid.type


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("passthrough", None),
        *(pytest.param(model, None, marks=pytest.mark.long) for model in MODELS if model != "passthrough"),
        ("in-process", 4096),
        *(pytest.param(*each, marks=pytest.mark.long) for each in (("in-process", 300), ("passthrough", 100_000))),
    ],
)
def test_thousands_of_entries(host: Host, guest: NinePClient, count: int | None) -> None:
    names = fill(host.root, 10_000 if count == 100_000 else 3000)  # once more than two whole messages
    entries = guest.readdir(guest.open("", O.DIRECTORY), count=count)
    assert len(entries) == len(names) + 2
    assert {entry.name for entry in entries} == names | DOTS


def test_a_count_past_msize_gives_what_fits(host: Host) -> None:
    names = fill(host.root, 2000)
    guest = host.guest(msize=4096)
    fid, got, offset = guest.open("", O.DIRECTORY), [], 0
    while some := guest.readdir_some(fid, offset, 0xFFFFFFFF):
        got += [entry.name for entry in some]
        offset = some[-1].offset
    assert len(got) == len(names) + 2
    assert set(got) == names | DOTS


@pytest.mark.parametrize("count", [0, 1, 24])
def test_a_count_that_no_entry_fits_is_an_error_and_not_the_end(
    host: Host, guest: NinePClient, refused: Refused, count: int
) -> None:
    fill(host.root, 3)
    fid = guest.open("", O.DIRECTORY)
    guest.send(m.Treaddir(fid, 0, count))
    reply = guest.recv()[1]
    assert reply in (m.Rlerror(errno.EINVAL), m.Rlerror(errno.ENOSPC)) or (count == 0 and reply == m.Rreaddir(b""))
    assert len(guest.readdir(fid)) == 5


def test_every_offset_resumes_behind_its_entry(host: Host, guest: NinePClient) -> None:
    fill(host.root, 200)
    fid = guest.open("", O.DIRECTORY)
    entries = guest.readdir(fid)
    assert len({entry.offset for entry in entries}) == len(entries)
    assert all(0 < entry.offset < 1 << 31 for entry in entries), "a 32-bit program of the guest cannot take it"
    for at in (*range(0, 202, 13), 200, 3, 150):
        assert guest.readdir_some(fid, entries[at].offset) == entries[at + 1 :]
    assert guest.readdir_some(fid, entries[-1].offset) == []
    assert guest.readdir_some(fid, 0) == entries


def test_reading_from_the_start_again_shows_what_changed(host: Host, guest: NinePClient) -> None:
    fill(host.root, 10)
    fid = guest.open("", O.DIRECTORY)
    assert len(guest.readdir(fid)) == 12
    (host.root / "new").write_bytes(b"")
    (host.root / "entry-00000-").unlink()
    names = {entry.name for entry in guest.readdir(fid)}
    assert b"new" in names
    assert b"entry-00000-" not in names


def test_a_listing_goes_on_while_entries_come_and_go(host: Host, guest: NinePClient) -> None:
    # rm -r: whole parts of a directory are deleted while it is listed; nothing that stays may be missed or doubled.
    names = fill(host.root, 1000)
    keep = {name for name in names if int(name[6:11]) % 3 == 0}
    unwanted = names - keep
    fid, got, offset, new = guest.open("", O.DIRECTORY), [], 0, 0
    while some := guest.readdir_some(fid, offset, 1000):
        got += [entry.name for entry in some]
        offset = some[-1].offset
        for entry in some:
            if entry.name in unwanted:
                guest.unlink(entry.name)
        (host.root / f"new-{(new := new + 1)}").write_bytes(b"")
    assert len(got) == len(set(got))
    assert keep <= set(got) - DOTS
    assert set(got) - DOTS <= names | {f"new-{n}".encode() for n in range(new + 1)}


def test_deleting_everything_while_listing(host: Host, guest: NinePClient) -> None:
    names = fill(host.root, 500)
    fid, gone, offset = guest.open("", O.DIRECTORY), set(), 0
    while some := guest.readdir_some(fid, offset, 2000):
        offset = some[-1].offset
        for entry in some:
            if entry.name not in DOTS:
                guest.unlink(entry.name)
                gone.add(entry.name)
    assert gone == names
    assert guest.listdir() == []


def test_two_listings_of_one_directory_do_not_disturb_each_other(host: Host, guest: NinePClient) -> None:
    fill(host.root, 100)
    one, two = guest.open("", O.DIRECTORY), guest.open("", O.DIRECTORY)
    first = guest.readdir_some(one, 0, 500)
    whole = guest.readdir(two)
    assert guest.readdir_some(one, first[-1].offset, 1 << 20) == whole[len(first) :]


def test_an_offset_out_of_the_air_does_no_harm(host: Host, guest: NinePClient) -> None:
    fill(host.root, 10)
    fid = guest.open("", O.DIRECTORY)
    for offset in (1, 12345, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        guest.send(m.Treaddir(fid, offset, 8192))
        assert isinstance(guest.recv()[1], (m.Rreaddir, m.Rlerror))
    assert len(guest.readdir(fid)) == 12


# Names


@pytest.mark.parametrize(
    "name", [b"x" * 255, b"\xff\xfe", "grüße".encode(), b"new\nline", b" ", b"...", b"-rf", b"\\", b"a:b", b"\x01"]
)
def test_names_of_any_bytes(host: Host, guest: NinePClient, name: bytes) -> None:
    guest.write_file(name, b"content")
    assert os.listdir(bytes(host.root)) == [name]
    assert guest.listdir() == [name]
    assert guest.read_file(name) == b"content"
    guest.rename(name, b"plain")
    guest.rename(b"plain", name)
    guest.unlink(name)
    guest.mkdir(name)
    guest.clunk(guest.walk(name))
    guest.rmdir(name)
    guest.symlink(name, name)
    assert guest.readlink(name) == name


def test_a_host_directory_of_odd_names_is_listed_whole(host: Host, guest: NinePClient) -> None:
    names = {b"x" * 255, b"\xff" * 255, b"\xc3", b"a", "日本".encode(), b"\n"}
    for name in names:
        os.mkdir(bytes(host.root) + b"/" + name)
    assert set(guest.listdir()) == names
    assert set(host.guest(msize=4096).listdir()) == names


def creating(fid: int, name: bytes) -> list[m.Message]:
    """Every message that makes `name` in the directory `fid`; "f" and fid 7001 are a file in it."""
    return [
        m.Tlcreate(fid, name, O.WRONLY | O.CREATE, 0o644, 0),
        m.Tmkdir(fid, name, 0o755, 0),
        m.Tsymlink(fid, name, b"target", 0),
        m.Tmknod(fid, name, stat.S_IFIFO | 0o644, 0, 0, 0),
        m.Tmknod(fid, name, stat.S_IFREG | 0o644, 0, 0, 0),
        m.Tlink(fid, 7001, name),
        m.Trename(7001, fid, name),
        m.Trenameat(fid, b"f", fid, name),
    ]


NAMES_THAT_ARE_NONE: Final = {
    "256": (b"x" * 256, (errno.ENAMETOOLONG,)),
    "65535": (b"x" * 65535, (errno.ENAMETOOLONG,)),
    "empty": (b"", ()),
    "dot": (b".", ()),
    "dotdot": (b"..", ()),
    "slash": (b"/", ()),
    "a-b": (b"a/b", ()),
    "absolute": (b"/etc/x", ()),
    "above": (b"../x", ()),
    "trailing": (b"d/", ()),
    "through": (b"d/../x", ()),
}
CREATING: Final = {f"{type(message).__name__}{number}": number for number, message in enumerate(creating(0, b""))}


@pytest.mark.parametrize(("which", "name", "numbers"), crossed(CREATING, NAMES_THAT_ARE_NONE))
def test_names_that_are_none(
    *, host: Host, guest: NinePClient, refused: Refused, which: int, name: bytes, numbers: tuple[int, ...]
) -> None:
    (host.root / "f").write_bytes(b"")
    (host.root / "d").mkdir()
    guest.ask(m.Twalk(guest.root, 7001, (b"f",)), m.Rwalk)
    guest.ask(m.Twalk(guest.root, 7002), m.Rwalk)
    with refused(*numbers):
        guest.rpc(creating(7002, name)[which])
    assert sorted(guest.listdir()) == [b"d", b"f"]
    assert guest.listdir("d") == []


@pytest.mark.parametrize("name", [b"x" * 256, b"", b".", b"/", b"d/f", b"d/", b"./d"])
def test_walks_and_unlinks_of_names_that_are_none(
    host: Host, guest: NinePClient, refused: Refused, name: bytes
) -> None:
    (host.root / "d").mkdir()
    (host.root / "d" / "f").write_bytes(b"")
    for message in (
        m.Twalk(guest.root, 7001, (name,)),
        m.Tunlinkat(guest.root, name, 0),
        m.Tunlinkat(guest.root, name, AT_REMOVEDIR),
        m.Trenameat(guest.root, name, guest.root, b"moved"),
    ):
        with refused():
            guest.rpc(message)
    assert (host.root / "d" / "f").exists()


# Making things


def test_mkdir(host: Host, guest: NinePClient, refused: Refused) -> None:
    reply = guest.ask(m.Tmkdir(guest.root, b"d", 0o750, 0), m.Rmkdir)
    assert reply.qid == guest.stat("d").qid
    assert guest.stat("d").mode == stat.S_IFDIR | 0o750
    with refused(errno.EEXIST):
        guest.mkdir("d")
    with refused(errno.ENOTDIR, errno.ENOENT):
        guest.write_file("f", b"")
        fid = guest.walk("f")
        guest.rpc(m.Tmkdir(fid, b"d", 0o750, 0))


def test_symlink(guest: NinePClient, refused: Refused) -> None:
    reply = guest.ask(m.Tsymlink(guest.root, b"l", b"target", 0), m.Rsymlink)
    assert reply.qid == guest.stat("l").qid
    assert reply.qid.type == QidType.SYMLINK
    with refused(errno.EEXIST):
        guest.symlink("other", "l")
    assert guest.readlink("l") == b"target"


def test_hard_links(host: Host, guest: NinePClient, refused: Refused) -> None:
    guest.write_file("a", b"same")
    guest.mkdir("d")
    guest.link("a", "d/b")
    assert guest.stat("a").nlink == 2
    assert guest.stat("a").qid == guest.stat("d/b").qid
    guest.write_file("d/b", b"changed")
    assert guest.read_file("a") == b"changed"
    with refused(errno.EEXIST):
        guest.link("a", "d/b")
    with refused(errno.EPERM):
        guest.link("d", "e")
    guest.unlink("a")
    assert guest.read_file("d/b") == b"changed"


def test_a_hard_link_to_a_symlink_is_to_the_link_itself(host: Host, guest: NinePClient) -> None:
    guest.symlink("/etc/passwd", "l")
    guest.link("l", "l2")
    assert guest.readlink("l2") == b"/etc/passwd"
    assert guest.stat("l").nlink == 2
    os.symlink(host.outside / "canary", host.root / "made by the host")
    guest.link("made by the host", "l3")
    assert os.readlink(host.root / "l3") == str(host.outside / "canary")
    assert (host.outside / "canary").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("kind", "major", "minor"),
    [(stat.S_IFREG, 0, 0), (stat.S_IFIFO, 0, 0), (stat.S_IFSOCK, 0, 0), (stat.S_IFCHR, 1, 3), (stat.S_IFBLK, 7, 300)],
)
def test_nodes(
    *, host: Host, guest: NinePClient, model: str, refused: Refused, kind: int, major: int, minor: int
) -> None:
    device = kind in {stat.S_IFCHR, stat.S_IFBLK}
    if device and model == "none":
        guest.send(m.Tmknod(guest.root, b"n", kind | 0o640, major, minor, 0))
        assert isinstance(guest.recv()[1], (m.Rmknod, m.Rlerror))  # what the host's user may do
        return
    reply = guest.ask(m.Tmknod(guest.root, b"n", kind | 0o640, major, minor, 0), m.Rmknod)
    seen = guest.stat("n")
    assert reply.qid == seen.qid
    assert seen.mode == kind | 0o640
    if device:
        assert seen.rdev == os.makedev(major, minor)
    with refused(errno.EEXIST):
        guest.mknod("n", kind | 0o640, major, minor)
    guest.unlink("n")
    assert list(host.root.iterdir()) == []


@pytest.mark.parametrize("kind", [stat.S_IFDIR, stat.S_IFLNK, 0o150000])
def test_nodes_that_mknod_does_not_make(guest: NinePClient, refused: Refused, kind: int) -> None:
    with refused():
        guest.mknod("n", kind | 0o644)
    assert guest.listdir() == []


# Renaming


def rename(guest: NinePClient, how: str, old: str, new: str) -> None:
    """Rename with either message; both do the same."""
    if how == "Trenameat":
        guest.rename(old, new)
        return
    above, _, name = new.rpartition("/")
    with guest.walked(old) as fid, guest.walked(above) as directory:
        guest.ask(m.Trename(fid, directory, name.encode()), m.Rrename)


both = pytest.mark.parametrize("how", ["Trenameat", "Trename"])


@both
def test_rename(host: Host, guest: NinePClient, how: str) -> None:
    guest.mkdir("d")
    guest.write_file("f", b"1")
    rename(guest, how, "f", "g")
    rename(guest, how, "g", "d/h")
    assert (host.root / "d" / "h").read_bytes() == b"1"
    rename(guest, how, "d", "e")
    assert guest.read_file("e/h") == b"1"
    assert guest.listdir() == [b"e"]


@both
def test_rename_over_what_is_there(guest: NinePClient, how: str) -> None:
    guest.write_file("old", b"old")
    guest.write_file("new", b"new")
    rename(guest, how, "new", "old")
    assert guest.read_file("old") == b"new"
    guest.mkdir("d")
    guest.mkdir("empty")
    guest.write_file("d/f", b"")
    rename(guest, how, "d", "empty")
    assert sorted(guest.listdir()) == [b"empty", b"old"]
    assert guest.listdir("empty") == [b"f"]
    guest.symlink("old", "l")
    rename(guest, how, "l", "old")
    assert guest.readlink("old") == b"old"


@both
@pytest.mark.parametrize(
    ("old", "new", "number"),
    [
        ("d", "full", errno.ENOTEMPTY),
        ("d", "f", errno.ENOTDIR),
        ("f", "d", errno.EISDIR),
        ("d", "d/inside", errno.EINVAL),
        ("full", "full/x/y", errno.EINVAL),
    ],
)
def test_renames_that_cannot_be(
    *, host: Host, guest: NinePClient, refused: Refused, how: str, old: str, new: str, number: int
) -> None:
    for path in ("d", "full", "full/x"):
        guest.mkdir(path)
    guest.write_file("f", b"")
    with refused(number):
        rename(guest, how, old, new)
    assert sorted(guest.listdir()) == [b"d", b"f", b"full"]


def test_renames_of_what_is_not_there(guest: NinePClient, refused: Refused) -> None:
    with refused(errno.ENOENT):
        guest.rename("nothing", "x")


@both
def test_a_rename_onto_itself_changes_nothing(guest: NinePClient, how: str) -> None:
    guest.write_file("f", b"x")
    guest.link("f", "g")
    rename(guest, how, "f", "f")
    rename(guest, how, "f", "g")  # two names of one file: rename(2) leaves both
    assert sorted(guest.listdir()) == [b"f", b"g"]


def test_the_root_is_not_renamed(host: Host, guest: NinePClient, refused: Refused) -> None:
    guest.mkdir("d")
    with guest.walked() as root, guest.walked("d") as directory, refused():
        guest.rpc(m.Trename(root, directory, b"x"))
    assert host.root.is_dir()


def test_a_fid_follows_its_file_through_renames(guest: NinePClient) -> None:
    guest.mkdir("d")
    guest.write_file("f", b"x")
    with guest.walked("f") as fid, guest.walked("d") as directory:
        guest.ask(m.Trename(fid, directory, b"g"), m.Rrename)
        guest.ask(m.Trename(fid, guest.root, b"h"), m.Rrename)
        assert guest.getattr(fid).qid == guest.stat("h").qid
    assert sorted(guest.listdir()) == [b"d", b"h"]


@pytest.mark.parametrize("moved", ["b", "b/c"])
def test_directories_that_change_places_do_not_hold_each_other(host: Host, guest: NinePClient, moved: str) -> None:
    """The host takes out a directory that a fid was walked to, and the guest puts those above it in there."""
    (host.root / "a" / "b" / "c").mkdir(parents=True)
    a = guest.walk("a")
    b = guest.walk("b", start=a)
    c = guest.walk("c", start=b)
    inner = {"b": b, "b/c": c}[moved]
    (host.root / "a" / moved).rename(host.root / "out")
    gc.disable()  # what is held in a circle goes when this is run, and nobody knows when that is
    try:
        guest.ask(m.Trename(a, inner, b"a"), m.Rrename)
        assert (host.root / "out" / "a").is_dir()
        for fid in (a, b, c):
            qids = guest.ask(m.Twalk(fid, 7000, (b"..",) * 16), m.Rwalk).qids
            assert qids[-1] == guest.getattr(guest.root).qid
            guest.clunk(7000)
        for fid in (a, b, c):
            guest.clunk(fid)
        assert host.flags(host.root / "out") == host.flags(host.root / "out" / "a") == []
    finally:
        gc.enable()


def test_a_directory_that_was_renamed_is_removed_by_its_fid(host: Host, guest: NinePClient) -> None:
    (host.root / "a" / "b").mkdir(parents=True)
    (host.root / "d").mkdir()
    a = guest.walk("a")
    b = guest.walk("b", start=a)
    with guest.walked("d") as directory:
        guest.ask(m.Trename(a, directory, b"x"), m.Rrename)
    guest.ask(m.Tremove(b), m.Rremove)
    guest.ask(m.Tremove(a), m.Rremove)
    assert list((host.root / "d").iterdir()) == []


# Removing


def test_unlink_and_rmdir(host: Host, guest: NinePClient, refused: Refused) -> None:
    guest.write_file("f", b"")
    guest.mkdir("d")
    guest.write_file("d/f", b"")
    with refused(errno.EISDIR, errno.EPERM):
        guest.unlink("d")
    with refused(errno.ENOTDIR):
        guest.rmdir("f")
    with refused(errno.ENOTEMPTY):
        guest.rmdir("d")
    with refused(errno.ENOENT):
        guest.unlink("nothing")
    guest.unlink("d/f")
    guest.rmdir("d")
    guest.unlink("f")
    assert list(host.root.iterdir()) == []


@pytest.mark.parametrize("flags", [1, 0x100, 0xFFFFFFFF & ~AT_REMOVEDIR])
def test_unlink_with_flags_that_it_does_not_have(host: Host, guest: NinePClient, refused: Refused, flags: int) -> None:
    guest.write_file("f", b"")
    with guest.walked() as fid, refused(errno.EINVAL):
        guest.rpc(m.Tunlinkat(fid, b"f", flags))
    assert (host.root / "f").exists()


def test_an_unlinked_symlink_leaves_its_target(host: Host, guest: NinePClient) -> None:
    os.symlink(host.outside / "canary", host.root / "l")
    guest.unlink("l")
    assert (host.outside / "canary").exists()


def test_a_tree_copied_in_compared_and_deleted(host: Host, guest: NinePClient) -> None:
    files = {
        f"d{a}/e{b}/f{c}": os.urandom(a * 1000 + b * 100 + c) for a in range(4) for b in range(4) for c in range(4)
    }
    for a in range(4):
        guest.mkdir(f"d{a}")
        for b in range(4):
            guest.mkdir(f"d{a}/e{b}")
    for path, content in files.items():
        guest.write_file(path, content)
    assert {path: (host.root / path).read_bytes() for path in files} == files
    seen = dict(guest.walk_tree())
    assert {path.decode() for path, found in seen.items() if stat.S_ISREG(found.mode)} == files.keys()
    for name in sorted(seen, reverse=True):
        (guest.rmdir if stat.S_ISDIR(seen[name].mode) else guest.unlink)(name)
    assert list(host.root.iterdir()) == []
