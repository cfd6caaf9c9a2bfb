"""The life of a mount in the guest: every state that it may be in, every transition, and what callers see of it.

What lives here: the enums and the one table, which the diagram in the documentation is drawn from. What must not:
anything that makes a transition happen (that is `uvmshare.mounts.engine`), or any other knowledge of a mount.

It is built as `uvmshare.share.state` is, in the same words. What is under way for the share of a mount is not in it:
the guest has no say in that.
"""

from __future__ import annotations

import enum
from typing import Final, Literal

from uvmshare.lifecycle.transitions import call, show, transitions_of

__all__ = ["TRANSITIONS", "MountLife", "MountState", "MountTrigger"]

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


show(
    (
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
)


class MountTrigger(enum.Enum):
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
    """Or it is unmounted, but the share behind it could not be removed yet."""
    LET_GO = "unmounted, its share is still going"
    LOST = "lost by the guest"
    """The guest was started again, or somebody in it unmounted it."""
    GIVEN_UP = "given up"
    """Nobody wants it back."""
    REVOKED = "share taken away"
    """Nobody holds it, and the guest did not unmount it in time: the host removes its share all the same."""
    NOTHING_LEFT = "nothing left"
    """Neither the guest nor the VM has anything of it."""
    VM_EXITED = "the VM exited"


_RESTING: Final = {
    (MountLife.MOUNTED, MountTrigger.LOST): MountLife.LOST,
    (MountLife.LOST, MountTrigger.GIVEN_UP): MountLife.INVALID,
    (MountLife.INVALID, MountTrigger.NOTHING_LEFT): MountLife.UNMOUNTED,
    (MountLife.REVOKED, MountTrigger.NOTHING_LEFT): MountLife.UNMOUNTED,
    (MountLife.CLEARING, MountTrigger.LET_GO): MountLife.REVOKED,
}
"""What can happen to a mount that nothing is under way for; and how a call ends that another one finishes."""

_MOUNTS: Final = call(
    MountTrigger.MOUNT_BEGUN,
    (MountTrigger.MOUNT_SUCCEEDED, MountTrigger.MOUNT_FAILED, MountTrigger.MOUNT_UNKNOWN),
    (
        (MountLife.PENDING, MountLife.MOUNTING, (MountLife.MOUNTED, MountLife.INVALID, MountLife.INVALID)),
        # It is tried again whatever became of an attempt, for those who hold it.
        (MountLife.LOST, MountLife.RESTORING, (MountLife.MOUNTED, MountLife.LOST, MountLife.LOST)),
        (None, MountLife.OVERTAKEN, (MountLife.REVOKED, MountLife.REVOKED, MountLife.REVOKED)),
    ),
)

_UNMOUNTS: Final = call(
    MountTrigger.UNMOUNT_BEGUN,
    (MountTrigger.UNMOUNT_SUCCEEDED, MountTrigger.UNMOUNT_FAILED, MountTrigger.UNMOUNT_UNKNOWN),
    (
        (MountLife.MOUNTED, MountLife.UNMOUNTING, (MountLife.UNMOUNTED, MountLife.MOUNTED, MountLife.INVALID)),
        # What a mount left behind is taken away with an unmount, until one succeeds.
        (MountLife.INVALID, MountLife.UNDOING, (MountLife.UNMOUNTED, MountLife.INVALID, MountLife.INVALID)),
        (MountLife.REVOKED, MountLife.CLEARING, (MountLife.UNMOUNTED, MountLife.REVOKED, MountLife.REVOKED)),
    ),
)

_TAKEN_FROM: Final = {None: MountLife.REVOKED, "mounting": MountLife.OVERTAKEN, "unmounting": MountLife.CLEARING}
_TAKEN: Final = {
    (life, MountTrigger.REVOKED): _TAKEN_FROM[life.busy]
    for life in MountLife
    if life not in {MountLife.PENDING, MountLife.UNMOUNTED}
}
"""The guest has no say in this, whatever is under way there; and there is no way back."""

TRANSITIONS: Final = transitions_of(
    "mount",
    MountLife.PENDING,
    _RESTING | _MOUNTS | _UNMOUNTS | _TAKEN,
    exited=MountTrigger.VM_EXITED,
    gone=MountLife.UNMOUNTED,
    resting=(life for life in MountLife if life.busy is None),
)
