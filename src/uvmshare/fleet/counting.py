"""How many shares and mounts a tenant has in all their VMs, as one gate last saw it.

What lives here: `Counting`. What must not: the exact quotas, which are in the transactions themselves: of VMs (`gate`),
and of what one VM has (`wanting`).

Nothing in etcd counts this, or every add of a tenant would change one key. So gates count by themselves, every few
seconds, and together they may let as many more in as are asked for meanwhile.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, NamedTuple

from uvmshare.errors import LimitReached
from uvmshare.fleet.documents import Name, Want, decode

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fleet.documents import Tenant
    from uvmshare.fleet.reading import Reader

__all__ = ["Counting"]

_SECONDS: Final = 3.0
"""For which a count is good."""


class _Count(NamedTuple):
    when: float
    number: int


class Counting:
    """Counts of one gate, by tenant."""

    def __init__(self, reader: Reader, clock: Callable[[], float] = time.monotonic) -> None:
        self._reader = reader
        self._clock = clock
        self._counts: dict[str, _Count] = {}

    async def require_room(self, tenant: str, rights: Tenant) -> None:
        """Refuse one more for a tenant who has as many as they may have. Raises `LimitReached`."""
        most = rights.holdings_in_all
        if most is None:
            return
        count = self._counts.get(tenant)
        if count is None or self._clock() - count.when > _SECONDS:
            count = self._counts[tenant] = _Count(self._clock(), await self._count(tenant))
        if count.number >= most:
            msg = (
                f"tenant {tenant} has {count.number} shares and mounts in all their VMs, and may have {most}: release "
                "what is not needed (uvmshare share rm), or have an administrator of the fleet raise it"
            )
            raise LimitReached(msg)
        self._counts[tenant] = count._replace(number=count.number + 1)

    async def _count(self, tenant: str) -> int:
        keys = self._reader.keys
        names = await self._reader.list_all(keys.names(tenant))
        at = [keys.want(decode(Name, each.value, each.key).host, *keys.vm_of_name(each.key)) for each in names]
        found = await self._reader.get_all(at)
        return sum(len(decode(Want, each.value, each.key).holdings) for each in found if each is not None)
