"""The Manager: which shares a VM has, and who holds them.

    manager = Manager(vm)
    name = await manager.add_to_vm(AddOptions("/srv/project", read_only=True), owner="build-7")
    ...
    await manager.remove_from_vm(name, owner="build-7")

What lives here: every decision about a share, and the two tables. What must not: I/O of any kind, or
knowledge of how a VM is modified; a VM is anything with `add_plan9` and `remove_plan9`.

How it stays simple: all of it runs in one event loop and nothing is decided across an await. A call to the
VM runs in a task of its own, so that no caller's cancellation reaches it, and ends in a callback,
`_add_ended` or `_remove_ended`, which makes the transition and wakes those who wait. Whoever wakes up looks
at the tables again. There are no locks, and shares never wait for each other.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Self

from uvmshare.errors import (
    ComputeSystemGone,
    ManagerClosed,
    OperationDenied,
    ShareNotFound,
    SharesLeft,
)
from uvmshare.share.interfaces import Plan9Share, TellsExit
from uvmshare.share.operation import OUTCOME_UNKNOWN, Operation, failure_of, loop_is_ending
from uvmshare.share.options import AddOptions
from uvmshare.share.references import BlockOwner
from uvmshare.share.share import Share, ShareInfo
from uvmshare.share.state import ShareState, Trigger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
    from types import TracebackType

    from uvmshare.share.interfaces import VMPlan9

__all__ = ["RETRY_FIRST", "RETRY_LONGEST", "Manager", "ShareInfo"]

RETRY_FIRST = 1.0
"""Seconds before what could not be taken out is tried again: long enough for a restarting file server."""

RETRY_LONGEST = 60.0
"""Seconds between two attempts at most; the wait doubles up to it, so that a VM that stays broken is not
flooded, and one that comes back is clean within a minute."""

_NOT_THERE = (ShareNotFound, ComputeSystemGone)
"""The errors of a removal that say that the share is not on the VM, which is what was asked for."""


class Manager:
    """The Plan 9 shares of one running utility VM.

    Shares with equal `AddOptions` are one share. The first add calls the VM; later ones count a
    reference; the last release takes the share out. References are anonymous and counted, or have an
    `owner`, any hashable value: the same owner holds a share at most once, and a release by an owner that
    does not hold the share changes nothing, so that a retried call never takes somebody else's.

    One event loop, not thread safe: `uvmshare.blocking.Manager` is for threads.

    `vm` is any `VMPlan9`; it should answer in finite time, since its calls are never abandoned.
    `no_writable_file_shares` refuses all options that are not read-only. `clock` gives the seconds since
    the epoch that `ShareInfo.since` shows.
    """

    def __init__(
        self, vm: VMPlan9, *, no_writable_file_shares: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._vm = vm
        self._no_writable_file_shares = no_writable_file_shares
        self._clock = clock
        self._closed = False
        self._vm_gone: ComputeSystemGone | None = None
        self._next_name = 0
        """Never goes back: a name that was used once may still be mounted in a guest."""
        self._by_options: dict[AddOptions, Share] = {}
        """The share that an add of these options joins: PENDING or ADDED, never an orphan."""
        self._by_name: dict[str, Share] = {}
        """Every share that the VM has or may have, and the PENDING ones."""
        if isinstance(vm, TellsExit):
            vm.on_exit(self.vm_exited)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------ what callers ask for

    def resolve_share_name(self, options: AddOptions) -> str:
        """Return the name that the share has or will have, without a call to the VM.

        A share that is not there yet is allocated, PENDING, until somebody adds it, or removes its name.
        When adding it fails, the name is gone and the next call gives another.

        Raises `OperationDenied`, `ManagerClosed`, and `ComputeSystemGone` when the VM has exited.
        """
        self._admit(options)
        share = self._by_options.get(options)
        return (share or self._allocate(options)).name

    async def add_to_vm(self, options: AddOptions, *, owner: Hashable | None = None) -> str:
        """Make sure that the VM has the share, hold a reference to it, and return its name.

        Whoever asks while the share is being added waits for that one call and shares its result. While it
        is being removed, waits for that and starts afresh. Cancelling this call withdraws its own claim and
        nothing else; a share that nobody wants when the VM answers is taken out again.

        Raises what the VM raised, for every caller that waited; then there is no reference and the next
        call starts with a fresh name. When it is unknown whether the VM has the share, it is taken out before
        the error is raised, or kept as an orphan (see `shares`) and retried. Raises `OperationDenied`
        before anything is touched, and `ManagerClosed`.
        """
        hash(owner)  # A TypeError belongs here, not after the VM was changed.
        share = await self._claim(options)
        self._keep(share, owner)
        return share.name

    async def remove_from_vm(self, name: str, *, owner: Hashable | None = None) -> None:
        """Give a reference back; the last one takes the share off the VM.

        Without effect: an unknown name, an owner that does not hold the share, an anonymous release when only
        owners hold it. A PENDING share that nobody adds is dropped. A share that nobody holds any more
        but that could not be taken out yet, is tried again now.

        A VM, or a share, that no longer exists counts as removed. Otherwise raises what the VM raised; the share
        then stays ADDED with its last reference, and calling again tries again. When it is unknown
        whether the VM removed it, it also becomes an orphan: adding the same options starts a fresh share.
        Cancelling this call does not stop the VM's, whose result counts all the same.
        """
        hash(owner)
        share = self._by_name.get(name)
        while share is not None and share.operation is not None:
            await share.operation.wait()
            share = self._by_name.get(name)
        if share is None:
            return
        if share.state is ShareState.PENDING:
            self._drop(share)
            return
        if not share.to_be_taken_out:
            if not share.held_by(owner):
                return
            if share.references > 1 or share.claims:
                share.unrefer(owner)
                return
        await self._start_remove(share).finish()

    async def release_owner(self, owner: Hashable) -> tuple[str, ...]:
        """Give back every reference that `owner` holds, because it is known to be gone, and return the names.

        All are tried, beside each other; then raises `SharesLeft` with those that could not be taken out, which
        keep their last reference, so that calling again tries again. An add of that owner that
        has not returned yet is not its reference yet: end its calls first.
        """
        if owner is None:
            msg = "an anonymous reference has no owner to release it by: give its name to remove_from_vm"
            raise TypeError(msg)
        names = tuple(name for name, share in self._by_name.items() if share.held_by(owner))
        outcomes = await asyncio.gather(
            *(self.remove_from_vm(name, owner=owner) for name in names), return_exceptions=True
        )
        left = {
            name: outcome for name, outcome in zip(names, outcomes, strict=True) if isinstance(outcome, BaseException)
        }
        if left:
            raise SharesLeft(left)
        return names

    @asynccontextmanager
    async def share(self, options: AddOptions) -> AsyncIterator[str]:
        """Hold the share for the length of a block: ``async with manager.share(options) as name:``.

        The reference has an owner of its own and is given back exactly once, however the block ends. Entering
        raises what `add_to_vm` does. When the share cannot be taken out at the end, the block's own
        error is raised with a note of that; without one, the VM's error is. Either way the reference is
        given back and the Manager goes on trying.
        """
        owner = BlockOwner()
        share = await self._claim(options)
        self._keep(share, owner)
        try:
            yield share.name
        except BaseException as error:
            await self._leave(share, owner, error)
            raise
        await self._leave(share, owner, None)

    def shares(self) -> tuple[ShareInfo, ...]:
        """Return a snapshot of every share that the VM has or may have, and the PENDING ones, oldest first."""
        return tuple(share.info() for share in self._by_name.values())

    def vm_exited(self, error: ComputeSystemGone) -> None:
        """Release every share, because the VM has exited and none is there any more.

        A VM that tells its exit (`TellsExit`) calls this itself. No call to the VM is made. A share with a call in
        flight is released when that ends, whatever the answer; those who wait to add it get `ComputeSystemGone`,
        and so does whoever adds a share from now on: a VM that was started again needs a Manager of its own.
        """
        self._vm_gone = error
        for share in tuple(self._by_name.values()):
            self._cancel_retry(share)
            if share.operation is not None:
                continue
            if share.state is ShareState.PENDING:
                self._drop(share)
            else:
                self._removed(share)

    async def aclose(self) -> None:
        """Take everything out, whoever holds it, and refuse new adds from now on.

        Waits for the calls in flight. An add that is in flight is carried out and taken out again; its
        callers get `ManagerClosed`. Raises `SharesLeft` with what could not be taken out; calling again
        tries again. Nothing is retried in the background any more.
        """
        self._closed = True
        tried: set[str] = set()
        while True:
            operations = []
            for share in tuple(self._by_name.values()):
                operation = share.operation
                if operation is None:
                    if share.state is ShareState.PENDING:
                        self._drop(share)
                        continue
                    if share.name in tried:
                        continue
                    tried.add(share.name)
                    share.owners.clear()
                    share.anonymous = 0
                    operation = self._start_remove(share)
                operations.append(operation)
            if not operations:
                break
            for operation in operations:
                await operation.wait()
        left: dict[str, BaseException] = {}
        for share in self._by_name.values():
            assert share.last_error is not None, "what is left was tried, and failed"
            left[share.name] = share.last_error
        if left:
            raise SharesLeft(left)

    # ------------------------------------------------------------------ claims and references

    async def _claim(self, options: AddOptions) -> Share:
        """Return the share, live, with a claim on it that becomes `_keep` or `_withdraw`."""
        while True:
            self._admit(options)
            share = self._by_options.get(options) or self._allocate(options)
            operation = share.operation
            if share.state is ShareState.ADDED:
                if operation is None:
                    share.claims += 1
                    return share
                # It is being removed. How that ends is for those who asked; then look again.
                await operation.wait()
                continue
            if operation is None:
                operation = self._start_add(share)
            share.claims += 1
            try:
                await operation.finish()
                self._admit(options)
            except BaseException:
                self._withdraw(share)
                raise
            return share

    def _keep(self, share: Share, owner: Hashable | None) -> None:
        """Turn a claim into a reference."""
        share.claims -= 1
        share.refer(owner)

    def _withdraw(self, share: Share) -> None:
        """Give a claim up. If nobody else wants the share, it is taken out."""
        share.claims -= 1
        # Later, not now: this caller is being cancelled, perhaps with its whole event loop, which
        # would not wait for a task started here.
        self._retry_later(share)

    async def _leave(self, share: Share, owner: BlockOwner, error: BaseException | None) -> None:
        """Give back the reference of a block that ended in `error`.

        Nobody else knows its owner, so the reference goes whatever the VM answers.
        """
        if not share.held_by(owner):  # closed meanwhile
            return
        share.unrefer(owner)
        if not share.to_be_taken_out:
            return
        try:
            await self._start_remove(share).finish()
        except Exception as release_error:
            if error is None:
                raise
            error.add_note(f"and share {share.name} could not be taken out yet: {release_error}")

    # ------------------------------------------------------------------ the tables

    def _admit(self, options: AddOptions) -> None:
        """Refuse what cannot or may not be added."""
        if self._closed:
            msg = "this Manager was closed and adds no more shares: make a new one"
            raise ManagerClosed(msg)
        if self._vm_gone is not None:
            msg = f"no share can be added any more: {self._vm_gone}"
            raise ComputeSystemGone(msg) from self._vm_gone
        if not isinstance(options, AddOptions):
            msg = f"expected AddOptions, got {options!r}"
            raise TypeError(msg)
        if self._no_writable_file_shares and not options.read_only:
            msg = f"{options.host_path}: this Manager allows no writable shares: pass read_only=True"
            raise OperationDenied(msg)

    def _allocate(self, options: AddOptions) -> Share:
        share = Share(str(self._next_name), options, self._clock())
        self._next_name += 1
        self._by_options[options] = share
        self._by_name[share.name] = share
        return share

    def _drop(self, share: Share) -> None:
        """Forget a PENDING share that nobody adds."""
        share.apply(Trigger.DROPPED, self._clock())
        self._forget(share)

    def _removed(self, share: Share) -> None:
        """Note that the VM has it no more."""
        share.apply(Trigger.REMOVE_SUCCEEDED, self._clock())
        share.orphan = False
        self._forget(share)

    def _forget(self, share: Share) -> None:
        self._forget_options(share)
        del self._by_name[share.name]

    def _forget_options(self, share: Share) -> None:
        """Let the next add of these options start afresh."""
        if self._by_options.get(share.options) is share:
            del self._by_options[share.options]

    # ------------------------------------------------------------------ calls to the VM

    def _start_add(self, share: Share) -> Operation:
        share.operation = operation = Operation()
        self._call(operation, self._vm.add_plan9, share, self._add_ended)
        return operation

    def _start_remove(self, share: Share) -> Operation:
        self._cancel_retry(share)
        share.operation = operation = Operation()
        self._call(operation, self._vm.remove_plan9, share, self._remove_ended)
        return operation

    def _call(
        self,
        operation: Operation,
        method: Callable[[Plan9Share], Awaitable[None]],
        share: Share,
        ended: Callable[[Share, asyncio.Task[None]], None],
    ) -> None:
        task = asyncio.get_running_loop().create_task(_call(method, Plan9Share(share.name, share.options)))
        task.add_done_callback(partial(ended, share))
        operation.task = task

    def _end(self, share: Share, operation: Operation) -> None:
        share.operation = None
        operation.end()

    def _add_ended(self, share: Share, task: asyncio.Task[None]) -> None:
        operation = share.operation
        assert operation is not None
        error = failure_of(task, _interrupted(share))
        if self._vm_gone is not None and (error is None or isinstance(error, OUTCOME_UNKNOWN)):
            error = self._vm_gone
        operation.error = error
        now = self._clock()
        if error is None:
            share.apply(Trigger.ADD_SUCCEEDED, now)
            self._end(share, operation)
            if not share.wanted:
                self._take_out(share, task)
            return
        share.last_error = error
        if not isinstance(error, OUTCOME_UNKNOWN):
            share.apply(Trigger.ADD_FAILED, now)
            self._forget(share)
            self._end(share, operation)
            return
        share.apply(Trigger.ADD_UNKNOWN, now)
        share.orphan = True
        self._forget_options(share)
        if loop_is_ending(task):
            self._end(share, operation)
            self._retry_later(share)
            return
        # Undone before those who wait are told: the operation goes on with a second call.
        self._call(operation, self._vm.remove_plan9, share, self._remove_ended)

    def _remove_ended(self, share: Share, task: asyncio.Task[None]) -> None:
        operation = share.operation
        assert operation is not None
        error = failure_of(task, _interrupted(share))
        now = self._clock()
        if error is None or isinstance(error, _NOT_THERE) or self._vm_gone is not None:
            self._removed(share)
        else:
            share.last_error = error
            if isinstance(error, OUTCOME_UNKNOWN):
                share.apply(Trigger.REMOVE_UNKNOWN, now)
                share.orphan = True
                self._forget_options(share)
            else:
                share.apply(Trigger.REMOVE_FAILED, now)
            if operation.error is None:
                operation.error = error
            else:  # an add that is being undone: its own error is what its callers are told
                operation.error.add_note(
                    f"and share {share.name} may still be on the VM, since undoing failed: {error}"
                )
        self._end(share, operation)
        self._retry_later(share)

    # ------------------------------------------------------------------ what nobody waits for

    def _take_out(self, share: Share, task: asyncio.Task[None]) -> None:
        """Take out what was added when nobody wanted it any more."""
        if loop_is_ending(task):
            self._retry_later(share)
        else:
            self._start_remove(share)

    def _retry_later(self, share: Share) -> None:
        """If the share is to be taken out, see to it after a while, and after a longer one each time.

        A timer rather than a task that sleeps: nothing is left to cancel when the event loop ends.
        """
        if self._closed or share.retry is not None or not share.to_be_taken_out:
            return
        share.retry_delay = min(2 * share.retry_delay, RETRY_LONGEST) or RETRY_FIRST
        share.retry = asyncio.get_running_loop().call_later(share.retry_delay, self._retry, share)

    def _retry(self, share: Share) -> None:
        share.retry = None
        if share.to_be_taken_out:
            self._start_remove(share)
        else:  # somebody wants it again
            share.retry_delay = 0.0

    def _cancel_retry(self, share: Share) -> None:
        if share.retry is not None:
            share.retry.cancel()
            share.retry = None


async def _call(method: Callable[[Plan9Share], Awaitable[None]], share: Plan9Share) -> None:
    """Make the call inside its task, so that whatever it raises, even at once, is the task's outcome."""
    await method(share)


def _interrupted(share: Share) -> str:
    return (
        f"share {share.name}: the call to the VM was interrupted before it answered; shares() shows what became of it"
    )
