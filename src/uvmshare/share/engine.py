"""What happens to a share, whoever asked for it: the two tables, and the calls to the VM.

What lives here: `ShareEngine`, a part of the Manager, which changes a share's state; `recovery` does too, before any
call is made of it, and both through the one table (`state`). What must not: what callers may ask for
(`uvmshare.share.manager`), what is in doubt after a restart (`uvmshare.share.recovery`), or I/O.

How it stays simple: all of it runs in one event loop and nothing is decided across an await. A call to the
VM runs in a task of its own, so that no caller's cancellation reaches it, and ends in a callback,
`_add_ended` or `_remove_ended`, which makes the transition and wakes those who wait. Whoever wakes up looks
at the tables again. There are no locks, and shares never wait for each other.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from uvmshare.errors import ComputeSystemGone, OperationDenied, SharesLeft
from uvmshare.heard import logger
from uvmshare.lifecycle.engine import Engine
from uvmshare.lifecycle.operation import OUTCOME_UNKNOWN, Operation, failure_of, loop_is_ending
from uvmshare.share.interfaces import NamedShare, RefusesOptions
from uvmshare.share.ledger import NOT_THERE, Ledger, add_again, add_to
from uvmshare.share.options import AddOptions
from uvmshare.share.share import Share
from uvmshare.share.state import ShareLife, ShareTrigger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine, Hashable

    from uvmshare.share.interfaces import VMPlan9
    from uvmshare.share.journal import Journal

__all__ = ["ShareEngine"]


class ShareEngine(Engine[Share, AddOptions]):
    """The shares of one VM and what is under way for each."""

    is_closed = "this Manager was closed and adds no more shares: make a new one"
    is_gone = "no share can be added any more"
    log = logger("shares")
    error_of_left = SharesLeft

    def __init__(
        self, vm: VMPlan9, journal: Journal | None, clock: Callable[[], float], *, no_writable_file_shares: bool
    ) -> None:
        super().__init__(clock)
        self.vm = vm
        self.next_name = 0
        """Never goes back: a name that was used once may still be mounted in a guest."""
        self.by_options: dict[AddOptions, Share] = {}
        """The share that an add of these options joins: seen PENDING or ADDED, never an orphan."""
        self.any_directory = False
        """Whether the directory of any share was ever known."""
        self.not_ours: set[str] = set()
        """Names of shares that the VM has and that nobody added by this Manager, or one before it."""
        self.ledger = None if journal is None else Ledger(journal)
        self._no_writable_file_shares = no_writable_file_shares
        self._refusing = vm if isinstance(vm, RefusesOptions) else None
        """Asked once: how Python 3.11 looks at a protocol was nearly half of what an add costs."""

    def require_able(self, options: AddOptions) -> None:
        """Refuse what cannot or may not be added. Raises `OperationDenied`."""
        if self._no_writable_file_shares and not options.read_only:
            msg = f"{options.host_path}: this Manager allows no writable shares: pass read_only=True"
            raise OperationDenied(msg)
        if self._refusing is not None:
            self._refusing.require_able(options)

    # ------------------------------------------------------------------ the tables

    def find(self, options: AddOptions) -> Share | None:
        """Return the share that an add of these options joins.

        That is the one of the same directory, and not one of what the path led to before. Of a share of an earlier
        process less may be known: then it is this directory as far as that goes, unless nothing is known of what
        the VM has.
        """
        share = self.by_options.get(options)
        if share is not None:
            return share
        for weaker in options.weaker():
            share = self.by_options.get(weaker)
            if share is not None and (weaker.directory is not None or share.state is ShareLife.PENDING):
                self.identify(share, options.directory)
                return share
        if options.directory is None and self.any_directory:  # of an earlier process: whichever it is by now
            return next((each for each in reversed(self.by_options.values()) if each.options.may_be(options)), None)
        return None

    def identify(self, share: Share, directory: str | None) -> str | None:
        """Take note which directory a share is; return it if that was not known before."""
        if directory is None or directory == share.options.directory:
            return None
        found = self.by_options.get(share.options) is share
        self._forget_options(share)
        share.options = share.options.of_directory(directory)
        self.any_directory = True
        if found:
            self.by_options.setdefault(share.options, share)
        return directory

    def allocate(self, options: AddOptions) -> Share:
        """Return a new share of these options, which has a name and nothing else."""
        if self.ledger is not None:
            self.ledger.allocated(self.next_name)
        share = Share(str(self.next_name), options, self.clock())
        self.next_name += 1
        self.any_directory = self.any_directory or options.directory is not None
        self.by_options[options] = share
        self.table[share.name] = share
        return share

    def drop(self, share: Share) -> None:
        """Forget a PENDING share that nobody adds."""
        share.apply(ShareTrigger.DROPPED, self.clock())
        self.forget(share)

    def disown(self, share: Share, trigger: ShareTrigger) -> None:
        """Note that the VM may have it though nobody is to: it is removed, and no add joins it."""
        share.apply(trigger, self.clock())
        self._forget_options(share)

    def release_exited(self, share: Share) -> None:
        """Note that the VM has exited, and the share with it."""
        if share.operation is None:
            share.apply(ShareTrigger.VM_EXITED, self.clock())
            self.forget(share)

    def forget(self, share: Share) -> None:
        """Strike a share out that is not there, or that is nobody's here."""
        self._forget_options(share)
        del self.table[share.name]
        if self.ledger is not None:
            self.ledger.forgotten(share.name)

    def _forget_options(self, share: Share) -> None:
        """Let the next add of these options start afresh."""
        if self.by_options.get(share.options) is share:
            del self.by_options[share.options]

    # ------------------------------------------------------------------ what a claim needs

    def join(self, options: AddOptions) -> Share:
        """Return the share that an add of these options joins, a new one if there is none."""
        return self.find(options) or self.allocate(options)

    def goes_first(self, share: Share, options: AddOptions) -> Awaitable[None] | None:  # noqa: ARG002  as others need it
        """Return the end of its removal: how that ends is for those who asked for it."""
        if share.state is not ShareLife.REMOVING:
            return None
        assert share.operation is not None, "it is under way"
        return share.operation.wait()

    def let_go(self, share: Share, owner: Hashable | None) -> None:
        """Have it written down that the owner does not hold it any more."""
        if self.ledger is not None:
            self.ledger.holds(share, owner)

    async def end_block(self, share: Share, owner: Hashable) -> None:
        """Release the reference of a block, and remove the share if that was the last one."""
        share.unrefer(owner)
        if share.to_be_taken_away:
            await self.take_away(share).finish()

    def called(self, share: Share) -> str:
        """Return what it is called in the log."""
        return f"share {share.name}"

    def not_yet(self, share: Share) -> str:
        """Return in words that it could not be removed yet."""
        return f"share {share.name} could not be removed yet"

    # ------------------------------------------------------------------ calls to the VM

    def bring(self, share: Share) -> Operation:
        """Begin to add a share, for the first time or again."""
        share.retry.withdraw()
        share.apply(ShareTrigger.ADD_BEGUN, self.clock())
        share.operation = operation = Operation()
        operation.begin(self._adding(share), partial(self._add_ended, share))
        return operation

    def take_away(self, share: Share) -> Operation:
        """Begin to remove a share."""
        share.retry.withdraw()
        if share.state is ShareLife.LOST:
            self.disown(share, ShareTrigger.GIVEN_UP)
        share.operation = operation = Operation()
        self._remove(share, operation)
        return operation

    def _remove(self, share: Share, operation: Operation) -> None:
        share.apply(ShareTrigger.REMOVE_BEGUN, self.clock())
        operation.begin(self._removing(share), partial(self._remove_ended, share))

    def _adding(self, share: Share) -> Coroutine[object, object, None]:
        if self.ledger is not None:
            return self.ledger.add(self.vm, share)
        if share.state is ShareLife.RESTORING:
            return add_again(self.vm, share)
        return add_to(self.vm, share)

    def _removing(self, share: Share) -> Coroutine[object, object, None]:
        if self.ledger is not None:
            return self.ledger.remove(self.vm, share)
        return _call(self.vm.remove_plan9, NamedShare(share.name, share.options))

    def _end(self, share: Share, operation: Operation) -> None:
        share.operation = None
        operation.end()

    def _add_ended(self, share: Share, task: asyncio.Task[None]) -> None:
        operation = share.operation
        assert operation is not None
        error = failure_of(task, _interrupted(share))
        if self.vm_gone is not None and (error is None or isinstance(error, OUTCOME_UNKNOWN)):
            error = self.vm_gone
        operation.error = error
        now = self.clock()
        if error is None:
            share.apply(ShareTrigger.ADD_SUCCEEDED, now)
            share.retry.reset()
            learned = self.identify(share, share.directory)
            if self.ledger is not None:
                self.ledger.added(share, learned)
            self._end(share, operation)
            if not share.wanted:
                self._take_out(share, task)
            return
        share.last_error = error
        share.apply(ShareTrigger.ADD_UNKNOWN if isinstance(error, OUTCOME_UNKNOWN) else ShareTrigger.ADD_FAILED, now)
        if share.state is ShareLife.LOST:
            if isinstance(error, ComputeSystemGone) or self.vm_gone is not None:
                share.apply(ShareTrigger.VM_EXITED, now)
            elif not share.references:
                # It may have come back by an attempt before this one, whatever became of this one.
                share.apply(ShareTrigger.GIVEN_UP, now)
        if share.state is ShareLife.INVALID:
            self._forget_options(share)
            if not loop_is_ending(task):
                # Undone before those who wait are told: the operation goes on with a second call.
                self._remove(share, operation)
                return
        elif share.state is not ShareLife.LOST:
            self.forget(share)
        self._end(share, operation)
        self.see_to_later(share)

    def _remove_ended(self, share: Share, task: asyncio.Task[None]) -> None:
        operation = share.operation
        assert operation is not None
        error = failure_of(task, _interrupted(share))
        now = self.clock()
        if error is None or isinstance(error, NOT_THERE) or self.vm_gone is not None:
            share.apply(ShareTrigger.REMOVE_SUCCEEDED, now)
            self.forget(share)
        else:
            share.last_error = error
            if isinstance(error, OUTCOME_UNKNOWN):
                self.disown(share, ShareTrigger.REMOVE_UNKNOWN)
            else:
                share.apply(ShareTrigger.REMOVE_FAILED, now)
            if operation.error is None:
                operation.error = error
            else:  # an add that is being undone: its own error is what its callers are told
                operation.error.add_note(
                    f"and share {share.name} may still be on the VM, since undoing failed: {error}"
                )
        self._end(share, operation)
        self.see_to_later(share)

    def _take_out(self, share: Share, task: asyncio.Task[None]) -> None:
        """Take out what was added when nobody wanted it any more."""
        if loop_is_ending(task):
            self.see_to_later(share)
        else:
            self.take_away(share)

    # ------------------------------------------------------------------ the end

    def end(self, share: Share) -> None:
        """Drop what has only a name, and begin to remove the rest, whoever holds it."""
        if share.state is ShareLife.PENDING:
            self.drop(share)
            return
        if share.found:  # it was there before the restoring that is being undone, and stays
            self.forget(share)
            return
        for owner in share.drop_references():
            self.let_go(share, owner)
        self.take_away(share)

    async def end_ledger(self) -> None:
        """Have everything written down, and nothing more after it. Raises `JournalError`."""
        if self.ledger is not None:
            await self.ledger.end(self.next_name)


async def _call(method: Callable[[NamedShare], Awaitable[None]], share: NamedShare) -> None:
    """Make the call inside its task, so that whatever it raises, even at once, is the task's outcome."""
    await method(share)


def _interrupted(share: Share) -> str:
    return (
        f"share {share.name}: the call to the VM was interrupted before it answered; shares() shows what became of it"
    )
