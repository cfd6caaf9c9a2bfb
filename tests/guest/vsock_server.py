"""A file server's mount processes on vsock, in a guest: ``python vsock_server.py PORT DIRECTORY SECONDS``.

There, a connection over vsock has a real AF_VSOCK socket for the server. It serves one connection
after the other, each in a mount process as the supervisor forks them, confined, with `peer_seconds` of SECONDS. It says
"ready" when it listens, and "ended STATUS" when a mount process has.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

from uvmshare.fileserver.counters import Counters
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.handshake import Handshake
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount import process
from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags

if TYPE_CHECKING:
    from uvmshare.fileserver.handshake import Attach


def greet(connection: socket.socket, largest_msize: int) -> Attach:
    """Answer a guest's first words, until it attaches."""
    handshake = Handshake(largest_msize)
    while True:
        replies, attach = handshake.feed(connection.recv(8192))
        connection.sendall(replies)
        if attach is not None:
            return attach


def main() -> None:
    port, directory, seconds = sys.argv[1:]
    limits = Limits(peer_seconds=float(seconds))
    share = Plan9Share(name="0", access_name="0", path=directory, flags=int(Plan9ShareFlags.LINUX_METADATA))
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as listening:
        listening.bind((socket.VMADDR_CID_ANY, int(port)))
        listening.listen()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listening.accept()
            export = Export.open(share, "none")
            lifeline, kept = os.pipe()
            attach = greet(connection, limits.msize)
            pid = os.fork()
            if pid == 0:
                os.close(kept)
                process.serve(
                    connection, export, attach, limits, lifeline=lifeline, own_file=None, telling=2, counters=Counters()
                )
            connection.close()
            export.close()
            _, status = os.waitpid(pid, 0)
            os.close(lifeline)
            os.close(kept)
            sys.stdout.write(f"ended {os.waitstatus_to_exitcode(status)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
