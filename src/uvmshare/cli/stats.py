"""`uvmshare stats` and `uvmshare top`: what guests do with their shares.

What lives here: the table, and the rates of the live one. What must not: counting.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click
from rich.live import Live

from uvmshare.cli.output import print_json
from uvmshare.cli.remote import connected, host_option, json_option, of_vms
from uvmshare.cli.tables import SafeConsole, moment, print_table, table_of

if TYPE_CHECKING:
    from rich.table import Table

    from uvmshare.daemon.documents import Stats

__all__ = ["stats", "top"]

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
@json_option
def stats(vms: tuple[str, ...], host: str | None, *, as_json: bool) -> None:
    """Show what guests have done with their shares, since they mounted them: of some VMs, or of all that are yours.

    EXPECTED are operations that were answered with an error which programs meet in ordinary life, such as that a
    name is not there (ENOENT, ENODATA, EOPNOTSUPP, EEXIST, ENOTEMPTY); ERRORS are all others. AGENT says since when
    the agent in the guest is out of reach, for what it has mounted. COMPILED is
    how much of the operations the compiled hot path served, which the extra "speed" installs.

    \b
    Examples:
      uvmshare stats
      uvmshare stats build --json
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host) as client:
        found = of_vms(client, vms, client.stats)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each.vm,
            each.share,
            each.path,
            each.connections,
            each.operations,
            f"{100 * each.compiled // each.operations} %" if each.compiled and each.operations else "no",
            size(each.received),
            size(each.sent),
            micros(each.latency),
            each.expected,
            each.errors,
            "" if each.unreachable_since is None else f"unreachable since {moment(each.unreachable_since)}",
        )
        for each in found
    ]
    columns = (
        *("vm", "share", "path", "mounts", "operations", "compiled", "received", "sent", "latency"),
        *("expected", "errors", "agent"),
    )
    print_table(columns, rows, empty="no shares: uvmshare share add")


@click.command()
@click.argument("vms", metavar="[VM]...", nargs=-1)
@click.option("--interval", type=click.FloatRange(0.1), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--times", type=click.IntRange(1), help="End after so many pictures, instead of Ctrl-C.")
@host_option
def top(vms: tuple[str, ...], interval: float, times: int | None, host: str | None) -> None:
    """Watch what guests do with their shares: operations and bytes a second, the busiest first.

    \b
    Examples:
      uvmshare top
      uvmshare top build --interval 5
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    shown = 0
    with connected(host) as client, Live(console=SafeConsole(), auto_refresh=False) as live:
        before, then = {(each.vm, each.share): each for each in of_vms(client, vms, client.stats)}, time.monotonic()
        while times is None or shown < times:
            time.sleep(interval)
            found, now = of_vms(client, vms, client.stats), time.monotonic()
            live.update(picture(before, found, now - then), refresh=True)
            before, then = {(each.vm, each.share): each for each in found}, now
            shown += 1


def picture(before: dict[tuple[str, str], Stats], found: list[Stats], seconds: float) -> Table:
    """Return a table of what was done since `before`, so many seconds ago."""
    rows = []
    for each in found:
        old = before.get((each.vm, each.share))
        # A connection that ended took its numbers with it.
        done = max(0, each.operations - (old.operations if old else 0)) / seconds
        received = max(0, each.received - (old.received if old else 0)) / seconds
        sent = max(0, each.sent - (old.sent if old else 0)) / seconds
        rows.append((done, each, received, sent))
    cells = [
        (
            each.vm,
            each.share,
            each.path,
            each.connections,
            f"{done:.0f}",
            size(received),
            size(sent),
            micros(each.latency),
            each.expected,
            each.errors,
        )
        for done, each, received, sent in sorted(rows, key=lambda row: -row[0])
    ]
    columns = ("vm", "share", "path", "mounts", "ops/s", "received/s", "sent/s", "latency", "expected", "errors")
    return table_of(columns, cells, folded=("path",))
