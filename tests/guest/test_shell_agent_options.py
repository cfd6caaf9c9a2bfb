"""How the shell's agent mounts: its own functions under busybox's shell, with others in place of uname and mount."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.guest.test_shell_agent_token import HUNG, SCRIPT

from uvmshare.guest import mount
from uvmshare.testing.kernel import find_busybox

if TYPE_CHECKING:
    from pathlib import Path


def shell(functions: tuple[str, ...], commands: str) -> str:
    """Run commands after some functions of the agent's."""
    with open(SCRIPT, encoding="utf-8") as file:
        script = file.read()
    taken = "".join(script[script.index(f"\n{name}() {{") :].split("\n}\n")[0] + "\n}\n" for name in functions)
    command = [find_busybox(), "sh", "-c", f"{taken}\n{commands}"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=HUNG).stdout


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize(
    "release", ["5.10.0-9-amd64", "6.1.0-50-amd64", "6.3.13", "6.4.0-rc1", "6.12.117+deb12", "7.0"]
)
def test_it_chooses_as_the_agent_for_python_does(release: str, read_only: bool) -> None:
    given = f"uname() {{ echo {release}; }}; cache=auto msize=auto read_only={str(read_only).lower()}; chosen"
    assert shell(("chosen",), given) == mount.choose("auto", None, read_only=read_only, release=release) + "\n"
    assert shell(("chosen",), "cache=loose msize=8192 read_only=true; chosen") == "cache=loose,msize=8192\n"


MOUNTING = (
    "mount() { echo mounted with $4; }; umount() { echo unmounted $2; }; grep() { return $shows; }; "
    "path=/m port=5640 share=0 cache=loose msize=8192 read_only=false server=h;"
)


def test_it_asks_for_access_control_lists_and_takes_no_mount_that_has_none() -> None:
    functions = ("chosen", "mount_it")
    plain = shell(functions, f"{MOUNTING} posixacl=false; shows=1; mount_it && echo done")
    assert "posixacl" not in plain
    assert plain.endswith("done\n")
    kept = shell(functions, f"{MOUNTING} posixacl=true; shows=0; mount_it && echo done")
    assert ",cache=loose,msize=8192,posixacl\n" in kept
    assert kept.endswith("done\n")
    passed_over = shell(functions, f"{MOUNTING} posixacl=true; shows=1; mount_it || echo failed")
    assert "unmounted /m\n" in passed_over
    assert "CONFIG_9P_FS_POSIX_ACL" in passed_over
    assert passed_over.endswith("failed\n")


def test_a_mount_of_an_earlier_agent_is_kept_without_access_control_lists(tmp_path: Path) -> None:
    for line, expected in (
        ("/m 0 5640 false none 131072 3", "false 3"),
        ("/m 0 5640 false auto auto true 4", "true 4"),
    ):
        (tmp_path / "kept").write_text(f"{line}\n")
        said = shell(("recall",), f'recall {tmp_path}/kept && echo "$posixacl $again"')
        assert said == f"{expected}\n"


def test_a_read_that_was_given_up_says_nothing_of_the_mount_that_is_read_next(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "first")
    os.mkfifo(tmp_path / "second")
    faked = (
        f"state={tmp_path}; is_mounted() {{ :; }};"
        # The first one fails when the second is read, which itself ends after the answer.
        f"ls() {{ [ $1 = -d ] || return 0; case $2 in */first*) read -r _ <{tmp_path}/first; return 1 ;; esac;"
        f" echo >{tmp_path}/first; read -r _ <{tmp_path}/second; }};"
    )
    said = shell(("condition",), f"{faked} condition {tmp_path}/first; condition /m; echo >{tmp_path}/second")
    assert said == "slow\nslow\n"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no /proc")
def test_programs_that_use_a_mount_are_named_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("text")
    keeps = "import sys; files = [open('f'), open('f')]; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", keeps]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as using:
        assert using.stdout is not None
        using.stdout.readline()
        with open(f"/proc/{using.pid}/comm", encoding="ascii") as file:
            name = file.read().strip()
        assert shell(("users",), f"path={tmp_path}; users") == f"{name} (pid {using.pid}) "
        assert shell(("users",), f"path={tmp_path}/f; users") == f"{name} (pid {using.pid}) "
        assert using.stdin is not None
        using.stdin.close()
    assert shell(("users",), f"path={tmp_path}; users") == ""
