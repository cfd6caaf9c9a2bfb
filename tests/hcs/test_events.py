"""Events of a compute system, its exit, and the ends of the service, the handle and the event loop."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.hcs.conftest import VM
from tests.hcs.harness import adding, in_loop, opened, removing, turns, until

from uvmshare import errors
from uvmshare.hcs import computecore, schema
from uvmshare.hcs.compute_system import ComputeSystem, Event, EventType

if TYPE_CHECKING:
    from tests.hcs.conftest import StandIn


@in_loop
async def test_when_the_vm_exits_those_who_wait_are_told(standin: StandIn) -> None:
    async with await opened(standin) as system:
        told: list[errors.ComputeSystemStopped] = []
        system.on_exit(told.append)
        events = system.events()
        waiting = asyncio.create_task(system.wait_exit())
        standin.hold()
        task = asyncio.create_task(system.modify(adding()))
        await until(standin, "held")
        data = '{"Status":-1070137082,"ExitType":"UnexpectedExit"}'
        standin.exit(VM, data)
        with pytest.raises(errors.ComputeSystemStopped, match="UnexpectedExit, status 0xC0370106") as caught:
            await task
        assert caught.value.hresult == 0xC0370106
        assert await waiting == schema.ExitStatus(status=-1070137082, exit_type="UnexpectedExit")
        assert [event async for event in events] == [Event(EventType.SYSTEM_EXITED, data)]
        assert [event async for event in events] == []
        [error] = told
        assert str(error) == (
            f"compute system {VM}: the VM has exited (UnexpectedExit, status 0xC0370106): "
            f"start it again, then add its shares again"
        )
        with pytest.raises(errors.ComputeSystemStopped):
            await system.modify(removing())
        assert standin.count("modify") == 1
        # Who asks later hears the same.
        late: list[errors.ComputeSystemStopped] = []
        system.on_exit(late.append)
        await turns()
        assert len(late) == 1
        assert [event.type async for event in system.events()] == [EventType.SYSTEM_EXITED]
        standin.let_end()


@in_loop
async def test_an_exit_that_says_nothing_is_one_all_the_same(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.exit(VM, "not JSON")
        assert await system.wait_exit() == schema.ExitStatus()


@in_loop
async def test_operations_that_hcs_ends_with_the_vm_are_gone_too(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.hold()
        tasks = [asyncio.create_task(system.modify(adding(str(number)))) for number in range(3)]
        await until(standin, "held", 3)
        standin.exit(VM, end_operations=True)
        for task in tasks:
            with pytest.raises(errors.ComputeSystemGone):
                await task


@in_loop
async def test_when_the_service_goes_away_the_outcome_is_unknown_and_the_handle_is_dead(standin: StandIn) -> None:
    async with await opened(standin) as system:
        told: list[errors.ComputeSystemStopped] = []
        system.on_exit(told.append)
        waiting = asyncio.create_task(system.wait_exit())
        standin.hold()
        task = asyncio.create_task(system.modify(adding()))
        await until(standin, "held")
        standin.disconnect()
        with pytest.raises(errors.ServiceDisconnected):
            await task
        with pytest.raises(errors.ServiceDisconnected):
            await waiting
        with pytest.raises(errors.InvalidState, match="open the compute system again"):
            await system.modify(adding())
        system.on_exit(told.append)
        await turns()
        assert told == []  # the VM may well run on


@in_loop
async def test_events_come_in_order_and_to_everybody(standin: StandIn) -> None:
    async with await opened(standin) as system:
        first, second = system.events(), system.events()
        for data in ("{}", '{"a":1}'):
            standin.event(VM, EventType.SYSTEM_CRASH_REPORT, data)
            standin.settle()  # the stand-in has several threads
        standin.event(VM, 99)
        standin.settle()
        await turns()
    expected = [
        Event(EventType.SYSTEM_CRASH_REPORT, "{}"),
        Event(EventType.SYSTEM_CRASH_REPORT, '{"a":1}'),
        Event(99, ""),
    ]
    assert [event async for event in first] == expected
    assert [event async for event in second] == expected
    assert [event async for event in system.events()] == []


@in_loop
async def test_a_closed_compute_system_refuses_and_says_who_closed_it(standin: StandIn) -> None:
    system = await opened(standin)
    waiting = asyncio.create_task(system.wait_exit())
    await turns()
    await asyncio.gather(system.close(), system.close())
    await system.close()
    for request in (system.modify(adding()), system.properties(), system.wait_exit(), waiting):
        with pytest.raises(errors.ComputeSystemClosed, match="closed here"):
            await request
    standin.exit(VM)  # reaches nobody
    assert standin.count("systems") == 0


@in_loop
async def test_closing_waits_for_what_is_under_way(standin: StandIn) -> None:
    system = await opened(standin)
    standin.hold()
    task = asyncio.create_task(system.modify(adding()))
    await until(standin, "held")
    closing = asyncio.create_task(system.close())
    await turns()
    assert not closing.done()
    closing.cancel()  # the closing goes on
    with pytest.raises(asyncio.CancelledError):
        await closing
    standin.let_end()
    await system.close()
    assert task.done()
    assert standin.names() == ["0"]


def test_an_operation_that_ends_after_the_event_loop_leaves_nothing(standin: StandIn) -> None:
    async def leave_at_once() -> None:
        await ComputeSystem.enumerate(timeout=0, grace=0, core=standin.core)

    standin.hold()
    with pytest.raises(errors.OperationTimedOut):
        asyncio.run(leave_at_once())
    standin.wait("held")
    standin.let_end()
    standin.settle()
    standin.join_callers()  # who handed it over may be the last to let go of it
    assert standin.count("operations") == 0


def test_an_event_after_the_event_loop_reaches_nobody(standin: StandIn) -> None:
    system = asyncio.run(opened(standin))
    standin.exit(VM)
    standin.settle()
    handle = system._handle
    assert handle is not None
    standin.core.close_compute_system(handle)
    system._executor.shutdown()


def test_text_with_a_nul_is_refused_for_hcs_would_read_half_of_it() -> None:
    with pytest.raises(errors.InvalidDocument, match="leave it out"):
        computecore._text("a\0b")


def test_a_defect_while_handing_over_is_raised_and_not_waited_for(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with await opened(standin) as system:
            monkeypatch.setattr(computecore.HcsOperation, "start", lambda _: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await system.modify(adding())

    asyncio.run(main())
