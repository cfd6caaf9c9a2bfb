"""What the Manager needs of a VM, declared by the one who needs it.

What lives here: the `VMPlan9` protocol and the `Plan9Share` that it is given; what a VM may offer beyond that.
What must not: how a VM is modified (that is `uvmshare.hcs.utility_vm`), or any state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from uvmshare.directory import may_be_same

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from uvmshare.errors import ComputeSystemGone
    from uvmshare.share.options import AddOptions

__all__ = ["ListedShare", "ListsShares", "Plan9Share", "RefusesOptions", "TellsExit", "VMPlan9"]


@dataclass(frozen=True, slots=True)
class Plan9Share:
    """One Plan 9 share as the Manager asks a VM for it: a name and what it stands for.

    `name` is a decimal counter ("0", "1", ...), the only form that the guests of HCS accept.
    """

    name: str
    options: AddOptions


@dataclass(frozen=True, slots=True)
class ListedShare:
    """What a VM tells of one share that it has: what `AddOptions` says, unchecked, since the path may be gone."""

    host_path: str
    """As it was given with the share: absolute, without symlinks."""
    read_only: bool = False
    allowed_names: tuple[str, ...] = ()
    """Sorted; empty when the share is not restricted."""
    directory: str | None = None
    """Which directory it is, as `AddOptions.directory` says it; None when the VM does not tell."""
    hide: tuple[str, ...] = ()
    map_owner: str | None = None

    @classmethod
    def of(cls, options: AddOptions) -> ListedShare:
        """Return what a VM should tell of a share with these options."""
        return cls(
            options.host_path,
            options.read_only,
            options.allowed_names,
            options.directory,
            options.hide,
            options.map_owner,
        )

    def is_of(self, options: AddOptions) -> bool:
        """Tell whether this may be a share with these options: as far as the directories are known, it is."""
        return self == replace(self.of(options), directory=self.directory) and may_be_same(
            self.directory, options.directory
        )


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

    async def add_plan9(self, share: Plan9Share) -> str | None:
        """Make the share live on the VM. Return which directory it is, None when the VM does not tell.

        A VM that can tell refuses a path that leads to another directory than the options say (`HostPathReplaced`).
        """

    async def remove_plan9(self, share: Plan9Share) -> None:
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
class ListsShares(Protocol):
    """A VM that can be asked which shares it has. Recovery settles what is in doubt by its answer (HCS has none)."""

    @property
    def lists_shares(self) -> bool:
        """Whether it can tell at all. What a Manager could not write down of such a VM is found out by asking it."""

    async def list_plan9(self) -> Mapping[str, ListedShare] | None:
        """Return every share that the VM has now, by name; None when it cannot tell after all.

        No call for a share may be in flight from elsewhere: what is listed stays until the caller changes
        it. Raises what `VMPlan9` says of a call: `ComputeSystemGone` when there is no VM and so no share.
        """
