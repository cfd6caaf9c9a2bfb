"""Commands that hold something until they are told to end.

What lives here: the signals that end such a command, and the lines it prints for programs to read.
What must not: what is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.cli.output import say_json

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from types import FrameType

    from uvmshare import AddOptions, Manager

__all__ = ["INTERRUPTED", "Ready", "Served", "print_line", "serve_shares", "until_signalled"]


INTERRUPTED: Final = 130
"""The exit status after SIGINT, as every command's help says."""


class Served(msgspec.Struct, frozen=True, omit_defaults=True):
    """One share that a guest can mount now: its name, the host's path, and what may be reached in it."""

    share: str
    path: str
    read_only: bool
    only: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    map_owner: str | None = None


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """Every share is being served; where guests connect, if this command listens itself."""

    ready: bool
    addresses: tuple[str, ...] = ()


def print_line(line: Served | Ready) -> None:
    """Print one line of JSON and flush it: the reader is a program that waits for it."""
    say_json(line)


async def serve_shares(manager: Manager, shares: Sequence[AddOptions], *, owner: str | None = None) -> None:
    """Add the shares in their order and print a line for each; the first that fails raises.

    Those before it stay: closing the manager removes them. What `owner` holds from an earlier time and is not
    among them is removed at the end.
    """
    names = set()
    for options in shares:
        name = await manager.add(options, owner=owner)
        names.add(name)
        what = options.allowed_names, options.hide, options.map_owner
        print_line(Served(name, options.host_path, options.read_only, *what))
    for share in manager.shares():
        if owner is not None and owner in share.owners and share.name not in names:
            await manager.remove(share.name, owner=owner)


def until_signalled(serving: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine until it ends or SIGINT, SIGTERM or SIGHUP comes; then it is cancelled and cleans up.

    Returns when it has cleaned up after SIGTERM or SIGHUP, which ask for its end, and raises `SystemExit` with the
    status of an interrupted command after SIGINT; raises what it raises. A second signal meanwhile acts as if nobody
    had asked for it: the process ends and leaves behind what was not cleaned up yet.
    """
    if asyncio.run(_until_signalled(serving)) == signal.SIGINT:
        sys.exit(INTERRUPTED)


async def _until_signalled(serving: Coroutine[Any, Any, None]) -> int | None:
    """Return the signal that came, or None."""
    loop = asyncio.get_running_loop()
    signalled: asyncio.Future[int] = loop.create_future()
    before = {number: signal.getsignal(number) for number in _signals()}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int) -> None:
        restore()
        if not signalled.done():
            signalled.set_result(number)

    def on_signal(number: int, frame: FrameType | None) -> None:
        del frame
        loop.call_soon_threadsafe(note, number)

    with _woken_by_signals(loop):
        for number in before:
            signal.signal(number, on_signal)
        try:
            task = asyncio.create_task(serving)
            ends: tuple[asyncio.Future[Any], ...] = (task, signalled)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if signalled.done():
                task.cancel()
                await asyncio.wait({task})
            if not task.cancelled():
                task.result()
            return signalled.result() if signalled.done() else None
        finally:
            restore()


@contextlib.contextmanager
def _woken_by_signals(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have every signal end the loop's wait, also one that comes just before it: epoll_wait(2) would not see that.

    On Windows asyncio does so itself.
    """
    if sys.platform == "win32":
        yield
        return
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)  # noqa: FBT003  it takes no keyword
        theirs.setblocking(False)  # noqa: FBT003  as above
        loop.add_reader(ours, ours.recv, 4096)
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            loop.remove_reader(ours)


def _signals() -> list[signal.Signals]:
    numbers = [signal.SIGINT, signal.SIGTERM]
    # nohup says that the terminal's end is not ours.
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers
