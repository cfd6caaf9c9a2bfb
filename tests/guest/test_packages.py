"""tools/packages: what it does for root and for others, with stand-ins for Debian's programs."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SCRIPT = os.path.join(os.path.dirname(os.path.dirname(os.path.dirname(__file__))), "tools", "packages")

# Each stand-in notes its arguments. `stale` in the state directory makes what fetches fail until apt-get update ran.
APT_GET = """#!/bin/sh
echo "apt-get $*" >> "$STATE/calls"
case "$1" in
update) rm -f "$STATE/stale"; exit 0 ;;
esac
[ -e "$STATE/stale" ] && { echo "E: 404 Not Found" >&2; exit 100; }
[ -e "$STATE/offline" ] && { echo "reading"; echo "E: no network" >&2; exit 100; }
for last; do :; done
case "$*" in
*download*) touch "$last.deb" ;;
*install*) [ -e "$STATE/useless" ] || cp "$0" "$STATE/bin/qemu-system-x86_64" ;;
esac
"""
APT_CACHE = """#!/bin/sh
echo "linux-image-amd64"
echo "  Depends: linux-image-6.1.0-99-amd64"
"""
DPKG_DEB = """#!/bin/sh
echo "dpkg-deb $1" >> "$STATE/calls"
case "$2" in
*linux-image-6.1.0-99-amd64.deb)
    mkdir -p "$3/boot" "$3/lib/modules/6.1.0-99-amd64/kernel/fs/9p"
    touch "$3/boot/vmlinuz-6.1.0-99-amd64" "$3/lib/modules/6.1.0-99-amd64/kernel/fs/9p/9p.ko" ;;
*) mkdir -p "$3/bin"; touch "$3/bin/busybox" ;;
esac
"""


class Machine:
    """A copy of the script in a tree of its own, on a PATH with the stand-ins alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        (self.state / "bin").mkdir(parents=True)
        (root / "tools").mkdir()
        with open(SCRIPT, encoding="utf-8") as file:
            self.script = file.read()
        for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-deb", DPKG_DEB)):
            (self.state / "bin" / name).write_text(text)
            (self.state / "bin" / name).chmod(0o755)

    def run(self, *groups: str, root: bool = True) -> subprocess.CompletedProcess[str]:
        # Who runs the tests, and what is in /boot, must not matter.
        script = self.script.replace("os.geteuid()", "0" if root else "1000").replace('"/boot/vmlinuz-*"', '"/nowhere"')
        (self.root / "tools" / "packages").write_text(script)
        return subprocess.run(
            [sys.executable, "-I", str(self.root / "tools" / "packages"), *groups],
            check=False,
            capture_output=True,
            text=True,
            env={"PATH": f"{self.state}/bin:/usr/bin:/bin", "STATE": str(self.state)},
            cwd=self.root,
        )

    def calls(self) -> list[str]:
        try:
            return (self.state / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    # QEMU may be installed where the tests run; the stand-in's name must not be found then.
    made.script = made.script.replace("shutil.which(name)", 'shutil.which(name, path=os.environ["STATE"] + "/bin")')
    return made


def test_root_gets_everything_and_a_second_run_does_nothing(machine: Machine) -> None:
    done = machine.run("demo")
    assert (done.returncode, done.stdout) == (0, "")
    assert machine.calls() == [
        "apt-get install --yes --no-install-recommends -o Dpkg::Use-Pty=0 qemu-system-x86",
        "apt-get -o APT::Sandbox::User= download linux-image-6.1.0-99-amd64",
        "dpkg-deb --extract",
        "apt-get -o APT::Sandbox::User= download busybox-static",
        "dpkg-deb --extract",
    ]
    assert sorted(os.listdir(machine.root / ".cache" / "packages")) == ["busybox-static", "linux-image-amd64"]
    again = machine.run("demo", root=False)
    assert (again.returncode, again.stderr) == (0, "")
    assert len(machine.calls()) == 5


def test_old_package_lists_are_read_again_once(machine: Machine) -> None:
    (machine.state / "stale").touch()
    done = machine.run("demo")
    assert done.returncode == 0, done.stderr
    assert [call for call in machine.calls() if "update" in call] == ["apt-get update"]


def test_without_a_network_root_is_told_what_apt_said(machine: Machine) -> None:
    (machine.state / "offline").touch()
    done = machine.run("demo")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("E: no network")


def test_what_is_there_after_all_the_same_is_said(machine: Machine) -> None:
    (machine.state / "useless").touch()
    done = machine.run("demo")
    assert done.returncode == 1
    assert "installed, and yet not usable: qemu-system-x86" in done.stderr


def test_others_are_told_what_is_missing_and_the_command(machine: Machine) -> None:
    done = machine.run("demo", root=False)
    assert done.returncode == 1
    assert machine.calls() == []
    assert "missing: qemu-system-x86 linux-image-amd64 busybox-static" in done.stderr
    assert "apt-get update && apt-get install --no-install-recommends qemu-system-x86\n" in done.stderr


def test_others_get_what_is_only_unpacked(machine: Machine) -> None:
    (machine.state / "bin" / "qemu-system-x86_64").write_text("")
    (machine.state / "bin" / "qemu-system-x86_64").chmod(0o755)
    done = machine.run("demo", root=False)
    assert done.returncode == 0, done.stderr
    assert not [call for call in machine.calls() if "install" in call]


def test_an_unpacking_that_is_broken_off_leaves_nothing_that_looks_whole(machine: Machine) -> None:
    (machine.state / "bin" / "dpkg-deb").write_text(
        '#!/bin/sh\nmkdir -p "$3/bin"; touch "$3/bin/busybox"; kill -9 $$\n'
    )
    done = machine.run("demo")
    assert done.returncode == 1
    assert os.listdir(machine.root / ".cache" / "packages") == []


@pytest.mark.parametrize("groups", [(), ("nonsense",), ("demo", "nonsense")])
def test_a_group_must_be_known(machine: Machine, groups: tuple[str, ...]) -> None:
    done = machine.run(*groups)
    assert done.returncode == 2
    assert "groups venv, demo, " in done.stderr
    assert machine.calls() == []


def test_a_system_without_apt_is_told_debians_names(machine: Machine) -> None:
    machine.script = machine.script.replace('shutil.which("apt-get")', "None")
    done = machine.run("demo")
    assert done.returncode == 1
    assert "no apt-get here" in done.stderr


def test_a_program_that_takes_long_is_mentioned_again(machine: Machine) -> None:
    subprocess.run(["mkfifo", str(machine.state / "told")], check=True)
    machine.script = machine.script.replace("TELL_EVERY = 5\n", "TELL_EVERY = 0.01\n").replace(
        '    sys.stderr.write(f"tools/packages: {line}\\n")\n',
        f'    sys.stderr.write(f"tools/packages: {{line}}\\n")\n'
        f'    "still runs" in line and not TOLD and TOLD.append(open("{machine.state}/told", "w"))\n',
    )
    machine.script = machine.script.replace("TELL_EVERY =", "TOLD: list = []\nTELL_EVERY =")
    apt_get = machine.state / "bin" / "apt-get"
    apt_get.write_text(
        APT_GET.replace("#!/bin/sh\n", f"#!/bin/sh\n: < {machine.state}/told\n")
    )  # until it was mentioned
    done = machine.run("demo")
    assert "tools/packages: apt-get still runs (" in done.stderr
