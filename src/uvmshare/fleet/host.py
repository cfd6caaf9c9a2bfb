"""A daemon that follows a fleet: what `uvmshare daemon --fleet FILE` does in addition.

What lives here: `FleetSide`, which runs a follower beside a daemon, and answers on its socket how that stands. What
must not: what a follower does (`follower`).
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import structlog
from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from uvmshare.daemon.app import FAILURES, VmName
from uvmshare.daemon.fleet_documents import Following, Joined, NewOffer, Served
from uvmshare.daemon.identity import Identity
from uvmshare.errors import InvalidState, OperationDenied
from uvmshare.fleet.connecting import connecting
from uvmshare.fleet.follower import Follower
from uvmshare.fleet.hostfile import read_host_file
from uvmshare.fleet.keys import Keys
from uvmshare.fleet.local import OfService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from uvmshare.daemon.service import Service
    from uvmshare.daemon.store import DaemonStore
    from uvmshare.etcd.protocol import Store

__all__ = ["FleetSide"]

Who = NamedDependency[Identity]


class FleetSide:
    """What a daemon has more that follows a fleet. Raises `DaemonError` for a file that cannot be used.

    `connect` is for tests: it opens another store than the file's.
    """

    def __init__(self, path: str, connect: Callable[[], AbstractAsyncContextManager[Store]] | None = None) -> None:
        self._file = read_host_file(path)
        self._connect = connect or connecting(self._file.ends)
        self._follower: Follower | None = None
        self._local: OfService | None = None

    @asynccontextmanager
    async def running(self, service: Service, store: DaemonStore) -> AsyncIterator[None]:
        """Follow the fleet for the length of the block."""
        local = OfService(service, self._file.host, self._file.tenants)
        self._local = local
        follower = self._follower = Follower(
            self._connect,
            Keys(self._file.ends.fleet),
            self._file.host,
            local,
            store,
        )
        task = asyncio.get_running_loop().create_task(follower.run())
        task.add_done_callback(_note_defect)
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task

    def routes(self) -> list[Any]:
        """Return what is answered on the daemon's socket beside its own."""

        @get("/v1/fleet", summary="The fleet", responses=FAILURES)
        async def get_fleet(*, who: Who) -> Following:
            """Tell which fleet this host follows, and whether it does."""
            del who
            return self._document()

        @post("/v1/fleet/accept", summary="Accept the fleet", status_code=200, responses=FAILURES)
        async def accept(*, who: Who) -> Following:
            """Follow the etcd that is there now, although it is another one or an older state. For root."""
            if not who.is_root:
                msg = "only root accepts another etcd for this host"
                raise OperationDenied(msg)
            if self._follower is None or not self._follower.accept():
                msg = "nothing waits to be accepted: this host follows its fleet, or does not reach it"
                raise InvalidState(msg)
            return self._document()

        @post("/v1/fleet/vms/{vm:str}/offer", summary="Offer a VM", status_code=200, responses=FAILURES)
        async def offer(*, who: Who, vm: VmName, data: JSONBody[NewOffer]) -> Joined:
            """Let a tenant of the fleet take on a VM of yours; the answer is what a gate needs for that."""
            assert self._local is not None, "requests are answered while it runs"
            return await self._local.joining.offer(who, vm, data.tenant)

        @get("/v1/fleet/served", summary="What the fleet has here", responses=FAILURES)
        async def get_served(*, who: Who) -> list[Served]:
            """Tell which VMs of the fleet this host serves, and who holds what of them. For root."""
            if not who.is_root:
                msg = "only root is told what all tenants of the fleet have on this host"
                raise OperationDenied(msg)
            local, follower = self._local, self._follower
            assert local is not None, "requests are answered while it runs"
            assert follower is not None, "as above"
            return [await local.served(vm, follower.last_wanted(vm)) for vm in local.vms()]

        return [get_fleet, accept, offer, get_served]

    def _document(self) -> Following:
        follower = self._follower
        return Following(
            host=self._file.host,
            fleet=self._file.ends.fleet,
            tenants=tuple(sorted(self._file.tenants)),
            revision=None if follower is None or not follower.revision else follower.revision,
            error=None if follower is None else follower.held_back or follower.error,
            held_back=follower is not None and follower.held_back is not None,
        )


def _note_defect(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        structlog.get_logger("uvmshare.fleet").error("defect", exc_info=error)
