"""What would hold up a mount runs aside: reads that miss the page cache, fsync, large directories.

What lives here: `Aside`, a few threads, and the order between a job's answer and a Tflush of it. What
must not: what a job does (`handlers`).

flush(5): "If no response is received before the Rflush, the flushed transaction is considered to have
been canceled": so the answer to a Tflush waits until the job it names has answered. Replies of jobs
come when they come; each is sent whole.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from uvmshare.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.mount.files.openfile import OpenFile

__all__ = ["Aside", "Job"]

_THREADS: Final = 4
"""Enough for a disk's queue; more only wait there."""

_MOST_JOBS: Final = 64
_MOST_BYTES: Final = 16 << 20
"""Replies that jobs may hold in memory. Past either, requests are served in turn: the guest waits."""


class Job(Protocol):
    """What is under way: a job here, or an errand (`foreign`)."""

    flushes: list[bytes]
    dropped: bool


@dataclass(slots=True, eq=False)
class _Job:
    """One request that runs aside, with an open file. `flushes` are the tags of the Tflush that wait for it."""

    size: int
    file: OpenFile
    flushes: list[bytes] = field(default_factory=list)
    dropped: bool = False


class Aside:
    """The jobs of one session.

    `send` sends whole replies on the connection, from any thread. `pending` has the jobs by the tag of
    their request, and those of `foreign`; the lock guards it, so that a Tflush comes before a job's end or after it.
    """

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self.lock = threading.Lock()
        self.pending: dict[int, Job] = {}
        self._send = send
        self._jobs = 0
        self._bytes = 0
        self._threads: ThreadPoolExecutor | None = None

    def start(self, tag: int, size: int, file: OpenFile, work: Callable[[], bytes]) -> bool:
        """Run `work` with an open file; it returns the reply to the request of that tag and never raises.

        `size` is about how many bytes the reply has. Returns False when there is too much under way
        already: then it is for the caller to do.
        """
        with self.lock:
            if self._jobs >= _MOST_JOBS or self._bytes + size > _MOST_BYTES:
                return False
            job = self.pending[tag] = _Job(size, file)
            self._jobs += 1
            self._bytes += size
        threads = self._threads or ThreadPoolExecutor(_THREADS)
        try:
            threads.submit(self._run, tag, job, work)
        except RuntimeError:  # no room for another thread
            if self._threads is None:
                with self.lock:
                    del self.pending[tag]
                    self._jobs -= 1
                    self._bytes -= size
                return False
            # One that runs already will come to it: the job is in their queue all the same.
        self._threads = threads
        return True

    def _run(self, tag: int, job: _Job, work: Callable[[], bytes]) -> None:
        reply = work()
        with self.lock:
            self._jobs -= 1
            self._bytes -= job.size
            if job.dropped:
                return
            del self.pending[tag]
            try:
                self._send(reply + b"".join(job.flushes))
            except (OSError, RemoteProtocolError):
                return  # the guest is gone; the loop learns it by itself

    def files(self) -> set[OpenFile]:
        """Return the open files that jobs work with, or are about to."""
        with self.lock:
            return {job.file for job in self.pending.values() if isinstance(job, _Job)}

    def flush(self, tag: int, answer: bytes) -> bool:
        """Send `answer` once the job of that tag has answered. Returns False when there is none."""
        with self.lock:
            job = self.pending.get(tag)
            if job is None:
                return False
            job.flushes.append(answer)
            return True

    def drop_all(self) -> None:
        """Forget every job: its reply is not sent. For a Tversion, after which no tag means anything."""
        with self.lock:
            for job in self.pending.values():
                job.dropped = True
            self.pending.clear()

    def close(self) -> None:
        """Forget every job and let the threads end."""
        self.drop_all()
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
