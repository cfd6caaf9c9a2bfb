"""The routes of docs/architecture.md: every stop on them is a function that is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROUTE = re.compile(r"^\*\*An? \w+\*\*[^\n]*?`(src/[a-z/]+)`[^\n]*\n\n((?:\|[^\n]*\n)+)", re.MULTILINE)
STOPS = [
    (f"{folder}{file}", name)
    for folder, rows in ROUTE.findall(PAGE)
    for file, name in re.findall(r"^\| `([a-z_/]+\.py)`(?: `([A-Za-z_.]+)`)? \|", rows, re.MULTILINE)
]


def functions(path: Path) -> set[str]:
    """Every function of a module, and every method as `Class.method`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}." if isinstance(node, ast.ClassDef) else ""
        found |= {prefix + each.name for each in inner if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
    return found


def test_there_are_three_routes() -> None:
    assert len(ROUTE.findall(PAGE)) == 3
    assert len(STOPS) > 25


@pytest.mark.parametrize(("file", "name"), STOPS)
def test_a_stop_on_a_route_is_there(file: str, name: str) -> None:
    assert name in {"", *functions(ROOT / file)}
