"""How many of something each user may have, so that nobody uses up what is for all.

What lives here: the limits, and refusing what goes beyond one. What must not: what there is (`service`), which is
counted anew each time rather than kept twice.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final

from uvmshare.errors import LimitReached

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from uvmshare.daemon.identity import Identity

__all__ = ["USER_OPERATIONS", "USER_SHARES", "USER_VMS", "Quotas"]

USER_VMS: Final = 64
"""Each is a process, a run directory and a log on a file system that all users share."""
USER_SHARES: Final = 1024
"""Shares and mounts that are held: rows in the daemon's files and in the ledgers of its run directory."""
USER_OPERATIONS: Final = 1000
"""Under way at once; they outlive the connections on which they were asked for."""


class Quotas:
    """What each user may have at once. `unlimited` are the uids that may have any number."""

    def __init__(self, *, vms: int, shares: int, unlimited: Collection[int]) -> None:
        self._vms = vms
        self._shares = shares
        self._unlimited = frozenset(unlimited)
        self._being_added: Counter[int] = Counter()

    def require_room_for_vm(self, who: Identity, there: int) -> None:
        """Refuse one who has so many VMs that he may have no more. Raises `LimitReached`."""
        remedy = "remove one that is not needed (uvmshare vm rm), or have root raise it (uvmshare daemon --user-vms)"
        self._require_room(who, there, self._vms, "VM(s)", remedy)

    def require_room_for_operation(self, who: Identity, there: int) -> None:
        """Refuse one who has so many operations under way that he may have no more. Raises `LimitReached`."""
        remedy = "wait until some have ended (GET /v1/operations)"
        self._require_room(who, there, USER_OPERATIONS, "operation(s) under way", remedy)

    @contextlib.contextmanager
    def adding(self, who: Identity, there: Callable[[int], int]) -> Iterator[None]:
        """Keep a place among what `who` holds for as long as one more is being added; `there` counts the others.

        Raises `LimitReached`.
        """
        remedy = "release what is not needed (uvmshare share rm), or have root raise it (uvmshare daemon --user-shares)"
        taken = self._being_added[who.uid] + there(who.uid)
        self._require_room(who, taken, self._shares, "share(s) and mounts held", remedy)
        self._being_added[who.uid] += 1
        try:
            yield
        finally:
            self._being_added[who.uid] -= 1

    def _require_room(self, who: Identity, there: int, most: int, what: str, remedy: str) -> None:
        if there >= most and who.uid not in self._unlimited:
            msg = f"uid {who.uid} has {there} {what}, and a user may have {most}: {remedy}"
            raise LimitReached(msg)
