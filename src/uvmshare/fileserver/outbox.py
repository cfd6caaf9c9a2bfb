"""Replies on their way to the guest: one buffer, one send, and file data that need not pass through.

What lives here: `Outbox`. What must not: what a reply says (`handlers`).
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import threading
from typing import TYPE_CHECKING, Final, NoReturn

from uvmshare.errors import RemoteProtocolError
from uvmshare.ninep import messages
from uvmshare.ninep.constants import READ_HEADER_SIZE

if TYPE_CHECKING:
    from uvmshare.fileserver.fid import OpenFile

__all__ = ["Outbox", "read_reply"]

_SIZE: Final = 512 * 1024
_FULL: Final = 64 * 1024
"""Replies are sent when they pass this: enough to batch small ones, little enough to keep a guest busy."""

_SENDFILE_MIN: Final = 256 * 1024
"""From this count on the file goes to the socket without passing through the process: at 1 MiB that
was measured at 1.6 times diod against 1.3 for a copy, and below 256 KiB the second call costs more."""

_PIECE: Final = 128 * 1024
"""What is copied at a time where sendfile does not pay. By CPU time, reads of 512 KiB over TCP on loopback
were measured at 0.69 of a plain C server with sendfile, 0.78 in these pieces, 0.82 in one (medians of three
turns; the clock could not tell them apart). Pieces, because a buffer for the whole would be the mount's
memory. Other sockets than unix and TCP were not measured.
"""

_ZEROS: Final = bytes(64 * 1024)
_READ_HEADER: Final = struct.Struct("<IBHI")


def read_reply(tag: int, data: bytes) -> bytes:
    """Return the Rread that carries `data`."""
    return _READ_HEADER.pack(READ_HEADER_SIZE + len(data), messages.Rread.type, tag, len(data)) + data


class Outbox:
    """The way out of one connection, a blocking stream socket.

    The session's loop fills the buffer and sends it; jobs that run aside `send` whole replies of their
    own in between. `sent` counts bytes, for whoever resets it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.sent = 0
        self._connection = connection
        self._lock = threading.Lock()  # held by whoever sends
        self._buffer = mmap.mmap(-1, _SIZE)  # pages that no reply touches cost nothing
        self._view = memoryview(self._buffer)
        self._end = 0
        self._stuck = False
        self._uses_sendfile = connection.family == socket.AF_UNIX

    def send(self, replies: bytes) -> None:
        """Send whole replies now, from any thread. Raises `OSError`, or `RemoteProtocolError` as `flush` does."""
        with self._lock:
            self._transmit(replies)

    def _transmit(self, data: bytes | memoryview) -> None:
        """Send all of it, with the lock held; once a part was sent and the rest was not, nothing more ever is."""
        if self._stuck:
            self._give_up()
        try:
            self._connection.sendall(data)
        except BlockingIOError:
            self._give_up()

    def _give_up(self) -> NoReturn:
        self._stuck = True
        msg = "the guest has not taken its replies for too long"
        raise RemoteProtocolError(msg)

    def reply(self, frame: bytes) -> None:
        """Put a whole reply into the buffer, or send it. Raises `OSError`."""
        stop = self._end + len(frame)
        if stop > _SIZE:
            self.flush()
            if len(frame) > _SIZE:
                self.send(frame)
                return
            stop = len(frame)
        self._view[self._end : stop] = frame
        self._end = stop
        if stop >= _FULL:
            self.flush()

    def flush(self) -> None:
        """Send every reply that waits. Raises `BrokenPipeError` or `ConnectionResetError`."""
        if self._end:
            with self._lock:
                self._transmit(self._view[: self._end])
            self.sent += self._end
            self._end = 0

    def reply_read(self, tag: int, file: OpenFile, offset: int, count: int) -> bool:
        """Answer a Tread from the page cache. Returns False when the host would have to wait for the disk.

        `count` is at most what fits a message. A small count is read into the very buffer that is
        sent. Raises `OSError`, and nothing is answered then.
        """
        if count >= _SENDFILE_MIN:
            count = max(0, min(count, os.fstat(file.fd).st_size - offset))
            if count >= _SENDFILE_MIN:
                if not (self._is_cached(file, offset) and self._is_cached(file, offset + count - 1)):
                    return False
                self._reply_large(tag, file.fd, offset, count)
                return True
        if self._end + READ_HEADER_SIZE + count > _SIZE:
            self.flush()
        start = self._end
        data = start + READ_HEADER_SIZE
        got = _read_now(file, self._view[data : data + count], offset)
        if got is None:
            return False
        _READ_HEADER.pack_into(self._buffer, start, READ_HEADER_SIZE + got, messages.Rread.type, tag, got)
        self._end = data + got
        if self._end >= _FULL:
            self.flush()
        return True

    @staticmethod
    def _is_cached(file: OpenFile, offset: int) -> bool:
        """Say whether a byte can be read without the disk: the ends of a range stand for all of it."""
        return _read_now(file, memoryview(bytearray(1)), offset) is not None

    def _reply_large(self, tag: int, descriptor: int, offset: int, count: int) -> None:
        """Answer a Tread of a large count; where that pays, the data does not pass through this process.

        The count is announced before the data is sent: it is what the file had a moment ago, and zeros
        take the place of what is cut off meanwhile.
        """
        self.reply(_READ_HEADER.pack(READ_HEADER_SIZE + count, messages.Rread.type, tag, count))
        with self._lock:
            self._transmit(self._view[: self._end])
            self.sent += self._end + count
            self._end = 0
            sent = 0
            step = 1
            while sent < count and step:
                try:
                    if self._uses_sendfile:
                        step = os.sendfile(self._connection.fileno(), descriptor, offset + sent, count - sent)
                    else:
                        step = self._copy(descriptor, offset + sent, count - sent)
                except (BrokenPipeError, ConnectionResetError, RemoteProtocolError):
                    raise
                except BlockingIOError:
                    self._give_up()
                except OSError as error:
                    # What was announced cannot be taken back, and zeros would be wrong data.
                    msg = f"a read failed after its answer had begun: {error.strerror}"
                    raise RemoteProtocolError(msg) from error
                sent += step
            while sent < count:
                piece = _ZEROS[: count - sent]
                self._transmit(piece)
                sent += len(piece)

    def _copy(self, descriptor: int, offset: int, count: int) -> int:
        """Send a piece of a file by way of the buffer, which is empty; return its size."""
        piece = self._view[: min(count, _PIECE)]
        got = os.preadv(descriptor, [piece], offset)
        self._transmit(piece[:got])
        return got


def _read_now(file: OpenFile, into: memoryview, offset: int) -> int | None:
    """Read what the page cache has; None when it does not have it all (preadv2(2), RWF_NOWAIT).

    A file system that cannot tell is read plainly. Raises `OSError`.
    """
    if file.nowait:
        try:
            got = os.preadv(file.fd, [into], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            file.nowait = False
        else:
            short = got < len(into) and offset + got < os.fstat(file.fd).st_size
            return None if short else got
    return os.preadv(file.fd, [into], offset)
