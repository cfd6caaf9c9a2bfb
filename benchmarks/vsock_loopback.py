"""What the file server's choices are worth on AF_VSOCK: ``python -m benchmarks.vsock_loopback [--kernel SERIES]``.

What lives here: a guest that is booted for it, and a session and a client in it that are joined by vsock loopback, TCP
and a unix socket in turns. What must not: the road from a guest to its host (``contrib/guest/try_vsock.py --measure``).

Client and session are two processes on the guest's one CPU, which is never idle meanwhile: so the rate of requests
tells what both ends cost together. Every choice is a connection of its own, and all are measured in turns; a figure is
the median of the ratios of the turns, with the least and the greatest. The file is in memory (tmpfs), the session is
not confined, and with an emulated CPU nothing but ratios means anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver.export import Export
from uvmshare.fileserver.handshake import Handshake
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.log import say
from uvmshare.fileserver.mount import outbox
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.fileserver.mount.splicing import Splicer
from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import HEADER_SIZE, IO_HEADER_SIZE, READ_HEADER_SIZE, GetattrMask, OpenFlag
from uvmshare.testing.client import NinePClient
from uvmshare.testing.guest_vm import GuestVM
from uvmshare.testing.kernel import find_kernel

if TYPE_CHECKING:
    from collections.abc import Callable

_KIB: Final = 1 << 10
_MSIZE: Final = 1 << 20
_LARGEST: Final = _MSIZE - IO_HEADER_SIZE
_SEND_BUFFER: Final = 4 << 20  # as mount processes ask for
_TURNS: Final = 4
_SECONDS: Final = 0.5
"""Of each case of each choice in each turn."""
_DEADLINE: Final = 1800.0
_ROOT: Final = Path(__file__).resolve().parent.parent
_BUFFER_SIZE, _BUFFER_MAX_SIZE = 0, 2  # linux/vm_sockets.h

_SIZES: Final = {
    "64 KiB": 64 * _KIB,
    "128 KiB less a header": 128 * _KIB - IO_HEADER_SIZE,  # what a guest with Linux's default msize asks for
    "256 KiB": 256 * _KIB,
    "1 MiB": _LARGEST,
}
READS: Final = {f"read of {words}": size for words, size in _SIZES.items()}
WRITES: Final = {f"write of {words}": size for words, size in _SIZES.items()}
SMALL_READS: Final = "reads of 4 KiB, 64 at once"
GETATTRS: Final = ("getattr", "getattrs, 64 at once")
ALL: Final = (*GETATTRS, SMALL_READS, *READS, *WRITES)


@dataclass(frozen=True, slots=True)
class Choice:
    """A connection, and what its session does on it. None stands for what the server does there."""

    name: str
    transport: str = "vsock"
    cases: tuple[str, ...] = ALL
    sendfile: bool | None = None
    splice: bool | None = None
    piece: int | None = None
    """Bytes of a large read that are copied at a time."""
    full: int | None = None
    """Bytes of small replies that are sent together."""
    buffer: int | None = None
    """Bytes that either end has room for."""


CHOICES: Final = (
    Choice("vsock"),
    Choice("unix", "unix"),
    Choice("tcp", "tcp"),
    Choice("sendfile", cases=tuple(READS)[2:], sendfile=True),
    Choice("pieces of 64 KiB", cases=tuple(READS)[2:], piece=64 * _KIB),
    Choice("pieces of 256 KiB", cases=tuple(READS)[2:], piece=256 * _KIB),
    Choice("splice", cases=tuple(WRITES)[2:], splice=True),
    Choice("replies by 16 KiB", cases=(SMALL_READS,), full=16 * _KIB),
    Choice("replies by 256 KiB", cases=(SMALL_READS,), full=256 * _KIB),
    Choice("a buffer of 1 MiB at either end", cases=(SMALL_READS, *READS, *WRITES), buffer=_MSIZE),
)


def connect(choice: Choice) -> tuple[socket.socket, socket.socket]:
    """Return a session's and a client's socket."""
    if choice.transport == "unix":
        return socket.socketpair()
    if choice.transport == "tcp":
        listening = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listening.getsockname())
    else:
        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        client = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        if choice.buffer is not None:
            for end in (listening, client):  # who is accepted has the listener's
                end.setsockopt(socket.AF_VSOCK, _BUFFER_MAX_SIZE, choice.buffer)
                end.setsockopt(socket.AF_VSOCK, _BUFFER_SIZE, choice.buffer)
        listening.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        listening.listen()
        client.connect((1, listening.getsockname()[1]))  # VMADDR_CID_LOCAL
    session, _ = listening.accept()
    listening.close()
    if choice.transport == "tcp":
        for end in (session, client):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return session, client


def serve(connection: socket.socket, choice: Choice, directory: str) -> None:
    """Be the session of one connection, to its end."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if choice.piece is not None:
        outbox._PIECE = choice.piece  # type: ignore[misc]  # noqa: SLF001  in this process alone
    if choice.full is not None:
        outbox._FULL = choice.full  # type: ignore[misc]  # noqa: SLF001  likewise
    share = Plan9Share(name="0", access_name="0", path=directory, flags=int(Plan9ShareFlags.LINUX_METADATA))
    handshake, attach = Handshake(_MSIZE), None
    while attach is None:
        replies, attach = handshake.feed(connection.recv(8192))
        connection.sendall(replies)
    session = Serving(connection, Export.open(share, "none"), Limits(), say)
    if choice.sendfile is not None:
        session.outbox._uses_sendfile = choice.sendfile  # noqa: SLF001  what is measured
    if choice.splice is not None:
        session.splicer = Splicer(connection.fileno()) if choice.splice else None
    session.run((attach.tag, attach.message), attach.msize, attach.rest)


class Guest:
    """The client's end of one choice: a request, or several at once, whose replies have a known size."""

    def __init__(self, choice: Choice, directory: str) -> None:
        session, client = connect(choice)
        self.choice = choice
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                client.close()
                serve(session, choice, directory)
                status = 0
            finally:
                os._exit(status)
        session.close()
        self._client = NinePClient.connect(client, "0", msize=_MSIZE)
        self._file = self._client.open("f", OpenFlag.RDWR)
        self._into = memoryview(bytearray(2 * _MSIZE))
        self._socket = client
        client.settimeout(None)

    def case(self, name: str) -> Callable[[], None]:
        """Return what does it once."""
        file = self._file
        if name in READS:
            size = READS[name]
            return self._exchange([m.Tread(file, 0, size)], READ_HEADER_SIZE + size)
        if name in WRITES:
            return self._exchange([m.Twrite(file, 0, bytes(WRITES[name]))], HEADER_SIZE + 4)
        if name == SMALL_READS:
            return self._exchange([m.Tread(file, n << 12, 4 * _KIB) for n in range(64)], READ_HEADER_SIZE + 4 * _KIB)
        count = 1 if name == GETATTRS[0] else 64
        size = len(self._client.getattr(file).encode(0))
        return self._exchange([m.Tgetattr(file, GetattrMask.BASIC)] * count, size)

    def _exchange(self, requests: list[m.Message], reply_size: int) -> Callable[[], None]:
        frames = b"".join(request.encode(tag) for tag, request in enumerate(requests))
        due = reply_size * len(requests)
        into, connected, wanted = self._into, self._socket, requests[0].type + 1

        def once() -> None:
            connected.sendall(frames)
            got = 0
            while got < due:
                got += connected.recv_into(into[got:])
            if got != due or into[4] != wanted:
                msg = f"{self.choice.name}: another reply came than the one of type {wanted}, {due} bytes long"
                raise RuntimeError(msg)

        return once

    def close(self) -> None:
        """End the session: by a shutdown, since the sessions that were forked later have this socket, too."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._client.close()
        os.waitpid(self.pid, 0)


def rate(once: Callable[[], None]) -> float:
    """Return how often a second it is done."""
    once()
    count, begun = 0, time.monotonic()
    while (passed := time.monotonic() - begun) < _SECONDS:
        once()
        count += 1
    return count / passed


def measure_here(directory: str) -> dict[str, dict[str, list[float]]]:
    """Measure everything in this guest; return the rates of each choice by case, one a turn."""
    (Path(directory) / "f").write_bytes(bytes(_MSIZE))
    guests = [Guest(choice, directory) for choice in CHOICES]
    found: dict[str, dict[str, list[float]]] = {choice.name: {} for choice in CHOICES}
    for turn in range(_TURNS):
        for case in ALL:
            for guest in guests if turn % 2 else reversed(guests):
                if case in guest.choice.cases:
                    found[guest.choice.name].setdefault(case, []).append(rate(guest.case(case)))
    for guest in guests:
        guest.close()
    return found


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Say what one is of the other: the median of the turns, the least and the greatest."""
    each = [one / other for one, other in zip(ours, theirs, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def table(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """Return two tables: vsock beside the others, and each choice on vsock beside what the server does there."""
    vsock = found["vsock"]
    lines = ["| operation | to a unix socket | to TCP |", "| --- | --- | --- |"]
    lines += [
        f"| {case} | {ratio(vsock[case], found['unix'][case])} | {ratio(vsock[case], found['tcp'][case])} |"
        for case in ALL
    ]
    lines += ["", "| on vsock | operation | to what the server does |", "| --- | --- | --- |"]
    for choice in CHOICES[3:]:
        lines += [
            f"| {choice.name} | {case} | {ratio(found[choice.name][case], vsock[case])} |" for case in choice.cases
        ]
    return lines


async def in_guest(series: str | None) -> tuple[str, dict[str, dict[str, list[float]]]]:
    """Boot a guest with this host's programs and measure in it; return its kernel, what runs it, and the rates."""
    kernel = find_kernel(series)
    async with await GuestVM.start(root="host", kernel=kernel, modules=("vsock_loopback",), memory_mib=768) as guest:
        program = f"{sys.executable} -m benchmarks.vsock_loopback --here /run/measured"
        told = await guest.check(f"cd {_ROOT} && mkdir /run/measured && {program}", timeout=_DEADLINE)
        return f"Linux {kernel.release}, {guest.accelerator}", json.loads(told.splitlines()[-1])


def where(guest: str, before: float) -> str:
    """Say what the figures are from; `before` was the host's load average."""
    with open("/proc/cpuinfo", encoding="ascii") as file:
        cpu = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    python = f"Python {platform.python_version()} ({', '.join(platform.python_build())}, {platform.python_compiler()})"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    load = f"load average of the host {before:.1f} before and {os.getloadavg()[0]:.1f} after"
    return f"{day}, {guest} on {os.cpu_count()} x {cpu}, {python}, {load}; {_TURNS} turns of {_SECONDS} s"


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", metavar="SERIES", help="of the guest, such as 6.12; the newest found unless given")
    parser.add_argument("--here", metavar="DIRECTORY", help="measure here, and write the rates as JSON")
    options = parser.parse_args()
    if options.here:
        sys.stdout.write(json.dumps(measure_here(options.here)) + "\n")
    else:
        before = os.getloadavg()[0]
        guest, found = asyncio.run(in_guest(options.kernel))
        sys.stdout.write("\n".join([where(guest, before), "", *table(found)]) + "\n")


if __name__ == "__main__":
    main()
