"""What the Manager needs of a VM. The Manager's side declares it.

What lives here: the `VMPlan9` protocol and the `NamedShare` that it is given; what a VM may offer beyond that.
What must not: how a VM is modified, or any state. On Linux `uvmshare.FileServer` is one, on Windows
`uvmshare.hcs.utility_vm.UtilityVM`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvmshare.errors import ComputeSystemGone
    from uvmshare.share.options import AddOptions

__all__ = ["ListsShares", "NamedShare", "RefusesOptions", "TellsExit", "TellsTakeover", "VMPlan9"]


@dataclass(frozen=True, slots=True)
class NamedShare:
    """One Plan 9 share as the Manager asks a VM for it: a name and what it stands for.

    `name` is a decimal counter ("0", "1", ...), the only form that the guests of HCS accept.
    """

    name: str
    options: AddOptions


class VMPlan9(Protocol):
    """A utility VM whose Plan 9 shares can be changed while it runs.

    Both calls end in one of three ways, and the Manager relies on the difference:

    - they return: it is done;
    - they raise `OutcomeUnknown`, `TimeoutError`, `ConnectionError` or `EOFError`, or are themselves
      cancelled: it may or may not have been done, but it is not done any more once a later call for
      the same name has ended (so that a remove undoes an add whose answer was lost);
    - they raise anything else: it was certainly not done.

    `remove_plan9` may raise `ShareNotFound` or `ComputeSystemGone`: the share is not there, as asked.
    Calls for different shares may run at the same time; there is never more than one for a name.
    """

    async def add_plan9(self, share: NamedShare) -> str | None:
        """Make the share live on the VM. Return which directory it is, None when the VM does not tell.

        A VM that can tell refuses a path that leads to another directory than the options say (`HostPathReplaced`).
        """

    async def remove_plan9(self, share: NamedShare) -> None:
        """Take the share off the VM; when this returns, nothing in the guest can reach it any more."""


@runtime_checkable
class RefusesOptions(Protocol):
    """A VM that cannot have every share, and says so before anything is asked of it or written down."""

    def require_able(self, options: AddOptions) -> None:
        """Refuse options that this VM can never have. Raises `OperationDenied`, which says which."""


@runtime_checkable
class TellsExit(Protocol):
    """A VM that tells when it exits. One that cannot answers later calls with `ComputeSystemGone`."""

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        """Have `callback` called once, in the event loop, when the VM has exited; soon, if it has exited already."""


@runtime_checkable
class TellsTakeover(Protocol):
    """A VM that goes on when it may have lost shares, as when a supervisor dies and another one takes over from it."""

    def on_takeover(self, callback: Callable[[object], None]) -> None:
        """Have `callback` called, in the event loop, whenever that has happened, with what the VM has to say of it."""


@runtime_checkable
class ListsShares(Protocol):
    """A VM that can be asked which shares it has. Recovery settles what is in doubt by its answer (HCS has none).

    What a Manager could not write down of such a VM is found out by asking it.
    """

    async def list_plan9(self) -> Mapping[str, AddOptions]:
        """Return every share that the VM has now, by name, as `AddOptions.recalled`: its path may be gone.

        No call for a share may be in flight from elsewhere: what is listed stays until the caller changes
        it. Raises what `VMPlan9` says of a call: `ComputeSystemGone` when there is no VM and so no share.
        """
