"""Where messages end: whole feeding, byte by byte, any pieces, and size words that cannot be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uvmshare.errors import RemoteProtocolError
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, SetattrValid
from uvmshare.ninep.framing import FrameReader, check_size

deterministic = settings(deadline=None, derandomize=True, database=None)

# What a Linux guest sends to mount a share, look around, write a file, read it, rename and remove it.
CONVERSATION: list[tuple[int, m.Message]] = [
    (NOTAG, m.Tversion(131072, b"9P2000.L")),
    (0, m.Tattach(0, NOFID, b"root", b"0", NONUNAME)),
    (0, m.Tgetattr(0, 0x17FF)),
    (0, m.Tattach(1, NOFID, b"", b"0", 0)),
    (0, m.Twalk(1, 2, (b"src", b"main.c"))),
    (0, m.Tgetattr(2, 0x3FFF)),
    (0, m.Twalk(2, 3)),
    (0, m.Tlopen(3, 0o100000)),
    (0, m.Tread(3, 0, 131048)),
    (1, m.Tread(3, 131048, 131048)),
    (1, m.Tflush(0)),
    (0, m.Tclunk(3)),
    (0, m.Twalk(1, 4)),
    (0, m.Tlcreate(4, "grüße.txt".encode(), 0x80C2, 0o644, 0)),
    (0, m.Txattrwalk(4, 5, b"security.capability")),
    (0, m.Twrite(4, 0, bytes(range(256)) * 16)),
    (0, m.Tsetattr(4, SetattrValid.MODE | SetattrValid.CTIME, mode=0o600)),
    (0, m.Tlock(4, 1, 0, 0, 0, 77, b"(none)")),
    (0, m.Tfsync(4, 0)),
    (0, m.Tclunk(4)),
    (0, m.Trenameat(1, "grüße.txt".encode(), 1, b"\xff")),
    (0, m.Tunlinkat(1, b"\xff", 0)),
    (0, m.Treaddir(1, 0, 131048)),
    (0, m.Tclunk(0)),
]
WIRE = b"".join(message.encode(tag) for tag, message in CONVERSATION)
LIMIT = 131072


def test_whole_feeding() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(WIRE)
    assert [m.decode(message) for message in reader.messages()] == CONVERSATION
    assert reader.take_rest() == b""


def test_byte_by_byte() -> None:
    reader = FrameReader(LIMIT)
    got = []
    ends = []
    for at, byte in enumerate(WIRE):
        reader.feed(bytes([byte]))
        for message in reader.messages():
            got.append(m.decode(message))
            ends.append(at + 1)
    assert got == CONVERSATION
    sizes = [len(message.encode(tag)) for tag, message in CONVERSATION]
    assert ends == [sum(sizes[: n + 1]) for n in range(len(sizes))]  # each as soon as its last byte is there


@deterministic
@given(st.lists(st.integers(0, len(WIRE)), max_size=40))
def test_any_pieces(cuts: list[int]) -> None:
    reader = FrameReader(LIMIT)
    got = []
    edges = [0, *sorted(cuts), len(WIRE)]
    for begin, end in pairwise(edges):
        reader.feed(memoryview(WIRE)[begin:end])
        got += [m.decode(message) for message in reader.messages()]
    assert got == CONVERSATION


@pytest.mark.parametrize("size", range(7))
def test_a_size_below_a_header_is_refused_as_soon_as_it_is_there(size: int) -> None:
    reader = FrameReader(LIMIT)
    reader.feed(size.to_bytes(4, "little")[:3])
    with pytest.raises(RemoteProtocolError, match=f"a message of {size} bytes"):
        reader.feed(b"\0")


@pytest.mark.parametrize("size", [LIMIT + 1, 1 << 24, 0xFFFFFFFF])
def test_a_size_past_the_limit_is_refused_before_its_bytes_come(size: int) -> None:
    reader = FrameReader(LIMIT)
    with pytest.raises(RemoteProtocolError, match=f"{size} bytes.*at most {LIMIT}"):
        reader.feed(size.to_bytes(4, "little"))


def test_exactly_a_header_and_exactly_the_limit_are_allowed() -> None:
    reader = FrameReader(64)
    smallest, largest = m.Rclunk().encode(1), m.Rread(bytes(64 - 11)).encode(2)
    reader.feed(smallest + largest)
    assert list(reader.messages()) == [smallest, largest]


def test_a_bad_size_behind_good_messages_is_refused_after_them() -> None:
    reader = FrameReader(LIMIT)
    good = m.Tclunk(1).encode(1)
    reader.feed(good + good + b"\1\0\0\0")
    given_out = reader.messages()
    assert [next(given_out), next(given_out)] == [good, good]
    with pytest.raises(RemoteProtocolError, match="a message of 1 bytes"):
        next(given_out)


def test_the_limit_may_change_between_two_messages() -> None:
    small, large = m.Tversion(64, b"9P2000.L").encode(NOTAG), m.Rread(bytes(100)).encode(1)
    reader = FrameReader(4096)
    reader.feed(small + large)
    given_out = reader.messages()
    assert next(given_out) == small
    reader.limit = 64
    with pytest.raises(RemoteProtocolError, match="at most 64"):
        next(given_out)


def test_the_rest_goes_to_whoever_reads_on() -> None:
    first, second = m.Tclunk(1).encode(1), m.Tclunk(2).encode(2)
    reader = FrameReader(LIMIT)
    reader.feed(first + second + first[:5])
    assert next(reader.messages()) == first
    assert reader.take_rest() == second + first[:5]
    assert reader.take_rest() == b""
    reader.feed(second)
    assert list(reader.messages()) == [second]


@deterministic
@given(st.lists(st.binary(max_size=40), max_size=20))
def test_any_bytes_give_messages_or_the_one_error(pieces: list[bytes]) -> None:
    reader = FrameReader(64)
    kept = b""
    try:
        for piece in pieces:
            kept += piece
            reader.feed(piece)
            for message in reader.messages():
                assert kept.startswith(message)
                assert 7 <= len(message) <= 64
                kept = kept[len(message) :]
    except RemoteProtocolError:
        return
    assert reader.take_rest() == kept
    assert len(kept) < 64


def test_check_size() -> None:
    check_size(7, 7)
    for size in (6, 8):
        with pytest.raises(RemoteProtocolError):
            check_size(size, 7)
