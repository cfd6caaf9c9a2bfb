"""A fresh Debian to type in: a root of its own, with processes and mounts of its own, and this project's clone.

What lives here: the root, which is made once a release and kept below .cache, the copy that one script uses up, and
windows into it. What must not: what is typed there.

The network is the host's, since apt and pip need it. How this machine reaches packages (apt's sources, pip's
settings) is the machine's own affair, and copied from it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import DEADLINE
from tests.root import require_root
from tests.terminal import SHELL, Terminal, namespaces

from debian_root import apt_settings, made, proxies

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Fresh", "fresh"]

_ROOT: Final = Path(__file__).parents[2]
_CACHE: Final = _ROOT / ".cache"
_PACKAGES: Final = ("ca-certificates", "sudo", "procps")
"""What an installed Debian has anyway, and debootstrap's smallest leaves out."""
_PIVOT: Final = (
    "mount --bind {root} {root}; cd {root}; "
    "mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; "
    "mount -t tmpfs tmpfs run; mkdir -p run/user/1000 run/lock; chown 1000:1000 run/user/1000; {binds}"
    "mkdir -p old; pivot_root . old; umount -l old"
)
"""A mount namespace whose root is the Debian's. Not chroot(2): in a chroot nobody may make user namespaces."""


def base(suite: str) -> Path:
    """Return the root of a release, as debootstrap makes it; made once."""
    return made(suite, *_PACKAGES)


class Fresh:
    """A Debian that a stranger sits at, as the user `me`, who may use sudo."""

    def __init__(self, enter: list[str]) -> None:
        self._enter = [*enter, "env", "--ignore-environment"]

    def window(self) -> Terminal:
        """Open a window with a shell of that user's, in the clone."""
        become = "exec setpriv --reuid=1000 --regid=1000 --init-groups "
        settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
        variables = {
            **settings,
            **proxies(),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": "/home/me",
            "USER": "me",
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": "/run/user/1000",
        }
        words = [f"{name}={value}" for name, value in variables.items()]
        return Terminal([*self._enter, *words, "sh", "-c", f"cd /home/me/src/uvmshare && {become} {' '.join(SHELL)}"])


def _pip_places() -> list[str]:
    """Return directories that this machine's pip takes packages from."""
    texts = [value for name, value in os.environ.items() if name.startswith("PIP_")]
    for name in ("/etc/pip.conf", os.path.expanduser("~/.config/pip/pip.conf")):
        with contextlib.suppress(OSError):
            texts.append(Path(name).read_text())
    found = {path.removesuffix("/simple") for text in texts for path in re.findall(r"(?:^|//|[\s=])(/[\w./-]+)", text)}
    return sorted(path for path in found if os.path.isdir(path))


def _settle(root: str, clone: str) -> None:
    """Make the user, their clone, and how this machine reaches packages."""
    for command in (
        ("useradd", "--root", root, "--create-home", "--shell", "/bin/bash", "--uid", "1000", "me"),
        ("mkdir", f"{root}/home/me/src"),
        ("git", "clone", "--quiet", clone, f"{root}/home/me/src/uvmshare"),
        ("chown", "-R", "1000:1000", f"{root}/home/me"),
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=5 * DEADLINE)
    Path(f"{root}/etc/sudoers.d/me").write_text("me ALL=(ALL) NOPASSWD: ALL\nDefaults:me env_keep += DEBIAN_FRONTEND\n")
    Path(f"{root}/etc/apt/apt.conf.d/90stranger").write_text('APT::Get::Assume-Yes "true";\n')  # who presses Enter
    Path(f"{root}/etc/apt/apt.conf.d/80host").write_text(apt_settings())
    for path, place in (
        ("/etc/pip.conf", "etc/pip.conf"),
        (os.path.expanduser("~/.config/pip/pip.conf"), "etc/xdg/pip/pip.conf"),
        ("/etc/resolv.conf", "etc/resolv.conf"),
        ("/etc/hosts", "etc/hosts"),
        ("/etc/ssl/certs/ca-certificates.crt", "etc/ssl/certs/ca-certificates.crt"),
    ):
        if os.path.exists(path):
            os.makedirs(os.path.dirname(f"{root}/{place}"), exist_ok=True)
            shutil.copy(path, f"{root}/{place}")


@contextlib.contextmanager
def fresh(suite: str) -> Iterator[Fresh]:
    """Give a fresh Debian of a release, to the end of the block. Whatever runs in it ends with it."""
    require_root("a Debian of its own needs root")
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap: tools/packages roots")
    _CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_CACHE, prefix="stranger-") as folder:
        root = f"{folder}/root"
        subprocess.run(["cp", "--archive", "--reflink=auto", str(base(suite)), root], check=True, timeout=5 * DEADLINE)
        _settle(root, str(_ROOT))
        binds = "".join(f"mkdir -p .{path}; mount --bind -o ro {path} .{path}; " for path in _pip_places())
        script = _PIVOT.format(root=root, binds=binds)
        with namespaces(script) as enter:
            # A Debian that is used does it each day; the kept root's lists may be of last year.
            subprocess.run([*enter, "apt-get", "update"], check=True, capture_output=True, timeout=5 * DEADLINE)
            yield Fresh(enter)
