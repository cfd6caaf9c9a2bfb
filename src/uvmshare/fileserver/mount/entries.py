"""What a directory has under a name, and whether that is the same file as before.

What lives here: `Entry`, and how it is looked up. What must not: what it was before, and who has changed it
(`listening`).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, NamedTuple

from uvmshare.directory import birth_time
from uvmshare.fileserver import syscalls
from uvmshare.fileserver.syscalls import MountCrossed

__all__ = ["Entry", "entry_of", "is_same", "require_room"]

_KINDS: Final = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l"}
_NS: Final = 1_000_000_000


def require_room(error: OSError) -> None:
    """Raise an error again that says nothing of the file: that this process, or the host, has no room for more."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error


class Entry(NamedTuple):
    """What is under a name."""

    inode: int
    kind: bytes
    """f, d, l or o: a regular file, a directory, a symbolic link, another."""
    born: int | None = None
    """When it was made, in nanoseconds; None where nobody has looked, or the file system does not tell."""


def is_same(gone: Entry, come: Entry, since: int) -> bool:
    """Say whether two entries with one inode are of one file; of what was only listed, it is older than the listing."""
    if come.born is None:
        return False
    return come.born < since if gone.born is None else come.born == gone.born


def entry_of(directory: int, name: bytes, held: list[int] | None = None) -> tuple[Entry | None, os.stat_result | None]:
    """Return what a directory has under a name. Raises `OSError` for want of room.

    Its descriptor is added to `held`, if that is given, for the caller to close.
    """
    try:
        descriptor = syscalls.open_entry(name, directory)
    except MountCrossed:  # what is behind it is not watched, and may never answer
        return None, None
    except OSError as error:
        require_room(error)
        return None, None
    try:
        found, born = os.fstat(descriptor), birth_time(descriptor)
    except OSError as error:
        require_room(error)
        return None, None
    finally:
        if held is None:
            os.close(descriptor)
        else:
            held.append(descriptor)
    kind = _KINDS.get(stat.S_IFMT(found.st_mode), b"o")
    return Entry(found.st_ino, kind, None if born is None else born[0] * _NS + born[1]), found
