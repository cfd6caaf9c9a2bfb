"""`uvmshare owner`: who holds shares and mounts, in all VMs, and releasing all that one holds.

What lives here: the commands, and the list that is made of shares and mounts. What must not: anything that the daemon's
client does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from uvmshare.cli.durations import in_words
from uvmshare.cli.listing import listing_options
from uvmshare.cli.output import say
from uvmshare.cli.remote import connected, host_option, of_vms
from uvmshare.errors import NotThere

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from uvmshare.cli.listing import ListForm
    from uvmshare.cli.owner_holds import OwnerHolds
    from uvmshare.daemon.client import Client

__all__ = ["owner"]


@click.group()
def owner() -> None:
    """Owners: who holds shares and mounts, in all VMs.

    \b
    Examples:
      uvmshare owner ls
      uvmshare owner release job-7
    """  # noqa: D301  \b is click's mark for lines that stay as they are


def _holds(client: Client, vms: Sequence[str] = ()) -> list[OwnerHolds]:
    from uvmshare.cli.owner_holds import holds  # noqa: PLC0415  --help need not load msgspec

    listed = None if vms else client.vms()
    return holds(of_vms(client, vms, client.shares, listed), of_vms(client, vms, client.mounts, listed))


@owner.command(short_help="List what each owner holds in each VM.")
@click.argument("vms", metavar="[VM]...", nargs=-1)
@host_option
@listing_options
def ls(vms: tuple[str, ...], host: str | None, *, listing: ListForm) -> None:
    """List what each owner holds in each VM, in some VMs or in all; as root, everybody's owners.

    \b
    Examples:
      uvmshare owner ls
      uvmshare owner ls build --format '{owner} {shares}'
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.cli.owner_holds import OwnerHolds  # noqa: PLC0415  --help need not load msgspec

    writer = listing.of(OwnerHolds, "owner", empty="nobody holds anything: uvmshare share add")
    with connected(host) as client:
        found = _holds(client, vms)
    writer.write(
        found,
        ("owner", "uid", "vm", "shares", "mounts", "lease ends in"),
        lambda each: (
            *(each.owner, each.uid, each.vm, _joined(each.shares), _joined(each.mounts)),
            "" if each.expires_in is None else in_words(each.expires_in),
        ),
    )


def _joined(names: Iterable[str]) -> str:
    return " ".join(names)


@owner.command(short_help="Release all that an owner of yours holds.")
@click.argument("name", metavar="OWNER")
@click.option("--force", "-f", is_flag=True, help="Do it whatever the guests say: each has five seconds to unmount.")
@host_option
def release(name: str, host: str | None, *, force: bool) -> None:
    """Release all shares and mounts that an owner of yours holds, in all VMs, and print them.

    It fails when the owner holds nothing, and when a guest does not unmount.

    \b
    Examples:
      uvmshare owner release job-7
      uvmshare owner release job-7 --force
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host) as client:
        you = client.info().you
        held = [each for each in _holds(client) if (each.uid, each.owner) == (you, name)]
        if not held:
            msg = f"owner {name!r} holds nothing: uvmshare owner ls lists who does"
            raise NotThere(msg)
        client.owners.release(name, force=force)
    for each in held:
        for share in each.shares:
            say(f"{each.vm} share {share}")
        for path in each.mounts:
            say(f"{each.vm} mount {path}")
