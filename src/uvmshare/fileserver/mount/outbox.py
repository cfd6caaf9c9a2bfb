"""Replies on their way to the guest: one list, one send, and file data that need not pass through.

What lives here: `Outbox`. What must not: what a reply says (`handlers`).
"""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from uvmshare.errors import RemoteProtocolError
from uvmshare.fileserver.leaving import STALL_SECONDS, TELL_SECONDS
from uvmshare.fileserver.mount import buffers
from uvmshare.fileserver.mount.waiting import untaken
from uvmshare.ninep import messages
from uvmshare.ninep.constants import NOTAG, READ_HEADER_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.files.openfile import OpenFile

__all__ = ["Outbox", "read_reply"]

_FULL: Final = 64 * 1024
"""Replies are sent when those that may be large pass this: enough to batch small ones, little enough to
keep a guest busy."""

_SMALL: Final = 16 * 1024
"""Up to this count the data of a read is sent with other replies; larger ones are sent from where they were read."""

_SENDFILE_MIN: Final = 256 * 1024
"""From this count on the file goes to the socket without passing through the process: at 1 MiB that
was measured at 1.6 times diod against 1.3 for a copy, and below 256 KiB the second call costs more."""

_PIECE: Final = 128 * 1024
"""What is copied at a time where sendfile does not pay. By CPU time, reads of 512 KiB over TCP on loopback
were measured at 0.69 of a plain C server with sendfile, 0.78 in these pieces, 0.82 in one (medians of three
turns; the clock could not tell them apart). Pieces, because a buffer for the whole would be the mount's
memory. Other sockets than unix and TCP were not measured.
"""

_LAST_WORD: Final = messages.Rlerror(errno.EIO).encode(NOTAG)
"""A reply with a tag that no request has: Linux's client ends the connection with EIO then, and answers EIO to what is
under way. At the end of a stream without it, that is answered with error 0 on vsock, which programs see as EFAULT, and
on TCP with ECONNRESET (net/9p/trans_fd.c, and seen with 6.1 and 6.12)."""

_LOOK_AGAIN_SECONDS: Final = 0.0005
"""Nothing wakes who waits until a peer has taken what was sent."""

_DATA_AT: Final = mmap.PAGESIZE
_HEADER_AT: Final = _DATA_AT - READ_HEADER_SIZE
"""Where the data of a read stands in the buffer: at the beginning of a page. It stood 11 bytes further, which some CPUs
copy to and from slowly (reads of 64 KiB were at 0.62 to 0.72 of diod on one)."""

_ZEROS: Final = bytes(64 * 1024)
_READ_HEADER: Final = struct.Struct("<IBHI")
_PACK_READ_HEADER: Final = _READ_HEADER.pack
_RREAD: Final = messages.Rread.type


def read_reply(tag: int, data: bytes) -> bytes:
    """Return the Rread that carries `data`."""
    return _READ_HEADER.pack(READ_HEADER_SIZE + len(data), messages.Rread.type, tag, len(data)) + data


class Outbox:
    """The way out of one connection, a blocking stream socket.

    The session's loop puts whole replies into `replies`, those that may be large with `reply`, and sends
    them together; jobs that run aside `send` whole replies of their own in between. `sent` counts bytes.
    """

    def __init__(self, connection: socket.socket, before: Callable[[], None] = lambda: None) -> None:
        """Send on `connection`; `before` is called before the loop's replies are sent, and may raise."""
        self.sent = 0
        self.sent_aside = 0
        """Bytes that `send` sent, from other threads than the loop's."""
        self.replies: list[bytes] = []
        self.before = before
        """Called before the loop's replies are sent."""
        self._large = 0
        """Bytes of the replies that came by `reply`."""
        self._connection = connection
        self.lock = threading.Lock()
        """Held by whoever sends."""
        self._buffer = buffers.make(_DATA_AT + _SENDFILE_MIN)
        self._data = memoryview(self._buffer)[_DATA_AT:]
        self._reply = memoryview(self._buffer)[_HEADER_AT:]
        self.is_stuck = False
        """Whether a part of a reply was sent and the rest was not: then nothing more ever is."""
        self._end: Callable[[], NoReturn] | None = None
        self._uses_sendfile = connection.family == socket.AF_UNIX

    def rest(self) -> None:
        """Give back the memory of large replies. Between two turns."""
        buffers.give_back(self._buffer)

    def send(self, replies: bytes) -> None:
        """Send whole replies now, from any thread. Raises `OSError`, or `RemoteProtocolError` as `flush` does."""
        with self.lock:
            self.transmit(replies)
            self.sent_aside += len(replies)
        self.end_if_asked()

    def end_if_asked(self) -> None:
        """End the process where a signal's handler left that to whoever was sending."""
        if self._end is not None:
            self._end_between_replies(self._end)

    def end(self, end: Callable[[], NoReturn]) -> None:
        """Tell the guest that nothing more comes and call `end`, which ends the process. For a signal's handler.

        Whoever holds the lock may be in the middle of a reply, and does it afterwards; then this returns. The guest has
        `TELL_SECONDS` to take it all. Whoever sent the signal relies on none of this.
        """
        self._end = end
        self._end_between_replies(end)

    def _end_between_replies(self, end: Callable[[], NoReturn]) -> None:
        if not self.lock.acquire(blocking=False):
            return
        if not self.is_stuck:
            with suppress(OSError):
                self._tell_of_the_end()
        end()

    def _tell_of_the_end(self) -> None:
        """Send the last word and wait until the guest has taken it, while it takes anything. Raises `OSError`."""
        now = time.monotonic()
        give_up, stalled = now + TELL_SECONDS, now + STALL_SECONDS
        rest, before = _LAST_WORD, -1
        while now < min(give_up, stalled):
            if rest:
                with suppress(BlockingIOError):
                    rest = rest[self._connection.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            left = untaken(self._connection)
            if not left and not rest:
                break
            if left != before:
                before, stalled = left, now + STALL_SECONDS
            time.sleep(_LOOK_AGAIN_SECONDS)
            now = time.monotonic()

    def transmit(self, data: bytes | memoryview) -> None:
        """Send all of it, with the lock held. Raises `OSError`, or `RemoteProtocolError` as `flush` does."""
        if self.is_stuck:
            self._give_up()
        try:
            self._connection.sendall(data)
        except BlockingIOError:
            self._give_up()

    def _give_up(self) -> NoReturn:
        self.is_stuck = True
        msg = "the guest has not taken its replies for too long"
        raise RemoteProtocolError(msg)

    def reply(self, frame: bytes) -> None:
        """Have a whole reply sent, now or with those that follow. Raises `OSError`."""
        self.replies.append(frame)
        self._large += len(frame)
        if self._large >= _FULL:
            self.flush()

    def flush(self) -> None:
        """Send every reply that waits. Raises `BrokenPipeError` or `ConnectionResetError`."""
        replies = self.replies
        if replies:
            self.before()
            data = replies[0] if len(replies) == 1 else b"".join(replies)
            replies.clear()
            self._large = 0
            with self.lock:
                self.transmit(data)
            self.sent += len(data)
            if self._end is not None:
                self.end_if_asked()

    def reply_read(self, tag: int, file: OpenFile, offset: int, count: int) -> bool:
        """Answer a Tread from the page cache. Returns False when the host would have to wait for the disk.

        `count` is at most what fits a message. Raises `OSError`, and nothing is answered then.
        """
        if count >= _SENDFILE_MIN:
            count = max(0, min(count, os.fstat(file.fd).st_size - offset))
            if count >= _SENDFILE_MIN:
                if not (self._is_cached(file, offset) and self._is_cached(file, offset + count - 1)):
                    return False
                self._reply_large(tag, file.fd, offset, count)
                return True
        if count <= _SMALL and not file.nowait:
            data = os.pread(file.fd, count, offset)
            self.reply(_PACK_READ_HEADER(READ_HEADER_SIZE + len(data), _RREAD, tag, len(data)) + data)
            return True
        got = _read_now(file, self._data[:count], offset)
        if got is None:
            return False
        _READ_HEADER.pack_into(self._buffer, _HEADER_AT, READ_HEADER_SIZE + got, _RREAD, tag, got)
        if count <= _SMALL:
            self.reply(self._buffer[_HEADER_AT : _DATA_AT + got])
        else:
            self.flush()
            with self.lock:
                self.transmit(self._reply[: READ_HEADER_SIZE + got])
            self.sent += READ_HEADER_SIZE + got
            self.end_if_asked()
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
        self.replies.append(_READ_HEADER.pack(READ_HEADER_SIZE + count, _RREAD, tag, count))
        self.before()
        head = b"".join(self.replies)
        self.replies.clear()
        self._large = 0
        with self.lock:
            self.transmit(head)
            self.sent += len(head) + count
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
                self.transmit(piece)
                sent += len(piece)
        self.end_if_asked()

    def _copy(self, descriptor: int, offset: int, count: int) -> int:
        """Send a piece of a file by way of the buffer, which is empty; return its size."""
        piece = self._data[: min(count, _PIECE)]
        got = os.preadv(descriptor, [piece], offset)
        self.transmit(piece[:got])
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
            file.cannot_tell()
        else:
            short = got < len(into) and offset + got < os.fstat(file.fd).st_size
            return None if short else got
    return os.preadv(file.fd, [into], offset)
