"""The layout of tables: how one fits into so many columns of a terminal: no header is ever cut, at any width.

What lives here: widths, folding, and the other form that a table takes where its headers do not fit beside each other.
What must not: writing, or pictures (`pictures`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.cells import cell_len, chop_cells

from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["cell_text", "folded", "lay_out", "left_part", "right_part"]

_GAP: Final = 2
"""Spaces between two columns."""
_NARROWEST: Final = 8
"""What a column keeps for its values, where they are that wide; below that a table is harder to read than a list."""


def cell_text(value: object) -> str:
    """Return what a table shows of a value: one line, as it is; "-" for nothing."""
    return "-" if value in (None, "", ()) else printable(str(value))


def lay_out(columns: Sequence[str], rows: Iterable[Sequence[object]], width: int | None) -> list[str]:
    """Return the lines of a table that fits into `width`; None for as wide as it is.

    Values that do not fit are folded onto further lines. Where not even the headers fit beside each other, each row
    becomes a list: a header and its value a line, an empty line between two rows.
    """
    names = [column.upper() for column in columns]
    cells = [[cell_text(value) for value in row] for row in rows]
    widths = [max(cell_len(name), *(cell_len(row[at]) for row in cells), 0) for at, name in enumerate(names)]
    if width is not None:
        least = [max(cell_len(name), min(natural, _NARROWEST)) for name, natural in zip(names, widths, strict=True)]
        gaps = _GAP * (len(names) - 1)
        if sum(least) + gaps > width:
            return _listed(names, cells)
        while sum(widths) + gaps > width:
            widest = max((at for at in range(len(widths)) if widths[at] > least[at]), key=widths.__getitem__)
            others = sum(widths) - widths[widest] + gaps
            next_widest = max((each for at, each in enumerate(widths) if at != widest), default=0)
            widths[widest] = max(least[widest], min(widths[widest] - 1, max(width - others, next_widest)))
    return [line for row in (names, *cells) for line in _lines(row, widths)]


def _lines(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    cells = [folded(text, width) for text, width in zip(row, widths, strict=True)]
    return [
        (" " * _GAP)
        .join(_padded(parts[at] if at < len(parts) else "", width) for parts, width in zip(cells, widths, strict=True))
        .rstrip()
        for at in range(max(map(len, cells)))
    ]


def folded(text: str, width: int) -> list[str]:
    """Return the lines, of at most so many columns each, that a text takes; at least one."""
    return chop_cells(text, width) or [""]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _listed(names: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    lines: list[str] = []
    for row in cells:
        lines += ["", *(f"{name}: {value}" for name, value in zip(names, row, strict=True))]
    return lines[1:]


def left_part(text: str, width: int) -> str:
    """Return a text of at most so many columns: its beginning, where it is longer."""
    if cell_len(text) <= width:
        return text
    return chop_cells(text, width - 1)[0] + "…" if width > 1 else "…"[:width]


def right_part(text: str, width: int) -> str:
    """Return a text of at most so many columns: its end, where it is longer, which tells two paths apart."""
    if cell_len(text) <= width:
        return text
    while text and cell_len(text) > width - 1:
        text = text[1:]
    return "…"[:width] + text
