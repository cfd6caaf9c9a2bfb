"""`uvmshare dashboard`: a page that shows what the daemon has, for the user who runs the command.

What lives here: the command's options, the lines it prints, and the browser that it opens. What must not: the page and
its port (`uvmshare.dashboard`).
"""

from __future__ import annotations

import getpass
import html
import os
import shlex
import socket
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import click

from uvmshare.cli.foreground import until_signalled
from uvmshare.cli.output import note, say, say_json
from uvmshare.cli.progress import waiting
from uvmshare.cli.remote import host_option
from uvmshare.cli.server_options import uid_or_any
from uvmshare.errors import UnsupportedPlatform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["dashboard"]

_LEADS_TO: Final = (
    '<!doctype html><meta charset="utf-8"><meta name="referrer" content="no-referrer">'
    '<meta http-equiv="refresh" content="0; url={link}"><title>uvmshare</title><a href="{link}">uvmshare dashboard</a>'
)

_TOLD: Final = "This link lets one browser in, once. Ctrl-C ends the page."


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    metavar="PORT",
    help="The port on 127.0.0.1. [default: any that is free]",
)
@click.option("--no-browser", is_flag=True, help="Only print the link.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON with the link, and open no browser.")
@click.option(
    "--allow-uid",
    "allow_uids",
    metavar="UID",
    type=uid_or_any,
    multiple=True,
    help="Another user of this host whose browser may connect, besides you and root. any: every user. The link is "
    "needed all the same.",
)
@host_option
def dashboard(
    port: int, *, no_browser: bool, as_json: bool, allow_uids: tuple[int | str, ...], host: str | None
) -> None:
    """Show VMs, shares, who holds them and what guests do on a page in your browser, until Ctrl-C.

    The page shows what you may see, as it happens, and changes nothing. It is on a port of 127.0.0.1 that only your
    browser gets into: the link works once, and programs of other users are cut off.

    \b
    Examples:
      uvmshare dashboard
      uvmshare dashboard --no-browser --port 4711

    \b
    Over ssh: run the second one there, and on your own computer
      ssh -L 4711:127.0.0.1:4711 HOST
    Then open the link on your own computer.
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    if sys.platform != "linux":
        msg = "uvmshare dashboard needs a Linux host, where the daemon runs"
        raise UnsupportedPlatform(msg)
    from uvmshare.dashboard.server import serve  # noqa: PLC0415  --help need not load a server
    from uvmshare.dashboard.source import Source  # noqa: PLC0415  as above

    opened, starting = ExitStack(), ExitStack()

    def ready(link: str) -> None:
        starting.close()
        if as_json:
            say_json({"ready": True, "url": link, "port": urlsplit(link).port})
            return
        say(link)
        note(_TOLD)
        for line in _over_ssh(link, os.environ):
            note(line)
        if not no_browser and _has_screen(os.environ):
            _open(opened.enter_context(_file_that_leads_to(link)))

    async def serving() -> None:
        async with Source(host) as source:
            await serve(source, port=port, allow_uids=(*allow_uids, *_behind_sudo(os.environ)), ready=ready, tell=note)

    with opened, starting:
        starting.enter_context(waiting("starting the dashboard"))
        until_signalled(serving())


def _behind_sudo(environment: Mapping[str, str]) -> list[int]:
    """Return the user who runs this as root with sudo: the browser is theirs. Root alone can set it for root."""
    uid = environment.get("SUDO_UID", "")
    if sys.platform == "win32":
        return []
    return [int(uid)] if os.geteuid() == 0 and uid.isascii() and uid.isdigit() and len(uid) < 11 else []


def _has_screen(environment: Mapping[str, str]) -> bool:
    """Say whether a browser of this user can be opened here: not over ssh, and not as root for somebody else."""
    there = environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return bool(there) and not environment.get("SSH_CONNECTION") and not _behind_sudo(environment)


def _over_ssh(link: str, environment: Mapping[str, str]) -> list[str]:
    """Say how to reach the port from the computer that ssh comes from."""
    connection = environment.get("SSH_CONNECTION", "").split()
    if len(connection) != 4:
        return []
    port = urlsplit(link).port
    where = shlex.quote(f"{environment.get('SUDO_USER') or getpass.getuser()}@{socket.gethostname()}")
    return [f"From the computer that you came from: ssh -L {port}:127.0.0.1:{port} {where}, and open the link there."]


@contextmanager
def _file_that_leads_to(link: str) -> Iterator[str]:
    """Make a file, for this user alone, that a browser goes on to the link from; return its address.

    Every user of the host sees the arguments of a browser that is started (proc(5), cmdline), and whoever is first with
    the link gets in.
    """
    directory = os.environ.get("XDG_RUNTIME_DIR")
    made, path = tempfile.mkstemp(  # 0600, under a name that nobody knows before
        prefix="uvmshare-dashboard-", suffix=".html", dir=directory if directory and os.path.isdir(directory) else None
    )
    try:
        with os.fdopen(made, "w", encoding="utf-8") as file:
            file.write(_LEADS_TO.format(link=html.escape(link)))
        yield Path(path).as_uri()
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)


def _open(address: str) -> None:
    """Open the user's browser. It may take its time, or not be there; the link is printed in any case."""
    import webbrowser  # noqa: PLC0415  --help need not load it

    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
