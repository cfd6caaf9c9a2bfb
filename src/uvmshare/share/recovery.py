"""How a Manager compares its shares with what the VM has: after a restart, or when the VM may have lost shares.

What lives here: reading the journal into the tables, one comparison with what the VM says, what follows from each
difference, and the report. What must not: I/O, when shares are compared
(`uvmshare.lifecycle.compare_schedule`), or what then becomes of a share (`uvmshare.share.engine`).

What follows from what was written down:

=========  =========================  ===========================================
state      somebody holds it          nobody does
=========  =========================  ===========================================
pending    (cannot be)                keeps its name
adding     (cannot be)                is removed: nobody was told that it is there
added      stays, or is added again   is removed
lost       is added again             is removed
restoring  is added again             is removed
removing   is removed: whoever held it had asked for that, and was not told yet
invalid, undoing, doubtful, clearing
           is removed
=========  =========================  ===========================================

What was under way is asked for again even if the VM says that it is done, since only a later call that has ended
proves that an earlier one is over (`VMPlan9`).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from uvmshare.errors import ComputeSystemGone
from uvmshare.share.interfaces import ListsShares
from uvmshare.share.share import Share
from uvmshare.share.state import ShareLife, ShareTrigger

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from uvmshare.lifecycle.operation import Operation
    from uvmshare.share.engine import ShareEngine
    from uvmshare.share.journal import JournalledShare
    from uvmshare.share.options import AddOptions

__all__ = ["Done", "RecoverOptions", "RecoveredShare", "RecoveryReport", "Settlement", "begin", "settle"]


_MOST_UNKNOWN = 1024
"""Shares that nobody knows, and that are seen to at a time. A VM whose user runs its file server may tell of any number
and remove none; others have one or two, after a crash."""

_DIGITS = 18
"""Decimal names of fewer digits may be ours; a counter does not come that far."""


@dataclass(frozen=True, slots=True)
class RecoverOptions:
    """What the caller of `Manager.recover` says, or the Manager itself."""

    vm_is_new: bool = False
    take_out_unknown: bool = False
    takeover: bool = False
    """Whether the VM says that it lost shares: what calls were under way for is compared too, when they have ended."""


class Done(enum.Enum):
    """What recovery did about a share."""

    KEPT = "kept"
    """It is as it was."""
    ADDED_AGAIN = "added again"
    """Somebody holds it, and the VM had lost it."""
    TAKEN_OUT = "removed"
    """Nobody holds it, or a call for it had no outcome."""
    LEFT_ALONE = "left alone"
    """It is on the VM, and its name was never this Manager's."""


@dataclass(frozen=True, slots=True)
class RecoveredShare:
    """One share of a `RecoveryReport`."""

    name: str
    options: AddOptions
    found: str
    """What was known of it, in words."""
    done: Done
    owners: tuple[str, ...] = ()
    """Who holds it now. Those without a name are not among them."""
    error: Exception | None = None
    """Why that has not come about yet; it is tried again."""

    def __str__(self) -> str:
        text = f"share {self.name} ({self.options.host_path}): {self.found}: {self.done.value}"
        return text if self.error is None else f"{text}, not yet: {self.error}"


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What `Manager.recover` found and did, share by share."""

    shares: tuple[RecoveredShare, ...]
    """Those that were written down or known, oldest first; then what only the VM knew of."""
    asked: bool
    """Whether the VM told what it has."""
    listing_error: Exception | None = None
    """Why it did not, though it can."""

    def __iter__(self) -> Iterator[RecoveredShare]:
        return iter(self.shares)

    @property
    def unsettled(self) -> tuple[RecoveredShare, ...]:
        """What has not come about yet, and is tried again."""
        return tuple(share for share in self.shares if share.error is not None)


@dataclass(slots=True)
class _Item:
    share: Share
    found: str
    done: Done
    operation: Operation | None = None


@dataclass(slots=True)
class Settlement:
    """What was begun for each share."""

    asked: bool = False
    listing_error: Exception | None = None
    items: list[_Item] = field(default_factory=list)

    async def report(self) -> RecoveryReport:
        """Return what came of it, when the calls have ended."""
        shares = []
        for item in self.items:
            error = None
            if item.operation is not None:
                await item.operation.wait()
                error = item.operation.error
            owners = tuple(str(owner) for owner in item.share.owners) if item.done is not Done.TAKEN_OUT else ()
            shares.append(RecoveredShare(item.share.name, item.share.options, item.found, item.done, owners, error))
        return RecoveryReport(tuple(shares), self.asked, self.listing_error)


async def begin(engine: ShareEngine, wanted: RecoverOptions) -> Settlement:
    """Read the journal into the tables, which are empty, and begin to settle. Raises `JournalError`."""
    assert engine.ledger is not None
    state = await engine.ledger.begin()
    engine.next_name = max(engine.next_name, state.next_name)
    for journalled in state.shares.values():
        if journalled.life is ShareLife.NOT_OURS:
            engine.not_ours.add(journalled.name)
            continue
        share = _recalled(journalled, engine.clock())
        engine.table[share.name] = share
        if not share.state.orphan:
            engine.by_options.setdefault(share.options, share)
            engine.any_directory = engine.any_directory or share.options.directory is not None
    if engine.closed:
        return Settlement()
    if engine.vm_gone is not None:
        items = [_Item(share, "the VM has exited", Done.TAKEN_OUT) for share in engine.table.values()]
        engine.exit(engine.vm_gone)
        return Settlement(items=items)
    return await settle(engine, wanted)


def _recalled(journalled: JournalledShare, now: float) -> Share:
    """Return the entry of a share as it was written down, less what was under way, whose answer nobody has."""
    share = Share(journalled.name, journalled.options, now, journalled.life)
    share.owners = dict.fromkeys(journalled.owners)
    share.anonymous = journalled.anonymous
    if share.state.busy:
        share.apply(ShareTrigger.PROCESS_DIED, now)
    if share.state is ShareLife.LOST and not share.references:  # only blocks of that process held it
        share.apply(ShareTrigger.GIVEN_UP, now)
    return share


async def settle(engine: ShareEngine, wanted: RecoverOptions) -> Settlement:
    """Ask the VM what it has, and begin what follows for each share.

    An answer says nothing of a share that a call was under way for: what that did may not be seen yet, or may be lost
    by now; nor of one that a call has changed since the VM was asked. So after a takeover the VM is asked again when
    those calls have ended.
    """
    settlement = Settlement()
    unsettled = dict(engine.table)
    known = set(unsettled)
    while True:
        resting = {name: share.state for name, share in unsettled.items() if share.operation is None}
        listed = await _listing(engine, wanted, settlement)
        if engine.closed:
            return settlement
        for name, state in resting.items():
            share = unsettled[name]
            if share.operation is None and (share.state is state or engine.table.get(name) is not share):
                del unsettled[name]
                if engine.table.get(name) is share:
                    settlement.items.append(_settle_one(engine, share, listed))
        if listed is not None:
            _settle_others(engine, listed, known, wanted, settlement)
            known |= listed.keys()
        under_way = [share.operation for share in unsettled.values() if share.operation is not None]
        if listed is None or not unsettled or not wanted.takeover:
            return settlement
        for operation in under_way:
            await operation.wait()


def _settle_others(
    engine: ShareEngine,
    listed: Mapping[str, AddOptions],
    known: set[str],
    wanted: RecoverOptions,
    settlement: Settlement,
) -> None:
    """Begin what follows for what the VM has, or had, and the tables do not have."""
    for name in engine.not_ours - listed.keys():
        engine.not_ours.discard(name)
        if engine.ledger is not None:
            engine.ledger.forgotten(name)
    unknown = [name for name in listed if name not in known and name not in engine.table]
    room = max(0, _MOST_UNKNOWN - sum(share.state.orphan for share in engine.table.values()))
    for name in sorted(unknown, key=lambda name: (len(name), name))[:room]:
        settlement.items.append(_settle_unknown(engine, name, listed[name], wanted))


async def _listing(
    engine: ShareEngine, wanted: RecoverOptions, settlement: Settlement
) -> Mapping[str, AddOptions] | None:
    if wanted.vm_is_new:
        return {}
    if not isinstance(engine.vm, ListsShares):
        return None
    try:
        listed = await engine.vm.list_plan9()
    except ComputeSystemGone:
        settlement.asked = True
        return {}
    except Exception as error:  # noqa: BLE001  whatever it is, the VM did not tell, and the report says so
        settlement.listing_error = error
        return None
    settlement.asked = True
    return listed


def _settle_one(engine: ShareEngine, share: Share, listed: Mapping[str, AddOptions] | None) -> _Item:
    """Begin what follows for a share that no call is under way for."""
    on_vm = None if listed is None else listed.get(share.name)
    if share.to_be_taken_away:
        found = "a call for it has no outcome" if share.state.orphan else "nobody holds it"
    elif share.state is ShareLife.LOST:
        if on_vm is not None:
            # It may be back by an attempt whose answer was lost, here or in an earlier process.
            share.believed = on_vm.may_be(share.options)
            _learn_directory(engine, share, on_vm)
        return _Item(share, "it was lost by the VM before", Done.ADDED_AGAIN, engine.bring(share))
    elif share.state is ShareLife.PENDING:
        if on_vm is None:
            return _Item(share, "it has a name, and was never added", Done.KEPT)
        found = "it was never added, and the VM has it"
        engine.disown(share, ShareTrigger.FOUND)
    elif listed is None or (on_vm is not None and on_vm.may_be(share.options)):
        if on_vm is not None:
            _learn_directory(engine, share, on_vm)
        return _Item(share, "it was added, and the VM " + ("did not tell" if listed is None else "has it"), Done.KEPT)
    else:
        found = "the VM does not have it" if on_vm is None else f"the VM has another {on_vm.host_path} under its name"
        share.apply(ShareTrigger.LOST, engine.clock())
        return _Item(share, found, Done.ADDED_AGAIN, engine.bring(share))
    return _Item(share, found, Done.TAKEN_OUT, engine.take_away(share))


def _learn_directory(engine: ShareEngine, share: Share, on_vm: AddOptions) -> None:
    """Take note which directory the VM says that it is, if nobody knew and the rest is the same."""
    if share.options.directory is None and on_vm.may_be(share.options):
        engine.identify(share, on_vm.directory)


def _settle_unknown(engine: ShareEngine, name: str, options: AddOptions, wanted: RecoverOptions) -> _Item:
    """Begin what follows for a share of the VM that the tables do not have."""
    share = Share(name, options, engine.clock(), ShareLife.NOT_OURS)
    number = int(name) if name.isascii() and name.isdecimal() and len(name) < _DIGITS else -1
    if str(number) != name:
        return _Item(share, "nobody knows it, and it has no name of ours", Done.LEFT_ALONE)
    ours = number < engine.next_name and name not in engine.not_ours
    engine.next_name = max(engine.next_name, number + 1)  # or a share of ours would get that name one day
    if not ours and not wanted.take_out_unknown:
        engine.not_ours.add(name)
        if engine.ledger is not None:
            engine.ledger.not_ours(name, options)
        return _Item(share, "nobody knows it, and its name was never ours", Done.LEFT_ALONE)
    engine.not_ours.discard(name)
    engine.table[name] = share
    return _Item(share, "nobody knows it", Done.TAKEN_OUT, engine.take_away(share))
