"""Which inodes programs watch with inotify(7), as /proc tells.

What lives here: `Watches`. What must not: what is done with that (`repeating`). Standard library only (Python 3.9): it
runs in guests.

Linux tells nobody that a watch was made. So all descriptors of all processes have to be looked at to know that there is
none. But that there is one is seen by the queues that were found before: to read them again is enough.
"""

from __future__ import annotations

import os
import re
import time

__all__ = ["Watches"]

_REST = 4
"""So many times the processor's time of a look at all processes is waited until the next one. Where the host changes
much that nobody watches, that takes no more than a fifth of a processor. One look sees what has happened meanwhile."""
_QUEUE = "anon_inode:inotify"
_MINOR_BITS = 20
"""Of the number of a device in /proc (include/linux/kdev_t.h)."""


class Watches:
    """What of one file system is watched; `device` is its number (stat(2))."""

    def __init__(self, device: int) -> None:
        # A line of /proc/PID/fdinfo/N: "inotify wd:1 ino:9e7e sdev:800013 mask:..."
        number = os.major(device) << _MINOR_BITS | os.minor(device)
        self._watch = re.compile(rb"^inotify wd:\S+ ino:([0-9a-f]+) sdev:%x " % number, re.MULTILINE)
        self._queues: list[str] = []
        """Where /proc tells of those in which there was a watch."""
        self._rests_until = 0.0

    def known(self) -> set[int]:
        """Return the inodes that are watched now by the queues which were found last. Others may be watched too."""
        found: set[int] = set()
        for queue in self._queues:
            found |= self._inodes(queue)
        return found

    def all(self) -> set[int]:
        """Return the inodes that are watched now. After a look that took long, the next one waits for a while."""
        rest = self._rests_until - time.monotonic()
        if rest > 0:
            time.sleep(rest)
        began = time.process_time()
        found = self._look_at_all()
        self._rests_until = time.monotonic() + _REST * (time.process_time() - began)
        return found

    def _look_at_all(self) -> set[int]:
        self._queues = []
        found: set[int] = set()
        for pid in os.listdir("/proc"):
            if not "0" <= pid[0] <= "9":
                continue
            try:
                descriptors = os.listdir(f"/proc/{pid}/fd")
            except OSError:  # it has ended meanwhile
                continue
            for descriptor in descriptors:
                try:
                    leads_to = os.readlink(f"/proc/{pid}/fd/{descriptor}")
                except OSError:
                    continue
                if leads_to == _QUEUE:
                    queue = f"/proc/{pid}/fdinfo/{descriptor}"
                    inodes = self._inodes(queue)
                    if inodes:
                        self._queues.append(queue)
                        found |= inodes
        return found

    def _inodes(self, queue: str) -> set[int]:
        """Return what a queue watches; nothing when it is not there, or another file is there by now."""
        try:
            with open(queue, "rb", buffering=0) as file:
                said = file.readall()
        except OSError:
            return set()
        return {int(inode, 16) for inode in self._watch.findall(said)}
