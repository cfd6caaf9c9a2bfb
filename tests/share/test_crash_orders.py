"""What must always hold of a Manager with a journal, with a crash at every point of every order of events.

What lives here: the world of test_interleavings with a journal, whose every append may fail before or after it was
written, and a process that may die between any two steps, with the calls in flight carried out or not; then the
next one recovers, and the same properties hold: no share without a holder, no holder without a share, names never
used again, no acknowledged add lost, no acknowledged release undone.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import TYPE_CHECKING

import pytest
from tests.orders import searches, try_every_order
from tests.reliability_results import write_down
from tests.share.test_interleavings import ANYBODY, ONLY_ADDS, A, B, Scenario

from uvmshare.errors import JournalError
from uvmshare.share import recovery
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.journal import Begun, Forgotten
from uvmshare.share.ledger import Ledger
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.share import Share
from uvmshare.share.state import ShareLife
from uvmshare.testing.explore import explore, fingerprint
from uvmshare.testing.fakes import FakeJournal, FakeReply, FakeVM, ListingFakeVM
from uvmshare.testing.schedule import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from tests.orders import Caller
    from tests.share.test_interleavings import Call

    from uvmshare.share.journal import JournalledShare
    from uvmshare.share.recovery import RecoveryReport
    from uvmshare.testing.explore import Explored

APPEND_FAULTS = (FakeReply.FAIL, FakeReply.LOSE_AFTER)


class CrashScenario(Scenario):
    """The callers of a scenario, and lives of the process that they ask, one after the other."""

    def __init__(self, bounds: Bounds) -> None:
        super().__init__(bounds.callers, bounds.cancels, bounds.vm_faults, loop_ends=False)
        self.crashes = bounds.crashes
        self.append_faults = bounds.append_faults
        self.vm = bounds.vm()
        self.journal = FakeJournal()
        self.recovering: asyncio.Task[RecoveryReport] | None = None
        self.unacknowledged = 0
        """Adds that were under way in a crash: their reference may be there or not."""
        self.cancelled = 0
        """Adds that were cancelled, or failed with the journal, in this life: what they wrote down may be there when it
        ends."""
        self._begin_life()
        self.loop.run_until_complete(self.manager.recover())
        self.journal.hold = self.vm.hold = True

    def _begin_life(self) -> None:
        self.manager = Manager(self.vm, journal=self.journal, clock=lambda: 0.0)

    def events(self) -> list[tuple[str, Callable[[], None]]]:
        events = super().events()
        replies = (FakeReply.SUCCEED, *APPEND_FAULTS) if self.append_faults else (FakeReply.SUCCEED,)
        events += [
            (f"append: {reply.value}", partial(self._answer_append, reply))
            for append in self.journal.in_flight
            if append.held
            for reply in replies
        ]
        if self.recovering is not None and self.recovering.done() and not self._recovered:
            events.append(("recover again", self._recover))
        if self.crashes:
            # Each call in flight was carried out or not; and so was the append.
            calls = [name for name, call in self.vm.in_flight.items() if call.held]
            appends = [append for append in self.journal.in_flight if append.held]
            events += [
                (f"crash {outcome}", partial(self._crash, outcome))
                for outcome in product((False, True), repeat=len(calls) + len(appends))
            ]
        return events

    def _may_start(self, number: int) -> bool:
        return self._recovered and super()._may_start(number)

    @property
    def _recovered(self) -> bool:
        return self.recovering is None or (self.recovering.done() and self.recovering.exception() is None)

    def _recover(self) -> None:
        self.recovering = self.loop.create_task(self.manager.recover())

    async def _add(self, call: Call, options: AddOptions) -> None:
        await super()._add(call, options)
        self.cancelled += call.unwritten

    def _cancel(self, call: Call) -> None:
        self.cancelled += call.kind == "add"
        super()._cancel(call)

    def _answer_append(self, reply: FakeReply) -> None:
        if reply is not FakeReply.SUCCEED:
            self.append_faults -= 1
        self.journal.in_flight[0].answer(reply)

    def _crash(self, outcome: tuple[bool, ...]) -> None:
        """End the process here: nothing of it runs any more. What it had asked for is carried out or not."""
        _crashes.add((fingerprint(self.state(), self.loop.pending), outcome))
        self.crashes -= 1
        outcomes = iter(outcome)
        for asked in [asked for asked in self.vm.in_flight.values() if asked.held]:
            if next(outcomes):
                if asked.kind == "add":
                    assert isinstance(asked.options, AddOptions)
                    self.vm.shares[asked.name] = asked.options
                else:
                    self.vm.shares.pop(asked.name, None)
        for append in [append for append in self.journal.in_flight if append.held]:
            if next(outcomes):
                self.journal.write(append.records)
        self.unacknowledged += sum(call.running and call.kind != "remove" for call in self.calls)
        for number, call in enumerate(self.latest):
            if call is not None and call.running:  # whoever asked it does nothing any more
                self.latest[number] = None
                self.progress[number] = len(self.callers[number].does)
        self.unacknowledged += self.cancelled
        self.cancelled = 0
        self.calls.clear()
        dead, self.loop = self.loop, VirtualLoop()
        vm, journal = type(self.vm)(), FakeJournal()
        vm.shares = dict(self.vm.shares)
        journal.state = type(self.journal.state)(self.journal.state.next_name, dict(self.journal.state.shares))
        vm.hold = journal.hold = True
        self.vm, self.journal = vm, journal
        while tasks := asyncio.all_tasks(dead):  # of what belongs to nobody any more
            for task in tasks:
                task.cancel()
            dead.settle()
        dead.close()
        self._begin_life()
        self._recover()

    # What must hold.

    def check(self) -> None:
        self.journal.appended.clear()
        if self._recovered:
            self.recovering = None
        elif self.recovering is not None and self.recovering.done():
            assert isinstance(self.recovering.exception(), JournalError)
        if self.recovering is None:
            super().check()
            assert all(int(name) < self.manager._engine.next_name for name in self.vm.shares)
        else:
            assert not self.vm.faults
            self._forget_history()
        for name, _ in self.relied_on:
            assert name in self.vm.shares, f"share {name} is lost"

    def check_end(self) -> None:
        assert self.recovering is None, "the recovery waits for ever"
        assert not self.journal.in_flight
        for name in self.manager._engine.table:
            self.doubtful[name] += self.unacknowledged
        super().check_end()
        ledger = self.manager._engine.ledger
        assert ledger is not None
        assert not ledger._line, "something is not written down"
        assert not ledger._confirming
        for info in self.manager.shares():
            share = self.journal.state.shares[info.name]
            assert (share.owners, share.anonymous) == (info.owners, info.references - len(info.owners))
        assert self.journal.state.shares.keys() == {info.name for info in self.manager.shares()}
        assert self.vm.shares.keys() == {info.name for info in self.manager.shares()}


@dataclass(frozen=True)
class Bounds:
    """What one search covers."""

    title: str
    callers: tuple[Caller, ...]
    crashes: int = 1
    cancels: int = 0
    vm_faults: int = 0
    append_faults: int = 0
    vm: type[FakeVM] = ListingFakeVM

    def make(self) -> CrashScenario:
        return CrashScenario(self)


SHORT = (
    Bounds("one owner, two crashes", (A,), crashes=2),
    Bounds("one owner, two crashes, a VM that cannot tell", (A,), crashes=2, vm=FakeVM),
    Bounds("one owner, a crash, a fault of the VM", (A,), vm_faults=1),
    Bounds("one owner, a crash, a fault of the journal", (A,), append_faults=1),
    Bounds("one owner, two faults of the journal", (A,), crashes=0, append_faults=2),
)
LONG = (
    Bounds("two owners, a crash", (A, B)),
    Bounds("one owner, a crash, a cancellation", (A,), cancels=1),
    Bounds("one owner twice, a crash", (A, A)),
)
SOAK = (
    Bounds("one owner, a crash, two faults of the journal", (A,), append_faults=2),
    Bounds("one owner, a crash, two faults of the journal, a VM that cannot tell", (A,), append_faults=2, vm=FakeVM),
    Bounds("one owner, a crash, a fault of the VM, one of the journal", (A,), vm_faults=1, append_faults=1),
    Bounds("one owner, one anonymous, a crash", (A, ANYBODY)),
    Bounds("two owners, a fault of the journal", (A, B), crashes=0, append_faults=1),
    Bounds("two owners, two crashes", (A, B), crashes=2),
    Bounds("two owners, a crash, a VM that cannot tell", (A, B), vm=FakeVM),
    Bounds("two owners, a crash, a fault of the journal", (A, B), append_faults=1),
    Bounds("two owners, a crash, a fault of the VM", (A, B), vm_faults=1),
    Bounds("two owners, a crash, a cancellation", (A, B), cancels=1),
    Bounds("one owner twice, a cancellation, a fault of the journal", (A, A), crashes=0, cancels=1, append_faults=1),
    Bounds("three of all kinds, a crash", (A, ANYBODY, ONLY_ADDS)),
)


@searches(SHORT, LONG, SOAK)
def test_every_order_with_crashes(bounds: Bounds, record_property: Callable[[str, object], None]) -> None:
    found = try_every_order(bounds, record_property)
    _counted[bounds.title] = found
    assert found.orders >= found.states > 50


_counted: dict[str, Explored] = {}
_crashes: set[tuple[bytes, tuple[bool, ...]]] = set()
"""Every state that a process died in, with what became of the calls in flight."""


@pytest.mark.parametrize("which", ["short", pytest.param("long", marks=pytest.mark.soak)])
def test_the_orders_that_were_tried_are_counted(which: str) -> None:
    """For docs/reliability.md: a search that failed has not come here."""
    assert _counted
    write_down(
        "orders-of-events" if which == "long" else "orders-of-events-short",
        f"{len(_counted)} searches, up to three callers, two crashes, two faults",
        points=sum(found.steps for found in _counted.values()),
        kills=len(_crashes),
        losses=0,
        orders=sum(found.orders for found in _counted.values()),
    )


# ---------------------------------------------------------------------- that a defect would be found


def unwritten_add(ledger: Ledger, vm: FakeVM, share: Share) -> object:
    """Call the VM without an intent on the disk."""
    ledger._known.add(share.name)
    ledger.note(Begun(share.name, ShareLife.ADDING, share.options))
    return vm.add_plan9(NamedShare(share.name, share.options))


async def unconfirmed(ledger: Ledger, share: Share, owner: Hashable | None) -> None:
    """Tell of a reference that is not on the disk yet."""
    ledger._confirming[share.name, owner] += 1
    ledger._note_reference(share, owner)


async def forget_early(ledger: Ledger, vm: FakeVM, share: Share) -> None:
    """Write down that it is gone before it is."""
    ledger._known.discard(share.name)
    await ledger.write(Forgotten(share.name))
    await vm.remove_plan9(NamedShare(share.name, share.options))


def believe_all(journalled: JournalledShare, now: float) -> Share:
    """Take every share of the journal for one that is there and held."""
    share = Share(journalled.name, journalled.options, now, ShareLife.ADDED)
    share.owners = dict.fromkeys(journalled.owners or ("nobody",))
    return share


@pytest.mark.parametrize(
    ("target", "attribute", "defect", "complaint"),
    [
        (Ledger, "add", unwritten_add, "the Manager does not know it"),
        (Ledger, "confirm", unconfirmed, "the reference of 'a'|is lost|was taken from|KeyError"),
        (Ledger, "remove", forget_early, "the Manager does not know it"),
        (recovery, "_recalled", believe_all, "the VM does not have it"),
    ],
)
def test_a_planted_defect_is_found_by_a_crash(
    monkeypatch: pytest.MonkeyPatch, target: object, attribute: str, defect: object, complaint: str
) -> None:
    monkeypatch.setattr(target, attribute, defect)
    with pytest.raises((AssertionError, KeyError)) as raised:
        explore(Bounds("", (A,), vm=FakeVM).make)
    assert re.search(complaint, repr(raised.value))
    assert any("crash" in note for note in raised.value.__notes__)
