"""How far a host has followed its fleet, kept over restarts, so that it never follows an older state or another etcd.

What lives here: the protocol `Position` and what it remembers. What must not: the file that it is in
(`uvmshare.daemon.store`), or what is done about a step back (`follower`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Place", "Position"]


class Place(NamedTuple):
    """A cluster of etcd, and a revision of it."""

    cluster: int
    revision: int


class Position(Protocol):
    """Where a host had got to. Raises `DaemonError` when it cannot be read or written."""

    def read(self) -> Place | None:
        """Return where it had got to; None for a host that has followed none yet."""
        ...

    def write(self, cluster: int, revision: int) -> None:
        """Remember it. Written down before it returns."""
        ...

    def forget(self) -> None:
        """Forget it."""
        ...
