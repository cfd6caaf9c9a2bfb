"""What each owner holds, as `uvmshare owner ls` shows it.

What lives here: the document, and how it is made of shares and mounts. What must not: the command.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvmshare.daemon.documents import Mount, Reference, Share

__all__ = ["OwnerHolds", "holds"]


class OwnerHolds(msgspec.Struct, frozen=True, kw_only=True):
    """What one owner holds in one VM."""

    owner: str
    uid: int
    vm: str
    shares: tuple[str, ...]
    """Names of shares that the owner holds directly."""
    mounts: tuple[str, ...]
    """Where the guest has mounted what the owner mapped; a mount holds its share."""
    expires_in: float | None
    """Seconds until the first lease of these ends; null without any."""


def holds(shares: Iterable[Share], mounts: Iterable[Mount]) -> list[OwnerHolds]:
    """Return who holds what, by owner and VM."""
    of: dict[tuple[str, int, str], tuple[list[str], list[str], list[float]]] = {}

    def note(references: Iterable[Reference], vm: str, kind: int, name: str) -> None:
        for each in references:
            found = of.setdefault((each.owner, each.uid, vm), ([], [], []))
            (found[0] if kind == 0 else found[1]).append(name)
            if each.expires_in is not None:
                found[2].append(each.expires_in)

    for share in shares:
        note(share.references, share.vm, 0, share.name)
    for mount in mounts:
        note(mount.references, mount.vm, 1, mount.guest_path)
    return [
        OwnerHolds(
            owner=owner,
            uid=uid,
            vm=vm,
            shares=tuple(names),
            mounts=tuple(paths),
            expires_in=min(leases, default=None),
        )
        for (owner, uid, vm), (names, paths, leases) in sorted(of.items())
    ]
