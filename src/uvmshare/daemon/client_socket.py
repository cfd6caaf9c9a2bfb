"""The connections of clients to the daemon's socket.

What lives here: the pools of connections that clients ask through. What must not: the calls, or the translation of
errors.

They are httpcore's. What httpx has above it (cookies, redirects, proxies) the clients do not use, and loading it would
take as much CPU as all else that a command loads.

httpcore 1.0.9 leaves a blocking socket that could not connect to the garbage collector. A program that tries until its
daemon is there would leak a descriptor with each attempt. So blocking sockets are made here. httpcore's asynchronous
connections do not leak.
"""

from __future__ import annotations

import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpcore

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["FAILURES", "KEPT_SECONDS", "async_pool", "pool"]

KEPT_SECONDS: Final = 5.0
"""How long a connection that nobody uses is kept."""

FAILURES: Final = (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError)
"""What becomes of a request that gets no answer."""


@contextmanager
def _as(timeout: type[Exception], other: type[Exception]) -> Iterator[None]:
    """Raise what httpcore's callers expect."""
    try:
        yield
    except TimeoutError as error:
        raise timeout(error) from error
    except OSError as error:
        raise other(error) from error


class _Stream(httpcore.NetworkStream):
    """A connected socket."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _as(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _as(httpcore.WriteTimeout, httpcore.WriteError):
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def get_extra_info(self, info: str) -> Any:
        """Tell whether a connection that nobody uses has something to read: then its daemon has closed it."""
        if info != "is_readable":
            return None
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        return bool(waiting.poll(0))


class _Connecting(httpcore.NetworkBackend):
    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        del socket_options  # the client sets none
        connecting = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _as(httpcore.ConnectTimeout, httpcore.ConnectError):
                connecting.settimeout(timeout)
                connecting.connect(path)
        except BaseException:
            connecting.close()
            raise
        return _Stream(connecting)


def pool(path: str) -> httpcore.ConnectionPool:
    """Return the blocking connections to the daemon's socket: one for each thread that asks, or reads events."""
    return httpcore.ConnectionPool(
        uds=path, network_backend=_Connecting(), max_connections=None, keepalive_expiry=KEPT_SECONDS
    )


def async_pool(path: str) -> httpcore.AsyncConnectionPool:
    """Return the asynchronous connections to the daemon's socket: one for each task that asks, or reads events."""
    return httpcore.AsyncConnectionPool(uds=path, max_connections=None, keepalive_expiry=KEPT_SECONDS)
