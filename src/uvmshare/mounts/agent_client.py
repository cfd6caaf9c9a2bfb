"""The agent in a guest, as the MountManager sees it: mounting, unmounting, listing, health and a report.

    async with AgentClient("firecracker:/run/fc/v.sock:5641") as agent:
        mounts = MountManager(agent, shares=manager)

What lives here: the connection, the repetition of requests whose answer was lost, and the translation of errors. What
must not: what an agent may say (`uvmshare.mounts.connection`), references, or which mounts there should be.

Every request may be carried out twice: mounting what is mounted already and unmounting what is not there change
nothing. Once the agent has greeted a new connection, it does nothing more for an older one. So a request whose answer
was lost is simply sent again, until its time is over. Only then is its outcome unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import msgspec

from uvmshare import arguments, peers
from uvmshare.address import Address, parse
from uvmshare.errors import (
    AgentUnreachable,
    GuestAgentError,
    InvalidDocument,
    MountRefused,
    OperationTimedOut,
    OutcomeUnknown,
)
from uvmshare.guest import wire
from uvmshare.hcs import schema
from uvmshare.heard import logger
from uvmshare.mounts.agent_state import AgentEntry, AgentTrigger
from uvmshare.mounts.channel import Acceptor, Dialler
from uvmshare.mounts.connection import AgentConnection, ConnectionLost, greet
from uvmshare.mounts.interfaces import GuestMount, Mounted
from uvmshare.mounts.report import MOST_MOUNTS, Added, GuestReport, ListedMount, MountHealth

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from types import TracebackType

    from uvmshare.mounts.agent_state import Reach
    from uvmshare.mounts.channel import AgentStreams, Stream
    from uvmshare.mounts.report import AgentInfo

__all__ = ["LAST_PORT", "AgentClient"]

_log: Final = logger("agent")
_REDIAL_FIRST: Final = 0.05
_REDIAL_LONGEST: Final = 2.0
"""Seconds between two attempts to reach the agent; the wait doubles from the first to the longest, so that a guest that
was started again is found soon after its agent is there. A connection that did not last as long as the longest wait
counts as one more attempt: each of them makes work."""
_REDIAL_BROKEN: Final = 30.0
"""The longest after an agent that broke the protocol: it will do so again until somebody starts another."""
_GREETING: Final = 10.0
"""Seconds for dialling and for the first words."""
_MOST_GREETED: Final = 16
"""Streams on which the first words are awaited at the same time. Who dials may be anybody, and say nothing."""
LAST_PORT: Final = 0xFFFFFFFE
"""Ports of a vsock have 32 bits, and the last of them is VMADDR_PORT_ANY (vsock(7))."""
_GRACE: Final = 5.0
"""Seconds that a request waits longer than the agent was told to."""

_LIST: Final = msgspec.json.Decoder(Annotated[tuple[ListedMount, ...], msgspec.Meta(max_length=MOST_MOUNTS)])
_HEALTH: Final = msgspec.json.Decoder(Annotated[tuple[MountHealth, ...], msgspec.Meta(max_length=MOST_MOUNTS)])
_ADDED: Final = msgspec.json.Decoder(Added)
_REPORT: Final = msgspec.json.Decoder(GuestReport)


class AgentClient:
    """The agent in one guest.

    `address` is where the agent listens (`uvmshare.mounts.channel`). With ``accept=True`` this side listens there and
    the agent dials. `server_port` is the port of the file server that the guest's mounts dial. `token` is the secret
    that the agent was started with, if any; each end then proves to the other that it knows the token. `timeout` is how
    many seconds a request may take in the guest. `streams` makes connected streams instead of `address`. `clock` gives
    the seconds since the epoch that `reach` shows.

    Without a token, the other end of a unix socket or of TCP on loopback must belong to this process's user, to root,
    or to one of `allow_uids`, which are uids or "any". Otherwise any user of the host could pose as the agent.

    Use it with ``async with``, or with `start` and `aclose`. Starting does not wait for the agent, but requests do.

    Raises `InvalidOptions` and `InvalidAddress` for invalid arguments, before anything is started.
    """

    def __init__(
        self,
        address: str | Address,
        *,
        accept: bool = False,
        server_port: int = 5640,
        token: str | None = None,
        timeout: float = 30.0,
        streams: AgentStreams | None = None,
        allow_uids: Collection[int | Literal["any"]] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(address, str | Address):
            arguments.refuse_type("address", address, "where the agent is, such as 'firecracker:/run/fc/v.sock'")
        if token is not None:
            arguments.text("token", token, "the secret that the agent was started with: a str", secret=True)
        if streams is not None:
            arguments.with_methods("streams", streams, ("next", "aclose"), "an object with the methods of AgentStreams")
        self.address = parse(address, default_port=wire.DEFAULT_PORT) if isinstance(address, str) else address
        self._accept = arguments.flag("accept", accept)
        self._users = peers.of_this_process(peers.require_uids("allow_uids", allow_uids))
        self._server_port = arguments.number("server_port", server_port, least=1, most=LAST_PORT)
        self._token = token
        self._timeout = arguments.seconds("timeout", timeout)
        self._client = os.urandom(8).hex()
        self._connection: AgentConnection | None = None
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
        self._on_mounts: list[Callable[[], None]] = []
        self._again: dict[str, int] = {}
        """By the path of a mount: how often the agent had mounted it again when this client saw it first."""
        self._agent = AgentEntry(arguments.function("clock", clock))
        self._on_reach: list[Callable[[Reach], None]] = []

    def __repr__(self) -> str:
        state = "closed" if self._closed else "not connected" if self._connection is None else "connected"
        return f"<AgentClient at {self.address}: {state}>"

    async def start(self) -> Self:
        """Connect to the agent, and stay connected. Raises `OSError` when this side should listen and cannot."""
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
        self._agent.apply(AgentTrigger.CLIENT_CLOSED)
        self._tell_change()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def info(self) -> AgentInfo | None:
        """What the agent says of itself; None while it is not connected."""
        return self._connection.info if self._connection is not None else None

    @property
    def reach(self) -> Reach:
        """Whether the agent can be reached, and since when. A silent agent is noticed within ten seconds."""
        return self._agent.seen(self._failure)

    def on_reach(self, callback: Callable[[Reach], None]) -> None:
        """Have `callback` called in the event loop, with the new `Reach`, each time the agent was reached or lost."""
        self._on_reach.append(arguments.function("callback", callback))

    @property
    def port(self) -> int:
        """The port of the address; for ``accept=True`` on ``tcp:HOST:0``, the port that was bound."""
        return self._streams.port if isinstance(self._streams, Acceptor) else self.address.port

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever the agent was reached (`uvmshare.mounts.interfaces.TellsConnect`)."""
        self._on_connect.append(arguments.function("callback", callback))
        if self._connection is not None:
            asyncio.get_running_loop().call_soon(callback)

    def on_mounts(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the agent lost a mount or mounted it again (`interfaces.TellsMounts`).

        It is called some seconds later, when the agent is next asked for a sign of life. Agents of earlier releases
        never tell.
        """
        self._on_mounts.append(arguments.function("callback", callback))

    def _tell_mounts(self) -> None:
        for callback in self._on_mounts:  # what it raises is the loop's to tell
            asyncio.get_running_loop().call_soon(callback)

    async def reached(self, *, timeout: float | None = None) -> AgentInfo:  # noqa: ASYNC109  the error says what was waited for
        """Wait until the agent is connected, at most `timeout` seconds. Raises `AgentUnreachable`."""
        if timeout is not None:
            arguments.seconds("timeout", timeout)
        try:
            async with asyncio.timeout(self._timeout if timeout is None else timeout):
                return (await self._connected()).info
        except TimeoutError:
            raise self._unreachable() from self._failure

    # ------------------------------------------------------------------ what the MountManager asks for

    async def add_mapped_directory(self, mount: GuestMount) -> Mounted:
        """Send the Add document of the mount. See `uvmshare.mounts.interfaces.GuestAgent`.

        An old agent that cannot choose cache and msize mounts with its own values, ``cache=none`` and 128 KiB.

        Raises `MountRefused`, `GuestAgentError` with the guest's words, `AgentUnreachable`, `OutcomeUnknown`.
        """
        _require_mount(mount)
        options = partial(_options, mount)
        try:
            added: Added = await self._modify(schema.RequestType.ADD, mount, options, result=_ADDED)
        except InvalidDocument:  # it has mounted, and nothing but what it shows rests on this
            return Mounted()
        self._again.pop(mount.mount_path, None)
        if added.again is not None:
            self._again[mount.mount_path] = added.again
        return Mounted(added.chosen or None, added.no_events or None)

    async def remove_mapped_directory(self, mount: GuestMount, *, lazy: bool = False) -> None:
        """Send the Remove document of the mount. Raises `MountBusy`, `MountNotFound`, and as adding does."""
        _require_mount(mount)
        arguments.flag("lazy", lazy)
        await self._modify(schema.RequestType.REMOVE, mount, lambda _: {"lazy": lazy})

    async def mapped_directories(self) -> tuple[GuestMount, ...]:
        """Return the mounts that the agent keeps."""
        listed = await self.listed()
        known, self._again = self._again, {}
        for found in listed:  # an agent that was started again counts from 0
            self._again[found.mount_path] = min(known.get(found.mount_path, found.again), found.again)
        return tuple(
            GuestMount(
                share_name=found.share_name,
                mount_path=found.mount_path,
                read_only=found.read_only,
                cache=found.cache,
                msize=found.msize,
                suid=found.suid,
                dev=found.dev,
                posixacl=found.posixacl,
                events=found.events,
                no_events=found.no_events or None,
                broken=found.state == "broken",
                again=found.again - self._again[found.mount_path],
            )
            for found in listed
        )

    async def _modify(
        self,
        kind: schema.RequestType,
        mount: GuestMount,
        options: Callable[[AgentInfo], dict[str, object]],
        *,
        result: msgspec.json.Decoder[Any] | None = None,
    ) -> Any:
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
        document = msgspec.to_builtins(request)
        return await self._ask(
            "modify", lambda info: {"request": document, "options": options(info)}, self._timeout, result
        )

    # ------------------------------------------------------------------ what others ask for

    async def listed(self) -> tuple[ListedMount, ...]:
        """Return the mounts that the agent keeps, and how each is."""
        found: tuple[ListedMount, ...] = await self._ask("list", _nothing, self._timeout, _LIST)
        return found

    async def health(self, *, within: float = 1.0) -> tuple[MountHealth, ...]:
        """Have the agent read each mount. Return whether each could be read within that many seconds."""
        arguments.seconds("within", within)
        found: tuple[MountHealth, ...] = await self._ask(
            "health", lambda _: {"within": within}, self._timeout + within, _HEALTH
        )
        return found

    async def report(self) -> GuestReport:
        """Return what the guest can and cannot do (`uvmshare.mounts.doctor` says what that means)."""
        before = time.time()
        report: GuestReport = await self._ask("report", _nothing, self._timeout, _REPORT)
        return msgspec.structs.replace(report, asked=before)

    # ------------------------------------------------------------------ asking

    async def _ask(
        self,
        op: str,
        fields: Callable[[AgentInfo], dict[str, Any]],
        seconds: float,
        result: msgspec.json.Decoder[Any] | None = None,
    ) -> Any:
        """Ask for what `fields` gives for the agent that is there now, which may be another one each time."""
        sent = False
        try:
            async with asyncio.timeout(seconds + _GRACE):
                while True:
                    connection = await self._connected()
                    try:
                        asked = fields(connection.info)
                    except MountRefused as error:
                        if sent:
                            msg = f"the agent at {self.address} is another one than the one that was asked: {error}"
                            raise OutcomeUnknown(msg) from error
                        raise
                    sent = True
                    with contextlib.suppress(ConnectionLost):
                        return await connection.ask(op, {**asked, "timeout": seconds}, result)
                    if self._connection is connection:  # until `_keep` has seen that it is over
                        await self._changed.wait()
        except TimeoutError:
            if not sent:
                raise self._unreachable() from self._failure
            why = f" (its last connection: {self._failure})" if self._failure is not None else ""
            msg = f"the agent at {self.address} gave no answer to {op} within {seconds + _GRACE:g} s{why}"
            raise OperationTimedOut(msg) from self._failure
        except AgentUnreachable as error:
            if sent:
                msg = f"the agent at {self.address} was asked to {op} and could then not be reached: {error}"
                raise OutcomeUnknown(msg) from error
            raise

    async def _connected(self) -> AgentConnection:
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

    async def _keep(self, streams: AgentStreams) -> None:
        """Be connected for as long as the client is open. Nothing that a guest says ends this."""
        delay = _REDIAL_FIRST
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection = await self._reach(streams)
                reached = loop.time()
                await self._use(connection)
            except Exception as error:  # noqa: BLE001  whatever it was, the next attempt may be another agent's
                self._failure = error
                # Somebody else may have dialled, and the agent may still.
                self._denied = isinstance(error, GuestAgentError) and not self._accept
                self._tell_change()
                reached = loop.time()
            longest = _REDIAL_BROKEN if isinstance(self._failure, wire.WireError) else _REDIAL_LONGEST
            if loop.time() - reached >= longest:
                delay = _REDIAL_FIRST
            await asyncio.sleep(delay)
            delay = min(2 * delay, longest)

    async def _use(self, connection: AgentConnection) -> None:
        """Serve the connection to its end; `_failure` is then why it ended."""
        self._denied = False
        self._failure = None
        self._connection = connection
        connection.on_change = self._tell_mounts
        self._note_reach(AgentTrigger.GREETED)
        self._tell_change()
        for callback in self._on_connect:  # what it raises is the loop's to tell, and ends nothing here
            asyncio.get_running_loop().call_soon(callback)
        _log.info("the agent at %s was reached", self.address)
        try:
            self._failure = await connection.serve()
            _log.warning("the agent at %s was lost: %s", self.address, self._failure)
        finally:
            self._connection = None
            if not self._closed:
                self._note_reach(AgentTrigger.CUT)
            self._tell_change()

    def _note_reach(self, trigger: AgentTrigger) -> None:
        self._agent.apply(trigger)
        for callback in self._on_reach:
            asyncio.get_running_loop().call_soon(callback, self.reach)

    async def _reach(self, streams: AgentStreams) -> AgentConnection:
        if self._accept:
            return await self._first_that_greets(streams)
        async with asyncio.timeout(_GREETING):
            stream = await streams.next()
        return await self._greet(stream)

    async def _greet(self, stream: Stream) -> AgentConnection:
        try:
            async with asyncio.timeout(_GREETING):
                return await greet(stream, self._client, self._token)
        except BaseException as error:
            stream[1].transport.abort()
            if isinstance(error, TimeoutError):
                msg = f"it said no first words within {_GREETING:g} s"
                raise TimeoutError(msg) from error
            raise

    async def _first_that_greets(self, streams: AgentStreams) -> AgentConnection:
        """Hear everybody who dials, beside each other, until one of them is the agent.

        So nobody keeps the agent out by dialling first and saying nothing.
        """
        loop = asyncio.get_running_loop()
        greeted: list[asyncio.Task[AgentConnection]] = []
        dialled = loop.create_task(streams.next())
        try:
            while True:
                await asyncio.wait({dialled, *greeted}, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in greeted if task.done()]:
                    greeted.remove(task)
                    try:
                        return task.result()
                    except Exception as error:  # noqa: BLE001  as in `_keep`
                        self._failure = error
                if dialled.done():
                    greeted.append(loop.create_task(self._greet(dialled.result())))
                    dialled = loop.create_task(streams.next())
                    if len(greeted) > _MOST_GREETED:
                        await _withdraw(greeted.pop(0))
        finally:
            await _withdraw(dialled)
            for task in greeted:
                await _withdraw(task)


def _require_mount(mount: GuestMount) -> None:
    if not isinstance(mount, GuestMount):
        arguments.refuse_type("mount", mount, "a GuestMount; MountManager.map takes a path and a path of the guest")


def _nothing(_: AgentInfo) -> dict[str, Any]:
    return {}


def _options(mount: GuestMount, info: AgentInfo) -> dict[str, object]:
    """Return the options of a mount as this agent knows them. Raises `MountRefused` for what it would pass over."""
    if mount.posixacl and wire.POSIXACL not in info.features:
        msg = (
            f"{mount.mount_path}: the agent in the guest (uvmshare {info.release or '?'}) is too old for posixacl: "
            f"put the present one there (uvmshare guest agent --print), or map it without ACLs"
        )
        raise MountRefused(msg)
    if mount.events and wire.EVENTS not in info.features:
        msg = (
            f"{mount.mount_path}: the agent in the guest (uvmshare {info.release or '?'}) knows nothing of events: "
            f"put the present one for Python there (uvmshare guest agent --print), or map it without events"
        )
        raise MountRefused(msg)
    options: dict[str, object] = {"suid": mount.suid, "dev": mount.dev, "posixacl": mount.posixacl}
    if mount.events:
        options["events"] = True
    if mount.cache != "auto" or wire.AUTO in info.features:
        options["cache"] = mount.cache
    if mount.msize is not None:
        options["msize"] = mount.msize
    return options


async def _withdraw(task: asyncio.Task[Any]) -> None:
    """Break off what may be about to give one more stream or connection, and end that."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        given: Stream | AgentConnection = task.result()
        if isinstance(given, AgentConnection):
            given.end()
        else:
            given[1].transport.abort()
