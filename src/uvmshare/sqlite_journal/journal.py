"""One journal file for any number of VMs, and the one thread that writes it.

    with SqliteJournal("/var/lib/vms/journal.db") as journal:
        async with Manager(vm, journal=journal.for_vm("vm1")) as manager:
            ...

What lives here: `SqliteJournal`, and the way from event loops to the thread and back. What must not: SQL.

Group commit: whatever was appended while the thread was at the disk goes into its next transaction, whichever VM
it is of. So the disk is waited for once for many appends, however long that takes.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from uvmshare import arguments
from uvmshare.errors import InvalidOptions, JournalError, JournalFull, JournalInUse, JournalReadOnly
from uvmshare.hostpath import absolute
from uvmshare.sqlite_journal.lock import WriterLock
from uvmshare.sqlite_journal.store import JournalFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from uvmshare.share.journal import Journal, JournalState, Record

__all__ = ["SqliteJournal"]

T = TypeVar("T")

_WRITES_BETWEEN_TIDYING = 1000


def _require_id(vm: str) -> None:
    if not isinstance(vm, str):
        arguments.refuse_type("vm", vm, "the id of a VM: a str")
    try:
        vm.encode()
    except UnicodeEncodeError as error:
        msg = f"{vm!r} is no id of a VM: it is no Unicode text, and cannot be written down: give another str"
        raise InvalidOptions(msg) from error


class SqliteJournal:
    """The journal of any number of VMs in one SQLite file, which needs a local file system.

    Nothing is opened before it is needed. What fails then raises `JournalError`, or a child that says more
    (`JournalInUse` when another process has it), in whoever asked, and the next call tries again.

    May be used from any number of event loops. `close` it, or use a ``with`` block, when its Managers have ended.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the path. Raises `JournalError` for what no path can be, `TypeError` for what is none."""
        self.path = absolute("the journal", path, JournalError)
        self._queue: queue.SimpleQueue[_Append | _Ask[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        """Guards `_thread` and `_closed`, and that nothing is queued after the end."""
        self._closed = False
        # The thread's own.
        self._store: JournalFile | None = None
        self._lock: WriterLock | None = None
        self._users: dict[str, object] = {}
        """By VM: who loaded last, and so may append."""
        self._written = 0

    def __repr__(self) -> str:
        return f"<SqliteJournal in {self.path!r}{': closed' if self._closed else ''}>"

    def for_vm(self, vm: str = "") -> Journal:
        """Return the part of one VM, by an id of the caller's choice that is the same after a restart.

        Raises `InvalidOptions` for one that is not UTF-8. Loading it takes it over: what an earlier Manager of the
        same VM still appends raises `JournalInUse`.
        """
        _require_id(vm)
        return _VMJournal(self, vm)

    async def vms(self) -> tuple[str, ...]:
        """Return the ids of the VMs that something is written down of. Raises `JournalError`."""
        return await self._ask(lambda store: store.vms())

    async def forget_vm(self, vm: str) -> None:
        """Remove everything that is written down of a VM, because it is gone for good.

        Raises `JournalError`, and what `for_vm` raises.
        """
        _require_id(vm)

        def forget(store: JournalFile) -> None:
            self._users.pop(vm, None)
            store.forget_vm(vm)

        await self._ask(forget)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what was appended, close the file and end the thread. Later calls raise `JournalError`."""
        with self._guard:
            self._closed = True
            thread, self._thread = self._thread, None
            if thread is not None:
                self._queue.put(None)
        if thread is not None:
            thread.join()

    # ------------------------------------------------------------------ in the event loops

    async def _load(self, vm: str, user: object) -> JournalState:
        def load(store: JournalFile) -> JournalState:
            state = store.load(vm)
            self._users[vm] = user
            return state

        return await self._ask(load)

    async def _append(self, vm: str, user: object, records: Sequence[Record]) -> None:
        answer: _Answer[None] = _Answer(asyncio.get_running_loop())
        self._put(_Append(vm, user, tuple(records), answer))
        await answer.future

    async def _ask(self, question: Callable[[JournalFile], T]) -> T:
        answer: _Answer[T] = _Answer(asyncio.get_running_loop())
        self._put(_Ask(question, answer))
        return await answer.future

    def _put(self, request: _Append | _Ask[T]) -> None:
        with self._guard:
            if self._closed:
                msg = f"{self.path}: this journal was closed: open it again"
                raise JournalError(msg)
            if self._thread is None:
                # A daemon: a program that forgets to close it must still end, and loses nothing.
                self._thread = threading.Thread(target=self._serve, name="uvmshare journal", daemon=True)
                self._thread.start()
            self._queue.put(request)  # type: ignore[arg-type]  # of what type an answer is, matters to nobody there

    # ------------------------------------------------------------------ in the thread

    def _serve(self) -> None:
        ending = False
        while not ending:
            requests = [self._queue.get()]
            with suppress(queue.Empty):
                while True:
                    requests.append(self._queue.get_nowait())
            appends: list[_Append] = []
            for request in requests:
                if isinstance(request, _Append):
                    appends.append(request)
                    continue
                self._append_all(appends)
                appends = []
                if request is None:
                    ending = True
                else:
                    self._answer(request)
            self._append_all(appends)
        self._shut()

    def _answer(self, request: _Ask[object]) -> None:
        try:
            result = request.question(self._opened())
        except Exception as error:  # noqa: BLE001  raised where it was asked
            self._forget_store(error)
            request.answer.fail(error)
        else:
            request.answer.give(result)

    def _append_all(self, appends: list[_Append]) -> None:
        allowed = []
        for append in appends:
            if self._users.get(append.vm) is append.user:
                allowed.append(append)
            else:
                msg = (
                    f"{self.path}: another Manager has taken over VM {append.vm!r}, or this one never loaded it: let "
                    "one Manager have each VM, and load the journal first"
                )
                append.answer.fail(JournalInUse(msg))
        if not allowed:
            return
        try:
            self._write(allowed)
        except Exception as error:  # noqa: BLE001  raised where it was asked
            if len(allowed) == 1:
                allowed[0].answer.fail(error)
                return
            # One of them may be to blame, and the others are not of the same VM.
            for append in allowed:
                self._append_all([append])
        else:
            for append in allowed:
                append.answer.give(None)

    def _write(self, appends: list[_Append]) -> None:
        try:
            store = self._opened()
            store.write((append.vm, append.records) for append in appends)
        except Exception as error:
            self._forget_store(error)
            raise
        self._written += 1
        if self._written % _WRITES_BETWEEN_TIDYING == 0:
            store.tidy()

    def _opened(self) -> JournalFile:
        if self._lock is None:
            try:
                self._lock = WriterLock.take(self.path)
            except OSError as error:
                raise _no_lock(self.path, error) from error
        if self._store is None:
            self._store = JournalFile(self.path)
        return self._store

    def _forget_store(self, error: Exception) -> None:
        """Open the file anew next time, which checks it, unless nothing can be wrong with what is there."""
        if self._store is not None and not isinstance(error, JournalFull | JournalInUse):
            self._store.close()
            self._store = None

    def _shut(self) -> None:
        if self._store is not None:
            self._store.close()
        if self._lock is not None:
            self._lock.release()


class _VMJournal:
    """The part of one VM, as `uvmshare.share.journal.Journal`."""

    def __init__(self, file: SqliteJournal, vm: str) -> None:
        self._file = file
        self._vm = vm

    async def load(self) -> JournalState:
        """Return what is written down of the VM, and take it over."""
        return await self._file._load(self._vm, self)  # noqa: SLF001  the two are one

    async def append(self, records: Sequence[Record]) -> None:
        """Write records of the VM down."""
        await self._file._append(self._vm, self, records)  # noqa: SLF001  as above


class _Answer(Generic[T]):
    """What somebody in an event loop waits for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.future: asyncio.Future[T] = loop.create_future()

    def give(self, result: T) -> None:
        self._call(self.future.set_result, result)

    def fail(self, error: Exception) -> None:
        self._call(self.future.set_exception, error)

    def _call(self, function: Callable[..., None], argument: object) -> None:
        def end() -> None:
            if not self.future.done():
                function(argument)

        with suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(end)


@dataclass(frozen=True, slots=True, eq=False)
class _Append:
    vm: str
    user: object
    records: tuple[Record, ...]
    answer: _Answer[None]


@dataclass(frozen=True, slots=True, eq=False)
class _Ask(Generic[T]):
    question: Callable[[JournalFile], T]
    answer: _Answer[T]


def _no_lock(path: str, error: OSError) -> JournalError:
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        return JournalError(f"{path}: there is no directory {directory}: make it, or give another path")
    return JournalReadOnly(
        f"{path}: its lock file cannot be made or opened: {error.strerror}: let this user write to {directory}"
    )
