"""The agent's event loop, and its child processes.

What lives here: waiting for descriptors and for time, and running what may hang in a child process that can be given
up. What must not: mounts. Standard library only (Python 3.9): it runs in guests.

A process that waits for a 9P server that does not answer cannot be killed, not even with SIGKILL. So the agent itself
never touches what is mounted; children do, and one that hangs is left alone until it ends.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import heapq
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any

from uvmshare.guest.mount import printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Child", "Loop", "Timer"]

_PR_SET_PDEATHSIG = 1
_LARGEST = 512 * 1024
"""Bytes of a message of a child; SO_SNDBUF holds it."""
_REAP_EVERY = 0.5
"""Seconds between two looks for given-up children that have ended after all."""

if TYPE_CHECKING:
    Send = Callable[..., None]
    """``send(message, *descriptors)``: how a child tells what it found."""


class Timer:
    """Something to be done at a time, unless it is cancelled."""

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Do nothing when the time comes."""
        self.callback = None


class Loop:
    """Calls back when a descriptor is ready or a time has come, in one thread, which makes forking safe."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._ended = False
        self.children: set[Child] = set()
        """Those that run, the given-up ones too."""

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the events whenever there are some, until `unwatch`."""
        if descriptor in self._ready:
            self._poll.modify(descriptor, events)
        else:
            self._poll.register(descriptor, events)
        self._ready[descriptor] = callback

    def unwatch(self, descriptor: int) -> None:
        """Forget the descriptor; before it is closed."""
        if self._ready.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(descriptor)

    def later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, after so many seconds of the monotonic clock."""
        timer = Timer(callback)
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), timer))
        return timer

    def end(self) -> None:
        """Let `run` return."""
        self._ended = True

    def run(self) -> None:
        """Go on until `end`."""
        while not self._ended:
            self.turn()

    def turn(self) -> None:
        """Wait for the next thing and do it."""
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        wait = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1.0
        for descriptor, events in self._poll.poll(wait):
            callback = self._ready.get(descriptor)
            if callback is not None:
                _call(callback, events)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            _, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                _call(timer.callback)


def _call(callback: Callable[..., object], *arguments: object) -> None:
    """Call back. A defect is told, and the agent goes on: the guest's mounts have nobody else."""
    try:
        callback(*arguments)
    except Exception as error:  # noqa: BLE001  see above
        _tell_defect(error)


class Child:
    """A child process that carries out `work` and tells what it finds.

    `on_message` gets each message with its descriptors; `on_end` is called once, when the child has said its last,
    be it that it ended or was killed. `give_up` kills it: if it hangs in the kernel, it stays, and `running` says so.
    """

    def __init__(
        self,
        loop: Loop,
        work: Callable[[Send], None],
        on_message: Callable[[Any, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._on_message = on_message
        self._on_end: Callable[[], None] | None = on_end
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.pid = os.fork()
            if self.pid == 0:
                _be_child(theirs, work)
        self._socket = ours
        self.running = True
        self.given_up = False
        loop.children.add(self)
        loop.watch(ours.fileno(), select.EPOLLIN, self._readable)

    def give_up(self) -> None:
        """Kill it and hear no more of it; `on_end` is not called."""
        self._on_end = None
        self.given_up = True
        if self.running:
            os.kill(self.pid, signal.SIGKILL)
            self._hang_up()

    def hear(self) -> None:
        """Take what it has said and was not taken yet."""
        while self._socket.fileno() >= 0 and select.select([self._socket], [], [], 0)[0]:
            self._readable(0)

    def _readable(self, _: int) -> None:
        try:
            data, ancillary, _, _ = self._socket.recvmsg(_LARGEST, socket.CMSG_SPACE(4 * 4))
        except OSError:
            data, ancillary = b"", []
        if not data:
            self._hang_up()
            on_end, self._on_end = self._on_end, None
            if on_end is not None:
                on_end()
            return
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors.frombytes(content[: len(content) - len(content) % 4])
        self._on_message(json.loads(data), list(descriptors))

    def _hang_up(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.unwatch(self._socket.fileno())
            self._socket.close()
        self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(self.pid, os.WNOHANG) == (0, 0):
                self._loop.later(_REAP_EVERY, self._reap)
                return
        self.running = False
        self._loop.children.discard(self)


def _tell_defect(error: BaseException) -> None:
    sys.stderr.write("".join(traceback.format_tb(error.__traceback__)))
    sys.stderr.write(printable(f"{type(error).__name__}: {error}") + "\n")  # one line, whatever name is in it


def _be_child(channel: socket.socket, work: Callable[[Send], None]) -> None:
    """Carry the work out and end. Nothing of the agent's stays open: a child that hangs must not hold its sockets."""
    status = 1
    try:
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a mount must not come after its agent's end
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        keep = channel.fileno()
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        os.closerange(3, keep)
        os.closerange(keep + 1, highest + 1)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)

        def send(message: object, *descriptors: int) -> None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
            channel.sendmsg([json.dumps(message).encode()], rights)

        if os.getppid() == parent:
            work(send)
        status = 0
    except BaseException as error:  # noqa: BLE001  a child ends here, whatever it was, and never in the agent's own code
        _tell_defect(error)
    finally:
        sys.stderr.flush()
        os._exit(status)
