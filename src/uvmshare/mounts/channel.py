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
import socket
import sys
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from uvmshare import peers
from uvmshare.errors import AccessDenied, UnsupportedPlatform
from uvmshare.guest import mount
from uvmshare.heard import logger
from uvmshare.linux.loopback import is_loopback

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.address import Address
    from uvmshare.hostfiles import Runner, SocketFile
    from uvmshare.peers import Allowed

__all__ = ["READ_AHEAD", "Acceptor", "AgentStreams", "Dialler", "Stream", "ask_for_port"]

T = TypeVar("T")

_log = logger("mounts")

_LONGEST_ANSWER = 64
"""Bytes of hybrid vsock's answer: "OK " and a port."""
READ_AHEAD = 32 * 1024
"""Bytes that a stream keeps for whoever reads it, about; then nothing more is taken from the guest."""
_MOST_WAITING = 16
"""Streams that were accepted and that nobody took yet. The oldest gives way: an agent that lost its connection dials
again, and one that says nothing may be anybody."""
_ACCEPT_EVERY = 0.02
"""Seconds between two streams that are accepted. A guest that dials a thousand times a second waits in the kernel."""
_TELL_EVERY = 60.0
"""Seconds between two lines about those who were refused at one port: every user of the host can dial there, as often
as they like, and would fill the log."""
_BACKLOG = 64

_LONGEST_CONNECT = 30
"""Seconds."""

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AgentStreams(Protocol):
    """Where connected streams come from."""

    async def next(self) -> Stream:
        """Return a new stream. Raises `OSError`, or `EOFError` when the other end hangs up at once."""

    async def aclose(self) -> None:
        """End it; streams that were given out stay."""


class Dialler:
    """Streams that this side dials."""

    def __init__(self, address: Address, users: Allowed) -> None:
        """`users` may be who listens at a unix socket or a TCP port on loopback; None is anybody."""
        self._address = address
        self._users = users

    async def next(self) -> Stream:
        """Dial once."""
        address = self._address
        if address.kind == "tcp":
            return await self._dial_tcp(address.host)
        if address.kind == "vsock":
            return await asyncio.open_connection(sock=await _dial_vsock(address.cid, address.port), limit=READ_AHEAD)
        if sys.platform == "win32":
            raise _not_here(address)
        reader, writer = await asyncio.open_unix_connection(address.path, limit=READ_AHEAD)
        _check(writer, self._require_known)
        if address.kind != "unix":
            try:
                await ask_for_port(reader, writer, address.port)
            except BaseException:
                writer.close()
                raise
        return reader, writer

    async def _dial_tcp(self, host: str) -> Stream:
        reader, writer = await asyncio.open_connection(host, self._address.port, limit=READ_AHEAD)
        _check(writer, self._require_known)
        return reader, writer

    def _require_known(self, connection: socket.socket) -> None:
        """See that one of the users listens there. Raises `AccessDenied`."""
        if sys.platform == "win32":
            return
        if connection.family == socket.AF_UNIX:
            peers.require_unix_peer(connection, self._users)
        elif is_loopback(connection.getpeername()[0]):
            peers.require_listener(connection, self._users)

    async def aclose(self) -> None:
        """Nothing is kept between two dials."""


def _check(writer: asyncio.StreamWriter, require: Callable[[socket.socket], None]) -> None:
    """Check who is at the other end, and hang up on a stranger. Raises `OSError` then."""
    try:
        require(writer.get_extra_info("socket"))
    except AccessDenied as error:
        writer.close()
        raise PermissionError(errno.EACCES, str(error)) from error


async def _dial_vsock(cid: int, port: int) -> socket.socket:
    if sys.platform != "linux":
        msg = f"vsock:{cid}: this system has no such sockets: use tcp: or unix:"
        raise UnsupportedPlatform(msg)
    dialling = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        mount.allow_to_connect(dialling, _LONGEST_CONNECT)
        await asyncio.get_running_loop().sock_connect(dialling, (cid, port))
    except BaseException:
        dialling.close()
        raise
    return dialling


async def ask_for_port(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
    """Ask hybrid vsock, on a stream to its socket, for a port of the guest. Raises `OSError`."""
    writer.write(b"CONNECT %d\n" % port)
    answer = b""
    while not answer.endswith(b"\n") and len(answer) <= _LONGEST_ANSWER:
        if not (byte := await reader.read(1)):  # what is behind it is the agent's
            break
        answer += byte
    if not (answer.startswith(b"OK ") and answer.endswith(b"\n")):
        why = f"answered {answer[:_LONGEST_ANSWER]!r}" if answer else "hung up"
        msg = f"the VM's vsock {why}: nothing in the guest listens on port {port}"
        raise ConnectionRefusedError(msg)


async def _run_here(work: Callable[[], T], /) -> T:
    return work()


class Acceptor:
    """Streams that the agent dials: ``uvmshare guest agent --connect``. `next` gives the newest first.

    They are accepted one by one, a few tens a second, and few wait here.
    """

    def __init__(self, run: Runner, users: Allowed, *, has_token: bool) -> None:
        self._run = run
        self._users = users
        self._has_token = has_token
        self._waiting: deque[Stream] = deque()
        self._dialled = asyncio.Event()
        self._listening: list[tuple[socket.socket, asyncio.Task[None]]] = []
        self._file: SocketFile | None = None
        self._cid = 0
        self._closed = False
        self._refused = 0
        """Connections since the last line about such a one."""
        self._tell_at = 0.0
        self.port = 0
        """The port that the agent dials: for TCP, the one that was bound when the address said 0."""

    @classmethod
    async def start(
        cls, address: Address, users: Allowed, *, has_token: bool = False, mode: int = 0o600, run: Runner = _run_here
    ) -> Acceptor:
        """Listen. A unix socket is made, with that mode, and removed by what `run` runs, which looks up names too.

        Over TCP on loopback only `users` may connect, None is every user of this host. With a token others may as well,
        since they have to prove that they know it, but they displace nobody.

        Raises `OSError` when the address is taken.
        """
        acceptor = cls(run, users, has_token=has_token)
        acceptor.port = address.port
        if address.kind == "tcp":
            bound = await _listen_tcp(address.host, address.port, run)
            acceptor.port = bound[0].getsockname()[1]
        elif address.kind == "vsock":
            acceptor._cid = address.cid
            bound = [_listen_vsock(address.port)]
        elif sys.platform == "win32":
            raise _not_here(address)
        else:
            path = address.socket_path
            listening, acceptor._file = await run(lambda: _listen_unix(path, mode))
            bound = [listening]
        loop = asyncio.get_running_loop()
        acceptor._listening = [(each, loop.create_task(acceptor._accept(each))) for each in bound]
        return acceptor

    async def _accept(self, listening: socket.socket) -> None:
        """Accept for as long as this listens, whatever becomes of one of those who dial."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connected, peer = await loop.sock_accept(listening)
                if self._cid and peer[0] != self._cid:
                    connected.close()
                else:
                    await self._take(connected)
            except OSError:  # it hung up before it was taken, or there are too many descriptors
                pass
            except Exception as error:  # noqa: BLE001  a defect, and the next who dials may be the agent
                loop.call_exception_handler({"message": "a guest's agent could not be let in", "exception": error})
            await asyncio.sleep(_ACCEPT_EVERY)

    async def _take(self, connected: socket.socket) -> None:
        try:
            self._require_known(connected)
        except AccessDenied as error:
            # Who has to prove that they know the token may try, and displaces nobody.
            if not self._has_token or self._waiting:
                self._tell(error)
                connected.close()
                return
        try:
            stream = await asyncio.open_connection(sock=connected, limit=READ_AHEAD)
        except BaseException:
            connected.close()
            raise
        if self._closed:  # which does not reach one that was taken from the kernel and has not come here yet
            stream[1].transport.abort()
            return
        self._waiting.append(stream)
        if len(self._waiting) > _MOST_WAITING:
            _, oldest = self._waiting.popleft()
            oldest.transport.abort()
        self._dialled.set()

    def _tell(self, error: AccessDenied) -> None:
        now = asyncio.get_running_loop().time()
        self._refused += 1
        if now >= self._tell_at:
            count = f"{self._refused} connections of agents" if self._refused > 1 else "connection of an agent"
            _log.warning("%s to port %d refused: %s", count, self.port, error)
            self._refused, self._tell_at = 0, now + _TELL_EVERY

    def _require_known(self, connection: socket.socket) -> None:
        """See that one of the users dials, where every user of the host could. Raises `AccessDenied`."""
        if sys.platform == "win32" or connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if is_loopback(connection.getsockname()[0]):
            peers.require_peer(connection, self._users)

    async def next(self) -> Stream:
        """Wait for the agent to dial."""
        while not self._waiting:
            self._dialled.clear()
            await self._dialled.wait()
        return self._waiting.pop()

    async def aclose(self) -> None:
        """Listen no more, and let those go that nobody took."""
        self._closed = True
        for listening, accepting in self._listening:
            accepting.cancel()
            await asyncio.wait({accepting})
            listening.close()
        while self._waiting:
            _, writer = self._waiting.pop()
            writer.transport.abort()
        if self._file is not None:
            with contextlib.suppress(OSError):
                await self._run(self._file.remove)


async def _listen_tcp(host: str, port: int, run: Runner) -> list[socket.socket]:
    """Listen on each address that the host's name has."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # A name may take its time, for which this thread has none.
    kinds = await (asyncio.to_thread(look_up) if run is _run_here else run(look_up))
    bound: list[socket.socket] = []
    try:
        for family, _, _, _, place in dict.fromkeys(kinds):
            listening = socket.create_server(place[:2], family=family, backlog=_BACKLOG)
            bound.append(listening)
            listening.setblocking(False)  # noqa: FBT003  it takes no keyword
    except BaseException:
        for listening in bound:
            listening.close()
        raise
    return bound


def _listen_unix(path: str, mode: int) -> tuple[socket.socket, SocketFile]:
    """Listen at `path`, in place of a socket of this user's that nobody listens on."""
    if sys.platform == "win32":
        raise _not_here(path)
    from uvmshare.hostfiles import bind_socket  # noqa: PLC0415  it is not for Windows

    listening, file = bind_socket(path, mode)
    try:
        listening.listen(_BACKLOG)
        listening.setblocking(False)  # noqa: FBT003  it takes no keyword
    except BaseException:
        listening.close()
        file.remove()
        raise
    return listening, file


def _listen_vsock(port: int) -> socket.socket:
    if sys.platform != "linux":
        msg = f"vsock port {port}: this system has no such sockets: use tcp: or unix:"
        raise UnsupportedPlatform(msg)
    listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listening.bind((socket.VMADDR_CID_ANY, port))
        listening.listen(_BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def _not_here(address: Address | str) -> UnsupportedPlatform:
    return UnsupportedPlatform(f"{address}: Windows' asyncio has no unix sockets: use tcp:")
