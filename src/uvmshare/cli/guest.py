"""`uvmshare guest`: what runs inside a guest.

What lives here: only the way to `uvmshare.guest.mount` and `uvmshare.guest.agent`, which do the work, read their own
arguments and also run without this package. What must not: options of its own.
"""

from __future__ import annotations

from functools import partial

import click

from uvmshare.cli.progress import waiting

__all__ = ["guest"]


@click.group()
def guest() -> None:
    """Mount a share, or run the agent, which mounts what the host asks for; for use inside a guest.

    \b
    Examples:
      uvmshare guest mount vsock:2 0 /mnt/project
      uvmshare guest mount tcp:10.0.2.2:5640 1 /mnt/out
      uvmshare guest agent --allow /mnt

    A guest needs Python and one file. To mount by hand, copy uvmshare/guest/mount.py into the guest and run
    "python3 mount.py ADDRESS SHARE TARGET" there. For the agent, copy what "uvmshare guest agent --print" writes.
    """  # noqa: D301  \b is click's mark for lines that stay as they are


@guest.command(short_help="Mount a share.", add_help_option=False, context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def mount(arguments: tuple[str, ...]) -> int:
    """Mount a share: see "uvmshare guest mount --help"."""
    from uvmshare.guest.mount import main  # noqa: PLC0415  the guest's file stands for itself

    return main(arguments, while_mounting=partial(waiting, "mounting"))


@guest.command(
    short_help="Run the agent, which mounts what the host asks for.",
    add_help_option=False,
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def agent(arguments: tuple[str, ...]) -> int:
    """Mount and unmount what the host asks for: see "uvmshare guest agent --help"."""
    from uvmshare.guest.agent import main  # noqa: PLC0415  the guest's files stand for themselves

    return main(arguments)
