"""Directories that no share may hold which a guest can write: run directories, and the daemon's state.

What lives here: `KeepOut`, one such directory, and whether a share shows anything of it. What must not: which
directories these are (`rundir`, and whoever starts a file server), or reading the table of mounts
(`mounttable`).

That is asked of the kernel's table of mounts, so that no bind mount hides it, as the mounts are when a share is added.
One that is made later is for whoever makes it to keep apart.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uvmshare.errors import AccessDenied, FileServerError
from uvmshare.fileserver.mounttable import Place, place_of, shown_below
from uvmshare.hcs.schema import Plan9ShareFlags

if TYPE_CHECKING:
    from uvmshare.hcs.schema import Plan9Share

__all__ = ["KeepOut"]


@dataclass(frozen=True, slots=True)
class KeepOut:
    """A directory that no guest may write to.

    `what` is what an error calls it. `names` are those at its top that are kept, when others may have more there; a
    name is also that of a file that begins with it and a dash or a full stop, as SQLite's do. None: all of it.
    """

    path: str
    what: str
    names: frozenset[str] | None = None

    def require_apart(self, share: Plan9Share) -> None:
        """Refuse a share through which a guest could write here.

        Raises `AccessDenied`, or `FileServerError` when it cannot be seen.
        """
        if share.flags & Plan9ShareFlags.READ_ONLY or not os.path.isdir(share.path):
            return  # what is no directory is refused by whoever opens it
        own = os.path.realpath(self.path)
        try:
            if not os.path.isdir(own):
                return
            here = place_of(own)
            is_apart = not any(place.holds(here) or self._keeps(here, place) for place in _shown(share))
        except OSError as error:
            msg = f"share {share.access_name}: cannot see whether {share.path!r} holds {own!r}: {error.strerror}"
            raise FileServerError(msg) from error
        if is_apart:
            return
        msg = (
            f"share {share.access_name}: {share.path!r} holds {self.what}, {own!r}, where a guest could write: share "
            "it read-only, share another directory, or have that one elsewhere"
        )
        raise AccessDenied(msg)

    def _keeps(self, here: Place, place: Place) -> bool:
        """Say whether a place is in here, and is kept."""
        if not here.holds(place):
            return False
        if self.names is None:
            return True
        name = os.path.relpath(place.path, here.path).partition("/")[0]
        return any(name == kept or name.startswith((f"{kept}-", f"{kept}.")) for kept in self.names)


def _shown(share: Plan9Share) -> list[Place]:
    """Return what a guest sees of a share: with an allow-list, these names alone. Raises `OSError`."""
    if not share.allowed_files:
        return shown_below(share.path)
    top = place_of(share.path)
    shown = []
    for name in share.allowed_files:
        path = os.path.join(share.path, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shown += shown_below(path)
        else:  # a file, or nothing yet: where it is, or would be, and what is mounted over it
            shown.append(Place(top.device, os.path.join(top.path, name)))
            shown += [place for place in shown_below(share.path)[1:] if os.path.basename(place.path) == name]
    return shown
