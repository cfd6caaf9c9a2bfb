"""When each host served a VM, by what was noted down while it did; and whether two ever did at the same time."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Noted", "Served", "overlaps", "served"]


class Noted(NamedTuple):
    """What happened to a VM on one host, at a moment of the test's clock."""

    at: float
    host: str
    what: str
    """"told": it may be served until then; "removed": nothing serves it there any more."""
    until: float = 0.0


class Served(NamedTuple):
    """A host served the VM from one moment to another."""

    begin: float
    end: float
    host: str
    by_itself: bool
    """Whether its time was over, and nobody removed it."""


def served(history: list[Noted]) -> list[Served]:
    """Return when each host served, in order of the beginnings."""
    found: list[Served] = []
    now: dict[str, tuple[float, float]] = {}
    for at, host, what, until in [*history, *(Noted(float("inf"), host, "end") for host in {n.host for n in history})]:
        begin, end = now.pop(host, (at, at))
        if end <= at:  # it was over by itself
            if end > begin:
                found.append(Served(begin, end, host, by_itself=True))
            begin = end = at
        if what == "told":
            now[host] = begin, until
        elif end > begin:
            found.append(Served(begin, at, host, by_itself=False))
    return sorted(found)


def overlaps(all_served: list[Served]) -> list[tuple[Served, Served]]:
    """Return each two of different hosts that served at the same time."""
    return [
        (one, other)
        for number, one in enumerate(all_served)
        for other in all_served[number + 1 :]
        if one.host != other.host and one.begin < other.end and other.begin < one.end
    ]
