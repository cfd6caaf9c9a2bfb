"""What viewers get, as server-sent events: the whole view when something changed, and what happened since the last.

What lives here: the messages to one viewer. What must not: what is in them (`view`), or the connection (`site`).

A viewer that reads slowly holds one message, and gets the newest view when it has taken that: the ones in between are
never made for it. So memory does not grow with its slowness.
"""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from uvmshare.dashboard.watcher import Watcher

__all__ = ["ViewerStreams"]

_RETRY_MS: Final = 2000
"""For the browser, before it connects again."""

_FRESH: Final = 0.25
"""Seconds: a view that is not older is sent to others too, since ages in it are told in seconds."""


class ViewerStreams:
    """The streams of all viewers of one watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._closed = False
        self._encoded = b""
        self._encoded_at = (-1, -math.inf)
        """The version of that view, and the loop's time then."""

    def close(self) -> None:
        """End every stream with a word of it: the process ends."""
        self._closed = True
        self._watcher.tell()

    async def messages(self, gone: asyncio.Event) -> AsyncGenerator[bytes, None]:
        """Give one viewer's messages, until `close` or until it is gone."""
        watcher = self._watcher
        told, version = 0, 0  # a view comes when the daemon was asked for the first time
        with watcher.looking() as news:
            waiting = asyncio.create_task(gone.wait())
            waiting.add_done_callback(lambda _: news.set())
            try:
                yield b"retry: %d\n\n" % _RETRY_MS
                while not gone.is_set():
                    news.clear()
                    if self._closed:
                        yield _message(b"end", {})
                        return
                    happened = [each for each in watcher.events if each.number > told]
                    if happened:
                        missed = happened[0].number > told + 1 and told > 0
                        told = happened[-1].number
                        events = [*([None] if missed else []), *(each.event for each in happened)]
                        yield _message(b"happened", events)
                    elif version != watcher.version:
                        version = watcher.version
                        yield self._view()
                    else:
                        await news.wait()
            finally:
                waiting.cancel()

    def _view(self) -> bytes:
        version, now = self._watcher.version, asyncio.get_running_loop().time()
        if self._encoded_at[0] != version or now - self._encoded_at[1] > _FRESH:
            self._encoded = _message(b"view", self._watcher.view())
            self._encoded_at = (version, now)
        return self._encoded


def _message(kind: bytes, document: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind, msgspec.json.encode(document))
