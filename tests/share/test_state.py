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
from uvmshare.share.state import TRANSITIONS, ShareLife, ShareState, ShareTrigger

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = AddOptions(ROOT)

PENDING, ADDING, ADDED, REMOVING, LOST, RESTORING, *_ = ShareLife
*_, INVALID, UNDOING, DOUBTFUL, CLEARING, FAILED, REMOVED, NOT_OURS = ShareLife

# Written out a second time on purpose: a slip in the table must not agree with itself.
EXPECTED = {
    ShareTrigger.ADD_BEGUN: {PENDING: ADDING, LOST: RESTORING},
    ShareTrigger.ADD_SUCCEEDED: {ADDING: ADDED, RESTORING: ADDED},
    ShareTrigger.ADD_FAILED: {ADDING: FAILED, RESTORING: LOST},
    ShareTrigger.ADD_UNKNOWN: {ADDING: INVALID, RESTORING: LOST},
    ShareTrigger.DROPPED: {PENDING: REMOVED},
    ShareTrigger.LOST: {ADDED: LOST},
    ShareTrigger.GIVEN_UP: {LOST: INVALID},
    ShareTrigger.FOUND: {PENDING: INVALID},
    ShareTrigger.REMOVE_BEGUN: {ADDED: REMOVING, INVALID: UNDOING, DOUBTFUL: CLEARING, NOT_OURS: UNDOING},
    ShareTrigger.REMOVE_SUCCEEDED: dict.fromkeys((REMOVING, UNDOING, CLEARING), REMOVED),
    ShareTrigger.REMOVE_FAILED: {REMOVING: ADDED, UNDOING: INVALID, CLEARING: DOUBTFUL},
    ShareTrigger.REMOVE_UNKNOWN: {REMOVING: DOUBTFUL, UNDOING: INVALID, CLEARING: DOUBTFUL},
    ShareTrigger.VM_EXITED: dict.fromkeys((PENDING, ADDED, LOST, INVALID, DOUBTFUL, NOT_OURS), REMOVED),
    ShareTrigger.PROCESS_DIED: {
        ADDING: INVALID,
        RESTORING: LOST,
        REMOVING: DOUBTFUL,
        UNDOING: INVALID,
        CLEARING: DOUBTFUL,
    },
}

# What callers see: the state, the call in flight, whether an answer was lost.
SEEN = {
    PENDING: (ShareState.PENDING, None, False),
    ADDING: (ShareState.PENDING, "adding", False),
    ADDED: (ShareState.ADDED, None, False),
    REMOVING: (ShareState.ADDED, "removing", False),
    LOST: (ShareState.PENDING, None, False),
    RESTORING: (ShareState.PENDING, "adding", False),
    INVALID: (ShareState.INVALID, None, True),
    UNDOING: (ShareState.INVALID, "removing", True),
    DOUBTFUL: (ShareState.ADDED, None, True),
    CLEARING: (ShareState.ADDED, "removing", True),
    FAILED: (ShareState.INVALID, None, False),
    REMOVED: (ShareState.REMOVED, None, False),
    NOT_OURS: (ShareState.ADDED, None, False),
}


@pytest.mark.parametrize("trigger", ShareTrigger)
@pytest.mark.parametrize("state", ShareLife)
def test_every_state_with_every_trigger(state: ShareLife, trigger: ShareTrigger) -> None:
    require_transition(partial(Share, "0", OPTIONS), state, trigger, EXPECTED)


@pytest.mark.parametrize("life", ShareLife)
def test_callers_see_four_states_a_call_and_whether_an_answer_was_lost(life: ShareLife) -> None:
    info = Share("0", OPTIONS, 1.0, life).info()
    assert (info.state, info.busy, info.orphan) == SEEN[life]


def test_a_call_can_end_in_every_way_and_nothing_else_happens_meanwhile() -> None:
    ends = {ShareTrigger.PROCESS_DIED}
    adds = {ShareTrigger.ADD_SUCCEEDED, ShareTrigger.ADD_FAILED, ShareTrigger.ADD_UNKNOWN}
    removes = {ShareTrigger.REMOVE_SUCCEEDED, ShareTrigger.REMOVE_FAILED, ShareTrigger.REMOVE_UNKNOWN}
    for life in ShareLife:
        can_happen = {trigger for state, trigger in TRANSITIONS.table if state is life}
        if life.busy == "adding":
            assert can_happen == ends | adds
        elif life.busy == "removing":
            assert can_happen == ends | removes
        else:
            assert not can_happen & (ends | adds | removes)


def test_a_share_begins_pending_and_nothing_leaves_removed_or_failed() -> None:
    assert Share("0", OPTIONS, 1.0).state is TRANSITIONS.initial is PENDING
    assert {state for state in ShareLife if not any(left is state for left, _ in TRANSITIONS.table)} == {
        FAILED,
        REMOVED,
    }


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        TRANSITIONS.table[REMOVED, ShareTrigger.ADD_SUCCEEDED] = ADDED  # type: ignore[index]  # that it cannot is what is tested


def test_nothing_but_apply_sets_a_state() -> None:
    assert setters_of_state("src/uvmshare/share") == []
    assert setters_of_state("src/uvmshare/lifecycle") == [
        ("entry.py", "__init__"),
        ("entry.py", "apply"),
        ("transitions.py", "show"),
    ]


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
    changed = replace(TRANSITIONS, table={**TRANSITIONS.table, (REMOVED, ShareTrigger.ADD_SUCCEEDED): ADDED})
    diagram = replace(state_diagram.SHARES, transitions=changed)
    with pytest.raises(SystemExit, match="REMOVED -> ADDED"):
        state_diagram.svg(diagram)
