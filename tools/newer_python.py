"""Run the tests that need no guest on Debian 13's Python, in a root: ``tools/newer_python.py [--part] [ARG...]``.

What lives here: what the root has, and an environment like .venv for its Python. What must not: which tests there are
(tools/run_tests.py), or how a root is made and entered (tools/debian_root.py).

The packages of Python's are fetched by this host's pip, with its settings, for the other Python; the root itself needs
no network. All is kept below .cache, so that a second run needs none either. `--part`: the part whose subject is what
differs between Pythons, with the few packages that it needs. Other arguments are pytest's.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from debian_root import CACHE, Bind, Failed, enter
from unpacked_root import unpacked

SUITE: Final = "trixie"
ROOT: Final = Path(__file__).parents[1]
VENV: Final = ROOT / ".venv"
PACKAGES: Final = (
    *("python3", "mount", "util-linux"),
    *("acl", "curl", "e2fsprogs", "git", "gzip", "hostname", "libstdc++6", "netbase", "procps", "tar", "tzdata"),
)
"""What the root has: what a command needs to live in it, and Debian's programs that tests without a guest start."""
MORE: Final = ("gcc", "iproute2", "libc-bin", "libc6-dev", "make", "mawk", "systemd")
"""What it has for all of the tests."""
TOOLS: Final = frozenset({"hypothesis", "opentelemetry-sdk", "pytest", "pytest-timeout"})
"""What the part needs of the extra "dev", beside what the extra "fleet" asks for."""


@dataclass(frozen=True)
class Kind:
    """Which of the tests, in which root, and with which of Python's packages."""

    name: str
    """Its name in tools/run_tests.py, and below .cache."""
    packages: tuple[str, ...]
    requirements: tuple[str, ...]

    @property
    def home(self) -> Path:
        """Where what is made for it is kept."""
        return CACHE / self.name


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


def binds(home: Path) -> list[Bind]:
    """Return what the root has of this host: the project, with another .venv in it, and a /tmp that is no overlay."""
    common = subprocess.run(
        ["git", "rev-parse", "--path-format=absolute", "--git-common-dir"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    found = [Bind(ROOT, ROOT), Bind(home / "venv", VENV), Bind(tempfile.gettempdir(), "/tmp")]  # noqa: S108  the root's own
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


def whole() -> Kind:
    """Return all of the tests that need no guest."""
    return Kind("newer-python", (*PACKAGES, *MORE), tuple(requirements()))


def part() -> Kind:
    """Return the part of them whose subject is what differs between Pythons."""
    tools = [each for each in requirements() if re.match(r"[\w.-]+", each)[0] in TOOLS]  # type: ignore[index]  # each has a name
    return Kind("newer-python-part", PACKAGES, (*requirements("fleet"), *tools))


def prepare(root: Path, kind: Kind) -> None:
    """Make the environment, unless it is there and of this project table of pyproject.toml."""
    stamp = kind.home / "installed"
    version = python_of(root)
    settings = str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])
    wanted = hashlib.sha256("\n".join([root.name, version, *kind.requirements, settings]).encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    stamp.unlink(missing_ok=True)
    wheels = kind.home / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    (kind.home / "venv").mkdir(parents=True, exist_ok=True)
    names = ["hatchling>=1.25", "editables>=0.5", "pip", *kind.requirements]
    download(version, names, wheels)
    pip = next(wheels.glob("pip-*.whl")) / "pip"
    install = ["--quiet", "--disable-pip-version-check", "install", "--no-index"]
    in_venv = [f"{VENV}/bin/python", "-m", "pip", *install]
    for command in (
        ["python3", "-m", "venv", "--clear", "--without-pip", str(VENV)],
        [f"{VENV}/bin/python", str(pip), *install, f"--find-links={wheels}", "pip"],
        [*in_venv, f"--find-links={wheels}", *names],
        [*in_venv, "--no-build-isolation", "--no-deps", "--editable", str(ROOT)],
    ):
        done = enter(root, command, binds=binds(kind.home), directory=ROOT)
        if done.returncode:
            message = f"{' '.join(command[:5])} ...: status {done.returncode}"
            raise Failed(message)
    stamp.write_text(wanted)


def main(arguments: list[str]) -> int:
    """Run the tests; returns the exit status."""
    kind = part() if arguments[:1] == ["--part"] else whole()
    try:
        root = unpacked(SUITE, *kind.packages)
        prepare(root, kind)
    except (Failed, subprocess.CalledProcessError) as error:
        sys.stderr.write(f"tools/newer_python.py: {error}\n")
        return 1
    environment = {name: os.environ[name] for name in ("CI",) if name in os.environ}
    more = [each for each in arguments if each != "--part"]
    command = [f"{VENV}/bin/python", "tools/run_tests.py", kind.name, *more]
    return enter(root, command, binds=binds(kind.home), directory=ROOT, environment=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
