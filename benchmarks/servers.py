"""The servers that are compared: uvmshare with its compiled hot path and without, diod, and the minimal C server.

What lives here: how each is built, started on a unix socket and on TCP, held to CPUs, looked at, and ended.
What must not: what is asked of them (`run`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["NAMES", "Failed", "Server", "build", "describe_diod", "start"]

HERE: Final = Path(__file__).parent
NAMES: Final = ("uvmshare", "pure", "diod", "minimal")
"""uvmshare with the compiled hot path, uvmshare without it, and the two that it is compared with."""
_SPEED: Final = {"uvmshare": "required", "pure": "off"}
_START_SECONDS: Final = 30.0


class Failed(Exception):
    """A program that the benchmarks need did not do its part."""


def build(into: Path) -> None:
    """Compile the C programs into a directory. Raises `Failed`."""
    into.mkdir(parents=True, exist_ok=True)
    for name in ("load", "minimal"):
        command = ["cc", "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", str(into / name)]
        done = subprocess.run([*command, str(HERE / f"{name}.c")], capture_output=True, text=True, check=False)
        if done.returncode:
            message = f"{name}.c cannot be compiled:\n{done.stderr}"
            raise Failed(message)


class Server:
    """A running server. `addresses` are for load.c, by transport; `aname` is what a client attaches to.

    Use as a context manager: it is ended with its processes.
    """

    def __init__(
        self, name: str, command: Sequence[str], addresses: dict[str, str], aname: str, **environment: str
    ) -> None:
        self.name = name
        self.addresses = addresses
        self.aname = aname
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the server; the processes it made end with it, or with their clients."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=_START_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()

    def fail(self, reason: str) -> Failed:
        """Return the error that says what the server did, with its own last words."""
        self._process.kill()
        _, errors = self._process.communicate()
        return Failed(f"{self.name}: {reason}: {errors.strip() or 'it said nothing'}")

    def read_line(self) -> str:
        """Return the next line that the server prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def wait_for(self, address: str) -> None:
        """Return once somebody listens on an address. Raises `Failed`."""
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with suppress(OSError), _connect(address):
                return
            time.sleep(0.01)
        msg = f"does not listen on {address}"
        raise self.fail(msg)

    def tasks(self) -> list[int]:
        """Return the threads of every process of the server's."""
        parents: dict[int, list[int]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    stat = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8", errors="replace")
                    parents.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
        found, waiting = [], [self._process.pid]
        while waiting:
            pid = waiting.pop()
            waiting += parents.get(pid, [])
            with suppress(OSError):
                found += [int(task) for task in os.listdir(f"/proc/{pid}/task")]
        return found

    def hold_to(self, cpus: frozenset[int]) -> None:
        """Let the server, and what it will start, run on these CPUs."""
        for task in self.tasks():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(task, cpus)

    def cpu_seconds(self) -> float:
        """Return how long the server's threads that are alive have run, in seconds."""
        total = 0
        for task in self.tasks():
            with suppress(OSError):
                total += int(Path(f"/proc/{task}/schedstat").read_text(encoding="ascii").split()[0])
        return total / 1e9


def _connect(address: str) -> socket.socket:
    kind, _, where = address.partition(":")
    if kind == "tcp":
        return socket.create_connection(("127.0.0.1", int(where)))
    connected = socket.socket(socket.AF_UNIX)
    try:
        connected.connect(where)
    except BaseException:
        connected.close()
        raise
    return connected


@contextmanager
def _port() -> Iterator[int]:
    """Give a free port and keep it from all others: bound, but with SO_REUSEADDR, so that a server may listen on it."""
    with socket.socket() as keeping:
        keeping.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeping.bind(("127.0.0.1", 0))
        yield int(keeping.getsockname()[1])


def start(name: str, tree: Path, sockets: Path, programs: Path) -> list[Server]:
    """Start a server that shares `tree`; its unix sockets go to `sockets`. Raises `Failed`.

    There is one for each transport where one cannot serve both.
    """
    with _port() as port:
        return _start(name, tree, f"unix:{sockets / name}", port, programs)


def _start(name: str, tree: Path, unix: str, port: int, programs: Path) -> list[Server]:
    both = {"unix": unix, "tcp": f"tcp:{port}"}
    if name in _SPEED:
        listen = ["--listen", unix, "--listen", f"tcp:127.0.0.1:{port}"]
        command = [str(Path(sys.executable).with_name("uvmshare")), "serve", *listen, str(tree)]
        server = Server(name, command, both, "0", UVMSHARE_SPEED=_SPEED[name])
        while line := server.read_line():
            if json.loads(line).get("ready"):
                return [server]
        msg = "did not start"
        raise server.fail(msg)
    if name == "diod":
        listen = ["-l", unix.removeprefix("unix:"), "-l", f"127.0.0.1:{port}"]
        # No authentication and no look-ups of users, which nobody else does here either.
        command = [_diod(), "-f", "-n", "-N", "-L", "stderr", "-e", str(tree), *listen]
        servers = [Server(name, command, both, str(tree))]
    else:
        servers = [
            Server(name, [str(programs / "minimal"), address], {transport: address}, str(tree))
            for transport, address in both.items()
        ]
    for server in servers:
        for address in server.addresses.values():
            server.wait_for(address)
    return servers


def _diod() -> str:
    found = shutil.which("diod", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        message = "diod is not installed: apt-get install --no-install-recommends diod"
        raise Failed(message)
    return found


def describe_diod() -> str:
    """Return diod's version as Debian has it."""
    done = subprocess.run(["dpkg-query", "-W", "diod"], capture_output=True, text=True, check=False)
    found = re.search(r"\t(\S+)", done.stdout)
    return found[1] if found else "unknown"
