"""Every error that uvmshare raises on purpose, in one tree.

What lives here: exception classes, and which of Python's mean JSON that cannot be read. What must not: translation of
foreign errors (an HRESULT, an errno, an HCS document), which belongs where the foreign thing is met.

::

    UvmshareError
    +-- InvalidOptions (ValueError)        an argument has an invalid value; nothing was touched
    |   +-- WrongType (TypeError)          an argument of another type than it may have
    +-- OperationDenied (PermissionError)  policy forbids it; nothing was touched
    +-- InvalidTransition (RuntimeError)   a share state has no such transition; a bug of ours
    +-- ManagerClosed                      the Manager was closed; nothing was touched
    +-- SharesLeft                         closing, or releasing an owner, could not remove these shares
    +-- InvalidSavedState (ValueError)     not what Manager.save() wrote; nothing was touched
    +-- RestoreFailed                      these shares cannot be restored, so none was
    +-- JournalError                       the journal cannot be written or read
    |   +-- JournalInUse                   another process, or another Manager, writes it
    |   +-- JournalFull                    its disk is full
    |   +-- JournalReadOnly                its file or file system cannot be written to
    |   +-- JournalDamaged                 it is no journal, or not whole any more
    |   +-- JournalTooNew                  a later version of uvmshare wrote it
    |   +-- OutcomeNotWritten              the VM did it, and that could not be written down yet
    +-- InvalidAddress (ValueError)        an address is not valid
    +-- UnsupportedPlatform (RuntimeError) this host's system has no such thing
    +-- ComputeSystemError                 the compute system refused or failed a request
    |   +-- OutcomeUnknown                 no answer: the request may have been carried out or not
    |   |   +-- OperationTimedOut          it did not end within its time
    |   |   +-- ServiceDisconnected        the service that carries requests out went away
    |   +-- ComputeSystemGone              the virtual machine, and so its devices, no longer exist
    |   |   +-- ComputeSystemNotFound      there is none of that id
    |   |   +-- ComputeSystemStopped       it has exited or was stopped
    |   +-- ComputeSystemClosed            this side closed it; nothing was asked of it
    |   +-- ShareNotFound                  it has no share of that name
    |   +-- ShareExists                    it has another share of that name
    |   +-- InvalidDocument                it cannot read the request, or refuses a field of it
    |   +-- InvalidState                   it, or the handle on it, is in no state to do that
    |   +-- NotSupported                   this version of it cannot do that
    |   +-- AccessDenied                   the host's files or the request are out of the caller's reach
    |   |   +-- NotAdministrator           the caller is not one of the Hyper-V administrators
    |   +-- HostPathNotFound               the directory or file on the host is not there
    |   +-- HostPathReplaced               the path on the host leads to another directory now
    |   +-- DriveLocked                    the host's drive is locked by BitLocker
    |   +-- DiskFull                       the host's disk is full
    +-- FileServerError                    the Linux file server could not be started or reached
    +-- MountConflict                      a path of the guest has another mount; nothing was touched
    +-- MountsLeft                         closing, or releasing an owner, could not take these mounts away
    +-- MountRevoked                       its share was taken away, and the guest may still have it, dead
    +-- GuestAgentError                    the agent in the guest refused or failed a request
    |   +-- AgentUnreachable               it could not be reached; nothing was sent
    |   +-- MountBusy                      programs in the guest use the mount
    |   +-- MountNotFound                  the guest has no such mount of the agent's
    |   +-- MountRefused                   the agent does not mount there
    +-- DaemonError                        the daemon could not be started or reached
    +-- LeaseLost                          what a block held was not held to its end
    +-- WrongProcess (RuntimeError)        made in another process, and used in a forked child
    +-- NotThere (LookupError)             you have no such VM, share or operation in the daemon
    +-- NotHeld                            the owner does not hold what was to be released
    +-- AlreadyThere                       the daemon has another VM of that id
    +-- StillInUse                         a VM, share or mount is to be removed while somebody holds it
    +-- HostPathHangs (TimeoutError)       the file system of a host path does not answer; nothing was touched
    +-- LimitReached                       the user has reached a limit; nothing was touched
    +-- StoreError                         etcd refused or failed a request, which was not carried out
    |   +-- StoreUnavailable               no member of etcd answers; nothing was changed
    |   |   +-- WatchEnded                 a watch was cut off, or nothing is heard on it: list again
    |   +-- StoreOutcomeUnknown            (OutcomeUnknown) no answer: etcd may have done it or not
    |   +-- StoreClosed                    this side closed the store; nothing was asked
    |   +-- StoreDenied                    the roles of etcd do not allow it
    |   +-- StoreFull (LimitReached)       etcd has no space left; nothing was changed
    |   +-- StoreReplaced                  it is another etcd now, or an older state of it
    |   +-- StoreUnsuitable                a version of etcd that loses data
    |   +-- RevisionCompacted              etcd no longer has this revision: list again
    |   +-- LeaseNotFound                  etcd has no such lease: it has ended, or never was
    +-- GuestUnavailable                   no guest VM can be started here: a program or its kernel is missing
    +-- GuestFailed                        the guest VM ended, hung, or broke off a command
    +-- ConnectionClosed (EOFError)        the other end of a 9P connection ended it
    +-- ProtocolError                      9P: see its two children; carries an errno
        +-- LocalProtocolError             this side tried to send what 9P cannot say
        +-- RemoteProtocolError            the peer sent what 9P does not allow

Every message names the thing, the reason and what can be done about it.
"""

from __future__ import annotations

import errno as _errno
from typing import Final

from uvmshare.printable import briefly, printable_lines

__all__ = [
    "AccessDenied",
    "AgentUnreachable",
    "AlreadyThere",
    "ComputeSystemClosed",
    "ComputeSystemError",
    "ComputeSystemGone",
    "ComputeSystemNotFound",
    "ComputeSystemStopped",
    "ConnectionClosed",
    "DaemonError",
    "DiskFull",
    "DriveLocked",
    "FileServerError",
    "GuestAgentError",
    "GuestFailed",
    "GuestUnavailable",
    "HostPathHangs",
    "HostPathNotFound",
    "HostPathReplaced",
    "InvalidAddress",
    "InvalidDocument",
    "InvalidOptions",
    "InvalidSavedState",
    "InvalidState",
    "InvalidTransition",
    "JournalDamaged",
    "JournalError",
    "JournalFull",
    "JournalInUse",
    "JournalReadOnly",
    "JournalTooNew",
    "LeaseLost",
    "LeaseNotFound",
    "LimitReached",
    "LocalProtocolError",
    "ManagerClosed",
    "MountBusy",
    "MountConflict",
    "MountNotFound",
    "MountRefused",
    "MountRevoked",
    "MountsLeft",
    "NotAdministrator",
    "NotHeld",
    "NotSupported",
    "NotThere",
    "OperationDenied",
    "OperationTimedOut",
    "OutcomeNotWritten",
    "OutcomeUnknown",
    "ProtocolError",
    "RemoteProtocolError",
    "RestoreFailed",
    "RevisionCompacted",
    "ServiceDisconnected",
    "ShareExists",
    "ShareNotFound",
    "SharesLeft",
    "StillInUse",
    "StoreClosed",
    "StoreDenied",
    "StoreError",
    "StoreFull",
    "StoreOutcomeUnknown",
    "StoreReplaced",
    "StoreUnavailable",
    "StoreUnsuitable",
    "UnsupportedPlatform",
    "UvmshareError",
    "WatchEnded",
    "WrongProcess",
    "WrongType",
]


UNREADABLE: Final = (ValueError, RecursionError)
"""What reading JSON of others raises: msgspec's and json's errors are `ValueError`s, so is `UnicodeDecodeError` for
what is not UTF-8, and `RecursionError` comes of what is nested too deeply."""


class UvmshareError(Exception):
    """The root: catch this to catch everything that uvmshare raises on purpose.

    Its words are one line that can be shown in a terminal. Paths, names and reasons in it are others', the guest's too,
    and what does not show itself in them is escaped (`uvmshare.printable`).
    """

    def __str__(self) -> str:
        """Return the words, on one line."""
        return briefly(super().__str__())


class InvalidOptions(UvmshareError, ValueError):
    """An argument has an invalid value, such as options of a share. Nothing was touched."""


class WrongType(InvalidOptions, TypeError):
    """An argument has a wrong type. Nothing was touched."""


class OperationDenied(UvmshareError, PermissionError):
    """The policy of this Manager forbids the request. Nothing was touched."""


class InvalidTransition(UvmshareError, RuntimeError):
    """The state of a share has no transition for a trigger. The state stays as it was."""


class ManagerClosed(UvmshareError, RuntimeError):
    """The Manager was closed and takes no more shares. Nothing was touched."""


class SharesLeft(UvmshareError):
    """Closing, or releasing an owner, could not remove these shares from the VM; `errors` says which and why."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        self.errors = errors
        listed = "; ".join(f"share {name}: {error}" for name, error in errors.items())
        super().__init__(f"{len(errors)} share(s) are left: {listed}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the shares that stay."""
        return tuple(self.errors)


class InvalidSavedState(UvmshareError, ValueError):
    """A document that `Manager.save` did not write, or a later version of it. Nothing was touched."""


class RestoreFailed(UvmshareError):
    """These shares cannot be restored, and so none was; `errors` says by name why."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        self.errors = errors
        listed = "; ".join(f"share {name}: {error}" for name, error in errors.items())
        super().__init__(f"nothing was restored, because {len(errors)} share(s) cannot be: {listed}")


class JournalError(UvmshareError):
    """The journal cannot be read or written. What it holds is as it was; the Manager goes on trying to write."""


class JournalInUse(JournalError):
    """Another process, or another Manager of this one, has the journal. One may write it at a time."""


class JournalFull(JournalError):
    """There is no space left on the journal's disk."""


class JournalReadOnly(JournalError):
    """The journal's file, directory or file system cannot be written to."""


class JournalDamaged(JournalError):
    """The file is no journal, or is not whole any more."""


class JournalTooNew(JournalError):
    """A later version of uvmshare wrote the journal, in a form that this one does not know."""


class OutcomeNotWritten(JournalError):
    """The VM did what it was asked, and that could not be written down yet; the Manager tries again."""


class InvalidAddress(UvmshareError, ValueError):
    """An address that the file server cannot listen on or a guest cannot connect to."""


class UnsupportedPlatform(UvmshareError, RuntimeError):
    """This host's operating system does not have what was asked for."""


class ComputeSystemError(UvmshareError):
    """The compute system (HCS, or the Linux file server) refused or failed a request.

    The request was certainly not carried out, unless the class is `OutcomeUnknown`. Where HCS gave
    them, `hresult` is its value (unsigned, as it is written: 0x80370110) and `hcs_message` its own words.
    """

    def __init__(self, message: str = "", *, hresult: int | None = None, hcs_message: str = "") -> None:
        super().__init__(message)
        self.hresult = hresult
        self.hcs_message = hcs_message


class OutcomeUnknown(ComputeSystemError):
    """No answer came: a time-out or a broken channel. The request may have been carried out or not."""


class OperationTimedOut(OutcomeUnknown):
    """The operation did not end within its time. Ask again: the Manager removes what the operation left behind."""


class ServiceDisconnected(OutcomeUnknown):
    """The Host Compute Service went away. When it runs again, open the compute system anew."""


class ComputeSystemGone(ComputeSystemError):
    """The virtual machine no longer exists, and neither do its shares."""


class ComputeSystemNotFound(ComputeSystemGone):
    """No compute system has this id. `uvmshare hcs list` and `hcsdiag list` print the ids that exist."""


class ComputeSystemStopped(ComputeSystemGone):
    """The virtual machine has exited or was stopped. Start it again, then add its shares again."""


class ComputeSystemClosed(ComputeSystemError):
    """This side closed the compute system. Open it again; nothing was asked of it."""


class ShareNotFound(ComputeSystemError):
    """The compute system has no share of that name."""


class ShareExists(ComputeSystemError):
    """The compute system already has a share of that name."""


class InvalidDocument(ComputeSystemError):
    """The compute system cannot read the request, or refuses a value in it."""


class InvalidState(ComputeSystemError):
    """The compute system, or the handle on it, is in no state for the request: wait, or open it again."""


class NotSupported(ComputeSystemError):
    """The compute system has no such resource or function: update the host, or create the VM with it."""


class AccessDenied(ComputeSystemError):
    """The compute system may not open the host's path, or the caller may not ask it to."""


class NotAdministrator(AccessDenied):
    """The caller is no Hyper-V administrator. Join that group, sign in again; or run as an administrator."""


class HostPathNotFound(ComputeSystemError):
    """The directory or file to share is not on the host any more."""


class HostPathReplaced(ComputeSystemError):
    """The path to share now leads to another directory than when its options were made: make the options anew."""


class DriveLocked(ComputeSystemError):
    """BitLocker has locked the drive of the host's path. Unlock it: `manage-bde -unlock`."""


class DiskFull(ComputeSystemError):
    """The host's disk has no space left for what the request needs."""


class FileServerError(UvmshareError):
    """The Linux file server could not be started, or its control channel could not be reached."""


class MountConflict(UvmshareError):
    """The path in the guest already has a mount with other options. Nothing was touched."""


class MountsLeft(UvmshareError):
    """Closing, or releasing an owner, could not take these mounts away; `errors` says which and why."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        self.errors = errors
        listed = "; ".join(f"{path}: {error}" for path, error in errors.items())
        super().__init__(f"the guest still has {len(errors)} mount(s): {listed}")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the mounts that stay."""
        return tuple(self.errors)


class MountRevoked(UvmshareError):
    """The share of this mount was taken away. The guest did not unmount it, and may still have it, dead."""


class GuestAgentError(UvmshareError):
    """The agent in the guest refused or failed a request, which was certainly not carried out."""


class AgentUnreachable(GuestAgentError):
    """The agent in the guest could not be reached in time. Nothing was sent."""


class MountBusy(GuestAgentError):
    """Programs in the guest use the mount; the message names them where the guest tells."""


class MountNotFound(GuestAgentError):
    """The agent in the guest has no mount at that path."""


class MountRefused(GuestAgentError):
    """The agent does not mount there: the path is not allowed, is behind a symlink, or has another's mount."""


class DaemonError(UvmshareError):
    """The daemon could not be started or reached, or its answer could not be read."""


class LeaseLost(UvmshareError):
    """A lease ended, or its share or mount was taken away, before the block that held it ended. Add it again."""


class WrongProcess(UvmshareError, RuntimeError):
    """This object was made in another process, from which this one was forked. Make one here."""


class NotThere(UvmshareError, LookupError):
    """The daemon has no such VM, share, mount or operation. Those of other users do not exist for the caller."""


class NotHeld(UvmshareError):
    """The named owner does not hold the share or mount that was to be released; the message says who does."""


class AlreadyThere(UvmshareError):
    """The daemon already has another VM with that id."""


class StillInUse(UvmshareError):
    """A VM, share or mount cannot be removed while somebody holds it."""


class HostPathHangs(UvmshareError, TimeoutError):
    """The file system of a path on the host does not answer. Mend or end what serves it, or unmount it."""


class LimitReached(UvmshareError):
    """A user of the host has reached a limit. Release what is not needed."""


class StoreError(UvmshareError):
    """The store of a fleet (etcd) refused or failed a request, which was certainly not carried out."""


class StoreUnavailable(StoreError):
    """No member of etcd answers, or there is no majority of them. Nothing was changed; ask again."""


class WatchEnded(StoreUnavailable):
    """A watch was cut off, or nothing was heard on it for too long. List, and watch from there: nothing is skipped."""


class StoreOutcomeUnknown(StoreError, OutcomeUnknown):
    """A change got no answer from etcd: it was made or not. Read, and send it again with the same comparisons."""


class StoreClosed(StoreError):
    """This side closed the store. Open it again; nothing was asked of etcd."""


class StoreDenied(StoreError):
    """The roles of etcd forbid this to the certificate's user, or etcd does not know the user."""


class StoreFull(StoreError, LimitReached):
    """The database of etcd has reached its quota. Nothing was changed. Compact, defragment, and disarm the alarm."""


class StoreReplaced(StoreError):
    """Another cluster of etcd answers, or an older state of the same one (a backup). Nothing more is asked of it."""


class StoreUnsuitable(StoreError):
    """This version of etcd can lose data, and is not used. Run one that the message names."""


class RevisionCompacted(StoreError):
    """The store no longer has this revision. List, and watch from there."""


class LeaseNotFound(StoreError):
    """The store has no such lease: it has ended, was revoked, or never was. Nothing was changed."""


class GuestUnavailable(UvmshareError):
    """No guest VM can be started here: a program, a kernel or its modules are missing."""


class GuestFailed(UvmshareError):
    """The guest VM ended, did not answer within its deadline, or broke off a command.

    Its words go on with the lines that the guest wrote.
    """

    def __str__(self) -> str:
        """Return the words, each line of them printable."""
        return printable_lines(Exception.__str__(self))


class ConnectionClosed(UvmshareError, EOFError):
    """The other end of a 9P connection ended it. Requests without an answer may have been carried out or not."""


class ProtocolError(UvmshareError):
    """A message that 9P2000.L does not allow; `errno` is what an `Rlerror` would carry."""

    def __init__(self, message: str, *, errno: int = _errno.EPROTO) -> None:
        super().__init__(message)
        self.errno = errno


class LocalProtocolError(ProtocolError):
    """This side tried to send a message that 9P2000.L does not have; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent bytes that 9P2000.L does not allow; the connection cannot go on."""
