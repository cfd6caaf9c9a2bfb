"""Callers that do not wait: time-outs, cancellations, and what must not overtake what."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.hcs.conftest import HOLD_IT
from tests.hcs.harness import adding, begin_times_when_held, in_loop, opened, removing, turns, until

from uvmshare import errors
from uvmshare.hcs.compute_system import ComputeSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.hcs.conftest import StandIn


@in_loop
async def test_a_time_out_cancels_the_operation_and_waits_for_its_end(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_times_when_held(standin, monkeypatch)
    async with await opened(standin, timeout=0) as system:
        standin.hold()
        task = asyncio.create_task(system.modify(adding()))
        await until(standin, "held")
        await until(standin, "cancel")
        await turns()
        assert not task.done()
        standin.let_end()
        await task  # HCS cancels nothing, today: it was done, and that is known
        assert standin.names() == ["0"]


@in_loop
async def test_a_time_out_where_hcs_does_cancel_leaves_the_outcome_unknown(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_times_when_held(standin, monkeypatch)
    standin.cancel_works()
    async with await opened(standin, timeout=0) as system:
        standin.hold()
        with pytest.raises(errors.OutcomeUnknown) as caught:
            await system.modify(adding())
        assert (caught.value.hresult, standin.count("cancel"), standin.names()) == (0x80004004, 1, [])


@in_loop
async def test_a_cancelled_caller_cancels_the_operation_and_waits_for_its_end(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.hold()
        task = asyncio.create_task(system.modify(adding()))
        await until(standin, "held")
        task.cancel()
        await until(standin, "cancel")
        for _ in range(3):  # impatience changes nothing
            task.cancel()
            await turns()
            assert not task.done()
        standin.let_end()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert standin.count("cancel") == 1
        assert standin.count("operations") == 0


@in_loop
async def test_an_operation_cancelled_before_it_was_handed_over_is_not(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.block("HcsModifyComputeSystem")
        tasks = [asyncio.create_task(system.modify(adding(str(number)))) for number in range(5)]
        await until(standin, "blocked", 4)  # all threads there are
        tasks[4].cancel()
        await turns()
        standin.unblock()
        await asyncio.gather(*tasks[:4])
        with pytest.raises(asyncio.CancelledError):
            await tasks[4]
        standin.settle()
        # It was handed over first, or it was cancelled first; in any case it has ended.
        assert sorted(standin.names())[:4] == ["0", "1", "2", "3"]
        assert standin.count("operations") == 0


@in_loop
async def test_a_cancellation_while_the_operation_is_handed_over_reaches_hcs_after_that(standin: StandIn) -> None:
    standin.cancel_works()
    async with await opened(standin) as system:
        standin.hold()
        standin.block("HcsModifyComputeSystem")
        task = asyncio.create_task(system.modify(adding()))
        await until(standin, "blocked")
        task.cancel()
        await turns()
        standin.unblock()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (standin.count("cancel"), standin.names()) == (1, [])


@in_loop
async def test_an_operation_without_end_is_given_up_but_kept_and_none_overtakes_it(
    standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_times_when_held(standin, monkeypatch)
    system = await opened(standin, timeout=0, grace=0)
    standin.hold()
    with pytest.raises(errors.OperationTimedOut, match="no end after 0 s"):
        await system.modify(adding())
    await until(standin, "held")
    for _ in range(2):
        with pytest.raises(errors.OperationTimedOut, match="this one was not sent"):
            await system.modify(removing())
    assert standin.count("modify") == 1
    with pytest.raises(errors.OperationTimedOut, match="have not ended"):
        await system.close()
    assert (standin.count("operations"), standin.count("systems")) == (1, 1)
    standin.hold(on=False)
    standin.let_end()
    while standin.count("systems"):  # closed when the operation has ended
        await asyncio.to_thread(standin.settle)
    assert standin.count("operations") == 0


@in_loop
async def test_a_request_waits_for_an_earlier_one_for_the_same_share_and_others_do_not(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.inject("HcsModifyComputeSystem", 0, HOLD_IT)
        first = asyncio.create_task(system.modify(adding()))
        await until(standin, "held")
        second = asyncio.create_task(system.modify(removing()))
        third = asyncio.create_task(system.modify(adding("1")))
        await third
        assert (standin.count("modify"), first.done(), second.done()) == (2, False, False)
        standin.let_end()
        await asyncio.gather(first, second)
        assert standin.names() == ["1"]


@in_loop
async def test_the_event_loop_never_waits_for_the_dll(standin: StandIn) -> None:
    async def runs_on_while(function: str, task: asyncio.Task[Any]) -> None:
        await until(standin, "blocked")
        await turns()
        assert not task.done(), function
        standin.unblock()

    standin.block("HcsOpenComputeSystem")
    opening = asyncio.create_task(opened(standin))
    await runs_on_while("HcsOpenComputeSystem", opening)
    system = await opening
    requests: list[tuple[str, Callable[[], Coroutine[Any, Any, Any]]]] = [
        ("HcsCreateOperation", lambda: system.modify(adding("1"))),
        ("HcsModifyComputeSystem", lambda: system.modify(adding("2"))),
        ("HcsGetOperationResult", lambda: system.modify(adding("3"))),
        ("HcsGetComputeSystemProperties", system.properties),
        ("HcsEnumerateComputeSystems", lambda: ComputeSystem.enumerate(core=standin.core)),
        ("HcsCloseComputeSystem", system.close),
    ]
    for function, request in requests:
        standin.block(function)
        task = asyncio.create_task(request())
        await runs_on_while(function, task)
        await task


@in_loop
async def test_a_cancelled_opening_leaves_no_handle(standin: StandIn) -> None:
    standin.block("HcsOpenComputeSystem")
    task = asyncio.create_task(opened(standin))
    await until(standin, "blocked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    standin.unblock()
    await asyncio.to_thread(standin.join_callers)
    assert standin.count("systems") == 0
    # The same, when there is nothing to close.
    standin.block("HcsOpenComputeSystem")
    standin.inject("HcsOpenComputeSystem", 0x80070005)
    task = asyncio.create_task(opened(standin))
    await until(standin, "blocked")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
