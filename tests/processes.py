"""Processes of a test: whether one is there, what it has, waiting for its end and for what it does in its own time."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

DEADLINE: Final = 60.0
"""Seconds until a test that hangs is ended. Nothing is measured with it."""


def process_exists(pid: int) -> bool:
    """Whether there is such a process, a zombie included."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def await_end(pidfd: int) -> None:
    """Wait until a process has ended, whoever reaps it."""
    if sys.platform == "win32":
        pytest.skip("Windows has no pidfds")
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(DEADLINE * 1000), "a process that was to end does not"


def wait_for_end(pid: int) -> None:
    """Wait for the end of a process that need not be ours: it is gone, or a zombie that nobody reaps."""
    if sys.platform == "win32":
        pytest.skip("Windows has no pidfds")
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await_end(descriptor)
    finally:
        os.close(descriptor)


def descriptors_of(pid: int) -> int:
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def children_of(pid: int) -> list[int]:
    """The processes that a process has and has not reaped."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def status_of(pid: int, key: str) -> str:
    """A line of proc_pid_status(5)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return value.strip()
    raise KeyError(key)


def kill(pid: int) -> None:
    """Kill -9 a process and wait until it is gone, or a zombie."""
    if sys.platform == "win32":
        pytest.skip("Windows has no pidfds")
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    await_end(pidfd)
    os.close(pidfd)


def await_answer(ask: Callable[[], object], wanted: object) -> None:
    """Ask until the answer is the wanted one: for what another process sees in its own time, and tells nobody."""
    give_up = time.monotonic() + DEADLINE
    while (answer := ask()) != wanted:
        assert time.monotonic() < give_up, f"the answer is still {answer!r}, not {wanted!r}"
