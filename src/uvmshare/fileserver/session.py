"""One connection to one share: fids, and the loop that serves them.

What lives here: the fid table, the buffers, and how a request finds its handler and its answer the
guest. What must not: what a message does (`handlers`), processes and sockets being set up (`mount`).

The loop is blocking and alone in its process: one ``recv_into`` a turn, every whole message in the
buffer served, replies packed into one buffer and sent with one call. What a guest sends can only end
this loop, never reach past it.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from uvmshare.errors import RemoteProtocolError
from uvmshare.fileserver.handlers import table, walking
from uvmshare.fileserver.handshake import negotiate
from uvmshare.fileserver.ownership import choose
from uvmshare.fileserver.tree import Tree
from uvmshare.ninep import messages
from uvmshare.ninep.constants import HEADER_SIZE, NONUNAME, READ_HEADER_SIZE, VERSION
from uvmshare.ninep.errno import to_errno
from uvmshare.ninep.framing import check_size

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uvmshare.fileserver.export import Export
    from uvmshare.fileserver.fid import Fid
    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.tree import Node

__all__ = ["Session"]

_OUT_SIZE: Final = 512 * 1024
_OUT_FULL: Final = 64 * 1024
"""Replies are sent when they pass this: enough to batch small ones, little enough to keep a guest busy."""

_IN_SLACK: Final = 64 * 1024
"""Beyond one largest message, so that many small ones arrive in one call."""

_ZEROS: Final = bytes(64 * 1024)
_NOBODY: Final = 65534

_RLERROR: Final = messages.packer(messages.Rlerror)
_READ_HEADER: Final = struct.Struct("<IBHI")


class _Entry(NamedTuple):
    """How a message type is served."""

    message: type[messages.Message]
    handler: table.Handler
    changes: bool


class Session:
    """Serves `export` on `connection` from a good attach to the end.

    `connection` is a blocking stream socket. `msize` is what the handshake negotiated, `attach` the
    Tattach it ended with and `rest` the bytes that came behind. `log` takes one line a reason.
    """

    def __init__(self, connection: socket.socket, export: Export, limits: Limits, log: Callable[[str], None]) -> None:
        """Take over an export. Raises `FileServerError` when its security model is not to be had."""
        self.export = export
        self.limits = limits
        self.tree = Tree(export)
        self.ownership = choose(export.security_model, self.tree)
        self.fids: dict[int, Fid] = {}
        self.msize = limits.msize
        self._connection = connection
        self._log = log
        self._attached = False
        self._table = {
            number: _Entry(messages.BY_TYPE[number], handler, number in table.CHANGES)
            for number, handler in table.HANDLERS.items()
        }
        # Anonymous mappings: pages that no large message touches cost nothing.
        self._in = mmap.mmap(-1, max(limits.msize, 8192) + _IN_SLACK)
        self._view = memoryview(self._in)
        self._out = mmap.mmap(-1, _OUT_SIZE)
        self._out_view = memoryview(self._out)
        self._out_end = 0

    # The loop

    def run(self, attach: tuple[int, messages.Tattach], msize: int, rest: bytes) -> None:
        """Answer the attach, then serve until the guest hangs up or breaks the protocol.

        Returns when the connection is over; the reason, unless it is a plain hang-up, has been logged.
        """
        self.msize = msize
        self._attached = True
        try:
            tag, message = attach
            self._reply(walking.attach(self, tag, message))
            if len(rest) > len(self._view):
                self._refuse("more came with the handshake than the largest message holds")
            self._view[: len(rest)] = rest
            self._serve(len(rest))
        except RemoteProtocolError as error:
            self._log(f"{error}; connection closed")
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            self.close()

    def _serve(self, end: int) -> None:
        view = self._view
        start = 0
        while True:
            while end - start >= HEADER_SIZE:
                size = view[start] | view[start + 1] << 8 | view[start + 2] << 16 | view[start + 3] << 24
                check_size(size, self.msize)
                if end - start < size:
                    break
                self._serve_one(start, start + size)
                start += size
            self.flush()
            if start == end:
                start = end = 0
            elif len(view) - end < _IN_SLACK:
                view[: end - start] = bytes(view[start:end])
                start, end = 0, end - start
            received = self._connection.recv_into(view[end:])
            if not received:
                if end != start:
                    self._refuse("the connection ended inside a message")
                return
            end += received

    def _serve_one(self, start: int, end: int) -> None:
        view = self._view
        number = view[start + 4]
        tag = view[start + 5] | view[start + 6] << 8
        entry = self._table.get(number)
        reply: bytes | None
        if entry is None:
            reply = self._serve_rest(number, tag, start, end)
        elif not self._attached:
            self._refuse(f"{entry.message.__name__} before Tversion and Tattach")
        else:
            cls, handler, changes = entry
            message = cls(*cls.layout.read(view, start + HEADER_SIZE, end))
            if changes and self.export.read_only:
                reply = _RLERROR(tag, errno.EROFS)
            else:
                try:
                    reply = handler(self, tag, message)
                except OSError as error:
                    reply = _RLERROR(tag, to_errno(error))
                except RemoteProtocolError:
                    raise
                except Exception as error:  # noqa: BLE001  a bug of ours must not become the guest's hang
                    self._log(f"{cls.__name__}: {type(error).__name__}: {error}; answered with an error")
                    reply = _RLERROR(tag, to_errno(error))
        if reply:
            self._reply(reply)

    def _serve_rest(self, number: int, tag: int, start: int, end: int) -> bytes:
        """Serve what no handler does: sessions, flushes, and what is not spoken here."""
        cls = messages.BY_TYPE.get(number)
        if cls is None or cls.__name__.startswith("R"):
            self._refuse(f"message type {number}, which no client sends")
        message = cls(*cls.layout.read(self._view, start + HEADER_SIZE, end))
        if isinstance(message, messages.Tversion):
            return self._begin_again(message).encode(tag)
        if isinstance(message, messages.Tattach):
            return self._attach_after_version(tag, message)
        if not self._attached:
            self._refuse(f"{cls.__name__} before Tversion and Tattach")
        if isinstance(message, messages.Tflush):
            # flush(5): every request before this one has been answered, because they are served in turn.
            return messages.Rflush().encode(tag)
        return _RLERROR(tag, errno.EOPNOTSUPP)

    def _attach_after_version(self, tag: int, message: messages.Tattach) -> bytes:
        try:
            return walking.attach(self, tag, message)
        except OSError as error:
            return _RLERROR(tag, to_errno(error))

    def _begin_again(self, message: messages.Tversion) -> messages.Message:
        """Tversion in the middle of a session ends all fids (version(5))."""
        self._drop_fids()
        reply = negotiate(message, self.limits.msize)
        self._attached = isinstance(reply, messages.Rversion) and reply.version == VERSION
        if self._attached and isinstance(reply, messages.Rversion):
            self.msize = reply.msize
        return reply

    def _refuse(self, reason: str) -> NoReturn:
        raise RemoteProtocolError(reason)

    def _drop_fids(self) -> None:
        for fid in self.fids.values():
            fid.close()
        self.fids.clear()

    def close(self) -> None:
        """Let go of every fid and of what the session opened; the connection stays its owner's."""
        self._drop_fids()
        self.tree.close()

    # Answers

    def _reply(self, frame: bytes) -> None:
        stop = self._out_end + len(frame)
        if stop > _OUT_SIZE:
            self.flush()
            if len(frame) > _OUT_SIZE:
                self._connection.sendall(frame)
                return
            stop = len(frame)
        self._out_view[self._out_end : stop] = frame
        self._out_end = stop
        if stop >= _OUT_FULL:
            self.flush()

    def flush(self) -> None:
        """Send every reply that waits. Raises `BrokenPipeError` or `ConnectionResetError`."""
        if self._out_end:
            self._connection.sendall(self._out_view[: self._out_end])
            self._out_end = 0

    def reply_read(self, tag: int, descriptor: int, offset: int, count: int) -> None:
        """Answer a Tread of a small count: the file is read into the very buffer that is sent.

        `count` is at most what fits a message. Raises `OSError`, and nothing is answered then.
        """
        if self._out_end + READ_HEADER_SIZE + count > _OUT_SIZE:
            self.flush()
        start = self._out_end
        data = start + READ_HEADER_SIZE
        got = os.preadv(descriptor, [self._out_view[data : data + count]], offset)
        _READ_HEADER.pack_into(self._out, start, READ_HEADER_SIZE + got, messages.Rread.type, tag, got)
        self._out_end = data + got
        if self._out_end >= _OUT_FULL:
            self.flush()

    def reply_sendfile(self, tag: int, descriptor: int, offset: int, count: int) -> None:
        """Answer a Tread of a large count without the data passing through this process.

        The count is announced before the data is sent: it is what the file has now, and zeros take the
        place of what is cut off meanwhile. Raises `OSError` while nothing has been announced.
        """
        count = max(0, min(count, os.fstat(descriptor).st_size - offset))
        header = _READ_HEADER.pack(READ_HEADER_SIZE + count, messages.Rread.type, tag, count)
        self._reply(header)
        self.flush()
        sent = 0
        step = 1
        while sent < count and step:
            try:
                step = os.sendfile(self._connection.fileno(), descriptor, offset + sent, count - sent)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except OSError as error:
                # What was announced cannot be taken back, and zeros would be wrong data.
                msg = f"a read failed after its answer had begun: {error.strerror}"
                raise RemoteProtocolError(msg) from error
            sent += step
        while sent < count:
            piece = _ZEROS[: count - sent]
            self._connection.sendall(piece)
            sent += len(piece)

    # Fids

    def fid(self, number: int) -> Fid:
        """Return the fid of that number: EBADF when there is none. Raises `OSError`."""
        fid = self.fids.get(number)
        if fid is None:
            raise OSError(errno.EBADF, "unknown fid")
        return fid

    def open_fid(self, number: int) -> Fid:
        """Return the fid of that number, opened for I/O: EBADF when it is not. Raises `OSError`."""
        fid = self.fid(number)
        if fid.io < 0:
            raise OSError(errno.EBADF, "fid is not open")
        return fid

    def require_changeable(self, directory: Node) -> None:
        """Refuse changes of names in the root of a share with an allow-list: EACCES. Raises `OSError`."""
        if self.export.only is not None and directory.parent is None:
            raise OSError(errno.EACCES, "the names of this directory are fixed")

    def require_free(self, number: int) -> None:
        """Refuse a number that is in use (EINVAL) or one fid too many (EMFILE). Raises `OSError`."""
        if number in self.fids:
            raise OSError(errno.EINVAL, "fid in use")
        if len(self.fids) >= self.limits.fids:
            raise OSError(errno.EMFILE, "too many fids")

    def uid_of(self, message: messages.Tattach) -> int:
        """Return the uid that an attach speaks for: n_uname, or what uname says when there is none."""
        if message.n_uname != NONUNAME:
            return message.n_uname
        if message.uname == b"root":
            return 0
        if message.uname.isdigit() and int(message.uname) < NONUNAME:
            return int(message.uname)
        return _NOBODY
