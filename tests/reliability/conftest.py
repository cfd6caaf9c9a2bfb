"""Supervisors that are forked rather than started, and killed where a test says.

What lives here: `Zygote`, which stands in the place of the interpreter's start. What must not: what is killed
and what holds afterwards; that is in the tests.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

if sys.platform == "win32":
    collect_ignore_glob = ["test_*.py"]

DEADLINE: Final = 60.0
"""Seconds until a test that hangs is ended. Nothing is measured with it."""


class Forked:
    """A supervisor that the zygote forked: what `uvmshare.fileserver.link` needs of a `subprocess.Popen`."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid) if sys.platform == "linux" else -1

    def poll(self) -> int | None:
        """Say whether it has ended; its status is the zygote's to know."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises `subprocess.TimeoutExpired`."""
        status = self._wait(DEADLINE if timeout is None else timeout)
        if status is None:
            raise subprocess.TimeoutExpired(["supervisor"], timeout or DEADLINE)
        return status

    def kill(self) -> None:
        """Kill -9."""
        os.kill(self.pid, signal.SIGKILL)

    def _wait(self, seconds: float) -> int | None:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            if not ended.poll(seconds * 1000):
                return None
            self.returncode = 0
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        return self.returncode


class Zygote:
    """A process that forks supervisors. `point` is where the next one of them dies; then the point is forgotten."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(DEADLINE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("zygote.py")), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                # Two trace functions in one process are one too many: these supervisors are not measured.
                env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")},
            )
        self.point: dict[str, Any] | None = None

    def spawn(self, channel: socket.socket, run_as: object, log: str | None, cgroup: object) -> tuple[Forked, None]:
        """Stand in the place of `uvmshare.fileserver.link._spawn`."""
        assert run_as is cgroup is None
        errors = os.open(log or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        point, self.point = self.point, None
        socket.send_fds(self._socket, [json.dumps(point).encode()], [channel.fileno(), errors])
        os.close(errors)
        return Forked(json.loads(self._socket.recv(64))), None

    @property
    def pid(self) -> int:
        """The zygote's own process."""
        return self._process.pid

    def living(self) -> int:
        """Return how many processes live of those it forked, and those that they left."""
        self._socket.send(b"null")
        return int(json.loads(self._socket.recv(64)))

    def close(self) -> None:
        """End it."""
        self._socket.close()
        assert self._process.wait(DEADLINE) == 0


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    from uvmshare.fileserver import link

    made = Zygote()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "_spawn", made.spawn)
        yield made
    made.close()
