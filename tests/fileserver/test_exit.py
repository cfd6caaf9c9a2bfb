"""The end of the supervisor, and who is told of it."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from tests.forked import started
from tests.processes import DEADLINE

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.errors import ComputeSystemGone, OutcomeUnknown, RemoteProtocolError
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.outbox import Outbox
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from tests.fileserver.harness import Device


forked_supervisors = started()


def run(work: Coroutine[object, object, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await work

    asyncio.run(bounded())


def test_the_manager_is_told_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    async def work() -> None:
        async with FileServer([f"unix:{tmp_path}/9p"]) as server:
            manager = Manager(server)
            name = await manager.add(AddOptions(tmp_path, read_only=True), owner="a")
            told: asyncio.Future[ComputeSystemGone] = asyncio.get_running_loop().create_future()
            server.on_exit(told.set_result)
            os.kill((await server.status()).pid, signal.SIGKILL)
            assert "has ended" in str(await told)
            assert "has ended" in await server.wait_exit()
            assert manager.shares() == ()
            await manager.remove(name, owner="a")
            with pytest.raises(ComputeSystemGone):
                await server.status()
            late: asyncio.Future[ComputeSystemGone] = asyncio.get_running_loop().create_future()
            server.on_exit(late.set_result)
            assert "has ended" in str(await late)

    run(work())


def test_closing_is_no_such_end_but_ends_the_waiting(tmp_path: Path) -> None:
    async def work() -> None:
        server = await FileServer([f"unix:{tmp_path}/9p"]).start()
        told: list[ComputeSystemGone] = []
        server.on_exit(told.append)
        waiting = asyncio.create_task(server.wait_exit())
        await server.aclose()
        assert await waiting == "the file server was closed"
        assert told == []
        with pytest.raises(ComputeSystemGone, match="was closed"):
            await server.status()

    run(work())


def test_a_channel_that_breaks_while_the_supervisor_goes_on_is_an_unknown_outcome(tmp_path: Path) -> None:
    """Its mounts go on too: to call it gone would be to call shares removed that guests still have."""

    async def work() -> None:
        run_dir = tmp_path / "run"
        async with FileServer([f"unix:{tmp_path}/9p"], run_dir=run_dir) as server:
            second = await FileServer.connect(run_dir).start()
            second._link._writer.write(b"\xff" * 64)  # a length that no message has: the supervisor hangs up
            with pytest.raises(OutcomeUnknown):
                await second.status()
            assert (await second.status()).pid == (await server.status()).pid  # it connected again
            await second.detach()
            assert (await server.status()).addresses == server.addresses

    run(work())


def test_a_guest_that_takes_no_replies_is_ended_when_silence_has_a_limit(
    start_device: Callable[..., Device], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    device = start_device(limits=Limits(idle_seconds=0.05), log=log, security_model="none")
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "large").write_bytes(bytes(1 << 20))
    name = device.share((tmp_path / "share").resolve())
    requests = [
        m.Tattach(0, NOFID, b"root", name.encode(), NONUNAME),
        *(m.Twalk(0, 1, (b"large",)), m.Tlopen(1, OpenFlag.RDONLY)),
        *[m.Tread(1, 0, 1 << 19)] * 64,
    ]
    closed = select.poll()
    with device.dial() as client:
        closed.register(client.socket, select.POLLRDHUP)
        # In one piece: it is never silent, however slow the machine is.
        version = m.Tversion(1 << 20, VERSION).encode(NOTAG)
        client.send_raw(version + b"".join(request.encode(tag) for tag, request in enumerate(requests)))
        assert closed.poll(DEADLINE * 1000)
    device.unshare(name)
    assert "has not taken its replies" in log.read_text()


def test_nothing_more_is_sent_once_a_reply_was_sent_in_part() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(0)
        outbox = Outbox(ours)
        with pytest.raises(RemoteProtocolError, match="has not taken"):
            outbox.send(bytes(64 << 20))
        theirs.settimeout(DEADLINE)
        while len(theirs.recv(1 << 20)) == 1 << 20:
            pass
        with pytest.raises(RemoteProtocolError, match="has not taken"):
            outbox.send(b"whole")


def test_a_handshake_that_breaks_off_inside_a_message_leaves_its_reason(
    start_device: Callable[..., Device], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    device = start_device(log=log)
    with device.dial() as silent, device.dial() as broken:
        broken.send_raw(m.Tversion(8192, b"9P2000.L").encode(0xFFFF)[:-1])
        for client in (silent, broken):
            client.socket.shutdown(socket.SHUT_WR)
            assert client.drain() == []
    (line,) = log.read_text().splitlines()
    assert line.endswith("the connection ended inside a message; connection closed")
