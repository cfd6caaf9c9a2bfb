"""`uvmshare top`: what guests do with their shares, as they do it.

What lives here: the picture, from one look to the next, and the loop that shows it: keys, the window's size, programs
that read instead of a terminal. What must not: counting.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import click
from rich.live import Live
from rich.text import Text

from uvmshare.cli.layout import cell_text, folded, left_part, right_part
from uvmshare.cli.output import note, say_json
from uvmshare.cli.pictures import SafeConsole
from uvmshare.cli.progress import waiting
from uvmshare.cli.remote import connected, host_option, of_vms
from uvmshare.errors import ComputeSystemError, DaemonError, FileServerError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import ConsoleOptions

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.documents import Stats

__all__ = ["Rates", "picture", "rates", "top"]

_AGENTS: Final[Mapping[str | None, tuple[str, str]]] = {
    "reached": ("up", "green"),
    "unreachable": ("lost", "bold red"),
    None: ("-", ""),
}
"""What a VM's agent is called in five columns, and its colour."""
_PASSING: Final = (DaemonError, ComputeSystemError, FileServerError, StoreError)
"""What may be well at the next reading: a daemon that starts again, a VM whose file server is being found."""
_MOST_BELOW: Final = 3
"""Lines that one trouble takes below the table."""


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


def _below(troubles: Sequence[str], width: int, height: int | None) -> list[str]:
    """Return the lines below the header and the totals, as far as the window has room for them."""
    lines = [line for each in troubles for line in folded(cell_text(each), width)[:_MOST_BELOW]]
    return lines if height is None else lines[: max(0, height - 2)]


def picture(shown: Sequence[Rates], width: int, height: int | None = None, troubles: Sequence[str] = ()) -> Text:
    """Return the table, its totals last, in so many columns and lines: all columns from 60 on.

    Below that the least important ones go. No header is cut at any width that holds one. `troubles` follow the totals,
    each folded onto at most three lines.
    """
    below_style = "bold red" if troubles else "dim"
    if not (shown or troubles):
        troubles = ("no VM has a share: uvmshare share add gives it one",)
    below = _below(troubles, width, height)
    columns = list(_COLUMNS)
    while sum(each.width + 1 for each in columns) - 1 > width and len(columns) > 1:
        columns.remove(max(columns, key=lambda each: each.goes))
    rows = [_row(each) for each in shown]
    most = len(rows)
    if height is not None and most > height - 2 - len(below):
        most = max(0, height - 3 - len(below))  # one line says how many are left out
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
    if len(rows[-1][0][0]) > widths[0]:
        rows[-1][0] = _compact(len({each.vm for each in shown})), "bold"  # a number alone, rather than one that is cut
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
    if left_out > 0 and (height is None or height - 2 - len(below) > 0):
        table.append("\n" + left_part(f"and {left_out} more: make the window higher, or name VMs", width), "dim")
    for line in below:
        table.append("\n" + line, below_style)
    return table


class _Look(NamedTuple):
    stats: list[Stats]
    agents: dict[str, str | None]
    troubles: tuple[str, ...]
    time: float


def _look(client: Client, vms: Sequence[str]) -> _Look:
    listed = client.vms()
    agents: dict[str, str | None] = {each.id: each.agent_state for each in listed}
    troubles: list[str] = []
    stats = of_vms(client, vms, client.vms.stats, listed, tell=troubles.append)
    return _Look(stats, agents, tuple(troubles), time.monotonic())


class _Watched:
    """The readings, one after the other, and what could not be read."""

    def __init__(self, client: Client, vms: Sequence[str], interval: float) -> None:
        """Read for the first time. Raises what the daemon says, and `DaemonError` when there is none."""
        self._client = client
        self._vms = vms
        self._interval = interval
        self._before = _look(client, vms)
        self.shown: list[Rates] | None = None
        """None before there are two readings to tell a rate from."""
        self.failure: Exception | None = None
        """Why the last reading gave no numbers."""

    @property
    def troubles(self) -> tuple[str, ...]:
        """What is not as it should be, a text each."""
        return self._before.troubles if self.failure is None else (str(self.failure),)

    def read(self) -> None:
        """Read again. What may pass is noted; raises what does not, such as `NotThere` for a VM that was removed."""
        try:
            now = _look(self._client, self._vms)
        except _PASSING as error:
            self.failure = error
            return
        known = {(each.vm, each.share): each for each in self._before.stats}
        self.shown = rates(known, now.stats, now.agents, max(now.time - self._before.time, 1e-6))
        self._before = now
        self.failure = None

    def __rich_console__(self, _: object, options: ConsoleOptions) -> Iterator[Text]:
        """Give what a window shows of it, in the size that rich draws in just now."""
        width, height = options.max_width, options.height or options.size.height
        if self.shown is None and self.failure is None:
            yield Text("\n".join(folded(f"the first numbers come after {self._interval:g} s", width)[:height]), "dim")
            return
        troubles = self.troubles
        if self.failure is not None:
            troubles = (f"no numbers for {time.monotonic() - self._before.time:.0f} s: {self.failure}",)
        yield picture(self.shown or (), width, height, troubles)


def _number(context: click.Context, option: click.Parameter, value: float) -> float:
    """Refuse "nan", which is in every range."""
    del context, option
    if math.isnan(value):
        msg = f"{value} is no number"
        raise click.BadParameter(msg)
    return value


@click.command()
@click.argument("vms", metavar="[VM]...", nargs=-1)
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 86_400),
    callback=_number,
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
    program reads the output, each table follows the one before. If the daemon goes away, the command waits for it.

    \b
    Examples:
      uvmshare top
      uvmshare top build --interval 5
      uvmshare top --times 1 --json

    Exit status: 0 after q, SIGTERM or the last of --times, 130 after SIGINT (Ctrl-C), 1 when nothing could be read at
    first, or at the last of --times.
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    console = SafeConsole()
    with connected(host, "") as client, _ended_by_signals(), _keys() as pressed, contextlib.ExitStack() as stack:
        with waiting("waiting for the daemon"):
            watched = _Watched(client, vms, interval)
        live = None
        if not as_json and _is_terminal(sys.stdout) and not console.is_dumb_terminal:
            live = stack.enter_context(Live(watched, console=console, auto_refresh=False, screen=pressed.can_quit))
        told: tuple[str, ...] = ()
        count = 0
        due = time.monotonic() + interval
        while times is None or count < times:
            if live is not None:
                live.refresh()
            reason = pressed.wait(due - time.monotonic())
            if reason == "quit":
                return
            if reason == "resize":
                continue
            watched.read()
            count += 1
            due = time.monotonic() + interval
            if live is None:
                told = _tell(told, watched.troubles)
                if watched.failure is None:
                    _print(console, watched.shown or (), as_json=as_json)
        if live is not None:
            live.refresh()
        if watched.failure is not None:
            raise watched.failure


def _print(console: SafeConsole, shown: Sequence[Rates], *, as_json: bool) -> None:
    """Write one reading as lines."""
    if as_json:
        say_json([each._asdict() for each in shown])
    else:
        console.print(picture(shown, max(console.width, 60)))


def _tell(told: tuple[str, ...], troubles: tuple[str, ...]) -> tuple[str, ...]:
    """Say on standard error what is new of the troubles, and when all are over. Returns what has been said."""
    for each in troubles:
        if each not in told:
            note(each)
    if told and not troubles:
        note("all of it is read again")
    return troubles


class _Keys:
    """What may come before the next look is due: a key, or another size of the window."""

    def __init__(self, keyboard: int | None, resized: int | None) -> None:
        self._watched = [each for each in (keyboard, resized) if each is not None]
        self._keyboard = keyboard
        self.can_quit = keyboard is not None

    def wait(self, seconds: float) -> str:
        """Return "quit", "resize", or "time" when so many seconds have passed."""
        if not self._watched:
            time.sleep(max(0.0, seconds))
            return "time"
        end = time.monotonic() + seconds
        while True:
            # A key is seen also when nothing is left to wait for: readings may take longer than the interval.
            ready, _, _ = select.select(self._watched, [], [], max(0.0, end - time.monotonic()))
            if not ready:
                return "time"
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


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """End the block at SIGTERM and SIGHUP, as commands do that a service manager starts; the terminal is restored."""
    if sys.platform == "win32":
        yield
        return

    def end(*_: object) -> None:
        sys.exit(0)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup says that the terminal's end is not ours
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and stream.isatty()
