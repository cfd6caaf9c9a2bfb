"""A session: its fids, what its limits allow, what an error is for its guest.

What lives here: `Session`, which is all that handlers see, whether the loop (`serving`) or a thread (`foreign`) calls
them; and `ServedConnection`, which is what `large` and `foreign` may use of the loop. What must not: the loop and the
threads themselves.
"""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn, Protocol

from uvmshare.fileserver.mount.outbox import read_reply
from uvmshare.ninep import messages
from uvmshare.ninep.constants import NOFID
from uvmshare.ninep.errno import to_errno

if TYPE_CHECKING:
    import mmap

    from uvmshare.fileserver.counters import Counters
    from uvmshare.fileserver.export import Export
    from uvmshare.fileserver.fence import Fence
    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.mount.aside import Aside
    from uvmshare.fileserver.mount.fids import Changes, Fid, XattrValue, XattrWrite
    from uvmshare.fileserver.mount.files.listing import Kept
    from uvmshare.fileserver.mount.files.locks import GuestLocks, LockTable
    from uvmshare.fileserver.mount.files.node import Node
    from uvmshare.fileserver.mount.files.openfile import OpenFile, OpenFiles
    from uvmshare.fileserver.mount.files.ownership import Ownership
    from uvmshare.fileserver.mount.files.tree import Tree
    from uvmshare.fileserver.mount.idle import Idle
    from uvmshare.fileserver.mount.outbox import Outbox
    from uvmshare.fileserver.mount.splicing import Splicer
    from uvmshare.fileserver.mount.throttle import Throttle
    from uvmshare.fileserver.mount.watched import Watched

__all__ = ["Replies", "Serve", "ServedConnection", "Session", "XattrRoom"]

Serve = Callable[["Session", int, int, int, int], bytes | None]
"""Serves one type of message: takes the session, the tag, the first four bytes of the body as a number, where the body
begins and where it ends."""

_NO_DESCRIPTORS: Final = os.strerror(errno.EMFILE)
_RLERROR: Final = messages.packer(messages.Rlerror)


class XattrRoom:
    """How many bytes of extended attributes the fids of a session hold, counted from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.used = 0

    def take(self, size: int, most: int) -> bool:
        """Take room for so many bytes; False when there is none."""
        with self._lock:
            if self.used + size > most:
                return False
            self.used += size
            return True

    def give_back(self, size: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self.used -= size


class Replies(Protocol):
    """Where the answers go."""

    def reply(self, frame: bytes) -> None:
        """Have a whole reply sent."""

    def reply_read(self, tag: int, file: OpenFile, offset: int, count: int) -> bool:
        """Answer a Tread; False when that would wait for the disk. Raises `OSError`."""


class Session(ABC):
    """The fids of one connection, and all that handlers need to serve a request that names some of them.

    `opened_files` is what they have open, `logged` what was said once already. The request is in `buffer`: a slice of
    it is bytes, one of `view` is not copied.
    """

    export: Export
    limits: Limits
    counters: Counters
    tree: Tree
    ownership: Ownership
    idle: Idle
    listings: Kept
    locks: LockTable | GuestLocks
    fids: dict[int, Fid]
    opened_files: OpenFiles
    xattr_room: XattrRoom
    watched: Watched | None
    """None where directories cannot be watched."""
    logged: set[str]
    log: Callable[[str], None]
    msize: int
    buffer: mmap.mmap | bytes
    view: memoryview
    outbox: Replies
    most_descriptors: int
    """The number of a descriptor from which on idle ones are closed."""
    fence: Fence | None
    """Until when it may be served; None where that has no end."""

    def error(self, tag: int, error: Exception) -> bytes:
        """Return the Rlerror for whatever a handler raised, and log a limit that it met or a bug of ours."""
        if isinstance(error, OSError):
            if error.errno == errno.EMFILE and error.strerror == _NO_DESCRIPTORS:  # the kernel's, and no limit of fids
                most = f"the limit is {self.limits.descriptors}, unless the host allows less"
                self._log_once("descriptors", f"no descriptor is left: {most}; what needs more is refused")
        elif isinstance(error, MemoryError):
            limit = self.limits.memory_bytes
            self._log_once(
                "memory", f"{limit} bytes of memory are used, which is the limit; what needs more is refused"
            )
        elif not isinstance(error, OverflowError):  # a number that no system call takes
            self.log(f"{type(error).__name__}: {error}; answered with an error")
        number = to_errno(error)
        self.counters.count_error(number)
        return _RLERROR(tag, number)

    # Fids

    def fid(self, number: int) -> Fid:
        """Return the fid of that number: EBADF when there is none. Raises `OSError`."""
        fid = self.fids.get(number)
        if fid is None:
            raise OSError(errno.EBADF, "unknown fid")
        return fid

    def open_file(self, number: int) -> OpenFile:
        """Return the open file of a fid: EBADF when it has none. Raises `OSError`."""
        file = self.fid(number).file
        if file is None:
            raise OSError(errno.EBADF, "fid is not open")
        return file

    def opened(self, fid: Fid, file: OpenFile, node: Node | None = None) -> None:
        """Give a fid its open file, and a node where it becomes that of another file.

        The caller has asked `require_room_to_open`.
        """
        if node is not None:
            fid.node = node
        fid.file = file
        self.opened_files.add(file)

    def began_xattr(self, fid: Fid, value: XattrValue | Changes | XattrWrite) -> None:
        """Give a fid an extended attribute to read or write. The caller has asked `require_xattr_room`."""
        fid.xattr = value

    def drop_fid(self, number: int) -> Fid:
        """Forget a fid and return it: EBADF when there is none. Raises `OSError`.

        Its file is closed when the caller lets go of it, and with the last fid that has a file open go
        the guest's locks on it.
        """
        fid = self.fids.pop(number, None)
        if fid is None:
            raise OSError(errno.EBADF, "unknown fid")
        if fid.file is not None:
            self.opened_files.discard(fid.file)
            if self.locks.holdings and not self.opened_files.of(fid.file.key):
                self.locks.forget_file(fid.file.key)
        elif fid.xattr is not None:
            self.xattr_room.give_back(fid.xattr.size)
        return fid

    @abstractmethod
    def began_pretending(self) -> None:
        """Look at each fid whether it is pretended to, from now on."""

    # Limits

    def require_free(self, number: int, *, coming: int = 0) -> None:
        """Refuse a number that is in use (EINVAL) or one fid too many (EMFILE). Raises `OSError`.

        `coming`: how many there will be besides when what is under way has been answered.
        """
        if number in self.fids or number == NOFID:
            raise OSError(errno.EINVAL, "fid in use, or the number that means none")
        if len(self.fids) + coming >= self.limits.fids:
            self._refuse_more("fids", errno.EMFILE, f"there are {self.limits.fids} fids")

    def require_room_to_open(self) -> None:
        """Refuse one open file too many (EMFILE). Raises `OSError`."""
        if self.opened_files.count >= self.limits.open_files:
            self._refuse_more("open files", errno.EMFILE, f"{self.limits.open_files} files are open")

    def require_room_to_lock(self) -> None:
        """Refuse one locked range too many (ENOLCK). Raises `OSError`."""
        if len(self.locks) >= self.limits.locks:
            self._refuse_more("locks", errno.ENOLCK, f"{self.limits.locks} ranges are locked")

    def require_xattr_room(self, size: int) -> None:
        """Refuse to hold more of extended attributes than is allowed (ENOMEM), or count them. Raises `OSError`."""
        limit = self.limits.xattr_bytes
        if not self.xattr_room.take(size, limit):
            self._refuse_more("xattrs", errno.ENOMEM, f"{limit} bytes of extended attributes are held")

    def _refuse_more(self, limit: str, number: int, reason: str) -> NoReturn:
        """Raise the error of a limit that is reached, and log it the first time."""
        self._log_once(limit, f"{reason}, which is the limit; more are refused")
        raise OSError(number, reason)

    def _log_once(self, what: str, reason: str) -> None:
        if what not in self.logged:
            self.logged.add(what)
            self.log(reason)

    def require_changeable(self, directory: Node) -> None:
        """Refuse changes of names in the root of a share with an allow-list: EACCES. Raises `OSError`."""
        if self.tree.allowed is not None and directory.parent is None:
            raise OSError(errno.EACCES, "the names of this directory are fixed")

    def require_shared(self, node: Node) -> None:
        """Refuse changes of the root of a share with an allow-list: EPERM. Raises `OSError`.

        Both errnos are those of a directory that is somebody else's and may not be written.
        """
        if not self.tree.is_shared(node):
            raise OSError(errno.EPERM, "only names in this directory are shared, not the directory itself")

    # Requests that are answered later

    @abstractmethod
    def run_aside(self, tag: int, size: int, file: OpenFile, work: Callable[[], bytes]) -> bool:
        """Have a request answered by `work` on another thread, with an open file; `size` is about the reply's.

        Returns False when it is for the caller to do.
        """

    @abstractmethod
    def wait_for_lock(self, tag: int, try_again: Callable[[], bool]) -> None:
        """Keep a lock request until `try_again` says that it was granted. Raises `OSError`."""

    @abstractmethod
    def require_room(self, descriptor: int) -> None:
        """Close descriptors that nobody uses, if one that is new says that there are as many as there may be."""

    def read_later(self, tag: int, file: OpenFile, offset: int, count: int) -> None:
        """Answer a Tread that waits for the disk. Raises `OSError`."""
        self.outbox.reply(read_reply(tag, os.pread(file.fd, count, offset)))


class ServedConnection(Session):
    """The session as the loop has it, for what does a part of the loop's work: `large`, `foreign`."""

    outbox: Outbox
    aside: Aside
    throttle: Throttle
    splicer: Splicer | None
    """None where splice(2) cannot take data from the connection."""

    @property
    @abstractmethod
    def is_waited_for(self) -> bool:
        """Whether any request has not been answered yet, so that tags are in use."""

    @abstractmethod
    def serves(self, number: int) -> Serve | None:
        """Return what serves a message type now, where no thread does."""

    @abstractmethod
    def bear_silence(self) -> None:
        """Note that nothing came for a while. Raises `RemoteProtocolError` when that was too long."""

    def slowed_down(self) -> None:
        """Note that its rate is the limit."""
        limits = self.limits
        rates = (
            f"{limits.operations_per_second or 'any'} requests and {limits.bytes_per_second or 'any'} bytes a second"
        )
        self._log_once("rates", f"its rate is {rates}, which is the limit; what is more waits")
