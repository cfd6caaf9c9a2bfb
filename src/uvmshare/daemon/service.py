"""The daemon without its HTTP: its VMs, its life, and who may do what.

What lives here: every decision about VMs, and what holds the rest together. What must not: HTTP (`app`), what
is done with a VM's shares (`shares`) and mounts (`mounts`), or how a file server is started (`machine`).

Who may: a VM belongs to the user who added it. Nobody else sees it, root excepted, and to everybody else it is as if
it were not there. In a VM, whoever asked for a share holds it under their own uid: what others hold there, root above
all, they neither see nor release. Users' names for VMs and owners are kept apart, so that nobody meets another's.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import structlog

from uvmshare.daemon.addresses import check_addresses
from uvmshare.daemon.agents import Agents
from uvmshare.daemon.documents import EventCounts, Finding, Health, Info, NewVm, ReleasedOwner, Removed, Stats, Vm
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.events import EventLog
from uvmshare.daemon.groups import check_limits, exceeds
from uvmshare.daemon.identity import Identity, Threads, of_process, whose_subordinate
from uvmshare.daemon.leases import Leases
from uvmshare.daemon.left import finding_of
from uvmshare.daemon.machine import Machine
from uvmshare.daemon.mounts import UserMounts
from uvmshare.daemon.operations import Operations
from uvmshare.daemon.quotas import USER_SHARES, USER_VMS, Quotas
from uvmshare.daemon.releases import Releases
from uvmshare.daemon.shares import UserShares
from uvmshare.daemon.store import LeaseKey, MountLease, MountRecord, VmRecord, name_for
from uvmshare.errors import AlreadyThere, InvalidOptions, NotThere, OperationDenied, StillInUse, UvmshareError
from uvmshare.fileserver.counters import Events, errno_name
from uvmshare.fileserver.mount import confinement
from uvmshare.lifecycle.retry import Wait
from uvmshare.mounts.doctor import examine
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from contextlib import AbstractContextManager

    from uvmshare.daemon.places import Places
    from uvmshare.daemon.store import DaemonStore, VmKey
    from uvmshare.fileserver import control
    from uvmshare.sqlite_journal import SqliteJournal

__all__ = ["Brought", "Service"]

_FIND_AT_ONCE: Final = 4
"""VMs of one user that are looked for beside each other. Each may be an interpreter that starts."""
_FIND_AGAIN_FIRST: Final = 5.0
_FIND_AGAIN_LONGEST: Final = 300.0
"""Seconds before a VM that could not be found is looked for again; the wait doubles."""
_MOST: Final = (1 << 63) - 1
"""What a document can say; a user's own process may count beyond it."""
_READY_SECONDS: Final = 10.0
"""For a request to wait for a VM that is being found."""
_END_SECONDS: Final = 10.0
"""For each kind of what is under way when the daemon ends. With uvicorn's grace, and letting go of the VMs, all of it
takes less than the 90 s after which systemd kills (TimeoutStopSec=)."""


_NO_GROUPS: Final = (
    "no control group to divide (cgroup v2, Delegate=yes): a VM's processes have no common limits or end"
)


class Brought(NamedTuple):
    """What a VM brings along from another host."""

    shares: bytes
    """As `Manager.save` writes them."""
    mounts: list[MountRecord]


class Service:
    """Everything that one daemon does. Belongs to one event loop.

    `clock` counts seconds for the leases, by any zero; `now` gives the seconds since the epoch that documents show.
    """

    def __init__(
        self,
        places: Places,
        store: DaemonStore,
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
        self.leases = Leases(store, clock, self._lease_ended)
        self.quotas = Quotas(vms=user_vms, shares=user_shares, unlimited={0, self._identity.uid})
        self.shares = UserShares(self.events, self.leases, self._adding)
        self.mounts = UserMounts(self.events, self.leases, store, self._adding)
        self.releases = Releases(self.shares, self.mounts)
        self.agents = Agents(self.events)
        self._overdue: set[LeaseKey] = set()
        """Leases that are over, and of which it was told that what they were on could not be released."""
        self._background: set[asyncio.Task[None]] = set()
        self._finding: dict[VmKey, asyncio.Task[None]] = {}
        self._finders: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(_FIND_AT_ONCE))
        self._log = structlog.get_logger("uvmshare.daemon")

    # ------------------------------------------------------------------ the daemon's life

    async def start(self) -> None:
        """Watch the leases that an earlier daemon left, which run afresh, and begin to find its VMs.

        Waits for none of them: in each, its user's own process answers, or does not.
        """
        for record in self._store.vms():
            machine = self.machines[record.key] = self._make_machine(record)
            if record.unreadable is None:
                self.leases.restore(record.key)
            self._finding[record.key] = self._in_background(self._find_vm(machine))
        self._in_background(self.leases.watch())

    async def _find_vm(self, machine: Machine) -> None:
        """Find a VM, however often it takes. What it had stays as it was meanwhile, and so do its leases that ended."""
        key, wait, told = machine.record.key, Wait(_FIND_AGAIN_FIRST, _FIND_AGAIN_LONGEST), None
        while machine.manager is None:
            async with self._finders[key[0]]:
                await machine.find()
            if machine.manager is None:
                if machine.error != told:
                    told = machine.error
                    self.events.emit(EventKind.VM_FAILED, key, reason=told)
                if machine.record.unreadable is not None:
                    return  # the next daemon may be a version that can read it
                await asyncio.sleep(wait.next())
        self.mounts.load(machine)
        self.leases.keep(key, self.shares.leased(machine) | self.mounts.leased(machine))
        machine.found.set()
        self.events.emit(EventKind.VM_FOUND, key, state=machine.state, addresses=list(machine.addresses))
        self._in_background(self.mounts.release_strays(machine))
        self._in_background(self.mounts.restore(machine))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)
        return task

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("defect", exc_info=error)

    async def stop(self) -> None:
        """End, and leave every VM running for the next daemon. No VM keeps it for longer than some seconds."""
        self.events.close()
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background, timeout=_END_SECONDS)
        await asyncio.gather(self.operations.settle(_END_SECONDS), self.leases.settle(_END_SECONDS))
        await asyncio.gather(*(self._let_go(machine) for machine in self.machines.values()))

    async def _let_go(self, machine: Machine) -> None:
        try:
            await machine.detach()
        except Exception as error:  # noqa: BLE001  the others are to be let go of all the same
            uid, id_ = machine.record.key
            self._log.error("could not let go of a VM", vm=f"{uid}:{id_}", reason=str(error) or repr(error))

    def _make_machine(self, record: VmRecord) -> Machine:
        def changed(machine: Machine, kind: EventKind, reason: str | None, uid: int | None) -> None:
            self.events.emit(kind, machine.record.key, uid=uid, reason=reason)

        uid, id_ = record.key
        journal = self._journal.for_vm(f"{uid}/{id_}")
        return Machine(
            record, self._places, journal, changed, self.threads, fated=self.shares.fated, watch=self.agents.watch
        )

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

    def health(self, who: Identity) -> Health:
        """Tell that it answers and can write. Raises `DaemonError` when what it does cannot be written down."""
        self._store.check()
        states = Counter(machine.state for machine in self.visible(who))
        return Health(version=version("uvmshare"), vms=dict(sorted(states.items())))

    def admit(self, who: Identity) -> None:
        """Refuse whoever this daemon is not for: one that is not root's serves its own user, and root.

        And uids that are another user's to be: with some ten thousand of these, that one would have as many quotas.
        Raises `OperationDenied`.
        """
        if self._identity.uid not in (0, who.uid) and not who.is_root:
            msg = f"this daemon is uid {self._identity.uid}'s and serves no other user: start one of your own"
            raise OperationDenied(msg)
        owner = None if who.uid in (0, self._identity.uid) else whose_subordinate(who.uid)
        if owner is not None:
            msg = f"uid {who.uid} is one that user {owner} may be in a user namespace (/etc/subuid): ask as that user"
            raise OperationDenied(msg)

    # ------------------------------------------------------------------ VMs

    def find(self, who: Identity, name: str) -> Machine:
        """Return a VM by the name that `who` has for it. Raises `NotThere` for none, and for another user's."""
        machine = self.machines.get(self._key(who, name))
        if machine is None:
            msg = f"there is no VM {name!r}, or none of yours: `uvmshare vm ls` lists them"
            raise NotThere(msg)
        return machine

    async def find_ready(self, who: Identity, name: str) -> Machine:
        """As `find`, for what depends on what the VM has: waits some seconds for one that is still being found.

        Raises `NotThere`, and `InvalidState` when it takes longer.
        """
        machine = self.find(who, name)
        await machine.when_tried(_READY_SECONDS)
        return machine

    def _key(self, who: Identity, name: str) -> VmKey:
        uid, colon, id_ = name.partition(":")
        if not colon or not (uid.isascii() and uid.isdigit()):  # a tenant's name in front is a part of the id
            return (who.uid, name)
        if len(uid) < 11 and (who.is_root or int(uid) == who.uid):
            return (int(uid), id_)
        return (-1, "")

    def visible(self, who: Identity) -> list[Machine]:
        """Return the VMs that a user may see."""
        return [machine for key, machine in sorted(self.machines.items()) if who.is_root or key[0] == who.uid]

    def vm(self, who: Identity, machine: Machine) -> Vm:
        """Return the document of a VM."""
        wanted = machine.record.wanted
        reach = None if machine.agent is None else machine.agent.reach
        return Vm(
            id=name_for(who, machine.record.key),
            uid=machine.record.identity.uid,
            state=machine.state,
            error=machine.error,
            listen=wanted.listen,
            addresses=machine.addresses,
            compute_system=wanted.compute_system,
            security_model=wanted.security_model,
            links=wanted.links,
            read_only=wanted.read_only,
            cgroup=None if machine.group is None else machine.group.path,
            cgroup_limits={} if machine.group is None else {**self._places.group_limits, **wanted.cgroup},
            use=None if machine.group is None else machine.group.use(),
            agent=machine.agent_address,
            agent_state=None if wanted.agent is None else "reached" if machine.agent_reached else "unreachable",
            agent_since=None if reach is None else reach.since,
            agent_error=None if reach is None or reach.error is None else printable(reach.error),
            restarts=machine.restarts,
            shares=len(self.shares.all(who, machine)),
            mounts=len(self.mounts.all(who, machine)),
            notes=machine.reachable.notes,
            epoch=machine.epoch,
            fence=wanted.fence,
        )

    async def add_vm(self, who: Identity, wanted: NewVm, *, tenant: str = "", brought: Brought | None = None) -> Vm:
        """Start a file server for a VM, with the rights of the one who asks; return the VM.

        The same again, word for word, is no mistake and changes nothing. `tenant` is for the fleet's own, and
        `brought` for those of them that come from another host, with shares under their names. Raises `RestoreFailed`,
        `AlreadyThere`, `LimitReached`, and what starting a file server raises; then nothing is left of it.
        """
        record = VmRecord(who, wanted, tenant=tenant, arriving=brought is not None)
        there = self.machines.get(record.key)
        if there is not None and there.record.unreadable is None and there.record.wanted == wanted:
            return self.vm(who, there)
        self._check_vm(record)
        self._being_added.add(record.key)
        try:
            machine = self._make_machine(record)
            # Written down first: a daemon that dies in between finds the file server again.
            self._store.put_vm(record)
            try:
                if brought is not None:
                    await self._journal.forget_vm(f"{record.key[0]}/{record.key[1]}")
                    for each in brought.mounts:
                        self._store.put_mount(each)
                await machine.add(None if brought is None else brought.shares)
            except BaseException:
                self._store.drop_vm(record.key)
                raise
            self.machines[record.key] = machine
        finally:
            self._being_added.discard(record.key)
        if brought is not None:
            self.rewrite(machine, msgspec.structs.replace(record, arriving=False))
            self.mounts.load(machine)
            self._in_background(self.mounts.restore(machine))
        self.events.emit(EventKind.VM_ADDED, record.key, addresses=list(machine.addresses))
        await machine.reachable.look(machine.addresses)
        return self.vm(who, machine)

    async def check_vm(self, who: Identity, wanted: NewVm, *, tenant: str = "") -> None:
        """See that a VM can be added here, as far as that can be told before. Raises as `add_vm` does.

        A file server is started for that, and ends before this returns.
        """
        record = VmRecord(who, wanted, tenant=tenant)
        self._check_vm(record)
        await self._make_machine(record).try_to_listen()

    def _check_vm(self, record: VmRecord) -> None:
        who, wanted, there = record.identity, record.wanted, self.machines.get(record.key)
        if there is not None or record.key in self._being_added:
            msg = f"there is a VM {wanted.id!r} already, with other settings: remove it first, or choose another id"
            raise AlreadyThere(msg)
        if bool(wanted.listen) == (wanted.compute_system is not None):
            got = "has both: leave one out" if wanted.listen else "has neither: give one, such as unix:/run/vm1.9p"
            msg = f"VM {wanted.id!r} needs addresses to listen on or a compute system, and {got}"
            raise InvalidOptions(msg)
        if wanted.fence is not None and not record.tenant:
            msg = f"VM {wanted.id!r}: a fence is for VMs of a fleet: add it through a gate (--on HOST), or without"
            raise InvalidOptions(msg)
        check_addresses(wanted, who)
        self._check_group(who, wanted)
        self.quotas.require_room_for_vm(who, sum(uid == who.uid for uid, _ in {*self.machines, *self._being_added}))

    def rewrite(self, machine: Machine, record: VmRecord) -> None:
        """Write down what a VM is in a fleet: its record with other words, and the same key."""
        assert record.key == machine.record.key, "a VM keeps its id and its user"
        machine.record = record
        self._store.put_vm(machine.record)

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

    async def remove_vm(self, who: Identity, name: str, *, force: bool) -> Removed:
        """End a VM's file server and forget the VM; say what may be left of it.

        Raises `NotThere`, and `StillInUse` while shares are held, unless it is forced.
        """
        machine = self.find(who, name)
        if not force:
            await machine.when_tried(_READY_SECONDS)
        if not force:
            self._require_not_held(who, machine, name)
        key = machine.record.key
        finding = self._finding.pop(key, None)
        if finding is not None:
            finding.cancel()
            await asyncio.wait({finding})
        self.mounts.forget(key)
        self.agents.forget(key)
        left = await machine.remove()
        self.leases.forget(*self.leases.of_vm(key))
        if self.machines.get(key) is machine:
            # Before the name is free again: what a new VM of that name writes there stays.
            await self._journal.forget_vm(f"{key[0]}/{key[1]}")
        if self.machines.get(key) is machine:
            del self.machines[key]
            self._store.drop_vm(key)
            self.events.emit(EventKind.VM_REMOVED, key, left=left)
        return Removed(left=left)

    def _require_not_held(self, who: Identity, machine: Machine, name: str) -> None:
        """See that nobody holds anything of a VM. Raises `StillInUse`, with the number of what `who` may see."""
        held = [info.references for info in machine.shares()] + [info.references for info in machine.mounted()]
        if not any(held):
            return  # what is there was released, such as a revoked mount that a dead guest did not unmount
        shares = sum(bool(share.references or share.mounts) for share in self.shares.all(who, machine))
        mounts = sum(bool(mount.references) for mount in self.mounts.all(who, machine))
        if shares or mounts:
            msg = f"VM {name!r} has {shares} share(s) and {mounts} mount(s) that are held: release them first"
        else:
            msg = f"another user holds something of VM {name!r}: have them release it"
        msg += ", or force it"
        raise StillInUse(msg)

    async def examine_guest(self, who: Identity, machine: Machine) -> list[Finding]:
        """Ask a guest's agent what the guest can do, and tell what `who` may see of it.

        Raises `InvalidState` without an agent, and what the agent raises.
        """
        machine.require_mounts()
        assert machine.agent is not None
        report = await machine.agent.report()
        seen = tuple(each for each in report.mounts if not self.mounts.is_hidden(who, machine, each.mount_path))
        found = [
            Finding(
                subject=each.subject, verdict=each.verdict, found=each.found, breaks=each.breaks, remedy=each.remedy
            )
            for each in examine(msgspec.structs.replace(report, mounts=seen))
        ]
        return [*found, *map(finding_of, await machine.left_behind(who))]

    async def counted(self, who: Identity, machine: Machine) -> list[control.ShareStatus]:
        """Return each share that `who` may see and that is served, once, with what its mounts have done.

        Raises what `Machine.counted` does.
        """
        visible = {share.name for share in self.shares.all(who, machine)}
        return list({share.name: share for share in await machine.counted() if share.name in visible}.values())

    async def stats(self, who: Identity, machine: Machine) -> list[Stats]:
        """Return what the guest has done with each share that `who` may see. Raises what `Machine.counted` does."""
        found = []
        mapped = {mount.share_name for mount in machine.mounted()}
        for share in await self.counted(who, machine):
            counted = [mount.counted for mount in share.mounts if mount.counted is not None]
            measured = [latency for each in counted for latency in each.latencies.values()]
            count = sum(latency.count for latency in measured)
            kinds: Counter[str] = Counter()
            errors: Counter[int] = Counter()
            expected: Counter[int] = Counter()
            for each in counted:
                kinds.update(each.operations)
                errors.update(each.answered(expected=False))
                expected.update(each.answered(expected=True))
            found.append(
                Stats(
                    vm=name_for(who, machine.record.key),
                    share=share.name,
                    path=share.path,
                    read_only=share.read_only,
                    connections=len(share.mounts),
                    operations=min(kinds.total(), _MOST),
                    errors=min(errors.total(), _MOST),
                    expected=min(expected.total(), _MOST),
                    errnos={errno_name(number): min(count, _MOST) for number, count in (errors + expected).items()},
                    received=min(sum(each.received for each in counted), _MOST),
                    sent=min(sum(each.sent for each in counted), _MOST),
                    latency=sum(latency.seconds for latency in measured) / count if count else None,
                    compiled=min(sum(each.compiled for each in counted), _MOST),
                    kinds={kind: min(number, _MOST) for kind, number in kinds.items()},
                    events=EventCounts(**msgspec.structs.asdict(Events.of(counted))),
                    unreachable_since=machine.unreachable_since if share.name in mapped else None,
                    epoch=machine.epoch,
                )
            )
        return found

    # ------------------------------------------------------------------ owners and leases

    def _adding(self, who: Identity, weight: int) -> AbstractContextManager[None]:
        return self.quotas.adding(who, self._held_by, weight)

    def _held_by(self, uid: int) -> Iterator[int]:
        """Give the weight of each share and mount that a user holds, once for each owner of theirs."""
        for key, machine in self.machines.items():
            if key[0] == uid:
                yield from self.mounts.held_by(uid, machine)
                yield from self.shares.held_by(uid, machine)

    async def release_all(self, who: Identity, owner: str, *, force: bool = False) -> ReleasedOwner:
        """Release everything that an owner of `who` holds, in every VM; forced, whatever the guests say.

        Holding nothing is no mistake, and the answer says so.

        All are tried, mounts before shares; then raises what the first raised that could not be released.
        """
        holder = f"{who.uid}/{owner}"
        machines = self.visible(who)
        late = await asyncio.gather(
            *(machine.when_tried(_READY_SECONDS) for machine in machines), return_exceptions=True
        )
        unmaps = [
            self.mounts.unmap(machine, mount.guest_path, holder, force=force)
            for machine in machines
            for mount in self.mounts.all(who, machine)
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
        outcomes += late
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return ReleasedOwner(released=bool(unmaps or releases), shares=len(releases), mounts=len(unmaps))

    async def _lease_ended(self, key: LeaseKey) -> None:
        machine = self.machines.get(key.vm)
        if machine is not None:
            # It is over, and nobody renews it any more. What it is on goes as soon as it is known.
            await machine.found.wait()
        try:
            if isinstance(key, MountLease):
                await self.mounts.lease_ended(machine, key)
            else:
                await self.shares.lease_ended(machine, key)
        except UvmshareError as error:
            if key not in self._overdue:
                self._overdue.add(key)
                uid, _, owner = key.owner.partition("/")
                self.events.emit(EventKind.LEASE_OVERDUE, key.vm, uid=int(uid), owner=owner, reason=str(error))
            raise
        self._overdue.discard(key)
