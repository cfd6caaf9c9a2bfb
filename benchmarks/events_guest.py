"""Runs in a guest for `benchmarks.events`: tells the host at once what inotify(7) tells of the directories below one.

``events_guest.py HOST PORT DIRECTORY``. Over one connection it sends "ready" and how many directories it watches, then
a line an event: its mask and the path below the directory. A line that it gets is sent back, so that the host knows
what the way takes. Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import sys

_EVENTS = 0x2 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200
"""MODIFY, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE."""
_HEAD = struct.Struct("iIII")
_OVERFLOW = 0x4000


def main(host: str, port: str, top: str) -> None:
    """Tell until the host has gone."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(0)
    below = {}
    for directory, _, _ in os.walk(top):
        number = libc.inotify_add_watch(queue, os.fsencode(directory), _EVENTS)
        if number < 0:
            raise OSError(ctypes.get_errno(), directory)
        below[number] = os.path.relpath(directory, top)
    with socket.create_connection((host, int(port))) as told:
        told.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        told.sendall(b"ready %d\n" % len(below))
        while True:
            readable, _, _ = select.select([queue, told], [], [])
            if told in readable:
                asked = told.recv(4096)
                if not asked:
                    return
                told.sendall(asked)
            if queue in readable:
                told.sendall(b"".join(_lines(os.read(queue, 1 << 20), below)))


def _lines(data: bytes, below: dict[int, str]) -> list[bytes]:
    lines, at = [], 0
    while at < len(data):
        number, mask, _, size = _HEAD.unpack_from(data, at)
        at += _HEAD.size
        name = os.fsdecode(data[at : at + size].rstrip(b"\0"))
        at += size
        if mask & _OVERFLOW:
            lines.append(b"%x overflow\n" % mask)
        elif number in below:
            lines.append(b"%x %s\n" % (mask, os.fsencode(os.path.normpath(os.path.join(below[number], name)))))
    return lines


if __name__ == "__main__":
    main(*sys.argv[1:])
