"""A run directory, an address and whoever serves there, for tests in which supervisors die."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fileserver.harness import add_document, remove_document
from tests.processes import DEADLINE, kill

from uvmshare.errors import FileServerError
from uvmshare.fileserver.device import FileServer
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import Awaitable


class Place:
    """A run directory, an address, and whoever serves there; called from tests that are not asynchronous."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="9p-"))
        self.run_dir = self.directory / "run"
        self.address = f"unix:{self.directory}/s"
        self.shared = self.directory / "shared"
        self.shared.mkdir()
        (self.shared / "file").write_bytes(b"content")
        self.runner = asyncio.Runner()
        self.guests = ExitStack()
        self.servers: list[FileServer] = []

    def run(self, call: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(DEADLINE):
                return await call

        return self.runner.run(bounded())

    def start(self, **settings: Any) -> FileServer:
        given: dict[str, Any] = {"listen": [self.address], "security_model": "none", "run_dir": self.run_dir}
        server: FileServer = self.run(FileServer(**given | settings).start())
        self.servers.append(server)
        return server

    def connect(self) -> FileServer:
        server: FileServer = self.run(FileServer.connect(self.run_dir).start())
        self.servers.append(server)
        return server

    def let_go(self, server: FileServer) -> None:
        """Be as a process that ended: know nothing of the server any more."""
        self.run(server.detach())
        self.servers.remove(server)

    def add(self, server: FileServer, name: str, path: Path | None = None, **options: Any) -> None:
        self.run(server._modify(add_document(name, str(path or self.shared), **options)))

    def remove(self, server: FileServer, name: str) -> None:
        self.run(server._modify(remove_document(name)))

    def guest(self, name: str, address: str | None = None) -> NinePClient:
        return self.guests.enter_context(NinePClient.connect(address or self.address, name, timeout=DEADLINE))

    def mounts(self, server: FileServer) -> dict[str, list[int]]:
        return {share.name: [each.pid for each in share.mounts] for share in self.run(server.status()).shares}

    def kill(self, server: FileServer) -> int:
        """Kill -9 the supervisor behind a server, from which the test lets go; give its pid."""
        pid = int(self.run(server.status()).pid)
        self.let_go(server)
        kill(pid)
        return pid

    def kill_under(self, *servers: FileServer) -> int:
        """Kill -9 the supervisor behind servers, and wait until each has seen it; give its pid."""
        pid = int(self.run(servers[0].status()).pid)
        links = [server._link for server in servers]
        kill(pid)
        for link in links:
            self.run(link._ended.wait())
        return pid

    def log(self) -> str:
        return (self.run_dir / "log").read_text()

    def close(self) -> None:
        self.guests.close()
        for server in self.servers:
            self.run(server.aclose())
        with suppress(FileServerError):
            self.run(self.connect().aclose())
        self.runner.close()
        left = [name for name in os.listdir(self.run_dir) if name != "log"] if self.run_dir.exists() else []
        shutil.rmtree(self.directory)
        assert left == [], "an orderly end leaves the log alone"
