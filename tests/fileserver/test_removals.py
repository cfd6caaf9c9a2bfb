"""Removals wait for their own mounts alone, each of which is asked, killed, and left behind in its own time."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver import control, leaving
from uvmshare.fileserver.counters import Counters
from uvmshare.fileserver.log import Log
from uvmshare.fileserver.mount.process import serve
from uvmshare.fileserver.supervisor.loop import Loop
from uvmshare.fileserver.supervisor.opening import Opener
from uvmshare.fileserver.supervisor.shares import MountProcess, ServedShares
from uvmshare.hcs.schema import Beside, Plan9Share


class Removals:
    """Shares whose mounts never end, by a clock of the test's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.asked: list[int] = []
        self.killed: list[int] = []
        self.gone: list[tuple[str, tuple[control.Left, ...]]] = []
        monkeypatch.setattr("uvmshare.fileserver.supervisor.shares.time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(leaving, "ask", self.asked.append)
        monkeypatch.setattr(leaving, "kill", self.killed.append)
        self._root = root
        loop, log = Loop(), Log()
        configuration = control.Configuration(0, listen=(), security_model="none")
        self.shares = ServedShares(loop, log, configuration, None, Opener(loop, log), serve=serve)

    def mount(self, name: str) -> int:
        """A share with one mount; return its pidfd."""
        self.shares.add(Plan9Share(name=name, access_name=name, path=str(self._root)), Beside())
        share = next(each for each in self.shares if each.export.name == name)
        pidfd = os.open("/dev/null", os.O_RDONLY)
        share.mounts[pidfd] = MountProcess(pidfd, pidfd, share, pidfd, "a guest", counters=Counters())
        self.shares.mount_count += 1
        return pidfd

    def remove(self, name: str) -> None:
        self.shares.remove(name, lambda left: self.gone.append((name, left)))

    def pass_time(self) -> None:
        """Do what is next to be done."""
        deadline = self.shares.deadline
        assert deadline is not None
        self.now = deadline
        self.shares.expire(self.now)


@pytest.fixture
def removals(root: Path, monkeypatch: pytest.MonkeyPatch) -> Removals:
    return Removals(root, monkeypatch)


def test_a_mount_that_does_not_end_is_asked_then_killed_then_left_behind(removals: Removals) -> None:
    pidfd = removals.mount("one")
    removals.remove("one")
    assert (removals.asked, removals.killed) == ([pidfd], [])
    removals.pass_time()
    assert (removals.killed, removals.gone) == ([pidfd], [])
    removals.pass_time()
    ((name, left),) = removals.gone
    assert (name, [each.pid for each in left]) == ("one", [pidfd])
    assert removals.shares.left == left
    assert removals.now == 100 + leaving.LEAVE_SECONDS + leaving.DEATH_SECONDS
    assert removals.shares.deadline is None
    assert removals.shares.mount_count == 0
    removals.shares.close()


def test_one_that_was_killed_and_hangs_delays_no_other(removals: Removals) -> None:
    first, second = removals.mount("one"), removals.mount("two")
    removals.remove("one")
    removals.pass_time()
    removals.remove("two")
    removals.pass_time()
    assert removals.killed == [first, second]
    assert removals.gone == []
    assert removals.now == 100 + 2 * leaving.LEAVE_SECONDS
    removals.pass_time()
    removals.pass_time()
    assert [name for name, _ in removals.gone] == ["one", "two"]
    removals.shares.close()


def test_a_removal_that_waits_for_one_that_hangs_is_answered_for_all_who_asked(removals: Removals) -> None:
    removals.mount("one")
    removals.remove("one")
    removals.remove("one")
    removals.pass_time()
    removals.pass_time()
    assert [(name, len(left)) for name, left in removals.gone] == [("one", 1)] * 2
    removals.shares.close()
