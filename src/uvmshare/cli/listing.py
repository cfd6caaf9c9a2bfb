"""What every command has in common that lists: a table, or --json, --quiet, --format.

What lives here: the three options, and the one way to write a list. What must not: what is listed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from uvmshare.cli.output import note, print_json, say, say_filled, say_table, terminal_width

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import msgspec

    from uvmshare.cli.template import Template

__all__ = ["ListForm", "listing_options", "print_table"]

F = TypeVar("F", bound="Callable[..., Any]")


@dataclass(frozen=True, slots=True)
class ListForm:
    """How a list is to be written: as a table, unless one of the three was given."""

    as_json: bool = False
    quiet: bool = False
    template: str | None = None

    def of(self, kind: type[msgspec.Struct], name: str, *, empty: str) -> _Writer:
        """Return what writes documents of this class. `name` is the field that --quiet writes.

        Raises `click.UsageError` for two of the options, and for a template that these documents cannot fill: before
        anything is asked of anybody.
        """
        given = ["--json"] * self.as_json + ["--quiet"] * self.quiet + ["--format"] * (self.template is not None)
        if len(given) > 1:
            msg = f"{' and '.join(given)} say in two ways how to write the list: give one"
            raise click.UsageError(msg, click.get_current_context(silent=True))
        if self.template is None:
            return _Writer(self, name, empty, None)
        from uvmshare.cli.template import Template  # noqa: PLC0415  most lists need it not

        return _Writer(self, name, empty, Template(self.template, kind))


@dataclass(frozen=True, slots=True)
class _Writer:
    listing: ListForm
    name: str
    empty: str
    template: Template | None

    def write(self, found: Sequence[Any], columns: Sequence[str], row: Callable[[Any], Iterable[object]]) -> None:
        """Write what was found; `row` gives a table's row for each."""
        if self.listing.as_json:
            print_json(found)
        elif self.listing.quiet:
            for each in found:
                say(str(getattr(each, self.name)))
        elif self.template is not None:
            for each in found:
                say_filled(self.template.filled(each))
        else:
            print_table(columns, [tuple(row(each)) for each in found], empty=self.empty)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """Write rows below their columns; `empty`, on standard error, when there are none."""
    if not rows:
        note(empty)
        return
    from uvmshare.cli.layout import lay_out  # noqa: PLC0415  programs need no table

    header, *lines = lay_out(columns, rows, terminal_width())
    say_table(header, lines)


def listing_options(command: F) -> F:
    """Give a command --json, --quiet and --format, and the parameter `listing`."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    @click.option("--quiet", "-q", is_flag=True, help="Print names alone, one on each line.")
    @click.option(
        "--format",
        "template",
        metavar="TEMPLATE",
        help="Print a line for each, with fields of the JSON in braces: '{id} {state:<10}'. \\t is a tab.",
    )
    @functools.wraps(command)
    def listing(*args: Any, as_json: bool, quiet: bool, template: str | None, **rest: Any) -> Any:
        return command(*args, listing=ListForm(as_json, quiet, template), **rest)

    return cast("F", listing)  # it takes the same parameters, but for these three
