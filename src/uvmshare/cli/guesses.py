"""What somebody may have meant who typed a command or an option that is not there.

What lives here: words that other tools use, and what they are called here. What must not: what a command does.
"""

from __future__ import annotations

import difflib
import re
from typing import Final

import click

__all__ = ["what_was_meant"]

_COMMANDS: Final = {
    "attach": "map, or inside a guest `guest mount`",
    "create": "vm add, or share add",
    "info": "doctor, or vm ls",
    "list": "vm ls, share ls, or mounts",
    "logs": "events",
    "ls": "vm ls, share ls, or mounts",
    "mount": "map, or inside a guest `guest mount`",
    "ps": "vm ls, or mounts",
    "remove": "share rm, or vm rm",
    "rm": "share rm, or vm rm",
    "run": "serve, or daemon",
    "add": "share add, or vm add",
    "start": "serve, or daemon",
    "status": "vm ls, or doctor",
    "stop": "share rm, or vm rm",
    "umount": "unmap",
    "unmount": "unmap",
    "up": "serve, or daemon",
    "version": "--version",
    "help": "--help",
}
_OF_GROUPS: Final = {
    "create": "add",
    "delete": "rm",
    "get": "inspect",
    "list": "ls",
    "new": "add",
    "ps": "ls",
    "release": "rm",
    "remove": "rm",
    "show": "inspect",
}
_OF_SHARES: Final = "a share is an argument of its own, PATH or PATH:ro; where the guest mounts it is `map`'s argument"
_OPTIONS: Final = {
    "-v": _OF_SHARES,
    "--volume": _OF_SHARES,
    "--mount": _OF_SHARES,
    "-p": "addresses are given by --listen",
    "--port": "addresses are given by --listen",
    "--ro": "write PATH:ro",
    "--read-only": "write PATH:ro",
}


def what_was_meant(error: click.UsageError) -> str:
    """Return a sentence to put behind an error, with a space before it; nothing where nobody can guess."""
    if error.ctx is None:
        return ""
    if isinstance(error, click.NoSuchOption):
        meant = None if error.possibilities else _OPTIONS.get(error.option_name)
        return "" if meant is None else f" Perhaps: {meant}."
    group, wanted = error.ctx.command, re.match(r"No such command '(.*)'\.( Did you mean.*)?$", error.message)
    if wanted is None or wanted[2] or not isinstance(group, click.Group):
        return ""
    there = group.list_commands(error.ctx)
    word = wanted[1]
    if error.ctx.parent is None:
        if word in _COMMANDS:
            return f" Did you mean {_COMMANDS[word]}?"
    elif _OF_GROUPS.get(word) in there:
        return f" Did you mean '{_OF_GROUPS[word]}'?"
    close = difflib.get_close_matches(word, there, 1)
    return f" Did you mean '{close[0]}'?" if close else ""
