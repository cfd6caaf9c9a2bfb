"""The loop of a mount process: it serves one connection to one share.

What lives here: how a request finds its handler and its answer the guest. What must not: the fids and what limits
allow (`session`), what a message does (`handlers`), processes and sockets being set up (`process`).

The loop is blocking and alone in its process: one ``recv_into`` a turn, every whole message in the
buffer served, replies packed into one buffer and sent with one call. What would hold it up runs aside
(`aside`), and requests that wait for a lock are tried again between two turns. What a guest sends can
only end this loop, never reach past it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

from uvmshare.errors import RemoteProtocolError
from uvmshare.fileserver.counters import SAMPLED, Counters
from uvmshare.fileserver.handshake import negotiate
from uvmshare.fileserver.mount import buffers, large
from uvmshare.fileserver.mount.aside import Aside
from uvmshare.fileserver.mount.files.listing import Kept
from uvmshare.fileserver.mount.files.locks import GuestLocks, LockTable
from uvmshare.fileserver.mount.files.openfile import OpenFiles
from uvmshare.fileserver.mount.files.ownership import choose
from uvmshare.fileserver.mount.files.tree import Tree
from uvmshare.fileserver.mount.foreign import Foreign
from uvmshare.fileserver.mount.handlers import ghosts, locking, noting, table, walking
from uvmshare.fileserver.mount.idle import Idle, InUse
from uvmshare.fileserver.mount.outbox import Outbox, read_reply
from uvmshare.fileserver.mount.plain import Plain, begin, make_buffers
from uvmshare.fileserver.mount.session import ServedConnection, Session, XattrRoom
from uvmshare.fileserver.mount.splicing import Splicer
from uvmshare.fileserver.mount.throttle import Throttle
from uvmshare.fileserver.mount.waiting import is_readable, set_time_out
from uvmshare.fileserver.mount.watched import Watched
from uvmshare.fileserver.syscalls import MountCrossed
from uvmshare.ninep import messages
from uvmshare.ninep.constants import HEADER_SIZE, VERSION
from uvmshare.ninep.framing import check_size

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.export import Export
    from uvmshare.fileserver.fence import Fence
    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.mount.fids import Fid
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.openfile import OpenFile
    from uvmshare.fileserver.mount.plain import Fast
    from uvmshare.fileserver.mount.session import Serve
    from uvmshare.fileserver.mount.watched import Queue

__all__ = ["Serving"]

_IN_SLACK: Final = 64 * 1024
"""Beyond one largest message, so that many small ones arrive in one call."""

_RESERVED: Final = 20_000
"""Descriptors that are kept for open files and locks; half of all where that is less."""

_LET_GO: Final = 512
"""Descriptors that are closed at once, so that no request waits long: some 10 us each."""

_LET_GO_OPEN: Final = 4096
"""The same where open files have to go: seeing that nothing else is left takes about as long as closing these."""

_AHEAD_MOST: Final = 64 * 1024
"""Up to this count the kernel is asked to read ahead and the read is tried again; above, a thread waits."""

_MOST_AHEAD: Final = 64
"""Reads that are tried again, at most."""

_AHEAD_SECONDS: Final = 0.005
"""What has not come by then is slow enough for a thread to wait for it."""

_AHEAD_RETRY_SECONDS: Final = 0.00005

_IN_MOST: Final = _IN_SLACK + 4096
"""Bytes that are received at a time where large writes are spliced: a write of 64 KiB and its header."""

_IN_NEXT: Final = 4096
"""The same behind a large write: the next one may come, and what is received of it is copied."""

_RLERROR: Final = messages.packer(messages.Rlerror)


class _Ahead(NamedTuple):
    """A Tread whose data the kernel is reading from the disk."""

    file: OpenFile
    offset: int
    size: int
    since: float
    next_try: float


_HEADER: Final = struct.Struct("<IBHI")
"""size, type, tag, and what nearly every request begins with: a fid. Where a message is shorter, the
fourth number means nothing, and there is always buffer behind it."""

_TURN: Final = range(512)
"""Requests that are served before their replies are sent, at most: some 80 KB of small ones."""

_NOT_ATTACHED: Final[list[Serve | None]] = [None] * 256


class Serving(ServedConnection):
    """Serves `export` on `connection` from a good attach to the end.

    `connection` is a blocking stream socket. `msize` is what the handshake negotiated, `attach` the
    Tattach it ended with and `rest` the bytes that came behind. `log` takes one line a reason. `descriptors` is how
    many this process may have. `queue` is the kernel's for watched directories, `fence` until when it may serve.
    """

    def __init__(
        self,
        connection: socket.socket,
        export: Export,
        limits: Limits,
        log: Callable[[str], None],
        counters: Counters | None = None,
        *,
        descriptors: int = 1024,
        queue: Queue | None = None,
        fence: Fence | None = None,
    ) -> None:
        """Take over an export. Raises `FileServerError` when its security model is not to be had."""
        self.counters = counters or Counters()
        self.export = export
        self.limits = limits
        self.fence = fence
        self.tree = Tree(export)
        self.ownership = choose(export.security_model, self.tree, export.links, export.map_owner)
        on_host = not export.read_only or limits.read_only_host_locks
        self.locks = LockTable() if on_host else GuestLocks()
        self.listings = Kept()
        self.fids = {}
        self.msize = limits.msize
        self.outbox = Outbox(connection, self.tree.boundary.confirm)
        self.aside = Aside(self.outbox.send)
        self.opened_files = OpenFiles()
        self.idle = Idle(
            self.tree, self.fids, self.opened_files, InUse(), in_use=self.aside.files, came_back=self.require_room
        )
        self.tree.root.find_again = self._find_again
        self.most_descriptors = descriptors - min(_RESERVED, descriptors // 2)
        """The number of a descriptor from which on idle ones are closed."""
        self._silences = 0
        """How often in succession nothing came for `_wait` seconds."""
        self._rests = False
        """Whether all idle descriptors were closed since something came."""
        self.xattr_room = XattrRoom()
        self.watched = None if queue is None else Watched(queue, self.tree, self.outbox.send, self.counters)
        self._connection = connection
        self.log = log
        self.logged = set()
        self._attached = self._pretends = False
        self._lock_waits: list[locking.Waiting] = []
        self._next_lock_try = 0.0
        self._ahead: dict[int, _Ahead] = {}
        """By the tag of the request."""
        self.throttle = Throttle(limits, on_first_wait=self.slowed_down)
        # A write that is spliced comes in over a while, and only its beginning would be looked at.
        self.splicer = Splicer(connection.fileno()) if connection.family == socket.AF_UNIX and not fence else None
        self._handlers = self._served = self._measured = _NOT_ATTACHED
        self._fast: Fast | None = None
        """The compiled loop, which serves what is plain (`plain`)."""
        self._buffers = make_buffers()
        self._thread = threading.get_ident()
        self.foreign = Foreign(self)
        self.buffer = self._memory = buffers.make(max(limits.msize, 8192) + _IN_SLACK + _HEADER.size)
        """What the guest has sent. A slice of it is bytes, one of `view` is not copied."""
        self.view = memoryview(self.buffer)
        self._room = len(self.buffer) - _HEADER.size

        # An idle limit is a whole number of waits, after each of which idle descriptors are closed.
        self._wait = limits.keep_seconds
        if limits.idle_seconds is not None:
            self._wait = limits.idle_seconds / max(1, round(limits.idle_seconds / limits.keep_seconds))
            set_time_out(connection, limits.idle_seconds, sending=True)
        set_time_out(connection, self._wait)

    # The loop

    def run(self, attach: tuple[int, messages.Tattach], msize: int, rest: bytes) -> None:
        """Answer the attach, then serve until the guest hangs up or breaks the protocol.

        Returns when the connection is over; the reason, unless it is a plain hang-up, has been logged.
        """
        self.msize = msize
        self._thread = threading.get_ident()
        self._attach(attached=True)
        try:
            reply = self._guarded(attach[0], lambda: self._serve_attach(*attach))
            if reply is not None:
                self.outbox.reply(reply)
            if len(rest) > self._room:
                self._refuse("more came with the handshake than the largest message holds")
            self.view[: len(rest)] = rest
            self._serve(len(rest))
        except RemoteProtocolError as error:
            self.log(f"{error}; connection closed")
        except (BrokenPipeError, ConnectionResetError):
            pass  # the guest hung up
        except OSError as error:
            self.log(f"{error.strerror or error}; connection closed")
        finally:
            self.close()

    def _serve(self, end: int) -> None:  # noqa: PLR0912, PLR0915  one loop, for the reason below
        # Nearly all of a mount's CPU time that is not the kernel's is this loop and the handlers below it
        # (`perf` of walks at depth 32: 60 % before it was written so). Hence one `struct` call for a
        # header, handlers in a list by type, `try` around the loop and not around each request.
        view, buffer, unpack = self.view, self.buffer, _HEADER.unpack_from
        replies, pending, ahead = self.outbox.replies, self.aside.pending, self._ahead
        append = replies.append
        throttle = self.throttle.spend if self.throttle.is_needed else None
        counts = self.counters.slots
        start = stop = number = at = tag = turn = charged = 0
        while True:
            turn += 1
            fast = self._fast
            if fast is not None and not (pending or ahead or self._lock_waits):
                if replies:
                    start = fast.serve(start, end, self.msize, turn % SAMPLED == 0)
                else:
                    start, end, was_silent = fast.run(start, end, self.msize)
                    if was_silent:
                        self._nothing_came(end)
            served, msize = self._measured if turn % SAMPLED == 0 else self._served, self.msize
            more = False
            try:
                for _ in _TURN:
                    if end - start < HEADER_SIZE:
                        break
                    size, number, tag, fid = unpack(buffer, start)
                    if not HEADER_SIZE <= size <= msize:
                        check_size(size, msize)
                    stop = start + size
                    if stop > end:
                        break
                    if throttle is not None:
                        throttle(1, size + self.outbox.sent - charged)
                        charged = self.outbox.sent
                    at, start = start + HEADER_SIZE, stop
                    serve = served[number]
                    counts[number] += 1
                    if serve is None or pending or ahead or self._lock_waits:
                        reply = self._serve_rest(number, tag, fid, at, stop)
                        served, msize, fast = self._served, self.msize, None
                    else:
                        reply = serve(self, tag, fid, at, stop)
                    if reply is not None:
                        append(reply)
                    if fast is not None and not (pending or ahead or self._lock_waits):
                        start = fast.serve(start, end, msize, served is self._measured)
                else:
                    more = True
            except RemoteProtocolError:
                raise
            except Exception as error:  # noqa: BLE001  a bug of ours must not become the guest's hang
                reply = self._failed(error, number, tag, at, stop)
                if reply is not None:
                    append(reply)
                if len(replies) < _TURN.stop:
                    continue
                more = True  # a turn does not go on for ever with errors: the replies between them may be large
            self.outbox.flush()
            if more:
                continue
            most = _IN_MOST
            if end - start >= large.FIELDS and large.write(self, start, end):
                start, most = end, _IN_NEXT
            if start == end:
                start = end = 0
            elif self._room - end < _IN_SLACK:
                view[: end - start] = bytes(view[start:end])
                start, end = 0, end - start
            # Where large writes are spliced, little of one is received; the rest of any other message all at once.
            if self.splicer is None or end - start >= large.FIELDS:
                most = self._room
            self.counters.set_sent(self.outbox.sent + self.outbox.sent_aside)
            received = self._receive(end, min(end + most, self._room))
            self.counters.count_received(received)
            if not received:
                if end != start:
                    self._refuse("the connection ended inside a message")
                return
            end += received

    def _receive(self, at: int, stop: int) -> int:
        """Wait for more from the guest; meanwhile try again what waits for a lock or for the disk."""
        while self._ahead or self._lock_waits:
            self._require_time()
            # By the clock, not when the guest is silent: one busy program in it would keep all
            # others from their locks.
            now = time.monotonic()
            if self._ahead:
                self._read_again(now)
            if self._lock_waits and now >= self._next_lock_try:
                self._try_locks_again(now)
            self.outbox.flush()
            until = [waiting.next_try for waiting in self._ahead.values()]
            if self._lock_waits:
                until.append(self._next_lock_try)
            if until and is_readable(self._connection, max(0.0, min(until) - now)):
                break
        while True:
            try:
                received = self._connection.recv_into(self.view[at:stop])
            except BlockingIOError:
                self._nothing_came(at)
            else:
                self._silences = 0
                self._rests = False
                return received

    def _nothing_came(self, end: int) -> None:
        """Give back what an idle mount does not need; what was received ends at `end`."""
        self.bear_silence()
        if self._silences == 1:
            buffers.give_back(self._memory, *self._buffers, kept=end)
            self.outbox.rest()
        if not self._rests:
            self.foreign.rest()
        while not self._rests and not is_readable(self._connection, 0):
            self._rests = not self.idle.let_go(_LET_GO)

    def _guarded(self, tag: int, work: Callable[[], bytes | None]) -> bytes | None:
        """Do what a request asks for; an error is the guest's to know."""
        try:
            return work()
        except RemoteProtocolError:
            raise
        except Exception as error:  # noqa: BLE001  a bug of ours must not become the guest's hang
            return self.error(tag, error)

    def _failed(self, error: Exception, number: int, tag: int, at: int, stop: int) -> bytes | None:
        """Return the answer to a request that raised something; None when a thread carries it out."""
        if not isinstance(error, MountCrossed):
            return self.error(tag, error)
        try:
            if not self.foreign.is_used:
                self.foreign.is_used = True
                self._attach(attached=True)
            self.foreign.cross(number, tag, at, stop, error)
        except OSError as refused:
            return self.error(tag, refused)
        return None

    def _find_again(self, node: Node) -> None:
        """Open what was let go; threads do so without the loop's working directory."""
        (self.idle if threading.get_ident() == self._thread else self.foreign.idle).find_again(node)

    @property
    def is_waited_for(self) -> bool:
        """Whether any request has not been answered yet, so that tags are in use."""
        return bool(self.aside.pending or self._ahead or self._lock_waits)

    def serves(self, number: int) -> Serve | None:
        """Return what serves a message type now, where no thread does."""
        return self._handlers[number]

    def bear_silence(self) -> None:
        """Note that nothing came for a while. Raises `RemoteProtocolError` when that was too long."""
        self._silences += 1
        limit = self.limits.idle_seconds
        if limit is not None and self._silences * self._wait >= limit:
            self._refuse(f"nothing came for {limit:g} s")

    def require_room(self, descriptor: int) -> None:
        """Close descriptors that nobody uses, if one that is new says that there are as many as there may be."""
        if descriptor <= self.most_descriptors:
            return
        self._log_once(
            "idle",
            f"{self.most_descriptors} descriptors are open, nearly all that the host allows: those of files that "
            "nobody uses are closed, and opened again when they are used",
        )
        if self.idle.let_go(_LET_GO) < _LET_GO:
            self.idle.let_go(_LET_GO_OPEN, opened_too=True)

    def _is_tag_in_use(self, tag: int) -> bool:
        waits = tag in self._ahead or any(waiting.tag == tag for waiting in self._lock_waits)
        return waits or tag in self.aside.pending

    def _serve_rest(self, number: int, tag: int, fid: int, at: int, stop: int) -> bytes | None:
        """Serve what no handler does: sessions, flushes, what is not spoken here, and tags that are in use."""
        if self._is_tag_in_use(tag):
            return _RLERROR(tag, errno.EINVAL)
        serve = self._served[number]
        if serve is not None:
            return serve(self, tag, fid, at, stop)
        cls = messages.BY_TYPE.get(number)
        if cls is None or cls.__name__.startswith("R"):
            self._refuse(f"message type {number}, which no client sends")
        if not self._attached and number in table.HANDLERS:
            self._refuse(f"{cls.__name__} before Tversion and Tattach")
        message = cls(*cls.layout.read(self.view, at, stop))
        if isinstance(message, messages.Tversion):
            return self._begin_again(message).encode(tag)
        if isinstance(message, messages.Tattach):
            return self._serve_attach(tag, message)
        if not self._attached:
            self._refuse(f"{cls.__name__} before Tversion and Tattach")
        if isinstance(message, messages.Tflush):
            return self._flush_request(tag, message)
        return _RLERROR(tag, errno.EOPNOTSUPP)

    def _serve_attach(self, tag: int, message: messages.Tattach) -> bytes | None:
        self._require_time()
        if not self.tree.root.is_foreign:
            return walking.attach(self, tag, message)
        self.foreign.attach(tag, message)
        return None

    def _attach(self, *, attached: bool) -> None:
        """Serve requests from now on, or none but Tversion and Tattach."""
        self._attached = attached
        self._handlers = self._served = table.served(read_only=self.export.read_only) if attached else _NOT_ATTACHED
        if self._pretends and attached:
            keeps_ledger = self.watched is not None and self.watched.keeps_ledger
            self._served = noting.served(ghosts.served(self._served), keeps_ledger=keeps_ledger)
        if self.foreign.is_used and attached:  # around all others: what is under way on a fid comes first
            self._served = self.foreign.served(self._served)
        if self.fence is not None:
            self._served = self.fence.looked_at(self._served)
        self._measured = self.counters.measured(self._served)
        self._fast = begin(self._marks, self, self._connection) if attached and not self.foreign.is_used else None

    def began_pretending(self) -> None:
        """Look at each fid whether it is pretended to, from now on."""
        if not self._pretends:
            self._pretends = True
            self._attach(attached=True)

    def _marks(self) -> Plain:
        return Plain(
            self,
            self._connection,
            room=self._room,
            slack=_IN_SLACK,
            in_most=_IN_MOST,
            buffers=self._buffers,
        )

    def _flush_request(self, tag: int, message: messages.Tflush) -> bytes | None:
        """Take a request back, if it has not been answered (flush(5)).

        One that waits for a lock or for the disk is forgotten, and the Rflush stands instead of its answer.
        One that runs aside is answered, and the Rflush comes behind. All others have been answered already.
        """
        self._ahead.pop(message.oldtag, None)
        if self.watched is not None:
            self.watched.flush(message.oldtag)
        self._lock_waits = [waiting for waiting in self._lock_waits if waiting.tag != message.oldtag]
        answer = messages.Rflush().encode(tag)
        if self.foreign.flush(message.oldtag, answer):
            return None
        return None if self.aside.flush(message.oldtag, answer) else answer

    def _begin_again(self, message: messages.Tversion) -> messages.Message:
        """Tversion in the middle of a session ends all fids, and what was asked before (version(5))."""
        self.aside.drop_all()
        self._drop_fids()
        reply = negotiate(message, self.limits.msize)
        self._attach(attached=isinstance(reply, messages.Rversion) and reply.version == VERSION)
        if self._attached and isinstance(reply, messages.Rversion):
            self.msize = reply.msize
        return reply

    def _require_time(self) -> None:
        if self.fence is not None:
            self.fence.require()

    def _refuse(self, reason: str) -> NoReturn:
        raise RemoteProtocolError(reason)

    def _drop_fids(self) -> None:
        self.xattr_room = XattrRoom()
        if self.watched is not None:
            self.watched.forget()
        self.foreign.drop_fids()
        self._lock_waits.clear()
        self._ahead.clear()
        self.locks.clear()
        self.fids.clear()
        self.opened_files.clear()

    def close(self) -> None:
        """Let go of every fid and of what the session opened; the connection stays its owner's."""
        self.aside.close()
        self.foreign.close()
        if self.splicer is not None:
            self.splicer.close()
        self._drop_fids()
        self._fast = None  # which knows the session
        self.tree.close()

    # Answers

    def run_aside(self, tag: int, size: int, file: OpenFile, work: Callable[[], bytes]) -> bool:
        """Have a request answered by `work` on another thread, with an open file; `size` is about the reply's.

        Returns False when too much runs aside already: then it is for the caller to do.
        """
        if self.fence is not None:
            work = self.fence.looked_at_beside(work)

        def guarded() -> bytes:
            reply = self._guarded(tag, work)
            assert reply is not None
            return reply

        file.come_back()  # no other thread opens it
        return self.aside.start(tag, size, file, guarded)

    def read_later(self, tag: int, file: OpenFile, offset: int, count: int) -> None:
        """Answer a Tread that waits for the disk, without holding up others.

        The kernel is asked to read ahead (posix_fadvise(2)) and the read is tried again; only when the data does
        not come soon does a thread wait for it. With a thread for each, every cold read took the
        interpreter lock from the loop several times and gave it back by waking it: warm getattrs beside cold
        reads then had a p99 of 4 times diod's (`cold-reads` of benchmarks/), and a message cost 54 us of CPU.
        """
        if count <= _AHEAD_MOST and len(self._ahead) < _MOST_AHEAD:
            try:
                os.posix_fadvise(file.fd, offset, count, os.POSIX_FADV_WILLNEED)
            except OSError:
                pass  # a thread can still read it, or say what is wrong
            else:
                now = time.monotonic()
                self._ahead[tag] = _Ahead(file, offset, count, now, now + _AHEAD_RETRY_SECONDS)
                return
        self._read_aside(tag, file, offset, count)

    def _read_again(self, now: float) -> None:
        """Answer what has come from the disk; leave to threads what takes long."""
        for tag, read in list(self._ahead.items()):
            if now < read.next_try:
                continue
            del self._ahead[tag]
            file, offset, count, since, _ = read
            try:
                if self.outbox.reply_read(tag, file, offset, count):
                    continue
                if now - since > _AHEAD_SECONDS:
                    self._read_aside(tag, file, offset, count)
                else:
                    # Ever less often, so that a slow disk is asked a dozen times and not a hundred.
                    again = now + max(_AHEAD_RETRY_SECONDS, (now - since) / 4)
                    self._ahead[tag] = read._replace(next_try=again)
            except RemoteProtocolError:
                raise
            except OSError as error:
                self.outbox.reply(self.error(tag, error))

    def _read_aside(self, tag: int, file: OpenFile, offset: int, count: int) -> None:
        def read() -> bytes:
            return read_reply(tag, os.pread(file.fd, count, offset))

        if not self.run_aside(tag, count, file, read):
            self.outbox.reply(read())

    # Locks that are waited for

    def wait_for_lock(self, tag: int, try_again: Callable[[], bool]) -> None:
        """Keep a lock request until `try_again` says that it was granted. Raises `OSError`: ENOLCK past the limit."""
        if len(self._lock_waits) >= self.limits.locks:
            self._refuse_more("locks", errno.ENOLCK, f"{self.limits.locks} lock requests wait")
        deadline = time.monotonic() + self.limits.lock_wait_seconds
        self._lock_waits.append(locking.Waiting(tag, deadline, try_again))

    def _try_locks_again(self, now: float) -> None:
        self._next_lock_try = now + locking.AGAIN_SECONDS
        left = []
        for waiting in self._lock_waits:
            reply = self._guarded(waiting.tag, lambda waiting=waiting: locking.answer(waiting, now))  # type: ignore[misc]  # mypy cannot type a lambda's default
            if reply is None:
                left.append(waiting)
            else:
                self.outbox.reply(reply)
        self._lock_waits = left

    # Fids

    def opened(self, fid: Fid, file: OpenFile, node: Node | None = None) -> None:
        """Give a fid its open file, and close others where there are too many. Called by the loop."""
        Session.opened(self, fid, file, node)
        if file.fd > self.most_descriptors:
            self.require_room(file.fd)
