"""The floor under a server in Python: the system calls of the small workloads in the barest loop there can be.

What lives here: loops that read a header, make the system calls that the minimal C server makes for the same
request, and pack a reply. They look nothing up, check nothing, keep nothing, and no socket is among them. What
must not: anything of the package. What the file server takes beyond this is its own; what the C server takes less
than this no change to a Python program can win back.

Times are CPU time of this thread, the least of many turns.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["measure"]

_TURNS: Final = 60
_AT_ONCE: Final = 32
_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_SMALL: Final = 4096

_header: Final = struct.Struct("<IBHI").unpack_from
_reply: Final = struct.Struct("<IBH").pack
_walked: Final = struct.Struct("<IBHHBIQ").pack
_attributes: Final = struct.Struct("<IBHQBIQIIIQQQQQQQQQQQQQQQ").pack
_zeros: Final = (0,) * 22


def measure(tree: Path) -> dict[str, float]:  # noqa: PLR0915  the loops are what it is about
    """Return the microseconds of a message of each small workload; `tree` is that of benchmarks/trees.py."""
    root = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    scratch = os.open(tree / "scratch", os.O_PATH | os.O_DIRECTORY)
    file = os.open(tree / "file", _PATH)
    proc = os.open("/proc/self/fd", os.O_PATH)
    buffer = memoryview(bytearray(64 + _SMALL))
    replies: list[bytes] = []

    def getattr_() -> None:
        _header(buffer, 0)
        os.fstat(file)
        replies.append(_attributes(160, 25, 0, *_zeros))

    def walk() -> None:
        _header(buffer, 0)
        one = os.open(b"one", _PATH, dir_fd=root)
        os.fstat(one)
        two = os.open(b"two", _PATH, dir_fd=one)
        os.fstat(two)
        three = os.open(b"three", _PATH, dir_fd=two)
        os.fstat(three)
        replies.append(_walked(48, 111, 0, 3, 0, 0, 0))
        _header(buffer, 0)
        os.fstat(three)
        replies.append(_attributes(160, 25, 0, *_zeros))
        _header(buffer, 0)
        for each in (one, two, three):
            os.close(each)
        replies.append(_reply(7, 121, 0))

    def open_read() -> None:
        _header(buffer, 0)
        node = os.open(b"small00", _PATH, dir_fd=root)
        os.fstat(node)
        replies.append(_walked(22, 111, 0, 1, 0, 0, 0))
        _header(buffer, 0)
        os.fstat(node)
        opened = os.open(b"%d" % node, os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
        replies.append(_walked(22, 13, 0, 1, 0, 0, 0))
        _header(buffer, 0)
        replies.append(_reply(7, 117, 0) + os.pread(opened, _SMALL, 0))
        _header(buffer, 0)
        os.close(opened)
        os.close(node)
        replies.append(_reply(7, 121, 0))

    def create_unlink() -> None:
        _header(buffer, 0)
        replies.append(_reply(9, 111, 0))
        _header(buffer, 0)
        made = os.open(b"made", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=scratch)
        os.fstat(made)
        replies.append(_walked(22, 15, 0, 1, 0, 0, 0))
        _header(buffer, 0)
        os.pwrite(made, buffer[64:], 0)
        replies.append(_reply(11, 119, 0))
        _header(buffer, 0)
        os.close(made)
        replies.append(_reply(7, 121, 0))
        _header(buffer, 0)
        os.unlink(b"made", dir_fd=scratch)
        replies.append(_reply(7, 77, 0))

    found = {
        "getattr": _least(getattr_, replies, 1),
        "walk": _least(walk, replies, 3),
        "open-read": _least(open_read, replies, 4),
        "create-unlink": _least(create_unlink, replies, 5),
    }
    for descriptor in (root, scratch, file, proc):
        os.close(descriptor)
    return found


def _least(operation: Callable[[], None], replies: list[bytes], messages: int) -> float:
    """Return the microseconds of one message: the least of the turns, each so many operations and a join."""
    least = float("inf")
    for _ in range(_TURNS):
        begun = time.thread_time()
        for _ in range(_AT_ONCE):
            operation()
        b"".join(replies)
        replies.clear()
        least = min(least, time.thread_time() - begun)
    return least / (_AT_ONCE * messages) * 1e6
