"""What the MountManager needs of a guest. The MountManager's side declares it.

What lives here: the `GuestAgent` protocol and the `GuestMount` that it is given; what an agent may offer beyond that.
What must not: how an agent is reached (that is `uvmshare.mounts.agent_client`), or any state.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from uvmshare.mounts.agent_state import Reach
    from uvmshare.mounts.cache import Cache

__all__ = ["GuestAgent", "GuestMount", "Mounted", "TellsConnect", "TellsMounts", "TellsReach"]


@dataclass(frozen=True, slots=True)
class GuestMount:
    """One mapped directory as the MountManager asks a guest for it: which share, where and how."""

    share_name: str
    mount_path: str
    read_only: bool
    cache: Cache
    """"auto": the guest chooses."""
    msize: int | None
    """Bytes; None: the guest chooses."""
    suid: bool = False
    dev: bool = False
    posixacl: bool = False
    events: bool = False
    """Whether what is changed on the host is to be an event there."""
    broken: bool = field(default=False, compare=False)
    """In what an agent tells: its connection was lost, and the agent is mounting it again."""
    again: int = field(default=0, compare=False)
    """In what an agent tells: how often the agent has mounted it again since it was asked to mount it."""

    no_events: str | None = field(default=None, compare=False)
    """In what an agent tells: why what is changed on the host is no event there, although it was to be."""

    def is_met_by(self, found: GuestMount | None) -> bool:
        """Tell whether what the guest has is this; where the guest was to choose, whatever it tells is right."""
        if found is None:
            return False
        cache = found.cache if self.cache == "auto" else self.cache
        return found == replace(self, cache=cache, msize=found.msize if self.msize is None else self.msize)


@dataclass(frozen=True, slots=True)
class Mounted:
    """What an agent tells of a mount that it has just made."""

    chosen: str | None = None
    """What cache and msize came to, in the words of the guest's kernel; None when the agent does not tell."""
    no_events: str | None = None
    """Why what is changed on the host is no event there, although it was to be."""


class GuestAgent(Protocol):
    """The agent in a guest, which mounts and unmounts while the guest runs.

    Adding and removing end in one of three ways, and the MountManager relies on the difference:

    - they return: it is done;
    - they raise `OutcomeUnknown`, `TimeoutError`, `ConnectionError` or `EOFError`, or are themselves
      cancelled: it may or may not have been done, but it is not done any more once a later call for
      the same path has ended (so that a removal undoes a mount whose answer was lost);
    - they raise anything else: it was certainly not done.

    Adding a mount that the guest has already in just this form succeeds. An agent that cannot mount as it is asked to
    raises `MountRefused`, and passes no option over. A removal may raise `MountNotFound` or
    `ComputeSystemGone`: the mount is not there, as asked. Calls for different paths may run at the same time;
    there is never more than one for a path.
    """

    async def add_mapped_directory(self, mount: GuestMount) -> Mounted:
        """Mount the share; when this returns, the guest's programs reach it at its path."""

    async def remove_mapped_directory(self, mount: GuestMount, *, lazy: bool = False) -> None:
        """Unmount it. `lazy` detaches it although it is in use; otherwise that raises `MountBusy`."""

    async def mapped_directories(self) -> Collection[GuestMount]:
        """Return every mount of the agent's that the guest has now."""


@runtime_checkable
class TellsConnect(Protocol):
    """An agent that tells when it was reached, the first time and every time after it was out of reach."""

    def on_connect(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the event loop; it may be that the guest was started again and has no mounts."""


@runtime_checkable
class TellsMounts(Protocol):
    """An agent that tells when the guest lost a mount, or has it again, without being asked for it."""

    def on_mounts(self, callback: Callable[[], None]) -> None:
        """Have `callback` called in the event loop, soon after; `mapped_directories` says what is so now."""


@runtime_checkable
class TellsReach(Protocol):
    """An agent that tells whether it is reached now, and since when."""

    @property
    def reach(self) -> Reach:
        """What is so now."""
