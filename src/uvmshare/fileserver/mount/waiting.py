"""How long a call on a connection waits, and how a peer that is gone is noticed.

What lives here: time-outs, bytes that the peer has not taken, and probes. What must not: what is done when the time is
over (`serving`).
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import sys
import threading
import time
from typing import Final

from uvmshare.guest import keepalive

__all__ = ["COUNT_UNTAKEN", "is_readable", "notice_death", "probe_for_ever", "set_time_out", "untaken"]

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


COUNT_UNTAKEN: Final = 0x5411
"""``SIOCOUTQ``, by asm-generic/ioctls.h: bytes that the peer has not read (unix(7)) or acknowledged (tcp(7))."""


def untaken(connection: socket.socket) -> int:
    """Return how much of what was sent the peer has not taken, as the kernel counts it; 0 is nothing.

    0 also where the kernel does not tell, as of vsock before Linux 6.11.
    """
    try:
        return int.from_bytes(fcntl.ioctl(connection.fileno(), COUNT_UNTAKEN, bytes(4)), sys.byteorder)
    except OSError:
        return 0


_PROBES: Final = 3
"""Questions of the kernel's that a peer may leave unanswered."""

_ROOM: Final = 4 << 20
"""How large the buffer of a vsock connection may become: with a probe every 30 s in four years. It is the host's
memory, and whoever breaks into a mount process could fill it at once."""


def notice_death(connection: socket.socket, seconds: float) -> None:
    """Have a TCP connection end when its peer's kernel has answered nothing for so long; others end by themselves.

    The kernel asks when nothing is sent (SO_KEEPALIVE), and waits no longer for what was sent to be acknowledged
    (TCP_USER_TIMEOUT), see tcp(7). Without, a peer that died without a word keeps its locks for ever. Vsock connections
    are made ready for `probe_for_ever`.
    """
    if connection.family not in (socket.AF_INET, socket.AF_INET6):
        keepalive.allow_probes(connection, _ROOM)
        return
    each = max(1, int(seconds / (_PROBES + 1)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, each)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, each)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))


def probe_for_ever(connection: socket.socket, seconds: float) -> None:
    """Have a vsock connection end within so many seconds of its peer's loss; `notice_death` came before.

    A peer that knows nothing of the connection, as a guest that was restored or started anew, answers the next probe
    with a reset (`uvmshare.guest.keepalive`). That is seen in whatever this process does meanwhile, also in a send
    that waits for a peer without room; hence a thread, which other kinds of connections do not get. It needs what
    `seccomp.allowed_calls` allows over vsock, and is started when the process is confined, since Landlock and seccomp
    hold the thread that asks and those which it starts.
    """
    if connection.family != socket.AF_VSOCK:
        return

    def probe() -> None:
        while True:
            time.sleep(seconds / 2)
            keepalive.probe(connection)

    threading.Thread(target=probe, name="probes", daemon=True).start()


def set_time_out(connection: socket.socket, seconds: float, *, sending: bool = False) -> None:
    """Have blocking calls that receive (or send) fail with `BlockingIOError` after so long; 0 is never (socket(7))."""
    whole, rest = divmod(seconds, 1)
    option = socket.SO_SNDTIMEO if sending else socket.SO_RCVTIMEO
    # Python 3.11 takes no bytes for a vsock socket: the descriptor gets an object of another family for a moment.
    plain = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=connection.fileno())
    try:
        plain.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", int(whole), int(rest * 1_000_000)))
    finally:
        plain.detach()
