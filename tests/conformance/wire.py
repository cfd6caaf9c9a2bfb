"""What a guest's kernel really sends: a relay between it and the file server, which writes the messages down.

What lives here: the relay. What must not: what is to be seen on it (the tests say).
"""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from uvmshare.ninep import messages as m
from uvmshare.ninep.framing import FrameReader

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 1 << 20


class Wire:
    """The requests of one mount, in their order. `port` is what the guest dials."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._requests: list[m.Message] = []
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def taken(self) -> list[m.Message]:
        """Return what came since the last time. What the guest waited for the answer of has come."""
        with self._lock:
            requests, self._requests = self._requests, []
        return requests

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for connected in self._open:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for connected in self._open:
            connected.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                guest, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                self._open += (guest, server)
                for pump in (
                    threading.Thread(target=self._requests_of, args=(guest, server)),
                    threading.Thread(target=_pass_on, args=(server, guest)),
                ):
                    self._threads.append(pump)
                    pump.start()

    def _requests_of(self, guest: socket.socket, server: socket.socket) -> None:
        reader = FrameReader(_LARGEST)
        with suppress(OSError):
            while data := guest.recv(1 << 18):
                reader.feed(data)
                with self._lock:  # before they are passed on: nothing is answered that was not written down
                    self._requests += [m.decode(frame)[1] for frame in reader.messages()]
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)


def _pass_on(server: socket.socket, guest: socket.socket) -> None:
    with suppress(OSError):
        while data := server.recv(1 << 18):
            guest.sendall(data)
        guest.shutdown(socket.SHUT_WR)


@contextmanager
def wire(server: int) -> Iterator[Wire]:
    """Relay to the file server's port until the block is left."""
    made = Wire(server)
    try:
        yield made
    finally:
        made.close()
