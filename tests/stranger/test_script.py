"""A stranger sits down at a fresh Debian, with the README and nothing else, and gets from installing to cleaning up."""

from __future__ import annotations

import re
import shlex
import sys
from typing import TYPE_CHECKING

import pytest
from tests.docs.pages import blocks, commands, linked_from
from tests.processes import DEADLINE
from tests.stranger.script import STEPS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.docs.pages import Block
    from tests.stranger.script import Step
    from tests.terminal import Terminal

PAGES = linked_from("README.md")
LINE_DEADLINE = 15 * DEADLINE
"""For one line. Installing a package takes minutes on a slow machine."""


def shown() -> set[str]:
    """Every command on the pages, with one space between words."""
    consoles = [block for page in PAGES for block in blocks(page) if block.language == "console"]
    return {" ".join(line.split()) for block in consoles for _, line in commands(block)}


def saved(name: str) -> Block:
    """The block that a page says to save under a name."""
    (found,) = [block for page in PAGES for block in blocks(page) if block.name == name]
    return found


def lines(typed: str) -> list[str]:
    return [" ".join(line.split()) for line in typed.splitlines()]


def test_the_script_has_thirty_steps_and_each_a_name_of_its_own() -> None:
    assert len(STEPS) == len({step.wants for step in STEPS}) >= 30


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.wants)
def test_every_command_is_in_the_readme_or_on_a_page_that_it_names(step: Step) -> None:
    missing = sorted(set(lines(step.slip_of or step.types)) - shown())
    assert not missing, f"none of {', '.join(PAGES)} says {missing}"
    if step.saves:
        saved(step.saves)


def test_the_script_types_all_of_the_pages_that_say_so() -> None:
    typed = {line for step in STEPS for line in lines(step.types)}
    for page in PAGES:
        for block in blocks(page):
            if block.language == "console" and block.mark.endswith("the stranger's script types it on a fresh Debian"):
                assert {" ".join(line.split()) for _, line in commands(block)} <= typed, f"{block}"


def test_a_wrong_command_is_a_right_one_with_a_slip() -> None:
    for step in STEPS:
        if step.slip_of:
            right, wrong = shlex.split(step.slip_of), shlex.split(step.types)
            assert step.types not in shown()
            assert wrong[0] == right[0]
            assert len(set(wrong) ^ set(right)) <= 6, f"{step.types} is another command, not a slip"


def unseen_in(step: Step, before: str = "") -> Callable[[str], list[str]]:
    """What tells which of the things that a step wants to see are not in a text, or in what came before it."""
    return lambda said: [wanted for wanted in step.sees if not re.search(wanted, before + said, re.MULTILINE)]


def does(step: Step, window: Terminal) -> str:
    """Do what a step says. Return what is wrong with what came, or nothing."""
    if step.saves:
        window.run(f"cat > {step.saves} <<'END OF {step.saves}'\n{saved(step.saves).text}END OF {step.saves}", DEADLINE)
    said, statuses = "", []
    for line in step.types.splitlines():
        behind = line.endswith("&") and ">" not in line and step.window == "host"
        came = window.run_behind(line, unseen_in(step, said)) if behind else window.run(line, LINE_DEADLINE)
        said += came.text
        statuses.append(came.status)
    if unseen := unseen_in(step)(said):
        return f"nothing there is {unseen}:\n{said}"
    *before, last = statuses
    if any(before) or (last is not None and bool(last) != step.fails):
        return f"ended with status {', '.join(map(str, statuses))}:\n{said}"
    return ""


def attempted(step: Step, window: Terminal) -> str:
    """Do what a step says, again where a stranger would look again."""
    wrong = does(step, window)
    for _ in range(60 if step.looks_again else 0):
        if not wrong:
            break
        window.run(
            "sleep 1", DEADLINE
        )  # the stranger waits, not the test: what they wait for is another machine's death
        wrong = does(step, window)
    return wrong


@pytest.mark.long
@pytest.mark.guest
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_a_stranger_gets_from_installing_to_cleaning_up_on_a_fresh_debian(suite: str) -> None:
    if sys.platform != "linux":
        pytest.skip("Debian is Linux")
    from tests.stranger.fresh import fresh

    failed: dict[str, str] = {}
    with fresh(suite) as debian, debian.window() as host, debian.window() as vm:
        for number, step in enumerate(STEPS, 1):
            try:
                wrong = attempted(step, vm if step.window == "vm" else host)
            except (AssertionError, OSError) as error:
                wrong = str(error)
            sys.stdout.write(f"{number}. {step.wants}: {wrong or 'passes'}\n")
            if wrong:
                failed[step.wants] = wrong
    assert not failed
