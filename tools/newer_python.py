"""Run the tests that need no guest on Debian 13's Python, in a root of its own: ``tools/newer_python.py [ARG...]``.

What lives here: what the root has, and an environment like .venv for its Python. What must not: which tests there are
(tools/run_tests.py), or how a root is made and entered (tools/debian_root.py).

The packages of Python's are fetched by this host's pip, with its settings, for the other Python; the root itself needs
no network. All is kept below .cache/newer-python, so that a second run needs none either. Arguments are pytest's.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from debian_root import CACHE, Bind, Failed, enter
from unpacked_root import unpacked

SUITE: Final = "trixie"
ROOT: Final = Path(__file__).parents[1]
HOME: Final = CACHE / "newer-python"
VENV: Final = ROOT / ".venv"
PACKAGES: Final = (
    *("python3", "mount", "util-linux"),
    *("acl", "curl", "e2fsprogs", "git", "gzip", "hostname", "netbase", "procps", "tar", "tzdata"),
)
"""What the root has: what a command needs to live in it, and Debian's programs that tests without a guest start."""


def requirements(extra: str = "dev") -> list[str]:
    """Return what an extra asks for, with what the extras in it do."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = list(project["dependencies"])
    for requirement in project["optional-dependencies"][extra]:
        inner = re.fullmatch(r"uvmshare\[([\w, -]+)\]", requirement)
        found += (
            [each for name in inner[1].split(",") for each in requirements(name.strip())] if inner else [requirement]
        )
    return sorted(set(found))


def binds() -> list[Bind]:
    """Return what the root has of this host: the project, with another .venv in it, and a /tmp that is no overlay."""
    common = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    found = [Bind(ROOT, ROOT), Bind(HOME / "venv", VENV), Bind(tempfile.gettempdir(), "/tmp")]  # noqa: S108  the root's own
    if common and not Path(common).is_relative_to(ROOT):  # a worktree's
        found.append(Bind(common, common))
    return found


def python_of(root: Path) -> str:
    """Return which Python a root has: "3.13"."""
    return next(Path(root, "usr/bin").glob("python3.[0-9]*")).name.removeprefix("python")


def download(version: str, names: list[str], wheels: Path) -> None:
    """Fetch packages and all that they depend on, as wheels for a version of Python, with this host's pip."""
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    target = ["--only-binary=:all:", f"--python-version={version}", f"--dest={wheels}"]
    subprocess.run([*pip, "download", *target, *names], check=True)


def prepare(root: Path) -> None:
    """Make the environment, unless it is there and of this pyproject.toml."""
    stamp = HOME / "installed"
    version = python_of(root)
    wanted = hashlib.sha256("\n".join([root.name, version, (ROOT / "pyproject.toml").read_text()]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    wheels = HOME / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    (HOME / "venv").mkdir(parents=True, exist_ok=True)
    names = ["hatchling>=1.25", "editables>=0.5", "pip", *requirements()]
    download(version, names, wheels)
    install = [f"{VENV}/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-index"]
    for command in (
        ["python3", "-m", "venv", "--clear", "--without-pip", str(VENV)],
        [
            f"{VENV}/bin/python",
            str(next(wheels.glob("pip-*.whl")) / "pip"),
            *install[3:],
            f"--find-links={wheels}",
            "pip",
        ],
        [*install, f"--find-links={wheels}", *names],
        [*install, "--no-build-isolation", "--no-deps", "--editable", str(ROOT)],
    ):
        done = enter(root, command, binds=binds(), directory=ROOT)
        if done.returncode:
            message = f"{' '.join(command[:5])} ...: status {done.returncode}"
            raise Failed(message)
    stamp.write_text(wanted)


def main(arguments: list[str]) -> int:
    """Run the tests; returns the exit status."""
    try:
        root = unpacked(SUITE, *PACKAGES)
        prepare(root)
    except (Failed, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"tools/newer_python.py: {error}\n")
        return 1
    environment = {name: os.environ[name] for name in ("CI",) if name in os.environ}
    command = [f"{VENV}/bin/python", "tools/run_tests.py", "newer-python", *arguments]
    return enter(root, command, binds=binds(), directory=ROOT, environment=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
