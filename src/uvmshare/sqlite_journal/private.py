"""Files that tell who has what: for their owner alone, whatever the umask is.

What lives here: making an SQLite file so, and those that SQLite puts beside it. What must not: what is in them.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from typing import Final

__all__ = ["make_private"]

_BESIDE: Final = ("", "-wal", "-shm", "-journal")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def make_private(path: str) -> None:
    """Make an SQLite file with mode 0600, unless it is there, and narrow what is there and wider.

    To be called before SQLite opens it: what that makes beside the file gets the file's mode. A file that is there is
    not opened, since closing it would give up the locks that SQLite has on it in this process (fcntl(2)). What cannot
    be done is left to SQLite to say.
    """
    with suppress(OSError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o600))
    for suffix in _BESIDE:
        with suppress(OSError):
            there = os.stat(path + suffix)
            if stat.S_ISREG(there.st_mode) and there.st_mode & _OTHERS:
                os.chmod(path + suffix, stat.S_IMODE(there.st_mode) & ~_OTHERS)
