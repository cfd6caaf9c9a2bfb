"""The table of a mount's transitions: every state with every trigger, and the picture that is drawn from it."""

from __future__ import annotations

from functools import partial

import pytest
from tests.state_tables import require_drawn, require_transition, setters_of_state

from uvmshare.mounts.mount import Mount
from uvmshare.mounts.options import MountOptions
from uvmshare.mounts.state import TRANSITIONS, MountLife, MountState, MountTrigger

OPTIONS = MountOptions("0", "/run/uvmshare/x")

PENDING, MOUNTING, MOUNTED, UNMOUNTING, LOST, RESTORING, *_ = MountLife
*_, INVALID, UNDOING, REVOKED, OVERTAKEN, CLEARING, UNMOUNTED = MountLife

# Written out a second time on purpose: a slip in the table must not agree with itself.
EXPECTED = {
    MountTrigger.MOUNT_BEGUN: {PENDING: MOUNTING, LOST: RESTORING},
    MountTrigger.MOUNT_SUCCEEDED: {MOUNTING: MOUNTED, RESTORING: MOUNTED, OVERTAKEN: REVOKED},
    MountTrigger.MOUNT_FAILED: {MOUNTING: INVALID, RESTORING: LOST, OVERTAKEN: REVOKED},
    MountTrigger.MOUNT_UNKNOWN: {MOUNTING: INVALID, RESTORING: LOST, OVERTAKEN: REVOKED},
    MountTrigger.LOST: {MOUNTED: LOST},
    MountTrigger.GIVEN_UP: {LOST: INVALID},
    MountTrigger.UNMOUNT_BEGUN: {MOUNTED: UNMOUNTING, INVALID: UNDOING, REVOKED: CLEARING},
    MountTrigger.UNMOUNT_SUCCEEDED: dict.fromkeys((UNMOUNTING, UNDOING, CLEARING), UNMOUNTED),
    MountTrigger.UNMOUNT_FAILED: {UNMOUNTING: MOUNTED, UNDOING: INVALID, CLEARING: REVOKED},
    MountTrigger.UNMOUNT_UNKNOWN: {UNMOUNTING: INVALID, UNDOING: INVALID, CLEARING: REVOKED},
    MountTrigger.LET_GO: {CLEARING: REVOKED},
    MountTrigger.REVOKED: {
        **dict.fromkeys((MOUNTED, LOST, INVALID, REVOKED), REVOKED),
        **dict.fromkeys((MOUNTING, RESTORING, OVERTAKEN), OVERTAKEN),
        **dict.fromkeys((UNMOUNTING, UNDOING, CLEARING), CLEARING),
    },
    MountTrigger.NOTHING_LEFT: {INVALID: UNMOUNTED, REVOKED: UNMOUNTED},
    MountTrigger.VM_EXITED: dict.fromkeys((PENDING, MOUNTED, LOST, INVALID, REVOKED), UNMOUNTED),
}

# What callers see: the state, and the call in flight.
SEEN = {
    PENDING: (MountState.PENDING, None),
    MOUNTING: (MountState.PENDING, "mounting"),
    MOUNTED: (MountState.MOUNTED, None),
    UNMOUNTING: (MountState.MOUNTED, "unmounting"),
    LOST: (MountState.PENDING, None),
    RESTORING: (MountState.PENDING, "mounting"),
    INVALID: (MountState.INVALID, None),
    UNDOING: (MountState.INVALID, "unmounting"),
    REVOKED: (MountState.REVOKED, None),
    OVERTAKEN: (MountState.REVOKED, "mounting"),
    CLEARING: (MountState.REVOKED, "unmounting"),
    UNMOUNTED: (MountState.UNMOUNTED, None),
}


@pytest.mark.parametrize("trigger", MountTrigger)
@pytest.mark.parametrize("state", MountLife)
def test_every_state_with_every_trigger(state: MountLife, trigger: MountTrigger) -> None:
    require_transition(partial(Mount, OPTIONS), state, trigger, EXPECTED)


@pytest.mark.parametrize("life", MountLife)
def test_callers_see_five_states_and_a_call(life: MountLife) -> None:
    mount = Mount(OPTIONS, 1.0)
    mount.state = life
    assert (mount.info().state, mount.info().busy) == SEEN[life]


def test_a_mount_begins_pending_and_nothing_leaves_unmounted() -> None:
    assert Mount(OPTIONS, 1.0).state is TRANSITIONS.initial is PENDING
    assert {life for life in MountLife if not any(left is life for left, _ in TRANSITIONS.table)} == {UNMOUNTED}


def test_nothing_but_apply_sets_a_state() -> None:
    # Its entries are `uvmshare.lifecycle.entry`'s, and so is the test that finds `apply` there.
    assert setters_of_state("src/uvmshare/mounts") == []


def test_the_committed_diagram_is_drawn_from_the_table() -> None:
    require_drawn(TRANSITIONS, "mount-states")
