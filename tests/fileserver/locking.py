"""What tests of locks ask and see: a guest's requests for locks, and locks of the host's own.

What lives here: the requests, and the host's call. What must not: which lock keeps which other out.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import LockStatus, LockType

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

RD, WR, UN = LockType.RDLCK, LockType.WRLCK, LockType.UNLCK
GRANTED, BLOCKED = LockStatus.SUCCESS, LockStatus.BLOCKED
EVERYTHING: Final = (0, 0)
"""Start and length: a length of 0 is to the end, wherever that is (fcntl(2))."""


def request(fid: int, kind: int, pid: int, span: tuple[int, int] = EVERYTHING, flags: int = 0) -> m.Tlock:
    return m.Tlock(fid, kind, flags, *span, pid, b"vm")


def lock(guest: NinePClient, fid: int, kind: int, pid: int, span: tuple[int, int] = EVERYTHING) -> int:
    return guest.ask(request(fid, kind, pid, span), m.Rlock).status


def in_the_way(guest: NinePClient, fid: int, kind: int, pid: int, span: tuple[int, int] = EVERYTHING) -> m.Rgetlock:
    return guest.ask(m.Tgetlock(fid, kind, *span, pid, b"vm"), m.Rgetlock)


def lock_range(descriptor: int, kind: int, start: int, length: int) -> None:
    """Lock a range of the host's file, for this open file description (fcntl(2), F_OFD_SETLK)."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


@contextmanager
def host_lock(path: Path, kind: int, start: int = 0, length: int = 0) -> Iterator[None]:
    """A lock of the host, by an open file description of its own."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        lock_range(descriptor, kind, start, length)
        yield
    finally:
        os.close(descriptor)
