"""Everything that a command writes: the one way to standard output and error, but for tables (`tables`).

What lives here: lines for people, and JSON for programs. What must not: what is written; rich, which `--help` need not
load.

Names, reasons and paths are others', so each line is made printable (`uvmshare.printable`). The linter forbids the
other ways to write (`click.echo`, `print`) to the rest of the package.
"""

from __future__ import annotations

from typing import Any

import click

from uvmshare.printable import json_escaped, json_text, printable, printable_lines

__all__ = ["note", "print_json", "say", "say_json", "say_lines"]


def say(line: str) -> None:
    """Write one line on standard output."""
    click.echo(printable(line))


def say_lines(text: str) -> None:
    """Write text that has several lines of our own, such as a script."""
    click.echo(printable_lines(text))


def note(line: str) -> None:
    """Write one line on standard error."""
    click.echo(printable(line), err=True)


def say_json(document: Any) -> None:
    """Write a document as one line of JSON, for programs that read lines."""
    click.echo(json_text(document).encode())


def print_json(document: Any) -> None:
    """Write a document, or several, as JSON over several lines."""
    import msgspec  # noqa: PLC0415  --help need not load it

    click.echo(json_escaped(msgspec.json.format(json_text(document))).encode())
