"""What of a share does not exist for its guest, by patterns: asked by name, and by the kernel's path of what it has.

What lives here: `Hidden`. What must not: what a pattern matches (`uvmshare.hiding`), how files are reached (`tree`),
where the kernel says that they are (`boundary`).

A name is judged by the state of its directory, which follows from the kernel's path of it at that moment: so what the
host renames is hidden, or shown, by where it is now. A guest cannot change the state of any directory: it moves
something only to where the same is hidden below it (EXDEV otherwise, as between file systems), whatever it is. So no
rename of its own shows it a hidden name, and no race of two of its mounts does.

That holds where a file has the names alone that its directory lists. Where upper and lower case are one, or names have
short forms (vfat, NTFS, SMB, directories with casefold), no pattern could be relied upon: nothing in such a directory
exists for the guest. Of file systems that may be either (FUSE, NFS) a name is taken only as the directory lists it.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.syscalls import MountCrossed, open_entry
from uvmshare.hiding import Patterns, Visibility

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from uvmshare.hiding import MatchState

__all__ = ["Hidden", "not_there"]

_DOTS: Final = (b".", b"..")
_DT_DIR: Final = 4

_MOST_KNOWN: Final = 1024
"""Directories whose state is kept, by their paths of up to a page each."""


class Hidden:
    """The patterns of one share. Paths are bytes, below the share's root, and empty for the root itself."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = Patterns(patterns)
        self._known: dict[bytes, MatchState | None] = {b"": self._patterns.root}
        self.fate = self._patterns.fate
        """What becomes of a name in a directory of a state."""
        self.below = self._patterns.below
        """The state of a directory in a directory of a state."""

    def state(self, path: bytes) -> MatchState | None:
        """Return the state of the directory at a path; None when it is hidden. Asked by any thread."""
        if not path:
            return self._patterns.root
        known = self._known
        try:  # not looked for first: another thread may clear it in between
            return known[path]
        except KeyError:
            state = self._state_of(path)
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[path] = state
        return state

    def _state_of(self, path: bytes) -> MatchState | None:
        above, _, name = path.rpartition(b"/")
        names: list[bytes]
        state: MatchState | None
        try:
            names, state = [name], self._known[above]
        except KeyError:
            names, state = path.split(b"/"), self._patterns.root
        for name in names:
            if state is None or self.fate(state, name).hides(directory=True):
                return None
            state = self.below(state, name)
        return state

    def shows(self, path: bytes, is_directory: Callable[[], bool]) -> bool:
        """Say whether what is at a path exists for the guest; `is_directory` is asked where that depends on it."""
        above, _, name = path.rpartition(b"/")
        state = self.state(above)
        if state is None:
            return False
        fate = self.fate(state, name)
        return not fate.hides(directory=is_directory()) if fate.depends else fate is Visibility.SHOWN

    def filter(self, state: MatchState, directory: int) -> Callable[[bytes, int], bool]:
        """Return what says whether an entry of an open directory of that state is hidden, by its name and d_type.

        Where the type decides and is not told, the entry is looked at, but not what is mounted over it, which may never
        answer: that is hidden then. A type that is told is also that of what is mounted there, directory or not.
        """
        fate_of = self.fate

        def hides(name: bytes, d_type: int) -> bool:
            fate = fate_of(state, name)
            if fate is Visibility.SHOWN or name in _DOTS:
                return False
            if not fate.depends:
                return True
            if d_type:
                return fate.hides(directory=d_type == _DT_DIR)
            try:
                entry = open_entry(name, directory)
            except (MountCrossed, OSError):
                return True  # it is gone, or nobody can say what it is
            try:
                return fate.hides(directory=stat.S_ISDIR(os.fstat(entry).st_mode))
            except OSError:
                return True
            finally:
                os.close(entry)

        return hides


def not_there() -> OSError:
    """Return the error of a name that is hidden: it is not there."""
    return OSError(errno.ENOENT, "hidden")
