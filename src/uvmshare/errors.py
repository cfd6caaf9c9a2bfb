"""Every error that uvmshare raises on purpose, in one tree.

What lives here: exception classes and nothing else. What must not: translation of foreign
errors (an HRESULT, an errno, an HCS document), which belongs where the foreign thing is met.

::

    UvmshareError
    +-- InvalidOptions (ValueError)        share options that cannot be; nothing was touched
    +-- OperationDenied (PermissionError)  policy forbids it; nothing was touched
    +-- InvalidTransition (RuntimeError)   a share state has no such transition; a bug of ours
    +-- ManagerClosed                      the Manager was closed; nothing was touched
    +-- SharesLeft                         closing the Manager could not take these shares out
    +-- InvalidAddress (ValueError)        an address of the file server that cannot be
    +-- UnsupportedPlatform (RuntimeError) this host's system has no such thing
    +-- ComputeSystemError                 the compute system refused or failed a request
    |   +-- OutcomeUnknown                 no answer: the request may have been carried out or not
    |   +-- ComputeSystemGone              the virtual machine, and so its devices, no longer exist
    |   +-- ShareNotFound                  it has no share of that name
    |   +-- ShareExists                    it has another share of that name
    |   +-- InvalidDocument                it cannot read the request, or refuses a field of it
    |   +-- AccessDenied                   the host's files or the request are out of the caller's reach
    +-- FileServerError                    the Linux file server could not be started or reached
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

__all__ = [
    "AccessDenied",
    "ComputeSystemError",
    "ComputeSystemGone",
    "ConnectionClosed",
    "FileServerError",
    "GuestFailed",
    "GuestUnavailable",
    "InvalidAddress",
    "InvalidDocument",
    "InvalidOptions",
    "InvalidTransition",
    "LocalProtocolError",
    "ManagerClosed",
    "OperationDenied",
    "OutcomeUnknown",
    "ProtocolError",
    "RemoteProtocolError",
    "ShareExists",
    "ShareNotFound",
    "SharesLeft",
    "UnsupportedPlatform",
    "UvmshareError",
]


class UvmshareError(Exception):
    """The root: catch this to catch everything that uvmshare raises on purpose."""


class InvalidOptions(UvmshareError, ValueError):
    """Share options that cannot be. Nothing was touched."""


class OperationDenied(UvmshareError, PermissionError):
    """The policy of this Manager forbids the request. Nothing was touched."""


class InvalidTransition(UvmshareError, RuntimeError):
    """A trigger that the state of a share does not have. The state is left alone."""


class ManagerClosed(UvmshareError, RuntimeError):
    """The Manager was closed and takes no more shares. Nothing was touched."""


class SharesLeft(UvmshareError):
    """Closing could not take these shares out of the VM; `names` and `errors` say which and why."""

    def __init__(self, errors: dict[str, BaseException]) -> None:
        self.errors = errors
        listed = "; ".join(f"share {name}: {error}" for name, error in errors.items())
        super().__init__(f"the VM still has {len(errors)} share(s): {listed}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the shares that stay."""
        return tuple(self.errors)


class InvalidAddress(UvmshareError, ValueError):
    """An address that the file server cannot listen on or a guest cannot connect to."""


class UnsupportedPlatform(UvmshareError, RuntimeError):
    """This host's operating system does not have what was asked for."""


class ComputeSystemError(UvmshareError):
    """The compute system (HCS, or the Linux file server) refused or failed a request.

    The request was certainly not carried out, unless the class is `OutcomeUnknown`.
    """


class OutcomeUnknown(ComputeSystemError):
    """No answer came: a time-out or a broken channel. The request may have been carried out or not."""


class ComputeSystemGone(ComputeSystemError):
    """The virtual machine no longer exists, and neither do its shares."""


class ShareNotFound(ComputeSystemError):
    """The compute system has no share of that name."""


class ShareExists(ComputeSystemError):
    """The compute system already has a share of that name."""


class InvalidDocument(ComputeSystemError):
    """The compute system cannot read the request, or refuses a value in it."""


class AccessDenied(ComputeSystemError):
    """The compute system may not open the host's path, or the caller may not ask it to."""


class FileServerError(UvmshareError):
    """The Linux file server could not be started, or its control channel could not be reached."""


class GuestUnavailable(UvmshareError):
    """No guest VM can be started here: a program, a kernel or its modules are missing."""


class GuestFailed(UvmshareError):
    """The guest VM ended, did not answer within its deadline, or broke off a command."""


class ConnectionClosed(UvmshareError, EOFError):
    """The other end of a 9P connection ended it; what was not answered may have been done or not."""


class ProtocolError(UvmshareError):
    """A message that 9P2000.L does not allow; `errno` is what an `Rlerror` would carry."""

    def __init__(self, message: str, *, errno: int = _errno.EPROTO) -> None:
        super().__init__(message)
        self.errno = errno


class LocalProtocolError(ProtocolError):
    """This side tried to send what 9P2000.L cannot say; nothing was sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent what 9P2000.L does not allow; the connection cannot go on."""
