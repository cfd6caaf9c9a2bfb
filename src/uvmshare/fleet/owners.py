"""The leases of owners who promised to renew: leases of etcd, one for each owner and length.

What lives here: `Owners`: how one is found or granted, renewed and ended. What must not: what hangs on it (`wanting`).

Renewing writes nothing. When an owner renews no more, etcd deletes their key and their marker on every host where
they hold something, in one revision.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from uvmshare.errors import LeaseNotFound, NotThere
from uvmshare.etcd.protocol import Put, absent, unchanged
from uvmshare.fleet.documents import Lease, decode, encode

if TYPE_CHECKING:
    from uvmshare.fleet.reading import Reader

__all__ = ["Owners", "id_of", "text_of"]


def text_of(lease: int) -> str:
    """Return a lease as it is written in keys and documents."""
    return f"{lease:x}"


def id_of(lease: str) -> int:
    """Return a lease as etcd knows it."""
    return int(lease, 16)


class Owners:
    """The leases of one fleet's owners."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._store = reader.store
        self._keys = reader.keys

    async def lease(self, tenant: str, owner: str, seconds: float) -> str:
        """Return the lease of an owner for so many seconds, which runs afresh, or is granted now."""
        key = self._keys.owner(tenant, owner, seconds)
        while True:
            at = (await self._store.get(key)).found
            if at is not None:
                found = decode(Lease, at.value, at.key)
                try:
                    await self._store.keep_alive(id_of(found.lease))
                except LeaseNotFound:
                    pass
                else:
                    return found.lease
            granted = await self._store.grant(max(1, math.ceil(seconds)))
            new = Lease(lease=text_of(granted.id), seconds=seconds)
            compare = absent(key) if at is None else unchanged(at)
            done = await self._store.txn([compare], [Put(key, encode(new), granted.id)])
            if done.succeeded:
                return new.lease
            await self._store.revoke(granted.id)  # another gate was asked at the same moment

    async def of(self, tenant: str, owner: str) -> list[Lease]:
        """Return every lease of an owner."""
        found = await self._reader.list_all(self._keys.owners(tenant, owner))
        return [decode(Lease, each.value, each.key) for each in found]

    async def renew(self, owner: str, leases: list[Lease]) -> int:
        """Let leases run afresh; return how many lived. Raises `NotThere` for none."""
        outcomes = await asyncio.gather(
            *(self._store.keep_alive(id_of(each.lease)) for each in leases), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, LeaseNotFound):
                raise outcome
        renewed = sum(not isinstance(each, BaseException) for each in outcomes)
        if not renewed:
            msg = f"owner {owner!r} has no lease there: it may have ended; ask for what it was on again"
            raise NotThere(msg)
        return renewed

    async def end(self, leases: list[Lease]) -> None:
        """End leases, and whatever hangs on them."""
        for each in leases:
            await self._store.revoke(id_of(each.lease))
