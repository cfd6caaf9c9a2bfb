"""A lock file that only a living process can hold: the lock is the kernel's.

What lives here: `LockFile`. What must not: what is locked with it (a run directory, a socket's path).

The lock is flock(2)'s: it ends with its holder, however that ends. The file and the pid in it are only words for an
error message, and a file that was left behind locks nothing. POSIX record locks would end as soon as their process
closed any descriptor of the file, so a guest whose share holds the file could end one. docs/decisions.md says what a
guest would need to take a flock(2).
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from typing import Final, Self

from uvmshare.errors import FileServerError
from uvmshare.hostfiles import open_lock

__all__ = ["LockFile"]

_PATIENCE_SECONDS: Final = 0.5
"""A process that has just been killed holds its locks a moment longer, and so does a mount process that it
forked last, until that closes what is not its own."""

_NAMING_SECONDS: Final = 5.0
"""How long after that its holder may take to write its pid down, which it does when it has the lock."""

_PAUSE_SECONDS: Final = 0.01


class LockFile:
    """A lock that this process holds until `release`, or its end."""

    def __init__(self, path: str, descriptor: int) -> None:
        """Use `take`."""
        self._path = path
        self._descriptor = descriptor

    @classmethod
    def take(cls, path: str, what: str) -> Self:
        """Take the lock whose file is `path`; `what` is what it stands for, in the words of an error.

        Raises `FileServerError`, which names the process that has it; or `OSError` when there can be no such file.
        """
        give_up = time.monotonic() + _PATIENCE_SECONDS
        while True:
            descriptor = open_lock(path)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(path, descriptor):  # else its last holder removed it a moment ago
                    with suppress(PermissionError):  # another user's, which root uses
                        os.fchmod(descriptor, 0o600)  # whoever can read it can take the lock
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
                    return cls(path, descriptor)
            except BlockingIOError:
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
                if time.monotonic() > give_up + (0.0 if holder else _NAMING_SECONDS):
                    os.close(descriptor)
                    msg = f"{what}: a file server has it already, process {holder or 'unknown'}: end that one"
                    raise FileServerError(msg) from None
                time.sleep(_PAUSE_SECONDS)
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    @staticmethod
    def is_held(path: str) -> bool:
        """Say whether a living process holds the lock whose file is `path`. Raises `OSError`."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Remove the file and let go of the lock."""
        if _is_at(self._path, self._descriptor):
            os.unlink(self._path)
        os.close(self._descriptor)


def _is_at(path: str, descriptor: int) -> bool:
    """Say whether the file that is open is the one at `path`."""
    try:
        return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(descriptor))
    except FileNotFoundError:
        return False
