"""A share with an allow-list: other names do not exist, and the names of its directory are fixed."""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.conftest import IN_AND_OUT, Host, Refused

    from uvmshare.testing.client import Client
else:
    from fileserver.conftest import IN_AND_OUT

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


@pytest.fixture(params=IN_AND_OUT)
def model(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


ALLOWED = ("allowed", "absent", "directory", "grüße", "link")
NEW = 7000


@pytest.fixture
def restricted(host: Host) -> Client:
    """A guest of a share in which "other", "hidden" and what they hold are left out."""
    for name in ("allowed", "other", "grüße"):
        (host.root / name).write_bytes(name.encode())
    for name in ("directory", "hidden"):
        (host.root / name).mkdir()
        (host.root / name / "inner").write_bytes(b"inner")
    os.symlink("other", host.root / "link")
    return host.connect(host.share(allowed=ALLOWED))


def test_listings_are_filtered(restricted: Client) -> None:
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
def test_other_names_are_not_there(restricted: Client, refused: Refused, names: tuple[bytes, ...]) -> None:
    restricted.send(m.Twalk(restricted.root, NEW, names))
    reply = restricted.recv()[1]
    assert reply == m.Rlerror(errno.ENOENT) or (isinstance(reply, m.Rwalk) and len(reply.qids) < len(names))
    with refused(errno.EBADF):
        restricted.rpc(m.Tgetattr(NEW, 0))


def test_allowed_files_are_read_and_written(host: Host, restricted: Client) -> None:
    assert restricted.read_file("allowed") == b"allowed"
    restricted.write_file("allowed", b"changed")
    assert (host.root / "allowed").read_bytes() == b"changed"
    with restricted.walked("grüße") as fid:
        restricted.setattr(fid, size=2, mode=0o600)
    assert (host.root / "grüße").stat().st_size == 2


def test_a_file_that_comes_later_is_there_then(host: Host, restricted: Client, refused: Refused) -> None:
    with refused(errno.ENOENT):
        restricted.rpc(m.Twalk(restricted.root, NEW, (b"absent",)))
    (host.root / "absent").write_bytes(b"now")
    assert restricted.read_file("absent") == b"now"


def test_a_link_among_them_is_only_a_link(restricted: Client, refused: Refused) -> None:
    assert restricted.readlink("link") == b"other"
    with refused():
        restricted.open("link")


def test_a_directory_among_them_is_whole(host: Host, restricted: Client) -> None:
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


@pytest.mark.parametrize("message", CHANGES, ids=lambda message: type(message).__name__)
def test_the_names_of_the_directory_are_fixed(
    *, host: Host, restricted: Client, refused: Refused, message: m.Message, snapshot: Callable[[Path], object]
) -> None:
    before = snapshot(host.root)
    for fid, names in ((FILE, (b"allowed",)), (DIRECTORY, (b"directory",)), (INNER, (b"directory", b"inner"))):
        restricted.ask(m.Twalk(ROOT, fid, names), m.Rwalk)
    with refused(errno.EACCES):
        restricted.rpc(message)
    assert snapshot(host.root) == before


@pytest.mark.parametrize("name", [b"absent", b"other", b"new"])
@pytest.mark.parametrize("flags", [O.WRONLY, O.RDWR | O.EXCL, O.RDWR | O.TRUNC])
def test_nothing_is_created_in_it(
    *, host: Host, restricted: Client, refused: Refused, name: bytes, flags: int, snapshot: Callable[[Path], object]
) -> None:
    before = snapshot(host.root)
    with refused(errno.EACCES, errno.ENOENT):
        restricted.create(name, flags)
    assert snapshot(host.root) == before


def test_an_unlisted_file_is_not_reached_by_a_link_made_elsewhere(host: Host, restricted: Client) -> None:
    restricted.symlink("../other", "directory/out")
    restricted.send(m.Twalk(restricted.root, NEW, (b"directory", b"out", b"x")))
    reply = restricted.recv()[1]
    assert isinstance(reply, m.Rwalk)
    assert len(reply.qids) == 2


def test_a_read_only_share_with_an_allow_list(host: Host, restricted: Client, refused: Refused) -> None:
    guest = host.connect(host.share(read_only=True, allowed=("allowed",)))
    assert guest.listdir() == [b"allowed"]
    with refused(errno.EROFS):
        guest.write_file("allowed", b"x")
    with refused(errno.EROFS):
        guest.unlink("allowed")
    assert guest.read_file("allowed") == b"allowed"
