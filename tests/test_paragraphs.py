"""What modules say of each other: whatever a module's first paragraphs name is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "uvmshare"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if "What must" in path.read_text(encoding="utf-8")]
NAMED = re.compile(r"`([a-z_]+(?:\.[a-z_0-9]+)*)`")
PARENTHESES = re.compile(r"\(([^()]*)\)")


def elsewhere(path: Path) -> set[str]:
    """The modules that a paragraph gives the rest to: those in parentheses behind "What must not", or by full names."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[1].split())
    _, _, others = text.partition("What must not")
    named = {name for part in PARENTHESES.findall(others) for name in NAMED.findall(part)}
    return named | {name for name in NAMED.findall(others) if name.startswith("uvmshare.")}


def is_there(name: str, path: Path) -> bool:
    """Whether a module, or what one of its names is, can be found from the folder of `path` or one above it."""
    folders = [SOURCE] if name.startswith("uvmshare.") else [path.parent, *path.parent.parents]
    parts = name.split(".")
    for folder in (each for each in folders if each == SOURCE or each.is_relative_to(PACKAGE)):
        at = folder.joinpath(*parts)
        if at.with_suffix(".py").is_file() or (at / "__init__.py").is_file() or (folder / name).is_file():
            return True
    return False


@pytest.mark.parametrize("path", MODULES, ids=[str(path.relative_to(PACKAGE)) for path in MODULES])
def test_what_a_paragraph_gives_to_another_module_is_given_to_one_that_is_there(path: Path) -> None:
    assert {name for name in elsewhere(path) if not is_there(name, path)} == set()
