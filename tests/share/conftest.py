"""Coroutine tests of this folder run in a loop whose time is virtual, where what waits for ever fails at once."""

import pytest
from tests.virtual_time import pytest_pyfunc_call

from uvmshare.share.manager import Manager
from uvmshare.testing.fakes import FakeVM

__all__ = ["pytest_pyfunc_call"]


@pytest.fixture(name="vm")
def _vm() -> FakeVM:
    return FakeVM()


@pytest.fixture(name="manager")
def _manager(vm: FakeVM) -> Manager:
    return Manager(vm)
