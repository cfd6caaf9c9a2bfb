"""computecore.dll, the client library of the Host Compute Service: the only ctypes that talks to HCS.

What lives here: the exports with their types, the handles, and `HcsOperation`, which keeps everything that
the DLL may still read until the DLL is done with it. What must not: an event loop, or the meaning of an
HRESULT (`uvmshare.hcs.hresult`).

Every call here may block and belongs on a worker thread. Callbacks come on threads of the DLL's own.

The signatures are those of the HCS reference (ComputeCore.h). Text is UTF-16 in arrays of 16-bit units,
not `wchar_t`, so that the same binding also drives a stand-in on a system whose `wchar_t` is wider.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import threading
from typing import TYPE_CHECKING, NamedTuple, NewType, Protocol, cast

from uvmshare.errors import InvalidDocument, UnsupportedPlatform
from uvmshare.hcs.hresult import PENDING, S_OK, error_from, failed, normalised

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ComputeCore", "HcsOperation", "OperationHandle", "Result", "SystemHandle"]

OperationHandle = NewType("OperationHandle", int)
"""An ``HCS_OPERATION``."""

SystemHandle = NewType("SystemHandle", int)
"""An ``HCS_SYSTEM``."""

_GENERIC_ALL = 0x1000_0000
"""The access that every caller of HcsOpenComputeSystem asks for."""

_E_OUTOFMEMORY = 0x8007_000E
_E_ABORT = 0x8000_4004
_EVENT_OPTION_NONE = 0  # HcsEventOptionNone
_LOAD_LIBRARY_SEARCH_SYSTEM32 = 0x800
"""Take the DLL from System32 alone, never one that lies in the current directory (LoadLibraryEx)."""

_Text = ctypes.Array[ctypes.c_uint16]
_TextPointer = ctypes.POINTER(ctypes.c_uint16)

if sys.platform == "win32":
    _function_type = ctypes.WINFUNCTYPE
else:
    _function_type = ctypes.CFUNCTYPE

_Completion = _function_type(None, ctypes.c_void_p, ctypes.c_void_p)  # HCS_OPERATION_COMPLETION
_EventCallback = _function_type(None, ctypes.c_void_p, ctypes.c_void_p)  # HCS_EVENT_CALLBACK


class _Event(ctypes.Structure):
    """``HCS_EVENT``."""

    _fields_ = (("type", ctypes.c_uint32), ("event_data", ctypes.c_void_p), ("operation", ctypes.c_void_p))


class _Exports(Protocol):
    """The functions of computecore.dll that are used here, and LocalFree, as ctypes calls them."""

    # ruff: noqa: N802  the functions have the names that the DLL gives them

    def HcsCreateOperation(self, context: int, callback: ctypes._FuncPointer, /) -> int | None: ...
    def HcsCloseOperation(self, operation: OperationHandle, /) -> None: ...
    def HcsCancelOperation(self, operation: OperationHandle, /) -> int: ...
    def HcsGetOperationResult(self, operation: OperationHandle, document: object, /) -> int: ...
    def HcsOpenComputeSystem(self, id_: _Text, access: int, system: object, /) -> int: ...
    def HcsCloseComputeSystem(self, system: SystemHandle, /) -> None: ...
    def HcsModifyComputeSystem(
        self, system: SystemHandle, operation: OperationHandle, configuration: _Text, identity: None, /
    ) -> int: ...
    def HcsGetComputeSystemProperties(
        self, system: SystemHandle, operation: OperationHandle, query: _Text | None, /
    ) -> int: ...
    def HcsEnumerateComputeSystems(self, query: _Text | None, operation: OperationHandle, /) -> int: ...
    def HcsSetComputeSystemCallback(
        self, system: SystemHandle, options: int, context: int, callback: ctypes._FuncPointer, /
    ) -> int: ...
    def LocalFree(self, memory: int, /) -> int | None: ...


_HRESULT = ctypes.c_int32  # a LONG: c_long has 8 bytes where a stand-in may run
_HANDLE = ctypes.c_void_p
_OUT = ctypes.POINTER(ctypes.c_void_p)

_SIGNATURES: dict[str, tuple[object, tuple[object, ...]]] = {
    "HcsCreateOperation": (_HANDLE, (ctypes.c_void_p, _Completion)),
    "HcsCloseOperation": (None, (_HANDLE,)),
    "HcsCancelOperation": (_HRESULT, (_HANDLE,)),
    "HcsGetOperationResult": (_HRESULT, (_HANDLE, _OUT)),
    "HcsOpenComputeSystem": (_HRESULT, (_TextPointer, ctypes.c_uint32, _OUT)),
    "HcsCloseComputeSystem": (None, (_HANDLE,)),
    "HcsModifyComputeSystem": (_HRESULT, (_HANDLE, _HANDLE, _TextPointer, _HANDLE)),
    "HcsGetComputeSystemProperties": (_HRESULT, (_HANDLE, _HANDLE, _TextPointer)),
    "HcsEnumerateComputeSystems": (_HRESULT, (_TextPointer, _HANDLE)),
    "HcsSetComputeSystemCallback": (_HRESULT, (_HANDLE, ctypes.c_uint32, ctypes.c_void_p, _EventCallback)),
    "LocalFree": (ctypes.c_void_p, (ctypes.c_void_p,)),
}


class Result(NamedTuple):
    """How an operation ended: the HRESULT, and the result document ("" if there was none)."""

    hresult: int
    document: str


class HcsOperation:
    """One ``HCS_OPERATION`` from its creation to its end, with all that the DLL may read meanwhile.

    Three may be using it at a time: the call that hands it over, the end that HCS tells, a
    cancellation. Whoever is last closes the handle and drops the buffers, and then `on_end` is called,
    exactly once and on whatever thread that is. So nothing is released under the DLL's hands, and
    whoever hears of the end knows that nothing is left. Safe to use from several threads.
    """

    def __init__(
        self,
        exports: _Exports,
        submit: Callable[[OperationHandle], int],
        on_end: Callable[[Result], None],
    ) -> None:
        self._exports = exports
        self._submit: Callable[[OperationHandle], int] | None = submit
        """Holds the buffers; dropped with the handle."""
        self._on_end = on_end
        self._lock = threading.Lock()
        # Guarded by the lock:
        self._handle: OperationHandle | None = None
        self._users = 0
        self._cancelled = False
        self._cancellable = False
        # Set by whoever takes the operation out of _running, before it gives its use up:
        self._result = Result(S_OK, "")

    def start(self) -> None:
        """Hand the operation over to HCS. Blocks while HCS takes it; call it once, on a worker thread."""
        number = next(_numbers)
        handle = None if self._cancelled else self._exports.HcsCreateOperation(number, _operation_ended)
        if handle is None:
            self._submit = None
            self._on_end(Result(_E_ABORT if self._cancelled else _E_OUTOFMEMORY, ""))
            return
        operation = OperationHandle(handle)
        self._handle = operation
        self._users = 2  # this call, and the end
        _running[number] = self
        assert self._submit is not None, "started twice"
        hresult = self._submit(operation)
        if not failed(hresult) or normalised(hresult) in PENDING:
            with self._lock:
                self._cancellable = self._users > 1  # else the end has come already
                cancel = self._cancellable and self._cancelled
            if cancel:
                self._exports.HcsCancelOperation(operation)
        elif _running.pop(number, None) is not None:
            # What was refused has no end to come (unless that was told all the same, and took it out).
            self._result = Result(hresult, self._read().document)
            self._release()
        self._release()

    def cancel(self) -> None:
        """Ask HCS to give the operation up; its end still comes. May block; without effect after the end.

        The reference says that HcsCancelOperation always answers E_NOTIMPL, today. Then the operation
        simply goes on, so its answer is of no use here.
        """
        with self._lock:
            self._cancelled = True
            if not self._cancellable or self._handle is None:
                return  # Not handed over yet, and `start` sees to it; or nothing is left to cancel.
            handle = self._handle
            self._users += 1
        self._exports.HcsCancelOperation(handle)
        self._release()

    def ended(self) -> None:
        """Take the result. Called on the DLL's thread, when HCS tells the end."""
        self._result = self._read()
        self._release()

    def _read(self) -> Result:
        assert self._handle is not None
        document = ctypes.c_void_p()
        hresult = self._exports.HcsGetOperationResult(self._handle, ctypes.byref(document))
        return Result(hresult, _take_text(self._exports, document))

    def _release(self) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            handle, self._handle = self._handle, None
        if handle is not None:
            self._exports.HcsCloseOperation(handle)
        self._submit = None
        self._on_end(self._result)


# What the DLL is given as context is a number, never an address: a callback that comes late finds nothing.
_numbers = itertools.count(1)
_running: dict[int, HcsOperation] = {}
_watching: dict[int, Callable[[int, str], None]] = {}


# One function object of each kind, for ever: were they made for each call, the last reference could go
# while the DLL's thread is still inside.
def _on_operation_ended(_handle: int | None, context: int | None) -> None:
    operation = _running.pop(context or 0, None)
    if operation is not None:
        operation.ended()


def _on_event(event: int | None, context: int | None) -> None:
    watcher = _watching.get(context or 0)
    if watcher is not None and event is not None:
        came = _Event.from_address(event)
        watcher(int(came.type), _text_at(came.event_data))


_operation_ended = _Completion(_on_operation_ended)
_event_came = _EventCallback(_on_event)


class ComputeCore:
    """The loaded computecore.dll. `windows_build` is the host's build number, None where it is not Windows."""

    def __init__(self, exports: _Exports, windows_build: int | None) -> None:
        self._exports = exports
        self.windows_build = windows_build
        self._watched: dict[SystemHandle, int] = {}

    @classmethod
    def load(cls, path: str | None = None) -> ComputeCore:
        """Load Windows' own computecore.dll, or a stand-in from `path`.

        Raises `UnsupportedPlatform` where there is none, or when it lacks a function that is needed.
        """
        return cls(_bind(_load(path), path or "computecore.dll"), _windows_build())

    def open_compute_system(self, id_: str, on_event: Callable[[int, str], None]) -> SystemHandle:
        """Open a compute system and watch it: HcsOpenComputeSystem, HcsSetComputeSystemCallback. Blocks.

        `on_event` gets type and data of each event, on the DLL's threads, until the handle is closed. Raises
        `ComputeSystemError`: of its children `ComputeSystemNotFound`, `AccessDenied` and others.
        """
        action = f"compute system {id_}: opening it"
        handle = ctypes.c_void_p()
        text = _text(id_)
        hresult = self._exports.HcsOpenComputeSystem(text, _GENERIC_ALL, ctypes.byref(handle))
        if failed(hresult) or handle.value is None:
            raise error_from(action, hresult)
        system = SystemHandle(handle.value)
        number = next(_numbers)
        _watching[number] = on_event
        self._watched[system] = number
        hresult = self._exports.HcsSetComputeSystemCallback(system, _EVENT_OPTION_NONE, number, _event_came)
        if failed(hresult):
            self.close_compute_system(system)
            raise error_from(action, hresult)
        return system

    def close_compute_system(self, system: SystemHandle) -> None:
        """Close the handle; no event comes after this returns. Blocks."""
        self._exports.HcsCloseComputeSystem(system)
        del _watching[self._watched.pop(system)]

    def modify_compute_system(
        self, system: SystemHandle, document: bytes, on_end: Callable[[Result], None]
    ) -> HcsOperation:
        """Return the operation of an HcsModifyComputeSystem, yet to be started."""
        text = _text(document.decode())

        def submit(operation: OperationHandle) -> int:
            return self._exports.HcsModifyComputeSystem(system, operation, text, None)

        return HcsOperation(self._exports, submit, on_end)

    def get_compute_system_properties(
        self, system: SystemHandle, query: str | None, on_end: Callable[[Result], None]
    ) -> HcsOperation:
        """Return the operation of an HcsGetComputeSystemProperties, yet to be started."""
        text = _text(query) if query is not None else None

        def submit(operation: OperationHandle) -> int:
            return self._exports.HcsGetComputeSystemProperties(system, operation, text)

        return HcsOperation(self._exports, submit, on_end)

    def enumerate_compute_systems(self, query: str | None, on_end: Callable[[Result], None]) -> HcsOperation:
        """Return the operation of an HcsEnumerateComputeSystems, yet to be started."""
        text = _text(query) if query is not None else None

        def submit(operation: OperationHandle) -> int:
            return self._exports.HcsEnumerateComputeSystems(text, operation)

        return HcsOperation(self._exports, submit, on_end)


def _text(text: str) -> _Text:
    """Return the text as a new array of UTF-16 with a zero behind it. Raises `InvalidDocument` for a NUL in it."""
    if "\0" in text:
        msg = f"{text!r} contains a NUL, where HCS would stop reading: leave it out"
        raise InvalidDocument(msg)
    encoded = text.encode("utf-16-le", "surrogatepass") + b"\0\0"
    return (ctypes.c_uint16 * (len(encoded) // 2)).from_buffer_copy(encoded)


def _text_at(address: int | None) -> str:
    """Copy zero-terminated UTF-16 from the DLL's memory."""
    if not address:
        return ""
    units = ctypes.cast(address, _TextPointer)
    length = next(index for index in itertools.count() if units[index] == 0)
    return ctypes.string_at(address, length * 2).decode("utf-16-le", "replace")


def _take_text(exports: _Exports, text: ctypes.c_void_p) -> str:
    """Copy a result document and free it. LocalFree is what the reference says."""
    if not text.value:
        return ""
    try:
        return _text_at(text.value)
    finally:
        exports.LocalFree(text.value)


def _load(path: str | None) -> ctypes.CDLL:
    if path is None and sys.platform != "win32":
        msg = "the Host Compute Service is part of Windows: on this system use uvmshare.FileServer (uvmshare serve)"
        raise UnsupportedPlatform(msg)
    try:
        if sys.platform != "win32":
            return ctypes.CDLL(path)
        if path is None:
            return ctypes.WinDLL("computecore.dll", winmode=_LOAD_LIBRARY_SEARCH_SYSTEM32)
        return ctypes.WinDLL(path)
    except OSError as error:
        msg = (
            f"{path or 'computecore.dll'} cannot be loaded ({error}): "
            f"it needs Windows 10 1809, Windows Server 2019 or later, with Hyper-V enabled"
        )
        raise UnsupportedPlatform(msg) from error


def _bind(library: ctypes.CDLL, name: str) -> _Exports:
    """Give each function its types. Raises `UnsupportedPlatform` for one that the library does not have."""
    for function, (result, arguments) in _SIGNATURES.items():
        try:
            export = getattr(library, function)
        except AttributeError as error:
            if function != "LocalFree" or sys.platform != "win32":
                msg = f"{name} has no function {function}: update Windows to 10 1809, Server 2019 or later"
                raise UnsupportedPlatform(msg) from error
            # Windows' own. A stand-in brings one with it, to count what is freed.
            export = ctypes.WinDLL("kernel32.dll", winmode=_LOAD_LIBRARY_SEARCH_SYSTEM32).LocalFree
            setattr(library, function, export)
        export.restype = result
        export.argtypes = arguments
    return cast("_Exports", library)


def _windows_build() -> int | None:
    if sys.platform != "win32":
        return None
    # Not .build, which is that of the version that the running program was written for.
    return sys.getwindowsversion().platform_version[2]
