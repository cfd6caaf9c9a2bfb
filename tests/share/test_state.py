"""The table of transitions: every state with every trigger, and the picture that is drawn from it."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import state_diagram
from uvmshare.errors import InvalidTransition
from uvmshare.share.options import AddOptions
from uvmshare.share.share import Share
from uvmshare.share.state import INITIAL_STATE, TRANSITIONS, ShareState, Trigger, next_state

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = AddOptions(ROOT)

PENDING, ADDED, INVALID, REMOVED = ShareState

# Written out a second time on purpose: a slip in the table must not agree with itself.
EXPECTED = {
    Trigger.ADD_SUCCEEDED: {PENDING: ADDED},
    Trigger.ADD_FAILED: {PENDING: INVALID},
    Trigger.ADD_UNKNOWN: {PENDING: INVALID},
    Trigger.DROPPED: {PENDING: REMOVED},
    Trigger.LOST: {ADDED: PENDING},
    Trigger.RESTORE_FAILED: {PENDING: PENDING},
    Trigger.REMOVE_SUCCEEDED: {ADDED: REMOVED, INVALID: REMOVED},
    Trigger.REMOVE_FAILED: {ADDED: ADDED, INVALID: INVALID},
    Trigger.REMOVE_UNKNOWN: {ADDED: ADDED, INVALID: INVALID},
}


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("state", ShareState)
def test_every_state_with_every_trigger(state: ShareState, trigger: Trigger) -> None:
    share = Share("0", OPTIONS, 1.0)
    share.state = state
    following = EXPECTED[trigger].get(state)
    if following is None:
        with pytest.raises(InvalidTransition, match=f"{state.value}.*{trigger.value}"):
            share.apply(trigger, 2.0)
        assert (share.state, share.since) == (state, 1.0)
    else:
        share.apply(trigger, 2.0)
        assert share.state is following
        assert share.since == (1.0 if following is state else 2.0)
        assert next_state(state, trigger) is following


def test_a_share_begins_pending_and_nothing_leaves_removed() -> None:
    assert Share("0", OPTIONS, 1.0).state is INITIAL_STATE is PENDING
    assert not [state for state, _ in TRANSITIONS if state is REMOVED]


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS[REMOVED, Trigger.ADD_SUCCEEDED] = ADDED  # type: ignore[index]  # that it cannot is what is tested


def test_nothing_but_apply_sets_a_state() -> None:
    setters = []
    for path in (ROOT / "src/uvmshare/share").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                setters += [
                    (path.name, function.name)
                    for node in ast.walk(function)
                    if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)
                ]
    assert sorted(setters) == [("share.py", "__init__"), ("share.py", "apply")]


def test_the_committed_diagram_is_drawn_from_the_table() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/state_diagram.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    picture = (ROOT / "docs/state-diagram.svg").read_text()
    text = (ROOT / "docs/state-diagram.md").read_text()
    for (state, trigger), following in TRANSITIONS.items():
        assert f">{state.name}<" in picture
        assert f">{trigger.value}<" in picture
        assert f"| {state.name} | {trigger.value} | {following.name} |" in text


def test_a_stale_diagram_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(state_diagram, "DOCS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["state_diagram.py"])
    assert state_diagram.main() == 0
    monkeypatch.setattr(sys, "argv", ["state_diagram.py", "--check"])
    assert state_diagram.main() == 0
    (tmp_path / "state-diagram.svg").write_text("an older one")
    assert state_diagram.main() == 1
    assert "docs/state-diagram.svg is stale" in capsys.readouterr().err


def test_a_transition_without_a_line_is_an_error() -> None:
    diagram = replace(state_diagram.SHARES, transitions={**TRANSITIONS, (REMOVED, Trigger.ADD_SUCCEEDED): ADDED})
    with pytest.raises(SystemExit, match="REMOVED -> ADDED"):
        state_diagram.svg(diagram)
