"""Where etcd is, and who asks: addresses and certificates.

What lives here: `Endpoints`, checked. What must not: grpcio, or a connection.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from uvmshare.errors import InvalidOptions

__all__ = ["Certificates", "Endpoints"]

_URL: Final = re.compile(r"(https?)://(\[[0-9a-fA-F:]+\]|[^/:\[\]]+):(\d+)/?")


class Certificates(msgspec.Struct, frozen=True):
    """What a client shows and trusts, each as PEM."""

    ca: bytes
    """The authority that signed the certificates of the members."""
    certificate: bytes
    """The client's own; etcd takes its common name as the user."""
    key: bytes

    def __repr__(self) -> str:
        return "<Certificates>"  # a key is shown to nobody


class Endpoints(msgspec.Struct, frozen=True):
    """The members of etcd. They are tried in order; whoever answers is asked until they no longer do."""

    urls: tuple[str, ...]
    """``https://HOST:PORT``, or ``http://`` without certificates, for tests on one machine."""
    certificates: Certificates | None = None
    timeout: float = 10.0
    """Seconds until a call that no member answers fails. Etcd itself gives a change up after 7."""

    def __post_init__(self) -> None:
        if not self.urls:
            msg = "no endpoint of etcd is named: name at least one, such as https://etcd-1:2379"
            raise InvalidOptions(msg)
        wanted = "http" if self.certificates is None else "https"
        for url in self.urls:
            found = _URL.fullmatch(url)
            if found is None or found[1] != wanted:
                msg = f"an endpoint of etcd is {url!r}: write {wanted}://HOST:PORT" + (
                    ", or name certificates" if wanted == "http" else ""
                )
                raise InvalidOptions(msg)

    @property
    def targets(self) -> tuple[str, ...]:
        """The endpoints as ``HOST:PORT``."""
        return tuple(re.sub(r"^https?://|/$", "", url) for url in self.urls)
