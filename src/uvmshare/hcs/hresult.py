"""What HCS answers when it fails, turned into one exception: the only place where an HRESULT gets a meaning.

What lives here: the table of HRESULTs, the reading of a result document's error events, and `error_from`.
What must not: calls to HCS.

Sources: the values and their meanings are those of the HCS reference (HCS HRESULT) and winerror.h. HCS gives
its own codes with either severity prefix, 0x8037 or 0xC037, so that facility 0x37 is compared without it.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from uvmshare import errors

__all__ = ["PENDING", "S_OK", "error_from", "failed", "normalised"]

S_OK = 0

_FACILITY = 0x0FFF_0000
_HCS_FACILITY = 0x0037_0000
_WITHOUT_SEVERITY = 0x0FFF_FFFF


def failed(hresult: int) -> bool:
    """Whether the value says failure: its highest bit is set, as FAILED() of winerror.h tests it."""
    return hresult & 0x8000_0000 != 0


def normalised(hresult: int) -> int:
    """Return the value as the table has it: unsigned, and without the severity if it is one of HCS's own."""
    unsigned = hresult & 0xFFFF_FFFF
    return unsigned & _WITHOUT_SEVERITY if unsigned & _FACILITY == _HCS_FACILITY else unsigned


PENDING = frozenset({0x0037_0103, 0x0037_0117})
"""The operation has started and its end will be told: as good as S_OK where an operation is started.

Which of the two is HCS_E_OPERATION_PENDING is told both ways.
"""


class _Kind(NamedTuple):
    """What one HRESULT means: the class, the reason in words, and what to do."""

    error: type[errors.ComputeSystemError]
    reason: str
    remedy: str


_OPEN_AGAIN = "open the compute system again"
_START_AGAIN = "start the VM again, then add its shares again"
_ASK_AGAIN = "ask again; the Manager removes what may have been left behind"
_SERVICE = "see that the Host Compute Service runs (sc query vmcompute), then open the compute system again"
_REPORT = "this is a defect of uvmshare: please report it"

_GONE = errors.ComputeSystemStopped
_UNKNOWN = errors.OutcomeUnknown
_TIMED_OUT = errors.OperationTimedOut
_SERVICE_GONE = errors.ServiceDisconnected
_STATE = errors.InvalidState
_DOCUMENT = errors.InvalidDocument
_ELSE = errors.ComputeSystemError

_NOT_FOUND = 0x8007_0490

_KINDS: dict[int, _Kind] = {
    # HCS's own (facility 0x37), without the severity.
    0x0037_0100: _Kind(_GONE, "the VM exited while it was starting", _START_AGAIN),
    0x0037_0102: _Kind(errors.NotSupported, "a feature of the host is not installed", "enable Hyper-V"),
    0x0037_0105: _Kind(_STATE, "not valid in the VM's current state", "wait until the VM runs, and ask again"),
    0x0037_0106: _Kind(_GONE, "the VM exited unexpectedly", _START_AGAIN),
    0x0037_0107: _Kind(_GONE, "the VM was terminated", _START_AGAIN),
    0x0037_0108: _Kind(_ELSE, "no connection to the VM", "see that the VM runs, and ask again"),
    0x0037_0109: _Kind(_TIMED_OUT, "the VM did not answer in time", _ASK_AGAIN),
    0x0037_010A: _Kind(_UNKNOWN, "the connection to the VM was closed", _ASK_AGAIN),
    0x0037_010B: _Kind(_DOCUMENT, "an unknown message", "update the host or the guest"),
    0x0037_010C: _Kind(errors.NotSupported, "the VM speaks another version of the protocol", "update the guest"),
    0x0037_010D: _Kind(_DOCUMENT, "the JSON document is not valid", _REPORT),
    0x0037_010E: _Kind(
        errors.ComputeSystemNotFound, "there is no such compute system", "uvmshare hcs list names those that run"
    ),
    0x0037_0110: _Kind(_GONE, "the VM is already stopped", _START_AGAIN),
    0x0037_0111: _Kind(_UNKNOWN, "a protocol error between the host and the VM", _ASK_AGAIN),
    0x0037_0114: _Kind(errors.NotSupported, "the Host Compute Service is not available", "enable Hyper-V"),
    0x0037_0115: _Kind(_STATE, "the operation has not started", _REPORT),
    0x0037_0116: _Kind(_STATE, "the operation is already running", _REPORT),
    0x0037_0118: _Kind(_TIMED_OUT, "the operation did not end in time", _ASK_AGAIN),
    0x0037_0119: _Kind(_STATE, "the handle has an event callback already", _REPORT),
    0x0037_011A: _Kind(_UNKNOWN, "the host had no memory for the result", _ASK_AGAIN),
    0x0037_011B: _Kind(
        errors.NotAdministrator,
        "only administrators and members of the group Hyper-V Administrators may do this",
        "join the group and sign in again, or run as an administrator",
    ),
    0x0037_011C: _Kind(_GONE, "the VM reported a critical error and was stopped", _START_AGAIN),
    0x0037_011E: _Kind(_SERVICE_GONE, "the Host Compute Service disconnected", _SERVICE),
    0x0037_011F: _Kind(_STATE, "the process has already exited", _OPEN_AGAIN),
    # General ones.
    0x8000_4001: _Kind(errors.NotSupported, "not implemented by this version of HCS", "update Windows"),
    0x8000_4004: _Kind(_UNKNOWN, "the operation was cancelled", _ASK_AGAIN),
    # Win32's (facility 7).
    0x8007_0002: _Kind(errors.HostPathNotFound, "the host's file is not there", "share a path that exists"),
    0x8007_0003: _Kind(errors.HostPathNotFound, "the host's path is not there", "share a path that exists"),
    0x8007_0005: _Kind(
        errors.AccessDenied,
        "access is denied",
        "run as an administrator, and see that the host's path is readable to the VM (icacls)",
    ),
    0x8007_0006: _Kind(_STATE, "the handle is not valid any more", _OPEN_AGAIN),
    0x8007_000D: _Kind(_DOCUMENT, "the document's data is not valid", _REPORT),
    0x8007_000E: _Kind(_ELSE, "the host has no memory for it", "free some, and ask again"),
    0x8007_0032: _Kind(
        errors.NotSupported, "not supported by this VM", 'create the VM with "Devices":{"Plan9":{}}, or update Windows'
    ),
    0x8007_0057: _Kind(_DOCUMENT, "a parameter is not valid", _REPORT),
    0x8007_0070: _Kind(errors.DiskFull, "the host's disk is full", "make space on it"),
    0x8007_007F: _Kind(errors.NotSupported, "the host lacks a procedure of HCS", "update Windows"),
    0x8007_00B7: _Kind(errors.ShareExists, "there is a share of that name", "remove that one first"),
    0x8007_03E3: _Kind(_UNKNOWN, "the operation was cancelled", _ASK_AGAIN),
    _NOT_FOUND: _Kind(errors.NotSupported, "the VM has no such device", 'create the VM with "Devices":{"Plan9":{}}'),
    0x8007_04C7: _Kind(_UNKNOWN, "the operation was cancelled", _ASK_AGAIN),
    0x8007_06BA: _Kind(_SERVICE_GONE, "the Host Compute Service cannot be reached", _SERVICE),
    0x8007_06BE: _Kind(_SERVICE_GONE, "the call to the Host Compute Service broke off", _SERVICE),
    0x8007_07DE: _Kind(errors.ShareExists, "there is a share of that name", "remove that one first"),
    0x8031_0000: _Kind(
        errors.DriveLocked, "BitLocker has locked the drive", "unlock it: manage-bde -unlock, and ask again"
    ),
    # A result that says that there is none yet.
    **{pending: _Kind(_UNKNOWN, "the operation is still running", _ASK_AGAIN) for pending in PENDING},
}

_NO_SUCH_SHARE = _Kind(errors.ShareNotFound, "the VM has no such share", "nothing is left to be done")

_UNLISTED = _Kind(_ELSE, "HCS failed", "look the value up with certutil -error, and see the event log Hyper-V-Compute")


class _ErrorEvent(msgspec.Struct, frozen=True, rename="pascal"):
    """``ErrorEvent`` of the HCS schema, as far as it is of use to people."""

    message: str = ""


class _ResultError(msgspec.Struct, frozen=True, rename="pascal"):
    """``ResultError`` of the HCS schema: what a result document holds after a failure."""

    error: int = 0
    error_message: str = ""
    error_events: tuple[_ErrorEvent, ...] = ()


_result_error = msgspec.json.Decoder(_ResultError)


def error_from(action: str, hresult: int, document: str = "", *, removing: bool = False) -> errors.ComputeSystemError:
    """Return the exception for a failed call.

    `action` says who wanted what ("compute system vm1: adding share 0"), `document` is the result
    document, if there was one: HCS does not promise one, nor that it can be read. "Not found" is a share
    only when one was to be removed.
    """
    unsigned = hresult & 0xFFFF_FFFF
    no_such_share = removing and unsigned == _NOT_FOUND
    kind = _NO_SUCH_SHARE if no_such_share else _KINDS.get(normalised(unsigned), _UNLISTED)
    said = _own_words(document)
    value = f"HCS 0x{unsigned:08X}: {said}" if said else f"HCS 0x{unsigned:08X}"
    return kind.error(
        f"{action}: {kind.reason} ({value}): {kind.remedy}",
        hresult=unsigned,
        hcs_message=said,
    )


def _own_words(document: str) -> str:
    """Return HCS's own message and those of its error events, on one line, each once."""
    if not document:
        return ""
    try:
        result = _result_error.decode(document)
    except errors.UNREADABLE:
        return " ".join(document.split())
    messages = [result.error_message, *(event.message for event in result.error_events)]
    lines = dict.fromkeys(" ".join(message.split()) for message in messages)
    return "; ".join(line.rstrip(".") for line in lines if line)
