"""A fleet on this machine, as a demonstration and tests use it: etcd, gates and hosts, each on a machine of its own.

What lives here: `Stage`: which machines there are, and how what runs on them is started. What must not: what happens
then (`fleet`), or how a machine is made (`machines`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import shutil
import sys
from typing import TYPE_CHECKING, Final, TypeVar

from uvmshare.daemon.client import AsyncClient
from uvmshare.demo.machines import Machines
from uvmshare.errors import GuestUnavailable, UvmshareError
from uvmshare.fleet.setup import FleetFolder, Settings
from uvmshare.testing.kernel import cache_directory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["DEADLINE", "GATES", "HOSTS", "LAPTOP", "TENANT", "Stage", "append"]

assert sys.platform == "linux", "the daemon runs on Linux"

ETCD: Final = ("etcd-1", "etcd-2", "etcd-3")
GATES: Final = ("gate-1", "gate-2")
HOSTS: Final = ("host-1", "host-2")
LAPTOP: Final = "laptop"
TENANT: Final = "acme"
DEADLINE: Final = 120.0
"""Seconds for whatever should come; only what hangs meets it."""
_LOOK: Final = 0.1
"""Seconds between two looks at what is to change."""

T = TypeVar("T")


def append(path: str, data: bytes) -> None:
    """Write at the end of a file."""
    with open(path, "ab") as file:
        file.write(data)


def _etcd() -> str:
    """Return the path of etcd. Raises `GuestUnavailable` without one."""
    unpacked = os.path.join(cache_directory(), "packages", "etcd-server", "usr", "bin", "etcd")
    found = unpacked if os.path.exists(unpacked) else shutil.which("etcd")
    if found is None:
        msg = "there is no etcd: run tools/packages demo-fleet in the project's tree, or apt-get install etcd-server"
        raise GuestUnavailable(msg)
    return found


class Stage:
    """Three members of etcd, two gates, two hosts, and a laptop that only has a certificate."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.machines = Machines((*ETCD, *GATES, *HOSTS, LAPTOP), directory)
        self.folder = FleetFolder(os.path.join(directory, "fleet"))
        self.shared = os.path.join(directory, "srv")
        """Below it the fleet may share, on both hosts."""
        self.certificate = ""
        """Of a user of the tenant's."""
        os.mkdir(self.shared)

    def make(self, name: str, text: str) -> str:
        """Make a directory that may be shared, with a file that says this."""
        made = os.path.join(self.shared, name)
        os.mkdir(made)
        append(os.path.join(made, "hello"), text.encode())
        return made

    @property
    def gates(self) -> str:
        """Where the gates are, for clients."""
        return ",".join(f"https://{self.machines.address(gate)}:8443" for gate in GATES)

    def client(self) -> AsyncClient:
        """Return a client of the fleet's."""
        return AsyncClient(self.gates, certificate=self.certificate)

    def daemon(self, host: str) -> AsyncClient:
        """Return a client of a host's own daemon."""
        return AsyncClient(f"unix:{self.directory}/{host}/run/uvmshare.sock")

    async def in_time(self, ask: Callable[[], Awaitable[T]], holds: Callable[[T], bool]) -> T:
        """Ask until something holds, and return the answer. An error of a gate is one more reason to ask again."""
        async with asyncio.timeout(DEADLINE):
            while True:
                with contextlib.suppress(UvmshareError):
                    found = await ask()
                    if holds(found):
                        return found
                await asyncio.sleep(_LOOK)
        raise AssertionError  # the block raises, or returns

    async def start_etcd(self) -> str:
        """Start etcd with certificates, and write its roles. Raises `GuestUnavailable` without etcd."""
        etcd = _etcd()
        urls = [f"https://{self.machines.address(name)}:2379" for name in ETCD]
        settings = Settings("demo", tuple(urls))
        gates = [self.machines.address(gate) for gate in GATES]
        await asyncio.to_thread(self.folder.begin, settings, gates)
        peers = ",".join(f"{name}=https://{self.machines.address(name)}:2380" for name in ETCD)
        for name, url in zip(ETCD, urls, strict=True):
            address = self.machines.address(name)
            mine = os.path.join(self.folder.path, "etcd", address)
            tls = [f"cert-file={mine}/member.pem", f"key-file={mine}/member.key", f"trusted-ca-file={mine}/ca.pem"]
            await self.machines.start(
                name,
                etcd,
                f"--name={name}",
                f"--data-dir={self.directory}/{name}",
                f"--listen-client-urls={url}",
                f"--advertise-client-urls={url}",
                f"--listen-peer-urls=https://{address}:2380",
                f"--initial-advertise-peer-urls=https://{address}:2380",
                f"--initial-cluster={peers}",
                *(f"--{each}" for each in tls),
                *(f"--peer-{each}" for each in tls),
                "--client-cert-auth",
                "--peer-client-cert-auth",
                "--logger=zap",
                "--log-level=warn",
                environment={"ETCD_UNSUPPORTED_ARCH": os.uname().machine},
            )
        await self.in_time(self.folder.status, lambda members: any(each.state == "leader" for each in members))
        await self.folder.write_roles()
        (self.certificate,) = await self.folder.add_tenant(TENANT, ["ann"])
        members = await self.folder.status()
        return f"etcd {members[0].version} on {', '.join(urls)}"

    async def start_host(self, host: str) -> None:
        """Start a host's daemon, for the first time or again."""
        places = ("--run-dir", f"{self.directory}/{host}/run", "--state-dir", f"{self.directory}/{host}/state")
        file = f"{self.folder.path}/hosts/{host}/host.toml"
        await self.machines.start_uvmshare(host, "daemon", *places, "--fleet", file)

    def log_of(self, machine: str) -> str:
        """Return what a machine's process has written."""
        with open(self.machines.log(machine), encoding="utf-8", errors="backslashreplace") as file:
            return file.read()

    async def start_gates_and_hosts(self) -> str:
        """Start the gates and the daemons, and wait until the hosts are heard of."""
        for gate in GATES:
            await self.machines.start_uvmshare(gate, "gate", "--fleet", f"{self.folder.path}/gate/gate.toml")
        user = pwd.getpwuid(os.geteuid()).pw_name
        for host in HOSTS:
            folder = await self.folder.add_host(host)
            rights = f'[tenants.{TENANT}]\nuser = "{user}"\nbelow = ["{self.shared}"]\n'
            await asyncio.to_thread(append, f"{folder}/host.toml", rights.encode())
            await self.start_host(host)
        async with self.client() as fleet:
            await self.in_time(fleet.hosts, lambda hosts: [host.state for host in hosts] == ["alive", "alive"])
        return f"gates {self.gates}; each host listens nowhere, and dials etcd"
