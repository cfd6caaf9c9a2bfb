"""The one file with everything that runs in a guest, and the unit that starts it there."""

from __future__ import annotations

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from uvmshare.guest import agent, bundle

ROOT = Path(__file__).parents[2]
GUEST = ROOT / "src/uvmshare/guest"
UNIT = ROOT / "contrib/guest/uvmshare-agent.service"


def run(path: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run the file as a guest does: with nothing of the project or its dependencies in reach."""
    command = [sys.executable, "-I", "-S", str(path), *arguments]
    return subprocess.run(command, check=False, capture_output=True, cwd=path.parent)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "uvmshare-guest"
    path.write_bytes(bundle.bundle())
    return path


def test_it_has_every_module_as_it_is() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.bundle())) as archive:
        for path in GUEST.glob("*.py"):
            assert archive.read(f"uvmshare/guest/{path.name}") == path.read_bytes()
            assert path.stem in bundle.MODULES


def test_it_has_what_its_modules_use_of_linux() -> None:
    used = {
        name
        for path in GUEST.glob("*.py")
        for name in re.findall(r"^ *from uvmshare\.linux\.(\w+) import", path.read_text(), re.MULTILINE)
    }
    assert {"__init__", *used} == set(bundle.LINUX)
    with zipfile.ZipFile(io.BytesIO(bundle.bundle())) as archive:
        for name in bundle.LINUX:
            assert archive.read(f"uvmshare/linux/{name}.py") == (GUEST.parent / "linux" / f"{name}.py").read_bytes()


def test_it_says_which_version_it_is() -> None:
    assert metadata.version("uvmshare") == agent.RELEASE


def test_the_same_modules_give_the_same_file() -> None:
    assert bundle.bundle() == bundle.bundle()


def test_it_runs_alone_and_can_write_itself_again(file: Path) -> None:
    assert b"--allow DIRECTORY" in run(file, "agent", "--help").stdout
    assert b"--allow DIRECTORY" in run(file, "--help").stdout
    assert b"vsock:2 0 /mnt/project" in run(file, "mount", "--help").stdout
    assert run(file, "agent", "--print").stdout == file.read_bytes()
    refused = run(file, "dance")
    assert (refused.returncode, refused.stderr.count(b"\n")) == (2, 1)
    assert b"no command 'dance'; there are agent and mount" in refused.stderr


def test_the_command_line_writes_the_same(tmp_path: Path) -> None:
    command = [os.path.join(os.path.dirname(sys.executable), "uvmshare"), "guest", "agent", "--print"]
    assert subprocess.run(command, check=True, capture_output=True, cwd=tmp_path).stdout == bundle.bundle()


def test_each_command_ends_as_its_module_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert bundle.main(["mount", "unix:/nonexistent/socket", "0", "/x"]) == 1
    assert bundle.main(["agent", "--token-file", "/dev/null"]) == 1
    assert bundle.main(["dance"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in said] == ["uvmshare-guest mount", "uvmshare-guest agent", "uvmshare-guest"]


@pytest.mark.parametrize("path", sorted(GUEST.glob("*.py")), ids=lambda path: path.name)
def test_it_is_written_for_the_pythons_of_older_guests(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


def test_the_shell_script_is_one_that_a_plain_shell_reads() -> None:
    subprocess.run(["sh", "-n", str(GUEST / "agent.sh")], check=True)


def test_the_unit_starts_it_by_options_that_it_has() -> None:
    (start,) = re.findall(r"^ExecStart=.*uvmshare-guest agent (.*)$", UNIT.read_text(), re.MULTILINE)
    options = agent._parser("agent").parse_args(start.split())
    assert options.allow == ["/run/uvmshare"]
    assert [str(address) for address in options.listen] == ["vsock:2:5641"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_unit_is_what_systemd_reads(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(re.sub(r"/usr/bin/python3 \S+|/sbin/modprobe", "/bin/true", UNIT.read_text()))
    command = ["systemd-analyze", "--man=no", "verify", str(copy)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
