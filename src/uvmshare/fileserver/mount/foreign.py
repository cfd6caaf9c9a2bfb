"""Requests to file systems that may never answer, such as FUSE and NFS: served in threads, beside the loop.

What lives here: which requests these are, `Errand`, one of them, and what becomes of it. What must not: threads
(`lanes`), what a message does (`handlers`, which serve an errand as they serve a session).

A share may lie on such a file system, or have one mounted below it: the loop enters no mount (`Tree.open_entry`), so
that a walk that comes to one is the first errand. What is found behind it are `ForeignNode`s, and whatever names a fid
of one is an errand from then on.

An errand has fids of its own, those that its message names. What it makes of them is the session's only when it has
answered: so one that is given up (flush(5): "considered to have been canceled") leaves the fids as they were, however
late it comes back. What it asked of the file system before may have been done.

Errands of one fid that change what the fid stands for, or the file's content, are carried out one after the other, in
the order in which they came; all others beside each other.
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.errors import RemoteProtocolError
from uvmshare.fileserver.mount.files.locks import GuestLocks, LockTable
from uvmshare.fileserver.mount.files.ownership import choose
from uvmshare.fileserver.mount.files.tree import WaitingTree
from uvmshare.fileserver.mount.handlers import locking, walking
from uvmshare.fileserver.mount.idle import Idle
from uvmshare.fileserver.mount.lanes import Clock, Lane, Lanes
from uvmshare.fileserver.mount.session import Session
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import LockType

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.fids import Changes, Fid, XattrValue, XattrWrite
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.openfile import OpenFile
    from uvmshare.fileserver.mount.session import Serve, ServedConnection
    from uvmshare.fileserver.syscalls import MountCrossed

__all__ = ["Errand", "Foreign"]

_FLUSH_SECONDS: Final = 1.0
"""How long an errand that is flushed may still answer. What is done by then is told, as flush(5) would have it."""

_FIDS: Final = ("fid", "dfid", "dirfd", "olddirfid", "newdirfid", "newfid")
"""The fields of messages that name fids."""
_ALONE: Final = frozenset(
    (m.Tclunk, m.Tremove, m.Tlopen, m.Tlcreate, m.Twrite, m.Tsetattr, m.Tfsync, m.Tlock, m.Txattrcreate)
)
"""What changes its fid, or its file's content: after all that came before, and before all that comes behind."""
_ENDS_FID: Final = (m.Tclunk, m.Tremove)
_OF_FILES: Final = (m.Tread, m.Twrite, m.Tclunk)
"""What asks nothing of the host where the fid is not open as a file."""
_PADDING: Final = bytes(16)
"""Behind a message there is always buffer (`serving`)."""


class Errand(Session):
    """One request that is carried out by a thread. For its handler it is the session."""

    run: Callable[[Errand], None]
    relieve: Callable[[int], None]
    msize: int
    locks_waited_for: set[Errand]

    def __init__(self, shared: dict[str, Any], cls: type[m.Message], serve: Serve, tag: int, message: bytes) -> None:
        self.__dict__.update(shared)
        self.kind = cls
        self.tag = tag
        self.fids = {}
        self.flushes: list[bytes] = []
        self.dropped = False
        """Given up: nothing that it makes is the session's."""
        self.has_begun = False
        self.lane: Lane
        self.size = len(message)
        self.buffer = message + _PADDING
        self.view = memoryview(self.buffer)
        self.outbox = self
        self.before: dict[int, Fid] = {}
        self.alone: tuple[int, ...] = ()
        self.shared: tuple[int, ...] = ()
        """The fids in which it takes its turn: as the only one, or beside others."""
        self.waits_for = 0
        self.followers: list[Errand] = []
        self.pinned: list[Node] = []
        self.take_lock: Callable[[], bool] | None = None
        self.deadline = 0.0
        self._serve = serve
        self._replies: list[bytes] = []
        self._opened: list[tuple[Fid, OpenFile, Node | None]] = []
        self._xattrs: list[tuple[Fid, XattrValue | Changes | XattrWrite]] = []

    def __call__(self) -> None:
        """Be carried out, on a thread of its lane."""
        self.run(self)

    def answer(self) -> bytes | None:
        """Do what it asks for and return the reply; None when it waits for a lock. Never raises."""
        try:
            if self.fence is not None:
                self.fence.require_beside()
            if self.take_lock is not None:
                return locking.answer(locking.Waiting(self.tag, self.deadline, self.take_lock), time.monotonic())
            number = int.from_bytes(self.buffer[:4], "little")
            reply = self._serve(self, self.tag, number, 0, self.size)
        except Exception as error:  # noqa: BLE001  a bug of ours must not become the guest's hang
            return self.error(self.tag, error)
        if reply is None and self.take_lock is not None:
            return None
        return reply if reply is not None else b"".join(self._replies)

    def began_pretending(self) -> None:
        """Do nothing: where there are errands, no directory is watched."""

    def commit(self, session: ServedConnection) -> None:
        """Make the session's what it has made of fids."""
        for number, fid in self.fids.items():
            if self.before.get(number) is not fid:
                session.fids[number] = fid
        for number, fid in self.before.items():
            if number not in self.fids and session.fids.get(number) is fid:
                del session.fids[number]
        for fid, file, node in self._opened:
            Session.opened(session, fid, file, node)  # what is closed to make room is the loop's to close
        for fid, value in self._xattrs:
            session.began_xattr(fid, value)

    def undo(self, reply: bytes) -> None:
        """Give back what it has taken, since it was given up. Raises nothing."""
        for number, fid in self.fids.items():
            if self.before.get(number) is not fid and fid.xattr is not None:
                self.xattr_room.give_back(fid.xattr.size)
        for _, value in self._xattrs:
            self.xattr_room.give_back(value.size)
        if locking.is_granted(reply):
            message = m.Tlock(*m.Tlock.layout.read(self.view, 0, self.size))
            unlock = msgspec.structs.replace(message, lock_type=LockType.UNLCK)
            with suppress(OSError):
                locking.lock(self, self.tag, unlock)

    def forget(self) -> None:
        """Hold no fid and no file any more."""
        self.take_lock = None  # which knows the fid
        self.locks_waited_for.discard(self)
        for each in (self.fids, self.before, self._opened, self._xattrs):
            each.clear()

    # What handlers ask of a session

    def reply(self, frame: bytes) -> None:
        """Have a whole reply sent."""
        self._replies.append(frame)

    def reply_read(self, tag: int, file: OpenFile, offset: int, count: int) -> bool:
        """Leave it to `read_later`: this thread may wait for it."""
        del tag, file, offset, count
        return False

    def run_aside(self, tag: int, size: int, file: OpenFile, work: Callable[[], bytes]) -> bool:
        """Say that the caller is to do it: it runs aside already."""
        del tag, size, file, work
        return False

    def wait_for_lock(self, tag: int, try_again: Callable[[], bool]) -> None:
        """Keep the request until `try_again` says that it was granted. Raises `OSError`: ENOLCK past the limit."""
        del tag
        if len(self.locks_waited_for) >= self.limits.locks:
            self._refuse_more("locks", errno.ENOLCK, f"{self.limits.locks} lock requests wait")
        self.locks_waited_for.add(self)
        self.deadline = time.monotonic() + self.limits.lock_wait_seconds
        self.take_lock = try_again

    def require_room(self, descriptor: int) -> None:
        """Close descriptors of foreign files that nobody uses, if one that is new says that there are too many."""
        self.relieve(descriptor)

    def opened(self, fid: Fid, file: OpenFile, node: Node | None = None) -> None:
        """Give a fid its open file, once this is answered."""
        self._opened.append((fid, file, node))

    def began_xattr(self, fid: Fid, value: XattrValue | Changes | XattrWrite) -> None:
        """Give a fid an extended attribute, once this is answered."""
        self._xattrs.append((fid, value))


class _Line:
    """The errands of one fid: the last that has it alone, and those beside each other behind it."""

    __slots__ = ("beside", "last")

    def __init__(self) -> None:
        self.last: Errand | None = None
        self.beside: dict[Errand, None] = {}


class Foreign:
    """The errands of one session."""

    def __init__(self, session: ServedConnection) -> None:
        export = session.export
        self._session = session
        self._aside = session.aside
        self._lock = session.aside.lock
        self.tree = WaitingTree(session.tree)
        self.ownership = choose(export.security_model, self.tree, export.links, export.map_owner)
        self.idle = Idle(
            self.tree,
            session.fids,
            session.opened_files,
            session.idle.pins,
            in_use=set,
            came_back=lambda _: None,
            is_foreign=True,
        )
        self.is_used = session.tree.root.is_foreign
        """Whether there may be any errand."""
        self._lanes = Lanes(session.counters.set_beside)
        self._clock = Clock()
        self._by_mount: dict[tuple[int, int, bytes] | str, Lane] = {}
        self._lines: dict[int, _Line] = {}
        self._letting_go: set[Lane] = set()
        self._shared = self._template()

    def _template(self) -> dict[str, Any]:
        session = self._session
        on_host = not session.export.read_only or session.limits.read_only_host_locks
        return {
            "export": session.export,
            "limits": session.limits,
            "fence": session.fence,
            "counters": session.counters,
            "log": session.log,
            "logged": session.logged,
            "listings": session.listings,
            "opened_files": session.opened_files,
            "xattr_room": session.xattr_room,
            "watched": None,
            "most_descriptors": session.most_descriptors,
            "tree": self.tree,
            "ownership": self.ownership,
            "idle": self.idle,
            "locks": LockTable() if on_host else GuestLocks(),
            "relieve": self._require_room,
            "run": self._run,
            "locks_waited_for": set(),
        }

    @property
    def is_busy(self) -> bool:
        """Whether any errand is being carried out."""
        return self._lanes.is_busy

    # Which requests

    def served(self, plain: list[Serve | None]) -> list[Serve | None]:
        """Return what serves each message type now that some are errands."""
        made: list[Serve | None] = [None] * len(plain)
        for number, serve in enumerate(plain):
            if serve is not None:
                made[number] = self._dispatching(m.BY_TYPE[number], serve)
        return made

    def _dispatching(self, cls: type[m.Message], serve: Serve) -> Serve:
        read, fields = cls.layout.read, [name for name in _FIDS if name in cls.__struct_fields__]
        has_more = len(fields) > 1
        is_new = cls in (m.Twalk, m.Txattrwalk)
        of_files = cls in _OF_FILES
        lines = self._lines

        def dispatch(session: Session, tag: int, number: int, at: int, stop: int) -> bytes | None:
            # First of all whether any errand is under way. A thread that ends one gives its fids to the session before
            # it leaves its line: so where there is none, what is found of a fid then is what it will be.
            any_lines, in_line = bool(lines), number in lines
            fid = session.fids.get(number)
            is_local = fid is None or not fid.node.is_foreign
            if is_local and not any_lines and (not has_more or is_new):
                return serve(session, tag, number, at, stop)
            is_plain = fid is not None and of_files and fid.file is None and (cls is not m.Tclunk or fid.xattr is None)
            if is_plain and not in_line:
                return serve(session, tag, number, at, stop)
            message = cls(*read(session.view, at, stop))
            named = [getattr(message, name) for name in fields]
            if is_local and not in_line and not any(map(self._is_foreign, named)):
                return serve(session, tag, number, at, stop)
            self._send(cls, serve, tag, bytes(session.view[at:stop]), named)
            return None

        return dispatch

    def _is_foreign(self, number: int) -> bool:
        """Say whether a fid is on a foreign file system, or may be when an errand has answered."""
        if number in self._lines:  # this first, as in `dispatch`
            return True
        fid = self._session.fids.get(number)
        return fid is not None and fid.node.is_foreign

    def cross(self, number: int, tag: int, at: int, stop: int, crossed: MountCrossed) -> None:
        """Carry out a request that has come to a mount. Raises `OSError`."""
        session = self._session
        cls = m.BY_TYPE[number]
        serve = session.serves(number)
        assert serve is not None
        message = cls(*cls.layout.read(session.view, at, stop))
        named = [getattr(message, name) for name in _FIDS if name in cls.__struct_fields__]
        self._send(cls, serve, tag, bytes(session.view[at:stop]), named, lane=self._lane_of(crossed.place))

    def attach(self, tag: int, message: m.Tattach) -> None:
        """Carry out an attach to a share whose root is on a foreign file system. Raises `OSError`."""

        def serve(session: Session, tag: int, _number: int, _at: int, _stop: int) -> bytes:
            return walking.attach(session, tag, message)

        self._send(m.Tattach, serve, tag, b"", [message.fid], lane=self._lane_of_root())

    def _lane_of(self, place: tuple[int, int, bytes] | str, device: int = 0) -> Lane:
        """Return the lane of a mount, or of a name at which one begins."""
        lane = self._by_mount.get(place)
        if lane is None:
            lane = self._by_mount[place] = Lane(place, device)
        return lane

    def _lane_of_root(self) -> Lane:
        root = self._session.tree.root
        return self._lane_of(root.mount, root.device)

    # An errand's life

    def _send(
        self,
        cls: type[m.Message],
        serve: Serve,
        tag: int,
        message: bytes,
        named: list[int],
        *,
        lane: Lane | None = None,
    ) -> None:
        session = self._session
        errand = Errand(self._shared, cls, serve, tag, message)
        errand.msize = session.msize
        with self._lock:  # no errand ends meanwhile
            self._name_fids(errand, named, lane)
        self._lanes.require_room(errand.lane, errand.size)
        with self._lock:
            self._aside.pending[tag] = errand
            self._line_up(errand)
            goes_on = not errand.waits_for
        if goes_on:
            self._begin(errand)

    def _name_fids(self, errand: Errand, named: list[int], lane: Lane | None) -> None:
        """Note which fids an errand is about, and where it takes its turn. Raises `OSError`: EMFILE."""
        session, cls = self._session, errand.kind
        own: dict[int, bool] = {}
        for place, number in enumerate(named):
            fid = session.fids.get(number)
            if fid is not None:
                errand.fids[number] = fid
            is_new = cls is m.Tattach or (place > 0 and cls in (m.Twalk, m.Txattrwalk))
            if is_new and fid is None and len(session.fids) + len(self._lines) >= session.limits.fids:
                session.require_free(number, coming=sum(each not in session.fids for each in self._lines))
            if lane is None and fid is not None and fid.node.is_foreign:
                lane = self._lane_of(fid.node.mount, fid.node.device)
            if lane is None and (line := self._lines.get(number)) is not None and line.last is not None:
                lane = line.last.lane
            if is_new or (fid is not None and fid.node.is_foreign) or number in self._lines:
                own[number] = own.get(number, False) or is_new or cls in _ALONE
        errand.lane = lane or self._lane_of_root()
        errand.alone = tuple(number for number, alone in own.items() if alone)
        errand.shared = tuple(number for number, alone in own.items() if not alone)

    def _line_up(self, errand: Errand) -> None:
        for number in (*errand.alone, *errand.shared):
            line = self._lines.setdefault(number, _Line())
            before = [line.last] if line.last is not None else []
            if number in errand.alone:
                before = list(line.beside) or before
                line.last, line.beside = errand, {}
            else:
                line.beside[errand] = None
            for each in before:
                each.followers.append(errand)
                errand.waits_for += 1

    def _leave_line(self, errand: Errand) -> list[Errand]:
        """Return those that go on now, with the lock held. Those that were given up while they waited leave as well."""
        go_on: list[Errand] = []
        leaving = [errand]
        while leaving:
            left = leaving.pop()
            for number in (*left.alone, *left.shared):
                line = self._lines.get(number)
                if line is None:
                    continue
                line.beside.pop(left, None)
                if line.last is left:
                    line.last = None
                if line.last is None and not line.beside:
                    del self._lines[number]
            for each in left.followers:
                each.waits_for -= 1
                if not each.waits_for:
                    (leaving if each.dropped else go_on).append(each)
            left.followers.clear()
        return go_on

    def _begin(self, errand: Errand) -> None:
        try:
            self._lanes.submit(errand.lane, errand, errand.size)
        except OSError as error:
            self._end(errand, errand.error(errand.tag, error))

    def _run(self, errand: Errand) -> None:
        """Carry out an errand. Never raises."""
        with self._lock:
            is_over = errand.dropped
            go_on = self._leave_line(errand) if is_over else []
            if not is_over:
                self._start(errand)
        if is_over:
            self._let_be(errand)
            self._go_on(go_on)
            return
        reply = errand.answer()
        if reply is None and self._waits_for_lock(errand):
            return
        self._end(errand, reply or b"")

    def _waits_for_lock(self, errand: Errand) -> bool:
        """Have an errand try again later; False when it is over. Meanwhile its fid is others': one of them may unlock.

        So it takes its turn anew.
        """
        with self._lock:
            if errand.dropped or errand.flushes:
                return False
            go_on = self._leave_line(errand)
        self._session.idle.pins.unpin(errand.pinned)
        self._go_on(go_on)
        self._clock.after(locking.AGAIN_SECONDS, lambda: self._try_again(errand))
        return True

    def _try_again(self, errand: Errand) -> None:
        with self._lock:
            if not errand.dropped:
                self._line_up(errand)
            goes_on = not errand.waits_for
        if goes_on:
            self._begin(errand)

    def _start(self, errand: Errand) -> None:
        """Take what its message names, with the lock held: what was not there when it came has been made meanwhile."""
        session = self._session
        errand.has_begun = True
        for number in (*errand.alone, *errand.shared):
            fid = session.fids.get(number)
            if fid is not None:
                errand.fids[number] = fid
            else:  # clunked meanwhile
                errand.fids.pop(number, None)
        if errand.kind in _ENDS_FID:  # the number is free, and nothing but its handler holds the fid
            for number in errand.alone:
                session.fids.pop(number, None)
        else:
            errand.before = dict(errand.fids)
        errand.pinned = session.idle.pins.pin(fid.node for fid in errand.fids.values())

    def _end(self, errand: Errand, reply: bytes) -> None:
        """Answer, unless it was given up."""
        with self._lock:
            was_dropped = errand.dropped
            if not was_dropped:
                errand.dropped = True  # it is over: nobody gives it up any more
                del self._aside.pending[errand.tag]
                if reply:
                    errand.commit(self._session)  # before it leaves its line: see `_dispatching`
            go_on = self._leave_line(errand)
            if not was_dropped:
                with suppress(OSError, RemoteProtocolError):  # the guest is gone; the loop learns it by itself
                    self._session.outbox.send(reply + b"".join(errand.flushes))
        if was_dropped and reply:
            errand.undo(reply)
        self._let_be(errand)
        self._go_on(go_on)

    def _let_be(self, errand: Errand) -> None:
        """Hold nothing for an errand any more: on a thread of its lane, since what it held open is closed by that."""
        errand.forget()
        self._session.idle.pins.unpin(errand.pinned)

    def _go_on(self, errands: list[Errand]) -> None:
        for errand in errands:
            self._begin(errand)

    def flush(self, tag: int, answer: bytes) -> bool:
        """Send `answer` when the errand of that tag has answered, or is given up. Returns False when there is none."""
        with self._lock:
            errand = self._aside.pending.get(tag)
            if not isinstance(errand, Errand):
                return False
            if errand.has_begun:
                errand.flushes.append(answer)
                self._clock.after(_FLUSH_SECONDS, lambda: self._give_up(errand))
                return True
            errand.dropped = True
            del self._aside.pending[tag]
        # Where it waits for its turn it keeps its place, so that those behind it wait for those before it.
        if self._lanes.withdraw(errand.lane, errand):
            errand()
        return False

    def _give_up(self, errand: Errand) -> None:
        """Answer a Tflush, and let what its errand comes to be nobody's."""
        with self._lock:
            if errand.dropped:
                return
            errand.dropped = True
            errand.locks_waited_for.discard(errand)
            del self._aside.pending[errand.tag]
            # Where it waits for its turn, to try for a lock again, it keeps its place.
            go_on = [] if errand.waits_for else self._leave_line(errand)
            with suppress(OSError, RemoteProtocolError):
                self._session.outbox.send(b"".join(errand.flushes))
        self._go_on(go_on)

    # Descriptors, and the end

    def _require_room(self, descriptor: int) -> None:
        if descriptor > self._session.most_descriptors:
            self._make_room()

    def _make_room(self) -> None:
        for lane in list(self._by_mount.values()):
            self._let_go(lane)

    def rest(self) -> None:
        """Close the descriptors of files that nobody has open, as the guest is silent."""
        if self.is_used:
            self._make_room()

    def _let_go(self, lane: Lane) -> None:
        mount = lane.place
        if lane in self._letting_go or not isinstance(mount, str):
            return
        self._letting_go.add(lane)

        def work() -> None:
            try:
                self.idle.let_go_all(mount)
            finally:
                self._letting_go.discard(lane)

        try:
            self._lanes.submit(lane, work)
        except OSError:
            self._letting_go.discard(lane)

    def drop_fids(self) -> None:
        """Let go of every fid on a foreign file system; what they have open is closed by a thread.

        Every errand was given up before.
        """
        left = self._take_fids()
        locks = self._shared["locks"]
        with self._lock:
            self._lines.clear()
        self._shared = self._template()
        for held in left.values():
            held.append(locks)  # the last that lets go of them gives them up
        del locks
        for lane, held in left.items():
            with suppress(OSError):
                self._lanes.submit(lane, held.clear)

    def _take_fids(self) -> dict[Lane, list[object]]:
        """Take the fids on foreign file systems from the session; nobody else holds them then."""
        session = self._session
        left: dict[Lane, list[object]] = {}
        for number, fid in list(session.fids.items()) if self.is_used else ():
            if fid.node.is_foreign:
                left.setdefault(self._lane_of(fid.node.mount, fid.node.device), []).append(session.fids.pop(number))
                if fid.file is not None:
                    session.opened_files.discard(fid.file)
        return left

    def close(self) -> None:
        """Give up every errand, and wait for none."""
        self.drop_fids()
        self._lanes.close()
