"""How long things take to begin and to end, and what they hold: shares, mount processes, many VMs on a host.

What lives here: real file servers on unix sockets, driven through the Manager, with the project's own client in the
guest's place. What must not: throughput (`run`).
"""

from __future__ import annotations

import asyncio
import re
import resource
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.errors import ConnectionClosed
from uvmshare.ninep import messages
from uvmshare.testing.client import NinePClient
from uvmshare.testing.connection import dial

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["measure"]

MOUNTS: Final = 5
_AT_ONCE: Final = 4
"""VMs that are started at the same time."""
_CONTENT: Final = b"hello"


def _spread(seconds: list[float]) -> dict[str, float]:
    milliseconds = sorted(each * 1000 for each in seconds)
    return {
        "median": statistics.median(milliseconds),
        "min": milliseconds[0],
        "max": milliseconds[-1],
        "p90": milliseconds[int(len(milliseconds) * 0.9)],
    }


def private_bytes(pid: int) -> int:
    """Return the memory that a process shares with no other (proc(5), smaps_rollup)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(kibibytes) * 1024 for kibibytes in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE))


class _Guest(threading.Thread):
    """A guest that asks for attributes without end, and notes when that fails."""

    def __init__(self, client: NinePClient) -> None:
        super().__init__()
        self._client = client
        self.serving = threading.Event()
        self.failed_at = 0.0

    def run(self) -> None:
        try:
            while True:
                self._client.getattr(self._client.root)
                self.serving.set()
        except ConnectionClosed:
            self.failed_at = time.perf_counter()


async def _one_share(place: Path, rounds: int) -> dict[str, Any]:
    """Add a share, read its first byte, take it away; again and again."""
    shared = place / "shared"
    shared.mkdir()
    (shared / "file").write_bytes(_CONTENT)
    address = f"unix:{place}/s"
    options = AddOptions(shared)
    to_first_byte, to_first_error, to_attach, fresh, used = [], [], [], [], []
    async with FileServer(listen=[address]) as server, Manager(server) as manager:
        for _ in range(rounds):
            begun = time.perf_counter()
            name = await manager.add(options)
            client = NinePClient.connect(address, name)
            assert client.read(client.open("file"), 0, 1) == _CONTENT[:1]
            to_first_byte.append(time.perf_counter() - begun)

            (mount,) = (await server.status()).shares[0].mounts
            fresh.append(private_bytes(mount.pid))
            _work(client)
            used.append(private_bytes(mount.pid))

            with NinePClient(dial(address)) as second:
                second.version()
                begun = time.perf_counter()
                second.root = second.attach(name)
                second.getattr(second.root)  # what answers is the mount process
                to_attach.append(time.perf_counter() - begun)

            guest = _Guest(client)
            guest.start()
            await asyncio.to_thread(guest.serving.wait)
            begun = time.perf_counter()
            await manager.remove(name)
            await asyncio.to_thread(guest.join)
            to_first_error.append(guest.failed_at - begun)
            client.close()
    return {
        "add_to_first_byte_ms": _spread(to_first_byte),
        "remove_to_first_error_ms": _spread(to_first_error),
        "attach_to_first_answer_ms": _spread(to_attach),
        "mount_private_bytes_fresh": statistics.median(fresh),
        "mount_private_bytes_used": statistics.median(used),
    }


def _work(client: NinePClient) -> None:
    """Have a mount process do a little of everything."""
    for number in range(20):
        client.write_file(f"new{number}", bytes(64 * 1024))
        client.stat(f"new{number}")
        client.read_file(f"new{number}")
    client.listdir()
    for number in range(20):
        client.unlink(f"new{number}")


class _VM:
    """One of many VMs: its file server, its Manager and its guest's connections."""

    def __init__(self, place: Path, number: int) -> None:
        self._address = f"unix:{place}/{number}"
        self._directories = [place / f"share{each}" for each in range(MOUNTS)]
        self._clients: list[NinePClient] = []

    async def start(self) -> None:
        self._server = await FileServer(listen=[self._address]).start()
        self._manager = Manager(self._server)
        for directory in self._directories:
            name = await self._manager.add(AddOptions(directory, read_only=True))
            # Not in the loop's own thread: the starting of other VMs goes on.
            self._clients.append(await asyncio.to_thread(NinePClient.connect, self._address, name))

    def ask(self) -> list[float]:
        """Ask every mount once; return how long each took."""
        taken = []
        for client in self._clients:
            begun = time.perf_counter()
            client.ask(messages.Tgetattr(client.root, 0x7FF), messages.Rgetattr)
            taken.append(time.perf_counter() - begun)
        return taken

    async def memory(self) -> tuple[int, list[int]]:
        """Return the private bytes of the supervisor and of each mount process."""
        status = await self._server.status()
        assert status.pid is not None
        return private_bytes(status.pid), [
            private_bytes(mount.pid) for share in status.shares for mount in share.mounts
        ]

    async def close(self) -> None:
        for client in self._clients:
            client.close()
        await self._manager.aclose()
        await self._server.aclose()


async def _many(place: Path, count: int) -> dict[str, Any]:
    """Start many VMs with some mounts each, use them, and end them."""
    for each in range(MOUNTS):
        (place / f"share{each}").mkdir()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    vms = [_VM(place, number) for number in range(count)]
    turns = asyncio.Semaphore(_AT_ONCE)

    async def start(vm: _VM) -> None:
        async with turns:
            await vm.start()

    async def close(vm: _VM) -> None:
        async with turns:
            await vm.close()

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for vm in vms:
            tasks.create_task(start(vm))
    started = time.perf_counter()
    asked = [taken for vm in vms for taken in vm.ask()]
    memory = [await vm.memory() for vm in vms]
    ending = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for vm in vms:
            tasks.create_task(close(vm))
    ended = time.perf_counter()
    mounts = [each for _, some in memory for each in some]
    supervisors = [supervisor for supervisor, _ in memory]
    return {
        "vms": count,
        "mounts": len(mounts),
        "start_seconds": started - begun,
        "end_seconds": ended - ending,
        "getattr_ms": _spread(asked),
        "mount_private_bytes": statistics.median(mounts),
        "mount_private_bytes_max": max(mounts),
        "supervisor_private_bytes": statistics.median(supervisors),
        "private_bytes": sum(mounts) + sum(supervisors),
    }


async def _attaches(place: Path, count: int) -> dict[str, Any]:
    """Attach to one share of one file server, one connection after the other, and keep them all."""
    shared = place / "shared"
    shared.mkdir()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    address = f"unix:{place}/s"
    clients: list[NinePClient] = []

    def attach(name: str) -> None:
        for _ in range(count):
            client = NinePClient.connect(address, name)
            clients.append(client)
            client.getattr(client.root)  # what answers is the mount process

    async with FileServer(listen=[address]) as server, Manager(server) as manager:
        name = await manager.add(AddOptions(shared))
        begun = time.perf_counter()
        await asyncio.to_thread(attach, name)
        taken = time.perf_counter() - begun
        status = await server.status()
        assert status.pid is not None
        mounts = [private_bytes(mount.pid) for share in status.shares for mount in share.mounts]
        found = {
            "mounts": len(mounts),
            "attaches_per_second": count / taken,
            "mount_private_bytes": statistics.median(mounts),
            "private_bytes": sum(mounts) + private_bytes(status.pid),
        }
        for client in clients:
            client.close()
    return found


def measure(*, vms: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all of it: `rounds` adds and removes, so many VMs at once, and as many mounts of one VM."""
    with tempfile.TemporaryDirectory(prefix="9p-") as place:
        say(f"  {rounds} times: add, first byte, remove, first error")
        one = asyncio.run(_one_share(Path(place), rounds))
    with tempfile.TemporaryDirectory(prefix="9p-") as place:
        say(f"  {vms} VMs with {MOUNTS} mounts each")
        many = asyncio.run(_many(Path(place), vms))
    with tempfile.TemporaryDirectory(prefix="9p-") as place:
        say(f"  {vms * MOUNTS} mounts of one VM")
        small = asyncio.run(_attaches(Path(place), vms * MOUNTS))
    return {"one": one, "many": many, "small-mounts": small}
