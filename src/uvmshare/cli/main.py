"""The `uvmshare` command: which commands there are, and how every one of them ends.

What lives here: the table of commands, loaded when they are used, and the one place that turns an
exception into one line and an exit status. What must not: what a command does.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

import click

from uvmshare.cli import missing_extra
from uvmshare.cli.output import note, say_lines
from uvmshare.errors import InvalidAddress, UvmshareError
from uvmshare.printable import briefly

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["cli", "run"]


class Command(NamedTuple):
    """Where a command is, and what the list of commands says about it."""

    module: str
    attribute: str
    summary: str


COMMANDS: Mapping[str, Command] = {
    "serve": Command("uvmshare.cli.serve", "serve", "Serve host directories to a running guest."),
    "daemon": Command(
        "uvmshare.cli.daemon", "daemon", "Own the shares of all VMs of this host, for every program on it."
    ),
    "gate": Command("uvmshare.cli.gate", "gate", "Take what users of a fleet of hosts ask for, over HTTPS."),
    "host": Command("uvmshare.cli.host", "host", "Hosts of a fleet: ls, rm, status, accept."),
    "fleet": Command("uvmshare.cli.fleet", "fleet", "Set up a fleet of hosts: init, add-host, add-tenant, status."),
    "vm": Command("uvmshare.cli.vm", "vm", "VMs that the daemon knows: add, ls, inspect, rm."),
    "share": Command("uvmshare.cli.share", "share", "Shares of a VM, through the daemon: add, ls, inspect, renew, rm."),
    "map": Command("uvmshare.cli.mounts", "map_", "Share a directory and mount it in the guest, through the daemon."),
    "unmap": Command("uvmshare.cli.mounts", "unmap", "Unmount a mapped directory, and end its share."),
    "mounts": Command("uvmshare.cli.mounts", "mounts", "List the mounts in guests."),
    "owner": Command("uvmshare.cli.owner", "owner", "Who holds shares and mounts: ls, release."),
    "events": Command("uvmshare.cli.events", "events", "Follow what happens in the daemon."),
    "stats": Command("uvmshare.cli.stats", "stats", "Show what guests have done with their shares."),
    "top": Command("uvmshare.cli.top", "top", "Watch what guests do with their shares, live."),
    "dashboard": Command("uvmshare.cli.dashboard", "dashboard", "Show everything on a page in your browser."),
    "guest": Command("uvmshare.cli.guest", "guest", "Mount a share, or run the agent; for use inside a guest."),
    "health": Command("uvmshare.cli.health", "health", "Tell whether the daemon and VMs are healthy."),
    "doctor": Command(
        "uvmshare.cli.doctor", "doctor", "See what this host can and cannot do, and what to do about it."
    ),
    "demo": Command("uvmshare.demo.steps", "demo", "Boot a guest and share directories with it while it runs."),
    "hcs": Command("uvmshare.cli.hcs", "hcs", "Shares of a Hyper-V utility VM (Windows)."),
    "completion": Command("uvmshare.cli.completion", "completion", "Print a shell's completion script."),
}


@cache
def _command(name: str) -> click.Command:
    """Import a command, and make it ready."""
    from uvmshare.cli.empty import refusing_empty_values  # noqa: PLC0415  --help need not load it

    command = getattr(import_module(COMMANDS[name].module), COMMANDS[name].attribute)
    assert isinstance(command, click.Command)
    return refusing_empty_values(command)


class _LazyGroup(click.Group):
    """A group that imports a command when it is used: neither system's parts, nor asyncio, for `--help`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        return _command(cmd_name) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(package_name="uvmshare", message="%(prog)s %(version)s")
def cli() -> None:
    """Give a running utility VM host directories, and take them away again.

    \b
    On the host:   uvmshare serve --listen unix:/run/vm1.9p /srv/project:ro /srv/out
    In the guest:  uvmshare guest mount vsock:2 0 /mnt/project
    For programs:  uvmshare daemon, then uvmshare vm add, uvmshare share add
    To see it all: uvmshare demo

    Each command's --help has examples. Exit status: 0 success, 1 failure, 2 a wrong command line,
    130 interrupted. UVMSHARE_DEBUG=1 shows where an error came from.
    """  # noqa: D301  \b is click's mark for lines that stay as they are


def run(args: Sequence[str]) -> int:
    """Run one command line; returns the exit status, having said in one line on stderr what went wrong."""
    try:
        try:
            status = _invoke(args)
            sys.stdout.flush()
        except SystemExit as exit_:  # click ends so after a broken pipe and after completion
            status = exit_.code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        # The reader left early (head, less): nobody is left to tell.
        _forget_output()
        return 1
    except Exception as error:  # the last line of defence: no traceback for the user
        if missing_extra(error) is not None:
            raise  # the caller says how to install it
        if os.environ.get("UVMSHARE_DEBUG") == "1":
            raise
        try:
            sys.stdout.flush()
        except OSError:  # a full disk
            _forget_output()
        return _explain(error)
    return status if isinstance(status, int) else 0


def _invoke(args: Sequence[str]) -> object:
    _require_arguments(args)
    try:
        return cli.main(list(args), prog_name="uvmshare", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as help_:  # a group of commands, called without one
        say_lines(help_.format_message())
        return 0


def _forget_output() -> None:
    """Drop what standard output could not take: Python flushes it once more at exit, and would end with status 120."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _require_arguments(args: Sequence[str]) -> None:
    """Refuse what no shell passes and no system call takes: a Python caller may."""
    for argument in args:
        try:
            possible = b"\0" not in os.fsencode(argument)
        except UnicodeEncodeError:
            possible = False
        if not possible:
            msg = f"argument {argument!r} holds a NUL or half a character, which no name and no path does: leave it out"
            raise click.UsageError(msg)


def _explain(error: Exception) -> int:
    where, status, hint = "uvmshare", 1, ""
    if isinstance(error, click.ClickException):
        from uvmshare.cli.usage import what_is_wrong  # noqa: PLC0415  --help need not load it

        guess, status = "", error.exit_code
        if isinstance(error, click.UsageError):
            where = where if error.ctx is None else error.ctx.command_path
            from uvmshare.cli.guesses import what_was_meant  # noqa: PLC0415  as above

            guess = what_was_meant(error)
            hint = f" (see '{where} --help')"
        message = what_is_wrong(error, guess)
    elif isinstance(error, UvmshareError):
        message = str(error)
        status = 2 if isinstance(error, InvalidAddress) else 1
    elif isinstance(error, OSError) and error.strerror:
        from uvmshare.wording import reason_of  # noqa: PLC0415  as above

        message = reason_of(error)
    else:
        message = f"unexpected {type(error).__name__}: {error}"
        hint = " (a defect of uvmshare: please report it with what UVMSHARE_DEBUG=1 prints)"
    note(f"{where}: error: {briefly(message, 512, 4096)}{hint}")
    return status
