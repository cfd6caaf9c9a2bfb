"""What clients of a store wrote, saw and held, as they noted it down; and the checks over it.

What lives here: records, and functions that find what cannot have been. What must not: a client, or a clock of its own.
Every value is written once only, so a value stands for its write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from uvmshare.etcd.protocol import Event

__all__ = ["Kept", "StoreHistory", "Write"]


@dataclass
class Write:
    """One write: when it was asked for and answered, in one clock, and what was answered."""

    key: str
    value: bytes
    began: float
    ended: float
    outcome: Literal["made", "refused", "unknown"]
    revision: int = 0


@dataclass
class Kept:
    """A lease that somebody renewed."""

    lease: int
    seconds: int
    renewed: list[float] = field(default_factory=list)
    """When each renewal that succeeded was asked for."""
    lost: float | None = None
    """When it was found not to be there."""


@dataclass
class StoreHistory:
    """All that was noted down."""

    writes: list[Write] = field(default_factory=list)
    seen: list[list[tuple[int, str, bytes]]] = field(default_factory=list)
    """What each watcher was told: revision, key and value, in the order in which they were."""
    first: list[int] = field(default_factory=list)
    """The revision from which each watcher was to be told."""
    kept: list[Kept] = field(default_factory=list)

    def problems(self, log: list[Event]) -> list[str]:
        """Return what cannot have been, given all events that the store has had, in order."""
        return [*self._lost(log), *self._backwards(), *self._skipped(log), *self._ended()]

    def _lost(self, log: list[Event]) -> list[str]:
        at = {event.at.value: (event.at.mod_revision, event.at.key) for event in log}
        found = []
        for write in self.writes:
            there = at.get(write.value)
            if write.outcome == "made" and there != (write.revision, write.key):
                found.append(f"{write} was acknowledged, and is {there}")
            if write.outcome == "refused" and there is not None:
                found.append(f"{write} was certainly not made, and is {there}")
        return found

    def _backwards(self) -> list[str]:
        """Look at real time: what was answered before another was asked for has the smaller revision."""
        found = []
        made = sorted((write for write in self.writes if write.outcome == "made"), key=lambda write: write.began)
        ended = sorted(made, key=lambda write: write.ended)
        highest, position = Write("", b"", 0, 0, "made"), 0
        for write in made:
            while position < len(ended) and ended[position].ended < write.began:
                highest = max(highest, ended[position], key=lambda each: each.revision)
                position += 1
            if write.revision <= highest.revision:
                found.append(f"{write} came after {highest}, and is before it")
        return found

    def _skipped(self, log: list[Event]) -> list[str]:
        found = []
        for number, (first, seen) in enumerate(zip(self.first, self.seen, strict=True)):
            wanted = [
                (each.at.mod_revision, each.at.key, each.at.value) for each in log if each.at.mod_revision >= first
            ]
            if seen != wanted[: len(seen)]:
                at = next(index for index, pair in enumerate(zip(seen, wanted, strict=False)) if pair[0] != pair[1])
                found.append(f"watcher {number} was told {seen[at]} where {wanted[at]} was")
            elif len(seen) < len(wanted):
                found.append(f"watcher {number} was not told {wanted[len(seen)]} and what followed")
        return found

    def _ended(self) -> list[str]:
        return [
            f"lease {kept.lease:x} of {kept.seconds} s was gone {kept.lost - kept.renewed[-1]:.1f} s after a renewal"
            for kept in self.kept
            if kept.lost is not None and kept.lost < kept.renewed[-1] + kept.seconds
        ]
