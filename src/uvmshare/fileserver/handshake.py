"""The first words on a connection: Tversion, then Tattach.

What lives here: what a connection may say before it has attached, without any I/O, so that the
supervisor's one loop can hold many of them. What must not: sockets and deadlines (`supervisor.connections`), or
anything that comes after the attach (`mount.serving`).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from uvmshare.errors import RemoteProtocolError
from uvmshare.ninep import messages
from uvmshare.ninep.constants import MIN_MSIZE, VERSION, VERSION_UNKNOWN
from uvmshare.ninep.framing import FrameReader

__all__ = ["Attach", "Handshake", "negotiate"]

_LARGEST: Final = 8192
"""No message of a handshake needs more: two names of a share's length and a few numbers."""

_MOST_MESSAGES: Final = 32
"""A client tries an attach a few times at most; more is noise, and ends the connection."""


@dataclass(frozen=True, slots=True)
class Attach:
    """A Tattach that waits for the supervisor's verdict, and the bytes that came behind it."""

    tag: int
    message: messages.Tattach
    msize: int
    rest: bytes


def negotiate(request: messages.Tversion, largest: int) -> messages.Rversion | messages.Rlerror:
    """Answer a Tversion (version(5)): the smaller msize, and the one version that is spoken here.

    Another version is answered with "unknown", an msize below 4 KiB with EINVAL; neither begins a
    session.
    """
    if request.version != VERSION:
        return messages.Rversion(min(request.msize, largest), VERSION_UNKNOWN)
    if request.msize < MIN_MSIZE:
        return messages.Rlerror(errno.EINVAL)
    return messages.Rversion(min(request.msize, largest), VERSION)


class Handshake:
    """One connection before its attach. Feed it what comes; send what it gives back."""

    def __init__(self, largest_msize: int) -> None:
        self._largest_msize = largest_msize
        self._reader = FrameReader(_LARGEST)
        self._msize: int | None = None
        self._left = _MOST_MESSAGES

    def feed(self, data: bytes) -> tuple[bytes, Attach | None]:
        """Take bytes; return the replies due, and the attach when one has come.

        After an attach that the supervisor refuses, feeding goes on (`refuse`). Raises
        `RemoteProtocolError` when the connection cannot go on.
        """
        self._reader.feed(data)
        replies = bytearray()
        for frame in self._reader.messages():
            self._left -= 1
            if self._left < 0:
                msg = f"more than {_MOST_MESSAGES} messages and no good attach"
                raise RemoteProtocolError(msg)
            tag, message = messages.decode(frame)
            if isinstance(message, messages.Tattach):
                if self._msize is None:
                    msg = "Tattach before Tversion"
                    raise RemoteProtocolError(msg)
                return bytes(replies), Attach(tag, message, self._msize, self._reader.take_rest())
            replies += self._answer(message).encode(tag)
        return bytes(replies), None

    @property
    def is_inside_message(self) -> bool:
        """Whether the connection would break off in the middle of a message if it ended now."""
        return self._reader.is_inside_message

    def _answer(self, message: messages.Message) -> messages.Message:
        match message:
            case messages.Tversion():
                reply = negotiate(message, self._largest_msize)
                good = isinstance(reply, messages.Rversion) and reply.version == VERSION
                self._msize = reply.msize if good and isinstance(reply, messages.Rversion) else None
                return reply
            case messages.Tauth():
                return messages.Rlerror(errno.EOPNOTSUPP)  # attach(5): no authentication is required
            case messages.Tflush():
                return messages.Rflush()
            case _:
                msg = f"{type(message).__name__} before an attach"
                raise RemoteProtocolError(msg)
