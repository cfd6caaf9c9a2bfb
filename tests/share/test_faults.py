"""Each call to the VM and each append to the journal of a life fails, in every way that it can, and nothing is lost.

What lives here: a life that does everything at once, faults that are planted in it one or two at a time, and what
has to hold when time has passed, and when the process ends and the next one recovers. The properties are those of a
killed process (tests/acknowledged.py). A caller that gets no answer gives up after a minute, as its own time-out would.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING

import pytest
from tests.acknowledged import require_kept
from tests.reliability_results import write_down

from uvmshare.errors import ComputeSystemError, JournalError
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeJournal, FakeReply, FakeVM, ListingFakeVM
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Awaitable


ONE, TWO, THREE = (
    AddOptions(path, read_only=True)
    for path in (os.path.dirname(__file__), os.path.dirname(os.path.dirname(__file__)), os.path.dirname(os.__file__))
)
VM_FAULTS = (FakeReply.FAIL, FakeReply.LOSE_BEFORE, FakeReply.LOSE_AFTER, FakeReply.NEVER)
APPEND_FAULTS = (FakeReply.FAIL, FakeReply.LOSE_AFTER, FakeReply.NEVER)

Fault = tuple[str, int, FakeReply]
"""In what, at which of its calls, and how."""


class Life:
    """One process: a Manager, those who ask it, and what they were told."""

    def __init__(self, vm: FakeVM, journal: FakeJournal, told: list[tuple[str, str | None, str, str | None]]) -> None:
        self.vm = vm
        self.manager = Manager(vm, journal=journal)
        self._told = told

    async def add(self, options: AddOptions, owner: str | None) -> str | None:
        self._told.append(("adding", owner, options.host_path, None))
        try:
            async with asyncio.timeout(60):
                name = await self.manager.add(options, owner=owner)
        except ComputeSystemError:
            self._told.append(("failed", owner, options.host_path, None))
            return None
        except (JournalError, TimeoutError):
            return None
        self._told.append(("added", owner, options.host_path, name))
        return name

    async def remove(self, name: str | None, owner: str | None) -> None:
        if name is None:
            return
        self._told.append(("removing", owner, name, None))
        with suppress(ComputeSystemError, JournalError, TimeoutError):
            async with asyncio.timeout(60):
                await self.manager.remove(name, owner=owner)
            self._told.append(("removed", owner, name, None))

    async def block(self) -> str | None:
        second = None
        with suppress(ComputeSystemError, JournalError):
            async with self.manager.share(THREE):
                second = await self.add(TWO, "b")
        return second

    async def everything(self) -> None:
        a, b, _ = await asyncio.gather(self.add(ONE, "a"), self.add(ONE, "b"), self.add(TWO, "a"))
        anonymous = await self.add(ONE, None)
        block = asyncio.create_task(self.block())
        await asyncio.wait({block}, timeout=300)
        second = block.result() if block.done() else None
        await self.remove(a, "a")
        await asyncio.gather(self.remove(b, "b"), self.remove(anonymous, None))
        third = await self.add(THREE, "c")
        await self.add(ONE, "c")
        await self.remove(third, "c")
        await self.remove(second, "b")


def replies(faults: tuple[Fault, ...], where: str) -> deque[FakeReply]:
    """Return how the calls end: in order, but for the faults."""
    of_here = {number: reply for place, number, reply in faults if place == where}
    return deque(of_here.get(number, FakeReply.SUCCEED) for number in range(max(of_here, default=-1) + 1))


def live(faults: tuple[Fault, ...], vm_class: type[FakeVM], *, time_passes: bool) -> tuple[int, int]:
    """Live with the faults, then recover, and check; return how many calls and appends there were."""
    vm, journal = vm_class(), FakeJournal()
    told: list[tuple[str, str | None, str, str | None]] = []
    counts = (0, 0)

    async def first() -> None:
        nonlocal counts
        life = Life(vm, journal, told)
        await life.manager.recover()
        journal.replies += replies(faults, "append")
        vm.replies += replies(faults, "vm")
        before = len(journal.appended)
        await life.everything()
        counts = (len(vm.calls), len(journal.appended) - before)
        journal.replies.clear()
        vm.replies.clear()
        if time_passes:
            await asyncio.sleep(600)
            require_settled(life.manager)

    def require_settled(manager: Manager) -> None:
        held = {}
        for info in manager.shares():
            assert (info.state, info.orphan, info.busy) == (ShareState.ADDED, False, None), info
            held[info.name] = (info.options.host_path, info.owners, info.references)
        on_vm = {name: options.host_path for name, options in vm.shares.items()}
        added = [(call.name, str(call.options)) for call in vm.calls if call.kind == "add"]
        require_kept(told, held, on_vm, added)
        written = {name: (share.owners, share.anonymous) for name, share in journal.state.shares.items()}
        assert written == {name: (owners, count - len(owners)) for name, (_, owners, count) in held.items()}

    async def second() -> None:
        manager = Manager(vm, journal=journal)
        await manager.recover()
        require_settled(manager)
        await manager.detach()

    run(first())
    run(second())
    return counts


def every_fault(calls: int, appends: int) -> list[Fault]:
    return [("vm", number, reply) for number, reply in product(range(calls), VM_FAULTS)] + [
        ("append", number, reply) for number, reply in product(range(appends), APPEND_FAULTS)
    ]


def try_all(faults: list[tuple[Fault, ...]], vm_class: type[FakeVM]) -> int:
    tried = 0
    for planted in faults:
        never = any(reply is FakeReply.NEVER for _, _, reply in planted)
        for time_passes in (False,) if never else (False, True):
            try:
                live(planted, vm_class, time_passes=time_passes)
            except BaseException as error:
                error.add_note(f"with {planted}, and {'time' if time_passes else 'no time'} before the process ends")
                raise
            tried += 1
    return tried


@pytest.mark.parametrize("vm_class", [ListingFakeVM, FakeVM])
def test_a_call_or_append_that_fails_in_any_way_loses_nothing(vm_class: type[FakeVM]) -> None:
    calls, appends = live((), vm_class, time_passes=True)
    assert calls == 8
    assert appends > 10
    tried = try_all([(fault,) for fault in every_fault(calls, appends)], vm_class)
    kind = "lists its shares" if vm_class is ListingFakeVM else "cannot"
    write_down(
        f"faults-of-calls{'' if vm_class is ListingFakeVM else '-cannot-tell'}",
        f"One fault, a VM that {kind}; {calls} calls, {appends} appends",
        points=tried,
        kills=0,
        losses=0,
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_that_fail_in_any_way_lose_nothing() -> None:
    calls, appends = live((), ListingFakeVM, time_passes=True)
    faults = every_fault(calls, appends)
    pairs = [
        (one, other)
        for one, other in product(faults, repeat=2)
        if one[:2] < other[:2] and FakeReply.NEVER not in (one[2], other[2])
    ]
    tried = try_all(list(pairs), ListingFakeVM)
    write_down("faults-of-two-calls", "Every two faults together", points=tried, kills=0, losses=0)


def test_a_planted_defect_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from uvmshare.share.ledger import Ledger

    def nothing_in_line(ledger: Ledger) -> None:
        ledger._line.clear()

    monkeypatch.setattr(Ledger, "_write_later", nothing_in_line)

    def some() -> Awaitable[None] | None:
        try_all([(("append", number, FakeReply.FAIL),) for number in range(12)], ListingFakeVM)
        return None

    with pytest.raises(AssertionError):
        some()
