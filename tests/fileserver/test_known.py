"""What is known of a file is never what it was: not in file systems whose times are coarse or do not tell all."""

from __future__ import annotations

import os
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mount.files.ownership import Ownership, is_settled
from uvmshare.fileserver.mount.files.tree import Tree
from uvmshare.hcs.schema import Plan9Share

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECOND = 1_000_000_000
NOW = time.time_ns() // SECOND * SECOND + SECOND // 2


def found(*, ctime: int, mode: int = 0o644, uid: int = 0, gid: int = 0, links: int = 1) -> os.stat_result:
    """What fstat(2) might say of a file."""
    seconds = ctime // SECOND
    basic = (stat.S_IFREG | mode, 1000, 1, links, uid, gid, 5, seconds, seconds, seconds)
    more: dict[str, Any] = {f"st_{name}_ns": ctime for name in ("atime", "mtime", "ctime")}
    return os.stat_result((*basic, *(float(seconds) for _ in range(3))), more | {"st_blocks": 8, "st_rdev": 0})


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    export = Export.open(Plan9Share(name="0", access_name="0", path=str(tmp_path.resolve())), "none")
    tree = Tree(export)
    yield tree
    tree.close()
    export.close()


@pytest.mark.parametrize(
    ("age", "settled"), [(1, False), (20_000_000, False), (21_000_000, True), (-SECOND, False), (3600 * SECOND, True)]
)
def test_what_is_younger_than_a_clock_tick_may_change_again_unseen(age: int, settled: bool) -> None:
    assert is_settled(NOW, NOW - age) is settled
    assert is_settled(NOW, NOW - 3601 * SECOND, NOW - age) is settled


@pytest.mark.parametrize(("age", "settled"), [(0, False), (1, False), (2, False), (3, True)])
def test_times_in_whole_seconds_tick_with_them(age: int, settled: bool) -> None:
    """As on ext4 with inodes of 128 bytes; on FAT with every other second."""
    assert is_settled(NOW, (NOW // SECOND - age) * SECOND) is settled


def test_a_change_in_the_same_second_is_seen_where_times_are_in_seconds(
    tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: NOW)
    ownership, ctime = Ownership(tree), NOW // SECOND * SECOND
    first = ownership.known(tree.root, found(ctime=ctime))
    assert ownership.known(tree.root, found(ctime=ctime)) is not first


@pytest.mark.parametrize("change", [{"mode": 0o600}, {"uid": 1}, {"gid": 1}, {"links": 2}])
def test_what_changes_without_the_times_is_seen(tree: Tree, change: dict[str, int]) -> None:
    """Over sshfs a chmod changes no time that is told."""
    ownership, ctime = Ownership(tree), NOW - 3600 * SECOND + 1
    before = found(ctime=ctime)
    first = ownership.known(tree.root, before)
    assert ownership.known(tree.root, before) is first
    after = found(ctime=ctime, **change)
    known = ownership.known(tree.root, after)
    assert known is not first
    assert known.attributes == (after.st_mode, after.st_uid, after.st_gid, 0)
