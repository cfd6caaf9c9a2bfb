from __future__ import annotations

import asyncio
import gc
import json
import queue
import threading
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, cast

import pytest
from tests.hcs.conftest import AFTER_DOING_IT, ALTHOUGH_STARTED, AT_ONCE, AT_THE_END, HOLD_IT, VM

from uvmshare import errors
from uvmshare.hcs import computecore, schema
from uvmshare.hcs.compute_system import ComputeSystem, Event, EventType
from uvmshare.hcs.computecore import ComputeCore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.hcs.conftest import StandIn

DEADLINE = 60.0  # ends a test that hangs; nothing is measured against it


P = ParamSpec("P")


def in_loop(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    @wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), DEADLINE))

    return run


def adding(name: str = "0", path: str = "C:\\x", flags: int = 4) -> schema.ModifySettingRequest:
    share = schema.Plan9Share(name=name, access_name=name, path=path, port=564, flags=flags)
    return schema.ModifySettingRequest(
        resource_path=schema.PLAN9_SHARES, request_type=schema.RequestType.ADD, settings=share
    )


def removing(name: str = "0") -> schema.ModifySettingRequest:
    share = schema.Plan9Share(name=name, access_name=name, port=564)
    return schema.ModifySettingRequest(
        resource_path=schema.PLAN9_SHARES, request_type=schema.RequestType.REMOVE, settings=share
    )


async def opened(standin: StandIn, *, timeout: float = DEADLINE, grace: float = DEADLINE) -> ComputeSystem:  # noqa: ASYNC109  the setting under test
    return await ComputeSystem.open(VM, timeout=timeout, grace=grace, core=standin.core)


async def until(standin: StandIn, what: str, wanted: int = 1) -> None:
    await asyncio.to_thread(standin.wait, what, wanted)


async def turns(count: int = 20) -> None:
    """Let everything run that is ready to run."""
    for _ in range(count):
        await asyncio.sleep(0)


# What it does


@in_loop
async def test_a_share_is_added_and_removed_with_the_documents_of_the_reference(standin: StandIn) -> None:
    async with await opened(standin) as system:
        await system.modify(adding(path="C:\\häuser\\𝄞", flags=5))
        assert standin.shares() == [
            {"Name": "0", "AccessName": "0", "Path": "C:\\häuser\\𝄞", "Port": 564, "Flags": 5, "AllowedFiles": []}
        ]
        assert standin.last_document() == schema.encode(adding(path="C:\\häuser\\𝄞", flags=5)).decode()
        await system.modify(removing())
        assert standin.shares() == []
        assert standin.last_document() == (
            '{"ResourcePath":"VirtualMachine/Devices/Plan9/Shares","RequestType":"Remove",'
            '"Settings":{"Name":"0","AccessName":"0","Port":564}}'
        )


@in_loop
async def test_a_request_to_the_guest_goes_through(standin: StandIn) -> None:
    request = schema.ModifySettingRequest(
        guest_request=schema.GuestRequest(
            request_type=schema.RequestType.ADD,
            resource_type=schema.MAPPED_DIRECTORY,
            settings=schema.MappedDirectory(mount_path="/m", port=564, share_name="0", read_only=True),
        )
    )
    async with await opened(standin) as system:
        await system.modify(request)
    assert schema.decode(standin.last_document().encode()) == request


@in_loop
async def test_properties_and_the_list_of_compute_systems(standin: StandIn) -> None:
    standin.add_system("another")
    expected = schema.ComputeSystemProperties(
        id=VM, system_type="VirtualMachine", owner="standin", runtime_os_type="Linux", state="Running"
    )
    async with await opened(standin) as system:
        assert await system.properties() == expected
    everything = await ComputeSystem.enumerate(core=standin.core)
    assert [found.id for found in everything] == [VM, "another"]
    assert await ComputeSystem.enumerate(schema.SystemQuery(ids=(VM,)), core=standin.core) == (expected,)
    assert await ComputeSystem.enumerate(schema.SystemQuery(owners=("me",)), core=standin.core) == ()


@in_loop
async def test_many_requests_are_under_way_at_once_and_end_in_any_order(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.hold()
        tasks = [asyncio.create_task(system.modify(adding(str(number)))) for number in range(30)]
        await until(standin, "held", 30)
        while standin.count("held"):
            standin.let_end(standin.count("held") - 1)
        await asyncio.gather(*tasks)
        assert sorted(map(int, standin.names())) == list(range(30))


# What goes wrong


@pytest.mark.parametrize("when", [AT_ONCE, AT_THE_END])
@pytest.mark.parametrize(
    ("hresult", "kind"),
    [
        (0x80070005, errors.AccessDenied),
        (0x80310000, errors.DriveLocked),
        (0x80070070, errors.DiskFull),
        (0x8037011B, errors.NotAdministrator),
        (0xC0370110, errors.ComputeSystemStopped),
        (0x8037011E, errors.ServiceDisconnected),
        (0x8007007F, errors.NotSupported),
    ],
)
@in_loop
async def test_an_error_of_hcs_is_raised_and_nothing_was_done(
    standin: StandIn, hresult: int, kind: type[errors.ComputeSystemError], when: int
) -> None:
    async with await opened(standin) as system:
        standin.inject("HcsModifyComputeSystem", hresult, when, "in HCS's own words")
        with pytest.raises(errors.ComputeSystemError) as caught:
            await system.modify(adding())
        assert type(caught.value) is kind
        assert caught.value.hresult == hresult
        assert caught.value.hcs_message == "The request failed; in HCS's own words"
        assert str(caught.value).startswith(f"compute system {VM}: adding share 0 (C:\\x): ")
        assert standin.names() == []
        await system.modify(adding())  # and it goes on
        assert standin.names() == ["0"]


@in_loop
async def test_a_time_out_of_hcs_leaves_the_outcome_unknown(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.inject("HcsModifyComputeSystem", 0x80370118, AFTER_DOING_IT)
        with pytest.raises(errors.OutcomeUnknown):
            await system.modify(adding())
        assert standin.names() == ["0"]


@pytest.mark.parametrize("pending", [0xC0370103, 0x80370117])
@in_loop
async def test_pending_is_an_operation_that_has_started(standin: StandIn, pending: int) -> None:
    async with await opened(standin) as system:
        standin.inject("HcsModifyComputeSystem", pending, ALTHOUGH_STARTED)
        await system.modify(adding())
        assert standin.names() == ["0"]


def test_an_end_that_is_told_although_the_call_failed_is_told_once() -> None:
    class Exports:
        """A DLL that breaks the rules: it tells an end, and then refuses."""

        closed = 0

        def HcsCreateOperation(self, context: int, callback: object) -> int:  # noqa: N802  the DLL's name
            self.context = context
            return 16

        def HcsGetOperationResult(self, operation: int, document: object) -> int:  # noqa: N802  the DLL's name
            return 0x80070005

        def HcsCloseOperation(self, operation: int) -> None:  # noqa: N802  the DLL's name
            self.closed += 1

    def submit(operation: int) -> int:
        computecore._on_operation_ended(operation, exports.context)
        computecore._on_operation_ended(operation, exports.context)
        return 0x80004005

    exports = Exports()
    results: list[computecore.Result] = []
    operation = computecore.Operation(cast("computecore._Exports", exports), submit, results.append)
    operation.start()
    assert results == [computecore.Result(0x80070005, "")]
    assert exports.closed == 1
    operation.cancel()  # nothing is left to cancel


@in_loop
async def test_no_memory_for_an_operation(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.inject("HcsCreateOperation", 0)
        with pytest.raises(errors.ComputeSystemError, match="no memory"):
            await system.modify(adding())


@in_loop
async def test_what_the_documents_hold_is_judged_by_hcs(standin: StandIn) -> None:
    standin.add_system("no-plan9", plan9=False)
    async with await opened(standin) as system:
        await system.modify(adding())
        with pytest.raises(errors.ShareExists):
            await system.modify(adding())
        with pytest.raises(errors.ShareNotFound):
            await system.modify(removing("7"))
        with pytest.raises(errors.InvalidDocument, match="unknown bit in field 'Flags'"):
            await system.modify(adding("1", flags=0x1000))
        with pytest.raises(errors.InvalidDocument, match="AllowedFiles"):
            await system.modify(adding("1", flags=0x84))
        with pytest.raises(errors.NotSupported, match="'VirtualMachine/Devices/Nothing'"):
            await system.modify(schema.ModifySettingRequest(resource_path="VirtualMachine/Devices/Nothing"))
    async with await ComputeSystem.open("no-plan9", core=standin.core) as system:
        with pytest.raises(errors.NotSupported, match="Plan9"):
            await system.modify(adding())


@in_loop
async def test_properties_that_cannot_be_read_are_an_error(standin: StandIn) -> None:
    standin.inject("HcsGetComputeSystemProperties", 0x80004005)
    async with await opened(standin) as system:
        with pytest.raises(errors.ComputeSystemError, match="asking for its properties"):
            await system.properties()
    for document in ("", "{}", "[{}]", "1"):
        with pytest.raises(errors.InvalidDocument, match="properties that cannot be read"):
            schema.decode_properties(document)


@pytest.mark.parametrize("id_", ["", "a\0b"])
@in_loop
async def test_an_id_that_cannot_be(standin: StandIn, id_: str) -> None:
    with pytest.raises(errors.InvalidDocument, match="no id"):
        await ComputeSystem.open(id_, core=standin.core)


@in_loop
async def test_opening_what_is_not_there(standin: StandIn) -> None:
    with pytest.raises(errors.ComputeSystemNotFound, match="nobody"):
        await ComputeSystem.open("nobody", core=standin.core)
    standin.inject("HcsSetComputeSystemCallback", 0x80070005)
    with pytest.raises(errors.AccessDenied):
        await opened(standin)
    standin.inject("HcsOpenComputeSystem", 0x8037011B)
    with pytest.raises(errors.NotAdministrator):
        await opened(standin)
    assert standin.count("systems") == 0


@in_loop
async def test_restrict_file_access_needs_a_windows_that_knows_it(standin: StandIn) -> None:
    share = schema.Plan9Share(name="0", access_name="0", path="C:\\x", port=564, flags=0x84, allowed_files=("f",))
    request = schema.ModifySettingRequest(
        resource_path=schema.PLAN9_SHARES, request_type=schema.RequestType.ADD, settings=share
    )
    old = ComputeCore(standin.core._exports, windows_build=18361)
    async with await ComputeSystem.open(VM, core=old) as system:
        with pytest.raises(errors.UnsupportedPlatform, match="18362 or later, and this is build 18361"):
            await system.modify(request)
        assert standin.count("modify") == 0
        await system.modify(adding("1"))
    new = ComputeCore(standin.core._exports, windows_build=18362)
    async with await ComputeSystem.open(VM, core=new) as system:
        await system.modify(request)
    assert standin.names() == ["1", "0"]


# Callers that do not wait


@in_loop
async def test_a_time_out_cancels_the_operation_and_waits_for_its_end(standin: StandIn) -> None:
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
async def test_a_time_out_where_hcs_does_cancel_leaves_the_outcome_unknown(standin: StandIn) -> None:
    standin.cancel_works()
    async with await opened(standin, timeout=0) as system:
        standin.hold()
        with pytest.raises(errors.OutcomeUnknown) as caught:
            await system.modify(adding())
        assert caught.value.hresult == 0x80004004


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
async def test_an_operation_without_end_is_given_up_but_kept_and_none_overtakes_it(standin: StandIn) -> None:
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


# Events and ends


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
            monkeypatch.setattr(computecore.Operation, "start", lambda _: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                await system.modify(adding())

    asyncio.run(main())


# What is left


def test_ten_thousand_pairs_leave_no_handle_string_or_thread(standin: StandIn) -> None:
    callers, pairs = 20, 500

    async def call(system: ComputeSystem, name: str) -> None:
        for _ in range(pairs):
            await system.modify(adding(name))
            await system.modify(removing(name))

    async def main() -> None:
        async with await opened(standin) as system:
            await asyncio.gather(*(call(system, str(number)) for number in range(callers)))
            # Every failure brings a string with it.
            for number in range(100):
                standin.inject("HcsModifyComputeSystem", 0x80070005, number % 2, "no")
                with pytest.raises(errors.AccessDenied):
                    await system.modify(adding())

    before = {thread.name for thread in threading.enumerate()}
    asyncio.run(main())
    standin.settle()
    assert standin.count("modify") == 2 * callers * pairs + 100
    assert standin.names() == []
    for what in ("operations", "systems", "strings"):
        assert standin.count(what) == 0, what
    assert standin.count("threads") == 3  # the DLL's own, however much it did
    assert {thread.name for thread in threading.enumerate()} == before
    assert (computecore._running, computecore._watching) == ({}, {})
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, computecore.Operation)]


@in_loop
async def test_buffers_live_until_the_operation_has_ended(standin: StandIn) -> None:
    async with await opened(standin) as system:
        standin.hold()
        tasks = [asyncio.create_task(system.modify(adding(str(number)))) for number in range(50)]
        await until(standin, "held", 50)
        gc.collect()
        size = len(schema.encode(adding("10")).decode()) + 1
        rubbish = [computecore._text("x" * (size - 1)) for _ in range(2000)]  # takes the place of what was freed
        standin.let_end()
        await asyncio.gather(*tasks)
        assert len(rubbish) == 2000
        assert (standin.misuse(), len(standin.names())) == ("", 50)


def test_the_stand_in_catches_buffers_that_are_released_early(standin: StandIn) -> None:
    """What the test above relies on: the stand-in does read the text at the end."""
    exports = standin.core._exports
    system = standin.core.open_compute_system(VM, lambda *_: None)
    standin.hold()
    text = computecore._text(schema.encode(adding()).decode())
    operation = computecore.OperationHandle(exports.HcsCreateOperation(1, computecore._Completion()) or 0)
    assert exports.HcsModifyComputeSystem(system, operation, text, None) == 0
    text[5] = 0xDDDD  # as if it were somebody else's by now
    standin.let_end()
    standin.settle()
    exports.HcsCloseOperation(operation)
    standin.core.close_compute_system(system)
    assert "changed or released" in standin.misuse()
    assert standin.names() == []
    standin.reset()
    standin.add_system(VM)


def test_the_stand_in_reads_no_document_that_hcs_would_refuse(standin: StandIn) -> None:
    good = json.loads(schema.encode(adding(flags=4)))
    share = good["Settings"]
    broken: list[tuple[str, int]] = [
        (json.dumps(document), hresult)
        for document, hresult in [
            ({**good, "resourcePath": "x"}, 0xC037010D),
            ({**good, "RequestType": 1}, 0xC037010D),
            ({**good, "RequestType": "add"}, 0xC037010D),
            ({**good, "RequestType": "Update"}, 0x80070032),
            ({**good, "ResourcePath": "VirtualMachine/Devices/Plan9/shares"}, 0x80070032),
            ({**good, "Settings": {**share, "name": "0"}}, 0xC037010D),
            ({**good, "Settings": {**share, "Port": "564"}}, 0xC037010D),
            ({**good, "Settings": {**share, "Port": 0}}, 0x8007000D),
            ({**good, "Settings": {**share, "Path": ""}}, 0x8007000D),
            ({**good, "Settings": {**share, "Flags": 0x200}}, 0x8007000D),
            ({**good, "Settings": {**share, "AllowedFiles": ["f"]}}, 0x8007000D),
            ({**good, "Settings": {**share, "Flags": 0x84, "AllowedFiles": [1]}}, 0xC037010D),
            ({**good, "RequestType": "Remove"}, 0xC037010D),
            ([], 0xC037010D),
        ]
    ]
    broken += [(text, 0xC037010D) for text in ("", "{", '{"Settings":{},"Settings":{}}', "{}x", '{"Port":01}')]

    results: queue.SimpleQueue[computecore.Result] = queue.SimpleQueue()
    system = standin.core.open_compute_system(VM, lambda *_: None)
    for text, hresult in broken:
        standin.core.modify_compute_system(system, text.encode(), results.put).start()
        assert results.get(timeout=DEADLINE).hresult & 0xFFFFFFFF == hresult, text
    standin.core.close_compute_system(system)
    assert standin.names() == []
