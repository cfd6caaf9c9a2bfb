"""The agent in a guest, as the MountManager sees it: three calls, turned into GuestRequest documents.

    async with AgentClient("firecracker:/run/fc/v.sock:5641") as agent:
        mounts = MountManager(agent, shares=manager)

What lives here: keeping a connection, sending a request again when its answer was lost, and what errors become. What
must not: references, or which mounts there should be.

Every request may be carried out twice: mounting what is mounted in this form and unmounting what is not there are no
change, and the agent does nothing more for an older connection once the new one is greeted. So a request whose
answer was lost is simply sent again, until its time is over; only then is its outcome unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar

import msgspec

from uvmshare import peers
from uvmshare.address import parse
from uvmshare.errors import (
    AgentUnreachable,
    GuestAgentError,
    InvalidDocument,
    MountBusy,
    MountNotFound,
    MountRefused,
    OperationTimedOut,
    OutcomeUnknown,
)
from uvmshare.guest import wire
from uvmshare.hcs import schema
from uvmshare.mounts.channel import Acceptor, Dialler
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.mounts.report import AgentInfo, GuestReport, ListedMount, MountHealth

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from uvmshare.address import Address
    from uvmshare.mounts.channel import Stream, Streams

__all__ = ["AgentClient"]

T = TypeVar("T")

_REDIAL_FIRST: Final = 0.05
_REDIAL_LONGEST: Final = 2.0
"""Seconds between two attempts to reach the agent; the wait doubles from the first to the longest, so that a guest that
was started again is found soon after its agent is there."""
_GREETING: Final = 10.0
"""Seconds for dialling and for the first words."""
_SILENCE: Final = 5.0
"""Seconds without a word after which the agent is asked for one, and given up after as long again: a guest that was
restored from a snapshot, or lost power, ends no connection."""
_GRACE: Final = 5.0
"""Seconds that a request waits longer than the agent was told to."""

_ERRORS: Final[dict[str, type[Exception]]] = {
    "busy": MountBusy,
    "not-found": MountNotFound,
    "refused": MountRefused,
    "unknown": OutcomeUnknown,
}


class _Lost(Exception):
    """The connection ended before the answer came."""


class AgentClient:
    """The agent in one guest.

    `address` is where it listens (`uvmshare.mounts.channel`); with ``accept=True`` it is where this side listens and
    the agent dials. `server_port` is the port of the file server that the guest's mounts dial. `token` is the secret
    that the agent was given, if it was; then each end proves to the other that it knows it. `timeout` is how many
    seconds a request may take in the guest. `streams` gives connected streams in another way than `address` says.

    Without a token, who is at the other end of a unix socket or of TCP on loopback must be this process's user, root,
    or one of `allow_uids`, which are uids or "any": any user of the host could else pose as the agent.

    It is used as ``async with``, or with `start` and `aclose`. Starting does not wait for the agent: requests do.
    """

    def __init__(
        self,
        address: str | Address,
        *,
        accept: bool = False,
        server_port: int = 5640,
        token: str | None = None,
        timeout: float = 30.0,
        streams: Streams | None = None,
        allow_uids: Collection[int | Literal["any"]] = (),
    ) -> None:
        self.address = parse(address, default_port=wire.DEFAULT_PORT) if isinstance(address, str) else address
        self._accept = accept
        self._users = peers.of_this_process(allow_uids)
        self._server_port = server_port
        self._token = token
        self._timeout = timeout
        self._client = os.urandom(8).hex()
        self._connection: _Connection | None = None
        self._changed = asyncio.Event()
        """Set, and replaced, whenever `_connection` or `_denied` changes."""
        self._failure: Exception | None = None
        """Why the last attempt to reach the agent failed."""
        self._denied = False
        """Whether trying again would not help before somebody does something."""
        self._closed = False
        self._streams = streams
        self._keeping: asyncio.Task[None] | None = None
        self._on_connect: list[Callable[[], None]] = []

    async def start(self) -> Self:
        """Begin to reach the agent, and to stay connected. Raises `OSError` when it is to listen and cannot."""
        if self._streams is None:
            if self._accept:
                self._streams = await Acceptor.start(self.address, self._users, has_token=self._token is not None)
            else:
                self._streams = Dialler(self.address, self._users if self._token is None else None)
        self._keeping = asyncio.get_running_loop().create_task(self._keep(self._streams))
        return self

    async def aclose(self) -> None:
        """End the connection. The guest's mounts stay; requests that wait end with an error."""
        self._closed = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._streams is not None:
            await self._streams.aclose()
        self._tell_change()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def info(self) -> AgentInfo | None:
        """What the agent said of itself; None while it is not connected."""
        return self._connection.info if self._connection is not None else None

    @property
    def port(self) -> int:
        """The port that was bound, for ``accept=True`` on ``tcp:HOST:0``."""
        return self._streams.port if isinstance(self._streams, Acceptor) else self.address.port

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever the agent has been reached (`uvmshare.mounts.interfaces.TellsConnect`)."""
        self._on_connect.append(callback)
        if self._connection is not None:
            asyncio.get_running_loop().call_soon(callback)

    async def reached(self, *, timeout: float | None = None) -> AgentInfo:  # noqa: ASYNC109  the error says what was waited for
        """Wait until the agent is connected, at most `timeout` seconds. Raises `AgentUnreachable`."""
        try:
            async with asyncio.timeout(self._timeout if timeout is None else timeout):
                return (await self._connected()).info
        except TimeoutError:
            raise self._unreachable() from self._failure

    # ------------------------------------------------------------------ what the MountManager asks for

    async def add_mapped_directory(self, mount: GuestMount) -> None:
        """Send the Add document of the mount. See `uvmshare.mounts.interfaces.GuestAgent`.

        Raises `MountRefused`, `GuestAgentError` with the guest's words, `AgentUnreachable`, `OutcomeUnknown`.
        """
        await self._modify(schema.RequestType.ADD, mount, {"cache": mount.cache, "msize": mount.msize})

    async def remove_mapped_directory(self, mount: GuestMount, *, lazy: bool = False) -> None:
        """Send the Remove document of the mount. Raises `MountBusy`, `MountNotFound`, and as adding does."""
        await self._modify(schema.RequestType.REMOVE, mount, {"lazy": lazy})

    async def mapped_directories(self) -> tuple[GuestMount, ...]:
        """Return the mounts that the agent keeps."""
        return tuple(
            GuestMount(
                share_name=found.share_name,
                mount_path=found.mount_path,
                read_only=found.read_only,
                cache=found.cache,
                msize=found.msize,
            )
            for found in await self.listed()
        )

    async def _modify(self, kind: schema.RequestType, mount: GuestMount, options: dict[str, object]) -> None:
        request = schema.GuestRequest(
            request_type=kind,
            resource_type=schema.MAPPED_DIRECTORY,
            settings=schema.MappedDirectory(
                mount_path=mount.mount_path,
                port=self._server_port,
                share_name=mount.share_name,
                read_only=mount.read_only,
            ),
        )
        await self._ask("modify", {"request": msgspec.to_builtins(request), "options": options}, self._timeout)

    # ------------------------------------------------------------------ what others ask for

    async def listed(self) -> tuple[ListedMount, ...]:
        """Return the mounts that the agent keeps, and how each is."""
        return self._read(await self._ask("list", {}, self._timeout), tuple[ListedMount, ...])

    async def health(self, *, within: float = 1.0) -> tuple[MountHealth, ...]:
        """Have the agent read each mount, and return which can be read within so many seconds."""
        result = await self._ask("health", {"within": within}, self._timeout + within)
        return self._read(result, tuple[MountHealth, ...])

    async def report(self) -> GuestReport:
        """Return what the guest can and cannot do (`uvmshare.mounts.doctor` says what that means)."""
        before = time.time()
        report = self._read(await self._ask("report", {}, self._timeout), GuestReport)
        return msgspec.structs.replace(report, asked=before)

    def _read(self, result: object, kind: type[T]) -> T:
        try:
            return msgspec.convert(result, kind)
        except msgspec.ValidationError as error:
            msg = f"the agent at {self.address} gave an answer that cannot be read: {error}"
            raise InvalidDocument(msg) from error

    # ------------------------------------------------------------------ asking

    async def _ask(self, op: str, fields: dict[str, Any], seconds: float) -> object:
        sent = False
        try:
            async with asyncio.timeout(seconds + _GRACE):
                while True:
                    connection = await self._connected()
                    sent = True
                    with contextlib.suppress(_Lost):
                        return await connection.ask(op, {**fields, "timeout": seconds})
        except TimeoutError:
            if not sent:
                raise self._unreachable() from self._failure
            msg = f"the agent at {self.address} gave no answer to {op} within {seconds + _GRACE:g} s"
            raise OperationTimedOut(msg) from self._failure
        except AgentUnreachable as error:
            if sent:
                msg = f"the agent at {self.address} was asked to {op} and could then not be reached: {error}"
                raise OutcomeUnknown(msg) from error
            raise

    async def _connected(self) -> _Connection:
        """Return the connection, when there is one. Raises `AgentUnreachable` when waiting would not help."""
        while self._connection is None:
            if self._closed or self._denied or self._keeping is None:
                raise self._unreachable() from self._failure
            await self._changed.wait()
        return self._connection

    def _unreachable(self) -> AgentUnreachable:
        if self._closed or self._keeping is None:
            return AgentUnreachable(
                f"the client of the agent at {self.address} is not open: start it, or make a new one"
            )
        why = self._failure or "it has not dialled yet" if self._accept else self._failure
        return AgentUnreachable(
            f"the agent at {self.address} could not be reached: {why or 'it does not answer'}; "
            f"is 'uvmshare guest agent' running in the guest?"
        )

    def _tell_change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # ------------------------------------------------------------------ staying connected

    async def _keep(self, streams: Streams) -> None:
        delay = _REDIAL_FIRST
        while True:
            try:
                connection = await self._reach(streams)
            except (OSError, EOFError, TimeoutError, wire.WireError, msgspec.ValidationError) as error:
                self._failure = error
            except GuestAgentError as error:
                self._failure = error
                self._denied = True
                self._tell_change()
            else:
                delay = _REDIAL_FIRST
                self._denied = False
                self._failure = None
                self._connection = connection
                self._tell_change()
                for callback in self._on_connect:
                    callback()
                try:
                    self._failure = await connection.serve()
                finally:
                    self._connection = None
            await asyncio.sleep(delay)
            delay = min(2 * delay, _REDIAL_LONGEST)

    async def _reach(self, streams: Streams) -> _Connection:
        if self._accept:
            stream = await streams.next()
        else:
            async with asyncio.timeout(_GREETING):
                stream = await streams.next()
        try:
            async with asyncio.timeout(_GREETING):
                return await _greet(stream, self._client, self._token)
        except BaseException:
            stream[1].close()
            raise


async def _greet(stream: Stream, client: str, token: str | None) -> _Connection:
    """Exchange the first words. Raises `GuestAgentError` when the agent is another, or refuses."""
    reader, writer = stream
    lines = wire.Lines()
    greeting = await _next(reader, lines)
    if greeting.get("uvmshare") != "agent":
        msg = f"not an agent's greeting: {str(greeting)[:80]}"
        raise wire.WireError(msg)
    info = msgspec.convert(greeting, AgentInfo)
    if info.version != wire.VERSION:
        msg = f"it speaks version {info.version} of the protocol, this side {wire.VERSION}: install the same uvmshare"
        raise GuestAgentError(msg)
    if token is None and info.token:
        msg = "it asks for a token: give the one that it was started with"
        raise GuestAgentError(msg)
    if token is not None and not info.token:
        msg = "it was started without a token, so it cannot prove that it is the one that is meant"
        raise GuestAgentError(msg)
    nonce = wire.new_nonce()
    proof = "" if token is None else wire.prove(token, "host", nonce, info.nonce)
    hello = {"id": 0, "op": "hello", "version": wire.VERSION, "client": client, "nonce": nonce, "proof": proof}
    writer.write(wire.encode(hello))
    answer = await _next(reader, lines)
    result = answer.get("result")
    if not answer.get("ok") or not isinstance(result, dict):
        raise GuestAgentError(str(answer.get("error", {}).get("message", "it refused")))
    if token is not None and not wire.proven(token, "agent", info.nonce, nonce, result.get("proof")):
        msg = "it did not prove that it knows the token: another program listens there"
        raise GuestAgentError(msg)
    return _Connection(reader, writer, lines, info)


async def _next(reader: asyncio.StreamReader, lines: wire.Lines) -> dict[str, Any]:
    """Return the one message that comes next; each end waits for the other while they greet."""
    while True:
        data = await reader.read(wire.MAX_LINE)
        if not data:
            msg = "it hung up"
            raise EOFError(msg)
        if messages := lines.feed(data):
            return messages[0]


class _Connection:
    """One greeted connection: requests by number, and those who wait for the answers."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, lines: wire.Lines, info: AgentInfo
    ) -> None:
        self.info = info
        self._reader = reader
        self._writer = writer
        self._lines = lines
        self._last = 0
        self._waiting: dict[int, asyncio.Future[object]] = {}

    async def ask(self, op: str, fields: dict[str, Any]) -> object:
        """Send a request and return its result. Raises what the agent says, or `_Lost`."""
        if self._writer.is_closing():
            raise _Lost
        self._last += 1
        number = self._last
        waiter = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._writer.write(wire.encode({"id": number, "op": op, **fields}))
        try:
            return await waiter
        finally:
            self._waiting.pop(number, None)

    async def serve(self) -> Exception:
        """Hand the answers out until the connection ends, and return why it did."""
        asked = False
        try:
            while True:
                try:
                    async with asyncio.timeout(_SILENCE):
                        data = await self._reader.read(wire.MAX_LINE)
                except TimeoutError:
                    if asked:
                        return TimeoutError(f"it said nothing for {2 * _SILENCE:g} s")
                    asked = True
                    self._writer.write(wire.encode({"id": -1, "op": "ping"}))
                    continue
                asked = False
                if not data:
                    return EOFError("it hung up")
                for message in self._lines.feed(data):
                    self._answer(message)
        except (OSError, wire.WireError) as error:
            return error
        finally:
            self._writer.transport.abort()
            for waiter in self._waiting.values():
                if not waiter.done():
                    waiter.set_exception(_Lost())

    def _answer(self, message: dict[str, Any]) -> None:
        waiter = self._waiting.get(message.get("id", 0))
        if waiter is None or waiter.done():
            return
        if message.get("ok"):
            waiter.set_result(message.get("result"))
            return
        error = message.get("error")
        code, words = (error.get("code"), str(error.get("message"))) if isinstance(error, dict) else ("", str(error))
        waiter.set_exception(_ERRORS.get(str(code), GuestAgentError)(words))
