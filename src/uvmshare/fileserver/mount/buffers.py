"""Memory in which a mount process receives and sends.

What lives here: how it is mapped, and how its pages go back to the host. What must not: what is in it (`serving`,
`outbox`, `plain`).

A page that nothing touches costs nothing. So a buffer is as large as the largest message from the beginning, since a
confined process may map no shared memory, and a mount whose guest says nothing gives back what large messages touched.
"""

from __future__ import annotations

import mmap

__all__ = ["give_back", "make"]


def make(size: int) -> mmap.mmap:
    """Return so many bytes of zeros, of this process alone. Raises `OSError`."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def give_back(buffer: mmap.mmap, *others: mmap.mmap, kept: int = 0) -> None:
    """Give all pages of buffers back to the host; see MADV_DONTNEED in madvise(2). What is touched again is zeros.

    `kept`: how many bytes at the beginning of the first one stay as they are.
    """
    begin = -(-kept // mmap.PAGESIZE) * mmap.PAGESIZE
    if begin < len(buffer):
        buffer.madvise(mmap.MADV_DONTNEED, begin)
    for each in others:
        each.madvise(mmap.MADV_DONTNEED)
