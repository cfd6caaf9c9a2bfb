"""What every test shares: in CI (CI=true) a test that is skipped has failed, and signals are what they are elsewhere.

And what the searches through all orders of events have covered is told at the end.

What must not live here: fixtures of one part of the project; they belong beside its tests.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Generator

# A shell starts what it runs in the background with SIGINT ignored, and Python then leaves it so, also in
# the processes that a test starts: those that are to end by it would go on for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):  # nohup ignores it in the same way
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Hypothesis fails an example that takes more than 200 ms, and a test that is slow to make its examples: on a busy
# machine that says nothing.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")

IN_CI = os.environ.get("CI") == "true"


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    # A strict xfail also reports "skipped"; it did run.
    if IN_CI and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"nothing is skipped in CI, but {report.nodeid} was: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse_skip(report)
    return report


def _freeze() -> None:
    # What was loaded stays to the end. Frozen, it is not looked at again by each full collection, of which there is one
    # at the end of each event loop (uvmshare.testing): tests/share took 40 s of user time without it, 29 with it.
    gc.collect()
    gc.freeze()


def pytest_collection_finish() -> None:
    _freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    # What the tests of a module loaded and kept, too: after two thousand tests a collection took a third of a second.
    if nextitem is not None and nextitem.path != item.path:
        _freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    properties = [
        dict(report.user_properties)
        for report in terminalreporter.stats.get("passed", [])
        if any(name == "explored" for name, _ in report.user_properties)
    ]
    if properties:
        total = sum(int(str(found["orders"])) for found in properties)
        terminalreporter.section(f"{total:,} orders of events tried")
        for found in properties:
            terminalreporter.line(str(found["explored"]))
    booted = sys.modules.get("uvmshare.testing.guest_vm")
    if booted is not None and booted.GuestVM.booted_again:
        terminalreporter.section(
            f"{booted.GuestVM.booted_again} guests booted again: their kernels ended before a word"
        )
