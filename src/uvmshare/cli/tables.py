"""Tables and pictures of the commands: rich, as far as names that come from others let it be used.

What lives here: tables, their cells, and the console. What must not: what is in them.

Each cell is made printable (`uvmshare.printable`) and holds no markup, emoji code or highlighting. What reaches the
console by another way is made printable by the console itself, which then only draws worse. The linter forbids rich's
own `Console` and its markup to the rest of the package.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from uvmshare.cli.output import note
from uvmshare.printable import printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import ConsoleOptions, RenderableType

__all__ = ["SafeConsole", "cell", "moment", "print_table", "table_of", "with_reach"]


def cell(value: object, style: str = "") -> Text:
    """Return what a table shows of a value: one line, as it is, in this style; "-" for nothing."""
    return Text("-" if value in (None, "", ()) else printable(str(value)), style)


def moment(then: datetime) -> str:
    """Return a time for people, by this host's clock and zone; today's without the date."""
    local = then.astimezone()
    is_today = local.date() == datetime.now(UTC).astimezone().date()
    return f"{local:%H:%M:%S}" if is_today else f"{local:%Y-%m-%d %H:%M:%S}"


def with_reach(state: str, unreachable_since: datetime | None) -> str:
    """Return the state of what a guest has; as it was known, when the guest's agent is out of reach."""
    return state if unreachable_since is None else f"{state}, unreachable since {moment(unreachable_since)}"


def table_of(columns: Sequence[str], rows: Iterable[Sequence[object]], *, folded: Sequence[str] | None = None) -> Table:
    """Return a table; a column is folded where it is too wide, all of them or those that are named."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column.upper(), no_wrap=folded is not None and column not in folded, overflow="fold")
    for row in rows:
        table.add_row(*map(cell, row))
    return table


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Write rows below their columns; `empty`, on standard error, when there are none."""
    table = table_of(columns, rows)
    if not table.row_count:
        note(empty)
        return
    console = SafeConsole()
    if not console.is_terminal:  # programs that cut columns get whole lines, however long
        console.width = 100_000
    console.print(table)


class SafeConsole(Console):
    """Rich's console without markup, emoji codes and highlighting, on which all text is made printable."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Give what rich makes of it; its own control codes are not text."""
        for segment in super().render(renderable, options):
            if segment.control or not segment.text:
                yield segment
            else:
                yield Segment(printable_lines(segment.text), segment.style)
