"""The blocks of code on the pages: where they are, what they say, and what a page says of them to the tests.

What lives here: reading Markdown as far as that takes. What must not: running anything.

Comments tell the tests about a block and about a page; readers do not see them. Their words are in CONTRIBUTING.md.
"""

from __future__ import annotations

import os
import re
import subprocess
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Final

__all__ = ["PAGES", "ROOT", "Block", "before", "blocks", "commands", "linked_from", "outcomes", "read"]

ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PAGES: Final = tuple(
    page
    for page in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    if os.path.exists(os.path.join(ROOT, page))
)
_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_MARK: Final = re.compile(r"<!-- run: ((?:(?!-->).)*) -->\s*\Z", re.DOTALL)
_PROMPT: Final = re.compile(r"^(\w*)([$#]) ")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. `mark` is what the comment above it says to the tests."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def name(self) -> str:
        """The name of a file that the block's first two lines give in a comment, else nothing."""
        found = re.match(r"(?:#!.*\n)?# ([\w.-]+)(?:[:\n]|$)", self.text)
        return found[1] if found else ""


def read(page: str) -> str:
    """Return the text of a page, whose path begins at the root of the repository."""
    with open(os.path.join(ROOT, page), encoding="utf-8") as file:
        return file.read()


@cache
def blocks(page: str) -> tuple[Block, ...]:
    """Return the blocks of a page, from top to bottom."""
    text = read(page)
    whole = re.search(r"^<!-- (elsewhere: [^>]*) -->$", text, re.MULTILINE)
    found = []
    for fence in _FENCE.finditer(text):
        mark = _MARK.search(text[: fence.start()])
        found.append(
            Block(
                page,
                text.count("\n", 0, fence.start()) + 1,
                fence["language"],
                textwrap.dedent(fence["text"]),
                (whole[1] if whole else "") if mark is None else " ".join(mark[1].split()),
            )
        )
    return tuple(found)


def before(page: str) -> Block | None:
    """Return what the readers of a page have typed already, on another page: the comment ``<!-- before: ... -->``."""
    text = read(page)
    found = re.search(r"<!-- before:\n(.*?)-->", text, re.DOTALL)
    return None if found is None else Block(page, text.count("\n", 0, found.start()) + 1, "console", found[1], "stays")


def commands(block: Block) -> list[tuple[str, str]]:
    """Return the lines that are typed, each with its prompt. A line that ends in a backslash goes on."""
    found: list[tuple[str, str]] = []
    typed = block.text.replace("\\\n", "\0").splitlines()
    for line in typed:
        if at := _PROMPT.match(line):
            words = re.sub(r"\s*\0\s*", " ", line[at.end() :])
            found.append((at[1] + at[2], words.partition("    #")[0].rstrip()))
    return found


def outcomes(block: Block) -> list[list[str]]:
    """Return what the page shows of the output of each line of `commands`, without empty lines."""
    found: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if _PROMPT.match(line):
            found.append([])
        elif found and line.strip():
            found[-1].append(line.rstrip())
    return found


@cache
def linked_from(page: str) -> tuple[str, ...]:
    """Return the page and those that it names."""
    found = {page: None}
    for link in re.findall(r"\]\(([^)\s#]+\.md)(?:#[^)]*)?\)", read(page)):
        target = os.path.normpath(os.path.join(os.path.dirname(page), link))
        if "://" not in link and os.path.exists(os.path.join(ROOT, target)):
            found[target] = None
    return tuple(found)
