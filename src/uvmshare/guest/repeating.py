"""Making each change of the host once more in the guest, so that the guest's kernel fires its events.

What lives here: `Repeater`. What must not: which directories are held (`pinning`). Standard library only (Python 3.9):
it runs in guests.

The operations are real ones of the guest's kernel on its own mount, as a uid that the file server has reserved for this
connection. For another uid the kernel attaches apart (``access=client``), so the file server knows these requests, and
only pretends to carry them out (docs/events.md). No data is ever written.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING

from uvmshare.guest.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Repeater"]

_EVENTS = "trusted.uvmshare.events"
_PR_SET_SECUREBITS = 28
_NO_SETUID_FIXUP = 1 << 2
"""Capabilities stay when the uid for files changes (capabilities(7)): whose files these are is not to matter."""
_CAPABILITIES = ((1, "CAP_DAC_OVERRIDE"), (3, "CAP_FOWNER"), (7, "CAP_SETUID"), (8, "CAP_SETPCAP"))
_UTIME_OMIT = (1 << 30) - 2
_AT_SYMLINK_NOFOLLOW = 0x100
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
_CREATE = os.O_CREAT | os.O_EXCL | os.O_RDONLY | _FLAGS
"""Not for writing: meanwhile no program could execute it (ETXTBSY)."""
_O_PATH = 0o10000000
_MADE = _O_PATH | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_EXECUTE = 0o111
_NS = 1_000_000_000
_MOUNT_SETATTR = 442
"""The same on every architecture."""
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_RDONLY = 1


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _MountAttr(ctypes.Structure):
    _fields_ = (
        *(("set", ctypes.c_uint64), ("clear", ctypes.c_uint64)),
        *(("propagation", ctypes.c_uint64), ("userns", ctypes.c_uint64)),
    )


class Repeater:
    """Repeats changes below the mount of a directory, which is this process's alone: it is made writable.

    Raises `OSError`: EOPNOTSUPP where that cannot be.
    """

    def __init__(self, root: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.uid = int(os.getxattr(f"/proc/self/fd/{root}", _EVENTS))
        self.repeated = 0
        """Changes that were repeated."""
        self.failed = 0
        """Changes that could not be."""
        self._watches = Watches(os.fstat(root).st_dev)
        missing = _missing_capabilities()
        if missing:
            raise OSError(
                errno.EOPNOTSUPP, f"the agent lacks {', '.join(missing)}: add that to its unit's CapabilityBoundingSet"
            )
        if self._libc.prctl(_PR_SET_SECUREBITS, ctypes.c_ulong(_NO_SETUID_FIXUP), 0, 0, 0):
            raise OSError(errno.EOPNOTSUPP, "the agent may not keep its capabilities")
        if os.fstatvfs(root).f_flag & os.ST_RDONLY:
            self._make_writable(root)
        with self._as_reserved():
            try:
                os.lstat(f".uvmshare-{self.uid}", dir_fd=root)
            except FileNotFoundError as error:
                why = "the guest's kernel does not attach for each user: mount with access=client"
                raise OSError(errno.EOPNOTSUPP, why) from error

    def _make_writable(self, root: int) -> None:
        """Let this process write through its own mount of a file system whose other mount is read-only."""
        attr = _MountAttr(clear=_MOUNT_ATTR_RDONLY)
        size = ctypes.c_size_t(ctypes.sizeof(attr))
        how = ctypes.c_uint(_AT_EMPTY_PATH), ctypes.byref(attr), size
        if self._libc.syscall(_MOUNT_SETATTR, ctypes.c_int(root), b"", *how):
            why = os.strerror(ctypes.get_errno())
            raise OSError(errno.EOPNOTSUPP, f"events of a read-only mount need Linux 5.12 in the guest ({why})")

    @contextlib.contextmanager
    def _as_reserved(self) -> Iterator[None]:
        self._libc.setfsuid(ctypes.c_uint32(self.uid))
        try:
            yield
        finally:
            self._libc.setfsuid(ctypes.c_uint32(0))

    def carry_out(
        self,
        lines: list[bytes],
        directory: Callable[[int], tuple[int, int] | None],
        is_news: Callable[[int, str, set[int]], bool],
        made: Callable[[int, str, int], object],
    ) -> set[int]:
        """Repeat what the lines say, as far as a program of the guest watches; return in which directories one failed.

        `directory` returns descriptor and inode of the directory with a number, if it is held. For each directory that
        is to be made in one, `is_news` lets go of it, or says by the inodes that are watched that programs know it
        already; `made` is called when it was made, with a descriptor of its path. Raises `OSError` when the connection
        is lost.
        """
        failed: set[int] = set()
        inodes = self._watched(lines, directory)
        for line in lines if inodes else ():
            words = _words(line, directory)  # at its turn: an earlier one may have had its directory let go
            if words is None:
                continue
            number, is_listened_to = words.number, bool(words.places & inodes)
            if words.makes_directory and is_listened_to and not is_news(number, words.name, inodes):
                continue
            try:
                with self._as_reserved():
                    if not is_listened_to and (words.what == "C" or not self._is_watched(words, inodes)):
                        continue
                    opened = self._repeat(words)
                self.repeated += 1
            except OSError as error:
                if error.errno in (errno.EIO, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN):
                    raise
                self.failed += 1
                failed.add(number)
            else:
                if opened is not None:
                    made(number, words.name, opened)
        return failed

    def _watched(self, lines: list[bytes], directory: Callable[[int], tuple[int, int] | None]) -> set[int]:
        """Return the inodes that are watched: all, unless those that are known to be say enough of all these lines."""
        inodes = self._watches.known()
        for line in lines:
            words = _words(line, directory)
            if words is not None and (words.makes_directory or not words.places & inodes):
                return self._watches.all()
        return inodes

    def _is_watched(self, words: _Words, inodes: set[int]) -> bool:
        """Say whether a program watches the file itself."""
        return os.lstat(words.name, dir_fd=words.at).st_ino in inodes

    def _repeat(self, words: _Words) -> int | None:
        """Repeat one change. Return a descriptor of the path of a directory that was made."""
        at, name = words.at, words.name
        if words.what == "R":
            os.rename(name, words.new, src_dir_fd=at, dst_dir_fd=words.target)
        elif words.what == "D":
            if words.kind == "d":
                os.rmdir(name, dir_fd=at)
            else:
                os.unlink(name, dir_fd=at)
        elif words.what == "A":
            found = os.lstat(name, dir_fd=at)
            os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=at, follow_symlinks=False)
        elif words.what == "M":
            self._modify(at, name)
        elif words.kind == "d":
            return self._make_directory(words)
        else:
            self._create(words)
        return None

    def _make_directory(self, words: _Words) -> int | None:
        """Make a directory and return a descriptor of its path; None when it is there no more.

        Who hears of it watches it. The kernel makes a new inode for each look-up, but one that begins while another one
        goes on gets the same. So the directory is looked up before who hears has looked it up and let it go again.
        """
        with _first():
            os.mkdir(words.name, 0o755, dir_fd=words.at)
            try:
                return os.open(words.name, _MADE, dir_fd=words.at)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def _create(self, words: _Words) -> None:
        at, name, kind = words.at, words.name, words.kind
        try:
            if kind == "l":
                os.symlink("-", name, dir_fd=at)
            elif kind == "f":
                os.close(os.open(name, _CREATE, 0o644, dir_fd=at))
            else:
                os.mknod(name, stat.S_IFIFO | 0o644, dir_fd=at)
        except FileExistsError:  # the guest's kernel has it in use already
            if kind != "f":
                raise
        if kind == "f":
            self._modify(at, name)

    def _modify(self, at: int, name: str) -> None:
        """Set the time of the last change to what it is: a change of that time alone is MODIFY (fsnotify_change)."""
        found = os.lstat(name, dir_fd=at)
        opened = -1
        if not found.st_mode & _EXECUTE:  # while it is open for writing no program could execute it
            with contextlib.suppress(OSError):
                opened = os.open(name, os.O_WRONLY | _FLAGS, dir_fd=at)
        try:
            seconds, nanoseconds = divmod(found.st_mtime_ns, _NS)
            times = (_Timespec * 2)(_Timespec(0, _UTIME_OMIT), _Timespec(seconds, nanoseconds))
            if self._libc.utimensat(at, os.fsencode(name), times, _AT_SYMLINK_NOFOLLOW):
                raise OSError(ctypes.get_errno(), "utimensat")
        finally:
            if opened >= 0:
                os.close(opened)  # CLOSE_WRITE


class _Words:
    """What a line says: what happened, to which kind of file, where, and for a rename where to.

    `places` are the inodes of these directories, `number` the file server's number of the first.
    """

    __slots__ = ("at", "kind", "name", "new", "number", "places", "target", "what")

    def __init__(
        self,
        what: str,
        at: int,
        name: str,
        target: int,
        new: str,
        *,
        number: int = 0,
        places: frozenset[int] = frozenset(),
    ) -> None:
        self.what, self.kind = what[:1], what[1:]
        self.at, self.name = at, name
        self.target, self.new = target, new
        self.number, self.places = number, places

    @property
    def makes_directory(self) -> bool:
        return self.what == "C" and self.kind == "d"


def _words(line: bytes, directory: Callable[[int], tuple[int, int] | None]) -> _Words | None:
    """Read a line; None when a directory in it is not held."""
    what, number, name, *to = line.split()
    at = directory(int(number))
    target = directory(int(to[0])) if to else at
    if at is None or target is None:
        return None
    places = frozenset((at[1], target[1]))
    new = _name(to[1]) if to else ""
    return _Words(what.decode(), at[0], _name(name), target[0], new, number=int(number), places=places)


@contextlib.contextmanager
def _first() -> Iterator[None]:
    """Have no other program run on this processor until this one waits, where it may ask for that (sched(7))."""
    is_first = False
    with contextlib.suppress(OSError):  # no CAP_SYS_NICE, or musl, which knows nothing of this
        if os.sched_getscheduler(0) == os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            is_first = True
    try:
        yield
    finally:
        if is_first:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def _missing_capabilities() -> list[str]:
    with open("/proc/self/status", encoding="utf-8") as file:
        held = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return [name for number, name in _CAPABILITIES if not held >> number & 1]


def _name(told: bytes) -> str:
    return os.fsdecode(bytes.fromhex(told.decode()))
