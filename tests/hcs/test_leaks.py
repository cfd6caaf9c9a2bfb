"""What is left of many requests: no handle, string or thread. And the stand-in does tell of what is."""

from __future__ import annotations

import asyncio
import gc
import json
import queue
import threading
from typing import TYPE_CHECKING

import pytest
from tests.hcs.conftest import VM
from tests.hcs.harness import DEADLINE, adding, in_loop, opened, removing, until

from uvmshare import errors
from uvmshare.hcs import computecore, schema

if TYPE_CHECKING:
    from tests.hcs.conftest import StandIn

    from uvmshare.hcs.compute_system import ComputeSystem


@pytest.mark.parametrize("pairs", [50, pytest.param(500, marks=pytest.mark.long)])
def test_many_pairs_of_twenty_callers_leave_no_handle_string_or_thread(standin: StandIn, pairs: int) -> None:
    callers = 20

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

    before = set(threading.enumerate())
    asyncio.run(main())
    standin.settle()
    assert standin.count("modify") == 2 * callers * pairs + 100
    assert standin.names() == []
    for what in ("operations", "systems", "strings"):
        assert standin.count(what) == 0, what
    assert standin.count("threads") == 3  # the DLL's own, however much it did
    assert set(threading.enumerate()) <= before
    assert (computecore._running, computecore._watching) == ({}, {})
    gc.collect()
    assert not [found for found in gc.get_objects() if isinstance(found, computecore.HcsOperation)]


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
