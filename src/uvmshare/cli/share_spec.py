"""The shares of a command line: `PATH[:ro|:rw][:only=NAME,NAME]`, as container people write them.

What lives here: the text of one share, its meaning, and its completion in the shell.
What must not: whether the path exists (`AddOptions` looks at that), or anything that is shared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from uvmshare import AddOptions, InvalidOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ShareSpec", "parse", "share_argument", "share_options", "shares_argument"]

_ONLY = "only="


@dataclass(frozen=True, slots=True)
class ShareSpec:
    """One share as it was written: a path that nobody has looked at yet, and what goes with it."""

    path: str
    read_only: bool = False
    only: tuple[str, ...] = ()


def parse(text: str) -> ShareSpec:
    r"""Take `PATH[:ro|:rw][:only=NAME,NAME]` apart. Raises `ValueError` with one line for the user.

    Options are read from the end, and only words that are options count. So a path may hold colons
    (`/srv/a:b`, `C:\src`) without any quoting, and a path that ends like an option is written with a
    slash behind it (`/srv/a:ro/`).
    """
    path = text
    access: list[str] = []
    only: list[str] = []
    while True:
        head, colon, option = path.rpartition(":")
        if colon and option in {"ro", "rw"}:
            access.append(option)
        elif colon and option.startswith(_ONLY):
            names = option.removeprefix(_ONLY).split(",")
            if "" in names:
                msg = f"{option!r} in {text!r} has an empty name; write only=NAME,NAME"
                raise ValueError(msg)
            only[:0] = names
        else:
            break
        path = head
    if len(access) > 1:
        msg = f"{text!r} says more than once whether it is read-only; give one of ':ro' and ':rw'"
        raise ValueError(msg)
    if not path:
        msg = f"{text!r} has no path; write PATH[:ro][:only=NAME,NAME]"
        raise ValueError(msg)
    return ShareSpec(path, access == ["ro"], tuple(only))


def share_options(specs: Iterable[ShareSpec]) -> list[AddOptions]:
    """Look at the host's paths and make share options of them. Raises `InvalidOptions`; nothing is shared yet."""
    return [_options(spec) for spec in specs]


def _options(spec: ShareSpec) -> AddOptions:
    try:
        return AddOptions(spec.path, read_only=spec.read_only, restrict=bool(spec.only), allowed_names=spec.only)
    except InvalidOptions as error:
        if ":" not in spec.path:
            raise
        # Most likely a misspelt option: its colon then belongs to the path.
        msg = f"{error} (after a path only ':ro', ':rw' and ':only=NAME,NAME' are options)"
        raise InvalidOptions(msg) from error


def _convert(text: str) -> ShareSpec:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    del ctx, param
    return [CompletionItem(incomplete, type="dir")]


share_argument = click.argument("share", metavar="SHARE", type=_convert, shell_complete=_complete)
"""The SHARE argument of a command: decorates a function that takes `share: ShareSpec`."""

shares_argument = click.argument(
    "shares",
    metavar="SHARE...",
    type=_convert,
    nargs=-1,
    required=True,
    shell_complete=_complete,
)
"""The SHARE... argument of a command: decorates a function that takes `shares: tuple[ShareSpec, ...]`."""
