"""Forks supervisors in a few milliseconds, and kills them where a test says.

Run as ``python zygote.py FD``, where FD is a socket of sequenced packets: each request is JSON and comes with a control
channel and a log; the answer is the pid. What lives here: the forking, the points, and the reaping of what
supervisors leave behind. What must not: what holds afterwards; that is in the tests.

A point is a line of the file server about to be run, counted from a function on: ``{"function": "ServedShares.add",
"line": 3}`` kills the supervisor with SIGKILL before the third line from there. With ``"in_child": true`` the lines
of a mount process that it forks are counted, and its parent is killed. This process is the reaper of all that it
started (PR_SET_CHILD_SUBREAPER), so that nothing of them can go unseen.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from uvmshare import fileserver
from uvmshare.fileserver.mount.confinement import missing
from uvmshare.fileserver.mount.process import serve
from uvmshare.fileserver.supervisor import main as supervisor
from uvmshare.fileserver.supervisor.shares import MountProcesses

if TYPE_CHECKING:
    from types import FrameType

_PR_SET_CHILD_SUBREAPER = 36
_SERVER = os.path.dirname(fileserver.__file__)


class Point:
    """Kills at a point; installed as this process's trace function.

    `skip` calls of the function, or forks, come before the one that counts. Telling the status is no part of any.
    """

    def __init__(self, function: str, line: int, *, skip: int = 0, in_child: bool = False) -> None:
        self._function = function
        self._left = line
        self._skip = skip
        self._in_child = in_child
        self._armed = False
        self._victim = os.getpid()
        if in_child:
            self._armed = True
            os.register_at_fork(before=self._before_fork, after_in_child=self._in_mount)
        else:
            os.register_at_fork(after_in_child=lambda: sys.settrace(None))

    def _before_fork(self) -> None:
        self._skip -= 1

    def _in_mount(self) -> None:
        self._victim = os.getppid()
        if self._skip != -1:
            sys.settrace(None)

    def call(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace the lines of the file server's functions, once the one has been called."""
        del event, argument
        if not frame.f_code.co_filename.startswith(_SERVER):
            return None
        name = frame.f_code.co_qualname  # type: ignore[attr-defined, unused-ignore]  # Python 3.11
        if self._in_child:
            if name == "confine":  # from there on it may signal nobody
                sys.settrace(None)
        elif name == self._function:
            self._skip -= 1
            self._armed = self._armed or self._skip < 0
        elif name == "_Server.status":
            self._armed = False
        return self.step

    def step(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Count a line, and kill at the last."""
        del frame, argument
        if event == "line" and self._armed and (not self._in_child or self._victim != os.getpid()):
            self._left -= 1
            if self._left == 0:
                os.kill(self._victim, signal.SIGKILL)
        return self.step


def _supervise(channel: int, log: int, point: dict[str, Any] | None) -> None:
    os.setsid()
    os.dup2(log, 2)
    os.close(log)
    status = 1
    try:
        if point is not None:
            sys.settrace(Point(**point).call)
        supervisor.Supervisor(socket.socket(fileno=channel), MountProcesses(serve, missing)).run()
        status = 0
    finally:
        os._exit(status)


def _reap() -> int:
    """Reap what has ended; return how many of what was started, or left to this process, live."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as children:
        return len(children.read().split())


def main() -> None:
    """Fork until the test hangs up."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    requests = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, descriptors, _, _ = socket.recv_fds(requests, 65536, 2)
        if not data:
            return
        living = _reap()
        request = json.loads(data)
        if not descriptors:  # it asks who is left
            requests.send(json.dumps(living).encode())
            continue
        pid = os.fork()
        if pid == 0:
            requests.close()
            _supervise(descriptors[0], descriptors[1], request)
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(json.dumps(pid).encode())


if __name__ == "__main__":
    main()
