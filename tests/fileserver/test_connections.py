"""Connections come and go, at every kind of address, and leave no descriptor and no process behind."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import stat
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import DEADLINE, await_answer, await_end

from uvmshare.errors import (
    FileServerError,
    InvalidAddress,
    InvalidOptions,
)
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION, LockStatus, LockType
from uvmshare.ninep.constants import OpenFlag as O
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Device, Refused

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


TCP_REPAIR = 19  # linux/tcp.h: such a socket is closed without a packet

# Connections


def open_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("listen", ["unix", "tcp"])
def test_the_connection_of_a_mount_process_is_a_blocking_one(
    start_device: Callable[..., Device], root: Path, listen: str
) -> None:
    """It is one open file with the supervisor's duplicate, and waits in recv(2) instead of asking over and over."""
    device = start_device(security_model="none", **({} if listen == "unix" else {"listen": ["tcp:127.0.0.1:0"]}))
    device.address = device.server.addresses[0]
    name = device.share(root)
    with device.connect(name) as guest:
        (pid,) = device.mounts(name)
        for _ in range(2):
            sockets = 0
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}").startswith("socket:"):
                    with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as about:
                        flags = int(about.read().partition("flags:")[2].split()[0], 8)
                    assert not flags & os.O_NONBLOCK
                    sockets += 1
            assert sockets == 1
            guest.stat("file")


def test_descriptors_and_processes_do_not_grow_with_connections(
    device: Device, root: Path, ended: Callable[[int], None], refused: Refused
) -> None:
    name = device.share(root)
    supervisor = device.pid()
    before: int | None = None
    for turn in range(30):
        with device.connect(name) as guest:
            guest.stat("file")
            (pid,) = device.mounts(name)
        with device.dial() as half_open:
            half_open.version()
        with device.dial() as stranger:
            stranger.version()
            with refused(errno.ENOENT):
                stranger.attach("nothing")
        ended(pid)
        if turn == 0:
            before = settled(device, name, supervisor)
    assert settled(device, name, supervisor) == before
    device.unshare(name)


def settled(device: Device, name: str, supervisor: int) -> int:
    """The supervisor's descriptors once it has seen the end of every connection.

    It sees them in its own time, so it is asked again.
    """

    def left() -> tuple[int, list[int]]:
        return device.run(device.server.status()).half_open, device.mounts(name)

    await_answer(left, (0, []))
    return open_descriptors(supervisor)


def test_a_mount_process_holds_little_and_lets_go(device: Device, root: Path) -> None:
    name = device.share(root)
    with device.connect(name) as guest:
        (pid,) = device.mounts(name)
        before = open_descriptors(pid)
        assert before < 16
        fids = [guest.open("file") for _ in range(100)]
        assert open_descriptors(pid) > before
        for fid in fids:
            guest.clunk(fid)
        for _ in range(50):
            with contextlib.suppress(OSError):
                guest.create("nothing/here")
            with contextlib.suppress(OSError):
                guest.open("file", O.DIRECTORY)
            guest.clunk(guest.open("", O.DIRECTORY))
            guest.read_file("file")
        assert open_descriptors(pid) == before
        guest.version()
        assert open_descriptors(pid) <= before
    device.unshare(name)


def test_a_mount_process_that_is_killed_ends_its_connection_alone(
    device: Device, root: Path, ended: Callable[[int], None]
) -> None:
    name = device.share(root)
    with device.connect(name) as victim:
        (pid,) = device.mounts(name)
        with device.connect(name) as witness:
            os.kill(pid, signal.SIGKILL)
            assert victim.drain() == []
            ended(pid)
            assert witness.read_file("file") == b"content"
    device.unshare(name)


def test_fids_past_the_limit_are_refused(start_device: Callable[..., Device], root: Path, refused: Refused) -> None:
    device = start_device(security_model="none", limits=Limits(fids=100))
    with device.connect(device.share(root)) as guest:
        for fid in range(1000, 1099):  # the root is one
            guest.ask(m.Twalk(guest.root, fid), m.Rwalk)
        with refused(errno.EMFILE):
            guest.rpc(m.Twalk(guest.root, 1099))
        guest.ask(m.Tclunk(1000), m.Rclunk)
        guest.ask(m.Twalk(guest.root, 1099), m.Rwalk)


def test_mounts_past_the_limit_are_refused(
    start_device: Callable[..., Device], root: Path, refused: Refused, ended: Callable[[int], None], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    device = start_device(security_model="none", log=log, limits=Limits(mounts=2))
    name = device.share(root)
    with device.connect(name) as one:
        (first,) = device.mounts(name)
        with device.connect(name) as two:
            with refused(errno.EUSERS):
                device.connect(name)
            assert log.read_text().count("there are 2 mounts already; attach refused") == 1
            assert one.listdir() == two.listdir() == [b"file"]
            one.close()
            ended(first)
            await_answer(lambda: len(device.mounts(name)), 1)
            with device.connect(name) as three:
                assert three.listdir() == [b"file"]


# Connections that say nothing


def test_silent_connections_do_not_keep_a_good_one_out(
    start_device: Callable[..., Device], root: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    device = start_device(security_model="none", log=log, limits=Limits(half_open=8))
    name = device.share(root)
    silent = [device.dial() for _ in range(8)]
    device.pid()
    with device.connect(name) as guest:
        assert guest.listdir() == [b"file"]
        assert silent[0].drain() == []  # the oldest had to go
        assert "more than 8 connections wait to attach; connection closed" in log.read_text()
        more = [device.dial() for _ in range(20)]
        for half, version in zip(more, range(20), strict=True):
            if version % 2:
                with contextlib.suppress(EOFError):
                    half.send_raw(m.Tversion(8192, VERSION).encode(NOTAG)[:-1])
        with device.connect(name) as another:
            assert another.listdir() == [b"file"]
        assert guest.listdir() == [b"file"]
    for client in (*silent, *more):
        client.close()


def test_a_handshake_has_a_deadline(start_device: Callable[..., Device], root: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    device = start_device(security_model="none", log=log, limits=Limits(handshake_seconds=0.01))
    started = {
        "nothing": b"",
        "half a version": m.Tversion(8192, VERSION).encode(NOTAG)[:10],
        "a version": m.Tversion(8192, VERSION).encode(NOTAG),
        "an attach that is refused": m.Tversion(8192, VERSION).encode(NOTAG)
        + m.Tattach(0, NOFID, b"", b"nothing", NONUNAME).encode(1),
    }
    for data in started.values():
        with device.dial() as client:
            with contextlib.suppress(EOFError):
                client.send_raw(data)
            client.drain()
    device.pid()
    assert log.read_text().count("deadline") == len(started)


def test_a_session_has_no_deadline(start_device: Callable[..., Device], root: Path) -> None:
    device = start_device(security_model="none", limits=Limits(handshake_seconds=1.0))
    name, supervisor = device.share(root), device.pid()
    os.kill(supervisor, signal.SIGSTOP)  # when it accepts the guest, all of its handshake is there
    with device.dial() as guest, device.dial() as silent:
        guest.root = guest.new_fid()
        guest.limit_replies(8192)
        attach = m.Tattach(guest.root, NOFID, b"root", name.encode(), NONUNAME)
        guest.send_raw(m.Tversion(8192, VERSION).encode(NOTAG) + attach.encode(0))
        os.kill(supervisor, signal.SIGCONT)
        assert [type(guest.recv()[1]) for _ in range(2)] == [m.Rversion, m.Rattach]
        assert silent.drain() == []  # later than the guest's own deadline would have been
        assert guest.listdir() == [b"file"]


# Addresses


def test_several_addresses_and_a_port_of_the_systems_choice(start_device: Callable[..., Device], root: Path) -> None:
    device = start_device(security_model="none", listen=["tcp:127.0.0.1:0", "tcp:127.0.0.2:0"])
    name = device.share(root)
    assert len(device.server.addresses) == 2
    for address in device.server.addresses:
        assert not address.endswith(":0")
        with NinePClient.connect(address, name) as guest:
            assert guest.listdir() == [b"file"]


@pytest.mark.parametrize("kind", ["firecracker", "cloud-hypervisor"])
def test_hybrid_vsock_listens_where_the_monitor_connects(
    start_device: Callable[..., Device], root: Path, tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    path = tmp_path_factory.mktemp("h") / "v"
    device = start_device(security_model="none", listen=[f"{kind}:{path}", f"{kind}:{path}:77"])
    name = device.share(root)
    for socket_path in (f"{path}_5640", f"{path}_77"):
        assert stat.S_ISSOCK(os.stat(socket_path).st_mode)
        assert stat.S_IMODE(os.stat(socket_path).st_mode) == 0o600
        with NinePClient.connect(f"unix:{socket_path}", name) as guest:
            assert guest.listdir() == [b"file"]


def test_the_mode_of_the_socket(start_device: Callable[..., Device]) -> None:
    device = start_device(security_model="none", socket_mode=0o660)
    assert stat.S_IMODE(os.stat(device.address.removeprefix("unix:")).st_mode) == 0o660


def start_and_fail(**settings: Any) -> None:
    async def start() -> None:
        async with FileServer(**settings):
            pytest.fail("it started")

    asyncio.run(start())


def test_a_tcp_peer_that_died_without_a_word_loses_its_mount_and_its_locks(
    start_device: Callable[..., Device], root: Path
) -> None:
    (root / "f").write_bytes(b"")
    device = start_device(listen=["tcp:127.0.0.1:0"], security_model="none", limits=Limits(peer_seconds=4.0))
    name = device.share(root)
    address = device.server.addresses[0]
    dead = NinePClient.connect(address, name, timeout=DEADLINE)
    lock = m.Tlock(dead.open("f", O.RDWR), LockType.WRLCK, 0, 0, 0, 1, b"vm")
    assert dead.ask(lock, m.Rlock).status == LockStatus.SUCCESS
    (pid,) = device.mounts(name)
    pidfd = os.pidfd_open(pid)
    dead.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    dead.socket.close()  # tells nobody, as a machine that lost its power
    await_end(pidfd)
    os.close(pidfd)
    with NinePClient.connect(address, name, timeout=DEADLINE) as other:
        lock = m.Tlock(other.open("f", O.RDWR), LockType.WRLCK, 0, 0, 0, 1, b"vm")
        assert other.ask(lock, m.Rlock).status == LockStatus.SUCCESS


@pytest.mark.parametrize(
    "address", ["", "unix:", "unix", "tcp:127.0.0.1", "tcp:0.0.0.0:0", "http://x", "vsock:x", "vsock:2:5640", "tcp::0"]
)
def test_addresses_that_cannot_be(address: str) -> None:
    with pytest.raises(InvalidAddress):
        start_and_fail(listen=[address])


@pytest.mark.parametrize("settings", [{"listen": []}, {"listen": ["tcp:127.0.0.1:0"], "security_model": "mapped"}])
def test_settings_that_cannot_be_start_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidOptions):
        FileServer(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"listen": ["unix:/nothing/here/s"]},
        {"listen": ["unix:/etc/passwd"]},
    ],
)
def test_servers_that_cannot_start(settings: dict[str, Any]) -> None:
    with pytest.raises(FileServerError):
        start_and_fail(**settings)


def test_an_address_in_use_is_refused_and_the_other_server_goes_on(device: Device, root: Path) -> None:
    with pytest.raises(FileServerError, match=f"file server has it already, process {device.pid()}"):
        start_and_fail(listen=[device.address])
    name = device.share(root)
    with device.connect(name) as guest:
        assert guest.listdir() == [b"file"]
    device.unshare(name)


def test_a_socket_that_a_dead_server_left_is_taken_over(
    start_device: Callable[..., Device],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = f"unix:{tmp_path_factory.mktemp('d')}/s"
    dead = start_device(security_model="none", listen=[address])
    pid = dead.pid()
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    device = start_device(security_model="none", listen=[address])
    with NinePClient.connect(address, device.share(root)) as guest:
        assert guest.listdir() == [b"file"]
