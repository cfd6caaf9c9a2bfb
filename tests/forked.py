"""Supervisors that tests fork rather than start: the same processes, without the start of an interpreter for each.

What lives here: a zygote (`zygote.py`) that stands in the place of `subprocess` where supervisors are started. A folder
has it when its conftest imports `zygote` and `forked_supervisors`, and a module of it does without by `started`.
What must not: tests of the start itself. Those of `tests/fileserver` and of the daemon's process start interpreters.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.processes import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_OF_ONE_TEST: Final = "PYTEST_CURRENT_TEST"
_GIVEN_TO_CHILDREN: Final = ("Umask:", "Uid:", "Gid:", "Groups:", "SigIgn:", "Cap", "NoNewPrivs:", "Seccomp:")


def _surroundings() -> tuple[object, ...]:
    """Return what a child has from this thread, and a zygote's from the time when that was started."""
    environment = {name: value for name, value in os.environ.items() if name != _OF_ONE_TEST}
    lines = Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines()
    status = [line for line in lines if line.startswith(_GIVEN_TO_CHILDREN)]
    namespaces = [os.readlink(f"/proc/thread-self/ns/{kind}") for kind in ("mnt", "net", "pid_for_children", "user")]
    return environment, os.getcwd(), status, namespaces, sys.executable


class Forked:
    """A supervisor that was forked: what `uvmshare.fileserver.link` uses of a `subprocess.Popen`."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote = zygote
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its status if it has ended; it is reaped then, and not before."""
        if self.returncode is None:
            self.returncode = self._zygote.ask({"poll": self.pid})
        return self.returncode

    def wait(self) -> int:
        """Wait for its end."""
        while (status := self.poll()) is None:
            os.sched_yield()
        return status

    def kill(self) -> None:
        """Kill -9."""
        if self.poll() is None:
            os.kill(self.pid, 9)


class Zygote:
    """Stands in the place of the module `subprocess`."""

    DEVNULL = subprocess.DEVNULL

    def __init__(self) -> None:
        self._surroundings = _surroundings()
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(DEADLINE)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("zygote.py")), str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
            )

    def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
        """Send a request and return its answer."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            return json.loads(self._socket.recv(64))

    def Popen(self, command: list[str], *, pass_fds: Sequence[int], stderr: int | None, **more: Any) -> Any:  # noqa: N802
        """Fork a supervisor; start it where a zygote's child would have something else than this process's."""
        if _surroundings() != self._surroundings:
            return subprocess.Popen(command, pass_fds=pass_fds, stderr=stderr, **more)
        start = command.index("uvmshare.fileserver") + 1
        request = {"arguments": command[start:], "wanted": [*pass_fds, 2]}
        return Forked(self, self.ask(request, [*pass_fds, 2 if stderr is None else stderr]))

    def close(self) -> None:
        """End the zygote, once nobody asks any more."""
        self._socket.close()
        assert self._process.wait(DEADLINE) == 0


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote | None]:
    """One for all tests of a folder; none where what runs is measured, because coverage is told of starts alone."""
    if any(name.startswith("COVERAGE_") for name in os.environ):
        yield None
        return
    made = Zygote()
    yield made
    made.close()


@pytest.fixture(scope="module", autouse=True)
def forked_supervisors(zygote: Zygote | None) -> Iterator[None]:
    """Fork the supervisors of a module's tests."""
    from uvmshare.fileserver import link

    with pytest.MonkeyPatch.context() as patch:
        if zygote is not None:
            patch.setattr(link, "subprocess", zygote)
        yield


def started() -> Any:
    """A fixture for a module whose tests are about the start: ``forked_supervisors = started()``."""

    @pytest.fixture(scope="module", autouse=True)
    def forked_supervisors() -> None:
        """Leave `subprocess` where it is."""

    return forked_supervisors
