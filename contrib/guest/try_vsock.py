#!/usr/bin/env python3
"""Boot a guest and try shares over its vsock: ``python contrib/guest/try_vsock.py [WAY] [--measure]``.

WAY is how the guest reaches this host:

    firecracker, cloud-hypervisor   vhost-user-vsock-pci, with that monitor's unix sockets; needs nothing of this kernel
    vhost-vsock                     vhost-vsock-pci; needs /dev/vhost-vsock (modprobe vhost_vsock), and may open it

What it does is the core of what the project's tests do over the first two: mount, copy both ways and compare SHA-256,
take the share away under twelve busy threads, have an agent mount, one that dials and one that listens, and mount again
what was cut. With vhost-vsock nobody has run it: tell us how it went. ``--measure`` also tells what operations cost
over vsock, as a ratio to TCP over QEMU's user network in the same guest. Exit status 0 says that everything held.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.errors import UvmshareError
from uvmshare.guest import mount
from uvmshare.guest.bundle import bundle
from uvmshare.mounts import AgentClient, MountManager
from uvmshare.testing.guest_vm import HOST, GuestVM
from uvmshare.testing.kernel import find_kernel

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from uvmshare.testing.vsock_streams import FlavourName

WAYS = ("firecracker", "cloud-hypervisor", "vhost-vsock")
CID = 77
PYTHON = "python3 -I -S"
UNTIL_LOST = Path(__file__).with_name("until_lost.py")
DEADLINE = 600.0

COST = """
import json, os, sys, time
directory, seconds = sys.argv[1], float(sys.argv[2])
os.chdir(directory)
file = os.open("large", os.O_RDWR)
block = bytes(1 << 20)
def open_read():
    small = os.open("small", os.O_RDONLY)
    os.read(small, 4096)
    os.close(small)
cases = {
    "getattr": lambda: os.stat("small"),
    "open-read": open_read,
    "read of 1 MiB": lambda: os.pread(file, 1 << 20, 0),
    "write of 1 MiB": lambda: os.pwrite(file, block, 0),
}
rates = {}
for name, once in cases.items():
    once()
    count, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        once()
        count += 1
    rates[name] = count / (time.monotonic() - begun)
print(json.dumps(rates))
"""
"""Operations a second, one after the other, in one thread."""


class Trial:
    """A guest, a file server, and a directory that is shared."""

    def __init__(self, guest: GuestVM, way: str, directory: str) -> None:
        self.guest = guest
        self.directory = Path(directory)
        if way == "vhost-vsock":
            self.agent_address = f"vsock:{CID}"
            self.listen = [f"vsock:{CID}:7000", "tcp:127.0.0.1:0"]
            self.dialled = f"vsock:{CID}:7001"
        else:
            self.agent_address = f"{way}:{directory}/v"
            self.listen = [f"{way}:{directory}/v:7000", "tcp:127.0.0.1:0"]
            self.dialled = f"{way}:{directory}/v:7001"
        self.shared = self.directory / "shared"
        self.shared.mkdir()

    async def run(self, *, measured: bool) -> None:
        """Do everything. Raises `UvmshareError` or `AssertionError` at the first that does not hold."""
        async with FileServer(self.listen) as server:
            manager = Manager(server)
            name = await manager.add(AddOptions(self.shared))
            await step("mount, copy and compare", self.copy(name))
            if measured:
                await self.measure(name, server.addresses[1].rpartition(":")[2])
            await step("take the share away", self.take_away(manager, name))
            agent = self.directory / "uvmshare-guest"
            agent.write_bytes(bundle())
            for what, command in (
                ("dials", f"{PYTHON} {agent} agent --connect vsock:2:7001"),
                ("listens", f"{PYTHON} {agent} agent"),
            ):
                await step(f"an agent that {what}", self.agent(server, manager, command, dials=what == "dials"))
            await manager.aclose()

    async def mount(self, name: str) -> None:
        """Mount the share over vsock."""
        program = f"{PYTHON} {mount.__file__} vsock:2:7000 {name} /run/tried --msize 1048576"
        await self.guest.check(program, timeout=DEADLINE)

    async def copy(self, name: str) -> str:
        """Copy in the guest, and compare what either side has."""
        (self.shared / "in").mkdir()
        (self.shared / "in" / "large").write_bytes(os.urandom(20 << 20))
        for number in range(200):
            (self.shared / "in" / f"small-{number}").write_bytes(os.urandom(number * 20))
        await self.mount(name)
        told = await self.guest.check("cd /run/tried && cp -r in out && cd out && sha256sum *", timeout=DEADLINE)
        theirs = {line[66:]: line[:64] for line in told.splitlines()}
        for part in ("in", "out"):
            ours = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (self.shared / part).iterdir()}
            assert ours == theirs, f"{part} differs"
        return f"{len(theirs)} files, all the same"

    async def take_away(self, manager: Manager, name: str) -> str:
        """Take it away under those who use it."""
        (self.shared / "f").write_bytes(bytes(1 << 20))
        await self.guest.check("mkfifo /run/busy /run/over")
        await self.guest.check(f"(cd /run/tried && {PYTHON} {UNTIL_LOST} /run/said /run/busy /run/over) &")
        await self.guest.check("cat /run/busy")
        await manager.remove(name)
        count, *told = (await self.guest.check("cat /run/over /run/said")).split()
        assert (count, {*told} <= {"EIO", "EPIPE"}) == ("12", True), f"{count} who used it were told {told}"
        await self.guest.check("umount /run/tried")
        return f"twelve threads were told {' and '.join(told)}"

    async def agent(self, server: FileServer, manager: Manager, command: str, *, dials: bool) -> str:
        """Have an agent mount, cut its connection, and have it mount again."""
        log = "/run/tried.log 2>&1 & echo $! >/run/tried.pid"
        await self.guest.check(f"{command} --allow /run/agent --state /run/tried-agent --check-every 0.5 >{log}")
        address = self.dialled if dials else self.agent_address
        async with AgentClient(address, accept=dials, server_port=7000, timeout=DEADLINE) as agent:
            mounts = MountManager(agent, shares=manager)
            await mounts.map(AddOptions(self.shared), "/run/agent/a", owner="trial")
            before = await self.guest.check("sha256sum /run/agent/a/in/large")
            (share,) = (await server.status()).shares
            os.kill(share.mounts[0].pid, signal.SIGKILL)
            while not any(found.again and found.state == "mounted" for found in await agent.listed()):  # noqa: ASYNC110  the guest has no event to wait for
                await asyncio.sleep(0.1)
            assert await self.guest.check("sha256sum /run/agent/a/in/large") == before
            await mounts.unmap("/run/agent/a", owner="trial")
            await mounts.aclose()
        await self.guest.check("kill $(cat /run/tried.pid); flock /run/tried-agent/lock true; rm -r /run/tried*")
        return "mounted, cut, and mounted again"

    async def measure(self, name: str, port: str) -> None:
        """Tell what operations cost over vsock and over TCP, in turns."""
        (self.shared / "small").write_bytes(bytes(4096))
        (self.shared / "large").write_bytes(bytes(1 << 20))
        await self.guest.write_file("/run/cost.py", COST.encode())
        options = f"trans=tcp,port={port},version=9p2000.L,aname={name},msize=1048576"
        await self.guest.check(f"mkdir /run/by-tcp && mount -t 9p -o {options} {HOST} /run/by-tcp")
        found: dict[str, list[dict[str, float]]] = {"/run/tried": [], "/run/by-tcp": []}
        for _ in range(3):
            for at, rates in found.items():
                rates.append(json.loads(await self.guest.check(f"{PYTHON} /run/cost.py {at} 3", timeout=DEADLINE)))
        await self.guest.check("umount /run/by-tcp")
        for case in found["/run/tried"][0]:
            vsock, tcp = (statistics.median(rates[case] for rates in each) for each in found.values())
            ratios = [ours[case] / theirs[case] for ours, theirs in zip(*found.values(), strict=True)]
            say(
                f"  {case}: {vsock:,.0f}/s over vsock, {tcp:,.0f}/s over TCP, {vsock / tcp:.2f} of it "
                f"({min(ratios):.2f} to {max(ratios):.2f})"
            )


async def step(title: str, doing: Awaitable[str]) -> None:
    """Do one and tell how long it took."""
    begun = time.monotonic()
    say(f"{title}: {await doing} ({time.monotonic() - begun:.1f} s)")


def say(line: str) -> None:
    """Tell the user."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def try_out(way: str, series: str | None, *, measured: bool) -> None:
    """Boot the guest and try. Raises `UvmshareError` or `AssertionError` when something does not hold."""
    with tempfile.TemporaryDirectory(prefix="v-", dir="/tmp") as directory:  # a unix socket's path is short
        kernel = find_kernel(series)
        if way == "vhost-vsock":
            device = ("-device", f"vhost-vsock-pci,guest-cid={CID}")
            modules = ("vmw_vsock_virtio_transport",)
            starting = GuestVM.start(root="host", kernel=kernel, modules=modules, qemu_arguments=device, progress=say)
        else:
            flavour: FlavourName = "firecracker" if way == "firecracker" else "cloud-hypervisor"
            starting = GuestVM.start(root="host", kernel=kernel, vsock=f"{directory}/v", flavour=flavour, progress=say)
        async with await starting as guest:
            await Trial(guest, way, directory).run(measured=measured)


def main() -> int:
    """Try as the command line says; 0 when everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", nargs="?", choices=WAYS, default="firecracker", help="(%(default)s)")
    parser.add_argument("--kernel", metavar="SERIES", help="of the guest, such as 6.12; the newest found unless given")
    parser.add_argument("--measure", action="store_true", help="tell what operations cost, as a ratio to TCP")
    options = parser.parse_args()
    try:
        asyncio.run(try_out(options.way, options.kernel, measured=options.measure))
    except (UvmshareError, AssertionError, OSError) as error:
        say(f"FAILED: {error}")
        return 1
    say("everything held")
    return 0


if __name__ == "__main__":
    sys.exit(main())
