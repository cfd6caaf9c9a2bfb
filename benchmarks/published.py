"""The published algorithm, as plainly as it can be written down: what the Manager is measured against.

What lives here: the description's three methods, for one event loop. What must not: anything that it does not say:
no owners, no cancellation, no unknown outcomes.

Every request for a share scans all of them for one with equal options. The same lock is held from there to
the answer of the VM, so that a second caller with the same options finds the first one's share.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uvmshare.share.interfaces import NamedShare
from uvmshare.share.state import ShareState

if TYPE_CHECKING:
    from uvmshare.share.interfaces import VMPlan9
    from uvmshare.share.options import AddOptions

__all__ = ["Manager", "Share"]


@dataclass(slots=True)
class Share:
    """One entry of the map."""

    name: str
    options: AddOptions
    state: ShareState = ShareState.PENDING
    references: int = 0


class Manager:
    """Deduplicates and counts references, by a scan of the map."""

    def __init__(self, vm: VMPlan9) -> None:
        self._vm = vm
        self._lock = asyncio.Lock()
        self.shares: dict[str, Share] = {}
        self.next_name = 0

    def _find_or_allocate(self, options: AddOptions) -> Share:
        for share in self.shares.values():
            if share.options == options:
                return share
        share = Share(str(self.next_name), options)
        self.next_name += 1
        self.shares[share.name] = share
        return share

    async def add(self, options: AddOptions) -> str:
        """Add the share, or count one more reference to it."""
        async with self._lock:
            share = self._find_or_allocate(options)
            if share.state is ShareState.PENDING:
                try:
                    await self._vm.add_plan9(NamedShare(share.name, share.options))
                except Exception:
                    share.state = ShareState.INVALID
                    del self.shares[share.name]
                    raise
                share.state = ShareState.ADDED
            share.references += 1
            return share.name

    async def remove(self, name: str) -> None:
        """Take one reference away; the last one takes the share off the VM."""
        async with self._lock:
            share = self.shares.get(name)
            if share is None:
                return
            share.references -= 1
            if share.references > 0:
                return
            await self._vm.remove_plan9(NamedShare(share.name, share.options))
            share.state = ShareState.REMOVED
            del self.shares[name]
