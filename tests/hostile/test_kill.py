"""kill -9 in the middle of writes: what an Rfsync was answered for is there, and nothing else is touched.

What is killed is a mount process, the supervisor, and a guest under QEMU. A host that loses its power is beyond a
test: that Rfsync comes only after fsync(2) is what can be held here, and is.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import select
import signal
import socket
import struct
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import pytest
from tests.fileserver.harness import add_document
from tests.processes import DEADLINE, await_end

from uvmshare.errors import ConnectionClosed, GuestFailed
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.hcs.schema import Plan9Share
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag
from uvmshare.testing.client import NinePClient
from uvmshare.testing.guest_vm import HOST, GuestVM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.hostile.conftest import Target

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

RECORD: Final = 4096
RECORDS: Final = 400


def record(number: int) -> bytes:
    return struct.pack("<I", number) * (RECORD // 4)


class Writer:
    """Writes records and has each brought to stable storage, many requests ahead of their answers."""

    def __init__(self, client: NinePClient) -> None:
        self._client = client
        self._fid = client.create("records", OpenFlag.WRONLY)
        self._fsyncs: dict[int, int] = {}
        self.synced = 0
        """How many records were written and answered with an Rfsync, from the first on."""

    def send(self, numbers: range) -> None:
        for number in numbers:
            self._client.send(m.Twrite(self._fid, number * RECORD, record(number)))
            self._fsyncs[self._client.send(m.Tfsync(self._fid, 0))] = number

    def take(self, count: int) -> None:
        """Take answers until `count` records are on stable storage."""
        while self.synced < count:
            tag, reply = self._client.recv()
            if isinstance(reply, m.Rfsync):
                # Threads sync beside each other, each after the write before it: any covers all earlier writes.
                self.synced = max(self.synced, self._fsyncs.pop(tag) + 1)

    def take_rest(self) -> None:
        with suppress(ConnectionClosed):
            self.take(RECORDS)


def require_records(path: Path, count: int) -> None:
    content = path.read_bytes()
    for number in range(count):
        assert content[number * RECORD : (number + 1) * RECORD] == record(number), f"record {number} of {count}"


def wait_for(pidfd: int) -> None:
    await_end(pidfd)
    os.close(pidfd)


@pytest.mark.parametrize("after", [1, 7, 50, 150])
@pytest.mark.parametrize("model", ["mapped-xattr", "passthrough"])
def test_a_mount_process_killed_in_the_middle_of_writes(attack: Callable[..., Target], model: str, after: int) -> None:
    target = attack(model)
    (target.root / "other").write_bytes(b"untouched")
    client = target.connect()
    (pid,) = target.mounts()
    end = os.pidfd_open(pid)
    writer = Writer(client)
    writer.send(range(200))
    writer.take(after)
    os.kill(pid, signal.SIGKILL)
    writer.take_rest()
    wait_for(end)
    require_records(target.root / "records", writer.synced)
    assert sorted(os.listdir(target.root)) == ["other", "records"]
    assert (target.root / "other").read_bytes() == b"untouched"
    with target.device.connect(target.name) as again:  # the share is there, and the file goes on
        assert again.read_file("records")[:RECORD] == record(0)
        again.write_file("records", b"anew")
    assert target.witness.read_file("file") == b"content"
    target.require_nothing_left()
    said = [line for line in target.reasons() if f"its mount process {pid} was killed by signal 9" in line]
    assert len(said) == 1


def test_the_supervisor_killed_in_the_middle_of_writes(attack: Callable[..., Target]) -> None:
    target = attack()
    clients = [target.connect() for _ in range(3)]
    supervisor = target.pid
    ends = [os.pidfd_open(pid) for pid in (*target.mounts(), supervisor)]
    assert len(ends) == 4
    writer = Writer(clients[0])
    writer.send(range(200))
    writer.take(20)
    os.kill(supervisor, signal.SIGKILL)
    writer.take_rest()
    for end in ends:
        wait_for(end)
    require_records(target.root / "records", writer.synced)
    for client in (*clients[1:], target.witness):
        with pytest.raises(ConnectionClosed):
            client.stat()


def test_a_supervisor_killed_while_it_forks(attack: Callable[..., Target]) -> None:
    # A mount process has a moment in which it holds the supervisor's end of the lifeline itself.
    for _ in range(10):
        target = attack()
        supervisor = target.pid
        clients = [target.device.dial() for _ in range(10)]
        for client in clients:
            with suppress(ConnectionClosed):
                client.send(m.Tversion(8192, b"9P2000.L"))
                client.send(m.Tattach(0, 0xFFFFFFFF, b"", target.name.encode(), 0))
        clients[0].recv()
        os.kill(supervisor, signal.SIGKILL)
        for client in clients:
            client.drain()  # a mount process that stayed would keep its connection open, and this would not end
            client.close()


def test_an_fsync_is_answered_after_it_was_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        done.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", noted)
    export = Export.open(Plan9Share(name="0", access_name="0", path=str(tmp_path.resolve())), "none")
    ours, theirs = socket.socketpair()
    session = Serving(theirs, export, Limits(), done.append)
    server = threading.Thread(target=session.run, args=((0, m.Tattach(0, 0xFFFFFFFF, b"", b"0", 0)), 8192, b""))
    server.start()
    with ours, theirs, NinePClient(ours, timeout=DEADLINE) as client:
        client.recv()
        client.root = 0
        client.new_fid()
        fid = client.create("file", OpenFlag.WRONLY)
        client.write(fid, 0, b"data")
        assert done == []
        client.fsync(fid)
        assert done == [str(tmp_path.resolve() / "file")]
        client.hang_up()
        server.join(DEADLINE)
    export.close()


# A guest

_IN_CREATE: Final = 0x100
_IN_MOVED_TO: Final = 0x80
_libc: Final = ctypes.CDLL(None, use_errno=True)
_EVENT: Final = struct.Struct("iIII")

SCRIPT: Final = """
import os
number = 0
while True:
    with open(f"data-{number}", "wb") as file:
        file.write(number.to_bytes(4, "little") * 1024)
        file.flush()
        os.fsync(file.fileno())
    os.mkdir(f"done-{number}")
    number += 1
"""


@contextmanager
def new_names(directory: Path) -> Iterator[Iterator[str]]:
    """Give the names that are made in a directory, as they are made (inotify(7))."""
    descriptor = _libc.inotify_init1(os.O_CLOEXEC)
    assert descriptor >= 0
    assert _libc.inotify_add_watch(descriptor, os.fsencode(directory), _IN_CREATE | _IN_MOVED_TO) >= 0

    def names() -> Iterator[str]:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        while poll.poll(5 * DEADLINE * 1000):  # a guest starts Python first
            data = os.read(descriptor, 65536)
            at = 0
            while at < len(data):
                length = _EVENT.unpack_from(data, at)[3]
                yield data[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0").decode()
                at += _EVENT.size + length

    try:
        yield names()
    finally:
        os.close(descriptor)


@pytest.mark.long
@pytest.mark.guest
def test_a_guest_killed_in_the_middle_of_writes(tmp_path: Path) -> None:
    shared, other = tmp_path / "shared", tmp_path / "other"
    shared.mkdir()
    other.mkdir()
    (other / "file").write_bytes(b"content")

    async def scenario() -> None:
        server = await FileServer(listen=["tcp:127.0.0.1:0"], security_model="none").start()
        async with server:
            address = server.addresses[0]
            port = address.rpartition(":")[2]
            await server._modify(add_document("0", str(shared.resolve())))
            await server._modify(add_document("1", str(other.resolve())))
            guest = await GuestVM.start(root="host")
            async with guest:
                witness = NinePClient.connect(address, "1", timeout=DEADLINE)
                await guest.check(
                    "mkdir -p /run/at && mount -t 9p -o"
                    f" trans=tcp,port={port},version=9p2000.L,aname=0,cache=mmap {HOST} /run/at"
                )
                (mount,) = (await server.status()).shares[0].mounts
                end = os.pidfd_open(mount.pid)
                with new_names(shared) as names:
                    writing = asyncio.create_task(
                        guest.run(f"cd /run/at && python3 -I -c '{SCRIPT}'", timeout=10 * DEADLINE)
                    )
                    await asyncio.to_thread(lambda: next(name for name in names if name == "done-20"))
                guest._process.kill()
                with suppress(GuestFailed):
                    await writing
                await asyncio.to_thread(wait_for, end)
                assert witness.read_file("file") == b"content"
                witness.close()
            async with asyncio.timeout(DEADLINE):
                while (await server.status()).shares[0].mounts:  # until the supervisor has reaped it
                    pass

    asyncio.run(scenario())
    done = [int(name.partition("-")[2]) for name in os.listdir(shared) if name.startswith("done-")]
    assert len(done) >= 20
    for number in done:
        assert (shared / f"data-{number}").read_bytes() == number.to_bytes(4, "little") * 1024
    assert sorted(os.listdir(other)) == ["file"]
