"""A run directory: what stays of a file server when its supervisor dies.

What lives here: what is where in it, and the files by which mount processes are found again. What must
not: what is done with what was found (`supervisor.takeover`), how the table of shares is written (`sharetable`).

::

    lock           held by the supervisor, for as long as it lives
    control.sock   where it takes requests
    shares         its table of shares
    mounts/7       one mount process, which holds the file's flock(2) for as long as it lives
    counters/7     what it has done (`counters`)
    fence          until when the mounts may serve, where that has an end (`fence`)
    log            reasons for ended connections

A mount's file is locked by the supervisor before it forks, on an open file that the child keeps: there is no moment
at which a mount process lives and its file is not locked. Whoever holds the lock is alive, and the
pid that it wrote into its own file is its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from uvmshare.errors import UNREADABLE, FileServerError
from uvmshare.fileserver import leaving
from uvmshare.fileserver.rundir.keepout import KeepOut
from uvmshare.fileserver.rundir.lockfile import LockFile
from uvmshare.hostfiles import require_own_directory, require_safe_way

if TYPE_CHECKING:
    from uvmshare.hcs.schema import Plan9Share

__all__ = ["CONTROL_SOCKET", "JOURNAL", "LOG", "Found", "RunDirectory", "introduce", "lock_path", "table_path"]

CONTROL_SOCKET: Final = "control.sock"
LOG: Final = "log"
_LOCK: Final = "lock"
_TABLE: Final = "shares"
_MOUNTS: Final = "mounts"
_COUNTERS: Final = "counters"
_FENCE: Final = "fence"
JOURNAL: Final = "journal.db"
"""Where whoever drives the server may keep the journal of their Manager (`uvmshare serve --run-dir`)."""
_OURS: Final = frozenset((CONTROL_SOCKET, LOG, _LOCK, _TABLE, _MOUNTS, _COUNTERS, _FENCE, JOURNAL))

_INTRODUCED_SECONDS: Final = 5.0
"""How long a mount process that was just forked may take to write its pid down."""
_PAUSE_SECONDS: Final = 0.01
_NO_SHARE: Final = -1
"""The serial of a mount whose share cannot be told: it is ended."""


class _Opened(msgspec.Struct, frozen=True):
    """What the supervisor writes into a mount's file, before there is a process."""

    serial: int
    connection: int
    peer: str


class _Introduced(msgspec.Struct, frozen=True):
    """What the mount process writes behind it: who it is, and which of its descriptors is the share's root."""

    pid: int
    started: int
    root: int


@dataclass(frozen=True, slots=True)
class Found:
    """A mount process whose supervisor died. `pidfd` is its finder's to close."""

    pid: int
    pidfd: int
    serial: int
    connection: int
    peer: str
    root: int

    def open_root(self) -> int:
        """Open the root of its share anew: the very directory, wherever it is now. Raises `OSError`."""
        return os.open(f"/proc/{self.pid}/fd/{self.root}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def lock_path(directory: str) -> str:
    """Return where the lock is."""
    return os.path.join(directory, _LOCK)


def table_path(directory: str) -> str:
    """Return where the table of shares is."""
    return os.path.join(directory, _TABLE)


class RunDirectory:
    """A run directory whose lock this process holds."""

    def __init__(self, path: str) -> None:
        """Take the lock.

        Raises `FileServerError` when another file server lives there, or the directory cannot be used.
        """
        self.path = path
        self.control = os.path.join(path, CONTROL_SOCKET)
        self.table = table_path(path)
        self.fence = os.path.join(path, _FENCE)
        self._mounts = os.path.join(path, _MOUNTS)
        self._counters = os.path.join(path, _COUNTERS)
        _require_own(path, may_be_link=True)
        try:
            self._lock = LockFile.take(lock_path(path), f"run directory {path!r}")
        except OSError as error:
            msg = f"run directory {path!r}: {error.strerror or error}; it must be this user's, to write and to lock in"
            raise FileServerError(msg) from error
        try:
            os.makedirs(self._mounts, mode=0o700, exist_ok=True)
            os.makedirs(self._counters, mode=0o700, exist_ok=True)
            _require_own(self._mounts)
            _require_own(self._counters)
        except OSError as error:
            self._lock.release()
            msg = f"cannot make {self._mounts!r}: {error.strerror}: mend that, or give another run directory"
            raise FileServerError(msg) from error
        except FileServerError:
            self._lock.release()
            raise

    # A mount's file

    def open_mount(self, serial: int, connection: int, peer: str) -> int:
        """Make and lock the file of a mount that is to be forked. Raises `OSError`.

        The child keeps the descriptor open; the supervisor closes its own. It is for reading alone: a mount process
        that a guest has taken over could name another as itself, and have that killed by the next supervisor.
        """
        path = self._mount(connection)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            descriptor = _locked(path)
            try:
                _write_line(descriptor, _Opened(serial, connection, peer))
            except BaseException:
                os.close(descriptor)
                raise
        except BaseException:
            os.unlink(path)
            raise
        return descriptor

    def forget_mount(self, connection: int) -> None:
        """Remove the file of a mount that has ended."""
        with suppress(OSError):
            os.unlink(self.counters(connection))
        with suppress(OSError):
            os.unlink(self._mount(connection))

    def new_counters(self, connection: int) -> str:
        """Return where the counters of a new mount are to be; what an earlier one left there is gone."""
        path = self.counters(connection)
        with suppress(OSError):
            os.unlink(path)
        return path

    def counters(self, connection: int) -> str:
        """Return where the counters of a mount are."""
        return os.path.join(self._counters, str(connection))

    def _mount(self, connection: int) -> str:
        return os.path.join(self._mounts, str(connection))

    # What a dead supervisor left

    def find_mounts(self) -> list[Found]:
        """Find the mount processes that live, and remove the files of those that do not.

        Raises `FileServerError` when one lives that cannot be identified: then nobody could take its
        share away. Every pidfd is closed then.
        """
        found: list[Found] = []
        try:
            for name in sorted(os.listdir(self._mounts)):
                mount = _identify(os.path.join(self._mounts, name))
                if mount is not None:
                    found.append(mount)
        except BaseException:
            for mount in found:
                os.close(mount.pidfd)
            raise
        return found

    def end_mounts(self, mounts: list[Found]) -> list[Found]:
        """End mount processes, asked first as `ServedShares` asks them, and wait for their end.

        Return those that were killed and do not end, because what they wait for does not answer. They serve nobody.
        """
        left = []
        for mount in mounts:
            leaving.ask(mount.pidfd)
        give_up = time.monotonic() + leaving.LEAVE_SECONDS
        for mount in mounts:
            if not _ends(mount.pidfd, give_up):
                leaving.kill(mount.pidfd)
        deadline = time.monotonic() + leaving.DEATH_SECONDS
        for mount in mounts:
            if not _ends(mount.pidfd, deadline):
                left.append(mount)
                continue
            self.forget_mount(mount.connection)
            os.close(mount.pidfd)
        return left

    def require_outside(self, share: Plan9Share) -> None:
        """Refuse a share through which a guest could write here: it could give itself other shares that way.

        Raises what `KeepOut.require_apart` does.
        """
        KeepOut(self.path, "the run directory of its own file server", _OURS).require_apart(share)

    # Ending

    def release(self) -> None:
        """Let go of a directory that was not used after all: everything stays as it was."""
        self._lock.release()

    def clear(self) -> None:
        """Remove everything but the log, because the server has ended."""
        with suppress(OSError):
            for name in os.listdir(self._counters):  # of mounts that ended while there was no supervisor
                os.unlink(os.path.join(self._counters, name))
        with suppress(OSError):
            os.unlink(self.fence)
        for directory in (self._mounts, self._counters):
            with suppress(OSError):
                os.rmdir(directory)
        self._lock.release()


def _ends(pidfd: int, deadline: float) -> bool:
    """Wait until a process has ended, or until the monotonic clock says so."""
    ended = select.poll()
    ended.register(pidfd, select.POLLIN)
    return bool(ended.poll(max(0.0, deadline - time.monotonic()) * 1000))


def _require_own(directory: str, *, may_be_link: bool = False) -> None:
    """Refuse a directory in which another user could say who is a mount process: such are killed.

    Raises `FileServerError`.
    """
    try:
        require_safe_way(directory)
        require_own_directory(os.path.realpath(directory) if may_be_link else directory)
    except OSError as error:
        msg = f"run directory {directory!r}: {error.strerror}; change that or choose another"
        raise FileServerError(msg) from error


def _locked(path: str) -> int:
    """Open and lock a mount's file. Raises `OSError`."""
    try:
        return _lock(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return _lock(os.open(path, os.O_RDWR | os.O_CLOEXEC))  # NFS locks what can be written alone: flock(2)


def _lock(descriptor: int) -> int:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _write_line(descriptor: int, record: _Opened | _Introduced) -> None:
    """Write to a file that may be open for reading alone."""
    writing = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(writing, msgspec.json.encode(record) + b"\n")
    finally:
        os.close(writing)


def introduce(descriptor: int, root: int) -> None:
    """Write down in the file of this mount process who it is. Called by itself. Raises `OSError`."""
    _write_line(descriptor, _Introduced(os.getpid(), _started(os.getpid()), root))


def _started(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot (proc_pid_stat(5)). Raises `OSError`."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[19])


def _identify(path: str) -> Found | None:
    """Find the process of a mount's file; None, and the file is gone, when there is none any more."""
    give_up = time.monotonic() + _INTRODUCED_SECONDS
    descriptor = _open_again(path)
    try:
        while True:
            if not _is_locked(descriptor):
                os.unlink(path)
                return None
            mount = _who(os.pread(descriptor, 4096, 0))
            is_lie = mount is not None and not _may_be(mount, path)
            if mount is not None and not is_lie:
                # Locked still, after the pidfd was opened: the writer of the pid lives, so the pid is its.
                if _is_locked(descriptor):
                    return mount
                os.close(mount.pidfd)
                continue
            is_late = time.monotonic() > give_up
            if is_lie or is_late:
                if mount is not None:
                    os.close(mount.pidfd)
                holder = _holder(path)
                if holder is not None:
                    return holder
                # One that is ending has closed its files, and the kernel lets go of its lock a moment later.
                if is_late:
                    raise FileServerError(_cannot_be_identified(path))
            time.sleep(_PAUSE_SECONDS)
    finally:
        os.close(descriptor)


def _open_again(path: str) -> int:
    """Open a mount's file, also when its process, which has it open, took the permission away. Raises `OSError`."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except PermissionError:
        os.chmod(path, 0o600)
        return os.open(path, flags)


def _has_open(pid: int, path: str) -> bool | None:
    """Say whether a process has a file open; None when this process may not see that."""
    try:
        # By thread: one that was killed and waits in the kernel keeps all files open, when its first thread is gone.
        for thread in os.listdir(f"/proc/{pid}/task"):
            names: list[str] = []
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
                names = os.listdir(f"/proc/{pid}/task/{thread}/fd")
            for name in names:
                with suppress(FileNotFoundError, ProcessLookupError):  # closed since
                    # By the link: to look at what it leads to might have to wait for another file system.
                    if os.readlink(f"/proc/{pid}/task/{thread}/fd/{name}") == path:
                        return True
    except PermissionError:
        return None
    except OSError:
        pass
    return False


def _may_be(mount: Found, path: str) -> bool:
    """Say whether a mount's file may be that process's: it has the file open, and the file is the one of its number."""
    if mount.pid == os.getpid() or str(mount.connection) != os.path.basename(path):
        return False
    return _has_open(mount.pid, os.path.realpath(path)) is not False


def _holder(path: str) -> Found | None:
    """Find the process that has a mount's file open, whatever is written there: its share is not known then.

    A mount process that a guest has taken over, on a host without Landlock, may write what it likes.
    """
    real = os.path.realpath(path)
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid() and _has_open(int(name), real):
            with suppress(ProcessLookupError):
                return Found(int(name), os.pidfd_open(int(name)), _NO_SHARE, int(os.path.basename(path)), "unknown", 0)
    return None


def _cannot_be_identified(path: str) -> str:
    return (
        f"the mount process of {path!r} lives and cannot be identified from here (another PID namespace?): "
        "its share could not be taken away; end it, then start again"
    )


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _who(content: bytes) -> Found | None:
    lines = content.split(b"\n")
    try:
        opened = msgspec.json.decode(lines[0], type=_Opened)
        introduced = msgspec.json.decode(lines[1], type=_Introduced)
    except (IndexError, *UNREADABLE):  # it was forked a moment ago
        return None
    try:
        pidfd = os.pidfd_open(introduced.pid)
    except ProcessLookupError:
        return None
    try:
        same = _started(introduced.pid) == introduced.started
    except OSError:
        same = False
    if not same:
        os.close(pidfd)
        return None
    return Found(introduced.pid, pidfd, opened.serial, opened.connection, opened.peer, introduced.root)
