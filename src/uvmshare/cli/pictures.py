"""Pictures of the commands: rich, without markup, since other people choose the names in them.

What lives here: the console, and a cell of a picture. What must not: what is in them; lists, which need no rich
(`listing`).

Each cell is made printable (`uvmshare.printable`) and holds no markup, emoji code or highlighting. What reaches the
console by another way is made printable by the console itself, which then only draws worse. The linter forbids rich's
own `Console` and its markup to the rest of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.segment import Segment
from rich.text import Text

from uvmshare.printable import printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import ConsoleOptions, RenderableType

__all__ = ["SafeConsole", "cell"]


def cell(value: object, style: str = "") -> Text:
    """Return what a table shows of a value: one line, as it is, in this style; "-" for nothing."""
    return Text("-" if value in (None, "", ()) else printable(str(value)), style)


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
