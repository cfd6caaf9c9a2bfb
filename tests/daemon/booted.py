"""A Debian of its own with systemd as its first process, in a container of systemd-nspawn's, for tests of the units.

What lives here: which root it is (tools/debian_root.py makes it); its boot, its end, and commands in it. What must
not: what is tested in it.

The container has namespaces of its own for processes, mounts, network and control groups; users are the host's. What
it writes is in memory and ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.processes import DEADLINE, kill
from tests.root import require_root

from debian_root import made

if TYPE_CHECKING:
    from collections.abc import Iterator

assert sys.platform == "linux", "systemd runs on Linux"

_PACKAGES: Final = ("systemd", "systemd-sysv", "dbus", "libpam-systemd", "python3")
_SYSTEM_CALLS: Final = (
    "landlock_create_ruleset landlock_add_rule landlock_restrict_self open_tree move_mount mount_setattr"
)
"""What a host's systemd gives its services, and systemd-nspawn's own list leaves out (systemd 252)."""


def base() -> Path:
    """Return the root of a Debian of the host's own release, so that its Python is the one of the package."""
    return made(platform.freedesktop_os_release().get("VERSION_CODENAME", "bookworm"), *_PACKAGES)


class Booted:
    """A Debian that runs. Paths are the container's, unless they begin with `root`."""

    def __init__(self, leader: int) -> None:
        namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd")
        variables = ("PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8")
        self._enter = ["nsenter", f"--target={leader}", *namespaces, "env", "--ignore-environment", *variables]
        self.root = f"/proc/{leader}/root"
        """Where this process sees the container's files, its unix sockets too."""

    def attempt(self, *command: str, user: str = "root", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command as a user, and return what became of it."""
        variables = [f"{name}={value}" for name, value in environment.items()]
        become = [] if user == "root" else ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"]
        whole = [*self._enter, *variables, *become, *command]
        return subprocess.run(whole, capture_output=True, text=True, check=False, timeout=5 * DEADLINE)

    def run(self, *command: str, user: str = "root", **environment: str) -> str:
        """Run a command as a user that must succeed, and return what it printed."""
        done = self.attempt(*command, user=user, **environment)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def uvmshare(self, *command: str, user: str = "root", **environment: str) -> Any:
        """Run a command of uvmshare's as a user, and return its JSON."""
        return json.loads(self.run("uvmshare", *command, "--json", user=user, **environment))

    def shown(self, unit: str, name: str) -> str:
        """Return a property of a unit, as systemd has it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        os.makedirs(os.path.dirname(self.root + path), exist_ok=True)
        Path(self.root + path).write_text(text)

    def read(self, path: str) -> str:
        """Read a file."""
        return Path(self.root + path).read_text()


@contextlib.contextmanager
def _group() -> Iterator[list[str]]:
    """Make a control group for the container: in cgroup v2, and in v1's one of systemd's where the host has that."""
    places = [place for place in ("unified", "systemd", "") if os.path.exists(f"/sys/fs/cgroup/{place}/cgroup.procs")]
    if not places:
        pytest.skip("needs cgroup v2 at /sys/fs/cgroup, or below it")
    name = f"uvmshare-test-{os.getpid()}"
    made = [f"/sys/fs/cgroup/{place}/{name}" for place in places]
    for group in made:
        os.mkdir(group)
    try:
        yield made
    finally:
        for group in made:
            for folder, _, _ in os.walk(group, topdown=False):
                os.rmdir(folder)


@contextlib.contextmanager
def booted() -> Iterator[Booted]:
    """Boot a Debian to the end of the block. Whatever runs in it ends with it."""
    require_root("a container with systemd needs root")
    for program in ("debootstrap", "systemd-nspawn"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}: tools/packages soak")
    with tempfile.TemporaryDirectory(prefix="uvmb-") as folder, _group() as groups:
        joined = " && ".join(f"echo $$ >{group}/cgroup.procs" for group in groups)
        command = [
            *("sh", "-c", f'{joined} && exec "$@"', "sh", "systemd-nspawn", "--quiet", "--boot"),
            *("--register=no", "--keep-unit", "--private-network", "--notify-ready=yes", "--settings=no"),
            *("--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe"),
            *(f"--directory={base()}", "--volatile=overlay", f"--system-call-filter={_SYSTEM_CALLS}"),
        ]
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "NOTIFY_SOCKET": f"{folder}/notify"}
        # Once nobody reads them, notices must be refused: systemd-nspawn would wait for a reader, deaf to all else.
        with open(f"{folder}/log", "wb") as log, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices:
            notices.bind(f"{folder}/notify")
            notices.settimeout(5 * DEADLINE)
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                leader = _leader(notices)
            except TimeoutError:
                process.kill()
                process.wait()
                pytest.fail(Path(f"{folder}/log").read_text(errors="replace"))
        try:
            yield Booted(leader)
        finally:
            kill(leader)  # and with it all that has its namespace
            process.wait(DEADLINE)


def _leader(notices: socket.socket) -> int:
    """Wait until the container is up, and return its first process."""
    leader = 0
    while True:
        for line in notices.recv(4096).decode().splitlines():
            name, _, value = line.partition("=")
            if name == "X_NSPAWN_LEADER_PID":
                leader = int(value)
            elif (name, value) == ("READY", "1"):
                return leader
