"""What happens to a mount, whoever asked for it: the one table, and the calls to the guest.

What lives here: `MountEngine`, a part of the MountManager, which changes a mount's state; the manager does where a
caller forces an end, or the guest tells of a loss, and both through the one table (`state`). What must not: what
callers may ask for (`uvmshare.mounts.manager`), or I/O.

A guest never has the last word. What nobody holds any more is unmounted in order if the guest does that in time. If it
refuses, or `REVOKE_GRACE` seconds pass, the host removes the share that the mount holds, whatever call to the guest is
still under way. The mount is REVOKED then: dead, if the guest still has it, and its path stays taken until the agent
says that the mount is gone. Nobody joins a REVOKED mount, and nothing mounts it again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from uvmshare import arguments
from uvmshare.errors import (
    ComputeSystemGone,
    MountConflict,
    MountNotFound,
    MountRevoked,
    MountsLeft,
    OutcomeUnknown,
    WrongType,
)
from uvmshare.heard import logger
from uvmshare.lifecycle.engine import Engine
from uvmshare.lifecycle.operation import OUTCOME_UNKNOWN, Operation, failure_of, loop_is_ending
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.mounts.mount import RETRY_FIRST, Mount
from uvmshare.mounts.options import MountOptions
from uvmshare.mounts.state import MountLife, MountState, MountTrigger
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Iterable

    from uvmshare.mounts.interfaces import GuestAgent
    from uvmshare.mounts.mount import MountInfo
    from uvmshare.share.manager import Manager

__all__ = ["REVOKE_GRACE", "MountEngine", "guest_mount", "mount_path_of", "revoked", "share_owner"]

REVOKE_GRACE: Final = 5.0
"""Seconds that a guest has to unmount in order what nobody holds any more, before its share is removed: as long as a
connection may say nothing before its agent is asked for a word (`uvmshare.mounts.connection`)."""

REVOKE_AGAIN: Final = 5.0
"""Seconds before a share that could not be removed is tried again."""


class MountEngine(Engine[Mount, MountOptions]):
    """The mounts of one guest and what is under way for each."""

    is_closed = "this MountManager was closed and mounts nothing more: make a new one"
    is_gone = "nothing can be mounted any more"
    log = logger("mounts")
    error_of_left = MountsLeft

    def __init__(self, agent: GuestAgent, shares: Manager | None, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.agent = agent
        self.shares = shares
        self.on_change: list[Callable[[MountInfo, Literal["lost", "remounted"]], None]] = []

    def tell(self, mount: Mount, what: Literal["lost", "remounted"]) -> None:
        """Tell those who asked for it what the guest did with a mount that somebody holds."""
        for callback in self.on_change:  # what it raises is the loop's to tell
            asyncio.get_running_loop().call_soon(callback, mount.info(), what)

    def require_able(self, options: MountOptions) -> None:
        """Refuse what cannot be mounted. Raises `WrongType`."""
        if not isinstance(options, MountOptions):
            arguments.refuse_type("options", options, "MountOptions; `map` takes a path and a path of the guest")
        if self.shares is None and not isinstance(options.share, str):
            msg = "this MountManager has no shares to add to: make it with shares=, or mount a share by its name"
            raise WrongType(msg)

    # ------------------------------------------------------------------ what a claim needs

    def join(self, options: MountOptions) -> Mount:
        """Return the mount at that path, a new one if there is none."""
        mount = self.table.get(options.mount_path)
        if mount is None:
            mount = self.table[options.mount_path] = Mount(options, self.clock(), self.agent)
        return mount

    def goes_first(self, mount: Mount, options: MountOptions) -> Awaitable[None] | None:
        """Return the end of an earlier mount. Raises `MountConflict` when the path has another one that stays."""
        if mount.operation is not None and (mount.state.busy == "unmounting" or mount.is_revoked):
            return mount.operation.wait()  # how that ends is for those who asked
        fits = mount.options.may_be(options)
        if mount.to_be_taken_away and not (mount.state is MountLife.PENDING or (mount.live and fits)):
            return self.taken_away(mount)
        if not fits:
            raise MountConflict(_conflict(mount, options))
        return None

    def claimed(self, mount: Mount) -> None:
        """Let its share be: somebody is about to hold it."""
        self.end_grace(mount)

    def require_joined(self, mount: Mount) -> None:
        """Refuse one that was revoked between the end of the call and now."""
        if mount.is_revoked:
            raise revoked(mount)

    async def end_block(self, mount: Mount, owner: Hashable) -> None:
        """Give back the reference of a block for good: the guest has no say."""
        left = await self.force(mount, (owner,), REVOKE_GRACE)
        if left is not None and left.state is MountState.REVOKED:
            raise mount.last_error or revoked(mount)

    def called(self, mount: Mount) -> str:
        """Return what it is called in the log."""
        return f"mount {mount.path}"

    def not_yet(self, mount: Mount) -> str:
        """Return in words that it could not be unmounted yet."""
        return f"{mount.path} could not be unmounted yet"

    # ------------------------------------------------------------------ the calls

    async def _mount_in_guest(self, mount: Mount) -> None:
        options = mount.options
        if isinstance(options.share, AddOptions):
            assert self.shares is not None, "require_able saw to it"
            try:
                if mount.is_revoked:
                    raise revoked(mount)
                mount.share_name = await self.shares.add(options.share, owner=share_owner(mount.path))
            finally:
                _end_adding(mount)
            mount.asked_name = mount.share_name
            if mount.is_revoked:
                raise revoked(mount)
        before, mount.maybe_in_guest = mount.maybe_in_guest, True
        try:
            mounted = await self.agent.add_mapped_directory(guest_mount(mount))
            mount.chosen, mount.no_events = mounted.chosen, mounted.no_events
        except OUTCOME_UNKNOWN:
            raise
        except Exception:
            mount.maybe_in_guest = before
            raise

    async def _unmount_in_guest(self, mount: Mount) -> None:
        if mount.maybe_in_guest:
            with suppress(MountNotFound, ComputeSystemGone):
                # What is dead is in the way of nobody who uses it.
                lazy = mount.lazy or mount.is_revoked
                await self.agent.remove_mapped_directory(guest_mount(mount), lazy=lazy)
            mount.maybe_in_guest = False
        await self._remove_share(mount)

    async def _remove_share(self, mount: Mount) -> None:
        """Take out the share that came with the mount. Twice at a time does no harm: its name never comes again."""
        name = mount.share_name
        if mount.mapped and name is not None:
            assert self.shares is not None, "require_able saw to it"
            await self.shares.remove(name, owner=share_owner(mount.path))
            if mount.share_name == name:
                mount.share_name = None

    def bring(self, mount: Mount) -> Operation:
        """Begin to mount it, for the first time or again."""
        mount.retry.withdraw()
        mount.apply(MountTrigger.MOUNT_BEGUN, self.clock())
        mount.operation = operation = Operation()
        if mount.mapped:  # from now on, not from when the call begins to run
            mount.adding = Operation()
        operation.begin(self._mount_in_guest(mount), partial(self._mount_ended, mount))
        return operation

    def take_away(self, mount: Mount) -> Operation | None:
        """Begin to take it away; None when there was nothing to do, and it is gone."""
        mount.retry.withdraw()
        if mount.state is MountLife.LOST:
            mount.apply(MountTrigger.GIVEN_UP, self.clock())
        if not mount.left_behind:
            self.gone(mount, MountTrigger.NOTHING_LEFT)
            return None
        mount.operation = operation = Operation()
        self._undo(mount, operation)
        if mount.doomed:
            self.end_share(mount, REVOKE_GRACE)
        return operation

    def _undo(self, mount: Mount, operation: Operation) -> None:
        mount.apply(MountTrigger.UNMOUNT_BEGUN, self.clock())
        operation.begin(self._unmount_in_guest(mount), partial(self._unmount_ended, mount))

    async def taken_away(self, mount: Mount) -> None:
        """Take it away and raise why that failed, if it did."""
        operation = self.take_away(mount)
        if operation is not None:
            await operation.finish()

    def _mount_ended(self, mount: Mount, task: asyncio.Task[None]) -> None:
        operation = mount.operation
        assert operation is not None
        _end_adding(mount)
        error = failure_of(task, _interrupted(mount))
        if self.vm_gone is not None:
            error = error if error is not None and not isinstance(error, OUTCOME_UNKNOWN) else self.vm_gone
            mount.maybe_in_guest, mount.share_name = False, None
        now = self.clock()
        if mount.is_revoked:
            error, cause = revoked(mount), error
            error.__cause__ = cause
        operation.error = error
        if error is None:
            again = mount.state is MountLife.RESTORING
            mount.apply(MountTrigger.MOUNT_SUCCEEDED, now)
            mount.broken, mount.again = False, 0
            if again:
                self.tell(mount, "remounted")
            mount.retry.reset()
            self._end(mount, operation, task)
            return
        mount.last_error = error
        unknown = isinstance(error, OUTCOME_UNKNOWN)
        mount.apply(MountTrigger.MOUNT_UNKNOWN if unknown else MountTrigger.MOUNT_FAILED, now)
        if mount.state is MountLife.LOST:
            if mount.references and self.vm_gone is None:
                self._end(mount, operation, task)
                return
            mount.apply(MountTrigger.GIVEN_UP, now)
        if mount.left_behind and not loop_is_ending(task):
            # Undone before those who wait are told: the operation goes on with a second call.
            self._undo(mount, operation)
            self.end_share(mount, REVOKE_GRACE)
            return
        if not mount.left_behind and not mount.taking_share:
            self.gone(mount, MountTrigger.NOTHING_LEFT)
        self._end(mount, operation, task)

    def _unmount_ended(self, mount: Mount, task: asyncio.Task[None]) -> None:
        operation = mount.operation
        assert operation is not None
        error = failure_of(task, _interrupted(mount))
        if error is None and mount.taking_share:
            mount.apply(MountTrigger.LET_GO, self.clock())  # `_share_taken` finishes it
        elif error is None or self.vm_gone is not None:
            self.gone(mount, MountTrigger.UNMOUNT_SUCCEEDED)
        else:
            mount.last_error = error
            unchanged = mount.maybe_in_guest and not isinstance(error, OUTCOME_UNKNOWN)
            mount.apply(MountTrigger.UNMOUNT_FAILED if unchanged else MountTrigger.UNMOUNT_UNKNOWN, self.clock())
            if mount.mapped and mount.doomed:
                # It is given back whatever became of it, and the guest, which had its time, is not waited for.
                mount.drop_references()
                self.end_share(mount, 0.0 if mount.maybe_in_guest else REVOKE_AGAIN, ending=loop_is_ending(task))
            if operation.error is None:
                operation.error = error
            else:  # a mount that is being undone: its own error is what its callers are told
                operation.error.add_note(f"and it may still be in the guest, since undoing failed: {error}")
        self._end(mount, operation, task)

    def _end(self, mount: Mount, operation: Operation, task: asyncio.Task[None]) -> None:
        mount.operation = None
        mount.lazy = False
        operation.end()
        unwanted = mount.state is MountLife.MOUNTED and not mount.wanted and operation.error is None
        if unwanted and not loop_is_ending(task):
            self.take_away(mount)
        else:
            self.see_to_later(mount)

    def gone(self, mount: Mount, trigger: MountTrigger) -> None:
        """Note that neither the guest nor the VM has anything of it."""
        mount.apply(trigger, self.clock())
        del self.table[mount.path]
        mount.retry.withdraw()
        self.end_grace(mount)

    # ------------------------------------------------------------------ the share, whatever the guest says

    def end_share(self, mount: Mount, grace: float, *, ending: bool = False) -> None:
        """Have the share of a doomed mount removed in `grace` seconds at most, unless the guest unmounts it before.

        Nothing is begun while the event loop is `ending`.
        """
        if not mount.holds_share or mount.taking_share:
            return
        loop = asyncio.get_running_loop()
        when = loop.time() + (RETRY_FIRST if ending else grace)
        if mount.revocation is None:
            mount.revocation = Operation()
        elif mount.grace is not None:
            if mount.grace.when() <= when:
                return
            mount.grace.cancel()
        mount.grace = loop.call_at(when, self._take_share, mount)

    def end_grace(self, mount: Mount) -> None:
        """Let the share be: the mount is gone in order, or somebody wants it again."""
        if mount.grace is not None:
            mount.grace.cancel()
            mount.grace = None
            revocation, mount.revocation = mount.revocation, None
            assert revocation is not None
            revocation.end()

    def _take_share(self, mount: Mount) -> None:
        assert mount.revocation is not None
        assert mount.doomed, "whoever wants it again ends the grace"
        mount.grace = None
        mount.apply(MountTrigger.REVOKED, self.clock())
        mount.drop_references()
        mount.revocation.begin(self._share_out(mount), partial(self._share_taken, mount))

    async def _share_out(self, mount: Mount) -> None:
        if mount.adding is not None:
            await mount.adding.wait()
        await self._remove_share(mount)

    def _share_taken(self, mount: Mount, task: asyncio.Task[None]) -> None:
        revocation, mount.revocation = mount.revocation, None
        assert revocation is not None
        error = failure_of(task, _interrupted(mount))
        if self.vm_gone is not None:
            error = mount.share_name = None
        if error is not None:
            mount.last_error = revocation.error = error
            if not self.closed:
                self.end_share(mount, REVOKE_AGAIN)
        elif self.table.get(mount.path) is mount and mount.operation is None:
            if mount.left_behind:
                self.see_to_later(mount)
            else:
                self.gone(mount, MountTrigger.NOTHING_LEFT)
        revocation.end()

    async def force(self, mount: Mount, owners: Iterable[Hashable | None], grace: float) -> MountInfo | None:
        """Give references back for good, and return when nothing reaches the directory by the mount, if it goes."""
        for owner in owners:
            if mount.held_by(owner):
                mount.unrefer(owner)
                mount.taken_from[owner] = None
        if not mount.doomed:
            return mount.info()
        mount.lazy = True
        operation = mount.operation or self.take_away(mount)
        if self.table.get(mount.path) is not mount:
            return None
        # Where it is being mounted there is nothing that could be unmounted in order.
        self.end_share(mount, 0.0 if mount.state.busy == "mounting" else grace)
        if mount.revocation is not None:
            await mount.revocation.finish()
        elif operation is not None and not mount.is_revoked:
            try:
                async with asyncio.timeout(grace):
                    await operation.finish()
            except TimeoutError as error:
                msg = f"{mount.path}: the guest has not unmounted it within {grace:g} s; its share is another's"
                raise OutcomeUnknown(msg) from error
        return self.left_of(mount)

    def left_of(self, mount: Mount) -> MountInfo | None:
        """Return what is there of it; None for nothing."""
        return mount.info() if self.table.get(mount.path) is mount else None

    # ------------------------------------------------------------------ what nobody waits for, and the end

    def see_to_later(self, mount: Mount) -> None:
        """As for any entry; and if nobody wants it, its share goes whatever the guest does."""
        if self.table.get(mount.path) is mount:
            super().see_to_later(mount)
            if mount.doomed:
                self.end_share(mount, REVOKE_GRACE)

    def end(self, mount: Mount) -> None:
        """Begin to unmount it, whoever holds it."""
        mount.drop_references()
        self.take_away(mount)

    def why_left(self, mount: Mount) -> BaseException:
        """Return why it could not be taken away, or that it is dead in the guest."""
        return revoked(mount) if mount.is_revoked and not mount.holds_share else super().why_left(mount)

    def release_exited(self, mount: Mount) -> None:
        """Forget it, because the VM has exited."""
        self.end_grace(mount)
        if mount.operation is None:
            self.gone(mount, MountTrigger.VM_EXITED)


def guest_mount(mount: Mount) -> GuestMount:
    """Return the mount as the guest is asked for it."""
    options = mount.options
    return GuestMount(
        mount.asked_name or "",
        mount.path,
        options.read_only,
        options.cache,
        options.msize,
        suid=options.suid,
        dev=options.dev,
        posixacl=options.posixacl,
        events=options.events,
    )


_SHARE_OWNER: Final = "guest mount "


def share_owner(mount_path: str) -> str:
    """Return the owner of a mount's own reference to its share: text, so that it survives in a journal."""
    return _SHARE_OWNER + mount_path


def mount_path_of(owner: object) -> str | None:
    """Return the path of the mount whose own reference that owner has; None for other owners."""
    return owner.removeprefix(_SHARE_OWNER) if isinstance(owner, str) and owner.startswith(_SHARE_OWNER) else None


def _end_adding(mount: Mount) -> None:
    adding, mount.adding = mount.adding, None
    if adding is not None:
        adding.end()


def revoked(mount: Mount) -> MountRevoked:
    """Return the error that says that the guest may have it, dead."""
    words = f": {mount.last_error}" if mount.last_error is not None else ""
    return MountRevoked(
        f"{mount.path}: its share was taken away, and the guest has not unmounted it{words}; the path is free when its "
        f"agent says so"
    )


def _interrupted(mount: Mount) -> str:
    return f"{mount.path}: the call to the guest was interrupted before it answered; mounts() shows what became of it"


def _conflict(mount: Mount, options: MountOptions) -> str:
    if options.replaces(mount.options):
        return (
            f"{mount.path} in the guest is taken by {mount.options}, whose directory on the host was replaced since: "
            f"have those who hold that mount release it, or ask for another path in the guest"
        )
    return (
        f"{mount.path} in the guest is taken by {mount.options}, and {options} was asked for: "
        f"ask for the same, or for another path"
    )
