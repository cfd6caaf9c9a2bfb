"""Requests that threads carry out: their order, what of it is given up, and the limits of a mount."""

from __future__ import annotations

import errno
import os
import socket
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from tests.fileserver.harness import one_of
from tests.fuse import HungFuse
from tests.root import needs_root

from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.handlers import locking, table
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import (
    GetattrMask,
    LockFlag,
    LockStatus,
    LockType,
)
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device, Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mount.fids import Fid
from uvmshare.fileserver.mount.files.node import ForeignNode
from uvmshare.fileserver.mount.files.openfile import ForeignFile
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.hcs.schema import Plan9Share

pytestmark = needs_root

ALL = 0
"""As a length: to the end of the file."""


model = one_of("none")
"""Never in this process: what hangs in it could not be ended."""


@contextmanager
def mounted(root: Path, shown: Path) -> Iterator[HungFuse]:
    """A file system in user space at ``mnt`` of a directory, with the files ``good`` and ``bad``."""
    with HungFuse(shown, root / "mnt") as made:
        for name in ("good", "bad"):
            (shown / name).write_bytes(name.encode())
        yield made


@pytest.fixture
def fuse(host: Host) -> Iterator[HungFuse]:
    with mounted(host.root, host.outside / "shown") as made:
        yield made


@dataclass(frozen=True)
class Limited:
    """A share with such a file system, for mounts that have limits."""

    fuse: HungFuse
    root: Path
    start_device: Callable[..., Device]

    def __call__(self, **limits: Any) -> NinePClient:
        """Connect to it by a mount with these limits."""
        device = self.start_device(security_model="none", limits=Limits(**limits))
        return device.connect(device.share(self.root))


@pytest.fixture
def limited(start_device: Callable[..., Device], root: Path, tmp_path: Path) -> Iterator[Limited]:
    with mounted(root, tmp_path / "shown") as made:
        yield Limited(made, root, start_device)


def _lock(fid: int, kind: LockType, owner: bytes, *, start: int = 0, length: int = ALL, block: bool = False) -> m.Tlock:
    return m.Tlock(fid, kind, LockFlag.BLOCK if block else 0, start, length, 1, owner)


def _status(reply: m.Message) -> int:
    assert isinstance(reply, m.Rlock)
    return int(reply.status)


# Order


def test_what_is_flushed_while_it_waits_for_its_turn_holds_up_nothing_behind_it(host: Host, fuse: HungFuse) -> None:
    client = host.guest()
    fid = client.open("mnt/bad", O.RDWR)
    fuse.hang("bad", "WRITE")
    first, second, third, fourth = (client.send(m.Twrite(fid, 0, each)) for each in (b"1", b"2", b"3", b"4"))
    fuse.wait_until_asked()
    assert not client.flush(second), "it was answered"
    assert not client.flush(third), "it was answered"
    fuse.release()
    for tag in (first, fourth):
        assert isinstance(client.wait(tag), m.Rwrite)
    assert client.read(fid, 0, 1) == b"4"
    client.clunk(fid)


def test_what_is_asked_of_a_fid_behind_a_walk_that_moves_it_is_asked_of_where_it_leads(
    host: Host, fuse: HungFuse
) -> None:
    client = host.guest()
    expected = client.stat("mnt/bad").qid
    fid = client.walk("mnt")
    fuse.hang("bad", "LOOKUP")
    walk = client.send(m.Twalk(fid, fid, (b"bad",)))
    tags = [client.send(m.Tgetattr(fid, int(GetattrMask.BASIC))) for _ in range(3)]
    fuse.wait_until_asked()
    fuse.release()
    assert isinstance(client.wait(walk), m.Rwalk)
    for tag in tags:
        reply = client.wait(tag)
        assert isinstance(reply, m.Rgetattr)
        assert reply.qid == expected


class _Ending:
    """Two tables that the loop looks into, and a thread that ends a walk right before one of these looks."""

    def __init__(self, number: int, fid: Fid, looks: int) -> None:
        ending = self

        class Lines(dict[int, Any]):
            def __len__(self) -> int:
                ending.look()
                return super().__len__()

            def __contains__(self, key: object) -> bool:
                ending.look()
                return super().__contains__(key)

        class Fids(dict[int, Fid]):
            def get(self, key: int, default: Any = None) -> Any:
                ending.look()
                return super().get(key, default)

        self.lines = Lines({number: object()})
        self.fids = Fids()
        self._number, self._fid, self._looks = number, fid, looks

    def look(self) -> None:
        self._looks -= 1
        if self._looks == 0:
            self.fids[self._number] = self._fid
            self.lines.clear()


@pytest.mark.parametrize("looks", range(1, 8))
@pytest.mark.parametrize("cls", [m.Tgetattr, m.Twalk, m.Tclunk, m.Tread, m.Tlink])
def test_a_thread_that_ends_a_walk_this_very_moment_has_the_loop_ask_nothing_itself(
    root: Path, monkeypatch: pytest.MonkeyPatch, cls: type[m.Message], looks: int
) -> None:
    number = 900
    messages: dict[type[m.Message], m.Message] = {
        m.Tgetattr: m.Tgetattr(number, int(GetattrMask.BASIC)),
        m.Twalk: m.Twalk(number, 901, ()),
        m.Tclunk: m.Tclunk(number),
        m.Tread: m.Tread(number, 0, 10),
        m.Tlink: m.Tlink(0, number, b"name"),
    }
    export = Export.open(Plan9Share(name="0", access_name="0", path=str(root)), "none")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        session = Serving(theirs, export, Limits(), lambda _: None)
        fid = Fid(ForeignNode(os.dup(export.root), session.tree.root, b"mnt", ("1", 1)), 0)
        fid.file = ForeignFile(os.dup(export.root), (1, 1))
        tables = _Ending(number, fid, looks)
        session.fids = tables.fids
        session.fids[0] = Fid(session.tree.root, 0)
        sent: list[type[m.Message]] = []
        monkeypatch.setattr(session.foreign, "_lines", tables.lines)
        monkeypatch.setattr(session.foreign, "_send", lambda cls, *_: sent.append(cls))

        def in_the_loop(*_: object) -> bytes:
            pytest.fail("the loop would have asked the file system itself")

        served = session.foreign.served([serve and in_the_loop for serve in table.served(read_only=False)])
        frame = messages[cls].encode(1)[7:]
        session.view[: len(frame)] = frame
        dispatch = served[cls.type]
        assert dispatch is not None
        assert dispatch(session, 1, int.from_bytes(frame[:4], "little"), 0, len(frame)) is None
        assert sent == [cls]
        session.close()
    export.close()


# Locks


def test_one_program_unlocks_through_the_fid_on_which_another_waits(host: Host, fuse: HungFuse) -> None:
    """A program and its child share an open file, and so a fid."""
    assert fuse.held == []
    client = host.guest()
    fid = client.open("mnt/good", O.RDWR)
    assert _status(client.rpc(_lock(fid, LockType.WRLCK, b"parent"))) == LockStatus.SUCCESS
    waits = client.send(_lock(fid, LockType.WRLCK, b"child", block=True))
    assert client.read(fid, 0, 10) == b"good"
    assert _status(client.rpc(_lock(fid, LockType.UNLCK, b"parent"))) == LockStatus.SUCCESS
    assert _status(client.wait(waits)) == LockStatus.SUCCESS
    assert _status(client.rpc(_lock(fid, LockType.WRLCK, b"parent"))) == LockStatus.BLOCKED


def test_a_lock_that_is_waited_for_goes_with_its_fid(host: Host, fuse: HungFuse, refused: Refused) -> None:
    assert fuse.held == []
    client = host.guest()
    holding, waiting = client.open("mnt/good", O.RDWR), client.open("mnt/good", O.RDWR)
    assert _status(client.rpc(_lock(holding, LockType.WRLCK, b"one"))) == LockStatus.SUCCESS
    tag = client.send(_lock(waiting, LockType.WRLCK, b"two", block=True))
    client.clunk(waiting)
    with refused(errno.EBADF):
        client.wait(tag)
    client.clunk(holding)
    again = client.open("mnt/good", O.RDWR)
    assert _status(client.rpc(_lock(again, LockType.WRLCK, b"three"))) == LockStatus.SUCCESS


def test_a_lock_that_is_waited_for_is_flushed(host: Host, fuse: HungFuse) -> None:
    assert fuse.held == []
    client = host.guest()
    fid, other = client.open("mnt/good", O.RDWR), client.open("mnt/good", O.RDWR)
    assert _status(client.rpc(_lock(fid, LockType.WRLCK, b"one"))) == LockStatus.SUCCESS
    tag = client.send(_lock(other, LockType.WRLCK, b"two", block=True))
    assert not client.flush(tag), "it was answered"
    client.rpc(_lock(fid, LockType.UNLCK, b"one"))
    assert _status(client.rpc(_lock(fid, LockType.WRLCK, b"three"))) == LockStatus.SUCCESS


@pytest.mark.parametrize("status", LockStatus)
def test_what_was_given_up_is_unlocked_only_where_it_was_granted(status: LockStatus) -> None:
    assert locking.is_granted(m.Rlock(status).encode(7)) == (status == LockStatus.SUCCESS)
    assert not locking.is_granted(m.Rlerror(0).encode(7))
    assert not locking.is_granted(m.Rclunk().encode(0))


# Limits


def test_walks_that_are_under_way_count_as_fids(limited: Limited, refused: Refused) -> None:
    fuse = limited.fuse
    with limited(fids=10) as client:
        directory = client.walk("mnt")  # and the root
        fuse.hang("bad", "LOOKUP")
        tags = [client.send(m.Twalk(directory, 900 + each, (b"bad",))) for each in range(20)]
        fuse.wait_until_asked()
        fuse.release()
        for tag in tags[:8]:
            assert isinstance(client.wait(tag), m.Rwalk)
        for tag in tags[8:]:
            with refused(errno.EMFILE):
                client.wait(tag)


def test_only_so_many_requests_wait_for_locks(limited: Limited, refused: Refused) -> None:
    with limited(locks=2, lock_wait_seconds=600.0) as client:
        fid = client.open("mnt/good", O.RDWR)
        assert _status(client.rpc(_lock(fid, LockType.WRLCK, b"one"))) == LockStatus.SUCCESS
        tags = [client.send(_lock(fid, LockType.WRLCK, owner, block=True)) for owner in (b"two", b"three")]
        assert client.read(fid, 0, 10) == b"good"  # both wait: what came before this has had its turn
        with refused(errno.ENOLCK):
            client.rpc(_lock(fid, LockType.WRLCK, b"four", block=True))
        for tag in tags:
            assert not client.flush(tag), "it was answered"
        again = client.send(_lock(fid, LockType.WRLCK, b"four", block=True))
        client.rpc(_lock(fid, LockType.UNLCK, b"one"))
        assert _status(client.wait(again)) == LockStatus.SUCCESS


@pytest.mark.parametrize("is_used", [True, False])
def test_what_fids_held_is_given_back_with_a_new_session(limited: Limited, refused: Refused, *, is_used: bool) -> None:
    with limited(xattr_bytes=100) as client:
        for path in ("mnt/good", "mnt/bad") if is_used else ("file", "mnt/bad"):
            fid = client.walk(path)
            client.rpc(m.Txattrcreate(fid, b"user.x", 80, 0))
            other = client.walk(path)
            with refused(errno.ENOMEM):
                client.rpc(m.Txattrcreate(other, b"user.x", 80, 0))
            client.version()
            client.root = client.attach("0")
