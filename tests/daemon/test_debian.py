"""The Debian package: what its recipe says; and, a long test, the package installed below a directory and removed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import DEADLINE
from tests.root import needs_root

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "contrib" / "debian"
SCRIPTS = ("postinst", "prerm", "postrm")


def fields(text: str) -> dict[str, str]:
    """The fields of a control file, whose further lines begin with a space (deb-control(5))."""
    return dict(re.findall(r"^([A-Z][A-Za-z-]+): (.*(?:\n .*)*)", text, re.MULTILINE))


def test_the_control_file_has_what_debian_asks_for() -> None:
    control = fields((RECIPE / "control").read_text())
    assert {"Package", "Version", "Architecture", "Maintainer", "Description"} <= control.keys()
    filled_in = set(re.findall(r"s/(@[A-Z_]+@)/", (RECIPE / "build").read_text()))
    templates = (RECIPE / "control").read_text() + (RECIPE / "changelog").read_text()
    assert set(re.findall(r"@[A-Z_]+@", templates)) == filled_in


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_scripts_are_plain_shell_that_stops_at_the_first_failure(name: str) -> None:
    script = RECIPE / name
    assert os.access(script, os.X_OK)
    assert re.search(r"^set -e$", script.read_text(), re.MULTILINE)
    subprocess.run(["sh", "-n", str(script)], check=True)


def test_the_units_name_what_the_package_installs() -> None:
    recipe = (RECIPE / "build").read_text()
    units = [path.read_text() for path in (ROOT / "contrib" / "systemd").rglob("*.*") if path.is_file()]
    assert len(units) == 3
    for unit in units:
        for program in re.findall(r"^ExecStart=(/usr/bin/uvmshare) ", unit, re.MULTILINE):
            assert f'"$stage{program}"' in recipe
        for page in re.findall(r"^Documentation=file:/usr/share/doc/uvmshare/(.*)$", unit, re.MULTILINE):
            assert (ROOT / "docs" / page).exists()
    for name in SCRIPTS:
        for unit_name in re.findall(r"uvmshare\.(?:socket|service)", (RECIPE / name).read_text()):
            assert (ROOT / "contrib" / "systemd" / unit_name).exists()


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10 * DEADLINE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(root: Path) -> set[str]:
    """The files below a directory, but for dpkg's own and those of the package's environment and documents."""
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() or path.is_symlink()}
    return {path for path in found if not re.match(r"var/lib/dpkg/|usr/lib/uvmshare/(lib|bin)|usr/share/doc/", path)}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built once."""
    scratch = tmp_path_factory.mktemp("deb")
    environment = {**os.environ, "PIP": f"{sys.prefix}/bin/pip"}
    subprocess.run([str(RECIPE / "build"), str(scratch / "out")], check=True, env=environment, timeout=10 * DEADLINE)
    (found,) = (scratch / "out").glob("*.deb")
    return found


@pytest.mark.long
@needs_root
def test_it_is_built_installed_run_and_removed(package: Path, tmp_path: Path) -> None:
    control = fields(run("dpkg-deb", "--field", str(package)))
    assert re.fullmatch(
        r"libc6 \(>= 2\.\d+\), python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+\), init-system-helpers \(>= .*\), passwd",
        control["Depends"],
    )
    assert "@" not in "".join(value for field, value in control.items() if field != "Maintainer")

    root = tmp_path / "root"
    for directory in ("updates", "info"):
        (root / "var/lib/dpkg" / directory).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    (root / "etc").mkdir()
    for table in ("group", "gshadow", "passwd", "shadow"):
        (root / "etc" / table).touch()
    # The scripts run outside, with DPKG_ROOT set: there is nothing in there to run them with.
    dpkg = ("dpkg", f"--root={root}", "--log=/dev/null", "--force-depends", "--force-script-chrootless")
    run(*dpkg, "--install", str(package))
    installed = files(root)
    assert {
        "usr/bin/uvmshare",
        "usr/lib/systemd/system/uvmshare.service",
        "usr/share/bash-completion/completions/uvmshare",
        "usr/share/fish/vendor_completions.d/uvmshare.fish",
        "usr/share/man/man1/uvmshare.1.gz",
        "usr/share/man/man1/uvmshare-share-add.1.gz",
        "usr/share/uvmshare/grafana/uvmshare.json",
        "usr/share/uvmshare/guest/agent.sh",
        "usr/share/uvmshare/guest/mount.py",
        "usr/share/uvmshare/guest/uvmshare-agent.service",
        "usr/share/uvmshare/guest/uvmshare-guest",
        "usr/share/zsh/vendor-completions/_uvmshare",
    } <= installed
    assert "etc/systemd/system/sockets.target.wants/uvmshare.socket" in installed, "it is enabled"
    assert os.readlink(root / "usr/bin/uvmshare") == "../lib/uvmshare/bin/uvmshare"
    home = root / "usr/lib/uvmshare"
    started = (home / "bin/uvmshare").read_text().splitlines()[0]
    assert started == "#!/usr/lib/uvmshare/bin/python"
    program = "import sys; from uvmshare.cli import main; sys.exit(main())"
    # That of the package alone: neither this environment's nor the host's.
    assert run(str(home / "bin/python"), "-I", "-c", program, "--version") == f"uvmshare {control['Version']}\n"
    assert "--user-vms" in run(str(home / "bin/python"), "-I", "-c", program, "daemon", "--help")
    place = str(Path(os.environ.get("TMPDIR", "/tmp")) / "tmp.").encode()
    for path in home.rglob("*"):
        assert not (path.is_file() and place in path.read_bytes()), f"{path} names where it was built"

    (root / "var/lib/uvmshare").mkdir()
    (root / "var/lib/uvmshare/daemon.sqlite").touch()
    run(*dpkg, "--remove", "uvmshare")
    assert "var/lib/uvmshare/daemon.sqlite" in files(root)
    assert not home.exists()
    run(*dpkg, "--purge", "uvmshare")
    assert re.match(r"uvmshare:[!x]:\d+:\n", (root / "etc/group").read_text()), "the group stays"
    assert {path for path in files(root) if not re.match(r"etc/g?(group|shadow|passwd)", path)} == set()


@pytest.mark.long
def test_lintian_finds_no_error(package: Path) -> None:
    if shutil.which("lintian") is None:
        pytest.skip("needs lintian: tools/packages lintian")
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning", "--allow-root", "--tag-display-limit", "0", str(package)],
        capture_output=True, text=True, check=False, timeout=10 * DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
