"""`uvmshare host`: the hosts of a fleet.

What lives here: the commands and their tables. What must not: anything that the client does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from uvmshare.cli.listing import listing_options
from uvmshare.cli.moments import moment
from uvmshare.cli.output import note, print_json, say
from uvmshare.cli.remote import connected, follower, host_option, json_option, require_gate

if TYPE_CHECKING:
    from uvmshare.cli.listing import ListForm

__all__ = ["host"]


@click.group()
def host() -> None:
    """Hosts of a fleet.

    \b
    Examples:
      uvmshare host ls
      uvmshare host rm host-17
      uvmshare host status
    """  # noqa: D301  \b is click's mark for lines that stay as they are


@host.command()
@host_option
@listing_options
def ls(host: str | None, *, listing: ListForm) -> None:
    """List the hosts of the fleet, through one of its gates.

    A host is "lost" when it has not been heard of for ten seconds. Its daemon may have ended, or the host may be down
    or cut off. Its shares may still be served.

    \b
    Examples:
      uvmshare host ls
      uvmshare host ls --format '{name} {state}'
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.daemon.fleet_documents import Host  # noqa: PLC0415  --help need not load it

    writer = listing.of(Host, "name", empty="no hosts: uvmshare fleet add-host")
    with connected(host) as client:
        require_gate(client, "uvmshare host ls")
        found = client.hosts()
    writer.write(
        found,
        ("name", "state", "vms", "version", "since"),
        lambda each: (
            *(each.name, each.state, each.vms, each.version or ""),
            "" if each.since is None else moment(each.since),
        ),
    )


@host.command()
@click.argument("name", metavar="HOST")
@host_option
def rm(name: str, host: str | None) -> None:
    """Remove a lost host from the fleet, with all its VMs. For administrators of the fleet.

    The names of its VMs are then free. If the host comes back, it ends these VMs.

    \b
    Example:
      uvmshare host rm host-17
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host) as client:
        require_gate(client, "uvmshare host rm")
        removed = client.hosts.remove(name)
    say(name)
    for vm in removed.vms:
        note(f"VM {vm} went with it")


@host.command()
@host_option
@json_option
def status(host: str | None, *, as_json: bool) -> None:
    """Show how this host follows its fleet, by its own daemon.

    \b
    Example:
      uvmshare host status
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with follower(host) as client:
        found = client.following()
    if as_json:
        print_json(found)
        return
    say(f"{found.host} of fleet {found.fleet}")
    say(f"tenants: {', '.join(found.tenants) or 'none'}")
    say("revision: " + ("none yet" if found.revision is None else str(found.revision)))
    say(f"state: {found.error or 'followed'}")


@host.command(short_help="Have this host follow the etcd that is there now.")
@click.option("--mine", is_flag=True, help="First write what this host serves into etcd, through a gate.")
@click.option("--gate", metavar="https://NAME:PORT", help="The gate for --mine, with an administrator's UVMSHARE_CERT.")
@host_option
def accept(host: str | None, gate: str | None, *, mine: bool) -> None:
    """Have this host follow the etcd that is there now, although it is another one or an older state.

    When etcd was restored from a backup, a host changes nothing and waits for this command. Then it ends what is not
    in that state, and adds what is. Type this on the host, as root.

    With --mine the host first writes into etcd what it serves, with all holders, so nothing of it is lost. It ends
    only VMs that another host has by now. If its daemon was started again meanwhile, it knows no leases: what was held
    with a lease is then held without one.

    \b
    Examples:
      uvmshare host accept
      uvmshare host accept --mine --gate https://gate.example:8443
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    if mine is (gate is None):
        msg = "--mine writes through a gate, and needs --gate https://NAME:PORT" if mine else "--gate is for --mine"
        raise click.UsageError(msg)
    with follower(host) as client:
        if gate is not None:
            with connected(gate) as fleet:
                require_gate(fleet, "uvmshare host accept --mine")
                written = fleet.hosts.write_back(client.following().host, client.served())
            for vm in written.vms:
                note(f"VM {vm} is written")
            for vm in written.elsewhere:
                note(f"VM {vm} is another host's by now, and ends here")
        say(client.accept_fleet().host)
