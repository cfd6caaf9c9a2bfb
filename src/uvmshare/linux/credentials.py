"""Who is at the other end of a unix socket.

What lives here: asking the kernel. What must not: who may be there.
"""

from __future__ import annotations

import socket
import struct
from typing import Final, NamedTuple

__all__ = ["Credentials", "credentials"]

_UCRED: Final = struct.Struct("iII")
"""``struct ucred`` of unix(7)."""


class Credentials(NamedTuple):
    """The process that opened the other end, and its user and group, as they were then."""

    pid: int
    uid: int
    gid: int


def credentials(connection: socket.socket) -> Credentials:
    """Return who opened the other end of a unix socket (unix(7), SO_PEERCRED). Raises `OSError` for any other socket.

    A pid of 0 is a process of another PID namespace; the uid 0xffffffff is that of nobody who is known.
    """
    return Credentials(*_UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)))
