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

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Repeater", "watched_inodes"]

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
_MINOR_BITS = 20
_MOUNT_SETATTR = 442
"""The same on every architecture."""
_AT_EMPTY_PATH = 0x1000
_MOUNT_ATTR_RDONLY = 1
_QUEUE = "anon_inode:inotify"


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
        directory: Callable[[int], int | None],
        is_news: Callable[[int, str, set[int]], bool],
        made: Callable[[int, str, int], object],
    ) -> set[int]:
        """Repeat what the lines say, as far as a program of the guest watches; return in which directories one failed.

        `directory` returns the descriptor of the directory with a number, if it is held. For each directory that is to
        be made in one, `is_news` lets go of it, or says by the inodes that are watched that programs know it already;
        `made` is called when it was made, with a descriptor of its path. Raises `OSError` when the connection is lost.
        """
        failed: set[int] = set()
        about: dict[int, tuple[int, bool]] = {}
        inodes: set[int] | None = None
        for line in lines:
            what, number, name, *to = line.split()
            at = directory(int(number))
            target = directory(int(to[0])) if to else at
            if at is None or target is None:
                continue
            for each in (at, target):
                if each not in about:
                    found = os.fstat(each)
                    if inodes is None:
                        inodes = watched_inodes(found.st_dev)
                    about[each] = found.st_ino, found.st_ino in inodes
            if not inodes:
                continue
            words = _Words(what.decode(), at, _name(name), target, _name(to[1]) if to else "")
            is_listened_to = about[at][1] or about[target][1]
            is_directory = words.what == "C" and words.kind == "d"
            if is_directory and is_listened_to and not is_news(int(number), words.name, inodes):
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
                failed.add(int(number))
            else:
                if opened is not None:
                    made(int(number), words.name, opened)
        return failed

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
    """What a line says: what happened, to which kind of file, where, and for a rename where to."""

    __slots__ = ("at", "kind", "name", "new", "target", "what")

    def __init__(self, what: str, at: int, name: str, target: int, new: str) -> None:
        self.what, self.kind = what[:1], what[1:]
        self.at, self.name = at, name
        self.target, self.new = target, new


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


def watched_inodes(device: int) -> set[int]:
    """Return the inodes of a file system that programs watch with inotify(7), as /proc tells."""
    found: set[int] = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile
            for descriptor in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{descriptor}") == _QUEUE:
                        with open(f"/proc/{pid}/fdinfo/{descriptor}", encoding="ascii") as file:
                            found.update(_inodes(file.read(), device))
    return found


def _inodes(text: str, device: int) -> Iterator[int]:
    """Read what /proc says of a queue: ``inotify wd:1 ino:9e7e sdev:800013 mask:...``."""
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word != "inotify":
            continue
        fields = dict(field.partition(":")[::2] for field in rest.split())
        on = int(fields["sdev"], 16)
        if os.makedev(on >> _MINOR_BITS, on & ((1 << _MINOR_BITS) - 1)) == device:
            yield int(fields["ino"], 16)
