"""`uvmshare events`: what happens in the daemon, as it happens.

What lives here: the lines. What must not: how they come (`uvmshare.daemon.client`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from uvmshare.cli.output import note, say, say_json
from uvmshare.cli.remote import connected, host_option
from uvmshare.printable import printable

if TYPE_CHECKING:
    from uvmshare.daemon.documents import Event

__all__ = ["events"]


@click.command()
@click.option("--since", metavar="ID", help="Begin after the event with this id; 0: with the oldest that is kept.")
@click.option("--no-follow", is_flag=True, help="End after the last event, instead of waiting for more.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each event.")
@host_option
def events(since: str | None, host: str | None, *, no_follow: bool, as_json: bool) -> None:
    """Follow what happens in the daemon: VMs, shares, who holds them, and leases that end.

    \b
    Examples:
      uvmshare events
      uvmshare events --json | jq 'select(.kind == "lease.ended")'
      uvmshare events --since 0 --no-follow
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    if since is not None and since != "0" and not re.fullmatch(r"\S+-[0-9]{1,18}", since, re.ASCII):
        msg = f"{since!r} is no event's id: give one that --json shows, or 0"
        raise click.BadParameter(msg, param_hint="'--since'")
    with connected(host, "") as client:
        for event in client.events(since, follow=not no_follow):
            if event is None:
                note("uvmshare events: some events before the next one are not kept any more")
            elif as_json:
                say_json(event)
            else:
                say(line_of(event))


def line_of(event: Event) -> str:
    """Return the event for people; a value with a space in it stands in quotes, so that it makes up no field."""
    named = {"share": event.share, "owner": event.owner, **event.detail}
    words = " ".join(f"{key}={_quoted(_in_words(value))}" for key, value in named.items() if value is not None)
    return f"{event.time:%Y-%m-%d %H:%M:%S} {event.vm} {event.kind} {words}".rstrip()


def _in_words(value: object) -> str:
    """Return a detail as commands take it: neither Python's words nor its brackets."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(_in_words, value)) if isinstance(value, list | tuple) else str(value)


def _quoted(value: str) -> str:
    text = printable(value)
    if not set(text) & set(' "='):
        return text
    return '"' + text.replace('"', '\\"') + '"'
