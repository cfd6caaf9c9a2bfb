"""Refusing empty values on a command line.

What lives here: refusing them, for every command in one place. `--run-dir "$DIR"` with nothing in DIR must not mean the
default. What must not: what a value is for. An environment variable that is empty counts as one that is not set, as
the XDG base directories have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["refusing_empty_values"]


def refusing_empty_values(command: click.Command) -> click.Command:
    """Have a command, and those below it, refuse values that are empty; return it. For once a command."""
    if isinstance(command, click.Group):
        for each in command.commands.values():
            refusing_empty_values(each)
    for parameter in command.params:
        if not isinstance(parameter.type, click.types.UnprocessedParamType):  # the guest's commands read their own
            parameter.callback = _refusing(parameter.callback)
    return command


def _refusing(then: Callable[[click.Context, click.Parameter, Any], Any] | None) -> Callable[..., Any]:
    def refuse(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value == "" or (isinstance(value, tuple) and "" in value):
            may_be_missing = isinstance(parameter, click.Option) and not parameter.required
            msg = "it is empty: give a value" + (", or leave the option out" if may_be_missing else "")
            raise click.BadParameter(msg)
        return value if then is None else then(context, parameter, value)

    return refuse
