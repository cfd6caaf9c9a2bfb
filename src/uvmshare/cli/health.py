"""`uvmshare health`: whether the daemon, and VMs of it, are as they should be; for monitoring and health checks.

What lives here: the command, its lines and its exit status. What must not: what the daemon finds of itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from uvmshare.cli.output import note, print_json, say
from uvmshare.cli.remote import connected, host_option

if TYPE_CHECKING:
    from uvmshare.daemon.documents import Vm

__all__ = ["health"]


@click.command()
@click.argument("vms", metavar="[VM]...", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@host_option
def health(vms: tuple[str, ...], host: str | None, *, as_json: bool) -> int:
    """Tell whether the daemon answers and can write to its state directory, and whether VMs are served.

    The file server of a named VM must run, and its agent, if it has one, must be reached. Other VMs are only counted:
    the daemon is healthy even if a user's VM has failed.

    Exit status: 0 when everything is healthy, 1 otherwise, with the reason on standard error.

    \b
    Examples:
      uvmshare health
      uvmshare health build && echo "build is served"
      curl -f --unix-socket /run/uvmshare/uvmshare.sock http://localhost/v1/health
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host) as client:
        found = client.health()
        named = [client.vms.get(each) for each in vms]
    ill = [reason for each in named if (reason := _illness(each))]
    if as_json:
        print_json({"daemon": found, "vms": named, "reasons": ill})
    elif not ill:
        counted = ", ".join(f"{count} {state}" for state, count in found.vms.items()) or "none"
        say(f"ok: uvmshare {found.version}; VMs: {counted}")
    for reason in ill:
        note(f"uvmshare health: {reason}")
    return 1 if ill else 0


def _illness(vm: Vm) -> str | None:
    """Return what is wrong with a VM, if anything is."""
    if vm.state != "running":
        return f"VM {vm.id}: {vm.state}" + (f": {vm.error}" if vm.error else "")
    if vm.agent_state == "unreachable":
        return f"VM {vm.id}: its agent at {vm.agent} is not reached: see that it runs in the guest"
    return None
