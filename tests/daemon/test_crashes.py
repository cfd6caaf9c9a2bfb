"""A hundred clients that crash at random: what they held goes when their leases end, and nothing leaks.

They are children of a process of their own, because forking beside the daemon's threads would now and then hang: a
child has the locks that they held just then, and nobody to give them back.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from tests.processes import DEADLINE

from uvmshare.daemon.documents import NewShare
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.server import Daemon

CLIENTS = 100
POOL = min(32, (os.cpu_count() or 1) + 4)
"""Threads of asyncio's own pool, which begin when there is work for them and do not end."""


def _crashing_client(socket_path: str, paths: list[str], number: int) -> None:
    """Be a client that asks for shares and dies: between requests, in the middle of one, or before its answer."""
    chance = random.Random(number)
    for path in chance.sample(paths, chance.randrange(1, 4)):
        body = msgspec.json.encode(NewShare(path=path, owner=f"client-{number}", lease=chance.choice((10, 30, 60))))
        request = b"POST /v1/vms/vm/shares HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\n"
        request += b"Content-Length: %d\r\n\r\n" % len(body) + body
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.connect(socket_path)
        match chance.randrange(4):
            case 0:  # in the middle of what it says
                connection.sendall(request[: chance.randrange(1, len(request))])
                os._exit(9)
            case 1:  # before the answer
                connection.sendall(request)
                os._exit(9)
            case _:
                connection.sendall(request)
                connection.recv(65536)
    os._exit(9)


def _of_this_process(what: str) -> int:
    return len(os.listdir(f"/proc/self/{what}"))


async def _settled(daemon: Daemon) -> None:
    """Return when every request has been carried out that the daemon read, whoever waits for its answer."""
    while requests := daemon._server.server_state.tasks:
        await asyncio.wait(set(requests))
    await daemon.service.operations.settle()


def test_a_hundred_clients_that_crash_leave_nothing(daemon: Running, client: Client) -> None:
    vm = daemon.add_vm()
    paths = [daemon.home.directory(f"d{number}") for number in range(8)]
    daemon.add_share(paths[0], owner="steady")
    client.info()  # its connection counts among what was there before
    descriptors, threads = _of_this_process("fd"), _of_this_process("task")
    command = [sys.executable, "-m", "tests.daemon.test_crashes", daemon.home.settings.socket_path, *paths]
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, timeout=DEADLINE)
    assert daemon.daemon is not None
    with daemon.home.client() as behind_them:
        behind_them.info()  # connections are taken in their order, so theirs were all taken when this is answered
    daemon.call(partial(_settled, daemon.daemon))
    held = {reference.owner for share in client.shares("vm") for reference in share.references}
    assert len(held) > CLIENTS // 4, "most of them held something when they died"
    for _ in range(3):
        daemon.pass_time(60)
    (share,) = client.shares("vm")
    assert [reference.owner for reference in share.references] == ["steady"]
    with Guest.connect(vm.addresses[0], share.name) as guest:
        guest.listdir("")
    service = daemon.daemon.service
    assert service.leases.of_vm((os.getuid(), "vm")) == []

    async def written_down() -> int:
        return len(service._store.leases((os.getuid(), "vm")))

    assert daemon.call(written_down) == 0
    assert _of_this_process("fd") <= descriptors + 2
    assert _of_this_process("task") <= threads + POOL


def _crash_all(socket_path: str, *paths: str) -> None:
    """Be the parent of the clients, which must all crash as they are meant to."""
    children = []
    for number in range(CLIENTS):
        child = os.fork()
        if child == 0:
            _crashing_client(socket_path, list(paths), number)
        children.append(child)
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


if __name__ == "__main__":
    _crash_all(*sys.argv[1:])
