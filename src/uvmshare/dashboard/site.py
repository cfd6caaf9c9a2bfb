"""The page's HTTP: four files, one stream, and the headers that keep them to this page.

What lives here: the ASGI application. What must not: who is let in (`door`), or what the stream says (`stream`).
"""

from __future__ import annotations

import asyncio
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from uvmshare.dashboard.door import Exchange, Refusal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from uvmshare.dashboard.door import Door
    from uvmshare.dashboard.stream import ViewerStreams
    from uvmshare.dashboard.watcher import Watcher

__all__ = ["MOST_VIEWERS", "Site"]

MOST_VIEWERS: Final = 64
"""Streams at a time. Each may hold a view that is not taken yet."""

_TEXT: Final = "text/plain; charset=utf-8"

_FILES: Final = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_HEADERS: Final = (
    # Nothing but these files, nothing inline, and no HTML that a script makes of text.
    (
        b"content-security-policy",
        (
            b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
            b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
            b"require-trusted-types-for 'script'; trusted-types 'none'"
        ),
    ),
    (b"cache-control", b"no-store"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)

_ENTERED: Final = (
    b'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="0;url=/">'
    b'<link rel="icon" href="/icon.svg" type="image/svg+xml">'  # or browsers ask for a file that there is not
    b'<title>uvmshare</title><a href="/">The dashboard</a></html>'
)
"""Not a redirection: where this page leads, the Strict cookie is sent along, wherever the link was opened."""


class Site:
    """The application, for one door and one watcher."""

    def __init__(self, door: Door, watcher: Watcher, streams: ViewerStreams) -> None:
        self._door = door
        self._watcher = watcher
        self._streams = streams
        here = files("uvmshare.dashboard")
        self._files = {path: ((here / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}

    async def __call__(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Answer one request (ASGI 3)."""
        path = scope["path"]
        decision = self._door.decide(scope["method"], path, scope["query_string"], scope["headers"])
        if isinstance(decision, Refusal):
            more = [(b"allow", b"GET")] if decision.status == 405 else []
            await _answer(send, decision.status, f"{decision.words}\n".encode(), _TEXT, more)
        elif isinstance(decision, Exchange):
            await _answer(send, 200, _ENTERED, "text/html; charset=utf-8", [(b"set-cookie", decision.cookie.encode())])
        elif path == "/stream":
            await self._stream(receive, send)
        elif path in self._files:
            await _answer(send, 200, *self._files[path])
        else:
            await _answer(send, 404, b"There is nothing at this path: the page is at /.\n", _TEXT)

    async def _stream(
        self, receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[dict[str, Any]], Awaitable[None]]
    ) -> None:
        if self._watcher.viewers >= MOST_VIEWERS:
            words = f"{MOST_VIEWERS} pages are open, and no more are served: close one.\n"
            await _answer(send, 503, words.encode(), _TEXT)
            return
        gone = asyncio.Event()

        async def until_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        listening = asyncio.create_task(until_gone())
        try:
            headers = [(b"content-type", b"text/event-stream"), *_HEADERS]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for message in self._streams.messages(gone):
                await send({"type": "http.response.body", "body": message, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            listening.cancel()


async def _answer(
    send: Callable[[dict[str, Any]], Awaitable[None]],
    status: int,
    body: bytes,
    kind: str,
    more: Iterable[tuple[bytes, bytes]] = (),
) -> None:
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *_HEADERS, *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
