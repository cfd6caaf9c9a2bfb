"""`uvmshare top`: what guests do with their shares, as they do it.

What lives here: the picture, from one look to the next, and the loop that shows it: keys, the window's size, programs
that read instead of a terminal. What must not: counting.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from rich.live import Live
from rich.text import Text

from uvmshare.cli.layout import cell_text, left_part, right_part
from uvmshare.cli.output import say_json
from uvmshare.cli.remote import connected, host_option, of_vms
from uvmshare.cli.tables import SafeConsole

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.documents import Stats

__all__ = ["Rates", "picture", "rates", "top"]

_AGENTS: Final[Mapping[str | None, tuple[str, str]]] = {
    "reached": ("up", "green"),
    "unreachable": ("lost", "bold red"),
    None: ("-", ""),
}
"""What a VM's agent is called in five columns, and its colour."""


class Rates(NamedTuple):
    """What was done with one share between two looks, by the second."""

    vm: str
    share: str
    path: str
    agent: str | None
    mounts: int
    operations: float
    received: float
    sent: float
    latency: float | None
    expected: int
    errors: int
    new_errors: int


def rates(
    before: Mapping[tuple[str, str], Stats], found: Sequence[Stats], agents: Mapping[str, str | None], seconds: float
) -> list[Rates]:
    """Return what was done since `before`, so many seconds ago, the busiest first.

    A connection that ended took its numbers with it: nothing is less than none.
    """

    def done(each: Stats, what: str) -> int:
        old = before.get((each.vm, each.share))
        count: int = getattr(each, what) - (getattr(old, what) if old else 0)
        return max(0, count)

    shown = [
        Rates(
            each.vm,
            each.share,
            each.path,
            agents.get(each.vm),
            each.connections,
            done(each, "operations") / seconds,
            done(each, "received") / seconds,
            done(each, "sent") / seconds,
            each.latency,
            each.expected,
            each.errors,
            done(each, "errors"),
        )
        for each in found
    ]
    return sorted(shown, key=lambda each: (-each.operations, each.vm, each.share))


class _Column(NamedTuple):
    """One column: its header, the least it takes, and when it goes: the highest number first, 0 never."""

    name: str
    width: int
    goes: int
    right: bool = True


_COLUMNS: Final = (
    _Column("VM", 4, 0, right=False),
    _Column("SHARE", 5, 2, right=False),
    _Column("PATH", 5, 5, right=False),
    _Column("AGENT", 5, 3, right=False),
    _Column("MNT", 3, 8),
    _Column("OPS/S", 5, 1),
    _Column("IN/S", 5, 7),
    _Column("OUT/S", 5, 6),
    _Column("LAT", 5, 9),
    _Column("EXP", 4, 10),
    _Column("ERR", 4, 4),
)
"""All of them, in 60 columns with a space between each two."""


def _compact(count: float, units: Sequence[str] = ("", "k", "M", "G", "T", "P")) -> str:
    """Return a number in at most five columns."""
    for unit in units:
        if count < 999.5 or unit == units[-1]:  # a sum of what daemons told may be infinite
            return f"{count:.1f}{unit}" if 0 < count < 10 and (unit or count % 1) else f"{count:.0f}{unit}"
        count /= 1000
    raise AssertionError


def _latency(seconds: float | None) -> str:
    return "-" if seconds is None else _compact(seconds * 1e6, ("µs", "ms", "s"))


def _row(each: Rates) -> list[tuple[str, str]]:
    """Return the texts of a row, and their styles."""
    busy = "" if each.operations else "dim"
    agent, colour = _AGENTS.get(each.agent, ("?", ""))
    return [
        (cell_text(each.vm), busy),
        (cell_text(each.share), busy),
        (cell_text(each.path), busy),
        (agent, colour),
        (_compact(each.mounts), busy),
        (_compact(each.operations), "bold" if each.operations else "dim"),
        (_compact(each.received), busy),
        (_compact(each.sent), busy),
        (_latency(each.latency), busy),
        (_compact(each.expected), busy),
        (_compact(each.errors), "bold red" if each.new_errors else busy),
    ]


def _total(shown: Sequence[Rates]) -> list[tuple[str, str]]:
    vms = {each.vm: each.agent for each in shown}
    lost = sum(agent == "unreachable" for agent in vms.values())
    measured = [each.latency for each in shown if each.latency is not None]
    texts = (
        f"{len(vms)} VM" + "s" * (len(vms) != 1),
        _compact(len(shown)),
        "total",
        f"{lost}lost" if lost else "-",
        _compact(sum(each.mounts for each in shown)),
        _compact(sum(each.operations for each in shown)),
        _compact(sum(each.received for each in shown)),
        _compact(sum(each.sent for each in shown)),
        _latency(sum(measured) / len(measured) if measured else None),
        _compact(sum(each.expected for each in shown)),
        _compact(sum(each.errors for each in shown)),
    )
    return [(text, "bold") for text in texts]


def picture(shown: Sequence[Rates], width: int, height: int | None = None) -> Text:
    """Return the table, its totals last, in so many columns and lines: all columns from 60 on.

    Below that the least important ones go. No header is cut at any width that holds one.
    """
    columns = list(_COLUMNS)
    while sum(each.width + 1 for each in columns) - 1 > width and len(columns) > 1:
        columns.remove(max(columns, key=lambda each: each.goes))
    rows = [_row(each) for each in shown]
    most = len(rows) if height is None else max(0, height - 3)
    rows = [*rows[:most], _total(shown)]
    places = [_COLUMNS.index(each) for each in columns]
    widths = {at: min(_COLUMNS[at].width, width) for at in places}
    spare = width - sum(widths.values()) - len(columns) + 1
    for at in (0, 2, 1):  # names take what is left
        if at in widths:
            wanted = max(len(row[at][0]) for row in rows) - widths[at]
            more = max(0, min(spare, wanted))
            widths[at] += more
            spare -= more
    table = Text(no_wrap=True, overflow="crop")
    for number, row in enumerate([[(each.name, "bold underline") for each in _COLUMNS], *rows]):
        table.append("\n" if number else "")
        for at in places:
            text, style = row[at]
            part = right_part(text, widths[at]) if at == 2 and number else left_part(text, widths[at])
            padding = " " * (widths[at] - Text(part).cell_len)
            table.append(" " if at != places[0] else "")
            if _COLUMNS[at].right:
                table.append(padding)
            table.append(part, style)
            if not _COLUMNS[at].right:
                table.append(padding)
    left_out = len(shown) - most
    if left_out > 0:
        table.append("\n" + left_part(f"and {left_out} more: make the window higher, or name VMs", width), "dim")
    return table


class _Look(NamedTuple):
    stats: list[Stats]
    agents: dict[str, str | None]
    time: float


def _look(client: Client, vms: Sequence[str]) -> _Look:
    listed = client.vms()
    agents: dict[str, str | None] = {each.id: each.agent_state for each in listed}
    return _Look(of_vms(client, vms, client.vms.stats, listed), agents, time.monotonic())


@click.command()
@click.argument("vms", metavar="[VM]...", nargs=-1)
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to read the counters.",
)
@click.option("--times", type=click.IntRange(1), metavar="COUNT", help="End after this many readings.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each reading, instead of a table.")
@host_option
def top(vms: tuple[str, ...], *, interval: float, times: int | None, host: str | None, as_json: bool) -> None:
    """Watch what guests do with their shares: operations and bytes a second, the busiest first.

    IN and OUT are bytes from and to the guest, LAT the mean time in the file server's handler. ERR counts errors since
    the share was mounted, EXP errors that programs expect, such as that a name is not there. MNT is how often the
    guest has the share mounted. AGENT says whether the agent in the guest is reached. The last line has the totals. A
    window of 60 columns shows all of them; a narrower one leaves out the least important. The key q ends it. When a
    program reads the output, each table follows the one before.

    \b
    Examples:
      uvmshare top
      uvmshare top build --interval 5
      uvmshare top --times 1 --json
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    console = SafeConsole()
    with connected(host, "") as client, _keys() as pressed, contextlib.ExitStack() as stack:
        live = None
        if not as_json and console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, screen=pressed.can_quit))
        before = _look(client, vms)
        shown: list[Rates] = []
        count = 0
        while times is None or count < times:
            reason = pressed.wait(interval, before.time)
            if reason == "quit":
                return
            if reason == "time":
                now = _look(client, vms)
                known = {(each.vm, each.share): each for each in before.stats}
                shown = rates(known, now.stats, now.agents, max(now.time - before.time, 1e-6))
                before = now
                count += 1
            if as_json:
                say_json([each._asdict() for each in shown])
            elif live is not None:
                live.update(picture(shown, console.width, console.height), refresh=True)
            else:
                console.print(picture(shown, max(console.width, 60)))


class _Keys:
    """What may come before the next look is due: a key, or another size of the window."""

    def __init__(self, keyboard: int | None, resized: int | None) -> None:
        self._watched = [each for each in (keyboard, resized) if each is not None]
        self._keyboard = keyboard
        self.can_quit = keyboard is not None

    def wait(self, interval: float, since: float) -> str:
        """Return "quit", "resize", or "time" when `interval` seconds have passed since that moment."""
        if not self._watched:
            time.sleep(interval)
            return "time"
        while True:
            left = since + interval - time.monotonic()
            if left <= 0:
                return "time"
            ready, _, _ = select.select(self._watched, [], [], left)
            for each in ready:
                read = os.read(each, 64)
                if each != self._keyboard:
                    return "resize"
                if not read or set(read) & set(b"qQ"):
                    return "quit"


@contextlib.contextmanager
def _keys() -> Iterator[_Keys]:
    """Take keys one by one, and note when the window changes; only where both ends are a terminal."""
    if sys.platform == "win32" or not (_is_terminal(sys.stdin) and _is_terminal(sys.stdout)):
        yield _Keys(None, None)
        return
    import termios  # noqa: PLC0415  Windows has none
    import tty  # noqa: PLC0415  as above

    keyboard = sys.stdin.fileno()
    settings = termios.tcgetattr(keyboard)
    read, write = os.pipe()
    os.set_blocking(write, False)

    def resized(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # enough are waiting
            os.write(write, b".")

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        tty.setcbreak(keyboard)
        yield _Keys(keyboard, read)
    finally:
        signal.signal(signal.SIGWINCH, before)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, settings)
        os.close(read)
        os.close(write)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
