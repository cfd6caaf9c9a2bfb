"""The members of etcd: a channel to each, which one is asked now, and which ones had their version checked.

What lives here: channels and the choice among them. What must not: what is asked.

A member is asked as long as it answers. One that does not is left for the next in order; a member without a leader is
left too, which is how one that is cut off from the others is told from one that is well.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, TypeVar

import grpc

from uvmshare.errors import StoreClosed, StoreOutcomeUnknown, StoreUnavailable
from uvmshare.etcd.messages import Empty, StatusResponse
from uvmshare.etcd.versions import judge
from uvmshare.etcd.wire import Message, decode, encode
from uvmshare.heard import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.errors import StoreError
    from uvmshare.etcd.endpoints import Endpoints
    from uvmshare.etcd.versions import Judgement

__all__ = ["Member", "Members", "closed", "is_cancelled"]

M = TypeVar("M", bound=Message)

_LOG: Final = logger("etcd")

_ATTEMPT: Final = 3.0
"""Seconds for connecting to one member, and for its status: a member behind a cut link says nothing at all."""

_PAUSE: Final = 0.1
"""Seconds between two rounds through members of which none can be reached."""

_WARNED: Final[set[str]] = set()
"""The members whose version this process was warned of: once is enough, however many stores it opens."""

_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # stores share no connection: each fails by itself
    ("grpc.max_receive_message_length", -1),  # pages and bursts of events are as large as they are
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    ("grpc.keepalive_time_ms", 10_000),  # etcd ends connections that ping more often than every 5 s
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Member:
    """One member: its channel, and what was found out about it."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.channel = channel
        self.judged: Judgement | None = None

    async def ask(self, method: str, request: Message, answer: type[M], seconds: float) -> M:
        """Ask once. Raises `grpc.aio.AioRpcError`."""
        call = self.channel.unary_unary(
            f"/etcdserverpb.{method}",
            request_serializer=encode,
            response_deserializer=lambda data: decode(answer, data),
        )
        return await call(request, timeout=seconds)

    async def connect(self) -> None:
        """Be connected. Raises `StoreUnavailable` as soon as that has failed, and `StoreClosed`."""
        state = self.channel.get_state(try_to_connect=True)
        while state is not grpc.ChannelConnectivity.READY:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                msg = f"etcd at {self.target} cannot be reached: start it, or mend the way or the certificates"
                raise StoreUnavailable(msg)
            if state is grpc.ChannelConnectivity.SHUTDOWN:
                raise closed()
            try:
                await self.channel.wait_for_state_change(state)
            except grpc.aio.UsageError as error:  # what it says of a channel that is closed meanwhile
                raise closed() from error
            state = self.channel.get_state(try_to_connect=True)


class Members:
    """The members of one cluster, as one client has them."""

    def __init__(self, endpoints: Endpoints, look: Callable[[StatusResponse], None]) -> None:
        self._look = look
        certificates = endpoints.certificates
        credentials = certificates and grpc.ssl_channel_credentials(
            certificates.ca, certificates.key, certificates.certificate
        )
        self._members = [
            Member(
                target,
                grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
                if credentials
                else grpc.aio.insecure_channel(target, options=_OPTIONS),
            )
            for target in endpoints.targets
        ]
        self._at = 0
        self.closed = False

    def leave(self, member: Member) -> None:
        """Ask the next one from now on, if this is the one that is asked."""
        member.judged = None
        if self._members[self._at] is member:
            self._at = (self._at + 1) % len(self._members)

    async def ready(self, deadline: float) -> Member:
        """Return a member that is connected, has a leader, and is of a version that is used, by a moment of the loop.

        Raises `StoreUnavailable`, `StoreUnsuitable`, `StoreClosed`, and what `look` raises.
        """
        loop = asyncio.get_running_loop()
        first = self._at
        while True:
            if self.closed:
                raise closed()
            member = self._members[self._at]
            if member.judged is not None and member.channel.get_state() is grpc.ChannelConnectivity.READY:
                return member
            member.judged = None  # another may be behind the next connection, whoever makes it
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + _ATTEMPT)):
                    await self._meet(member)
            except (TimeoutError, StoreUnavailable) as error:
                failed = error
            else:
                if self.closed:  # as it was met
                    raise closed()
                return member
            self.leave(member)
            if loop.time() >= deadline:
                msg = f"no member of etcd answers: {self._words(failed, member)}"
                raise StoreUnavailable(msg) from failed
            if self._at == first:
                await asyncio.sleep(min(_PAUSE, max(0.0, deadline - loop.time())))

    def _words(self, failed: BaseException, member: Member) -> str:
        return str(failed) or f"{member.target} says nothing"

    async def _meet(self, member: Member) -> None:
        await member.connect()
        try:
            status = await member.ask("Maintenance/Status", Empty(), StatusResponse, _ATTEMPT)
        except grpc.aio.AioRpcError as error:
            msg = f"etcd at {member.target} does not say what it is: {error.details()}"
            raise StoreUnavailable(msg) from error
        except asyncio.CancelledError as error:
            if is_cancelled() or not self.closed:
                raise
            raise closed() from error
        self._look(status)
        judged = judge(status.version, member.target)
        if not status.leader:
            msg = f"etcd at {member.target} has no leader"
            raise StoreUnavailable(msg)
        if judged.warning and member.target not in _WARNED:
            _WARNED.add(member.target)
            _LOG.warning("%s", judged.warning)
        member.judged = judged

    async def close(self) -> None:
        """Close the channels, and end what is under way."""
        self.closed = True
        for member in self._members:
            await member.channel.close(None)


def is_cancelled() -> bool:
    """Whether the task that asks is cancelled itself. Else a `CancelledError` is gRPC's word for a closed channel."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def closed(*, unknown: bool = False) -> StoreError:
    """Return the error of what was under way when the store was closed."""
    if unknown:
        return StoreOutcomeUnknown("the store was closed while a change was under way")
    return StoreClosed("the store was closed")
