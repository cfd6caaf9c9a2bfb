"""A fleet in one process: gates and followers over a fake etcd, and hosts whose daemons are fakes."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from uvmshare.daemon.documents import (
    Info,
    Mount,
    NewMount,
    NewShare,
    NewVm,
    Reference,
    Released,
    Share,
    Vm,
)
from uvmshare.daemon.fleet_documents import Joined, Kept, NewMove, NewServed, PlacedVm, Served
from uvmshare.errors import AlreadyThere, InvalidOptions, NotThere
from uvmshare.etcd.protocol import Put
from uvmshare.fleet.callers import Caller
from uvmshare.fleet.documents import Tenant, changed_fields, encode
from uvmshare.fleet.fence import Fences
from uvmshare.fleet.follower import Follower
from uvmshare.fleet.gate import Gate
from uvmshare.fleet.joining import with_leases
from uvmshare.fleet.keys import Keys
from uvmshare.fleet.local import Seen, VmName
from uvmshare.testing.etcd import FakeEtcd

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping

    from uvmshare.daemon.documents import (
        Removed,
    )
    from uvmshare.errors import UvmshareError
    from uvmshare.etcd.protocol import Store
    from uvmshare.fleet.documents import End, Have, Holding
    from uvmshare.fleet.local import Arriving

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
ANN = Caller("acme", "ann")
EVE = Caller("other", "eve")
ADMIN = Caller("", "root")


class FakeVm:
    """One VM of a host: which shares there are, who holds them, and which mounts."""

    def __init__(self, wanted: NewVm) -> None:
        self.wanted = wanted
        self.shares: dict[str, tuple[NewShare, set[str]]] = {}
        self.mounts: dict[str, tuple[NewMount, str, set[str]]] = {}
        self.epoch: int | None = None


class FakeHost:
    """The daemon of a host, and what it remembers over its restarts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.machines: dict[VmName, FakeVm] = {}
        self.given: dict[VmName, int] = {}
        """How many names of shares each VM has given; none is given again."""
        self.refused: dict[str, UvmshareError] = {}
        """By path: what adding it raises."""
        self.unreleased: dict[str, UvmshareError] = {}
        """By path: what releasing it raises."""
        self.told: list[dict[str, Any]] | None = None
        """What was known of the shares of the VM that it got back last."""
        self.place: tuple[int, int] | None = None
        self.writes: list[str] = []
        """What was done, in order."""
        self.pause: Callable[[str], Any] | None = None
        """Awaited before each call."""
        self.own: dict[VmName, FakeVm] = {}
        """VMs of its own that it offers."""
        self.lent: set[VmName] = set()
        """Those of them that the fleet has."""
        self._changed: list[asyncio.Queue[VmName]] = []
        self.until: dict[VmName, float] = {}
        """Of fenced VMs: until when they are served, by the clock of the host."""
        self.boot = f"boot of {name}"
        self.clock_rate, self.clock_begin = 1.0, 1000.0
        self.hangs: set[VmName] = set()
        """VMs whose file servers do not answer."""
        self.left: str | None = None
        """What its removals leave of a VM."""
        self.note: Callable[[str, VmName], None] = lambda _, __: None
        """Called when a VM was added or removed, or its time moved."""

    def clock(self) -> float:
        """Its CLOCK_BOOTTIME."""
        return self.clock_begin + self.clock_rate * asyncio.get_running_loop().time()

    # as Position

    def fleet_place(self) -> tuple[int, int] | None:
        return self.place

    def put_fleet_place(self, cluster: int, revision: int) -> None:
        self.place = cluster, revision

    def drop_fleet_place(self) -> None:
        self.place = None

    # as Local

    def info(self) -> Info:
        return Info(version="1", pid=1, uid=0, started=WHEN, you=0, notes=())

    def vms(self) -> list[VmName]:
        return list(self.machines)

    async def _pause(self, what: str) -> None:
        if self.pause is not None:
            await self.pause(what)

    async def see(self, vm: VmName) -> Seen | None:
        await self._pause("see")
        machine = self.machines.get(vm)
        if machine is None:
            return None
        shares = [
            share_document(vm, name, wanted, owners, [p for p, (_, s, _o) in machine.mounts.items() if s == name])
            for name, (wanted, owners) in machine.shares.items()
        ]
        mounts = [mount_document(vm, path, *each) for path, each in machine.mounts.items()]
        return Seen(vm_document(vm, machine), shares, mounts, self.given.get(vm, -1) + 1)

    async def prepare(self, vm: VmName, wanted: Mapping[str, Any], holdings: Iterable[Holding]) -> None:
        await self._pause("prepare")
        if vm in self.machines:
            raise AlreadyThere("there is one of that name")  # noqa: EM101, TRY003  a fake
        for place in (*wanted["listen"], *(each.what["path"] for each in holdings)):
            if place in self.refused:
                raise self.refused[place]

    async def add_vm(self, vm: VmName, wanted: Mapping[str, Any], arriving: Arriving | None) -> None:
        await self._pause("add_vm")
        new = msgspec.convert(dict(wanted), NewVm)
        there = self.machines.get(vm)
        if there is not None and there.wanted == new:
            return
        if there is not None:
            raise AlreadyThere("with other settings")  # noqa: EM101, TRY003  a fake
        for address in new.listen:
            if address in self.refused:
                raise self.refused[address]
        made = FakeVm(new)
        for each in () if arriving is None else arriving.holdings:
            if each.what["path"] in self.refused:
                raise self.refused[each.what["path"]]
            if each.kind == "share":
                share = msgspec.convert(each.what, NewShare)
                made.shares.setdefault(each.share or "", (share, set()))[1].add(each.owner)
            else:
                mount = msgspec.convert(each.what, NewMount)
                made.mounts.setdefault(mount.guest_path, (mount, each.share or "", set()))[2].add(each.owner)
        if arriving is not None:
            assert all(int(name) < arriving.names for name in made.shares), "a share may be called so again"
            self.given[vm] = arriving.names - 1
        self.machines[vm] = made
        self.writes.append(f"vm {vm.here}")
        self.note("added", vm)

    def note_epoch(self, vm: VmName, epoch: int) -> None:
        self._machine(vm).epoch = epoch

    async def serve_until(self, vm: VmName, until: float) -> None:
        await self._pause("serve_until")
        if vm in self.hangs:
            await asyncio.get_running_loop().create_future()
        self._machine(vm)
        self.until[vm] = until
        self.note("told", vm)

    async def take_on(self, vm: VmName, wanted: Mapping[str, Any], holdings: Iterable[Holding]) -> None:
        await self._pause("take_on")
        del wanted, holdings  # owners have one name here and there
        if vm in self.own:
            self.machines[vm] = self.own.pop(vm)
            self.lent.add(vm)
        elif vm not in self.lent:
            raise NotThere("it offers no such VM")  # noqa: EM101, TRY003  a fake

    async def remove_vm(self, vm: VmName, before: Have | None) -> bool:
        await self._pause("remove_vm")
        if vm in self.lent:
            self.lent.discard(vm)
            self.own[vm] = self.machines.pop(vm)
            self.told = None if before is None else before.shares
        elif self.machines.pop(vm, None) is not None:
            self.writes.append(f"no vm {vm.here}")
            if self.left is not None:
                return False
            self.note("removed", vm)
        return True

    async def add(self, vm: VmName, holding: Holding) -> str:
        await self._pause("add")
        machine = self._machine(vm)
        path = holding.what["path"]
        if path in self.refused:
            raise self.refused[path]
        if holding.kind == "share":
            new = msgspec.convert(holding.what, NewShare)
            for name, (wanted, owners) in machine.shares.items():
                if wanted == new:
                    owners.add(holding.owner)
                    return name
            name = self._new_name(vm)
            machine.shares[name] = (new, {holding.owner})
            self.writes.append(f"share {path}")
            return name
        mount = msgspec.convert(holding.what, NewMount)
        there = machine.mounts.get(mount.guest_path)
        if there is not None and there[0] != mount:
            raise InvalidOptions("another mount is there")  # noqa: EM101, TRY003  a fake
        if there is None:
            there = machine.mounts[mount.guest_path] = (mount, self._new_name(vm), set())
        there[2].add(holding.owner)
        return there[1]

    def _new_name(self, vm: VmName) -> str:
        self.given[vm] = self.given.get(vm, -1) + 1
        return str(self.given[vm])

    def _machine(self, vm: VmName) -> FakeVm:
        machine = self.machines.get(vm)
        if machine is None:
            raise NotThere("no such VM")  # noqa: EM101, TRY003  a fake
        return machine

    async def end(self, vm: VmName, holding: Holding, how: End) -> Released:
        await self._pause("end")
        machine = self._machine(vm)
        if holding.what["path"] in self.unreleased:
            raise self.unreleased[holding.what["path"]]
        if holding.kind == "share":
            _, owners = machine.shares.get(holding.share or "", (None, set()))
            released = holding.owner in owners
            owners.discard(holding.owner)
            if not owners and machine.shares.pop(holding.share or "", None) is not None:
                self.writes.append(f"no share {holding.what['path']}")
            return Released(released=released, ended=not owners)
        _, _, owners = machine.mounts.get(holding.what["guest_path"], (None, "", set()))
        released = holding.owner in owners
        owners.discard(holding.owner)
        if not owners:
            machine.mounts.pop(holding.what["guest_path"], None)
        return Released(released=released, ended=not owners)

    async def changes(self) -> AsyncIterator[VmName]:
        queue: asyncio.Queue[VmName] = asyncio.Queue()
        self._changed.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._changed.remove(queue)

    def note_change(self, vm: VmName) -> None:
        for queue in self._changed:
            queue.put_nowait(vm)

    def held(self, tenant: str = "acme") -> dict[str, set[tuple[str, str]]]:
        """Return by VM the paths that are held, and by whom."""
        found: dict[str, set[tuple[str, str]]] = {}
        for vm, machine in self.machines.items():
            held = {(wanted.path, owner) for wanted, owners in machine.shares.values() for owner in owners}
            held |= {(wanted.path, owner) for wanted, _, owners in machine.mounts.values() for owner in owners}
            if vm.tenant == tenant:
                found[vm.vm] = held
        return found


def vm_document(vm: VmName, machine: FakeVm) -> Vm:
    wanted = machine.wanted
    return Vm(
        id=vm.vm,
        uid=1000,
        state="running",
        error=None,
        listen=wanted.listen,
        addresses=wanted.listen,
        compute_system=None,
        security_model=wanted.security_model,
        links=wanted.links,
        read_only=wanted.read_only,
        cgroup=None,
        cgroup_limits={},
        use=None,
        agent=wanted.agent,
        agent_state=None,
        agent_since=None,
        agent_error=None,
        restarts=0,
        shares=len(machine.shares),
        mounts=len(machine.mounts),
        notes=(),
        epoch=machine.epoch,
        fence=wanted.fence,
    )


def _references(owners: set[str]) -> tuple[Reference, ...]:
    return tuple(Reference(owner=owner, uid=0, lease=None, expires_in=None) for owner in sorted(owners))


def share_document(vm: VmName, name: str, wanted: NewShare, owners: set[str], mounts: list[str]) -> Share:
    return Share(
        vm=vm.vm,
        name=name,
        path=wanted.path,
        read_only=wanted.read_only,
        only=wanted.only,
        hide=wanted.hide,
        map_owner=wanted.map_owner,
        state="added",
        busy=None,
        orphan=False,
        since=WHEN,
        last_error=None,
        directory="there",
        references=_references(owners),
        mounts=tuple(mounts),
    )


def mount_document(vm: VmName, path: str, wanted: NewMount, share: str, owners: set[str]) -> Mount:
    return Mount(
        vm=vm.vm,
        guest_path=path,
        share=share,
        path=wanted.path,
        read_only=wanted.read_only,
        only=wanted.only,
        hide=wanted.hide,
        map_owner=wanted.map_owner,
        cache=wanted.cache,
        msize=wanted.msize,
        suid=wanted.suid,
        dev=wanted.dev,
        posixacl=wanted.posixacl,
        events=wanted.events,
        no_events=None,
        chosen=None,
        state="mounted",
        busy=None,
        since=WHEN,
        last_error=None,
        unreachable_since=None,
        directory="there",
        references=_references(owners),
    )


class Fleet:
    """A fleet over one fake etcd."""

    def __init__(self, *hosts: str) -> None:
        self.etcd = FakeEtcd()
        self.keys = Keys()
        self.hosts = {name: FakeHost(name) for name in hosts}
        self.gate_store = self.etcd.connect()
        self.gate = Gate(self.gate_store, self.keys, now=lambda: 0.0)
        self.stores: dict[str, Any] = {}
        self.followers: dict[str, Follower] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._cut: set[str] = set()

    async def begin(self, *tenants: str, **rights: Any) -> None:
        for tenant in tenants or ("acme", "other"):
            await self.gate_store.txn([], [Put(self.keys.tenant(tenant), encode(Tenant(**rights)))])
        for host in self.hosts:
            await self.gate_store.txn([], [Put(self.keys.registered(host), b"{}")])
            self.start(host)

    def start(self, host: str) -> None:
        @asynccontextmanager
        async def connect() -> AsyncIterator[Store]:
            store = self.stores[host] = self.connect(host)
            if host in self._cut:
                store.cut()
            try:
                yield store
            finally:
                await store.close()

        fake = self.hosts[host]
        fence = Fences(self.keys, host, fake, clock=fake.clock, boot=lambda: fake.boot)
        follower = self.followers[host] = Follower(
            connect, self.keys, host, fake, fake, chance=lambda: 0.0, fence=fence
        )
        self._running[host] = asyncio.get_running_loop().create_task(follower.run())

    def connect(self, host: str) -> Any:
        """Return a client of etcd for a host."""
        del host
        return self.etcd.connect()

    def cut(self, host: str) -> None:
        """Cut a host off from etcd, until `mend`."""
        self._cut.add(host)
        self.stores[host].cut()

    def mend(self, host: str) -> None:
        self._cut.discard(host)
        self.stores[host].mend()

    async def stop(self, host: str) -> None:
        """End a host's daemon at any moment, as kill -9 would; what it has stays."""
        running = self._running.pop(host)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    async def end(self) -> None:
        for host in list(self._running):
            await self.stop(host)
        await self.gate_store.close()

    # What users do, and wait for.

    async def add_vm(self, who: Caller = ANN, wanted: PlacedVm | None = None) -> Vm:
        return await self.gate.add_vm(who, *await self.gate.want_vm(who, wanted or placed()))

    async def move_vm(self, to: str, step: Any = "all", **more: bool) -> Vm:
        return await self.gate.move(ANN, "build", NewMove(to=to, step=step, **more))

    async def join_vm(self, joined: Joined, who: Caller = ANN) -> Vm:
        return await self.gate.add_vm(who, *await self.gate.want_joined(who, joined))

    async def remove_vm(self, vm: str = "build", *, who: Caller = ANN, force: bool = False) -> Removed:
        return await self.gate.remove_vm(await self.gate.want_no_vm(who, vm, force=force))

    async def add_share(self, path: str, owner: str = "job", lease: float | None = None, *, vm: str = "build") -> Share:
        wanted = NewShare(path=path, owner=owner, lease=lease)
        return await self.gate.add_share(ANN, await self.gate.want_share(ANN, vm, wanted))

    async def release_share(self, name: str, owner: str = "job", *, force: bool = False) -> Released:
        ended = await self.gate.end_share(ANN, "build", name, owner, force=force)
        return await self.gate.release_share(ANN, name, ended, force=force)

    async def add_mount(self, path: str, guest_path: str, owner: str = "job", lease: float | None = None) -> Mount:
        wanted = NewMount(path=path, guest_path=guest_path, owner=owner, lease=lease)
        return await self.gate.add_mount(ANN, await self.gate.want_mount(ANN, "build", wanted))

    async def release_mount(self, guest_path: str, owner: str = "job", how: End = "release") -> Released:
        ended = await self.gate.end_mount(ANN, "build", guest_path, owner, how)
        return await self.gate.release_mount(ANN, guest_path, ended)


@asynccontextmanager
async def fleet(*hosts: str, **rights: Any) -> AsyncIterator[Fleet]:
    made = Fleet(*(hosts or ("h1",)))
    await made.begin(**rights)
    try:
        yield made
    finally:
        await made.end()


def own_vm(host: FakeHost, *kept: Kept, id_: str = "build") -> Joined:
    """Have a host offer a VM of its own, with shares that are held; return what the gate is told of it."""
    wanted = NewVm(id=id_, listen=(f"unix:/run/{id_}.9p",))
    there = host.own[VmName("acme", id_)] = FakeVm(wanted)
    for each in kept:
        new = msgspec.convert(each.what, NewShare)
        there.shares.setdefault(each.share, (new, set()))[1].add(each.owner)
        host.given[VmName("acme", id_)] = int(each.share)
    return Joined(host=host.name, tenant="acme", vm=wanted, kept=kept)


def kept_share(path: str, name: str, owner: str = "job", lease: float | None = None) -> Kept:
    return Kept(kind="share", share=name, owner=owner, what={"path": path}, lease=lease)


def placed(id_: str = "build", on: str = "h1", **more: Any) -> PlacedVm:
    return PlacedVm(id=id_, on=on, listen=(f"unix:/run/{id_}.9p",), **more)


def served(host: FakeHost, follower: Follower) -> NewServed:
    """Return what a host's daemon tells that it serves of the fleet (`Joining.served`)."""
    found = []
    for vm, machine in host.machines.items():
        last = follower.last_wanted(vm)
        kept = [
            Kept(kind="share", share=name, owner=owner, what=changed_fields(NewShare, wanted), lease=None)
            for name, (wanted, owners) in machine.shares.items()
            for owner in sorted(owners)
        ]
        found.append(
            Served(
                host=host.name,
                tenant=vm.tenant,
                vm=machine.wanted,
                kept=with_leases(kept, last),
                epoch=1 if last is None else last.epoch,
                names=host.given.get(vm, -1) + 1,
            )
        )
    return NewServed(vms=tuple(found))
