"""A process that forks supervisors: a few milliseconds each, where starting an interpreter takes a quarter of a second.

Run as ``python zygote.py FD``, where FD is a socket of sequenced packets. What lives here: the forking, with the
descriptors that a started process would have been given, and the reaping. What must not: who asks (`forked`).
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import socket
import sys
import traceback

from uvmshare.fileserver.mount.confinement import missing
from uvmshare.fileserver.mount.process import serve
from uvmshare.fileserver.supervisor.main import main as supervise
from uvmshare.fileserver.supervisor.shares import MountProcesses

MOST = 32
"""Descriptors of one request at most."""


def _be_started(arguments: list[str], wanted: list[int], given: list[int]) -> int:
    """Have the descriptors under their wanted numbers and no other ones, and be a supervisor to its end."""
    os.setsid()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    above = max(1000, *wanted) + 1
    kept = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, above) for descriptor in given]
    os.closerange(3, above)
    for descriptor, number in zip(kept, wanted, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1):
        os.dup2(nothing, number)
    os.close(nothing)
    return supervise(arguments, MountProcesses(serve, missing))


def _poll(pid: int) -> int | None:
    """Return how a process ended, as a shell does; None while it runs."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def main() -> None:
    """Answer requests until the socket ends."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, given, _, _ = socket.recv_fds(requests, 65536, MOST)
        if not data:
            return
        request = json.loads(data)
        if "poll" in request:
            requests.send(json.dumps(_poll(request["poll"])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                requests.detach()  # closed with all that is not wanted
                status = _be_started(request["arguments"], request["wanted"], given)
            except BaseException:  # noqa: BLE001  as the interpreter would
                traceback.print_exc()
            finally:
                os._exit(status)
        for descriptor in given:
            os.close(descriptor)
        requests.send(json.dumps(pid).encode())


if __name__ == "__main__":
    main()
