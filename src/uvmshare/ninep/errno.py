"""From any exception to the errno of an Rlerror.

What lives here: one function, so that there is one place which decides what a guest is told.
What must not: anything that knows a message or a file.

9P2000.L carries Linux's errno numbers (protocol.md, lerror). The server runs on Linux, so that the
numbers of an `OSError` are the right ones already.
"""

from __future__ import annotations

import errno
from typing import Final

from uvmshare.errors import ProtocolError

__all__ = ["to_errno"]

_MAX_ERRNO: Final = 4095
"""``MAX_ERRNO`` of Linux: the guest would take more for a pointer."""


def to_errno(error: BaseException) -> int:
    """Return the Linux errno that tells a guest of `error`; EIO when nothing fits.

    Never 0, which a client would take for success, and never past ``MAX_ERRNO``.
    """
    number: int | None = None
    if isinstance(error, (OSError, ProtocolError)):
        number = error.errno
    elif isinstance(error, MemoryError):
        number = errno.ENOMEM
    elif isinstance(error, (ValueError, OverflowError)):
        number = errno.EINVAL  # what Python itself refuses before the system call: a NUL, a huge offset
    if number is None or not 0 < number <= _MAX_ERRNO:
        return errno.EIO
    return number
