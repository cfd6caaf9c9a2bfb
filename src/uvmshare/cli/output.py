"""Everything that a command writes: the one way to standard output and error, but for pictures (`pictures`).

What lives here: lines for people, and JSON for programs. What must not: what is written; rich, which `--help` need not
load.

Names, reasons and paths are others', so each line is made printable (`uvmshare.printable`). The linter forbids the
other ways to write (`click.echo`, `print`) to the rest of the package.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from uvmshare.printable import json_escaped, json_text, printable, printable_lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from typing_extensions import Buffer

__all__ = [
    "cleared_by",
    "name_standard_output",
    "note",
    "print_json",
    "say",
    "say_filled",
    "say_json",
    "say_lines",
    "say_table",
    "terminal_width",
    "write_raw",
]


class _StandardOutput(io.FileIO):
    """Descriptor 1, whose errors say what could not be written to: whoever writes, click and rich too."""

    def write(self, data: Buffer, /) -> int:
        """Write, and return how many bytes were written."""
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, "standard output") from error


def name_standard_output() -> None:
    """Have errors of standard output name it, such as that of a full disk. A terminal stays as it is."""
    if not sys.stdout.isatty():
        raw = _StandardOutput(sys.stdout.fileno(), "wb", closefd=False)
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding=sys.stdout.encoding, errors=sys.stdout.errors)


_clear: Callable[[], None] = lambda: None  # noqa: E731  a name for what `cleared_by` exchanges
"""Takes a line of progress away, before another line is written."""


@contextmanager
def cleared_by(clear: Callable[[], None]) -> Iterator[None]:
    """Call `clear` before each thing that is written in the block."""
    global _clear  # noqa: PLW0603  one process has one terminal
    before, _clear = _clear, clear
    try:
        yield
    finally:
        _clear = before


def _echo(text: str | bytes, *, err: bool = False) -> None:
    _clear()
    click.echo(text, err=err)


def write_raw(text: str) -> None:
    """Write on standard error as it is: control codes of our own, and words of ours made printable."""
    stream = getattr(sys.stderr, "raw_stream", sys.stderr)
    stream.write("".join(part if part in _CODES else printable(part) for part in _SPLIT.split(text)))
    stream.flush()


_CODES: Final = ("\r", "\x1b[2K")
"""To the line's beginning; and erase it (ECMA-48, EL 2)."""
_SPLIT: Final = re.compile("(\r|\x1b\\[2K)")


def say(line: str) -> None:
    """Write one line on standard output."""
    _echo(printable(line))


def say_lines(text: str) -> None:
    """Write text that has several lines of our own, such as a script."""
    _echo(printable_lines(text))


def terminal_width() -> int | None:
    """Return how many columns standard output shows; None where a program reads it, which takes whole lines."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def say_table(header: str, rows: Sequence[str]) -> None:
    """Write a table, its header bold on a terminal that is not asked to be plain (NO_COLOR)."""
    plain = printable(header)
    bold = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    _echo(f"\x1b[1m{plain}\x1b[0m" if bold else plain)
    for row in rows:
        _echo(printable(row, len(row) * 10 + 10))


def say_filled(text: str) -> None:
    """Write a template that was filled with values that are printable; tabs and newlines in it are the template's."""
    _echo("\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n")))


def note(line: str) -> None:
    """Write one line on standard error."""
    _echo(printable(line), err=True)


def say_json(document: Any) -> None:
    """Write a document as one line of JSON, for programs that read lines."""
    _echo(json_text(document).encode())


def print_json(document: Any) -> None:
    """Write a document, or several, as JSON over several lines."""
    import msgspec  # noqa: PLC0415  --help need not load it

    _echo(json_escaped(msgspec.json.format(json_text(document))).encode())
