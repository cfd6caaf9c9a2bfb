"""`uvmshare demo --fleet`: a whole fleet on this machine, and what happens in one; each step shown and checked.

Three members of etcd, two gates, two hosts with a daemon and a guest each, and a laptop that only has a certificate:
each is a network namespace. Nothing is simulated but the cables.

What lives here: the steps, in order, with their checks. What must not: how machines are made (`machines`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Final

from rich.text import Text

from uvmshare.cli.pictures import SafeConsole
from uvmshare.demo.stage import DEADLINE, LAPTOP, TENANT, Stage, append
from uvmshare.demo.steps import CheckFailed, Steps, check
from uvmshare.errors import GuestFailed, OutcomeUnknown, StoreError
from uvmshare.guest.bundle import bundle
from uvmshare.printable import printable
from uvmshare.testing.guest_vm import GuestVM

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uvmshare.daemon.client import AsyncClient

__all__ = ["run_fleet_demo"]

assert sys.platform == "linux", "the daemon runs on Linux"

_LEASE: Final = 6
"""Seconds of the laptop's lease."""
_PROJECT: Final = "/run/uvmshare/project"
_OF_LAPTOP: Final = "/run/uvmshare/laptop"

PROGRAM: Final = """
import sys, time
from uvmshare.daemon.client import Client

gates, certificate, path, guest_path, lease = sys.argv[1:]
with Client(gates, certificate=certificate) as fleet:
    for vm in ("one", "two"):
        fleet.mounts.map(vm, path, guest_path, owner="laptop", lease=float(lease))
    print("held", flush=True)
    while True:  # until it crashes
        time.sleep(float(lease) / 3)
        fleet.owners.renew("laptop")
"""
"""What runs on the laptop. It does not clean up."""

WATCHER: Final = f"""
times=0
while [ -e /run/watching ]; do
    cat {_PROJECT}/hello >/run/seen 2>&1 || cp /run/seen /run/missed
    times=$((times + 1))
done
echo "$times" >/run/times.new && mv /run/times.new /run/times
"""
"""What reads a file in a guest, over and over, and keeps the words of a read that failed."""


async def run_fleet_demo(console: SafeConsole | None = None) -> int:
    """Run the demonstration and return 0, or 1 when a check failed.

    Raises `GuestUnavailable` without QEMU, its vsock device or etcd, and `NoMachines` without network namespaces.
    """
    console = console or SafeConsole()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="uvmshare-demo-") as directory:
        try:
            await _Fleet(directory, Steps(console)).run()
        except (CheckFailed, GuestFailed, StoreError, TimeoutError) as error:
            failed = Text.assemble(("the demonstration FAILED:", "bold red"), " ", printable(str(error) or repr(error)))
            console.print(failed, soft_wrap=True)
            _show_logs(console, directory)
            return 1
    took = f"{time.monotonic() - begun:.0f} s. "
    console.print(Text.assemble("\n", took, ("Everything held.", "bold green")))
    return 0


def _show_logs(console: SafeConsole, directory: str) -> None:
    for name in sorted(os.listdir(directory)):
        if name.endswith(".log"):
            with open(os.path.join(directory, name), encoding="utf-8", errors="backslashreplace") as file:
                last = file.readlines()[-20:]
            if last:
                console.print(f"the end of {name}:\n{printable_lines(last)}", soft_wrap=True)


def printable_lines(lines: list[str]) -> str:
    """Return lines as they may be shown."""
    return "\n".join(printable(line.rstrip("\n")) for line in lines)


class _Fleet:
    """The steps, in order, with what each leaves to the next."""

    def __init__(self, directory: str, shown: Steps) -> None:
        self._directory = directory
        self._shown = shown
        self._stage = Stage(directory)
        self._machines = self._stage.machines
        self._project = self._stage.make("project", "from the host\n")
        self._other = self._stage.make("other", "from the laptop\n")
        self._guests: dict[str, GuestVM] = {}

    async def run(self) -> None:
        """Do every step. Raises `CheckFailed` at the first that does not hold."""
        async with contextlib.AsyncExitStack() as stack:
            booting = asyncio.gather(*(self._boot(stack, vm) for vm in ("one", "two")))
            stack.callback(booting.cancel)
            await stack.enter_async_context(self._machines)
            step = self._shown.step
            await step("three members of etcd, with certificates and roles", self._stage.start_etcd())
            await step("two gates; two hosts, whose daemons follow the fleet", self._stage.start_gates_and_hosts())
            async with self._stage.client() as fleet:
                await step("two guests boot, each with an agent", self._boot_guests(booting))
                steps: list[tuple[str, Callable[[AsyncClient], Awaitable[str]]]] = [
                    ("from here: VM one on host-1, and a directory in its guest", self._add_from_here),
                    ("VM two is host-2's own; it joins the fleet while its guest reads", self._join),
                    ("a laptop maps a directory in both guests", self._map_from_laptop),
                    ("gate-1 is killed", self._kill_gate),
                    ("the laptop is gone, with its cable; its leases end", self._kill_laptop),
                    ("host-1 is cut off", self._cut),
                    ("host-1 is back", self._mend),
                    ("VM one moves to host-2, with its share in use", self._move),
                    ("VM two leaves the fleet, VM one is removed", self._leave),
                ]
                for title, action in steps:
                    await step(title, action(fleet))

    # The guests

    def _uds(self, vm: str) -> str:
        return f"{self._directory}/{vm}.vsock"

    async def _boot(self, stack: contextlib.AsyncExitStack, vm: str) -> None:
        guest = await GuestVM.start(root="host", vsock=self._uds(vm), progress=self._shown.note)
        self._guests[vm] = await stack.enter_async_context(guest)

    async def _boot_guests(self, booting: Awaitable[object]) -> str:
        await booting
        agent = os.path.join(self._directory, "uvmshare-guest")
        await asyncio.to_thread(append, agent, bundle())
        state = ["agent", "--state", "/run/agent", "--check-every", "1"]
        program = shlex.join([sys.executable, "-I", "-S", agent, *state])
        for guest in self._guests.values():
            await guest.check(f"{program} >/run/agent.log 2>&1 &", timeout=DEADLINE)
        found = self._guests["one"]
        return f"Linux {found.release} under QEMU ({found.accelerator}), reached over vsock"

    async def _reads(self, vm: str, path: str, wanted: str) -> None:
        """Check what a guest reads."""
        read = await self._guests[vm].run(f"cat {path}/hello", timeout=DEADLINE)
        check(read.text == wanted, f"the guest of VM {vm} reads {read.text!r} at {path}")

    # The steps

    async def _add_from_here(self, fleet: AsyncClient) -> str:
        at = f"firecracker:{self._uds('one')}"
        vm = await fleet.vms.add("one", listen=[at], agent=at, on="host-1")
        check((vm.host, vm.state) == ("host-1", "running"), f"VM one is {vm.state} on {vm.host}")
        await self._stage.in_time(lambda: fleet.vms.get("one"), lambda vm: vm.agent_state == "reached")
        begun = time.monotonic()
        mount = await fleet.mounts.map("one", self._project, _PROJECT, owner="ann")
        took = time.monotonic() - begun
        await self._reads("one", _PROJECT, "from the host\n")
        return f"share {mount.share} of {self._project} is at {mount.guest_path} in the guest, after {took:.1f} s"

    async def _join(self, fleet: AsyncClient) -> str:
        at = f"firecracker:{self._uds('two')}"
        guest = self._guests["two"]
        async with self._stage.daemon("host-2") as own:
            await own.vms.add("two", listen=[at], agent=at)
            await self._stage.in_time(lambda: own.vms.get("two"), lambda vm: vm.agent_state == "reached")
            before = await own.mounts.map("two", self._project, _PROJECT, owner="program", lease=600)
            await guest.check(f"touch /run/watching; ({WATCHER}) >/dev/null 2>&1 &", timeout=DEADLINE)
            await fleet.vms.join(await own.offer_vm("two", TENANT))
        (mount,) = await fleet.mounts("two")
        owners = [(each.owner, each.lease) for each in mount.references]
        check(mount.share == before.share, f"the share is called {mount.share} in the fleet, not {before.share}")
        check(owners == [("program", 600)], f"in the fleet the mount is held by {owners}")
        ended = (
            "rm /run/watching; until [ -e /run/times ]; do sleep 0.1; done; cat /run/times; cat /run/missed 2>/dev/null"
        )
        times, _, missed = (await guest.run(ended, timeout=DEADLINE)).text.partition("\n")
        check(times.isdigit() and int(times) > 0, f"the guest has read {times!r} times meanwhile")
        check(not missed, f"the guest could not read meanwhile: {missed}")
        return f"share {mount.share} is held by {owners[0][0]} still, and none of {times} reads of the guest failed"

    async def _map_from_laptop(self, fleet: AsyncClient) -> str:
        program = await self._machines.start(
            LAPTOP,
            *(
                sys.executable,
                "-c",
                PROGRAM,
                self._stage.gates,
                self._stage.certificate,
                self._other,
                _OF_LAPTOP,
                str(_LEASE),
            ),
            heard=True,
        )
        assert program.stdout is not None
        async with asyncio.timeout(DEADLINE):
            said = await program.stdout.readline()
        check(said == b"held\n", "the laptop's program ended before it held anything")
        for vm in ("one", "two"):
            await self._reads(vm, _OF_LAPTOP, "from the laptop\n")
            owners = [each.owner for mount in await fleet.mounts(vm) for each in mount.references]
            check("laptop" in owners, f"VM {vm} has mounts of {owners}")
        return f"with one lease of {_LEASE} s for both, renewed through whichever gate answers"

    async def _kill_gate(self, fleet: AsyncClient) -> str:
        await self._machines.kill("gate-1")
        states = {vm.id: vm.state for vm in await fleet.vms()}
        check(states == {"one": "running", "two": "running"}, f"the other gate says {states}")
        return "the next request goes to gate-2, which knows all that gate-1 knew: nothing but etcd's"

    async def _kill_laptop(self, fleet: AsyncClient) -> str:
        await self._machines.cut(LAPTOP)
        await self._machines.kill(LAPTOP)
        begun = time.monotonic()
        for vm in ("one", "two"):
            await self._stage.in_time(lambda vm=vm: fleet.mounts(vm), lambda mounts: len(mounts) == 1)  # type: ignore[misc]  # mypy cannot infer a default's type
        took = time.monotonic() - begun
        for vm, guest in self._guests.items():
            mounted = await guest.run(f"grep -c {_OF_LAPTOP} /proc/mounts", timeout=DEADLINE)
            check(mounted.text.strip() == "0", f"the guest of VM {vm} still has it mounted")
            await self._reads(vm, _PROJECT, "from the host\n")
        return f"both guests have it no more, {took:.1f} s after the end of the laptop; what others hold is there"

    async def _cut(self, fleet: AsyncClient) -> str:
        await self._machines.cut("host-1")
        await self._stage.in_time(fleet.hosts, lambda hosts: [host.state for host in hosts] == ["lost", "alive"])
        await self._reads("one", _PROJECT, "from the host\n")
        await self._guests["one"].check(f"echo written > {_PROJECT}/meanwhile", timeout=DEADLINE)
        check("meanwhile" in os.listdir(self._project), "what the guest wrote is not on the host")
        try:
            await fleet.shares.add("one", self._other, owner="ann")
        except OutcomeUnknown as error:
            unknown = str(error)
        else:
            msg = "a gate said that a host which is cut off has done something"
            raise CheckFailed(msg)
        share = await fleet.shares.add("two", self._other, owner="ann")
        check((await fleet.shares.release("two", share.name, owner="ann")).ended, "host-2's share did not end")
        return f"its guest reads and writes on; host-2 does what it is asked; of host-1 a gate says: {unknown}"

    async def _mend(self, fleet: AsyncClient) -> str:
        await self._machines.mend("host-1")
        await self._stage.in_time(fleet.hosts, lambda hosts: [host.state for host in hosts] == ["alive", "alive"])
        paths = {self._other, self._project}
        await self._stage.in_time(lambda: fleet.shares("one"), lambda shares: {each.path for each in shares} == paths)
        return "it has done what it was asked while it was away"

    async def _move(self, fleet: AsyncClient) -> str:
        """Move a VM as far as the fleet is concerned: this guest stays in its QEMU, whose sockets both hosts reach."""

        async def mounted() -> dict[str, str | None]:
            return {mount.guest_path: mount.share for mount in await fleet.mounts("one")}

        before = await mounted()
        await self._guests["one"].check(f"tail -f {_PROJECT}/hello >/run/tail 2>&1 &", timeout=DEADLINE)
        await fleet.vms.move("one", "host-2", step="prepare")
        await self._reads("one", _PROJECT, "from the host\n")
        begun = time.monotonic()
        moved = await fleet.vms.move("one", "host-2", step="commit")
        served = time.monotonic() - begun
        check((moved.host, moved.epoch) == ("host-2", 2), f"VM one is on {moved.host}, in epoch {moved.epoch}")

        async def read() -> str:
            return (await self._guests["one"].run(f"cat {_PROJECT}/hello", timeout=DEADLINE)).text

        await self._stage.in_time(read, lambda text: text == "from the host\n")
        took = time.monotonic() - begun
        await self._stage.in_time(mounted, lambda after: after == before)  # until then its mounts are being restored
        async with self._stage.daemon("host-1") as old:
            check(not await old.vms(), "host-1 has it still")
        return f"served by host-2 {served:.1f} s after the commit, and mounted again by its agent after {took:.1f} s"

    async def _leave(self, fleet: AsyncClient) -> str:
        await fleet.vms.leave("two")
        await fleet.vms.remove("one", force=True)
        check(not await fleet.vms(), "the fleet still has VMs")
        await self._reads("two", _PROJECT, "from the host\n")
        lost = await self._guests["one"].run(f"cat {_PROJECT}/hello", timeout=DEADLINE)
        check(lost.status != 0, "the guest of VM one still reads")
        async with self._stage.daemon("host-2") as own:
            (mount,) = await own.mounts("two")
            owners = [(each.owner, each.lease) for each in mount.references]
            check(owners == [("program", 600)], f"on the host the mount is held by {owners}")
            await own.vms.remove("two", force=True)
        return "the guest of VM two still reads, and host-2 has its VM as it was before"
