"""How a gate moves a VM to another host: prepared there, then given over in one transaction.

What lives here: `Moving`: the steps, each of which may be repeated, through whichever gate. What must not: the VM's
memory, which somebody else moves between the steps, or how a host takes what comes (`arrivals`).

The name of a VM says which host has it. It is changed in the same transaction that takes from the old host what was
wanted of it, and gives that to the new one, which waits until the old one has let go.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from uvmshare.errors import InvalidOptions, InvalidState, StoreOutcomeUnknown
from uvmshare.etcd.protocol import Delete, Put, absent, present, unchanged
from uvmshare.fleet.callers import no_host
from uvmshare.fleet.documents import Want, decode, encode
from uvmshare.fleet.fence import length_of
from uvmshare.fleet.owners import id_of
from uvmshare.fleet.sending import Sent
from uvmshare.fleet.wanting import problem_in

if TYPE_CHECKING:
    from uvmshare.etcd.protocol import KeyValue
    from uvmshare.fleet.callers import Caller
    from uvmshare.fleet.reading import Found, Reader

__all__ = ["Moving"]

_TRIES: Final = 100
_PREPARE_SECONDS: Final = 600
"""After so long without a commit, what was prepared is gone."""


class _There(NamedTuple):
    """The host to which a VM is to move, as it was read."""

    host: str
    want_at: KeyValue | None
    lives: bool


class Moving:
    """Moves of one fleet's VMs."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._store = reader.store
        self._keys = reader.keys

    async def prepare(self, who: Caller, vm: str, to: str) -> None:
        """Have a host see whether it could have a VM. Raises why not; then nothing is left of it."""
        with Sent() as sent:
            for _ in range(_TRIES):
                found = await self._movable(who, vm)
                if found.host == to:
                    return
                there, have_at, registered_at, other_at = await self._there(found, to)
                if registered_at is None:
                    raise no_host(to)
                if found.name.moving not in (None, to) and other_at is not None:
                    msg = f"VM {vm!r} is about to move to host {found.name.moving}: abort that first (vm move --abort)"
                    raise InvalidState(msg)
                if there.want_at is None and have_at is not None:
                    msg = f"host {to} has not let go of an earlier VM {vm!r} yet: ask again later"
                    raise InvalidState(msg)
                lease = await self._store.grant(_PREPARE_SECONDS)
                new = msgspec.structs.replace(found.want, prepare=True, epoch=found.want.epoch + 1)
                want = self._keys.want(to, found.tenant, found.vm)
                compare = [
                    unchanged(found.name_at),
                    unchanged(found.want_at),
                    present(self._keys.registered(to)),
                    absent(want) if there.want_at is None else unchanged(there.want_at),
                ]
                puts = [
                    Put(found.name_at.key, encode(msgspec.structs.replace(found.name, moving=to), found.name_at.value)),
                    Put(want, encode(new, found.want_at.value), lease.id),
                ]
                try:
                    done = await self._store.txn(compare, puts)
                except StoreOutcomeUnknown as error:
                    sent.unknown = error
                    continue  # what is there then says whether it was carried out
                if done.succeeded:
                    sent.made = f"move of VM {vm!r}"
                    await self._seen_ahead(found, there, done.revision)
                    return
                await self._store.revoke(lease.id)
        raise _too_many(vm)

    async def _seen_ahead(self, found: Found, there: _There, revision: int) -> None:
        """Wait until the new host has looked. Raises what it found; then nothing is left of the move."""
        have = await self._reader.when_seen(_at(found, there), revision, f"move of VM {found.vm!r}")
        if have.problem is not None:
            await self._abort(found.tenant, found.vm, there.host)
            raise problem_in(have.problem)

    async def commit(self, who: Caller, vm: str, to: str, *, take: bool, made_sure: bool) -> Found:
        """Give a VM over to the host where it was prepared; return it, and wait until that serves it.

        Of a host that is not heard of it is taken with `take` alone: one that is fenced when its time there is over;
        any other if somebody made sure. Raises `OutcomeUnknown` when the old host has not let go of it in time: again,
        it goes on from there.
        """
        made_sure = made_sure and take
        with Sent() as sent:
            for _ in range(_TRIES):
                found = await self._movable(who, vm)
                if take and not made_sure and not _is_fenced(found):
                    msg = (
                        "take: the host may serve on, and so may its VM: end both, and say that you made sure "
                        "(--i-made-sure)"
                    )
                    raise InvalidOptions(msg)
                if found.host == to:
                    return await self._served(who, found, sent, made_sure=made_sure)
                there, *_ = await self._there(found, to)
                if found.name.moving != to or there.want_at is None:
                    msg = f"VM {vm!r} was not prepared for host {to}, or longer ago than 10 min: prepare it"
                    raise InvalidState(msg)
                if found.lives and take:
                    msg = f"host {found.host} lives, and lets go of VM {vm!r} by itself: move it without --take"
                    raise InvalidState(msg)
                if not found.lives and not take:
                    raise InvalidState(_lost(found))
                await self.mark_leases(found, to)
                new = msgspec.structs.replace(
                    found.want,
                    epoch=found.want.epoch + 1,
                    names=names_of(found),
                    after="" if made_sure else found.host,
                    also=() if made_sure else tuple(each for each in hosts_before(found.want) if each != to),
                    hold=_is_fenced(found) and not made_sure,
                )
                name = msgspec.structs.replace(found.name, host=to, epoch=new.epoch, moving=None)
                compare = [unchanged(found.name_at), unchanged(found.want_at), unchanged(there.want_at)]
                changes: list[Any] = [
                    Put(found.name_at.key, encode(name, found.name_at.value)),
                    Delete(found.want_at.key),
                    Put(there.want_at.key, encode(new, found.want_at.value)),
                ]
                await self._reader.count_taken(found, compare, changes)
                try:
                    if (await self._store.txn(compare, changes)).succeeded:
                        sent.made = f"move of VM {vm!r}"
                except StoreOutcomeUnknown as error:
                    sent.unknown = error
        raise _too_many(vm)

    async def _served(self, who: Caller, found: Found, sent: Sent, *, made_sure: bool) -> Found:
        """See that the old host has let go, have the new one serve, and wait until it does."""
        for _ in range(_TRIES):
            if found.want.after:
                if not made_sure:
                    await self._reader.when_let_go(found, hosts_before(found.want), f"move of VM {found.vm!r}")
                new = msgspec.structs.replace(found.want, after="", also=(), hold=False)
                put = Put(found.want_at.key, encode(new, found.want_at.value))
                try:
                    if (await self._store.txn([unchanged(found.want_at)], [put])).succeeded:
                        sent.made = f"move of VM {found.vm!r}"
                except StoreOutcomeUnknown as error:
                    sent.unknown = error  # it is read again
            else:
                have = await self._reader.when_seen(found, found.want_at.mod_revision, f"VM {found.vm!r}")
                if have.problem is not None:
                    raise problem_in(have.problem)
                return dataclasses.replace(found, have=have)
            found = await self._reader.vm(who, who.shown(found.tenant, found.vm), "own")
        raise _too_many(found.vm)

    async def abort(self, who: Caller, vm: str) -> Found:
        """Leave a VM where it is, and nothing of the move; return it. One that does not move is no error."""
        found = await self._reader.vm(who, vm, "own")
        with Sent() as sent:
            if found.name.moving is not None:
                await self._abort(found.tenant, found.vm, found.name.moving)
                sent.made = f"move of VM {vm!r}"
            return await self._reader.vm(who, vm, "own")

    async def _abort(self, tenant: str, vm: str, to: str) -> None:
        with Sent() as sent:
            for _ in range(_TRIES):
                keys = [self._keys.name(tenant, vm), self._keys.want(to, tenant, vm)]
                name_at, want_at = await self._reader.get_all(keys)
                name = None if name_at is None else self._reader.name(name_at)
                if name_at is None or name is None or name.moving != to:
                    return
                new = msgspec.structs.replace(name, moving=None)
                changes: list[Any] = [Put(name_at.key, encode(new, name_at.value))]
                compare = [unchanged(name_at)]
                if want_at is not None and decode(Want, want_at.value, want_at.key).prepare:
                    compare.append(unchanged(want_at))
                    changes.append(Delete(want_at.key))
                try:
                    if (await self._store.txn(compare, changes)).succeeded:
                        return
                except StoreOutcomeUnknown as error:
                    sent.unknown = error
        raise _too_many(vm)

    async def _movable(self, who: Caller, vm: str) -> Found:
        found = await self._reader.vm(who, vm, "own")
        if found.want.joined:
            msg = f"VM {vm!r} is host {found.host}'s own, and does not move: have it leave the fleet (vm leave)"
            raise InvalidState(msg)
        return found

    async def _there(self, found: Found, to: str) -> tuple[_There, KeyValue | None, KeyValue | None, KeyValue | None]:
        """Return what there is of a VM at the host to which it is to move; and of an earlier move, if there is any."""
        tenant, vm = found.tenant, found.vm
        keys = [self._keys.want(to, tenant, vm), self._keys.have(to, tenant, vm), self._keys.registered(to)]
        keys += [self._keys.alive(to), self._keys.want(found.name.moving or to, tenant, vm)]
        want_at, have_at, registered_at, alive, other_at = await self._reader.get_all(keys)
        return _There(to, want_at, alive is not None), have_at, registered_at, other_at

    async def mark_leases(self, found: Found, to: str) -> None:
        """Have another host see the leases of a VM's owners: those that live, as its own host sees them."""
        prefix = self._keys.host(found.host) + f"owner/{found.tenant}/"
        for each in await self._reader.list_all(prefix):
            at = self._keys.read_host(found.host, each.key)
            if at is not None and at.kind == "owner" and self._is_used(found, at.name, at.lease):
                marker = self._keys.marker(to, found.tenant, at.name, at.lease)
                # One that has ended meanwhile is gone there too; then nothing hangs on it.
                await self._store.txn([present(each.key)], [Put(marker, b"", id_of(at.lease))])

    def _is_used(self, found: Found, owner: str, lease: str) -> bool:
        return any((each.owner, each.lease) == (owner, lease) for each in found.want.holdings.values())


def _is_fenced(found: Found) -> bool:
    return length_of(found.want) is not None


def _lost(found: Found) -> str:
    length = length_of(found.want)
    if length is not None:
        return (
            f"host {found.host} is not heard of, and serves VM {found.vm!r} for {length:g} s more at "
            "most: take the VM from it (vm move --take)"
        )
    return (
        f"host {found.host} is not heard of, and may serve VM {found.vm!r} on: bring it back; or end it and take the "
        "VM from it (vm move --take --i-made-sure)"
    )


def hosts_before(want: Want) -> tuple[str, ...]:
    """Return the hosts that may not have let go of a VM yet."""
    return (*want.also, *((want.after,) if want.after else ()))


def names_of(found: Found) -> int:
    """Return the least number that no share of a VM was called; 1 or more."""
    told = [each.share for each in found.want.holdings.values() if each.share is not None]
    if found.have is not None:
        told += [each["name"] for each in found.have.shares]
    least = max((int(name) + 1 for name in told if name.isascii() and name.isdigit()), default=0)
    return max(least, found.want.names, 1, 0 if found.have is None else found.have.names)


def _at(found: Found, there: _There) -> Found:
    return dataclasses.replace(found, name=msgspec.structs.replace(found.name, host=there.host), lives=there.lives)


def _too_many(vm: str) -> InvalidState:
    return InvalidState(f"VM {vm!r} is changed by many others at once: ask again")
