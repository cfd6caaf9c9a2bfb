"""The dashboard as a process: its port on loopback, who may connect to it, and the beginning and end of it all.

What lives here: `serve`. What must not: what is served (`site`), or how it is told to the user (`uvmshare.cli`).

The process runs as the user who asked, and speaks to the daemon as that user: so the page shows what that user may see,
and the daemon alone decides that. Of each connection to the port the kernel says whose it is, before a byte is read.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import traceback
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from uvmshare import peers
from uvmshare.daemon.connections import ClientConnection, configured, cut_late
from uvmshare.daemon.identity import of_process
from uvmshare.dashboard.door import Door
from uvmshare.dashboard.site import Site
from uvmshare.dashboard.stream import ViewerStreams
from uvmshare.dashboard.watcher import Watcher
from uvmshare.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from uvmshare.daemon.identity import Identity
    from uvmshare.dashboard.watcher import WatchedDaemon

__all__ = ["serve"]

_GRACE: Final = 2
"""Seconds for streams to say that the process ends."""

_LINES: Final = 5
_MINUTE: Final = 60.0
"""Others may connect as often as they like, and are told of so many times a minute."""


async def serve(
    source: WatchedDaemon,
    *,
    port: int = 0,
    allow_uids: Collection[int | str] = (),
    ready: Callable[[str], None],
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the page on 127.0.0.1 until it is cancelled. `ready` is called once with the link, which works once.

    `port` 0 is any that is free. Besides this process's user and root, `allow_uids` may connect; whoever connects needs
    the link, too. `tell` gets a line of what goes wrong with a connection. Raises what the daemon says when it is asked
    first, and `DaemonError` when it does not answer or when the port cannot be had.
    """
    asyncio.get_running_loop().set_exception_handler(_without_late_readers)
    await source.info()
    with _listening(port) as listener:
        door = Door(listener.getsockname()[1])
        watcher = Watcher(source)
        streams = ViewerStreams(watcher)
        connections = _protocol(peers.of_this_process(allow_uids), tell)
        server = _Server(configured(Site(door, watcher, streams), connections, grace=_GRACE))
        watching = asyncio.create_task(watcher.run())
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        ready(door.link)  # it listens already
        try:
            await asyncio.wait({watching, serving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            watching.cancel()
            streams.close()
            server.should_exit = True
            await asyncio.wait({watching, serving})
            await cut_late(server)
        for task in (watching, serving):
            if not task.cancelled():
                task.result()


def _without_late_readers(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report what nobody caught, but for one: anyio's reader of a unix socket that was cancelled as its bytes came."""
    if not _is_late_reader(context.get("exception")):
        loop.default_exception_handler(context)


def _is_late_reader(error: BaseException | None) -> bool:
    if not isinstance(error, asyncio.InvalidStateError):
        return False
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(modules) and modules[-1].startswith("anyio.")


class _Server(uvicorn.Server):
    """uvicorn's server without its signals, which are the command's."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]  # it is a generator there
        return contextlib.nullcontext()


def _protocol(users: peers.Allowed, tell: Callable[[str], None]) -> type[ClientConnection]:
    """Return the class of one dashboard's connections, which are counted together."""
    told: list[float] = []

    class OfDashboard(ClientConnection):
        def identify(self, transport: asyncio.Transport) -> Identity:
            """See that the kernel knows the other end as one of these users'. All are the page's user then."""
            peers.require_peer(transport.get_extra_info("socket"), users)
            return of_process()

        @property
        def _is_limited(self) -> bool:
            return True

        def _log(self, event: str, **more: object) -> None:
            now = self.loop.time()
            told[:] = [time for time in told if now - time < _MINUTE]
            if len(told) < _LINES:
                told.append(now)
                tell(f"{event}: {more['reason']}" if "reason" in more else event)

    return OfDashboard


@contextlib.contextmanager
def _listening(port: int) -> Iterator[socket.socket]:
    with socket.socket() as listener:
        # As every server: the last one's connections may wait for their end still.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen()
        except OSError as error:
            remedy = "choose another with --port"
            if error.errno == errno.EACCES:
                remedy = "choose one from 1024 on with --port"
            msg = f"port {port} of 127.0.0.1: {os.strerror(error.errno or 0)}: {remedy}, or leave it out"
            raise DaemonError(msg) from error
        listener.setblocking(False)  # noqa: FBT003  it takes no keyword
        yield listener
