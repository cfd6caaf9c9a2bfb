"""A share with an allow-list: other names do not exist, and the names of its directory are fixed."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import IN_AND_OUT, one_of
from tests.thinned import by_type

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR, SetattrValid
from uvmshare.ninep.constants import OpenFlag as O
from uvmshare.ninep.types import decode_entries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


model = one_of(*IN_AND_OUT)


ALLOWED = ("allowed", "absent", "directory", "grüße", "link")
NEW = 7000


@pytest.fixture
def restricted(host: Host) -> NinePClient:
    """A guest of a share in which "other", "hidden" and what they hold are left out."""
    for name in ("allowed", "other", "grüße"):
        (host.root / name).write_bytes(name.encode())
    for name in ("directory", "hidden"):
        (host.root / name).mkdir()
        (host.root / name / "inner").write_bytes(b"inner")
    os.symlink("other", host.root / "link")
    return host.connect(host.share(allowed=ALLOWED))


def test_listings_are_filtered(restricted: NinePClient) -> None:
    fid = restricted.open("", O.DIRECTORY)
    for count in (None, 60, 100):
        names = [entry.name for entry in restricted.readdir(fid, count=count)]
        assert sorted(names) == sorted([b".", b"..", b"allowed", b"directory", "grüße".encode(), b"link"])


@pytest.mark.parametrize(
    "names",
    [
        (b"other",),
        (b"hidden",),
        (b"hidden", b"inner"),
        (b"ALLOWED",),
        (b"allowed\xff",),
        (b"absent",),
        (b"directory", b"..", b"other"),
        (b"allowed", b"..", b"other"),
        (b"link", b"..", b"other"),
        (b"..", b"other"),
    ],
)
def test_other_names_are_not_there(restricted: NinePClient, refused: Refused, names: tuple[bytes, ...]) -> None:
    restricted.send(m.Twalk(restricted.root, NEW, names))
    reply = restricted.recv()[1]
    assert reply == m.Rlerror(errno.ENOENT) or (isinstance(reply, m.Rwalk) and len(reply.qids) < len(names))
    with refused(errno.EBADF):
        restricted.rpc(m.Tgetattr(NEW, 0))


def test_allowed_files_are_read_and_written(host: Host, restricted: NinePClient) -> None:
    assert restricted.read_file("allowed") == b"allowed"
    restricted.write_file("allowed", b"changed")
    assert (host.root / "allowed").read_bytes() == b"changed"
    with restricted.walked("grüße") as fid:
        restricted.setattr(fid, size=2, mode=0o600)
    assert (host.root / "grüße").stat().st_size == 2


def test_a_file_that_comes_later_is_there_then(host: Host, restricted: NinePClient, refused: Refused) -> None:
    with refused(errno.ENOENT):
        restricted.rpc(m.Twalk(restricted.root, NEW, (b"absent",)))
    (host.root / "absent").write_bytes(b"now")
    assert restricted.read_file("absent") == b"now"


def test_a_link_among_them_is_only_a_link(restricted: NinePClient, refused: Refused) -> None:
    assert restricted.readlink("link") == b"other"
    with refused():
        restricted.open("link")


def test_a_directory_among_them_is_whole(host: Host, restricted: NinePClient) -> None:
    assert restricted.listdir("directory") == [b"inner"]
    restricted.write_file("directory/new", b"x")
    restricted.rename("directory/new", "directory/other")
    restricted.unlink("directory/inner")
    assert restricted.listdir("directory") == [b"other"]
    assert (host.root / "other").read_bytes() == b"other"


FILE, DIRECTORY, INNER, ROOT = 7001, 7002, 7003, 0

CHANGES = [
    *(
        message
        for name in (b"allowed", b"absent", b"other", b"new")
        for message in (
            m.Tmkdir(ROOT, name, 0o755, 0),
            m.Tsymlink(ROOT, name, b"target", 0),
            m.Tmknod(ROOT, name, stat.S_IFREG | 0o644, 0, 0, 0),
            m.Tmknod(ROOT, name, stat.S_IFIFO | 0o644, 0, 0, 0),
            m.Tlink(ROOT, FILE, name),
            m.Trename(INNER, ROOT, name),
            m.Trenameat(DIRECTORY, b"inner", ROOT, name),
            m.Trenameat(ROOT, name, DIRECTORY, b"new"),
            m.Trenameat(ROOT, b"allowed", ROOT, name),
            m.Tunlinkat(ROOT, name, 0),
        )
    ),
    m.Trename(FILE, ROOT, b"absent"),
    m.Trename(FILE, DIRECTORY, b"new"),
    m.Tunlinkat(ROOT, b"hidden", AT_REMOVEDIR),
    m.Tunlinkat(ROOT, b"directory", AT_REMOVEDIR),
    m.Tremove(FILE),
    m.Tremove(DIRECTORY),
]


@pytest.mark.parametrize("changes", by_type(CHANGES).values(), ids=by_type(CHANGES))
def test_the_names_of_the_directory_are_fixed(
    *,
    host: Host,
    restricted: NinePClient,
    refused: Refused,
    changes: list[m.Message],
    snapshot: Callable[[Path], object],
) -> None:
    before = snapshot(host.root)
    for fid, names in ((FILE, (b"allowed",)), (DIRECTORY, (b"directory",)), (INNER, (b"directory", b"inner"))):
        restricted.ask(m.Twalk(ROOT, fid, names), m.Rwalk)
    for message in changes:
        with refused(errno.EACCES):
            restricted.rpc(message)
        assert snapshot(host.root) == before


@pytest.mark.parametrize("name", [b"absent", b"other", b"new"])
@pytest.mark.parametrize("flags", [O.WRONLY, O.RDWR | O.EXCL, O.RDWR | O.TRUNC])
def test_nothing_is_created_in_it(
    *,
    host: Host,
    restricted: NinePClient,
    refused: Refused,
    name: bytes,
    flags: int,
    snapshot: Callable[[Path], object],
) -> None:
    before = snapshot(host.root)
    with refused(errno.EACCES, errno.ENOENT):
        restricted.create(name, flags)
    assert snapshot(host.root) == before


# The directory itself


@pytest.mark.parametrize("valid", [int(bit) for bit in SetattrValid])
def test_the_directorys_own_attributes_are_not_the_guests(
    *, host: Host, restricted: NinePClient, refused: Refused, valid: int, snapshot: Callable[[Path], object]
) -> None:
    before = snapshot(host.root)
    clone, above = restricted.walk(), restricted.walk("directory", start=ROOT)
    restricted.ask(m.Twalk(above, above, (b"..",)), m.Rwalk)
    for fid in (ROOT, clone, above, restricted.open("", O.DIRECTORY)):
        with refused(errno.EPERM):
            restricted.rpc(m.Tsetattr(fid, valid, 0, 1, 1, 0, 5, 5, 5, 5))
    assert snapshot(host.root) == before


@pytest.mark.parametrize("name", [b"user.own", b"system.posix_acl_access", b"trusted.x", b"user.virtfs.uid"])
def test_the_directorys_extended_attributes_are_neither_told_nor_set(
    *, host: Host, restricted: NinePClient, refused: Refused, name: bytes
) -> None:
    os.setxattr(host.root, "user.own", b"the host's")
    os.setxattr(host.root, "user.virtfs.note", b"the host's")
    before = sorted(os.listxattr(host.root))
    assert restricted.ask(m.Txattrwalk(ROOT, NEW, b""), m.Rxattrwalk).size == 0
    assert restricted.read(NEW, 0, 100) == b""
    restricted.ask(m.Tclunk(NEW), m.Rclunk)
    with refused(errno.ENODATA):
        restricted.rpc(m.Txattrwalk(ROOT, NEW, name))
    for size, flags in ((1, 0), (0, os.XATTR_REPLACE)):
        fid = restricted.walk()
        with refused(errno.EPERM):
            restricted.rpc(m.Txattrcreate(fid, name, size, flags))
        restricted.clunk(fid)
    assert sorted(os.listxattr(host.root)) == before


def everything_told(guest: NinePClient) -> tuple[object, ...]:
    """All that a guest is told of the root: attributes, qids, and its listing with every cookie."""
    fid = guest.open("", O.DIRECTORY)
    with guest.walked("directory") as below:
        above = guest.ask(m.Twalk(below, NEW, (b"..",)), m.Rwalk).qids
    guest.ask(m.Tclunk(NEW), m.Rclunk)
    told = guest.getattr(ROOT), guest.readdir(fid), above
    guest.clunk(fid)
    return told


def test_nothing_is_told_of_other_names_that_come_and_go(host: Host, restricted: NinePClient) -> None:
    before = everything_told(restricted)
    for name in ("a", "new", "zz" * 100):
        (host.root / name).mkdir()
        (host.root / f"{name}.txt").write_bytes(b"x" * 10000)
        assert everything_told(restricted) == before
    (host.root / "other").unlink()
    os.setxattr(host.root, "user.x", b"1")
    os.utime(host.root)
    assert everything_told(restricted) == before
    told = restricted.getattr(ROOT)
    assert (told.nlink, told.size, told.blocks) == (1, 0, 0)


def test_mode_and_owner_are_told_since_the_guests_kernel_decides_by_them(host: Host, restricted: NinePClient) -> None:
    host.root.chmod(0o711)
    found, told = host.root.stat(), restricted.getattr(ROOT)
    assert (told.mode, told.uid, told.gid) == (found.st_mode, found.st_uid, found.st_gid)


def test_the_times_tell_of_allowed_names_that_come_go_and_are_replaced(host: Host, restricted: NinePClient) -> None:
    def told() -> tuple[int, int]:
        found = restricted.getattr(ROOT)
        return found.mtime_sec, found.mtime_nsec

    times = [told()]
    (host.root / "absent").write_bytes(b"now")
    times.append(told())
    (host.root / "other").rename(host.root / "allowed")
    times.append(told())
    (host.root / "absent").unlink()
    times.append(told())
    assert times == sorted(set(times))
    assert told() == times[-1]


def test_a_listing_goes_on_where_it_was_while_names_come_and_go(host: Host, restricted: NinePClient) -> None:
    fid = restricted.open("", O.DIRECTORY)
    entries = {entry.name: entry for entry in restricted.readdir(fid)}
    (host.root / "allowed").unlink()
    (host.root / "absent").write_bytes(b"")
    reply = restricted.ask(m.Treaddir(fid, entries[b"directory"].offset, 4096), m.Rreaddir)
    assert [entry.name for entry in decode_entries(bytes(reply.data))] == ["grüße".encode(), b"link"]
    assert entries[b"directory"].qid.path == (host.root / "directory").stat().st_ino


def test_a_listing_needs_room_for_an_entry(restricted: NinePClient, refused: Refused) -> None:
    fid = restricted.open("", O.DIRECTORY)
    with refused(errno.EINVAL):
        restricted.rpc(m.Treaddir(fid, 0, 10))
    for offset in (7, 8, 1 << 20):
        assert restricted.ask(m.Treaddir(fid, offset, 4096), m.Rreaddir).data == b""


# What leaves the list without leaving the directory


def test_what_the_host_moves_off_the_list_has_left_the_share(
    host: Host, restricted: NinePClient, refused: Refused
) -> None:
    (host.root / "directory" / "deep").mkdir()
    (host.root / "directory" / "deep" / "file").write_bytes(b"")
    above, deep, file = restricted.walk("directory"), restricted.walk("directory/deep"), restricted.walk("allowed")
    listing = restricted.open("directory/deep", O.DIRECTORY)
    (host.root / "directory" / "deep").rename(host.root / "hidden" / "deep")
    (host.root / "directory").rename(host.root / "moved")
    (host.root / "allowed").rename(host.root / "allowed (deleted)")
    (host.root / "hidden" / "deep" / "secret").write_bytes(b"")
    for message in (
        m.Twalk(deep, NEW, (b"secret",)),
        m.Twalk(above, NEW, (b"inner",)),
        m.Tlopen(deep, O.DIRECTORY),
        m.Treaddir(listing, 0, 4096),
        m.Tlcreate(deep, b"new", O.WRONLY, 0o644, 0),
        m.Tmkdir(deep, b"new", 0o755, 0),
        m.Tunlinkat(deep, b"secret", 0),
        m.Tsetattr(deep, SetattrValid.MODE, 0o700),
        m.Txattrwalk(deep, NEW, b""),
        m.Tlopen(file, O.RDWR),
        m.Tsetattr(file, SetattrValid.SIZE, size=0),
    ):
        with refused(errno.ENOENT):
            restricted.rpc(message)
    assert len(restricted.ask(m.Twalk(deep, NEW, (b"..", b"inner")), m.Rwalk).qids) == 1
    assert sorted(os.listdir(host.root / "hidden" / "deep")) == ["file", "secret"]


def test_a_file_that_the_host_removed_is_still_the_guests_who_has_it_open(host: Host, restricted: NinePClient) -> None:
    fid = restricted.open("allowed", O.RDWR)
    (host.root / "new").write_bytes(b"new")
    (host.root / "new").rename(host.root / "allowed")
    restricted.setattr(fid, size=3, mode=0o600)
    assert restricted.read(fid, 0, 10) == b"all"
    assert restricted.read_file("allowed") == b"new"


def test_it_is_told_by_climbing_too_when_the_path_is_too_long(
    host: Host, restricted: NinePClient, refused: Refused
) -> None:
    at = os.open(host.root / "directory", os.O_RDONLY)
    try:
        for _ in range(20):
            os.mkdir("d" * 250, dir_fd=at)
            below = os.open("d" * 250, os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        os.mkdir("last", dir_fd=at)
    finally:
        os.close(at)
    deep = restricted.walk("/".join(["directory", *["d" * 250] * 20]))
    assert restricted.ask(m.Twalk(deep, NEW, (b"last",)), m.Rwalk).qids
    restricted.ask(m.Tclunk(NEW), m.Rclunk)
    (host.root / "directory").rename(host.root / "moved")
    with refused(errno.ENOENT):
        restricted.rpc(m.Twalk(deep, NEW, (b"last",)))
    (host.root / "moved").rename(host.root / "directory")
    assert restricted.ask(m.Twalk(deep, NEW, (b"last",)), m.Rwalk).qids


def test_an_unlisted_file_is_not_reached_by_a_link_made_elsewhere(host: Host, restricted: NinePClient) -> None:
    restricted.symlink("../other", "directory/out")
    restricted.send(m.Twalk(restricted.root, NEW, (b"directory", b"out", b"x")))
    reply = restricted.recv()[1]
    assert isinstance(reply, m.Rwalk)
    assert len(reply.qids) == 2


def test_a_read_only_share_with_an_allow_list(host: Host, restricted: NinePClient, refused: Refused) -> None:
    guest = host.connect(host.share(read_only=True, allowed=("allowed",)))
    assert guest.listdir() == [b"allowed"]
    with refused(errno.EROFS):
        guest.write_file("allowed", b"x")
    with refused(errno.EROFS):
        guest.unlink("allowed")
    assert guest.read_file("allowed") == b"allowed"
