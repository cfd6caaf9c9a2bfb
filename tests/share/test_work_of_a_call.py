"""What a call of the Manager costs does not grow with the shares that there are: its steps are counted."""

from __future__ import annotations

import asyncio
import gc
import sys
import typing
from typing import TYPE_CHECKING, Any, Final, Self

import pytest

from uvmshare.share.interfaces import ListsShares
from uvmshare.share.journal import JournalState
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from uvmshare.share.interfaces import NamedShare
    from uvmshare.share.journal import Record

FEW: Final = 30
MANY: Final = 1000


def options(number: int) -> AddOptions:
    return AddOptions("/", allowed_names=(f"n{number}",))


class InstantVM:
    """Answers at once, and keeps nothing."""

    async def add_plan9(self, share: NamedShare) -> None:
        pass

    async def remove_plan9(self, share: NamedShare) -> None:
        pass


class NoJournal:
    """Has everything written at once, and keeps nothing."""

    async def load(self) -> JournalState:
        return JournalState()

    async def append(self, records: Sequence[Record]) -> None:
        pass


class Steps:
    """Counts the steps of the interpreter, in whatever runs."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _called(self, frame: Any, event: str, argument: object) -> Any:
        del event, argument
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, _frame: object, event: str, _argument: object) -> Any:
        self.count += event == "opcode"
        return self._step


async def steps_of(call: Awaitable[object]) -> int:
    with Steps() as steps:
        await call
        await asyncio.sleep(0)
    return steps.count


async def grown(*, journal: bool) -> dict[str, list[int]]:
    """Return what each call takes with few shares, and with many."""
    manager = Manager(InstantVM(), journal=NoJournal() if journal else None)
    steps: dict[str, list[int]] = {"add": [], "add again": [], "release": [], "last release": []}
    there = 0
    gc.disable()  # what it finalises is no step of a call
    try:
        for count in (FEW, MANY):
            while there < count:
                await manager.add(options(there), owner="owner")
                there += 1
            one = options(MANY)
            steps["add"].append(await steps_of(manager.add(one, owner="1")))
            name = await manager.add(one, owner="1")
            steps["add again"].append(await steps_of(manager.add(one, owner="2")))
            steps["release"].append(await steps_of(manager.remove(name, owner="2")))
            steps["last release"].append(await steps_of(manager.remove(name, owner="1")))
    finally:
        gc.enable()
    await manager.aclose()
    return steps


@pytest.mark.parametrize("journal", [False, True], ids=["in memory", "with a journal"])
def test_each_call_takes_as_many_steps_with_a_thousand_shares_as_with_thirty(*, journal: bool) -> None:
    steps = asyncio.run(grown(journal=journal))
    for call, (few, many) in steps.items():
        assert few > 100, f"{call} was not counted"
        # Names are reserved by 64: where one falls is a few steps more or less.
        assert many - few < MANY - FEW, f"{call} takes {few} steps with {FEW} shares and {many} with {MANY}"


def test_what_a_vm_can_do_is_asked_once_and_not_by_each_call() -> None:
    """A look at a protocol (`isinstance`) runs through `typing`; in Python 3.11 it was nearly half of an add's cost."""

    async def calls() -> list[str]:
        manager = Manager(InstantVM(), journal=NoJournal())
        await manager.recover()
        looks: list[str] = []

        def called(frame: Any, _event: str, _argument: object) -> None:
            if frame.f_code.co_filename == typing.__file__:
                looks.append(frame.f_code.co_name)

        before = sys.gettrace()
        sys.settrace(called)
        try:
            isinstance(manager, ListsShares)  # so that this test would see one
            assert looks
            looks.clear()
            name = await manager.add(options(1), owner="owner")
            await manager.remove(name, owner="owner")
        finally:
            sys.settrace(before)
        await manager.aclose()
        return looks

    assert asyncio.run(calls()) == []
