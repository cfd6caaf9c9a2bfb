"""Machines for a demonstration of a fleet: network namespaces on one bridge, and the processes that run in them.

What lives here: making them, cutting one off, and taking all away. What must not: what runs there.

The process of the demonstration is at the bridge itself, and reaches all of them. A link that is down loses packets
without a word, as a cable that is out does.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING, Final, Self

from uvmshare.errors import UvmshareError
from uvmshare.testing.guest_vm import send_signal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

__all__ = ["Machines", "NoMachines"]

assert sys.platform == "linux", "network namespaces are Linux's"

_END_SECONDS: Final = 20.0
"""For a process to end in order, before it is killed."""


class NoMachines(UvmshareError):
    """This process cannot make network namespaces."""


class Machines:
    """Machines of these names. Raises `NoMachines` when they cannot be made; leaving the block takes them away."""

    def __init__(self, names: Sequence[str], logs: str) -> None:
        self._names = list(names)
        self._logs = logs
        self._tag = f"{os.getpid():x}"
        self._net = f"198.18.{os.getpid() % 250}"  # a range for benchmarks (RFC 2544): no network has it
        self._bridge = f"uv{self._tag}"
        self.processes: dict[str, asyncio.subprocess.Process] = {}

    def address(self, name: str) -> str:
        """Return a machine's address."""
        return f"{self._net}.{10 + self._names.index(name)}"

    def _space(self, name: str) -> str:
        return f"uvmshare-{self._tag}-{name}"

    def _link(self, name: str) -> str:
        return f"uv{self._tag}.{self._names.index(name)}"

    async def __aenter__(self) -> Self:
        try:
            await self._ip("link", "add", self._bridge, "type", "bridge")
            await self._ip("addr", "add", f"{self._net}.1/24", "dev", self._bridge)
            await self._ip("link", "set", self._bridge, "up")
            for name in self._names:
                space, link = self._space(name), self._link(name)
                await self._ip("netns", "add", space)
                await self._ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
                await self._ip("link", "set", link, "master", self._bridge, "up")
                await self._ip("-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
                await self._ip("-n", space, "link", "set", "eth0", "up")
                await self._ip("-n", space, "link", "set", "lo", "up")
        except BaseException:
            await self._take_away()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await asyncio.gather(*(self.end(name) for name in list(self.processes)))
        await self._take_away()

    async def _take_away(self) -> None:
        for name in self._names:
            with contextlib.suppress(NoMachines):  # a daemon's file servers go on when it ends
                for pid in (await self._ip("netns", "pids", self._space(name))).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(NoMachines):
                await self._ip("netns", "del", self._space(name))
        with contextlib.suppress(NoMachines):
            await self._ip("link", "del", self._bridge)

    async def _ip(self, *arguments: str) -> str:
        """Run ip(8), and return what it printed."""
        try:
            process = await asyncio.create_subprocess_exec(
                *("ip", *arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
        except FileNotFoundError as error:
            msg = "there is no ip on PATH: run tools/packages demo-fleet, or apt-get install iproute2"
            raise NoMachines(msg) from error
        said, _ = await process.communicate()
        if process.returncode:
            why = said.decode(errors="replace").strip()
            msg = f"ip {' '.join(arguments)}: {why}: be root, where network namespaces can be made"
            raise NoMachines(msg)
        return said.decode()

    # What happens to machines

    async def cut(self, name: str) -> None:
        """Cut a machine off from the others."""
        await self._ip("link", "set", self._link(name), "down")

    async def mend(self, name: str) -> None:
        """Connect it again."""
        await self._ip("link", "set", self._link(name), "up")

    async def start(
        self, name: str, *command: str, environment: Mapping[str, str] | None = None, heard: bool = False
    ) -> asyncio.subprocess.Process:
        """Start the one process of a machine, whose log is called as the machine is; `heard`, with a pipe to read."""
        log = os.open(self.log(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = self.processes[name] = await asyncio.create_subprocess_exec(
                *("ip", "netns", "exec", self._space(name), *command),
                stdout=asyncio.subprocess.PIPE if heard else log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        finally:
            os.close(log)
        return process

    async def start_uvmshare(self, name: str, *arguments: str) -> None:
        """Start one of uvmshare's own commands there."""
        code = "import sys; from uvmshare.cli import main; sys.exit(main())"
        await self.start(name, sys.executable, "-c", code, *arguments)

    def log(self, name: str) -> str:
        """Return where the log of a machine's process is."""
        return os.path.join(self._logs, f"{name}.log")

    async def kill(self, name: str) -> None:
        """End a machine's process at once, as pulling the plug does."""
        process = self.processes.pop(name, None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                send_signal(process, signal.SIGKILL)
            await process.wait()

    async def end(self, name: str) -> None:
        """End a machine's process in order."""
        process = self.processes.get(name)
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            send_signal(process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_END_SECONDS):
                await process.wait()
        await self.kill(name)
