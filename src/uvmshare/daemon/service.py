"""The daemon without its HTTP: VMs, shares, references and leases, and who may do what with them.

What lives here: every decision. What must not: HTTP (`app`), or how a file server is kept running (`machine`).

Who may: a VM belongs to the user who added it. Nobody else sees it, root excepted, and to everybody else it is as if
it were not there. In a VM, whoever asked for a share holds it under his own uid: what others hold there, root above
all, he neither sees nor releases. Users' names for VMs and owners are kept apart, so that nobody meets another's.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

import structlog

from uvmshare.daemon.documents import Info, NewShare, NewVm, Reference, Renewed, Share, Vm
from uvmshare.daemon.events import EventLog, Happening
from uvmshare.daemon.identity import Identity, checked_options, of_process
from uvmshare.daemon.leases import Leases
from uvmshare.daemon.machine import Machine
from uvmshare.daemon.operations import Operations
from uvmshare.daemon.store import LeaseKey, VmRecord
from uvmshare.errors import AlreadyThere, InvalidOptions, NotThere, OperationDenied, StillInUse, UvmshareError
from uvmshare.fileserver import confinement

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uvmshare.daemon.machine import Places
    from uvmshare.daemon.store import Store, VmKey
    from uvmshare.share.manager import ShareInfo
    from uvmshare.share.options import AddOptions

__all__ = ["Service"]

_EXPIRY_RETRY: Final = 5.0
"""Seconds before a lease that is over, but whose share could not be taken out, is tried again."""


class Service:
    """Everything that one daemon does. Belongs to one event loop.

    `clock` counts seconds for the leases, by any zero; `now` gives the seconds since the epoch that documents show.
    """

    def __init__(
        self,
        places: Places,
        store: Store,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        instance: str = "",
    ) -> None:
        instance = instance or f"{os.getpid():x}.{int(now()):x}"
        self._places = places
        self._store = store
        self._clock = clock
        self._now = now
        self._started = now()
        self._identity = of_process()
        self.machines: dict[VmKey, Machine] = {}
        self._being_added: set[VmKey] = set()
        self.leases: Leases[LeaseKey] = Leases(clock)
        self._leases_changed = asyncio.Event()
        self.events = EventLog(instance, now)
        self.operations = Operations(instance, now)
        self._background: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger("uvmshare.daemon")

    # ------------------------------------------------------------------ the daemon's life

    async def start(self) -> None:
        """Find every VM that an earlier daemon left, with its leases, which run afresh; then watch the leases."""
        records = self._store.vms()
        await asyncio.gather(*(self._adopt(record) for record in records))
        self._background.append(asyncio.get_running_loop().create_task(self._watch_leases()))

    async def _adopt(self, record: VmRecord) -> None:
        machine = self._make_machine(record)
        self.machines[record.key] = machine
        await machine.adopt()
        held = {key for info in machine.manager.shares() for key in self._lease_keys(record.key, info)}
        leases = self._store.leases(record.key)
        for key, seconds in leases.items():
            if key in held:
                self.leases.grant(key, seconds)
        self._store.drop_leases(key for key in leases if key not in held)
        self.events.emit("vm.found", record.key, state=machine.state)

    async def stop(self) -> None:
        """End, and leave every VM running for the next daemon."""
        self.events.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.operations.settle()
        for machine in self.machines.values():
            await machine.detach()

    def _make_machine(self, record: VmRecord) -> Machine:
        def changed(machine: Machine, what: str, reason: str | None) -> None:
            self.events.emit(f"vm.{what}", machine.record.key, reason=reason)

        return Machine(record, self._places, changed)

    def info(self, who: Identity) -> Info:
        """Tell about the daemon."""
        return Info(
            version=version("uvmshare"),
            pid=os.getpid(),
            uid=self._identity.uid,
            started=datetime.fromtimestamp(self._started, UTC),
            you=who.uid,
            notes=confinement.missing(),
        )

    def admit(self, who: Identity) -> None:
        """Refuse whoever this daemon is not for: one that is not root's serves its own user, and root.

        Raises `OperationDenied`.
        """
        if self._identity.uid not in (0, who.uid) and not who.is_root:
            msg = f"this daemon is uid {self._identity.uid}'s and serves no other user: start one of your own"
            raise OperationDenied(msg)

    # ------------------------------------------------------------------ VMs

    def find(self, who: Identity, name: str) -> Machine:
        """Return a VM by the name that `who` has for it. Raises `NotThere` for none, and for another user's."""
        machine = self.machines.get(self._key(who, name))
        if machine is None:
            msg = f"there is no VM {name!r}, or none of yours: `uvmshare vm ls` lists them"
            raise NotThere(msg)
        return machine

    def _key(self, who: Identity, name: str) -> VmKey:
        uid, colon, id_ = name.partition(":")
        if not colon:
            return (who.uid, name)
        if uid.isascii() and uid.isdigit() and len(uid) < 11 and (who.is_root or int(uid) == who.uid):
            return (int(uid), id_)
        return (-1, "")

    def name_for(self, who: Identity, key: VmKey) -> str:
        """Return what `who` has to call a VM."""
        return key[1] if key[0] == who.uid else f"{key[0]}:{key[1]}"

    def visible(self, who: Identity) -> list[Machine]:
        """Return the VMs that a user may see."""
        return [machine for key, machine in sorted(self.machines.items()) if who.is_root or key[0] == who.uid]

    def vm(self, who: Identity, machine: Machine) -> Vm:
        """Return the document of a VM."""
        wanted = machine.record.wanted
        return Vm(
            id=self.name_for(who, machine.record.key),
            uid=machine.record.identity.uid,
            state=machine.state,
            error=machine.error,
            listen=wanted.listen,
            addresses=machine.addresses,
            compute_system=wanted.compute_system,
            security_model=wanted.security_model,
            read_only=wanted.read_only,
            restarts=machine.restarts,
            shares=len(self.shares(who, machine)),
        )

    async def add_vm(self, who: Identity, wanted: NewVm) -> Vm:
        """Start a file server for a VM, with the rights of the one who asks; return the VM.

        The same again, word for word, is no mistake and changes nothing. Raises `AlreadyThere`, and what starting a
        file server raises; then nothing is left of it.
        """
        record = VmRecord(who, wanted)
        there = self.machines.get(record.key)
        if there is not None and there.record.wanted == wanted:
            return self.vm(who, there)
        if there is not None or record.key in self._being_added:
            msg = f"there is a VM {wanted.id!r} already, with other settings: remove it first, or choose another id"
            raise AlreadyThere(msg)
        if bool(wanted.listen) == (wanted.compute_system is not None):
            msg = f"VM {wanted.id!r} needs either addresses to listen on or a compute system, and got both or neither"
            raise InvalidOptions(msg)
        self._being_added.add(record.key)
        try:
            machine = self._make_machine(record)
            # Written down first: a daemon that dies in between finds the file server again.
            self._store.put_vm(record)
            try:
                await machine.start()
            except BaseException:
                self._store.drop_vm(record.key)
                raise
            self.machines[record.key] = machine
        finally:
            self._being_added.discard(record.key)
        self.events.emit("vm.added", record.key, addresses=list(machine.addresses))
        return self.vm(who, machine)

    async def remove_vm(self, who: Identity, name: str, *, force: bool) -> None:
        """End a VM's file server and forget the VM.

        Raises `NotThere`, and `StillInUse` while shares are held, unless it is forced.
        """
        machine = self.find(who, name)
        held = [info for info in machine.manager.shares() if info.references]
        if held and not force:
            msg = f"VM {name!r} has {len(held)} share(s) that are held: release them first, or force it"
            raise StillInUse(msg)
        key = machine.record.key
        with suppress(UvmshareError):  # what could not be taken out ends with the file server
            await machine.manager.aclose()
        await machine.remove()
        self._forget_leases(lease for lease in self.leases.held() if lease.vm == key)
        if self.machines.pop(key, None) is not None:
            self._store.drop_vm(key)
            self.events.emit("vm.removed", key)

    # ------------------------------------------------------------------ shares

    def shares(self, who: Identity, machine: Machine) -> list[Share]:
        """Return the shares of a VM that a user may see: to root all, to others those that they hold."""
        found = (self._share(who, machine, info) for info in machine.manager.shares())
        return [share for share in found if share.references or who.is_root]

    def share(self, who: Identity, machine: Machine, name: str) -> Share:
        """Return one share. Raises `NotThere`."""
        for share in self.shares(who, machine):
            if share.name == name:
                return share
        msg = f"VM {self.name_for(who, machine.record.key)!r} has no share {name!r}, or none of yours"
        raise NotThere(msg)

    def _share(self, who: Identity, machine: Machine, info: ShareInfo) -> Share:
        return Share(
            vm=self.name_for(who, machine.record.key),
            name=info.name,
            path=info.options.host_path,
            read_only=info.options.read_only,
            only=info.options.allowed_names,
            state=info.state.value,
            busy=info.busy,
            orphan=info.orphan,
            since=info.since,
            last_error=None if info.last_error is None else str(info.last_error),
            references=tuple(
                self._reference(machine, info, str(owner))
                for owner in info.owners
                if who.is_root or _uid_of(str(owner)) == who.uid
            ),
        )

    def _reference(self, machine: Machine, info: ShareInfo, owner: str) -> Reference:
        key = _lease_key(machine.record.key, owner, info.options)
        lease = self.leases.get(key)
        return Reference(
            owner=owner.partition("/")[2],
            uid=_uid_of(owner),
            lease=None if lease is None else lease.seconds,
            expires_in=self.leases.left(key),
        )

    async def add_share(self, who: Identity, machine: Machine, wanted: NewShare) -> Share:
        """Share a directory with a VM for an owner of `who`, and return the share when the guest can mount it.

        The same owner again holds one reference, whose lease is then the new one. Raises `InvalidOptions`,
        `OperationDenied`, and what the VM raises; then there is no new reference.
        """
        if not os.path.isabs(wanted.path):
            msg = f"{wanted.path}: give an absolute path; the daemon has another working directory than you"
            raise InvalidOptions(msg)
        options = await checked_options(
            machine.record.identity, wanted.path, read_only=wanted.read_only, only=wanted.only
        )
        vm, owner = machine.record.key, f"{who.uid}/{wanted.owner}"
        key = _lease_key(vm, owner, options)
        held = self._holds(machine, key)
        if wanted.lease is not None:
            self._grant(key, wanted.lease)
        try:
            name = await machine.manager.add_to_vm(options, owner=owner)
        except BaseException:
            if not self._holds(machine, key):
                self._forget_leases([key])
            raise
        if wanted.lease is None:
            self._forget_leases([key])
        else:  # it runs from when the share is there
            self._grant(key, wanted.lease)
        if not held:
            self.events.emit(
                "share.held",
                vm,
                uid=who.uid,
                share=name,
                owner=wanted.owner,
                path=options.host_path,
                read_only=options.read_only,
                lease=wanted.lease,
            )
        return self.share(who, machine, name)

    async def release(self, who: Identity, machine: Machine, name: str, owner: str, uid: int | None = None) -> None:
        """Give back what an owner holds of a share; the last one takes it out. Holding nothing is no mistake.

        `uid` is for root, who may release what others hold. Raises `NotThere` for a share that `who` cannot see,
        `OperationDenied`, and what the VM raises: the reference then stays.
        """
        self.share(who, machine, name)
        whose = who.uid if uid is None else uid
        if whose != who.uid and not who.is_root:
            msg = f"uid {who.uid} releases nothing of uid {whose}'s: only root does"
            raise OperationDenied(msg)
        await self._release(machine, name, f"{whose}/{owner}", "share.released")

    async def _release(self, machine: Machine, name: str, owner: str, kind: str) -> None:
        info = _find(machine, name)
        if info is None or owner not in info.owners:
            return
        vm = machine.record.key
        await machine.manager.remove_from_vm(name, owner=owner)
        after = _find(machine, name)
        if after is None or owner not in after.owners:
            self._forget_leases([_lease_key(vm, owner, info.options)])
            plain = owner.partition("/")[2]
            self.events.emit(kind, vm, uid=_uid_of(owner), share=name, owner=plain, path=info.options.host_path)
        if after is None:
            self.events.emit("share.removed", vm, uid=_uid_of(owner), share=name, path=info.options.host_path)

    async def release_all(self, who: Identity, owner: str) -> None:
        """Give back everything that an owner of `who` holds, in every VM.

        All are tried; then raises what the first raised that could not be given back.
        """
        whose = f"{who.uid}/{owner}"
        releases = [
            self._release(machine, info.name, whose, "share.released")
            for machine in self.visible(who)
            for info in machine.manager.shares()
            if whose in info.owners
        ]
        outcomes = await asyncio.gather(*releases, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    # ------------------------------------------------------------------ leases

    def renew(
        self, who: Identity, owner: str, lease: float | None, *, vm: Machine | None = None, share: str | None = None
    ) -> Renewed:
        """Let the leases of an owner run afresh: all of them, or those in one VM, or on one share.

        Raises `NotThere` when there is none: it was not renewed in time, and is to be asked for again.
        """
        whose = f"{who.uid}/{owner}"
        info = None if vm is None or share is None else _find(vm, share)
        if share is not None and info is None:
            keys = []
        else:
            keys = [
                key
                for key in self.leases.held()
                if key.owner == whose
                and (vm is None or key.vm == vm.record.key)
                and (info is None or key == _lease_key(key.vm, whose, info.options))
            ]
        if not keys:
            msg = f"owner {owner!r} has no lease there: it may have ended; add the share again"
            raise NotThere(msg)
        for key in keys:
            found = self.leases.get(key)
            assert found is not None
            if lease is None or lease == found.seconds:
                self.leases.renew(key)
            else:
                self._grant(key, lease)
        self._leases_changed.set()
        return Renewed(leases=len(keys))

    def _grant(self, key: LeaseKey, seconds: float) -> None:
        found = self.leases.get(key)
        if found is None or found.seconds != seconds:
            self._store.put_lease(key, seconds)
        self.leases.grant(key, seconds)
        self._leases_changed.set()

    def _forget_leases(self, keys: Iterable[LeaseKey]) -> None:
        dropped = [key for key in keys if self.leases.drop(key)]
        if dropped:
            self._store.drop_leases(dropped)

    def _lease_keys(self, vm: VmKey, info: ShareInfo) -> list[LeaseKey]:
        return [_lease_key(vm, str(owner), info.options) for owner in info.owners]

    def _holds(self, machine: Machine, key: LeaseKey) -> ShareInfo | None:
        for info in machine.manager.shares():
            if key.owner in info.owners and _lease_key(key.vm, key.owner, info.options) == key:
                return info
        return None

    async def _watch_leases(self) -> None:
        while True:
            self._leases_changed.clear()
            deadline = self.leases.next_deadline()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._clock())):
                    await self._leases_changed.wait()
            await self.expire()

    async def expire(self) -> None:
        """Release what has a lease that is over. What cannot be taken out now is tried again in some seconds."""
        await asyncio.gather(*(self._expire(key) for key in self.leases.due()))

    async def _expire(self, key: LeaseKey) -> None:
        machine = self.machines.get(key.vm)
        info = None if machine is None else self._holds(machine, key)
        if machine is None or info is None:
            # Nothing is held. Either an add is under way, which grants the lease afresh when it ends, or it failed.
            self._forget_leases([key])
            return
        try:
            await self._release(machine, info.name, key.owner, "lease.ended")
        except UvmshareError as error:
            self._log.warning(
                "lease is over, and its share could not be taken out",
                vm=f"{key.vm[0]}:{key.vm[1]}",
                share=info.name,
                owner=key.owner,
                reason=str(error),
            )
            self.leases.postpone(key, _EXPIRY_RETRY)
            self._leases_changed.set()

    # ------------------------------------------------------------------ events

    def may_see(self, who: Identity, happening: Happening) -> bool:
        """Tell whether an event is for a user: of his VM, and about nobody else's holding."""
        if who.is_root:
            return True
        return happening.vm_uid == who.uid and happening.uid in (None, who.uid)


def _find(machine: Machine, name: str) -> ShareInfo | None:
    return next((info for info in machine.manager.shares() if info.name == name), None)


def _uid_of(owner: str) -> int:
    return int(owner.partition("/")[0])


def _lease_key(vm: VmKey, owner: str, options: AddOptions) -> LeaseKey:
    return LeaseKey(vm, owner, options.host_path, options.read_only, options.allowed_names)
