"""One mount process: from the fork to the end of its guest's connection.

What lives here: what a child of the supervisor does before, around and after its `Session`. What must
not: anything of the supervisor, which the child has left behind.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from uvmshare.errors import UvmshareError
from uvmshare.fileserver import confinement, syscalls
from uvmshare.fileserver.session import Session
from uvmshare.ninep import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.export import Export
    from uvmshare.fileserver.handshake import Attach
    from uvmshare.fileserver.limits import Limits

__all__ = ["serve"]

_SEND_BUFFER: Final = 4 << 20
"""So that a reply of 1 MiB leaves with one call; measured beside sendfile. The kernel may give less."""

_RESET: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGIO)
"""What the supervisor handles, or whoever started it may have ignored: SIGIO is how the lifeline ends a mount."""


def serve(
    connection: socket.socket,
    export: Export,
    attach: Attach,
    limits: Limits,
    *,
    lifeline: int,
    log: Callable[[str], None],
) -> NoReturn:
    """Be a mount process: serve the connection to its end, then exit. Called in a fresh fork.

    `lifeline` is the read end of a pipe whose write end the supervisor alone holds: when that one dies,
    however it dies, so does this process, and no guest keeps a share that nobody can take away.
    """
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in _RESET:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with suppress(OSError):
            syscalls.set_name(f"uvmshare-{export.name}")
        lifeline = _die_with(lifeline)
        connection.settimeout(None)
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        session = Session(connection, export, limits, log)
        confinement.close_all_but((connection.fileno(), lifeline, *session.tree.descriptors))
        confinement.confine(export, limits)
        session.run((attach.tag, attach.message), attach.msize, attach.rest)
        status = 0
    except UvmshareError as error:
        log(f"{error}; connection closed")
        with suppress(OSError):
            connection.sendall(messages.Rlerror(1).encode(attach.tag))
    except BaseException as error:  # noqa: BLE001  nothing may unwind into the supervisor's frames
        log(f"{type(error).__name__}: {error}; connection closed")
    finally:
        os._exit(status)


def _die_with(lifeline: int) -> int:
    """Have SIGIO, whose default is the end, sent when the last writer of the pipe is gone (fcntl(2), F_SETOWN).

    Not ``PR_SET_PDEATHSIG``, which a change of file system identity would clear (prctl(2)). The pipe is
    opened anew, because an open file has one owner, and every mount process needs to be one. Returns
    the descriptor that must stay open.
    """
    own = os.open(f"/proc/self/fd/{lifeline}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    with suppress(BlockingIOError):
        if os.read(own, 1) == b"":  # it was gone before the signal could be asked for
            os._exit(1)
    return own
