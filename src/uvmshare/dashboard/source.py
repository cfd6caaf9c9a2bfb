"""What the daemon is asked, over its unix socket and so with the rights of the user whose process this is.

What lives here: `Source`, the daemon's client as the watcher asks it. What must not: when that is (`watcher`).
"""

from __future__ import annotations

from typing import Final

from uvmshare.daemon import client_calls
from uvmshare.daemon.client import AsyncClient
from uvmshare.daemon.client_methods import Awaited

__all__ = ["Source"]

_SECONDS: Final = 15.0
"""For an answer. The daemon itself waits for a VM that it looks for, and for a file system, some seconds less."""


class Source(AsyncClient):
    """The daemon, for one who only looks. Methods raise what it said, and `DaemonError` when it says nothing."""

    def __init__(self, host: str | None = None) -> None:
        super().__init__(host, timeout=_SECONDS)

    stats = Awaited(client_calls.stats)

    @property
    def path(self) -> str:
        """Where the daemon's socket is."""
        return self._path
