"""Shares of VMs for the daemon's users: held, released, shown.

What lives here: what users ask of shares. What must not: VMs (`service`), mounts in guests (`mounts`), HTTP.

A holder is "UID/NAME" to the Manager: whoever asked, and the owner that they named. Besides these, mounts hold shares
of their own (`uvmshare.mounts.manager`), for those who hold the mount.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import nullcontext
from typing import TYPE_CHECKING

from uvmshare.daemon.documents import Reference, Share
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.identity import checked_options
from uvmshare.daemon.leases import no_lease
from uvmshare.daemon.quotas import weight
from uvmshare.daemon.store import ShareLease, name_for
from uvmshare.daemon.tracing import span
from uvmshare.directory import may_be_same
from uvmshare.errors import InvalidOptions, NotThere, OperationDenied
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from uvmshare.daemon.documents import NewMount, NewShare
    from uvmshare.daemon.events import EventLog
    from uvmshare.daemon.identity import Identity, Threads
    from uvmshare.daemon.leases import Leases
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.store import VmKey
    from uvmshare.directory import Fate
    from uvmshare.mounts.mount import MountInfo
    from uvmshare.share.manager import ShareInfo
    from uvmshare.share.options import AddOptions

__all__ = [
    "UserShares",
    "holder_of",
    "is_below",
    "may_see",
    "note_what_is_there",
    "options_below",
    "options_of",
    "whose",
]


def holder_of(owner: object) -> tuple[int, str] | None:
    """Return the user and the name of a holder; None for a mount's own reference."""
    uid, slash, name = str(owner).partition("/")
    return (int(uid), name) if slash and uid.isdigit() else None


def may_see(who: Identity, owner: str) -> bool:
    """Say whether a user sees what a holder has, and may release it: their own; root, all users'."""
    holder = holder_of(owner)
    return holder is not None and (who.is_root or holder[0] == who.uid)


def whose(who: Identity, owner: str, uid: int | None) -> str:
    """Return the holder that is meant: `who`'s owner, or for root another user's. Raises `OperationDenied`."""
    if uid is not None and uid != who.uid and not who.is_root:
        msg = f"uid {who.uid} releases nothing of uid {uid}'s: only root does"
        raise OperationDenied(msg)
    return f"{who.uid if uid is None else uid}/{owner}"


async def options_of(machine: Machine, wanted: NewShare | NewMount) -> AddOptions:
    """Return the share options that are wanted, looked at with the rights of the VM's user.

    What the fleet asks for, which no other owner has a colon for, lies where this host lets it. Raises as
    `options_below` does.
    """
    tops = machine.fleet_below if ":" in wanted.owner else ("/",)
    return await options_below(machine.threads, machine.record.identity, wanted, tops)


async def options_below(
    threads: Threads, user: Identity, wanted: NewShare | NewMount, tops: Iterable[str], whose: str = ""
) -> AddOptions:
    """Return the share options that are wanted, looked at with a user's rights; their path is below one of `tops`.

    The path is looked at when no link is left in it, as the file server will open it. `whose` says in the error whose
    path it is. Raises `InvalidOptions`, `OperationDenied`, `HostPathHangs`.
    """
    if not os.path.isabs(wanted.path):
        msg = f"{wanted.path}: give an absolute path; the daemon has another working directory than you"
        raise InvalidOptions(msg)
    options = await checked_options(
        threads,
        user,
        wanted.path,
        read_only=wanted.read_only,
        only=wanted.only,
        hide=wanted.hide,
        map_owner=wanted.map_owner,
    )
    if not any(is_below(options.host_path, top) for top in tops):
        msg = (
            f"{wanted.path}{whose} is not below what this host lets the fleet share: have it added to the host's fleet "
            "file"
        )
        raise OperationDenied(msg)
    return options


def is_below(path: str, top: str) -> bool:
    """Whether a path without links lies below a directory, or is it."""
    return path == top or path.startswith(top.rstrip("/") + "/")


class UserShares:
    """What users ask of the shares of a VM."""

    def __init__(
        self, events: EventLog, leases: Leases, adding: Callable[[Identity, int], AbstractContextManager[None]]
    ) -> None:
        self._events = events
        self._leases = leases
        self._adding = adding

    # Shown

    async def look(self, machine: Machine) -> None:
        """See what the paths of a VM's shares lead to now, for what is shown next. Waits for nothing for long."""
        await machine.fates.look(machine.shares())

    def fated(self, machine: Machine, info: ShareInfo, fate: Fate) -> None:
        """Tell those who hold a share what became of its directory."""
        holders = {holder_of(owner): None for owner in info.owners}
        for mount in machine.mounted():
            if mount.share_name == info.name:
                holders |= {holder_of(owner): None for owner in mount.owners}
        for holder in holders:
            if holder is not None:
                self._events.emit(
                    EventKind.SHARE_DIRECTORY,
                    machine.record.key,
                    uid=holder[0],
                    share=info.name,
                    owner=holder[1],
                    path=info.options.host_path,
                    directory=fate,
                )

    def all(self, who: Identity, machine: Machine) -> list[Share]:
        """Return the shares that a user may see: to root all, to others those that they hold, or hold a mount of."""
        mounts = _mounts_of_shares(machine)
        found = (self._document(who, machine, info, mounts) for info in machine.shares())
        return [share for share in found if share.references or share.mounts or who.is_root]

    def get(self, who: Identity, machine: Machine, name: str) -> Share:
        """Return one share. Raises `NotThere`."""
        info = machine.share(name)
        share = None if info is None else self._document(who, machine, info, _mounts_of_shares(machine))
        if share is None or not (share.references or share.mounts or who.is_root):
            msg = f"VM {name_for(who, machine.record.key)!r} has no share {name!r}, or none of yours: "
            msg += "`uvmshare share ls` lists them"
            raise NotThere(msg)
        return share

    def holders(self, who: Identity, machine: Machine, name: str) -> tuple[Reference, ...]:
        """Return who holds a share, mounts apart, as far as `who` may see them."""
        try:
            return self.get(who, machine, name).references
        except NotThere:
            return ()

    def _document(
        self, who: Identity, machine: Machine, info: ShareInfo, mounts: Mapping[str | None, list[MountInfo]]
    ) -> Share:
        holders = [(holder_of(owner), str(owner)) for owner in info.owners]
        return Share(
            vm=name_for(who, machine.record.key),
            name=info.name,
            path=info.options.host_path,
            read_only=info.options.read_only,
            only=info.options.allowed_names,
            hide=info.options.hide,
            map_owner=info.options.map_owner,
            state=info.state.value,
            busy=info.busy,
            orphan=info.orphan,
            since=info.since,
            last_error=None if info.last_error is None else printable(str(info.last_error)),
            directory=machine.fates.of(info.name),
            references=tuple(
                self._reference(machine.record.key, owner, holder, info.options)
                for holder, owner in holders
                if holder is not None and (who.is_root or holder[0] == who.uid)
            ),
            mounts=tuple(
                mount.mount_path
                for mount in mounts.get(info.name, ())
                if any(who.is_root or holder[0] == who.uid for holder in map(holder_of, mount.owners) if holder)
            ),
        )

    def _reference(self, vm: VmKey, owner: str, holder: tuple[int, str], options: AddOptions) -> Reference:
        key = lease_key(vm, owner, options)
        lease = self._leases.get(key)
        return Reference(
            owner=holder[1],
            uid=holder[0],
            lease=None if lease is None else lease.seconds,
            expires_in=self._leases.left(key),
        )

    # Held and released

    async def add(self, who: Identity, machine: Machine, wanted: NewShare) -> Share:
        """Share a directory for an owner of `who`, and return the share when the guest can mount it.

        The same owner again holds one reference, whose lease is then the new one. What is shared is the directory that
        the path leads to now: whoever holds the one that was there before keeps that, under its own name.

        Raises `InvalidOptions`, `OperationDenied`, `LimitReached`, and what the VM raises; then there is no new
        reference.
        """
        manager = machine.require()
        options = await options_of(machine, wanted)
        vm, owner = machine.record.key, f"{who.uid}/{wanted.owner}"
        key = lease_key(vm, owner, options)
        held = any(info.options.may_be(options) for info in _held(machine, key))
        size = weight(options.host_path, names=(*options.allowed_names, *options.hide))
        with nullcontext() if held else self._adding(who, size):
            if wanted.lease is not None:
                self._leases.grant(key, wanted.lease)
            try:
                with span("Manager.add", vm=f"{vm[0]}:{vm[1]}", owner=owner, path=options.host_path):
                    name = await manager.add(options, owner=owner)
            except BaseException:
                if not _held(machine, key):
                    self._leases.forget(key)
                raise
        if wanted.lease is None:
            self._leases.forget(key)
        else:  # it runs from when the share is there
            self._leases.grant(key, wanted.lease)
        if not held:
            self._events.emit(
                EventKind.SHARE_HELD,
                vm,
                uid=who.uid,
                share=name,
                owner=wanted.owner,
                path=options.host_path,
                read_only=options.read_only,
                lease=wanted.lease,
            )
        note_what_is_there(machine, options)
        return self.get(who, machine, name)

    async def release(
        self, machine: Machine, name: str, owner: str, kind: EventKind = EventKind.SHARE_RELEASED
    ) -> None:
        """Release what a holder ("UID/NAME") holds of a share; the last one removes it. Nothing held: no mistake.

        Raises what the VM raises: the reference then stays.
        """
        info = machine.share(name)
        holder = holder_of(owner)
        if info is None or holder is None or owner not in info.owners:
            return
        vm = machine.record.key
        with span("Manager.remove", vm=f"{vm[0]}:{vm[1]}", owner=owner, share=name):
            await machine.require().remove(name, owner=owner)
        after = machine.share(name)
        path = info.options.host_path
        if after is None or owner not in after.owners:
            self._events.emit(kind, vm, uid=holder[0], share=name, owner=holder[1], path=path)
        if after is None:
            self._events.emit(EventKind.SHARE_REMOVED, vm, uid=holder[0], share=name, path=path)
        key = lease_key(vm, owner, info.options)
        # Else it is on what they hold of the directory that was there before, or since.
        if (after is None or owner not in after.owners) and not _held(machine, key):
            self._leases.forget(key)

    async def hand_over(self, machine: Machine, name: str, before: str, after: str, lease: float | None) -> None:
        """Have a holder ("UID/NAME") hold a share in place of another. Holding nothing is no mistake.

        The share stays what it is, and the guest notices nothing. Again it goes on where it ended. Raises what the VM
        raises: then both may hold it.
        """
        info = machine.share(name)
        holder = holder_of(after)
        if info is None or holder is None or before not in info.owners:
            return
        if lease is not None:
            self._leases.grant(lease_key(machine.record.key, after, info.options), lease)
        await machine.require().add(info.options, owner=after)
        path = info.options.host_path
        self._events.emit(
            EventKind.SHARE_HELD,
            machine.record.key,
            uid=holder[0],
            share=name,
            owner=holder[1],
            path=path,
            read_only=info.options.read_only,
            lease=lease,
        )
        await self.release(machine, name, before)

    def held_by(self, uid: int, machine: Machine) -> Iterator[int]:
        """Give the weight of what a user holds there, once for each owner of theirs, and of what could not be removed.

        That counts too, since it is the user's own file server that does not say whether it has it. A file server that
        never says so would else have the daemon remember any number of shares. A share that only other users hold
        (root) is theirs, whatever became of it.
        """
        mine = f"{uid}/"
        for info in machine.shares():
            held = sum(str(owner).startswith(mine) for owner in info.owners)
            if not held and info.orphan and not _is_others(uid, info):
                held = 1
            if held:
                names = (*info.options.allowed_names, *info.options.hide)
                yield from [weight(info.options.host_path, names=names)] * held

    # Leases

    def renew(self, machine: Machine, name: str, owner: str, seconds: float | None) -> int:
        """Let the lease of a holder on one share run afresh. Raises `NotThere` when it has none."""
        info = machine.share(name)
        keys = [] if info is None else [lease_key(machine.record.key, owner, info.options)]
        renewed = self._leases.renew(keys, seconds)
        if not renewed:
            raise no_lease(owner)
        return renewed

    def leased(self, machine: Machine) -> set[ShareLease]:
        """Return everything that a lease may be on."""
        vm = machine.record.key
        return {lease_key(vm, str(owner), info.options) for info in machine.shares() for owner in info.owners}

    async def lease_ended(self, machine: Machine | None, key: ShareLease) -> None:
        """Give back what the lease was on. Raises what the VM raises."""
        held = [] if machine is None else _held(machine, key)
        if machine is None or not held:
            # Nothing is held. Either an add is under way, which grants the lease afresh when it ends, or it failed.
            self._leases.forget(key)
            return
        releases = [self.release(machine, info.name, key.owner, EventKind.LEASE_ENDED) for info in held]
        for outcome in await asyncio.gather(*releases, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome


def _is_others(uid: int, info: ShareInfo) -> bool:
    """Say whether a share is held, and by other users alone."""
    holders = [holder_of(owner) for owner in info.owners]
    return bool(holders) and all(holder is not None and holder[0] != uid for holder in holders)


def _mounts_of_shares(machine: Machine) -> Mapping[str | None, list[MountInfo]]:
    """Return the mounts by the name of their share, so that listing the shares looks at each mount once."""
    found: dict[str | None, list[MountInfo]] = {}
    for mount in machine.mounted():
        found.setdefault(mount.share_name, []).append(mount)
    return found


def lease_key(vm: VmKey, owner: str, options: AddOptions) -> ShareLease:
    """Return the key of a holder's lease: it names what they asked for, whichever directory the path leads to."""
    asked = options.host_path, options.read_only, options.allowed_names, options.hide, options.map_owner
    return ShareLease(vm, owner, *asked)


def _held(machine: Machine, key: ShareLease) -> list[ShareInfo]:
    """Return what a lease is on: one share, or one for each directory that was at its path meanwhile."""
    held = machine.shares(owner=key.owner)
    return [info for info in held if lease_key(key.vm, key.owner, info.options) == key]


def note_what_is_there(machine: Machine, options: AddOptions) -> None:
    """Take note that the path of these options, which were made just now, leads to their directory."""
    for info in machine.shares():
        if info.options.host_path == options.host_path and options.directory is not None:
            same = may_be_same(info.options.directory, options.directory)
            machine.fates.note(info, "there" if same else "replaced")
