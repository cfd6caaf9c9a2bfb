"""The table of transitions: every state with every trigger, and the picture that is drawn from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.state_tables import ROOT, require_drawn, require_transition, setters_of_state

import state_diagram
from uvmshare.share.options import AddOptions
from uvmshare.share.share import Share
from uvmshare.share.state import TRANSITIONS, ShareState, Trigger

if TYPE_CHECKING:
    from pathlib import Path

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
    require_transition(partial(Share, "0", OPTIONS), state, trigger, EXPECTED)


def test_a_share_begins_pending_and_nothing_leaves_removed() -> None:
    assert Share("0", OPTIONS, 1.0).state is TRANSITIONS.initial is PENDING
    assert not [state for state, _ in TRANSITIONS.table if state is REMOVED]


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS.table[REMOVED, Trigger.ADD_SUCCEEDED] = ADDED  # type: ignore[index]  # that it cannot is what is tested


def test_nothing_but_apply_sets_a_state() -> None:
    assert setters_of_state("src/uvmshare/share") == [("entry.py", "__init__"), ("entry.py", "apply")]


def test_the_committed_diagram_is_drawn_from_the_table() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools/state_diagram.py", "--check"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    require_drawn(TRANSITIONS, "state-diagram")


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
    changed = replace(TRANSITIONS, table={**TRANSITIONS.table, (REMOVED, Trigger.ADD_SUCCEEDED): ADDED})
    diagram = replace(state_diagram.SHARES, transitions=changed)
    with pytest.raises(SystemExit, match="REMOVED -> ADDED"):
        state_diagram.svg(diagram)
