"""Hosts of a fleet as processes, with a real etcd behind a link of each that can be cut; and guests who always write.

All are on this machine, and each has a directory of its own where the VM's sockets are. A guest is at each host: while
its host serves, it appends the host's name to one file that all hosts share. So the file tells who served, in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shlex
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Final

import pytest
from tests.etcd.member import start_single
from tests.processes import DEADLINE, children_of

from uvmshare.daemon.documents import NewShare
from uvmshare.daemon.fleet_documents import NewMove, PlacedVm
from uvmshare.errors import UvmshareError
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.etcd.protocol import Put
from uvmshare.fleet.callers import Caller
from uvmshare.fleet.documents import Name, Tenant, decode, encode
from uvmshare.fleet.gate import Gate
from uvmshare.fleet.keys import Keys
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

__all__ = ["FENCE", "FencedHosts", "fenced_hosts", "runs"]

assert sys.platform == "linux", "the daemon runs on Linux"

ANN: Final = Caller("acme", "ann")
FENCE: Final = 3.0
_PAUSE: Final = 0.02
"""Between two records of a guest."""


class Link:
    """The way of one host to etcd. While it is cut, nothing comes through, and nobody is told; it may be slow too."""

    def __init__(self) -> None:
        self.whole = asyncio.Event()
        self.whole.set()
        self.delay = 0.0
        """Seconds that everything takes more."""
        self._carrying: set[asyncio.Task[None]] = set()

    async def begin(self, url: str) -> str:
        """Lead from a new URL to this one."""
        host, _, port = url.removeprefix("http://").partition(":")

        async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError, EOFError):
                while data := await reader.read(65536):
                    await self.whole.wait()
                    await asyncio.sleep(self.delay)
                    writer.write(data)
                    await writer.drain()

        async def both_ways(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError), contextlib.closing(writer):
                there, to = await asyncio.open_connection(host, int(port))
                with contextlib.closing(to):
                    ways = [asyncio.ensure_future(carry(reader, to)), asyncio.ensure_future(carry(there, writer))]
                    try:
                        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for way in ways:
                            way.cancel()
                        await asyncio.gather(*ways, return_exceptions=True)

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(both_ways(reader, writer))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

        self.server = await asyncio.start_server(connected, "127.0.0.1")
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}"

    async def end(self) -> None:
        """Lead nowhere any more."""
        self.server.close()
        for task in self._carrying:
            task.cancel()
        await asyncio.gather(*self._carrying, return_exceptions=True)
        await asyncio.sleep(0)


class FencedHost:
    """One host: its daemon, its link, and the guest that is there whenever it serves."""

    def __init__(self, folder: Path, name: str, shared: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.link = Link()
        self.process: subprocess.Popen[bytes] | None = None
        self.written = 0
        self._sockets = folder / "sockets"
        self._shared = shared
        self._ending = threading.Event()
        self._guest = threading.Thread(target=self._write)
        (self.folder / "sockets").mkdir(parents=True)

    async def begin(self, url: str) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        (self.folder / "host.toml").write_text(
            f'host = "{self.name}"\nendpoints = ["{await self.link.begin(url)}"]\n[tenants.acme]\n'
            f'user = "{user}"\nbelow = ["{self._shared}"]\n',
            encoding="utf-8",
        )
        self.start()
        self._guest.start()

    def start(self) -> None:
        """Start its daemon, which sees a directory of sockets of its own."""
        daemon = shlex.join(
            [
                *(sys.executable, "-m", "uvmshare", "daemon", "--fleet", str(self.folder / "host.toml")),
                *("--run-dir", str(self.folder / "run"), "--state-dir", str(self.folder / "state")),
            ]
        )
        own = shlex.join(["mount", "--bind", str(self.folder / "sockets"), str(self._sockets)])
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", f"{own} && exec {daemon}"], stdout=log, stderr=log
            )

    def signal(self, number: signal.Signals, *, all_of_it: bool = False) -> None:
        """Signal its daemon; with `all_of_it`, the file servers and mount processes too."""
        assert self.process is not None
        pids = [self.process.pid]
        if all_of_it:
            for pid in pids:
                pids += children_of(pid)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill its daemon; its file servers go on."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def end(self) -> None:
        self._ending.set()
        self._guest.join(DEADLINE)

    def _write(self) -> None:
        """Be a guest: connect whenever that works, and write as long as it does."""
        record = self.name.encode() + b"\n"
        while not self._ending.wait(_PAUSE):
            with (
                contextlib.suppress(OSError, UvmshareError),
                NinePClient.connect(f"unix:{self.folder}/sockets/b.9p", "0", timeout=1) as guest,
            ):
                fid = guest.open("records", os.O_WRONLY | os.O_APPEND)
                while not self._ending.wait(_PAUSE):
                    guest.write(fid, 0, record)
                    self.written += 1


class FencedHosts:
    """The hosts, and a gate in this process."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.shared.mkdir()
        self.records = self.shared / "records"
        self.records.touch()
        (folder / "sockets").mkdir()
        self.hosts = {name: FencedHost(folder, name, self.shared) for name in names}
        self.keys = Keys()
        self.store: EtcdStore
        self.gate: Gate

    async def begin(self, url: str) -> None:
        self.store = EtcdStore(Endpoints((url,)))
        self.gate = Gate(self.store, self.keys)
        registered = [Put(self.keys.registered(name), b"{}") for name in self.hosts]
        await self.store.txn([], [Put(self.keys.tenant("acme"), encode(Tenant())), *registered])
        for host in self.hosts.values():
            await host.begin(url)
        first = next(iter(self.hosts))
        for name in self.hosts:
            await self.until(lambda name=name: self.lives(name))  # type: ignore[misc]  # mypy cannot infer a default's type
        wanted = PlacedVm(id="b", on=first, listen=(f"unix:{self.folder}/sockets/b.9p",), fence=FENCE)
        await self.gate.add_vm(ANN, *await self.gate.want_vm(ANN, wanted))
        share = NewShare(path=str(self.shared), owner="job")
        assert (await self.gate.add_share(ANN, await self.gate.want_share(ANN, "b", share))).name == "0"

    async def until(self, ask: Callable[[], Awaitable[object]]) -> None:
        """Ask until it is so."""
        async with asyncio.timeout(2 * DEADLINE):
            while True:
                with contextlib.suppress(UvmshareError):
                    if await ask():
                        return
                await asyncio.sleep(0.05)

    async def lives(self, host: str) -> bool:
        return (await self.store.get(self.keys.alive(host))).found is not None

    async def at(self) -> str:
        """Return the host that has the VM."""
        found = (await self.store.get(self.keys.name("acme", "b"))).found
        assert found is not None
        return decode(Name, found.value, found.key).host

    async def writes(self, host: str) -> None:
        """Wait until the guest at a host has written again."""
        before = self.hosts[host].written

        async def has_written() -> bool:
            return self.hosts[host].written > before

        await self.until(has_written)

    async def forget(self, host: str) -> None:
        """Have etcd end the lease of a host at once, of one that lives too."""
        found = (await self.store.get(self.keys.alive(host))).found
        if found is not None:
            await self.store.revoke(found.lease)

    async def take(self, to: str, *, forget: bool) -> float:
        """Have a host take the VM; return how many seconds that took."""
        begun = time.monotonic()

        async def taken() -> bool:
            old = await self.at()
            if forget and old != to:
                await self.forget(old)
            take = old != to and not await self.lives(old)
            return (await self.gate.move(ANN, "b", NewMove(to=to, take=take))).host == to

        await self.until(taken)
        return time.monotonic() - begun


def runs(records: bytes) -> list[str]:
    """Return who wrote, in order, each once for all that they wrote in succession."""
    found: list[str] = []
    for each in records.decode().split():
        if not found or found[-1] != each:
            found.append(each)
    return found


@contextlib.asynccontextmanager
async def fenced_hosts(folder: Path, *names: str) -> AsyncIterator[FencedHosts]:
    if os.geteuid() != 0:
        pytest.skip("mount namespaces need root")
    member, url = start_single(folder / "etcd")
    hosts = FencedHosts(folder, *names)
    try:
        await hosts.begin(url)
        yield hosts
        await hosts.gate.remove_vm(await hosts.gate.want_no_vm(ANN, "b", force=True))
    finally:
        for host in hosts.hosts.values():
            host.end()
            if host.process is not None:
                host.signal(signal.SIGCONT, all_of_it=True)
                host.process.terminate()
                host.process.wait(DEADLINE)
            await host.link.end()
        await hosts.store.close()
        member.kill()
