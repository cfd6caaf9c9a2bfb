"""What happens to a mount, whoever asked for it: the one table, the calls to the guest, and what nobody waits for.

What lives here: `Engine`, a part of the MountManager, which alone changes a mount's state. What must not: what callers
may ask for (`uvmshare.mounts.manager`), or I/O.

A guest never has the last word. What nobody holds any more is unmounted in order if the guest does that in time. If
it refuses, or `REVOKE_GRACE` seconds pass, the host takes out the share that the mount holds, whatever call to the
guest is still under way. The mount is REVOKED then: dead, if the guest still has it, and its path is taken until the
agent says that it is gone. Nobody joins a REVOKED mount, and nothing mounts it again.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from uvmshare.errors import ComputeSystemGone, MountNotFound, MountRevoked
from uvmshare.heard import logger
from uvmshare.mounts.interfaces import GuestMount
from uvmshare.mounts.state import MountLife, Trigger
from uvmshare.share.operation import OUTCOME_UNKNOWN, Operation, failure_of, loop_is_ending
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.mounts.interfaces import GuestAgent
    from uvmshare.mounts.mount import Mount, MountInfo
    from uvmshare.share.manager import Manager

__all__ = ["RETRY_FIRST", "REVOKE_GRACE", "Engine", "guest_mount", "mount_path_of", "revoked", "share_owner"]

_log: Final = logger("mounts")

RETRY_FIRST: Final = 0.5
"""Seconds before what could not be taken away, or mounted again, is tried again: a guest that is started again
needs about that long until its agent answers."""

REVOKE_GRACE: Final = 5.0
"""Seconds that a guest has to unmount in order what nobody holds any more, before its share is taken out: as long as a
connection may say nothing before its agent is asked for a word (`uvmshare.mounts.agent_client`)."""

REVOKE_AGAIN: Final = 5.0
"""Seconds before a share that could not be taken out is tried again."""


class Engine:
    """The mounts of one guest and what is under way for each."""

    def __init__(self, agent: GuestAgent, shares: Manager | None, clock: Callable[[], float]) -> None:
        self.agent = agent
        self.shares = shares
        self.clock = clock
        self.closed = False
        self.vm_gone: ComputeSystemGone | None = None
        self.by_path: dict[str, Mount] = {}
        """Every mount that the guest has, may have, or should have."""
        self.on_change: list[Callable[[MountInfo, Literal["lost", "remounted"]], None]] = []

    def tell(self, mount: Mount, what: Literal["lost", "remounted"]) -> None:
        """Tell those who asked for it what the guest did with a mount that somebody holds."""
        for callback in self.on_change:  # what it raises is the loop's to tell
            asyncio.get_running_loop().call_soon(callback, mount.info(), what)

    # ------------------------------------------------------------------ the calls

    async def _mount_in_guest(self, mount: Mount) -> None:
        options = mount.options
        if isinstance(options.share, AddOptions):
            assert self.shares is not None, "_admit saw to it"
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
            mount.chosen = await self.agent.add_mapped_directory(guest_mount(mount))
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
            assert self.shares is not None, "_admit saw to it"
            await self.shares.remove(name, owner=share_owner(mount.path))
            if mount.share_name == name:
                mount.share_name = None

    def start_mount(self, mount: Mount) -> Operation:
        """Begin to mount it, for the first time or again."""
        mount.cancel_retry()
        mount.apply(Trigger.MOUNT_BEGUN, self.clock())
        mount.operation = operation = Operation()
        if mount.mapped:  # from now on, not from when the call begins to run
            mount.adding = Operation()
        operation.begin(self._mount_in_guest(mount), partial(self._mount_ended, mount))
        return operation

    def start_unmount(self, mount: Mount) -> Operation | None:
        """Begin to take it away; None when there was nothing to do, and it is gone."""
        mount.cancel_retry()
        if mount.state is MountLife.LOST:
            mount.apply(Trigger.GIVEN_UP, self.clock())
        if not mount.left_behind:
            self.gone(mount, Trigger.NOTHING_LEFT)
            return None
        mount.operation = operation = Operation()
        self._undo(mount, operation)
        if mount.doomed:
            self.end_share(mount, REVOKE_GRACE)
        return operation

    def _undo(self, mount: Mount, operation: Operation) -> None:
        mount.apply(Trigger.UNMOUNT_BEGUN, self.clock())
        operation.begin(self._unmount_in_guest(mount), partial(self._unmount_ended, mount))

    async def take_away(self, mount: Mount) -> None:
        """Take it away and raise why that failed, if it did."""
        operation = self.start_unmount(mount)
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
            mount.apply(Trigger.MOUNT_SUCCEEDED, now)
            if again:
                self.tell(mount, "remounted")
            mount.retry_delay = 0.0
            self._end(mount, operation, task)
            return
        mount.last_error = error
        unknown = isinstance(error, OUTCOME_UNKNOWN)
        mount.apply(Trigger.MOUNT_UNKNOWN if unknown else Trigger.MOUNT_FAILED, now)
        if mount.state is MountLife.LOST:
            if mount.references and self.vm_gone is None:
                self._end(mount, operation, task)
                return
            mount.apply(Trigger.GIVEN_UP, now)
        if mount.left_behind and not loop_is_ending(task):
            # Undone before those who wait are told: the operation goes on with a second call.
            self._undo(mount, operation)
            self.end_share(mount, REVOKE_GRACE)
            return
        if not mount.left_behind and not mount.taking_share:
            self.gone(mount, Trigger.NOTHING_LEFT)
        self._end(mount, operation, task)

    def _unmount_ended(self, mount: Mount, task: asyncio.Task[None]) -> None:
        operation = mount.operation
        assert operation is not None
        error = failure_of(task, _interrupted(mount))
        if error is None and mount.taking_share:
            mount.apply(Trigger.LET_GO, self.clock())  # `_share_taken` finishes it
        elif error is None or self.vm_gone is not None:
            self.gone(mount, Trigger.UNMOUNT_SUCCEEDED)
        else:
            mount.last_error = error
            unchanged = mount.maybe_in_guest and not isinstance(error, OUTCOME_UNKNOWN)
            mount.apply(Trigger.UNMOUNT_FAILED if unchanged else Trigger.UNMOUNT_UNKNOWN, self.clock())
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
            self.start_unmount(mount)
        else:
            self.retry_later(mount)
        if self.by_path.get(mount.path) is mount and mount.doomed:
            self.end_share(mount, REVOKE_GRACE)

    def gone(self, mount: Mount, trigger: Trigger) -> None:
        """Note that neither the guest nor the VM has anything of it."""
        mount.apply(trigger, self.clock())
        del self.by_path[mount.path]
        mount.cancel_retry()
        self.end_grace(mount)

    # ------------------------------------------------------------------ the share, whatever the guest says

    def end_share(self, mount: Mount, grace: float, *, ending: bool = False) -> None:
        """Have the share of a doomed mount taken out in `grace` seconds at most, unless the guest unmounts it before.

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
        mount.apply(Trigger.REVOKED, self.clock())
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
        elif self.by_path.get(mount.path) is mount and mount.operation is None:
            if mount.left_behind:
                self.retry_later(mount)
            else:
                self.gone(mount, Trigger.NOTHING_LEFT)
        revocation.end()

    # ------------------------------------------------------------------ what nobody waits for

    def see_to(self, mount: Mount) -> None:
        """Do now what is to be done, if there is anything."""
        if mount.to_be_mounted and not self.closed:
            self.start_mount(mount)
        elif mount.to_be_taken_away:
            self.start_unmount(mount)

    def retry_later(self, mount: Mount) -> None:
        """If it is to be taken away, or mounted, see to it after a while, and after a longer one each time."""
        if self.closed or mount.retry is not None or self.by_path.get(mount.path) is not mount:
            return
        if mount.to_be_taken_away or mount.to_be_mounted:
            mount.retry_later(RETRY_FIRST, partial(self._retry, mount))
            _log.info("mount %s is seen to again later: %s", mount.path, mount.last_error or "nobody wants it")

    def _retry(self, mount: Mount) -> None:
        mount.retry = None
        if mount.to_be_taken_away or mount.to_be_mounted:
            self.see_to(mount)
        else:  # somebody wants it again
            mount.retry_delay = 0.0


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
