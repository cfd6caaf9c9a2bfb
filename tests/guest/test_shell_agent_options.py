"""How the shell's agent mounts: its own functions under busybox's shell, with others in place of uname and mount."""

from __future__ import annotations

import subprocess
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
