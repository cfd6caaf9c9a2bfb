"""For the conftest.py of a folder whose coroutine tests run in a loop whose time is virtual.

What waits for ever fails there at once.
"""

from __future__ import annotations

import asyncio
import inspect

import pytest

from uvmshare.testing.schedule import run


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


async def settle() -> None:
    """Let everything happen that needs no time."""
    await asyncio.sleep(1e-6)
