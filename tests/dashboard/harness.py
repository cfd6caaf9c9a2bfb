"""A dashboard in a thread of its own, on its real port, and a daemon that says what a test wants."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import queue
import socket
import sys
import threading
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.processes import DEADLINE

from uvmshare.dashboard.server import serve
from uvmshare.dashboard.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

assert sys.platform == "linux", "the dashboard runs on Linux"


class Viewer:
    """A browser's side of one connection."""

    def __init__(self, port: int, cookie: str | None = None) -> None:
        self.port = port
        self.cookie = cookie
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)

    def get(self, path: str = "/", method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        if self.cookie is not None:
            headers.setdefault("Cookie", self.cookie)
        self.connection.request(method, path, headers=headers)
        return self.connection.getresponse()

    def enter(self, link: str) -> Viewer:
        """Use the link, and keep the cookie."""
        answer = self.get("/?" + urlsplit(link).query)
        assert answer.status == 200, answer.read()
        answer.read()
        cookie = answer.headers["Set-Cookie"]
        self.cookie = cookie.partition(";")[0]
        return self

    def another(self) -> Viewer:
        """Return another tab of the same browser."""
        return Viewer(self.port, self.cookie)

    def messages(self) -> Iterator[tuple[str, Any]]:
        """Give the kind and the document of each message of the stream."""
        answer = self.get("/stream")
        assert answer.status == 200, answer.read()
        assert answer.headers["Content-Type"] == "text/event-stream"
        kind = ""
        while line := answer.readline():
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "event":
                kind = value
            elif field == "data":
                yield kind, json.loads(value)

    def until(self, wanted: Callable[[str, Any], bool]) -> Any:
        """Return the first document of the stream that is wanted."""
        return next(document for kind, document in self.messages() if wanted(kind, document))

    def view(self, wanted: Callable[[Any], bool] = lambda _: True) -> Any:
        """Return the first view that is wanted."""
        return self.until(lambda kind, document: kind == "view" and wanted(document))

    def close(self) -> None:
        self.connection.close()


class Dashboard:
    """A dashboard that serves."""

    def __init__(self) -> None:
        self.link = ""
        self.told: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    @contextlib.contextmanager
    def running(cls, host: str, **settings: Any) -> Iterator[Dashboard]:
        """Run one to the end of the block."""
        dashboard = cls()
        ready = threading.Event()
        failures: list[BaseException] = []

        def noted(link: str) -> None:
            dashboard.link = link
            dashboard._loop, dashboard._task = asyncio.get_running_loop(), asyncio.current_task()
            ready.set()

        async def work() -> None:
            async with Source(host) as source:
                await serve(source, ready=noted, tell=dashboard.told.put, **settings)

        def run() -> None:
            try:
                asyncio.run(work())
            except asyncio.CancelledError:
                pass
            except BaseException as error:  # noqa: BLE001  the test raises it
                failures.append(error)
            finally:
                ready.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        assert ready.wait(DEADLINE)
        try:
            if failures:
                raise failures[0]
            yield dashboard
        finally:
            dashboard.end()
            thread.join(DEADLINE)
        assert not thread.is_alive()
        if failures:
            raise failures[0]

    def end(self) -> None:
        """End it, as Ctrl-C does."""
        if self._loop is not None and self._task is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._task.cancel)

    @property
    def port(self) -> int:
        port = urlsplit(self.link).port
        assert port is not None
        return port

    def viewer(self) -> Viewer:
        """Return a browser that is in. The link works once: another one is `Viewer.another`."""
        return Viewer(self.port).enter(self.link)

    def dial(self) -> socket.socket:
        """Connect, and say nothing."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
