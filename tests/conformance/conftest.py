"""The benches of this folder, one a kernel, each booted once when it is first needed."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest
from tests.conformance.harness import NEWER, Bench, scratch_directory, write_down

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator


@pytest.fixture(scope="session")
def bench() -> Iterator[Callable[[str], Bench]]:
    """The bench of a kernel series, such as "6.12". One is up at a time: two would starve each other."""
    with asyncio.Runner() as runner:
        up: list[Bench] = []

        def of(kernel: str) -> Bench:
            if up and up[0].kernel != kernel:
                up.pop().close()
            if not up:
                up.append(Bench.start(runner, kernel))
            return up[0]

        yield of
        if up:
            up.pop().close()


@pytest.fixture
def directory() -> Iterator[str]:
    """An empty directory of the host's, on a disk, to share."""
    made = scratch_directory()
    yield made
    shutil.rmtree(made)


def _leave_to_the_soak(items: list[pytest.Item], kernel: Callable[[pytest.Item], str]) -> None:
    """Of each long test, leave all settings but the first on each kernel to ``make soak``."""
    seen = set()
    for item in items:
        if item.get_closest_marker("long") is None or item.get_closest_marker("soak") is not None:
            continue
        key = (item.path, getattr(item, "originalname", item.name), kernel(item))
        if key in seen:
            item.add_marker("soak")
        seen.add(key)


@pytest.hookimpl(tryfirst=True)  # -m looks at the marks behind this
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of one kernel together, so that each guest boots once, and mark those of the newer kernel."""

    def kernel(item: pytest.Item) -> str:
        callspec = getattr(item, "callspec", None)
        setting = callspec.params.get("setting") if callspec else None
        return getattr(setting, "kernel", "")

    ours = [item for item in items if "tests/conformance/" in item.path.as_posix()]
    for item in ours:
        if kernel(item) == NEWER:
            item.add_marker("newer_kernel")
    _leave_to_the_soak(ours, kernel)
    slots = [index for index, item in enumerate(items) if item in ours]
    for index, item in zip(slots, sorted(ours, key=kernel), strict=True):
        items[index] = item


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write down how each test ended, so that one which died cannot be taken for what it found the last time."""
    report = yield
    if call.when == "call" or report.failed:
        write_down(item.nodeid, passed=report.passed, seconds=report.duration)
    return report
