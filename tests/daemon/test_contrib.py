"""What stands in contrib/: systemd's own tools look at the units."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.processes import DEADLINE

CONTRIB = Path(__file__).parents[2] / "contrib"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def analyze(*args: str, runtime: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SYSTEMD_COLORS": "0"}
    command = ["systemd-analyze", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=DEADLINE)


def units(folder: Path, tmp_path: Path) -> list[str]:
    """Copies of the units that name a program which is there: which one is installed where, they cannot know."""
    made = []
    for unit in (*folder.glob("*.service"), *folder.glob("*.socket")):
        copy = tmp_path / unit.name
        copy.write_text(unit.read_text().replace("/usr/bin/uvmshare", "/bin/true"))
        made.append(str(copy))
    assert made
    return made


@needs_systemd
@pytest.mark.parametrize("whose", ["system", "user"])
def test_the_units_are_what_systemd_reads(whose: str, tmp_path: Path) -> None:
    folder = CONTRIB / "systemd" / ("user" if whose == "user" else "")
    done = analyze(f"--{whose}", "--man=no", "verify", *units(folder, tmp_path), runtime=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_the_service_may_do_no_more_than_it_needs(tmp_path: Path) -> None:
    unit = next(path for path in units(CONTRIB / "systemd", tmp_path) if path.endswith(".service"))
    # Half a point is for the namespaces in which mount processes are held.
    done = analyze("security", "--offline=true", "--threshold=50", unit, runtime=tmp_path)
    assert done.returncode == 0, done.stdout
    exposure = re.search(r"exposure level for uvmshare.service: ([0-9.]+)", done.stdout)
    assert exposure, done.stdout


def test_the_service_starts_the_daemon_by_options_that_it_has() -> None:
    from click.testing import CliRunner

    from uvmshare.cli.main import cli

    for unit in (CONTRIB / "systemd").rglob("*.service"):
        (start,) = re.findall(r"^ExecStart=(.*)$", unit.read_text(), re.MULTILINE)
        arguments = start.partition("uvmshare ")[2].split()
        shown = CliRunner().invoke(cli, [arguments[0], "--help"], standalone_mode=False)
        for option in filter(lambda word: word.startswith("--"), arguments):
            assert option in shown.output


def test_the_socket_is_where_the_daemon_and_its_clients_look(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvmshare.daemon.client import default_host

    monkeypatch.delenv("UVMSHARE_HOST", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    assert (
        f"ListenStream={default_host().removeprefix('unix:')}\n"
        in (CONTRIB / "systemd" / "uvmshare.socket").read_text()
    )


def test_the_daemons_unit_lets_mount_processes_enclose_themselves() -> None:
    lines = (CONTRIB / "systemd" / "uvmshare.service").read_text().splitlines()
    settings = [line.partition("=")[::2] for line in lines]
    allowed = {name for key, value in settings if key == "SystemCallFilter" for name in value.split()}
    assert allowed >= {"mount", "umount2", "pivot_root", "open_tree", "move_mount", "mount_setattr"}
    (namespaces,) = (value for key, value in settings if key == "RestrictNamespaces")
    assert set(namespaces.split()) == {"user", "mnt"}
    (capabilities,) = (value for key, value in settings if key == "CapabilityBoundingSet")
    assert "CAP_SYS_ADMIN" in capabilities.split(), "a mount process of root's own VMs needs it for that"
