"""Directories that the guest's agent holds, and how it is told when something in one of them changes.

What lives here: `Watched`, which has the host's kernel tell (inotify(7)) and the guest wait for it. What must not: how
a guest asks (`handlers.watching`), or what it does then (`uvmshare.guest.pinning`).

Linux's client looks a name up once and goes by what it found for as long as anything in the guest holds that. So an
agent that holds a directory has to let go of it when the host renames or removes it, and is told so here. Only
directories count: what is told is the number of the directory in which another one was made, renamed or removed, and
never a name. What the guest does itself is told as well.

The kernel's queue is made before a process is confined, when there are enough left for others of this user, and is
read by a thread that is started with the first directory. A guest that asks for nothing costs nothing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import threading
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.casefold import folds
from uvmshare.fileserver.counters import WATCHED, Counters
from uvmshare.fileserver.mount.entries import require_room
from uvmshare.fileserver.mount.listening import Directory, Listening
from uvmshare.fileserver.mount.outbox import read_reply
from uvmshare.fileserver.mount.seccomp import WATCH_MASK
from uvmshare.fileserver.mount.sources import MAX_WATCHES, open_source, open_to_spare
from uvmshare.fileserver.syscalls import MountCrossed, Notify

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.tree import Tree
    from uvmshare.fileserver.mount.sources import Source

__all__ = ["LOST", "MOST_TOLD", "Queue", "Watched", "pause_after"]

LOST: Final = b"lost"
"""What is told instead of numbers when there is no telling what has changed."""
MOST_TOLD: Final = 4096
"""Bytes that are told at once."""
_LONGEST_LINE: Final = 1100
"""Bytes of what is told of a rename, at most: two names of 255 bytes in hexadecimal, and their directories."""

_MOST: Final = 2048
"""Directories of one mount. A watch takes about 1 KB of the kernel's memory."""
_PAUSE: Final = 0.02
"""Seconds between two looks at the queue: what makes a thousand files is not to wake a thread a thousand times. What
comes after a quiet time is told at once."""
_REST: Final = 4
"""So many times the processor's time of a look is waited until the next one."""
_PIECE: Final = 64 * 1024
_FIRST_RESERVED: Final = 0x7000_0000
_RESERVED: Final = 0x0FFF_FFFF
"""Uids of which one is reserved: systemd gives them to no user and no container (its page UIDS-GIDS), and they fit 31
bits. A user who had it by chance would have no change carried out."""
_EVENT: Final = struct.Struct("=iIII")


def pause_after(seconds: float) -> float:
    """Return for how many seconds nothing is looked at after a look that took a processor so many.

    Whoever changes much, in another VM too, takes no more than a fifth of the time from the guest's own requests. What
    is waited for, such as a guest that takes no answer, does not count.
    """
    return max(_PAUSE, _REST * seconds)


class Queue:
    """The kernel's queue, and how many directories may be watched by it; `source` tells of the names in them."""

    def __init__(self, descriptor: int, most: int, source: Source | None = None) -> None:
        self.descriptor = descriptor
        self.most = most
        self.source = source

    @classmethod
    def open(cls, root: int) -> Queue | None:
        """Return a queue for directories below this one; None where this host has none to spare. Raises nothing."""
        found = open_to_spare(syscalls.inotify_init, MAX_WATCHES, _MOST)
        return None if found is None else cls(*found, open_source(root))

    @classmethod
    def open_in_turn(cls, turn: int, root: int) -> Queue | None:
        """Return a queue while no other process of this VM is about to; closes the file `turn`. Raises `OSError`.

        To see that there are some to spare takes them for a moment. A guest that attaches many times at once would
        have none to spare in each of these processes, nor in those of other VMs.
        """
        try:
            fcntl.lockf(turn, fcntl.LOCK_EX)
            return cls.open(root)
        finally:
            os.close(turn)

    def close(self) -> None:
        """Give it back."""
        os.close(self.descriptor)
        if self.source is not None:
            self.source.close()


class Watched:
    """The directories of one session that are watched, by number.

    `send` sends a whole reply from any thread. What happens is counted in `counted`.
    """

    def __init__(
        self, queue: Queue, tree: Tree, send: Callable[[bytes], None], counted: Counters | None = None
    ) -> None:
        self._slots = (counted or Counters()).slots
        self._queue = queue
        self._tree = tree
        self._send = send
        self._lock = threading.Lock()
        """Guards all below, and is held while a reply is sent: no Rflush may come before it."""
        self._paths: dict[int, bytes] = {}
        self._files: dict[int, tuple[int, int]] = {}
        self._changed: dict[int, None] = {}
        self._is_lost = False
        self._waits: tuple[int, int] | None = None
        """The tag and the count of the Tread that waits."""
        self._thread: threading.Thread | None = None
        self.reserved: int | None = None
        """Whoever attaches as this user is pretended to (`handlers.ghosts`), once an agent was told it: for as long as
        the connection lasts, so that no operation of an agent that another one has followed is ever a real one."""
        self.listening: Listening | None = None
        """What has become of the names in the directories, where the agent asked for that too."""

    @property
    def most(self) -> int:
        """How many directories there may be."""
        return self._queue.most

    @property
    def keeps_ledger(self) -> bool:
        """Whether the mount's own changes are noted down: names are told, and the kernel does not say by whom."""
        return self.reserved is not None and self._queue.source is not None and not self._queue.source.says_who

    def begin(self) -> None:
        """Watch nothing any more: whoever asks begins anew. Whoever waits is told `LOST`. Raises `OSError`.

        EOPNOTSUPP where a directory that is held would hide what the host mounts there.
        """
        with self._lock:
            self._is_lost = True
            self._tell()
            self._forget()
        self._require_no_mounts()

    def listen(self) -> int:
        """Tell of names as well from now on, in directories that are added; return the uid to pretend as.

        Raises `OSError`: EOPNOTSUPP where this host's kernel does not tell them.
        """
        source = self._queue.source
        if source is None:
            raise OSError(errno.EOPNOTSUPP, "the kernel tells of no names here, or has no queue to spare")
        with self._lock:
            source.require_told(self._tree.root.fd, self._tree.path_of(self._tree.root))
            self.listening = Listening(source, self._opened, self._is_shown, self._slots)
            self._tree.lending.noted = self.listening.lending
            if self.reserved is None:
                self.reserved = _FIRST_RESERVED + int.from_bytes(os.urandom(8)) % _RESERVED  # `secrets` brings OpenSSL
            return self.reserved

    def _require_no_mounts(self) -> None:
        if self._tree.has_mounts or self._tree.root.is_foreign:
            raise OSError(errno.EOPNOTSUPP, "mounts come and go below the share, which nobody tells")

    def add(self, node: Node) -> tuple[int, bytes]:
        """Watch a directory; return its number and where it is below the root. Raises `OSError`.

        ENOENT when it is not there any more, ENOSPC for one too many.
        """
        self._require_no_mounts()
        descriptor = node.fd
        found = os.fstat(descriptor)
        if not found.st_nlink:
            raise OSError(errno.ENOENT, "it was removed")
        self._start()
        # In this order, so that what happens after the path was asked for is told.
        with self._lock:
            number = syscalls.inotify_add_watch(self._queue.descriptor, self._tree.path_of(node), WATCH_MASK)
            if number not in self._paths and len(self._paths) >= self._queue.most:
                syscalls.inotify_rm_watch(self._queue.descriptor, number)
                raise OSError(errno.ENOSPC, f"{self._queue.most} directories are watched, which is the limit")
            self._paths.setdefault(number, b"")
            self._files[number] = found.st_dev, found.st_ino
            self._slots[WATCHED] = len(self._paths)
        try:
            path = self._tree.boundary.below(node)
            if not os.fstat(descriptor).st_nlink:
                raise OSError(errno.ENOENT, "it was removed")
            with self._lock:
                self._paths[number] = path
                if self._tree.hidden is not None and not self._is_there(number):
                    raise OSError(errno.ENOENT, "nobody can say which names it has")
                if self.listening is not None:
                    place = Directory(self._files[number], path)
                    if not self.listening.add(number, descriptor, self._tree.path_of(node), place):
                        self._is_lost = True
                        self._tell()
        except (OSError, KeyError) as error:  # KeyError: the kernel has just said that it is gone
            self.remove(number)
            raise error if isinstance(error, OSError) else OSError(errno.ENOENT, "it was removed") from error
        return number, path

    def remove(self, number: int) -> None:
        """Watch this one no more. Raises nothing."""
        with self._lock:
            self._remove(number)

    def _remove(self, number: int, *, is_gone: bool = False) -> None:
        if self._paths.pop(number, None) is not None:
            self._changed.pop(number, None)
            del self._files[number]
            self._slots[WATCHED] = len(self._paths)
            if self.listening is not None:
                self.listening.remove(number, is_gone=is_gone)
            with suppress(OSError):  # it is gone, and the kernel's watch with it
                syscalls.inotify_rm_watch(self._queue.descriptor, number)

    def wait(self, tag: int, count: int) -> bytes | None:
        """Return the reply to a Tread of that count; None when it waits for a change. Raises `OSError`.

        EBUSY when another one waits, EINVAL when the count is for less than a line.
        """
        if count < _LONGEST_LINE:
            raise OSError(errno.EINVAL, f"a read of changes takes {_LONGEST_LINE} bytes")
        with self._lock:
            if self._waits is not None:
                raise OSError(errno.EBUSY, "another request waits for changes")
            told = self._take(count)
            if told:
                return read_reply(tag, told)
            self._waits = tag, count
            return None

    def flush(self, tag: int) -> None:
        """Have a Tread wait no more, which is not answered then."""
        with self._lock:
            if self._waits is not None and self._waits[0] == tag:
                self._waits = None

    def forget(self) -> None:
        """Watch nothing and answer nobody: the session is over, or begins again."""
        with self._lock:
            self._waits = None
            self._forget()

    def lose(self) -> None:
        """Tell that there is no telling what has changed. From any thread."""
        with self._lock:
            self._is_lost = True
            self._tell()

    def _forget(self) -> None:
        for number in list(self._paths):
            self._remove(number)
        self._changed.clear()
        self._is_lost = False
        if self.listening is not None:
            self.listening.close()
            self.listening = None
            self._tree.lending.noted = lambda _: nullcontext()

    # The thread

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._read_for_ever, name="watched", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, "no room for another thread") from error
        self._thread = thread

    def _read_for_ever(self) -> None:
        queue, source = self._queue.descriptor, self._queue.source
        first, names = select.poll(), select.poll()
        for each in (queue,) if source is None else (queue, source.descriptor):
            names.register(each, select.POLLIN)
        first.register(queue, select.POLLIN)
        while True:
            names.poll()
            if self.listening is not None:
                time.sleep(_PAUSE)  # so that what is done at once is told as one
            began = time.thread_time()
            self.look(has_directories=bool(first.poll(0)))
            time.sleep(pause_after(time.thread_time() - began))

    def look(self, *, has_directories: bool) -> None:
        """Take note of what the kernel has to say, and tell the guest. Raises nothing: this thread is the only one.

        `has_directories`: whether there is something to read in the queue.
        """
        with self._lock:
            try:
                # Directories first: the guest is to hear of a name before it lets go of a directory that had it.
                data = os.read(self._queue.descriptor, _PIECE) if has_directories else b""
                if self.listening is not None:
                    self.listening.read()
                    if not self.listening.compare():
                        self._is_lost = True
                self._take_note(data)
            except Exception:  # noqa: BLE001  mostly no descriptor and no memory: all that the guest may have is used
                self._is_lost = True
            with suppress(Exception):  # the guest is gone; the loop learns it by itself
                self._tell()

    def _take_note(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, mask, _, size = _EVENT.unpack_from(data, at)
            at += _EVENT.size + size
            if mask & Notify.Q_OVERFLOW:
                self._is_lost = True
            elif mask & Notify.IGNORED:
                self._remove(number, is_gone=True)
            elif mask & Notify.ISDIR and number in self._paths:
                if not self._is_there(number):
                    self._remove(number)
                elif self._is_seen(number, data[at - size : at]):
                    self._changed[number] = None

    def _is_there(self, number: int) -> bool:
        """Say whether a directory is where it was when the guest asked for it; what has left the share is not told of.

        The guest asks for a directory again that it has moved itself.
        """
        descriptor = self._opened(number)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def _opened(self, number: int) -> int | None:
        """Open the path of a directory where it was when the guest asked for it; None when it is not there.

        It is not there for the guest either where patterns hide names and the directory may have other names for what
        they hide (`casefold`). No mount is entered, whose file system may never answer. Raises `OSError` when this
        process has no descriptor or memory left.
        """
        at = os.dup(self._tree.root.fd)
        is_right = False
        try:
            for name in self._paths[number].split(b"/") if self._paths[number] else ():
                below = syscalls.open_entry(name, at)
                os.close(at)
                at = below
            found = os.fstat(at)
            is_right = (found.st_dev, found.st_ino) == self._files[number]
            if is_right and self._tree.hidden is not None:
                is_right = folds(at) is False
        except MountCrossed:
            pass
        except OSError as error:
            require_room(error)
        finally:
            if not is_right:
                os.close(at)
        return at if is_right else None

    def _is_seen(self, number: int, padded: bytes) -> bool:
        """Say whether a directory of that name would exist for the guest."""
        return self._is_shown(number, padded.rstrip(b"\0"), b"d")

    def _is_shown(self, number: int, name: bytes, kind: bytes) -> bool:
        """Say whether a name exists for the guest; `kind` is "d" for a directory."""
        path = self._paths[number]
        if self._tree.only is not None and not path and name not in self._tree.only:
            return False
        hidden = self._tree.hidden
        if hidden is None:
            return True
        state = hidden.state(path)
        return state is not None and not hidden.fate(state, name).hides(directory=kind == b"d")

    def _tell(self) -> None:
        if self._waits is None:
            return
        tag, count = self._waits
        told = self._take(count)
        if told:
            self._waits = None
            self._send(read_reply(tag, told))

    def _take(self, count: int) -> bytes:
        """Return what there is to tell, as lines, of up to so many bytes; of what is left something comes next time."""
        if self._is_lost:
            self._is_lost = False
            self._changed.clear()
            return LOST + b"\n"
        told = b""
        if self.listening is not None and (self.listening.has_lines or self._changed):
            told = self.listening.take(min(count, MOST_TOLD))
            if self.listening.has_lines:
                return told
        for number in list(self._changed):
            line = b"%d\n" % number
            if len(told) + len(line) > min(count, MOST_TOLD):
                break
            told += line
            del self._changed[number]
        return told
