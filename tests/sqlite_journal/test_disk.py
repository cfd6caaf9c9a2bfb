"""A Manager whose journal's disk is full, read-only or damaged: a clear error, nothing lost, a documented way out.

The file systems are real ones: a tmpfs of this test's own, in a mount name space of a process of its own, so that
neither root nor the host's mounts are touched for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.reliability_results import write_down

if sys.platform == "win32":
    pytest.skip("file systems of a test's own are Linux's", allow_module_level=True)

STORIES = Path(__file__).with_name("disk_stories.py")
NAMES = ("full_at_every_size", "full_and_freed", "read_only", "damaged_and_begun_anew")
_tried: dict[str, int] = {}


@pytest.mark.parametrize("story", NAMES)
def test_a_journal_on_a_disk_that_is(story: str, tmp_path: Path) -> None:
    own = [] if os.geteuid() == 0 else ["--map-root-user"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) of util-linux is missing")
    done = subprocess.run(
        ["unshare", "--mount", *own, sys.executable, str(STORIES), story, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    _tried[story] = int(done.stdout)


def test_the_stories_are_counted() -> None:
    assert _tried.keys() == set(NAMES)
    write_down(
        "journal-disk",
        "Full at every size, full and freed, read-only, damaged",
        points=sum(_tried.values()),
        kills=0,
        losses=0,
    )
