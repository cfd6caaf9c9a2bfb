"""What must always hold of a Manager, tried in every order of events, and in long random ones.

What lives here: a world of callers around a Manager and a VM whose answers are chosen, the properties that
hold after every step of it, the search through all orders for up to four callers, and the random walk with many.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.orders import Caller, cancel_everything, may_start, searches, try_every_order

from uvmshare.errors import ComputeSystemError, JournalError
from uvmshare.lifecycle.claims import Claims
from uvmshare.share.engine import ShareEngine
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState
from uvmshare.testing.explore import explore
from uvmshare.testing.fakes import FakeCall, FakeReply, FakeVM, ListingFakeVM
from uvmshare.testing.schedule import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Mapping

    from uvmshare.lifecycle.operation import Operation
    from uvmshare.share.share import Share

HERE = os.path.dirname(__file__)
ONE = AddOptions(HERE, read_only=True)
OTHER = AddOptions(HERE) if ONE.directory is None else ONE.of_directory("what replaced it")
"""The same path, after another directory was put there; Windows does not tell, so there it is another share of it."""
FAULTS = (FakeReply.FAIL, FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER)


@dataclass(eq=False)
class Call:
    """One call of a caller: what it asks for, and how far it is."""

    kind: str
    owner: str | None
    name: str | None
    task: asyncio.Task[None] | None = None
    unwritten: bool = False
    """Whether it failed because the journal did."""

    @property
    def running(self) -> bool:
        return self.task is not None and not self.task.done()


class World:
    """Callers, a Manager and a VM; and what the callers may rely on, kept apart from what the Manager says."""

    def __init__(self) -> None:
        self.loop = VirtualLoop()
        self.vm = self.make_vm()
        self.vm.hold = True
        self.manager = Manager(self.vm, clock=lambda: 0.0)
        self.calls: list[Call] = []
        self.relied_on: set[tuple[str, str]] = set()
        """(name, owner): an add returned and no remove was begun since."""
        self.relied_on_anonymously: Counter[str] = Counter()
        """By name: adds that returned, less removes that were begun."""
        self.has_lost = False
        """Whether the VM ever lost shares."""
        self.untold = False
        """Whether it has not told so yet."""
        self.there: set[str] = set()
        """Names that somebody relied on and the VM had, a step ago, and that it did not lose since."""
        self.doubtful: Counter[str] = Counter()
        """By name: references that may be there or not, since the remove ended in an error, was cancelled, or
        ran beside the add."""

    def make_vm(self) -> FakeVM:
        return FakeVM()

    @property
    def unsettled(self) -> bool:
        """Whether the Manager has still to find out what the VM lost."""
        return self.untold or self.manager._comparisons.pending

    # What callers do.

    def add(self, options: AddOptions, owner: str | None) -> Call:
        call = Call("add", owner, None)
        return self._start(call, self._add(call, options))

    def remove(self, name: str, owner: str | None) -> Call:
        call = Call("remove", owner, name)
        self.doubtful[name] += 1
        if owner is None:
            self.doubtful[name] += self.relied_on_anonymously[name] <= 0
            self.relied_on_anonymously[name] -= 1
        else:
            self.relied_on.discard((name, owner))
        return self._start(call, self._remove(name, owner))

    def _start(self, call: Call, coroutine: object) -> Call:
        assert asyncio.iscoroutine(coroutine)
        call.task = self.loop.create_task(coroutine)
        self.calls.append(call)
        return call

    async def _add(self, call: Call, options: AddOptions) -> None:
        try:
            name = await self.manager.add(options, owner=call.owner)
        except (ComputeSystemError, JournalError) as error:
            call.unwritten = isinstance(error, JournalError)
            return
        call.name = name
        if call.owner is None:
            self.relied_on_anonymously[name] += 1
        elif not any(
            other.kind == "remove" and other.name == name and other.owner == call.owner and other.running
            for other in self.calls
        ):
            self.relied_on.add((name, call.owner))
        else:
            self.doubtful[name] += 1

    async def _remove(self, name: str, owner: str | None) -> None:
        try:
            await self.manager.remove(name, owner=owner)
        except (ComputeSystemError, JournalError):
            return
        self.doubtful[name] -= 1

    # What must hold.

    def check(self) -> None:
        """After every step."""
        assert not self.vm.faults
        self._forget_history()
        listed = {info.name: info for info in self.manager.shares()}
        for name, options in self.vm.shares.items():
            info = listed.get(name)
            assert info is not None, f"the VM has share {name}, and the Manager does not know it"
            assert info.options == options
            entry = self.manager._engine.table[name]
            assert info.references or entry.claims or info.busy or entry.retry.waiting, f"nobody wants share {name}"
        for name, info in listed.items():
            if info.state is ShareState.ADDED and not info.busy and not info.orphan and not self.unsettled:
                assert name in self.vm.shares, f"share {name} is ADDED, and the VM does not have it"
            if info.orphan and not info.busy:
                assert self.manager._engine.table[name].retry.waiting, f"nobody sees to the orphan {name}"
        relied_on = self.relied_on | {(name, "") for name, count in self.relied_on_anonymously.items() if count > 0}
        for name, owner in sorted(relied_on):
            info = listed[name]
            if name not in self.vm.shares:
                entry = self.manager._engine.table[name]
                assert name not in self.there, f"share {name} was taken from {owner!r}, and the VM did not lose it"
                going = self.unsettled or (info.state is ShareState.PENDING and (info.busy or entry.retry.waiting))
                assert self.has_lost, f"share {name} was taken from {owner!r}"
                assert going, f"nobody adds share {name} again for {owner!r}"
            else:
                # Of one that was lost and is back the answer may be still to come, or lost.
                back = self.has_lost and info.state is ShareState.PENDING
                assert info.state is ShareState.ADDED or back, f"share {name} of {owner!r} is {info.state}"
            assert not info.orphan
            assert info.busy != "removing", f"share {name} of {owner!r} is being removed"
            assert info.busy is None or self.has_lost, f"share {name} of {owner!r} is being added, and was not lost"
            if owner:
                assert owner in info.owners, f"the reference of {owner!r} to share {name} is gone"
            else:
                anonymous = info.references - len(info.owners)
                assert anonymous >= self.relied_on_anonymously[name]
        self.there = {name for name, _ in relied_on} & self.vm.shares.keys()

    def _forget_history(self) -> None:
        """Keep only what decides how it goes on, so that equal states are seen to be equal."""
        self.vm.calls.clear()
        for call in self.calls:
            if call.task is not None and call.task.done() and not call.task.cancelled():
                call.task.result()  # raises what no call may
        self.calls = [call for call in self.calls if call.running]
        for counter in (self.relied_on_anonymously, self.doubtful):
            for name, count in tuple(counter.items()):
                gone = int(name) < self.manager._engine.next_name and name not in self.manager._engine.table
                if gone or not count:
                    del counter[name]

    def check_end(self) -> None:
        """When nothing can happen any more."""
        assert not self.calls, f"{self.calls} wait for ever"
        assert not self.vm.in_flight
        assert not self.unsettled, "nobody finds out what the VM lost"
        for info in self.manager.shares():
            assert info.busy is None
            assert info.name in self.vm.shares or not info.references, "what the VM lost did not come back"
            relied_on = sum(name == info.name for name, _ in self.relied_on)
            relied_on += max(0, self.relied_on_anonymously[info.name])
            assert relied_on <= info.references <= relied_on + self.doubtful[info.name], f"a reference too many: {info}"


# ---------------------------------------------------------------------- every order


class TakenOverVM(ListingFakeVM):
    """One whose answer to what it has may take its time, too; and what it has may be gone by then."""

    async def list_plan9(self) -> Mapping[str, AddOptions]:
        had = dict(self.shares)
        await self._serve(FakeCall("list", "list", None))
        return had

    def _change(self, call: FakeCall) -> None:
        if call.kind != "list":
            super()._change(call)


class Scenario(World):
    """Callers around one share, and how much goes wrong."""

    def __init__(
        self, callers: tuple[Caller, ...], cancels: int, faults: int, *, losses: int = 0, loop_ends: bool
    ) -> None:
        self.losses = losses
        super().__init__()
        self.callers = callers
        self.progress = [0] * len(callers)
        self.latest: list[Call | None] = [None] * len(callers)
        self.cancels = cancels
        self.faults = faults
        self.loop_ends = loop_ends

    def make_vm(self) -> FakeVM:
        return TakenOverVM() if self.losses else FakeVM()

    def state(self) -> object:
        for number, call in enumerate(self.latest):
            if call is not None and not call.running and self.progress[number] == len(self.callers[number].does):
                self.latest[number] = None  # whatever came of it, this caller does nothing any more
        return self

    def events(self) -> list[tuple[str, Callable[[], None]]]:
        events: list[tuple[str, Callable[[], None]]] = []
        for number, caller in enumerate(self.callers):
            call = self.latest[number]
            if call is not None and call.running:
                if self.cancels:
                    events.append((f"cancel {number}", partial(self._cancel, call)))
            elif self._may_start(number):
                does = caller.does[self.progress[number]]
                events.append((f"{number} {does}", partial(self._go_on, number)))
        for name, held in self.vm.in_flight.items():
            if held.held:
                faults = ((FakeReply.FAIL,) if held.kind == "list" else FAULTS) if self.faults else ()
                events += [
                    (f"{held.kind} {name}: {reply.value}", partial(self._answer, name, reply))
                    for reply in (FakeReply.SUCCEED, *faults)
                ]
        if self.losses:
            events.append(("the VM loses its shares", self._lose))
        if self.loop_ends:
            events.append(("the loop ends", partial(self._end_loop, newest_first=False)))
            events.append(("the loop ends, newest task first", partial(self._end_loop, newest_first=True)))
        return events

    def _may_start(self, number: int) -> bool:
        return may_start(self.callers, self.progress, number)

    def _go_on(self, number: int) -> None:
        caller = self.callers[number]
        does = caller.does[self.progress[number]]
        self.progress[number] += 1
        if does == "add":
            self.latest[number] = self.add(ONE, caller.owner)
            return
        previous = self.latest[number]
        name = "0" if previous is None else previous.name
        if name is None:  # its add failed or was cancelled
            self.progress[number] = len(caller.does)
        else:
            self.latest[number] = self.remove(name, caller.owner)

    def _cancel(self, call: Call) -> None:
        self.cancels -= 1
        assert call.task is not None
        call.task.cancel()

    def _answer(self, name: str, reply: FakeReply) -> None:
        if reply is not FakeReply.SUCCEED:
            self.faults -= 1
        self.vm.in_flight[name].answer(reply)

    def _lose(self) -> None:
        self.losses -= 1
        self.has_lost = True
        self.untold = True
        self.vm.shares.clear()
        self.there.clear()
        self.loop.call_soon(self._tell)

    def _tell(self) -> None:
        assert isinstance(self.vm, TakenOverVM)
        self.untold = False
        self.vm.take_over()

    def _end_loop(self, *, newest_first: bool) -> None:
        self.loop_ends = False
        self.losses = 0
        self.progress = [len(caller.does) for caller in self.callers]
        cancel_everything(self.loop, newest_first=newest_first)


A, B, C, D = (Caller(owner, ("add", "remove")) for owner in "abcd")
ANYBODY = Caller(None, ("add", "remove"))
ONLY_ADDS = Caller("a", ("add",))
ONLY_REMOVES = Caller("a", ("remove",))


@dataclass(frozen=True)
class Bounds:
    """What one search covers."""

    title: str
    callers: tuple[Caller, ...]
    cancels: int = 0
    faults: int = 0
    losses: int = 0
    """How often the VM loses all that it has, and goes on."""
    loop_ends: bool = False

    def make(self) -> Scenario:
        return Scenario(self.callers, self.cancels, self.faults, losses=self.losses, loop_ends=self.loop_ends)


SHORT = (
    Bounds("two owners, a cancellation", (A, B), cancels=1),
    Bounds("two owners, a fault", (A, B), faults=1),
    Bounds("two owners, a cancellation, the loop ends", (A, B), cancels=1, loop_ends=True),
    Bounds("one owner, a cancellation, a fault, the loop ends", (A,), cancels=1, faults=1, loop_ends=True),
    Bounds("one owner twice, one anonymous", (A, A, ANYBODY)),
    Bounds("a remove too many", (A, ONLY_REMOVES, B)),
    Bounds("four anonymous", (ANYBODY,) * 4),
    Bounds("one owner, the VM loses its shares, a fault", (A,), losses=1, faults=1),
    Bounds("one owner, the VM loses its shares, a cancellation", (A,), losses=1, cancels=1),
)
LONG = (
    Bounds("two anonymous, a cancellation, a fault", (ANYBODY, ANYBODY), cancels=1, faults=1),
    Bounds("two owners, a cancellation, a fault", (A, B), cancels=1, faults=1),
    Bounds("two owners, a fault, the loop ends", (A, B), faults=1, loop_ends=True),
    Bounds("one owner twice, one anonymous, a cancellation", (A, A, ANYBODY), cancels=1),
    Bounds("a remove too many among three", (A, ONLY_REMOVES, B, ANYBODY)),
)
SOAK = (
    Bounds("three owners, a cancellation", (A, B, C), cancels=1),
    Bounds("four anonymous, a cancellation", (ANYBODY,) * 4, cancels=1),
    Bounds("a remove too many, a fault", (A, ONLY_REMOVES, B), faults=1),
    Bounds("one owner twice, another, one anonymous", (A, A, B, ANYBODY)),
    Bounds("one owner twice, a cancellation, a fault", (A, A), cancels=1, faults=1),
    Bounds("two owners, a cancellation, a fault, the loop ends", (A, B), cancels=1, faults=1, loop_ends=True),
    Bounds("one owner twice, another, a cancellation, a fault", (A, A, B), cancels=1, faults=1),
    Bounds("four owners, a cancellation", (A, B, C, D), cancels=1),
    Bounds("two owners, the VM loses its shares", (A, B), losses=1),
    Bounds("one owner, the VM loses its shares twice, a fault", (A,), losses=2, faults=1),
    Bounds("two owners, the VM loses its shares, a fault", (A, B), losses=1, faults=1),
    Bounds("two owners, the VM loses its shares, a cancellation", (A, B), losses=1, cancels=1),
    Bounds("one owner, the VM loses its shares, two faults", (A,), losses=1, faults=2),
)
"""Each takes half a minute or more. Two cancellations and two faults at once did not end within half an hour."""


@searches(SHORT, LONG, SOAK)
def test_every_order(bounds: Bounds, record_property: Callable[[str, object], None]) -> None:
    found = try_every_order(bounds, record_property)
    assert found.orders >= found.states > 100


def steal_claims(claims: Claims[Share, AddOptions], share: Share) -> None:
    share.claims = 0
    claims._engine.withdrawn(share)


def withdraw_only(claims: Claims[Share, AddOptions], share: Share) -> None:
    share.claims -= 1


def keep_twice(claims: Claims[Share, AddOptions], share: Share, owner: Hashable | None) -> None:
    share.claims -= 1
    share.refer(owner)
    share.anonymous += 1


def never_end(engine: ShareEngine, share: Share, operation: Operation) -> None:
    share.operation = None


@pytest.mark.parametrize(
    ("where", "method", "defect", "complaint"),
    [
        (Claims, "withdraw", steal_claims, "share 0 of 'b' is being removed"),
        (Claims, "withdraw", withdraw_only, "nobody wants share 1"),
        (Claims, "keep", keep_twice, "a reference too many"),
        (ShareEngine, "_end", never_end, "wait for ever"),
    ],
)
def test_a_planted_defect_is_found(
    monkeypatch: pytest.MonkeyPatch, where: type, method: str, defect: Callable[..., None], complaint: str
) -> None:
    monkeypatch.setattr(where, method, defect)
    with pytest.raises(AssertionError, match=complaint) as raised:
        explore(Bounds("", (A, B), cancels=1).make)
    assert raised.value.__notes__[0].startswith("after: 0 add, callback")


# ---------------------------------------------------------------------- long random walks


class Walk(RuleBasedStateMachine):
    """Many callers around two shares, with everything that can go wrong, in a random order."""

    owners = st.sampled_from([None, "a", "b", "c"])
    options = st.sampled_from([ONE, OTHER])

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    @rule(options=options, owner=owners)
    def add(self, options: AddOptions, owner: str | None) -> None:
        self.world.add(options, owner)

    @rule(back=st.integers(-1, 5), owner=owners)
    def remove(self, back: int, owner: str | None) -> None:
        self.world.remove(str(max(0, self.world.manager._engine.next_name - 1 - back)), owner)

    @rule(options=options)
    def resolve(self, options: AddOptions) -> None:
        name = self.world.manager.resolve_share_name(options)
        assert self.world.manager._engine.table[name].options == options

    @precondition(lambda self: self.world.calls)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        call = data.draw(st.sampled_from(self.world.calls))
        assert call.task is not None
        call.task.cancel()

    @precondition(lambda self: any(call.held for call in self.world.vm.in_flight.values()))
    @rule(data=st.data(), reply=st.sampled_from([FakeReply.SUCCEED, FakeReply.SUCCEED, *FAULTS]))
    def answer(self, data: st.DataObject, reply: FakeReply) -> None:
        held = [name for name, call in self.world.vm.in_flight.items() if call.held]
        self.world.vm.in_flight[data.draw(st.sampled_from(held))].answer(reply)

    @precondition(lambda self: self.world.loop.ready)
    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            if self.world.loop.ready:
                self.world.loop.step()
                self.world.check()

    @rule()
    def settle(self) -> None:
        while self.world.loop.ready:
            self.world.loop.step()
            self.world.check()

    @precondition(lambda self: not self.world.loop.ready and self.world.loop.next_timer is not None)
    @rule()
    def tick(self) -> None:
        self.world.loop.tick()

    @invariant()
    def everything_holds(self) -> None:
        self.world.check()
        assert not self.world.loop.noise

    def teardown(self) -> None:
        """From wherever it came: with a VM that answers again, everybody gets an answer and everything goes."""
        world = self.world
        self._let_the_vm_answer()
        world.check_end()
        world.relied_on.clear()  # closing takes the shares of all
        world.relied_on_anonymously.clear()
        closing = world.loop.create_task(world.manager.aclose())
        self._let_the_vm_answer()
        closing.result()
        assert not world.vm.shares
        assert not world.manager.shares()
        assert not world.loop.noise

    def _let_the_vm_answer(self) -> None:
        world = self.world
        world.vm.hold = False
        while True:
            self.settle()
            held = [call for call in world.vm.in_flight.values() if call.held]
            for call in held:
                call.answer(FakeReply.SUCCEED)
            if not held and world.loop.next_timer is None:
                return
            if not held:
                world.loop.tick()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=75, stateful_step_count=60, deadline=None, derandomize=True)


class LongWalk(Walk):
    """The same from another beginning every time."""


TestLongWalk = pytest.mark.soak(LongWalk.TestCase)
TestLongWalk.settings = settings(max_examples=500, stateful_step_count=150, deadline=None)
