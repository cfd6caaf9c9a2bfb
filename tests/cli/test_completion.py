from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from uvmshare.cli.main import run

PROGRAM = "import sys; from uvmshare.cli import main; sys.exit(main())"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_asks_this_command(shell: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    script = capfd.readouterr().out
    assert f"_UVMSHARE_COMPLETE={shell}_complete" in script


def complete(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={
            **os.environ,
            "_UVMSHARE_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("uvmshare", *words)),
            "COMP_CWORD": str(len(words)),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


def test_commands_are_offered() -> None:
    assert complete("se") == ["plain,serve"]


def test_options_are_offered() -> None:
    assert "plain,--listen" in complete("serve", "--l")
    assert complete("serve", "--security-model", "p") == ["plain,passthrough"]


def test_a_share_is_completed_as_a_directory() -> None:
    assert complete("serve", "--listen", "unix:/x", "/srv/a") == ["dir,/srv/a"]


def test_bash_takes_the_script(capfd: pytest.CaptureFixture[str]) -> None:
    bash = shutil.which("bash")
    assert bash is not None, "every host that the project supports has bash"
    run(["completion", "bash"])
    script = capfd.readouterr().out
    done = subprocess.run([bash, "-euc", f"{script}\ncomplete -p uvmshare"], capture_output=True, text=True, check=True)
    assert "_uvmshare_completion" in done.stdout
