"""Renewals of leases: one stream for all leases of a client, rather than one for each renewal.

What lives here: the stream, and who waits for which answer. What must not: when to renew, and what ends with a lease.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from typing import TYPE_CHECKING

import grpc

from uvmshare.errors import StoreUnavailable, UvmshareError
from uvmshare.etcd.failures import understood
from uvmshare.etcd.messages import LeaseKeepAliveRequest, LeaseKeepAliveResponse
from uvmshare.etcd.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.etcd.members import Member

__all__ = ["Renewals"]


class Renewals:
    """The renewals of one client at one member; `over` when the stream has ended."""

    def __init__(self, member: Member, look: Callable[[LeaseKeepAliveResponse], None]) -> None:
        self.member = member
        self.over = False
        self._look = look
        self._waiting: defaultdict[int, deque[asyncio.Future[int]]] = defaultdict(deque)
        self._to_send: asyncio.Queue[int] = asyncio.Queue()
        self._call = member.channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=encode,
            response_deserializer=lambda data: decode(LeaseKeepAliveResponse, data),
        )(metadata=(("hasleader", "true"),))
        self._tasks = (asyncio.create_task(self._read()), asyncio.create_task(self._write()))

    async def renew(self, lease: int) -> int:
        """Renew a lease; return the seconds that it has, 0 when it is not there. Raises `StoreError`."""
        if self.over:
            raise self._cut()
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[lease].append(answer)
        self._to_send.put_nowait(lease)
        return await answer

    def _cut(self) -> StoreUnavailable:
        return StoreUnavailable(f"the stream of renewals to etcd at {self.member.target} was cut off")

    # A task of its own writes, since one message at a time is what gRPC takes, and a write that is cancelled ends the
    # stream for all.
    async def _write(self) -> None:
        try:
            while True:
                await self._call.write(LeaseKeepAliveRequest(await self._to_send.get()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # whoever reads says why

    async def _read(self) -> None:
        failed: UvmshareError = self._cut()
        try:
            while isinstance(answer := await self._call.read(), LeaseKeepAliveResponse):
                self._look(answer)
                # An answer says which lease it is of, and answers to one lease come in the order of its requests.
                waiting = self._waiting[answer.id].popleft()
                if not self._waiting[answer.id]:
                    del self._waiting[answer.id]
                if not waiting.done():
                    waiting.set_result(answer.ttl)
        except grpc.aio.AioRpcError as error:
            failed, _ = understood(error, self.member.target, changes=False)
        except UvmshareError as error:
            failed = error
        finally:
            self._end(failed)

    def _end(self, failed: UvmshareError) -> None:
        self.over = True
        for each in (each for waiting in self._waiting.values() for each in waiting):
            if not each.done():
                each.set_exception(failed)
        self._waiting.clear()

    async def end(self) -> None:
        """Let go of the stream."""
        for task in self._tasks:
            task.cancel()
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
