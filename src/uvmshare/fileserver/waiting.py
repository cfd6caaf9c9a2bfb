"""Waiting for a connection.

What lives here: how long a call waits for a peer. What must not: what is done when the time is over (`session`).
"""

from __future__ import annotations

import select
import socket
import struct
from typing import Final

__all__ = ["is_readable", "set_time_out"]

_SELECT_MOST: Final = 1024
"""``FD_SETSIZE``. select(2) waits to the microsecond, poll(2) to the millisecond."""


def is_readable(connection: socket.socket, seconds: float) -> bool:
    """Wait until there is something to read, or the time is over."""
    descriptor = connection.fileno()
    if descriptor < _SELECT_MOST:
        return bool(select.select([descriptor], [], [], seconds)[0])
    readable = select.poll()
    readable.register(descriptor, select.POLLIN)
    return bool(readable.poll(seconds * 1000))


def set_time_out(connection: socket.socket, seconds: float, *, sending: bool = False) -> None:
    """Have blocking calls that receive (or send) fail with `BlockingIOError` after so long; 0 is never (socket(7))."""
    whole, rest = divmod(seconds, 1)
    option = socket.SO_SNDTIMEO if sending else socket.SO_RCVTIMEO
    connection.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(whole), int(rest * 1_000_000)))
