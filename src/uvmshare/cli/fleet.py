"""`uvmshare fleet`: what the administrator of a fleet does: certificates, roles, hosts, tenants, and how etcd is.

What lives here: the commands and their lines. What must not: what they do (`uvmshare.fleet.setup`).
"""

from __future__ import annotations

import asyncio
import string
from typing import TYPE_CHECKING, Final

import click

from uvmshare.cli.output import note, print_json, say, say_table
from uvmshare.cli.progress import waiting

if TYPE_CHECKING:
    from uvmshare.fleet.callers import Role
    from uvmshare.fleet.setup import FleetFolder, MemberStatus

__all__ = ["fleet"]

_OF_ADDRESSES: Final = frozenset(string.ascii_letters + string.digits + ".:-")
"""What a name or a number of a machine is made of."""

_folder = click.option(
    "--folder",
    type=click.Path(file_okay=False),
    default="fleet",
    show_default=True,
    help="The folder with the fleet's certificates. Keep it where nobody else reads it.",
)


def _open(path: str) -> FleetFolder:
    from uvmshare.fleet.setup import FleetFolder  # noqa: PLC0415  --help need not load grpc

    return FleetFolder(path)


@click.group()
def fleet() -> None:
    """Set up a fleet: many hosts that follow one etcd.

    \b
    Examples:
      uvmshare fleet init --etcd https://etcd-1:2379 --gate gate.example
      uvmshare fleet add-host host-17
      uvmshare fleet add-tenant acme --user ann
      uvmshare fleet status
    """  # noqa: D301  \b is click's mark for lines that stay as they are


@fleet.command(short_help="Make a fleet: its certificates and its roles in etcd.")
@click.option("--etcd", "endpoints", metavar="URL", multiple=True, required=True, help="A member of etcd; repeat it.")
@click.option(
    "--gate",
    "gates",
    metavar="ADDRESS",
    multiple=True,
    required=True,
    help="A gate's DNS name or IP address; repeat it.",
)
@click.option("--name", default="uvmshare", show_default=True, help="The fleet's name: the prefix of its keys.")
@_folder
def init(endpoints: tuple[str, ...], gates: tuple[str, ...], name: str, folder: str) -> None:
    """Make a fleet: first its certificates, then, when its etcd runs with them, the roles in etcd.

    So run it twice, with the same options: before etcd is started, and after. Existing files are never changed.

    \b
    Example:
      uvmshare fleet init --etcd https://etcd-1:2379 --etcd https://etcd-2:2379 --etcd https://etcd-3:2379 \\
                          --gate gate.example
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.fleet.keys import require_host_name  # noqa: PLC0415  --help need not load it
    from uvmshare.fleet.setup import Settings  # noqa: PLC0415  as above

    found = _open(folder)
    again = found.exists
    for each in gates:
        if not each or not set(each) <= _OF_ADDRESSES:
            msg = f"{each!r} is no name and no number of a machine: give one, such as gate.example or 192.0.2.1"
            raise click.BadParameter(msg, param_hint="'--gate'")
    settings = Settings(require_host_name(name, "fleet"), endpoints)
    with waiting("writing the roles in etcd" if again else "making certificates"):
        found.begin(settings, gates)
        if again:
            asyncio.run(found.write_roles())
    if again:
        say(f"the fleet is ready: its gates take {found.path}/gate, its administrators {found.path}/admin.pem")
        return
    say(f"{found.path} has the fleet's certificates")
    note(f"start each member of etcd with what is in {found.path}/etcd, and run this again:")
    note("  etcd --cert-file=member.pem --key-file=member.key --trusted-ca-file=ca.pem --client-cert-auth \\")
    note("       --peer-cert-file=member.pem --peer-key-file=member.key --peer-trusted-ca-file=ca.pem \\")
    note("       --peer-client-cert-auth ...")


@fleet.command("add-host", short_help="Let a host into the fleet.")
@click.argument("host")
@_folder
def add_host(host: str, folder: str) -> None:
    """Let a host into the fleet: make its certificate, and a role in etcd for its own keys alone.

    Copy the folder that it prints to the host. Say in its host.toml which tenants may do what on that host.

    \b
    Example:
      uvmshare fleet add-host host-17
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with waiting("writing the host's role in etcd"):
        path = asyncio.run(_open(folder).add_host(host))
    say(path)


@fleet.command("add-tenant", short_help="Let a tenant into the fleet, or change its limits.")
@click.argument("tenant")
@click.option(
    "--user", "users", metavar="NAME", multiple=True, help="A user of the tenant, who gets a certificate; repeat it."
)
@click.option("--vms", type=click.IntRange(0), help="How many VMs the tenant may have.  [default: 64]")
@click.option(
    "--holdings", type=click.IntRange(0), help="How many shares and mounts each VM may have.  [default: 1024]"
)
@click.option(
    "--holdings-in-all",
    type=click.IntRange(0),
    help="How many shares and mounts all their VMs may have, as gates count every few seconds.  [default: any]",
)
@click.option(
    "--own", metavar="NAME", multiple=True, help="Who may do everything with its VMs; repeat it.  [default: *]"
)
@click.option("--hold", metavar="NAME", multiple=True, help="Who may share and map; repeat it.  [default: *]")
@click.option("--read", metavar="NAME", multiple=True, help="Who may see its VMs; repeat it.  [default: *]")
@_folder
def add_tenant(
    tenant: str,
    users: tuple[str, ...],
    *,
    vms: int | None,
    holdings: int | None,
    holdings_in_all: int | None,
    own: tuple[str, ...],
    hold: tuple[str, ...],
    read: tuple[str, ...],
    folder: str,
) -> None:
    """Let a tenant into the fleet, change what they may have, and make certificates for their users.

    --own, --hold and --read name the users who have a role; * is every user with a certificate of the tenant. The names
    replace those that had the role. A user with --own may also hold, and a user with --hold may also read. What is not
    given stays as it was.

    \b
    Examples:
      uvmshare fleet add-tenant acme --user ann --user ci
      uvmshare fleet add-tenant acme --vms 200
      uvmshare fleet add-tenant acme --own ann --hold ci
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with waiting("writing the tenant in etcd"):
        limits = {"vms": vms, "holdings": holdings, "holdings_in_all": holdings_in_all}
        roles: dict[Role, tuple[str, ...]] = {"own": own, "hold": hold, "read": read}
        paths = asyncio.run(_open(folder).add_tenant(tenant, users, **limits, roles=roles))
    for path in paths:
        say(path)


@fleet.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of tables.")
@_folder
def status(folder: str, *, as_json: bool) -> int:
    """Show the members of etcd and the hosts of the fleet.

    Exit status: 0 when every member answers and none has an alarm, 1 otherwise.

    \b
    Examples:
      uvmshare fleet status
      uvmshare fleet status --json
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    found = _open(folder)

    async def ask() -> tuple[list[MemberStatus], dict[str, bool]]:
        members = await found.status()
        return members, await found.hosts() if any(each.version for each in members) else {}

    with waiting("asking the members of etcd"):
        members, hosts = asyncio.run(ask())
    if as_json:
        print_json({"etcd": members, "hosts": hosts})
    else:
        _table(
            ("ETCD", "VERSION", "MIB", "STATE"),
            [
                (each.url, each.version, str(each.bytes // 2**20), ", ".join((each.state, *each.alarms)))
                for each in members
            ],
        )
        _table(("HOST", "STATE"), [(name, "alive" if alive else "lost") for name, alive in hosts.items()])
    return 0 if all(each.version and not each.alarms for each in members) else 1


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (header, *rows)]
    say_table(lines[0], lines[1:])
