"""What a service tells the service manager that started it.

What lives here: sd_notify(3). What must not: what is told, and when.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["notify"]


def notify(*lines: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Tell the service manager something, such as READY=1 (sd_notify(3)); False when there is none that listens."""
    address = environment.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall("\n".join(lines).encode())
        return True
    return False
