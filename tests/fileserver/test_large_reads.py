"""Large reads leave with sendfile on one kind of socket and are copied on the other: the guest sees no difference."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from uvmshare.fileserver.mount.files.openfile import OpenFile
from uvmshare.fileserver.mount.outbox import Outbox
from uvmshare.ninep import messages
from uvmshare.ninep.framing import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZE = 700_001  # past the count from which a read is large, and no multiple of anything


def unix_pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        theirs = socket.create_connection(listening.getsockname())
        ours, _ = listening.accept()
    return ours, theirs


class Guest(threading.Thread):
    """Takes one message."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection
        self.tag = -1
        self.message: messages.Message | None = None

    def run(self) -> None:
        reader = FrameReader(1 << 20)
        while data := self._connection.recv(65536):
            reader.feed(data)
            for frame in reader.messages():
                self.tag, self.message = messages.decode(frame)
                return


@pytest.mark.parametrize("pair", [unix_pair, tcp_pair])
@pytest.mark.parametrize("offset", [0, 4097])
def test_a_large_read_carries_the_files_bytes(
    pair: Callable[[], tuple[socket.socket, socket.socket]], offset: int, tmp_path: Path
) -> None:
    content = os.urandom(SIZE + offset)
    path = tmp_path / "file"
    path.write_bytes(content)
    ours, theirs = pair()
    with ours, theirs:
        guest = Guest(theirs)
        guest.start()
        file = OpenFile(os.open(path, os.O_RDONLY), (0, 0))
        assert Outbox(ours).reply_read(7, file, offset, 1_000_000)
        guest.join()
    assert (guest.tag, guest.message) == (7, messages.Rread(content[offset:]))


@pytest.mark.parametrize("pair", [unix_pair, tcp_pair])
def test_zeros_stand_for_what_is_cut_off_after_the_count_was_announced(
    pair: Callable[[], tuple[socket.socket, socket.socket]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(SIZE)
    path = tmp_path / "file"
    path.write_bytes(content)
    ours, theirs = pair()
    with ours, theirs:
        guest = Guest(theirs)
        guest.start()
        file = OpenFile(os.open(path, os.O_RDONLY), (0, 0))
        outbox = Outbox(ours)
        transmit = outbox.transmit

        def cut_andtransmit(data: bytes | memoryview) -> None:
            monkeypatch.setattr(outbox, "transmit", transmit)
            os.truncate(path, 300_000)
            transmit(data)

        monkeypatch.setattr(outbox, "transmit", cut_andtransmit)  # the first thing sent is the count
        assert outbox.reply_read(7, file, 0, 1_000_000)
        guest.join()
    assert guest.message == messages.Rread(content[:300_000] + bytes(SIZE - 300_000))
