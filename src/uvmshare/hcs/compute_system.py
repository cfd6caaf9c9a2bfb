"""A compute system of the Host Compute Service, for asyncio: one running utility VM of this Windows host.

    async with await ComputeSystem.open("1a2b...") as system:
        manager = Manager(UtilityVM(system))
        ...

What lives here: how operations, events and handles meet the event loop. What must not: ctypes
(`uvmshare.hcs.computecore`), the meaning of an HRESULT (`uvmshare.hcs.hresult`), or any record of shares:
HCS has no query for them, and the Manager keeps it.

Every call to the DLL is made on a worker thread, and every callback comes on a thread of the DLL's and
reaches the event loop through `call_soon_threadsafe`. An operation is never abandoned: its buffers and handle
live until HCS has told its end, whatever becomes of those who wait for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Self

from uvmshare import arguments
from uvmshare.errors import (
    ComputeSystemClosed,
    ComputeSystemStopped,
    InvalidDocument,
    InvalidState,
    OperationTimedOut,
    UnsupportedPlatform,
)
from uvmshare.hcs import schema
from uvmshare.hcs.computecore import ComputeCore
from uvmshare.hcs.hresult import error_from, failed

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from types import TracebackType

    from uvmshare.errors import ComputeSystemError
    from uvmshare.hcs.computecore import HcsOperation, Result, SystemHandle

__all__ = ["GRACE", "TIMEOUT", "ComputeSystem", "Event", "EventType"]

TIMEOUT = 240.0
"""Seconds until an operation is cancelled: four minutes, as hcsshim gives each."""

GRACE = 60.0
"""Seconds to wait for the end of an operation that was cancelled, before its caller is told that there is none."""

RESTRICT_FILE_ACCESS_BUILD = 18362
"""The first Windows build (10 1903) whose Plan 9 shares know RestrictFileAccess."""

_WORKERS = 4
"""Threads that hand operations over. Handing over is short; what it starts runs inside HCS."""


class EventType(enum.IntEnum):
    """``HCS_EVENT_TYPE``, as far as compute systems have them."""

    SYSTEM_EXITED = 0x1
    SYSTEM_CRASH_INITIATED = 0x2
    SYSTEM_CRASH_REPORT = 0x3
    SYSTEM_RDP_ENHANCED_MODE_STATE_CHANGED = 0x4
    SYSTEM_SILO_JOB_CREATED = 0x5
    SYSTEM_GUEST_CONNECTION_CLOSED = 0x6
    SERVICE_DISCONNECT = 0x0200_0000


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a compute system; `type` is an `EventType`, or a number newer than this list."""

    type: int
    data: str
    """The JSON document that came with it, or ""."""


class Events:
    """The events of one compute system from now on; ends when it exits, is closed, or the service is gone."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._queue.get()
        if event is None:
            self._queue.put_nowait(None)  # for whoever asks again
            raise StopAsyncIteration
        return event

    def put(self, event: Event | None) -> None:
        """Add an event, or None for the end."""
        self._queue.put_nowait(event)


class _Call:
    """One operation as the event loop sees it: handed over, perhaps cancelled, and in `ended` its result."""

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        over: asyncio.Future[None],
        make: Callable[[Callable[[Result], None]], HcsOperation],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._executor = executor
        self._over = over
        self.ended: asyncio.Future[Result] = self._loop.create_future()
        self._operation = make(self._told)
        self._loop.run_in_executor(executor, self._operation.start).add_done_callback(self._started)

    def _started(self, starting: asyncio.Future[None]) -> None:
        error = None if starting.cancelled() else starting.exception()
        if error is not None and not self.ended.done():  # a defect of ours; without this it would never end
            self.ended.set_exception(error)

    def _told(self, result: Result) -> None:
        # On any thread. In a loop that was closed meanwhile nobody waits any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._end, result)

    def _end(self, result: Result) -> None:
        if not self.ended.done():
            self.ended.set_result(result)

    @property
    def _decided(self) -> bool:
        return self.ended.done() or self._over.done()

    async def _wait(self, seconds: float) -> None:
        await _first_of(self.ended, self._over, seconds)

    async def result(self, seconds: float, grace: float) -> Result | None:
        """Wait for the end. After `seconds`, or when the caller is cancelled, cancel the operation and wait on.

        Returns None when there is no end `grace` seconds after that, or when the compute system is over. A
        cancelled caller gets its CancelledError, but not sooner.
        """
        cancelled: asyncio.CancelledError | None = None
        try:
            await self._wait(seconds)
        except asyncio.CancelledError as error:
            cancelled = error
        if not self._decided:
            self._executor.submit(self._operation.cancel)
        until = self._loop.time() + grace
        while not self._decided and (left := until - self._loop.time()) > 0:
            try:
                await self._wait(left)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled
        return self.ended.result() if self.ended.done() else None


class ComputeSystem:
    """One open compute system: it takes modify documents, and tells events. Make one with `open`.

    It is what `uvmshare.UtilityVM` needs. It belongs to the event loop that opened it.
    """

    def __init__(self, core: ComputeCore, id_: str, timeout: float, grace: float) -> None:
        self._core = core
        self.id = id_
        self._timeout = timeout
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(_WORKERS, thread_name_prefix=f"hcs {id_}")
        self._handle: SystemHandle | None = None
        """None before it is opened and from the moment that it is being closed."""
        self._over: asyncio.Future[None] = self._loop.create_future()
        """Done when the VM has exited or the service is gone: then `_end_event` says which."""
        self._end_event: Event | None = None
        self._running: set[asyncio.Future[Result]] = set()
        self._last_of: dict[tuple[str, int], asyncio.Future[Result]] = {}
        """The request for each share (access name, port) that has not ended, so that none overtakes it."""
        self._subscribers: list[Events] = []
        self._on_exit: list[Callable[[ComputeSystemStopped], None]] = []
        self._closing: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else "has exited" if self._over.done() else "open"
        return f"<ComputeSystem {self.id!r}: {state}>"

    # ------------------------------------------------------------------ opening and closing

    @classmethod
    async def open(
        cls,
        id_: str,
        *,
        timeout: float = TIMEOUT,  # noqa: ASYNC109  not a limit of this coroutine, but of operations to come
        grace: float = GRACE,
        core: ComputeCore | None = None,
    ) -> Self:
        """Open the compute system with this id: HcsOpenComputeSystem, and watch its events.

        An operation is cancelled `timeout` seconds after it began. If it has not ended `grace` seconds later, its
        caller gets `OperationTimedOut`. `core` is Windows' own computecore.dll unless given.

        Raises `UnsupportedPlatform` where there is no HCS, `ComputeSystemNotFound` when there is no such id,
        `NotAdministrator`, `AccessDenied`, and other children of `ComputeSystemError`.
        """
        if not isinstance(id_, str):
            arguments.refuse_type("id", id_, "the id of a compute system: a str")
        arguments.seconds("timeout", timeout, zero=True)
        arguments.seconds("grace", grace, zero=True)
        if not id_ or "\0" in id_:
            msg = f"{id_!r} is no id of a compute system: uvmshare hcs list shows those that there are"
            raise InvalidDocument(msg)
        system = cls(core or _system_core(), id_, timeout, grace)
        opening = system._executor.submit(system._core.open_compute_system, id_, system._event_came)
        try:
            system._handle = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(system._opened_for_nobody)
            raise
        except BaseException:
            system._executor.shutdown(wait=False)
            raise
        return system

    def _opened_for_nobody(self, opening: Future[SystemHandle]) -> None:
        # On the worker thread: the event loop may be closed by then.
        if not opening.cancelled() and opening.exception() is None:
            self._core.close_compute_system(opening.result())
        self._executor.shutdown(wait=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Take no more requests, wait for those under way, and close the handle. A second call waits for the same end.

        Raises `OperationTimedOut` when operations have not ended within their time (`timeout` and `grace`). The handle
        is then closed when they end. If the caller is cancelled, the closing goes on.
        """
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        handle, self._handle = self._handle, None
        assert handle is not None, "closed once only: see close()"
        self._end_subscribers()
        if self._running:
            # Of a VM that has exited HCS ends the operations itself, and soon.
            seconds = self._grace if self._over.done() else self._timeout + self._grace
            await asyncio.wait(tuple(self._running), timeout=seconds)
        if self._running:
            self._close_when_ended(handle)
            msg = (
                f"compute system {self.id}: closing it: {len(self._running)} operation(s) have not ended; the "
                f"handle is closed when they do: see that the Host Compute Service runs (sc query vmcompute)"
            )
            raise OperationTimedOut(msg)
        await self._loop.run_in_executor(self._executor, self._core.close_compute_system, handle)
        self._executor.shutdown()  # its threads are idle

    def _close_when_ended(self, handle: SystemHandle) -> None:
        def close_after_last(_: object) -> None:
            if not self._running:
                self._executor.submit(self._core.close_compute_system, handle)
                self._executor.shutdown(wait=False)

        for ended in self._running:
            ended.add_done_callback(close_after_last)

    # ------------------------------------------------------------------ requests

    async def modify(self, request: schema.ModifySettingRequest) -> None:
        """Carry a modify document out: HcsModifyComputeSystem.

        When the time is over, or the caller is cancelled, the operation is cancelled, and its end is waited
        for all the same. An end that comes then counts as it is: done, or failed.

        Raises `OperationTimedOut`, `ServiceDisconnected` and other `OutcomeUnknown` when it may or may not have
        been done, and any other `ComputeSystemError` when it was not: `ComputeSystemGone` when
        the VM has exited. Raises `UnsupportedPlatform` for RestrictFileAccess on a Windows that is older than it.
        """
        action, removing = self._describe(request)
        self._refuse_unsupported(action, request.settings)
        document = schema.encode(request)
        key = (request.settings.access_name, request.settings.port) if request.settings is not None else None
        if key is not None:
            await self._let_earlier_end(action, key)
        handle = self._usable(action)
        call = self._begin(lambda on_end: self._core.modify_compute_system(handle, document, on_end))
        if key is not None:
            self._last_of[key] = call.ended
            call.ended.add_done_callback(lambda ended: self._forget(key, ended))
        await self._finish(action, call, removing=removing)

    async def properties(self) -> schema.ComputeSystemProperties:
        """Ask what the compute system is and how it is: HcsGetComputeSystemProperties. Raises as `modify` does."""
        action = f"compute system {self.id}: asking for its properties"
        handle = self._usable(action)
        call = self._begin(lambda on_end: self._core.get_compute_system_properties(handle, None, on_end))
        result = await self._finish(action, call)
        return schema.decode_properties(result.document)[0]

    @staticmethod
    async def enumerate(
        query: schema.SystemQuery | None = None,
        *,
        timeout: float = TIMEOUT,  # noqa: ASYNC109  cancels the operation, and then waits for its end
        grace: float = GRACE,
        core: ComputeCore | None = None,
    ) -> tuple[schema.ComputeSystemProperties, ...]:
        """List the compute systems of this host: HcsEnumerateComputeSystems. Raises as `open` does."""
        action = "listing compute systems"
        core = core or _system_core()
        text = schema.encode(query).decode() if query is not None else None
        never: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        executor = ThreadPoolExecutor(1, thread_name_prefix="hcs")
        try:
            call = _Call(executor, never, lambda on_end: core.enumerate_compute_systems(text, on_end))
            result = await call.result(timeout, grace)
        finally:
            executor.shutdown(wait=False)
        return schema.decode_properties(_checked(action, result, timeout + grace).document)

    def _describe(self, request: schema.ModifySettingRequest) -> tuple[str, bool]:
        """Return what a request does, for messages, and whether it removes a share."""
        settings = request.settings
        removing = request.request_type is schema.RequestType.REMOVE
        if settings is None:
            return f"compute system {self.id}: a request to the guest", False
        if removing:
            return f"compute system {self.id}: removing share {settings.access_name}", True
        return f"compute system {self.id}: adding share {settings.access_name} ({settings.path})", False

    def _refuse_unsupported(self, action: str, share: schema.Plan9Share | None) -> None:
        build = self._core.windows_build
        restricted = share is not None and share.flags & schema.Plan9ShareFlags.RESTRICT_FILE_ACCESS
        if restricted and build is not None and build < RESTRICT_FILE_ACCESS_BUILD:
            msg = (
                f"{action}: shares restricted to some names need Windows build {RESTRICT_FILE_ACCESS_BUILD} or later, "
                f"and this is build {build}: share a directory that holds these names alone, or update Windows"
            )
            raise UnsupportedPlatform(msg)

    async def _let_earlier_end(self, action: str, key: tuple[str, int]) -> None:
        """Wait for a request for the same share that its own caller gave up on: none may overtake another."""
        while (earlier := self._last_of.get(key)) is not None:
            await _first_of(earlier, self._over, self._timeout)
            self._usable(action)
            if not earlier.done():
                msg = f"{action}: an earlier request for this share has not ended, and this one was not sent: ask again"
                raise OperationTimedOut(msg)

    def _forget(self, key: tuple[str, int], ended: asyncio.Future[Result]) -> None:
        if self._last_of.get(key) is ended:
            del self._last_of[key]

    def _usable(self, action: str) -> SystemHandle:
        """Return the handle, or raise why there is none to use."""
        if self._handle is None:
            msg = f"{action}: it was closed here: open it again"
            raise ComputeSystemClosed(msg)
        if self._service_is_gone:
            msg = f"{action}: the Host Compute Service went away, and the handle with it: open the compute system again"
            raise InvalidState(msg, hresult=_SERVICE_DISCONNECT)
        if self._over.done():
            raise self._stopped(action)
        return self._handle

    def _begin(self, make: Callable[[Callable[[Result], None]], HcsOperation]) -> _Call:
        call = _Call(self._executor, self._over, make)
        self._running.add(call.ended)
        call.ended.add_done_callback(self._running.discard)
        return call

    async def _finish(self, action: str, call: _Call, *, removing: bool = False) -> Result:
        result = await call.result(self._timeout, self._grace)
        if result is None and self._over.done():
            raise self._end_error(action)
        return _checked(action, result, self._timeout + self._grace, removing=removing)

    # ------------------------------------------------------------------ events

    def events(self) -> Events:
        """Return the events from now on, for ``async for``. If the VM has exited already, that one alone."""
        events = Events()
        if self._end_event is not None:
            events.put(self._end_event)
        if self._end_event is not None or self._handle is None:
            events.put(None)
        else:
            self._subscribers.append(events)
        return events

    def on_exit(self, callback: Callable[[ComputeSystemStopped], None]) -> None:
        """Have `callback` called in the event loop when the VM exits, or soon if it has exited already."""
        if self._over.done() and not self._service_is_gone:
            self._loop.call_soon(callback, self._stopped())
        else:
            self._on_exit.append(arguments.function("callback", callback))

    async def wait_exit(self) -> schema.ExitStatus:
        """Wait until the VM exits, and return how.

        Raises `ServiceDisconnected` when the service goes away first, `ComputeSystemClosed` when this is closed.
        """
        action = f"compute system {self.id}: waiting for its exit"
        async for event in self.events():
            if event.type == EventType.SYSTEM_EXITED:
                return schema.decode_exit_status(event.data)
        raise self._end_error(action) if self._over.done() else ComputeSystemClosed(f"{action}: it was closed here")

    def _event_came(self, type_: int, data: str) -> None:
        # On the DLL's thread.
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens
            self._loop.call_soon_threadsafe(self._event, Event(type_, data))

    def _event(self, event: Event) -> None:
        if self._handle is None or self._over.done():
            return  # Nothing comes after the end.
        for events in self._subscribers:
            events.put(event)
        if event.type not in {EventType.SYSTEM_EXITED, EventType.SERVICE_DISCONNECT}:
            return
        self._end_event = event
        self._over.set_result(None)
        self._end_subscribers()
        callbacks, self._on_exit = self._on_exit, []
        if not self._service_is_gone:
            for callback in callbacks:
                callback(self._stopped())

    def _end_subscribers(self) -> None:
        for events in self._subscribers:
            events.put(None)
        self._subscribers.clear()

    @property
    def _service_is_gone(self) -> bool:
        return self._end_event is not None and self._end_event.type == EventType.SERVICE_DISCONNECT

    def _end_error(self, action: str) -> ComputeSystemError:
        """Return what to tell those who waited. Only with the VM's exit are its shares certainly gone."""
        if self._service_is_gone:
            return error_from(action, _SERVICE_DISCONNECT)
        return self._stopped(action)

    def _stopped(self, action: str = "") -> ComputeSystemStopped:
        status = schema.decode_exit_status(self._end_event.data if self._end_event is not None else "")
        how = ", ".join(filter(None, (status.exit_type, f"status 0x{status.status & 0xFFFF_FFFF:08X}")))
        where = action or f"compute system {self.id}"
        return ComputeSystemStopped(
            f"{where}: the VM has exited ({how}): start it again, then add its shares again",
            hresult=status.status & 0xFFFF_FFFF,
        )


_SERVICE_DISCONNECT = 0x8037_011E


async def _first_of(one: asyncio.Future[Result], other: asyncio.Future[None], seconds: float) -> None:
    """Wait until either is done, or the time is over."""
    futures: tuple[asyncio.Future[Any], ...] = (one, other)
    await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)


def _checked(action: str, result: Result | None, seconds: float, *, removing: bool = False) -> Result:
    """Return a result that is a success. Raises what any other one means."""
    if result is None:
        msg = (
            f"{action}: no end after {seconds:g} s, though it was cancelled: ask again; "
            f"the Manager removes what may have been left behind"
        )
        raise OperationTimedOut(msg)
    if failed(result.hresult):
        raise error_from(action, result.hresult, result.document, removing=removing)
    return result


@cache
def _system_core() -> ComputeCore:
    """Windows' own computecore.dll, loaded once."""
    return ComputeCore.load()
