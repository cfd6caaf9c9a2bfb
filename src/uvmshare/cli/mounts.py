"""`uvmshare map`, `unmap` and `mounts`: directories of the host in a guest, through the daemon and the guest's agent.

What lives here: the three commands. What must not: anything that the daemon's client does.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from uvmshare.cli.listing import listing_options
from uvmshare.cli.moments import with_reach
from uvmshare.cli.output import note, print_json, say
from uvmshare.cli.remote import (
    SHARING_NAMES,
    connected,
    each_in_turn,
    host_option,
    json_option,
    lease_option,
    of_vms,
    owner_option,
    print_release,
    require_request,
    vm_argument,
)
from uvmshare.cli.share_spec import share_argument, sharing_options, with_sharing_options

if TYPE_CHECKING:
    from uvmshare.cli.listing import ListForm
    from uvmshare.cli.share_spec import ShareSpec
    from uvmshare.daemon.documents import Mount

__all__ = ["map_", "mounts", "unmap"]

CACHES = ("auto", "none", "loose", "mmap", "readahead")


@click.command("map")
@vm_argument()
@share_argument
@sharing_options
@click.argument("guest_path", metavar="GUEST_PATH")
@click.option(
    "--cache",
    type=click.Choice(CACHES),
    default="auto",
    show_default=True,
    help="What the guest's kernel may cache. auto: nothing that would hide a change by the host.",
)
@click.option(
    "--msize",
    type=click.IntRange(4096, 1 << 24),
    metavar="BYTES",
    help="The largest 9P message; the guest chooses unless given.",
)
@click.option("--suid", is_flag=True, help="Let set-user-ID programs in the share have their rights in the guest.")
@click.option("--dev", is_flag=True, help="Let device nodes in the share be opened in the guest.")
@click.option("--posixacl", is_flag=True, help="Keep access control lists in the guest (getfacl, setfacl).")
@click.option("--events", is_flag=True, help="Make what is changed on the host an event in the guest (inotify).")
@owner_option
@lease_option()
@host_option
@json_option
def map_(
    vm: str,
    share: ShareSpec,
    guest_path: str,
    *,
    hide: tuple[str, ...],
    map_owner: str | None,
    cache: str,
    msize: int | None,
    suid: bool,
    dev: bool,
    posixacl: bool,
    events: bool,
    owner: str,
    lease: float | None,
    host: str | None,
    as_json: bool,
) -> None:
    """Share a directory with a VM and mount it in its guest; both or neither.

    SHARE is PATH[:ro][:only=NAME,NAME][:hide=PATTERN,PATTERN], as with uvmshare serve. The VM must have been added with
    --agent, and the agent must run in the guest. Mapping the same directory to the same path again gives the same
    mount, however many owners hold it. The guest mounts nosuid and nodev, unless you say otherwise. Standard error and
    --json say which cache mode and msize were chosen; docs/guest-kernel.md says what each cache mode gives.

    With --events, programs in the guest that watch files hear of changes on the host (docs/events.md). A guest that
    cannot do that has the mount all the same; standard error and --json say why there are no events.

    \b
    Examples:
      uvmshare map build ~/project:ro /run/uvmshare/project
      uvmshare map build /srv/cache /run/uvmshare/cache --owner job-7 --lease 5m
      uvmshare map build /srv/site /run/uvmshare/site --posixacl
      uvmshare map build ~/project /run/uvmshare/project --events
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.daemon.documents import NewMount  # noqa: PLC0415  --help need not load it

    share = with_sharing_options(share, hide, map_owner)
    wanted: dict[str, Any] = {
        "path": os.path.abspath(os.path.expanduser(share.path)),
        "guest_path": guest_path,
        "read_only": share.read_only,
        "only": share.only,
        "hide": share.hide,
        "map_owner": share.map_owner,
        "cache": cache,
        "msize": msize,
        "suid": suid,
        "dev": dev,
        "posixacl": posixacl,
        "events": events,
        "owner": owner,
        "lease": lease,
    }
    require_request(NewMount, wanted, SHARING_NAMES | {"guest_path": "GUEST_PATH"})
    with connected(host, f"mounting in the guest of VM {vm}") as client:
        mount = client.mounts.map(vm, **wanted)
    if as_json:
        print_json(mount)
    else:
        say(mount.guest_path)
        if mount.chosen is not None:
            note(f"{mount.guest_path} is mounted with {mount.chosen}")
        if mount.no_events is not None:
            note(_no_events(mount))


@click.command()
@vm_argument()
@click.argument("guest_paths", metavar="GUEST_PATH...", nargs=-1, required=True)
@owner_option
@click.option("--uid", type=click.IntRange(min=0), help="Root only: the uid of the user whose owner is named.")
@click.option("--lazy", is_flag=True, help="Detach the mount although programs in the guest use it.")
@click.option(
    "--force",
    is_flag=True,
    help="Take the mount from all owners of yours (as root: from everybody), whatever the guest says. The guest has "
    "five seconds to unmount.",
)
@host_option
def unmap(
    vm: str,
    guest_paths: tuple[str, ...],
    *,
    owner: str,
    uid: int | None,
    host: str | None,
    lazy: bool,
    force: bool,
) -> None:
    """Release mounts. When the last owner has released a mount, it is unmounted, and its share is removed.

    It says on standard error who still holds the mount. It fails when the owner does not hold the mount, and says
    who does: name that owner with --owner.

    \b
    Examples:
      uvmshare unmap build /run/uvmshare/project
      uvmshare unmap build /run/uvmshare/cache --owner job-7 --lazy
      uvmshare unmap build /run/uvmshare/cache --force
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    with connected(host, f"unmounting in the guest of VM {vm}") as client:

        def give_back(path: str) -> None:
            released = client.mounts.unmap(vm, path, owner=owner, uid=uid, lazy=lazy, force=force)
            print_release(client, path, released, owner=owner, uid=uid, force=force)

        each_in_turn(guest_paths, give_back)


@click.command()
@click.argument("vms", metavar="[VM]...", nargs=-1)
@host_option
@listing_options
def mounts(vms: tuple[str, ...], host: str | None, *, listing: ListForm) -> None:
    """List the mounts in guests that you hold, of some VMs or of all; as root, everybody's.

    For a mount with --events, STATE says whether the guest has events. If not, standard error and --json say why.

    \b
    Examples:
      uvmshare mounts
      uvmshare mounts build --json
      uvmshare unmap build $(uvmshare mounts -q build)
    """  # noqa: D301  \b is click's mark for lines that stay as they are
    from uvmshare.daemon import documents  # noqa: PLC0415  --help need not load it

    writer = listing.of(documents.Mount, "guest_path", empty="no mounts: uvmshare map")
    with connected(host) as client:
        found = of_vms(client, vms, client.mounts)
    writer.write(
        found,
        ("vm", "guest path", "share", "path", "access", "state", "directory", "held by"),
        lambda each: (
            *(each.vm, each.guest_path, each.share, each.path, "ro" if each.read_only else "rw"),
            with_reach(_state(each), each.unreachable_since),
            *(each.directory, ", ".join(reference.owner for reference in each.references)),
        ),
    )
    if not (listing.as_json or listing.quiet or listing.template is not None):
        for each in found:
            if each.no_events is not None:
                note(_no_events(each))


def _state(mount: Mount) -> str:
    """Return the state for people, who see there whether they have the events that they asked for."""
    if not mount.events or mount.state != "mounted":
        return mount.state
    return f"{mount.state} {'with' if mount.no_events is None else 'without'} events"


def _no_events(mount: Mount) -> str:
    return f"{mount.guest_path} has no events: {mount.no_events}"
