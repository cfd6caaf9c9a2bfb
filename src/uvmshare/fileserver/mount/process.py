"""One mount process: from the fork to the end of its guest's connection.

What lives here: what a child of the supervisor does before, around and after its `Serving`. What must
not: anything of the supervisor, which the child has left behind.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
import signal
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from uvmshare.errors import UvmshareError
from uvmshare.fileserver import syscalls
from uvmshare.fileserver.leaving import LEAVE
from uvmshare.fileserver.log import STDERR, say
from uvmshare.fileserver.mount import confinement
from uvmshare.fileserver.mount.enclosure import DirectoryGone
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.fileserver.mount.waiting import notice_death, probe_for_ever
from uvmshare.fileserver.mount.watched import Queue
from uvmshare.fileserver.mounttable import is_changed
from uvmshare.fileserver.rundir import directory
from uvmshare.linux.descriptors import close_all_but
from uvmshare.linux.mountinfo import TABLE, has_below
from uvmshare.ninep import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.counters import Counters
    from uvmshare.fileserver.export import Export
    from uvmshare.fileserver.fence import Fence
    from uvmshare.fileserver.handshake import Attach
    from uvmshare.fileserver.limits import Limits

__all__ = ["serve"]

_SEND_BUFFER: Final = 4 << 20
"""So that a reply of 1 MiB leaves with one call; measured beside sendfile. The kernel may give less."""

_RESET: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, LEAVE)
"""What the supervisor handles, or whoever started it may have ignored."""


def _begin(lifeline: int | None, own_file: int | None, export: Export) -> int:
    """Tie this process to what ends it with its supervisor, or lets another find it; one of the two.

    `lifeline` is the read end of a pipe whose write end the supervisor alone holds: when that one dies,
    however it dies, so does the mount process, and no guest keeps a share that nobody can take away.
    `own_file` is its file in the run directory, locked, by which the next supervisor takes it over.
    Returns the descriptor that must stay open. Raises `OSError`.
    """
    if own_file is not None:
        directory.introduce(own_file, export.root)
        return own_file
    assert lifeline is not None
    return _die_with(lifeline)


def serve(
    connection: socket.socket,
    export: Export,
    attach: Attach,
    limits: Limits,
    *,
    lifeline: int | None,
    own_file: int | None,
    telling: int,
    counters: Counters | None = None,
    fence: Fence | None = None,
    turn: int | None = None,
) -> NoReturn:
    """Be a mount process: serve the connection to its end, then exit. Called in a fresh fork.

    `lifeline` and `own_file` are as in `_begin`, `telling` is where to say what the log is to have.
    With `turn` it gets the kernel's queues of what happens to files (`Queue.open_in_turn`).
    """
    status = 1
    try:
        os.dup2(telling, STDERR)
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with suppress(OSError):
            syscalls.set_name(f"uvmshare-{export.name}")
        kept = _begin(lifeline, own_file, export)
        # Before anything that may take its time: the locks and the listening sockets of a supervisor that dies
        # now are not to live on here.
        close_all_but((connection.fileno(), kept, export.root, *(() if turn is None else (turn,))))
        _prepare(connection)
        notice_death(connection, limits.peer_seconds)
        descriptors = confinement.allow_descriptors(limits.descriptors)
        table = os.open(TABLE, os.O_RDONLY | os.O_CLOEXEC)
        any_mounts = _may_have_mounts(export, table)
        queue = None if turn is None else Queue.open_in_turn(turn, export.root)
        enclosed = confinement.enter(export, table)
        if queue is not None and not enclosed:  # by a path it would be told of what lies outside the share
            queue.close()
            queue = None
        session = Serving(connection, export, limits, say, counters, descriptors=descriptors, queue=queue, fence=fence)

        def leave() -> NoReturn:
            if session.foreign.is_busy:
                # What hangs keeps this process, and the connection with it. Its guest is not to wait for that.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            session.tree.lending.give_all_back()
            session.foreign.tree.lending.give_all_back()
            os._exit(0)

        _handle_signals(session, connection, leave)
        over_vsock = connection.family == socket.AF_VSOCK
        has_landlock = confinement.confine(
            export,
            limits,
            kept=(kept, STDERR),
            enclosed=enclosed,
            over_vsock=over_vsock,
            watches=queue is not None,
        )
        probe_for_ever(connection, limits.peer_seconds)
        if not session.tree.root.is_foreign:
            session.tree.boundary.take_process(has_landlock=has_landlock, enclosed=enclosed)
        session.foreign.tree.boundary.like(session.tree.boundary)
        _follow_mounts(table, session, any_there=any_mounts)
        session.run((attach.tag, attach.message), attach.msize, attach.rest)
        _end(connection, session)
        status = 0
    except UvmshareError as error:
        _refuse(connection, attach, errno.EPERM, error)
    except DirectoryGone as error:
        _refuse(connection, attach, errno.ENOENT, error)
    except BaseException as error:  # noqa: BLE001  nothing may unwind into the supervisor's frames
        say(f"{type(error).__name__}: {error}; connection closed")
    finally:
        os._exit(status)


def _handle_signals(session: Serving, connection: socket.socket, leave: Callable[[], NoReturn]) -> None:
    """End when the supervisor asks for that; and past a fence as soon as this process goes on that was stopped.

    One that was stopped between its look at the fence and a system call ends so in nearly every case before the call:
    Python calls the handler before the next function begins.
    """

    def went_on(*_: object) -> None:
        if session.fence is not None and session.fence.is_past:
            _cut(connection)

    signal.signal(LEAVE, lambda *_: session.outbox.end(leave))
    if session.fence is not None:
        signal.signal(signal.SIGCONT, went_on)


def _cut(connection: socket.socket) -> NoReturn:
    """End, and the connection too: a supervisor that is stopped has it open, and no guest is to wait for that."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    os._exit(0)


def _end(connection: socket.socket, session: Serving) -> None:
    """End the connection of a mount whose fence is past, and say so to the guest."""
    if session.fence is not None and session.fence.is_past:
        session.outbox.end(lambda: _cut(connection))


def _refuse(connection: socket.socket, attach: Attach, number: int, error: Exception) -> None:
    """Answer an attach with an error, and say why."""
    say(f"{error}; connection closed")
    with suppress(OSError):
        connection.sendall(messages.Rlerror(number).encode(attach.tag))


def _prepare(connection: socket.socket) -> None:
    connection.settimeout(None)
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        # However this process ends, the guest is to see a reset (socket(7), SO_LINGER). At an orderly end Linux's
        # client answers what is under way with error 0, and behind QEMU's user network waits for ever for what it
        # asks next.
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))


def _may_have_mounts(export: Export, table: int) -> bool:
    """Say whether anything may be mounted below a share's root, by a table of mounts and without a look at it."""
    try:
        here = os.readlink(f"/proc/self/fd/{export.root}")
        return here != export.path or has_below(here, table)
    except OSError:
        return True


def _follow_mounts(table: int, session: Serving, *, any_there: bool) -> None:
    """Tell the tree whether anything is mounted, and, on a thread, when something is.

    `any_there`: whether anything was, or may have been, before this process had its own `table`.
    """
    tree = session.tree
    is_changed(table, 0)  # by the namespace itself; what else came until now is looked for
    try:
        # Not by a path: of the two calls, seccomp leaves a confined process the one that takes a descriptor.
        here = os.readlink(str(tree.root.fd), dir_fd=tree.descriptors[1])
        any_there = any_there or has_below(here, table)
    except OSError:
        any_there = True
    tree.found_mounts(any_there=any_there)

    def watch() -> None:
        if is_changed(table, None):
            tree.found_mounts(any_there=True)
            if session.watched is not None:
                session.watched.lose()

    _thread.start_new_thread(watch, ())  # all that a threading.Thread has beside it is memory


def _die_with(lifeline: int) -> int:
    """Have SIGKILL sent when the last writer of the pipe is gone (fcntl(2), F_SETOWN and F_SETSIG).

    Not SIGIO, which this process could ignore once a guest has taken it over. Not ``PR_SET_PDEATHSIG``, which a
    change of file system identity would clear (prctl(2)). The pipe is
    opened anew, because an open file has one owner, and every mount process needs to be one. Returns
    the descriptor that must stay open.
    """
    own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(BlockingIOError):
        if os.read(own, 1) == b"":  # it was gone before the signal could be asked for
            os._exit(1)
    return own
