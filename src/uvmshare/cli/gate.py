"""`uvmshare gate`: a gate of a fleet in the foreground, as systemd and people start it.

What lives here: its options. What must not: anything that it does (`uvmshare.fleet`).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from uvmshare.cli.foreground import INTERRUPTED
from uvmshare.cli.server_options import log_options

if TYPE_CHECKING:
    from uvmshare.daemon.logs import Format

__all__ = ["gate"]


@click.command()
@click.option(
    "--fleet",
    "path",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    required=True,
    help="The gate's fleet file: where etcd is, where to listen, and which certificates (docs/fleet.md).",
)
@log_options
def gate(path: str, *, log_format: Format, log_level: str) -> None:
    """Take what users of a fleet ask for, over HTTPS, until SIGINT or SIGTERM.

    A fleet is many hosts, each with its daemon, that follow one etcd. A gate keeps nothing: start as many as you
    like, on any machines. Users reach it with certificates of their tenant.

    \b
    Examples:
      uvmshare gate --fleet /etc/uvmshare/gate.toml
      UVMSHARE_HOST=https://gate.example:8443 uvmshare host ls

    Exit status: 0 after SIGTERM, 130 after SIGINT (Ctrl-C), 1 when it could not be started.
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    import asyncio  # noqa: PLC0415  --help need not load a server

    from uvmshare.daemon import logs  # noqa: PLC0415  as above
    from uvmshare.fleet.connecting import connecting  # noqa: PLC0415  as above
    from uvmshare.fleet.gatefile import read_gate_file  # noqa: PLC0415  as above
    from uvmshare.fleet.keys import Keys  # noqa: PLC0415  as above
    from uvmshare.fleet.server import serve_gate  # noqa: PLC0415  as above

    logs.configure(log_format, log_level)
    file = read_gate_file(path)
    if asyncio.run(serve_gate(file, connecting(file.ends), Keys(file.ends.fleet))):
        sys.exit(INTERRUPTED)
