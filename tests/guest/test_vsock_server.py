"""The file server's own end of a vsock connection: a peer that is gone without a word loses its mount and its locks.

Here the server is in the guest, where its socket is a real AF_VSOCK one, and the host is the client.
"""

from __future__ import annotations

import socket
import sys
from typing import TYPE_CHECKING

import pytest
from tests.guest import vsock_server
from tests.processes import DEADLINE

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import LockStatus, LockType, OpenFlag
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    import asyncio

    from uvmshare.testing.guest_vm import GuestVM

pytestmark = pytest.mark.guest

PORT = 6900


def connect(uds_path: str) -> NinePClient:
    """Reach the server in the guest, as a program of the host's does with either monitor."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connected.settimeout(DEADLINE)
    connected.connect(uds_path)
    connected.sendall(b"CONNECT %d\n" % PORT)
    answer = b""
    while not answer.endswith(b"\n"):
        answer += connected.recv(1) or pytest.fail(f"the guest's port is closed: {answer!r}")
    assert answer.startswith(b"OK ")
    return NinePClient.connect(connected, "0", timeout=DEADLINE)


def lock(client: NinePClient) -> int:
    """Ask for a lock on all of the file, and return what became of it."""
    fid = client.open("f", OpenFlag.RDWR)
    return client.ask(m.Tlock(fid, LockType.WRLCK, 0, 0, 0, 1, b"vm"), m.Rlock).status


@pytest.mark.long
def test_a_vsock_peer_that_is_gone_without_a_word_loses_its_mount_and_its_locks(
    runner: asyncio.Runner, guest: GuestVM
) -> None:
    vsock = guest.vsock
    assert vsock is not None
    runner.run(guest.check("mkdir /run/vsock-share && : >/run/vsock-share/f && mkfifo /run/vsock-said"))
    # It has the pipe's other end as well, so that nothing that it says is lost between two who read it.
    program = (
        f"{sys.executable} {vsock_server.__file__} {PORT} /run/vsock-share 4 1<>/run/vsock-said 2>/run/vsock-server.log"
    )
    runner.run(guest.check(f"{program} & echo $! >/run/vsock-server.pid"))

    def said() -> str:
        return runner.run(guest.check("read -r line </run/vsock-said && echo $line; cat /run/vsock-server.log"))

    assert said() == "ready\n"
    with connect(vsock.uds_path) as kept:
        assert lock(kept) == LockStatus.SUCCESS
        before = vsock.stats().credit_updates
        while vsock.stats().credit_updates < before + 2:  # two probes, which a peer that is there does not mind
            assert kept.getattr(kept.root).qid
    assert said() == "ended 0\n"
    lost = connect(vsock.uds_path)
    assert lock(lost) == LockStatus.SUCCESS
    assert vsock.forget(PORT) == 1
    assert said() == "ended 0\n", "its mount process goes on, and so would its lock"
    lost.close()
    with connect(vsock.uds_path) as other:
        assert lock(other) == LockStatus.SUCCESS
    runner.run(
        guest.check("kill $(cat /run/vsock-server.pid); rm -r /run/vsock-share /run/vsock-said /run/vsock-server.*")
    )
