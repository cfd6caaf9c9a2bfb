"""What a gate reads of one VM: its name, what its host should have, what the host has, and whether the host is alive.

What lives here: `Found`, how it is read, and how a gate waits until the host has seen what is wanted. What must not:
a change (`wanting`), or how it is shown (`answers`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.errors import InvalidState, OutcomeUnknown, RevisionCompacted, StoreError, WatchEnded
from uvmshare.etcd.listing import listed
from uvmshare.etcd.protocol import Get, Put, absent, unchanged
from uvmshare.fleet.callers import no_vm
from uvmshare.fleet.documents import Have, Name, Tenant, Want, decode
from uvmshare.fleet.fence import MARGIN, length_of
from uvmshare.fleet.together import together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from uvmshare.etcd.protocol import Compare, KeyValue, Store
    from uvmshare.fleet.callers import Caller, Role
    from uvmshare.fleet.keys import Keys

__all__ = ["ANSWER_SECONDS", "LOST_SECONDS", "Found", "Reader", "is_seen"]

ANSWER_SECONDS: Final = 60.0
"""For a host to bring about what is wanted; a guest's agent may take half of it."""
LOST_SECONDS: Final = 2.0
"""For a host that does not live, as far as etcd knows: it may have come back just now."""
_READ_AGAIN: Final = 16
"""Times that a VM is read again that moves between two hosts meanwhile."""
_AT_ONCE: Final = 100
"""Keys that are read in one transaction."""


@dataclass(frozen=True, slots=True)
class Found:
    """One VM as it was read."""

    tenant: str
    vm: str
    rights: Tenant
    """What the tenant may have."""
    name_at: KeyValue
    name: Name
    want_at: KeyValue
    want: Want
    have: Have | None
    have_at: KeyValue | None
    lives: bool
    """Whether its host lives."""

    @property
    def host(self) -> str:
        """The host that has it."""
        return self.name.host

    @property
    def is_seen(self) -> bool:
        """Whether its host has brought about what is wanted."""
        return is_seen(self.have_at, self.have, self.want_at.mod_revision)


def is_seen(at: KeyValue | None, have: Have | None, revision: int, ids: Sequence[str] = ()) -> bool:
    """Whether a host has seen what is wanted at a revision, or has written that itself when it struck something out.

    And is done with the holdings of these numbers.
    """
    if at is None or have is None or not set(have.pending).isdisjoint(ids):
        return False
    return have.seen >= revision or at.mod_revision == revision


class Reader:
    """Reads of one fleet."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self.store = store
        self.keys = keys

    async def get_all(self, keys: Sequence[str]) -> list[KeyValue | None]:
        """Return what is at each of some keys."""
        found: list[KeyValue | None] = []
        for at in range(0, len(keys), _AT_ONCE):
            found += (await self.store.txn([], [Get(key) for key in keys[at : at + _AT_ONCE]])).found
        return found

    async def list_all(self, prefix: str) -> list[KeyValue]:
        """Return everything below a prefix, at one revision."""
        return list((await listed(self.store, prefix)).found)

    async def tenant(self, tenant: str) -> Tenant | None:
        """Return what a tenant may have; None for one that the fleet does not know."""
        at = (await self.store.get(self.keys.tenant(tenant))).found
        return None if at is None else decode(Tenant, at.value, at.key)

    async def vm(self, who: Caller, vm: str, role: Role) -> Found:
        """Return a VM by the name that `who` has for it. Raises `NotThere`, and `OperationDenied` without the role.

        To hold or release something, its host must follow this etcd: `InvalidState`.
        """
        tenant, name = who.find(vm)
        for _ in range(_READ_AGAIN):
            name_at, tenant_at = await self.get_all([self.keys.name(tenant, name), self.keys.tenant(tenant)])
            if tenant_at is None or name_at is None:
                raise no_vm(vm)
            rights = decode(Tenant, tenant_at.value, tenant_at.key)
            who.require(role, rights)
            found = await self._at_host(tenant, name, rights, name_at)
            if found is not None:
                if role == "hold" and not await self._is_of_this_etcd(found.have):
                    msg = (
                        f"VM {vm!r}: etcd was restored, and host {found.host} does not follow it yet: accept it there "
                        "(uvmshare host accept), and ask again"
                    )
                    raise InvalidState(msg)
                return found
        msg = f"VM {vm!r} moves between hosts: ask again later"
        raise InvalidState(msg)

    async def _at_host(self, tenant: str, vm: str, rights: Tenant, name_at: KeyValue) -> Found | None:
        name = decode(Name, name_at.value, name_at.key)
        host = name.host
        want_at, have_at, alive = await self.get_all(
            [self.keys.want(host, tenant, vm), self.keys.have(host, tenant, vm), self.keys.alive(host)]
        )
        if want_at is None:
            return None
        have = None if have_at is None else decode(Have, have_at.value, have_at.key)
        want = decode(Want, want_at.value, want_at.key)
        return Found(tenant, vm, rights, name_at, name, want_at, want, have, have_at, alive is not None)

    async def _is_of_this_etcd(self, have: Have | None) -> bool:
        """Whether a host has written what it has into this etcd, and not into one of which this is a backup."""
        return have is None or have.cluster in {"", f"{await self.store.cluster_id():x}"}

    def name(self, at: KeyValue) -> Name:
        """Return what a name says."""
        return decode(Name, at.value, at.key)

    async def count_taken(self, found: Found, compare: list[Compare], changes: list[Any]) -> None:
        """Have a transaction that takes a VM from its host count that, where the VM is fenced."""
        if length_of(found.want) is None:
            return
        key = self.keys.term(found.host)
        at = (await self.store.get(key)).found
        compare.append(absent(key) if at is None else unchanged(at))
        changes.append(Put(key, str((0 if at is None else int(at.value)) + 1).encode()))

    # Waiting

    async def when_seen(self, found: Found, revision: int, words: str, ids: Sequence[str] = ()) -> Have:
        """Return what the VM's host has once it has seen what is wanted at a revision. Raises `OutcomeUnknown`.

        `ids` are the numbers of holdings that must not be under way any more.
        """
        key = self.keys.have(found.host, found.tenant, found.vm)
        async with self._in_time(found, words):
            while True:
                reading = await self.store.get(key)
                at = reading.found
                have = None if at is None else decode(Have, at.value, at.key)
                if have is not None and is_seen(at, have, revision, ids) and await self._is_of_this_etcd(have):
                    return have
                await self._next_change(key, reading.revision + 1)
        raise AssertionError  # the block raises, or returns

    async def when_gone(self, found: Found, words: str) -> None:
        """Wait until the VM's host has nothing of it any more. Raises `OutcomeUnknown`."""
        key = self.keys.have(found.host, found.tenant, found.vm)
        async with self._in_time(found, words):
            while True:
                reading = await self.store.get(key)
                if reading.found is None:
                    return
                await self._next_change(key, reading.revision + 1)

    async def when_let_go(self, found: Found, hosts: Sequence[str], words: str) -> None:
        """Wait until none of some hosts has anything of a VM, or its own host waits for them no more.

        Raises `OutcomeUnknown`.
        """
        haves = [self.keys.have(host, found.tenant, found.vm) for host in hosts]
        alive = await self.get_all([self.keys.alive(host) for host in hosts])
        seconds = ANSWER_SECONDS if all(each is not None for each in alive) else LOST_SECONDS
        if found.want.hold:
            length = length_of(found.want)
            assert length is not None, "only fenced VMs are held back"
            seconds = length + MARGIN + ANSWER_SECONDS
        name = msgspec.structs.replace(found.name, host=hosts[-1])
        async with _InTime(seconds, replace(found, name=name, lives=alive[-1] is not None), words):
            while True:
                revision = (await self.store.get(found.want_at.key)).revision
                want_at, *left = await self.get_all([found.want_at.key, *haves])
                changed = want_at is None or want_at.mod_revision != found.want_at.mod_revision
                if changed or not any(each is not None for each in left):
                    return
                await self._next_change_of([found.want_at.key, *haves], revision + 1)

    async def _next_change_of(self, keys: Sequence[str], revision: int) -> None:
        """Wait until one of some keys has changed, or may have."""
        async with together(*(self._next_change(key, revision) for key in keys)) as first_end:
            await first_end()

    def _in_time(self, found: Found, words: str) -> _InTime:
        return _InTime(ANSWER_SECONDS if found.lives else LOST_SECONDS, found, words)

    async def _next_change(self, key: str, revision: int) -> None:
        """Wait until a key has changed, or may have."""
        with suppress(WatchEnded, RevisionCompacted):
            async with self.store.watch(key, revision) as changes:
                async for each in changes:
                    if any(event.at.key == key for event in each.events):
                        return


class _InTime:
    """A block that ends in time, or is of unknown outcome."""

    def __init__(self, seconds: float, found: Found, words: str) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._seconds = seconds
        self._found = found
        self._words = words

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        try:
            await self._timeout.__aexit__(kind, error, traceback)  # type: ignore[arg-type]  # what it was given
        except TimeoutError:
            if not self._timeout.expired():
                raise
            lost = "" if self._found.lives else ", which does not live as far as etcd knows"
            msg = (
                f"{self._words}: host {self._found.host}{lost} has not answered within {self._seconds:g} s; "
                "it stands as wanted, and happens when the host is back"
            )
            raise OutcomeUnknown(msg) from None
        if isinstance(error, StoreError) and not isinstance(error, OutcomeUnknown):
            host = self._found.host
            msg = f"{self._words}: it was asked of host {host}, and etcd does not say what came of it: {error}"
            raise OutcomeUnknown(msg) from error
