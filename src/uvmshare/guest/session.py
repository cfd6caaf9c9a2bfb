"""One connection with the host: its first words, its requests by number, and how much it may say.

What lives here: `HostSession`. What must not: listening and dialling, and what a request does (`uvmshare.guest.agent`).
Standard library only (Python 3.9): it runs in guests.

Whoever reaches the agent may say anything here. It ends that connection at most.
"""

from __future__ import annotations

import contextlib
import select
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from uvmshare.guest import keepalive, wire
from uvmshare.guest.wire import RequestError

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uvmshare.guest.agent import Agent

__all__ = ["HostSession"]

_MOST_SESSIONS = 16
"""Connections that have said hello."""
_HELLO = 10.0
"""Seconds for the first words of a connection."""
_PIECE = 16 * 1024
"""Bytes that are taken from one connection before the others have their turn."""
_MOST_REQUESTS = 256
"""Requests of one session under way."""
_MOST_UNSENT = 8 * 1024 * 1024
"""Bytes of answers that nobody takes."""
_SILENCE = 20.0
"""Seconds without a word after which a session is over: the host asks for one every five. A guest that was restored
from a snapshot is told nothing of the end of its connections."""


class HostSession:
    """One connection with the host."""

    def __init__(self, agent: Agent, connected: socket.socket, ended: Callable[[], None]) -> None:
        self._agent = agent
        self._socket = connected
        self._ended = ended
        self._lines = wire.Lines()
        self._unsent = bytearray()
        self._nonce = wire.new_nonce()
        self._requests = 0
        self.client = ""
        """Who it is, once it said so."""
        self.open = True
        self._heard = time.monotonic()
        self._silence = agent.loop.later(_HELLO, self._silent)
        connected.settimeout(0)
        keepalive.begin(connected)
        self._probe()
        agent.loop.watch(connected.fileno(), select.EPOLLIN, self._ready)
        self._send({**agent.greeting(), "nonce": self._nonce})

    def close(self) -> None:
        """End it; what is under way goes on, what has not begun does not begin."""
        if self.open:
            self.open = False
            self._silence.cancel()
            self._probing.cancel()
            self._agent.loop.unwatch(self._socket.fileno())
            self._socket.close()
            self._agent.sessions.pop(self, None)
            self._ended()

    def _probe(self) -> None:
        keepalive.probe(self._socket)
        self._probing = self._agent.loop.later(keepalive.PROBE_EVERY, self._probe)

    def _silent(self) -> None:
        """See how long the host has said nothing. A timer for each word would be more timers than words are bytes."""
        left = self._heard + _SILENCE - time.monotonic() if self.client else 0.0
        if left > 0:
            self._silence = self._agent.loop.later(left, self._silent)
        elif self.client:
            self._break(f"the host said nothing for {_SILENCE:g} s")
        else:
            self._break(f"it did not say hello within {_HELLO:g} s")

    def _break(self, why: str) -> None:
        self._agent.log(f"a connection is ended: {why}")
        self.close()

    def _ready(self, events: int) -> None:
        try:
            if events & select.EPOLLOUT:
                self._flush()
            if self.open and events & ~select.EPOLLOUT:
                data = self._socket.recv(_PIECE)
                if not data:
                    self.close()
                    return
                for line in self._lines.feed(data):
                    if self.open:
                        self._take(wire.decode(line))
                        self._heard = time.monotonic()
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:
            self.close()
        except wire.WireError as error:
            self._break(str(error))
        except Exception as error:  # noqa: BLE001  whatever was said, it ends its own connection and nothing else
            self._break(f"a defect, please report it: {error!r}")

    def _send(self, message: dict[str, Any]) -> None:
        if not self.open:
            return
        self._unsent += wire.encode(message)
        if len(self._unsent) > _MOST_UNSENT:
            self._break(f"it takes nothing of {_MOST_UNSENT} bytes that it was sent")
            return
        try:
            self._flush()
        except OSError:
            self.close()

    def _flush(self) -> None:
        with contextlib.suppress(BlockingIOError, InterruptedError):
            sent = self._socket.send(self._unsent)
            del self._unsent[:sent]
        events = select.EPOLLIN | (select.EPOLLOUT if self._unsent else 0)
        self._agent.loop.watch(self._socket.fileno(), events, self._ready)

    def _take(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        if type(number) is not int:  # true is an int, too
            problem = f"a request without a number: {str(message)[:80]!r}"
            raise wire.WireError(problem)
        if message.get("op") == "hello":
            self._greet(number, message)
        elif not self.client:
            problem = "a request before hello"
            raise wire.WireError(problem)
        elif self._requests >= _MOST_REQUESTS:
            self._answer(number, None, RequestError(wire.FAILED, f"{_MOST_REQUESTS} requests are under way: wait"))
        else:
            self._requests += 1
            answer = partial(self._answer_once, number)
            try:
                self._agent.carry_out(message, lambda: self.open, answer)
            except RequestError as error:
                answer(None, error)

    def _greet(self, number: int, message: dict[str, Any]) -> None:
        token = self._agent.token
        client, nonce = message.get("client"), message.get("nonce")
        if message.get("version") != wire.VERSION:
            error = RequestError(wire.INVALID, f"this agent speaks version {wire.VERSION} of the protocol")
        elif not (isinstance(client, str) and client and isinstance(nonce, str)):
            error = RequestError(wire.INVALID, "hello needs a client and a nonce")
        elif self.client:
            error = RequestError(wire.INVALID, "hello is said once")
        elif token and not wire.proven(token, "host", nonce, self._nonce, message.get("proof")):
            self._agent.log("a connection without the right token was refused")
            error = RequestError(wire.REFUSED, "the token is not this agent's")
        else:
            # What the older connection sent and nobody has begun is never begun.
            for session in tuple(self._agent.sessions):
                if session is not self and session.client == client:
                    session.close()
            if sum(1 for session in self._agent.sessions if session.client) < _MOST_SESSIONS:
                self.client = client
                self._heard = time.monotonic()
                proof = wire.prove(token, "agent", self._nonce, nonce) if token else ""
                self._answer(number, {"proof": proof}, None)
                return
            error = RequestError(wire.REFUSED, f"{_MOST_SESSIONS} hosts are connected: end one of them")
        self._answer(number, None, error)
        self.close()

    def _answer_once(self, number: int, result: object, error: RequestError | None) -> None:
        self._requests -= 1
        self._answer(number, result, error)

    def _answer(self, number: int, result: object, error: RequestError | None) -> None:
        if error is None:
            self._send({"id": number, "ok": True, "result": result})
        else:
            self._send({"id": number, "ok": False, "error": {"code": error.code, "message": str(error)}})
