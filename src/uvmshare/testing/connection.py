"""One 9P2000.L connection from the client's end: bytes, tags, and replies in whatever order.

What lives here: dialling an address, sending messages and raw bytes, receiving replies, matching them
by tag. What must not: fids, paths, what a message is good for (`uvmshare.testing.client`).

It is for tests and demonstrations, and so it is strict where a kernel would hang or break: a reply that
nobody asked for, one of the wrong type, or one that does not fit msize is an error here. Every wait has
a deadline, so that a server which does not answer ends a test instead of holding it up.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, Self, TypeVar

from uvmshare.address import parse
from uvmshare.errors import ConnectionClosed, InvalidAddress, RemoteProtocolError, UnsupportedPlatform
from uvmshare.ninep import messages
from uvmshare.ninep.constants import DEFAULT_MSIZE, NOTAG
from uvmshare.ninep.framing import FrameReader

if TYPE_CHECKING:
    from types import TracebackType

    from uvmshare.ninep.messages import Message

__all__ = ["DEFAULT_TIMEOUT", "NinePConnection", "dial"]

DEFAULT_TIMEOUT: Final = 60.0
"""Seconds that a server has for each piece of an answer."""

_RECV_SIZE: Final = 256 * 1024

_R = TypeVar("_R", bound="Message")


def dial(address: str, *, timeout: float = DEFAULT_TIMEOUT) -> socket.socket:
    """Connect to the file server at `address`, as a guest would, and return the socket.

    For ``firecracker:`` and ``cloud-hypervisor:`` it is the unix socket that those monitors connect to
    when their guest dials the port. Raises `InvalidAddress` for what is no address and for ``vsock:``,
    which only a guest can dial; `UnsupportedPlatform` where this system has no such sockets; `OSError`
    when nobody listens there, `TimeoutError` when as many connections wait as the server lets.
    """
    at = parse(address)
    if at.kind == "vsock":
        msg = f"address {address!r}: only the guest can dial it; from the host use one of the other kinds"
        raise InvalidAddress(msg)
    if at.kind == "tcp":
        connected = socket.create_connection((at.host, at.port), timeout)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    if sys.platform == "win32":
        msg = f"address {address!r}: Python has no unix sockets on Windows; use tcp:HOST:PORT"
        raise UnsupportedPlatform(msg)
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A socket with a time-out is non-blocking, and such a connect gets EAGAIN when the server has as many
        # connections waiting as it allows (unix(7)): this one waits in the kernel.
        seconds, rest = divmod(timeout, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(seconds), int(rest * 1e6)))
        connected.connect(at.socket_path)
        connected.settimeout(timeout)
    except BlockingIOError as error:
        connected.close()
        msg = f"{address} accepts no more connections for now"
        raise TimeoutError(msg) from error
    except BaseException:
        connected.close()
        raise
    return connected


class NinePConnection:
    """A connected socket that 9P messages go over. No handshake is done; use as a context manager.

    Sending never waits for replies: whoever sends many before reading any can fill both sockets'
    buffers, and then gets a `TimeoutError`.
    """

    def __init__(self, connected: socket.socket, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        connected.settimeout(timeout)
        self.socket = connected
        self.msize = DEFAULT_MSIZE
        self._reader = FrameReader(DEFAULT_MSIZE)
        self._arrived: list[bytes] = []  # whole messages, not yet looked at
        self._sent: dict[int, Message] = {}  # by tag: what was asked and not yet answered
        self._replies: dict[int, tuple[Message, Message]] = {}  # by tag: requests and replies not taken yet
        self._last_tag = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket, whatever is under way. Closing twice does nothing."""
        self.socket.close()

    def limit_replies(self, msize: int) -> None:
        """Take `msize` bytes for the largest reply from now on; what Tversion agrees on."""
        self.msize = msize
        self._reader.limit = msize

    def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, sense or nonsense.

        Raises `ConnectionClosed` when the server has closed the connection, `TimeoutError` when it
        takes nothing.
        """
        try:
            self.socket.sendall(data)
        except TimeoutError:
            raise
        except OSError as error:
            self._end("could not be sent to", error)

    def hang_up(self) -> None:
        """Say that nothing more will be sent; replies can still come."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def send(self, message: Message, *, tag: int | None = None) -> int:
        """Send a message without waiting; return its tag, for `wait`.

        The tag is a free one unless given; a Tversion gets NOTAG (version(5)). A tag given twice is
        sent twice. Raises `LocalProtocolError` and what `send_raw` does.
        """
        if tag is None:
            tag = NOTAG if isinstance(message, messages.Tversion) else self._free_tag()
        self.send_raw(message.encode(tag))
        self._sent[tag] = message
        return tag

    def _free_tag(self) -> int:
        tag = self._last_tag
        for _ in range(NOTAG):
            tag = (tag + 1) % NOTAG
            if tag not in self._sent and tag not in self._replies:
                self._last_tag = tag
                return tag
        msg = f"all {NOTAG} tags are in use; wait for some"
        raise RuntimeError(msg)

    def recv(self) -> tuple[int, Message]:
        """Take the next message off the wire, whatever it is: its tag and itself. An Rlerror is returned.

        But for one that has NOTAG where no Tversion is out: the server says so that it ends the connection, and that
        end is what is waited for then.

        Raises `ConnectionClosed` at the end, `TimeoutError` when nothing comes, `RemoteProtocolError`
        for what is no message.
        """
        while not self._arrived:
            try:
                data = self.socket.recv(_RECV_SIZE)
            except TimeoutError:
                raise
            except OSError as error:
                self._end("could not be read from", error)
            if not data:
                self._end("was closed by the server")
            self._reader.feed(data)
            self._arrived.extend(self._reader.messages())
        tag, message = messages.decode(self._arrived.pop(0))
        if tag == NOTAG and NOTAG not in self._sent and isinstance(message, messages.Rlerror):
            return self.recv()
        self._sent.pop(tag, None)
        return tag, message

    def wait(self, tag: int) -> Message:
        """Return the reply to the message sent with `tag`; others that come first are kept.

        Raises `OSError` with the errno of an Rlerror, `RemoteProtocolError` for a reply that nobody
        asked for or of another type than the request, and what `recv` does.
        """
        while tag not in self._replies:
            waiting = dict(self._sent)
            if tag not in waiting:
                msg = f"nothing was sent with tag {tag}, or its reply was taken already"
                raise ValueError(msg)
            got, reply = self.recv()
            request = waiting.get(got)
            if request is None:
                msg = f"{type(reply).__name__} came with tag {got}, which no request has"
                raise RemoteProtocolError(msg)
            if not isinstance(reply, messages.Rlerror) and reply.type != request.type + 1:
                msg = f"{type(reply).__name__} came for a {type(request).__name__}"
                raise RemoteProtocolError(msg)
            self._replies[got] = request, reply
        request, reply = self._replies.pop(tag)
        if isinstance(reply, messages.Rlerror):
            raise OSError(reply.ecode, f"{os.strerror(reply.ecode)}, in answer to {type(request).__name__}")
        return reply

    def rpc(self, message: Message) -> Message:
        """Send a message and return its reply. Raises what `send` and `wait` do."""
        return self.wait(self.send(message))

    def ask(self, message: Message, reply: type[_R]) -> _R:
        """Send a message and return its reply, which is a `reply`. Raises what `rpc` does."""
        return messages.expect(self.rpc(message), reply)

    def flush(self, tag: int) -> bool:
        """Flush the request `tag` (flush(5)): True when it was answered all the same, for `wait` to take.

        Raises what `rpc` does.
        """
        self.ask(messages.Tflush(tag), messages.Rflush)
        self._sent.pop(tag, None)
        return tag in self._replies

    def drain(self) -> list[Message]:
        """Read until the server closes the connection; return what came before that.

        Raises `TimeoutError` when it does not, `RemoteProtocolError` for what is no message.
        """
        came = []
        with suppress(ConnectionClosed):
            while True:
                came.append(self.recv()[1])
        return came

    def _end(self, how: str, cause: OSError | None = None) -> NoReturn:
        unanswered = ", ".join(type(message).__name__ for message in self._sent.values())
        msg = f"the 9P connection {how}"
        if unanswered:
            msg += f", with no answer to {unanswered}"
        msg += "; the server's log says why it ended one"
        raise ConnectionClosed(msg) from cause
