"""Opening directories that may never answer: in a process of its own for each, for which nobody waits for ever.

What lives here: `Opener`, its processes, and how what they opened comes back. What must not: what is opened (`export`).

open(2) on a file system that hangs (FUSE, NFS) cannot be broken off, and a supervisor has one thread. So a child opens,
and looks at what has to be looked at before the directory is shared; the descriptor comes back through a socket
(unix(7), SCM_RIGHTS). A child that does not answer is killed, and ends when its file system answers or is unmounted.
Where the kernel's table of mounts has none on the way that could hang (`mounttable.may_hang`), the supervisor opens
itself: a child takes milliseconds.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from uvmshare.errors import UNREADABLE, FileServerError, HostPathHangs, UvmshareError
from uvmshare.fileserver import control, syscalls
from uvmshare.linux.descriptors import close_all_but

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvmshare.fileserver.log import Log
    from uvmshare.fileserver.supervisor.loop import Loop

__all__ = ["Opened", "Opener", "Wanted"]

_PATIENCE: Final = 5.0
"""Seconds for all that is opened at once. A disk that has to start takes as long; most take a millisecond."""

_AT_ONCE: Final = 16
"""Children at once: a supervisor that takes over has as many directories to open as there were shares."""

_MOST_HANGING: Final = 16
"""Children that were killed and have not ended. Past that, nothing is opened until one has."""

_LARGEST: Final = 64 * 1024


class Opened(NamedTuple):
    """An open directory, which is the caller's to close, and what was said of it."""

    root: int
    directory: str


class Wanted(NamedTuple):
    """What is to be opened: the path, for errors, what opens it, and whether that may never end."""

    path: str
    open: Callable[[], Opened]
    """Called in a child where it may hang, which has no descriptor of this process."""
    hangs: bool


class _Answer(msgspec.Struct, frozen=True):
    directory: str = ""
    failure: control.Failure | None = None


_answers: Final = msgspec.json.Decoder(_Answer)


@dataclass(slots=True, eq=False)
class _Child:
    wanted: Wanted
    pid: int
    pidfd: int
    answer: socket.socket


class Opener:
    """Opens for one supervisor. It may be used before the loop runs."""

    def __init__(self, loop: Loop, log: Log) -> None:
        self._loop = loop
        self._log = log
        self._hanging: dict[int, str] = {}
        """By pid, the paths at which children were given up."""

    def open(self, wanted: Wanted) -> Opened:
        """Open one directory. Raises what opening it does, `HostPathHangs`, and `FileServerError`."""
        (opened,) = self.open_all([wanted])
        if isinstance(opened, UvmshareError):
            raise opened
        return opened

    def open_all(self, wanted: Sequence[Wanted]) -> list[Opened | UvmshareError]:
        """Open directories beside each other, and return for each what it is, or why it cannot be had.

        Takes some seconds at most, whatever hangs.
        """
        give_up = time.monotonic() + _PATIENCE
        results: dict[int, Opened | UvmshareError] = {}
        waiting = deque(enumerate(wanted))
        running: dict[int, tuple[int, _Child]] = {}
        while waiting or running:
            while waiting and len(running) < _AT_ONCE:
                number, each = waiting.popleft()
                try:
                    if each.hangs:
                        child = self._start(each)
                        running[child.answer.fileno()] = number, child
                    else:
                        results[number] = each.open()
                except UvmshareError as error:
                    results[number] = error
            ready = _ready(running, give_up) if running else []
            for descriptor in ready:
                number, child = running.pop(descriptor)
                results[number] = _result(child)
            if not ready and running:
                for number, child in running.values():
                    results[number] = self._give_up(child)
                running.clear()
        return [results[number] for number in range(len(wanted))]

    def _start(self, wanted: Wanted) -> _Child:
        if wanted.path in self._hanging.values():
            raise _hangs(wanted.path, "it hung before, and has not answered since")
        if len(self._hanging) >= _MOST_HANGING:
            raise _hangs(wanted.path, f"{len(self._hanging)} other paths hang")
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                pid = os.fork()
                if pid == 0:
                    _answer(theirs, wanted)
                try:
                    return _Child(wanted, pid, os.pidfd_open(pid), ours)
                except OSError:
                    os.kill(pid, signal.SIGKILL)
                    ours.close()
                    raise
        except OSError as error:
            msg = f"cannot open {wanted.path!r}: {error.strerror}; the host has no room for another process"
            raise FileServerError(msg) from error

    def _give_up(self, child: _Child) -> HostPathHangs:
        child.answer.close()
        signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        self._hanging[child.pid] = child.wanted.path
        self._loop.watch(child.pidfd, lambda _: self._on_end(child))
        error = _hangs(child.wanted.path, f"no answer within {_PATIENCE:g} s")
        self._log(f"{error}; process {child.pid}, which looks at it, was killed, and ends then")
        return error

    def _on_end(self, child: _Child) -> None:
        self._loop.forget(child.pidfd)
        _reap(child)
        del self._hanging[child.pid]


def _hangs(path: str, why: str) -> HostPathHangs:
    return HostPathHangs(
        f"{path}: {why}, so its file system hangs: mend or end what serves it, or unmount it (umount -f), and ask again"
    )


def _ready(descriptors: dict[int, tuple[int, _Child]], give_up: float) -> list[int]:
    """Wait for the first answers; none when the time is over."""
    answers = select.poll()
    for descriptor in descriptors:
        answers.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in answers.poll(max(0.0, give_up - time.monotonic()) * 1000)]


def _result(child: _Child) -> Opened | UvmshareError:
    """Take what a child answered, which ends then."""
    descriptors: list[int] = []
    try:
        data, descriptors, _, _ = socket.recv_fds(child.answer, _LARGEST, 1)
        answer = _answers.decode(data)
    except (OSError, *UNREADABLE):  # it was killed
        answer = _Answer(failure=control.failure_of(_ended(child)))
    child.answer.close()
    _reap(child)
    if answer.failure is None and descriptors:
        return Opened(descriptors[0], answer.directory)
    for each in descriptors:
        os.close(each)
    return _ended(child) if answer.failure is None else control.to_exception(answer.failure)


def _ended(child: _Child) -> FileServerError:
    return FileServerError(f"cannot open {child.wanted.path!r}: the process that opens it ended; ask again")


def _reap(child: _Child) -> None:
    os.close(child.pidfd)
    with suppress(ChildProcessError):
        os.waitpid(child.pid, 0)


def _answer(theirs: socket.socket, wanted: Wanted) -> None:
    """Be the child: open, answer and end."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        # Before anything that may take for ever: the lock and the sockets of a supervisor that dies are not to live on.
        close_all_but((theirs.fileno(),))
        with suppress(OSError):
            syscalls.set_name("uvmshare-open")
        try:
            opened = wanted.open()
        except UvmshareError as error:
            theirs.send(msgspec.json.encode(_Answer(failure=control.failure_of(error))))
        except OSError as error:
            reason = FileServerError(f"cannot look at {wanted.path!r}: {error.strerror}")
            theirs.send(msgspec.json.encode(_Answer(failure=control.failure_of(reason))))
        else:
            socket.send_fds(theirs, [msgspec.json.encode(_Answer(opened.directory))], [opened.root])
    finally:
        os._exit(0)
