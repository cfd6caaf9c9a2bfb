"""A guest does not get out of its share: not by names, not by links, not by what the host moves meanwhile."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import AT_REMOVEDIR, NONUNAME
from uvmshare.ninep.constants import OpenFlag as O
from uvmshare.ninep.types import decode_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

NEW = 7000
CANARY = b"never shared"
OPEN_AND_CREATE = O.WRONLY | O.CREATE


def succeeds(guest: NinePClient, message: m.Message) -> bool:
    guest.send(message)
    return not isinstance(guest.recv()[1], m.Rlerror)


def leads_on(guest: NinePClient, fid: int, names: tuple[bytes, ...]) -> bool:
    """Say whether a walk goes all the way."""
    guest.send(m.Twalk(fid, NEW, names))
    reply = guest.recv()[1]
    if not isinstance(reply, m.Rwalk) or len(reply.qids) < len(names):
        return False
    guest.ask(m.Tclunk(NEW), m.Rclunk)
    return True


# Dot-dot


@pytest.mark.parametrize("names", [(b"..",), (b"..", b".."), (b"..", b"outside"), (b"..", b"..", b"etc", b"passwd")])
def test_dotdot_does_not_leave_the_root(host: Host, guest: NinePClient, names: tuple[bytes, ...]) -> None:
    root = guest.getattr(guest.root).qid
    guest.send(m.Twalk(guest.root, NEW, names))
    reply = guest.recv()[1]
    assert isinstance(reply, (m.Rwalk, m.Rlerror))
    if isinstance(reply, m.Rwalk):  # walk(5): ".." of a root is the root
        assert set(reply.qids) <= {root}


def test_dotdot_goes_back_the_way_that_was_come_or_nowhere(host: Host, guest: NinePClient) -> None:
    (host.root / "a" / "b").mkdir(parents=True)
    inside = {guest.stat(path).qid for path in ("", "a", "a/b")}
    for names in ((b"a", b".."), (b"a", b"b", b"..", b".."), (b"a", b"..", b".."), (b"a", b"b", *[b".."] * 8)):
        guest.send(m.Twalk(guest.root, NEW, names))
        reply = guest.recv()[1]
        if isinstance(reply, m.Rwalk):
            assert set(reply.qids) <= inside
            if len(reply.qids) == len(names):
                guest.ask(m.Tclunk(NEW), m.Rclunk)


def test_dotdot_from_a_directory_that_was_moved_up(host: Host, guest: NinePClient) -> None:
    (host.root / "a" / "b" / "c").mkdir(parents=True)
    inside = {guest.stat(path).qid.path for path in ("", "a", "a/b", "a/b/c")}
    fid = guest.walk("a/b/c")
    guest.rename("a/b/c", "c")
    for depth in range(1, 5):
        guest.send(m.Twalk(fid, NEW, (b"..",) * depth))
        reply = guest.recv()[1]
        if isinstance(reply, m.Rwalk):
            assert {qid.path for qid in reply.qids} <= inside
            if len(reply.qids) == depth:
                guest.ask(m.Tclunk(NEW), m.Rclunk)


# Symbolic links


@pytest.fixture
def links(host: Host) -> list[bytes]:
    """Links to outside, made by the host and, under names of their own, by the guest."""
    targets = {
        "absolute": str(host.outside),
        "relative": "../outside",
        "file": str(host.outside / "canary"),
        "root": "/",
        "twice": "absolute",
        "proc": "/proc/self/cwd",
        "up": "..",
    }
    (host.root / "sub").mkdir()
    guest = host.guest()
    for name, target in targets.items():
        os.symlink(target, host.root / name)
        os.symlink(target, host.root / "sub" / name)
        guest.symlink(target, "guest-" + name)
    return [name.encode() for name in (*targets, *("guest-" + name for name in targets))]


def test_a_link_is_not_followed_in_the_middle_of_a_walk(guest: NinePClient, links: list[bytes]) -> None:
    for link in links:
        for rest in ((b"canary",), (b"outside",), (b"..",), (b"..", b"outside"), (b"etc",), (b"sub",), (b".",)):
            guest.send(m.Twalk(guest.root, NEW, (link, *rest)))
            reply = guest.recv()[1]
            assert isinstance(reply, m.Rwalk)
            # ".." of a link is where it was walked from
            assert len(reply.qids) <= len(rest) if rest[0] != b".." else reply.qids[0].type == 2
            if len(reply.qids) == 1 + len(rest):
                assert guest.getattr(NEW).qid == guest.getattr(guest.root).qid
                guest.ask(m.Tclunk(NEW), m.Rclunk)


def test_a_link_at_the_end_of_a_walk_is_the_link(guest: NinePClient, links: list[bytes]) -> None:
    for link in links:
        assert stat.S_ISLNK(guest.stat(link).mode)


def test_a_link_is_not_opened(guest: NinePClient, refused: Refused, links: list[bytes]) -> None:
    for link in links:
        for flags in (O.RDONLY, O.WRONLY, O.RDWR, O.DIRECTORY, O.RDWR | O.TRUNC, O.NOACCESS, O.WRONLY | O.APPEND):
            with refused():
                guest.open(link, flags)


def test_a_link_is_not_created_through(host: Host, guest: NinePClient, refused: Refused, links: list[bytes]) -> None:
    os.symlink(host.outside / "new", host.root / "dangling")
    for link in (*links, b"dangling"):
        for flags in (O.RDWR, O.RDWR | O.TRUNC, O.RDWR | O.EXCL):
            with refused():
                guest.create(link, flags)
    assert [path.name for path in host.outside.iterdir()] == ["canary"]


def test_nothing_is_made_in_what_a_link_leads_to(
    host: Host, guest: NinePClient, refused: Refused, links: list[bytes]
) -> None:
    guest.write_file("f", b"")
    guest.ask(m.Twalk(guest.root, NEW, (b"f",)), m.Rwalk)
    for link in links:
        with guest.walked(link) as fid:
            for message in (
                m.Tlcreate(fid, b"x", OPEN_AND_CREATE, 0o644, 0),
                m.Tmkdir(fid, b"x", 0o755, 0),
                m.Tsymlink(fid, b"x", b"y", 0),
                m.Tmknod(fid, b"x", stat.S_IFIFO | 0o644, 0, 0, 0),
                m.Tlink(fid, NEW, b"x"),
                m.Trename(NEW, fid, b"x"),
                m.Trenameat(guest.root, b"f", fid, b"x"),
                m.Trenameat(fid, b"canary", guest.root, b"x"),
                m.Tunlinkat(fid, b"canary", 0),
                m.Treaddir(fid, 0, 8192),
            ):
                with refused():
                    guest.rpc(message)
    assert [path.name for path in host.outside.iterdir()] == ["canary"]
    assert not (host.root / "x").exists()


def test_what_is_changed_on_a_link_is_not_changed_on_its_target(
    host: Host, guest: NinePClient, links: list[bytes], snapshot: Callable[[Path], object]
) -> None:
    before = snapshot(host.outside)
    for link in links:
        with guest.walked(link) as fid:
            for valid in (0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x40, 0x190, 0x120, 0x1FF):
                guest.send(m.Tsetattr(fid, valid, 0o4777, 1234, 1234, 0, 5, 5, 5, 5))
                guest.recv()
            guest.send(m.Tlopen(fid, O.RDWR | O.TRUNC))
            guest.recv()
    assert snapshot(host.outside) == before


# Directories that the host moves out


@dataclass(frozen=True, slots=True)
class Moved:
    """Fids of what was in the share until the host moved it out and put new things in."""

    guest: NinePClient
    directory: int
    below: int
    listing: int
    stays: int


@pytest.fixture
def moved(host: Host) -> Moved:
    inside, outside = host.root / "d", host.outside / "d"
    (inside / "sub").mkdir(parents=True)
    (inside / "file").write_bytes(b"was shared")
    (host.root / "stays").write_bytes(b"stays")
    guest = host.guest()
    fids = Moved(guest, guest.walk("d"), guest.walk("d/sub"), guest.open("d", O.DIRECTORY), guest.walk("stays"))
    inside.rename(outside)
    for directory in (outside, outside / "sub"):
        for name in ("secret", "victim"):
            (directory / name).write_bytes(CANARY)
        (directory / "hidden").mkdir()
        (directory / "hidden" / "deep").write_bytes(CANARY)
        os.symlink("secret", directory / "link")
    return fids


def test_what_was_put_into_a_directory_that_was_moved_out_is_not_reached(moved: Moved, refused: Refused) -> None:
    for fid in (moved.directory, moved.below):
        for names in (
            (b"secret",),
            (b"hidden",),
            (b"hidden", b"deep"),
            (b"link",),
            (b"secret", b"x"),
            (b"hidden", b"x"),
        ):
            with refused():
                moved.guest.rpc(m.Twalk(fid, NEW, names))


@pytest.mark.parametrize("name", [b"secret", b"hidden", b"link"])
def test_a_way_out_and_back_in_tells_nothing_of_what_is_outside(moved: Moved, name: bytes) -> None:
    guest = moved.guest
    known = {guest.getattr(fid).qid.path for fid in (guest.root, moved.stays, moved.directory)}
    for names in ((name, b"..", b".."), (name, b"..", b"..", b"stays"), (name, b"..", b"..", b"nothing")):
        guest.send(m.Twalk(moved.directory, NEW, names))
        reply = guest.recv()[1]
        if isinstance(reply, m.Rwalk):
            assert {qid.path for qid in reply.qids} <= known
            if len(reply.qids) == len(names):
                guest.ask(m.Tclunk(NEW), m.Rclunk)


def test_the_way_up_from_a_directory_that_was_moved_out_does_not_lead_outside(host: Host, moved: Moved) -> None:
    guest = moved.guest
    shared = {guest.stat(path).qid.path for path in ("", "stays")} | {
        guest.getattr(fid).qid.path for fid in (moved.directory, moved.below)
    }
    for fid in (moved.directory, moved.below):
        for names in ((b"..",), (b"..", b".."), (b"..", b"..", b".."), (b"..", b"canary"), (b"..", b"d", b"secret")):
            guest.send(m.Twalk(fid, NEW, names))
            reply = guest.recv()[1]
            if isinstance(reply, m.Rwalk):
                assert {qid.path for qid in reply.qids} <= shared
                if len(reply.qids) == len(names):
                    guest.ask(m.Tclunk(NEW), m.Rclunk)


def test_a_directory_that_was_moved_out_is_not_listed(moved: Moved) -> None:
    guest, seen = moved.guest, set[bytes]()
    for fid in (moved.directory, moved.below):
        if succeeds(guest, m.Tlopen(fid, O.DIRECTORY)):
            guest.send(m.Treaddir(fid, 0, 8192))
            reply = guest.recv()[1]
            if isinstance(reply, m.Rreaddir):
                seen |= {entry.name for entry in decode_entries(reply.data)}
    assert seen <= {b".", b"..", b"file", b"sub"}


def test_a_directory_that_was_open_when_it_was_moved_out_is_not_listed_anew(moved: Moved) -> None:
    moved.guest.send(m.Treaddir(moved.listing, 0, 8192))
    reply = moved.guest.recv()[1]
    if isinstance(reply, m.Rreaddir):
        assert {entry.name for entry in decode_entries(reply.data)} <= {b".", b"..", b"file", b"sub"}


def test_a_listing_that_had_begun_does_not_go_on_outside(host: Host, guest: NinePClient) -> None:
    (host.root / "d").mkdir()
    for number in range(50):
        (host.root / "d" / f"shared-{number}").touch()
    fid = guest.open("d", O.DIRECTORY)
    offset = guest.readdir_some(fid, 0, 100)[-1].offset
    (host.root / "d").rename(host.outside / "d")
    for number in range(50):
        (host.outside / "d" / f"secret-{number}").touch()
    for start in (offset, 0, offset):
        guest.send(m.Treaddir(fid, start, 1 << 16))
        reply = guest.recv()[1]
        if isinstance(reply, m.Rreaddir):
            assert not [entry.name for entry in decode_entries(reply.data) if entry.name.startswith(b"secret")]


def test_nothing_changes_in_a_directory_that_was_moved_out(
    host: Host, moved: Moved, refused: Refused, snapshot: Callable[[Path], object]
) -> None:
    guest, before, root = moved.guest, snapshot(host.outside), moved.guest.root
    for fid in (moved.directory, moved.below):
        for message in (
            m.Tmkdir(fid, b"new", 0o755, 0),
            m.Tsymlink(fid, b"new", b"y", 0),
            m.Tmknod(fid, b"new", stat.S_IFIFO | 0o644, 0, 0, 0),
            m.Tmknod(fid, b"new", stat.S_IFREG | 0o644, 0, 0, 0),
            m.Tlink(fid, moved.stays, b"new"),
            m.Trename(moved.stays, fid, b"new"),
            m.Trenameat(root, b"stays", fid, b"new"),
            m.Trenameat(root, b"stays", fid, b"victim"),
            m.Trenameat(fid, b"secret", root, b"taken"),
            m.Trenameat(fid, b"victim", fid, b"secret"),
            m.Trenameat(fid, b"hidden", root, b"taken"),
            m.Tunlinkat(fid, b"victim", 0),
            m.Tunlinkat(fid, b"hidden", AT_REMOVEDIR),
            m.Tlcreate(fid, b"new", OPEN_AND_CREATE, 0o644, 0),
            m.Tlcreate(fid, b"victim", O.RDWR, 0o644, 0),
            m.Tlcreate(fid, b"victim", O.RDWR | O.TRUNC, 0o644, 0),
        ):
            with refused():
                guest.rpc(message)
    assert snapshot(host.outside) == before
    assert guest.listdir() == [b"stays"]


def test_a_directory_that_was_moved_out_is_not_removed_or_renamed(host: Host, moved: Moved, refused: Refused) -> None:
    guest = moved.guest
    with refused():
        guest.rpc(m.Trename(moved.directory, guest.root, b"back"))
    with refused():
        guest.rpc(m.Trename(moved.below, guest.root, b"back"))
    empty = host.outside / "d" / "sub"
    for path in sorted(empty.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with refused():
        guest.rpc(m.Tremove(moved.below))
    assert empty.is_dir()


def test_a_file_that_was_moved_out_is_not_opened_linked_or_renamed(
    host: Host, guest: NinePClient, refused: Refused
) -> None:
    (host.root / "f").write_bytes(b"was shared")
    fid = guest.walk("f")
    (host.root / "f").rename(host.outside / "f")
    for message in (
        m.Tlopen(fid, O.RDONLY),
        m.Tlopen(fid, O.RDWR | O.TRUNC),
        m.Tlink(guest.root, fid, b"back"),
        m.Trename(fid, guest.root, b"back"),
    ):
        with refused():
            guest.rpc(message)
    with refused():
        guest.rpc(m.Tremove(fid))
    assert (host.outside / "f").read_bytes() == b"was shared"
    assert guest.listdir() == []


def test_a_link_that_was_moved_out_is_not_read(host: Host, guest: NinePClient, refused: Refused) -> None:
    """Under mapped-xattr it is a regular file, and the host may write something else into it."""
    guest.symlink("target", "l")
    fid = guest.walk("l")
    (host.root / "l").rename(host.outside / "l")
    if not (host.outside / "l").is_symlink():
        (host.outside / "l").write_bytes(b"the host's own")
    with refused(errno.ENOENT):
        guest.rpc(m.Treadlink(fid))


def test_the_rest_of_the_share_goes_on(moved: Moved) -> None:
    assert moved.guest.read_file("stays") == b"stays"
    moved.guest.write_file("more", b"x")
    assert sorted(moved.guest.listdir()) == [b"more", b"stays"]


def test_a_directory_that_comes_back_is_served_again(host: Host, moved: Moved) -> None:
    (host.outside / "d").rename(host.root / "again")
    assert moved.guest.read_file("again/file") == b"was shared"
    moved.guest.clunk(moved.guest.walk("file", start=moved.directory))


def test_a_directory_beside_the_share_whose_name_begins_alike_is_outside(host: Host, refused: Refused) -> None:
    (host.root / "d").mkdir()
    guest = host.guest()
    fid = guest.walk("d")
    alike = host.root.with_name(host.root.name + "2")
    alike.mkdir()
    (host.root / "d").rename(alike / "d")
    (alike / "d" / "secret").write_bytes(CANARY)
    with refused():
        guest.rpc(m.Twalk(fid, NEW, (b"secret",)))


def test_a_share_whose_root_is_moved_goes_on(host: Host, guest: NinePClient) -> None:
    (host.root / "d").mkdir()
    (host.root / "d" / "f").write_bytes(b"x")
    host.root.rename(host.outside / "elsewhere")
    try:
        host.root.mkdir()  # what now has its name is not shared
        (host.root / "other").write_bytes(b"")
        assert guest.listdir() == [b"d"]
        assert guest.read_file("d/f") == b"x"
    finally:
        (host.root / "other").unlink()
        host.root.rmdir()
        (host.outside / "elsewhere").rename(host.root)


# Paths that are longer than the host takes in one call


def test_deeper_than_a_path_can_say(host: Host, guest: NinePClient, refused: Refused) -> None:
    name, depth = "d" * 200, 40  # 8 KB; PATH_MAX is 4 KB
    at = guest.walk()
    fids = [at]
    for _ in range(depth):
        guest.ask(m.Tmkdir(at, name.encode(), 0o755, 0), m.Rmkdir)
        at = guest.walk(name, start=at)
        fids.append(at)
    path = "/".join([name] * depth)
    guest.write_file(path + "/f", b"deep")
    guest.symlink("target", path + "/l")
    guest.link(path + "/f", path + "/g")
    guest.rename(path + "/g", path + "/h")
    assert guest.read_file(path + "/h") == b"deep"
    assert guest.readlink(path + "/l") == b"target"
    assert sorted(guest.listdir(path)) == [b"f", b"h", b"l"]
    with guest.walked(path + "/f") as fid:
        guest.setattr(fid, mode=0o600, uid=1234, size=2, mtime_ns=5)
        assert (guest.getattr(fid).size, guest.getattr(fid).mtime_nsec) == (2, 5)
    guest.statfs(path)
    for leaf in (b"f", b"h", b"l"):
        guest.ask(m.Tunlinkat(at, leaf, 0), m.Runlinkat)
    # Moved out there, it is as far outside as any other.
    middle = fids[depth // 2]
    (host.root / name).rename(host.outside / "deep")
    for fid in (at, middle):
        with refused():
            guest.rpc(m.Tmkdir(fid, b"new", 0o755, 0))
        with refused():
            guest.rpc(m.Twalk(fid, NEW, (name.encode(),)))
    (host.outside / "deep").rename(host.root / name)
    for fid in reversed(fids[:-1]):
        guest.ask(m.Tunlinkat(fid, name.encode(), AT_REMOVEDIR), m.Runlinkat)
    assert list(host.root.iterdir()) == []


# Other shares


def test_one_connection_has_one_share(host: Host, refused: Refused) -> None:
    (host.root / "a").mkdir()
    (host.root / "b").mkdir()
    (host.root / "b" / "f").write_bytes(b"b's own")
    a, b = host.share(host.root / "a"), host.share(host.root / "b")
    guest = host.connect(a)
    with refused():
        guest.rpc(m.Tattach(NEW, 0xFFFFFFFF, b"", b.encode(), NONUNAME))
    with refused(errno.EBADF):
        guest.rpc(m.Tgetattr(NEW, 0x7FF))
    assert guest.listdir() == []
    guest.version()  # nor after a fresh start
    with refused():
        guest.attach(b)
    guest.root = guest.attach(a)
    assert guest.listdir() == []


def test_overlapping_shares_each_end_at_their_own_root(host: Host) -> None:
    (host.root / "inner" / "d").mkdir(parents=True)
    outer, inner = host.connect(host.share()), host.connect(host.share(host.root / "inner"))
    inner.write_file("d/f", b"x")
    assert outer.read_file("inner/d/f") == b"x"
    held = inner.walk("d")
    outer.rename("inner/d", "d")  # out of the inner share, under its eyes
    outer.write_file("d/new", b"of the outer share alone")
    assert not succeeds(inner, m.Twalk(held, NEW, (b"new",)))
    assert not succeeds(inner, m.Tlcreate(held, b"x", OPEN_AND_CREATE, 0o644, 0))
    assert not succeeds(inner, m.Trenameat(held, b"new", inner.root, b"taken"))
    assert sorted(outer.listdir("d")) == [b"f", b"new"]
    outer.rename("inner", "renamed")
    inner.write_file("still", b"served")
    assert outer.read_file("renamed/still") == b"served"


def test_a_read_only_share_inside_a_writable_one_stays_read_only(host: Host, refused: Refused) -> None:
    (host.root / "inner").mkdir()
    (host.root / "inner" / "f").write_bytes(b"x")
    inner = host.connect(host.share(host.root / "inner", read_only=True))
    outer = host.connect(host.share())
    outer.write_file("inner/f", b"y")
    with refused(errno.EROFS):
        inner.open("f", O.WRONLY)
    assert inner.read_file("f") == b"y"


# Races: the host, or another guest, swaps a directory and a link to outside while the guest walks.


RENAME_EXCHANGE = 2


@contextmanager
def swapping(one: Path, two: Path) -> Iterator[None]:
    """Exchange two names for as long as the block runs, without a moment in which one is missing."""
    libc, done, failed = ctypes.CDLL(None, use_errno=True), threading.Event(), list[int]()

    def swap() -> None:
        while not done.is_set():
            if libc.renameat2(-100, bytes(one), -100, bytes(two), RENAME_EXCHANGE) != 0:
                failed.append(ctypes.get_errno())
                return

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    assert not failed, os.strerror(failed[0])


ROUNDS = 400


def test_a_walk_through_a_directory_that_is_swapped_with_a_link(host: Host, guest: NinePClient) -> None:
    (host.root / "door").mkdir()
    (host.root / "door" / "inside").write_bytes(b"")
    os.symlink(host.outside, host.root / "link")
    with swapping(host.root / "door", host.root / "link"):
        for _ in range(ROUNDS):
            assert not leads_on(guest, guest.root, (b"door", b"canary"))
            fid = guest.walk("door")
            assert not succeeds(guest, m.Twalk(fid, NEW, (b"canary",)))
            succeeds(guest, m.Tlcreate(fid, b"made", OPEN_AND_CREATE, 0o644, 0))
            guest.clunk(fid)
    assert [path.name for path in host.outside.iterdir()] == ["canary"]


def test_an_open_or_create_of_a_file_that_is_swapped_with_a_link(host: Host, guest: NinePClient) -> None:
    (host.root / "door").write_bytes(b"inside")
    os.symlink(host.outside / "canary", host.root / "link")
    with swapping(host.root / "door", host.root / "link"):
        for _ in range(ROUNDS):
            for message in (m.Tlopen(NEW, O.RDWR), m.Tlcreate(NEW, b"door", O.RDWR, 0o644, 0)):
                names = (b"door",) if isinstance(message, m.Tlopen) else ()
                guest.ask(m.Twalk(guest.root, NEW, names), m.Rwalk)
                if succeeds(guest, message):
                    assert guest.read(NEW, 0, 100) == b"inside"
                    guest.write(NEW, 0, b"inside")
                guest.ask(m.Tclunk(NEW), m.Rclunk)


def test_the_way_up_from_a_directory_that_goes_out_and_in(host: Host, guest: NinePClient) -> None:
    (host.root / "door").mkdir()
    (host.outside / "door").mkdir()
    with swapping(host.root / "door", host.outside / "door"):
        for _ in range(ROUNDS):
            with suppress(FileNotFoundError), guest.walked("door") as fid:  # it may be on its way out
                assert not leads_on(guest, fid, (b"..", b"canary"))
                assert not leads_on(guest, fid, (b"..", b"root"))
