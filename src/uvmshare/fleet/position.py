"""How far a host has followed its fleet, kept over restarts, so that it never follows an older state or another etcd.

What lives here: the protocol `Position`, which the daemon's store is. What must not: the file that it is in
(`uvmshare.daemon.store`), or what is done about a step back (`follower`).
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Position"]


class Position(Protocol):
    """Where a host had got to. Raises `DaemonError` when it cannot be read or written."""

    def fleet_place(self) -> tuple[int, int] | None:
        """Return the cluster of etcd and its revision that were followed last; None for a host that has none yet."""
        ...

    def put_fleet_place(self, cluster: int, revision: int) -> None:
        """Remember it. Written down before it returns."""
        ...

    def drop_fleet_place(self) -> None:
        """Forget it."""
        ...
