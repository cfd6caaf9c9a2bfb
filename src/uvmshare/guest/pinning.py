"""Holding the directories of a mount, so that inotify(7) works on them: what the child does that holds them.

What lives here: `pinning`. What must not: the table of mounts, or when a child is started and ended (`pins`). Standard
library only (Python 3.9): it runs in guests.

Without a cache Linux's client forgets a directory with its last use and makes a new inode when it is looked up again
(fs/9p/vfs_inode_dotl.c), so that a watch on the one before hears nothing any more. A descriptor of the directory's
path, opened before the watch, keeps the inode; that is a pin.

The kernel then looks the directory's name up no more. So a pin must go as soon as the host has renamed or removed its
directory, or the guest would see the old one. The file server says when something has changed (attributes
`trusted.uvmshare.*`, docs/events.md); with a server that does not, there are no pins.

The pins are on a mount of the child's own that is attached nowhere (open_tree(2)): the one that everybody uses is not
busy because of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from typing import TYPE_CHECKING

from uvmshare.guest import mount_paths
from uvmshare.guest.repeating import Repeater
from uvmshare.guest.wire import RequestError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.guest.loop import Send

__all__ = ["SHALLOW", "pinning"]

SHALLOW = frozenset((".git", ".hg", ".svn", ".tox", ".venv", "__pycache__", "node_modules"))
"""What is below directories of these names is not pinned: there is much of it, and tools leave it out as well."""
_BEGIN, _WATCH, _CHANGES = "trusted.uvmshare.begin", "trusted.uvmshare.watch", "trusted.uvmshare.changes"
_LOST = b"lost\n"
_O_PATH = 0o10000000
_PATH_FLAGS = _O_PATH | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
_LIST_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_OPEN_TREE = 428
"""The same on every architecture."""
_OPEN_TREE_CLONE, _AT_EMPTY_PATH = 1, 0x1000
_UNTOLD = "the host tells the file server nothing of names, by fanotify or by inotify; docs/events.md says when"
_NO_NAME = ".uvmshare-no-such-name"


def pinning(path: str, prefixes: list[str], most: int, *, events: bool = False) -> Callable[[Send], None]:
    """Return the work that pins up to so many directories of the mount at the path, until it is killed.

    With `events` it also repeats what the host does in them (`repeating`). It tells how many there are,
    ``{"directories": 12, "full": false}``, whenever that has changed, and at its end why there are none.
    """

    def task(send: Send) -> None:
        try:
            with mount_paths.walk(path, prefixes, make=False) as (above, _), mount_paths.opened(above, path) as root:
                own = _clone(root)
            _Pins(own, most, send, events=events).run()
        except RequestError as error:
            send({"ended": str(error)})
        except OSError as error:
            send({"ended": _why_none(error)})

    return task


def _clone(root: int) -> int:
    """Return the mount of a directory once more, attached nowhere. Raises `OSError`: ENOSYS before Linux 5.2."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _OPEN_TREE_CLONE | _AT_EMPTY_PATH | getattr(os, "O_CLOEXEC", 0)
    made: int = libc.syscall(_OPEN_TREE, ctypes.c_int(root), b"", ctypes.c_uint(flags))
    if made < 0:
        raise OSError(ctypes.get_errno(), "open_tree")
    return made


def _why_none(error: OSError) -> str:
    if error.strerror == "open_tree":
        return f"this kernel has no open_tree, or not for the agent ({os.strerror(error.errno or 0)})"
    if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
        return "the file server does not tell of changes there; docs/events.md says when"
    return error.strerror or str(error)


class _Pin:
    """A directory that is held. `number` is the file server's, `path` where it is below the root.

    `inode` is 0 as long as nobody has asked: the guest's kernel asks the file server.
    """

    __slots__ = ("descriptor", "inode", "number", "path")

    def __init__(self, descriptor: int, number: int, path: str) -> None:
        self.descriptor = descriptor
        self.inode = 0
        self.number = number
        self.path = path


class _Pins:
    """The pins of one mount. All methods raise `OSError` when its connection is lost."""

    def __init__(self, root: int, most: int, send: Send, *, events: bool = False) -> None:
        self._root = root
        self._events = events
        self._repeater: Repeater | None = None
        self._no_events = ""
        self._repeated = self._failed = 0
        """What earlier repeaters did."""
        self._most = most
        self._send = send
        self._by_path: dict[str, _Pin] = {}
        self._by_number: dict[int, _Pin] = {}
        self._full = False
        self._told: dict[str, object] = {}

    def run(self) -> None:
        self._begin()
        while True:
            self._tell()
            said = os.getxattr(_at(self._root), _CHANGES)
            if said == _LOST:
                self._begin()
                continue
            lines = said.splitlines()
            names = [line for line in lines if not line.isdigit()]
            if self._repeater is not None and names:
                for number in self._repeater.carry_out(names, self._place, self._is_news, self._pin_made):
                    self._check(number)
            for line in lines:
                pin = self._by_number.get(int(line)) if line.isdigit() else None
                if pin is not None:
                    self._look_again(pin)

    def _place(self, number: int) -> tuple[int, int] | None:
        """Return descriptor and inode of a pin; None where there is none."""
        pin = self._by_number.get(number)
        if pin is None:
            return None
        pin.inode = pin.inode or os.fstat(pin.descriptor).st_ino
        return pin.descriptor, pin.inode

    def _is_news(self, number: int, name: str, watched: set[int]) -> bool:
        """Say whether a directory can be made once more; False when a program watches it already.

        It may be pinned, because something else was looked at again. What is held cannot be made.
        """
        above = self._by_number[number]
        path = f"{above.path}/{name}" if above.path else name
        pin = self._by_path.get(path)
        if pin is None:
            return True
        try:
            if os.fstat(pin.descriptor).st_ino in watched:
                return False
        except OSError as error:
            _require_alive(error)
        self._drop_below(path)
        return True

    def _pin_made(self, number: int, name: str, descriptor: int) -> None:
        """Pin a directory that was just made in one, and was opened at once: who hears of it watches it."""
        above = self._by_number[number]
        path = f"{above.path}/{name}" if above.path else name
        if path in self._by_path or os.path.basename(above.path) in SHALLOW:
            os.close(descriptor)
            return
        try:
            os.fstat(descriptor)  # what the kernel knows of it is what it was made with
        except OSError as error:
            os.close(descriptor)
            _require_alive(error)
            return
        self._pinned(descriptor, path)

    def _check(self, number: int) -> None:
        """Compare a pin with the host, and those in its directory: an operation there failed, and may have left it."""
        pin = self._by_number.get(number)
        if pin is None:
            return
        if self._is_right(pin):
            self._look_again(pin)
        else:
            above = self._by_path.get(os.path.dirname(pin.path))
            self._drop_below(pin.path)
            if above is not None and above is not pin:
                self._look_again(above)

    def _tell(self) -> None:
        told: dict[str, object] = {"directories": len(self._by_path), "full": self._full}
        if self._events:
            by = self._repeater
            repeated, failed = (0, 0) if by is None else (by.repeated, by.failed)
            repeated, failed = self._repeated + repeated, self._failed + failed
            told["events"] = {"repeated": repeated, "failed": failed, "ended": self._no_events}
        if told != self._told:
            self._told = told
            self._send(told)

    def _begin(self) -> None:
        """Have the file server begin anew, keep the pins that are right, and pin what is not pinned."""
        version, most, *_ = os.getxattr(_at(self._root), _BEGIN).split()
        if version != b"1":
            raise OSError(errno.EOPNOTSUPP, f"the file server speaks version {version.decode()} of this")
        self._most = min(self._most, int(most))
        self._full = False
        self._begin_events()
        self._by_number.clear()
        for pin in sorted(self._by_path.values(), key=lambda each: each.path):
            if self._by_path.get(pin.path) is pin and not self._is_right(pin):
                self._drop_below(pin.path)
        root = self._by_path.get("") or self._pinned(os.open(".", _PATH_FLAGS, dir_fd=self._root), "")
        if root is not None:
            self._pin_below(root, all_of_it=True)

    def _begin_events(self) -> None:
        """Have names told as well, where that is asked for and can be."""
        before, self._repeater = self._repeater, None
        if before is not None:
            self._repeated += before.repeated
            self._failed += before.failed
        if not self._events:
            return
        self._no_events = ""
        try:
            self._repeater = Repeater(self._root)
        except OSError as error:
            _require_alive(error)
            missing = error.errno in (errno.ENODATA, errno.EOPNOTSUPP) and error.filename is not None
            self._no_events = (
                "the host tells the file server nothing of names, by fanotify or by inotify; docs/events.md says when"
                if missing
                else error.strerror or str(error)
            )

    def _pin_below(self, top: _Pin, *, all_of_it: bool = False) -> None:
        """Pin what is new below a directory, those above first; with `all_of_it` also below those that are not new."""
        left = deque([top])
        while left:
            pin = left.popleft()
            if os.path.basename(pin.path) in SHALLOW:
                continue
            for name in _directories(pin):
                path = f"{pin.path}/{name}" if pin.path else name
                known = self._by_path.get(path)
                if known is not None:
                    if all_of_it:
                        left.append(known)
                    continue
                try:
                    descriptor = os.open(name, _PATH_FLAGS, dir_fd=pin.descriptor)
                except OSError as error:
                    _require_alive(error)
                    continue  # it went while it was looked at, which is told
                made = self._pinned(descriptor, path)
                if self._full:
                    return
                if made is not None:
                    left.append(made)

    def _pinned(self, descriptor: int, path: str) -> _Pin | None:
        """Return a pin of an open directory; None, and it is closed, when it is not where the host has it."""
        if len(self._by_path) >= self._most:
            self._full = True
            os.close(descriptor)
            return None
        try:
            number, there = _watch(descriptor)
        except OSError as error:
            os.close(descriptor)
            if error.errno == errno.ENOSPC:
                self._full = True
                return None
            _require_alive(error)
            return None
        if there != path:
            os.close(descriptor)
            return None
        pin = _Pin(descriptor, number, path)
        self._by_path[path] = self._by_number[number] = pin
        return pin

    def _look_again(self, pin: _Pin) -> None:
        """Compare what is in a directory with what is pinned there: drop what is gone, pin what is new."""
        for each in tuple(self._by_path.values()):
            is_in_it = bool(each.path) and os.path.dirname(each.path) == pin.path
            if is_in_it and self._by_path.get(each.path) is each and not self._is_right(each):
                self._drop_below(each.path)
        if self._full and len(self._by_path) < self._most:
            self._full = False
        self._pin_below(pin)

    def _is_right(self, pin: _Pin) -> bool:
        """Say whether the guest has a directory where the host has it. What the guest renamed itself is followed."""
        for has_settled in (False, True):
            try:
                number, there = _watch(pin.descriptor)
            except OSError as error:
                _require_alive(error)
                return False
            here = _path(pin.descriptor)
            if here == there:
                if self._by_number.get(pin.number) is pin:
                    del self._by_number[pin.number]
                pin.number = number
                self._by_number[number] = pin
                if here != pin.path:
                    self._moved(pin, here)
                return True
            if not has_settled:
                self._settle(os.path.dirname(pin.path))
        return False

    def _settle(self, path: str) -> None:
        """Wait until a rename of the guest's out of a directory has ended, which the host may have seen already.

        The guest's kernel holds the directory meanwhile, and looks no name up in it.
        """
        above = self._by_path.get(path)
        if above is not None:
            try:
                os.lstat(f"{_at(above.descriptor)}/{_NO_NAME}")
            except OSError as error:
                _require_alive(error)

    def _moved(self, top: _Pin, path: str) -> None:
        """Follow a directory that the guest renamed, with those below it, which are watched at their new places."""
        before, moved = top.path, self._below(top.path)
        for pin in moved:
            del self._by_path[pin.path]
        self._drop_below(path)  # what it replaced
        for pin in moved:
            pin.path = path + pin.path[len(before) :]
            self._by_path[pin.path] = pin
        for pin in moved:
            if pin is not top and self._by_path.get(pin.path) is pin and not self._is_right(pin):
                self._drop_below(pin.path)
        self._pin_below(top, all_of_it=True)

    def _drop_below(self, path: str) -> None:
        for pin in self._below(path):
            self._drop(pin)

    def _below(self, path: str) -> list[_Pin]:
        """Return the pin at a path and those below it."""
        return [pin for pin in self._by_path.values() if pin.path == path or pin.path.startswith(f"{path}/")]

    def _drop(self, pin: _Pin) -> None:
        del self._by_path[pin.path]
        if self._by_number.get(pin.number) is pin:
            del self._by_number[pin.number]
        os.close(pin.descriptor)


def _at(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _path(descriptor: int) -> str:
    """Return where the guest's kernel has a directory; the root of the mount is "/"."""
    return os.readlink(_at(descriptor)).lstrip("/")


def _watch(descriptor: int) -> tuple[int, str]:
    """Have the file server tell of a directory; return its number there, and where the host has it."""
    number, _, path = os.getxattr(_at(descriptor), _WATCH).partition(b" ")
    return int(number), os.fsdecode(path)


def _directories(pin: _Pin) -> list[str]:
    """Return the names of the directories in one; none where that cannot be told."""
    try:
        descriptor = os.open(".", _LIST_FLAGS, dir_fd=pin.descriptor)
        try:
            with os.scandir(descriptor) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        finally:
            os.close(descriptor)
    except OSError as error:
        _require_alive(error)
        return []


def _require_alive(error: OSError) -> None:
    """Raise an error again that says that the connection is lost."""
    if error.errno in (errno.EIO, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ESHUTDOWN, errno.EFAULT):
        raise error
