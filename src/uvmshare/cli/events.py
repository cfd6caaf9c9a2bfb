"""`uvmshare events`: what happens in the daemon, as it happens.

What lives here: the lines. What must not: how they come (`uvmshare.daemon.client`).
"""

from __future__ import annotations

import click

from uvmshare.cli.remote import connected, host_option

__all__ = ["events"]


@click.command()
@click.option("--since", metavar="ID", help="Begin behind the event of this id.")
@click.option("--no-follow", is_flag=True, help="End with the last that there is, instead of waiting for more.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each.")
@host_option
def events(since: str | None, host: str | None, *, no_follow: bool, as_json: bool) -> None:
    """Follow what happens in the daemon: VMs, shares, who holds them, and leases that end.

    \b
    Examples:
      uvmshare events
      uvmshare events --json | jq 'select(.kind == "lease.ended")'
      uvmshare events --since 0 --no-follow
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    import msgspec  # noqa: PLC0415  --help need not load it

    with connected(host) as client:
        for event in client.events(since, follow=not no_follow):
            if event is None:
                click.echo("uvmshare events: some events before the next are not kept any more", err=True)
            elif as_json:
                click.echo(msgspec.json.encode(event))
            else:
                named = {"share": event.share, "owner": event.owner, **event.detail}
                words = " ".join(f"{key}={value}" for key, value in named.items() if value is not None)
                click.echo(f"{event.time:%Y-%m-%d %H:%M:%S} {event.vm} {event.kind} {words}".rstrip())
