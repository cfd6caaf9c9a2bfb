"""What lies around a mount process that was taken over: a share, files beside it, and a process to be harmed.

What lives here: making these. What must not: the attempts on them (`taken_over`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import pytest
from tests.hostile.taken_over import CANARY

if TYPE_CHECKING:
    from pathlib import Path

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

__all__ = ["build", "start_victim"]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def build(top: Path, user: int) -> tuple[Path, Path]:
    """Make a share and what lies beside it, all of it the user's; return both."""
    share, outside = top / "share", top / "outside"
    for path in (share, outside, outside / "empty"):
        path.mkdir()
    for name in ("inside", "inside2"):
        (share / name).write_bytes(b"content")
    for name in ("file", "doomed"):
        (outside / name).write_bytes(CANARY)
    (outside / "there").symlink_to("file")
    os.setxattr(outside / "file", "user.kept", b"1")
    os.setxattr(outside / "file", "user.doomed", b"1")
    for path in (top, *top.rglob("*")):
        os.chown(path, user, user, follow_symlinks=False)
    return share, outside


def start_victim(user: int) -> int:
    """Start a process of that user which waits to be ended; return its number."""
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            if user:
                os.setgroups([])
                os.setresgid(user, user, user)
                os.setresuid(user, user, user)
            _LIBC.prctl(4, 1, 0, 0, 0)
            while True:
                signal.pause()
        os._exit(1)
    return child
