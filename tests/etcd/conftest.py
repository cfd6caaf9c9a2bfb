"""Coroutine tests of this folder run in their world's loop, or, without a world, in one whose time is virtual."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
from tests.etcd.member import start_single
from tests.etcd.worlds import EtcdWorld, FakeWorld

from uvmshare.testing import schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.etcd.worlds import World


@pytest.fixture(scope="module")
def etcd_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a member that the tests of a module share."""
    member, url = start_single(tmp_path_factory.mktemp("etcd") / "data")
    yield url
    member.kill()


@pytest.fixture(name="world", params=["fake", "etcd"])
def _world(request: pytest.FixtureRequest) -> World:
    return FakeWorld() if request.param == "fake" else EtcdWorld(request.getfixturevalue("etcd_url"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names})
    run: Callable[[Any], None] = getattr(pyfuncitem.funcargs.get("world"), "run", schedule.run)
    run(test)
    return True
