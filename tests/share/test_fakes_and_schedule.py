"""The tools of the other tests, which users get too: the fake VM, the virtual loop, the search through all orders."""

from __future__ import annotations

import asyncio
import gc
import itertools
from functools import partial
from math import comb
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import ComputeSystemError, ComputeSystemGone, OutcomeUnknown, ShareExists, ShareNotFound
from uvmshare.share.interfaces import NamedShare
from uvmshare.share.options import AddOptions
from uvmshare.testing.explore import explore, fingerprint
from uvmshare.testing.fakes import FakeCall, FakeReply, FakeVM
from uvmshare.testing.schedule import Deadlock, Noise, VirtualLoop, run

if TYPE_CHECKING:
    from collections.abc import Callable

SHARE = NamedShare("0", AddOptions(Path(__file__).parent))


# ---------------------------------------------------------------------- the fake VM


@pytest.mark.parametrize(
    ("reply", "error", "done"),
    [
        (FakeReply.SUCCEED, None, True),
        (FakeReply.FAIL, ComputeSystemError, False),
        (FakeReply.LOSE_BEFORE, OutcomeUnknown, False),
        (FakeReply.LOSE_AFTER, OutcomeUnknown, True),
        (ZeroDivisionError(), ZeroDivisionError, False),
    ],
)
async def test_the_fake_does_what_the_reply_says(
    reply: FakeReply | Exception, error: type[Exception] | None, done: bool
) -> None:
    vm = FakeVM()
    vm.replies.append(reply)
    (added,) = await asyncio.gather(vm.add_plan9(SHARE), return_exceptions=True)
    assert added is None if error is None else type(added) is error
    assert vm.shares == ({"0": SHARE.options} if done else {})
    vm.shares = {"0": SHARE.options}
    vm.replies.append(reply)
    (removed,) = await asyncio.gather(vm.remove_plan9(SHARE), return_exceptions=True)
    assert removed is None if error is None else type(removed) is error
    assert bool(vm.shares) is not done
    assert [(call.kind, call.name) for call in vm.calls] == [("add", "0"), ("remove", "0")]


async def test_the_fake_knows_what_it_has() -> None:
    vm = FakeVM()
    with pytest.raises(ShareNotFound):
        await vm.remove_plan9(SHARE)
    await vm.add_plan9(SHARE)
    with pytest.raises(ShareExists):
        await vm.add_plan9(SHARE)
    vm.gone = True
    with pytest.raises(ComputeSystemGone):
        await vm.remove_plan9(SHARE)


async def test_a_held_call_waits_for_its_answer() -> None:
    vm = FakeVM()
    vm.hold = True
    adding = asyncio.create_task(vm.add_plan9(SHARE))
    await asyncio.sleep(1)
    assert vm.in_flight["0"].held
    vm.in_flight["0"].answer(FakeReply.SUCCEED)
    with pytest.raises(RuntimeError, match="not being held"):
        vm.in_flight["0"].answer(FakeReply.SUCCEED)
    await adding
    assert not vm.in_flight
    with pytest.raises(RuntimeError, match="not being held"):
        FakeCall("add", "0", SHARE.options).answer(FakeReply.FAIL)


async def test_two_calls_for_one_name_are_a_fault() -> None:
    vm = FakeVM()
    vm.replies.append(FakeReply.NEVER)
    adding = asyncio.create_task(vm.add_plan9(SHARE))
    await asyncio.sleep(1)
    with pytest.raises(AssertionError, match="remove of share 0 came during its add"):
        await vm.remove_plan9(SHARE)
    assert vm.faults == ["remove of share 0 came during its add"]
    adding.cancel()
    await asyncio.gather(adding, return_exceptions=True)
    assert not vm.in_flight
    assert not vm.shares


# ---------------------------------------------------------------------- the virtual loop


def test_who_waits_for_the_rest_of_a_time_sees_its_end_however_short_it_is() -> None:
    """As another clock has it: what is left of its time may be less than what counts beside the loop's."""

    async def wait() -> int:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(2050.3)
        end, looked = loop.time() * 0.1 + 1e-13, 0
        while (left := end - loop.time() * 0.1) > 0:
            await asyncio.sleep(left)
            looked += 1
            assert looked < 10, "no time passes"
        return looked

    assert run(wait()) > 0


def test_an_hour_takes_no_time_and_timers_keep_their_order() -> None:
    woken = []

    async def sleeper(seconds: float) -> float:
        await asyncio.sleep(seconds)
        woken.append(seconds)
        return asyncio.get_running_loop().time()

    async def main() -> list[float]:
        cancelled = asyncio.create_task(sleeper(1))
        await asyncio.sleep(0)
        cancelled.cancel()
        return await asyncio.gather(*(sleeper(seconds) for seconds in (3600, 5, 5.5, 5)))

    assert run(main()) == [3600, 5, 5.5, 5]
    assert woken == [5, 5, 5.5, 3600]


def test_cancelled_callbacks_do_not_run() -> None:
    loop = VirtualLoop()
    ran: list[int] = []
    for number in range(3):
        loop.call_soon(ran.append, number)
    cancelled = loop.call_soon(ran.append, 3)
    loop.call_soon(ran.append, 4)
    cancelled.cancel()
    loop.settle()
    assert ran == [0, 1, 2, 4]
    assert not loop.ready
    assert loop.next_timer is None


def test_what_waits_for_ever_is_found() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match="waits for ever"):
        run(main())


def test_what_asyncio_complains_of_is_an_error() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        assert task.done()

    with pytest.raises(Noise, match=r"never retrieved.*ZeroDivisionError"):
        run(main())


def test_the_loop_says_what_it_is() -> None:
    async def main() -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        assert loop.is_running()
        assert not loop.is_closed()
        assert not loop.get_debug()
        return loop

    loop = run(main())
    assert loop.is_closed()
    assert not loop.is_running()
    with pytest.raises(NotImplementedError):
        loop.add_reader(0, print)


# ---------------------------------------------------------------------- every order


class Counters:
    """Two tasks of a few steps each that are started from outside, and whatever a test adds."""

    def __init__(self, steps: tuple[int, ...], *, keep_history: bool = False) -> None:
        self.loop = VirtualLoop()
        self.waiting = list(steps)
        self.gates: list[asyncio.Future[None] | None] = [None for _ in steps]
        self.history: list[int] = []
        self.keep_history = keep_history

    def events(self) -> list[tuple[str, Callable[[], None]]]:
        return [(f"step {number}", partial(self._step, number)) for number, left in enumerate(self.waiting) if left]

    def _step(self, number: int) -> None:
        self.waiting[number] -= 1
        if self.keep_history:
            self.history.append(number)

    def state(self) -> object:
        return self.waiting, self.history

    def check(self) -> None:
        pass

    def check_end(self) -> None:
        assert not any(self.waiting)


@pytest.mark.parametrize("keep_history", [False, True])
def test_the_orders_of_two_sequences_are_counted_whether_states_merge_or_not(keep_history: bool) -> None:
    found = explore(lambda: Counters((5, 4), keep_history=keep_history))
    assert found.orders == comb(9, 4)
    prefixes = sum(comb(a + b, a) for a, b in itertools.product(range(6), range(5)))
    assert found.states == (prefixes if keep_history else 6 * 5)
    assert found.steps == (prefixes - 1 if keep_history else 5 * 5 + 6 * 4)
    assert str(found).startswith("126 orders of events through")


class Racers(Counters):
    """Tasks that read, wait a moment and write: the classic lost update."""

    def __init__(self, *, late: bool = False) -> None:
        super().__init__((1, 1))
        self.value = 0
        self.late = late
        self.tasks: list[asyncio.Task[None]] = []

    def _step(self, number: int) -> None:
        super()._step(number)
        self.tasks.append(self.loop.create_task(self._add_one()))

    async def _add_one(self) -> None:
        value = self.value
        await asyncio.sleep(1 if self.late else 0)
        self.value = value + 1

    def state(self) -> object:
        return self

    def check_end(self) -> None:
        assert self.value == 2, "an update was lost"


@pytest.mark.parametrize("late", [False, True])
def test_a_race_is_found_and_the_order_that_leads_to_it_is_told(late: bool) -> None:
    with pytest.raises(AssertionError, match="an update was lost") as raised:
        explore(lambda: Racers(late=late))
    assert raised.value.__notes__[0].startswith("after: step 0, ")
    assert ("clock" in raised.value.__notes__[0]) is late


def test_orders_that_never_end_are_refused() -> None:
    class Circle(Counters):
        def _step(self, number: int) -> None:
            self.waiting[number] = 3 - self.waiting[number]

        def check_end(self) -> None:
            raise NotImplementedError

    with pytest.raises(ValueError, match="come back to a state"):
        explore(lambda: Circle((1, 0)))


def test_noise_in_a_world_is_an_error() -> None:
    class Noisy(Counters):
        def _step(self, number: int) -> None:
            super()._step(number)
            self.loop.call_soon(lambda: 1 / 0)

    with pytest.raises(Noise, match="ZeroDivisionError"):
        explore(lambda: Noisy((1,)))


# ---------------------------------------------------------------------- equal states


class Pair:
    def __init__(self, left: object, right: object) -> None:
        self.left = left
        self.right = right


def test_states_are_equal_by_how_they_hang_together() -> None:
    a, b = [1], [1]
    assert fingerprint(Pair(a, a)) == fingerprint(Pair(b, b))
    assert fingerprint(Pair(a, a)) != fingerprint(Pair(a, b))
    assert fingerprint(Pair(1, True)) != fingerprint(Pair(True, 1))
    assert fingerprint({1, 2}, frozenset("ab")) == fingerprint({2, 1}, frozenset("ba"))
    assert fingerprint(ValueError("x")) != fingerprint(ValueError("y"))
    loop = [a]
    loop.append(loop)  # type: ignore[arg-type]  # a list in itself
    assert fingerprint(loop) == fingerprint(loop)


def test_a_coroutine_is_known_by_its_place_and_variables() -> None:
    async def two_steps(value: int) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(value)

    loop = VirtualLoop()
    first, same, other = (loop.create_task(two_steps(value)) for value in (0, 0, 7))
    assert fingerprint(first) == fingerprint(same) != fingerprint(other)
    before = fingerprint(first)
    loop.step()
    assert fingerprint(first) != before != fingerprint(other)
    loop.step()
    assert fingerprint(first) == fingerprint(same)
    same.cancel()
    assert fingerprint(first) != fingerprint(same)
    for _ in range(2):
        loop.settle()
        if loop.next_timer is not None:
            loop.tick()
    assert first.done()
    assert same.cancelled()
    assert fingerprint(first, first.get_coro()) != fingerprint(same, same.get_coro())


def test_futures_and_handles_are_known_by_what_they_do() -> None:
    loop = VirtualLoop()
    done: asyncio.Future[int] = loop.create_future()
    waiting: asyncio.Future[int] = loop.create_future()
    done.set_result(1)
    assert fingerprint(done) != fingerprint(waiting)
    before = fingerprint(waiting)
    waiting.add_done_callback(print)
    assert fingerprint(waiting) != before
    soon, cancelled = loop.call_soon(print, 1), loop.call_soon(print, 1)
    assert fingerprint(soon) == fingerprint(cancelled)
    cancelled.cancel()
    assert fingerprint(soon) != fingerprint(cancelled)


def test_what_cannot_be_looked_into_is_refused() -> None:
    with pytest.raises(TypeError, match="cannot tell states apart by a count"):
        fingerprint(itertools.count())


def test_nothing_of_this_leaves_noise_behind(caplog: pytest.LogCaptureFixture) -> None:
    gc.collect()
    assert not caplog.records
