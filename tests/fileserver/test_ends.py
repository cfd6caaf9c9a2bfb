"""How a file server ends: closed, told to, killed, or with the process that started it; and how it goes on."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.forked import started
from tests.processes import DEADLINE, process_exists

from uvmshare.errors import ComputeSystemGone, FileServerError, OutcomeUnknown
from uvmshare.fileserver.device import FileServer
from uvmshare.hcs.schema import PLAN9_SHARES, ModifySettingRequest, Plan9Share, RequestType
from uvmshare.ninep import messages
from uvmshare.ninep.constants import NOFID, NOTAG, READ_HEADER_SIZE, VERSION
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

forked_supervisors = started()


LAST_WORD = messages.Rlerror(errno.EIO).encode(NOTAG)


def addition(root: Path) -> ModifySettingRequest:
    settings = Plan9Share(name="x", access_name="x", path=str(root), port=564)
    return ModifySettingRequest(resource_path=PLAN9_SHARES, request_type=RequestType.ADD, settings=settings)


# Ends


def test_closing_ends_everything_and_removes_the_socket(
    start_device: Callable[..., Device], root: Path, ended: Callable[[int], None]
) -> None:
    device = start_device(security_model="none")
    name = device.share(root)
    with device.connect(name) as guest, device.dial() as half_open:
        supervisor, mounts = device.pid(), device.mounts(name)
        device.run(device.server.aclose())
        assert [pid for pid in (supervisor, *mounts) if process_exists(pid)] == []
        assert guest.drain() == []
        assert half_open.drain() == []
    assert not os.path.lexists(device.address.removeprefix("unix:"))
    device.run(device.server.aclose())  # again changes nothing
    with pytest.raises(ComputeSystemGone):
        device.share(root)


def test_a_guest_on_tcp_sees_a_reset_when_its_share_goes(start_device: Callable[..., Device], root: Path) -> None:
    """An orderly end would be one that Linux's client takes for no error, or does not see."""
    device = start_device(security_model="none", listen=["tcp:127.0.0.1:0"])
    name = device.share(root)
    with NinePClient.connect(device.server.addresses[0], name, timeout=DEADLINE) as guest:
        guest.stat()
        device.unshare(name)
        assert guest.socket.recv(100) == LAST_WORD
        with pytest.raises(ConnectionResetError):
            guest.socket.recv(1)


def test_a_guest_is_told_between_two_replies_that_its_share_goes(
    start_device: Callable[..., Device], root: Path
) -> None:
    """By a reply that no request has: then Linux's client answers EIO to what is under way, and not EFAULT."""
    device = start_device(security_model="none")
    name = device.share(root)
    with device.connect(name) as guest, device.connect(name) as silent:
        guest.stat()
        device.unshare(name)
        for each in (guest, silent):
            assert each.socket.recv(100) == LAST_WORD
            assert each.socket.recv(100) == b""


def test_a_guest_that_takes_nothing_keeps_no_share_and_is_told_nothing_inside_a_reply(
    start_device: Callable[..., Device], root: Path
) -> None:
    (root / "big").write_bytes(bytes(1 << 20))
    device = start_device(security_model="none")
    name = device.share(root)
    with device.connect(name) as guest:
        fid = guest.open("big")
        for tag in range(100, 150):  # more than the socket holds: its mount process waits for room
            guest.send(messages.Tread(fid, 0, 100_000), tag=tag)
        first = guest.socket.recv(1)
        device.unshare(name)
        data = first
        with contextlib.suppress(ConnectionResetError):  # so ends a socket of which the other end had not read all
            while piece := guest.socket.recv(1 << 20):
                data += piece
    while len(data) > 4 and len(data) >= (size := int.from_bytes(data[:4], "little")) and data != LAST_WORD:
        assert size == 100_000 + READ_HEADER_SIZE
        data = data[size:]
    assert data == LAST_WORD or not any(data[READ_HEADER_SIZE:]), "a part of a reply, and nothing but it"


def test_a_mount_that_does_not_leave_is_killed(
    start_device: Callable[..., Device], root: Path, ended: Callable[[int], None]
) -> None:
    device = start_device(security_model="none")
    name = device.share(root)
    with device.connect(name) as guest:
        (stopped,) = device.mounts(name)
        os.kill(stopped, signal.SIGSTOP)
        device.unshare(name)
        assert not process_exists(stopped)
        assert guest.drain() == []


def test_a_removal_that_meets_a_mount_as_it_begins_ends_it_too(start_device: Callable[..., Device], root: Path) -> None:
    device = start_device(security_model="none")
    for _ in range(20):
        name = device.share(root)
        with device.dial() as guest:
            guest.send(messages.Tversion(8192, VERSION))
            guest.send(messages.Tattach(0, NOFID, b"root", name.encode(), 0), tag=1)
            device.unshare(name)
    assert device.run(device.server.status()).shares == ()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_supervisor_that_is_told_to_end_ends_in_order(
    start_device: Callable[..., Device], root: Path, ended: Callable[[int], None], number: signal.Signals
) -> None:
    device = start_device(security_model="none")
    name = device.share(root)
    with device.connect(name) as guest:
        supervisor, mounts = device.pid(), device.mounts(name)
        os.kill(supervisor, number)
        ended(supervisor)
        assert [pid for pid in mounts if process_exists(pid)] == []
        assert guest.drain() == []
    with pytest.raises((ComputeSystemGone, OutcomeUnknown)):
        device.share(root)
    with pytest.raises(ComputeSystemGone):
        device.share(root)


def test_a_supervisor_that_is_killed_takes_its_mounts_along(
    start_device: Callable[..., Device], root: Path, ended: Callable[[int], None]
) -> None:
    device = start_device(security_model="none")
    name = device.share(root)
    guests = [device.connect(name, n_uname=1000) for _ in range(3)]
    supervisor, mounts = device.pid(), device.mounts(name)
    assert len(mounts) == 3
    os.kill(supervisor, signal.SIGKILL)
    for pid in (supervisor, *mounts):
        ended(pid)
    for guest in guests:
        assert guest.drain() == []
        guest.close()
    with pytest.raises((ComputeSystemGone, OutcomeUnknown)):
        device.share(root)
    with pytest.raises(ComputeSystemGone):
        device.share(root)


def test_a_request_under_way_when_the_supervisor_dies_has_an_unknown_outcome(
    start_device: Callable[..., Device], root: Path
) -> None:
    device = start_device(security_model="none")
    supervisor = device.pid()
    os.kill(supervisor, signal.SIGSTOP)  # it reads nothing any more

    async def ask_and_kill() -> None:
        task = asyncio.ensure_future(device.server._modify(addition(root)))
        await asyncio.sleep(0)  # one turn of the loop: the request is on its way
        os.kill(supervisor, signal.SIGKILL)
        await task

    with pytest.raises(OutcomeUnknown):
        device.run(ask_and_kill())


def test_a_supervisor_that_does_not_answer_has_an_unknown_outcome(
    start_device: Callable[..., Device], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = start_device(security_model="none")
    supervisor = device.pid()
    os.kill(supervisor, signal.SIGSTOP)
    monkeypatch.setattr(device.server, "_modify_timeout", 0.05)  # from now on: before, it has to answer
    try:
        with pytest.raises(OutcomeUnknown):
            device.share(root)
    finally:
        os.kill(supervisor, signal.SIGCONT)


STARTER = """
import asyncio, json, os, sys, time
from uvmshare.fileserver.device import FileServer
from uvmshare.hcs.schema import PLAN9_SHARES, ModifySettingRequest, Plan9Share, RequestType

async def main():
    settings = json.loads(sys.argv[1])
    root = settings.pop("root")
    server = await FileServer(**settings).start()
    share = Plan9Share(name="0", access_name="0", path=root, port=564)
    await server._modify(
        ModifySettingRequest(resource_path=PLAN9_SHARES, request_type=RequestType.ADD, settings=share)
    )
    print((await server.status()).pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def start_elsewhere() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Start a file server with share 0 from a process of its own; give that process and the supervisor's pid."""
    started: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> tuple[subprocess.Popen[str], int]:
        process = subprocess.Popen(
            [sys.executable, "-c", STARTER, json.dumps({"security_model": "none"} | settings)],
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        return process, int(process.stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def test_a_server_ends_with_the_process_that_started_it(
    start_elsewhere: Callable[..., tuple[subprocess.Popen[str], int]],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    address = f"unix:{tmp_path_factory.mktemp('e')}/s"
    starter, supervisor = start_elsewhere(listen=[address], root=str(root))
    with NinePClient.connect(address, "0") as guest:
        assert guest.listdir() == [b"file"]
        starter.kill()
        ended(supervisor)
        assert guest.drain() == []
    assert not os.path.lexists(address.removeprefix("unix:"))


def test_a_server_with_a_run_directory_goes_on_and_is_adopted(
    start_elsewhere: Callable[..., tuple[subprocess.Popen[str], int]],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("a")
    address = f"unix:{directory}/s"
    starter, supervisor = start_elsewhere(listen=[address], root=str(root), run_dir=str(directory / "run"))
    with NinePClient.connect(address, "0") as guest:
        starter.kill()
        starter.wait()
        assert guest.read_file("file") == b"content"

        async def adopt() -> None:
            async with FileServer.connect(directory / "run") as server:
                assert server.addresses == (address,)
                status = await server.status()
                assert status.pid == supervisor
                assert [share.name for share in status.shares] == ["0"]
                assert guest.listdir() == [b"file"]
                removal = ModifySettingRequest(
                    resource_path=PLAN9_SHARES,
                    request_type=RequestType.REMOVE,
                    settings=Plan9Share(name="0", access_name="0", port=564),
                )
                await server._modify(removal)
                assert guest.drain() == []

        asyncio.run(adopt())
    ended(supervisor)
    assert not os.path.lexists(address.removeprefix("unix:"))


def test_whoever_lets_go_leaves_the_server_running(
    start_elsewhere: Callable[..., tuple[subprocess.Popen[str], int]],
    root: Path,
    ended: Callable[[int], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("b")
    address = f"unix:{directory}/s"
    _, supervisor = start_elsewhere(listen=[address], root=str(root), run_dir=str(directory / "run"))

    async def look_and_leave() -> None:
        server = await FileServer.connect(directory / "run").start()
        assert (await server.status()).pid == supervisor
        await server.detach()

    async def end() -> None:
        await (await FileServer.connect(directory / "run").start()).aclose()

    asyncio.run(look_and_leave())
    with NinePClient.connect(address, "0") as guest:
        assert guest.listdir() == [b"file"]
    asyncio.run(end())
    ended(supervisor)


GARBAGE = [
    b"\xff\xff\xff\xff",
    (5).to_bytes(4, "big") + b"hello",
    (2).to_bytes(4, "big") + b"{}",
    (4).to_bytes(4, "big") + b"null",
    (0).to_bytes(4, "big"),
    (27).to_bytes(4, "big") + b'{"do":"nothing","id":1}    ',
    (20).to_bytes(4, "big") + b'{"do":"modify","id"',
]


@pytest.mark.parametrize("data", GARBAGE)
def test_a_peer_that_makes_no_sense_on_the_control_socket_ends_itself_alone(
    tmp_path_factory: pytest.TempPathFactory, root: Path, data: bytes
) -> None:
    directory = tmp_path_factory.mktemp("c")
    path = directory / "control.sock"

    async def speak_nonsense() -> None:
        async with FileServer(listen=[f"unix:{directory}/s"], run_dir=directory, security_model="none") as server:
            await server._modify(addition(root))
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(data)
            writer.write_eof()
            async with asyncio.timeout(DEADLINE):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            with NinePClient.connect(f"unix:{directory}/s", "x") as guest:
                assert guest.listdir() == [b"file"]
            assert [share.name for share in (await server.status()).shares] == ["x"]

    asyncio.run(speak_nonsense())


def test_a_run_directory_without_a_server(tmp_path: Path) -> None:
    async def connect() -> None:
        await FileServer.connect(tmp_path).start()

    with pytest.raises(FileServerError, match=str(tmp_path)):
        asyncio.run(connect())


def test_two_servers_do_not_share_a_run_directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("r")

    async def twice() -> None:
        async with FileServer(listen=["tcp:127.0.0.1:0"], run_dir=directory, security_model="none"):
            with pytest.raises(FileServerError):
                await FileServer(listen=["tcp:127.0.0.1:0"], run_dir=directory, security_model="none").start()

    asyncio.run(twice())
