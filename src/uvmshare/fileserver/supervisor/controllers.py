"""The peers on the control channel, as the supervisor sees them.

What lives here: `Controllers`: bytes in, requests out, and replies back. What must not: what a request
does (`main`), or the messages (`control`).
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from uvmshare.errors import UNREADABLE
from uvmshare.fileserver import control
from uvmshare.fileserver.supervisor.loop import READ, WRITE
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uvmshare.fileserver.log import Log
    from uvmshare.fileserver.supervisor.loop import Loop

__all__ = ["Controller", "Controllers"]

_RECEIVE: Final = 64 * 1024


@dataclass(slots=True, eq=False)
class Controller:
    """One peer."""

    socket: socket.socket
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    is_starter: bool = False


class Controllers:
    """The peers. `obey` is called with each request, `starter_left` when the one that started us hangs up."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        obey: Callable[[Controller, control.Request], None],
        starter_left: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._obey = obey
        self._starter_left = starter_left
        self._peers: set[Controller] = set()

    def add(self, connection: socket.socket, *, is_starter: bool = False) -> None:
        """Take requests from there."""
        connection.settimeout(0)
        controller = Controller(connection, is_starter=is_starter)
        self._peers.add(controller)
        self._loop.watch(connection, lambda events: self._on_ready(controller, events))

    def answer(self, controller: Controller, reply: control.Reply) -> None:
        """Send a reply, if its peer is still there."""
        if controller in self._peers:
            controller.outgoing += control.encode(reply)
            with suppress(OSError):  # its end is seen by reading
                self._send_rest(controller)
            if len(controller.outgoing) > control.MAX_MESSAGE:
                self._log("control channel: its peer takes no replies; channel closed")
                self._lose(controller)

    def close(self) -> None:
        """Send what is left, within a second each, and hang up."""
        for controller in self._peers:
            controller.socket.settimeout(1.0)
            with suppress(OSError):
                controller.socket.sendall(controller.outgoing)
            controller.socket.close()

    def _lose(self, controller: Controller) -> None:
        self._peers.discard(controller)
        self._loop.forget(controller.socket)
        controller.socket.close()
        if controller.is_starter:
            self._starter_left()

    def _on_ready(self, controller: Controller, events: int) -> None:
        try:
            if events & WRITE:
                self._send_rest(controller)
            if events & READ:
                data = controller.socket.recv(_RECEIVE)
                if not data:
                    self._lose(controller)
                    return
                controller.incoming += data
                for body in control.split(controller.incoming):
                    self._obey(controller, control.decode_request(body))
        except BlockingIOError:
            return
        except (OSError, *UNREADABLE) as error:
            self._log(f"control channel: {reason_of(error)}; channel closed")
            if controller in self._peers:
                self._lose(controller)

    def _send_rest(self, controller: Controller) -> None:
        with suppress(BlockingIOError):
            while controller.outgoing:
                del controller.outgoing[: controller.socket.send(controller.outgoing)]
        self._loop.change(controller.socket, READ | (WRITE if controller.outgoing else 0))
