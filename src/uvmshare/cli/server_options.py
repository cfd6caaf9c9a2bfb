"""Options of several commands: those of a file server (`serve`, `vm add`, `daemon`), those of logs (`daemon`, `gate`).

What lives here: reading them. What must not: the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from uvmshare.errors import FileServerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.limits import Limits

__all__ = ["allow_uid_option", "cgroup_limits", "limit_options", "log_options", "octal_mode", "uid_or_any"]

C = TypeVar("C", bound="Callable[..., Any]")


def log_options(command: C) -> C:
    """Add the options that say how a command logs: `log_format` and `log_level`."""
    form = click.option(
        "--log-format",
        type=click.Choice(["json", "logfmt"]),
        default="logfmt",
        show_default=True,
        help="How lines are written to standard error.",
    )
    level = click.option(
        "--log-level", type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]), default="INFO", show_default=True
    )
    return form(level(command))


def octal_mode(text: str) -> int:
    """Read a mode, three octal digits."""
    digits = text.removeprefix("0o")
    if not digits or set(digits) - set("01234567") or int(digits, 8) > 0o777:
        msg = f"{text!r} is no mode; write three octal digits, such as 660"
        raise click.BadParameter(msg)
    return int(digits, 8)


def limit_options(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> Limits | None:
    """Read limits, each NAME=NUMBER; None for none."""
    if not given:
        return None
    from uvmshare.fileserver.limits import Limits  # noqa: PLC0415  --help need not load it

    values: dict[str, str | None] = {}
    for text in given:
        name, equals, number = text.partition("=")
        if not equals:
            msg = f"{text!r} is no limit; write NAME=NUMBER, such as mounts=16"
            raise click.BadParameter(msg)
        values[name] = None if number == "none" else number
    try:
        return Limits.of(values)
    except FileServerError as error:
        raise click.BadParameter(str(error)) from error


def cgroup_limits(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, str]:
    """Read limits of a control group, each NAME=VALUE; which there are, the daemon knows."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            msg = f"{text!r} is no limit; write NAME=VALUE, such as pids.max=64"
            raise click.BadParameter(msg)
        found[name] = value
    return found


def uid_or_any(text: str) -> int | str:
    """Read a uid, or the word "any"."""
    if text == "any":
        return text
    if not (text.isascii() and text.isdigit()) or int(text) >= 0xFFFFFFFF:
        msg = f"{text!r} is no uid; write a number, such as 64055, or any"
        raise click.BadParameter(msg)
    return int(text)


allow_uid_option = click.option(
    "--allow-uid",
    "allow_uids",
    metavar="UID",
    type=uid_or_any,
    multiple=True,
    help="Another user of this host who may connect to TCP on loopback, besides root and the user who serves, such as "
    "the user as whom QEMU runs the VM. any: every user.",
)
