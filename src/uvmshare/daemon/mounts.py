"""Mounts in guests for the daemon's users: mapped, unmapped, shown, and asked for again after a restart.

What lives here: what users ask of mounts. What must not: VMs (`service`), HTTP, or how a guest is reached.

The MountManager keeps nothing over the end of its process, so the daemon writes each holder down before it asks, and
strikes them out after the mount is gone. After a restart it asks for every mount again: an agent that has it already,
in that form, says so, and the guest notices nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.identity import checked_options
from uvmshare.daemon.mount_documents import mount_document, mount_options, mount_references
from uvmshare.daemon.quotas import weight
from uvmshare.daemon.shares import holder_of, may_see, note_what_is_there, options_of
from uvmshare.daemon.store import MountLease, MountRecord, name_for
from uvmshare.daemon.tracing import span
from uvmshare.directory import may_be_same, recalled
from uvmshare.errors import (
    AgentUnreachable,
    ComputeSystemGone,
    DaemonError,
    HostPathReplaced,
    InvalidOptions,
    MountConflict,
    MountRevoked,
    NotThere,
    OperationDenied,
    OutcomeUnknown,
    UvmshareError,
)
from uvmshare.lifecycle.retry import Wait
from uvmshare.mounts.engine import REVOKE_GRACE, mount_path_of, share_owner
from uvmshare.mounts.options import MountOptions, canonical_guest_path
from uvmshare.mounts.state import MountState
from uvmshare.printable import printable
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from uvmshare.daemon.documents import Mount, NewMount, Reference
    from uvmshare.daemon.events import EventLog
    from uvmshare.daemon.identity import Identity
    from uvmshare.daemon.leases import Leases
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.store import DaemonStore, VmKey
    from uvmshare.mounts.manager import MountManager
    from uvmshare.mounts.mount import MountInfo

__all__ = ["UserMounts"]

_RETRY_FIRST: Final = 0.5
_RETRY_LONGEST: Final = 15.0
"""Seconds before a mount of an earlier daemon's is asked for again; the wait doubles."""


class UserMounts:
    """What users ask of the mounts in a VM's guest."""

    def __init__(
        self,
        events: EventLog,
        leases: Leases,
        store: DaemonStore,
        adding: Callable[[Identity, int], AbstractContextManager[None]],
    ) -> None:
        self._events = events
        self._leases = leases
        self._store = store
        self._adding = adding
        self._restoring: dict[VmKey, dict[tuple[str, str], MountRecord]] = {}
        """By VM, guest path and holder: what an earlier daemon had and was not mounted again yet."""
        self._being_mapped: Counter[MountLease] = Counter()
        """How many requests are under way for what nobody held when they came."""
        self._asked: dict[MountLease, set[asyncio.Task[MountInfo]]] = {}
        """The mounts that the guest is being asked for, by who is to hold them."""

    # Shown

    def all(self, who: Identity, machine: Machine) -> list[Mount]:
        """Return the mounts that a user may see: to root all, to others those that they hold, or that were revoked."""
        mounted = machine.mounted()
        revoked = {
            info.mount_path
            for info in mounted
            if info.state is MountState.REVOKED and any(may_see(who, str(owner)) for owner in info.taken_from)
        }
        there = [self._document(who, machine, info) for info in mounted]
        known = {mount.guest_path for mount in there}
        for path, owner in self._restoring.get(machine.record.key, {}):
            if path not in known:
                known.add(path)
                there.append(self._document_of_record(who, machine, path, owner))
        return [mount for mount in there if mount.references or who.is_root or mount.guest_path in revoked]

    def get(self, who: Identity, machine: Machine, guest_path: str) -> Mount:
        """Return one mount. Raises `NotThere`, and `InvalidOptions` for what is no path."""
        path = canonical_guest_path(guest_path)
        for mount in self.all(who, machine):
            if mount.guest_path == path:
                return mount
        msg = f"the guest of VM {name_for(who, machine.record.key)!r} has no mount at {path}, or none of yours: "
        msg += "`uvmshare mounts` lists them"
        raise NotThere(msg)

    def _document(self, who: Identity, machine: Machine, info: MountInfo) -> Mount:
        share = info.options.share
        assert isinstance(share, AddOptions), "this daemon asks for no others"
        owners = self._with_waiting(machine, info.mount_path, [str(owner) for owner in info.owners])
        shown = mount_document(who, machine, self._leases, share, info.options, owners=owners)
        return msgspec.structs.replace(
            shown,
            share=info.share_name,
            chosen=info.chosen,
            no_events=None if info.no_events is None else printable(info.no_events),
            state=info.state.value,
            busy=info.busy,
            since=info.since,
            last_error=None if info.last_error is None else printable(str(info.last_error)),
            directory="unknown" if info.share_name is None else machine.fates.of(info.share_name),
            unreachable_since=info.unreachable_since,
        )

    def _document_of_record(self, who: Identity, machine: Machine, path: str, owner: str) -> Mount:
        waiting = self._restoring[machine.record.key]
        record = waiting[path, owner]
        owners = [each for at, each in waiting if at == path]
        return mount_document(who, machine, self._leases, record, record, owners=owners)

    # Mapped and unmapped

    async def map(self, who: Identity, machine: Machine, wanted: NewMount) -> Mount:
        """Share a directory and mount it in the guest, for an owner of `who`; both or neither.

        Raises `InvalidOptions`, `OperationDenied`, `LimitReached`, `MountConflict`, and what VM and agent do; then
        there is no new reference.
        """
        mounts = machine.require_mounts()
        share = await options_of(machine, wanted)
        options = mount_options(share, wanted.guest_path, wanted)
        vm, owner, path = machine.record.key, f"{who.uid}/{wanted.owner}", options.mount_path
        key = MountLease(vm, owner, path)
        held = self._holds(machine, path, owner)
        self._refuse_conflict(who, machine, options)
        with (
            nullcontext()
            if held
            else self._mapping(who, key, weight(share.host_path, path, names=(*share.allowed_names, *share.hide)))
        ):
            if wanted.lease is not None:
                self._leases.grant(key, wanted.lease)
            if not held:
                self._store.put_mount(MountRecord.of(vm, owner, options))
            try:
                with span(
                    "MountManager.mount", vm=f"{vm[0]}:{vm[1]}", owner=owner, path=share.host_path, guest_path=path
                ):
                    info = await self._ask(key, mounts, options)
            except BaseException as error:
                if not self._holds(machine, path, owner):
                    self._strike(key)
                if isinstance(error, MountConflict | MountRevoked) and self.is_hidden(who, machine, path):
                    raise _taken(path) from None  # the error says what is there
                raise
        if wanted.lease is None:
            self._leases.forget(key)
        else:
            self._leases.grant(key, wanted.lease)
        if not held:
            self._events.emit(
                EventKind.MOUNT_HELD,
                vm,
                uid=who.uid,
                share=info.share_name,
                owner=wanted.owner,
                path=share.host_path,
                guest_path=path,
                lease=wanted.lease,
            )
        note_what_is_there(machine, share)
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

    async def _ask(self, key: MountLease, mounts: MountManager, options: MountOptions) -> MountInfo:
        """Have the guest mount. Raises what that does, and `MountRevoked` when the holder was forced out meanwhile."""
        asking = asyncio.get_running_loop().create_task(mounts.mount(options, owner=key.owner))
        asked = self._asked.setdefault(key, set())
        asked.add(asking)
        try:
            return await asking
        except asyncio.CancelledError:
            if asking not in asked:  # `_end_requests` has taken it out
                msg = f"{key.mount_path}: it was taken away by force while it was being mounted: map it again"
                raise MountRevoked(msg) from None
            raise
        finally:
            asked.discard(asking)
            if not asked and self._asked.get(key) is asked:
                del self._asked[key]

    async def _end_requests(self, key: MountLease) -> bool:
        """Let nobody get what is being mounted for a holder; say whether there was anybody."""
        asked, found = self._asked.pop(key, set()), False
        for asking in tuple(asked):
            asked.discard(asking)
            asking.cancel()
            await asyncio.wait({asking})  # it wants the mount no more then
            found = True
        return found

    def _refuse_conflict(self, who: Identity, machine: Machine, options: MountOptions) -> None:
        """Say that a path is taken by somebody else's mount, and not what it is. Raises `MountConflict`."""
        path = options.mount_path
        there = [info.options for info in machine.mounted() if info.mount_path == path]
        if any(not each.may_be(options) for each in there) and self.is_hidden(who, machine, path):
            raise _taken(path)

    def is_hidden(self, who: Identity, machine: Machine, path: str) -> bool:
        """Say whether there is a mount at a path, or is to be one again, that `who` may not see."""
        waiting = self._restoring.get(machine.record.key, {})
        there = {info.mount_path for info in machine.mounted()} | {at for at, _ in waiting}
        return path in there and all(mount.guest_path != path for mount in self.all(who, machine))

    async def unmap(
        self,
        machine: Machine,
        guest_path: str,
        owner: str,
        *,
        lazy: bool = False,
        force: bool = False,
        kind: EventKind = EventKind.MOUNT_RELEASED,
    ) -> None:
        """Release what a holder ("UID/NAME") holds of a mount; the last one unmounts, and removes the share.

        Holding nothing is no mistake. With `force` it is released whatever the guest says. Raises what the VM raises,
        and without `force` what the agent raises: the reference then stays.
        """
        path = canonical_guest_path(guest_path)
        vm = machine.record.key
        key = MountLease(vm, owner, path)
        waiting = self._restoring.get(vm, {}).pop((path, owner), None)
        info = self._mounted(machine, path, owner)
        if waiting is not None and info is None:
            await self._give_back_waiting(machine, key, waiting, kind)
            return
        if info is None and not (force and self._being_taken(machine, key)):
            self._strike(key)
            return
        mounts = machine.require_mounts()
        host_path = next(_host_path(each) for each in machine.mounted() if each.mount_path == path)
        if force:
            self._store_forgets(key)  # first: whatever becomes of this process, it does not come back
            await mounts.unmount(path, owner=owner, force=True, grace=_grace(machine))
        else:
            try:
                await mounts.unmount(path, owner=owner, lazy=lazy)
            except UvmshareError:
                if self._mounted(machine, path, owner) is None:
                    self._note_release(machine, key, kind, host_path)
                raise
        if self._mounted(machine, path, owner) is None:
            self._note_release(machine, key, kind, host_path)

    async def revoke(self, who: Identity, machine: Machine, guest_path: str) -> bool:
        """Take a mount from all whom `who` may release, whatever the guest says; say whether anybody held it.

        Also from those who are asking for it. When this returns and nobody else holds the mount, its share is out.
        Raises what the VM raises; the share is tried again by itself then.
        """
        path, vm = canonical_guest_path(guest_path), machine.record.key
        asked = [key for key in self._asked if key.vm == vm and key.mount_path == path and may_see(who, key.owner)]
        taken = False
        for key in asked:
            taken = await self._end_requests(key) or taken
        waiting = [owner for at, owner in self._restoring.get(vm, {}) if at == path and may_see(who, owner)]
        for owner in waiting:
            await self.unmap(machine, path, owner, force=True, kind=EventKind.MOUNT_REVOKED)
        info = next((each for each in machine.mounted() if each.mount_path == path), None)
        if info is None:
            if not any(at == path for at, _ in self._restoring.get(vm, {})):
                await self._drop_share(machine, path)
            return taken or bool(waiting)
        owners = [str(owner) for owner in info.owners if may_see(who, str(owner))]
        for owner in owners:
            self._store_forgets(MountLease(vm, owner, path))
        everybody = None if who.is_root else owners
        await machine.require_mounts().revoke(path, owners=everybody, grace=_grace(machine))
        for owner in owners:
            self._note_release(machine, MountLease(vm, owner, path), EventKind.MOUNT_REVOKED, _host_path(info))
        return taken or bool(waiting or owners)

    async def _give_back_waiting(self, machine: Machine, key: MountLease, record: MountRecord, kind: EventKind) -> None:
        """Give back what an earlier daemon had, and this one had not mounted again yet."""
        self._store_forgets(key)
        await self._end_requests(key)
        if not any(at == key.mount_path for at, _ in self._restoring.get(key.vm, {})):
            if any(info.mount_path == key.mount_path for info in machine.mounted()):
                await machine.require_mounts().unmount(key.mount_path, owner=key.owner, force=True, grace=0.0)
            else:
                await self._drop_share(machine, key.mount_path)
        self._note_release(machine, key, kind, record.host_path)

    async def hand_over(self, machine: Machine, path: str, before: str, after: str, lease: float | None) -> None:
        """Have a holder ("UID/NAME") hold a mount in place of another, as `UserShares.hand_over`."""
        vm, key = machine.record.key, MountLease(machine.record.key, after, path)
        waiting = self._restoring.get(vm, {})
        info, record = self._mounted(machine, path, before), waiting.get((path, before))
        if info is None and record is None:
            return
        if lease is not None:
            self._leases.grant(key, lease)
        if info is None and record is not None:
            waiting[path, after] = msgspec.structs.replace(record, owner=after)
            self._store.put_mount(waiting[path, after])
        elif info is not None:
            self._store.put_mount(MountRecord.of(vm, after, info.options))
            try:
                await self._ask(key, machine.require_mounts(), info.options)
            except BaseException:
                self._strike(key)
                raise
        await self.unmap(machine, path, before)

    def holders(self, who: Identity, machine: Machine, path: str) -> tuple[tuple[Reference, ...], bool]:
        """Return who holds the mount at a path, as far as `who` may see them, and whether there are others."""
        vm = machine.record.key
        held = [str(owner) for info in machine.mounted() if info.mount_path == path for owner in info.owners]
        owners = self._with_waiting(machine, path, held)
        others = any(not may_see(who, owner) for owner in owners)
        return tuple(mount_references(who, vm, self._leases, path, owners)), others

    def _with_waiting(self, machine: Machine, path: str, owners: list[str]) -> list[str]:
        """Return the owners of the mount at a path, with those for whom it is asked for again after a restart."""
        waiting = self._restoring.get(machine.record.key, {})
        return owners + [owner for at, owner in waiting if at == path and owner not in owners]

    def share_of(self, machine: Machine, path: str) -> str | None:
        """Return the name of the share that the mount at a path holds."""
        return next((info.name for info in machine.shares() if share_owner(path) in info.owners), None)

    def guest_words(self, machine: Machine, path: str) -> str | None:
        """Return why the guest may still have a mount whose share was taken away; None when there is none."""
        for info in machine.mounted():
            if info.mount_path == path and info.state is MountState.REVOKED:
                why = info.last_error or f"it has not answered within {REVOKE_GRACE:g} s"
                return f"the guest did not unmount it, and may still have it, dead: {why}"
        return None

    def _note_release(self, machine: Machine, key: MountLease, kind: EventKind, host_path: str) -> None:
        holder = holder_of(key.owner)
        assert holder is not None
        self._events.emit(
            kind,
            key.vm,
            uid=holder[0],
            owner=holder[1],
            path=host_path,
            guest_path=key.mount_path,
            guest=self.guest_words(machine, key.mount_path),
        )
        self._strike(key)  # last: it is true whether the disk takes it or not

    def _store_forgets(self, key: MountLease) -> None:
        """Strike a holder out before they lose the mount. They lose it even if the disk takes nothing."""
        try:
            self._store.drop_mount(key.vm, key.mount_path, key.owner)
        except DaemonError as error:
            structlog.get_logger("uvmshare.daemon").warning(
                "the end of a mount could not be written down", guest_path=key.mount_path, reason=str(error)
            )

    def _strike(self, key: MountLease) -> None:
        self._leases.forget(key)
        self._store.drop_mount(key.vm, key.mount_path, key.owner)

    def _holds(self, machine: Machine, path: str, owner: str) -> bool:
        if (path, owner) in self._restoring.get(machine.record.key, {}):
            return True
        return self._mounted(machine, path, owner) is not None

    def _mounted(self, machine: Machine, path: str, owner: str) -> MountInfo | None:
        return next((info for info in machine.mounted() if info.mount_path == path and owner in info.owners), None)

    def held_by(self, uid: int, machine: Machine) -> Iterator[int]:
        """Give the weight of each mount that a user holds there, or will again, once for each owner of theirs.

        And of each that nobody holds and the guest has not unmounted: it is the user's own agent that says nothing.
        """
        mine = f"{uid}/"
        held: dict[tuple[str, str], int] = {}
        for (path, owner), record in self._restoring.get(machine.record.key, {}).items():
            held[path, owner] = weight(record.host_path, path, names=(*record.allowed_names, *record.hide))
        for info in machine.mounted():
            share = info.options.share
            assert isinstance(share, AddOptions), "this daemon asks for no others"
            size = weight(share.host_path, info.mount_path, names=(*share.allowed_names, *share.hide))
            is_left = not info.references and info.busy != "mounting"  # what is being mounted counts as its request
            owners = (mine,) if is_left else map(str, info.owners)
            held.update({(info.mount_path, owner): size for owner in owners})
        return (size for (_, owner), size in held.items() if owner.startswith(mine))

    # Leases

    def leased(self, machine: Machine) -> set[MountLease]:
        """Return everything that a lease may be on, by what is written down."""
        return {MountLease(each.vm, each.owner, each.mount_path) for each in self._store.mounts(machine.record.key)}

    async def lease_ended(self, machine: Machine | None, key: MountLease) -> None:
        """Give back what the lease was on, whatever the guest says.

        The guest has `REVOKE_GRACE` seconds to unmount, and none when its agent is out of reach; then the host takes
        the share out. The guest's mount is dead then, and is seen to when the agent is reached. Raises what the VM
        raises.
        """
        if machine is not None and (self._holds(machine, key.mount_path, key.owner) or self._being_taken(machine, key)):
            await self.unmap(machine, key.mount_path, key.owner, force=True, kind=EventKind.LEASE_ENDED)
        elif key in self._being_mapped:
            self._leases.forget(key)  # the request grants it afresh when the guest has mounted, or strikes it out
        else:
            self._strike(key)

    def _being_taken(self, machine: Machine, key: MountLease) -> bool:
        """Say whether a holder was forced out of a mount whose share could not be removed yet."""
        return any(
            info.mount_path == key.mount_path and key.owner in info.taken_from and info.share_name is not None
            for info in machine.mounted()
        )

    async def _drop_share(self, machine: Machine, path: str) -> None:
        """Take out the share that a mount of an earlier daemon's holds."""
        owner = share_owner(path)
        for info in machine.shares():
            if owner in info.owners:
                await machine.require().remove(info.name, owner=owner)

    # After a restart

    def load(self, machine: Machine) -> None:
        """Take note of the mounts that an earlier daemon had; `restore` asks for them."""
        vm = machine.record.key
        self._restoring[vm] = {(each.mount_path, each.owner): each for each in self._store.mounts(vm)}

    async def restore(self, machine: Machine) -> None:
        """Ask for every mount again, as often as it takes, until each is there, refused, or released meanwhile."""
        vm = machine.record.key
        waiting = self._restoring.get(vm, {})
        wait = Wait(_RETRY_FIRST, _RETRY_LONGEST)
        while waiting:
            for place, record in tuple(waiting.items()):
                if waiting.get(place) is record and await self._restored(machine, record):
                    waiting.pop(place, None)
            if waiting:
                await asyncio.sleep(wait.next())

    async def _restored(self, machine: Machine, record: MountRecord) -> bool:
        """Ask for one mount again; False when it is to be tried later."""
        key = MountLease(record.vm, record.owner, record.mount_path)
        try:
            mounts = machine.require_mounts()
            share = await self._share_again(machine, record)
            await self._ask(key, mounts, mount_options(share, record.mount_path, record))
        except (AgentUnreachable, OutcomeUnknown):
            return False
        except (ComputeSystemGone, MountRevoked):
            return True
        except UvmshareError as error:
            refused = isinstance(error, InvalidOptions | OperationDenied | MountConflict | HostPathReplaced)
            structlog.get_logger("uvmshare.daemon").warning(
                "mount of an earlier daemon could not be had again",
                vm=f"{record.vm[0]}:{record.vm[1]}",
                owner=record.owner,
                guest_path=record.mount_path,
                reason=str(error),
            )
            if refused:
                self._restoring.get(record.vm, {}).pop((record.mount_path, record.owner), None)
                await self._give_back_waiting(machine, key, record, EventKind.MOUNT_GIVEN_UP)
            return refused
        if self._restoring.get(record.vm, {}).pop((record.mount_path, record.owner), None) is None:
            # Given back while it was being asked for.
            await mounts.unmount(record.mount_path, owner=record.owner, force=True)
            return True
        holder = holder_of(record.owner)
        assert holder is not None
        self._events.emit(
            EventKind.MOUNT_RESTORED,
            record.vm,
            uid=holder[0],
            owner=holder[1],
            path=record.host_path,
            guest_path=record.mount_path,
        )
        return True

    async def _share_again(self, machine: Machine, record: MountRecord) -> AddOptions:
        """Return the options of the share that a mount had: of the same directory, whatever its path leads to now.

        Raises `HostPathReplaced` when nobody serves that any more, and as `checked_options` does.
        """
        owner = share_owner(record.mount_path)
        held = [info.options for info in machine.shares(owner=owner) if not info.orphan]
        try:
            found = await checked_options(
                machine.threads,
                machine.record.identity,
                record.host_path,
                read_only=record.read_only,
                only=record.allowed_names,
                hide=record.hide,
                map_owner=record.map_owner,
            )
        except InvalidOptions:
            if held:  # the directory is gone from its path, and is shared all the same
                return held[-1]
            raise
        if held:
            return held[-1]
        if not may_be_same(recalled(record.directory), found.directory):
            msg = (
                f"{record.host_path} leads to another directory than the one that was mounted at {record.mount_path}, "
                "which nobody serves any more: map it again"
            )
            raise HostPathReplaced(msg)
        return found

    async def release_strays(self, machine: Machine) -> None:
        """Take out shares that mounts held of which nothing is written down any more, as often as it takes."""
        waiting = {path for path, _ in self._restoring.get(machine.record.key, {})}
        wait, told = Wait(_RETRY_FIRST, _RETRY_LONGEST), False
        strays = {
            (info.name, str(owner))
            for info in machine.shares()
            for owner in info.owners
            if (path := mount_path_of(owner)) is not None and path not in waiting
        }
        while strays and machine.manager is not None:
            for name, owner in tuple(strays):
                if any(share_owner(info.mount_path) == owner for info in machine.mounted()):
                    strays.discard((name, owner))  # somebody has mapped there anew, and that mount has it
                    continue
                try:
                    await machine.require().remove(name, owner=owner)
                except UvmshareError as error:
                    if not told:
                        told = True
                        whose = machine.audience(name)
                        self._events.emit(
                            EventKind.SHARE_OVERDUE, machine.record.key, uid=whose, share=name, reason=str(error)
                        )
                else:
                    strays.discard((name, owner))
            if strays:
                await asyncio.sleep(wait.next())

    def forget(self, vm: VmKey) -> None:
        """Forget what is being restored of a VM that is removed."""
        self._restoring.pop(vm, None)


def _grace(machine: Machine) -> float:
    """Return how long the guest has to unmount: nobody waits for one whose agent is out of reach."""
    return REVOKE_GRACE if machine.agent_reached else 0.0


def _taken(path: str) -> MountConflict:
    return MountConflict(f"{path} in the guest is taken: ask for another path")


def _host_path(info: MountInfo) -> str:
    assert isinstance(info.options.share, AddOptions), "this daemon asks for no others"
    return info.options.share.host_path
