"""`uvmshare serve`: the Linux file server in the foreground, for those who do not drive it from Python.

What lives here: the command's options and the order in which things start and end.
What must not: anything of the file server or the Manager; both are used as any other caller uses them.
"""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Final, Literal

import click

from uvmshare.cli.foreground import Ready, print_line, serve_shares, until_signalled
from uvmshare.cli.output import note
from uvmshare.cli.progress import waiting
from uvmshare.cli.server_options import allow_uid_option, limit_options, octal_mode
from uvmshare.cli.share_spec import share_options, shares_argument, sharing_options, with_sharing_options
from uvmshare.errors import FileServerError, OperationDenied, UnsupportedPlatform
from uvmshare.fileserver.models import LINKS, SECURITY_MODELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvmshare import FileServer, Manager, RecoveryReport
    from uvmshare.cli.share_spec import ShareSpec
    from uvmshare.fileserver.control import Reply
    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.models import Links, SecurityModel

__all__ = ["serve"]

_JOURNAL: Final = "journal.db"
"""`JOURNAL` of `uvmshare.fileserver.rundir.directory`, which does not load on Windows."""
_OWNER: Final = "uvmshare serve"
"""Who holds the shares in the journal: the next command with the same run directory is the same owner."""


@click.command()
@click.option(
    "--listen",
    "-l",
    "listen",
    metavar="ADDRESS",
    required=True,
    multiple=True,
    help="Where guests connect; give it once for each address.",
)
@click.option(
    "--security-model",
    type=click.Choice(SECURITY_MODELS),
    default=SECURITY_MODELS[0],
    show_default=True,
    help="How the guest's owners and modes are kept in the host's files (see above).",
)
@click.option(
    "--links",
    type=click.Choice(LINKS),
    default=LINKS[0],
    show_default=True,
    help="How the host keeps symbolic links that the guest makes under mapped-xattr. mapped: files with an attribute; "
    "real: links, for people who work on both sides. A real link may lead programs of the host out of the share.",
)
@click.option(
    "--allow-remote",
    is_flag=True,
    help="Allow a TCP address off loopback. Whoever reaches it has the shares: 9P asks for no password here.",
)
@allow_uid_option
@click.option(
    "--socket-mode",
    metavar="MODE",
    type=octal_mode,
    default="600",
    show_default=True,
    help="Permissions of Unix sockets, for a VM that runs as another user. Whoever may connect has the shares.",
)
@click.option(
    "--run-dir",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help="Keep the state of the file server in this directory. Guests go on when this command is killed, and the same "
    "command goes on from there (see above).",
)
@click.option(
    "--limit",
    "limits",
    metavar="NAME=NUMBER",
    multiple=True,
    callback=limit_options,
    help="What the VM or one mount may use of this host, such as operations_per_second=2000. 'none' lifts a limit, "
    "where that is allowed. read_only_host_locks=true lets guests lock the host's files through read-only shares, so "
    "that the host's programs wait. An unknown name prints the list of names.",
)
@sharing_options
@shares_argument
def serve(
    listen: tuple[str, ...],
    security_model: SecurityModel,
    socket_mode: int,
    run_dir: str | None,
    shares: tuple[ShareSpec, ...],
    *,
    links: Links,
    hide: tuple[str, ...],
    map_owner: str | None,
    limits: Limits | None,
    allow_remote: bool,
    allow_uids: tuple[int | Literal["any"], ...],
) -> None:
    """Serve host directories to a running guest until SIGINT or SIGTERM.

    Each SHARE is PATH[:ro][:only=NAME,NAME][:hide=PATTERN,PATTERN]: a directory. ":ro" makes it read-only.
    ":only=" shares only these names at its top. ":hide=" hides what a pattern matches. If PATH is a file, that
    file alone is shared. All shares are served, or none is.

    \b
    Addresses:
      unix:PATH                          a Unix socket
      firecracker:UDS_PATH[:PORT]        Firecracker's vsock device
      cloud-hypervisor:UDS_PATH[:PORT]   Cloud Hypervisor's vsock device
      vsock:CID[:PORT]                   vhost-vsock; that guest alone may connect
      tcp:HOST:PORT                      loopback, unless --allow-remote
    PORT is 5640 unless given.

    \b
    Security models, as QEMU names them:
      mapped-xattr   owners, modes and special files live in user.virtfs.* attributes; no root needed
      passthrough    the guest's owners and modes are the host's; needs root
      none           the guest's owners, setuid and setgid bits are ignored

    \b
    Examples:
      uvmshare serve --listen unix:/run/vm1.9p /srv/project:ro /srv/out
      uvmshare serve --listen firecracker:/run/fc/v.sock ~/src:ro:only=main.py,lib
      uvmshare serve --listen unix:/run/vm1.9p --hide node_modules --hide .env --map-owner 1000:0 ~/src
      uvmshare serve --listen vsock:3 --security-model none /var/cache/ci
      uvmshare serve --listen unix:/run/vm1.9p --limit bytes_per_second=50000000 --limit mounts=4 /srv/out

    It prints one line of JSON for each share, then one that says it is ready:

    \b
      {"share":"0","path":"/srv/project","read_only":true}
      {"share":"1","path":"/srv/out","read_only":false}
      {"ready":true,"addresses":["unix:/run/vm1.9p"]}

    The guest then mounts a share by its name: uvmshare guest mount ADDRESS 0 /mnt

    With --run-dir, guests keep their mounts when this command or the file server behind it is killed
    (kill -9). A file server that died is started again, and takes the mounts over. If this command was killed,
    give it again with the same directory, and it goes on: a path that is shared already keeps its share and its
    name, new paths are added, and paths that are not given any more are removed. A server that still runs keeps
    its addresses and settings. SIGINT and SIGTERM still end everything.

    A directory that you may not write must be shared with ":ro". If guests cannot reach an address, a line on
    standard error says why before the command is ready.

    Exit status: 0 after SIGTERM or SIGHUP, 130 after SIGINT (Ctrl-C), 1 when it could not serve or ended by
    itself, 2 for a wrong command line.
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    if sys.platform != "linux":
        msg = (
            "uvmshare serve needs a Linux host; on Windows use uvmshare hcs serve, which drives the system's own server"
        )
        raise UnsupportedPlatform(msg)
    options = share_options(with_sharing_options(each, hide, map_owner) for each in shares)
    _require_access(shares)

    async def serving() -> None:
        from uvmshare import FileServer, Manager, SqliteJournal  # noqa: PLC0415  --help need not load them
        from uvmshare.fileserver.host import out_of_reach  # noqa: PLC0415  as above
        from uvmshare.fileserver.limits import Limits  # noqa: PLC0415  as above

        async def start() -> FileServer:
            if run_dir is not None:
                with suppress(FileServerError):
                    return await FileServer.connect(run_dir, take_over=False).start()
            return await FileServer(
                listen=listen,
                security_model=security_model,
                links=links,
                allow_remote=allow_remote,
                allow_uids=allow_uids,
                socket_mode=socket_mode,
                run_dir=run_dir,
                limits=limits or Limits(),
            ).start()

        async with AsyncExitStack() as stack:
            with waiting("starting the file server"):
                journal = None
                if run_dir is not None:
                    _make_run_dir(run_dir)
                    journal = stack.enter_context(SqliteJournal(os.path.join(run_dir, _JOURNAL))).for_vm()
                    await journal.load()  # so that of two commands the second ends before it touches the server
                server = await stack.enter_async_context(await start())
                manager = await stack.enter_async_context(Manager(server, journal=journal))
                for each in (*server.notes, *out_of_reach(server.addresses)):
                    _note(each)
                _say_takeovers(server, manager)
                await serve_shares(manager, options, owner=None if journal is None else _OWNER)
            print_line(Ready(ready=True, addresses=server.addresses))
            reason = await server.wait_exit()
            msg = f"{reason}; no guest has its shares any more"
            raise FileServerError(msg)

    until_signalled(serving())


def _require_access(shares: Sequence[ShareSpec]) -> None:
    """See that this user may read what is to be served, and write what is not read-only. Raises `OperationDenied`."""
    if sys.platform == "linux":  # elsewhere the file server says that it cannot be there
        from uvmshare.hostfiles import require_access  # noqa: PLC0415  it is Linux's alone

        for each in shares:
            try:
                require_access(each.path, os.geteuid(), read_only=each.read_only)
            except OperationDenied:
                raise
            except OSError:  # it is gone meanwhile, and the file server says so
                continue


def _make_run_dir(run_dir: str) -> None:
    """Make the directory, in which the journal is, too. Raises `FileServerError`."""
    from uvmshare.hostfiles import make_own_directory  # noqa: PLC0415  it is Linux's alone

    try:
        make_own_directory(run_dir)
    except OSError as error:
        msg = f"run directory {run_dir!r}: {error.strerror or error}; change that or choose another"
        raise FileServerError(msg) from error


def _note(text: str) -> None:
    note(f"uvmshare serve: note: {text}")


def _say_takeovers(server: FileServer, manager: Manager) -> None:
    """Say when another supervisor has taken over, what that one lost, and what the manager could not add again yet."""

    def taken_over(status: Reply) -> None:
        _note(f"the file server had died; process {status.pid} has taken over {len(status.shares)} shares")
        for lost in status.lost:
            _note(f"share {lost.name} ({lost.path}) was lost: {lost.reason}")

    def settled(outcome: RecoveryReport | Exception) -> None:
        why = outcome if isinstance(outcome, Exception) else outcome.listing_error
        if why is not None:
            _note(f"the shares that it lost are not known yet, and it is asked again: {why}")
        for share in () if isinstance(outcome, Exception) else outcome.unsettled:
            _note(str(share))

    server.on_takeover(taken_over)
    manager.on_settled(settled)
