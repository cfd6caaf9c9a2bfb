"""Which kinds of event there are: each name stands here, with what it tells, and nowhere else in the daemon.

What lives here: `EventKind`. The table in `docs/daemon.md` has the same rows, which a test compares. What must not:
when one is told.
"""

from __future__ import annotations

import enum
from typing import Self

__all__ = ["EventKind"]


class EventKind(enum.StrEnum):
    """A kind of event, and what it tells.

    An event is about a VM. Its details are named in parentheses; a share or an owner that it is about is said, too.
    """

    meaning: str
    """What happened, as the documentation says it."""

    def __new__(cls, value: str, meaning: str) -> Self:
        """Make a member of its name and its meaning."""
        kind = str.__new__(cls, value)
        kind._value_ = value
        kind.meaning = meaning
        return kind

    VM_ADDED = "vm.added", "A VM was added (`addresses`)."
    VM_REMOVED = "vm.removed", "A VM was removed (`left`: what could not be removed)."
    VM_FOUND = "vm.found", "After a restart of the daemon, a VM of an earlier one was found (`state`, `addresses`)."
    VM_FAILED = "vm.failed", "A VM of an earlier daemon was not found yet, and is looked for again (`reason`)."
    VM_GONE = "vm.gone", "Its file server ended, and every share with it (`reason`)."
    VM_RESTARTED = "vm.restarted", "Its supervisor was started anew (`reason`: the shares that it lost and gets again)."
    VM_UNSETTLED = "vm.unsettled", "It does not tell which shares it has. It is asked again (`reason`)."
    VM_LEFT_BEHIND = "vm.left_behind", "A removal left a mount process behind that waits in the kernel (`reason`)."
    VM_UNLIMITED = "vm.unlimited", "The limits of its control group could not be set (`reason`)."
    VM_UNENDED = "vm.unended", "Not all processes of its control group could be ended (`reason`)."
    SHARE_HELD = "share.held", "An owner holds a share (`path`)."
    SHARE_RELEASED = "share.released", "They released it (`path`)."
    SHARE_REVOKED = "share.revoked", "It was taken from them (`path`)."
    SHARE_REMOVED = "share.removed", "Nobody held it any more, and the VM does not have it (`path`)."
    SHARE_OVERDUE = "share.overdue", "A share that nobody wants could not be removed yet (`reason`)."
    SHARE_DIRECTORY = "share.directory", "Its path leads to another directory now, or to this one again (`directory`)."
    MOUNT_HELD = "mount.held", "An owner holds a mount (`path`, `guest_path`)."
    MOUNT_RELEASED = "mount.released", "They released it (`guest`: what the guest may still have)."
    MOUNT_REVOKED = "mount.revoked", "It was taken from them (`guest`: what the guest may still have)."
    MOUNT_LOST = "mount.lost", "The guest has lost a mount that somebody holds. It is mounted again (`untold`)."
    MOUNT_REMOUNTED = "mount.remounted", "The guest has the mount again (`untold`)."
    MOUNT_RESTORED = "mount.restored", "After a restart of the daemon, a mount of an earlier one is held again."
    MOUNT_GIVEN_UP = "mount.given_up", "A mount of an earlier daemon cannot be had again, and is released."
    LEASE_ENDED = "lease.ended", "A lease was over, and what it was on was released."
    LEASE_OVERDUE = (
        "lease.overdue",
        "A lease is over, but what it is on could not be released yet. That is tried again (`reason`).",
    )
    AGENT_REACHED = "agent.reached", "The agent is reached, for the first time or again (`agent`, `untold`)."
    AGENT_LOST = "agent.lost", "Its connection ended, or it said nothing for ten seconds (`agent`, `reason`, `untold`)."
