"""Debian roots of their own: made once below .cache/roots, and commands that run in one.

What lives here: where the packages come from, what makes a root whole, and how a process comes to live in it. What must
not: what is tried there. Standard library only: it runs under a root's own Python too.

debootstrap makes the smallest Debian of a release, and that Debian's own apt installs the rest. debootstrap could do
both, but it takes the first alternative of a dependency alone and knows no virtual package: with chromium it unpacks
dconf-service without any session bus, and ends with "possibly the package dconf-service is at fault".

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

__all__ = ["CACHE", "Bind", "Failed", "apt_settings", "enter", "made", "mirror", "proxies"]

CACHE: Final = Path(__file__).parents[1] / ".cache"
_MINUTES: Final = 30
"""How long debootstrap or apt may take, before it hangs."""
_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_REACH: Final = "/run/reach"
"""Where a root has, while packages are installed, how this host reaches them."""
_TRUSTED: Final = "/etc/ssl/certs/ca-certificates.crt"

# Nothing is started in there (policy-rc.d), and nobody is asked. /run has how this host reaches packages.
_INSTALL: Final = """
set -eu
cd "$1"
shift
for each in dev proc sys; do
    mount --rbind "/$each" "$each"
done
mount -t tmpfs -o mode=755 run run
mkdir ".$2"
mount --bind "$1" ".$2"
shift 2
mkdir -p etc usr/sbin
printf '#!/bin/sh\\nexit 101\\n' >usr/sbin/policy-rc.d
chmod 755 usr/sbin/policy-rc.d
if [ -e /etc/resolv.conf ]; then
    cat /etc/resolv.conf >etc/resolv.conf
fi
chroot . apt-get --quiet update
chroot . apt-get --quiet --yes --no-install-recommends install "$@"
chroot . apt-get clean
rm usr/sbin/policy-rc.d
"""

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


def apt_settings() -> str:
    """Return how this host's apt reaches packages, as text for another root's apt.conf."""
    return _asked("apt-config", "dump", "Acquire")


def proxies() -> dict[str, str]:
    """Return this process's variables that name proxies."""
    return {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}


def _asked(*command: str) -> str:
    """Return what a program prints, or nothing where there is no such program."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""


def mirror() -> str | None:
    """Return the mirror of Debian that this host's apt uses, or None where it has none: debootstrap has its own."""
    lines = _asked("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Identifier: Packages").splitlines()
    return next((uri for label, _, uri in (line.partition(" ") for line in lines) if label == "Debian"), None)


def made(suite: str, *packages: str) -> Path:
    """Return a root of a suite ("trixie") with packages, and what they depend on, which is made when it is not there.

    It needs root, debootstrap, and the network the first time. A root with other packages is another root.

    Raises:
        Failed: It cannot be made. The message has the last lines of the program that could not.
    """
    wanted = ",".join(sorted(packages))
    name = f"{suite}-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}" if packages else suite
    root = CACHE / "roots" / name
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
        new = Path(scratch, "root")
        if packages:
            _run(f"copying Debian {suite}", "cp", "--archive", "--reflink=auto", str(made(suite)), str(new))
            _install(suite, packages, new, Path(scratch))
        else:
            source = mirror()
            smallest = ("debootstrap", "--variant=minbase", suite, str(new), *([source] if source else []))
            _run(f"making the smallest Debian {suite}", *smallest)
            for archive in (new / "var/cache/apt/archives").glob("*.deb"):
                archive.unlink()
            hosts = new / "etc/hosts"
            if not hosts.exists():
                hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
        new.rename(root)  # in one step: a root that is there is whole
    return root


def _install(suite: str, packages: Sequence[str], new: Path, scratch: Path) -> None:
    reach = scratch / "reach"
    reach.mkdir()
    text = apt_settings()
    if os.path.exists(_TRUSTED):
        shutil.copyfile(_TRUSTED, reach / "trusted.crt")
        text += f'Acquire::https::CaInfo "{_REACH}/trusted.crt";\n'
    (reach / "apt.conf").write_text(text)
    for each in (reach, *reach.iterdir()):
        each.chmod(0o755)  # apt fetches as a user of its own
    settings = {"APT_CONFIG": f"{_REACH}/apt.conf", "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    command = ["unshare", "--mount", "--propagation=private", "sh", "-c", _INSTALL, "sh", str(new), str(reach), _REACH]
    doing = f"installing {' '.join(packages)} in Debian {suite}"
    _run(doing, *command, *packages, environment={"PATH": _PATH, **settings, **proxies()})


def _run(doing: str, *command: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace", check=False, env=environment, timeout=60 * _MINUTES,
    )  # fmt: skip
    if done.returncode:
        last = "\n".join(done.stdout.splitlines()[-20:])
        message = f"{doing} failed, status {done.returncode}:\n{last}"
        raise Failed(message)


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
    variables = {"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(environment or {})}
    pairs = [str(path) for bind in binds for path in (bind.source, bind.target)]
    with tempfile.TemporaryDirectory(prefix="uvmr-") as scratch:
        inside = ["sh", "-c", _ENTER, "sh", str(root), scratch, str(directory), str(len(binds)), *pairs, *command]
        whole = ["unshare", "--mount", "--propagation", "private", *inside]
        return subprocess.run(whole, env=variables, capture_output=capture, text=True, check=False, timeout=timeout)
