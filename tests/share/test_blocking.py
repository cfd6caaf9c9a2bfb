"""The Manager for threads: the same promises, and what threads and interrupts add.

No test here waits for time to pass: a fake VM tells the test's thread when it was called.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uvmshare import blocking
from uvmshare.errors import ComputeSystemError, ManagerClosed, OperationDenied, SharesLeft
from uvmshare.loop_thread import Claim
from uvmshare.share.options import AddOptions
from uvmshare.share.state import ShareState
from uvmshare.testing.fakes import FakeReply, FakeVM

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from uvmshare.share.interfaces import NamedShare

HERE = Path(__file__).parent
ONE = AddOptions(HERE, read_only=True)
OTHER = AddOptions(HERE.parent, read_only=True)
LONGEST = 60
"""Seconds after which a hung test ends; nothing here takes that long."""


class ToldVM(FakeVM):
    """A fake that tells other threads of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.called = threading.Semaphore(0)
        self.on_call: Callable[[], None] = lambda: None

    async def add_plan9(self, share: NamedShare) -> None:
        asyncio.get_running_loop().call_soon(self._tell)
        await super().add_plan9(share)

    async def remove_plan9(self, share: NamedShare) -> None:
        asyncio.get_running_loop().call_soon(self._tell)
        await super().remove_plan9(share)

    def _tell(self) -> None:
        self.on_call()
        self.called.release()

    def wait(self) -> None:
        assert self.called.acquire(timeout=LONGEST)


@pytest.fixture(name="vm")
def _vm() -> ToldVM:
    return ToldVM()


@pytest.fixture(name="manager")
def _manager(vm: ToldVM) -> Iterator[blocking.Manager]:
    with blocking.Manager(vm) as manager:
        yield manager
        vm.hold = False


@pytest.fixture(name="threads")
def _threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as threads:
        yield threads


def answer(manager: blocking.Manager, vm: FakeVM, name: str, reply: FakeReply) -> None:
    async def in_the_loop() -> None:
        vm.in_flight[name].answer(reply)

    manager.run(in_the_loop())


def assert_nobody_holds(manager: blocking.Manager) -> None:
    """Whether a retry has taken the share out meanwhile or not."""

    async def wanted() -> list[str]:
        return [name for name, share in manager._manager._engine.table.items() if share.wanted]

    assert not manager.run(wanted())


def assert_threads_end() -> None:
    for thread in threading.enumerate():
        if thread.name == "uvmshare":
            thread.join(LONGEST)
            assert not thread.is_alive()


def test_the_same_api_without_await(vm: ToldVM, manager: blocking.Manager) -> None:
    assert manager.resolve_share_name(ONE) == "0"
    assert manager.shares()[0].state is ShareState.PENDING
    assert manager.add(ONE) == manager.add(ONE, owner="a") == "0"
    assert [(info.references, info.owners) for info in manager.shares()] == [(2, ("a",))]
    assert manager.shares(name="0", owner="a") == manager.shares()
    assert manager.shares(name="1") == manager.shares(owner="b") == ()
    manager.remove("0")
    manager.remove("0", owner="b")
    assert vm.shares
    manager.remove("0", owner="a")
    assert not vm.shares


def test_errors_come_to_the_caller(vm: ToldVM, manager: blocking.Manager) -> None:
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(ComputeSystemError):
        manager.add(ONE)
    with pytest.raises(TypeError):
        manager.add(ONE, owner=[])  # type: ignore[arg-type]  # the mistake that is tested
    assert not manager.shares()
    with blocking.Manager(vm, no_writable_file_shares=True, clock=lambda: 0.0) as strict:
        with pytest.raises(OperationDenied):
            strict.add(AddOptions(HERE))
        strict.add(ONE)
        assert strict.shares()[0].since.year == 1970


def test_many_threads_share_one_call(vm: ToldVM, manager: blocking.Manager, threads: ThreadPoolExecutor) -> None:
    vm.hold = True
    first = threads.submit(manager.add, ONE)
    vm.wait()
    rest = [threads.submit(manager.add, ONE, owner=number % 3) for number in range(7)]
    answer(manager, vm, "0", FakeReply.SUCCEED)
    assert [add.result(LONGEST) for add in (first, *rest)] == ["0"] * 8
    assert len(vm.calls) == 1
    assert manager.shares()[0].references == 4


def test_threads_that_add_and_remove_leave_nothing(
    vm: ToldVM, manager: blocking.Manager, threads: ThreadPoolExecutor
) -> None:
    def add_and_remove(number: int) -> None:
        options = ONE if number % 2 else OTHER
        for _ in range(20):
            manager.remove(manager.add(options, owner=number), owner=number)
            with manager.share(options):
                assert manager.shares()

    for done in [threads.submit(add_and_remove, number) for number in range(8)]:
        done.result(LONGEST)
    assert not vm.faults
    assert not vm.shares
    assert not manager.shares()


def test_a_block_gives_back_whatever_happens(vm: ToldVM, manager: blocking.Manager) -> None:
    with manager.share(ONE) as name:
        assert vm.shares == {name: ONE}
    assert not vm.shares

    def fail() -> None:
        with manager.share(ONE):
            vm.replies.append(FakeReply.FAIL)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError) as raised:
        fail()
    assert "share 1 could not be removed yet" in raised.value.__notes__[0]
    assert_nobody_holds(manager)


# ---------------------------------------------------------------------- interrupts


@pytest.fixture(name="interrupt")
def _interrupt() -> Callable[[], None]:
    """Return what sends SIGINT to the thread of the test, as Ctrl-C does."""
    if sys.platform == "win32":
        pytest.skip("Windows sends no signal to a thread")
    test = threading.get_ident()
    return lambda: signal.pthread_kill(test, signal.SIGINT)


def test_an_interrupted_add_withdraws_its_own_claim_only(
    vm: ToldVM, manager: blocking.Manager, threads: ThreadPoolExecutor, interrupt: Callable[[], None]
) -> None:
    vm.hold = True
    other = threads.submit(manager.add, ONE, owner="a")
    vm.wait()
    waiting = threading.Event()

    async def interrupt_once_two_wait() -> None:
        share = manager._manager._engine.table["0"]
        while share.claims < 2:  # noqa: ASYNC110  what is waited for is inside the thing under test
            await asyncio.sleep(0)
        interrupt()
        waiting.set()

    threads.submit(manager.run, interrupt_once_two_wait())
    with pytest.raises(KeyboardInterrupt):
        manager.add(ONE, owner="b")
    assert waiting.wait(LONGEST)
    answer(manager, vm, "0", FakeReply.SUCCEED)
    assert other.result(LONGEST) == "0"
    assert manager.shares()[0].owners == ("a",)


def test_an_interrupted_add_that_nobody_else_wants_is_taken_out(
    vm: ToldVM, manager: blocking.Manager, interrupt: Callable[[], None]
) -> None:
    vm.hold = True
    vm.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        manager.add(ONE)
    vm.wait()
    vm.on_call = lambda: None
    answer(manager, vm, "0", FakeReply.SUCCEED)
    vm.wait()
    answer(manager, vm, "0", FakeReply.SUCCEED)
    manager.close()
    assert not vm.shares
    assert [call.kind for call in vm.calls] == ["add", "remove"]


def test_an_interrupt_that_another_thread_took_is_seen(vm: ToldVM, manager: blocking.Manager) -> None:
    vm.hold = True
    vm.on_call = lambda: signal.raise_signal(signal.SIGINT)  # in the event loop's thread: nobody's wait is interrupted
    with pytest.raises(KeyboardInterrupt):
        manager.add(ONE)
    vm.wait()
    vm.on_call = lambda: None
    vm.hold = False
    answer(manager, vm, "0", FakeReply.SUCCEED)
    manager.close()
    assert not vm.shares


def test_a_time_out_of_what_is_waited_for_is_told(manager: blocking.Manager) -> None:
    async def times_out() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        manager.run(times_out())


def test_an_interrupt_together_with_the_answer_leaves_nothing(
    vm: ToldVM, manager: blocking.Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = manager.loop_thread
    post = thread.post

    def interrupted(callback: Callable[..., None], *args: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(thread, "post", interrupted)
    with pytest.raises(KeyboardInterrupt):
        manager.add(ONE)
    assert thread.post == post
    assert_nobody_holds(manager)
    manager.close()
    assert not vm.shares


def test_a_claim_given_up_before_its_answer_is_withdrawn_with_it(manager: blocking.Manager) -> None:
    claim = Claim(manager.asynchronous.claims)
    manager.loop_thread.post(claim.give_up)
    share = manager.run(claim.make(ONE, None))
    manager.loop_thread.post(claim.keep, None)  # too late
    assert share.claims == 0
    assert_nobody_holds(manager)


def test_an_interrupted_remove_goes_on(vm: ToldVM, manager: blocking.Manager, interrupt: Callable[[], None]) -> None:
    name = manager.add(ONE)
    vm.wait()
    vm.hold = True
    vm.on_call = interrupt
    with pytest.raises(KeyboardInterrupt):
        manager.remove(name)
    vm.wait()
    answer(manager, vm, name, FakeReply.SUCCEED)
    manager.close()
    assert [call.kind for call in vm.calls] == ["add", "remove"]
    assert not vm.shares


def test_an_interrupt_at_the_end_of_a_block_does_not_stop_giving_back(
    vm: ToldVM, manager: blocking.Manager, interrupt: Callable[[], None]
) -> None:
    def block() -> None:
        with manager.share(ONE):
            vm.wait()
            vm.hold = True
            vm.on_call = interrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    vm.wait()
    answer(manager, vm, "0", FakeReply.SUCCEED)
    manager.close()
    assert [call.kind for call in vm.calls] == ["add", "remove"]


# ---------------------------------------------------------------------- beginning and end


def test_what_the_vm_needs_is_opened_and_closed_in_the_same_loop(vm: ToldVM) -> None:
    seen = []

    @asynccontextmanager
    async def opened() -> AsyncIterator[FakeVM]:
        seen.append(asyncio.get_running_loop())
        yield vm
        seen.append(asyncio.get_running_loop())
        assert not vm.shares

    with blocking.Manager(opened()) as manager:
        manager.add(ONE)
        assert len(seen) == 1
    assert seen[0] is seen[1]


def test_a_vm_that_cannot_be_opened_is_told_and_leaves_no_thread() -> None:
    @asynccontextmanager
    async def broken() -> AsyncIterator[FakeVM]:
        if threading.current_thread() is not threading.main_thread():
            raise ZeroDivisionError
        yield FakeVM()

    with pytest.raises(ZeroDivisionError):
        blocking.Manager(broken())
    assert_threads_end()


def test_an_interrupt_while_the_vm_is_opened_ends_it(interrupt: Callable[[], None]) -> None:
    seen = []

    @asynccontextmanager
    async def slow() -> AsyncIterator[FakeVM]:
        asyncio.get_running_loop().call_soon(interrupt)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            seen.append("closed")
        yield FakeVM()

    with pytest.raises(KeyboardInterrupt):
        blocking.Manager(slow())
    assert_threads_end()
    assert seen == ["closed"]


def test_a_vm_that_cannot_be_closed_is_told(vm: ToldVM) -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[FakeVM]:
        yield vm
        raise ZeroDivisionError

    manager = blocking.Manager(opened())
    with pytest.raises(ZeroDivisionError):
        manager.close()


def test_after_the_end_everything_is_refused(vm: ToldVM) -> None:
    manager = blocking.Manager(vm)
    manager.add(ONE)
    manager.close()
    manager.close()
    assert not vm.shares
    calls: list[Callable[[], object]] = [
        lambda: manager.add(ONE),
        lambda: manager.remove("0"),
        lambda: manager.share(ONE).__enter__(),
        lambda: manager.resolve_share_name(ONE),
        manager.shares,
    ]
    for call in calls:
        with pytest.raises(ManagerClosed, match="make a new one"):
            call()


def test_closing_can_be_repeated_until_everything_is_out(vm: ToldVM) -> None:
    manager = blocking.Manager(vm)
    manager.add(ONE)
    vm.replies.append(FakeReply.FAIL)
    with pytest.raises(SharesLeft):
        manager.close()
    assert len(manager.shares()) == 1
    manager.close()
    assert not vm.shares


def test_leaving_the_block_ends_the_thread_even_if_shares_are_left(vm: ToldVM) -> None:
    def use() -> None:
        with blocking.Manager(vm) as manager:
            manager.add(ONE)
            vm.replies.append(FakeReply.FAIL)

    with pytest.raises(SharesLeft):
        use()
    assert_threads_end()


def test_those_who_wait_when_the_loop_ends_are_told(vm: ToldVM, threads: ThreadPoolExecutor) -> None:
    manager = blocking.Manager(vm)
    begun = threading.Event()

    async def for_ever() -> None:
        begun.set()
        await asyncio.get_running_loop().create_future()

    waiting = threads.submit(manager.run, for_ever())
    assert begun.wait(LONGEST)
    manager.close()
    with pytest.raises(ManagerClosed):
        waiting.result(LONGEST)


def test_an_add_in_flight_when_the_manager_closes_is_told(
    vm: ToldVM, manager: blocking.Manager, threads: ThreadPoolExecutor
) -> None:
    vm.hold = True
    add = threads.submit(manager.add, ONE)
    vm.wait()
    vm.hold = False
    closing = threads.submit(manager.close)
    while not manager._manager._engine.closed:
        manager.run(asyncio.sleep(0))
    answer(manager, vm, "0", FakeReply.SUCCEED)
    closing.result(LONGEST)
    with pytest.raises(ManagerClosed):
        add.result(LONGEST)
    assert not vm.shares


def test_waiting_in_its_own_loop_is_refused(manager: blocking.Manager) -> None:
    async def mistake() -> None:
        manager.shares()

    with pytest.raises(RuntimeError, match="use the asyncio Manager"):
        manager.run(mistake())
