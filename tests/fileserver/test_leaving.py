"""What a mount process tells its guest last: between two replies, and the guest takes it before the connection ends."""

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest
from tests.processes import DEADLINE

from uvmshare.fileserver import leaving
from uvmshare.fileserver.mount.outbox import Outbox
from uvmshare.fileserver.mount.waiting import untaken
from uvmshare.ninep import messages
from uvmshare.ninep.constants import NOTAG

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

LAST_WORD = messages.Rlerror(errno.EIO).encode(NOTAG)
REPLY = messages.Rread(bytes(1000)).encode(1)


class Ended(BaseException):
    """In place of the end of the process."""


def end() -> NoReturn:
    raise Ended


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
        return ours, theirs


@pytest.fixture(params=[unix_pair, tcp_pair], ids=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = request.param()
    with ours, theirs:
        theirs.settimeout(DEADLINE)
        yield ours, theirs


def fill(ours: socket.socket) -> int:
    """Send replies until there is no room for another; return how many bytes these were."""
    sent = 0
    ours.setblocking(False)
    try:
        while True:
            sent += ours.send(REPLY[sent % len(REPLY) :])
    except BlockingIOError:
        ours.setblocking(True)
    return sent


def test_the_last_word_waits_for_room_and_the_end_until_a_slow_guest_has_taken_it(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Firecracker and Cloud Hypervisor drop what they have not read when the guest sends to a connection that ended."""
    ours, theirs = pair
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
    monkeypatch.setattr("uvmshare.fileserver.mount.outbox.TELL_SECONDS", DEADLINE)
    taken = bytearray()
    monkeypatch.setattr("time.sleep", lambda _: taken.extend(theirs.recv(30_000)))
    filled = fill(ours)
    with pytest.raises(Ended):
        Outbox(ours).end(end)
    assert untaken(ours) == 0
    if ours.family == socket.AF_UNIX:
        assert len(taken) == filled + len(LAST_WORD), "the peer's program has it; over TCP its kernel"
    ours.close()
    while data := theirs.recv(1 << 20):
        taken += data
    assert bytes(taken[filled:]) == LAST_WORD


class Interrupted(socket.socket):
    """A socket on which a signal comes when half of a reply is sent."""

    on_signal: Callable[[], None]

    def sendall(self, data: object, flags: int = 0, /) -> None:
        assert isinstance(data, bytes)
        half = len(data) // 2
        super().sendall(data[:half], flags)
        self.on_signal()
        super().sendall(data[half:], flags)


def by_the_loop(outbox: Outbox, reply: bytes) -> None:
    outbox.reply(reply)
    outbox.flush()


@pytest.mark.parametrize("send", [by_the_loop, Outbox.send])
def test_a_reply_under_way_is_sent_whole_before_the_last_word(
    send: Callable[[Outbox, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when so much waits for the guest that the socket is not called writable (unix_writable(), a quarter)."""
    plain, theirs = socket.socketpair()
    with Interrupted(fileno=plain.detach()) as ours, theirs:
        reply = messages.Rread(bytes(ours.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) * 2 // 3)).encode(1)
        outbox = Outbox(ours)
        ours.on_signal = lambda: outbox.end(end)
        monkeypatch.setattr("uvmshare.fileserver.mount.outbox.TELL_SECONDS", DEADLINE)
        taken = bytearray()
        monkeypatch.setattr("time.sleep", lambda _: taken.extend(theirs.recv(1 << 20)))
        with pytest.raises(Ended):
            send(outbox, reply)
        assert taken == reply + LAST_WORD


def test_a_guest_that_takes_nothing_is_waited_for_a_moment_and_one_that_is_slow_for_as_long_as_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert leaving.TELL_SECONDS < leaving.LEAVE_SECONDS, "what a mount process does last has some time, too"
    for takes, waited in ((0, leaving.STALL_SECONDS), (1, leaving.TELL_SECONDS)):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            fill(ours)
            clock = [0.0]

            def as_time_passes(
                _: float, clock: list[float] = clock, takes: int = takes, theirs: socket.socket = theirs
            ) -> None:
                clock[0] += leaving.STALL_SECONDS / 4
                if takes:
                    theirs.recv(len(REPLY))

            monkeypatch.setattr("time.monotonic", lambda clock=clock: clock[0])
            monkeypatch.setattr("time.sleep", as_time_passes)
            with pytest.raises(Ended):
                Outbox(ours).end(end)
            assert waited <= clock[0] < waited + leaving.STALL_SECONDS


def test_a_guest_that_is_gone_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    with pytest.raises(Ended):
        Outbox(ours).end(end)
