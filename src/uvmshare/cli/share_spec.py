"""The shares of a command line: `PATH[:ro|:rw][:only=NAME,NAME][:hide=PATTERN,PATTERN]`, as container people write.

What lives here: the text of one share, its meaning, and its completion in the shell.
What must not: whether the path exists (`AddOptions` looks at that), or anything that is shared.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import click
from click.shell_completion import CompletionItem

from uvmshare.errors import InvalidOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uvmshare import AddOptions

__all__ = [
    "ShareSpec",
    "parse",
    "share_argument",
    "share_options",
    "shares_argument",
    "sharing_options",
    "with_sharing_options",
]

_ONLY = "only="
_HIDE = "hide="

F = TypeVar("F", bound="Callable[..., object]")


@dataclass(frozen=True, slots=True)
class ShareSpec:
    """One share as it was written: a path that nobody has looked at yet, and what goes with it."""

    path: str
    read_only: bool = False
    only: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    map_owner: str | None = None


def parse(text: str) -> ShareSpec:
    r"""Take a share as it was written apart. Raises `ValueError` with one line for the user.

    Options are read from the end, and only words that are options count. So a path may hold colons
    (`/srv/a:b`, `C:\src`) without any quoting, and a path that ends like an option is written with a
    slash behind it (`/srv/a:ro/`).
    """
    path = text
    access: list[str] = []
    lists: dict[str, list[str]] = {_ONLY: [], _HIDE: []}
    while True:
        head, colon, option = path.rpartition(":")
        if colon and option in {"ro", "rw"}:
            access.append(option)
        elif colon and (word := next((each for each in lists if option.startswith(each)), None)):
            names = option.removeprefix(word).split(",")
            if "" in names:
                msg = f"{option!r} in {text!r} has an empty name; write {word}NAME,NAME"
                raise ValueError(msg)
            lists[word][:0] = names
        else:
            break
        path = head
    if len(access) > 1:
        msg = f"{text!r} says more than once whether it is read-only; give one of ':ro' and ':rw'"
        raise ValueError(msg)
    if not path:
        msg = f"{text!r} has no path; write PATH[:ro][:only=NAME,NAME]"
        raise ValueError(msg)
    return ShareSpec(path, access == ["ro"], tuple(lists[_ONLY]), tuple(lists[_HIDE]))


def share_options(specs: Iterable[ShareSpec]) -> list[AddOptions]:
    """Look at the host's paths and make share options of them. Raises `InvalidOptions`; nothing is shared yet."""
    return [_options(spec) for spec in specs]


def _options(spec: ShareSpec) -> AddOptions:
    from uvmshare import AddOptions  # noqa: PLC0415  the daemon's commands need it not

    try:
        return AddOptions(
            spec.path,
            read_only=spec.read_only,
            allowed_names=spec.only or None,
            hide=spec.hide,
            map_owner=spec.map_owner,
        )
    except InvalidOptions as error:
        if ":" not in spec.path:
            raise
        from uvmshare.cli.guesses import what_a_path_was_meant_for  # noqa: PLC0415  only here

        if guess := what_a_path_was_meant_for(spec.path):
            msg = f"{error}; {guess}"
            raise InvalidOptions(msg) from error
        # Most likely a misspelt option: its colon then belongs to the path.
        msg = f"{error} (after a path only ':ro', ':rw', ':only=NAME,NAME' and ':hide=PATTERN,PATTERN' are options)"
        raise InvalidOptions(msg) from error


def with_sharing_options(spec: ShareSpec, hide: Iterable[str], map_owner: str | None) -> ShareSpec:
    """Return a share with what the command's options say of all its shares: its own patterns come last, and count."""
    return replace(spec, hide=(*hide, *spec.hide), map_owner=map_owner)


def sharing_options(command: F) -> F:
    """Give a command --hide and --map-owner, which hold for all its shares (`with_sharing_options`)."""
    for option in (
        click.option(
            "--map-owner",
            metavar="HOST:GUEST",
            help="The owner of files on the host, and their owner in the guest: 1000:0, or with groups 1000/100:0/0, "
            "or all:0 for every file.",
        ),
        click.option(
            "--hide",
            multiple=True,
            metavar="PATTERN",
            help="Names that do not exist for the guest, as in .gitignore: a name at any depth (node_modules), a path "
            "from the share's root (/build/out), !PATTERN to show again. Give it once for each pattern.",
        ),
    ):
        command = option(command)
    return command


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
