"""Guests' connections before their attach.

What lives here: `Connections`: how many there may be, how long a handshake may take, and how many may be half-open.
What must not: which peers may connect (`listener`), what is said in a handshake (`handshake`), which shares there are
(`shares`).
"""

from __future__ import annotations

import errno
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from uvmshare.errors import UvmshareError
from uvmshare.fileserver.handshake import Handshake
from uvmshare.ninep import messages

if TYPE_CHECKING:
    import socket

    from uvmshare.fileserver.handshake import Attach
    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.log import Log
    from uvmshare.fileserver.supervisor.loop import Loop

__all__ = ["AttachTaker", "Connections", "HalfOpen"]

_RECEIVE: Final = 64 * 1024


@dataclass(slots=True, eq=False)
class HalfOpen:
    """A connection that has not attached yet."""

    number: int
    socket: socket.socket
    peer: str
    deadline: float
    handshake: Handshake


class AttachTaker(Protocol):
    """What becomes of a connection that asks for an attach."""

    @property
    def mount_count(self) -> int:
        """How many there are."""

    def admit(self, connection: HalfOpen, attach: Attach) -> int | None:
        """Say why an attach is refused, as an errno; None when it is good."""

    def begin(self, connection: HalfOpen, attach: Attach) -> None:
        """Hand the connection to a mount process. Raises `OSError`."""


class Connections:
    """Connections that have not attached yet, oldest first."""

    def __init__(self, loop: Loop, log: Log, limits: Limits, mounts: AttachTaker, count: int = 0) -> None:
        """`count` is the number of the last connection before these."""
        self._loop = loop
        self._log = log
        self._limits = limits
        self._mounts = mounts
        self._count = count
        self._half_open: dict[int, HalfOpen] = {}  # oldest first, because dicts keep their order

    def __len__(self) -> int:
        return len(self._half_open)

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        for first in self._half_open.values():
            return first.deadline
        return None

    def expire(self, now: float) -> None:
        """Drop those whose time is over."""
        for half in list(self._half_open.values()):
            if half.deadline > now:
                break
            self._drop(half, "no attach before the deadline")

    def close(self) -> None:
        """Drop them all."""
        for half in list(self._half_open.values()):
            self._drop(half, None)

    def relieve(self) -> None:
        """Drop the oldest, because the host has nothing left."""
        if self._half_open:
            self._drop(next(iter(self._half_open.values())), "the host has no descriptors left")

    def welcome(self, connection: socket.socket, peer: str) -> None:
        """Take a new connection, or close it when there are too many."""
        limits = self._limits
        if len(self._half_open) >= limits.half_open:
            self._drop(next(iter(self._half_open.values())), f"more than {limits.half_open} connections wait to attach")
        self._count += 1
        if len(self._half_open) + self._mounts.mount_count >= limits.connections:
            connection.close()
            self._log(f"connection {self._count} ({peer}): there are {limits.connections} already; connection closed")
            return
        half = HalfOpen(
            self._count,
            connection,
            peer,
            time.monotonic() + limits.handshake_seconds,
            Handshake(limits.msize),
        )
        self._half_open[half.number] = half
        self._loop.watch(connection, lambda _: self._on_handshake(half))

    def _drop(self, half: HalfOpen, reason: str | None) -> None:
        """Forget a connection that has not attached, and close it."""
        del self._half_open[half.number]
        self._loop.forget(half.socket)
        if reason is not None:
            self._log(f"connection {half.number} ({half.peer}): {reason}; connection closed")
        half.socket.close()

    def _on_handshake(self, half: HalfOpen) -> None:
        try:
            data = half.socket.recv(_RECEIVE)
            if not data:
                broken_off = half.handshake.is_inside_message
                self._drop(half, "the connection ended inside a message" if broken_off else None)
                return
            while True:
                replies, attach = half.handshake.feed(data)
                if attach is None:
                    _say(half, replies)
                    return
                refusal = self._mounts.admit(half, attach)
                if refusal is None:
                    _say(half, replies)
                    self._mounts.begin(half, attach)
                    self._drop(half, None)
                    return
                _say(half, replies + messages.Rlerror(refusal).encode(attach.tag))
                data = attach.rest
        except BlockingIOError:
            return
        except (UvmshareError, OSError) as error:
            self._drop(half, str(error))


def _say(half: HalfOpen, replies: bytes) -> None:
    """Send the few bytes of a handshake: a peer whose socket has no room for them is not a guest."""
    if replies and half.socket.send(replies) != len(replies):
        raise OSError(errno.EPIPE, "the guest does not take the replies of its handshake")
