"""One connection with the agent in a guest: the first words, requests by number, and what may come from a guest at all.

What lives here: `greet` and `AgentConnection`, and every bound on what an agent says. What must not: when to dial
again, or what the errors of requests become (`uvmshare.mounts.agent_client`).

The guest is hostile, and so may be its agent. It may say what was asked for, once for each request, and nothing else:
then the work that it makes is that of the host's own requests. Every line is of a known length and type before
anything is done with it. What breaks these rules raises `wire.WireError`, and the connection is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from uvmshare.errors import (
    UNREADABLE,
    GuestAgentError,
    InvalidDocument,
    MountBusy,
    MountNotFound,
    MountRefused,
    OutcomeUnknown,
)
from uvmshare.guest import wire
from uvmshare.mounts.report import AgentInfo, Pong
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.mounts.channel import Stream

__all__ = ["AgentConnection", "ConnectionLost", "greet"]

_LONGEST_FIRST_WORDS: Final = 32 * 1024
"""Bytes of the greeting, which has the directories that the agent mounts below, and of the answer to hello."""
_PIECE: Final = 16 * 1024
"""Bytes that are looked at in one turn of the event loop; what others wait for comes in between."""
_SILENCE: Final = 5.0
"""Seconds without a whole message after which the agent is asked for one, and given up after as long again: a guest
that was restored from a snapshot, or lost power, ends no connection, and one that sends a byte now and then is no
better."""
_MOST_UNSENT: Final = 1024 * 1024
"""Bytes of requests that the agent does not take. A request has 10 KiB at most."""
_MOST_UNANSWERED: Final = 256
"""Requests that nobody waits for any more and that were never answered."""
_PING: Final = -1
"""The number of the request that only asks for a word."""

_ERRORS: Final[dict[str, type[Exception]]] = {
    "busy": MountBusy,
    "not-found": MountNotFound,
    "refused": MountRefused,
    "unknown": OutcomeUnknown,
}


class ConnectionLost(Exception):
    """The connection ended before the answer came."""


class _Refusal(msgspec.Struct, frozen=True):
    """Why a request was not carried out."""

    code: Annotated[str, msgspec.Meta(max_length=64)]
    message: Annotated[str, msgspec.Meta(max_length=16 * 1024)]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent answers; `result` is read when it is known who asked for what."""

    id: Annotated[int, msgspec.Meta(ge=_PING, le=(1 << 53))]
    ok: bool
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: _Refusal | None = None

    def failure(self) -> Exception:
        """Return the error that it tells of."""
        if self.error is None:
            msg = f"request {self.id} failed without a reason"
            raise wire.WireError(msg)
        return _ERRORS.get(self.error.code, GuestAgentError)(self.error.message)


class _Proof(msgspec.Struct, frozen=True):
    """The result of hello."""

    proof: Annotated[str, msgspec.Meta(max_length=256)] = ""


class _Kind(msgspec.Struct, frozen=True):
    """What a greeting is known by, whatever else it says."""

    uvmshare: str = ""


_answers: Final = msgspec.json.Decoder(_Answer)
_kinds: Final = msgspec.json.Decoder(_Kind)
_greetings: Final = msgspec.json.Decoder(AgentInfo)
_pongs: Final = msgspec.json.Decoder(Pong)
_proofs: Final = msgspec.json.Decoder(_Proof)


def _read(decoder: msgspec.json.Decoder[Any], text: bytes | msgspec.Raw, what: str) -> Any:
    """Return what the text says. Raises `wire.WireError` for what is no such document."""
    try:
        return decoder.decode(text)
    except UNREADABLE as error:
        msg = f"{what} cannot be read: {reason_of(error)}"
        raise wire.WireError(msg) from error


async def greet(stream: Stream, client: str, token: str | None) -> AgentConnection:
    """Exchange the first words. Raises `GuestAgentError` when the agent is another, or refuses, and as `_next` does."""
    reader, writer = stream
    lines = wire.Lines(_LONGEST_FIRST_WORDS)
    said = await _next(reader, lines)
    if _read(_kinds, said, "its greeting").uvmshare != "agent":
        msg = f"not an agent's greeting: {said[:80]!r}"
        raise wire.WireError(msg)
    info: AgentInfo = _read(_greetings, said, "its greeting")
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
    answer: _Answer = _read(_answers, await _next(reader, lines), "its answer to hello")
    if not answer.ok:
        raise GuestAgentError(str(answer.failure()))
    proven: _Proof = _read(_proofs, answer.result, "its proof")
    if token is not None and not wire.proven(token, "agent", info.nonce, nonce, proven.proof):
        msg = "it did not prove that it knows the token: another program listens there"
        raise GuestAgentError(msg)
    return AgentConnection(reader, writer, info)


async def _next(reader: asyncio.StreamReader, lines: wire.Lines) -> bytes:
    """Return the one message that comes next; each end waits for the other while they greet.

    Raises `EOFError` when the stream ends, `OSError`, and `wire.WireError` for more than one message.
    """
    while True:
        data = await reader.read(_PIECE)
        if not data:
            msg = "it hung up"
            raise EOFError(msg)
        found = lines.feed(data)
        if len(found) > 1 or (found and lines.has_rest):
            msg = "it said more than one thing before it was asked anything"
            raise wire.WireError(msg)
        if found:
            return found[0]


class AgentConnection:
    """One greeted connection: requests by number, and those who wait for the answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, info: AgentInfo) -> None:
        self.info = info
        self._reader = reader
        self._writer = writer
        self._lines = wire.Lines()
        self._last = 0
        self._waiting: dict[int, tuple[asyncio.Future[Any], msgspec.json.Decoder[Any] | None]] = {}
        self._withdrawn: set[int] = set()
        """Requests whose callers wait no more, and whose answers may still come."""
        self._pinged = False
        """Whether an answer to the ping may come."""
        self._changes = 0
        """What the agent said last of changes to its mounts."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when it says another number: once a ping at most, so that an agent makes no more work than that."""
        self._broken: wire.WireError | None = None
        """Why this side ended it, if it did so before anything came that may not."""

    def end(self) -> None:
        """Cut it; what was not sent yet is never sent."""
        self._writer.transport.abort()

    def _break(self, why: str) -> None:
        self._broken = wire.WireError(why)
        self.end()

    async def ask(self, op: str, fields: dict[str, Any], result: msgspec.json.Decoder[Any] | None = None) -> Any:
        """Send a request and return its result, which `result` reads; without that it is nobody's business.

        Raises what the agent says, `InvalidDocument` for a result that cannot be read, or `ConnectionLost`.
        """
        if self._writer.is_closing():
            raise ConnectionLost
        self._last += 1
        number = self._last
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter, result
        self._send({"id": number, "op": op, **fields})
        try:
            return await waiter
        finally:
            if self._waiting.pop(number, None) is not None:
                self._withdrawn.add(number)
                if len(self._withdrawn) > _MOST_UNANSWERED:
                    self._break(f"it answered none of {_MOST_UNANSWERED} requests")
            elif not waiter.cancelled():
                waiter.exception()  # also where nobody takes it, because the caller is being cancelled

    def _send(self, message: dict[str, Any]) -> None:
        self._writer.write(wire.encode(message))
        if self._writer.transport.get_write_buffer_size() > _MOST_UNSENT:
            self._break(f"it takes nothing of {_MOST_UNSENT} bytes that it was sent")

    async def serve(self) -> Exception:
        """Hand the answers out until the connection ends, and return why it did: `wire.WireError` for what may not be.

        Raises nothing but what cancels it.
        """
        try:
            return await self._serve()
        except Exception as error:  # noqa: BLE001  whatever a guest has found out, it has lost its connection and no more
            return error
        finally:
            self.end()
            waiting, self._waiting = self._waiting, {}
            for waiter, _ in waiting.values():
                if not waiter.done():
                    waiter.set_exception(ConnectionLost())

    async def _serve(self) -> Exception:
        loop = asyncio.get_running_loop()
        patience = loop.time() + _SILENCE
        while True:
            try:
                async with asyncio.timeout_at(patience):
                    data = await self._reader.read(_PIECE)
            except TimeoutError:
                if self._pinged:
                    return TimeoutError(f"it said nothing for {2 * _SILENCE:g} s")
                self._pinged = True
                self._send({"id": _PING, "op": "ping"})
                patience = loop.time() + _SILENCE
                continue
            if not data:
                return self._broken or EOFError("it hung up")
            for line in self._lines.feed(data):
                self._take(line)
                patience = loop.time() + _SILENCE
            await asyncio.sleep(0)  # `read` does not wait while there is something

    def _take(self, line: bytes) -> None:
        """Hand one answer out. Raises `wire.WireError` for anything but the first answer to a request."""
        answer: _Answer = _read(_answers, line, "what it said")
        if answer.id == _PING and self._pinged:
            self._pinged = False
            if answer.ok:
                pong: Pong = _read(_pongs, answer.result, "its answer to a ping")
                if pong.changes != self._changes:
                    self._changes = pong.changes
                    self.on_change()
        elif answer.id in self._withdrawn:
            self._withdrawn.remove(answer.id)
        elif answer.id in self._waiting:
            failure = None if answer.ok else answer.failure()
            waiter, result = self._waiting.pop(answer.id)
            if waiter.done():  # it is being cancelled
                return
            if failure is not None:
                waiter.set_exception(failure)
            elif result is None:
                waiter.set_result(None)
            else:
                try:
                    waiter.set_result(_read(result, answer.result, "an answer of it"))
                except wire.WireError as error:
                    waiter.set_exception(InvalidDocument(f"the guest's agent: {error}"))
                    raise
        else:
            msg = f"it answered {answer.id}, which nobody asked"
            raise wire.WireError(msg)
