"""The life of a share: every state that it may be in, every transition between them, and what callers see of it.

What lives here: the enums and the one table, which the diagram in the documentation is drawn from. What must not:
anything that makes a transition happen (that is `uvmshare.share.engine`), or any other knowledge of a share.

A `ShareLife` says what is true of a share and what is under way for it, in memory and in a journal alike. The four
states of `ShareState` are the view of it that callers have.
"""

from __future__ import annotations

import enum
from typing import Final, Literal

from uvmshare.lifecycle.transitions import call, show, transitions_of

__all__ = ["TRANSITIONS", "ShareLife", "ShareState", "ShareTrigger"]

Busy = Literal["adding", "removing"]


class ShareState(enum.Enum):
    """Where a share is in its life, as callers see it."""

    PENDING = "pending"
    """It has a name, and is not there yet; or the VM lost it, and it is being added again."""
    ADDED = "added"
    """The VM was seen to have it."""
    INVALID = "invalid"
    """It could not be added. While it is listed, the VM may have it all the same, and it is being removed."""
    REMOVED = "removed"
    """It is gone. The name is never used again."""


class ShareLife(enum.Enum):
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
    """That is being removed."""
    DOUBTFUL = "doubtful"
    """It was there, and may be there yet: the answer to a removal was lost."""
    CLEARING = "clearing"
    """That is being removed again."""
    FAILED = "failed"
    """It could not be added, and is not there. The name is never used again."""
    REMOVED = "removed"
    """It is gone. The name is never used again."""
    NOT_OURS = "not ours"
    """The VM has it, and no Manager added it. It is left alone, or removed; no Manager lists it before that."""

    @property
    def orphan(self) -> bool:
        """Whether the VM may or may not have it, and it goes: the answer to a call was lost."""
        return self in {ShareLife.INVALID, ShareLife.UNDOING, ShareLife.DOUBTFUL, ShareLife.CLEARING}


show(
    (
        (ShareLife.PENDING, ShareState.PENDING, None),
        (ShareLife.ADDING, ShareState.PENDING, "adding"),
        (ShareLife.ADDED, ShareState.ADDED, None),
        (ShareLife.REMOVING, ShareState.ADDED, "removing"),
        (ShareLife.LOST, ShareState.PENDING, None),
        (ShareLife.RESTORING, ShareState.PENDING, "adding"),
        (ShareLife.INVALID, ShareState.INVALID, None),
        (ShareLife.UNDOING, ShareState.INVALID, "removing"),
        (ShareLife.DOUBTFUL, ShareState.ADDED, None),
        (ShareLife.CLEARING, ShareState.ADDED, "removing"),
        (ShareLife.FAILED, ShareState.INVALID, None),
        (ShareLife.REMOVED, ShareState.REMOVED, None),
        (ShareLife.NOT_OURS, ShareState.ADDED, None),
    )
)


class ShareTrigger(enum.Enum):
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


_Life, _On = ShareLife, ShareTrigger
"""Short, so that a row of the table stays a line."""

_RESTING: Final = {
    (_Life.PENDING, _On.DROPPED): _Life.REMOVED,
    (_Life.PENDING, _On.FOUND): _Life.INVALID,
    (_Life.ADDED, _On.LOST): _Life.LOST,
    (_Life.LOST, _On.GIVEN_UP): _Life.INVALID,
    (_Life.NOT_OURS, _On.REMOVE_BEGUN): _Life.UNDOING,
}
"""What can happen to a share that nothing is under way for."""

_ADDS: Final = call(
    _On.ADD_BEGUN,
    (_On.ADD_SUCCEEDED, _On.ADD_FAILED, _On.ADD_UNKNOWN, _On.PROCESS_DIED),
    (
        (_Life.PENDING, _Life.ADDING, (_Life.ADDED, _Life.FAILED, _Life.INVALID, _Life.INVALID)),
        # It is tried again whatever became of an attempt, for those who hold it.
        (_Life.LOST, _Life.RESTORING, (_Life.ADDED, _Life.LOST, _Life.LOST, _Life.LOST)),
    ),
)

_REMOVES: Final = call(
    _On.REMOVE_BEGUN,
    (_On.REMOVE_SUCCEEDED, _On.REMOVE_FAILED, _On.REMOVE_UNKNOWN, _On.PROCESS_DIED),
    (
        (_Life.ADDED, _Life.REMOVING, (_Life.REMOVED, _Life.ADDED, _Life.DOUBTFUL, _Life.DOUBTFUL)),
        # What may be there is removed until a removal succeeds.
        (_Life.INVALID, _Life.UNDOING, (_Life.REMOVED, _Life.INVALID, _Life.INVALID, _Life.INVALID)),
        (_Life.DOUBTFUL, _Life.CLEARING, (_Life.REMOVED, _Life.DOUBTFUL, _Life.DOUBTFUL, _Life.DOUBTFUL)),
    ),
)

TRANSITIONS: Final = transitions_of(
    "share",
    _Life.PENDING,
    _RESTING | _ADDS | _REMOVES,
    exited=_On.VM_EXITED,
    gone=_Life.REMOVED,
    resting=(life for life in _Life if life.busy is None),
)
