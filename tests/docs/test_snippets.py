"""Every block of the README and of docs/ does what its page says: typed or run, from the top of the page to its end."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import shutil
import sys
import tempfile
from typing import TYPE_CHECKING, Final

import pytest
from tests.docs.pages import PAGES, before, blocks, commands, read
from tests.root import require_root

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.docs.pages import Block

    from uvmshare.testing.guest_vm import GuestVM

LANGUAGES: Final = {"console", "python", "json", "sh", "text", "ini", "toml", "yaml", "mermaid", ""}
WORDS: Final = {"stays", "fresh", "fails", "long"}
SHOWN: Final = [page for page in PAGES if page == "README.md" or page.startswith("docs/")]
RUN: Final = [page for page in SHOWN if any(block.language in ("console", "python") for block in blocks(page))]
NOT_YET: Final[dict[str, str]] = {}
"""Pages that do not do what they say, and why. A page that does must leave this list."""


LATER: Final = (
    "docs/daemon.md",
    "docs/guest-agent.md",
    "docs/guest-kernel.md",
    "docs/python.md",
    "docs/tutorial-firecracker.md",
)
"""Pages with a guest that ``make test-long`` types; ``make test`` types the README."""


def marked(pages: list[str], *, long: tuple[str, ...] = ()) -> list[object]:
    marks = {page: [pytest.mark.long] for page in long}
    for page, reason in NOT_YET.items():
        marks.setdefault(page, []).append(pytest.mark.xfail(reason=reason, strict=True))
    return [pytest.param(page, marks=marks.get(page, ())) for page in pages]


def elsewhere(block: Block) -> str:
    """Why this machine cannot run a block, or nothing."""
    found = re.match(r"elsewhere: (.+)", block.mark)
    return found[1] if found else ""


def words(block: Block) -> set[str]:
    return set() if elsewhere(block) else set(block.mark.split())


def has_guest(page: str) -> bool:
    first = before(page)
    consoles = [block for block in blocks(page) if block.language == "console"]
    typed = [block for block in consoles if not elsewhere(block) and "long" not in words(block)]
    return any(prompt.startswith("guest") for block in (first, *typed) if block for prompt, _ in commands(block))


@pytest.fixture(scope="session")
def guest() -> Iterator[tuple[asyncio.Runner, GuestVM]]:
    """The one guest of all pages. Its root is the host's, so that Python is there."""
    from uvmshare.testing.guest_vm import GuestVM

    directory = tempfile.mkdtemp(prefix="v-", dir="/tmp")  # a unix socket's path is short
    with asyncio.Runner() as runner:
        vm = runner.run(GuestVM.start(root="host", vsock=f"{directory}/v.sock"))
        yield runner, vm
        runner.run(vm.aclose())
    shutil.rmtree(directory)


@pytest.mark.parametrize("page", SHOWN)
def test_a_block_says_its_language_and_nothing_to_the_tests_that_they_do_not_know(page: str) -> None:
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block}: {block.language}"
        assert words(block) <= WORDS, f"{block}: {block.mark}"
        if block.language == "json":
            json.loads(block.text)
        if block.language == "python":
            compile(block.text, str(block), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if block.language == "console":
            assert commands(block), f"{block} types nothing"
            for _, line in commands(block):
                shlex.split(line)


def test_what_runs_elsewhere_alone_is_on_the_list_in_contributing() -> None:
    said = read("CONTRIBUTING.md")
    reasons = {elsewhere(block) for page in SHOWN for block in blocks(page)} - {""}
    assert not {reason for reason in reasons if f"| {reason} |" not in said}


def go_through(page: str, guest: tuple[asyncio.Runner, GuestVM] | None, *, long: bool) -> int:
    """Type and run what a page has. Return how many blocks that were."""
    from tests.docs.sandbox import empty, sandbox

    wanted = [
        block
        for block in blocks(page)
        if block.language in ("console", "python") and not elsewhere(block) and ("long" in words(block)) == long
    ]
    first = before(page)
    parts: list[list[Block]] = [[]]
    for block in wanted:
        if "fresh" in words(block):
            parts.append([])
        parts[-1].append(block)
    if guest is not None:
        empty(guest)
    for number, part in enumerate(parts):
        with sandbox(guest) as machine:
            if number == 0 and first is not None:
                machine.type(first, stays=True)
            for block in part:
                if block.language == "python":
                    machine.run(block)
                    continue
                machine.type(block, fails="fails" in words(block), stays="stays" in words(block))
    return len(wanted)


def ready() -> None:
    if sys.platform != "linux":
        pytest.skip("the pages are about Linux")
    require_root("namespaces of mounts need root")


@pytest.mark.parametrize("page", marked([page for page in RUN if not has_guest(page)]))
def test_a_page_does_what_it_says(page: str) -> None:
    ready()
    go_through(page, None, long=False)


@pytest.mark.guest
@pytest.mark.parametrize("page", marked([page for page in RUN if has_guest(page)], long=LATER))
def test_a_page_with_a_guest_does_what_it_says(page: str, guest: tuple[asyncio.Runner, GuestVM]) -> None:
    ready()
    assert go_through(page, guest, long=False)


@pytest.mark.guest
@pytest.mark.long
@pytest.mark.parametrize("page", [page for page in RUN if any("long" in words(block) for block in blocks(page))])
def test_what_takes_a_page_long_does_what_it_says(page: str) -> None:
    ready()
    assert go_through(page, None, long=True)
