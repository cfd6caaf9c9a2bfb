"""How a gate has a VM be wanted no more: compare and set, until it succeeds.

What lives here: `Removing`. What must not: whether it may be removed (`gate`), or what its host does then (`follower`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from uvmshare.errors import InvalidState, NotThere, StoreOutcomeUnknown
from uvmshare.etcd.protocol import Delete, Put, unchanged
from uvmshare.fleet.sending import Sent

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fleet.callers import Caller
    from uvmshare.fleet.reading import Found, Reader

__all__ = ["Removing"]

_TRIES: Final = 100


class Removing:
    """The removals of one fleet's VMs."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._store = reader.store
        self._keys = reader.keys

    async def want_gone(self, who: Caller, vm: str, check: Callable[[Found], None]) -> Found:
        """Write that a VM is wanted no more, unless `check` raises; return what it was."""
        last: Found | None = None
        with Sent() as sent:
            for _ in range(_TRIES):
                try:
                    found = await self._reader.vm(who, vm, "own")
                except NotThere:
                    if last is not None:  # what was sent last was carried out
                        return last
                    raise
                check(found)
                try:
                    if await self.remove(found):
                        return found
                except StoreOutcomeUnknown as error:
                    last, sent.unknown = found, error
        msg = f"VM {vm!r} is changed by many others at once: ask again"
        raise InvalidState(msg)

    async def remove(self, found: Found) -> bool:
        """Write that a VM is wanted no more, if nothing of it has changed; say whether it is written."""
        count_at = (await self._store.get(self._keys.count(found.tenant))).found
        changes: list[Any] = [Delete(found.name_at.key), Delete(found.want_at.key)]
        compare = [unchanged(found.name_at), unchanged(found.want_at)]
        if count_at is not None:
            compare.append(unchanged(count_at))
            changes.append(Put(count_at.key, str(max(0, int(count_at.value) - 1)).encode()))
        await self._reader.count_taken(found, compare, changes)
        return (await self._store.txn(compare, changes)).succeeded

    async def take_back(self, found: Found) -> None:
        """Want a VM no more that its host could not add."""
        with Sent() as sent:
            sent.made = f"VM {found.vm!r}"  # it is wanted yet
            for _ in range(_TRIES):
                with suppress(StoreOutcomeUnknown):
                    if await self.remove(found):
                        return
                at = (await self._store.get(found.want_at.key)).found
                if at is None or at.mod_revision != found.want_at.mod_revision:
                    return  # somebody else has asked for something there, or has taken it back
