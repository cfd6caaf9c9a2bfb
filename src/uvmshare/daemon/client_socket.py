"""The socket of the blocking client: it connects to the daemon, and closes when it cannot.

What lives here: `transport`, which httpx sends through. What must not: the calls, or the translation of errors.

httpcore 1.0.9 leaves a socket that could not connect to the garbage collector. A program that tries until its daemon is
there would leak a descriptor with each attempt. httpcore's asynchronous connections do not leak.
"""

from __future__ import annotations

import select
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpcore
import httpx

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["transport"]

_KEPT_SECONDS: Final = 5.0
"""How long a connection that nobody uses is kept, as httpx does."""


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


class _Transport(httpx.HTTPTransport):
    def __init__(self, path: str) -> None:
        # Nothing of TLS or of a proxy is on a unix socket: SSL_CERT_FILE may name a file that is not here.
        super().__init__(uds=path, verify=False, trust_env=False)
        self._pool.close()
        self._pool = httpcore.ConnectionPool(  # which httpx gives no backend
            uds=path,
            network_backend=_Connecting(),
            max_connections=None,  # one for each thread that asks, and for each that reads events
            keepalive_expiry=_KEPT_SECONDS,
        )


def transport(path: str) -> httpx.BaseTransport:
    """Return what `httpx.Client` sends through to the daemon's socket.

    As httpx does, raises `httpx.ConnectError` when nobody listens, and `httpx.TimeoutException` when it takes too long.
    """
    return _Transport(path)
