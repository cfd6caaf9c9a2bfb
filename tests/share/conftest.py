"""Coroutine tests of this folder run in a loop whose time is virtual, where what waits for ever fails at once.

And what the searches through all orders have covered is told at the end.
"""

from __future__ import annotations

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    properties = [
        dict(report.user_properties)
        for report in terminalreporter.stats.get("passed", [])
        if any(name == "explored" for name, _ in report.user_properties)
    ]
    if properties:
        total = sum(int(str(found["orders"])) for found in properties)
        terminalreporter.section(f"Manager: {total:,} orders of events tried")
        for found in properties:
            terminalreporter.line(str(found["explored"]))
