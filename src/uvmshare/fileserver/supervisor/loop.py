"""The supervisor's one loop, and the listening sockets that it serves.

What lives here: `Loop`, which calls back when something is ready, and `Listening`, which accepts. What
must not: what is said on a connection (`connections`, `controllers`).
"""

from __future__ import annotations

import errno
import selectors
import time
from typing import TYPE_CHECKING, Final

from uvmshare.errors import AccessDenied

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uvmshare.fileserver.log import Log
    from uvmshare.fileserver.supervisor.listener import Listener

__all__ = ["READ", "WRITE", "Listening", "Loop"]

READ: Final = selectors.EVENT_READ
WRITE: Final = selectors.EVENT_WRITE

_NOTHING_LEFT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What accept(2) says when the host has no descriptors or memory for one more connection."""

_DEAF_SECONDS: Final = 1.0


class Loop:
    """Calls back for what is ready, in one thread.

    A callback may forget what is ready beside it: then that is not called any more in the same turn.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, what: int | socket.socket, callback: Callable[[int], None], events: int = READ) -> None:
        """Call `callback` with the events whenever there are any."""
        self._selector.register(what, events, callback)

    def change(self, what: int | socket.socket, events: int) -> None:
        """Wait for other events with the same callback."""
        key = self._selector.get_key(what)
        if key.events != events:
            self._selector.modify(what, events, key.data)

    def forget(self, what: int | socket.socket) -> None:
        """Watch it no more. Before it is closed."""
        self._selector.unregister(what)

    def turn(self, seconds: float | None) -> None:
        """Wait so long at most, None for ever, and call back for what is ready."""
        registered = self._selector.get_map()
        for key, events in self._selector.select(seconds):
            if registered.get(key.fd) is key:
                key.data(events)

    def close(self) -> None:
        """Let go of the selector."""
        self._selector.close()


class Listening:
    """The listening sockets, the guests' and the control socket.

    When the host has nothing left for one more connection, none of them is served for a second: a
    socket that stays ready would spin the loop. `relieve` is called then, to give something back.
    """

    def __init__(self, loop: Loop, log: Log, relieve: Callable[[], None]) -> None:
        self._loop = loop
        self._log = log
        self._relieve = relieve
        self._open: dict[Listener, Callable[[socket.socket, str], None]] = {}
        self._deaf_until: float | None = None

    def open(self, listener: Listener, welcome: Callable[[socket.socket, str], None]) -> None:
        """Call `welcome` with each connection that comes in, and who it is."""
        self._open[listener] = welcome
        if self._deaf_until is None:
            self._listen(listener)

    def close(self, listener: Listener) -> None:
        """Let nobody in there any more, and close it."""
        del self._open[listener]
        if self._deaf_until is None:
            self._loop.forget(listener.socket)
        listener.close()

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        return self._deaf_until

    def expire(self, now: float) -> None:
        """Listen again, when it is time."""
        if self._deaf_until is not None and self._deaf_until <= now:
            self._deaf_until = None
            for listener in self._open:
                self._listen(listener)

    def _listen(self, listener: Listener) -> None:
        self._loop.watch(listener.socket, lambda _: self._accept(listener))

    def _accept(self, listener: Listener) -> None:
        try:
            accepted = listener.accept()
        except AccessDenied as error:
            self._log(f"connection to {listener.address} refused: {error}")
            return
        except OSError as error:
            if error.errno not in _NOTHING_LEFT:
                raise
            self._log(f"cannot accept connections: {error.strerror}; trying again in a second")
            self._relieve()
            for each in self._open:
                self._loop.forget(each.socket)
            self._deaf_until = time.monotonic() + _DEAF_SECONDS
            return
        if accepted is not None:
            self._open[listener](*accepted)
