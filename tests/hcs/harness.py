"""What the tests of a compute system share: requests, one that is open, and waiting for the stand-in."""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from tests.hcs.conftest import VM

from uvmshare.hcs import compute_system, schema
from uvmshare.hcs.compute_system import ComputeSystem

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import pytest
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


def begin_times_when_held(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a time of nothing begin when the stand-in holds the operation.

    Else it may be over before a worker thread has handed the operation over, which then never is.
    """
    wait = compute_system._first_of

    async def wait_when_held(one: asyncio.Future[Any], other: asyncio.Future[None], seconds: float) -> None:
        if seconds == 0:
            await until(standin, "held")
        await wait(one, other, seconds)

    monkeypatch.setattr(compute_system, "_first_of", wait_when_held)


async def turns(count: int = 20) -> None:
    """Let everything run that is ready to run."""
    for _ in range(count):
        await asyncio.sleep(0)
