"""Coroutine tests of this folder run in their world's loop, or, without a world, in one whose time is virtual."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from tests.etcd.worlds import FakeWorld

from uvmshare.testing import schedule

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.etcd.worlds import World


@pytest.fixture(name="world", params=["fake"])
def _world() -> World:
    return FakeWorld()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    run: Callable[[Any], None] = getattr(pyfuncitem.funcargs.get("world"), "run", schedule.run)
    run(test)
    return True
