"""How clients reach a fleet: through one of its gates, over TLS, with their own certificate.

What lives here: the certificate, and which gate is asked when one does not answer. What must not: the calls
(`client_calls`).

A gate keeps nothing, so a request that one gate did not answer goes to the next. Only a release that was sent is not
sent again: the second answer would say that nothing was held.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING, Final

import httpcore

from uvmshare.daemon.client_socket import FAILURES, KEPT_SECONDS
from uvmshare.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["CERTIFICATE", "AsyncGatePool", "GatePool", "tls_context"]

CERTIFICATE: Final = "UVMSHARE_CERT"
"""The variable that names the file with certificate, key and the fleet's own certificate, in PEM."""


def tls_context(certificate: str | None = None) -> ssl.SSLContext:
    """Return the TLS context for gates, with the certificate in that file. Raises `DaemonError`."""
    path = os.environ.get(CERTIFICATE) if certificate is None else certificate
    if not path:
        msg = f"a fleet is reached with a certificate: set {CERTIFICATE} to the file with yours (docs/fleet.md)"
        raise DaemonError(msg)
    try:
        context = ssl.create_default_context(cafile=path)
        context.load_cert_chain(path)
    except (OSError, ValueError) as error:
        msg = f"{path} does not hold a certificate with its key and the fleet's own: have one made anew"
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            msg = f"{path}: {error.strerror}: have {CERTIFICATE} name the file with your certificate"
        raise DaemonError(msg) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class _InOrder:
    """Which gate is asked: the one that answered last, then the others."""

    def __init__(self, gates: Sequence[str]) -> None:
        self._gates = [(httpcore.URL(gate), gate.removeprefix("https://").encode("ascii")) for gate in gates]
        self._first = 0

    def requests(self, request: httpcore.Request) -> Iterator[httpcore.Request]:
        """Give the request as it is sent to each gate."""
        first = self._first
        for number in range(len(self._gates)):
            at = (first + number) % len(self._gates)
            gate, name = self._gates[at]
            request.url = httpcore.URL(scheme=gate.scheme, host=gate.host, port=gate.port, target=request.url.target)
            request.headers = [(key, name if key == b"Host" else value) for key, value in request.headers]
            yield request
            self._first = (at + 1) % len(self._gates)  # it did not answer

    def may_go_on(self, request: httpcore.Request, error: Exception) -> bool:
        """Whether what failed so may be asked of another gate."""
        return isinstance(error, httpcore.ConnectError | httpcore.ConnectTimeout) or request.method != b"DELETE"


class GatePool(httpcore.ConnectionPool):
    """Connections to gates. Each request goes to the first gate that answers."""

    def __init__(self, gates: Sequence[str], context: ssl.SSLContext) -> None:
        super().__init__(ssl_context=context, max_connections=None, keepalive_expiry=KEPT_SECONDS)
        self._order = _InOrder(gates)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Ask gates in turn. Raises the error of the last one."""
        failed: Exception | None = None
        for each in self._order.requests(request):
            try:
                return super().handle_request(each)
            except FAILURES as error:
                failed = error
                if not self._order.may_go_on(request, error):
                    break
        assert failed is not None, "there is a gate"
        raise failed


class AsyncGatePool(httpcore.AsyncConnectionPool):
    """As `GatePool`, awaited."""

    def __init__(self, gates: Sequence[str], context: ssl.SSLContext) -> None:
        super().__init__(ssl_context=context, max_connections=None, keepalive_expiry=KEPT_SECONDS)
        self._order = _InOrder(gates)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Ask gates in turn. Raises the error of the last one."""
        failed: Exception | None = None
        for each in self._order.requests(request):
            try:
                return await super().handle_async_request(each)
            except FAILURES as error:
                failed = error
                if not self._order.may_go_on(request, error):
                    break
        assert failed is not None, "there is a gate"
        raise failed
