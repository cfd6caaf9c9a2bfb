"""A lock file names its holder, however slow that one is to write itself down."""

from __future__ import annotations

import fcntl
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import FileServerError

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.rundir import lockfile
from uvmshare.fileserver.rundir.lockfile import LockFile

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("named_after", "told"), [(0.0, "process 7"), (3.0, "process 7"), (60.0, "process unknown")])
def test_a_holder_that_has_not_written_itself_down_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named_after: float, told: str
) -> None:
    path, now = tmp_path / "lock", [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] >= named_after:
            path.write_text("7\n")

    monkeypatch.setattr(lockfile, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    held = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(FileServerError, match=f"^a thing: a file server has it already, {told}: end that one$"):
            LockFile.take(str(path), "a thing")
    finally:
        os.close(held)
    LockFile.take(str(path), "a thing").release()
