"""The states of a share and every transition between them.

What lives here: the two enums and the one table, which the diagram in the documentation is drawn from. What must not:
anything that makes a transition happen (that is `uvmshare.share.manager`), or any other knowledge of a share.
"""

from __future__ import annotations

import enum
from types import MappingProxyType

from uvmshare.share.transitions import Transitions

__all__ = ["TRANSITIONS", "ShareState", "Trigger"]


class ShareState(enum.Enum):
    """Where a share is in its life."""

    PENDING = "pending"
    """It has a name; no call to the VM has ended yet."""
    ADDED = "added"
    """The VM was seen to have it."""
    INVALID = "invalid"
    """It could not be added. While it is listed, the VM may have it all the same, and it is being taken out."""
    REMOVED = "removed"
    """It is gone. The name is never used again."""


class Trigger(enum.Enum):
    """What can happen to a share. The values are the labels of the diagram."""

    ADD_SUCCEEDED = "add succeeded"
    ADD_FAILED = "add failed"
    ADD_UNKNOWN = "outcome of add unknown"
    DROPPED = "dropped before any add"
    REMOVE_SUCCEEDED = "remove succeeded"
    """Also when the VM answers that it has no such share, or is gone itself."""
    REMOVE_FAILED = "remove failed"
    REMOVE_UNKNOWN = "outcome of remove unknown"
    LOST = "lost by the VM"
    """The VM was asked, and does not have it, though somebody holds it: it is added again under its name."""
    RESTORE_FAILED = "add again failed"
    """Adding again what was lost failed, or its outcome is unknown: it is tried again, for those who hold it."""


TRANSITIONS = Transitions(
    thing="share",
    initial=ShareState.PENDING,
    table=MappingProxyType(
        {
            (ShareState.PENDING, Trigger.ADD_SUCCEEDED): ShareState.ADDED,
            (ShareState.PENDING, Trigger.ADD_FAILED): ShareState.INVALID,
            (ShareState.PENDING, Trigger.ADD_UNKNOWN): ShareState.INVALID,
            (ShareState.PENDING, Trigger.DROPPED): ShareState.REMOVED,
            (ShareState.ADDED, Trigger.REMOVE_SUCCEEDED): ShareState.REMOVED,
            (ShareState.ADDED, Trigger.REMOVE_FAILED): ShareState.ADDED,
            (ShareState.ADDED, Trigger.REMOVE_UNKNOWN): ShareState.ADDED,
            (ShareState.ADDED, Trigger.LOST): ShareState.PENDING,
            (ShareState.PENDING, Trigger.RESTORE_FAILED): ShareState.PENDING,
            # An add whose outcome is unknown is undone with a remove, until one succeeds.
            (ShareState.INVALID, Trigger.REMOVE_SUCCEEDED): ShareState.REMOVED,
            (ShareState.INVALID, Trigger.REMOVE_FAILED): ShareState.INVALID,
            (ShareState.INVALID, Trigger.REMOVE_UNKNOWN): ShareState.INVALID,
        }
    ),
)
