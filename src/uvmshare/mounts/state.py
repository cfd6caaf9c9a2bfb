"""The life of a mount in the guest: every state that it may be in, every transition, and what callers see of it.

What lives here: the enums and the one table, which the diagram in the documentation is drawn from. What must not:
anything that makes a transition happen (that is `uvmshare.mounts.engine`), or any other knowledge of a mount.

It is built as `uvmshare.share.state` is, in the same words. What is under way for the share of a mount is not in it:
the guest has no say in that.
"""

from __future__ import annotations

import enum
from types import MappingProxyType
from typing import Final, Literal

from uvmshare.share.transitions import Transitions

__all__ = ["TRANSITIONS", "MountLife", "MountState", "Trigger"]

Busy = Literal["mounting", "unmounting"]


class MountState(enum.Enum):
    """Where a mount is in its life, as callers see it."""

    PENDING = "pending"
    """Its path is taken; it is being mounted, for the first time or again after the guest lost it."""
    MOUNTED = "mounted"
    """The guest's agent said that it has it."""
    INVALID = "invalid"
    """It, or the share behind it, may be there though it should not. It is being taken away; its path is taken."""
    REVOKED = "revoked"
    """Its share was taken away, or is being, without the guest, which may still have it, dead. Its path is taken."""
    UNMOUNTED = "unmounted"
    """It is gone, and its path is free."""


class MountLife(enum.Enum):
    """What is true of a mount, and what the guest is being asked for it."""

    state: MountState
    """What callers see."""
    busy: Busy | None
    """The call to the guest that is in flight for it."""

    PENDING = "pending"
    """Its path is taken. The guest was never asked for it."""
    MOUNTING = "mounting"
    """The guest is being asked to mount it, for the first time."""
    MOUNTED = "mounted"
    """The guest has it."""
    UNMOUNTING = "unmounting"
    """The guest is being asked to unmount it."""
    LOST = "lost"
    """The guest does not have it any more, and somebody holds it: it is to be mounted again."""
    RESTORING = "restoring"
    """It is being mounted again."""
    INVALID = "invalid"
    """It, or the share behind it, may be there though nobody is to have it."""
    UNDOING = "undoing"
    """That is being taken away."""
    REVOKED = "revoked"
    """Its share goes, or is gone, whatever the guest says."""
    OVERTAKEN = "overtaken"
    """So it is, and the guest is still being asked to mount it."""
    CLEARING = "clearing"
    """So it is, and the guest is being asked to unmount it."""
    UNMOUNTED = "unmounted"
    """It is gone, and its path is free."""


_SEEN: Final[tuple[tuple[MountLife, MountState, Busy | None], ...]] = (
    (MountLife.PENDING, MountState.PENDING, None),
    (MountLife.MOUNTING, MountState.PENDING, "mounting"),
    (MountLife.MOUNTED, MountState.MOUNTED, None),
    (MountLife.UNMOUNTING, MountState.MOUNTED, "unmounting"),
    (MountLife.LOST, MountState.PENDING, None),
    (MountLife.RESTORING, MountState.PENDING, "mounting"),
    (MountLife.INVALID, MountState.INVALID, None),
    (MountLife.UNDOING, MountState.INVALID, "unmounting"),
    (MountLife.REVOKED, MountState.REVOKED, None),
    (MountLife.OVERTAKEN, MountState.REVOKED, "mounting"),
    (MountLife.CLEARING, MountState.REVOKED, "unmounting"),
    (MountLife.UNMOUNTED, MountState.UNMOUNTED, None),
)
for _life, _state, _busy in _SEEN:
    _life.state, _life.busy = _state, _busy


class Trigger(enum.Enum):
    """What can happen to a mount. The values are the labels of the diagram."""

    MOUNT_BEGUN = "mount begun"
    MOUNT_SUCCEEDED = "mount succeeded"
    MOUNT_FAILED = "mount failed"
    MOUNT_UNKNOWN = "outcome of mount unknown"
    UNMOUNT_BEGUN = "unmount begun"
    UNMOUNT_SUCCEEDED = "unmount succeeded"
    """Also when the agent answers that there is no such mount, or the VM is gone itself."""
    UNMOUNT_FAILED = "unmount failed"
    UNMOUNT_UNKNOWN = "outcome of unmount unknown"
    """Or it is unmounted, but the share behind it could not be taken out yet."""
    LET_GO = "unmounted, its share is still going"
    LOST = "lost by the guest"
    """The guest was started again, or somebody in it unmounted it."""
    GIVEN_UP = "given up"
    """Nobody wants it back."""
    REVOKED = "share taken away"
    """Nobody holds it, and the guest did not unmount it in time: the host takes its share out all the same."""
    NOTHING_LEFT = "nothing left"
    """Neither the guest nor the VM has anything of it."""
    VM_EXITED = "the VM exited"


def _table() -> dict[tuple[MountLife, Trigger], MountLife]:
    """Return every transition, by what can happen to a mount that nothing is under way for, and how calls end."""
    life = MountLife
    resting = {
        (life.MOUNTED, Trigger.LOST): life.LOST,
        (life.LOST, Trigger.GIVEN_UP): life.INVALID,
        (life.INVALID, Trigger.NOTHING_LEFT): life.UNMOUNTED,
        (life.REVOKED, Trigger.NOTHING_LEFT): life.UNMOUNTED,
        (life.CLEARING, Trigger.LET_GO): life.REVOKED,
        (life.PENDING, Trigger.MOUNT_BEGUN): life.MOUNTING,
        (life.LOST, Trigger.MOUNT_BEGUN): life.RESTORING,
    }
    calls: dict[tuple[MountLife, Trigger], MountLife] = {}
    for during, succeeded, failed in (
        (life.MOUNTING, life.MOUNTED, life.INVALID),
        # It is tried again whatever became of an attempt, for those who hold it.
        (life.RESTORING, life.MOUNTED, life.LOST),
        (life.OVERTAKEN, life.REVOKED, life.REVOKED),
    ):
        calls |= {
            (during, Trigger.MOUNT_SUCCEEDED): succeeded,
            (during, Trigger.MOUNT_FAILED): failed,
            (during, Trigger.MOUNT_UNKNOWN): failed,
        }
    for before, during, unknown in (
        (life.MOUNTED, life.UNMOUNTING, life.INVALID),
        # What a mount left behind is taken away with an unmount, until one succeeds.
        (life.INVALID, life.UNDOING, life.INVALID),
        (life.REVOKED, life.CLEARING, life.REVOKED),
    ):
        calls |= {
            (before, Trigger.UNMOUNT_BEGUN): during,
            (during, Trigger.UNMOUNT_SUCCEEDED): life.UNMOUNTED,
            (during, Trigger.UNMOUNT_FAILED): before,
            (during, Trigger.UNMOUNT_UNKNOWN): unknown,
        }
    # The guest has no say in this, whatever is under way there; and there is no way back.
    by_busy = {None: life.REVOKED, "mounting": life.OVERTAKEN, "unmounting": life.CLEARING}
    there = [each for each in life if each not in {life.PENDING, life.UNMOUNTED}]
    taken = {(each, Trigger.REVOKED): by_busy[each.busy] for each in there}
    exited = {(before, Trigger.VM_EXITED): life.UNMOUNTED for before, _ in (*calls, *resting) if before.busy is None}
    return resting | calls | taken | exited


TRANSITIONS = Transitions(thing="mount", initial=MountLife.PENDING, table=MappingProxyType(_table()))
