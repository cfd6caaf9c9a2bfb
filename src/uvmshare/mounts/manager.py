"""The MountManager: which shares a guest has mounted, where, and who holds them.

    mounts = MountManager(agent, shares=manager)
    await mounts.map("/srv/project", "/run/uvmshare/project", owner="build-7")
    ...
    await mounts.unmap("/run/uvmshare/project", owner="build-7")

What lives here: what callers may ask for. What must not: I/O of any kind, or knowledge of how a guest is reached; an
agent is anything with the three methods of `GuestAgent`. `uvmshare.lifecycle.claims` keeps who wants a mount, and
`uvmshare.mounts.engine` decides what then happens to it.

It is built like `uvmshare.share.manager`: one event loop, nothing decided across an await, each call in a task of its
own that ends in a callback of the engine. Two things differ. A share's name is never used again, but a mount's path is:
what an earlier mount may have left at a path keeps the path taken until that is gone. And a guest loses its mounts when
it is started again: the MountManager then mounts them again.

A share that comes and goes with its mount belongs to the mount and not to the callers. One call adds the share, and
then has the guest mount it. One call has the guest unmount it, and then removes the share. So no caller's cancellation
comes between the two, and no share is removed under a mount that somebody holds. If nobody holds the mount and the
guest does not unmount in time, its share is removed all the same.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Literal, Self

from uvmshare import arguments
from uvmshare.errors import ComputeSystemGone, WrongType
from uvmshare.lifecycle.claims import Claims
from uvmshare.lifecycle.compare_schedule import CompareSchedule
from uvmshare.lifecycle.operation import OUTCOME_UNKNOWN
from uvmshare.mounts.engine import REVOKE_GRACE, MountEngine, guest_mount, share_owner
from uvmshare.mounts.interfaces import TellsConnect, TellsMounts
from uvmshare.mounts.mount import RETRY_FIRST
from uvmshare.mounts.options import canonical_guest_path, mapping_of
from uvmshare.mounts.state import MountLife, MountTrigger
from uvmshare.share.interfaces import TellsExit

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Callable, Collection, Hashable
    from types import TracebackType
    from typing import Unpack

    from uvmshare.mounts.interfaces import GuestAgent, GuestMount
    from uvmshare.mounts.mount import Mount, MountInfo
    from uvmshare.mounts.options import MapKeywords, MountOptions
    from uvmshare.share.manager import Manager
    from uvmshare.share.options import AddOptions, HostPath

__all__ = ["RETRY_FIRST", "REVOKE_GRACE", "MountManager", "share_owner"]


class MountManager:
    """The mounts of one running guest.

    A path of the guest has one mount. Callers with equal options share it, if the directory on the host is still the
    same: the first call mounts, later calls count a reference, the last release unmounts. References are anonymous and
    counted, or have an `owner`, which is any hashable value. An owner holds a mount at most once. A release by an owner
    that does not hold it changes nothing, so a retried release never takes another's reference.

    It belongs to one event loop and is not thread safe. `agent` is any `GuestAgent`. It should answer in finite time,
    since its calls are never abandoned. `shares` is the Manager of the same VM's shares, for `map`. `clock` gives the
    seconds since the epoch that `MountInfo.since` shows.
    """

    def __init__(
        self, agent: GuestAgent, *, shares: Manager | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        methods = ("add_mapped_directory", "remove_mapped_directory", "mapped_directories")
        arguments.with_methods("agent", agent, methods, "an AgentClient or another GuestAgent")
        if shares is not None:
            arguments.with_methods("shares", shares, ("add", "remove", "on_settled"), "the Manager of the VM's shares")
        arguments.function("clock", clock)
        self._engine = MountEngine(agent, shares, clock)
        self.claims = Claims(self._engine)
        """For `uvmshare.blocking`, whose callers wait in another thread; not for callers of this MountManager."""
        self._comparisons = CompareSchedule(self.settle, self._is_open, _went_well, first=RETRY_FIRST)
        if isinstance(agent, TellsExit):
            agent.on_exit(self.vm_exited)
        if isinstance(agent, TellsConnect):
            agent.on_connect(self._comparisons.ask)
        if isinstance(agent, TellsMounts):
            agent.on_mounts(self._comparisons.ask)
        if shares is not None:  # what was lost and is back under its name may be to be mounted again
            shares.on_settled(lambda _: self._comparisons.ask())

    def __repr__(self) -> str:
        if self._engine.vm_gone is not None:
            state = str(self._engine.vm_gone)
        else:
            state = "closed" if self._engine.closed else f"{len(self._engine.table)} mounts"
        return f"<MountManager of {self._engine.agent!r}: {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------ what callers ask for

    async def mount(self, options: MountOptions, *, owner: Hashable | None = None) -> MountInfo:
        """Make sure that the guest has the mount, hold a reference to it, and return what it is.

        A call that comes while the guest is mounting waits for that and shares its result. A call that comes while the
        guest is unmounting, or while an earlier mount is still at the path, waits for that to end and then mounts anew.
        Cancelling this call withdraws its own claim and nothing else. A mount that nobody wants in the end is taken
        away again.

        Raises `MountConflict`, and changes nothing, when the path has a mount with other options. Otherwise raises what
        the agent or the Manager of the shares raised, in every caller that waited. Then there is no reference. What may
        be left in the guest or on the VM is kept INVALID (see `mounts`), and its removal is retried. There is one
        exception: when adding the share got no answer, the guest was never asked. If the Manager cannot remove that
        share now either, the Manager keeps it as an orphan (`Manager.shares`) and tries again. The orphan does not
        block the path. Raises `ManagerClosed`, and `ComputeSystemGone` when the VM has exited.
        """
        self.claims.check(owner)
        mount = await self.claims.hold(options, owner)
        self.claims.keep(mount, owner)
        return mount.info()

    async def unmount(
        self,
        mount_path: str,
        *,
        owner: Hashable | None = None,
        lazy: bool = False,
        force: bool = False,
        grace: float = REVOKE_GRACE,
    ) -> MountInfo | None:
        """Release a reference. The last release unmounts, and removes the share if it came with the mount.

        Returns what is left of the mount: None for nothing, a mount that others hold, or a REVOKED one, when its share
        is gone and the guest did not unmount.

        It has no effect for a path without a mount, for an owner that does not hold the mount, and for an anonymous
        release when only owners hold it. What could not be taken away earlier is tried again now. `lazy` detaches a
        mount that is in use.

        Otherwise raises what the agent raised; `MountBusy` when programs in the guest use the mount. The mount then
        stays MOUNTED with its last reference, and its share stays too. Call again to try again. When nobody knows
        whether the guest unmounted, the share is removed anyway, and the mount is REVOKED. When the share could not be
        removed, raises why. In both cases the reference is released. What is left is retried in the background, and by
        each call. A VM that is gone has no mounts. Cancelling this call does not stop the guest's unmount, whose result
        counts.

        With `force` the reference is released at once, whatever the guest says: see `revoke`, also for `grace`.
        """
        self.claims.check(owner)
        _require_ways(lazy=lazy, force=force, grace=grace)
        path = canonical_guest_path(mount_path)
        mount = self._engine.table.get(path)
        if force:
            return None if mount is None else await self._engine.force(mount, (owner,), grace)
        while mount is not None and mount.operation is not None:
            await mount.operation.wait()
            if self._engine.table.get(path) is not mount:  # what is there now is none that this caller knew
                return None
        if mount is None:
            return None
        if not self.claims.release(mount, owner):
            return mount.info()
        was_revoked = mount.is_revoked
        mount.lazy = mount.lazy or lazy
        try:
            await self._engine.taken_away(mount)
        except OUTCOME_UNKNOWN:
            if was_revoked or not (mount.mapped and mount.maybe_in_guest):
                raise
            if mount.revocation is not None:
                await mount.revocation.finish()
            elif not mount.is_revoked:
                raise
        return self._engine.left_of(mount)

    async def revoke(
        self,
        mount_path: str,
        *,
        owners: Collection[Hashable | None] | None = None,
        grace: float = REVOKE_GRACE,
    ) -> MountInfo | None:
        """Take a mount away from all who hold it, or from `owners` alone, whatever the guest says.

        `owners` are the owners that lose it; None among them stands for anonymous holders. A mount that others hold, or
        ask for, stays. Without `owners`, callers who are asking for it lose it too: they get `MountRevoked`. Returns
        what is left of the mount, as `unmount` does. When nobody holds it any more, the guest is asked to unmount it
        lazily. If the guest refuses, or has not done so after `grace` seconds, the share that came with the mount is
        removed anyway. When this returns, nothing in the guest reaches the directory by this mount. No call that is
        under way in the guest delays it. A path without a mount has nothing to take away: the Manager itself removes an
        orphan that `map` left (see `mount`).

        Raises what removing the share raised. The removal is tried again every five seconds, and by each call. A mount
        of a share that others added has no share to remove: raises what the agent raised, and `OutcomeUnknown` when the
        agent did not answer in time. Cancelling this call does not stop the revocation.
        """
        _require_ways(grace=grace)
        if owners is not None:
            owners = arguments.list_of("owners", owners, object, "a list of owners")
            for owner in owners:
                arguments.hashable("owners", owner)
        path = canonical_guest_path(mount_path)
        mount = self._engine.table.get(path)
        if mount is None:
            return None
        if owners is None:
            owners = (*mount.owners, *((None,) * mount.anonymous))
            if mount.mapped:
                mount.apply(MountTrigger.REVOKED, self._engine.clock())
        return await self._engine.force(mount, owners, grace)

    async def map(
        self,
        share: AddOptions | HostPath,
        guest_path: str,
        *,
        owner: Hashable | None = None,
        **keywords: Unpack[MapKeywords],
    ) -> MountInfo:
        """Share a directory of the host and mount it in the guest; both or neither.

        ``map("/srv/project", "/mnt/project", read_only=True)``. The keywords are those of `MountOptions` and, with a
        path, also those of `AddOptions` (`uvmshare.mounts.options.mapping_of`). The rest is as in `mount`. Raises what
        `mount` and the Manager's `add` raise. It needs a MountManager that was given `shares`.
        """
        return await self.mount(mapping_of(share, guest_path, keywords), owner=owner)

    async def unmap(
        self, guest_path: str, *, owner: Hashable | None = None, lazy: bool = False, force: bool = False
    ) -> MountInfo | None:
        """Release what `map` returned. It is `unmount`, which removes the share when the mount is gone."""
        return await self.unmount(guest_path, owner=owner, lazy=lazy, force=force)

    async def release_owner(self, owner: Hashable, *, lazy: bool = False, force: bool = False) -> tuple[str, ...]:
        """Release every reference of `owner`, which is known to be gone. Return the paths of their mounts.

        All mounts are tried, at the same time. Then raises `MountsLeft` with those that could not be unmounted. They
        keep their last reference: call again to try again. With `force` they go whatever the guest says (see `revoke`).
        A call of that owner that has not returned yet is not a reference yet: end its calls first.
        """
        if owner is None:
            msg = "owner is None, and an anonymous reference has no owner to release it by: give its path to unmount"
            raise WrongType(msg)
        self.claims.check(owner)
        _require_ways(lazy=lazy, force=force)
        return await self.claims.release_owner(
            owner, lambda path: self.unmount(path, owner=owner, lazy=lazy, force=force)
        )

    @asynccontextmanager
    async def mapped(
        self, share: AddOptions | HostPath, guest_path: str, **keywords: Unpack[MapKeywords]
    ) -> AsyncIterator[MountInfo]:
        """Hold a mapping for the length of a block: ``async with mounts.mapped("/srv/x", "/run/uvmshare/x"):``.

        The reference has an owner of its own and is released exactly once, however the block ends. Entering raises what
        `map` raises. The end of the block revokes the mount (`revoke`): if the guest does not unmount, its share is
        removed anyway. The block's own error is then raised, with a note of that; without one, the agent's error or
        `MountRevoked`. In both cases the MountManager keeps trying to have the guest unmount.
        """
        async with self.claims.block(mapping_of(share, guest_path, keywords)) as mount:
            yield mount.info()

    def on_change(self, callback: Callable[[MountInfo, Literal["lost", "remounted"]], None]) -> None:
        """Have `callback` called in the event loop when the guest loses a mount, and when it has the mount again."""
        self._engine.on_change.append(arguments.function("callback", callback))

    def mounts(self) -> tuple[MountInfo, ...]:
        """Return a snapshot of every mount that the guest has, may have or should have, oldest first."""
        return tuple(mount.info() for mount in self._engine.table.values())

    async def settle(self) -> tuple[GuestMount, ...]:
        """Ask the agent what the guest has, and mount again what it lost. Return mounts that nobody here asked for.

        With an agent that tells when it was reached (`TellsConnect`), this happens by itself. It also happens after a
        VM told of a takeover and the Manager has settled its shares. Mounts that nobody here asked for are left alone:
        other programs may use the same agent. Raises what the agent raised.
        """
        unsettled = dict(self._engine.table)
        listed: dict[str, GuestMount] = {}
        while True:
            # What is under way may have been carried out before the guest was started again.
            under_way = [mount.operation for mount in unsettled.values() if mount.operation is not None]
            while under_way:
                await under_way.pop().wait()
            since = {path: mount.since for path, mount in unsettled.items()}
            listed = {found.mount_path: found for found in await self._engine.agent.mapped_directories()}
            for path, mount in tuple(unsettled.items()):
                if mount.operation is not None:  # begun meanwhile: it says nothing until it ends
                    continue
                del unsettled[path]
                if self._engine.table.get(path) is mount and mount.since == since[path]:
                    self._compare(mount, listed.get(path))
            if not unsettled:
                return tuple(found for path, found in listed.items() if path not in self._engine.table)

    def _compare(self, mount: Mount, found: GuestMount | None) -> None:
        """See to a mount that the guest does not have, or has in another form."""
        if mount.is_revoked and mount.to_be_taken_away:
            self._engine.see_to(mount)  # it may be gone, and then its path is free
        elif mount.state is MountLife.MOUNTED and found is not None and guest_mount(mount).is_met_by(found):
            self._note_agents_doing(mount, found)
        elif mount.state is MountLife.MOUNTED:
            mount.apply(MountTrigger.LOST, self._engine.clock())
            if not mount.broken:
                self._engine.tell(mount, "lost")
            mount.maybe_in_guest = found is not None
            self._engine.see_to(mount)

    def _note_agents_doing(self, mount: Mount, found: GuestMount) -> None:
        """Tell what the agent did by itself with a mount that it has: lost it, mounted it again, or both since."""
        mount.no_events = found.no_events
        if found.again > mount.again:
            if not mount.broken:
                self._engine.tell(mount, "lost")
            self._engine.tell(mount, "remounted")
            mount.broken = False
        mount.again = found.again
        if found.broken != mount.broken:
            mount.broken = found.broken
            self._engine.tell(mount, "lost" if found.broken else "remounted")

    def vm_exited(self, error: ComputeSystemGone) -> None:
        """Forget every mount, because the VM has exited and none is there any more.

        An agent that tells its VM's exit (`uvmshare.share.interfaces.TellsExit`) calls this itself. With any other
        agent, the program that learns of the exit calls it. A mount with a call in flight is forgotten when the call
        ends. From now on mounting raises `ComputeSystemGone`.
        """
        if not isinstance(error, ComputeSystemGone):
            arguments.refuse_type("error", error, "a ComputeSystemGone, which says why")
        self._engine.exit(error)
        self._comparisons.withdraw()

    async def aclose(self) -> None:
        """Unmount everything, whoever holds it, and refuse new mounts from now on.

        Shares that came with mounts are removed within `REVOKE_GRACE` seconds, whatever the guest says (see `revoke`).
        Waits for the calls in flight. Raises `MountsLeft` with the mounts that could not be taken away, or are REVOKED;
        call again to try again. Nothing is retried in the background any more.
        """
        self._engine.closed = True
        self._comparisons.cancel()
        await self._engine.take_everything_away()
        left = self._engine.left()
        if left:
            raise self._engine.error_of_left(left)

    # ------------------------------------------------------------------ what nobody waits for

    def _is_open(self) -> bool:
        return not self._engine.closed and self._engine.vm_gone is None


def _went_well(task: asyncio.Task[tuple[GuestMount, ...]]) -> bool:
    return task.exception() is None


def _require_ways(*, lazy: bool = False, force: bool = False, grace: float = REVOKE_GRACE) -> None:
    """Refuse what cannot say how a mount is to be taken away, before the guest is asked."""
    arguments.flag("lazy", lazy)
    arguments.flag("force", force)
    arguments.seconds("grace", grace, zero=True)
