"""A compute system under the stand-in for `computecore.dll`: what it does, and what goes wrong."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
from tests.hcs.conftest import AFTER_DOING_IT, ALTHOUGH_STARTED, AT_ONCE, AT_THE_END, VM
from tests.hcs.harness import adding, in_loop, opened, removing, until

from uvmshare import errors
from uvmshare.hcs import computecore, schema
from uvmshare.hcs.compute_system import ComputeSystem
from uvmshare.hcs.computecore import ComputeCore

if TYPE_CHECKING:
    from tests.hcs.conftest import StandIn


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
    operation = computecore.HcsOperation(cast("computecore._Exports", exports), submit, results.append)
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
