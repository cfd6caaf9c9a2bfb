"""An agent under a kernel that only notes down its mounts, a server for these, and the client that is held to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from tests.processes import DEADLINE

from uvmshare.guest import wire
from uvmshare.mounts import AgentClient
from uvmshare.mounts.interfaces import GuestMount

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
    from pathlib import Path
    from typing import Any, BinaryIO


class Server:
    """What mounts dial. `answers` says for each share how: an errno, or None for no answer at all."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.answers: dict[str, int | None] = {}
        self.asked: list[str] = []
        """The shares that mounts asked for, in order."""
        self._changed = asyncio.Event()
        self._open: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        share = (await reader.readline()).decode().strip()
        if not share:
            return
        self.asked.append(share)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        answer = self.answers.get(share, 0)
        if answer is not None:
            writer.write(b"%d" % answer)

    async def until_asked(self, times: int) -> None:
        while len(self.asked) < times:
            await self._changed.wait()

    def cut(self) -> None:
        """End every connection."""
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def stop(self) -> None:
        await close(self._server)
        self.cut()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


class Raw:
    """A connection with the agent on which a test says what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def next(self) -> dict[str, Any]:
        line = await self.reader.readline()
        if not line:
            raise EOFError
        read: dict[str, Any] = json.loads(line)
        return read

    async def ask(self, **fields: object) -> dict[str, Any]:
        self.writer.write(wire.encode(fields))
        return await self.next()

    async def greet(self, client: str) -> None:
        await self.next()
        answer = await self.ask(id=0, op="hello", version=1, client=client, nonce="n")
        assert answer["ok"]


class Bench:
    """All of it, in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.kernel = directory / "kernel"
        self.kernel.mkdir()
        self.allow = directory / "mnt"
        self.state = directory / "state"
        self.socket = str(directory / "agent.socket")
        self.server = Server(str(directory / "nine"))
        self.agents: list[asyncio.subprocess.Process] = []
        self._raw: list[Raw] = []

    async def start_agent(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        """Start the agent; clients find it by themselves."""
        self.agents.append(await self.spawn(*arguments, environment=environment))

    async def spawn(
        self, *arguments: str, environment: dict[str, str] | None = None, capture: bool = False
    ) -> asyncio.subprocess.Process:
        where = () if "--listen" in arguments or "--connect" in arguments else ("--listen", f"unix:{self.socket}")
        with self._log() as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, os.path.join(os.path.dirname(__file__), "fake_kernel.py"), str(self.kernel), *where),
                *("--allow", str(self.allow), "--state", str(self.state), "--server", f"unix:{self.server.path}"),
                # Unless a test wants it, nothing reads the mounts beside what the test does with them.
                *("--check-every", "600"),
                *arguments,
                env={**os.environ, **(environment or {})},
                stderr=asyncio.subprocess.PIPE if capture else log,
            )

    def _log(self) -> BinaryIO:
        return open(self.directory / "log", "ab")

    async def end_agent(self, number: int = signal.SIGTERM) -> None:
        process = self.agents.pop()
        process.send_signal(number)
        await process.wait()

    async def stop_agent(self) -> None:
        """Have the agent do nothing any more until it gets SIGCONT, and wait until it does nothing."""
        pid = self.agents[-1].pid
        os.kill(pid, signal.SIGSTOP)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)

    def client(self, address: str = "", **options: Any) -> AgentClient:
        return AgentClient(address or f"unix:{self.socket}", **{"timeout": DEADLINE, **options})

    async def raw(self, path: str | None = None) -> Raw:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self._raw.append(Raw(*await asyncio.open_unix_connection(path or self.socket)))
                return self._raw[-1]
            await asyncio.sleep(0.01)

    def mount(self, name: str, share: str = "0", *, cache: str = "none") -> GuestMount:
        return GuestMount(share, f"{self.allow}/{name}", False, cache, 8192)  # type: ignore[arg-type]

    def note(self, what: str, *names: str) -> None:
        """Have the kernel treat these mounts so."""
        (self.kernel / what).write_text("\n".join(f"{self.allow}/{name}" for name in names))

    def mounted(self) -> list[str]:
        """Return the names of what the kernel has mounted below the allowed directory."""
        try:
            entries = json.loads((self.kernel / "mounts.json").read_text())
        except FileNotFoundError:
            return []
        return [os.path.relpath(entry[1], self.allow) for entry in entries]

    def log(self) -> str:
        return (self.directory / "log").read_text()

    @staticmethod
    async def until(holds: Callable[[], Awaitable[bool]]) -> None:
        """Wait until something holds that tells nobody; only the test's deadline ends that."""
        while not await holds():  # noqa: ASYNC110  see above
            await asyncio.sleep(0.01)

    async def until_it_failed(self, client: AgentClient) -> None:
        """Wait until an attempt of the client's to reach its agent has failed."""

        async def failed() -> bool:
            return client._failure is not None

        await self.until(failed)

    def run(self, test: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run a test with the server, and end what it started."""

        async def running() -> None:
            await self.server.start()
            try:
                await test()
            finally:
                while self.agents:
                    await self.end_agent()
                await self.server.stop()
                for raw in self._raw:
                    raw.writer.transport.abort()

        asyncio.run(running())


async def close(server: asyncio.Server) -> None:
    """Close a server when all that it has taken from the kernel is served: asyncio leaves the rest open for ever."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening.fileno())
    for _ in range(4):  # turns of this loop alone: no thread or process takes part in them
        await asyncio.sleep(0)
    server.close()


@contextlib.asynccontextmanager
async def serving(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], path: str
) -> AsyncIterator[None]:
    """Serve a unix socket for as long as the block takes; then whoever is connected is cut."""
    connected: list[asyncio.StreamWriter] = []

    async def serve_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_unix_server(serve_one, path)
    try:
        yield
    finally:
        await close(server)
        for writer in connected:
            writer.transport.abort()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)
