"""What the agent reads in /proc of the watches of programs, and how a directory is made.

The repeating itself is in tests/guest/test_events.py.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest

if sys.platform == "win32":
    pytest.skip("it runs in Linux guests", allow_module_level=True)

from uvmshare.fileserver import syscalls
from uvmshare.guest.repeating import Repeater, _Words, watched_inodes

if TYPE_CHECKING:
    from pathlib import Path


def test_what_a_program_watches_is_found_by_its_inode_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("watched", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "f").touch()
    inodes = {name: os.stat(tmp_path / name).st_ino for name in ("watched", "other", "f")}
    device = os.stat(tmp_path).st_dev
    queue = syscalls.inotify_init()
    try:
        for name in ("watched", "f"):
            syscalls.inotify_add_watch(queue, str(tmp_path / name), syscalls.Notify.CREATE)
        assert watched_inodes(device) & set(inodes.values()) == {inodes["watched"], inodes["f"]}
        assert not watched_inodes(os.makedev(0, 0))
    finally:
        os.close(queue)
    assert not watched_inodes(device) & set(inodes.values())


def test_a_directory_that_is_made_is_opened_and_the_process_is_as_urgent_as_before(tmp_path: Path) -> None:
    at, before = os.open(tmp_path, os.O_PATH), os.sched_getscheduler(0)
    repeater = Repeater.__new__(Repeater)  # the making alone needs no mount
    opened = repeater._make_directory(_Words("Cd", at, "made", at, ""))
    assert opened is not None
    assert os.path.samestat(os.fstat(opened), os.stat(tmp_path / "made"))
    with pytest.raises(FileExistsError):
        repeater._make_directory(_Words("Cd", at, "made", at, ""))
    assert os.sched_getscheduler(0) == before
    for each in (opened, at):
        os.close(each)
