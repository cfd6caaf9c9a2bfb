"""A guest with an agent, whose kernel only notes down what it mounts (`tests/agent`), for tests of the daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Home, Running

AGENT = Path(__file__).parents[1] / "agent" / "fake_kernel.py"


class _Answer(socketserver.StreamRequestHandler):
    """What a mount of that kernel asks of its file server: may I have this share?"""

    def handle(self) -> None:
        share = self.rfile.readline()
        if share:
            assert isinstance(self.server, _Server)
            self.server.connected.append(self.connection)
            self.server.asked.append(share.decode().strip())
            self.wfile.write(b"0")
            self.wfile.flush()
            self.rfile.read()  # as long as the mount is there


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    asked: list[str]
    connected: list[socket.socket]


class Guest:
    """A guest, as far as the daemon can tell."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.kernel = f"{folder}/kernel"
        self.allow = f"{folder}/mnt"
        self.socket = f"{folder}/agent.sock"
        os.mkdir(self.kernel)
        os.mkdir(self.allow)
        self.server = _Server(f"{folder}/nine", _Answer)
        self.server.asked, self.server.connected = [], []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(AGENT), self.kernel, "--listen", f"unix:{self.socket}", "--allow", self.allow]
        command += ["--state", f"{self.folder}/state", "--server", f"unix:{self.folder}/nine", "--check-every", "60"]
        path = f"{self.folder}/notify"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, open(f"{self.folder}/log", "ab") as log:
            notices.bind(path)
            notices.settimeout(DEADLINE)
            try:
                self.process = subprocess.Popen(command, stderr=log, env={**os.environ, "NOTIFY_SOCKET": path})
                assert notices.recv(64) == b"READY=1", Path(self.folder, "log").read_text()
            finally:
                os.unlink(path)

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(DEADLINE)
            self.process = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket)

    def mounted(self) -> list[str]:
        try:
            with open(f"{self.kernel}/mounts.json") as file:
                return [entry[1] for entry in json.loads(file.read() or "[]")]
        except FileNotFoundError:
            return []

    def flags(self) -> dict[str, set[str]]:
        """Return what /proc/mounts would show of the flags of each mount, by its path."""
        flags = {"ro", "nosuid", "nodev", "posixacl"}
        with open(f"{self.kernel}/mounts.json") as file:
            return {entry[1]: flags & set(entry[4].split(",")) for entry in json.load(file)}

    def close(self) -> None:
        self.end()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def guest(home: Home) -> Iterator[Guest]:
    guest = Guest(home.directory("guest"))
    guest.start()
    yield guest
    guest.close()


@pytest.fixture
def mapped(guest: Guest, daemon: Running) -> Running:
    """A daemon with a VM whose guest has an agent."""
    daemon.add_vm(agent=f"unix:{guest.socket}")
    return daemon


def wanted(guest: Guest, path: str, name: str = "project", **more: Any) -> dict[str, Any]:
    return {"path": path, "guest_path": f"{guest.allow}/{name}", **more}


def replace(path: str) -> None:
    os.rmdir(path)
    os.mkdir(path)
