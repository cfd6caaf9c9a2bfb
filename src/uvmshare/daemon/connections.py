"""A client's connection: whose it is, which HTTP is accepted, how much of it, and for how long.

What lives here: `ClientConnection`, which stands between the socket and the application, and the limits of each user's
connections. What must not: what is asked for (`app`), or the limits of a document's fields (`documents`).

uvicorn and h11 read and write HTTP. What they leave open is closed here: a request whose end two readers could
see at two places is refused, and a client that sends or reads slowly, or without end, is cut. A request that is refused
here gets its answer, a problem document, and with it its connection ends: what follows cannot be told from its body.
"""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import h11
import msgspec
import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from uvmshare.daemon.documents import MAX_TARGET
from uvmshare.daemon.identity import peer_of, whose_subordinate
from uvmshare.daemon.problems import PROBLEM_TYPE, Refused, problem_of
from uvmshare.errors import AccessDenied

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "MAX_BODY",
    "MAX_CHUNKS",
    "MAX_HEAD",
    "MAX_HEADERS",
    "PEER",
    "READ_SECONDS",
    "TAKE_SECONDS",
    "USER_BYTES",
    "USER_CONNECTIONS",
    "ClientConnection",
    "configured",
    "cut_late",
    "protocol",
]

PEER: Final = "uvmshare.peer"
"""Where the `Identity` of the one who asks is, in the ASGI scope."""

USER_CONNECTIONS: Final = 256
"""Connections that one user may have open, root aside: the daemon's descriptors are for all of them."""

USER_BYTES: Final = 16 << 20
"""Bytes of requests that are not answered yet, and as many of answers that are not taken yet, on all connections of one
user, root aside."""

MAX_BODY: Final = 1 << 20
"""Bytes of a request's body; framing aside."""

MAX_HEAD: Final = 32 << 10
"""Bytes of a request's line and headers."""

MAX_HEADERS: Final = 100

MAX_CHUNKS: Final = 1024
"""Pieces of a body. Each costs the daemon more than its bytes do."""

_SLACK: Final = 1 << 20
"""Bytes that a request may have beside its body: its head, framing, and what is sent ahead of the next one."""

READ_SECONDS: Final = 30.0
"""From a connection's beginning, or the first byte of a later request, until the request is there."""

TAKE_SECONDS: Final = 30.0
"""For what was sent to be taken, to its last byte."""

_LINGER_SECONDS: Final = 2.0
"""For a refused client to take the answer, while what it still sends is thrown away."""

_HOST: Final = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]{0,255}|\[[0-9A-Fa-f:.]{2,64}\])(?::[0-9]{0,5})?")
"""uri-host and port (RFC 9110, 7.2); none at all is a host too."""

_ABSOLUTE: Final = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


class _Messages(h11.Connection):
    """h11's reading of requests, with what it takes and this daemon does not. `refuse` is called once, at the first."""

    def __init__(self, refuse: Callable[[int, str], None]) -> None:
        super().__init__(h11.SERVER, MAX_HEAD)
        self._refuse = refuse
        self._size = 0
        self._chunks = 0
        self.is_refused = False
        self.thing = "a request"

    def next_event(self) -> Any:
        """Return the next event as h11 does; nothing comes behind what was refused."""
        if self.is_refused:
            return h11.NEED_DATA
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                self._size = self._chunks = 0
                event = self._checked(event)
            elif isinstance(event, h11.Data):
                self._size += len(event.data)
                self._chunks += 1
                if self._size > MAX_BODY or self._chunks > MAX_CHUNKS:
                    raise _refusal(
                        413, f"the body has more than {MAX_BODY} bytes, or comes in over {MAX_CHUNKS} pieces"
                    )
        except h11.RemoteProtocolError as error:
            ours = isinstance(error, _Refusal)
            self.refuse(error.error_status_hint, str(error) if ours else _NO_HTTP)
            return h11.NEED_DATA
        return event

    @property
    def waiting(self) -> int:
        """How many bytes were received and not looked at."""
        return len(self._receive_buffer)

    def refuse(self, status: int, reason: str) -> None:
        """Refuse what comes from now on."""
        if not self.is_refused:
            self.is_refused = True
            self._refuse(status, reason)

    def _checked(self, request: h11.Request) -> h11.Request:
        """Return the request, its target as a path. Raises `h11.RemoteProtocolError`."""
        target = request.target
        if absolute := _ABSOLUTE.match(target):  # which a server has to take (RFC 9112, 3.2.2)
            target = target[absolute.end() :]
            target = target if target.startswith(b"/") else b"/" + target
            headers = request.headers
            request = h11.Request(
                method=request.method, headers=headers, target=target, http_version=request.http_version
            )
        self.thing = (request.method + b" " + target.partition(b"?")[0])[:200].decode("ascii", "replace")
        if not target.startswith(b"/"):
            raise _refusal(400, "the request asks for no path: begin it with a slash")
        if len(target) > MAX_TARGET:
            raise _refusal(414, f"path and query have more than {MAX_TARGET} bytes")
        headers = request.headers
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEAD:
            raise _refusal(431, f"more than {MAX_HEADERS} headers, or more than {MAX_HEAD} bytes of them")
        found: defaultdict[bytes, list[bytes]] = defaultdict(list)
        for name, value in headers:
            found[name].append(value)
        if any(not _HOST.fullmatch(value) for value in found[b"host"]):
            raise _refusal(400, "the Host header names no host")
        self._check_framing(request.http_version, found[b"content-length"], found[b"transfer-encoding"])
        return request

    def _check_framing(self, version: bytes, lengths: list[bytes], encodings: list[bytes]) -> None:
        """Refuse a body whose end is told twice, or in a way that its HTTP does not have (RFC 9112, 6.1 and 6.3)."""
        if encodings and (lengths or version < b"1.1"):
            raise _refusal(400, "the body's end is told by Transfer-Encoding where that is not enough or not allowed")
        if any(len(value) > len(str(MAX_BODY)) or int(value) > MAX_BODY for value in lengths):
            raise _refusal(413, f"the body has more than {MAX_BODY} bytes")


class _Refusal(h11.RemoteProtocolError):
    """What h11 takes and the daemon does not."""


_NO_HTTP: Final = "this is no HTTP/1.1 request: send one whose lines and headers are as RFC 9112 says"


def _refusal(status: int, reason: str) -> _Refusal:
    return _Refusal(reason, error_status_hint=status)


@dataclass(slots=True)
class _User:
    """What one user's connections have."""

    connections: int = 0
    held: int = 0
    """Bytes of requests that are not answered yet."""
    unsent: int = 0
    """Bytes of answers that are not taken yet."""


class ClientConnection(H11Protocol):
    """uvicorn's protocol with limits, which says in each request's scope who opened the connection.

    Those of a subclass are counted together; see `protocol`.
    """

    users: ClassVar[defaultdict[int | str, _User]]
    """All uids that one user may be in user namespaces are one."""

    def __init_subclass__(cls) -> None:
        cls.users = defaultdict(_User)

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._messages = _Messages(self._answer_refusal)
        self.conn = self._messages
        self._peer: Any = None
        """An `Identity`, unless a subclass identifies otherwise."""
        self._account: int | str = -1
        self._user = _User()
        self._held = 0
        self._unsent = 0
        self._reading: asyncio.TimerHandle | None = None
        self._taking: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None

    # Its beginning and end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own does
        """Learn whose it is, and cut one that is too many."""
        super().connection_made(transport)
        try:
            peer = self.identify(transport)
        except AccessDenied as error:
            self._log("connection.refused", reason=str(error))
            transport.abort()
            return
        except OSError as error:
            self._log("connection.unidentified", reason=str(error))
            transport.abort()
            return
        self._peer, self._account = peer, self.account_of(peer)
        self._user = self.users[self._account]
        self._user.connections += 1
        if self._user.connections > USER_CONNECTIONS and self._is_limited:
            self._log("connection.refused", most=USER_CONNECTIONS)
            transport.abort()
            return
        # Told of every byte that waits, so that the time which it waits can be bounded.
        # With TLS, a limit is what is too much already (asyncio.sslproto), and 0 would be so for ever.
        transport.set_write_buffer_limits(high=0 if transport.get_extra_info("ssl_object") is None else 1)
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await inner({**scope, PEER: peer}, receive, send)

        self.app = app
        self._watch_reading()

    def identify(self, transport: asyncio.Transport) -> Any:
        """Return who is at the other end: what the application finds in the scope as `PEER`.

        Raises `OSError` when nobody knows, `AccessDenied` for one who may not.
        """
        return peer_of(transport.get_extra_info("socket"))

    def account_of(self, peer: Any) -> int | str:
        """Return whose connections are counted together with this one."""
        return whose_subordinate(peer.uid) or int(peer.uid)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give back what it had of its user."""
        super().connection_lost(exc)
        for timer in (self._reading, self._taking, self._lingering):
            if timer is not None:
                timer.cancel()
        self._note_held(0)
        self._note_unsent(0)
        if self._peer is not None:
            self._user.connections -= 1
            if not self._user.connections:
                self.users.pop(self._account, None)

    def shutdown(self) -> None:
        """End it when the daemon ends; a refused one at once."""
        if self._messages.is_refused:
            self.transport.abort()
        else:
            super().shutdown()

    # Requests

    def data_received(self, data: bytes) -> None:
        """Take bytes of requests, as many as this connection and its user may have."""
        if self._messages.is_refused or self.transport.is_closing():
            return
        self._note_held(self._held + len(data))
        if self._held > MAX_BODY + _SLACK:
            self._messages.refuse(413, f"the body has more than {MAX_BODY} bytes, with its framing")
        elif self._user.held > USER_BYTES and self._is_limited:
            self._messages.refuse(429, f"{USER_BYTES} bytes of requests of uid {self.uid} are not answered yet")
        else:
            super().data_received(data)
            self._watch_reading()

    def on_response_complete(self) -> None:
        """Take the next request."""
        self._note_held(self._messages.waiting)
        super().on_response_complete()
        if self._held:  # the next one has begun already
            self._unset_keepalive_if_required()
        self._watch_reading()

    def _should_upgrade(self) -> bool:
        """Say no to other protocols without a word: the request is answered as if it had not asked (RFC 9110, 7.8)."""
        return False

    def _watch_reading(self) -> None:
        """See that the request that has begun comes to its end in time."""
        half = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and not self.transport.is_closing()
        if half and self.timeout_keep_alive_task is None:
            if self._reading is None:
                self._reading = self.loop.call_later(READ_SECONDS, self._read_too_long)
        elif self._reading is not None and self.conn.their_state is not h11.SEND_BODY:
            self._reading.cancel()
            self._reading = None

    def _read_too_long(self) -> None:
        if not self._held:
            self.transport.abort()  # it asked for nothing
        self._messages.refuse(408, f"the request did not come to its end within {READ_SECONDS:g} s")

    def _answer_refusal(self, status: int, reason: str) -> None:
        """Answer with a problem, where no answer has begun; then end the connection."""
        self._log("request.refused", status=status, reason=reason)
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._unset_keepalive_if_required()
        if self._reading is not None:
            self._reading.cancel()
        if self.transport.is_closing():
            return
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = msgspec.json.encode(problem_of(Refused(reason), self._messages.thing, status=status))
        headers = [("Content-Type", PROBLEM_TYPE), ("Content-Length", str(len(body))), ("ClientConnection", "close")]
        self.transport.write(self.conn.send(h11.Response(status_code=status, headers=headers)) or b"")
        if not self._messages.thing.startswith("HEAD "):
            self.transport.write(self.conn.send(h11.Data(data=body)) or b"")
        # What the client still sends is read and thrown away, else the kernel would take the answer from it.
        self.flow.resume_reading()
        if self.transport.can_write_eof():  # TLS cannot
            self.transport.write_eof()
        self._lingering = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    # Answers

    def pause_writing(self) -> None:
        """Note that an answer waits to be taken."""
        super().pause_writing()
        self._note_unsent(self.transport.get_write_buffer_size())
        if self._taking is None:
            self._taking = self.loop.call_later(TAKE_SECONDS, self._cut, "takes its answer too slowly")
        if self._user.unsent > USER_BYTES and self._is_limited:
            self._cut("its user takes none of too many answers")

    def resume_writing(self) -> None:
        """Note that everything was taken."""
        super().resume_writing()
        self._note_unsent(0)
        if self._taking is not None:
            self._taking.cancel()
            self._taking = None

    def _cut(self, reason: str) -> None:
        self._log("connection.cut", reason=reason)
        self.transport.abort()

    # Whose

    @property
    def uid(self) -> int | str | None:
        """Who opened it."""
        return None if self._peer is None else int(self._peer.uid)

    @property
    def _is_limited(self) -> bool:
        return self._peer is not None and not bool(self._peer.is_root)

    def _note_held(self, size: int) -> None:
        self._user.held += size - self._held
        self._held = size

    def _note_unsent(self, size: int) -> None:
        self._user.unsent += size - self._unsent
        self._unsent = size

    def _log(self, event: str, **more: object) -> None:
        structlog.get_logger("uvmshare.daemon").warning(event, user=self.uid, **more)


def configured(application: Any, connections: type[ClientConnection], *, grace: int, **more: Any) -> uvicorn.Config:
    """Return uvicorn's settings for an application behind such connections: nothing is logged, no proxy is believed.

    It has `grace` seconds to answer what was asked before it ends; `more` are settings of uvicorn's.
    """
    return uvicorn.Config(
        application,
        http=connections,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
        **more,
    )


async def cut_late(server: uvicorn.Server) -> None:
    """Cut the connections that were accepted while the server ended, which it did not see."""
    for connection in tuple(server.server_state.connections):
        connection.transport.abort()
    await asyncio.sleep(0)


def protocol() -> type[ClientConnection]:
    """Return the class of one daemon's connections, which are counted together."""

    class OfDaemon(ClientConnection):
        pass

    return OfDaemon
