"""The vsock device without QEMU: a driver that does what a guest may do, and what it may not.

Each test takes turns with the device in one thread, but for the last ones.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.guest.vsock_driver import (
    BUFFER_SIZE,
    FROM_GUEST,
    GUEST_BASE,
    MEMORY,
    SIZE,
    TO_GUEST,
    Driver,
)
from tests.processes import DEADLINE

from uvmshare.testing.vhost_user import VhostRequest
from uvmshare.testing.vsock import VsockDevice
from uvmshare.testing.vsock_streams import BUFFER, HEADER, Op

if TYPE_CHECKING:
    from collections.abc import Iterator

Flavour = Literal["firecracker", "cloud-hypervisor"]
SEND, RECEIVE = 2, 1
PORT = 5640
GUEST_PORT = 1024


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Pair:
    """A device, its driver, and programs on the host."""

    def __init__(self, directory: str, flavour: Flavour, first_index: int = 0) -> None:
        self.path = f"{directory}/v"
        self.clock = Clock()
        self.device = VsockDevice(self.path, flavour=flavour, clock=self.clock)
        self.driver = Driver(self.device, first_index=first_index)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.path}_{PORT}")
        self.listener.listen()
        self.sockets = [self.listener]

    def close(self) -> None:
        for each in self.sockets:
            each.close()
        self.device.close()
        self.driver.close()

    def guest_dials(self, guest: int = GUEST_PORT) -> socket.socket:
        """Return the host's end of a connection that the guest made."""
        self.driver.send(Op.REQUEST, host=PORT, guest=guest)
        accepted, _ = self.listener.accept()
        self.sockets.append(accepted)
        accepted.settimeout(DEADLINE)
        assert self.driver.ops() == [Op.RESPONSE]
        return accepted

    def host_dials(self, *said: bytes) -> socket.socket:
        dialling = socket.socket(socket.AF_UNIX)
        self.sockets.append(dialling)
        dialling.settimeout(DEADLINE)
        dialling.connect(self.path)
        for piece in said:
            with contextlib.suppress(BrokenPipeError):  # it was hung up on
                dialling.send(piece)
            self.driver.turn()
        return dialling

    def send(self, op: int, data: bytes = b"", *, host: int = PORT, guest: int = GUEST_PORT, **other: int) -> None:
        self.driver.send(op, data, host=host, guest=guest, **other)


@contextlib.contextmanager
def pair_of(flavour: Flavour, first_index: int = 0) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="v-") as directory:  # a unix socket's path is short, pytest's are not
        made = Pair(directory, flavour, first_index)
        try:
            yield made
        finally:
            made.close()


@pytest.fixture(params=["firecracker", "cloud-hypervisor"])
def flavour(request: pytest.FixtureRequest) -> Flavour:
    chosen: Flavour = request.param
    return chosen


@pytest.fixture
def pair(flavour: Flavour) -> Iterator[Pair]:
    with pair_of(flavour) as made:
        yield made


# What a guest and a host do


def test_bytes_go_both_ways_on_a_connection_that_the_guest_made(pair: Pair) -> None:
    host = pair.guest_dials()
    pair.send(Op.RW, b"from the guest")
    assert host.recv(100) == b"from the guest"
    host.send(b"from the host")
    ((packet, data),) = pair.driver.turn()
    assert (packet.op, data, packet.source_port, packet.target_port) == (Op.RW, b"from the host", PORT, GUEST_PORT)
    assert packet.forwarded == len(b"from the guest")
    assert pair.driver.interrupts(TO_GUEST)
    assert pair.driver.interrupts(FROM_GUEST)
    stats = pair.device.stats()
    assert (stats.bytes_from_guest, stats.bytes_to_guest, stats.connections) == (14, 13, 1)


def test_a_port_that_nobody_listens_on_is_refused(pair: Pair) -> None:
    pair.driver.send(Op.REQUEST, host=1, guest=7)
    ((packet, _),) = pair.driver.turn()
    assert (packet.op, packet.source_port, packet.target_port) == (Op.RST, 1, 7)
    assert pair.device.stats().refused == 1


def test_the_host_asks_for_a_port_and_is_told_when_the_guest_took_it(pair: Pair) -> None:
    host = pair.host_dials(b"CONNECT 5641\nand more")
    # The request came with the turns that the line took.
    pair.driver.send(Op.RESPONSE, host=1 << 30, guest=5641)
    assert host.recv(100) == b"OK %d\n" % (1 << 30)
    ((packet, data),) = pair.driver.turn()
    assert (packet.op, data) == (Op.RW, b"and more")
    assert pair.device.stats().dialled_by_host == 1


def test_the_guest_is_asked_with_a_request(pair: Pair) -> None:
    dialling = pair.host_dials()
    dialling.send(b"connect 9\n")
    ((packet, _),) = pair.driver.turn()
    assert (packet.op, packet.source_port, packet.target_port) == (Op.REQUEST, 1 << 30, 9)


def test_a_guest_that_refuses_ends_the_hosts_connection(pair: Pair) -> None:
    host = pair.host_dials(b"CONNECT 5641\n")
    pair.driver.send(Op.RST, host=1 << 30, guest=5641)
    assert host.recv(100) == b""
    assert pair.device.stats().refused == 1


def test_a_guest_that_does_not_answer_is_not_waited_for(pair: Pair) -> None:
    host = pair.host_dials(b"CONNECT 5641\n")
    pair.clock.now = 2.0
    assert pair.driver.ops() == [Op.RST]
    assert host.recv(100) == b""


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\n", b"CONNECT\n", b"CONNECT x\n", b"CONNECT 4294967296\n", b"c" * 40]
)
def test_what_asks_for_no_port_is_hung_up_on(pair: Pair, said: bytes) -> None:
    host = pair.host_dials(said)
    with contextlib.suppress(ConnectionResetError):  # not all was read
        assert host.recv(100) == b""
    assert pair.device.stats().refused == 1


def test_a_host_that_says_nothing_and_leaves_is_forgotten(pair: Pair) -> None:
    pair.host_dials().close()
    pair.driver.turn()
    assert not pair.device._asking


def test_whether_the_line_must_come_whole_is_the_monitors_way(pair: Pair, flavour: Flavour) -> None:
    host = pair.host_dials(b"CONN", b"ECT 56", b"41\n")
    if flavour == "firecracker":
        with contextlib.suppress(ConnectionResetError):
            assert host.recv(100) == b""
        return
    pair.driver.send(Op.RESPONSE, host=1 << 30, guest=5641)
    assert host.recv(100).startswith(b"OK ")


def test_a_host_that_sends_no_more_is_told_in_the_monitors_way(pair: Pair, flavour: Flavour) -> None:
    host = pair.guest_dials()
    host.send(b"last")
    host.shutdown(socket.SHUT_WR)
    came = pair.driver.turn()
    assert [(packet.op, packet.flags) for packet, _ in came] == [
        (Op.RW, 0),
        (Op.SHUTDOWN, SEND if flavour == "cloud-hypervisor" else SEND | RECEIVE),
    ]
    pair.send(Op.RW, b"still")
    if flavour == "cloud-hypervisor":
        assert host.recv(100) == b"still"
        host.close()
        assert [(packet.op, packet.flags) for packet, _ in pair.driver.turn()] == [(Op.SHUTDOWN, SEND | RECEIVE)]
    else:
        host.settimeout(0)
        with pytest.raises(BlockingIOError):
            host.recv(100)
    pair.clock.now = 2.0
    assert pair.driver.ops() == [Op.RST], "a guest that does not let go is not waited for"


def test_a_guest_that_sends_no_more_is_told_in_the_monitors_way(pair: Pair, flavour: Flavour) -> None:
    host = pair.guest_dials()
    pair.send(Op.RW, b"last")
    pair.send(Op.SHUTDOWN, flags=SEND)
    assert host.recv(100) == b"last"
    if flavour == "cloud-hypervisor":
        assert host.recv(100) == b""
    else:
        host.settimeout(0)
        with pytest.raises(BlockingIOError):
            host.recv(100)
    host.settimeout(DEADLINE)
    host.send(b"answer")
    assert [data for _, data in pair.driver.turn()] == [b"answer"]
    pair.send(Op.SHUTDOWN, flags=RECEIVE)
    assert pair.driver.ops() == [Op.RST]
    assert host.recv(100) == b""


def test_a_host_that_closes_ends_the_connection_and_the_guest_lets_go(pair: Pair) -> None:
    pair.guest_dials().close()
    assert [(packet.op, packet.flags) for packet, _ in pair.driver.turn()] == [(Op.SHUTDOWN, SEND | RECEIVE)]
    pair.send(Op.RST)
    assert pair.device.stats().connections == 0


def test_a_host_that_closes_with_something_unread_resets_the_connection(pair: Pair) -> None:
    host = pair.guest_dials()
    pair.send(Op.RW, b"never read")
    host.close()
    assert pair.driver.ops() == [Op.RST]


# Credit


def test_the_guest_is_sent_no_more_than_it_has_room_for_and_is_asked_once(pair: Pair) -> None:
    pair.driver.room = 10
    host = pair.guest_dials()
    host.send(b"0123456789abcdef")
    came = pair.driver.turn()
    assert [(packet.op, data) for packet, data in came] == [(Op.RW, b"0123456789"), (Op.CREDIT_REQUEST, b"")]
    assert pair.driver.turn() == []
    pair.driver.forwarded = 10
    pair.send(Op.CREDIT_UPDATE)
    assert [data for _, data in pair.driver.turn()] == [b"abcdef"]


def test_the_guest_hears_when_the_host_took_what_it_sent(pair: Pair) -> None:
    host = pair.guest_dials()
    piece = bytes(BUFFER_SIZE - HEADER.size)
    sent = 0
    while not (came := pair.driver.turn()):
        pair.send(Op.RW, piece)
        sent += len(piece)
        host.recv(len(piece), socket.MSG_WAITALL)
    ((packet, _),) = came
    assert (packet.op, packet.forwarded, packet.buffer) == (Op.CREDIT_UPDATE, sent, BUFFER)
    assert BUFFER - 4096 < sent <= BUFFER


def test_the_guest_may_ask_how_much_room_there_is(pair: Pair) -> None:
    pair.guest_dials()
    pair.send(Op.CREDIT_REQUEST)
    assert pair.driver.ops() == [Op.CREDIT_UPDATE]


def test_a_guest_that_sends_more_than_there_is_room_for_is_reset(pair: Pair) -> None:
    host = pair.guest_dials()
    for _ in range(1000):
        pair.send(Op.RW, bytes(BUFFER_SIZE - HEADER.size))
        if pair.device.stats().overdrawn:
            break
    assert Op.RST in pair.driver.ops()
    assert pair.device.stats().connections == 0
    host.close()


def test_what_the_host_does_not_take_is_kept_in_order_and_no_byte_is_lost(pair: Pair) -> None:
    host = pair.guest_dials()
    host.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sent = received = b""
    told = 0
    while len(sent) < 600_000:
        piece = os.urandom(BUFFER_SIZE - HEADER.size)
        if (len(sent) + len(piece) - told) & 0xFFFFFFFF <= BUFFER:
            pair.send(Op.RW, piece)
            sent += piece
        else:  # no credit: only now does the host take something
            received += host.recv(50_000)
        for packet, _ in pair.driver.turn():
            assert packet.op == Op.CREDIT_UPDATE
            told = packet.forwarded
    pair.send(Op.SHUTDOWN, flags=SEND | RECEIVE)
    while len(received) < len(sent):
        received += host.recv(100_000)
        pair.driver.turn()
    assert received == sent
    assert host.recv(1) == b""


def test_counters_of_bytes_wrap(pair: Pair) -> None:
    host = pair.guest_dials()
    (stream,) = pair.device._streams.values()
    stream._sent = pair.driver.forwarded = stream._forwarded = stream._told = 0xFFFFFFF0
    pair.send(Op.CREDIT_UPDATE)
    host.send(b"x" * 100)
    assert [data for _, data in pair.driver.turn()] == [b"x" * 100]
    pair.send(Op.RW, b"y" * 100)
    pair.send(Op.CREDIT_REQUEST)
    ((packet, _),) = pair.driver.turn()
    assert packet.forwarded == 84
    assert stream.credit() == pair.driver.room - 100


# Rings


@pytest.mark.parametrize("first_index", [0, 0xFFFA, 5])
def test_rings_and_their_indices_wrap(flavour: Flavour, first_index: int) -> None:
    with pair_of(flavour, first_index) as pair:
        host = pair.guest_dials()
        for number in range(5 * SIZE):
            pair.send(Op.RW, b"%03d" % number)
            host.send(b"%03d" % number)
            assert [data for _, data in pair.driver.turn()] == [b"%03d" % number]
        assert host.recv(1000) == b"".join(b"%03d" % number for number in range(5 * SIZE))


def test_a_packet_may_lie_in_buffers_that_are_cut_anywhere(pair: Pair) -> None:
    host = pair.guest_dials()
    pair.send(Op.RW, b"whole")
    ring = pair.driver.rings[FROM_GUEST]
    packet = pair.driver.memory[ring.buffer(0) : ring.buffer(0) + HEADER.size + 5]
    for cut in range(1, len(packet)):
        pair.driver.send_raw(packet, cut)
    pair.driver.send_raw(packet, 3, 40, 45, 46)
    assert host.recv(1000) == b"whole" * (len(packet) + 1)


def test_a_buffer_for_the_guest_may_be_cut_inside_the_header(pair: Pair) -> None:
    host = pair.guest_dials()
    ring = pair.driver.rings[TO_GUEST]
    (slot,) = {ring.put % SIZE} & {*range(SIZE)}
    head = struct.unpack_from(
        "<H", ring.memory, ring.available + 4 + 2 * (pair.device._to_guest.next_available % SIZE)
    )[0]
    at = GUEST_BASE + ring.buffer(head)
    other = (head + 1) % SIZE
    ring.describe(head, at, 20, flags=3, following=other)
    kept = ring.memory[ring.descriptors + 16 * other : ring.descriptors + 16 * other + 16]
    ring.describe(other, at + 20, BUFFER_SIZE - 20, flags=2)
    host.send(b"through")
    pair.device.turn()
    pair.driver._collect()
    ((packet, data),) = pair.driver.received
    assert (packet.op, data, slot) == (Op.RW, b"through", ring.put % SIZE - 1 if ring.put % SIZE else SIZE - 1)
    ring.memory[ring.descriptors + 16 * other : ring.descriptors + 16 * other + 16] = kept


# A hostile guest


def hostile(pair: Pair, descriptors: list[tuple[int, int, int, int]], head: int = 0) -> None:
    ring = pair.driver.rings[FROM_GUEST]
    for slot, descriptor in enumerate(descriptors):
        ring.describe(slot, *descriptor)
    ring.offer(head)
    pair.driver.turn()


@pytest.mark.parametrize(
    "descriptors",
    [
        [(0, 44, 0, 0)],
        [(GUEST_BASE + MEMORY - 10, 44, 0, 0)],
        [(2**64 - 1, 44, 0, 0)],
        [(GUEST_BASE, 2**32 - 1, 0, 0)],
        [(GUEST_BASE, 10, 0, 0)],
        [(GUEST_BASE, 0, 0, 0)],
        [(GUEST_BASE, 44, 1, 0)],
        [(GUEST_BASE, 44, 1, 1), (GUEST_BASE, 44, 1, 0)],
        [(GUEST_BASE, 44, 1, SIZE)],
        [(GUEST_BASE, 44, 1, 0xFFFF)],
        [(GUEST_BASE, 44, 4, 0)],
        [(GUEST_BASE, 44, 2, 0)],
        [(GUEST_BASE, 44, 3, 1), (GUEST_BASE, 44, 0, 0)],
    ],
)
def test_a_chain_that_cannot_be_comes_back_and_harms_nothing_else(
    pair: Pair, descriptors: list[tuple[int, int, int, int]]
) -> None:
    host = pair.guest_dials()
    pair.driver.taken()
    hostile(pair, descriptors)
    assert pair.driver.taken() == [(0, 0)]
    assert pair.device.stats().malformed == 1
    pair.send(Op.RW, b"goes on")
    assert host.recv(100) == b"goes on"


def test_a_head_that_is_no_descriptor_is_passed_over(pair: Pair) -> None:
    host = pair.guest_dials()
    hostile(pair, [], head=SIZE)
    pair.send(Op.RW, b"goes on")
    assert host.recv(100) == b"goes on"


def test_an_index_that_jumps_stops_its_queue_alone(pair: Pair) -> None:
    host = pair.guest_dials()
    ring = pair.driver.rings[FROM_GUEST]
    ring.put = (ring.put + SIZE + 1) & 0xFFFF
    struct.pack_into("<H", ring.memory, ring.available + 2, ring.put)
    pair.driver.turn()
    assert pair.device.stats().malformed == 1
    host.send(b"still comes")
    assert [data for _, data in pair.driver.turn()] == [b"still comes"]


def test_a_buffer_for_the_guest_that_holds_no_header_comes_back(pair: Pair) -> None:
    pair.guest_dials()
    ring = pair.driver.rings[TO_GUEST]
    for slot in range(SIZE):
        ring.describe(slot, GUEST_BASE + ring.buffer(slot), 10, flags=2)
    pair.send(Op.CREDIT_REQUEST)
    pair.device.turn()
    assert pair.device.stats().malformed


@pytest.mark.parametrize(
    "wrong",
    [
        {"source_cid": 4},
        {"target_cid": 1},
        {"kind": 2},
        {"kind": 0},
        {"op": 0},
        {"op": 8},
        {"op": 0xFFFF},
        {"host": 4},
        {"guest": 4},
        {"length": 1 << 20},
        {"op": Op.RESPONSE},
        {"op": Op.REQUEST},
        {"op": Op.RW, "length": 0},
    ],
)
def test_a_packet_that_cannot_be_harms_nothing_else(pair: Pair, wrong: dict[str, int]) -> None:
    host = pair.guest_dials()
    pair.send(wrong.get("op", Op.RW), b"", **{name: value for name, value in wrong.items() if name != "op"})
    pair.driver.turn()
    pair.send(Op.RW, b"goes on")
    assert host.recv(100) == b"goes on"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.binary(max_size=100), st.integers(0, 0xFFFF), st.integers(0, 0xFFFF)), max_size=8))
def test_whatever_a_guest_writes_the_device_goes_on(sent: list[tuple[bytes, int, int]]) -> None:
    with pair_of("firecracker") as pair:
        ring = pair.driver.rings[FROM_GUEST]
        for data, flags, head in sent:
            at = ring.buffer(0)
            ring.memory[at : at + len(data)] = data
            ring.describe(0, GUEST_BASE + at, len(data), flags=flags, following=head)
            ring.offer(head)
            pair.driver.turn()
        pair.driver.tell(VhostRequest.GET_VRING_BASE, struct.pack("<II", FROM_GUEST, 0))
        assert not pair.device._ended


# QEMU


def test_the_configuration_has_the_guests_cid(pair: Pair) -> None:
    assert pair.driver.ask(VhostRequest.GET_CONFIG, struct.pack("<III", 0, 8, 0) + bytes(8))[12:] == struct.pack(
        "<Q", 3
    )


def test_a_stopped_queue_says_where_it_was_and_goes_on_there(pair: Pair) -> None:
    host = pair.guest_dials()
    ring = pair.driver.rings[FROM_GUEST]
    base = pair.driver.ask(VhostRequest.GET_VRING_BASE, struct.pack("<II", FROM_GUEST, 0))
    assert base == struct.pack("<II", FROM_GUEST, ring.put)
    pair.send(Op.RW, b"later")
    pair.driver.tell(VhostRequest.SET_VRING_BASE, base)
    pair.driver.tell(VhostRequest.SET_VRING_KICK, struct.pack("<Q", FROM_GUEST), ring.kick)
    user = 0x7F00_0000_0000
    addresses = (user + ring.descriptors, user + ring.used, user + ring.available, 0)
    pair.driver.tell(VhostRequest.SET_VRING_ADDR, struct.pack("<IIQQQQ", FROM_GUEST, 0, *addresses))
    assert host.recv(100) == b"later"


def test_a_message_that_asks_for_an_acknowledgement_gets_one(pair: Pair) -> None:
    assert pair.driver.ask(VhostRequest.SET_OWNER, flags=1 | 8) == bytes(8)


@pytest.mark.parametrize(
    "message",
    [
        struct.pack("<III", 99, 1, 8) + bytes(8),
        struct.pack("<III", 1, 2, 0),
        struct.pack("<III", 1, 1, 1 << 20),
        struct.pack("<III", VhostRequest.SET_VRING_NUM, 1, 8) + struct.pack("<II", 7, 8),
        struct.pack("<III", VhostRequest.SET_VRING_NUM, 1, 2) + bytes(2),
        struct.pack("<III", VhostRequest.SET_VRING_ADDR, 1, 40) + bytes(40),
        struct.pack("<III", VhostRequest.SET_MEM_TABLE, 1, 40) + struct.pack("<IIQQQQ", 1, 0, 0, 4096, 0, 0),
    ],
)
def test_a_front_end_that_says_what_cannot_be_ends_the_device(pair: Pair, message: bytes) -> None:
    host = pair.guest_dials()
    pair.driver.control.send(message)
    pair.device.turn()
    assert host.recv(100) == b""
    assert not os.path.exists(pair.path)


# What tests do to it


def test_a_cut_tells_both_ends(pair: Pair) -> None:
    host = pair.guest_dials()
    assert pair.device.cut() == 1
    assert [(packet.op, packet.flags) for packet, _ in pair.driver.turn()] == [(Op.SHUTDOWN, SEND | RECEIVE)]
    assert host.recv(100) == b""


def test_a_reset_tells_both_ends_at_once(pair: Pair) -> None:
    host = pair.guest_dials()
    assert (pair.device.reset(port=1), pair.device.reset(port=PORT)) == (0, 1)
    assert pair.driver.ops() == [Op.RST]
    assert host.recv(100) == b""


def test_a_guest_learns_of_a_forgotten_connection_when_it_sends(pair: Pair) -> None:
    host = pair.guest_dials()
    assert pair.device.forget() == 1
    assert pair.driver.turn() == []
    assert host.recv(100) == b""
    pair.send(Op.CREDIT_UPDATE)
    assert pair.driver.ops() == [Op.RST]


def test_a_stalled_device_moves_nothing_and_loses_nothing(pair: Pair) -> None:
    host = pair.guest_dials()
    pair.device.stall()
    host.send(b"to the guest")
    pair.send(Op.RW, b"from the guest")
    assert pair.driver.turn() == []
    host.settimeout(0)
    with pytest.raises(BlockingIOError):
        host.recv(100)
    pair.device.resume()
    assert [data for _, data in pair.driver.turn()] == [b"to the guest"]
    assert host.recv(100) == b"from the guest"


def test_its_thread_serves_by_itself_until_qemu_ends() -> None:
    with tempfile.TemporaryDirectory(prefix="v-") as directory:
        device = VsockDevice(f"{directory}/v")
        driver = Driver(device)
        device.start()
        with socket.socket(socket.AF_UNIX) as dialling:
            dialling.settimeout(DEADLINE)
            dialling.connect(device.uds_path)
            dialling.send(b"CONNECT 7\n")
            assert device.stats().connections in (0, 1)
            device.qemu_end.close()
            assert dialling.recv(100) == b""
        device.close()
        device.close()
        assert not os.path.exists(device.uds_path)
        driver.close()
