"""Releases that users ask for: what is released, what is taken by force, and what is left then.

What lives here: what `share rm` and `unmap` come to, in a document or an error that says who still holds the directory.
What must not: how a share or a mount is released (`shares`, `mounts`), or leases that end (`leases`).

Access ends when nothing holds the share any more: no owner and no mount. An answer never says less: it tells who else
holds it, by name to those who may see them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from uvmshare.daemon.documents import Released
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.shares import may_see
from uvmshare.errors import StillInUse
from uvmshare.mounts.engine import mount_path_of

if TYPE_CHECKING:
    from uvmshare.daemon.identity import Identity
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.mounts import UserMounts
    from uvmshare.daemon.shares import UserShares

__all__ = ["Releases"]


class Releases:
    """What users ask to have ended in a VM."""

    def __init__(self, shares: UserShares, mounts: UserMounts) -> None:
        self._shares = shares
        self._mounts = mounts

    async def release_share(
        self, who: Identity, machine: Machine, name: str, holder: str, *, force: bool = False
    ) -> Released:
        """Release what a holder ("UID/NAME") has of a share; forced, what all have whom `who` may release.

        Raises `StillInUse` when a mount holds the share all the same, or when it was forced and others hold it; what
        could be released is released then. Raises what the VM raises.
        """
        info = machine.share(name)
        owners = () if info is None else tuple(str(owner) for owner in info.owners)
        released = holder in owners
        if force:
            released = await self._force_all(who, machine, name, owners)
        else:
            await self._shares.release(machine, name, holder)
        left = self._left(who, machine, name)
        left = msgspec.structs.replace(left, released=released, holders=self._shares.holders(who, machine, name))
        if not left.ended and (force or left.mounts or self._held_by_mounts(machine, name)):
            raise StillInUse(_words(f"share {name}", left, force=force, is_root=who.is_root))
        return left

    async def _force_all(self, who: Identity, machine: Machine, name: str, owners: tuple[str, ...]) -> bool:
        """Take a share from all whom `who` may release. All are tried; then raises what the first raised."""
        direct = [owner for owner in owners if may_see(who, owner)]
        held = [path for owner in owners if (path := mount_path_of(owner)) is not None]
        paths = [path for path in held if not self._mounts.is_hidden(who, machine, path)]
        outcomes = await asyncio.gather(
            *(self._shares.release(machine, name, owner, EventKind.SHARE_REVOKED) for owner in direct),
            *(self._mounts.revoke(who, machine, path) for path in paths),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return bool(direct) or any(outcomes)

    async def unmap(
        self, who: Identity, machine: Machine, guest_path: str, holder: str, *, lazy: bool = False, force: bool = False
    ) -> Released:
        """Release what a holder ("UID/NAME") has of a mount; forced, what all have whom `who` may release.

        Raises `StillInUse` when it was forced and somebody still holds the mount, or its share; what could be
        released is released then. Raises what the agent and the VM raise.
        """
        before = self._mounts.get(who, machine, guest_path)
        if force:
            released = await self._mounts.revoke(who, machine, guest_path)
        else:
            released = any(f"{each.uid}/{each.owner}" == holder for each in before.references)
            await self._mounts.unmap(machine, guest_path, holder, lazy=lazy)
        left = Released(released=released, ended=True)
        name = before.share if before.share is not None else self._mounts.share_of(machine, guest_path)
        if name is not None:
            left = msgspec.structs.replace(self._left(who, machine, name), released=released)
        left = msgspec.structs.replace(
            left,
            holders=self._mounts.holders(who, machine, before.guest_path)[0],
            guest=self._mounts.guest_words(machine, guest_path),
        )
        if force and not left.ended:
            raise StillInUse(_words(guest_path, left, force=True, is_root=who.is_root))
        return left

    def _held_by_mounts(self, machine: Machine, name: str) -> bool:
        info = machine.share(name)
        return info is not None and any(mount_path_of(owner) is not None for owner in info.owners)

    def _left(self, who: Identity, machine: Machine, name: str) -> Released:
        """Return who still holds a share."""
        info = machine.share(name)
        if info is None:
            return Released(released=False, ended=True, left_behind=machine.left_by(name))
        direct = self._shares.holders(who, machine, name)
        references = {(each.uid, each.owner): each for each in direct}
        mounts = []
        others = False
        for owner in map(str, info.owners):
            path = mount_path_of(owner)
            if path is None:
                others = others or not may_see(who, owner)
                continue
            visible, unseen = self._mounts.holders(who, machine, path)
            others = others or unseen
            if visible or who.is_root:
                mounts.append(path)
            references.update({(each.uid, each.owner): each for each in visible})
        return Released(
            released=False,
            ended=False,
            references=tuple(references.values()),
            mounts=tuple(mounts),
            held_by_others=others,
        )


def _words(thing: str, left: Released, *, force: bool, is_root: bool) -> str:
    """Say who still holds what, and what to do about it."""
    names = [each.owner if not is_root else f"uid {each.uid}'s {each.owner}" for each in left.references]
    held = [f"owner {name}" for name in names]
    held += [f"the mount at {path}" for path in left.mounts]
    if left.held_by_others:
        held.append("another user")
    by = ", ".join(held) or "a mount that is being taken away"
    if force and left.held_by_others:
        remedy = "root can take it from everybody"
    elif force:
        remedy = "`uvmshare share rm --force` takes the share itself from everybody"
    else:
        remedy = "unmap it (uvmshare unmap), or take the share from everybody (share rm --force)"
    return f"{thing}: the guest still reaches the directory, which is held by {by}: {remedy}"
