"""A gate: it does what users of a fleet ask. It keeps nothing, so any gate may be killed at any time.

What lives here: `Gate`: VMs, shares, mounts, owners and hosts as users ask for them. What must not: HTTP (`app`), how
what is wanted is changed (`wanting`), or how it is shown (`answers`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import time
from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.daemon.documents import (
    Health,
    Info,
    NewMount,
    NewShare,
    NewVm,
    Released,
    ReleasedOwner,
    Removed,
    Share,
    Vm,
)
from uvmshare.daemon.fleet_documents import Host, RemovedHost, WrittenBack
from uvmshare.errors import (
    AlreadyThere,
    InvalidOptions,
    InvalidState,
    LimitReached,
    NotThere,
    StillInUse,
    StoreError,
    StoreOutcomeUnknown,
)
from uvmshare.etcd.protocol import Delete, Put, absent, present, unchanged
from uvmshare.fleet import answers
from uvmshare.fleet.accepting import Accepting, vm_of
from uvmshare.fleet.callers import no_host
from uvmshare.fleet.documents import Alive, Have, Holding, Name, Tenant, Want, changed_fields, decode, encode
from uvmshare.fleet.fence import length_of
from uvmshare.fleet.happenings import follow
from uvmshare.fleet.moving import Moving, names_of
from uvmshare.fleet.owners import Owners
from uvmshare.fleet.reading import Found, Reader, is_seen
from uvmshare.fleet.removing import Removing
from uvmshare.fleet.sending import Sent
from uvmshare.fleet.wanting import Asked, Ended, Wanting, problem_in
from uvmshare.mounts.options import canonical_guest_path

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from uvmshare.daemon.documents import Event, Mount
    from uvmshare.daemon.fleet_documents import Joined, NewClone, NewMove, NewServed, PlacedVm
    from uvmshare.etcd.protocol import KeyValue, Store
    from uvmshare.fleet.callers import Caller
    from uvmshare.fleet.documents import End
    from uvmshare.fleet.keys import Keys
    from uvmshare.fleet.tickets import Ticket

__all__ = ["Gate"]

_TRIES: Final = 100


class Gate:
    """Everything that one gate does. Belongs to one event loop."""

    def __init__(self, store: Store, keys: Keys, *, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._keys = keys
        self._started = now()
        self._reader = Reader(store, keys)
        self._owners = Owners(self._reader)
        self._wanting = Wanting(self._reader, self._owners)
        self._moving = Moving(self._reader)
        self._removing = Removing(self._reader)
        self._accepting = Accepting(self._reader, self._owners)

    def info(self) -> Info:
        """Tell about the gate."""
        started = datetime.fromtimestamp(self._started, UTC)
        return Info(version=version("uvmshare"), pid=os.getpid(), uid=os.geteuid(), started=started, you=0, notes=())

    async def health(self, who: Caller) -> Health:
        """Tell that it answers, and etcd too. Raises `StoreError`."""
        states = Counter(vm.state for vm in await self.vms(who))
        return Health(version=version("uvmshare"), vms=dict(sorted(states.items())))

    # ------------------------------------------------------------------ VMs

    async def vms(self, who: Caller) -> list[Vm]:
        """Return the VMs of who asks; to an administrator, all."""
        if not who.is_admin:
            who.require("read", await self._tenant(who.tenant))
        names = await self._reader.list_all(self._keys.names(who.tenant))
        at = [(*self._keys.vm_of_name(each.key), decode(Name, each.value, each.key).host) for each in names]
        hosts = sorted({host for _, _, host in at})
        alive = dict(zip(hosts, await self._reader.get_all([self._keys.alive(host) for host in hosts]), strict=True))
        wants = await self._reader.get_all([self._keys.want(host, *vm) for *vm, host in at])
        haves = await self._reader.get_all([self._keys.have(host, *vm) for *vm, host in at])
        return [
            answers.vm_document(
                who,
                tenant,
                vm,
                host=host,
                want=decode(Want, want.value, want.key),
                have=None if have is None else decode(Have, have.value, have.key),
                lives=alive[host] is not None,
            )
            for (tenant, vm, host), want, have in zip(at, wants, haves, strict=True)
            if want is not None
        ]

    async def vm(self, who: Caller, vm: str) -> Vm:
        """Return one VM. Raises `NotThere`."""
        return answers.vm_of(who, await self._reader.vm(who, vm, "read"))

    async def _tenant(self, tenant: str) -> Tenant:
        found = await self._reader.tenant(tenant)
        if found is None:
            msg = f"the fleet knows no tenant {tenant!r}: have an administrator add it (uvmshare fleet add-tenant)"
            raise NotThere(msg)
        return found

    async def want_vm(self, who: Caller, wanted: PlacedVm) -> tuple[Found, int]:
        """Write that a VM is wanted on a host; return it, and the revision from which on it is.

        Raises `AlreadyThere`, `LimitReached`, `NotThere` for a host that is not in the fleet.
        """
        tenant = who.require_tenant()
        rights = await self._tenant(tenant)
        who.require("own", rights)
        if wanted.agent_token is not None:
            msg = (
                "agent_token: a secret is not written into etcd: name a file on the host that has it (agent_token_file)"
            )
            raise InvalidOptions(msg)
        new = changed_fields(NewVm, wanted)
        if wanted.agent_token_file is not None:
            new["agent_token_file"] = wanted.agent_token_file
        return await self._add_new(who, (tenant, wanted.id), wanted.on, Want(vm=new), rights)

    async def _add_new(
        self, who: Caller, vm: tuple[str, str], host: str, new: Want, rights: Tenant
    ) -> tuple[Found, int]:
        """Write that a VM of a tenant is wanted; return as `want_vm`."""
        with Sent() as sent:
            revision = await self._add(*vm, host, new, rights)
            sent.made = "" if revision is None else f"VM {vm[1]!r}"
            found = await self._reader.vm(who, who.shown(*vm), "own")
        return found, revision or found.want_at.mod_revision

    async def want_joined(self, who: Caller, joined: Joined) -> tuple[Found, int]:
        """Write that a VM of a host's own is the fleet's too; return it, and the revision from which on it is.

        Whoever holds something of it holds that through the fleet then, with a lease of etcd in place of the host's.
        Raises as `want_vm`, and `InvalidOptions` for another tenant's.
        """
        tenant = joined.tenant if who.is_admin else who.tenant
        if joined.tenant != tenant:
            msg = f"VM {joined.vm.id!r} is offered to tenant {joined.tenant}, and you are of {tenant}: offer it to them"
            raise InvalidOptions(msg)
        rights = await self._tenant(tenant)
        who.require("own", rights)
        if len(joined.kept) > rights.holdings:
            there = f"has {len(joined.kept)} shares and mounts, and tenant {tenant} may have {rights.holdings} of each"
            msg = f"VM {joined.vm.id!r} {there}: release what is not needed (uvmshare share rm)"
            raise LimitReached(msg)
        holdings = await self._accepting.holdings(joined)
        new = Want(vm=vm_of(joined), joined=True, holdings=holdings, last=len(holdings))
        return await self._add_new(who, (tenant, joined.vm.id), joined.host, new, rights)

    async def add_vm(self, who: Caller, found: Found, revision: int) -> Vm:
        """Return a VM that is wanted once its host has it. Raises what the host raises; then nothing is left of it."""
        have = await self._reader.when_seen(found, revision, f"VM {found.vm!r}")
        if have.problem is not None:
            await self._removing.take_back(found)
            raise problem_in(have.problem)
        return answers.vm_of(who, dataclasses.replace(found, have=have, lives=True))

    async def _add(self, tenant: str, vm: str, host: str, new: Want, rights: Tenant) -> int | None:
        """Write that a VM is wanted; return the revision, or None when it was wanted before."""
        keys = self._keys
        name, want, have = keys.name(tenant, vm), keys.want(host, tenant, vm), keys.have(host, tenant, vm)
        with Sent() as sent:
            for _ in range(_TRIES):
                name_at, count_at, host_at, have_at = await self._reader.get_all(
                    [name, keys.count(tenant), keys.registered(host), have]
                )
                if name_at is not None:
                    await self._require_same(tenant, vm, name_at, host, new)
                    return None
                if host_at is None:
                    raise no_host(host)
                if have_at is not None:
                    msg = f"host {host} has not let go of an earlier VM {vm!r} yet: ask again later"
                    raise InvalidState(msg)
                count = 0 if count_at is None else int(count_at.value)
                if count >= rights.vms:
                    msg = (
                        f"tenant {tenant} has {count} VMs, and may have {rights.vms}: remove one that is not needed "
                        "(uvmshare vm rm), or have an administrator of the fleet raise it"
                    )
                    raise LimitReached(msg)
                unmoved = absent(keys.count(tenant)) if count_at is None else unchanged(count_at)
                puts = [
                    Put(name, encode(Name(host=host))),
                    Put(want, encode(new)),
                    Put(keys.count(tenant), str(count + 1).encode()),
                ]
                compare = [absent(name), absent(want), absent(have), present(keys.registered(host)), unmoved]
                try:
                    done = await self._store.txn(compare, puts)
                except StoreOutcomeUnknown as error:
                    sent.unknown = error
                    continue  # it is there then, and is the same; or not
                if done.succeeded:
                    return done.revision
        msg = f"VM {vm!r}: many others of tenant {tenant} are added or removed at once: ask again"
        raise InvalidState(msg)

    async def _require_same(self, tenant: str, vm: str, name_at: KeyValue, host: str, new: Want) -> None:
        there = decode(Name, name_at.value, name_at.key)
        want_at = (await self._store.get(self._keys.want(there.host, tenant, vm))).found
        want = None if want_at is None else decode(Want, want_at.value, want_at.key)
        same = want is not None and (want.vm, want.joined) == (new.vm, new.joined)
        if there.host != host or not same:
            msg = (
                f"there is a VM {vm!r} on host {there.host} already"
                + (", with other settings" if there.host == host else "")
                + ": remove it first, or choose another id"
            )
            raise AlreadyThere(msg)

    async def move(self, who: Caller, vm: str, wanted: NewMove) -> Vm:
        """Move a VM to another host, or do one step of that; return it. Raises as `Moving` does."""
        if wanted.step == "abort":
            return answers.vm_of(who, await self._moving.abort(who, vm))
        with Sent() as sent:
            if wanted.step != "commit":
                await self._moving.prepare(who, vm, wanted.to)
                sent.made = f"move of VM {vm!r}"
            if wanted.step == "prepare":
                return await self.vm(who, vm)
            moved = await self._moving.commit(who, vm, wanted.to, take=wanted.take, made_sure=wanted.made_sure)
        return answers.vm_of(who, dataclasses.replace(moved, lives=True))

    async def want_clone(self, who: Caller, vm: str, wanted: NewClone) -> tuple[Found, int]:
        """Write that a copy of a VM is wanted, with the same shares by the same names; return as `want_vm`."""
        found = await self._reader.vm(who, vm, "own")
        document: dict[str, Any] = {**found.want.vm, "id": wanted.id}
        document |= {"listen": list(wanted.listen)} if wanted.listen else {}
        document |= {"agent": wanted.agent} if wanted.agent is not None else {}
        holdings = {id_: each for id_, each in found.want.holdings.items() if each.share is not None and not each.end}
        new = Want(vm=document, holdings=holdings, last=found.want.last, names=names_of(found))
        await self._moving.mark_leases(found, wanted.on)
        return await self._add_new(who, (found.tenant, wanted.id), wanted.on, new, found.rights)

    async def remove_vm(self, found: Found) -> Removed:
        """Wait until the host of a VM that is wanted no more has ended its file server."""
        await self._reader.when_gone(found, f"removal of VM {found.vm!r}")
        return Removed(left=None)

    async def want_no_vm(self, who: Caller, vm: str, *, force: bool) -> Found:
        """Write that a VM is wanted no more; return what it was. Raises `StillInUse`, unless it is forced."""

        def check(found: Found) -> None:
            if found.want.joined:
                msg = f"VM {vm!r} is host {found.host}'s own, which only has it back: uvmshare vm leave"
                raise InvalidState(msg)
            length = length_of(found.want)
            if length is not None and not found.lives and not force:
                msg = (
                    f"host {found.host} is not heard of, and serves VM {vm!r} for {length:g} s more at "
                    "most: have another host take it, or force its removal, and give its name to no other VM until then"
                )
                raise StillInUse(msg)
            held = [each for each in found.want.holdings.values() if not each.end]
            if held and not force:
                msg = f"VM {vm!r} has {len(held)} share(s) and mounts that are held: release them first, or force it"
                raise StillInUse(msg)

        return await self._removing.want_gone(who, vm, check)

    async def want_left(self, who: Caller, vm: str) -> Found:
        """Write that a VM is its host's own again, with all who hold something of it; return what it was."""

        def check(found: Found) -> None:
            if not found.want.joined:
                msg = f"VM {vm!r} was added through the fleet, and is nobody else's: remove it (uvmshare vm rm)"
                raise InvalidState(msg)

        return await self._removing.want_gone(who, vm, check)

    # ------------------------------------------------------------------ shares and mounts

    async def shares(self, who: Caller, vm: str) -> list[Share]:
        """Return the shares of a VM."""
        found = await self._reader.vm(who, vm, "read")
        return answers.shares_of(who, found, found.have)

    async def share(self, who: Caller, vm: str, name: str) -> Share:
        """Return one share. Raises `NotThere`."""
        found = await self._reader.vm(who, vm, "read")
        share = answers.share_of(who, found, found.have, name)
        if share is None:
            raise _no_share(vm, name)
        return share

    async def want_share(self, who: Caller, vm: str, wanted: NewShare) -> Asked:
        """Write that a share is wanted."""
        return await self._wanting.hold(who, vm, _holding("share", wanted))

    async def add_share(self, who: Caller, asked: Asked) -> Share:
        """Return a share that is wanted once the host has it. Raises what the host raises."""
        have, name = await self._wanting.held(asked)
        found = await self._again(who, asked.found)
        share = answers.share_of(who, found, have, name)
        if share is None:
            raise _no_share(found.vm, name)
        return share

    async def _again(self, who: Caller, found: Found) -> Found:
        """Return a VM as it is now, for the lengths of leases; as it was, where that cannot be told."""
        with suppress(NotThere, StoreError):
            return await self._reader.vm(who, who.shown(found.tenant, found.vm), "read")
        return found

    async def end_share(self, who: Caller, vm: str, name: str, owner: str, *, force: bool) -> Ended:
        """Write that a share is to be released. Raises `NotThere`."""
        found = await self._reader.vm(who, vm, "hold")
        if answers.share_of(who, found, found.have, name) is None:
            raise _no_share(vm, name)

        def choose(each: Holding) -> bool:
            if each.kind == "mount":
                return force and each.share == name
            return each.share == name and (force or each.owner == owner)

        return await self._wanting.end(who, vm, choose, "force" if force else "release")

    async def release_share(self, who: Caller, name: str, ended: Ended, *, force: bool) -> Released:
        """Return what a release came to once the host has released it. Raises what the host raises."""
        have, released = await self._wanting.ended(ended)
        share = answers.share_of(who, ended.found, have, name)
        answer = answers.released_of(released, share, nobody=not ended.ids)
        if force and share is not None and share.references:
            msg = f"share {name}: the guest still reaches the directory: somebody has asked for it again meanwhile"
            raise StillInUse(msg)
        return answer

    async def mounts(self, who: Caller, vm: str) -> list[Mount]:
        """Return the mounts in a VM's guest."""
        found = await self._reader.vm(who, vm, "read")
        return answers.mounts_of(who, found, found.have)

    async def want_mount(self, who: Caller, vm: str, wanted: NewMount) -> Asked:
        """Write that a mount is wanted. Raises `InvalidOptions` for what is no path of a guest."""
        path = canonical_guest_path(wanted.guest_path)
        return await self._wanting.hold(who, vm, _holding("mount", msgspec.structs.replace(wanted, guest_path=path)))

    async def add_mount(self, who: Caller, asked: Asked) -> Mount:
        """Return a mount that is wanted once the guest has it. Raises what the host raises."""
        have, _ = await self._wanting.held(asked)
        with Sent() as sent:
            sent.made = f"VM {asked.found.vm!r}"
            found = await self._reader.vm(who, who.shown(asked.found.tenant, asked.found.vm), "read")
        wanted = found.want.holdings.get(asked.id, asked.found.want.holdings.get(asked.id))
        for mount in answers.mounts_of(who, found, have):
            if wanted is not None and mount.guest_path == wanted.what["guest_path"]:
                return mount
        msg = f"VM {found.vm!r}: the mount was taken away meanwhile: ask again"
        raise NotThere(msg)

    async def end_mount(self, who: Caller, vm: str, guest_path: str, owner: str, how: End) -> Ended:
        """Write that a mount is to be released. Raises `NotThere`."""
        path = canonical_guest_path(guest_path)
        found = await self._reader.vm(who, vm, "hold")
        if not any(each.guest_path == path for each in answers.mounts_of(who, found, found.have)):
            msg = f"the guest of VM {vm!r} has no mount at {path}, or none of yours: `uvmshare mounts` lists them"
            raise NotThere(msg)

        def choose(each: Holding) -> bool:
            return each.kind == "mount" and each.what["guest_path"] == path and (how == "force" or each.owner == owner)

        return await self._wanting.end(who, vm, choose, how)

    async def release_mount(self, who: Caller, guest_path: str, ended: Ended) -> Released:
        """Return what a release came to once the host has released it. Raises what the host raises."""
        path = canonical_guest_path(guest_path)
        have, released = await self._wanting.ended(ended)
        left = [each for each in answers.mounts_of(who, ended.found, have) if each.guest_path == path]
        if released:
            return released[0]
        held = left[0].references if left else ()
        return Released(released=False, ended=not held, references=held, holders=held)

    # ------------------------------------------------------------------ owners

    async def renew(self, who: Caller, owner: str, seconds: float | None = None) -> int:
        """Let every lease of an owner run afresh; return how many. Raises `NotThere` for none.

        With `seconds`, all that hung on one hangs on a lease of that length afterwards.
        """
        who.require("hold", await self._tenant(who.require_tenant()))
        leases = await self._owners.of(who.tenant, owner)
        renewed = await self._owners.renew(owner, leases)
        if seconds is not None and any(each.seconds != seconds for each in leases):
            with Sent() as sent:
                sent.made = f"renewal of owner {owner!r}"
                for each in await self._reader.list_all(self._keys.names(who.tenant)):
                    with suppress(NotThere):
                        await self._relet(who, self._keys.vm_of_name(each.key)[1], owner, seconds, None)
        return renewed

    async def _relet(self, who: Caller, vm: str, owner: str, seconds: float, share: str | None) -> None:
        """Have all that an owner holds with a lease, or one share of it, hang on a lease of another length."""
        found = await self._reader.vm(who, vm, "hold")
        for each in found.want.holdings.values():
            if each.owner == owner and each.lease and each.seconds != seconds and share in (None, each.share):
                await self._wanting.hold(who, vm, msgspec.structs.replace(each, seconds=seconds), only_there=True)

    async def renew_share(self, who: Caller, vm: str, name: str, owner: str, seconds: float | None = None) -> int:
        """Let the lease of an owner on one share run afresh. Raises `NotThere` for none."""
        found = await self._reader.vm(who, vm, "hold")
        leases = {
            each.lease
            for each in found.want.holdings.values()
            if (each.owner, each.share, each.kind) == (owner, name, "share") and each.lease and not each.end
        }
        every = [each for each in await self._owners.of(found.tenant, owner) if each.lease in leases]
        renewed = await self._owners.renew(owner, every)
        if seconds is not None:
            with Sent() as sent:
                sent.made = f"renewal of owner {owner!r}"
                await self._relet(who, vm, owner, seconds, name)
        return renewed

    async def release_owner(self, who: Caller, owner: str, *, force: bool) -> ReleasedOwner:
        """Release everything that an owner holds, in all VMs; then end their leases. All are tried."""
        names = await self._reader.list_all(self._keys.names(who.require_tenant()))
        vms = [self._keys.vm_of_name(each.key)[1] for each in names]
        outcomes = await asyncio.gather(
            *(self._release_owner_in(who, vm, owner, "force" if force else "release") for vm in vms),
            return_exceptions=True,
        )
        kinds: Counter[str] = Counter()
        for outcome in outcomes:
            kinds += outcome if isinstance(outcome, Counter) else Counter()
        with Sent() as sent:
            sent.made = f"release of owner {owner!r}" if kinds else ""
            for outcome in outcomes:
                if isinstance(outcome, BaseException) and not isinstance(outcome, NotThere):
                    raise outcome
            leases = await self._owners.of(who.tenant, owner)
            for each in leases:
                await self._owners.end([each])
                sent.made = f"release of owner {owner!r}"
        return ReleasedOwner(released=bool(kinds), shares=kinds["share"], mounts=kinds["mount"])

    async def _release_owner_in(self, who: Caller, vm: str, owner: str, how: End) -> Counter[str]:
        def choose(each: Holding) -> bool:
            return each.owner == owner

        ended = await self._wanting.end(who, vm, choose, how)
        if not ended.ids:
            return Counter()
        await self._wanting.ended(ended)
        return Counter(ended.found.want.holdings[id_].kind for id_ in ended.ids if id_ in ended.found.want.holdings)

    # ------------------------------------------------------------------ operations and events

    async def outcome(self, who: Caller, ticket: Ticket, *, wait: bool) -> tuple[bool, Any]:
        """Return whether an operation has ended, and what it came to. Raises what it failed with."""
        if ticket.kind in "xl":
            tenant, vm = who.find(ticket.vm)
            host = ticket.about[0] if ticket.about else ""
            at = (await self._store.get(self._keys.have(host, tenant, vm))).found
            return at is None, Removed(left=None) if at is None else None
        found = await self._reader.vm(who, ticket.vm, "read")
        if not wait and not is_seen(found.have_at, found.have, ticket.revision, ticket.about):
            return False, None
        if ticket.kind in "vj":
            return True, await self.add_vm(who, found, ticket.revision)
        if ticket.kind == "e":
            _, released = await self._wanting.ended(Ended(found, ticket.about, ticket.revision))
            return True, released[0] if released else Released(released=False, ended=False)
        asked = Asked(found, ticket.about[0] if ticket.about else "", ticket.revision)
        add = self.add_share if ticket.kind == "s" else self.add_mount
        return True, await add(who, asked)

    async def require_reader(self, who: Caller) -> None:
        """See that they may read. Raises `OperationDenied`."""
        if not who.is_admin:
            who.require("read", await self._tenant(who.tenant))

    def events(self, who: Caller, after: str | None, *, wait: bool) -> AsyncIterator[Event | None]:
        """Give events behind the one of an id, as they come; None where some are missing."""
        return follow(self._reader, who, after, wait=wait)

    # ------------------------------------------------------------------ hosts

    async def hosts(self, who: Caller) -> list[Host]:
        """Return every host of the fleet."""
        if not who.is_admin:
            who.require("read", await self._tenant(who.tenant))
        registered = await self._reader.list_all(self._keys.registered())
        names = [each.key.removeprefix(self._keys.registered()) for each in registered]
        alive = await self._reader.get_all([self._keys.alive(name) for name in names])
        counts = Counter(
            decode(Name, each.value, each.key).host
            for each in await self._reader.list_all(self._keys.names(who.tenant))
        )
        return [
            answers.host_of(name, None if at is None else decode(Alive, at.value, at.key), counts[name])
            for name, at in zip(names, alive, strict=True)
        ]

    async def write_back(self, who: Caller, host: str, wanted: NewServed) -> WrittenBack:
        """Write what a host serves, which etcd has forgotten. Raises `InvalidOptions` for what is another host's."""
        who.require_admin()
        if any(each.host != host for each in wanted.vms):
            msg = f"what host {host} serves was asked of another host: ask the daemon of {host}"
            raise InvalidOptions(msg)
        written: dict[str, bool] = {}
        with Sent() as sent:
            for each in wanted.vms:
                written[f"{each.tenant}:{each.vm.id}"] = await self._accepting.write_back(each)
                sent.made = f"what host {host} serves"
        return WrittenBack(
            vms=tuple(vm for vm, is_written in written.items() if is_written),
            elsewhere=tuple(vm for vm, is_written in written.items() if not is_written),
        )

    async def remove_host(self, who: Caller, host: str) -> RemovedHost:
        """Remove a lost host from the fleet, with its VMs. Raises `StillInUse` for one that lives.

        One that comes back finds nothing that is wanted of it, and ends its VMs.
        """
        who.require_admin()
        registered_at, alive = await self._reader.get_all([self._keys.registered(host), self._keys.alive(host)])
        if registered_at is None:
            raise no_host(host)
        if alive is not None:
            msg = f"host {host!r} lives: end its daemon first, or remove its VMs one by one (uvmshare vm rm)"
            raise StillInUse(msg)
        removed = []
        with Sent() as sent:
            for each in await self._reader.list_all(self._keys.names()):
                if decode(Name, each.value, each.key).host == host:
                    tenant, vm = self._keys.vm_of_name(each.key)
                    with suppress(NotThere):
                        await self._removing.want_gone(who, f"{tenant}:{vm}", lambda _: None)
                    removed.append(f"{tenant}:{vm}")
                    sent.made = f"removal of host {host!r}"
            await self._store.txn([absent(self._keys.alive(host))], [Delete(self._keys.registered(host))])
        return RemovedHost(vms=tuple(removed))


def _holding(kind: Any, wanted: NewShare | NewMount) -> Holding:
    plain = changed_fields(type(wanted), wanted)
    plain.pop("owner", None)
    plain.pop("lease", None)
    return Holding(kind=kind, owner=wanted.owner, what=plain, seconds=wanted.lease)


def _no_share(vm: str, name: str) -> NotThere:
    return NotThere(f"VM {vm!r} has no share {name!r}, or none of yours: `uvmshare share ls` lists them")
