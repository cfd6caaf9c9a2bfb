"""Changes of names in watched directories, and which of them the guest's agent may repeat (docs/events.md).

What lives here: `Listening`, which has the host's kernel tell (`sources`), compares with what was there before, and
says it in lines. What must not: how the guest waits for the lines (`watched`), or how it is pretended
(`handlers.ghosts`).

What this process did for its own guest is no news there. The kernel says who changed something, or a ledger is kept.
Either way each change of a name by this process is made inside `Listening.own`, and what names have come to by it is
what they were when they are compared next. The kernel need not say in which order: a name is compared with what it was,
20 ms after the first word of it, and what went and came under another name is a rename.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from uvmshare.fileserver import counters
from uvmshare.fileserver.mount.entries import Entry, entry_of, is_same, require_room
from uvmshare.fileserver.mount.ledger import CONTENT, Ledger, State
from uvmshare.fileserver.syscalls import Fanotify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.openfile import OpenFile
    from uvmshare.fileserver.mount.ledger import FileKey
    from uvmshare.fileserver.mount.sources import Source

__all__ = ["Absent", "Change", "Directory", "Gone", "Key", "Listening", "Moved", "Pretence"]

_MOST_NAMES: Final = 32_768
"""Names of one mount that are remembered when directories are added, about 200 bytes each; as many may come later.
What happens in more directories is not told."""
_MOST_LINES: Final = 8192
"""Changes that wait to be told. When there are more, the guest is told to begin anew."""
_COMPARE: Final = 1
"""Beside the kernel's bits: nobody has told what happened to the name."""
_AWAY: Final = Fanotify.DELETE | Fanotify.MOVED_FROM
_MOST_RENAMES: Final = 4096
"""Of this process, that are remembered until all is read that was heard before them."""
_GRANULARITY: Final = 20_000_000
"""Nanoseconds by which the times of files may lag behind the clock: two ticks of the slowest kernel."""


class Absent(NamedTuple):
    """The name is not there yet, for whoever makes it."""


class Gone(NamedTuple):
    """The name is still there, for whoever removes it. `mode` is its type and permissions."""

    mode: int


class Moved(NamedTuple):
    """The name still leads to what is at `path` now, for whoever renames it: the file with that `inode`."""

    path: bytes
    inode: int


Pretence = Absent | Gone | Moved
Key = tuple[tuple[int, int], bytes]
"""A directory's device and inode, and a name in it."""


T = TypeVar("T")
_Place = tuple[int, bytes]
"""The number of a watched directory, and a name in it."""


@dataclass(slots=True)
class _Found:
    """What names have come to: those that are gone, with what they were, those that came, and those that changed."""

    gone: dict[_Place, Entry] = field(default_factory=dict)
    come: dict[_Place, Entry] = field(default_factory=dict)
    changed: list[tuple[bytes, _Place, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that is watched: its file's device and inode, and its path below the root."""

    key: tuple[int, int]
    path: bytes


def _file_key(found: os.stat_result) -> FileKey:
    return found.st_dev, found.st_ino


@dataclass(frozen=True, slots=True)
class Change:
    """What this process is about to do: which files it changes, and what it does to names in directories.

    `what` is "make", "create" (where it is not there yet) or "remove" for the one of `names`, "rename" for the first of
    two, and "" where there are none. A directory in which a name is changed is one of the files.
    """

    files: tuple[Node | OpenFile, ...]
    names: tuple[tuple[Node, bytes], ...] = ()
    what: str = ""


class Listening:
    """What has happened to the names of one session's watched directories. Its owner's lock guards all of it.

    `opened` opens a watched directory where it was when it was added, None when it is not there any more; `shows` says
    whether a name in one exists for the guest, by what kind of file it has. What happens is counted in `slots`
    (`counters`).
    """

    def __init__(
        self,
        source: Source,
        opened: Callable[[int], int | None],
        shows: Callable[[int, bytes, bytes], bool],
        slots: memoryview,
    ) -> None:
        self._slots = slots
        self.plan: dict[Key, Pretence] = {}
        """What may be pretended now: of the lines that were told last."""
        self.ledger = None if source.says_who else Ledger(time.time_ns())
        """What this process has changed, where the kernel does not say it."""
        self._lock = threading.RLock()
        """No name is compared while this process changes one: guards names, renames and the ledger."""
        self._changing: set[FileKey] | None = None
        """The files that are about to be changed inside `own`."""
        self._source = source
        self._is_all_read = True
        self._opened = opened
        self._shows = shows
        self._told: set[int] = set()
        """The directories of which the kernel tells."""
        self._directories: dict[int, Directory] = {}
        self._by_path: dict[bytes, int] = {}
        self._by_key: dict[FileKey, int] = {}
        self._names: dict[int, dict[bytes, Entry]] = {}
        self._count = 0
        self._dirty: dict[_Place, int] = {}
        self._renames: list[tuple[_Place, _Place]] = []
        """What this process has renamed: the kernel may still speak of what others did to it by its old name."""
        self._renames_read = 0
        """So many of them came before what was read last."""
        self._lines: deque[tuple[bytes, dict[Key, Pretence]]] = deque()
        self._compared = time.time_ns()
        self._is_too_much = False
        """Whether there are more names than can be compared."""

    def close(self) -> None:
        """Be told of nothing any more."""
        self._source.clear()

    def add(self, number: int, descriptor: int, path: str, directory: Directory) -> bool:
        """Be told of the names in a directory; what the kernel cannot tell of is passed over.

        False when that is because too many directories have left their places: then the agent should begin anew. Raises
        `OSError` when this process has no room left.
        """
        self._place_directory(number, directory)
        if number in self._told:  # it was renamed
            return True
        try:
            if not self._source.watch(number, descriptor, path):
                return False
        except OSError:  # this user may have no more
            return True
        self._told.add(number)
        names = self._look_at_all(number, _MOST_NAMES - self._count)
        if names is not None:
            self._names[number] = names
            self._count += len(names)
        return True

    def _place_directory(self, number: int, directory: Directory) -> None:
        self._displace(number)
        self._directories[number] = directory
        self._by_path[directory.path] = number
        self._by_key[directory.key] = number

    def _displace(self, number: int) -> None:
        before = self._directories.pop(number, None)
        if before is not None and self._by_path.get(before.path) == number:
            del self._by_path[before.path]
        if before is not None and self._by_key.get(before.key) == number:
            del self._by_key[before.key]

    def remove(self, number: int, *, is_gone: bool) -> None:
        """Forget a directory. What the kernel still tells of it is passed over.

        `is_gone`: the kernel has forgotten it, and tells nothing more.
        """
        if number in self._told:
            self._told.remove(number)
            self._source.forget(number, is_gone=is_gone)
            with self._lock:
                self._count -= len(self._names.pop(number, ()))
        self._displace(number)

    # What the kernel says

    def read(self) -> None:
        """Take what the kernel has to say. Raises nothing."""
        with self._lock:
            self._renames_read = len(self._renames)
            if self.ledger is not None:
                self.ledger.begin(time.time_ns())
        told, self._is_all_read = self._source.read()
        for number, name, mask in told:
            if number is None:
                self._slots[counters.OVERFLOWS] += 1
                self._compare_all()
                continue
            place = self._place(number, name)
            if place is not None:
                self._slots[counters.HEARD] += 1
                self._slots[counters.COALESCED] += place in self._dirty
                self._dirty[place] = self._dirty.get(place, 0) | mask

    def _place(self, number: int, name: bytes) -> _Place | None:
        """Return the place of a name. The kernel says "." of what happens to a directory itself, and not its name."""
        if number not in self._directories:
            return None
        if name != b".":
            return (number, name) if name else None
        above, _, name = self._directories[number].path.rpartition(b"/")
        other = self._by_path.get(above) if name else None
        return None if other is None else (other, name)

    def _compare_all(self) -> None:
        room = 2 * _MOST_NAMES
        for number, names in self._names.items():
            with self._lock:
                now = self._look_at_all(number, room)
                before = tuple(names)
            if now is None:
                self._is_too_much = True
                return
            room -= len(now)
            for name in (*before, *now):
                key = number, name
                self._dirty[key] = self._dirty.get(key, 0) | _COMPARE

    # What has become of names

    def compare(self) -> bool:
        """Find out what there is to tell of the names that the kernel spoke of; False when it is too much to tell."""
        dirty, self._dirty = self._dirty, {}
        if self._is_too_much:
            self._is_too_much = False
            self._lines.clear()
            return False
        since, self._compared = self._compared - _GRANULARITY, time.time_ns()
        found = _Found()
        self._compare_each(found, dirty, since)
        self._compare_each(found, self._renamed(dirty), since)
        self._end_round()
        self._tell_renames(found, since)
        for (number, name), entry in found.gone.items():
            now = found.come.get((number, name))
            if now is not None and now.kind == entry.kind == b"f":
                del found.come[number, name]
                found.changed.append((b"M", (number, name), b"f"))
            else:
                mode = stat.S_IFDIR | 0o700 if entry.kind == b"d" else stat.S_IFREG | 0o600
                self._tell(b"D", (number, name), entry.kind, {self._key(number, name): Gone(mode)})
        for (number, name), entry in found.come.items():
            self._tell(b"C", (number, name), entry.kind, {self._key(number, name): Absent()})
        for what, place, kind in found.changed:
            self._tell(what, place, kind, {})
        if len(self._lines) <= _MOST_LINES:
            return True
        self._lines.clear()
        self._slots[counters.OVERFLOWS] += 1
        return False

    def _compare_each(self, found: _Found, dirty: dict[_Place, int], since: int) -> None:
        by_directory: dict[int, list[tuple[bytes, int]]] = {}
        for (number, name), mask in dirty.items():
            by_directory.setdefault(number, []).append((name, mask))
        for number, names in by_directory.items():
            directory = self._opened(number) if number in self._names else None
            if directory is None:
                continue
            try:
                for name, mask in names:
                    with self._lock:
                        self._compare_one(found, (number, name), directory, mask, since)
            finally:
                os.close(directory)

    def _end_round(self) -> None:
        if not self._is_all_read:
            return
        with self._lock:
            del self._renames[: self._renames_read]
            if self.ledger is not None:
                self.ledger.end()

    def _renamed(self, dirty: dict[_Place, int]) -> dict[_Place, int]:
        """Return what others did to files by names from which this process has moved them, by their new names.

        It may have been done to the next file of that name: then it is told once too often. A ledger knows the file.
        """
        moved: dict[_Place, int] = {}
        if not dirty:
            return moved
        with self._lock:
            for old, new in self._renames:
                mask = dirty.get(old, 0) | moved.pop(old, 0)
                if mask:
                    moved[new] = moved.get(new, 0) | mask
        return {place: mask for place, mask in moved.items() if not dirty.get(place, 0) & (CONTENT | _COMPARE)}

    def _compare_one(self, found: _Found, place: _Place, directory: int, mask: int, since: int) -> None:
        """Compare a name with what it was. `mask` is what others did to it, `since` the time of the last comparison."""
        number, name = place
        before = self._names[number].get(name)
        now, stated = self._look(number, directory, name)
        self._remember(number, name, now)
        if self.ledger is not None and stated is not None:
            mask = self.ledger.others((stated.st_dev, stated.st_ino), State.of(stated), mask) or (
                _COMPARE if before is None or now is None or before[:2] != now[:2] else 0
            )
        if not mask:
            return
        if before is None or now is None or before[:2] != now[:2]:
            if before is not None:
                found.gone[place] = before
            if now is not None:
                found.come[place] = now
            return
        if self.ledger is None:
            mask &= ~_AWAY  # what has brought it back was another event, or this process
        is_newer = stated is not None and max(stated.st_mtime_ns, stated.st_ctime_ns) >= since
        if mask & CONTENT or (mask == _COMPARE and is_newer):
            found.changed.append((b"M" if now.kind == b"f" else b"A", place, now.kind))
        elif mask & Fanotify.ATTRIB:
            found.changed.append((b"A", place, now.kind))

    def _tell_renames(self, found: _Found, since: int) -> None:
        """Tell what went and came under another name, which is neither from then on.

        A file that was made meanwhile may have the inode of one that was removed.
        """
        came = {entry[:2]: place for place, entry in found.come.items()}
        for place, entry in tuple(found.gone.items()):
            to = came.get(entry[:2])
            if to is None or to == place or not is_same(entry, found.come[to], since):
                continue
            del found.gone[place], found.come[to], came[entry[:2]]
            plan: dict[Key, Pretence] = {self._key(*place): Moved(self._path(*to), entry.inode)}
            if to in found.gone:  # it was replaced: the name is there all the time
                del found.gone[to]
            else:
                plan[self._key(*to)] = Absent()
            self._tell(b"R", place, entry.kind, plan, b" %d %s" % (to[0], to[1].hex().encode()))

    def _look(self, number: int, directory: int, name: bytes) -> tuple[Entry | None, os.stat_result | None]:
        entry, found = entry_of(directory, name)
        if entry is None or not self._shows(number, name, entry.kind):
            return None, None
        return entry, found

    def _look_at_all(self, number: int, most: int) -> dict[bytes, Entry] | None:
        """Return what a directory has; None when that is more than so many names. Raises `OSError` for want of room."""
        directory = self._opened(number)
        if directory is None:
            return {}
        found: dict[bytes, Entry] = {}
        try:
            listed = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
            try:
                with os.scandir(listed) as entries:
                    for count, entry in enumerate(entries):
                        if count >= most:
                            return None
                        name, kind = os.fsencode(entry.name), b"l" if entry.is_symlink() else b"o"
                        if kind == b"o" and entry.is_dir(follow_symlinks=False):
                            kind = b"d"
                        elif kind == b"o" and entry.is_file(follow_symlinks=False):
                            kind = b"f"
                        if self._shows(number, name, kind):
                            found[name] = Entry(entry.inode(), kind)
            finally:
                os.close(listed)
        except OSError as error:
            require_room(error)
        finally:
            os.close(directory)
        return found

    def _remember(self, number: int, name: bytes, now: Entry | None) -> None:
        names = self._names[number]
        before = len(names)
        if now is None:
            names.pop(name, None)
        elif name in names or self._count < 2 * _MOST_NAMES:
            names[name] = now
        self._count += len(names) - before

    # What this process does

    def own(self, change: Change, do: Callable[[], T]) -> T:
        """Return what `do` returns, and take note of what it changes. What it raises has changed no name.

        What cannot be noted, since this process has no room left, is told as if another had done it.
        """
        with self._lock:
            places = [self._remembered(directory, name) for directory, name in change.names]
            if self.ledger is not None:
                return self._noted(self.ledger, change, places, do)
            return self._followed(change, places, do) if any(places) else do()

    def _followed(self, change: Change, places: list[_Place | None], do: Callable[[], T]) -> T:
        """Look only at names of which it is not known without what they are."""
        before: list[Entry | None] = [None, None]
        (directory, name), *others = change.names
        try:
            if change.what in ("create", "rename"):
                before[0], found = entry_of(directory.fd, name)
                if found is not None and found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
                    before[1:] = [entry_of(to.fd, new)[0] for to, new in others]  # it may have both names
        except OSError:
            return do()
        done = do()
        with suppress(OSError):
            made = entry_of(directory.fd, name)[0] if change.what in ("make", "create") else None
            self._take_for_known(change.what, places, before, made)
        return done

    def _noted(self, ledger: Ledger, change: Change, places: list[_Place | None], do: Callable[[], T]) -> T:
        """Look at all names and files, before and afterwards, for the ledger."""
        held: list[int] = []
        before: list[Entry | None] = []
        is_done = False
        try:
            with suppress(OSError):
                before = self._note_before(ledger, change, held)
            done = do()
            is_done = True
        finally:
            self._changing = None
            with suppress(OSError):
                after = self._note_after(ledger, change, held, is_done=is_done)
                if is_done and before:
                    self._take_for_known(change.what, places, before, after[0])
            for descriptor in held:
                os.close(descriptor)
        return done

    def _note_before(self, ledger: Ledger, change: Change, held: list[int]) -> list[Entry | None]:
        """Note down the files that are about to be changed, and hold those that may lose a name; return what names are.

        A file that loses one of its names has another ctime then.
        """
        there = [entry_of(directory.fd, name, held) for directory, name in change.names]
        found = [os.fstat(each.fd) for each in change.files] + [stated for _, stated in there if stated is not None]
        self._changing = {_file_key(each) for each in found}
        for each in found:
            ledger.before(_file_key(each), State.of(each))
        return [entry for entry, _ in there]

    @staticmethod
    def _note_after(ledger: Ledger, change: Change, held: list[int], *, is_done: bool) -> list[Entry | None]:
        there = [entry_of(directory.fd, name) for directory, name in change.names]
        if is_done:  # what was made is the mount's own
            for _, stated in there:
                if stated is not None:
                    ledger.after(_file_key(stated), State.of(stated))
        for descriptor in (*(each.fd for each in change.files), *held):
            stated = os.fstat(descriptor)
            ledger.after(_file_key(stated), State.of(stated))
        return [entry for entry, _ in there]

    def _take_for_known(
        self, what: str, places: list[_Place | None], before: list[Entry | None], made: Entry | None
    ) -> None:
        """Take what names have come to by an own change for what they were. Another may have changed them again."""
        if what == "make" or (what == "create" and before[0] is None):
            self._know(places[0], made)
        elif what == "remove":
            self._know(places[0], None)
        elif what == "rename" and before[0] is not None and before[0][:1] != (before[1] or ())[:1]:
            old, new = places  # but of two names of one file both stay
            self._know(old, None)
            self._know(new, before[0])
            if self.ledger is None and old and new and len(self._renames) < _MOST_RENAMES:
                self._renames.append((old, new))

    def _know(self, place: _Place | None, entry: Entry | None) -> None:
        if place is not None:
            self._remember(*place, entry)

    def _remembered(self, directory: Node, name: bytes) -> _Place | None:
        """Return the place of a name; None where the names of the directory are not remembered."""
        try:
            number = self._by_key.get(_file_key(os.fstat(directory.fd)))
        except OSError:  # its descriptor was let go, and it is gone (`idle`)
            return None
        return (number, name) if number in self._names else None

    @contextmanager
    def lending(self, node: Node) -> Iterator[None]:
        """Note down that permissions are lent to a file, or given back, whatever for (`files.lending`)."""
        with self._lock:
            found = os.fstat(node.fd)
            key = _file_key(found)
            if self.ledger is None or (self._changing is not None and key in self._changing):
                yield
                return
            self.ledger.before(key, State.of(found))
            try:
                yield
            finally:
                self.ledger.after(key, State.of(os.fstat(node.fd)))

    # What is told

    def _key(self, number: int, name: bytes) -> Key:
        return self._directories[number].key, name

    def _path(self, number: int, name: bytes) -> bytes:
        above = self._directories[number].path
        return b"/".join((above, name)) if above else name

    def _tell(self, what: bytes, place: _Place, kind: bytes, plan: dict[Key, Pretence], rest: bytes = b"") -> None:
        line = b"%s%s %d %s%s\n" % (what, kind, place[0], place[1].hex().encode(), rest)
        self._lines.append((line, plan))

    @property
    def has_lines(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._lines)

    def take(self, most: int) -> bytes:
        """Return lines of up to so many bytes. From now on what they say may be pretended, and nothing else."""
        self.plan = {}
        told = b""
        while self._lines and len(told) + len(self._lines[0][0]) <= most:
            line, plan = self._lines[0]
            if self.plan.keys() & plan.keys():
                break  # one thing after the other
            self._lines.popleft()
            self._slots[counters.TOLD] += 1
            told += line
            self.plan.update(plan)
        return told
