"""Runs in a guest: writes down what inotify(7) tells of directories, a line an event: ``directory/name EVENT``.

``listener.py OUTPUT DIRECTORY...``. The first line is "ready". Standard library only.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

EVENTS = {
    0x2: "MODIFY",
    0x4: "ATTRIB",
    0x8: "CLOSE_WRITE",
    0x40: "MOVED_FROM",
    0x80: "MOVED_TO",
    0x100: "CREATE",
    0x200: "DELETE",
    0x400: "DELETE_SELF",
    0x800: "MOVE_SELF",
}


def main(output: str, *directories: str) -> None:
    """Listen for ever."""
    libc = ctypes.CDLL(None, use_errno=True)
    queue = libc.inotify_init1(0)
    names = {}
    for directory in directories:
        number = libc.inotify_add_watch(queue, directory.encode(), sum(EVENTS))
        if number < 0:
            raise OSError(ctypes.get_errno(), directory)
        names[number] = os.path.basename(directory)
    with open(output, "w", encoding="utf-8") as file:
        print("ready", file=file, flush=True)
        while True:
            data = os.read(queue, 65536)
            at = 0
            while at < len(data):
                number, mask, _, size = struct.unpack_from("iIII", data, at)
                name = data[at + 16 : at + 16 + size].rstrip(b"\0").decode(errors="replace")
                at += 16 + size
                for bit, event in EVENTS.items():
                    if mask & bit:
                        print(f"{names[number]}/{name} {event}", file=file, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
