"""Inside a daemon: what its follower asks of it, as one more client, with the tokens of agents read from their files.

What lives here: the protocol `Local`, and `OfService`, which is it over a real daemon. What must not: etcd, or what is
wanted (`follower`).

On the host, VM `build` of tenant `acme` is `acme:build`, of the user whom the host's fleet file names, and owner
`job-7` is `acme:job-7`. Documents have the fleet's names again.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec

from uvmshare.daemon.documents import NewMount, NewShare, NewVm, Released
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.identity import Identity
from uvmshare.errors import InvalidOptions, NotThere, OperationDenied
from uvmshare.fleet.arrivals import Arrivals
from uvmshare.fleet.documents import read_request
from uvmshare.fleet.joining import Joining
from uvmshare.mounts.options import canonical_guest_path
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from uvmshare.daemon.documents import Info, Mount, Reference, Share, Vm
    from uvmshare.daemon.fleet_documents import Served
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.service import Service
    from uvmshare.fleet.documents import End, Have, Holding, Want
    from uvmshare.fleet.hostfile import TenantRights

__all__ = ["Local", "OfService", "Seen", "VmName"]


_MOST_TOKEN: Final = 256
"""Characters of an agent's secret, as `NewVm` has them."""


class VmName(NamedTuple):
    """A VM of the fleet."""

    tenant: str
    vm: str

    @property
    def here(self) -> str:
        """What the host calls it."""
        return f"{self.tenant}:{self.vm}"


class Seen(NamedTuple):
    """What the host has of one VM, in the fleet's names; of owners the fleet's alone."""

    vm: Vm
    shares: list[Share]
    mounts: list[Mount]
    names: int = 0
    """The least number that no share of it was called."""

    def has(self, holding: Holding) -> bool:
        """Whether an owner has what the host once said that they have."""
        if holding.kind == "mount":
            path = holding.what.get("guest_path")
            return any(each.guest_path == path and _is_of(each.references, holding.owner) for each in self.mounts)
        return any(each.name == holding.share and _is_of(each.references, holding.owner) for each in self.shares)


class Arriving(NamedTuple):
    """What a VM brings along that was on another host, or is a copy of another."""

    names: int
    """The least number that its shares were never called."""
    holdings: list[Holding]
    """What was held there, with the names of shares."""


def _is_of(references: tuple[Reference, ...], owner: str) -> bool:
    return any(each.owner == owner for each in references)


class Local(Protocol):
    """The daemon of one host. Every call raises `UvmshareError` as the daemon does."""

    def info(self) -> Info:
        """Tell about the daemon."""
        ...

    def vms(self) -> list[VmName]:
        """Return the fleet's VMs that it has, those of its own that joined included."""
        ...

    async def see(self, vm: VmName) -> Seen | None:
        """Return what it has of a VM; None for none."""
        ...

    async def prepare(self, vm: VmName, wanted: Mapping[str, Any], holdings: Iterable[Holding]) -> None:
        """See whether it could have a VM with all that is held of it; raise why not. Nothing is changed."""
        ...

    async def add_vm(self, vm: VmName, wanted: Mapping[str, Any], arriving: Arriving | None) -> None:
        """Add a VM, with what it brings along, under the same names. The same again changes nothing."""
        ...

    def note_epoch(self, vm: VmName, epoch: int) -> None:
        """Tell whoever asks on the host how many hosts a VM was on."""
        ...

    async def take_on(self, vm: VmName, wanted: Mapping[str, Any], holdings: Iterable[Holding]) -> None:
        """Have a VM of the host's own, which it offers, be the fleet's. The same again changes nothing."""
        ...

    async def remove_vm(self, vm: VmName, before: Have | None) -> bool:
        """Remove a VM with all that it has; one of the host's own is that again, with what it has by `before`.

        Say whether it is certain that nothing serves it any more. One that is not there is no error.
        """
        ...

    async def serve_until(self, vm: VmName, until: float) -> None:
        """Have a fenced VM be served until then, in seconds of CLOCK_BOOTTIME."""
        ...

    async def add(self, vm: VmName, holding: Holding) -> str:
        """Share, or map, and return the share's name. The same again changes nothing."""
        ...

    async def end(self, vm: VmName, holding: Holding, how: End) -> Released:
        """Release what an owner holds. Holding nothing is no error."""
        ...

    def changes(self) -> AsyncIterator[VmName]:
        """Give each VM of which something changed, for ever."""
        ...


class OfService:
    """The daemon of this process. `tenants` are those whom its fleet file names."""

    def __init__(self, service: Service, host: str, tenants: Mapping[str, TenantRights]) -> None:
        self._service = service
        self._tenants = tenants
        self.joining = Joining(service, host, tenants)
        self.arrivals = Arrivals(service)

    def info(self) -> Info:
        """Tell about the daemon."""
        return self._service.info(Identity(0, 0))

    def vms(self) -> list[VmName]:
        """Return the fleet's VMs that it has, also those of tenants that it serves no more."""
        return [_name_of(machine) for machine in self._service.machines.values() if _tenant_of(machine)]

    def _rights(self, tenant: str) -> TenantRights:
        rights = self._tenants.get(tenant)
        if rights is None:
            msg = f"this host serves no tenant {tenant!r}: have it added to the host's fleet file, or use another host"
            raise OperationDenied(msg)
        return rights

    def _machine(self, vm: VmName) -> Machine | None:
        found = [each for each in self._service.machines.values() if _tenant_of(each) and _name_of(each) == vm]
        return found[0] if found else None

    async def _ready(self, vm: VmName) -> Machine:
        """Return a VM when it is known what it has. Raises `NotThere`, `OperationDenied`, `InvalidState`."""
        machine = self._machine(vm)
        if machine is None:
            msg = f"there is no VM {vm.vm!r} on this host"
            raise NotThere(msg)
        machine = await self._service.find_ready(machine.record.identity, machine.record.id)
        rights = self._tenants.get(vm.tenant)
        machine.fleet_below = () if rights is None else rights.below
        return machine

    async def see(self, vm: VmName) -> Seen | None:
        """Return what it has of a VM; None for none. Raises `InvalidState` while that is not known."""
        if self._machine(vm) is None:
            return None
        machine = await self._ready(vm)
        who = machine.record.identity
        shown = msgspec.structs.replace(self._service.vm(who, machine), id=vm.vm, use=None)
        mounts = [
            msgspec.structs.replace(each, vm=vm.vm, references=_theirs(vm, each.references))
            for each in self._service.mounts.all(who, machine)
            if not each.references or _theirs(vm, each.references)
        ]
        paths = {each.guest_path for each in mounts}
        shares = [
            msgspec.structs.replace(
                each,
                vm=vm.vm,
                references=_theirs(vm, each.references),
                mounts=tuple(path for path in each.mounts if path in paths),
            )
            for each in self._service.shares.all(who, machine)
        ]
        return Seen(shown, shares, mounts, machine.require().next_name)

    async def prepare(self, vm: VmName, wanted: Mapping[str, Any], holdings: Iterable[Holding]) -> None:
        """See whether this host could have a VM with all that is held of it. Raises why not."""
        rights, new = await self._allowed(vm, wanted)
        await self._service.check_vm(rights.user, new, tenant=vm.tenant)
        for each in holdings:
            await self.arrivals.options_of(vm, each, rights)

    async def add_vm(self, vm: VmName, wanted: Mapping[str, Any], arriving: Arriving | None) -> None:
        """Add a VM, as the user whom the fleet file names for its tenant. The same again changes nothing."""
        rights, new = await self._allowed(vm, wanted)
        machine = self._machine(vm)
        if (
            machine is not None and machine.record.arriving
        ):  # a daemon ended while it came: once more from the beginning
            await self._service.remove_vm(machine.record.identity, machine.record.id, force=True)
            machine = None
        brought = None if arriving is None or machine is not None else await self.arrivals.of(vm, arriving, rights)
        await self._service.add_vm(rights.user, new, tenant=vm.tenant, brought=brought)

    def note_epoch(self, vm: VmName, epoch: int) -> None:
        """Tell whoever asks on the host how many hosts a VM was on."""
        machine = self._machine(vm)
        if machine is not None:
            machine.epoch = epoch

    async def _allowed(self, vm: VmName, wanted: Mapping[str, Any]) -> tuple[TenantRights, NewVm]:
        """Return a VM that is wanted here, and for whom. Raises `OperationDenied`, `InvalidDocument`."""
        rights = self._rights(vm.tenant)
        fields = dict(wanted)
        file = fields.pop("agent_token_file", None)
        new: NewVm = read_request(NewVm, fields)
        if file is not None:
            new = read_request(NewVm, fields, agent_token=await self._token(vm, str(file), rights))
        if new.allow_remote and not rights.remote:
            msg = f"VM {vm.vm!r}: this host lets the fleet listen on loopback alone: leave --allow-remote out"
            raise OperationDenied(msg)
        self._service.admit(rights.user)
        return rights, new

    async def _token(self, vm: VmName, path: str, rights: TenantRights) -> str:
        """Return the secret of a VM's agent: as it was read when the VM was added. Raises `InvalidOptions`."""
        machine = self._machine(vm)
        if machine is not None and machine.record.wanted.agent_token is not None:
            return machine.record.wanted.agent_token

        def read() -> bytes:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.read(descriptor, _MOST_TOKEN + 1)
            finally:
                os.close(descriptor)

        try:
            token = (await self._service.threads.acting_as(rights.user, path, read)).decode().strip()
        except (OSError, ValueError) as error:
            msg = (
                f"agent_token_file {path}: {reason_of(error)}: see that uid {rights.user.uid} can read it on this host"
            )
            raise InvalidOptions(msg) from error
        if not 0 < len(token) <= _MOST_TOKEN or not os.path.isabs(path):
            msg = f"agent_token_file {path}: give the whole path of a file with 1 to {_MOST_TOKEN} characters"
            raise InvalidOptions(msg)
        return token

    async def take_on(self, vm: VmName, wanted: Mapping[str, Any], holdings: Iterable[Holding]) -> None:
        """Have a VM of the host's own, which it offers, be the fleet's."""
        machine = self._machine(vm)
        if machine is None or machine.record.offered:
            await self.joining.take_on(vm.tenant, vm.vm, wanted, holdings)

    async def remove_vm(self, vm: VmName, before: Have | None) -> bool:
        """Remove a VM with all that it has; one of the host's own is that again."""
        machine = self._machine(vm)
        if machine is not None and machine.record.joined:
            await self.joining.give_back(machine, before)
        elif machine is not None:
            removed = await self._service.remove_vm(machine.record.identity, machine.record.id, force=True)
            return removed.left is None
        return True

    async def serve_until(self, vm: VmName, until: float) -> None:
        """Have a fenced VM be served until then, in seconds of CLOCK_BOOTTIME. Raises as the daemon does."""
        await (await self._ready(vm)).serve_until(until)

    async def add(self, vm: VmName, holding: Holding) -> str:
        """Share, or map, and return the share's name. Raises as the daemon does, and `OperationDenied`."""
        rights = self._rights(vm.tenant)
        machine = await self._ready(vm)
        owner = f"{vm.tenant}:{holding.owner}"
        if holding.kind == "mount":
            mount = await self._service.mounts.map(
                rights.user, machine, read_request(NewMount, holding.what, owner=owner)
            )
            return mount.share or ""
        return (
            await self._service.shares.add(rights.user, machine, read_request(NewShare, holding.what, owner=owner))
        ).name

    async def end(self, vm: VmName, holding: Holding, how: End) -> Released:
        """Release what an owner holds, and say what it came to, in the fleet's names."""
        nothing = Released(released=False, ended=True)
        if self._machine(vm) is None:
            return nothing
        machine = await self._ready(vm)
        who = machine.record.identity
        holder = f"{who.uid}/{vm.tenant}:{holding.owner}"
        try:
            released = await self._end(machine, who, holding, holder, how)
        except NotThere:
            return nothing
        return msgspec.structs.replace(
            released, references=_theirs(vm, released.references), holders=_theirs(vm, released.holders)
        )

    async def _end(self, machine: Machine, who: Identity, holding: Holding, holder: str, how: End) -> Released:
        force = how == "force"
        if holding.kind == "share":
            if holding.share is None:
                return Released(released=False, ended=True)
            self._service.shares.get(who, machine, holding.share)
            if not force:
                return await self._service.releases.release_share(who, machine, holding.share, holder)
            held = self._service.shares.get(who, machine, holding.share)
            await self._service.shares.release(machine, holding.share, holder)
            return Released(released=bool(held.references), ended=machine.share(holding.share) is None)
        path = canonical_guest_path(holding.what["guest_path"])
        if not force:
            return await self._service.releases.unmap(who, machine, path, holder, lazy=how == "lazy")
        await self._service.mounts.unmap(machine, path, holder, force=True, kind=EventKind.MOUNT_REVOKED)
        return Released(released=True, ended=True, guest=self._service.mounts.guest_words(machine, path))

    async def served(self, vm: VmName, last: Want | None) -> Served:
        """Return a VM as it is served; `last` is what was wanted of it. Raises `NotThere`, `InvalidState`."""
        return await self.joining.served(await self._ready(vm), vm.tenant, last)

    async def changes(self) -> AsyncIterator[VmName]:
        """Give each VM of the fleet's of which something changed."""
        async for happening in self._service.events.follow(Identity(0, 0), None):
            if happening is None:
                continue
            machine = self._service.machines.get((happening.vm_uid, happening.vm))
            if machine is not None and _tenant_of(machine):
                yield _name_of(machine)
            elif ":" in happening.vm:
                yield VmName(*happening.vm.split(":", 1))


def _tenant_of(machine: Machine) -> str:
    return machine.record.tenant or machine.record.joined


def _name_of(machine: Machine) -> VmName:
    return VmName(_tenant_of(machine), machine.record.wanted.id)


def _theirs(vm: VmName, references: tuple[Reference, ...]) -> tuple[Reference, ...]:
    """Return the references of the fleet's owners, by the names that these have in the fleet."""
    mark = f"{vm.tenant}:"
    return tuple(
        msgspec.structs.replace(each, owner=each.owner.removeprefix(mark), uid=0)
        for each in references
        if each.owner.startswith(mark)
    )
