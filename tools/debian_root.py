"""Debian roots of their own: made once by debootstrap below .cache/roots, and commands that run in one.

What lives here: where the packages come from, what makes a root whole, and how a process comes to live in it. What must
not: what is tried there. Standard library only: it runs under a root's own Python too.

A root that is there is never written to. What a command writes is in memory and ends with it, but for the directories
of this host that it was given (`Bind`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["CACHE", "Bind", "Failed", "enter", "made", "mirror"]

CACHE: Final = Path(__file__).parents[1] / ".cache"
_MINUTES: Final = 30
"""How long debootstrap may take, before it hangs."""

# The new root is an overlay over the kept one. pivot_root(8), not chroot(8): a process that was put below a chroot may
# make no user namespace, and mount processes make one.
_ENTER: Final = """
set -eu
kept=$1 scratch=$2 directory=$3 binds=$4
shift 4
mount -t tmpfs -o mode=755 scratch "$scratch"
mkdir "$scratch/upper" "$scratch/work" "$scratch/root"
cd "$scratch"
mount --bind "$kept" root
mount -t overlay -o lowerdir=root,upperdir=upper,workdir=work root root
cd root
for each in dev proc sys; do
    mount --rbind "/$each" "$each"
done
mount -t tmpfs -o mode=755 run run
while [ "$binds" -gt 0 ]; do
    mkdir -p ".$2"
    mount --rbind "$1" ".$2"
    shift 2
    binds=$((binds - 1))
done
mkdir -p .host ".$directory"
pivot_root . .host
exec chroot . sh -euc 'umount -l /.host && rmdir /.host && cd "$1" && shift && exec "$@"' sh "$directory" "$@"
"""


class Failed(Exception):
    """A root cannot be made or entered; the message says what to do."""


@dataclass(frozen=True)
class Bind:
    """A directory of this host, and where it is in the root."""

    source: Path | str
    target: Path | str


def mirror() -> str | None:
    """Return the mirror of Debian that this host's apt uses, or None where it has none: debootstrap has its own."""
    command = ["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Identifier: Packages"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    found = [uri for label, _, uri in (line.partition(" ") for line in done.stdout.splitlines()) if label == "Debian"]
    return found[0] if found else None


def made(suite: str, *packages: str) -> Path:
    """Return a root of a suite ("trixie") with packages, which is made when it is not there.

    It needs root, debootstrap, and the network the first time. A root with other packages is another root.

    Raises:
        Failed: It cannot be made. The message has debootstrap's last lines.
    """
    wanted = ",".join(sorted(packages))
    root = CACHE / "roots" / f"{suite}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    if root.exists():
        return root
    if os.geteuid() != 0:
        message = f"making a root of Debian {suite} needs root: run it with sudo"
        raise Failed(message)
    if shutil.which("debootstrap") is None:
        message = "debootstrap is not installed: tools/packages roots"
        raise Failed(message)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".new-") as scratch:
        new = os.path.join(scratch, "root")
        source = mirror()
        command = ["debootstrap", "--variant=minbase", f"--include={wanted}", suite, new, *([source] if source else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60 * _MINUTES)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
            message = f"debootstrap could not make a root of Debian {suite}:\n{last}"
            raise Failed(message)
        for archive in Path(new, "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        hosts = Path(new, "etc/hosts")
        if not hosts.exists():
            hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        os.rename(new, root)  # in one step: a root that is there is whole
    return root


def enter(
    root: Path,
    command: Sequence[str],
    *,
    binds: Sequence[Bind] = (),
    directory: Path | str = "/",
    environment: Mapping[str, str] | None = None,
    capture: bool = False,
    timeout: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command in a root, in a directory of it, and return what became of it; it needs root.

    It has this host's processes, network and devices, a /run of its own, and what is bound. What it prints is
    captured, or goes where this process's output goes.

    Raises:
        Failed: This process is not root's.
        subprocess.TimeoutExpired: It took longer than `timeout` seconds.
    """
    if os.geteuid() != 0:
        message = f"{root}: only root may enter it: run this with sudo"
        raise Failed(message)
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8", **(environment or {})}
    pairs = [str(path) for bind in binds for path in (bind.source, bind.target)]
    with tempfile.TemporaryDirectory(prefix="uvmr-") as scratch:
        inside = ["sh", "-c", _ENTER, "sh", str(root), scratch, str(directory), str(len(binds)), *pairs, *command]
        whole = ["unshare", "--mount", "--propagation", "private", *inside]
        return subprocess.run(whole, env=variables, capture_output=capture, text=True, check=False, timeout=timeout)
