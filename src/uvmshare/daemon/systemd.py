"""The daemon's part with systemd: sockets that systemd opened, and what it is told.

What lives here: sd_listen_fds(3) and sd_notify(3), so little that it needs no library. What must not: what is served.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from uvmshare.errors import DaemonError

if TYPE_CHECKING:
    from collections.abc import MutableMapping

__all__ = ["inherited_sockets", "watchdog_seconds"]

_FIRST: Final = 3
"""SD_LISTEN_FDS_START."""


def inherited_sockets(environment: MutableMapping[str, str] = os.environ) -> list[socket.socket]:
    """Return the sockets that systemd opened for this process, and take the variables away (sd_listen_fds(3)).

    Raises `DaemonError` for what is no listening unix socket.
    """
    pid, count = environment.pop("LISTEN_PID", ""), environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    sockets = []
    for descriptor in range(_FIRST, _FIRST + int(count)):
        os.set_inheritable(descriptor, False)  # noqa: FBT003  it takes no keyword
        given = socket.socket(fileno=descriptor)
        if given.family != socket.AF_UNIX or not given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            given.close()
            msg = f"systemd gave descriptor {descriptor}, which is no listening unix socket: see the .socket unit"
            raise DaemonError(msg)
        sockets.append(given)
    return sockets


def watchdog_seconds(environment: MutableMapping[str, str] = os.environ) -> float | None:
    """Return how often the service manager wants a sign of life: half of what it allows (sd_watchdog_enabled(3))."""
    microseconds = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", str(os.getpid()))
    if not microseconds.isdigit() or pid != str(os.getpid()):
        return None
    return int(microseconds) / 2_000_000
