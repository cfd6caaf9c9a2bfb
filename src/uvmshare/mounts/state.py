"""The states of a mount in the guest and every transition between them.

What lives here: the two enums and the one table, which the diagram in the documentation is drawn from. What must not:
anything that makes a transition happen (that is `uvmshare.mounts.manager`), or any other knowledge of a mount.
"""

from __future__ import annotations

import enum
from types import MappingProxyType

from uvmshare.share.transitions import Transitions

__all__ = ["TRANSITIONS", "MountState", "Trigger"]


class MountState(enum.Enum):
    """Where a mount is in its life."""

    RESERVED = "reserved"
    """Its path is taken; it is being mounted, for the first time or again after the guest lost it."""
    MOUNTED = "mounted"
    """The guest's agent said that it has it."""
    INVALID = "invalid"
    """It, or the share behind it, may be there though it should not. It is being taken away; its path is taken."""
    REVOKED = "revoked"
    """Its share was taken away, or is being, without the guest, which may still have it, dead. Its path is taken."""
    UNMOUNTED = "unmounted"
    """It is gone, and its path is free."""


class Trigger(enum.Enum):
    """What can happen to a mount. The values are the labels of the diagram."""

    MOUNT_SUCCEEDED = "mount succeeded"
    MOUNT_FAILED = "mount failed"
    MOUNT_UNKNOWN = "outcome of mount unknown"
    REMOUNT_FAILED = "mounting again failed"
    """Of a mount that the guest lost while somebody held it: it is tried again."""
    LOST = "lost by the guest"
    """The guest was started again, or somebody in it unmounted it."""
    GIVEN_UP = "given up"
    """Nobody holds it any more before it was mounted again."""
    UNMOUNT_SUCCEEDED = "unmount succeeded"
    """Also when the agent answers that there is no such mount, or the VM is gone itself."""
    UNMOUNT_FAILED = "unmount failed"
    UNMOUNT_UNKNOWN = "outcome of unmount unknown"
    """Or it is unmounted, but the share behind it could not be taken out yet."""
    REVOKED = "share taken away"
    """Nobody holds it, and the guest did not unmount it in time: the host takes its share out all the same."""


TRANSITIONS = Transitions(
    thing="mount",
    initial=MountState.RESERVED,
    table=MappingProxyType(
        {
            (MountState.RESERVED, Trigger.MOUNT_SUCCEEDED): MountState.MOUNTED,
            (MountState.RESERVED, Trigger.MOUNT_FAILED): MountState.INVALID,
            (MountState.RESERVED, Trigger.MOUNT_UNKNOWN): MountState.INVALID,
            (MountState.RESERVED, Trigger.REMOUNT_FAILED): MountState.RESERVED,
            (MountState.RESERVED, Trigger.GIVEN_UP): MountState.INVALID,
            (MountState.MOUNTED, Trigger.LOST): MountState.RESERVED,
            (MountState.MOUNTED, Trigger.UNMOUNT_SUCCEEDED): MountState.UNMOUNTED,
            (MountState.MOUNTED, Trigger.UNMOUNT_FAILED): MountState.MOUNTED,
            (MountState.MOUNTED, Trigger.UNMOUNT_UNKNOWN): MountState.INVALID,
            # What a mount left behind is taken away with an unmount, until one succeeds.
            (MountState.INVALID, Trigger.UNMOUNT_SUCCEEDED): MountState.UNMOUNTED,
            (MountState.INVALID, Trigger.UNMOUNT_FAILED): MountState.INVALID,
            (MountState.INVALID, Trigger.UNMOUNT_UNKNOWN): MountState.INVALID,
            # The guest has no say in this, whatever is under way there; and there is no way back.
            (MountState.RESERVED, Trigger.REVOKED): MountState.REVOKED,
            (MountState.MOUNTED, Trigger.REVOKED): MountState.REVOKED,
            (MountState.INVALID, Trigger.REVOKED): MountState.REVOKED,
            (MountState.REVOKED, Trigger.REVOKED): MountState.REVOKED,
            (MountState.REVOKED, Trigger.MOUNT_SUCCEEDED): MountState.REVOKED,
            (MountState.REVOKED, Trigger.MOUNT_FAILED): MountState.REVOKED,
            (MountState.REVOKED, Trigger.MOUNT_UNKNOWN): MountState.REVOKED,
            (MountState.REVOKED, Trigger.UNMOUNT_SUCCEEDED): MountState.UNMOUNTED,
            (MountState.REVOKED, Trigger.UNMOUNT_FAILED): MountState.REVOKED,
            (MountState.REVOKED, Trigger.UNMOUNT_UNKNOWN): MountState.REVOKED,
        }
    ),
)
