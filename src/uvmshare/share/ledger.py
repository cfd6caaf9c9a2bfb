"""What the Manager writes down, when, and what it waits for: intents before their calls, outcomes after them.

What lives here: `Ledger`, between a Manager and its `Journal`: the records that are not on the disk yet, in their
order, and the two calls to the VM with what is written around them. What must not: I/O, or a decision about a share.

The order that everything rests on: the intent is on the disk, then the VM is called, then the outcome is on the
disk, then whoever asked is told. What cannot be written down:

- *that a share is to be added*: the call is not made. Whoever asked gets the `JournalError`;
- *that a share is to be removed*: the call is made all the same if the VM can tell which shares it has (`ListsShares`),
  since a guest that fills the disk must not keep its directories. If the process dies before there is room again,
  `recover` sees that the VM does not have the share, and adds it again for those who held it: no one was told that the
  end of it was safe. With a VM that cannot tell, a share would be believed there that is not: the call is not made;
- *that a share was added*: whoever asked gets the error and no reference, and the share is removed again;
- *that a share was removed*: it stays visible as an orphan, `OutcomeNotWritten`, and is removed again later, which
  does nothing but write that down.

Records that could not be written wait in line, and each retry writes all of them. Until one succeeds, adds are refused,
so that the line does not grow.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from uvmshare import arguments
from uvmshare.errors import (
    ComputeSystemGone,
    InvalidOptions,
    JournalError,
    OutcomeNotWritten,
    ShareExists,
    ShareNotFound,
)
from uvmshare.lifecycle.entry import BlockOwner
from uvmshare.lifecycle.operation import OUTCOME_UNKNOWN, Operation
from uvmshare.lifecycle.retry import Retry
from uvmshare.share.interfaces import ListsShares, NamedShare
from uvmshare.share.journal import (
    AnonymousReferences,
    Begun,
    Changed,
    Forgotten,
    NamesReserved,
    Referred,
    Unreferred,
)
from uvmshare.share.share import RETRY_FIRST
from uvmshare.share.state import TRANSITIONS, ShareLife, ShareTrigger

if TYPE_CHECKING:
    from collections.abc import Hashable

    from uvmshare.share.interfaces import VMPlan9
    from uvmshare.share.journal import Journal, JournalState, Record
    from uvmshare.share.options import AddOptions
    from uvmshare.share.share import Share

__all__ = ["NOT_THERE", "Ledger"]

NOT_THERE: Final = (ShareNotFound, ComputeSystemGone)
"""The errors of a removal that say that the share is not on the VM, which is what was asked for."""

_NAMES_AHEAD: Final = 64
"""How many names are reserved at a time. A name that `resolve_share_name` tells cannot wait for the disk, so it is one
of those; after a crash the rest of them is skipped."""


class Ledger:
    """What one Manager writes down. Everything happens in its event loop."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._line: list[Record] = []
        """What is not known to be on the disk, in order."""
        self._writing: Operation | None = None
        """The append in flight; it has the first `_written` records of the line."""
        self._written = 0
        self._next: Operation | None = None
        """The append that comes after that one, once anybody wants it."""
        self._task: asyncio.Task[None] | None = None
        """Appends, while there is something to append."""
        self._interrupted: JournalError | None = None
        """Why nothing is appended any more; None as long as something is."""
        self._failed: JournalError | None = None
        """Why the last append failed; None when it did not."""
        self._retry = Retry(RETRY_FIRST)
        self._ended = False
        self._known: set[str] = set()
        """The names that the journal has when all of the line is written."""
        self._confirming: Counter[tuple[str, Hashable]] = Counter()
        """By name and owner (None: anonymous): adds that wait for their reference to be on the disk."""
        self._names_reserved = 0
        """Names below are reserved when all of the line is written."""
        self._names_safe = 0
        """Names below are reserved, on the disk."""

    # ------------------------------------------------------------------ the line

    def note(self, *records: Record) -> None:
        """Put records in line. They are written in this turn of the loop, with whatever else comes in it."""
        self._line += records
        self._soon()

    async def flush(self) -> None:
        """Return when everything that is in line now is on the disk. Raises `JournalError` when an attempt failed."""
        if not self._line:
            return
        operation = self._writing
        if operation is None or len(self._line) > self._written:
            operation = self._soon()
        await operation.finish()

    async def write(self, *records: Record) -> None:
        """Put records in line and return when they are on the disk. Raises `JournalError`; they stay in line then."""
        self.note(*records)
        await self.flush()

    async def ready(self) -> None:
        """Raise `JournalError` when the last append failed and one more attempt fails too."""
        if self._failed is not None:
            await self.flush()

    async def end(self, next_name: int) -> None:
        """Write down what is in line, and that no name beyond those given was told; try nothing by itself any more.

        Raises `JournalError`; then it may be called again.
        """
        if not self._ended:
            self._ended = True
            self._retry.withdraw()
            self.note(NamesReserved(next_name))
        # More than once, since those who wake up with this one may have given something up.
        while self._line:
            await self.flush()

    def _soon(self) -> Operation:
        if self._interrupted is not None:
            ended = Operation()
            ended.error = self._interrupted
            ended.end()
            return ended
        if self._next is None:
            self._next = Operation()
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._append_all())
            self._task.add_done_callback(self._appended_all)
        return self._next

    async def _append_all(self) -> None:
        """Append what is in line, until there is nothing that anybody wants there."""
        while self._next is not None:
            # What the same turn wakes goes to the disk together: the adds of 50 callers took 6 appends, and take 2.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            operation = self._writing = self._next
            self._next = None
            self._written = len(self._line)
            try:
                await self._journal.append(tuple(self._line))
            except Exception as error:  # noqa: BLE001  raised in those who wait for it
                operation.error = self._failed = _journal_error(error)
                self._write_later()
            else:
                self._failed = None
                self._retry.reset()
                self._safe(self._line[: self._written])
                del self._line[: self._written]
            self._writing = None
            operation.end()

    def _appended_all(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled() or task.exception() is not None:
            # Only an event loop that ends does that, and in one nothing may be started any more.
            self._interrupted = self._failed = JournalError("writing the journal was interrupted: its event loop ended")
            for operation in (self._writing, self._next):
                if operation is not None:
                    operation.error = self._interrupted
                    operation.end()
            self._writing = self._next = None
        elif self._next is not None:
            self._soon()

    def _safe(self, records: list[Record]) -> None:
        for record in records:
            if isinstance(record, NamesReserved):
                self._names_safe = record.below

    def _write_later(self) -> None:
        if not self._ended:
            self._retry.later(self._try_again)

    def _try_again(self) -> None:
        """Write what is in line by now."""
        if self._line:
            self._soon()

    # ------------------------------------------------------------------ calls to the VM

    async def add(self, vm: VMPlan9, share: Share) -> None:
        """Add the share, with its intent written before and a failure after; `added` is for success.

        Raises what `VMPlan9` says, and `JournalError` when the VM was not asked.
        """
        await self.ready()  # or each attempt for a share that the VM lost would leave one more in line
        self._known.add(share.name)
        await self.write(Begun(share.name, share.state, share.options))
        if share.state is ShareLife.RESTORING:
            await add_again(vm, share)  # until it succeeds, it is one that is going to be added
        else:
            await self._add(vm, share)

    def added(self, share: Share, learned: str | None) -> None:
        """Take note that the VM has the share, and which directory it is if only the VM could tell.

        It goes to the disk with the references of those who asked for it.
        """
        self.note(Changed(share.name, share.state, learned))

    async def _add(self, vm: VMPlan9, share: Share) -> None:
        try:
            await add_to(vm, share)
        except OUTCOME_UNKNOWN:
            self._in_doubt(share, ShareTrigger.ADD_UNKNOWN)
            raise
        except Exception as error:
            self._known.discard(share.name)
            await self._write_after(error, Forgotten(share.name))
            raise

    async def remove(self, vm: VMPlan9, share: Share) -> None:
        """Remove the share, with its intent written before and its outcome after. Raises what `VMPlan9` says.

        Raises `JournalError` when the intent cannot be written and the VM could not tell afterwards what it has.
        """
        intended = True
        try:
            await self._intend_removal(share)
        except JournalError:
            if self._interrupted is not None or not isinstance(vm, ListsShares):
                raise
            intended = False
        try:
            await vm.remove_plan9(NamedShare(share.name, share.options))
        except NOT_THERE:
            pass
        except OUTCOME_UNKNOWN:
            if intended or not share.state.orphan:
                self._in_doubt(share, ShareTrigger.REMOVE_UNKNOWN)
            raise
        except Exception as error:
            if intended:
                await self._write_after(error, _as_before(share))
            raise
        self.forgotten(share.name)
        try:
            await self.flush()
        except JournalError as error:
            msg = f"share {share.name} is off the VM, and that could not be written down yet: {error}"
            raise OutcomeNotWritten(msg) from error

    async def _intend_removal(self, share: Share) -> None:
        """Write down that the VM is about to be asked. Nothing of it stays in line when this raises `JournalError`."""
        await self.ready()
        try:
            await self.write(Changed(share.name, share.state))
        except JournalError:
            self.note(_as_before(share))
            raise

    def _in_doubt(self, share: Share, trigger: ShareTrigger) -> None:
        task = asyncio.current_task()
        if task is None or not task.cancelling():  # by an event loop that ends, where nothing may be started
            self.note(Changed(share.name, TRANSITIONS.following(share.state, trigger)))

    async def _write_after(self, error: Exception, record: Record) -> None:
        """Write the outcome of a call that failed, before its error is raised."""
        try:
            await self.write(record)
        except JournalError as journal_error:
            error.add_note(f"and that could not be written down yet: {journal_error}")

    # ------------------------------------------------------------------ names

    def allocated(self, number: int) -> None:
        """Take note of the highest name that is given to a share, so that names stay reserved ahead of it."""
        if number + _NAMES_AHEAD // 2 >= self._names_reserved:
            self._names_reserved = number + _NAMES_AHEAD
            self._line.append(NamesReserved(self._names_reserved))  # what it is for follows in this turn

    def resolved(self, share: Share, *, new: bool) -> None:
        """Write down a name that is about to be told without waiting. Raises `JournalError` when it cannot be told."""
        if int(share.name) >= self._names_safe:
            self._soon()
            msg = f"no name is reserved for {share.options.host_path} yet: let the event loop go on, and ask again"
            raise self._failed or JournalError(msg)
        if new:
            self.named(share)

    def named(self, share: Share) -> None:
        """Take note of a share that has nothing but a name."""
        self._known.add(share.name)
        self.note(Begun(share.name, share.state, share.options))

    def not_ours(self, name: str, options: AddOptions) -> None:
        """Take note of a share that is left alone."""
        if name not in self._known:
            self._known.add(name)
            self.note(Begun(name, ShareLife.NOT_OURS, options))

    def forgotten(self, name: str) -> None:
        """Take note that a share is not there, unless that is written already."""
        if name in self._known:
            self._known.discard(name)
            self.note(Forgotten(name))

    async def begin(self) -> JournalState:
        """Read what is written down, and reserve names. Raises `JournalError`."""
        state = await self._journal.load()
        self._known = set(state.shares)
        self._names_reserved = state.next_name + _NAMES_AHEAD
        await self.write(NamesReserved(self._names_reserved))
        return state

    # ------------------------------------------------------------------ references

    def check(self, owner: Hashable | None) -> None:
        """Refuse an owner that cannot be written down. Raises TypeError or `InvalidOptions`."""
        check_owner(owner)

    async def confirm(self, share: Share, owner: Hashable | None) -> None:
        """Return when a crash does not lose the reference that this owner is about to be given.

        `kept` or `given_up` must follow. Raises `JournalError`, or is cancelled; that is `given_up` then.
        """
        if isinstance(owner, BlockOwner):
            await self.flush()  # it dies with the process, and so does what only it holds
            return
        before = self._recorded(share, owner)
        self._confirming[share.name, owner] += 1
        try:
            if self._recorded(share, owner) != before:
                self._note_reference(share, owner)
            await self.flush()
        except BaseException:
            self.given_up(share, owner)
            raise

    def kept(self, share: Share, owner: Hashable | None) -> None:
        """Take note that what was confirmed is a reference of the share now."""
        self._confirmed(share, owner)

    def given_up(self, share: Share, owner: Hashable | None) -> None:
        """Take note that what was confirmed, or was about to be, is not wanted any more."""
        if not isinstance(owner, BlockOwner):
            before = self._recorded(share, owner)
            self._confirmed(share, owner)
            if self._recorded(share, owner) != before:
                self._note_reference(share, owner)

    def holds(self, share: Share, owner: Hashable | None) -> None:
        """Take note of what the owner holds of the share now."""
        if not isinstance(owner, BlockOwner):
            self._note_reference(share, owner)

    def _confirmed(self, share: Share, owner: Hashable | None) -> None:
        key = (share.name, owner)
        if self._confirming[key] > 1:
            self._confirming[key] -= 1
        else:
            del self._confirming[key]

    def _recorded(self, share: Share, owner: Hashable | None) -> int:
        """Return what the journal is to say: how many are anonymous, or whether the owner holds the share."""
        confirming = self._confirming.get((share.name, owner), 0)
        if owner is None:
            return share.anonymous + confirming
        return int(owner in share.owners or confirming > 0)

    def _note_reference(self, share: Share, owner: Hashable | None) -> None:
        count = self._recorded(share, owner)
        if owner is None:
            self.note(AnonymousReferences(share.name, count))
        else:
            assert isinstance(owner, str), "checked before anything was touched"
            self.note(Referred(share.name, owner) if count else Unreferred(share.name, owner))


async def add_to(vm: VMPlan9, share: Share) -> None:
    """Have the VM add the share, and keep which directory it told, or that it had the share before."""
    try:
        share.directory = await vm.add_plan9(NamedShare(share.name, share.options))
    except ShareExists:
        if not share.believed:
            raise
        share.found = True


async def add_again(vm: VMPlan9, share: Share) -> None:
    """Add a share that the VM lost, or may have lost, under the name that it had. In the end it is there once.

    What an attempt without an answer has brought back stays, since a guest may have mounted it by now (`believed`).
    Anything else that the VM has under the name goes first.
    """
    named = NamedShare(share.name, share.options)
    if not share.believed:
        with suppress(ShareNotFound):
            await vm.remove_plan9(named)
    try:
        share.directory = await vm.add_plan9(named)
    except ShareExists:
        if not share.believed:
            raise
    except (*OUTCOME_UNKNOWN, asyncio.CancelledError):
        share.believed = True
        raise
    share.believed = False


def check_owner(owner: Hashable | None) -> None:
    """Refuse an owner that cannot be written down, before anything is touched. Raises `InvalidOptions`."""
    if owner is None or isinstance(owner, BlockOwner):
        return
    if not isinstance(owner, str):
        arguments.refuse_type("owner", owner, "a str: a journal writes down nothing else")
    try:
        owner.encode()
    except UnicodeEncodeError as error:
        msg = f"owner {owner!r} is no Unicode text, and cannot be written down: give another str"
        raise InvalidOptions(msg) from error


def _as_before(share: Share) -> Record:
    """Return what the journal said before a removal was begun."""
    return Changed(share.name, TRANSITIONS.following(share.state, ShareTrigger.REMOVE_FAILED))


def _journal_error(error: Exception) -> JournalError:
    """Return why an append failed, as the error that a Manager's callers know."""
    if isinstance(error, JournalError):
        return error
    wrapped = JournalError(f"writing the journal failed: {error!r}")
    wrapped.__cause__ = error
    return wrapped
