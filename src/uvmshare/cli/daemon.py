"""`uvmshare daemon`: the daemon in the foreground, as systemd and people start it.

What lives here: its options. What must not: anything that it does (`uvmshare.daemon`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from uvmshare.cli.foreground import INTERRUPTED
from uvmshare.cli.server_options import cgroup_limits, log_options, octal_mode
from uvmshare.errors import UnsupportedPlatform

if TYPE_CHECKING:
    from uvmshare.daemon.logs import Format

__all__ = ["daemon"]


@click.command()
@click.option("--socket", "socket_path", metavar="PATH", help="Where clients connect. [default: RUN_DIR/uvmshare.sock]")
@click.option(
    "--socket-mode",
    metavar="MODE",
    type=octal_mode,
    default="660",
    show_default=True,
    help="Permissions of that socket. Users see only their own VMs, so 666 is safe.",
)
@click.option("--socket-group", metavar="GROUP", help="The group of that socket.")
@click.option(
    "--run-dir",
    metavar="DIR",
    help="For files that a boot of the host removes. [default: /run/uvmshare; a user's: $XDG_RUNTIME_DIR/uvmshare]",
)
@click.option(
    "--state-dir",
    metavar="DIR",
    help="For files that are kept. [default: /var/lib/uvmshare; a user's: $XDG_STATE_HOME/uvmshare]",
)
@click.option(
    "--user-vms",
    metavar="COUNT",
    type=click.IntRange(min=0),
    default=64,
    show_default=True,
    help="How many VMs each user of the host may have. Root and the daemon's user may have any number.",
)
@click.option(
    "--user-shares",
    metavar="COUNT",
    type=click.IntRange(min=0),
    default=1024,
    show_default=True,
    help="How many shares and mounts each user of the host may hold in all their VMs. Root and the daemon's user may "
    "hold any number.",
)
@click.option(
    "--cgroup",
    metavar="DIR",
    default="auto",
    show_default=True,
    help="The control group (cgroup v2) below which each VM's processes get their own. auto: the daemon's group, if "
    "systemd delegated it; own: the daemon's group, for a user's unit, whose systemd marks no group as delegated; "
    "none: no groups.",
)
@click.option(
    "--vm-cgroup",
    metavar="NAME=VALUE",
    multiple=True,
    callback=cgroup_limits,
    help="A limit of each VM's group, such as memory.max=1073741824; users may ask for less.",
)
@click.option(
    "--fleet",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Follow a fleet too, as this host's fleet file says (docs/fleet.md).",
)
@log_options
def daemon(
    socket_path: str | None,
    socket_mode: int,
    *,
    socket_group: str | None,
    run_dir: str | None,
    state_dir: str | None,
    user_vms: int,
    user_shares: int,
    cgroup: str,
    vm_cgroup: dict[str, str],
    fleet: str | None,
    log_format: Format,
    log_level: str,
) -> None:
    """Own the shares of all VMs of this host, for every program on it, until SIGINT or SIGTERM.

    As root it serves all users of the host. Users have VMs of their own, served with their rights to files. As
    any other user it serves that user. Shares go on when the daemon ends or is killed. Start it again, and it
    finds everything as it was.

    \b
    Examples:
      uvmshare daemon
      uvmshare daemon --socket-group kvm
      uvmshare daemon --run-dir /tmp/try/run --state-dir /tmp/try/state --log-format json

    \b
    Then, elsewhere:
      uvmshare vm add build firecracker:/run/fc/v.sock
      uvmshare share add build ~/project:ro
      curl --unix-socket /run/uvmshare/uvmshare.sock http://localhost/v1/vms

    The API describes itself at /v1/openapi.json. For systemd there are units in contrib/systemd.

    Exit status: 0 after SIGTERM, 130 after SIGINT (Ctrl-C), 1 when it could not be started.
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    if sys.platform != "linux":
        msg = (
            "uvmshare daemon needs a Linux host; on Windows use, in a process of your own, a Manager over "
            "uvmshare.hcs.compute_system.ComputeSystem (docs/windows.md)"
        )
        raise UnsupportedPlatform(msg)
    import asyncio  # noqa: PLC0415  --help need not load a server

    from uvmshare.daemon import logs  # noqa: PLC0415  as above
    from uvmshare.daemon.server import Settings, serve  # noqa: PLC0415  as above

    logs.configure(log_format, log_level)
    settings = Settings(
        socket_path=socket_path,
        socket_mode=socket_mode,
        socket_group=socket_group,
        run_dir=run_dir,
        state_dir=state_dir,
        cgroup=None if cgroup == "none" else cgroup,
        vm_cgroup=vm_cgroup,
        user_vms=user_vms,
        user_shares=user_shares,
    )
    beside = None
    if fleet is not None:
        from uvmshare.fleet.host import FleetSide  # noqa: PLC0415  without a fleet nothing of it is loaded

        beside = FleetSide(fleet)
    if asyncio.run(serve(settings, beside=beside)):
        sys.exit(INTERRUPTED)
