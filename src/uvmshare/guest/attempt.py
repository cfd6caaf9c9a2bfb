"""A child of the agent's that mounts or unmounts, and its end at a deadline.

What lives here: `Attempt`. What must not: how long it may take, which the host's request says (`uvmshare.guest.agent`
where it does not, `uvmshare.guest.table` where the agent mounts by itself); what follows from how it ended
(`uvmshare.guest.table`), or what the child does (`uvmshare.guest.work`). Standard library only (Python 3.9): it runs in
guests.
"""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, Any

from uvmshare.guest import wire
from uvmshare.guest.loop import Child
from uvmshare.guest.wire import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.guest.loop import Loop
    from uvmshare.guest.table import AgentMount

__all__ = ["LEAVE", "Attempt", "hang_up"]

LEAVE = 5.0
"""Seconds that a child has to end after its connection was cut."""


def hang_up(transport: socket.socket) -> None:
    """Cut a connection to the file server, if it is not cut already."""
    with contextlib.suppress(OSError):  # then it is hung up already
        transport.shutdown(socket.SHUT_RDWR)


class Attempt:
    """One mounting or unmounting, from the start of its child to the call of `ended`.

    At the deadline its connection is cut, which is the only thing that ends a mount(2) or umount(2) that waits for a
    server; a child that has none yet is killed.
    """

    def __init__(
        self,
        loop: Loop,
        record: AgentMount,
        task: Callable[[Any], None],
        timeout: float,
        ended: Callable[[Attempt], None],
        *,
        transport: socket.socket | None = None,
        otherwise: str = wire.FAILED,
    ) -> None:
        self._loop = loop
        self._otherwise = otherwise
        self._path = record.path
        self.timeout = timeout
        self._ended = ended
        self.done = False
        """It said that it is done, be it mounting or unmounting."""
        self.made: list[str] = []
        self.chosen = ""
        self.transport = transport
        self._own_transport = False
        self.error: RequestError | None = None
        self.given_up = False
        self._timer_runs = True
        try:
            self._child = Child(loop, task, self._message, self._end)
        except OSError as error:
            self.error = RequestError(wire.FAILED, f"{self._path}: no process can be started for it: {error.strerror}")
            self._timer = loop.later(0.0, self._end)
        else:
            self._timer = loop.later(timeout, self._give_up)

    def take_transport(self) -> socket.socket | None:
        """Return the mount's socket; it is the caller's now."""
        self._own_transport = False
        return self.transport

    def _message(self, message: dict[str, Any], descriptors: list[int]) -> None:
        if descriptors:
            self.transport = socket.socket(fileno=descriptors[0])
            self._own_transport = True
        if "error" in message:
            code, words = message["error"]
            self.error = RequestError(code, words)
        elif "done" in message:
            self.done = True
            self.made = message.get("made", [])
            self.chosen = message.get("chosen", "")

    def _give_up(self) -> None:
        self._child.hear()
        if not self._timer_runs:
            return
        if self.transport is not None and not self.given_up:
            self.given_up = True
            hang_up(self.transport)
            self._timer = self._loop.later(LEAVE, self._give_up)
            return
        # Without a connection it has not called mount(2) yet; with one it hangs although that was cut.
        if self.given_up:
            self.error = RequestError(wire.UNKNOWN, f"{self._path}: the kernel does not come back from it")
        self.given_up = True
        self._child.give_up()
        self._end()

    def _end(self) -> None:
        self._timer_runs = False
        self._timer.cancel()
        unmounted = self.done and self._otherwise == wire.UNKNOWN  # cutting the connection is what it needed
        if self.given_up and not unmounted and (self.error is None or self.error.code == wire.FAILED):
            self.error = RequestError(
                self._otherwise, f"{self._path}: the host did not answer within {self.timeout:g} s"
            )
        self._ended(self)
        if self._own_transport and self.transport is not None:
            self.transport.close()
