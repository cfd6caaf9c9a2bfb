"""Every message in every wrong state: an errno, or an ended connection with its reason in the log; never anything else.

The tables are made of the messages themselves (`uvmshare.ninep.messages`), so that a new one is tried without a word
here. The client is strict by itself: a reply that does not fit msize, of the wrong type, or that nobody asked for
raises.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.hostile.shapes import PLAIN, REQUESTS, answered, forget, kind_of, shapes
from tests.processes import descriptors_of

from uvmshare.errors import ConnectionClosed
from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION, OpenFlag
from uvmshare.ninep.types import Qid

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hostile.conftest import Target

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


class Fids:
    """Makes a fid of every kind, each time anew, because a message may use it up."""

    def __init__(self, target: Target, client: NinePClient) -> None:
        self.target = target
        self.client = client
        self._numbers = itertools.count()
        root = target.root
        (root / "file").write_bytes(b"file")
        (root / "directory").mkdir()
        (root / "link").symlink_to("../outside")
        (root / "absolute").symlink_to(target.outside)
        self.moved = 0

    def _path(self) -> Path:
        return self.target.root / f"f{next(self._numbers)}"

    def _walk(self, path: Path) -> int:
        return self.client.walk(path.name)

    def unknown(self) -> int:
        return 0x12345678

    def no_fid(self) -> int:
        return NOFID

    def clunked(self) -> int:
        fid = self.client.walk("file")
        self.client.clunk(fid)
        return fid

    def root(self) -> int:
        return self.client.walk()

    def directory(self) -> int:
        path = self._path()
        path.mkdir()
        return self._walk(path)

    def open_directory(self) -> int:
        return self._opened(self.directory(), OpenFlag.RDONLY)

    def file(self) -> int:
        path = self._path()
        path.write_bytes(b"content")
        return self._walk(path)

    def open_to_read(self) -> int:
        return self._opened(self.file(), OpenFlag.RDONLY)

    def open_to_write(self) -> int:
        return self._opened(self.file(), OpenFlag.WRONLY)

    def open_to_append(self) -> int:
        return self._opened(self.file(), OpenFlag.RDWR | OpenFlag.APPEND | OpenFlag.SYNC)

    def removed(self) -> int:
        fid = self.open_to_read()
        (self.target.root / f"f{next(self._numbers) - 1}").unlink()
        return fid

    def moved_out(self) -> int:
        fid = self.directory()
        self.moved += 1
        os.rename(self.target.root / f"f{next(self._numbers) - 1}", self.target.top / f"moved{self.moved}")
        return fid

    def attribute_to_read(self) -> int:
        fid, newfid = self.file(), self.client.new_fid()
        self.client.rpc(m.Txattrcreate(fid, b"user.name", 5, 0))
        self.client.rpc(m.Twrite(fid, 0, b"value"))
        self.client.clunk(fid)
        with self.client.walked(f"f{next(self._numbers) - 1}") as fid:
            self.client.rpc(m.Txattrwalk(fid, newfid, b"user.name"))
        return newfid

    def attribute_to_write(self) -> int:
        fid = self.file()
        self.client.rpc(m.Txattrcreate(fid, b"user.name", 5, 0))
        return fid

    def symbolic_link(self) -> int:
        path = self._path()
        path.symlink_to(self.target.outside / "canary")
        return self._walk(path)

    def guests_link(self) -> int:
        name = self._path().name
        self.client.symlink(b"../outside/canary", name)
        return self.client.walk(name)

    def fifo(self) -> int:
        path = self._path()
        os.mkfifo(path)
        return self._walk(path)

    def socket(self) -> int:
        path = self._path()
        os.mknod(path, stat.S_IFSOCK | 0o600)
        return self._walk(path)

    def device(self) -> int:
        if os.geteuid() != 0:
            return self.fifo()
        path = self._path()
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        return self._walk(path)

    def _opened(self, fid: int, flags: int) -> int:
        self.client.rpc(m.Tlopen(fid, flags))
        return fid


KINDS: Final = (
    *("unknown", "no_fid", "clunked", "root", "directory", "open_directory", "file", "open_to_read", "open_to_write"),
    *("open_to_append", "removed", "moved_out", "attribute_to_read", "attribute_to_write", "symbolic_link"),
    *("guests_link", "fifo", "socket", "device"),
)


SERVED: Final = [("mapped-xattr", 1 << 20), ("passthrough", 1 << 20), ("none", 4096)]


@pytest.mark.parametrize(
    ("model", "msize"), [SERVED[0], *(pytest.param(*each, marks=pytest.mark.long) for each in SERVED[1:])]
)
def test_every_message_on_every_kind_of_fid_with_extreme_values(
    attack: Callable[..., Target], model: str, msize: int
) -> None:
    # Of two owners in the table one is in the other's way: no lock is waited for.
    target = attack(model, limits=Limits(lock_wait_seconds=0.001))
    client = target.connect(msize=msize)
    fids = Fids(target, client)
    spare = 0x7000
    sent = 0
    for cls in REQUESTS.values():
        if cls is m.Tversion:
            continue  # ends all fids: see below
        for kind in KINDS:
            fid: int = getattr(fids, kind)()
            for message in shapes(cls, fid, spare):
                sent += answered(client, message)
                forget(client, spare)
            forget(client, fid)
        # What the guest made must not be in the way of the next message, nor fill the directory.
        for name in os.listdir(target.root):
            if name not in {"file", "directory", "link", "absolute"}:
                path = target.root / name
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert sent > 10_000 if msize > 65536 else sent > 9_000
    assert client.socket.getpeername() is not None  # it is still this connection
    client.stat("file")
    target.require_unharmed()


BITS: Final = [1 << bit for bit in range(32)]
FLAGS: Final = sorted(
    {0, 0xFFFFFFFF, *BITS, *(a | b for a, b in itertools.combinations(BITS[:23], 2))}
    | {random.Random(number).getrandbits(32) for number in range(100)}
)


@pytest.mark.parametrize("model", ["mapped-xattr", pytest.param("none", marks=pytest.mark.long)])
def test_every_combination_of_open_flags(attack: Callable[..., Target], model: str) -> None:
    target = attack(model)
    client = target.connect()
    fids = Fids(target, client)
    for kind in ("file", "directory", "symbolic_link", "guests_link", "fifo", "socket", "device"):
        start: int = getattr(fids, kind)()
        for flags in FLAGS:
            client.rpc(m.Twalk(start, 0x7000))
            answered(client, m.Tlopen(0x7000, flags))
            forget(client, 0x7000)
    links = [path.name for path in target.root.iterdir() if path.is_symlink()]
    for flags in FLAGS:
        for name in (b"made", b"file", links[flags % len(links)].encode()):
            client.rpc(m.Twalk(client.root, 0x7000))
            answered(client, m.Tlcreate(0x7000, name, flags, 0o7777, 0))
            forget(client, 0x7000)
    target.require_unharmed()


@pytest.mark.parametrize(
    "model", ["passthrough", *(pytest.param(each, marks=pytest.mark.long) for each in ("mapped-xattr", "none"))]
)
def test_every_setattr_mask(attack: Callable[..., Target], model: str) -> None:
    target = attack(model)
    client = target.connect()
    fids = Fids(target, client)
    values = ((0o777, 1, 1, 10, 0, 0, 0, 0), (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 1 << 63, 1 << 63, 10**9, 1 << 62, 1))
    for kind in ("file", "open_to_write", "directory", "symbolic_link", "guests_link", "fifo", "socket", "moved_out"):
        fid: int = getattr(fids, kind)()
        for valid in (*range(512), 0xFFFFFFFF, 0xFFFFFE00, 0x80000000):
            for each in values:
                answered(client, m.Tsetattr(fid, valid, *each))
    target.require_unharmed()


def every_message() -> dict[str, bytes]:
    """One well-formed message of each type, of both directions."""
    made = {}
    for cls in m.BY_TYPE.values():
        plain: dict[str, Any] = {}
        for name in cls.__struct_fields__:
            hint = str(cls.__annotations__[name])
            qid = Qid(0, 0, 0)
            plain[name] = qid if hint == "Qid" else (qid,) if "Qid" in hint else PLAIN[kind_of(cls, name)]
        made[cls.__name__] = cls(**plain).encode(1)
    return made


VERSION_MESSAGE: Final = m.Tversion(65536, VERSION).encode(NOTAG)
BEFORE: Final = {
    "before a version": b"",
    "before an attach": VERSION_MESSAGE,
    "after a version that is unknown": m.Tversion(65536, b"9P2000.u").encode(NOTAG),
    # Not NOTAG: an error with that tag is the last word of a mount that ends, which the client takes for no reply.
    "after a version with a tiny msize": m.Tversion(7, VERSION).encode(1),
}


@pytest.mark.parametrize("state", BEFORE)
def test_every_message_before_the_attach(attack: Callable[..., Target], state: str) -> None:
    target = attack()  # for each state: past 200 lines the log leaves some out
    opening = BEFORE[state]
    for name, frame in every_message().items():
        before = len(target.reasons())
        with target.device.dial() as client:
            client.send_raw(opening + frame)
            client.hang_up()
            replies = client.drain()
        assert all(isinstance(reply, (m.Rversion, m.Rlerror, m.Rflush)) for reply in replies), (name, replies)
        if len(replies) < (2 if opening else 1):
            said = [line for line in target.reasons()[before:] if line.endswith("connection closed")]
            assert said, f"{name} {state}: closed without a reason"
    target.require_unharmed()
    target.require_nothing_left()


def test_every_message_after_a_second_version(attack: Callable[..., Target]) -> None:
    # Tversion in the middle ends all fids: whatever comes then meets a session without any.
    target = attack("mapped-xattr", limits=Limits(lock_wait_seconds=0.001))
    (target.root / "file").write_bytes(b"file")
    for cls in REQUESTS.values():
        client = target.connect()
        old = client.open("file", OpenFlag.RDWR)
        client.rpc(m.Tlock(old, 1, 0, 0, 0, 1, b"guest"))
        client.version(8192)
        for message in shapes(cls, old, 0x7000):
            if not answered(client, message):
                continue
            if cls is m.Tversion:
                continue
            if isinstance(message, m.Tattach):
                forget(client, old)
        client.close()
    target.require_unharmed()
    target.require_nothing_left()


@pytest.mark.parametrize("version", [b"9P2000", b"9P2000.u", b"unknown", b"", b"9P2000.L.x", b"\xff" * 100])
def test_a_session_that_another_version_has_ended(attack: Callable[..., Target], version: bytes) -> None:
    target = attack()
    for cls in REQUESTS.values():
        if cls in {m.Tversion, m.Tattach}:
            continue
        client = target.connect()
        reply = client.rpc(m.Tversion(65536, version))
        assert m.expect(reply, m.Rversion).version == b"unknown"
        with pytest.raises(ConnectionClosed):
            client.rpc(next(shapes(cls, client.root, 1)))
    target.require_unharmed()


def test_tags_in_use_and_flushes_of_everything(attack: Callable[..., Target]) -> None:
    target = attack(limits=Limits(lock_wait_seconds=600.0))
    (target.root / "file").write_bytes(b"file")
    client, other = target.connect(), target.connect()
    held = other.open("file", OpenFlag.RDWR)
    other.rpc(m.Tlock(held, 1, 0, 0, 0, 1, b"other"))
    fid = client.open("file", OpenFlag.RDWR)
    waits = client.send(m.Tlock(fid, 1, 1, 0, 0, 1, b"guest"), tag=0x700)
    for message in (
        m.Tgetattr(fid, 0),
        m.Tflush(0x700),
        m.Tversion(8192, VERSION),
        m.Tlock(fid, 1, 1, 0, 0, 2, b"guest"),
    ):
        client.send_raw(message.encode(waits))
        tag, reply = client.recv()
        assert tag == waits
        assert isinstance(reply, m.Rlerror), message
    for oldtag in (0, 1, 0x6FF, 0x701, 0xFFFE, NOTAG):
        client.rpc(m.Tflush(oldtag))
    assert client.flush(waits) is False
    client.stat("file")
    target.require_unharmed()


def test_a_first_attach_that_is_wrong_is_answered(attack: Callable[..., Target]) -> None:
    target = attack()
    aname = target.name.encode()
    wrong = {
        "a fid that means none": m.Tattach(NOFID, NOFID, b"", aname, NONUNAME),
        "an authentication fid": m.Tattach(0, 5, b"", aname, NONUNAME),
        "another share": m.Tattach(0, NOFID, b"", b"nothing", NONUNAME),
    }
    for why, message in wrong.items():
        with target.device.dial() as client:
            client.version(65536)
            with pytest.raises(OSError, match="in answer to Tattach"):
                client.rpc(message)
            client.root = client.attach(aname)
            assert client.stat("").qid.type == 0x80, why
    with target.device.dial() as client:
        client.version(65536)
        client.root = client.attach(aname, uname="9" * 7000)  # int() of Python refuses more than 4,300 digits
        client.stat("")
    target.require_unharmed()


def test_a_unix_socket_takes_no_descriptors(attack: Callable[..., Target]) -> None:
    # SCM_RIGHTS: what a local peer sends beside its bytes must not pile up in the server.
    target = attack()
    with target.device.dial() as client:
        client.version()  # the connection has been accepted
        before = descriptors_of(target.pid)
        with open("/dev/null", "rb") as null:
            socket.send_fds(client.socket, [VERSION_MESSAGE[:4]], [null.fileno()] * 100)
            socket.send_fds(client.socket, [VERSION_MESSAGE[4:]], [null.fileno()] * 100)
        assert isinstance(client.recv()[1], m.Rversion)
        assert descriptors_of(target.pid) == before
    target.require_unharmed()
