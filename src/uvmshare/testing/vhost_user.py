"""The back end's half of vhost-user: a virtio device outside of QEMU, in the guest's own memory.

What lives here: the messages on the control socket, the guest's memory, and split virtqueues. What must not: what the
device is for (`uvmshare.testing.vsock`).

QEMU, the front end, is trusted. The guest is not: it writes the rings and the descriptors, while they are read here.
So each number is read once, checked, and then used; what does not hold raises `MalformedChain` and costs the guest
that chain, or breaks the queue, which stays still until the device is reset.

Ring indices are read and written as aligned 16-bit words (``memoryview.cast("H")``), which CPython does with one
instruction. ``struct`` goes byte by byte and can see half of a change. On x86 stores become visible in their order, so
there are no barriers here; an interrupt is never left out, since that would need one.

Sources: QEMU's docs/interop/vhost-user.rst; "Split Virtqueues" in the Virtual I/O Device (VIRTIO) specification 1.2.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uvmshare.errors import UnsupportedPlatform

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Chain", "FrontEnd", "FrontEndError", "MalformedChain", "Memory", "Queue", "VhostRequest"]

VIRTIO_F_VERSION_1: Final = 1 << 32
_F_PROTOCOL_FEATURES: Final = 1 << 30
_PROTOCOL_F_REPLY_ACK: Final = 1 << 3
_PROTOCOL_F_CONFIG: Final = 1 << 9
"""Without it QEMU does not start a vhost-user-vsock device."""

_HEADER: Final = struct.Struct("<III")
_VERSION: Final = 1
_IS_REPLY: Final = 4
_NEED_REPLY: Final = 8
_MOST_PAYLOAD: Final = 4096
_MOST_DESCRIPTORS: Final = 8
"""Memory regions, which are what most descriptors come with (VHOST_MEMORY_BASELINE_NREGIONS)."""
_NO_DESCRIPTOR: Final = 1 << 8

_DESCRIPTOR: Final = struct.Struct("<QIHH")
_USED: Final = struct.Struct("<II")
_NEXT: Final = 1
_WRITE: Final = 2
_LARGEST_RING: Final = 32768
_LARGEST_CHAIN: Final = 1 << 20
"""Bytes; the packets of Linux's driver have 64 KiB and a header."""


class FrontEndError(Exception):
    """The front end said what this back end does not know, or hung up inside a message."""


class MalformedChain(Exception):
    """The guest made a chain of descriptors that cannot be. `head` is None when it cannot be given back either."""

    def __init__(self, head: int | None, why: str) -> None:
        super().__init__(why)
        self.head = head


class VhostRequest:
    """Numbers of the messages that are known here."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18
    GET_CONFIG = 24


@dataclass(frozen=True, slots=True)
class _Region:
    guest: int
    user: int
    size: int
    memory: memoryview


class Memory:
    """The guest's memory: regions that are mapped here."""

    def __init__(self) -> None:
        self._regions: list[_Region] = []

    def add(self, descriptor: int, *, guest: int, user: int, size: int, offset: int) -> None:
        """Map a region. `guest` and `user` are its addresses in the guest and in the front end."""
        mapped = mmap.mmap(descriptor, offset + size)
        self._regions.append(_Region(guest, user, size, memoryview(mapped)[offset : offset + size]))

    def clear(self) -> None:
        """Forget every region; it is unmapped once no chain has views of it any more."""
        self._regions.clear()

    def at_guest(self, address: int, length: int) -> memoryview:
        """Return so many bytes at an address of the guest's. Raises `LookupError` when they are not memory."""
        for region in self._regions:
            start = address - region.guest
            if start >= 0 and start + length <= region.size:
                return region.memory[start : start + length]
        msg = f"{length} bytes at {address:#x} are not the guest's memory"
        raise LookupError(msg)

    def at_user(self, address: int, length: int) -> memoryview:
        """Return so many bytes at an address of the front end's. Raises `LookupError`."""
        for region in self._regions:
            start = address - region.user
            if start >= 0 and start + length <= region.size:
                return region.memory[start : start + length]
        msg = f"{length} bytes at {address:#x} are not the guest's memory"
        raise LookupError(msg)


@dataclass(frozen=True, slots=True)
class Chain:
    """Buffers of the guest's: what it sent, then where it wants to have something put. `head` is for `Queue.give`."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Queue:
    """One split virtqueue. `broken` when the guest's index jumped: nothing is taken from it any more."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.size = 0
        self.next_available = 0
        self.enabled = True
        self.broken = False
        self.kick: int | None = None
        self.call: int | None = None
        self._descriptors: memoryview | None = None
        self._available: memoryview
        """``flags``, ``idx``, then the ring, as 16-bit words."""
        self._used: memoryview
        self._used_words: memoryview
        self._used_index = 0
        self._told = True

    @property
    def runs(self) -> bool:
        """Whether it has a ring and may be used."""
        return self.enabled and not self.broken and self.kick is not None and self._descriptors is not None

    def set_addresses(self, descriptors: int, used: int, available: int) -> None:
        """Say where the ring is, in the front end's addresses. Raises `FrontEndError`."""
        if not 0 < self.size <= _LARGEST_RING or self.size & (self.size - 1):
            msg = f"a ring of {self.size} entries"
            raise FrontEndError(msg)
        if descriptors % 16 or available % 2 or used % 4:
            msg = f"a ring that is not aligned: {descriptors:#x}, {available:#x}, {used:#x}"
            raise FrontEndError(msg)
        try:
            self._descriptors = self._memory.at_user(descriptors, 16 * self.size)
            self._available = self._memory.at_user(available, 4 + 2 * self.size).cast("H")
            self._used = self._memory.at_user(used, 4 + 8 * self.size)
        except LookupError as error:
            raise FrontEndError(str(error)) from error
        self._used_words = self._used[:4].cast("H")
        self._used_index = self._used_words[1]
        self.broken = False

    def forget_addresses(self) -> None:
        """Have no ring any more."""
        self._descriptors = None

    def has_available(self) -> bool:
        """Whether the guest has put a chain there. Raises `MalformedChain` when it cannot have put so many."""
        if not self.runs:
            return False
        waiting = (self._available[1] - self.next_available) & 0xFFFF
        if waiting > self.size:
            self.broken = True
            raise MalformedChain(None, f"{waiting} chains in a ring of {self.size}")
        return waiting > 0

    def take(self) -> Chain:
        """Take the next chain, which `has_available` said is there. Raises `MalformedChain`."""
        assert self._descriptors is not None
        head = self._available[2 + self.next_available % self.size]
        self.next_available = (self.next_available + 1) & 0xFFFF
        if head >= self.size:
            raise MalformedChain(None, f"descriptor {head} of {self.size}")
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        total, number = 0, head
        for _ in range(self.size):
            address, length, flags, following = _DESCRIPTOR.unpack_from(self._descriptors, 16 * number)
            total += length
            if flags & ~(_NEXT | _WRITE) or total > _LARGEST_CHAIN or (writable and not flags & _WRITE):
                raise MalformedChain(head, f"descriptor {number} has flags {flags:#x} and {length} bytes")
            try:
                view = self._memory.at_guest(address, length)
            except LookupError as error:
                raise MalformedChain(head, str(error)) from error
            (writable if flags & _WRITE else readable).append(view)
            if not flags & _NEXT:
                return Chain(head, readable, writable)
            if following >= self.size:
                raise MalformedChain(head, f"descriptor {following} of {self.size}")
            number = following
        raise MalformedChain(head, "its descriptors form a ring")

    def put_back(self) -> None:
        """Take the last chain of `take` to be still there; it was not used."""
        self.next_available = (self.next_available - 1) & 0xFFFF

    def give(self, head: int, written: int) -> None:
        """Give a chain back with so many bytes written to it; `notify` tells the guest."""
        _USED.pack_into(self._used, 4 + 8 * (self._used_index % self.size), head, written)
        self._used_index = (self._used_index + 1) & 0xFFFF
        self._used_words[1] = self._used_index
        self._told = False

    def notify(self) -> None:
        """Interrupt the guest if something was given back since it was last told."""
        if not self._told and self.call is not None:
            self._told = True
            with suppress(BlockingIOError):  # the counter is full: it has been told often enough
                os.eventfd_write(self.call, 1)


class FrontEnd:
    """The control socket to QEMU: which memory and which rings there are.

    `changed` is called with a queue whose `kick` is another one now, and with the old one, which is closed then.
    """

    def __init__(
        self, control: socket.socket, queues: int, config: bytes, changed: Callable[[Queue, int | None], None]
    ) -> None:
        """Serve `control`, a blocking socket, for a device with that configuration space.

        Raises `UnsupportedPlatform` on a big-endian host: rings are little-endian, and read as this host's own words.
        """
        if sys.byteorder != "little":
            msg = "vhost-user back end: this host is big-endian; use one that is little-endian"
            raise UnsupportedPlatform(msg)
        self.memory = Memory()
        self.queues = [Queue(self.memory) for _ in range(queues)]
        self._control = control
        self._config = config
        self._changed = changed
        self._acknowledges = False

    def close(self) -> None:
        """Let go of the rings and of the memory."""
        for queue in self.queues:
            self._stop(queue)
        self.memory.clear()

    def _stop(self, queue: Queue) -> None:
        """Let go of a ring, and of what tells of its changes."""
        queue.forget_addresses()
        self._set_kick(queue, None)
        if queue.call is not None:
            os.close(queue.call)
            queue.call = None

    def _set_kick(self, queue: Queue, kick: int | None) -> None:
        # Told before it is closed: QEMU has the same eventfd, so that an epoll would go on to watch it.
        old, queue.kick = queue.kick, kick
        self._changed(queue, old)
        if old is not None:
            os.close(old)

    def receive(self) -> bool:
        """Carry out the next message. Returns False when the front end has hung up. Raises `FrontEndError`."""
        descriptors: list[int] = []
        try:
            try:
                header, descriptors, _, _ = socket.recv_fds(self._control, _HEADER.size, _MOST_DESCRIPTORS)
                if not header:
                    return False
                number, flags, size = _HEADER.unpack(header + self._exactly(_HEADER.size - len(header)))
                if flags & 3 != _VERSION or size > _MOST_PAYLOAD:
                    msg = f"a message with flags {flags:#x} and {size} bytes"
                    raise FrontEndError(msg)
                payload = self._exactly(size)
            except ConnectionResetError:
                return False
            reply = self._carry_out(number, payload, descriptors)
            if reply is None and flags & _NEED_REPLY and self._acknowledges:
                reply = struct.pack("<Q", 0)
            if reply is not None:
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._control.sendall(_HEADER.pack(number, _VERSION | _IS_REPLY, len(reply)) + reply)
        except (struct.error, IndexError) as error:
            msg = f"a message that is too short: {error}"
            raise FrontEndError(msg) from error
        finally:
            for descriptor in descriptors:  # what was taken over is taken off this list
                os.close(descriptor)
        return True

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._control.recv(size - len(data))
            if not piece:
                msg = "the front end hung up inside a message"
                raise FrontEndError(msg)
            data += piece
        return data

    def _carry_out(self, number: int, payload: bytes, descriptors: list[int]) -> bytes | None:
        """Do what a message says and return the payload of its reply, None if it has none."""
        match number:
            case VhostRequest.GET_FEATURES:
                return struct.pack("<Q", VIRTIO_F_VERSION_1 | _F_PROTOCOL_FEATURES)
            case VhostRequest.GET_PROTOCOL_FEATURES:
                return struct.pack("<Q", _PROTOCOL_F_REPLY_ACK | _PROTOCOL_F_CONFIG)
            case VhostRequest.SET_PROTOCOL_FEATURES:
                self._acknowledges = bool(struct.unpack("<Q", payload)[0] & _PROTOCOL_F_REPLY_ACK)
            case (
                VhostRequest.SET_FEATURES
                | VhostRequest.SET_OWNER
                | VhostRequest.RESET_OWNER
                | VhostRequest.SET_VRING_ERR
            ):
                pass
            case VhostRequest.GET_CONFIG:
                offset, size, flags = struct.unpack_from("<III", payload)
                return struct.pack("<III", offset, size, flags) + self._config[offset : offset + size].ljust(
                    size, b"\0"
                )
            case VhostRequest.SET_MEM_TABLE:
                self._map(payload, descriptors)
            case _:
                return self._set_ring(number, payload, descriptors)
        return None

    def _map(self, payload: bytes, descriptors: list[int]) -> None:
        self.memory.clear()
        (count,) = struct.unpack_from("<I", payload)
        if count != len(descriptors):
            msg = f"{count} memory regions with {len(descriptors)} descriptors"
            raise FrontEndError(msg)
        for index in range(count):
            guest, size, user, offset = struct.unpack_from("<QQQQ", payload, 8 + 32 * index)
            self.memory.add(descriptors[index], guest=guest, user=user, size=size, offset=offset)

    def _set_ring(self, number: int, payload: bytes, descriptors: list[int]) -> bytes | None:
        """Do what a message says about one queue; most have its number and one more."""
        first, second = struct.unpack_from("<II", payload)
        if number in (VhostRequest.SET_VRING_KICK, VhostRequest.SET_VRING_CALL):
            queue = self.queues[first & 0xFF]
            given = None if first & _NO_DESCRIPTOR or not descriptors else descriptors.pop()
            if number == VhostRequest.SET_VRING_KICK:
                self._set_kick(queue, given)
                return None
            old, queue.call = queue.call, given
            if old is not None:
                os.close(old)
            return None
        queue = self.queues[first]
        match number:
            case VhostRequest.SET_VRING_NUM:
                queue.size = second
            case VhostRequest.SET_VRING_BASE:
                queue.next_available = second & 0xFFFF
            case VhostRequest.SET_VRING_ENABLE:
                queue.enabled = bool(second)
            case VhostRequest.SET_VRING_ADDR:
                descriptor_table, used, available = struct.unpack_from("<QQQ", payload, 8)
                queue.set_addresses(descriptor_table, used, available)
            case VhostRequest.GET_VRING_BASE:
                self._stop(queue)
                return struct.pack("<II", first, queue.next_available)
            case _:
                msg = f"message {number}, which was not agreed upon"
                raise FrontEndError(msg)
        return None
