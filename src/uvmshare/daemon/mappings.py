"""Mounts in guests for the daemon's users: mapped, unmapped, shown, and asked for again after a restart.

What lives here: what users ask of mounts. What must not: VMs (`service`), HTTP, or how a guest is reached.

The MountManager keeps nothing over the end of its process, so the daemon writes each holder down before it asks, and
strikes him out after the mount is gone. After a restart it asks for every mount again: an agent that has it already, in
that form, says so, and the guest notices nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import structlog

from uvmshare.daemon.documents import Mount, Reference
from uvmshare.daemon.identity import checked_options
from uvmshare.daemon.quotas import weight
from uvmshare.daemon.shares import holder_of, options_of
from uvmshare.daemon.store import MountLease, MountRecord, name_for
from uvmshare.daemon.tracing import span
from uvmshare.errors import (
    AgentUnreachable,
    ComputeSystemGone,
    InvalidOptions,
    MountConflict,
    NotThere,
    OperationDenied,
    OutcomeUnknown,
    UvmshareError,
)
from uvmshare.mounts.manager import share_owner
from uvmshare.mounts.options import MountOptions, canonical_guest_path
from uvmshare.printable import printable
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from uvmshare.daemon.documents import NewMount
    from uvmshare.daemon.events import EventLog
    from uvmshare.daemon.identity import Identity
    from uvmshare.daemon.keeper import LeaseKeeper
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.store import Store, VmKey
    from uvmshare.mounts.mount import MountInfo

__all__ = ["Mappings"]

_RETRY_FIRST: Final = 0.5
_RETRY_LONGEST: Final = 15.0
"""Seconds before a mount of an earlier daemon's is asked for again; the wait doubles."""


class Mappings:
    """What users ask of the mounts in a VM's guest."""

    def __init__(
        self,
        events: EventLog,
        keeper: LeaseKeeper,
        store: Store,
        adding: Callable[[Identity, int], AbstractContextManager[None]],
    ) -> None:
        self._events = events
        self._keeper = keeper
        self._store = store
        self._adding = adding
        self._restoring: dict[VmKey, dict[tuple[str, str], MountRecord]] = {}
        """By VM, guest path and holder: what an earlier daemon had and was not mounted again yet."""
        self._being_mapped: Counter[MountLease] = Counter()
        """How many requests are under way for what nobody held when they came."""

    # Shown

    def all(self, who: Identity, machine: Machine) -> list[Mount]:
        """Return the mounts that a user may see: to root all, to others those that they hold."""
        there = [self._document(who, machine, info) for info in machine.mounted()]
        known = {mount.guest_path for mount in there}
        for path, owner in self._restoring.get(machine.record.key, {}):
            if path not in known:
                known.add(path)
                there.append(self._document_of_record(who, machine, path, owner))
        return [mount for mount in there if mount.references or who.is_root]

    def get(self, who: Identity, machine: Machine, guest_path: str) -> Mount:
        """Return one mount. Raises `NotThere`, and `InvalidOptions` for what is no path."""
        path = canonical_guest_path(guest_path)
        for mount in self.all(who, machine):
            if mount.guest_path == path:
                return mount
        msg = f"the guest of VM {name_for(who, machine.record.key)!r} has no mount at {path}, or none of yours"
        raise NotThere(msg)

    def _document(self, who: Identity, machine: Machine, info: MountInfo) -> Mount:
        share = info.options.share
        assert isinstance(share, AddOptions), "this daemon asks for no others"
        return Mount(
            vm=name_for(who, machine.record.key),
            guest_path=info.mount_path,
            share=info.share_name,
            path=share.host_path,
            read_only=info.options.read_only,
            only=share.allowed_names,
            cache=info.options.cache,
            msize=info.options.msize,
            state=info.state.value,
            busy=info.busy,
            since=info.since,
            last_error=None if info.last_error is None else printable(str(info.last_error)),
            references=self._references(who, machine.record.key, info.mount_path, [str(each) for each in info.owners]),
        )

    def _document_of_record(self, who: Identity, machine: Machine, path: str, owner: str) -> Mount:
        waiting = self._restoring[machine.record.key]
        record = waiting[path, owner]
        owners = [each for at, each in waiting if at == path]
        return Mount(
            vm=name_for(who, machine.record.key),
            guest_path=path,
            share=None,
            path=record.host_path,
            read_only=record.read_only,
            only=record.allowed_names,
            cache=record.cache,
            msize=record.msize,
            state="restoring",
            busy="mounting",
            since=None,
            last_error=None,
            references=self._references(who, machine.record.key, path, owners),
        )

    def _references(self, who: Identity, vm: VmKey, path: str, owners: list[str]) -> tuple[Reference, ...]:
        found = []
        for owner in owners:
            holder = holder_of(owner)
            if holder is None or not (who.is_root or holder[0] == who.uid):
                continue
            key = MountLease(vm, owner, path)
            lease = self._keeper.get(key)
            seconds = None if lease is None else lease.seconds
            found.append(Reference(owner=holder[1], uid=holder[0], lease=seconds, expires_in=self._keeper.left(key)))
        return tuple(found)

    # Mapped and unmapped

    async def map(self, who: Identity, machine: Machine, wanted: NewMount) -> Mount:
        """Share a directory and mount it in the guest, for an owner of `who`; both or neither.

        Raises `InvalidOptions`, `OperationDenied`, `LimitReached`, `MountConflict`, and what VM and agent do; then
        there is no new reference.
        """
        mounts = machine.require_mounts()
        share = await options_of(machine, wanted)
        options = MountOptions(share, wanted.guest_path, cache=wanted.cache, msize=wanted.msize)
        vm, owner, path = machine.record.key, f"{who.uid}/{wanted.owner}", options.mount_path
        key = MountLease(vm, owner, path)
        held = self._holds(machine, path, owner)
        self._refuse_conflict(who, machine, options)
        with (
            nullcontext() if held else self._mapping(who, key, weight(share.host_path, path, names=share.allowed_names))
        ):
            if wanted.lease is not None:
                self._keeper.grant(key, wanted.lease)
            if not held:
                self._store.put_mount(_record(vm, owner, options))
            try:
                with span("map_to_guest", vm=f"{vm[0]}:{vm[1]}", owner=owner, path=share.host_path, guest_path=path):
                    info = await mounts.mount(options, owner=owner)
            except BaseException:
                if not self._holds(machine, path, owner):
                    self._strike(key)
                raise
        if wanted.lease is None:
            self._keeper.forget(key)
        else:
            self._keeper.grant(key, wanted.lease)
        if not held:
            self._events.emit(
                "mount.held",
                vm,
                uid=who.uid,
                share=info.share_name,
                owner=wanted.owner,
                path=share.host_path,
                guest_path=path,
                lease=wanted.lease,
            )
        return self.get(who, machine, path)

    @contextmanager
    def _mapping(self, who: Identity, key: MountLease, size: int) -> Iterator[None]:
        """Count a request that may make a mount. Raises `LimitReached`."""
        with self._adding(who, size):
            self._being_mapped[key] += 1
            try:
                yield
            finally:
                self._being_mapped[key] -= 1
                if not self._being_mapped[key]:
                    del self._being_mapped[key]

    def _refuse_conflict(self, who: Identity, machine: Machine, options: MountOptions) -> None:
        """Say that a path is taken by somebody else's mount, and not what it is. Raises `MountConflict`."""
        seen = {mount.guest_path for mount in self.all(who, machine)}
        for info in machine.mounted():
            if info.mount_path == options.mount_path and info.mount_path not in seen and info.options != options:
                msg = f"{options.mount_path} in the guest is taken: ask for another path"
                raise MountConflict(msg)

    async def unmap(
        self, machine: Machine, guest_path: str, owner: str, *, lazy: bool = False, kind: str = "mount.released"
    ) -> None:
        """Give back what a holder ("UID/NAME") holds of a mount; the last one unmounts, and takes the share out.

        Holding nothing is no mistake. Raises what the agent and the VM raise: the reference then stays.
        """
        path = canonical_guest_path(guest_path)
        vm = machine.record.key
        key = MountLease(vm, owner, path)
        waiting = self._restoring.get(vm, {}).pop((path, owner), None)
        if waiting is not None and not self._mounted(machine, path, owner):
            await self._drop_share(machine, path)
            self._note_release(key, kind, waiting.host_path)
            return
        info = self._mounted(machine, path, owner)
        if info is None:
            self._strike(key)
            return
        await machine.require_mounts().unmount(path, owner=owner, lazy=lazy)
        if self._mounted(machine, path, owner) is None:
            assert isinstance(info.options.share, AddOptions)
            self._note_release(key, kind, info.options.share.host_path)

    def _note_release(self, key: MountLease, kind: str, host_path: str) -> None:
        holder = holder_of(key.owner)
        assert holder is not None
        self._strike(key)
        self._events.emit(kind, key.vm, uid=holder[0], owner=holder[1], path=host_path, guest_path=key.mount_path)

    def _strike(self, key: MountLease) -> None:
        self._keeper.forget(key)
        self._store.drop_mount(key.vm, key.mount_path, key.owner)

    def _holds(self, machine: Machine, path: str, owner: str) -> bool:
        if (path, owner) in self._restoring.get(machine.record.key, {}):
            return True
        return self._mounted(machine, path, owner) is not None

    def _mounted(self, machine: Machine, path: str, owner: str) -> MountInfo | None:
        return next((info for info in machine.mounted() if info.mount_path == path and owner in info.owners), None)

    def held_by(self, uid: int, machine: Machine) -> Iterator[int]:
        """Give the weight of each mount that a user holds there, or will again, once for each owner of his."""
        mine = f"{uid}/"
        held: dict[tuple[str, str], int] = {}
        for (path, owner), record in self._restoring.get(machine.record.key, {}).items():
            held[path, owner] = weight(record.host_path, path, names=record.allowed_names)
        for info in machine.mounted():
            share = info.options.share
            assert isinstance(share, AddOptions), "this daemon asks for no others"
            size = weight(share.host_path, info.mount_path, names=share.allowed_names)
            held.update({(info.mount_path, str(owner)): size for owner in info.owners})
        return (size for (_, owner), size in held.items() if owner.startswith(mine))

    # Leases

    def leased(self, machine: Machine) -> set[MountLease]:
        """Return everything that a lease may be on, by what is written down."""
        return {MountLease(each.vm, each.owner, each.mount_path) for each in self._store.mounts(machine.record.key)}

    async def lease_ended(self, machine: Machine | None, key: MountLease) -> None:
        """Give back what the lease was on, although it is in use in the guest.

        When the guest does not answer, the host takes the share out at once all the same: nobody renewed, so nobody is
        owed it. The guest's mount is then dead, and is seen to when the agent is reached. Raises what the agent raises.
        """
        if machine is None or not self._holds(machine, key.mount_path, key.owner):
            if key in self._being_mapped:
                self._keeper.forget(key)  # the request grants it afresh when the guest has mounted, or strikes it out
            else:
                self._strike(key)
            return
        info = self._mounted(machine, key.mount_path, key.owner)
        alone = info is not None and info.references == 1
        if alone and not machine.agent_connected:
            await self._drop_share(machine, key.mount_path)
        try:
            await self.unmap(machine, key.mount_path, key.owner, lazy=True, kind="lease.ended")
        except (AgentUnreachable, OutcomeUnknown):
            if alone:
                await self._drop_share(machine, key.mount_path)
            raise

    async def _drop_share(self, machine: Machine, path: str) -> None:
        """Take out the share that a mount holds, whatever the guest says, unless the mount is somebody else's too."""
        owner = share_owner(path)
        for info in machine.shares():
            if owner in info.owners:
                await machine.require().remove_from_vm(info.name, owner=owner)

    # After a restart

    def load(self, machine: Machine) -> None:
        """Take note of the mounts that an earlier daemon had; `restore` asks for them."""
        vm = machine.record.key
        self._restoring[vm] = {(each.mount_path, each.owner): each for each in self._store.mounts(vm)}

    async def restore(self, machine: Machine) -> None:
        """Ask for every mount again, as often as it takes, until each is there, refused, or given back meanwhile."""
        vm = machine.record.key
        waiting = self._restoring.get(vm, {})
        await self._release_strays(machine, {path for path, _ in waiting})
        delay = _RETRY_FIRST
        while waiting:
            for place, record in tuple(waiting.items()):
                if waiting.get(place) is record and await self._restored(machine, record):
                    waiting.pop(place, None)
            if waiting:
                await asyncio.sleep(delay)
                delay = min(2 * delay, _RETRY_LONGEST)

    async def _restored(self, machine: Machine, record: MountRecord) -> bool:
        """Ask for one mount again; False when it is to be tried later."""
        key = MountLease(record.vm, record.owner, record.mount_path)
        try:
            mounts = machine.require_mounts()
            share = await checked_options(
                machine.threads,
                machine.record.identity,
                record.host_path,
                read_only=record.read_only,
                only=record.allowed_names,
            )
            options = MountOptions(share, record.mount_path, cache=record.cache, msize=record.msize)
            await mounts.mount(options, owner=record.owner)
        except (AgentUnreachable, OutcomeUnknown):
            return False
        except ComputeSystemGone:
            return True
        except UvmshareError as error:
            refused = isinstance(error, InvalidOptions | OperationDenied | MountConflict)
            structlog.get_logger("uvmshare.daemon").warning(
                "mount of an earlier daemon could not be had again",
                vm=f"{record.vm[0]}:{record.vm[1]}",
                owner=record.owner,
                guest_path=record.mount_path,
                reason=str(error),
            )
            if refused:
                await self._drop_share(machine, record.mount_path)
                self._note_release(key, "mount.lost", record.host_path)
            return refused
        if self._restoring.get(record.vm, {}).pop((record.mount_path, record.owner), None) is None:
            # Given back while it was being asked for.
            await mounts.unmount(record.mount_path, owner=record.owner, lazy=True)
            return True
        holder = holder_of(record.owner)
        assert holder is not None
        self._events.emit(
            "mount.restored",
            record.vm,
            uid=holder[0],
            owner=holder[1],
            path=record.host_path,
            guest_path=record.mount_path,
        )
        return True

    async def _release_strays(self, machine: Machine, paths: set[str]) -> None:
        """Take out shares that mounts held of which nothing is written down any more."""
        kept = {share_owner(path) for path in paths}
        for info in machine.shares():
            for owner in info.owners:
                if holder_of(owner) is None and owner not in kept:
                    await machine.require().remove_from_vm(info.name, owner=owner)

    def forget(self, vm: VmKey) -> None:
        """Forget what is being restored of a VM that is removed."""
        self._restoring.pop(vm, None)


def _record(vm: VmKey, owner: str, options: MountOptions) -> MountRecord:
    share = options.share
    assert isinstance(share, AddOptions)
    return MountRecord(
        vm,
        options.mount_path,
        owner,
        share.host_path,
        share.read_only,
        share.allowed_names,
        options.cache,
        options.msize,
    )
