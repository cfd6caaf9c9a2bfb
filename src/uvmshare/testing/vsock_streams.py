"""Packets of virtio-vsock, and one connection between a guest and a unix socket on the host.

What lives here: `Packet`, `Flavour`, and `VsockStream`: its state, its credit, what it has to tell the guest. What must
not: virtqueues (`uvmshare.testing.vhost_user`), how connections begin on the host (`uvmshare.testing.vsock`).

Two monitors have this device with unix sockets on the host, and they differ:

===================  ==========================================  ==========================================
..                   Firecracker                                 Cloud Hypervisor
===================  ==========================================  ==========================================
``CONNECT PORT``     whole when it is first read, or the host's  may come in pieces
                     connection is closed
the host shuts       both directions are shut: what the guest    the guest is told that no more comes, and may
its sending down     still sends is dropped                      go on sending
the guest shuts      the host is not told                        the host reads the end of the stream
its sending down
===================  ==========================================  ==========================================

Sources: "Socket Device" in the Virtual I/O Device (VIRTIO) specification 1.2; Firecracker's
``devices/virtio/vsock/{csm,unix}`` and Cloud Hypervisor's ``virtio-devices/src/vsock/{csm,unix}``, as of 2026.
"""

from __future__ import annotations

import enum
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from uvmshare.testing.vhost_user import Chain

__all__ = ["BUFFER", "Flavour", "FlavourName", "Key", "Op", "Overdrawn", "Packet", "VsockStats", "VsockStream"]

BUFFER: Final = 64 * 1024
"""Bytes that the guest may send before the host's program has taken them: both monitors have this many."""

_TELL_AT: Final = BUFFER - 4 * 1024
"""Bytes taken that the guest does not know of, from which on it is told; both monitors again."""

HOST_CID: Final = 2
SHUT_RECEIVING: Final = 1
SHUT_SENDING: Final = 2
SHUT_BOTH: Final = SHUT_RECEIVING | SHUT_SENDING
STREAM: Final = 1
_WRAP: Final = 0xFFFFFFFF
"""Counters are 32 bits wide and wrap."""


FlavourName = Literal["firecracker", "cloud-hypervisor"]


class Op(enum.IntEnum):
    """What a packet is for."""

    REQUEST = 1
    RESPONSE = 2
    RST = 3
    SHUTDOWN = 4
    RW = 5
    CREDIT_UPDATE = 6
    CREDIT_REQUEST = 7


class Packet(NamedTuple):
    """The header of a packet: ``struct virtio_vsock_hdr``."""

    source_cid: int
    target_cid: int
    source_port: int
    target_port: int
    length: int
    kind: int
    op: int
    flags: int
    buffer: int
    forwarded: int

    def encode(self) -> bytes:
        """Return it as the guest's driver reads it."""
        return HEADER.pack(*self)

    @classmethod
    def decode(cls, data: bytes) -> Packet:
        """Read what the guest's driver wrote: `HEADER` bytes."""
        return cls._make(HEADER.unpack(data))


HEADER: Final = struct.Struct("<QQIIIHHIII")


class Key(NamedTuple):
    """Which connection: its port on the host's side and in the guest."""

    host: int
    guest: int


@dataclass(frozen=True, slots=True)
class Flavour:
    """What a monitor does that another does not."""

    name: FlavourName
    connect_in_pieces: bool
    half_closes: bool


FLAVOURS: Final[dict[FlavourName, Flavour]] = {
    "firecracker": Flavour("firecracker", connect_in_pieces=False, half_closes=False),
    "cloud-hypervisor": Flavour("cloud-hypervisor", connect_in_pieces=True, half_closes=True),
}


class Overdrawn(Exception):
    """The guest sent more than it had credit for."""


class VsockStream:
    """One connection. It is `open` once both ends agreed; `owed` is what the guest is to be told next."""

    def __init__(
        self, key: Key, connected: socket.socket, cid: int, flavour: Flavour, *, dialled_by_host: bool
    ) -> None:
        """Take `connected`, a non-blocking unix socket; `cid` is the guest's."""
        self.key = key
        self.socket = connected
        self.open = not dialled_by_host
        self.readable = False
        """The host's socket may have something to read; it said so, and nothing was found missing since."""
        self.at_end = False
        """The host's program sends no more than what there is to read."""
        self.hung_up = False
        """It does not read either: it has closed its end."""
        self.ended = False
        """The host's program sends no more, and the guest has been told or is about to be."""
        self.shut_by_guest = 0
        self.owed: list[tuple[Op, int]] = [(Op.REQUEST if dialled_by_host else Op.RESPONSE, 0)]
        self.unsent = bytearray()
        """What the guest has sent and the host's program does not take yet."""
        self._flavour = flavour
        self._cid = cid
        self._deaf = False
        """What the guest sends is dropped."""
        self._sent = 0
        self._guest_buffer = 0
        self._guest_forwarded = 0
        self._forwarded = 0
        self._told = 0
        self._asked = False

    def credit(self) -> int:
        """Return how many bytes the guest has room for. What a guest makes of its own counters harms only itself."""
        return max(0, self._guest_buffer - ((self._sent - self._guest_forwarded) & _WRAP))

    @property
    def has_data(self) -> bool:
        """Whether the host's program may have sent something, or have come to its end."""
        return self.open and self.readable and not self.ended

    @property
    def has_turn(self) -> bool:
        """Whether there is something to tell the guest now; one without room is asked for some once."""
        return bool(self.owed) or (self.has_data and (self.credit() > 0 or not self._asked))

    def ask_for_credit(self) -> bytes:
        """Return the packet that asks the guest how much room it has."""
        self._asked = True
        return self.header(Op.CREDIT_REQUEST)

    def note(self, packet: Packet) -> None:
        """Take the guest's account of its buffer, which every packet has."""
        self._guest_buffer, self._guest_forwarded = packet.buffer, packet.forwarded
        self._asked = False

    def header(self, op: Op, *, length: int = 0, flags: int = 0) -> bytes:
        """Return the header of a packet to the guest, which tells it of what was forwarded, too."""
        self._sent = (self._sent + length) & _WRAP
        self._told = self._forwarded
        fields = (
            HOST_CID,
            self._cid,
            self.key.host,
            self.key.guest,
            length,
            STREAM,
            op,
            flags,
            BUFFER,
            self._forwarded,
        )
        return HEADER.pack(*fields)

    def read_into(self, views: Sequence[memoryview]) -> int | None:
        """Read from the host's program into the guest's memory. Returns None when there is nothing now, 0 at the end.

        Raises `OSError` when the connection is broken.
        """
        try:
            count, _, _, _ = self.socket.recvmsg_into(views)
        except BlockingIOError:
            self.readable = False
            return None
        if count < sum(map(len, views)) and not self.at_end:
            self.readable = False  # whatever comes now is told of
        return count

    def forward(self, views: Sequence[memoryview], length: int) -> None:
        """Send the guest's bytes on, and keep what the host's program does not take yet.

        Raises `OSError` when the host's connection is broken, `Overdrawn` when the guest had no credit for them.
        """
        if self._deaf or self.shut_by_guest & SHUT_SENDING:
            return
        sent = 0
        if not self.unsent:
            try:
                sent = self.socket.sendmsg(views, (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                sent = 0
        if sent < length:
            if len(self.unsent) + length - sent > BUFFER:
                raise Overdrawn
            self.unsent += b"".join(views)[sent:]
        self._forward(sent)

    def flush(self) -> None:
        """Send what was kept. Raises `OSError` when the host's connection is broken."""
        while self.unsent:
            try:
                sent = self.socket.send(self.unsent, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            del self.unsent[:sent]
            self._forward(sent)
        self._after_unsent()

    def _forward(self, count: int) -> None:
        self._forwarded = (self._forwarded + count) & _WRAP
        if (self._forwarded - self._told) & _WRAP > _TELL_AT and (Op.CREDIT_UPDATE, 0) not in self.owed:
            self.owed.append((Op.CREDIT_UPDATE, 0))

    def hang_up(self) -> None:
        """Note that the host's program has closed its end; where only one direction was shut, the guest hears again."""
        self.hung_up = self.at_end = self.readable = True
        if not self._deaf:
            self.ended = False

    def end_by_host(self) -> None:
        """Have the guest told that the host's program sends no more."""
        self.ended = True
        self.readable = False
        if self._flavour.half_closes and not self.hung_up:
            flags = SHUT_SENDING
        else:
            flags, self._deaf = SHUT_BOTH, True
        self.owed.append((Op.SHUTDOWN, flags))
        if self._flavour.half_closes and self.shut_by_guest & SHUT_SENDING:
            self._after_unsent()

    def shut(self, flags: int) -> None:
        """Take the guest's word that it receives or sends no more."""
        self.shut_by_guest |= flags & SHUT_BOTH
        self._after_unsent()

    def _after_unsent(self) -> None:
        """Do what had to wait until the host's program took all that the guest had sent."""
        if self.unsent:
            return
        done = SHUT_BOTH if not (self._flavour.half_closes and self.ended) else SHUT_SENDING
        if self.shut_by_guest & done == done:
            self.owed = [(Op.RST, 0)]
        elif self.shut_by_guest & SHUT_SENDING and self._flavour.half_closes:
            with suppress(OSError):  # it is shut already, or broken, which reading tells
                self.socket.shutdown(socket.SHUT_WR)


@dataclass(slots=True)
class VsockStats:
    """What a device has done since it was made."""

    from_guest: int = 0
    """Packets."""
    to_guest: int = 0
    bytes_from_guest: int = 0
    bytes_to_guest: int = 0
    dialled_by_guest: int = 0
    """Connections that were made; the same for the next."""
    dialled_by_host: int = 0
    refused: int = 0
    """Of either."""
    resets_to_guest: int = 0
    resets_from_guest: int = 0
    credit_requests: int = 0
    """The guest had no room, and was asked for some."""
    credit_updates: int = 0
    """Of the guest's."""
    overdrawn: int = 0
    """Connections that were ended because the guest sent more than there was room for."""
    malformed: int = 0
    """Chains and packets of the guest's that cannot be."""
    connections: int = 0
    """Now."""


def ask_for_port(line: bytes) -> int | None:
    """Return the port that ``CONNECT PORT`` asks for; None for what is no such line."""
    words = line.split()
    if len(words) != 2 or not line.endswith(b"\n") or words[0].lower() != b"connect" or not words[1].isdigit():
        return None
    port = int(words[1])
    return port if port < 1 << 32 else None


def is_scattered(chain: Chain) -> bool:
    """Whether the header is not in the first buffer as a whole."""
    return not chain.readable or len(chain.readable[0]) < HEADER.size


def part(views: list[memoryview], start: int, length: int) -> Iterator[memoryview]:
    """Give the buffers of a part of what several hold together."""
    for view in views:
        if start < len(view) and length > 0:
            piece = view[start : start + length]
            length -= len(piece)
            yield piece
        start = max(0, start - len(view))
