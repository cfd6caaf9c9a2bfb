"""A guest that takes all it can get, and goes away in the middle: others are served, and afterwards nothing is left."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import await_answer, children_of, descriptors_of, status_of, wait_for_end

from uvmshare.errors import ConnectionClosed
from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION, LockType, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.hostile.conftest import Target

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

SMALL: Final = Limits(
    connections=8,
    half_open=4,
    mounts=6,
    fids=64,
    open_files=16,
    descriptors=256,
    locks=16,
    xattr_bytes=65536,
    lock_wait_seconds=0.001,
)

_MOST_MEMORY_KIB: Final = 128 << 10
"""A mount process has some 30 MiB to begin with; buffers of msize and one reply under way come to it."""


def refused_at_last(client: NinePClient, requests: list[m.Message], *numbers: int) -> int:
    """Send requests until one is refused, with one of these errnos; returns how many were not."""
    for count, request in enumerate(requests):
        try:
            client.rpc(request)
        except OSError as error:
            assert error.errno in numbers, (request, error)  # noqa: PT017  any other is the failure itself
            return count
    pytest.fail(f"all {len(requests)} were granted")


def unlocked(path: Path) -> bool:
    """Say whether the host could lock the whole file now (fcntl(2), F_OFD_GETLK)."""
    with open(path, "r+b") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind: int = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0]
        return kind == fcntl.F_UNLCK


def take_everything(target: Target, client: NinePClient) -> None:
    """Take every fid, open file, lock and byte of attributes that there is, and hold them."""
    root = client.root
    walks: list[m.Message] = [m.Twalk(root, fid, (b"file",)) for fid in range(100, 300)]
    assert refused_at_last(client, walks, errno.EMFILE) == SMALL.fids - 1
    opens: list[m.Message] = [m.Tlopen(fid, OpenFlag.RDWR) for fid in range(100, 163)]
    assert refused_at_last(client, opens, errno.EMFILE) == SMALL.open_files
    locks: list[m.Message] = [m.Tlock(100, LockType.WRLCK, 0, 2 * at, 1, at, b"guest") for at in range(100)]
    assert refused_at_last(client, locks, errno.ENOLCK) == SMALL.locks
    attributes: list[m.Message] = [m.Txattrcreate(fid, b"user.a", 10_000, 0) for fid in range(120, 140)]
    assert refused_at_last(client, attributes, errno.ENOMEM) == 6
    assert not unlocked(target.root / "file")


def watches(client: NinePClient) -> bool:
    """Say whether an agent would be told of changes (docs/events.md)."""
    attribute = client.new_fid()
    try:
        client.rpc(m.Txattrwalk(client.root, attribute, b"trusted.uvmshare.begin"))
    except OSError as error:
        assert error.errno in (errno.ENODATA, errno.EOPNOTSUPP)  # noqa: PT017  any other is the failure itself
        return False
    client.clunk(attribute)
    return True


def test_a_guest_that_attaches_as_often_as_it_can_leaves_the_kernels_queues_to_other_vms(
    attack: Callable[..., Target],
) -> None:
    """There are 128 for all that a user does, of inotify and of fanotify, and each attach took one of both."""
    greedy = attack()
    clients = [greedy.connect() for _ in range(16)]
    assert [watches(client) for client in clients] == [True] * 15 + [False], "the witness has one"
    other = attack()
    assert watches(other.connect())
    clients[0].close()
    await_answer(lambda: len(greedy.mounts()), 15)
    assert watches(greedy.connect())
    greedy.require_unharmed()


@pytest.mark.parametrize("ending", ["hang up", "close", "version", "nonsense", "unshare"])
def test_everything_that_one_mount_may_take_comes_back(attack: Callable[..., Target], ending: str) -> None:
    target = attack(limits=SMALL)
    (target.root / "file").write_bytes(b"content")
    client = target.connect()
    take_everything(target, client)
    target.witness.read_file("file")
    match ending:
        case "hang up":
            client.hang_up()
            client.drain()
        case "close":
            client.close()
        case "version":
            client.version(8192)
            client.root = client.attach(target.name)
            assert unlocked(target.root / "file")
            take_everything(target, client)  # all of it again: nothing was counted twice
            client.close()
        case "nonsense":
            client.send_raw(b"\xff" * 8)
            client.drain()
        case "unshare":
            target.device.unshare(target.name)
            client.drain()
            target.name = target.device.share(target.root)
    target.require_nothing_left()
    assert unlocked(target.root / "file")
    target.require_unharmed()


def test_connections_and_mounts(attack: Callable[..., Target]) -> None:
    target = attack(limits=SMALL)
    held: list[NinePClient] = []
    refused = 0
    for _ in range(20):
        try:
            held.append(target.connect())
        except (OSError, ConnectionClosed):
            refused += 1
        target.witness.read_file("file")
    assert len(held) == SMALL.mounts - 1  # one is the witness's
    assert refused == 20 - len(held)
    assert len(children_of(target.pid)) == SMALL.mounts
    for each in held:
        each.close()
    target.require_nothing_left()
    target.require_unharmed()


def test_half_open_connections_keep_nobody_out(attack: Callable[..., Target]) -> None:
    target = attack(limits=SMALL)
    starts = (b"", b"\x13", m.Tversion(8192, VERSION).encode(NOTAG), b"\xff\x1f\0\0", b"\x40\0\0\0\x68")
    waiting = []
    for number in range(50):
        client = target.device.dial()
        with suppress(ConnectionClosed):
            client.send_raw(starts[number % len(starts)])
        waiting.append(client)
        if number % 10 == 0:
            with target.device.connect(target.name) as good:
                good.stat()
                mounts = target.mounts()
            for pid in mounts:
                wait_for_end(pid)  # or too many that are ending would still count
    for client in waiting:
        client.close()
    target.require_nothing_left()
    target.require_unharmed()


def test_messages_that_never_end(attack: Callable[..., Target]) -> None:
    target = attack()
    clients = []
    for number, size in enumerate((7, 8, 100, 65536, 1 << 20)):
        client = target.connect()
        frame = m.Twrite(client.root, 0, bytes(size)).encode(1)[: (1 << 20) - 1]
        frame = (1 << 20).to_bytes(4, "little") + frame[4:]
        client.send_raw(frame[: -1 - number])
        clients.append(client)
        target.witness.read_file("file")
    (target.root / "file").touch()
    for pid in target.mounts():
        assert int(status_of(pid, "VmHWM").split()[0]) < _MOST_MEMORY_KIB
    for client in clients:
        client.close()
    target.require_nothing_left()
    target.require_unharmed()


@pytest.mark.parametrize("kind", ["read", "readdir", "getattr"])
def test_replies_that_are_never_read_take_no_memory(attack: Callable[..., Target], kind: str) -> None:
    # 64 KiB of requests are answered with up to 2.8 GB: what the guest does not take must not be kept for it.
    target = attack()
    (target.root / "large").write_bytes(bytes(1 << 20))
    for number in range(2000):
        (target.root / f"{number:0200}").touch()
    client = target.connect()
    fid = client.open("large")
    directory = client.open("", OpenFlag.DIRECTORY)
    request = {
        "read": m.Tread(fid, 0, 1 << 20),
        "readdir": m.Treaddir(directory, 0, 1 << 20),
        "getattr": m.Tgetattr(fid, 0x3FFF),
    }[kind].encode(1)
    (pid,) = target.mounts()
    poll = select.poll()
    poll.register(client.socket, select.POLLOUT)
    sent = 0
    client.socket.setblocking(False)
    while sent < 64 << 20:
        try:
            sent += client.socket.send(request * 100)
        except BlockingIOError:
            # Full both ways, or the server has not come to it: it has when it sleeps in a send.
            target.witness.read_file("file")
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state == "S" and not poll.poll(0):
                break
    assert sent >= 64 << 10
    assert int(status_of(pid, "VmHWM").split()[0]) < _MOST_MEMORY_KIB
    target.witness.read_file("file")
    client.close()
    wait_for_end(pid)
    target.require_nothing_left()
    target.require_unharmed()


CONVERSATION: Final = b"".join(
    message.encode(tag)
    for tag, message in enumerate(
        [
            m.Tversion(65536, VERSION),
            m.Tattach(0, NOFID, b"root", b"0", NONUNAME),
            m.Twalk(0, 1, (b"file",)),
            m.Tlopen(1, OpenFlag.RDWR | OpenFlag.SYNC),
            m.Tlock(1, LockType.WRLCK, 0, 0, 0, 1, b"guest"),
            m.Twrite(1, 0, b"data" * 10),
            m.Tfsync(1, 0),
            m.Tread(1, 0, 100),
            m.Twalk(0, 2),
            m.Tlopen(2, OpenFlag.DIRECTORY),
            m.Treaddir(2, 0, 4096),
            m.Twalk(0, 3, (b"file",)),
            m.Txattrcreate(3, b"user.name", 10, 0),
            m.Twrite(3, 0, b"half"),
            m.Tmkdir(0, b"new", 0o755, 0),
            m.Trenameat(0, b"new", 0, b"old"),
            m.Tunlinkat(0, b"old", 0x200),
        ]
    )
)


def test_going_away_in_the_middle_of_everything(attack: Callable[..., Target]) -> None:
    target = attack()
    assert target.name == "0"
    (target.root / "file").write_bytes(b"content")
    for cut in range(1, len(CONVERSATION), 3):
        client = target.device.dial()
        client.send_raw(CONVERSATION[:cut])
        client.close()
        if cut % 90 == 1:
            target.witness.read_file("file")
    target.require_nothing_left()
    assert unlocked(target.root / "file")
    assert os.listxattr(target.root / "file") == []
    target.require_unharmed()


def test_coming_and_going_leaves_no_memory_in_the_supervisor(attack: Callable[..., Target]) -> None:
    target = attack()

    def come_and_go(times: int) -> None:
        for _ in range(times):
            with target.device.connect(target.name) as client:
                client.stat()
                client.hang_up()
                client.drain()
            with target.device.dial() as client:
                client.send_raw(b"GET / HTTP/1.1\r\n\r\n")
                client.drain()

    come_and_go(50)
    before = int(status_of(target.pid, "VmRSS").split()[0])
    come_and_go(120)
    assert int(status_of(target.pid, "VmRSS").split()[0]) - before < 2048  # KiB; twenty a connection would show
    target.require_nothing_left()
    target.require_unharmed()


def test_a_mount_that_needs_more_memory_than_its_limit_ends_alone(attack: Callable[..., Target]) -> None:
    target = attack(limits=Limits(memory_bytes=64 << 20, xattr_bytes=1 << 30))
    (target.root / "file").touch()
    os.setxattr(target.root / "file", "user.large", bytes(4000))
    client = target.connect()
    fid = client.walk("file")
    refused = False
    for newfid in range(1000, 40_000):
        try:
            client.rpc(m.Txattrwalk(fid, newfid, b"user.large"))
        except OSError as error:
            assert error.errno == errno.ENOMEM  # noqa: PT017  any other is the failure itself
            refused = True
            break
        except ConnectionClosed:
            refused = True
            break
    assert refused
    target.witness.read_file("file")
    with target.device.connect(target.name) as another:
        another.stat("file")
    client.close()
    target.require_nothing_left()


def test_descriptors_of_a_mount_are_those_of_its_fids(attack: Callable[..., Target]) -> None:
    target = attack()
    os.makedirs(target.root / "a" / "b" / "c")
    (target.root / "a" / "file").touch()
    client = target.connect()
    (pid,) = target.mounts()
    before = descriptors_of(pid)
    for _ in range(20):
        fids = [client.walk("a/b/c"), client.open("a/file", OpenFlag.RDWR), client.open("a/b", OpenFlag.DIRECTORY)]
        client.rpc(m.Tlock(fids[1], LockType.WRLCK, 0, 0, 0, 1, b"guest"))
        client.rpc(m.Twalk(fids[0], fids[0], (b"..",) * 16))
        client.rpc(m.Trenameat(client.root, b"a", client.root, b"z"))
        client.rpc(m.Trenameat(client.root, b"z", client.root, b"a"))
        with pytest.raises(OSError, match="in answer to"):
            client.rpc(m.Twalk(fids[2], 0x7000, (b"nothing",)))
        for fid in fids:
            client.clunk(fid)
    assert descriptors_of(pid) == before
    target.require_unharmed()
