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
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from uvmshare.daemon.identity import Identity

__all__ = ["USER_BYTES", "USER_OPERATIONS", "USER_SHARES", "USER_VMS", "Quotas", "weight"]

USER_VMS: Final = 64
"""Each is a process, a run directory and a log on a file system that all users share."""
USER_SHARES: Final = 1024
"""Shares and mounts that are held, or that a VM leaves behind because it does not say whether it has them: rows in the
daemon's files and in the ledgers of its run directory."""
USER_BYTES: Final = 4 << 20
"""Of paths and names in them, `weight` says how much of each: they are in the daemon's memory several times over."""
USER_OPERATIONS: Final = 1000
"""Under way at once; they outlive the connections on which they were asked for."""


_NAME_OVERHEAD: Final = 64
"""Bytes of a short string in Python, beside its text."""


def weight(*texts: str, names: Iterable[str] = ()) -> int:
    """Return what paths and allowed names count for."""
    return sum(map(len, texts)) + sum(len(name) + _NAME_OVERHEAD for name in names)


class Quotas:
    """What each user may have at once. `unlimited` are the uids that may have any number."""

    def __init__(self, *, vms: int, shares: int, unlimited: Collection[int]) -> None:
        self._vms = vms
        self._shares = shares
        self._unlimited = frozenset(unlimited)
        self._being_added: Counter[int] = Counter()
        self._weight_being_added: Counter[int] = Counter()

    def require_room_for_vm(self, who: Identity, there: int) -> None:
        """Refuse a user who has as many VMs as they may have. Raises `LimitReached`."""
        remedy = "remove one that is not needed (uvmshare vm rm), or have root raise it (uvmshare daemon --user-vms)"
        self._require_room(who, there, self._vms, "VM(s)", remedy)

    def require_room_for_operation(self, who: Identity, there: Sequence[int]) -> None:
        """Refuse a user who has as many operations under way as they may have, or too large ones.

        `there` are the bytes of each of their documents. Raises `LimitReached`.
        """
        remedy = "wait until some have ended (GET /v1/operations)"
        self._require_room(who, len(there), USER_OPERATIONS, "operation(s) under way", remedy)
        self._require_room(who, sum(there), USER_BYTES, "bytes of documents of operations under way", remedy)

    @contextlib.contextmanager
    def adding(self, who: Identity, there: Callable[[int], Iterable[int]], weight: int) -> Iterator[None]:
        """Keep a place among what `who` holds for as long as one more is being added, of that `weight`.

        `there` gives the weight of each of the others. Raises `LimitReached`.
        """
        if who.uid in self._unlimited:
            yield
            return
        others = list(there(who.uid))
        remedy = (
            "release what is not needed (uvmshare share rm), remove a VM that leaves released ones behind (uvmshare vm "
            "rm), or have root raise it (uvmshare daemon --user-shares)"
        )
        taken = self._being_added[who.uid] + len(others)
        self._require_room(who, taken, self._shares, "share(s) and mounts held or left behind", remedy)
        size = self._weight_being_added[who.uid] + sum(others) + weight
        if size > USER_BYTES:
            msg = (
                f"uid {who.uid} would hold {size} bytes of paths and allowed names, with {_NAME_OVERHEAD} more "
                f"for each name, and a user may hold {USER_BYTES}: release what is not needed (uvmshare share rm), or "
                "share directories in place of many names"
            )
            raise LimitReached(msg)
        self._being_added[who.uid] += 1
        self._weight_being_added[who.uid] += weight
        try:
            yield
        finally:
            self._being_added[who.uid] -= 1
            self._weight_being_added[who.uid] -= weight

    def _require_room(self, who: Identity, there: int, most: int, what: str, remedy: str) -> None:
        if there >= most and who.uid not in self._unlimited:
            msg = f"uid {who.uid} has {there} {what}, and a user may have {most}: {remedy}"
            raise LimitReached(msg)
