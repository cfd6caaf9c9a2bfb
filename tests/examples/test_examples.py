"""Every program in examples/ runs, and does what it says."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.docs.pages import ROOT, Block

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.docs.sandbox import Sandbox

EXAMPLES = Path(ROOT) / "examples"
GUEST = """
import os
from uvmshare.testing.client import NinePClient

with NinePClient.connect(os.environ["ADDRESS"], os.environ["PROJECT"]) as project:
    greeting = project.read_file("greeting.txt")
with NinePClient.connect(os.environ["ADDRESS"], os.environ["WORKSPACE"]) as workspace:
    workspace.write_file(os.environ["JOB"] + ".txt", greeting)
"""
TESTED = {"agent_sandbox.py", "ci_job.py", "follow_events.py", "synchronous.py", "test_with_a_share.py"}


@pytest.fixture
def machine() -> Iterator[Sandbox]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("namespaces of mounts need root on Linux")
    from tests.docs.sandbox import sandbox

    with sandbox() as made:
        yield made


def typed(machine: Sandbox, *lines: str, stays: bool = False) -> str:
    return machine.type(Block("examples", 0, "console", "\n".join(lines)), stays=stays)


def with_daemon(machine: Sandbox) -> None:
    typed(machine, "$ uvmshare daemon", stays=True)
    typed(machine, "$ uvmshare vm add build unix:/run/build.9p")


def test_each_program_has_a_test_and_a_row() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == TESTED
    assert set(re.findall(r"^\| \[`(\w+\.py)`\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)) == TESTED


def test_jobs_of_the_agents_sandbox_have_one_project_and_a_workspace_each(machine: Sandbox) -> None:
    said = typed(
        machine,
        f"$ printf '%s' {_quoted(GUEST)} > guest.py",
        f"$ python {EXAMPLES}/agent_sandbox.py unix:/run/vm1.9p ~/project python guest.py",
    )
    for job in ("job-1", "job-2"):
        assert f"{job} ended with status 0 and left ['{job}.txt']" in said
    assert "shares that are left: 0" in said


def test_a_ci_job_holds_its_share_while_its_command_runs(machine: Sandbox) -> None:
    with_daemon(machine)
    command = "uvmshare share ls --json"
    said = typed(machine, f"$ python {EXAMPLES}/ci_job.py build ~/project {command}")
    assert re.search(r"held by ci-\d+", said)
    assert '"path":"/home/me/project"' in said.replace(" ", "")
    assert "/home/me/project" not in typed(machine, f"$ {command}")


def test_events_are_followed_as_they_happen(machine: Sandbox) -> None:
    with_daemon(machine)
    typed(machine, "$ mkfifo lines && exec 3<>lines")
    typed(machine, f"$ python {EXAMPLES}/follow_events.py share.held >&3 &", stays=True)
    typed(machine, "$ uvmshare share add build ~/project --owner job-7")
    said = typed(machine, "$ timeout 60 grep -m 1 share.held <&3")
    assert re.search(r"^share\.held build \d+ job-7", said, re.MULTILINE)


def test_a_synchronous_program_shares_until_enter(machine: Sandbox) -> None:
    said = typed(machine, f"$ echo | python {EXAMPLES}/synchronous.py unix:/run/vm1.9p ~/project ~/src")
    assert re.search(r"share \d+ of /home/me/project", said)
    assert re.search(r"share \d+ of /home/me/src", said)
    assert "reaches none" in said


def test_the_example_of_tests_passes(machine: Sandbox) -> None:
    options = "-q -p no:cacheprovider -c /dev/null --rootdir=/home/me"
    said = typed(machine, f"$ cp {EXAMPLES}/test_with_a_share.py . && python -m pytest {options} test_with_a_share.py")
    assert "2 passed" in said


def _quoted(text: str) -> str:
    return "$'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
