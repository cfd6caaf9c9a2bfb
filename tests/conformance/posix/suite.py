"""What the checks stand on: users, file types, scratch directories, and the list of outcomes.

What lives here: `Suite`, which runs a call as one of several users and notes what came of it. What must not: what is
checked (`paths`, `permissions`, `creation`, `renames`, `times`, `contents`, `descriptors`, `features`, `peers`). It
runs in the guest, on the standard library alone, as root.

An outcome is "ok", or the name of an errno, or a value as text. Each check has what POSIX and Linux's manual pages
want, so that a check is wrong by itself; and the same checks run on a local file system, so that a wrong
want is seen there.
"""

from __future__ import annotations

import errno
import os
import pickle
import socket
import stat
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "GROUP",
    "OTHER",
    "OWNER",
    "ROOT",
    "SUPPLEMENTARY",
    "TYPES",
    "Suite",
    "User",
    "make",
    "outcome",
    "protects_links",
]


@dataclass(frozen=True)
class User:
    """A user of the guest. `name` is for the names of checks."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User("root", 0, 0)
OWNER = User("owner", 2001, 2001)
GROUP = User("group", 2002, 2001)
SUPPLEMENTARY = User("supplementary", 2003, 2003, (2001, 2009))
OTHER = User("other", 2004, 2004)

TYPES = ("regular", "directory", "fifo", "block", "character", "socket", "symlink")
"""The file types; `make` makes one."""

_NODES = {
    "fifo": (stat.S_IFIFO, 0),
    "block": (stat.S_IFBLK, os.makedev(240, 1)),
    "character": (stat.S_IFCHR, os.makedev(240, 2)),
}
"""Device numbers that belong to nothing (the kernel's devices.txt: 240 is for experiments)."""


def protects_links() -> bool:
    """Say whether who may not write to a file may not link to it either (proc_sys_fs(5), protected_hardlinks)."""
    with open("/proc/sys/fs/protected_hardlinks", encoding="ascii") as file:
        return file.read().strip() != "0"


def make(kind: str, path: str, mode: int = 0o644) -> None:
    """Make a file of a type, with this mode whatever the umask."""
    if kind == "regular":
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
    elif kind == "directory":
        os.mkdir(path, mode)
    elif kind == "symlink":
        os.symlink("target", path)
        return
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)
    else:
        bits, device = _NODES[kind]
        os.mknod(path, bits | mode, device)
    if kind != "regular" or stat.S_IMODE(os.lstat(path).st_mode) != mode:
        os.chmod(path, mode)


def outcome(call: Callable[..., object], *arguments: object) -> str:
    """Make a call and return what came of it."""
    try:
        found = call(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok" if found is None else str(found)


class _Actor:
    """A process that makes calls as one user. It is forked once, because a fork a check would be most of the time."""

    def __init__(self, user: User) -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            ours.close()
            os.setgroups(user.groups)
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
            os.umask(0)
            _serve(theirs)
            os._exit(0)
        theirs.close()
        self._socket = ours

    def ask(self, directory: str, call: Callable[..., object], *arguments: object) -> str:
        data = pickle.dumps((directory, call, arguments))
        self._socket.sendall(struct.pack("<I", len(data)) + data)
        size = struct.unpack("<I", self._take(4))[0]
        return self._take(size).decode()

    def end(self) -> None:
        """Return when the process has let go of its directory, so that the file system can be unmounted."""
        self._socket.shutdown(socket.SHUT_WR)
        os.waitpid(self._pid, 0)
        self._socket.close()

    def _take(self, size: int) -> bytes:
        data = self._socket.recv(size, socket.MSG_WAITALL)
        if len(data) != size:
            msg = "a process of the suite ended early"
            raise RuntimeError(msg)
        return data


def _serve(connection: socket.socket) -> None:
    at = None
    while head := connection.recv(4, socket.MSG_WAITALL):
        wanted = connection.recv(struct.unpack("<I", head)[0], socket.MSG_WAITALL)
        directory, call, arguments = pickle.loads(wanted)
        try:
            if at != directory:
                os.chdir(directory)
                at = directory
            answer = outcome(call, *arguments)
        except OSError as error:
            answer = f"chdir: {errno.errorcode[error.errno or 0]}"
        except Exception as error:  # noqa: BLE001  a check that is wrong is an outcome that nobody wants
            answer = f"{type(error).__name__}: {error}"
        data = answer.encode("utf-8", "backslashreplace")
        connection.sendall(struct.pack("<I", len(data)) + data)


@dataclass
class Suite:
    """The checks that ran below `root`: name to what was got and what was wanted."""

    root: str
    results: dict[str, tuple[str, str]] = field(default_factory=dict)
    _actors: dict[User, _Actor] = field(default_factory=dict)
    _scratch: int = 0

    def check(self, name: str, got: object, want: object) -> None:
        """Note one check. Its name must be new."""
        if name in self.results:
            msg = f"two checks are called {name}"
            raise ValueError(msg)
        self.results[name] = str(got), str(want)

    def run(self, user: User, call: Callable[..., object], *arguments: object) -> str:
        """Make a call as a user in the scratch directory that is current, and return its outcome.

        `call` is a function of a module, because it goes to another process by its name.
        """
        if user not in self._actors:
            self._actors[user] = _Actor(user)
        return self._actors[user].ask(os.getcwd(), call, *arguments)

    def end(self) -> None:
        """End the processes of all users."""
        for actor in self._actors.values():
            actor.end()

    def scratch(self) -> str:
        """Make a new directory that everybody may change, make it the current one and return its path."""
        self._scratch += 1
        path = os.path.join(self.root, f"d{self._scratch}")
        os.mkdir(path, 0o777)
        os.chdir(path)
        return path

    def tick(self) -> None:
        """Return when the file system's clock has moved on, so that what is changed from now on has another time.

        The file system's own clock is asked, because the server's is not the guest's.
        """
        probe = os.path.join(self.root, "clock")
        descriptor = os.open(probe, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            before = os.stat(probe).st_ctime_ns
            deadline = time.monotonic() + 60
            while os.stat(probe).st_ctime_ns == before:
                os.chmod(probe, 0o600)
                if time.monotonic() > deadline:
                    msg = "the file system's clock stands still"
                    raise RuntimeError(msg)
        finally:
            os.close(descriptor)
