"""What the page gets: the daemon's documents of all there is to see, put together as one, with the rates beside them.

What lives here: the document and its text, which nobody can mistake for another. What must not: asking (`watcher`), or
how it looks (`page.js`).

Names, paths and reasons are others'. The page puts them in as text and never as HTML; here they are made printable, so
that none of them turns the direction of a line or looks like another.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvmshare.dashboard.rates import Counts

__all__ = [
    "MOST_ROWS",
    "MOST_VMS",
    "DaemonView",
    "Part",
    "Rate",
    "Series",
    "Totals",
    "View",
    "VmView",
    "rate_of",
    "series_of",
    "shown",
]

MOST_VMS: Final = 100
MOST_ROWS: Final = 1000
"""Shares, and as many mounts, on the page. It says how many are left out; totals count all."""

_LONGEST: Final = 1000
"""Characters of a name, a path or a reason."""
_MOST_NAMES: Final = 50
"""Of a list of names, such as an allow-list."""


class Series(msgspec.Struct, frozen=True):
    """Rates, one for each tick up to now, oldest first; null where a tick is not known."""

    operations: list[float | None]
    errors: list[float | None]


class Rate(msgspec.Struct, frozen=True):
    """What is done in a second now."""

    operations: float
    errors: float
    received: float
    sent: float


class Part(msgspec.Struct, frozen=True):
    """One answer of the daemon, and how old it is."""

    items: list[dict[str, Any]]
    total: int
    """How many there are; `items` may be fewer."""
    age: float | None
    """Seconds since the daemon said so; null when it has not said anything yet."""
    error: str | None
    """Why the last question was not answered; null when it was."""


class VmView(msgspec.Struct, frozen=True):
    """A VM."""

    vm: dict[str, Any]
    """The daemon's document."""
    shares: Part
    """Each with `rate`, `series` and `counted`, its document of counters, where these are known."""
    mounts: Part
    counters_age: float | None
    counters_error: str | None
    rate: Rate | None
    series: Series


class DaemonView(msgspec.Struct, frozen=True):
    """The daemon, and whether it is there."""

    reached: bool
    since: float
    """Seconds since the epoch: since when it answers, or the time of its last answer."""
    error: str | None
    """Why it is not reached."""
    path: str
    """Of its socket."""
    info: dict[str, Any] | None
    """Its document, as it last was."""


class Totals(msgspec.Struct, frozen=True):
    """Sums over everything that there is to see."""

    vms: int
    shares: int
    mounts: int
    leases: int
    rate: Rate | None
    series: Series


class View(msgspec.Struct, frozen=True):
    """Everything."""

    now: float
    """Seconds since the epoch, by this host's clock: times are counted from it, not from the browser's clock."""
    host: str
    user: str
    """Whose page it is."""
    interval: float
    """Seconds between two questions about the same VM."""
    daemon: DaemonView
    age: float | None
    """Seconds since the daemon listed the VMs."""
    vms: list[VmView]
    totals: Totals


def shown(value: Any) -> Any:
    """Return a document's value with all text in it printable, and none of it without end."""
    if isinstance(value, str):
        # Most of it is plain, and a thousand shares have a lot of it.
        return (
            value if len(value) <= _LONGEST and value.isascii() and value.isprintable() else printable(value, _LONGEST)
        )
    if isinstance(value, dict):
        return {shown(key): shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        found = [shown(each) for each in value[:_MOST_NAMES]]
        if len(value) > _MOST_NAMES and isinstance(value[0], str):
            return [*found, f"and {len(value) - _MOST_NAMES} more"]
        return [*found, *map(shown, value[_MOST_NAMES:])]
    return value


def rate_of(counts: Counts | None) -> Rate | None:
    """Return a rate as the page gets it."""
    return None if counts is None else Rate(*(round(each, 1) for each in counts))


def series_of(series: Sequence[Counts | None]) -> Series:
    """Return rates over time as the page gets them."""
    return Series(
        [None if each is None else round(each.operations, 1) for each in series],
        [None if each is None else round(each.errors, 1) for each in series],
    )
