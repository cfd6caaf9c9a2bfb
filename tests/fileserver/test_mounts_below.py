"""What holds in a share holds in what is mounted below it, which threads reach: hidden names and owner maps.

A tmpfs is reached by a thread and served by the loop; of a file system in user space all is asked by threads.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import one_of
from tests.fuse import HungFuse
from tests.root import require_root

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)
require_root("mounting needs root")

HIDE = ("node_modules", "**/.env", "/mnt/secret", "build/", "/mnt/deep/*/far")
SECRET = b"what nobody may see"
HIDDEN = ("node_modules/x", ".env", "secret", "sub/.env", "sub/node_modules/x", "build/out", "deep/one/far")
SHOWN = ("plain", "sub/build", "sub/secret", "deep/one/near", "deep/far")


model = one_of("none", pytest.param("mapped-xattr", marks=pytest.mark.long))
"""Never in this process: what hangs in it could not be ended."""


def put(top: Path) -> None:
    for path in HIDDEN + SHOWN:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(SECRET if path in HIDDEN else b"shown")


class Mounted:
    """What is mounted at a directory; `fuse` is None for a tmpfs."""

    def __init__(self, kind: str, shown: Path, point: Path) -> None:
        point.mkdir(parents=True, exist_ok=True)
        self.point = point
        self.fuse: HungFuse | None = None
        if kind == "fuse":
            put(shown)
            self.fuse = HungFuse(shown, point)
        else:
            subprocess.run(["mount", "-t", "tmpfs", "ours", point], check=True)
            put(point)

    def close(self) -> None:
        if self.fuse is not None:
            self.fuse.close()
        else:
            subprocess.run(["umount", "--lazy", self.point], check=True)


@pytest.fixture(params=["tmpfs", "fuse"])
def kind(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def mounted(host: Host, kind: str) -> Iterator[Mounted]:
    made = Mounted(kind, host.outside / "shown", host.root / "mnt")
    yield made
    made.close()


@pytest.fixture
def guest(host: Host, mounted: Mounted) -> NinePClient:
    return host.connect(host.share(hide=HIDE))


def test_hidden_names_below_a_mount_are_not_there(guest: NinePClient, refused: Refused) -> None:
    for path in SHOWN:
        assert guest.read_file(f"mnt/{path}") == b"shown", path
    inside = guest.walk("mnt")
    for path in HIDDEN:
        assert not guest.exists(f"mnt/{path}"), path
        with pytest.raises(FileNotFoundError):
            guest.walk(path, start=inside)
    for name in (b"node_modules", b".env", b"secret", b"build"):
        with refused(errno.ENOENT):
            guest.rpc(m.Twalk(inside, 900, (name,)))
        for walk, steps in (
            (m.Twalk(guest.root, 900, (b"mnt", name)), 1),
            (m.Twalk(guest.root, 900, (b"mnt", b"sub", b"..", name)), 3),
        ):
            tag = guest.send(walk)
            reply = guest.wait(tag)
            assert isinstance(reply, m.Rwalk)
            assert len(reply.qids) == steps


def test_listings_below_a_mount_leave_them_out(guest: NinePClient) -> None:
    for _ in range(2):  # the second one may be kept
        assert sorted(guest.listdir("mnt")) == [b"deep", b"plain", b"sub"]
        assert sorted(guest.listdir("mnt/sub")) == [b"build", b"secret"]
        assert guest.listdir("mnt/deep/one") == [b"near"]


def test_hidden_names_below_a_mount_are_neither_made_nor_renamed_nor_removed(
    guest: NinePClient, mounted: Mounted, refused: Refused
) -> None:
    inside, file = guest.walk("mnt"), guest.walk("mnt/plain")
    message: m.Message
    for name in (b"node_modules", b".env", b"secret"):
        for message in (
            m.Tlcreate(guest.walk("mnt"), name, O.RDWR, 0o644, 0),
            m.Tmkdir(inside, name, 0o755, 0),
            m.Tsymlink(inside, name, b"x", 0),
            m.Tmknod(inside, name, 0o100644, 0, 0, 0),
            m.Tlink(inside, file, name),
            m.Trenameat(inside, b"plain", inside, name),
            m.Trename(file, inside, name),
        ):
            with refused(errno.EACCES):
                guest.rpc(message)
        for message in (
            m.Trenameat(inside, name, inside, b"found"),
            m.Tunlinkat(inside, name, 0),
            m.Tunlinkat(inside, name, AT_REMOVEDIR),
        ):
            with refused(errno.ENOENT):
                guest.rpc(message)
    with refused(errno.ENOENT):  # a directory, and hidden as one
        guest.rpc(m.Tunlinkat(inside, b"build", AT_REMOVEDIR))
    with refused(errno.EACCES):
        guest.write_file("mnt/build", b"a file")
    with refused(errno.EXDEV):  # more is hidden below it where it is than where it would be
        guest.rename("mnt/deep", "mnt/sub/deep")
    for path in HIDDEN:
        assert (mounted.point / path).read_bytes() == SECRET


def test_fids_below_a_mount_lead_no_further_where_the_host_hides_them_by_a_rename(
    guest: NinePClient, mounted: Mounted, refused: Refused
) -> None:
    directory, file = guest.walk("mnt/deep"), guest.walk("mnt/deep/one/near")
    opened = guest.open("mnt/deep", O.DIRECTORY)
    os.rename(mounted.point / "deep", mounted.point / "node_modules" / "deep")
    for message in (
        m.Twalk(directory, 900, (b"one",)),
        m.Twalk(directory, 900, (b"one", b"near")),
        m.Tlopen(file, O.RDONLY),
        m.Treaddir(opened, 0, 8192),
        m.Tmkdir(directory, b"new", 0o755, 0),
        m.Tsetattr(file, 1, 0o600, 0, 0, 0, 0, 0, 0, 0),
        m.Tremove(file),
    ):
        with refused(errno.ENOENT):
            guest.rpc(message)
    assert (mounted.point / "node_modules/deep/one/near").read_bytes() == b"shown"


@pytest.mark.parametrize("pattern", ["mnt", "mnt/", "/mnt", "*", "*/"])
def test_a_mount_at_a_hidden_name_is_not_there(host: Host, mounted: Mounted, refused: Refused, pattern: str) -> None:
    (host.root / "local").mkdir()
    message: m.Message
    for allowed in ((), ("mnt", "local")):
        guest = host.connect(host.share(hide=(pattern, "!local"), allowed=allowed))
        assert guest.listdir() == [b"local"]
        for message in (m.Twalk(guest.root, 900, (b"mnt",)), m.Twalk(guest.root, 900, (b"mnt", b"plain"))):
            with refused(errno.ENOENT):
                guest.rpc(message)
        if not allowed:
            for message in (
                m.Tunlinkat(guest.root, b"mnt", AT_REMOVEDIR),
                m.Trenameat(guest.root, b"mnt", guest.root, b"found"),
            ):
                with refused(errno.ENOENT):
                    guest.rpc(message)
            with refused(errno.EACCES):
                guest.rpc(m.Tmkdir(guest.root, b"mnt", 0o755, 0))


def test_a_mount_that_is_shown_for_being_a_directory_is_reached(host: Host, mounted: Mounted) -> None:
    guest = host.connect(host.share(hide=("*", "!mnt/", "!/mnt/plain")))
    assert guest.listdir() == [b"mnt"]
    assert guest.listdir("mnt") == [b"plain"]
    assert guest.read_file("mnt/plain") == b"shown"


@pytest.mark.parametrize("kind", ["fuse"])
def test_while_a_hidden_mount_hangs_what_asks_for_it_waits_alone(
    host: Host, mounted: Mounted, refused: Refused
) -> None:
    (host.root / "local").write_bytes(b"local")
    guest = host.connect(host.share(hide=("mnt/",)))
    assert mounted.fuse is not None
    mounted.fuse.hang_all()
    asked: tuple[m.Message, ...] = (
        m.Twalk(guest.root, 900, (b"mnt",)),
        m.Tunlinkat(guest.root, b"mnt", AT_REMOVEDIR),
        m.Trenameat(guest.root, b"mnt", guest.root, b"found"),
        m.Tsymlink(guest.root, b"mnt", b"x", 0),
    )
    tags = [guest.send(message) for message in asked]
    mounted.fuse.wait_until_asked()
    assert guest.read_file("local") == b"local"
    assert guest.listdir() == [b"local"]
    mounted.fuse.release()
    for tag, number in zip(tags, (errno.ENOENT, errno.ENOENT, errno.ENOENT, errno.EACCES), strict=True):
        with refused(number):
            guest.wait(tag)


def test_owners_below_a_mount_are_mapped(host: Host, mounted: Mounted) -> None:
    for path in ("plain", "sub"):
        os.chown(mounted.point / path, 1000, 100)
    os.chown(mounted.point / "deep", 7, 8)
    guest = host.connect(host.share(map_owner="1000/100:0/5"))
    told = {path: (guest.stat(f"mnt/{path}").uid, guest.stat(f"mnt/{path}").gid) for path in ("plain", "sub", "deep")}
    assert told == {"plain": (0, 5), "sub": (0, 5), "deep": (7, 8)}
