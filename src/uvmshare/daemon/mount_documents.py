"""Documents of mounts: of one that the daemon still restores, as its API shows it, and what one asks for.

What lives here: the document of such a mount, for one user; the options of a mount, from a request or a record. What
must not: which mounts there are, and the documents of all others (`mounts`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvmshare.daemon.documents import Mount, Reference
from uvmshare.daemon.shares import holder_of, may_see
from uvmshare.daemon.store import MountLease, name_for
from uvmshare.mounts.options import MountOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from uvmshare.daemon.documents import NewMount
    from uvmshare.daemon.identity import Identity
    from uvmshare.daemon.leases import Leases
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.store import MountRecord, VmKey
    from uvmshare.share.options import AddOptions

__all__ = ["mount_document", "mount_options", "mount_references"]


def mount_document(
    who: Identity,
    machine: Machine,
    leases: Leases,
    share: AddOptions | MountRecord,
    how: MountOptions | MountRecord,
    *,
    owners: Iterable[str],
) -> Mount:
    """Return what a user may see of a mount that is being restored, as each is at first."""
    vm = machine.record.key
    return Mount(
        vm=name_for(who, vm),
        guest_path=how.mount_path,
        share=None,
        path=share.host_path,
        read_only=how.read_only,
        only=share.allowed_names,
        hide=share.hide,
        map_owner=share.map_owner,
        cache=how.cache,
        msize=how.msize,
        suid=how.suid,
        dev=how.dev,
        posixacl=how.posixacl,
        events=how.events,
        no_events=None,
        chosen=None,
        state="restoring",
        busy="mounting",
        since=None,
        last_error=None,
        directory="unknown",
        unreachable_since=machine.unreachable_since,
        references=tuple(mount_references(who, vm, leases, how.mount_path, owners)),
    )


def mount_references(who: Identity, vm: VmKey, leases: Leases, path: str, owners: Iterable[str]) -> Iterator[Reference]:
    """Give the references of these holders to the mount at a path, as far as a user may see them."""
    for owner in owners:
        holder = holder_of(owner)
        if holder is None or not may_see(who, owner):
            continue
        key = MountLease(vm, owner, path)
        lease = leases.get(key)
        seconds = None if lease is None else lease.seconds
        yield Reference(owner=holder[1], uid=holder[0], lease=seconds, expires_in=leases.left(key))


def mount_options(share: AddOptions, guest_path: str, how: NewMount | MountRecord) -> MountOptions:
    """Return the options of a mount of this share, as a request or a record of one has them."""
    return MountOptions(
        share,
        guest_path,
        cache=how.cache,
        msize=how.msize,
        suid=how.suid,
        dev=how.dev,
        posixacl=how.posixacl,
        events=how.events,
    )
