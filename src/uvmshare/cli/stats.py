"""`uvmshare stats`: what guests have done with their shares.

What lives here: the table. What must not: counting; the live one (`top`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from uvmshare.cli.listing import listing_options
from uvmshare.cli.moments import moment
from uvmshare.cli.remote import connected, host_option, of_vms

if TYPE_CHECKING:
    from uvmshare.cli.listing import ListForm

__all__ = ["stats"]

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")


def size(count: float) -> str:
    """Return bytes for people."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def micros(seconds: float | None) -> str:
    """Return a latency for people."""
    return "-" if seconds is None else f"{seconds * 1e6:.0f} µs"


@click.command()
@click.argument("vms", metavar="[VM]...", nargs=-1)
@host_option
@listing_options
def stats(vms: tuple[str, ...], host: str | None, *, listing: ListForm) -> None:
    """Show what guests have done with their shares, since they mounted them: of some VMs, or of all that are yours.

    EXPECTED counts errors that programs meet in normal use, such as that a name is not there (ENOENT, ENODATA,
    EOPNOTSUPP, EEXIST, ENOTEMPTY). ERRORS counts all others. AGENT says since when the agent in the guest is out of
    reach, for shares that the agent has mounted. COMPILED is the part of the operations that the compiled hot path
    served (docs/performance.md says how to install it). EVENTS counts the host's changes that the agent was told, to
    make them events in the guest ("-": no directory is watched); --json has more numbers of that.

    \b
    Examples:
      uvmshare stats
      uvmshare stats build --json
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.daemon.documents import Stats  # noqa: PLC0415  --help need not load it

    writer = listing.of(Stats, "share", empty="no shares: uvmshare share add")
    with connected(host) as client:
        found = of_vms(client, vms, client.vms.stats)
    writer.write(
        found,
        (
            "vm",
            "share",
            "path",
            "mounts",
            "operations",
            "compiled",
            "received",
            "sent",
            "latency",
            "expected",
            "errors",
            "events",
            "agent",
        ),
        lambda each: (
            *(each.vm, each.share, each.path, each.connections, each.operations),
            f"{100 * each.compiled // each.operations} %" if each.compiled and each.operations else "no",
            *(size(each.received), size(each.sent), micros(each.latency), each.expected, each.errors),
            each.events.told if each.events.told or each.events.watched else "",
            "" if each.unreachable_since is None else f"unreachable since {moment(each.unreachable_since)}",
        ),
    )
