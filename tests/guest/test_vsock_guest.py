"""What only a real guest kernel on vsock can show: its own connects, much data, back-pressure, two guests.

Over each monitor's flavour, and in a guest of either kernel.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.daemon.harness import Home
from tests.guest.transports import VSOCK, Transport
from tests.processes import DEADLINE

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.guest import mount as mount_program
from uvmshare.guest.bundle import bundle
from uvmshare.mounts import AgentClient, MountManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from uvmshare.testing.guest_vm import GuestVM

pytestmark = pytest.mark.guest

_GUEST_DEADLINE = 600.0
"""Seconds for what moves much data in an emulated guest on a busy host."""


class Served:
    """A file server and a share of a directory, mounted in a guest."""

    def __init__(self, runner: asyncio.Runner, transport: Transport, directory: Path) -> None:
        self.runner = runner
        self.transport = transport
        self.guest = transport.guest
        self.directory = directory
        self.server = runner.run(FileServer(listen=[transport.address()]).start())
        self.manager = Manager(self.server)
        self.name = runner.run(self.manager.add(AddOptions(directory)))
        self.port = transport.port(self.server.addresses[0])
        self.at = f"/run/served/{self.port}"

    def check(self, command: str) -> str:
        return self.runner.run(self.guest.check(command, timeout=_GUEST_DEADLINE))

    def mount(self, **options: str | int) -> None:
        self.check(f"mkdir -p {self.at} && {self.transport.mount(self.port, self.name, self.at, **options)}")

    def mount_process(self) -> int:
        ((share,),) = (self.runner.run(self.server.status()).shares,)
        (running,) = share.mounts
        return running.pid

    def close(self) -> None:
        self.runner.run(self.guest.run(f"umount -l {self.at}"))
        self.runner.run(self.manager.aclose())
        self.runner.run(self.server.aclose())


@pytest.fixture
def served(runner: asyncio.Runner, transport: Transport, tmp_path: Path) -> Iterator[Served]:
    directory = tmp_path / "share"
    directory.mkdir()
    made = Served(runner, transport, directory)
    yield made
    made.close()


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def move_and_compare(served: Served, *, megabytes: int, files: int, msize: int) -> None:
    """Copy a large file and many small ones in the guest, and compare what either side has."""
    source = served.directory / "in"
    source.mkdir()
    with open(source / "large", "wb") as large:
        large.writelines(os.urandom(1 << 20) for _ in range(megabytes))
    for number in range(files):
        (source / f"small-{number}").write_bytes(os.urandom(number % 5000))
    served.mount(msize=msize)
    told = served.check(f"cd {served.at} && cp -r in out && cd out && find . -type f -print0 | xargs -0 sha256sum")
    theirs = {line[66:].removeprefix("./"): line[:64] for line in told.splitlines()}
    assert theirs == digests(source) == digests(served.directory / "out")


@pytest.mark.long
@pytest.mark.transports("firecracker")
def test_what_a_guest_copies_is_what_was_there(served: Served) -> None:
    move_and_compare(served, megabytes=4, files=50, msize=1 << 20)


@pytest.mark.long
def test_two_hundred_megabytes_and_thousands_of_files_arrive_unharmed(served: Served) -> None:
    move_and_compare(served, megabytes=200, files=3000, msize=1 << 20)


STREAM = """
import hashlib, os, sys
digest = hashlib.sha256()
with open(sys.argv[1], "wb", buffering=0) as file:
    for number in range(int(sys.argv[2])):
        data = os.urandom(1 << 20)
        digest.update(data)
        file.write(data)
        if number == 0:
            open("/run/begun", "w").close()
print(digest.hexdigest())
"""


def write_while_nothing_is_taken(served: Served, what: str) -> None:
    """Have the guest write while the mount process, or the device, is held up, and compare what arrived."""
    vsock = served.guest.vsock
    served.mount(msize=1 << 20)
    served.check("rm -f /run/begun && mkfifo /run/begun")
    served.runner.run(served.guest.write_file("/run/stream.py", STREAM.encode()))

    async def write() -> str:
        writing = asyncio.create_task(
            served.guest.check(f"python3 -I -S /run/stream.py {served.at}/f 6", timeout=_GUEST_DEADLINE)
        )
        await served.guest.check("cat /run/begun")
        stopped = None
        if what == "the device":
            assert vsock is not None
            vsock.stall()
        else:
            stopped = (await served.server.status()).shares[0].mounts[0].pid
            os.kill(stopped, signal.SIGSTOP)
        # Other work of the guest's goes on, over its serial ports.
        assert await served.guest.check("echo on") == "on\n"
        assert not writing.done()
        if stopped is not None:
            os.kill(stopped, signal.SIGCONT)
        elif vsock is not None:
            vsock.resume()
        return (await writing).strip()

    digest = served.runner.run(write())
    assert hashlib.sha256((served.directory / "f").read_bytes()).hexdigest() == digest
    if vsock is not None:
        stats = vsock.stats()
        assert (stats.malformed, stats.overdrawn) == (0, 0)


@pytest.mark.transports("firecracker")
def test_a_writer_waits_while_its_mount_process_is_stopped_and_loses_nothing(served: Served) -> None:
    write_while_nothing_is_taken(served, "the mount process")


@pytest.mark.transports("firecracker", over=VSOCK)
def test_a_writer_waits_while_the_device_moves_nothing_and_loses_nothing(served: Served) -> None:
    write_while_nothing_is_taken(served, "the device")


OPTION = """
import runpy, socket, struct, sys
class Watched(socket.socket):
    def connect(self, address):
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=self.fileno())
        print(*struct.unpack("@ll", other.getsockopt(socket.AF_VSOCK, 6, 16)), flush=True)
        other.detach()
        super().connect(address)
socket.socket = Watched
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.transports("firecracker", over=VSOCK)
def test_the_kernel_takes_the_time_to_connect_and_the_guests_own_cid_is_named(served: Served) -> None:
    served.runner.run(served.guest.write_file("/run/option.py", OPTION.encode()))
    result = served.runner.run(
        served.guest.run(f"python3 -I -S /run/option.py {mount_program.__file__} vsock:3 0 /run/none --timeout 7")
    )
    assert result.status == 1
    assert "CID 3 is this guest's own, and a guest reaches the host alone: its CID is 2" in result.text
    seconds, _ = result.text.split()[:2]
    assert seconds == "7"


def listening_agent(runner: asyncio.Runner, transport: Transport, directory: Path) -> None:
    """An agent that listens on vsock, as it does when it is told nothing, and a host that asks the monitor for it."""
    guest, vsock = transport.guest, transport.guest.vsock
    assert vsock is not None
    file = directory / "uvmshare-guest"
    file.write_bytes(bundle())
    share = directory / "share"
    share.mkdir()
    (share / "f").write_text("text")

    async def scenario() -> None:
        async with FileServer(listen=[transport.address()]) as server:
            shares = Manager(server)
            start = f"python3 -I -S {file} agent --state /run/listens --allow /run/listened --check-every 0.5"
            await guest.check(f"({start} >/run/listens.log 2>&1 & echo $! >/run/listens.pid)")
            address = f"{transport.name}:{vsock.uds_path}"
            port = transport.port(server.addresses[0])
            async with AgentClient(address, server_port=port, timeout=DEADLINE) as agent:
                mounts = MountManager(agent, shares=shares)
                await mounts.map(AddOptions(share), "/run/listened/a", owner="a")
                assert await guest.check("cat /run/listened/a/f") == "text"
                assert vsock.reset() >= 2
                while not [found for found in await agent.listed() if found.again and found.state == "mounted"]:  # noqa: ASYNC110  a guest has no event to wait for
                    await asyncio.sleep(0.05)
                assert await guest.check("cat /run/listened/a/f") == "text"
                await mounts.unmap("/run/listened/a", owner="a")
                await mounts.aclose()
            await shares.aclose()
            await guest.check("kill $(cat /run/listens.pid); flock /run/listens/lock true; rm -r /run/listens*")

    runner.run(scenario())


@pytest.mark.long  # the README, which make test types, has such an agent too
@pytest.mark.transports("firecracker", over=VSOCK)
def test_an_agent_that_listens_is_reached_through_the_monitors_socket(
    runner: asyncio.Runner, transport: Transport, tmp_path: Path
) -> None:
    listening_agent(runner, transport, tmp_path)


@pytest.mark.long
@pytest.mark.newer_kernel
def test_the_newer_kernel_holds_to_the_same_in_cloud_hypervisors_way(
    runner: asyncio.Runner, newer: GuestVM, tmp_path: Path
) -> None:
    transport = Transport("cloud-hypervisor", newer)
    directory = tmp_path / "served"
    directory.mkdir()
    served = Served(runner, transport, directory)
    try:
        move_and_compare(served, megabytes=20, files=300, msize=1 << 20)
        (directory / "f").write_bytes(bytes(1 << 20))
        served.check(transport.use_until_lost(served.at))
        runner.run(served.manager.remove(served.name))
        count, *seen = served.check("cat /run/over /run/said").split()
        assert count == "12"
        assert {*seen} <= {"EIO", "EPIPE"}
    finally:
        served.close()
    listening_agent(runner, transport, tmp_path)


@pytest.mark.long
def test_a_daemon_has_two_guests_on_two_sockets(
    runner: asyncio.Runner, guest: GuestVM, newer: GuestVM, tmp_path: Path
) -> None:
    file = tmp_path / "uvmshare-guest"
    file.write_bytes(bundle())
    ways = {"one": Transport("firecracker", guest), "two": Transport("cloud-hypervisor", newer)}
    agent = f"python3 -I -S {file} agent --state /run/daemons --allow /run/from-daemon"
    with Home.made() as home, home.running(), home.client() as client:
        home.had_vms = True
        for name, way in ways.items():
            shared = home.directory(f"shared-{name}")
            with open(f"{shared}/f", "w", encoding="utf-8") as written:
                written.write(name)
            assert way.guest.vsock is not None
            socket_path = f"{way.name}:{way.guest.vsock.uds_path}"
            client.vms.add(name, listen=(way.address(),), agent=socket_path)
            runner.run(way.guest.check(f"({agent} >/run/daemons.log 2>&1 & echo $! >/run/daemons.pid)"))
            client.mounts.map(name, shared, "/run/from-daemon/a", owner="program")
        for name, way in ways.items():
            assert runner.run(way.guest.check("cat /run/from-daemon/a/f")) == name
        client.vms.remove("one", force=True)
        assert runner.run(guest.run("cat /run/from-daemon/a/f")).status != 0
        assert runner.run(newer.check("cat /run/from-daemon/a/f")) == "two"
        client.vms.remove("two", force=True)
        for way in ways.values():
            runner.run(
                way.guest.check("kill $(cat /run/daemons.pid); flock /run/daemons/lock true; rm -r /run/daemons*")
            )


@pytest.mark.long
def test_what_people_with_another_vsock_are_to_run_holds_with_this_one() -> None:
    script = os.path.join(os.path.dirname(__file__), "..", "..", "contrib", "guest", "try_vsock.py")
    done = subprocess.run([sys.executable, script, "cloud-hypervisor"], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("everything held\n"), done.stdout + done.stderr
