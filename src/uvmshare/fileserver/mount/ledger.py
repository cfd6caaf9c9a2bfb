"""What a mount has changed itself, where the host's kernel does not say who changed something (inotify(7)).

What lives here: `Ledger`, which notes down how this mount has left each file that it changed, and then says of a file
whether others have changed it. What must not: system calls, names and directories (`listening`), which request changes
what (`handlers.noting`).

Events are not matched to changes: inotify makes one event of several that are alike, whoever has caused them. What is
compared is the file's state. It has a new ctime after each change:

- as the mount left it: what was heard of it is the mount's own doing;
- different: others have changed it since;
- already different when the mount was about to change it: others have changed it before, and that is not told yet.

A file that was not noted down is another's when something is heard of it. So what is forgotten here is told once too
often, and never too little. What cannot be seen: a change within one tick of the kernel's clock (up to 10 ms; Linux
6.13 counts finer) after the mount's own one that leaves size and times as they are.

Times are in nanoseconds since 1970. Its owner's lock guards all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from uvmshare.fileserver.mount.files.ownership import is_settled
from uvmshare.fileserver.syscalls import Fanotify

if TYPE_CHECKING:
    import os

__all__ = ["CONTENT", "FileKey", "Ledger", "State"]

FileKey = tuple[int, int]
"""A file's device and inode."""

CONTENT: Final = Fanotify.MODIFY | Fanotify.CREATE | Fanotify.MOVED_TO | Fanotify.DELETE | Fanotify.MOVED_FROM
"""Events after which a file may have another content."""
_MOST: Final = 4096
"""Files that are remembered of each kind, about 400 bytes each."""


class State(NamedTuple):
    """What changes when a file is changed."""

    ctime: int
    mtime: int
    size: int
    mode: int
    uid: int
    gid: int

    @classmethod
    def of(cls, found: os.stat_result) -> State:
        """Return the state of a file, by its fstat(2)."""
        return cls(found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_mode, found.st_uid, found.st_gid)


def _difference(before: State, now: State) -> int:
    """Return what happened to a file: MODIFY, ATTRIB, or 0."""
    if before == now:
        return 0
    return Fanotify.MODIFY if before[1:3] != now[1:3] else Fanotify.ATTRIB


class _Note:
    """How the mount has left a file, and what others did to it before that was not told yet."""

    __slots__ = ("others", "state")

    def __init__(self, state: State, others: int) -> None:
        self.state = state
        self.others = others


class Ledger:
    """The changes of one mount. The kernel's queue is read in rounds: `begin`, then reading, `others`, and `end`.

    When a round begins, all that was noted down before has its events in the queue. So when all of it was read, no more
    events come of that, and what is heard of these files next is another's doing.
    """

    def __init__(self, now: int) -> None:
        self._fresh: dict[FileKey, _Note] = {}
        """Noted down since the round began."""
        self._current: dict[FileKey, _Note] = {}
        """Noted down before."""
        self._seen: dict[FileKey, State] = {}
        """Files that were changed lately and have been compared; as long as their ctime does not say so itself."""
        self._began = self._told_until = now
        """What changed before `_told_until` has been compared."""

    def __len__(self) -> int:
        return len(self._fresh) + len(self._current) + len(self._seen)

    # What the mount does

    def before(self, key: FileKey, state: State) -> None:
        """Note down that the mount is about to change a file."""
        note = self._fresh.get(key)
        others = note.others if note is not None else 0
        note = note or self._current.get(key)
        known = note.state if note is not None else self._seen.get(key)
        if known is not None:
            others |= _difference(known, state)
        elif not is_settled(self._told_until, state.ctime):
            others |= Fanotify.MODIFY  # it may be in the queue, or in one event with what the mount does now
        self._note(key, state, others)

    def after(self, key: FileKey, state: State) -> None:
        """Note down how the mount has left a file. Without `before` it has made it."""
        note = self._fresh.get(key)
        self._note(key, state, 0 if note is None else note.others)

    def _note(self, key: FileKey, state: State, others: int) -> None:
        self._fresh.pop(key, None)  # the last one is the youngest
        self._fresh[key] = _Note(state, others)
        if len(self._fresh) > _MOST:
            del self._fresh[next(iter(self._fresh))]

    # What is heard

    def begin(self, now: int) -> None:
        """Begin a round: what is in the queue is read after this."""
        self._began = now
        for key, note in self._fresh.items():
            before = self._current.pop(key, None)
            if before is not None:
                note.others |= before.others
            self._current[key] = note
        self._fresh = {}
        while len(self._current) > _MOST:
            del self._current[next(iter(self._current))]

    def others(self, key: FileKey, state: State, mask: int) -> int:
        """Return which of the events that were heard of a file are of what others did; 0 when the mount did it all.

        `mask` has the events; what is neither of content nor of attributes means that nobody has told what happened.
        """
        notes = [note for note in (self._fresh.get(key), self._current.get(key)) if note is not None]
        if not notes:
            is_known = self._seen.get(key) == state
            self._see(key, state)
            return mask if mask & (CONTENT | Fanotify.ATTRIB) or not is_known else 0
        found = _difference(notes[0].state, state)
        for note in notes:  # kept until the round ends: the file may have several names
            note.others |= found
            note.state = state
        for note in notes:
            found |= note.others
        if found & Fanotify.MODIFY and (mask & CONTENT or not mask & Fanotify.ATTRIB):
            return mask & CONTENT or Fanotify.MODIFY
        return Fanotify.ATTRIB if found else 0

    def end(self) -> None:
        """End a round in which all was read that was in the queue."""
        for key, note in self._current.items():
            self._see(key, note.state)
        self._current = {}
        self._told_until = self._began
        for key in [key for key, state in self._seen.items() if is_settled(self._told_until, state.ctime)]:
            del self._seen[key]

    def _see(self, key: FileKey, state: State) -> None:
        self._seen.pop(key, None)
        self._seen[key] = state
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
