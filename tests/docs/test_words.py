"""One word a thing: what the glossary retires is on no page, in no help text and in no message."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.docs.pages import PAGES, ROOT, read

import reference

if TYPE_CHECKING:
    from collections.abc import Iterator

GLOSSARY: Final = "docs/glossary.md"
SECTION: Final = "## Words that are not used\n"
SOURCES: Final = sorted(Path(ROOT, "src", "uvmshare").rglob("*.py"))


def retired() -> dict[str, str]:
    """The words that are not used, each with what is said instead."""
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", read(GLOSSARY).partition(SECTION)[2], re.MULTILINE)
    return {word.strip().lower(): instead for words, instead in rows[2:] for word in words.split(",")}


RETIRED: Final = retired()
PATTERN: Final = re.compile(rf"\b({'|'.join(re.escape(word) for word in RETIRED)})(?:s|ed)?\b", re.IGNORECASE)


def found(text: str) -> list[str]:
    return [f"{said[0]!r} (say: {RETIRED[said[1].lower()]})" for said in PATTERN.finditer(text)]


def messages(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module that is no docstring, each with its line."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    told = {
        id(node.value)
        for parent in ast.walk(tree)
        if isinstance(body := getattr(parent, "body", None), list)
        for node in body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield node.lineno, node.value


def test_the_glossary_has_words_that_are_not_used_and_those_that_are() -> None:
    assert len(RETIRED) >= 8
    assert found("an allow-list, Whitelisted") == [
        "'allow-list' (say: allowed names)",
        "'Whitelisted' (say: allowed names)",
    ]
    used = read(GLOSSARY).partition(SECTION)[0]
    assert not found(used)
    for word in (
        "allowed names",
        "pending",
        "release",
        "remove",
        "guest",
        "utility VM",
        "compute system",
        "fid",
        "qid",
    ):
        assert f"**{word}**" in used
    for word in ("mapped directory", "aname", "msize", "share", "mount", "owner", "lease"):
        assert f"**{word}**" in used


@pytest.mark.parametrize("page", [page for page in PAGES if page != GLOSSARY])
def test_no_page_uses_a_retired_word(page: str) -> None:
    lines = enumerate(read(page).splitlines(), 1)
    assert not [f"{page}:{number}: {said}" for number, line in lines if (said := found(line))]


@pytest.mark.parametrize("page", ["cli.md", "http.md"])
def test_no_help_text_and_no_description_uses_a_retired_word(page: str) -> None:
    assert not found(reference.pages()[page])


def test_no_message_uses_a_retired_word() -> None:
    said = [f"{path}:{line}: {said}" for path in SOURCES for line, text in messages(path) if (said := found(text))]
    assert not said
