"""The routes of docs/architecture.md: every stop on them, and every function named there, is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
ROUTE = re.compile(r"^\*\*An? \w+\*\*[^\n]*\n\n((?:\|[^\n]*\n)+)", re.MULTILINE)
STOPS = [
    (f"src/uvmshare/{file}", name)
    for rows in ROUTE.findall(PAGE)
    for file, name in re.findall(r"^\| `([a-z_/]+\.py)`(?: `([A-Za-z_.]+)`)? \|", rows, re.MULTILINE)
]
METHODS_MADE = {"ClientShares.add", "ClientMounts.map"}
"""Of both clients, for sync and async: `client_methods.py` makes them when it is imported."""


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
    assert len(STOPS) > 40


@pytest.mark.parametrize(("file", "name"), STOPS)
def test_a_stop_on_a_route_is_there(file: str, name: str) -> None:
    assert name in {"", *functions(ROOT / file)}


def test_every_function_that_a_row_names_is_there() -> None:
    rows = "".join(ROUTE.findall(PAGE))
    named = set(re.findall(r"`((?:[A-Z]\w+\.)?[a-z_]\w+)`", rows))
    there = set().union(*map(functions, (ROOT / "src/uvmshare").rglob("*.py")))
    assert len(named) > 30
    there |= {name.rpartition(".")[2] for name in there}
    assert named - there - METHODS_MADE == set()
