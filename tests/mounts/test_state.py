"""The table of a mount's transitions: every state with every trigger, and the picture that is drawn from it."""

from __future__ import annotations

from functools import partial

import pytest
from tests.state_tables import require_drawn, require_transition, setters_of_state

from uvmshare.mounts.mount import Mount
from uvmshare.mounts.options import MountOptions
from uvmshare.mounts.state import TRANSITIONS, MountState, Trigger

OPTIONS = MountOptions("0", "/run/uvmshare/x")

RESERVED, MOUNTED, INVALID, REVOKED, UNMOUNTED = MountState

# Written out a second time on purpose: a slip in the table must not agree with itself.
EXPECTED = {
    Trigger.MOUNT_SUCCEEDED: {RESERVED: MOUNTED, REVOKED: REVOKED},
    Trigger.MOUNT_FAILED: {RESERVED: INVALID, REVOKED: REVOKED},
    Trigger.MOUNT_UNKNOWN: {RESERVED: INVALID, REVOKED: REVOKED},
    Trigger.REMOUNT_FAILED: {RESERVED: RESERVED},
    Trigger.LOST: {MOUNTED: RESERVED},
    Trigger.GIVEN_UP: {RESERVED: INVALID},
    Trigger.UNMOUNT_SUCCEEDED: {MOUNTED: UNMOUNTED, INVALID: UNMOUNTED, REVOKED: UNMOUNTED},
    Trigger.UNMOUNT_FAILED: {MOUNTED: MOUNTED, INVALID: INVALID, REVOKED: REVOKED},
    Trigger.UNMOUNT_UNKNOWN: {MOUNTED: INVALID, INVALID: INVALID, REVOKED: REVOKED},
    Trigger.REVOKED: {RESERVED: REVOKED, MOUNTED: REVOKED, INVALID: REVOKED, REVOKED: REVOKED},
}


@pytest.mark.parametrize("trigger", Trigger)
@pytest.mark.parametrize("state", MountState)
def test_every_state_with_every_trigger(state: MountState, trigger: Trigger) -> None:
    require_transition(partial(Mount, OPTIONS), state, trigger, EXPECTED)


def test_a_mount_begins_reserved_and_nothing_leaves_unmounted() -> None:
    assert Mount(OPTIONS, 1.0).state is TRANSITIONS.initial is RESERVED
    assert not [state for state, _ in TRANSITIONS.table if state is UNMOUNTED]


def test_nothing_but_apply_sets_a_state() -> None:
    # Its entries are `uvmshare.share.entry`'s, and so is the test that finds `apply` there.
    assert setters_of_state("src/uvmshare/mounts") == []


def test_the_committed_diagram_is_drawn_from_the_table() -> None:
    require_drawn(TRANSITIONS, "mount-states")
