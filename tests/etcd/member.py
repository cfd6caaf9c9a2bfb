"""One member of etcd, as a process on loopback, of Debian's package or what is on PATH."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import DEADLINE

if TYPE_CHECKING:
    import signal
    from collections.abc import Sequence

__all__ = ["Member", "free_port", "program", "start_single"]

_UNPACKED: Final = Path(__file__).parents[2] / ".cache" / "packages"


def program(name: str) -> str:
    """Return the path of etcd or etcdctl."""
    package = {"etcd": "etcd-server", "etcdctl": "etcd-client"}[name]
    unpacked = _UNPACKED / package / "usr" / "bin" / name
    found = str(unpacked) if unpacked.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"there is no {name}: tools/packages test")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Member:
    """A process of etcd that can be stopped, killed and started again with its data."""

    def __init__(
        self, name: str, data: Path, arguments: Sequence[str], wrapper: Sequence[str] = (), log: Path | None = None
    ) -> None:
        self.name = name
        self.data = data
        self.log = log or data.parent / f"{name}.log"
        self._command = [*wrapper, program("etcd"), f"--name={name}", f"--data-dir={data}", *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                env={**os.environ, "ETCD_UNSUPPORTED_ARCH": os.uname().machine},
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    @property
    def has_ended(self) -> bool:
        """Whether it ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def kill(self) -> None:
        """End it with SIGKILL; its data stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)
            self._process = None


QUICK: Final = ("--heartbeat-interval=50", "--election-timeout=500", "--logger=zap", "--log-level=warn")
"""A leader within half a second: on loopback nothing takes longer unless it is gone."""


def start_single(data: Path, *more: str, scheme: str = "http", port: int = 0) -> tuple[Member, str]:
    """Start a member that is a cluster by itself; return it and its URL."""
    client, peer = f"{scheme}://127.0.0.1:{port or free_port()}", f"http://127.0.0.1:{free_port()}"
    member = Member(
        "single",
        data,
        [
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=single={peer}",
            *QUICK,
            *more,
        ],
    )
    member.start()
    return member, client
