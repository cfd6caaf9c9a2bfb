"""`uvmshare share`: shares of a VM, through the daemon.

What lives here: the commands and their tables. What must not: anything that the daemon's client does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from uvmshare.cli.durations import in_words
from uvmshare.cli.guesses import is_path
from uvmshare.cli.listing import listing_options
from uvmshare.cli.output import print_json, say
from uvmshare.cli.remote import (
    SHARING_NAMES,
    connected,
    each_in_turn,
    host_option,
    json_option,
    lease_option,
    no_table_option,
    of_vms,
    owner_option,
    print_release,
    require_request,
    share_argument,
    vm_argument,
)
from uvmshare.cli.share_spec import shares_argument, sharing_options, with_sharing_options

if TYPE_CHECKING:
    from uvmshare.cli.listing import ListForm
    from uvmshare.cli.share_spec import ShareSpec
    from uvmshare.daemon.documents import Reference, Share

__all__ = ["share"]


@click.group()
def share() -> None:
    """Shares of a VM, through the daemon.

    \b
    Examples:
      uvmshare share add build ~/project:ro ~/out
      uvmshare share ls
      uvmshare share rm build 0
    """  # noqa: D301  \b is click's mark for lines that stay as they are


@share.command(short_help="Share directories with a VM, and hold the shares.")
@vm_argument()
@shares_argument
@sharing_options
@owner_option
@lease_option()
@host_option
@json_option
def add(
    vm: str,
    shares: tuple[ShareSpec, ...],
    owner: str,
    lease: float | None,
    host: str | None,
    *,
    hide: tuple[str, ...],
    map_owner: str | None,
    as_json: bool,
) -> None:
    """Share directories with a VM and hold them; print each share's name, which the guest mounts.

    Each SHARE is PATH[:ro][:only=NAME,NAME][:hide=PATTERN,PATTERN], as with uvmshare serve. Equal shares are one
    share, however many owners hold it. When one of several shares cannot be added, those before it are released again,
    unless the owner held them already.

    \b
    Examples:
      uvmshare share add build ~/project:ro ~/out
      uvmshare share add build /srv/cache --owner job-7 --lease 5m
      uvmshare share add build ~/project --hide node_modules --hide .env --map-owner 1000:0
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.daemon.documents import NewShare  # noqa: PLC0415  --help need not load it

    def keywords_of(spec: ShareSpec) -> dict[str, Any]:
        keywords = {
            "path": os.path.abspath(os.path.expanduser(spec.path)),
            "read_only": spec.read_only,
            "only": spec.only,
            "hide": spec.hide,
            "map_owner": spec.map_owner,
            "owner": owner,
            "lease": lease,
        }
        require_request(NewShare, keywords, SHARING_NAMES)
        return keywords

    wanted = [keywords_of(with_sharing_options(each, hide, map_owner)) for each in shares]
    added: list[Share] = []
    with connected(host, f"sharing with VM {vm}") as client:
        you = client.info().you
        before = {
            each.name
            for each in client.shares(vm)
            if any((reference.uid, reference.owner) == (you, owner) for reference in each.references)
        }
        try:
            for keywords in wanted:
                added.append(client.shares.add(vm, **keywords))  # noqa: PERF401  what was added is released below
        except BaseException:
            for each in added:
                if each.name in before:
                    continue  # it was held before this command, and stays so
                client.shares.release(vm, each.name, owner=owner)
            raise
    if as_json:
        print_json(added)
        return
    for each in added:
        say(each.name)


@share.command(short_help="List the shares that you hold; as root, all shares.")
@click.argument("which", metavar="[VM|PATH]...", nargs=-1)
@host_option
@listing_options
def ls(which: tuple[str, ...], host: str | None, *, listing: ListForm) -> None:
    """List the shares that you hold, of some VMs or of all; as root, everybody's.

    An argument with a slash in it, or with a dot or "~" at its beginning, is a PATH of the host. Then only shares by
    which a guest reaches that path are listed: shares of the path itself and of directories above it.

    \b
    Examples:
      uvmshare share ls
      uvmshare share ls build ~/project
      uvmshare share ls -q build
      uvmshare share ls --format '{vm} {name} {path}'
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.daemon.documents import Share  # noqa: PLC0415  --help need not load it

    writer = listing.of(Share, "name", empty="no shares: uvmshare share add")
    vms = [each for each in which if not is_path(each)]
    paths = [os.path.realpath(os.path.expanduser(each)) for each in which if is_path(each)]
    with connected(host) as client:
        found = of_vms(client, vms, client.shares)
    if paths:
        found = [each for each in found if any(_reaches(each.path, path) for path in paths)]
        writer = listing.of(Share, "name", empty=f"no share of yours reaches {', '.join(paths)}: uvmshare share add")
    writer.write(
        found,
        ("vm", "share", "path", "access", "state", "directory", "held by"),
        lambda each: (
            *(each.vm, each.name, each.path, _access(each), each.state),
            *(each.directory, ", ".join([*map(_held, each.references), *(f"mount {path}" for path in each.mounts)])),
        ),
    )


def _reaches(shared: str, path: str) -> bool:
    return os.path.commonpath([shared, path]) == shared


def _access(shown: Share) -> str:
    parts = ["ro" if shown.read_only else "rw"]
    if shown.only:
        parts.append(f"only={','.join(shown.only)}")
    if shown.hide:
        parts.append(f"hide={','.join(shown.hide)}")
    if shown.map_owner:
        parts.append(f"owner={shown.map_owner}")
    return " ".join(parts)


def _held(reference: Reference) -> str:
    left = "" if reference.expires_in is None else f" ({in_words(reference.expires_in)})"
    return f"{reference.owner}{left}"


@share.command()
@vm_argument()
@share_argument()
@no_table_option
@host_option
def inspect(vm: str, share: str, host: str | None) -> None:
    """Print everything about a share, as JSON.

    \b
    Example:
      uvmshare share inspect build 0 | jq .references
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host) as client:
        print_json(client.shares.get(vm, share))


@share.command(short_help="Release shares.")
@vm_argument()
@share_argument(many=True)
@owner_option
@click.option("--uid", type=click.IntRange(min=0), help="Root only: the uid of the user whose owner is named.")
@click.option(
    "--force",
    "-f",
    is_flag=True,
    help="Take the share from all owners and mounts of yours (as root: from everybody), whatever the guest says.",
)
@host_option
def rm(vm: str, shares: tuple[str, ...], *, owner: str, uid: int | None, host: str | None, force: bool) -> None:
    """Release shares; when the last owner of one has released it, no guest reaches it any more.

    It fails while a mount holds the share, and names the mount and its owners. It fails when the owner does not hold
    the share, and says who does: name that owner with --owner. It says on standard error who else holds the share.

    \b
    Examples:
      uvmshare share rm build 0
      uvmshare share rm build 0 --owner job-7
      uvmshare share rm build $(uvmshare share ls -q build)
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host, f"releasing shares of VM {vm}") as client:

        def give_back(name: str) -> None:
            released = client.shares.release(vm, name, owner=owner, uid=uid, force=force)
            print_release(client, name, released, owner=owner, uid=uid, force=force)

        each_in_turn(shares, give_back)


@share.command()
@click.argument("owner")
@lease_option("A new length.")
@host_option
def renew(owner: str, lease: float | None, host: str | None) -> None:
    """Start every lease of an owner again. It fails when the owner has no lease, or when all have ended.

    \b
    Examples:
      uvmshare share renew job-7
      uvmshare share renew job-7 --lease 10m
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host) as client:
        client.owners.renew(owner, lease=lease)
