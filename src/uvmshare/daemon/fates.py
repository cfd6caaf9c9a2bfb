"""What became of the directories that a VM shares: whether their paths still lead to them.

What lives here: `Fates`, which looks with the rights of the VM's user, and never makes anybody wait for a file system
that hangs. What must not: who is told (`shares`), or what a directory is (`uvmshare.directory`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvmshare.daemon.looking import Looking
from uvmshare.directory import fate_of
from uvmshare.errors import HostPathHangs, OperationDenied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uvmshare.daemon.identity import Identity, Threads
    from uvmshare.directory import Fate
    from uvmshare.share.manager import ShareInfo

__all__ = ["Fates"]

_PATIENCE: Final = 1.0
"""Seconds that whoever lists shares waits for a look. Whatever answers does so in milliseconds."""
_MOST_HANGING: Final = 2
"""Looks that may hang at once: threads of the VM's user, who has eight for everything."""


class Fates:
    """The fate of each share's directory, as it was last seen. `changed` is told of a share when its fate is another.

    Belongs to one event loop.
    """

    def __init__(self, threads: Threads, user: Identity, changed: Callable[[ShareInfo, Fate], None]) -> None:
        self._threads = threads
        self._user = user
        self._changed = changed
        self._fates: dict[str, Fate] = {}
        """By the name of the share."""
        self._told: dict[str, Fate] = {}
        """What `changed` was told last; of others, that they are there."""
        self._looking = Looking()
        self._hanging: dict[object, str] = {}
        """By look, the path that it is at now: threads write here."""

    def of(self, name: str) -> Fate:
        """Return what was last seen of a share's directory."""
        return self._fates.get(name, "unknown")

    def note(self, share: ShareInfo, fate: Fate) -> None:
        """Take note of what was seen of a share's directory."""
        self._fates[share.name] = fate
        if fate != "unknown" and fate != self._told.get(share.name, "there"):
            self._told[share.name] = fate
            self._changed(share, fate)

    async def look(self, shares: Iterable[ShareInfo]) -> None:
        """See what the paths of these shares, which are all of the VM's, lead to now.

        One look at a time. Returns when it is over, or when a file system lets it wait for long: what was not looked at
        then is "unknown".
        """
        await self._looking.wait(lambda: self._look(tuple(shares)), _PATIENCE)

    async def _look(self, shares: tuple[ShareInfo, ...]) -> None:
        names = {share.name for share in shares}
        for name in self._fates.keys() - names:
            del self._fates[name]
            self._told.pop(name, None)
        hanging = set(self._hanging.values())
        wanted = [share for share in shares if share.options.host_path not in hanging]
        for share in shares:
            if share.options.host_path in hanging:
                self.note(share, "unknown")
        if not wanted or len(self._hanging) >= _MOST_HANGING:
            return
        found: dict[str, Fate] = {}
        look = object()

        def work() -> None:
            try:
                for share in wanted:
                    self._hanging[look] = share.options.host_path
                    found[share.name] = fate_of(share.options.host_path, share.options.directory)
            finally:
                self._hanging.pop(look, None)

        with suppress(HostPathHangs, OperationDenied, OSError):  # what it did not come to is not known
            await self._threads.acting_as(self._user, wanted[0].options.host_path, work)
        for share in wanted:
            self.note(share, found.get(share.name, "unknown"))
