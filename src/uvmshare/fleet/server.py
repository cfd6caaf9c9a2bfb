"""A gate as a process: HTTPS with certificates on both sides, and the beginning and end of it all.

What lives here: `serve_gate`, and who is at the other end of a connection of TLS. What must not: routes (`app`) or
decisions (`gate`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final

import structlog

from uvmshare.daemon.connections import ClientConnection, configured, cut_late
from uvmshare.daemon.server import SignalledServer
from uvmshare.errors import AccessDenied, DaemonError, InvalidAddress
from uvmshare.fleet.app import make_gate_app
from uvmshare.fleet.callers import Caller, caller_of
from uvmshare.fleet.gate import Gate
from uvmshare.linux.notify import notify

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from uvmshare.etcd.protocol import Store
    from uvmshare.fleet.gatefile import GateFile
    from uvmshare.fleet.keys import Keys

__all__ = ["RunningGate", "serve_gate"]

_GRACE: Final = 20
"""Seconds that requests under way may take when the gate ends; whoever asked asks another gate then."""
_BACKLOG: Final = 1024


class RunningGate:
    """A gate that answers; `stop` may be called from any thread."""

    def __init__(self, server: SignalledServer, port: int) -> None:
        self._server = server
        self.port = port

    def stop(self) -> None:
        """Have it end in order, as SIGTERM does."""
        self._server.should_exit = True


def _protocol() -> type[ClientConnection]:
    """Return the class of one gate's connections, which are counted together for each tenant."""

    class OfGate(ClientConnection):
        def identify(self, transport: asyncio.Transport) -> Caller:
            """Return whose certificate was checked in the handshake; there is none without."""
            connection: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
            certificate = None if connection is None else connection.getpeercert()
            if not certificate:
                msg = "a connection without a certificate of the fleet's"
                raise AccessDenied(msg)
            return caller_of(certificate)

        def account_of(self, peer: Any) -> int | str:
            """Return the tenant: their connections are counted together."""
            return str(peer.tenant)

        @property
        def uid(self) -> str | None:
            """Who opened it."""
            return None if self._peer is None else str(self._peer)

        @property
        def _is_limited(self) -> bool:
            return self._peer is not None and not self._peer.is_admin

    return OfGate


async def serve_gate(
    file: GateFile,
    connect: Callable[[], AbstractAsyncContextManager[Store]],
    keys: Keys,
    *,
    ready: Callable[[RunningGate], None] = lambda _: None,
) -> bool:
    """Be a gate until SIGINT or SIGTERM; say whether it was SIGINT. Raises `DaemonError` when it cannot be started."""
    log = structlog.get_logger("uvmshare.fleet")
    with _listening(file.listen) as listener:
        port = listener.getsockname()[1]
        async with connect() as store:

            def started() -> None:
                notify("READY=1", f"STATUS=listening on port {port}")
                log.info("gate.started", listen=file.listen, port=port, pid=os.getpid())
                ready(RunningGate(server, port))

            config = configured(
                make_gate_app(Gate(store, keys), log),
                _protocol(),
                grace=_GRACE,
                loop="asyncio",
                backlog=_BACKLOG,
                ssl_certfile=file.certificate,
                ssl_keyfile=file.key,
                ssl_ca_certs=file.callers,
                ssl_cert_reqs=ssl.CERT_REQUIRED,
            )
            try:
                config.load()
            except (OSError, ssl.SSLError) as error:
                msg = (
                    f"{file.path}: its certificate, key and callers cannot be used: see that the files are there, and "
                    "that `uvmshare fleet` wrote them"
                )
                raise DaemonError(msg) from error
            assert config.ssl is not None, "it was given a certificate"
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_3

            def ending() -> None:
                notify("STOPPING=1")

            server = SignalledServer(config, started=started, ending=ending)
            try:
                await server.serve(sockets=[listener])
            finally:
                await cut_late(server)
                log.info("gate.stopped")
            return server.interrupted


def _listening(listen: str) -> contextlib.closing[socket.socket]:
    host, colon, port = listen.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        msg = f"{listen!r} is no address to listen on: write HOST:PORT, such as 0.0.0.0:8443"
        raise InvalidAddress(msg)
    try:
        return contextlib.closing(
            socket.create_server(
                (host.strip("[]"), int(port)),
                family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                backlog=_BACKLOG,
            )
        )
    except OSError as error:
        msg = f"{listen}: {error.strerror or error}: end what listens there, or give another address"
        raise DaemonError(msg) from error
