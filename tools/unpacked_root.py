"""Debian roots whose packages are only unpacked, once, below .cache/roots.

What lives here: which packages those are, and what of a root they do not bring themselves. What must not: how a process
comes to live in one (tools/debian_root.py), or what is tried there.

No script of a package is run, so none can fail, and no package is there for the sake of a script. A root of
`debian_root.made` is a Debian that more can be installed into; this one is files: programs, and the libraries that
they need. apt chooses the packages, fetches them, and checks their signatures.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from debian_root import CACHE, Failed, mirror

__all__ = ["ESSENTIAL", "unpacked"]

KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
ESSENTIAL: Final = ("base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "findutils", "grep", "sed")
"""What no package says that it needs, because every Debian has it."""
_ALTERNATIVES: Final = {"awk": "mawk", "cc": "gcc"}
"""Names of programs that are there as another one, which a script of its package would link."""
_DIRECTORIES: Final = ("media", "mnt", "opt", "srv")
"""What the script of base-files makes."""
_MINUTES: Final = 10
"""How long one command of apt's may take, before it hangs."""


class _Apt:
    """apt-get for another suite, with lists and archives in a directory of its own, as if nothing were installed."""

    def __init__(self, home: Path, suite: str, source: str) -> None:
        for each in ("lists/partial", "archives/partial"):
            (home / each).mkdir(parents=True)
        (home / "status").touch()
        (home / "empty").mkdir()
        (home / "sources.list").write_text(f"deb [signed-by={KEYS}] {source} {suite} main\n")
        self.archives = home / "archives"
        settings = {
            "Dir::State": home,
            "Dir::State::status": home / "status",
            "Dir::State::extended_states": home / "extended_states",
            "Dir::Cache": home,
            "Dir::Etc::sourcelist": home / "sources.list",
            "Dir::Etc::sourceparts": home / "empty",
            "Dir::Etc::preferences": os.devnull,
            "Dir::Etc::preferencesparts": home / "empty",
            "APT::Default-Release": "",
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "",
            "Acquire::Retries": 3,
            "Acquire::Languages": "none",
        }
        self._options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]

    def run(self, *arguments: str) -> None:
        """Run one command. Raises `Failed`."""
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
        _run("apt-get", "--yes", *self._options, *arguments, environment=environment)


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60 * _MINUTES
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{command[0]}: {error}"
        raise Failed(message) from error
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-10:])
        message = f"{command[0]}: status {done.returncode}:\n{last}"
        raise Failed(message)
    return done.stdout


def unpacked(suite: str, *packages: str) -> Path:
    """Return a root of a suite ("trixie") with packages and what they depend on; it is made when it is not there.

    It needs root, for the files' owners, and the network the first time. A root with other packages is another root.

    Raises:
        Failed: It cannot be made. The message has apt's or dpkg's last lines.
    """
    wanted = sorted({*ESSENTIAL, *packages})
    digest = hashlib.sha256(",".join([*wanted, *_DIRECTORIES]).encode()).hexdigest()[:12]
    root = CACHE / "roots" / f"{suite}-unpacked-{digest}"
    if root.exists():
        return root
    if os.geteuid() != 0:
        message = f"unpacking a root of Debian {suite} needs root: run it with sudo"
        raise Failed(message)
    source = mirror()
    if source is None or not os.path.exists(KEYS):
        message = f"no archive of Debian's to unpack {suite} from: apt names none here, or {KEYS} is missing"
        raise Failed(message)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root.parent, prefix=".new-") as scratch:
        apt = _Apt(Path(scratch, "apt"), suite, source)
        apt.run("update")
        apt.run("--download-only", "install", *wanted)
        new = Path(scratch, "root")
        # base-files has the links of /bin, /lib and /sbin into /usr: what comes after it follows them.
        for archive in sorted(apt.archives.glob("*.deb"), key=lambda each: not each.name.startswith("base-files_")):
            _run("dpkg-deb", "--extract", str(archive), str(new))
        _complete(new)
        os.rename(new, root)  # in one step: a root that is there is whole
    return root


def _complete(root: Path) -> None:
    """Write what a Debian gets by its packages' scripts, as far as programs ask for it."""
    for name in _DIRECTORIES:
        (root / name).mkdir(exist_ok=True)
    etc = root / "etc"
    for name in ("passwd", "group"):
        shutil.copy(root / "usr/share/base-passwd" / f"{name}.master", etc / name)
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    for name, program in _ALTERNATIVES.items():
        if (root / "usr/bin" / program).exists():
            (root / "usr/bin" / name).symlink_to(program)
