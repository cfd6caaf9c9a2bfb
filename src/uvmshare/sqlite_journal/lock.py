"""One writer a journal: a lock file beside it that names the process which has it.

What lives here: `WriterLock`. What must not: anything of SQLite, whose own locks say neither who has them nor
keep a second Manager from writing between two transactions of the first.

The operating system gives the lock up when the process ends, however it ends. The file stays; it says nothing then.
"""

from __future__ import annotations

import os
import sys
from typing import Self

from uvmshare.errors import JournalInUse

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl
if sys.platform == "linux":
    from uvmshare.hostfiles import open_lock

__all__ = ["WriterLock"]

_LOCKED_BYTE = 1 << 30
"""Windows keeps others from reading a locked byte, so it is one behind what the file says."""


class WriterLock:
    """The right to write a journal, held until `release`."""

    def __init__(self, descriptor: int) -> None:
        """Use `take`."""
        self._descriptor = descriptor

    @classmethod
    def take(cls, journal: str) -> Self:
        """Take the lock of a journal. Raises `JournalInUse` with the pid of who has it, or OSError."""
        path = journal + ".lock"
        descriptor = _open(path)
        try:
            if not _try_lock(descriptor):
                pid = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
                who = "this process" if pid == str(os.getpid()) else f"process {pid}"
                msg = f"{journal}: {who} has this journal open, and one may write it at a time: end that one first"
                raise JournalInUse(msg)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
        except BaseException:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def release(self) -> None:
        """Give the lock up."""
        os.close(self._descriptor)


def _open(path: str) -> int:
    if sys.platform == "linux":
        return open_lock(path)
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)


if sys.platform == "win32":

    def _try_lock(descriptor: int) -> bool:
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

else:

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
