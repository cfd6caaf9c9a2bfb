"""`uvmshare vm`: the VMs that the daemon knows.

What lives here: the commands and their tables. What must not: anything that the daemon's client does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from uvmshare.cli.listing import listing_options
from uvmshare.cli.moments import moment
from uvmshare.cli.output import note, print_json, say
from uvmshare.cli.remote import (
    connected,
    each_in_turn,
    follower,
    host_option,
    json_option,
    no_table_option,
    own_daemon,
    require_gate,
    require_request,
    vm_argument,
)
from uvmshare.cli.server_options import allow_uid_option, cgroup_limits, limit_options
from uvmshare.fileserver.models import LINKS, SECURITY_MODELS

if TYPE_CHECKING:
    from uvmshare.cli.listing import ListForm
    from uvmshare.daemon.documents import Vm
    from uvmshare.fileserver.limits import Limits

__all__ = ["vm"]


@click.group()
def vm() -> None:
    """VMs that the daemon knows.

    \b
    Examples:
      uvmshare vm add build firecracker:/run/fc/v.sock
      uvmshare vm ls
      uvmshare vm rm build
    """  # noqa: D301  \b is click's mark for lines that stay as they are


@vm.command(short_help="Start a file server for a VM.")
@click.argument("id_", metavar="ID")
@click.argument("listen", metavar="[ADDRESS]...", nargs=-1)
@click.option("--compute-system", metavar="ID", help="A Hyper-V compute system, in place of addresses (Windows).")
@click.option(
    "--security-model",
    type=click.Choice(SECURITY_MODELS),
    default=SECURITY_MODELS[0],
    show_default=True,
    help="How the guest's owners and modes are kept in the host's files; see uvmshare serve.",
)
@click.option(
    "--links",
    type=click.Choice(LINKS),
    default=LINKS[0],
    show_default=True,
    help="How the host keeps symbolic links that the guest makes; see uvmshare serve.",
)
@click.option("--allow-remote", is_flag=True, help="Allow a TCP address off loopback.")
@allow_uid_option
@click.option(
    "--socket-mode",
    metavar="MODE",
    default="600",
    show_default=True,
    help="Permissions of the file server's Unix sockets, for a VM that runs as another user.",
)
@click.option("--read-only", is_flag=True, help="Refuse writable shares.")
@click.option(
    "--limit",
    "limits",
    metavar="NAME=NUMBER",
    multiple=True,
    callback=limit_options,
    help="What the VM or one mount may use of this host; see uvmshare serve.",
)
@click.option(
    "--cgroup",
    metavar="NAME=VALUE",
    multiple=True,
    callback=cgroup_limits,
    help="A limit of the control group that holds the file server's processes, in the kernel's names and forms, such "
    "as memory.max=1073741824 or 'cpu.max=50000 100000'.",
)
@click.option(
    "--agent",
    metavar="ADDRESS",
    help="Where the agent in the guest is reached, such as firecracker:UDS_PATH or "
    "tcp:127.0.0.1:5641; uvmshare map needs it.",
)
@click.option("--agent-dials", is_flag=True, help="The agent dials: the daemon listens for it at that address.")
@click.option(
    "--agent-token-file",
    type=click.File("rb"),
    metavar="FILE",
    help="A file with the secret that the agent was started with.",
)
@click.option("--on", metavar="HOST", help="The host of the fleet where the VM runs, for a fleet's gate.")
@click.option(
    "--fence",
    type=click.FloatRange(3, 3600),
    metavar="SECONDS",
    help="With --on: never two hosts serve the VM at once. A host that is cut off from etcd stops after this time.",
)
@click.option(
    "--agent-token-on-host",
    "token_there",
    metavar="FILE",
    help="With --on: a file on that host with the agent's secret.",
)
@host_option
@json_option
def add(
    id_: str,
    listen: tuple[str, ...],
    compute_system: str | None,
    *,
    security_model: str,
    links: str,
    socket_mode: str,
    host: str | None,
    agent: str | None,
    agent_dials: bool,
    agent_token_file: BinaryIO | None,
    cgroup: dict[str, str],
    allow_remote: bool,
    allow_uids: tuple[int | str, ...],
    read_only: bool,
    limits: Limits | None,
    on: str | None,
    fence: float | None,
    token_there: str | None,
    as_json: bool,
) -> None:
    """Start a file server for a VM, on these addresses, with your rights to files.

    ID is a name of your choice. Addresses are those of uvmshare serve, such as firecracker:UDS_PATH, vsock:CID,
    unix:PATH or tcp:127.0.0.1:0. Adding the same VM again changes nothing.

    \b
    Examples:
      uvmshare vm add build firecracker:/run/fc/v.sock
      uvmshare vm add ci vsock:3 --read-only --limit mounts=16
      uvmshare vm add dev firecracker:/run/fc/v.sock --agent firecracker:/run/fc/v.sock
      uvmshare vm add build --on host-17 firecracker:/run/fc/v.sock
      uvmshare vm add build --on host-17 --fence 10 firecracker:/run/fc/v.sock
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    import msgspec  # noqa: PLC0415  --help need not load it

    from uvmshare.daemon.documents import NewVm  # noqa: PLC0415  as above

    wanted: dict[str, Any] = {
        "id": id_,
        "listen": listen,
        "compute_system": compute_system,
        "security_model": security_model,
        "links": links,
        "socket_mode": socket_mode,
        "allow_remote": allow_remote,
        "cgroup": cgroup,
        "allow_uids": allow_uids,
        "read_only": read_only,
        "agent": agent,
        "agent_dials": agent_dials,
        "agent_token": None if agent_token_file is None else _token_in(agent_token_file),
        "limits": {} if limits is None else msgspec.to_builtins(limits, builtin_types=()),
        "fence": fence,
    }
    require_request(NewVm, wanted, _NAMES)
    if bool(listen) == (compute_system is not None):
        have = "has both: give one of them" if listen else "has neither: give an ADDRESS, such as unix:/run/vm1.9p"
        msg = f"VM {id_!r} is reached at an ADDRESS or is a --compute-system, and {have}"
        raise click.UsageError(msg)
    if fence is not None and on is None:
        msg = "--fence is for a VM of a fleet: give --on too"
        raise click.UsageError(msg)
    if token_there is not None and on is None:
        msg = "--agent-token-on-host names a file on a host of a fleet: give --on too, or --agent-token-file"
        raise click.UsageError(msg)
    with connected(host, f"starting the file server of VM {id_}") as client:
        if on is not None:
            require_gate(client, "--on")
        added = client.vms.add(**wanted, on=on, agent_token_file=token_there)
    if as_json:
        print_json(added)
    else:
        say(added.id)
        for address in added.addresses:
            note(f"listening on {address}")
        for each in added.notes:
            note(f"uvmshare vm add: note: {each}")
        if added.agent_state == "unreachable":
            why = f" ({added.agent_error})" if added.agent_error is not None else ""
            note(f"the agent at {added.agent} is not reached yet{why}: uvmshare vm ls shows when it is")


@vm.command(short_help="Have another host serve a VM.")
@vm_argument()
@click.option("--to", metavar="HOST", required=True, help="The host of the fleet that is to serve it.")
@click.option("--prepare", "step", flag_value="prepare", help="Check that HOST could serve the VM. Nothing moves yet.")
@click.option("--commit", "step", flag_value="commit", help="End the old file server, then start one on HOST.")
@click.option("--abort", "step", flag_value="abort", help="End a --prepare. The VM stays where it is.")
@click.option("--take", is_flag=True, help="Take the VM from a host that is lost.")
@click.option(
    "--i-made-sure",
    "made_sure",
    is_flag=True,
    help="With --take: you made sure that the lost host neither serves nor runs the VM.",
)
@host_option
def move(vm: str, to: str, step: str | None, host: str | None, *, take: bool, made_sure: bool) -> None:
    """Have another host serve a VM, with the same shares, names and holders. For a gate of a fleet.

    This moves no memory. Run it beside what moves the VM itself: --prepare before the memory is moved, --commit when
    the VM no longer runs on the old host. Without either, both steps are done. Each may be repeated. The guest's
    connections end; its agent mounts again.

    A host that is lost may still serve the VM and run it. End both, and then take the VM with --take --i-made-sure. A
    host stops serving a VM with a fence by itself: take such a VM with --take alone.

    \b
    Examples:
      uvmshare vm move build --to host-18
      uvmshare vm move build --to host-18 --take --i-made-sure
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host, f"waiting for the hosts of VM {vm}") as client:
        require_gate(client, "uvmshare vm move")
        moved = client.vms.move(vm, to, step=step or "all", take=take, made_sure=made_sure)  # type: ignore[arg-type]  # one of the flags
    say(moved.id)
    note(f"VM {moved.id!r} is on host {moved.host}")


@vm.command(short_help="Add a VM with the shares and holders of another.")
@vm_argument()
@click.argument("id_", metavar="ID")
@click.argument("listen", metavar="[ADDRESS]...", nargs=-1)
@click.option("--on", metavar="HOST", required=True, help="The host of the fleet where the copy runs.")
@click.option("--agent", metavar="ADDRESS", help="Where its agent is reached. [default: the address of VM's agent]")
@host_option
def clone(vm: str, id_: str, listen: tuple[str, ...], *, on: str, agent: str | None, host: str | None) -> None:
    """Add VM ID with the same shares, names and holders as VM: for a snapshot that is restored twice.

    Without an ADDRESS its file server listens at the addresses of VM. On the same host they are taken.

    \b
    Examples:
      uvmshare vm clone build build-2 --on host-19
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host, f"waiting for host {on}") as client:
        require_gate(client, "uvmshare vm clone")
        say(client.vms.clone(vm, id_, on=on, listen=listen, agent=agent).id)


@vm.command(short_help="Let a VM of this host join its fleet.")
@vm_argument()
@click.option("--tenant", metavar="NAME", required=True, help="The tenant to whom the VM is to belong.")
@click.option("--daemon", metavar="unix:PATH", help="This host's daemon. [default: your own, or the system's]")
@host_option
def join(vm: str, tenant: str, daemon: str | None, host: str | None) -> None:
    """Let a VM of this host's own daemon join its fleet. Its shares keep their names and holders.

    Type this on the host, as the VM's user, with a gate for --host and a certificate of the tenant. The guest notices
    nothing. From then on programs ask a gate for the VM. Owners keep their names, and leases start again.

    \b
    Examples:
      uvmshare vm join build --tenant acme
      uvmshare vm leave build
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host, f"waiting for the host of VM {vm}") as gate:
        require_gate(gate, "uvmshare vm join")
        with follower(daemon or own_daemon()) as client:
            offered = client.offer_vm(vm, tenant)
        joined = gate.vms.join(offered)
    say(joined.id)
    for each in offered.kept:
        note(
            f"{each.kind} {each.share}: held by {each.owner}" + ("" if each.lease is None else f" for {each.lease:g} s")
        )


@vm.command(short_help="Let a VM leave the fleet.")
@vm_argument()
@host_option
def leave(vm: str, host: str | None) -> None:
    """Let a VM that joined the fleet leave it: it is its host's own again. Owners keep what they hold.

    The guest notices nothing. From then on programs ask the host's own daemon for the VM.

    \b
    Example:
      uvmshare vm leave build
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host, f"waiting for the host of VM {vm}") as client:
        require_gate(client, "uvmshare vm leave")
        client.vms.leave(vm)
    say(vm)


_NAMES: Final = {
    "id": "ID",
    "listen": "ADDRESS",
    "compute_system": "--compute-system",
    "socket_mode": "--socket-mode",
    "limits": "--limit",
    "cgroup": "--cgroup",
    "agent": "--agent",
    "agent_token": "--agent-token-file",
    "allow_uids": "--allow-uid",
}


def _token_in(file: BinaryIO) -> str:
    try:
        return file.read().decode().strip()
    except UnicodeDecodeError as error:
        msg = f"{file.name}: the agent's token is not UTF-8: write another into it, and start the agent with that"
        raise click.UsageError(msg) from error


@vm.command()
@host_option
@listing_options
def ls(host: str | None, *, listing: ListForm) -> None:
    """List your VMs; as root, all VMs.

    AGENT says whether the agent in the guest is reached, and since when; "none" means that the VM has no agent. An
    agent that falls silent is shown as unreachable within ten seconds, also when nobody asks it for anything.

    \b
    Examples:
      uvmshare vm ls
      uvmshare vm ls --format '{id:<12} {state}'
      uvmshare vm rm $(uvmshare vm ls -q)
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.daemon.documents import Vm  # noqa: PLC0415  --help need not load it

    writer = listing.of(Vm, "id", empty="no VMs: uvmshare vm add")
    with connected(host) as client:
        found = client.vms()
    writer.write(
        found,
        ("id", "state", "addresses", "agent", "model", "shares", "memory", "error"),
        lambda each: (
            *(each.id, each.state, " ".join(each.addresses or each.listen), _agent(each)),
            *(each.security_model, each.shares, _memory(each)),
            "; ".join(why for why in (each.error, each.agent_error, *each.notes) if why),
        ),
    )


@vm.command()
@vm_argument()
@no_table_option
@host_option
def inspect(vm: str, host: str | None) -> None:
    """Print everything about a VM, as JSON.

    \b
    Example:
      uvmshare vm inspect build | jq -r .agent_state
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host) as client:
        print_json(client.vms.get(vm))


def _agent(vm: Vm) -> str:
    """Say whether the agent in the guest is reached, and since when."""
    if vm.agent_state is None:
        return "none"
    return vm.agent_state + ("" if vm.agent_since is None else f" since {moment(vm.agent_since)}")


def _memory(vm: Vm) -> str:
    """Say how many MiB a VM's group uses, and of how many."""
    if vm.use is None or vm.use.memory is None:
        return ""
    most = vm.cgroup_limits.get("memory.max", "max")
    return f"{vm.use.memory >> 20}" + (f"/{int(most) >> 20}" if most != "max" else "") + " MiB"


@vm.command()
@vm_argument(many=True)
@click.option("--force", "-f", is_flag=True, help="Remove the VM although shares are held; the shares are removed too.")
@host_option
def rm(vms: tuple[str, ...], host: str | None, *, force: bool) -> None:
    """End the file servers of VMs and forget them.

    \b
    Examples:
      uvmshare vm rm build
      uvmshare vm rm --force build test
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host, "ending file servers") as client:

        def remove(name: str) -> None:
            removed = client.vms.remove(name, force=force)
            say(name)
            if removed.left is not None:
                note(f"VM {name!r} was removed, and {removed.left}")

        each_in_turn(vms, remove)
