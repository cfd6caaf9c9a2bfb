"""What holds of every table of states, for the tests of each: `test_state.py` in share/ and in mounts/."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from uvmshare.errors import InvalidTransition

if TYPE_CHECKING:
    import enum
    from collections.abc import Callable, Mapping

    from uvmshare.lifecycle.entry import Entry
    from uvmshare.lifecycle.transitions import Transitions

ROOT = Path(__file__).resolve().parents[1]

S = TypeVar("S", bound="enum.Enum")
T = TypeVar("T", bound="enum.Enum")


def require_transition(
    make: Callable[[float], Entry[S, T]], state: S, trigger: T, expected: Mapping[T, Mapping[S, S]]
) -> None:
    """Pull the trigger in that state: the entry gets into the expected one, or says so and stays as it is."""
    entry = make(1.0)
    entry.state = state
    following = expected[trigger].get(state)
    if following is None:
        with pytest.raises(InvalidTransition, match=f"is {state.value} has no.*{trigger.value}"):
            entry.apply(trigger, 2.0)
        assert (entry.state, entry.since) == (state, 1.0)
    else:
        entry.apply(trigger, 2.0)
        assert entry.state is following
        assert entry.since == (1.0 if entry.seen(following) is entry.seen(state) else 2.0)
        assert entry.transitions.following(state, trigger) is following


def setters_of_state(folder: str) -> list[tuple[str, str]]:
    """Return the file and function of every assignment to a `state` below that folder."""
    setters = []
    for path in (ROOT / folder).glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                setters += [
                    (path.name, function.name)
                    for node in ast.walk(function)
                    if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)
                ]
    return sorted(setters)


def require_drawn(transitions: Transitions[S, T], name: str) -> None:
    """Find every transition in the committed picture of that name, and in its text."""
    picture = (ROOT / f"docs/{name}.svg").read_text()
    text = (ROOT / f"docs/{name}.md").read_text()
    for (state, trigger), following in transitions.table.items():
        assert f">{state.name}<" in picture
        assert f">{trigger.value}<" in picture
        assert f"| {state.name} | {trigger.value} | {following.name} |" in text
