"""The stream between the host and the agent in a guest: dialled by this side, or by the agent.

What lives here: one way to a connected stream for each kind of address. What must not: what is said on it
(`uvmshare.guest.wire`), or when to dial again (`uvmshare.mounts.agent_client`).

===================================  ===============================================================
``firecracker:UDS_PATH[:PORT]``      hybrid vsock: ``UDS_PATH`` is asked for the port with a line
``cloud-hypervisor:UDS_PATH[:PORT]``  ``CONNECT PORT`` and answers ``OK ...``; a guest that dials
                                     out arrives at ``UDS_PATH_PORT``
``vsock:CID[:PORT]``                 a vsock port of that guest; a guest that dials out has that CID
``tcp:HOST:PORT``, ``unix:PATH``     as they stand; for tests, QEMU's user network and serial ports
===================================  ===============================================================

Sources: Firecracker's docs/vsock.md, Cloud Hypervisor's docs/vsock.md, vsock(7).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import stat
import sys
from typing import TYPE_CHECKING, Protocol, TypeVar

from uvmshare.errors import UnsupportedPlatform
from uvmshare.guest import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.address import Address

__all__ = ["Acceptor", "Dialler", "Runner", "Stream", "Streams", "ask_for_port"]

T = TypeVar("T")

_LONGEST_ANSWER = 64
"""Bytes of hybrid vsock's answer: "OK " and a port."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Streams(Protocol):
    """Where connected streams come from."""

    async def next(self) -> Stream:
        """Return a new stream. Raises `OSError`, or `EOFError` when the other end hangs up at once."""

    async def aclose(self) -> None:
        """End it; streams that were given out stay."""


class Dialler:
    """Streams that this side dials."""

    def __init__(self, address: Address) -> None:
        self._address = address

    async def next(self) -> Stream:
        """Dial once."""
        address = self._address
        if address.kind == "tcp":
            return await asyncio.open_connection(address.host, address.port, limit=wire.MAX_LINE)
        if address.kind == "vsock":
            return await asyncio.open_connection(sock=await _dial_vsock(address.cid, address.port), limit=wire.MAX_LINE)
        if sys.platform == "win32":
            raise _not_here(address)
        reader, writer = await asyncio.open_unix_connection(address.path, limit=wire.MAX_LINE)
        if address.kind != "unix":
            try:
                await ask_for_port(reader, writer, address.port)
            except BaseException:
                writer.close()
                raise
        return reader, writer

    async def aclose(self) -> None:
        """Nothing is kept between two dials."""


async def _dial_vsock(cid: int, port: int) -> socket.socket:
    if sys.platform != "linux":
        msg = f"vsock:{cid}: this system has no such sockets"
        raise UnsupportedPlatform(msg)
    dialling = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        await asyncio.get_running_loop().sock_connect(dialling, (cid, port))
    except BaseException:
        dialling.close()
        raise
    return dialling


async def ask_for_port(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Ask hybrid vsock, on a stream to its socket, for a port of the guest. Raises `OSError`."""
    writer.write(b"CONNECT %d\n" % port)
    answer = await reader.readline()
    if not answer.startswith(b"OK ") or len(answer) > _LONGEST_ANSWER:
        why = f"answered {answer[:_LONGEST_ANSWER]!r}" if answer else "hung up"
        msg = f"the VM's vsock {why}: nothing in the guest listens on port {port}"
        raise ConnectionRefusedError(msg)


class Runner(Protocol):
    """Runs what touches the file system, with rights that it decides about."""

    async def __call__(self, work: Callable[[], T], /) -> T:
        """Return what `work` returns."""


async def _run_here(work: Callable[[], T], /) -> T:
    return work()


class Acceptor:
    """Streams that the agent dials: ``uvmshare guest agent --connect``. The newest one counts."""

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._waiting: asyncio.Queue[Stream] = asyncio.Queue()
        self._server: asyncio.Server | None = None
        self._path = ""
        self._own_file: tuple[int, int] | None = None
        self._cid = 0
        self._closed = False
        self.port = 0
        """The TCP port that was bound, when the address said 0."""

    @classmethod
    async def start(cls, address: Address, *, mode: int = 0o600, run: Runner = _run_here) -> Acceptor:
        """Listen. A unix socket is made, with that mode, and removed by what `run` runs.

        Raises `OSError` when the address is taken.
        """
        acceptor = cls(run)
        if address.kind == "tcp":
            server = await asyncio.start_server(acceptor._take, address.host, address.port, limit=wire.MAX_LINE)
            acceptor.port = server.sockets[0].getsockname()[1]
        elif address.kind == "vsock":
            acceptor._cid = address.cid
            server = await asyncio.start_server(acceptor._take, sock=_listen_vsock(address.port), limit=wire.MAX_LINE)
        elif sys.platform == "win32":
            raise _not_here(address)
        else:
            path = address.socket_path
            listening, acceptor._own_file = await run(lambda: _listen_unix(path, mode))
            acceptor._path = path
            server = await asyncio.start_unix_server(acceptor._take, sock=listening, limit=wire.MAX_LINE)
        acceptor._server = server
        return acceptor

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Closing does not reach one that was taken from the kernel and has not come here yet.
        if self._closed or (self._cid and writer.get_extra_info("peername")[0] != self._cid):
            writer.close()
            return
        while not self._waiting.empty():
            _, older = self._waiting.get_nowait()
            older.close()
        self._waiting.put_nowait((reader, writer))

    async def next(self) -> Stream:
        """Wait for the agent to dial."""
        return await self._waiting.get()

    async def aclose(self) -> None:
        """Listen no more, and let those go that nobody took."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        while not self._waiting.empty():
            _, writer = self._waiting.get_nowait()
            writer.close()
        if self._path:
            with contextlib.suppress(OSError):
                await self._run(lambda: _unlink_own(self._path, self._own_file))


def _listen_unix(path: str, mode: int) -> tuple[socket.socket, tuple[int, int]]:
    """Listen at `path`, in place of a socket that nobody listens on; say which file it is."""
    if sys.platform == "win32":
        raise _not_here(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_dead(path)
        listening.bind(path)
        os.chmod(path, mode)
        listening.listen()
        listening.setblocking(False)  # noqa: FBT003  it takes no keyword
        found = os.lstat(path)
    except BaseException:
        listening.close()
        raise
    return listening, (found.st_dev, found.st_ino)


def _remove_dead(path: str) -> None:
    if sys.platform == "win32":
        raise _not_here(path)
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise OSError(errno.EADDRINUSE, "a file that is no socket is in the way", path)
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003  as above; a full queue says that somebody is there
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "somebody listens there already", path)


def _unlink_own(path: str, own: tuple[int, int] | None) -> None:
    found = os.lstat(path)
    if (found.st_dev, found.st_ino) == own:
        os.unlink(path)


def _listen_vsock(port: int) -> socket.socket:
    if sys.platform != "linux":
        msg = f"vsock port {port}: this system has no such sockets"
        raise UnsupportedPlatform(msg)
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listening.bind((socket.VMADDR_CID_ANY, port))
        listening.listen()
    except BaseException:
        listening.close()
        raise
    return listening


def _not_here(address: Address | str) -> UnsupportedPlatform:
    return UnsupportedPlatform(f"{address}: Windows' asyncio has no unix sockets: use tcp:")
