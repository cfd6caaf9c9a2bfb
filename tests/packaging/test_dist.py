"""The wheel and the sdist: they can be uploaded, hold what is needed and nothing else, and are the same package."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.processes import DEADLINE

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "uvmshare"


class Dist(NamedTuple):
    wheel: Path
    sdist: Path


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=2 * DEADLINE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(tree: Path, out: Path, *options: str) -> Dist:
    run(sys.executable, "-m", "hatchling", "build", "--directory", str(out), *options, cwd=tree)
    return Dist(next(out.glob("*.whl")), next(iter(out.glob("*.tar.gz")), Path()))


pytestmark = pytest.mark.long  # both are built, and the wheel once more from the sdist


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Dist:
    return build(ROOT, tmp_path_factory.mktemp("dist"))


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/RECORD")}


def test_both_can_be_uploaded(dist: Dist) -> None:
    pytest.importorskip("twine", reason="needs twine: make venv")
    shown = run(sys.executable, "-m", "twine", "check", "--strict", str(dist.wheel), str(dist.sdist))
    assert shown.count("PASSED") == 2


def test_the_wheel_has_the_package_and_nothing_else(dist: Dist) -> None:
    tracked = run("git", "ls-files", "-z", "src/uvmshare").split("\0")
    files = {name.removeprefix("src/") for name in tracked if name}
    packed = {name for name in contents(dist.wheel) if not name.startswith("uvmshare-")}
    assert packed >= files
    there = {str(path.relative_to(PACKAGE.parent)) for path in PACKAGE.rglob("*") if path.suffix != ".pyc"}
    assert packed <= there
    assert {"uvmshare/py.typed", "uvmshare/guest/agent.sh"} <= packed


def test_its_metadata_say_what_pyproject_says(dist: Dist) -> None:
    found = contents(dist.wheel)
    (name,) = (name for name in found if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(found[name])
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_all("Project-URL")
    assert "Programming Language :: Python :: 3.11" in (metadata.get_all("Classifier") or [])


def test_the_sdist_has_every_file_of_the_repository_and_builds_the_same_wheel(dist: Dist, tmp_path: Path) -> None:
    with tarfile.open(dist.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    tracked = {name for name in run("git", "ls-files", "-z").split("\0") if name and not name.startswith(".ci/")}
    assert {name for name in tracked if os.path.lexists(ROOT / name) and not os.path.lexists(tree / name)} == set()
    again = build(tree, tmp_path / "again", "--target", "wheel")
    assert contents(again.wheel) == contents(dist.wheel)


def test_the_command_runs_from_the_wheel_alone(dist: Dist) -> None:
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); import uvmshare; print(uvmshare.__file__)"
    assert run(sys.executable, "-I", "-c", program, str(dist.wheel)).startswith(str(dist.wheel))
    program = "import sys; sys.path.insert(0, sys.argv.pop(1)); from uvmshare.cli import main; sys.exit(main())"
    assert "Serve host directories" in run(sys.executable, "-I", "-c", program, str(dist.wheel), "--help")
