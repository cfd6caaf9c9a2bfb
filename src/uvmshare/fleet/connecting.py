"""How a fleet's etcd is opened: its addresses and certificates, from a fleet file.

What lives here: `connecting`. What must not: what is asked of etcd.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from uvmshare.errors import DaemonError
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Certificates, Endpoints

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from uvmshare.etcd.protocol import Store
    from uvmshare.fleet.hostfile import Ends

__all__ = ["connecting"]


def connecting(ends: Ends) -> Callable[[], AbstractAsyncContextManager[Store]]:
    """Return what opens etcd. Raises `DaemonError` for certificates that cannot be read, `InvalidOptions`."""
    endpoints = Endpoints(ends.endpoints, _certificates(ends))

    @asynccontextmanager
    async def connect() -> AsyncIterator[Store]:
        store = EtcdStore(endpoints)
        try:
            yield store
        finally:
            await store.close()

    return connect


def _certificates(ends: Ends) -> Certificates | None:
    if ends.ca is None or ends.certificate is None or ends.key is None:
        return None
    return Certificates(_content(ends.ca), _content(ends.certificate), _content(ends.key))


def _content(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        msg = f"{path}: {error.strerror}: see that the fleet file names what is there"
        raise DaemonError(msg) from error
