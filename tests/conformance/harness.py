"""The bench that the file server stands on here: one guest a kernel, one server a security model, and what was found.

What lives here: booting, mounting, and the records that docs/conformance.md is made of. What must not: what is tested.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import commits
import results
from uvmshare import AddOptions, FileServer, Manager
from uvmshare.fileserver.limits import Limits
from uvmshare.testing.guest_vm import HOST, GuestVM
from uvmshare.testing.kernel import cache_directory, find_kernel

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator, Mapping

    from uvmshare.fileserver.models import SecurityModel

TREE = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))
WORK = os.path.join(cache_directory(), "conformance")

USER = 12345
"""The user as whom the server "a user's" runs."""

SERVERS: dict[str, dict[str, Any]] = {
    "real links": {"links": "real"},
    "a user's": {"links": "real", "run_as": (USER, USER, ())},
    "few descriptors": {"limits": Limits(descriptors=256)},
    "few open files": {"limits": Limits(open_files=100)},
}
"""What each of the servers is told that are not as they come, by its name."""

NEWER = "6.12"
"""The newer of the two kernel series."""

COMMIT = commits.current(results.TREE)
"""Asked when the tests are loaded, as what they test is: the tree may be another one when they end."""

GUEST_DEADLINE = 900.0
"""Seconds for one command in the guest; only a hung one should meet this."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How a share is mounted: the guest's kernel, the server's security model, the client's options."""

    kernel: str
    model: SecurityModel = "passthrough"
    cache: str = "none"
    msize: int = 1 << 20
    access: str = "client"
    more: str = ""
    server: str = ""
    """What else the file server is told: a name of `SERVERS`."""

    def __str__(self) -> str:
        parts = [self.kernel, self.model, self.server, self.cache, str(self.msize), self.access, self.more.strip(",")]
        return "-".join(part for part in parts if part)

    @property
    def options(self) -> str:
        """The options of mount(8); "none" is what the client does when no cache is named."""
        cache = "" if self.cache == "none" else f",cache={self.cache}"
        return f"msize={self.msize},access={self.access}{cache}{self.more}"


_found: list[results.Record] = []
_ran_on: list[str] = []
"""The guest's kernel and what ran it, of the bench that is up."""


def keep(test: str, setting: Setting, figures: Mapping[str, object], failures: Mapping[str, str] | None = None) -> None:
    """Note what a test found, and print it."""
    model = f"{setting.model}, {setting.server}" if setting.server else setting.model
    record = results.Record(
        *(test, setting.kernel, model, setting.cache, setting.msize, setting.access, setting.more.strip(",")),
        {name: str(value) for name, value in figures.items()},
        dict(failures or {}),
    )
    _found.append(record)
    print(f"{test} {setting}: {', '.join(f'{name} {value}' for name, value in record.figures.items())}")  # noqa: T201  the figures are what these tests are for


def write_down(node: str, *, passed: bool, seconds: float) -> None:
    """Write down how a test ended and what it kept, in the place of what its last run left."""
    name = re.sub(r"[^\w.]+", "-", node.removeprefix("tests/conformance/")).strip("-")
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    run = results.Run(node, passed, tuple(_found), ended, round(seconds, 1), " ".join(_ran_on), COMMIT)
    results.write(results.CONFORMANCE, name, run)
    _found.clear()


@dataclass(slots=True)
class Mount:
    """A share that the guest has mounted: `host` is the directory here, `at` its path in the guest."""

    bench: Bench
    setting: Setting
    host: str
    at: str
    share: str
    port: int

    def check(self, command: str) -> str:
        """Run a shell command that has to succeed in the share."""
        return self.bench.check(f"cd {self.at} && {command}")


@dataclass(slots=True)
class _Server:
    server: FileServer
    manager: Manager
    port: int


@dataclass(slots=True)
class Bench:
    """A guest with a file server for each security model, all for one session of tests."""

    runner: asyncio.Runner
    guest: GuestVM
    kernel: str
    disk: str
    _servers: dict[tuple[str, str], _Server] = field(default_factory=dict)
    _mounted: int = 0

    @classmethod
    def start(cls, runner: asyncio.Runner, kernel: str) -> Bench:
        """Boot a guest with this series of kernel and an empty ext4 disk at /run/local, for comparison."""
        disk = tempfile.NamedTemporaryFile(prefix="uvmshare-disk-", delete=False).name  # noqa: SIM115  QEMU opens it
        os.truncate(disk, 1 << 30)
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", disk], check=True)
        guest = runner.run(
            GuestVM.start(
                root="host",
                kernel=find_kernel(kernel),
                memory_mib=768,
                modules=("crc32c_generic", "virtio_blk", "ext4", "overlay"),
                qemu_arguments=(
                    *("-smp", "2", "-drive", f"file={disk},format=raw,if=none,id=disk,cache=unsafe"),
                    *("-device", "virtio-blk-pci,drive=disk"),
                ),
            )
        )
        bench = cls(runner, guest, kernel, disk)
        _ran_on[:] = ["Linux", guest.release, "under", guest.accelerator.upper()]
        bench.check("mkdir /run/local /run/results && mount -t ext4 /dev/vda /run/local")
        return bench

    def check(self, command: str, *, stdin: bytes = b"") -> str:
        """Run a shell command in the guest that has to succeed."""
        return self.runner.run(self.guest.check(command, stdin=stdin, timeout=GUEST_DEADLINE))

    def _server(self, setting: Setting) -> _Server:
        key = setting.model, setting.server
        if key not in self._servers:
            server = self.runner.run(
                FileServer(
                    listen=["tcp:127.0.0.1:0"], security_model=setting.model, **SERVERS.get(setting.server, {})
                ).start()
            )
            port = int(server.addresses[0].rpartition(":")[2])
            self._servers[key] = _Server(server, Manager(server), port)
        return self._servers[key]

    @contextmanager
    def mounted(self, setting: Setting, directory: str, *, read_only: bool = False, **shown: Any) -> Iterator[Mount]:
        """Share a directory and mount it in the guest, until the block is left; `shown` are more `AddOptions`."""
        served = self._server(setting)
        self._mounted += 1
        at = f"/run/mnt{self._mounted}"
        share = self.runner.run(served.manager.add(AddOptions(directory, read_only=read_only, **shown)))
        mount = Mount(self, setting, directory, at, share, served.port)
        mount_here(mount, at)
        try:
            yield mount
        finally:
            self.check(f"umount {at} && rmdir {at}")
            self.runner.run(served.manager.remove(share))

    def close(self) -> None:
        """End the guest and its servers."""
        self.runner.run(self.guest.aclose())
        for served in self._servers.values():
            self.runner.run(served.manager.aclose())
            self.runner.run(served.server.aclose())
        os.unlink(self.disk)


def mount_here(mount: Mount, at: str, more: str = "") -> None:
    """Mount a share once more in the guest, with a connection of its own."""
    given = f"trans=tcp,port={mount.port},version=9p2000.L,aname={mount.share},{mount.setting.options}{more}"
    mount.bench.check(f"mkdir -p {at} && mount -t 9p -o {given} {HOST} {at}")


def compiled(name: str, *flags: str) -> str:
    """Compile a C program of `programs` and return its path, which is the guest's too."""
    source = os.path.join(os.path.dirname(__file__), "programs", f"{name}.c")
    path = os.path.join(WORK, name)
    os.makedirs(WORK, exist_ok=True)
    if not os.path.exists(path) or os.stat(path).st_mtime_ns < os.stat(source).st_mtime_ns:
        subprocess.run(["cc", "-O2", "-Wall", "-Wextra", *flags, "-o", f"{path}.{os.getpid()}", source], check=True)
        os.replace(f"{path}.{os.getpid()}", path)
    return path


def scratch_directory() -> str:
    """Return a new directory on a disk, which a tmpfs would not be: the host's own files lie on one."""
    made = tempfile.mkdtemp(prefix="uvmshare-conformance-", dir="/var/tmp")
    os.chmod(made, 0o755)  # the guest's users go in
    return made
