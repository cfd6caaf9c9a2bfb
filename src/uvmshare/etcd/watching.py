"""One watch: a stream of its own, from the request to the last event.

What lives here: what is told, in order and once, and how it is known that a watch is alive. What must not: which member
is asked; and taking a watch up again, which nobody can do who does not list.

**A deletion at the revision of a compaction is gone** in versions before 3.4.36 and 3.5.18 (etcd#19179), and a watch
from just there would skip it in silence. So a watch whose revision may be in the past begins one revision earlier,
which etcd refuses where that is compacted, and what is too early is not told.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import grpc

from uvmshare.errors import RevisionCompacted, StoreError, WatchEnded
from uvmshare.etcd.failures import refusal
from uvmshare.etcd.messages import (
    DELETED,
    WatchCancelRequest,
    WatchCreateRequest,
    WatchProgressRequest,
    WatchRequest,
    WatchResponse,
)
from uvmshare.etcd.protocol import Changes, Event, KeyValue
from uvmshare.etcd.translation import key_value, prefix_range
from uvmshare.etcd.wire import decode, encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from uvmshare.errors import UvmshareError
    from uvmshare.etcd.members import Member
    from uvmshare.etcd.messages import EventMessage

__all__ = ["PROGRESS", "SILENCE", "Watch"]

PROGRESS: Final = 5.0
"""Every how many seconds etcd is asked how far a watch is."""

SILENCE: Final = 15.0
"""After how many seconds without a word a watch has ended."""

_WAITING: Final = 1000
"""Messages that wait for a slow reader; then etcd is not read any more, and keeps the rest itself."""


class Watch:
    """One watch of one member. Make it, `begin` it, read `changes`, and `end` it."""

    def __init__(
        self, member: Member, prefix: str, revision: int, look: Callable[[WatchResponse], None], *, progress: float
    ) -> None:
        self._member = member
        self._key, self._range_end = prefix_range(prefix)
        self._first = revision
        self._told = revision - 1
        self._look = look
        self._progress = progress
        self._id = 0
        self._waiting: asyncio.Queue[Changes | UvmshareError] = asyncio.Queue(_WAITING)
        self._heard = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        # Without a leader a member has nothing to tell, and with this it says so instead of being silent.
        self._call = member.channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=encode,
            response_deserializer=lambda data: decode(WatchResponse, data),
        )(metadata=(("hasleader", "true"),))

    async def begin(self, seen: int) -> None:
        """Have etcd take the watch; `seen` is the newest revision that is known. Raises what a watch may raise."""
        try:
            await self._begin(seen)
        except grpc.aio.AioRpcError as error:
            raise self._failed(error) from error
        self._heard = asyncio.get_running_loop().time()
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._ask())]

    async def _begin(self, seen: int) -> None:
        start = self._first if self._first > seen else max(1, self._first - 1)
        answer = await self._create(start)
        if start == self._first and answer.header.revision >= self._first > 1:  # it is in the past by now
            await self._call.write(WatchRequest(cancel_request=WatchCancelRequest(self._id)))
            await self._create(self._first - 1)

    async def _create(self, start: int) -> WatchResponse:
        self._id += 1
        create = WatchCreateRequest(self._key, self._range_end, start, self._id)
        await self._call.write(WatchRequest(create_request=create))
        while True:
            answer = await self._call.read()
            if not isinstance(answer, WatchResponse):
                raise WatchEnded(self._ended)
            self._look(answer)
            if answer.canceled and (answer.created or answer.watch_id == self._id):
                raise self._cancelled(answer)
            if answer.created and answer.watch_id == self._id:
                return answer

    @property
    def _ended(self) -> str:
        return f"the watch of etcd at {self._member.target} was cut off: list, and watch from there"

    def _failed(self, error: grpc.aio.AioRpcError) -> UvmshareError:
        words = error.details() or ""
        return refusal(words) or WatchEnded(f"{self._ended} ({words})")

    def _cancelled(self, answer: WatchResponse) -> UvmshareError:
        if answer.compact_revision:
            msg = f"revision {self._told + 1} is gone: everything up to {answer.compact_revision} was compacted"
            return RevisionCompacted(msg)
        return refusal(answer.cancel_reason) or WatchEnded(f"{self._ended} ({answer.cancel_reason})")

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while isinstance(answer := await self._call.read(), WatchResponse):
                self._look(answer)
                if answer.watch_id not in (self._id, -1):
                    continue
                if answer.canceled:
                    await self._waiting.put(self._cancelled(answer))
                    return
                self._heard = loop.time()
                await self._waiting.put(self._changes(answer))
            await self._waiting.put(WatchEnded(self._ended))
        except grpc.aio.AioRpcError as error:
            await self._waiting.put(self._failed(error))
        except StoreError as error:
            await self._waiting.put(error)

    def _changes(self, answer: WatchResponse) -> Changes:
        events = tuple(_event(each) for each in answer.events if each.kv.mod_revision > self._told)
        if events:
            self._told = events[-1].at.mod_revision
        elif self._believed and not answer.events:
            self._told = max(self._told, answer.header.revision)
        return Changes(self._told, events)

    @property
    def _believed(self) -> bool:
        return self._member.judged is not None and self._member.judged.progress

    async def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while loop.time() - self._heard < SILENCE / PROGRESS * self._progress:
                await asyncio.sleep(self._progress)
                if self._waiting.full():  # nothing is heard because nothing is read
                    self._heard = loop.time()
                await self._call.write(WatchRequest(progress_request=WatchProgressRequest()))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # whoever reads says why
        self.stop(WatchEnded(f"nothing was heard of a watch of etcd at {self._member.target}: list again"))

    def stop(self, error: StoreError) -> None:
        """End it at once: what was read and not told is not told any more."""
        for task in self._tasks:
            task.cancel()
        while not self._waiting.empty():
            self._waiting.get_nowait()
        self._waiting.put_nowait(error)

    async def changes(self) -> AsyncGenerator[Changes, None]:
        """Tell what changes; see `Store.watch`."""
        while True:
            told = await self._waiting.get()
            if not isinstance(told, Changes):
                raise told
            yield told

    async def end(self) -> None:
        """Let go of the stream."""
        for task in self._tasks:
            task.cancel()
        self._call.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _event(message: EventMessage) -> Event:
    if message.type == DELETED:
        key = message.kv.key.decode("utf-8", "surrogateescape")
        return Event("delete", KeyValue(key, b"", 0, message.kv.mod_revision, 0))
    return Event("put", key_value(message.kv))
