"""How one end of a connection learns that the other is gone without a word: a host that died, a guest restored.

What lives here: what is set on a connection once (`begin`), and what is done to it again and again (`probe`). What must
not: which connections there are. Standard library only (Python 3.9): it runs in guests. The file server probes its
vsock connections in the same way (`uvmshare.fileserver.mount.waiting`).

TCP does it by itself once it is told to. Vsock has no keep-alives, and nothing in it times out: a request that waits
for its answer waits for ever. But its transports answer a packet of a connection that they do not know with a reset,
and a socket whose buffer is made larger tells the other end so at once (virtio's credit update; seen with Linux 6.1
and 6.12). So a probe makes the buffer one byte larger. The reset ends the socket for everybody who waits in it: the
requests of a mount come back with an error. Each probe is one packet, and a byte of what the buffer may hold at most.
"""

from __future__ import annotations

import contextlib
import socket

__all__ = ["BUFFER_SIZE", "PROBE_EVERY", "allow_probes", "begin", "probe"]

PROBE_EVERY = 2.0
"""Seconds between two probes: as long as TCP is silent before its own."""

_TCP = {"TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 4_000}
"""A host that is gone without a word is noticed after 5 s: it is the next machine, so that no packet takes longer, and
a paused guest has no clock that goes on. TCP_USER_TIMEOUT, in milliseconds, is for requests that are out (tcp(7))."""

BUFFER_SIZE, _BUFFER_MAX_SIZE = 0, 2
"""SO_VM_SOCKETS_BUFFER_SIZE and _MAX_SIZE of linux/vm_sockets.h: 64 bits, as Python passes them for this family."""
_ROOM = 1 << 30
"""How large a guest's buffer may become: with a probe every two seconds in some seventy years."""


def begin(connected: socket.socket) -> None:
    """Have a connected socket notice a lost connection, as far as that can be set once."""
    if connected.family in (socket.AF_INET, socket.AF_INET6):
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP.items():
            connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    else:
        allow_probes(connected, _ROOM)


def allow_probes(connected: socket.socket, room: int) -> None:
    """Let the buffer of a vsock socket grow to `room` bytes, one with each probe; others are left alone."""
    if connected.family == getattr(socket, "AF_VSOCK", None):
        with contextlib.suppress(OSError):  # a transport of another kind; then there are no probes
            connected.setsockopt(connected.family, _BUFFER_MAX_SIZE, room)


def probe(connected: socket.socket) -> None:
    """Send something that a peer which knows nothing of this connection answers with its end; on vsock alone."""
    if connected.family == getattr(socket, "AF_VSOCK", None):
        with contextlib.suppress(OSError):  # it has ended, which whoever watches it learns otherwise
            size = connected.getsockopt(connected.family, BUFFER_SIZE)
            connected.setsockopt(connected.family, BUFFER_SIZE, size + 1)
