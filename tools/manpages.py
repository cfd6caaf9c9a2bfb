"""Write the manual pages, one for each command, from the help texts: ``tools/manpages.py DIRECTORY``.

What lives here: how a help text becomes man(7). What must not: words about a command; they belong in its help.

``uvmshare share add`` is described by uvmshare-share-add(1), as git does it. The date of the pages is that of
``SOURCE_DATE_EPOCH``, or today.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import click

from uvmshare.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAM: Final = "uvmshare"
_DOCUMENTS: Final = "/usr/share/doc/uvmshare"
_ESCAPED: Final = str.maketrans(
    {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"}
)
"""What man(7) would print as another character, or as none: text that is copied from a page has to work in a shell."""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield a command and all that are below it, each with its context. Hidden ones are left out."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None, "it is listed"
            if not below.hidden:
                yield from commands(below, click.Context(below, context, name, **below.context_settings))


def page_name(context: click.Context) -> str:
    """Return the name of a command's page, without its section."""
    return context.command_path.replace(" ", "-")


def _text(text: str) -> str:
    """Return a line of text as man(7) has it; none is taken for a request."""
    escaped = text.translate(_ESCAPED)
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


def _paragraphs(text: str) -> Iterator[str]:
    r"""Yield the paragraphs of a help text. One that begins with click's mark ``\b`` keeps its lines."""
    for paragraph in text.strip().split("\n\n"):
        lines = paragraph.strip("\n").splitlines()
        if lines and lines[0].strip() == "\b":
            yield "\n".join([".PP", ".RS 4", ".EX", *map(_text, lines[1:]), ".EE", ".RE"])
        elif lines:
            yield f".PP\n{_text(' '.join(line.strip() for line in lines))}"


def _list(rows: list[tuple[str, str]]) -> Iterator[str]:
    for term, text in rows:
        yield f".TP\n.B {_text(term)}\n{_text(' '.join(text.split()))}"


def _summary(command: click.Command) -> str:
    return command.get_short_help_str(limit=1000).rstrip(".")


def page(command: click.Command, context: click.Context, date: str) -> str:
    """Return the manual page of one command."""
    name = page_name(context)
    below = [
        (inner, inner_context)
        for inner, inner_context in commands(command, context)
        if inner_context.parent is context and inner is not command
    ]
    options = [
        record for each in command.get_params(context) if (record := each.get_help_record(context)) and record[1]
    ]
    parts = [
        f'.TH "{_text(name.upper())}" "1" "{_text(date)}" "{_PROGRAM} {_text(version(_PROGRAM))}" "{_PROGRAM}"',
        f".SH NAME\n{_text(name)} \\- {_text(_summary(command))}",
        f".SH SYNOPSIS\n.B {_text(context.command_path)}\n{_text(' '.join(command.collect_usage_pieces(context)))}",
        ".SH DESCRIPTION",
        *_paragraphs(command.help or ""),
        ".SH OPTIONS",
        *_list(options),
    ]
    if below:
        parts += [".SH COMMANDS", *_list([(page_name(each), f"{_summary(inner)}.") for inner, each in below])]
    if command.epilog:
        parts += [".SH NOTES", *_paragraphs(command.epilog)]
    others = [context.parent] if context.parent else []
    others += [each for _, each in below]
    seen = ", ".join(f"{_text(page_name(each))}(1)" for each in others)
    parts.append(f".SH SEE ALSO\n{seen}{', ' if seen else ''}{_text(_DOCUMENTS)}")
    return "\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Return every page by the name of its file."""
    seconds = int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    date = time.strftime("%Y-%m-%d", time.gmtime(seconds))
    root = click.Context(cli, info_name=_PROGRAM, **cli.context_settings)
    return {f"{page_name(context)}.1": page(command, context, date) for command, context in commands(cli, root)}


def write(directory: str) -> None:
    """Write every page into a directory, which is made."""
    os.makedirs(directory, exist_ok=True)
    for name, text in pages().items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIRECTORY")
    write(sys.argv[1])
