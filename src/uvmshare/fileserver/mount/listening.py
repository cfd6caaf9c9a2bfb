"""Changes of names in watched directories, and which of them the guest's agent may repeat (docs/events.md).

What lives here: `Listening`, which has the host's kernel tell (fanotify(7)), compares with what was there before, and
says it in lines. What must not: how the guest waits for the lines (`watched`), or how it is pretended
(`handlers.ghosts`).

The kernel says who changed something: what this process did for its own guest is no news there. It need not say in
which order: a name is compared with what it was, 20 ms after the first word of it, and what went and came under
another name is a rename.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from uvmshare.directory import birth_time, file_handle
from uvmshare.fileserver import counters, syscalls
from uvmshare.fileserver.mount.seccomp import LISTEN_MASK, MARK
from uvmshare.fileserver.syscalls import Fanotify, MountCrossed

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "SHARE_OF_ALL",
    "Absent",
    "Directory",
    "Gone",
    "Group",
    "Key",
    "Listening",
    "Moved",
    "Pretence",
    "require_room",
]

_SPARE: Final = 32
"""Groups that must be left to other programs of this user; there are 128 (``max_user_groups``)."""
_MOST_NAMES: Final = 32_768
"""Names of one mount that are remembered when directories are added, about 200 bytes each; as many may come later.
What happens in more directories is not told."""
_MOST_LINES: Final = 8192
"""Changes that wait to be told. When there are more, the guest is told to begin anew."""
_MOST_MARKS: Final = 4096
"""Twice as many as directories may be watched (`watched`). A mark keeps its directory in the kernel's memory. It stays
when the directory has left its place, since only a path could take it away."""
SHARE_OF_ALL: Final = 64
"""One mount takes no more than so small a part of what a user may watch and mark, and 16 mounts of one VM a quarter."""
_MAX_MARKS: Final = "/proc/sys/fs/fanotify/max_user_marks"
_PIECE: Final = 64 * 1024
_MOST_PIECES: Final = 64
"""That are read at once: a guest that makes changes faster than they are read is not to keep all else waiting."""
_METADATA: Final = struct.Struct("=IBBHQii")
_RECORD: Final = struct.Struct("=BBH8sIi")
"""An info record with a handle: type, padding, length, fsid, and how long the handle is, and of which type."""
_DFID_NAME: Final = 2
_CONTENT: Final = Fanotify.MODIFY | Fanotify.CREATE | Fanotify.MOVED_TO | Fanotify.DELETE | Fanotify.MOVED_FROM
_COMPARE: Final = 1
"""Beside the kernel's bits: nobody has told what happened to the name."""
_NS: Final = 1_000_000_000
_GRANULARITY: Final = 20_000_000
"""Nanoseconds by which the times of files may lag behind the clock: two ticks of the slowest kernel."""


def require_room(error: OSError) -> None:
    """Raise an error again that says nothing of the file: that this process, or the host, has no room for more."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error


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


class _Entry(NamedTuple):
    inode: int
    kind: bytes
    """f, d, l or o: a regular file, a directory, a symbolic link, another."""
    born: int | None = None
    """When it was made, in nanoseconds; None where nobody has looked, or the file system does not tell."""


def _is_same(gone: _Entry, come: _Entry, since: int) -> bool:
    """Say whether two entries with one inode are of one file; of what was only listed, it is older than the listing."""
    if come.born is None:
        return False
    return come.born < since if gone.born is None else come.born == gone.born


_Place = tuple[int, bytes]
"""The number of a watched directory, and a name in it."""


@dataclass(slots=True)
class _Found:
    """What names have come to: those that are gone, with what they were, those that came, and those that changed."""

    gone: dict[_Place, _Entry] = field(default_factory=dict)
    come: dict[_Place, _Entry] = field(default_factory=dict)
    changed: list[tuple[bytes, _Place, bytes]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that is watched: its file's device and inode, and its path below the root."""

    key: tuple[int, int]
    path: bytes


class Group:
    """The kernel's queue of what happens to names, and of how many directories it may be told."""

    def __init__(self, descriptor: int, most: int) -> None:
        self.descriptor = descriptor
        self.most = most

    @classmethod
    def open(cls) -> Group | None:
        """Return a group; None where this host has none (Linux before 5.13), or none to spare. Raises nothing."""
        try:
            with open(_MAX_MARKS, "rb") as file:
                most = min(_MOST_MARKS, int(file.read()) // SHARE_OF_ALL)
            return cls(syscalls.with_spare(syscalls.fanotify_init, _SPARE), most) if most else None
        except (OSError, ValueError):
            return None

    def close(self) -> None:
        """Give it back."""
        os.close(self.descriptor)


class Listening:
    """What has happened to the names of one session's watched directories. Its owner's lock guards all of it.

    `opened` opens a watched directory where it was when it was added, None when it is not there any more; `shows` says
    whether a name in one exists for the guest, by what kind of file it has. What happens is counted in `slots`
    (`counters`).
    """

    def __init__(
        self,
        group: Group,
        opened: Callable[[int], int | None],
        shows: Callable[[int, bytes, bytes], bool],
        slots: memoryview,
    ) -> None:
        self._slots = slots
        self.plan: dict[Key, Pretence] = {}
        """What may be pretended now: of the lines that were told last."""
        self._own = os.getpid()
        self._group = group
        self._opened = opened
        self._shows = shows
        self._numbers: dict[bytes, int] = {}
        """By the handle of a directory."""
        self._handles: dict[int, bytes] = {}
        self._marked: set[bytes] = set()
        """The handles of all that the kernel was asked to tell of, and may still tell of."""
        self._directories: dict[int, Directory] = {}
        self._by_path: dict[bytes, int] = {}
        self._names: dict[int, dict[bytes, _Entry]] = {}
        self._count = 0
        self._dirty: dict[_Place, int] = {}
        self._lines: deque[tuple[bytes, dict[Key, Pretence]]] = deque()
        self._compared = time.time_ns()
        self._is_too_much = False
        """Whether there are more names than can be compared."""

    def close(self) -> None:
        """Be told of nothing any more."""
        with suppress(OSError):
            syscalls.fanotify_mark(self._group.descriptor, Fanotify.MARK_FLUSH, 0, "/")
        with suppress(OSError):
            while os.read(self._group.descriptor, _PIECE):
                pass

    def require_told(self, descriptor: int, path: str) -> None:
        """Refuse to listen where the kernel cannot tell of a directory: EOPNOTSUPP. Raises `OSError`."""
        try:
            if not file_handle(descriptor):
                raise OSError(errno.EOPNOTSUPP, "the file system has no handles")
            syscalls.fanotify_mark(self._group.descriptor, MARK, LISTEN_MASK, path)
        except OSError as error:
            raise OSError(errno.EOPNOTSUPP, f"no events of this file system: {error.strerror}") from error
        self.close()

    def add(self, number: int, descriptor: int, path: str, directory: Directory) -> bool:
        """Be told of the names in a directory; what the kernel cannot tell of is passed over.

        False when that is because too many directories have left their places: then the agent should begin anew. Raises
        `OSError` when this process has no room left.
        """
        self._place_directory(number, directory)
        if number in self._handles:  # it was renamed
            return True
        try:
            handle = file_handle(descriptor)
            if handle not in self._marked and len(self._marked) >= self._group.most:
                return 2 * len(self._handles) > len(self._marked)
            syscalls.fanotify_mark(self._group.descriptor, MARK, LISTEN_MASK, path)
        except OSError:  # this user may have no more marks
            return True
        self._marked.add(handle)
        self._numbers[handle] = number
        self._handles[number] = handle
        names = self._look_at_all(number, _MOST_NAMES - self._count)
        if names is not None:
            self._names[number] = names
            self._count += len(names)
        return True

    def _place_directory(self, number: int, directory: Directory) -> None:
        self._displace(number)
        self._directories[number] = directory
        self._by_path[directory.path] = number

    def _displace(self, number: int) -> None:
        before = self._directories.pop(number, None)
        if before is not None and self._by_path.get(before.path) == number:
            del self._by_path[before.path]

    def remove(self, number: int, *, is_gone: bool) -> None:
        """Forget a directory. What the kernel still tells of it is passed over.

        `is_gone`: the kernel has forgotten it, and tells nothing more.
        """
        handle = self._handles.pop(number, None)
        if handle is not None:
            if is_gone:
                self._marked.discard(handle)
            if self._numbers.get(handle) == number:
                del self._numbers[handle]
            self._count -= len(self._names.pop(number, ()))
        self._displace(number)

    # What the kernel says

    def read(self) -> None:
        """Take what the kernel has to say. Raises nothing."""
        for _ in range(_MOST_PIECES):
            try:
                data = os.read(self._group.descriptor, _PIECE)
            except OSError:
                return
            at = 0
            while at < len(data):
                size, _, _, header, mask, _, pid = _METADATA.unpack_from(data, at)
                if mask & Fanotify.Q_OVERFLOW:
                    self._slots[counters.OVERFLOWS] += 1
                    self._compare_all()
                else:
                    self._note(data, at + header, at + size, mask if pid != self._own else 0)
                at += size

    def _note(self, data: bytes, at: int, stop: int, mask: int) -> None:
        while at + _RECORD.size <= stop:
            kind, _, size, _, length, _ = _RECORD.unpack_from(data, at)
            if kind == _DFID_NAME:
                start = at + _RECORD.size
                number = self._numbers.get(data[start : start + length])
                name = data[start + length : at + size].split(b"\0", 1)[0]
                place = self._place(number, name) if number is not None else None
                if place is not None:
                    if mask:
                        self._slots[counters.HEARD] += 1
                        self._slots[counters.COALESCED] += place in self._dirty
                    self._dirty[place] = self._dirty.get(place, 0) | mask
            at += max(size, 1)

    def _place(self, number: int, name: bytes) -> _Place | None:
        """Return the place of a name. The kernel says "." of what happens to a directory itself, and not its name."""
        if name != b".":
            return (number, name) if name else None
        above, _, name = self._directories[number].path.rpartition(b"/")
        other = self._by_path.get(above) if name else None
        return None if other is None else (other, name)

    def _compare_all(self) -> None:
        room = 2 * _MOST_NAMES
        for number, names in self._names.items():
            now = self._look_at_all(number, room)
            if now is None:
                self._is_too_much = True
                return
            room -= len(now)
            for name in (*names, *now):
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
        by_directory: dict[int, list[tuple[bytes, int]]] = {}
        for (number, name), mask in dirty.items():
            by_directory.setdefault(number, []).append((name, mask))
        for number, names in by_directory.items():
            directory = self._opened(number) if number in self._names else None
            if directory is None:
                continue
            try:
                for name, mask in names:
                    self._compare_one(found, (number, name), directory, mask, since)
            finally:
                os.close(directory)
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

    def _compare_one(self, found: _Found, place: _Place, directory: int, mask: int, since: int) -> None:
        """Compare a name with what it was. `mask` is what others did to it, `since` the time of the last comparison."""
        number, name = place
        before = self._names[number].get(name)
        now, stated = self._look(number, directory, name)
        self._remember(number, name, now)
        if not mask:
            return
        if before is None or now is None or before[:2] != now[:2]:
            if before is not None:
                found.gone[place] = before
            if now is not None:
                found.come[place] = now
            return
        is_newer = stated is not None and max(stated.st_mtime_ns, stated.st_ctime_ns) >= since
        if mask & _CONTENT or (mask == _COMPARE and is_newer):
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
            if to is None or to == place or not _is_same(entry, found.come[to], since):
                continue
            del found.gone[place], found.come[to], came[entry[:2]]
            plan: dict[Key, Pretence] = {self._key(*place): Moved(self._path(*to), entry.inode)}
            if to in found.gone:  # it was replaced: the name is there all the time
                del found.gone[to]
            else:
                plan[self._key(*to)] = Absent()
            self._tell(b"R", place, entry.kind, plan, b" %d %s" % (to[0], to[1].hex().encode()))

    def _look(self, number: int, directory: int, name: bytes) -> tuple[_Entry | None, os.stat_result | None]:
        try:
            descriptor = syscalls.open_entry(name, directory)
            try:
                found, born = os.fstat(descriptor), birth_time(descriptor)
            finally:
                os.close(descriptor)
        except MountCrossed:  # what is behind it is not watched, and may never answer
            return None, None
        except OSError as error:
            require_room(error)
            return None, None
        kinds = {stat.S_IFREG: b"f", stat.S_IFDIR: b"d", stat.S_IFLNK: b"l"}
        kind = kinds.get(stat.S_IFMT(found.st_mode), b"o")
        if not self._shows(number, name, kind):
            return None, None
        return _Entry(found.st_ino, kind, None if born is None else born[0] * _NS + born[1]), found

    def _look_at_all(self, number: int, most: int) -> dict[bytes, _Entry] | None:
        """Return what a directory has; None when that is more than so many names. Raises `OSError` for want of room."""
        directory = self._opened(number)
        if directory is None:
            return {}
        found: dict[bytes, _Entry] = {}
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
                            found[name] = _Entry(entry.inode(), kind)
            finally:
                os.close(listed)
        except OSError as error:
            require_room(error)
        finally:
            os.close(directory)
        return found

    def _remember(self, number: int, name: bytes, now: _Entry | None) -> None:
        names = self._names[number]
        before = len(names)
        if now is None:
            names.pop(name, None)
        elif name in names or self._count < 2 * _MOST_NAMES:
            names[name] = now
        self._count += len(names) - before

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
