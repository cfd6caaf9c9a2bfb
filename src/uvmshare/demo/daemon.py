"""The second half of `uvmshare demo`: two programs, one VM, one directory, one mount; both crash. Then hot reload.

What lives here: the daemon's process, the programs, and the steps with their checks. What must not: the first half.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING, Final

from uvmshare.errors import UvmshareError
from uvmshare.guest.bundle import bundle
from uvmshare.testing.guest_vm import HOST, send_signal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from uvmshare.daemon.client import Client
    from uvmshare.testing.guest_vm import GuestVM
    from uvmshare.testing.vsock import VsockDevice

__all__ = ["DaemonDemonstration"]

assert sys.platform == "linux", "the daemon runs on Linux"

_VM: Final = "demo"
_GUEST_PATH: Final = "/run/uvmshare/project"
_SITE_PATH: Final = "/run/uvmshare/site"
_LEASE: Final = 10
"""Seconds; a third of it passes between two renewals, so that one may come late by the rest, on a busy machine."""
_DEADLINE: Final = 300.0
_VSOCK_PORT: Final = 5650
"""Of the daemon's file server: the first half's has the usual one."""

PROGRAM: Final = """
import sys, time
from uvmshare import Client

host, path, guest_path, owner, lease = sys.argv[1:]
with Client(host) as daemon:
    mount = daemon.mounts.map("demo", path, guest_path, owner=owner, lease=float(lease))
    print(mount.share, flush=True)
    while True:  # until it crashes
        time.sleep(float(lease) / 3)
        daemon.owners.renew(owner)
"""
"""What each of the two programs is; it neither knows of the other nor cleans up."""

SERVER: Final = """
import ctypes, os, sys

directory = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
changes = libc.inotify_init1(0)
if libc.inotify_add_watch(changes, directory.encode(), 0x8 | 0x80) < 0:  # IN_CLOSE_WRITE, IN_MOVED_TO
    sys.exit(os.strerror(ctypes.get_errno()))
while True:
    with open(f"{directory}/page") as file:
        print("serving", file.read(), flush=True)
    os.read(changes, 65536)  # until the kernel tells of a change
"""
"""What runs in the guest and reloads: it never looks by itself whether there is anything new."""


class DaemonDemonstration:
    """The steps, in order. `check` raises when something does not hold; `step` shows one."""

    def __init__(
        self,
        vm: GuestVM,
        directory: str,
        step: Callable[[str, Awaitable[str]], Awaitable[None]],
        check: Callable[[bool, str], None],
    ) -> None:
        self._vm = vm
        self._step = step
        self._check = check
        self._directory = directory
        self._shared = os.path.join(directory, "project")
        self._programs: list[asyncio.subprocess.Process] = []
        self._client: Client | None = None

    async def run(self) -> None:
        """Do every step, and end what was started."""
        async with self._daemon() as client:
            self._client = client
            os.mkdir(self._shared)
            await asyncio.to_thread(_write, os.path.join(self._shared, "hello"), b"from the host\n")
            try:
                await self._step("a daemon owns the VM, and an agent in the guest mounts for it", self._add(client))
                await self._step("two programs map the same directory to the same path", self._map(client))
                await self._step("both crash (kill -9), and nobody cleans up", self._crash())
                await self._step(f"their leases of {_LEASE} s end", self._end(client))
                await self._step(
                    "a file is edited on the host, and a server in the guest reloads", self._reload(client)
                )
                await self._step("the VM is removed from the daemon", self._remove(client))
            finally:
                await self._crash()

    @contextlib.asynccontextmanager
    async def _daemon(self) -> AsyncIterator[Client]:
        from uvmshare.daemon.client import Client  # noqa: PLC0415  an extra, which the rest does without

        notices = os.path.join(self._directory, "notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(notices)
            ready.setblocking(False)  # noqa: FBT003  it takes no keyword
            run_dir, state_dir = os.path.join(self._directory, "run"), os.path.join(self._directory, "state")
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", "import sys; from uvmshare.cli import main; sys.exit(main())"),
                *("daemon", "--run-dir", run_dir, "--state-dir", state_dir, "--log-level", "WARNING"),
                env={**os.environ, "NOTIFY_SOCKET": notices},
            )
            try:
                async with asyncio.timeout(_DEADLINE):
                    await asyncio.get_running_loop().sock_recv(ready, 4096)
                with Client(f"unix:{run_dir}/uvmshare.sock") as client:
                    try:
                        yield client
                    finally:
                        await asyncio.to_thread(_remove_all, client)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    send_signal(process, signal.SIGTERM)
                await process.wait()

    async def _add(self, client: Client) -> str:
        """Add the VM, start the agent, and wait for it: on a slow machine it takes longer than the daemon would."""
        vsock = self._vm.vsock
        added = await (self._add_on_tcp(client) if vsock is None else self._add_on_vsock(client, vsock))
        reached = await asyncio.to_thread(_until_reached, client)
        log = "" if reached else (await self._vm.run("cat /run/agent.log", timeout=_DEADLINE)).text
        self._check(reached, f"the agent was not reached: {log}")
        return added

    async def _add_on_tcp(self, client: Client) -> str:
        here = "tcp:127.0.0.1:0"
        added = await asyncio.to_thread(client.vms.add, _VM, listen=[here], agent=here, agent_dials=True)
        assert added.agent is not None
        port = added.agent.rpartition(":")[2]
        await self._vm.write_file("/run/agent.sh", await asyncio.to_thread(_agent_script))
        where = f"--connect {HOST}:{port} --server {HOST} --allow /run/uvmshare --check-every 1"
        await self._vm.check(f"sh /run/agent.sh {where} >/run/agent.log 2>&1 &", timeout=_DEADLINE)
        return f"VM {added.id!r} on {added.addresses[0]}; the agent is a shell script, which dials {HOST}:{port}"

    async def _add_on_vsock(self, client: Client, vsock: VsockDevice) -> str:
        """Add it with the unix sockets of its vsock, and start the agent in Python, which the guest has then."""
        listen = f"{vsock.flavour}:{vsock.uds_path}:{_VSOCK_PORT}"
        agent_address = f"{vsock.flavour}:{vsock.uds_path}"
        added = await asyncio.to_thread(client.vms.add, _VM, listen=[listen], agent=agent_address)
        agent = os.path.join(self._directory, "uvmshare-guest")
        await asyncio.to_thread(_write, agent, bundle())
        program = shlex.join(
            [sys.executable, "-I", "-S", agent, "agent", "--state", "/run/agent", "--check-every", "1"]
        )
        await self._vm.check(f"{program} >/run/agent.log 2>&1 &", timeout=_DEADLINE)
        return f"VM {added.id!r} on {added.addresses[0]}; the daemon dials the agent at {added.agent}"

    async def _map(self, client: Client) -> str:
        names = [await self._start_program(client, f"program-{number}") for number in (1, 2)]
        self._check(names[0] == names[1], f"the programs were given the shares {names}")
        (mount,) = await asyncio.to_thread(client.mounts, _VM)
        owners = [each.owner for each in mount.references]
        self._check(owners == ["program-1", "program-2"], f"the mount is held by {owners}")
        read = await self._vm.run(f"cat {_GUEST_PATH}/hello; grep -c {_GUEST_PATH} /proc/mounts", timeout=_DEADLINE)
        self._check(read.text == "from the host\n1\n", f"the guest reads {read.text!r}")
        return f"share {names[0]}, once in the guest's /proc/mounts, held by {' and '.join(owners)}"

    async def _start_program(self, client: Client, owner: str) -> str:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PROGRAM, client.host, self._shared, _GUEST_PATH, owner, str(_LEASE)),
            stdout=asyncio.subprocess.PIPE,
        )
        self._programs.append(program)
        assert program.stdout is not None
        async with asyncio.timeout(_DEADLINE):
            name = (await program.stdout.readline()).decode().strip()
        self._check(bool(name), f"{owner} ended before it had its share")
        return name

    async def _crash(self) -> str:
        for program in self._programs:
            with contextlib.suppress(ProcessLookupError):
                send_signal(program, signal.SIGKILL)
            await program.wait()
        crashed = len(self._programs)
        self._programs.clear()
        return f"{crashed} processes are gone"

    async def _end(self, client: Client) -> str:
        ended = await asyncio.to_thread(_until_leases_end, client, 2)
        self._check(ended == {"program-1", "program-2"}, f"leases ended of {ended}")
        shares = await asyncio.to_thread(client.shares, _VM)
        self._check(not shares, f"the VM still has {shares}")
        mounted = await self._vm.run(f"grep -c {_GUEST_PATH} /proc/mounts", timeout=_DEADLINE)
        self._check(mounted.text.strip() == "0", f"the guest still has it mounted: {mounted.text}")
        return "the guest has no such mount any more, and the VM no share"

    async def _reload(self, client: Client) -> str:
        if self._vm.vsock is None:
            return "left out: the agent here is a shell script, which knows nothing of events"
        site = os.path.join(self._directory, "site")
        os.mkdir(site)
        await asyncio.to_thread(_save, site, b"one")
        mount = await asyncio.to_thread(client.mounts.map, _VM, site, _SITE_PATH, events=True)
        if mount.no_events is not None:
            await asyncio.to_thread(client.mounts.unmap, _VM, _SITE_PATH)
            return f"left out: there are no events here: {mount.no_events}"
        await self._vm.write_file("/run/server.py", SERVER.encode())
        program = shlex.join([sys.executable, "-I", "-S", "/run/server.py", _SITE_PATH])
        await self._vm.check(f"{program} >/run/served 2>&1 & echo $! >/run/server.pid", timeout=_DEADLINE)
        await self._until_served("one")
        await asyncio.to_thread(_save, site, b"two")
        await self._until_served("two")
        await self._vm.check("kill $(cat /run/server.pid)", timeout=_DEADLINE)
        await asyncio.to_thread(client.mounts.unmap, _VM, _SITE_PATH)
        return "mapped with --events: the server slept in inotify's queue, and the guest's kernel woke it up"

    async def _until_served(self, page: str) -> None:
        """Wait until the server in the guest serves this page."""
        waiting = f"until tail -n 1 /run/served | grep -qx 'serving {page}'; do sleep 0.05; done"
        seen = await self._vm.run(f"timeout {_DEADLINE / 2:.0f} sh -c {shlex.quote(waiting)}", timeout=_DEADLINE)
        self._check(not seen.status, f"the server in the guest does not serve page {page!r}")

    async def _remove(self, client: Client) -> str:
        await asyncio.to_thread(client.vms.remove, _VM)
        self._check(not await asyncio.to_thread(client.vms), "the daemon still has it")
        return "the guest runs on"


def _until_reached(client: Client) -> bool:
    """Wait until the guest's agent is reached; False when it takes too long."""
    until = time.monotonic() + _DEADLINE
    while time.monotonic() < until:
        if client.vms.get(_VM).agent_state == "reached":
            return True
        time.sleep(0.1)
    return False


def _until_leases_end(client: Client, count: int) -> set[str]:
    """Follow the daemon's events until so many leases have ended, and return whose."""
    ended: set[str] = set()
    for event in client.events("0"):
        if event is not None and event.kind == "lease.ended" and event.owner is not None:
            ended.add(event.owner)
        if len(ended) == count:
            break
    return ended


def _remove_all(client: Client) -> None:
    with contextlib.suppress(UvmshareError):
        for vm in client.vms():
            client.vms.remove(vm.id, force=True)


def _write(path: str, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _save(site: str, page: bytes) -> None:
    """Write the page as editors do: beside the one before, and then in its place."""
    beside = os.path.join(site, "page.new")
    _write(beside, page)
    os.replace(beside, os.path.join(site, "page"))


def _agent_script() -> bytes:
    from uvmshare.guest import mount  # noqa: PLC0415  only to know where the guest's files are

    with open(os.path.join(os.path.dirname(mount.__file__), "agent.sh"), "rb") as file:
        return file.read()
