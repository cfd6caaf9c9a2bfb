"""Clears away what a dead unix socket left, where a new one is to be.

What lives here: taking a path whose socket is dead. What must not: binding there, or who may.
"""

from __future__ import annotations

import errno
import os
import socket
import stat

from uvmshare.linux.credentials import credentials

__all__ = ["make_room"]

_ELSEWHERE = "or choose another path"


def make_room(directory: int, name: str, uid: int) -> None:
    """Remove a socket of this user's on which nobody listens, below an open directory; nothing else.

    What is looked at is what is removed, whatever becomes of the name meanwhile. Raises `OSError`, EADDRINUSE for
    anything else that is there.
    """
    try:
        found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        there = os.fstat(found)
        if not stat.S_ISSOCK(there.st_mode):
            raise OSError(errno.EADDRINUSE, f"there is a file that is no socket: move it away, {_ELSEWHERE}")
        _require_dead(found)
        if there.st_uid != uid:
            msg = f"there is a dead socket of uid {there.st_uid}, which only they remove: have them do so, {_ELSEWHERE}"
            raise OSError(errno.EADDRINUSE, msg)
        if os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), there):
            os.unlink(name, dir_fd=directory)
    finally:
        os.close(found)


def _require_dead(file: int) -> None:
    """See that nobody listens on the socket whose file is open. Raises `OSError`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(0)  # a full backlog answers EAGAIN: somebody is there
        try:
            probe.connect(f"/proc/self/fd/{file}")
        except ConnectionRefusedError:
            return
        except OSError as error:
            raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}: end that, {_ELSEWHERE}") from error
        pid = credentials(probe).pid
        raise OSError(errno.EADDRINUSE, f"{os.strerror(errno.EADDRINUSE)}, by process {pid}: end that, {_ELSEWHERE}")
