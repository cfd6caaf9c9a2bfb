"""Coroutine tests of this folder run in a loop whose time is virtual, where what waits for ever fails at once."""

from tests.virtual_time import pytest_pyfunc_call

__all__ = ["pytest_pyfunc_call"]
