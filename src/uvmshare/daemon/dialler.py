"""The way to a guest's agent with the rights of the VM's user.

What lives here: dialling a unix socket (hybrid vsock's too) as somebody else, and looking up the names that they give.
What must not: what is said then.

A daemon that runs as root would else connect, as root, to whatever socket a user calls their agent. Names are looked up
on that user's threads, since who answers for a name may be the user, and never answer: asyncio's own few threads for
that are everybody's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from functools import partial
from typing import TYPE_CHECKING

from uvmshare.errors import AccessDenied, HostPathHangs
from uvmshare.hostfiles import open_path
from uvmshare.mounts.channel import READ_AHEAD, Dialler, ask_for_port

if TYPE_CHECKING:
    from uvmshare.address import Address
    from uvmshare.daemon.identity import Identity, Threads
    from uvmshare.mounts.channel import Stream
    from uvmshare.peers import Allowed

__all__ = ["UserDialler"]

_SECONDS = 5.0
"""A unix socket answers at once, or its queue is full."""


class UserDialler(Dialler):
    """Streams that are dialled with the rights of a user. Those of vsock need none."""

    def __init__(self, address: Address, users: Allowed, user: Identity, threads: Threads) -> None:
        super().__init__(address, users)
        self._path = address.path
        self._port = address.port if address.kind != "unix" else None
        self._user = user
        self._threads = threads

    async def next(self) -> Stream:
        """Dial once. Raises `OSError`, also when the user may not connect there or the path does not answer."""
        if not self._path:
            return await super().next()
        connection = await self._threads.acting_as(self._user, self._path, self._connect)
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=READ_AHEAD)
        if self._port is not None:
            try:
                await ask_for_port(reader, writer, self._port)
            except BaseException:
                writer.close()
                raise
        return reader, writer

    async def _dial_tcp(self, host: str) -> Stream:
        look_up = partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
        try:
            found = await self._threads.acting_as(self._user, host, look_up)
        except HostPathHangs as error:
            msg = f"the name {host} was not looked up in time: give an address in numbers"
            raise TimeoutError(errno.ETIMEDOUT, msg) from error
        failure: OSError | None = None
        for place in dict.fromkeys(str(each[4][0]) for each in found):
            try:
                return await super()._dial_tcp(place)
            except OSError as error:
                failure = failure or error
        raise failure or OSError(errno.ENXIO, f"the name {host} has no address")

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(_SECONDS)
            # Not by a link of /proc: what the daemon itself has open would be reached whoever asks.
            file = open_path(self._path)
            try:
                connection.connect(f"/proc/self/fd/{file}")
            finally:
                os.close(file)
            try:
                self._require_known(connection)
            except AccessDenied as error:
                raise PermissionError(errno.EACCES, str(error)) from error
            connection.setblocking(False)  # noqa: FBT003  it takes no keyword
        except BaseException:
            connection.close()
            raise
        return connection
