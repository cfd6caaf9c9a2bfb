"""The one table that makes an HTTP answer of an error.

What lives here: which status and which remedy each class of error has. What must not: where errors come from.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from uvmshare import errors
from uvmshare.daemon.documents import HINTS, PATTERNS, Problem
from uvmshare.printable import printable
from uvmshare.wording import Complaint, complaint, told

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["ANSWERS", "PROBLEM_TYPE", "Refused", "problem_of", "to_exception", "words_of"]

PROBLEM_TYPE: Final = "application/problem+json"

_REPORT: Final = "This is a defect of uvmshare: please report it with the daemon's log."

ANSWERS: Final[Mapping[type[errors.UvmshareError], tuple[int, str]]] = {
    errors.InvalidOptions: (422, "Name a directory or file that exists and that you may reach."),
    errors.InvalidAddress: (422, "Use an address as `uvmshare serve --help` lists them."),
    errors.InvalidDocument: (
        422,
        "Send what /v1/openapi.json says: it has each path, parameter and document.",
    ),
    errors.OperationDenied: (403, "Share what you may reach yourself, and read-only where that is asked for."),
    errors.AccessDenied: (403, "Let the VM's user reach the path."),
    errors.NotAdministrator: (403, "Run the daemon as a Hyper-V administrator."),
    errors.NotThere: (404, "List what there is. What belongs to another user is not there."),
    errors.ShareNotFound: (404, "List the VM's shares."),
    errors.HostPathNotFound: (404, "Make the directory, or name another."),
    errors.HostPathReplaced: (409, "Ask again, for what is at the path now."),
    errors.ComputeSystemNotFound: (404, "`uvmshare hcs list` shows those that there are."),
    errors.AlreadyThere: (409, "Choose another id, or remove that VM first."),
    errors.ShareExists: (409, _REPORT),
    errors.StillInUse: (409, "Release the shares first, or force it."),
    errors.NotHeld: (409, "Name the owner who holds it."),
    errors.SharesLeft: (409, "Ask again: what could not be removed is tried again."),
    errors.MountsLeft: (409, "Ask again: what could not be taken away is tried again."),
    errors.MountRevoked: (409, "Ask again when the guest's agent has unmounted what is dead there."),
    errors.MountConflict: (409, "Ask for the same options, or for another path."),
    errors.MountBusy: (409, "End what uses it in the guest, or unmap it lazily."),
    errors.MountRefused: (403, "Choose a path below what the guest's agent was allowed."),
    errors.MountNotFound: (404, "List the VM's mounts."),
    errors.HostPathHangs: (504, "Mend or end what serves that file system, or unmount it. Nothing was changed."),
    errors.LimitReached: (429, "Release what is not needed, or have root raise the limit (uvmshare daemon --help)."),
    errors.GuestAgentError: (502, "See the reason and the agent's log in the guest."),
    errors.AgentUnreachable: (
        503,
        "Start uvmshare guest agent in the guest; uvmshare vm ls shows when it is reached.",
    ),
    errors.InvalidState: (409, "Wait, and ask again."),
    errors.ManagerClosed: (409, "The VM is being removed: add it again."),
    errors.ComputeSystemClosed: (409, "The VM is being removed: add it again."),
    errors.ComputeSystemStopped: (410, "Start the VM, and add it again."),
    errors.ComputeSystemGone: (410, "Start the VM, and add it again."),
    errors.DriveLocked: (423, "Unlock the drive: manage-bde -unlock."),
    errors.NotSupported: (501, "Update the host, or create the VM with a Plan 9 device."),
    errors.UnsupportedPlatform: (501, "Use it on the operating system that has it."),
    errors.ComputeSystemError: (502, "See the reason, mend it, and ask again: nothing was changed."),
    errors.FileServerError: (502, "See the reason and the VM's log; `uvmshare doctor` looks at the host."),
    errors.ServiceDisconnected: (503, "Start the Host Compute Service, and ask again."),
    errors.JournalError: (503, "See the reason; docs/journal.md has the ways out."),
    errors.JournalFull: (507, "Make room on the journal's disk."),
    errors.OutcomeNotWritten: (
        503,
        "What the reason says was done. Mend the journal: then it is written by itself.",
    ),
    errors.DaemonError: (503, "See the reason and the daemon's log."),
    errors.OutcomeUnknown: (504, "Ask again: what was left behind is removed by itself."),
    errors.OperationTimedOut: (504, "Ask again: what was left behind is removed by itself."),
    errors.DiskFull: (507, "Make room on the host's disk."),
    errors.StoreError: (502, "See the reason, and etcd's log: nothing was changed."),
    errors.StoreUnavailable: (503, "Start the members of etcd, or mend the way to them, and ask again."),
    errors.StoreOutcomeUnknown: (504, "Ask again: what is there already is not made a second time."),
    errors.StoreDenied: (502, "Give this host or gate its role again: `uvmshare fleet add-host`."),
    errors.StoreFull: (507, "Compact and defragment etcd, and disarm its alarm."),
    errors.StoreReplaced: (503, "Look which etcd answers; where a backup was restored, `uvmshare host accept`."),
    errors.StoreUnsuitable: (503, "Run etcd 3.5.13 or later, or 3.6."),
    errors.LeaseNotFound: (410, "Ask again: the lease has ended."),
    errors.UvmshareError: (500, _REPORT),
}
"""The status and the remedy by class. A class that is not here has those of its nearest parent."""

_STATUS_CLASSES: Final[Mapping[int, type[errors.UvmshareError]]] = {
    400: errors.InvalidDocument,
    404: errors.NotThere,
    413: errors.InvalidDocument,
    414: errors.InvalidDocument,
    415: errors.InvalidDocument,
    422: errors.InvalidDocument,
    429: errors.LimitReached,
    431: errors.InvalidDocument,
}
"""What the HTTP layer refuses before any of our code sees it."""


class Refused(Exception):
    """What the HTTP layer refused, in one line."""


def words_of(complaints: Iterable[tuple[str, str]]) -> str:
    """Say in words what is wrong with fields: pairs of a field's name and what a validator said of it."""
    found = []
    for field, said in complaints:
        words = complaint(said, PATTERNS).words
        hint = HINTS.get(re.split(r"\W", field, maxsplit=1)[0], "")
        found.append(Complaint("the document" if field == "data" else field, f"{words}; {hint}" if hint else words))
    return told(found)


def _answer(cls: type[errors.UvmshareError]) -> tuple[int, str]:
    return next(ANSWERS[parent] for parent in cls.__mro__ if parent in ANSWERS)


def problem_of(error: BaseException, thing: str, *, status: int | None = None) -> Problem:
    """Return the problem document for an error; `thing` is what was asked for.

    `status` is that of the HTTP layer, where it was the one that refused. What is none of ours is told as such, and
    nothing more.
    """
    cls = type(error)
    if not issubclass(cls, errors.UvmshareError):
        cls = _STATUS_CLASSES.get(status or 500, errors.UvmshareError)
    found, remedy = _answer(cls)
    if cls is errors.UvmshareError and status not in (None, 500):
        remedy = "See the OpenAPI document for what can be asked here."
    told = isinstance(error, errors.UvmshareError) or status
    reason = printable(str(error)) if told else f"unexpected {type(error).__name__}"
    thing = printable(thing)
    return Problem(
        type=f"urn:uvmshare:error:{cls.__name__}",
        title=_title(cls),
        status=status or found,
        detail=reason,
        instance=thing,
        error=cls.__name__,
        thing=thing,
        reason=reason,
        remedy=remedy,
    )


_MANY: Final = (errors.SharesLeft, errors.MountsLeft, errors.RestoreFailed)
"""Errors that carry others, which no document does."""


def _title(cls: type) -> str:
    words = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in cls.__name__)
    return words.strip().capitalize()


def to_exception(problem: Problem) -> errors.UvmshareError:
    """Return the exception that a problem stands for: the same class as on the other side."""
    cls = getattr(errors, problem.error, None)
    if isinstance(cls, type) and issubclass(cls, errors.UvmshareError) and cls not in _MANY:
        return cls(problem.reason)
    return errors.DaemonError(f"{problem.reason} ({problem.error}, status {problem.status}): {problem.remedy}")
