"""The life of a share: every state that it may be in, every transition between them, and what callers see of it.

What lives here: the enums and the one table, which the diagram in the documentation is drawn from. What must not:
anything that makes a transition happen (that is `uvmshare.share.engine`), or any other knowledge of a share.

A `Life` says what is true of a share and what is under way for it, in memory and in a journal alike. The four states of
`ShareState` are the view of it that callers have.
"""

from __future__ import annotations

import enum
from typing import Final, Literal

from uvmshare.lifecycle.transitions import call, show, transitions_of

__all__ = ["TRANSITIONS", "Life", "ShareState", "Trigger"]

Busy = Literal["adding", "removing"]


class ShareState(enum.Enum):
    """Where a share is in its life, as callers see it."""

    PENDING = "pending"
    """It has a name, and is not there yet; or the VM lost it, and it is being added again."""
    ADDED = "added"
    """The VM was seen to have it."""
    INVALID = "invalid"
    """It could not be added. While it is listed, the VM may have it all the same, and it is being taken out."""
    REMOVED = "removed"
    """It is gone. The name is never used again."""


class Life(enum.Enum):
    """What is true of a share, and what is under way for it. The values are what a journal says."""

    state: ShareState
    """What callers see."""
    busy: Busy | None
    """The call to the VM that is in flight for it."""

    PENDING = "pending"
    """It has a name. The VM was never asked for it."""
    ADDING = "adding"
    """The VM is being asked to add it, for the first time."""
    ADDED = "added"
    """The VM has it."""
    REMOVING = "removing"
    """The VM is being asked to remove it."""
    LOST = "lost"
    """The VM does not have it any more, and somebody holds it: it is to be added again, under its name."""
    RESTORING = "restoring"
    """It is being added again."""
    INVALID = "invalid"
    """It may be there though nobody was told so: the answer to an add was lost, or nobody wants it back."""
    UNDOING = "undoing"
    """That is being taken out."""
    DOUBTFUL = "doubtful"
    """It was there, and may be there yet: the answer to a removal was lost."""
    CLEARING = "clearing"
    """That is being removed again."""
    FAILED = "failed"
    """It could not be added, and is not there. The name is never used again."""
    REMOVED = "removed"
    """It is gone. The name is never used again."""
    NOT_OURS = "not ours"
    """The VM has it, and no Manager added it. It is left alone, or taken out; no Manager lists it before that."""

    @property
    def orphan(self) -> bool:
        """Whether the VM may or may not have it, and it goes: the answer to a call was lost."""
        return self in {Life.INVALID, Life.UNDOING, Life.DOUBTFUL, Life.CLEARING}


show(
    (
        (Life.PENDING, ShareState.PENDING, None),
        (Life.ADDING, ShareState.PENDING, "adding"),
        (Life.ADDED, ShareState.ADDED, None),
        (Life.REMOVING, ShareState.ADDED, "removing"),
        (Life.LOST, ShareState.PENDING, None),
        (Life.RESTORING, ShareState.PENDING, "adding"),
        (Life.INVALID, ShareState.INVALID, None),
        (Life.UNDOING, ShareState.INVALID, "removing"),
        (Life.DOUBTFUL, ShareState.ADDED, None),
        (Life.CLEARING, ShareState.ADDED, "removing"),
        (Life.FAILED, ShareState.INVALID, None),
        (Life.REMOVED, ShareState.REMOVED, None),
        (Life.NOT_OURS, ShareState.ADDED, None),
    )
)


class Trigger(enum.Enum):
    """What can happen to a share. The values are the labels of the diagram."""

    ADD_BEGUN = "add begun"
    ADD_SUCCEEDED = "add succeeded"
    ADD_FAILED = "add failed"
    ADD_UNKNOWN = "outcome of add unknown"
    REMOVE_BEGUN = "remove begun"
    REMOVE_SUCCEEDED = "remove succeeded"
    """Also when the VM answers that it has no such share, or is gone itself."""
    REMOVE_FAILED = "remove failed"
    REMOVE_UNKNOWN = "outcome of remove unknown"
    DROPPED = "dropped"
    """Nobody adds it."""
    LOST = "lost by the VM"
    """The VM was asked, and does not have it, though somebody holds it."""
    GIVEN_UP = "given up"
    """Nobody wants it back."""
    FOUND = "found on the VM"
    """Though it was never added."""
    VM_EXITED = "the VM exited"
    PROCESS_DIED = "its process died"
    """The one that waited for the answer to a call."""


_RESTING: Final = {
    (Life.PENDING, Trigger.DROPPED): Life.REMOVED,
    (Life.PENDING, Trigger.FOUND): Life.INVALID,
    (Life.ADDED, Trigger.LOST): Life.LOST,
    (Life.LOST, Trigger.GIVEN_UP): Life.INVALID,
    (Life.NOT_OURS, Trigger.REMOVE_BEGUN): Life.UNDOING,
}
"""What can happen to a share that nothing is under way for."""

_ADDS: Final = call(
    Trigger.ADD_BEGUN,
    (Trigger.ADD_SUCCEEDED, Trigger.ADD_FAILED, Trigger.ADD_UNKNOWN, Trigger.PROCESS_DIED),
    (
        (Life.PENDING, Life.ADDING, (Life.ADDED, Life.FAILED, Life.INVALID, Life.INVALID)),
        # It is tried again whatever became of an attempt, for those who hold it.
        (Life.LOST, Life.RESTORING, (Life.ADDED, Life.LOST, Life.LOST, Life.LOST)),
    ),
)

_REMOVES: Final = call(
    Trigger.REMOVE_BEGUN,
    (Trigger.REMOVE_SUCCEEDED, Trigger.REMOVE_FAILED, Trigger.REMOVE_UNKNOWN, Trigger.PROCESS_DIED),
    (
        (Life.ADDED, Life.REMOVING, (Life.REMOVED, Life.ADDED, Life.DOUBTFUL, Life.DOUBTFUL)),
        # What may be there is removed until a removal succeeds.
        (Life.INVALID, Life.UNDOING, (Life.REMOVED, Life.INVALID, Life.INVALID, Life.INVALID)),
        (Life.DOUBTFUL, Life.CLEARING, (Life.REMOVED, Life.DOUBTFUL, Life.DOUBTFUL, Life.DOUBTFUL)),
    ),
)

TRANSITIONS: Final = transitions_of(
    "share",
    Life.PENDING,
    _RESTING | _ADDS | _REMOVES,
    exited=Trigger.VM_EXITED,
    gone=Life.REMOVED,
    resting=(life for life in Life if life.busy is None),
)
