"""The table of a mount's transitions: every state with every trigger, and the picture that is drawn from it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from uvmshare.errors import InvalidTransition
from uvmshare.mounts.mount import Mount
from uvmshare.mounts.options import MountOptions
from uvmshare.mounts.state import INITIAL_STATE, TRANSITIONS, MountState, Trigger, next_state

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = MountOptions("0", "/run/uvmshare/x")

RESERVED, MOUNTED, INVALID, UNMOUNTED = MountState

# Written out a second time on purpose: a slip in the table must not agree with itself.
EXPECTED = {
    Trigger.MOUNT_SUCCEEDED: {RESERVED: MOUNTED},
    Trigger.MOUNT_FAILED: {RESERVED: INVALID},
    Trigger.MOUNT_UNKNOWN: {RESERVED: INVALID},
    Trigger.REMOUNT_FAILED: {RESERVED: RESERVED},
    Trigger.LOST: {MOUNTED: RESERVED},
    Trigger.GIVEN_UP: {RESERVED: INVALID},
    Trigger.UNMOUNT_SUCCEEDED: {MOUNTED: UNMOUNTED, INVALID: UNMOUNTED},
    Trigger.UNMOUNT_FAILED: {MOUNTED: MOUNTED, INVALID: INVALID},
    Trigger.UNMOUNT_UNKNOWN: {MOUNTED: INVALID, INVALID: INVALID},
}


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("state", MountState)
def test_every_state_with_every_trigger(state: MountState, trigger: Trigger) -> None:
    mount = Mount(OPTIONS, 1.0)
    mount.state = state
    following = EXPECTED[trigger].get(state)
    if following is None:
        with pytest.raises(InvalidTransition, match=f"{state.value}.*{trigger.value}"):
            mount.apply(trigger, 2.0)
        assert (mount.state, mount.since) == (state, 1.0)
    else:
        mount.apply(trigger, 2.0)
        assert mount.state is following
        assert mount.since == (1.0 if following is state else 2.0)
        assert next_state(state, trigger) is following


def test_a_mount_begins_reserved_and_nothing_leaves_unmounted() -> None:
    assert Mount(OPTIONS, 1.0).state is INITIAL_STATE is RESERVED
    assert not [state for state, _ in TRANSITIONS if state is UNMOUNTED]


def test_nothing_but_apply_sets_a_state() -> None:
    setters = []
    for path in (ROOT / "src/uvmshare/mounts").glob("*.py"):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                setters += [
                    (path.name, function.name)
                    for node in ast.walk(function)
                    if isinstance(node, ast.Attribute) and node.attr == "state" and isinstance(node.ctx, ast.Store)
                ]
    assert sorted(setters) == [("mount.py", "__init__"), ("mount.py", "apply")]


def test_the_committed_diagram_is_drawn_from_the_table() -> None:
    picture = (ROOT / "docs/mount-states.svg").read_text()
    text = (ROOT / "docs/mount-states.md").read_text()
    for (state, trigger), following in TRANSITIONS.items():
        assert f">{state.name}<" in picture
        assert f">{trigger.value}<" in picture
        assert f"| {state.name} | {trigger.value} | {following.name} |" in text
