"""A guest's vsock driver and QEMU's half of vhost-user, as far as tests of the back end need them.

What lives here: `Driver`, which shares memory with a device in the same process and takes turns with it, so that each
step is seen and nothing happens in between. What must not: what is tested.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING

from uvmshare.testing.vhost_user import VhostRequest
from uvmshare.testing.vsock_streams import HEADER, STREAM, Op, Packet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from uvmshare.testing.vsock import VsockDevice

GUEST = 3
HOST = 2
SIZE = 8
"""Entries of each ring: few, so that it wraps soon."""
GUEST_BASE = 0x10_0000
"""Where the guest has its memory; and the front end:"""
USER_BASE = 0x7F00_0000_0000
MEMORY = 1 << 20
BUFFERS = 0x2_0000
"""Where buffers begin; each queue's slot N has its own."""
BUFFER_SIZE = 4096
TO_GUEST, FROM_GUEST = 0, 1


class Ring:
    """The driver's half of one queue; chains have a buffer of their slot's, or what a test makes of them."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self.memory = memory
        self.index = index
        self.descriptors = 0x1000 + index * 0x4000
        self.available = self.descriptors + 0x1000
        self.used = self.descriptors + 0x2000
        self.put = 0
        self.seen = 0
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)

    def buffer(self, slot: int) -> int:
        """Return where a slot's buffer is in the memory."""
        return BUFFERS + (self.index * SIZE + slot) * BUFFER_SIZE

    def describe(self, slot: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.memory, self.descriptors + 16 * slot, address, length, flags, following)

    def offer(self, head: int) -> None:
        """Put a chain where the device takes it, without a kick."""
        struct.pack_into("<H", self.memory, self.available + 4 + 2 * (self.put % SIZE), head)
        self.put = (self.put + 1) & 0xFFFF
        struct.pack_into("<H", self.memory, self.available + 2, self.put)

    def finished(self) -> Iterator[tuple[int, int]]:
        """Give the chains that came back since last asked, and how much was written to each."""
        (index,) = struct.unpack_from("<H", self.memory, self.used + 2)
        while self.seen != index:
            yield struct.unpack_from("<II", self.memory, self.used + 4 + 8 * (self.seen % SIZE))
            self.seen = (self.seen + 1) & 0xFFFF

    def close(self) -> None:
        os.close(self.kick)
        os.close(self.call)


class Driver:
    """A guest with a vsock driver that does what tests tell it."""

    def __init__(self, device: VsockDevice, *, first_index: int = 0) -> None:
        """Set the device up as QEMU does. `first_index` is where the rings' indices begin."""
        self.device = device
        self.control = device.qemu_end
        descriptor = os.memfd_create("guest")
        os.ftruncate(descriptor, MEMORY)
        self.memory = mmap.mmap(descriptor, MEMORY)
        self.rings = [Ring(self.memory, index) for index in (TO_GUEST, FROM_GUEST)]
        self.received: list[tuple[Packet, bytes]] = []
        self.forwarded = 0
        """What the guest says that it has taken of its connection."""
        self.room = 1 << 18

        assert self.ask(VhostRequest.GET_FEATURES) == struct.pack("<Q", 1 << 32 | 1 << 30)
        (self.protocol_features,) = struct.unpack("<Q", self.ask(VhostRequest.GET_PROTOCOL_FEATURES))
        self.tell(VhostRequest.SET_PROTOCOL_FEATURES, struct.pack("<Q", self.protocol_features))
        self.tell(VhostRequest.SET_OWNER)
        self.tell(VhostRequest.SET_FEATURES, struct.pack("<Q", 1 << 32 | 1 << 30))
        table = struct.pack("<IIQQQQ", 1, 0, GUEST_BASE, MEMORY, USER_BASE, 0)
        self.tell(VhostRequest.SET_MEM_TABLE, table, descriptor)
        os.close(descriptor)
        for ring in self.rings:
            ring.put = ring.seen = first_index
            for at in (ring.available, ring.used):
                struct.pack_into("<H", self.memory, at + 2, first_index)
            self.tell(VhostRequest.SET_VRING_CALL, struct.pack("<Q", ring.index), ring.call)
            self.tell(VhostRequest.SET_VRING_NUM, struct.pack("<II", ring.index, SIZE))
            self.tell(VhostRequest.SET_VRING_BASE, struct.pack("<II", ring.index, first_index))
            addresses = (USER_BASE + ring.descriptors, USER_BASE + ring.used, USER_BASE + ring.available, 0)
            self.tell(VhostRequest.SET_VRING_ADDR, struct.pack("<IIQQQQ", ring.index, 0, *addresses))
            self.tell(VhostRequest.SET_VRING_KICK, struct.pack("<Q", ring.index), ring.kick)
            self.tell(VhostRequest.SET_VRING_ENABLE, struct.pack("<II", ring.index, 1))
        for slot in range(SIZE):
            self.rings[TO_GUEST].describe(slot, GUEST_BASE + self.rings[TO_GUEST].buffer(slot), BUFFER_SIZE, flags=2)
            self.rings[TO_GUEST].offer(slot)

    def close(self) -> None:
        for ring in self.rings:
            ring.close()
        self.memory.close()

    # QEMU

    def tell(self, number: int, payload: bytes = b"", *descriptors: int, flags: int = 1) -> None:
        message = struct.pack("<III", number, flags, len(payload)) + payload
        socket.send_fds(self.control, [message], [*descriptors])
        self.device.turn()

    def ask(self, number: int, payload: bytes = b"", *, flags: int = 1) -> bytes:
        self.tell(number, payload, flags=flags)
        answered, reply_flags, size = struct.unpack("<III", self.control.recv(12))
        assert (answered, reply_flags) == (number, 5)
        return self.control.recv(size) if size else b""

    # The guest

    def turn(self) -> list[tuple[Packet, bytes]]:
        """Let the device do what it can until nothing more comes; return the packets that came since last asked."""
        while True:
            for ring in self.rings:
                os.eventfd_write(ring.kick, 1)
            for _ in range(3):  # a new connection is accepted in one, heard in the next, and has its say in the third
                self.device.turn()
            if not self._collect():
                break
        came, self.received = self.received, []
        return came

    def _collect(self) -> bool:
        ring = self.rings[TO_GUEST]
        any_came = False
        for head, written in ring.finished():
            any_came = True
            at = ring.buffer(head)
            packet = Packet.decode(self.memory[at : at + HEADER.size])
            data = self.memory[at + HEADER.size : at + written]
            assert len(data) == packet.length
            self.received.append((packet, data))
            ring.offer(head)
        return any_came

    def send(self, op: int, data: bytes = b"", *, host: int, guest: int, flags: int = 0, **other: int) -> None:
        """Send a packet; `other` are fields that are to be wrong."""
        fields = {
            "source_cid": GUEST,
            "target_cid": HOST,
            "source_port": guest,
            "target_port": host,
            "length": len(data),
            "kind": STREAM,
            "op": op,
            "flags": flags,
            "buffer": self.room,
            "forwarded": self.forwarded,
        }
        self.send_raw(Packet(**{**fields, **other}).encode() + data)

    def send_raw(self, data: bytes, *cuts: int) -> None:
        """Send bytes as one chain, whose buffers end at the cuts, and wait until the device has taken it."""
        ring = self.rings[FROM_GUEST]
        at = ring.buffer(0)
        self.memory[at : at + len(data)] = data
        ends = [*cuts, len(data)]
        start = 0
        for slot, end in enumerate(ends):
            more = slot + 1 < len(ends)
            ring.describe(slot, GUEST_BASE + at + start, end - start, flags=int(more), following=slot + 1)
            start = end
        ring.offer(0)
        os.eventfd_write(ring.kick, 1)
        self.device.turn()
        self._collect()

    def taken(self) -> list[tuple[int, int]]:
        """Return the chains of the guest's that came back."""
        return list(self.rings[FROM_GUEST].finished())

    def interrupts(self, ring: int) -> int:
        with contextlib.suppress(BlockingIOError):
            return os.eventfd_read(self.rings[ring].call)
        return 0

    def ops(self) -> list[Op]:
        """Return what the packets were for that came since last asked."""
        return [Op(packet.op) for packet, _ in self.turn()]
