"""Who is let in: the link that works once, the cookie that it is exchanged for, and what a request must not be.

What lives here: `Door`, which decides about a request from its head alone. What must not: sockets, and what is served.

A port on loopback is open to every program and user of this host, and to every page that the user's browser shows. So:

- The link holds a token of 256 bits. The first browser that opens it gets a cookie, and the token is void.
- The cookie is HttpOnly and SameSite=Strict, and lives as long as the browser and this process. A browser sends the
  cookies of 127.0.0.1 to every port there, so the kernel is asked too who connects (`server`).
- The Host header must name loopback. A page of another site that has its name resolve to 127.0.0.1 (DNS rebinding)
  sends that name.
- A browser that says where a request comes from (Sec-Fetch-Site, Origin) must not name another site or port.
- GET is the only method, since nothing can be changed here.
"""

from __future__ import annotations

import hmac
import re
import secrets
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Door", "Exchange", "Refusal"]

_LOOPBACK: Final = re.compile(rb"(?:127\.0\.0\.1|localhost|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
"""Hosts that are this host's own, whatever the port: `ssh -L` may have given it another number."""

_TOKEN_BYTES: Final = 32

_LOCKED: Final = (
    "This page is for whoever ran `uvmshare dashboard`. Open the link that it printed. "
    "The link lets one browser in, once: if it was used, end the command with Ctrl-C and run it again."
)


class Refusal(NamedTuple):
    """A request that is not answered with what it asks for."""

    status: int
    words: str


class Exchange(NamedTuple):
    """A request that gets the cookie, as a Set-Cookie header has it."""

    cookie: str


class Door:
    """Decides about requests to one port, and knows its one link and its one cookie."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._token: str | None = secrets.token_urlsafe(_TOKEN_BYTES)
        self._session = secrets.token_urlsafe(_TOKEN_BYTES)
        # The port is in the name, since all dashboards on this host share the cookies of 127.0.0.1.
        self._cookie_name = f"uvmshare-{port}"
        self.link = f"http://127.0.0.1:{port}/?token={self._token}"
        """What the user opens. It works once."""

    def decide(
        self, method: str, path: str, query: bytes, headers: Iterable[tuple[bytes, bytes]]
    ) -> Refusal | Exchange | None:
        """Return why a request is refused, the cookie that it gets, or None when it is to be answered.

        Header names are in lower case, as ASGI has them.
        """
        found: dict[bytes, list[bytes]] = {}
        for name, value in headers:
            found.setdefault(name, []).append(value)
        hosts = found.get(b"host", [])
        if len(hosts) != 1 or not _LOOPBACK.fullmatch(hosts[0]):
            return Refusal(421, "This port is reached as 127.0.0.1 or localhost, and by no other name.")
        if method != "GET":
            return Refusal(405, "Nothing can be changed here: GET is the only method.")
        known = self._is_known(found.get(b"cookie", []))
        token = _token_in(query) if path == "/" else None
        if token is not None and (known or self._use(token)):
            # A link may be opened from a page of another site, such as a terminal in the browser.
            return Exchange(f"{self._cookie_name}={self._session}; Path=/; HttpOnly; SameSite=Strict")
        if not known:
            return Refusal(403, _LOCKED)
        sites = found.get(b"sec-fetch-site", [])
        origins = found.get(b"origin", [])
        if any(site not in (b"same-origin", b"none") for site in sites) or any(
            origin != b"http://" + hosts[0] for origin in origins
        ):
            return Refusal(403, "Another site's page asked for this: open it by its own address.")
        return None

    def _use(self, token: str) -> bool:
        """Say whether the token is the link's, and make it void if so."""
        if self._token is None or not _same(token, self._token):
            return False
        self._token = None
        return True

    def _is_known(self, cookies: Iterable[bytes]) -> bool:
        known = False
        for line in cookies:
            for pair in line.decode("latin-1").split(";"):
                name, _, value = pair.strip().partition("=")
                known |= name == self._cookie_name and _same(value, self._session)
        return known


def _token_in(query: bytes) -> str | None:
    try:
        return parse_qs(query.decode("ascii"), max_num_fields=8).get("token", [None])[0]
    except ValueError:  # not ASCII, or too many fields: no link of ours
        return None


def _same(given: str, secret: str) -> bool:
    """Compare in a time that tells nothing of where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())
