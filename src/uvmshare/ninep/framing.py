"""Where one message ends and the next begins.

What lives here: `FrameReader`, a buffer with a cap that bytes are fed to in any pieces and whole
messages come out of. What must not: sockets; what the messages mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvmshare.errors import RemoteProtocolError
from uvmshare.ninep.constants import HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FrameReader", "check_size"]


def check_size(size: int, limit: int) -> None:
    """Refuse the size word of a message that is smaller than a header or larger than `limit` bytes.

    Raises `RemoteProtocolError`.
    """
    if not HEADER_SIZE <= size <= limit:
        msg = f"a message of {size} bytes: at least {HEADER_SIZE} and at most {limit} are allowed"
        raise RemoteProtocolError(msg)


class FrameReader:
    """Takes bytes as they come and gives whole messages.

    `limit` is the largest message allowed, in bytes (msize, once negotiated). What is kept never
    exceeds it by more than one feeding, and a size word past it is refused as soon as it is there.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take more bytes, of any number.

        Raises `RemoteProtocolError` for the size word of the next message; the reader is then of no
        further use.
        """
        self._buffer += data
        self._next_size()

    def messages(self) -> Iterator[bytes]:
        """Give every whole message that is there, and keep the rest.

        Raises `RemoteProtocolError` when the next size word is not allowed. `limit` may be changed
        between two messages, since a Tversion changes it.
        """
        while (size := self._next_size()) is not None and size <= len(self._buffer):
            message = bytes(self._buffer[:size])
            del self._buffer[:size]
            yield message

    def _next_size(self) -> int | None:
        if len(self._buffer) < 4:
            return None
        size = int.from_bytes(self._buffer[:4], "little")
        check_size(size, self.limit)
        return size

    @property
    def is_inside_message(self) -> bool:
        """Whether a message has begun that is not whole yet."""
        return bool(self._buffer)

    def take_rest(self) -> bytes:
        """Take what is left, for whoever goes on reading in another way."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest
