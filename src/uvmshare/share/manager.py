"""The Manager: which shares a VM has, and who holds them.

    manager = Manager(vm)
    name = await manager.add("/srv/project", read_only=True, owner="build-7")
    ...
    await manager.remove(name, owner="build-7")

With a journal, what it had is there again in the next process:

    async with Manager(vm, journal=SqliteJournal("/var/lib/vms/journal.db").for_vm("vm1")) as manager:
        ...

What lives here: what callers may ask for. What must not: I/O of any kind, or knowledge of how a VM is modified; a VM is
anything with `add_plan9` and `remove_plan9`. `uvmshare.lifecycle.claims` keeps who wants a share, and
`uvmshare.share.engine` decides what then happens to it.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Self

from uvmshare import arguments
from uvmshare.errors import ComputeSystemGone, JournalError, ManagerClosed, SharesLeft, WrongType
from uvmshare.lifecycle.claims import Claims
from uvmshare.lifecycle.compare_schedule import CompareSchedule
from uvmshare.lifecycle.operation import Operation
from uvmshare.lifecycle.retry import RETRY_LONGEST
from uvmshare.share import recovery, save_restore
from uvmshare.share.engine import ShareEngine
from uvmshare.share.interfaces import TellsExit, TellsTakeover
from uvmshare.share.options import AddOptions, options_of
from uvmshare.share.share import RETRY_FIRST, ShareInfo
from uvmshare.share.state import ShareLife

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable
    from types import TracebackType
    from typing import Unpack

    from uvmshare.share.interfaces import VMPlan9
    from uvmshare.share.journal import Journal
    from uvmshare.share.options import HostPath, ShareKeywords
    from uvmshare.share.recovery import RecoveryReport

__all__ = ["RETRY_FIRST", "RETRY_LONGEST", "Manager", "ShareInfo"]


class Manager:
    """The Plan 9 shares of one running utility VM.

    Callers pass `AddOptions`, or a path with the keywords of `AddOptions`; the path is then looked at immediately, in
    the event loop. Equal `AddOptions` are one share. A directory that replaced another one at its path is not equal to
    it: these are two shares, and the holders of the first keep it. The first add calls the VM, later ones count a
    reference, and the last release removes the share. References are anonymous and counted, or have an `owner`, which
    is any hashable value. An owner holds a share at most once. A release by an owner that does not hold the share
    changes nothing, so a retried release never takes another's reference.

    It belongs to one event loop and is not thread safe: `uvmshare.blocking.Manager` is for threads.

    `vm` is any `VMPlan9`. It should answer in finite time, since its calls are never abandoned. With a `journal` the
    shares outlive this process (`uvmshare.share.journal`). Owners must then be strings, and calls raise `JournalError`
    when the journal cannot be written. `no_writable_file_shares` refuses all options that are not read-only. `clock`
    gives the seconds since the epoch that `ShareInfo.since` shows.

    Raises `WrongType` when `vm` is no `VMPlan9`. The `vm` need not be started yet: nothing is asked of it before the
    first call.
    """

    def __init__(
        self,
        vm: VMPlan9,
        *,
        journal: Journal | None = None,
        no_writable_file_shares: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        require_vm(vm)
        require_settings(journal, no_writable_file_shares=no_writable_file_shares, clock=clock)
        self._engine = ShareEngine(vm, journal, clock, no_writable_file_shares=no_writable_file_shares)
        self.claims = Claims(self._engine, self._engine.ledger, self._ready_to_write)
        """For `uvmshare.blocking`, whose callers wait in another thread; not for callers of this Manager."""
        self._detached = False
        self._recovered = journal is None
        """Whether the tables hold what the journal says."""
        self._recovering: Operation | None = None
        """The reading of the journal, for all who wait for it."""
        self._comparing: Operation | None = None
        """A call of `recover` until its report is there; the next one waits for it."""
        self._on_settled: list[Callable[[RecoveryReport | Exception], None]] = []
        self._comparisons = CompareSchedule(self._recover_lost, self._may_have_lost, self._settled, first=RETRY_FIRST)
        """What a takeover sets off."""
        self._unsettled: str | None = None
        """Why that could not be done, as it was told the last time; None when it was."""
        if isinstance(vm, TellsExit):
            vm.on_exit(self.vm_exited)
        if isinstance(vm, TellsTakeover):
            vm.on_takeover(lambda _: self._comparisons.ask())

    def __repr__(self) -> str:
        if self._detached:
            state = "detached"
        elif self._engine.vm_gone is not None:
            state = str(self._engine.vm_gone)
        else:
            state = "closed" if self._engine.closed else f"{len(self._engine.table)} shares"
        return f"<Manager of {self._engine.vm!r}: {state}>"

    async def __aenter__(self) -> Self:
        if not self._recovered:
            await self.recover()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # ------------------------------------------------------------------ what callers ask for

    def resolve_share_name(self, share: AddOptions | HostPath, **keywords: Unpack[ShareKeywords]) -> str:
        """Return the name that the share has or will have, without a call to the VM.

        A share that is not there yet gets its name now, and stays PENDING until somebody adds it, or removes its name.
        When adding it fails, or when another directory replaced this one, the name is gone, and the next call returns
        another.

        Raises `OperationDenied`, `ManagerClosed`, and `ComputeSystemGone` when the VM has exited. With a journal, also
        `JournalError` before `recover`, or when more than 64 new names are asked for while the event loop waits.
        """
        options = options_of(share, keywords)
        self._engine.admit(options)
        if not self._recovered:
            msg = "what the journal says was not read yet, so no name can be told: await recover() first"
            raise JournalError(msg)
        there = self._engine.find(options)
        found = there or self._engine.allocate(options)
        if self._engine.ledger is not None:
            try:
                self._engine.ledger.resolved(found, new=there is None)
            except JournalError:
                if there is None:
                    self._engine.drop(found)
                raise
        return found.name

    async def add(
        self, share: AddOptions | HostPath, *, owner: Hashable | None = None, **keywords: Unpack[ShareKeywords]
    ) -> str:
        """Make sure that the VM has the share, hold a reference to it, and return its name.

        ``add("/srv/project", read_only=True)``, or ``add(AddOptions("/srv/project", read_only=True))``.

        A call that comes while the share is being added waits for that and shares its result. A call that comes while
        the share is being removed waits for that, and then adds it anew. Cancelling this call withdraws its own claim
        and nothing else. A share that nobody wants when the VM answers is removed again.

        Raises what the VM raised, in every caller that waited. Then there is no reference, and the next call starts
        with a new name. When nobody knows whether the VM has the share, it is removed before the error is raised. If
        that fails, it is kept as an orphan (see `shares`), and its removal is retried. Raises `InvalidOptions` and
        `OperationDenied` before anything is touched, and `ManagerClosed`. With a journal, returns when the reference is
        safe from a crash. If it cannot be written down, raises `JournalError`, and there is no reference.
        """
        self.claims.check(owner)
        options = share if isinstance(share, AddOptions) and not keywords else options_of(share, keywords)
        held = await self.claims.hold(options, owner)
        self.claims.keep(held, owner)
        return held.name

    async def remove(self, name: str, *, owner: Hashable | None = None) -> None:
        """Release a reference. The last release removes the share from the VM.

        It has no effect for an unknown name, for an owner that does not hold the share, and for an anonymous release
        when only owners hold it. A PENDING share that nobody is adding is dropped. The removal of a share that nobody
        holds any more, and that failed before, is tried again now.

        A VM, or a share, that no longer exists counts as removed. Otherwise raises what the VM raised. The share then
        stays ADDED with its last reference: call again to try again. When nobody knows whether the VM removed it, it
        also becomes an orphan: adding the same options makes a new share. Cancelling this call does not stop the VM's
        removal, whose result counts. With a journal, returns when a crash cannot bring the reference back. If the
        release cannot be written down, raises `JournalError`: call again to try again. A VM that can tell which shares
        it has (`ListsShares`) does not wait for the journal. When `OutcomeNotWritten` is raised the VM has removed the
        share, which comes back only if the process dies before the release is written.
        """
        _require_name(name)
        self.claims.check(owner)
        if self._engine.ledger is not None:
            await self._read()
        share = self._engine.table.get(name)
        while share is not None and share.operation is not None:
            await share.operation.wait()
            share = self._engine.table.get(name)
        if share is not None and share.state is ShareLife.PENDING:
            self._engine.drop(share)
        elif share is not None and self.claims.release(share, owner):
            await self._engine.take_away(share).finish()
            return
        if self._engine.ledger is not None:
            await self._engine.ledger.flush()

    async def release_owner(self, owner: Hashable) -> tuple[str, ...]:
        """Release every reference of `owner`, which is known to be gone. Return the names of their shares.

        All shares are tried, at the same time. Then raises `SharesLeft` with those that could not be removed. They keep
        their last reference: call again to try again. An add of that owner that has not returned yet is not a reference
        yet: end its calls first.
        """
        if owner is None:
            msg = "owner is None, and an anonymous reference has no owner to release it by: give its name to remove"
            raise WrongType(msg)
        if self._engine.ledger is not None:
            self.claims.check(owner)
            await self._read()
        return await self.claims.release_owner(owner, lambda name: self.remove(name, owner=owner))

    @asynccontextmanager
    async def share(self, share: AddOptions | HostPath, **keywords: Unpack[ShareKeywords]) -> AsyncIterator[str]:
        """Hold the share for the length of a block: ``async with manager.share("/srv/project") as name:``.

        The reference has an owner of its own and is released exactly once, however the block ends. Entering raises what
        `add` raises. When the share cannot be removed at the end, the block's own error is raised, with a note of that;
        without one, the VM's error. In both cases the reference is released, and the Manager keeps trying to remove the
        share. A block's reference ends with its process: `recover` removes shares that only blocks held.
        """
        async with self.claims.block(options_of(share, keywords)) as held:
            yield held.name

    def shares(self, *, name: str | None = None, owner: Hashable | None = None) -> tuple[ShareInfo, ...]:
        """Return a snapshot of every share that the VM has or may have, and the PENDING ones, oldest first.

        With `name`, only the share of that name. With `owner`, only shares that this owner holds. With a journal, there
        are no shares before `recover`.
        """
        if name is not None:
            _require_name(name)
        arguments.hashable("owner", owner)
        found = self._engine.table.values() if name is None else filter(None, [self._engine.table.get(name)])
        return tuple(share.info() for share in found if owner is None or share.held_by(owner))

    def vm_exited(self, error: ComputeSystemGone) -> None:
        """Release every share, because the VM has exited and has none any more.

        A VM that tells its exit (`TellsExit`) calls this itself. No call to the VM is made. A share with a call in
        flight is released when the call ends, whatever the answer. Callers who wait to add it get `ComputeSystemGone`,
        and so do all later adds: a VM that was started again needs a new Manager.
        """
        if not isinstance(error, ComputeSystemGone):
            arguments.refuse_type("error", error, "a ComputeSystemGone, which says why")
        self._engine.exit(error)
        self._comparisons.withdraw()

    async def aclose(self) -> None:
        """Remove every share, whoever holds it, and refuse new adds from now on.

        Waits for the calls in flight. A share whose add is in flight is removed after it was added; its callers get
        `ManagerClosed`. Raises `SharesLeft` with the shares that could not be removed: call again to try again. Nothing
        is retried in the background any more. When this is cancelled, the calls to the VM continue, and a note on the
        error says which shares were still there.

        A journal that was never read (see `recover`) is left as it is.
        """
        if self._detached:
            return
        self._engine.closed = True
        self._comparisons.cancel()
        try:
            if self._recovering is not None:
                await self._recovering.wait()
            await self._engine.take_everything_away()
        except asyncio.CancelledError as error:
            names = ", ".join(self._engine.table) or "none"
            error.add_note(f"the Manager was being closed; shares that the VM still had or may have had: {names}")
            raise
        left = self._engine.left()
        try:
            if self._recovered:
                await self._engine.end_ledger()
        except JournalError:
            if not left:
                raise
        if left:
            raise SharesLeft(left)

    async def detach(self) -> tuple[ShareInfo, ...]:
        """End this Manager, but leave every share to another Manager on the same journal. Return the shares.

        It is for a process that will be started again. Waits for the calls in flight; an add among them gets
        `ManagerClosed`. Shares that nobody holds are left to `recover`, as are the references of ``share()`` blocks.
        Raises `JournalError` when the journal cannot be written. This Manager then still has everything: call this
        again, or `aclose`. Raises ValueError without a journal, since nothing would know of the shares any more.
        """
        if self._engine.ledger is None:
            msg = "without a journal nobody would know of the shares any more: give the Manager one, or close it"
            raise ValueError(msg)
        if self._detached:
            return ()
        self._engine.closed = True
        self._comparisons.cancel()
        if self._recovering is not None:
            await self._recovering.wait()
        for share in self._engine.table.values():
            share.retry.withdraw()
        while operations := [share.operation for share in self._engine.table.values() if share.operation is not None]:
            for operation in operations:
                await operation.wait()
        if self._recovered:
            await self._engine.end_ledger()
        self._detached = True
        there = self.shares()
        self._engine.table.clear()
        self._engine.by_options.clear()
        return there

    # ------------------------------------------------------------------ what was before

    async def recover(self, *, vm_is_new: bool = False, take_out_unknown: bool = False) -> RecoveryReport:
        """Find out what is shared, and settle every difference. Return what was found and done for each share.

        First reads the journal, if there is one. Nothing else works before that, so ``async with`` and the first add or
        release do it by themselves. Then asks the VM which shares it has, if it can tell (`ListsShares`):

        - a share that somebody holds stays, and is added again under its name if the VM lost it;
        - an add without an outcome is undone, a removal without one is finished, and shares that nobody holds are
          removed;
        - an unknown share is removed if its name was this Manager's. Any other unknown share is left alone and
          reported, unless `take_out_unknown`.

        Owners keep their references: `release_owner` is for those that are known to be gone. A VM that cannot tell its
        shares is assumed to have those that the journal says. `vm_is_new` says that the VM was started anew and has
        none.

        It may be called again at any time. With a VM that tells of takeovers (`TellsTakeover`) it happens by itself:
        see `on_settled`. Calls that fail are in the report, and are tried again later in the background.

        Raises `JournalError` when the journal cannot be read or written, and `ManagerClosed`.
        """
        arguments.flag("vm_is_new", vm_is_new)
        arguments.flag("take_out_unknown", take_out_unknown)
        return await self._recover_in_turn(
            recovery.RecoverOptions(vm_is_new=vm_is_new, take_out_unknown=take_out_unknown)
        )

    async def _recover_lost(self) -> RecoveryReport:
        return await self._recover_in_turn(recovery.RecoverOptions(takeover=True))

    async def _recover_in_turn(self, wanted: recovery.RecoverOptions) -> RecoveryReport:
        self._engine.require_open()
        while self._comparing is not None:  # what another call has begun for a share would not be in this report
            await self._comparing.wait()
        self._comparing = operation = Operation()
        try:
            return await self._recover(wanted)
        finally:
            self._comparing = None
            operation.end()

    async def _recover(self, wanted: recovery.RecoverOptions) -> RecoveryReport:
        settlement = None if self._recovered else await self._recover_once(wanted)
        if settlement is None:
            self._engine.require_open()
            if self._engine.ledger is not None:
                await self._engine.ledger.ready()
            settlement = await recovery.settle(self._engine, wanted)
        report = await settlement.report()
        if self._engine.ledger is not None:
            with suppress(JournalError):  # it stays in line, and calls are refused until it is written
                await self._engine.ledger.flush()
        return report

    def on_settled(self, callback: Callable[[RecoveryReport | Exception], None]) -> None:
        """Have `callback` called, in the event loop, whenever the VM told of a takeover and the shares are settled.

        A VM that survives the loss of shares tells so (`TellsTakeover`), and the Manager then does what `recover` does.
        The callback gets what that returned or raised. An error, or a report with a `listing_error`, means that nothing
        is settled: nobody knows which shares the VM lost. The Manager then tries again, at growing intervals of up to a
        minute, until the shares are settled, the Manager is closed or the VM exits. Meanwhile every share is listed and
        held as before, but the VM may not have it. An attempt that fails like the one before it does not call the
        callback again.
        """
        self._on_settled.append(arguments.function("callback", callback))

    def _may_have_lost(self) -> bool:
        """Whether a takeover matters: not to tables that are still to be read, which is followed by the same."""
        return self._recovered and not self._engine.closed and self._engine.vm_gone is None

    def _settled(self, task: asyncio.Task[RecoveryReport]) -> bool:
        """Tell what came of a takeover; return whether that is settled, or never will be."""
        error = task.exception()
        if not isinstance(error, Exception | None) or isinstance(error, ManagerClosed):
            return True
        outcome = error or task.result()
        why = error or task.result().listing_error
        unsettled = None if why is None else repr(why)
        if unsettled is None or unsettled != self._unsettled:
            for callback in self._on_settled:
                callback(outcome)
        self._unsettled = unsettled
        return unsettled is None

    @property
    def next_name(self) -> int:
        """The number that the next new share is called: it, and every greater one, was never a share's name here."""
        return self._engine.next_name

    def save(self) -> bytes:
        """Return what is shared as a JSON document. `restore` makes the shares again from it, elsewhere too.

        It may be called at any time, with shares live and calls in flight. The document has every share that somebody
        holds now, and every name that was returned. It does not have adds that have not returned yet, shares that their
        last holder is removing, orphans, or references of ``share()`` blocks. This Manager does not change.

        Raises TypeError or `InvalidOptions` when an owner is not a string, and `JournalError` before `recover`.
        """
        if not self._recovered:
            msg = "what the journal says was not read yet, so it cannot be saved: await recover() first"
            raise JournalError(msg)
        return save_restore.encode(self._engine)

    @classmethod
    async def restore(
        cls,
        state: bytes | str,
        vm: VMPlan9,
        *,
        journal: Journal | None = None,
        no_writable_file_shares: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Return a Manager with what `save` returned: the same shares, with the same names and the same owners.

        First every path is checked on this host. Then the VM gets every share that it does not have already. A VM that
        is restored from a snapshot finds its shares under their old names. When this returns, all shares are there.
        When it fails or is cancelled, the shares that it added are removed again.

        The Manager that was saved keeps its references: `detach` or forget it, since two Managers must not manage one
        VM. The `journal` must have no shares of this VM.

        Raises `InvalidSavedState`; `RestoreFailed`, whose `errors` says for each share why it cannot be restored;
        `JournalError`; and what asking the VM for its shares raises.
        """
        document = save_restore.decode(state)
        manager = cls(vm, journal=journal, no_writable_file_shares=no_writable_file_shares, clock=clock)
        await manager._restore(document)
        return manager

    async def _restore(self, document: save_restore.Saved) -> None:
        self._recovered = True
        await save_restore.restore_into(self._engine, document, self._engine.admit)

    async def _recover_once(self, wanted: recovery.RecoverOptions) -> recovery.Settlement | None:
        """Read the journal and begin to settle, once; return what was begun, if it was for this caller."""
        mine: asyncio.Task[recovery.Settlement] | None = None
        while not self._recovered:
            self._engine.require_open()
            if self._recovering is None:
                self._recovering = Operation()
                mine = asyncio.get_running_loop().create_task(recovery.begin(self._engine, wanted))
                mine.add_done_callback(self._recovery_begun)
            await self._recovering.finish()
        return None if mine is None else mine.result()

    def _recovery_begun(self, task: asyncio.Task[recovery.Settlement]) -> None:
        operation, self._recovering = self._recovering, None
        assert operation is not None
        error = JournalError("reading the journal was interrupted") if task.cancelled() else task.exception()
        if error is None:
            self._recovered = True
        else:
            operation.error = error if isinstance(error, Exception) else JournalError(f"it was interrupted: {error!r}")
        operation.end()

    async def _ready_to_write(self) -> None:
        """Return when the tables hold what the journal says, if there is one, and it can be written."""
        if self._engine.ledger is not None:
            await self._read()
            await self._engine.ledger.ready()

    async def _read(self) -> None:
        """Return when the tables hold what the journal says. For Managers with a journal."""
        if self._detached:
            msg = "this Manager was detached, and another one may have its shares now: ask that one"
            raise ManagerClosed(msg)
        if not self._recovered:
            await self._recover_once(recovery.RecoverOptions())


def require_vm(vm: object) -> None:
    """Check that this is a `VMPlan9`. Raises `WrongType`."""
    arguments.with_methods("vm", vm, ("add_plan9", "remove_plan9"), "a FileServer, a UtilityVM or another VMPlan9")


def require_settings(journal: object, *, no_writable_file_shares: bool, clock: object) -> None:
    """Check the settings of a Manager. Raises `WrongType`."""
    if journal is not None:
        remedy = "SqliteJournal(PATH).for_vm(), or another Journal"
        arguments.with_methods("journal", journal, ("load", "append"), remedy)
    arguments.flag("no_writable_file_shares", no_writable_file_shares)
    arguments.function("clock", clock)


def _require_name(name: str) -> None:
    if not isinstance(name, str):
        arguments.refuse_type("name", name, "the name of a share, which `add` returned: a str")
