"""The daemon without its HTTP: its VMs, its life, and who may do what.

What lives here: every decision about VMs, and what holds the rest together. What must not: HTTP (`app`), what
is done with a VM's shares (`shares`) and mounts (`mappings`), or how a file server is started (`machine`).

Who may: a VM belongs to the user who added it. Nobody else sees it, root excepted, and to everybody else it is as if
it were not there. In a VM, whoever asked for a share holds it under his own uid: what others hold there, root above
all, he neither sees nor releases. Users' names for VMs and owners are kept apart, so that nobody meets another's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import structlog

from uvmshare.daemon.addresses import check_addresses
from uvmshare.daemon.documents import Finding, Info, NewVm, Stats, Vm
from uvmshare.daemon.events import EventLog
from uvmshare.daemon.groups import check_limits, exceeds
from uvmshare.daemon.identity import Identity, Threads, of_process
from uvmshare.daemon.keeper import LeaseKeeper
from uvmshare.daemon.machine import Machine
from uvmshare.daemon.mappings import Mappings
from uvmshare.daemon.operations import Operations
from uvmshare.daemon.quotas import USER_SHARES, USER_VMS, Quotas
from uvmshare.daemon.shares import Shares
from uvmshare.daemon.store import LeaseKey, MountLease, VmRecord, name_for
from uvmshare.errors import AlreadyThere, InvalidOptions, NotThere, OperationDenied, StillInUse, UvmshareError
from uvmshare.fileserver import confinement
from uvmshare.mounts.doctor import examine

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from contextlib import AbstractContextManager

    from uvmshare.daemon.machine import Places
    from uvmshare.daemon.store import Store, VmKey
    from uvmshare.fileserver import control
    from uvmshare.sqlite_journal import SqliteJournal

__all__ = ["Service"]


_NO_GROUPS: Final = (
    "no control group to divide (cgroup v2, Delegate=yes): a VM's processes have no common limits or end"
)


class Service:
    """Everything that one daemon does. Belongs to one event loop.

    `clock` counts seconds for the leases, by any zero; `now` gives the seconds since the epoch that documents show.
    """

    def __init__(
        self,
        places: Places,
        store: Store,
        journal: SqliteJournal,
        *,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        instance: str = "",
        user_vms: int = USER_VMS,
        user_shares: int = USER_SHARES,
    ) -> None:
        instance = instance or f"{os.getpid():x}.{int(now()):x}"
        self._places = places
        self._store = store
        self._journal = journal
        self._clock = clock
        self._now = now
        self._started = now()
        self._identity = of_process()
        self.threads = Threads()
        self.machines: dict[VmKey, Machine] = {}
        self._being_added: set[VmKey] = set()
        self.events = EventLog(instance, now)
        self.operations = Operations(instance, now)
        self.keeper = LeaseKeeper(store, clock, self._lease_ended)
        self.quotas = Quotas(vms=user_vms, shares=user_shares, unlimited={0, self._identity.uid})
        self.shares = Shares(self.events, self.keeper, self._adding)
        self.mappings = Mappings(self.events, self.keeper, store, self._adding)
        self._background: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("uvmshare.daemon")

    # ------------------------------------------------------------------ the daemon's life

    async def start(self) -> None:
        """Find every VM that an earlier daemon left, with its leases, which run afresh; then watch the leases."""
        records = self._store.vms()
        await asyncio.gather(*(self._find_vm(record) for record in records))
        self._in_background(self.keeper.watch())

    async def _find_vm(self, record: VmRecord) -> None:
        machine = self._make_machine(record)
        self.machines[record.key] = machine
        await machine.find()
        if machine.manager is None:
            # What it had is as it was. Its leases cannot end before it can be told.
            self.events.emit("vm.failed", record.key, reason=machine.error)
            return
        self.mappings.load(machine)
        self.keeper.restore(record.key, self.shares.leased(machine) | self.mappings.leased(machine))
        self.events.emit("vm.found", record.key, state=machine.state, addresses=list(machine.addresses))
        self._in_background(self.mappings.restore(machine))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("defect", exc_info=error)

    async def stop(self) -> None:
        """End, and leave every VM running for the next daemon."""
        self.events.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.operations.settle()
        await self.keeper.settle()
        for machine in self.machines.values():
            try:
                await machine.detach()
            except UvmshareError as error:
                self._log.error("could not let go of a VM", vm=machine.record.wanted.id, reason=str(error))

    def _make_machine(self, record: VmRecord) -> Machine:
        def changed(machine: Machine, what: str, reason: str | None) -> None:
            self.events.emit(f"vm.{what}", machine.record.key, reason=reason)

        uid, id_ = record.key
        return Machine(record, self._places, self._journal.for_vm(f"{uid}/{id_}"), changed, self.threads)

    def info(self, who: Identity) -> Info:
        """Tell about the daemon."""
        return Info(
            version=version("uvmshare"),
            pid=os.getpid(),
            uid=self._identity.uid,
            started=datetime.fromtimestamp(self._started, UTC),
            you=who.uid,
            notes=(*confinement.missing(), *(() if self._places.groups else (_NO_GROUPS,))),
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

    def visible(self, who: Identity) -> list[Machine]:
        """Return the VMs that a user may see."""
        return [machine for key, machine in sorted(self.machines.items()) if who.is_root or key[0] == who.uid]

    def vm(self, who: Identity, machine: Machine) -> Vm:
        """Return the document of a VM."""
        wanted = machine.record.wanted
        return Vm(
            id=name_for(who, machine.record.key),
            uid=machine.record.identity.uid,
            state=machine.state,
            error=machine.error,
            listen=wanted.listen,
            addresses=machine.addresses,
            compute_system=wanted.compute_system,
            security_model=wanted.security_model,
            read_only=wanted.read_only,
            cgroup=None if machine.group is None else machine.group.path,
            cgroup_limits={} if machine.group is None else {**self._places.group_limits, **wanted.cgroup},
            use=None if machine.group is None else machine.group.use(),
            agent=machine.agent_address,
            agent_state=None if machine.agent is None else "connected" if machine.agent_connected else "unreachable",
            restarts=machine.restarts,
            shares=len(self.shares.all(who, machine)),
            mounts=len(self.mappings.all(who, machine)),
        )

    async def add_vm(self, who: Identity, wanted: NewVm) -> Vm:
        """Start a file server for a VM, with the rights of the one who asks; return the VM.

        The same again, word for word, is no mistake and changes nothing. Raises `AlreadyThere`, `LimitReached`, and
        what starting a file server raises; then nothing is left of it.
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
        check_addresses(wanted, who)
        self._check_group(who, wanted)
        self.quotas.require_room_for_vm(who, sum(uid == who.uid for uid, _ in {*self.machines, *self._being_added}))
        self._being_added.add(record.key)
        try:
            machine = self._make_machine(record)
            # Written down first: a daemon that dies in between finds the file server again.
            self._store.put_vm(record)
            try:
                await machine.add()
            except BaseException:
                self._store.drop_vm(record.key)
                raise
            self.machines[record.key] = machine
        finally:
            self._being_added.discard(record.key)
        self.events.emit("vm.added", record.key, addresses=list(machine.addresses))
        return self.vm(who, machine)

    def _check_group(self, who: Identity, wanted: NewVm) -> None:
        """See that a VM's limits can be set, and by that user. Raises `InvalidOptions`, `OperationDenied`."""
        check_limits(wanted.cgroup)
        if wanted.cgroup and self._places.groups is None:
            msg = (
                f"VM {wanted.id!r}: this daemon has no control group to divide, so it sets no limits: run it as a "
                "service with Delegate=yes on a host with cgroup v2, or leave them out"
            )
            raise InvalidOptions(msg)
        for name, most in self._places.group_limits.items():
            if name in wanted.cgroup and exceeds(name, wanted.cgroup[name], most) and not who.is_root:
                msg = f"VM {wanted.id!r}: {name} may be {most!r} at most here: ask for less, or have root add the VM"
                raise OperationDenied(msg)

    async def remove_vm(self, who: Identity, name: str, *, force: bool) -> None:
        """End a VM's file server and forget the VM.

        Raises `NotThere`, and `StillInUse` while shares are held, unless it is forced.
        """
        machine = self.find(who, name)
        held = sum(1 for info in machine.shares() if info.references) + len(machine.mounted())
        if held and not force:
            msg = f"VM {name!r} has {held} share(s) or mounts that are held: release them first, or force it"
            raise StillInUse(msg)
        key = machine.record.key
        self.mappings.forget(key)
        await machine.remove()
        self.keeper.forget(*self.keeper.of_vm(key))
        if self.machines.get(key) is machine:
            # Before the name is free again: what a new VM of that name writes there stays.
            await self._journal.forget_vm(f"{key[0]}/{key[1]}")
        if self.machines.get(key) is machine:
            del self.machines[key]
            self._store.drop_vm(key)
            self.events.emit("vm.removed", key)

    async def examine_guest(self, machine: Machine) -> list[Finding]:
        """Ask a guest's agent what the guest can do. Raises `InvalidState` without one, and what the agent raises."""
        machine.require_mounts()
        assert machine.agent is not None
        return [
            Finding(
                subject=each.subject, verdict=each.verdict, found=each.found, breaks=each.breaks, remedy=each.remedy
            )
            for each in examine(await machine.agent.report())
        ]

    async def counted(self, who: Identity, machine: Machine) -> list[control.Share]:
        """Return each share that `who` may see and that is served, with what its mounts have done."""
        visible = {share.name for share in self.shares.all(who, machine)}
        return [share for share in await machine.counted() if share.name in visible]

    async def stats(self, who: Identity, machine: Machine) -> list[Stats]:
        """Return what the guest has done with each share that `who` may see."""
        found = []
        for share in await self.counted(who, machine):
            counted = [mount.counted for mount in share.mounts if mount.counted is not None]
            measured = [latency for each in counted for latency in each.latencies.values()]
            count = sum(latency.count for latency in measured)
            kinds: Counter[str] = Counter()
            for each in counted:
                kinds.update(each.operations)
            found.append(
                Stats(
                    vm=name_for(who, machine.record.key),
                    share=share.name,
                    path=share.path,
                    read_only=share.read_only,
                    connections=len(share.mounts),
                    operations=kinds.total(),
                    errors=sum(sum(each.errors.values()) for each in counted),
                    received=sum(each.received for each in counted),
                    sent=sum(each.sent for each in counted),
                    latency=sum(latency.seconds for latency in measured) / count if count else None,
                    kinds=dict(kinds),
                )
            )
        return found

    # ------------------------------------------------------------------ owners and leases

    def _adding(self, who: Identity) -> AbstractContextManager[None]:
        return self.quotas.adding(who, self._held_by)

    def _held_by(self, uid: int) -> int:
        """Count what a user holds: shares and mounts, once for each owner of his."""
        machines = [machine for key, machine in self.machines.items() if key[0] == uid]
        held = sum(self.mappings.held_by(uid, machine) for machine in machines)
        return held + sum(self.shares.held_by(uid, machine) for machine in machines)

    async def release_all(self, who: Identity, owner: str) -> None:
        """Give back everything that an owner of `who` holds, in every VM.

        All are tried, mounts before shares; then raises what the first raised that could not be given back.
        """
        holder = f"{who.uid}/{owner}"
        machines = self.visible(who)
        unmaps = [
            self.mappings.unmap(machine, mount.guest_path, holder)
            for machine in machines
            for mount in self.mappings.all(who, machine)
            if any((each.uid, each.owner) == (who.uid, owner) for each in mount.references)
        ]
        outcomes = await asyncio.gather(*unmaps, return_exceptions=True)
        releases = [
            self.shares.release(machine, info.name, holder)
            for machine in machines
            for info in machine.shares()
            if holder in info.owners
        ]
        outcomes += await asyncio.gather(*releases, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _lease_ended(self, key: LeaseKey) -> None:
        machine = self.machines.get(key.vm)
        if isinstance(key, MountLease):
            await self.mappings.lease_ended(machine, key)
        else:
            await self.shares.lease_ended(machine, key)
