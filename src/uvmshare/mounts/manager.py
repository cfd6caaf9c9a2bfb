"""The MountManager: which shares a guest has mounted, where, and who holds them.

    mounts = MountManager(agent, shares=manager)
    await mounts.map_to_guest(AddOptions("/srv/project"), "/run/uvmshare/project", owner="build-7")
    ...
    await mounts.unmap_from_guest("/run/uvmshare/project", owner="build-7")

What lives here: every decision about a mount, and the one table. What must not: I/O of any kind, or knowledge
of how a guest is reached; an agent is anything with the three methods of `GuestAgent`.

It is built as `uvmshare.share.manager` is: one event loop, nothing decided across an await, each call in a task
of its own that ends in a callback, `_mount_ended` or `_unmount_ended`. Two things differ. Shares have names that
are never used again, mounts have paths that are: what an earlier mount may have left at a path keeps it
taken until that is gone. And a guest can lose mounts by itself, when it is started again: they come back.

A share that comes and goes with its mount belongs to the mount and not to the callers: it is added in the same
call, before the guest mounts it, and taken out in the same call, after the guest has unmounted it. So no caller's
cancellation comes between the two, and no share is taken from under a mount.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Self

from uvmshare.errors import ComputeSystemGone, ManagerClosed, MountConflict, MountNotFound, MountsLeft
from uvmshare.mounts.interfaces import GuestMount, TellsConnect
from uvmshare.mounts.mount import Mount
from uvmshare.mounts.options import DEFAULT_MSIZE, MountOptions, canonical_guest_path
from uvmshare.mounts.state import MountState, Trigger
from uvmshare.share.entry import BlockOwner
from uvmshare.share.interfaces import TellsExit
from uvmshare.share.operation import OUTCOME_UNKNOWN, Operation, failure_of, failures_of, loop_is_ending
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable
    from types import TracebackType

    from uvmshare.mounts.interfaces import GuestAgent
    from uvmshare.mounts.mount import MountInfo
    from uvmshare.mounts.options import Cache
    from uvmshare.share.manager import Manager

__all__ = ["RETRY_FIRST", "MountManager", "share_owner"]

RETRY_FIRST: Final = 0.5
"""Seconds before what could not be taken away, or mounted again, is tried again: a guest that is started again
needs about that long until its agent answers."""


class MountManager:
    """The mounts of one running guest.

    A path of the guest has one mount. Whoever asks for it with equal options shares it: the first call mounts, later
    ones count a reference, the last release unmounts. References are anonymous and counted, or have an `owner`, any
    hashable value: the same owner holds a mount at most once, and a release by an owner that does not hold it changes
    nothing, so that a retried call never takes somebody else's.

    One event loop, not thread safe. `agent` is any `GuestAgent`; it should answer in finite time, since its calls
    are never abandoned. `shares` is the Manager of the same VM's shares, for `map_to_guest`. `clock` gives
    the seconds since the epoch that `MountInfo.since` shows.
    """

    def __init__(
        self, agent: GuestAgent, *, shares: Manager | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._agent = agent
        self._shares = shares
        self._clock = clock
        self._closed = False
        self._vm_gone: ComputeSystemGone | None = None
        self._by_path: dict[str, Mount] = {}
        """Every mount that the guest has, may have, or should have."""
        self._settling: asyncio.Task[None] | None = None
        self._settle_again = False
        if isinstance(agent, TellsExit):
            agent.on_exit(self.vm_exited)
        if isinstance(agent, TellsConnect):
            agent.on_connect(self._connected)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------ what callers ask for

    async def mount(self, options: MountOptions, *, owner: Hashable | None = None) -> MountInfo:
        """Make sure that the guest has the mount, hold a reference to it, and return what it is.

        Whoever asks while it is being mounted waits for that one call and shares its result. While it is being
        unmounted, or an earlier one at its path could not be taken away yet, waits for that and starts afresh.
        Cancelling this call withdraws its own claim and nothing else; a mount that nobody wants in the end is
        taken away again.

        Raises `MountConflict`, and changes nothing, when the path has a mount with other options. Otherwise raises what
        the agent (or the Manager of the shares) raised, for every caller that waited; then there is no reference, and
        nothing is left in the guest nor on the VM, or it is kept INVALID (see `mounts`) and retried.
        Raises `ManagerClosed`, and `ComputeSystemGone` when the VM has exited.
        """
        hash(owner)  # A TypeError belongs here, not after the guest was changed.
        mount = await self._claim(options)
        mount.claims -= 1
        mount.refer(owner)
        return mount.info()

    async def unmount(self, mount_path: str, *, owner: Hashable | None = None, lazy: bool = False) -> None:
        """Give a reference back; the last one unmounts, and then takes the share out if it came with the mount.

        Without effect: a path without a mount, an owner that does not hold it, an anonymous release when only owners
        hold it. What could not be taken away earlier is tried again now. `lazy` detaches a mount that is in use.

        Otherwise raises what the agent raised, `MountBusy` when the guest uses the mount; it then stays MOUNTED
        with its last reference, and its share stays too, so that calling again tries again. When it is unknown whether
        it is unmounted, or when its share could not be taken out, it becomes INVALID with its last reference, and is
        retried by itself and by whoever calls. A VM that is gone has no mounts. Cancelling this call does not stop
        the guest's, whose result counts all the same.
        """
        hash(owner)
        path = canonical_guest_path(mount_path)
        mount = self._by_path.get(path)
        while mount is not None and mount.operation is not None:
            await mount.operation.wait()
            if self._by_path.get(path) is not mount:  # what is there now is none that this caller knew
                return
        if mount is None:
            return
        if not mount.to_be_taken_away:
            if not mount.held_by(owner):
                return
            if mount.references > 1 or mount.claims:
                mount.unrefer(owner)
                return
        mount.lazy = mount.lazy or lazy
        await self._take_away(mount)

    async def map_to_guest(
        self,
        options: AddOptions,
        guest_path: str,
        *,
        owner: Hashable | None = None,
        read_only: bool = False,
        cache: Cache = "none",
        msize: int = DEFAULT_MSIZE,
    ) -> MountInfo:
        """Share a directory of the host and mount it in the guest; both or neither.

        `read_only`, `cache` and `msize` are the mount's, as in `MountOptions`; the rest is as for `mount`. Raises
        what that and the Manager's `add_to_vm` raise. Needs a MountManager that was given `shares`.
        """
        if not isinstance(options, AddOptions):
            msg = f"expected AddOptions, got {options!r}"
            raise TypeError(msg)
        return await self.mount(
            MountOptions(options, guest_path, read_only=read_only, cache=cache, msize=msize), owner=owner
        )

    async def unmap_from_guest(self, guest_path: str, *, owner: Hashable | None = None, lazy: bool = False) -> None:
        """Give back what `map_to_guest` gave: `unmount`, which takes the share out when the mount is gone."""
        await self.unmount(guest_path, owner=owner, lazy=lazy)

    async def release_owner(self, owner: Hashable, *, lazy: bool = False) -> tuple[str, ...]:
        """Give back every reference that `owner` holds, because it is known to be gone, and return the paths.

        All are tried, beside each other; then raises `MountsLeft` with those that could not be unmounted, which
        keep their last reference, so that calling again tries again. A call of that owner that has not
        returned yet is not its reference yet: end its calls first.
        """
        if owner is None:
            msg = "an anonymous reference has no owner to release it by: give its path to unmount"
            raise TypeError(msg)
        paths = tuple(path for path, mount in self._by_path.items() if mount.held_by(owner))
        left = await failures_of({path: self.unmount(path, owner=owner, lazy=lazy) for path in paths})
        if left:
            raise MountsLeft(left)
        return paths

    @asynccontextmanager
    async def mapped(
        self, options: AddOptions, guest_path: str, *, read_only: bool = False, cache: Cache = "none"
    ) -> AsyncIterator[MountInfo]:
        """Hold a mapping for the length of a block: ``async with mounts.mapped(options, "/run/uvmshare/x"):``.

        The reference has an owner of its own and is given back exactly once, however the block ends. Entering
        raises what `map_to_guest` does. When the mount cannot be taken away at the end, the block's own error is raised
        with a note of that; without one, the agent's is. Either way the MountManager goes on trying.
        """
        owner = BlockOwner()
        mount = await self._claim(MountOptions(options, guest_path, read_only=read_only, cache=cache))
        mount.claims -= 1
        mount.refer(owner)
        try:
            yield mount.info()
        except BaseException as error:
            await self._leave(mount, owner, error)
            raise
        await self._leave(mount, owner, None)

    def mounts(self) -> tuple[MountInfo, ...]:
        """Return a snapshot of every mount that the guest has, may have or should have, oldest first."""
        return tuple(mount.info() for mount in self._by_path.values())

    async def settle(self) -> tuple[GuestMount, ...]:
        """Ask the agent what the guest has, and mount again what it lost. Return what it has and nobody here asked for.

        An agent that tells when it was reached (`TellsConnect`) has this called by itself. What nobody here asked
        for is left alone: other programs may use the same agent. Raises what the agent raised.
        """
        unsettled = dict(self._by_path)
        listed: dict[str, GuestMount] = {}
        while True:
            # What is under way may have been carried out before the guest was started again.
            under_way = [mount.operation for mount in unsettled.values() if mount.operation is not None]
            while under_way:
                await under_way.pop().wait()
            since = {path: mount.since for path, mount in unsettled.items()}
            listed = {found.mount_path: found for found in await self._agent.mapped_directories()}
            for path, mount in tuple(unsettled.items()):
                if mount.operation is not None:  # begun meanwhile: it says nothing until it ends
                    continue
                del unsettled[path]
                if self._by_path.get(path) is mount and mount.since == since[path]:
                    self._compare(mount, listed.get(path))
            if not unsettled:
                return tuple(found for path, found in listed.items() if path not in self._by_path)

    def _compare(self, mount: Mount, found: GuestMount | None) -> None:
        """See to a mount that the guest does not have, or has in another form."""
        if mount.state is MountState.MOUNTED and found != _guest_mount(mount):
            mount.apply(Trigger.LOST, self._clock())
            mount.maybe_in_guest = found is not None
            self._see_to(mount)

    def vm_exited(self, error: ComputeSystemGone) -> None:
        """Forget every mount, because the VM has exited and none is there any more.

        An agent that tells its VM's exit (`uvmshare.share.interfaces.TellsExit`) calls this itself; otherwise whoever
        knows does. A mount with a call in flight is forgotten when that ends; from now on mounting raises
        `ComputeSystemGone`.
        """
        self._vm_gone = error
        for mount in tuple(self._by_path.values()):
            mount.cancel_retry()
            if mount.operation is None:
                self._gone(mount)

    async def aclose(self) -> None:
        """Unmount everything, whoever holds it, and refuse new mounts from now on.

        Waits for the calls in flight. Raises `MountsLeft` with what could not be taken away; calling again
        tries again. Nothing is retried in the background any more.
        """
        self._closed = True
        if self._settling is not None:
            self._settling.cancel()
        tried: set[str] = set()
        while True:
            operations = []
            for mount in tuple(self._by_path.values()):
                operation = mount.operation
                if operation is None:
                    if mount.path in tried:
                        continue
                    tried.add(mount.path)
                    mount.owners.clear()
                    mount.anonymous = 0
                    operation = self._start_unmount(mount)
                if operation is not None:
                    operations.append(operation)
            if not operations:
                break
            for operation in operations:
                await operation.wait()
        left: dict[str, BaseException] = {}
        for mount in self._by_path.values():
            assert mount.last_error is not None, "what is left was tried, and failed"
            left[mount.path] = mount.last_error
        if left:
            raise MountsLeft(left)

    # ------------------------------------------------------------------ claims and references

    async def _claim(self, options: MountOptions) -> Mount:
        """Return the mount, mounted, with a claim on it that the caller turns into a reference."""
        while True:
            self._admit(options)
            mount = self._by_path.get(options.mount_path)
            if mount is None:
                mount = self._by_path[options.mount_path] = Mount(options, self._clock())
            elif mount.operation is not None and mount.unmounting:
                # How that ends is for those who asked; then look again.
                await mount.operation.wait()
                continue
            elif mount.to_be_taken_away and (mount.state is not MountState.MOUNTED or mount.options != options):
                await self._take_away(mount)
                continue
            elif mount.options != options:
                msg = (
                    f"{mount.path} in the guest is taken by {mount.options}, and {options} was asked for: "
                    f"ask for the same, or for another path"
                )
                raise MountConflict(msg)
            mount.claims += 1
            if mount.state is MountState.MOUNTED and mount.operation is None:
                return mount
            try:
                await (mount.operation or self._start_mount(mount)).finish()
                self._admit(options)
            except BaseException:
                self._withdraw(mount)
                raise
            return mount

    def _withdraw(self, mount: Mount) -> None:
        """Give a claim up. If nobody else wants the mount, it is taken away."""
        mount.claims -= 1
        # Later, not now: this caller is being cancelled, perhaps with its whole event loop, which
        # would not wait for a task started here.
        self._retry_later(mount)

    async def _leave(self, mount: Mount, owner: BlockOwner, error: BaseException | None) -> None:
        """Give back the reference of a block that ended in `error`.

        Nobody else knows its owner, so the reference goes whatever the agent answers.
        """
        if not mount.held_by(owner):  # closed meanwhile
            return
        mount.unrefer(owner)
        if mount.wanted or mount.operation is not None or self._by_path.get(mount.path) is not mount:
            return
        try:
            await self._take_away(mount)
        except Exception as release_error:
            if error is None:
                raise
            error.add_note(f"and {mount.path} could not be unmounted yet: {release_error}")

    def _admit(self, options: MountOptions) -> None:
        """Refuse what cannot or may not be mounted."""
        if self._closed:
            msg = "this MountManager was closed and mounts nothing more: make a new one"
            raise ManagerClosed(msg)
        if self._vm_gone is not None:
            msg = f"nothing can be mounted any more: {self._vm_gone}"
            raise ComputeSystemGone(msg) from self._vm_gone
        if not isinstance(options, MountOptions):
            msg = f"expected MountOptions, got {options!r}"
            raise TypeError(msg)
        if self._shares is None and not isinstance(options.share, str):
            msg = "this MountManager has no shares to add to: make it with shares=, or mount a share by its name"
            raise TypeError(msg)

    # ------------------------------------------------------------------ the calls

    async def _mount_in_guest(self, mount: Mount) -> None:
        options = mount.options
        if isinstance(options.share, AddOptions):
            assert self._shares is not None, "_admit saw to it"
            mount.share_name = await self._shares.add_to_vm(options.share, owner=share_owner(mount.path))
        before, mount.maybe_in_guest = mount.maybe_in_guest, True
        try:
            await self._agent.add_mapped_directory(_guest_mount(mount))
        except OUTCOME_UNKNOWN:
            raise
        except Exception:
            mount.maybe_in_guest = before
            raise

    async def _unmount_in_guest(self, mount: Mount) -> None:
        if mount.maybe_in_guest:
            with suppress(MountNotFound, ComputeSystemGone):
                await self._agent.remove_mapped_directory(_guest_mount(mount), lazy=mount.lazy)
            mount.maybe_in_guest = False
        if mount.mapped and mount.share_name is not None:
            assert self._shares is not None, "_admit saw to it"
            await self._shares.remove_from_vm(mount.share_name, owner=share_owner(mount.path))
            mount.share_name = None

    def _start_mount(self, mount: Mount) -> Operation:
        mount.cancel_retry()
        mount.operation = operation = Operation()
        operation.begin(self._mount_in_guest(mount), partial(self._mount_ended, mount))
        return operation

    def _start_unmount(self, mount: Mount) -> Operation | None:
        """Begin to take it away; None when there was nothing to do, and it is gone."""
        mount.cancel_retry()
        if mount.state is MountState.RESERVED:
            mount.apply(Trigger.GIVEN_UP, self._clock())
        if not mount.left_behind:
            self._gone(mount)
            return None
        mount.operation = operation = Operation()
        self._undo(mount, operation)
        return operation

    def _undo(self, mount: Mount, operation: Operation) -> None:
        mount.unmounting = True
        operation.begin(self._unmount_in_guest(mount), partial(self._unmount_ended, mount))

    async def _take_away(self, mount: Mount) -> None:
        """Take it away and raise why that failed, if it did."""
        operation = self._start_unmount(mount)
        if operation is not None:
            await operation.finish()

    def _mount_ended(self, mount: Mount, task: asyncio.Task[None]) -> None:
        operation = mount.operation
        assert operation is not None
        error = failure_of(task, _interrupted(mount))
        if self._vm_gone is not None:
            error = error if error is not None and not isinstance(error, OUTCOME_UNKNOWN) else self._vm_gone
            mount.maybe_in_guest, mount.share_name = False, None
        operation.error = error
        now = self._clock()
        if error is None:
            mount.apply(Trigger.MOUNT_SUCCEEDED, now)
            mount.retry_delay = 0.0
            self._end(mount, operation, task)
            return
        mount.last_error = error
        if mount.references and self._vm_gone is None:
            mount.apply(Trigger.REMOUNT_FAILED, now)
            self._end(mount, operation, task)
            return
        unknown = isinstance(error, OUTCOME_UNKNOWN)
        mount.apply(Trigger.MOUNT_UNKNOWN if unknown else Trigger.MOUNT_FAILED, now)
        if mount.left_behind and not loop_is_ending(task):
            # Undone before those who wait are told: the operation goes on with a second call.
            self._undo(mount, operation)
            return
        if not mount.left_behind:
            self._forget(mount)
        self._end(mount, operation, task)

    def _unmount_ended(self, mount: Mount, task: asyncio.Task[None]) -> None:
        operation = mount.operation
        assert operation is not None
        error = failure_of(task, _interrupted(mount))
        if error is None or self._vm_gone is not None:
            self._gone(mount)
        else:
            mount.last_error = error
            unchanged = mount.maybe_in_guest and not isinstance(error, OUTCOME_UNKNOWN)
            mount.apply(Trigger.UNMOUNT_FAILED if unchanged else Trigger.UNMOUNT_UNKNOWN, self._clock())
            if operation.error is None:
                operation.error = error
            else:  # a mount that is being undone: its own error is what its callers are told
                operation.error.add_note(f"and it may still be in the guest, since undoing failed: {error}")
        self._end(mount, operation, task)

    def _end(self, mount: Mount, operation: Operation, task: asyncio.Task[None]) -> None:
        mount.operation = None
        mount.unmounting = False
        mount.lazy = False
        operation.end()
        unwanted = mount.state is MountState.MOUNTED and not mount.wanted and operation.error is None
        if unwanted and not loop_is_ending(task):
            self._start_unmount(mount)
        else:
            self._retry_later(mount)

    def _gone(self, mount: Mount) -> None:
        """Note that neither the guest nor the VM has anything of it."""
        if mount.state is MountState.RESERVED:
            mount.apply(Trigger.GIVEN_UP, self._clock())
        mount.apply(Trigger.UNMOUNT_SUCCEEDED, self._clock())
        self._forget(mount)

    def _forget(self, mount: Mount) -> None:
        del self._by_path[mount.path]

    # ------------------------------------------------------------------ what nobody waits for

    def _see_to(self, mount: Mount) -> None:
        """Do now what is to be done, if there is anything."""
        if mount.to_be_mounted and not self._closed:
            self._start_mount(mount)
        elif mount.to_be_taken_away:
            self._start_unmount(mount)

    def _retry_later(self, mount: Mount) -> None:
        """If it is to be taken away, or mounted, see to it after a while, and after a longer one each time."""
        if self._closed or mount.retry is not None or self._by_path.get(mount.path) is not mount:
            return
        if mount.to_be_taken_away or mount.to_be_mounted:
            mount.retry_later(RETRY_FIRST, partial(self._retry, mount))

    def _retry(self, mount: Mount) -> None:
        mount.retry = None
        if mount.to_be_taken_away or mount.to_be_mounted:
            self._see_to(mount)
        else:  # somebody wants it again
            mount.retry_delay = 0.0

    def _connected(self) -> None:
        """Settle what the guest has, one attempt at a time, because the agent was reached again."""
        if self._closed or self._vm_gone is not None:
            return
        self._settle_again = self._settling is not None
        if self._settling is None:
            self._settling = asyncio.get_running_loop().create_task(self._settle_quietly())
            self._settling.add_done_callback(self._settled)

    async def _settle_quietly(self) -> None:
        with suppress(Exception):  # whatever it was, the agent tells when it is reached again
            await self.settle()

    def _settled(self, task: asyncio.Task[None]) -> None:
        self._settling = None
        if self._settle_again and not loop_is_ending(task):
            self._connected()


def _guest_mount(mount: Mount) -> GuestMount:
    options = mount.options
    return GuestMount(
        mount.share_name or "",
        mount.path,
        options.read_only,
        options.cache,
        options.msize,
        suid=options.suid,
        dev=options.dev,
    )


def share_owner(mount_path: str) -> str:
    """Return the owner of a mount's own reference to its share: text, so that it survives in a journal."""
    return f"guest mount {mount_path}"


def _interrupted(mount: Mount) -> str:
    return f"{mount.path}: the call to the guest was interrupted before it answered; mounts() shows what became of it"
