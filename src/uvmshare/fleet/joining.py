"""A VM of a host's own that joins the fleet, or leaves it: its holders get other names, and nothing else changes.

What lives here: `Joining`: what a host offers, how it hands the holders over, and back. What must not: etcd, or what a
gate does with an offer (`gate`).

Such a VM keeps its id, its place and its processes on the host, so its guest notices nothing. Owner `job-7` of its
user is `acme:job-7` while tenant `acme` has it in the fleet. What is handed over is compared with what there is, so
each step may be done again after the daemon died in the middle of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from uvmshare.daemon.documents import DEFAULT_OWNER, NewMount, NewShare, NewVm
from uvmshare.daemon.fleet_documents import Joined, Kept, Served
from uvmshare.daemon.shares import is_below
from uvmshare.errors import AlreadyThere, InvalidState, NotThere, OperationDenied
from uvmshare.fleet.documents import changed_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from uvmshare.daemon.documents import Mount, Reference, Share
    from uvmshare.daemon.identity import Identity
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.service import Service
    from uvmshare.fleet.documents import Have, Holding, Want
    from uvmshare.fleet.hostfile import TenantRights

__all__ = ["Joining", "with_leases"]


class Joining:
    """The VMs of this daemon's own that are in the fleet, or are to be."""

    def __init__(self, service: Service, host: str, tenants: Mapping[str, TenantRights]) -> None:
        self._service = service
        self._host = host
        self._tenants = tenants

    # Offered by its user

    async def offer(self, who: Identity, name: str, tenant: str) -> Joined:
        """Let a tenant of the fleet take a VM on; return it as it goes there. The same again is no mistake.

        Raises `NotThere`, `OperationDenied` for what this host does not let that tenant do, and `InvalidState`.
        """
        machine = await self._service.find_ready(who, name)
        record, rights = machine.record, self._tenants.get(tenant)
        if rights is None:
            msg = f"this host serves no tenant {tenant!r}: have it added to the host's fleet file"
            raise OperationDenied(msg)
        if record.tenant or record.joined not in ("", tenant):
            msg = f"VM {name!r} is tenant {record.tenant or record.joined}'s in the fleet: it cannot be another's too"
            raise InvalidState(msg)
        if record.identity.uid != rights.user.uid:
            msg = (
                f"VM {name!r} is uid {record.identity.uid}'s, and this host has tenant {tenant}'s VMs be uid "
                f"{rights.user.uid}'s: name that user in the host's fleet file, or another tenant"
            )
            raise OperationDenied(msg)
        kept = self._kept(machine, "" if not record.joined else f"{tenant}:")
        for each in kept:
            if not any(is_below(each.what["path"], top) for top in rights.below):
                msg = (
                    f"{each.what['path']} is shared with VM {name!r}, and is not below what this host lets the fleet "
                    "share: have it added to the host's fleet file, or release it"
                )
                raise OperationDenied(msg)
        if not record.joined:
            self._note(machine, offered=tenant, joined="")
        vm = msgspec.structs.replace(record.wanted, agent_token=None)
        return Joined(host=self._host, tenant=tenant, vm=vm, kept=tuple(kept))

    def _note(self, machine: Machine, *, offered: str, joined: str) -> None:
        self._service.rewrite(machine, msgspec.structs.replace(machine.record, offered=offered, joined=joined))

    def _kept(self, machine: Machine, mark: str) -> list[Kept]:
        """Return what the VM's user holds, by owners whose names begin so. Raises `InvalidState`."""
        user = machine.record.identity
        there: list[tuple[Literal["share", "mount"], Any, str | None, Any]] = [
            ("share", NewShare, share.name, share) for share in self._service.shares.all(user, machine)
        ]
        there += [("mount", NewMount, mount.share, mount) for mount in self._service.mounts.all(user, machine)]
        found = []
        for kind, asked, name, document in there:
            held = [each for each in document.references if _is_of(each, user, mark)]
            if held and name is None:
                msg = f"{document.guest_path} in VM {machine.record.id!r} is being mounted: ask again when it is there"
                raise InvalidState(msg)
            what = changed_fields(asked, _Asked(document))
            for each in held:
                owner = each.owner.removeprefix(mark)
                found.append(Kept(kind=kind, share=name or "", owner=owner, what=what, lease=each.lease))
        return found

    # Taken on by the fleet

    async def take_on(self, tenant: str, vm: str, wanted: Mapping[str, Any], holdings: Iterable[Holding]) -> None:
        """Have a VM that was offered be the fleet's. Raises `NotThere` when nobody offers it, and what VMs raise."""
        rights = self._tenants.get(tenant)
        machine = None if rights is None else self._service.machines.get((rights.user.uid, vm))
        if rights is None or machine is None or machine.record.offered != tenant:  # as long as it is handed over
            msg = f"this host does not offer a VM {vm!r} to tenant {tenant}: offer it there (uvmshare vm join)"
            raise NotThere(msg)
        machine = await self._service.find_ready(machine.record.identity, machine.record.id)
        if changed_fields(NewVm, msgspec.structs.replace(machine.record.wanted, agent_token=None)) != dict(wanted):
            msg = f"VM {vm!r} has other settings on this host by now: offer it again (uvmshare vm join)"
            raise AlreadyThere(msg)
        self._note(machine, offered=tenant, joined=tenant)  # what ends it from here on gives all back
        uid = machine.record.identity.uid
        for each in holdings:
            await self._hand_over(machine, each, f"{uid}/{each.owner}", f"{uid}/{tenant}:{each.owner}", rights.below)
        self._note(machine, offered="", joined=tenant)

    async def _hand_over(
        self, machine: Machine, holding: Holding, before: str, after: str, below: tuple[str, ...]
    ) -> None:
        """Have the fleet's owner hold what its user's owner does, if the fleet may share that here."""
        info = None if holding.share is None else machine.share(holding.share)
        if info is None or not any(is_below(info.options.host_path, top) for top in below):
            return
        if holding.kind == "share":
            await self._service.shares.hand_over(machine, info.name, before, after, None)
        else:
            await self._service.mounts.hand_over(machine, holding.what["guest_path"], before, after, None)

    # Given back

    async def give_back(self, machine: Machine, before: Have | None) -> None:
        """Have a VM be this host's own again, with what `before` says that the fleet's owners hold.

        Their leases run here from now on. What they were not told that they hold is released. Without `before` nobody
        knows, and all stays. Raises what the VM raises.
        """
        machine = await self._service.find_ready(machine.record.identity, machine.record.id)
        uid, mark = machine.record.identity.uid, f"{machine.record.joined}:"
        told = None if before is None else _told(before)
        for each in self._kept(machine, mark):
            place = _place(each)
            theirs, own = f"{uid}/{mark}{each.owner}", f"{uid}/{each.owner}"
            is_told = told is None or (each.kind, place, each.owner) in told
            lease = None if told is None else told.get((each.kind, place, each.owner))
            if each.kind == "share" and is_told:
                await self._service.shares.hand_over(machine, place, theirs, own, lease)
            elif each.kind == "share":
                await self._service.shares.release(machine, place, theirs)
            elif is_told:
                await self._service.mounts.hand_over(machine, place, theirs, own, lease)
            else:
                await self._service.mounts.unmap(machine, place, theirs, force=True)
        self._note(machine, offered="", joined="")
        machine.epoch = None

    # When etcd has forgotten it

    async def served(self, machine: Machine, tenant: str, last: Want | None) -> Served:
        """Return a VM of the fleet as this host serves it. `last`, what was wanted of it, tells lengths of leases."""
        machine = await self._service.find_ready(machine.record.identity, machine.record.id)
        return Served(
            host=self._host,
            tenant=tenant,
            vm=msgspec.structs.replace(machine.record.wanted, agent_token=None),
            kept=with_leases(self._kept(machine, f"{tenant}:"), last),
            epoch=1 if last is None else last.epoch,
            names=machine.require().next_name,
            joined=bool(machine.record.joined),
            agent_token_file=None if last is None else last.vm.get("agent_token_file"),
        )


def with_leases(kept: Iterable[Kept], last: Want | None) -> tuple[Kept, ...]:
    """Return what is held with the lengths of its leases, as `last`, what was wanted of the VM, tells them.

    Of a share that is so new that its name was never written, whatever the owner wanted and was not told of may be
    meant: the shortest lease of that. Without one it would be held for ever.
    """
    known: dict[tuple[str, str, str], float | None] = {}
    untold: dict[tuple[str, str], list[float | None]] = {}
    for each in () if last is None else last.holdings.values():
        if each.kind == "share" and each.share is None:
            untold.setdefault((each.kind, each.owner), []).append(each.seconds)
        else:
            known[_held(each)] = each.seconds
    found = []
    for one in kept:
        held = one.kind, _place(one), one.owner
        lengths = [known[held]] if held in known else untold.get((one.kind, one.owner), [])
        lease = min((each for each in lengths if each is not None), default=None)
        found.append(msgspec.structs.replace(one, lease=lease))
    return tuple(found)


def _held(holding: Holding) -> tuple[str, str, str]:
    place = holding.share if holding.kind == "share" else holding.what["guest_path"]
    return holding.kind, place or "", holding.owner


def _place(kept: Kept) -> str:
    return kept.share if kept.kind == "share" else str(kept.what["guest_path"])


def _is_of(reference: Reference, user: Identity, mark: str) -> bool:
    return reference.uid == user.uid and (reference.owner.startswith(mark) if mark else ":" not in reference.owner)


class _Asked:
    """A share or a mount as it was asked for: without owner and lease."""

    owner = DEFAULT_OWNER
    lease = None

    def __init__(self, there: Share | Mount) -> None:
        self._there = there

    def __getattr__(self, name: str) -> Any:
        return getattr(self._there, name)


def _told(before: Have) -> dict[tuple[str, str, str], float | None]:
    """Return what the fleet's owners were told that they hold, and the seconds of their leases."""
    found: dict[tuple[str, str, str], float | None] = {}
    for kind, place, documents in (("share", "name", before.shares), ("mount", "guest_path", before.mounts)):
        for document in documents:
            for reference in document.get("references", ()):
                found[kind, document[place], reference["owner"]] = reference.get("lease")
    return found
