"""The fast readers of requests read what `messages` reads, and refuse what it refuses, on any bytes."""

from __future__ import annotations

import mmap
import random
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare.errors import RemoteProtocolError
from uvmshare.ninep import messages as m
from uvmshare.ninep import requests

if TYPE_CHECKING:
    from collections.abc import Callable

AT = 11
BUFFER = mmap.mmap(-1, 1 << 16)


def names_of(message: m.Twalk) -> tuple[Any, ...]:
    return message.newfid, list(message.names)


READERS: dict[type[m.Message], tuple[Callable[[mmap.mmap, int, int], Any], Callable[[Any], Any]]] = {
    m.Tclunk: (requests.clunk, lambda _: None),
    m.Tgetattr: (requests.getattr_, lambda _: None),
    m.Tlopen: (requests.lopen, lambda message: message.flags),
    m.Tread: (requests.read, lambda message: (message.offset, message.count)),
    m.Treaddir: (requests.readdir, lambda message: (message.offset, message.count)),
    m.Twrite: (requests.write, lambda message: (message.offset, bytes(message.data))),
    m.Twalk: (requests.walk, names_of),
    m.Tlcreate: (requests.lcreate, lambda message: (message.name, message.flags, message.mode, message.gid)),
    m.Tunlinkat: (requests.unlinkat, lambda message: (message.name, message.flags)),
}
each = pytest.mark.parametrize("cls", READERS, ids=lambda cls: cls.__name__)

EXAMPLES = 300


class Chance(random.Random):
    """Good messages of each kind, and what else the tests choose; the same in every run."""

    def name(self) -> bytes:
        return self.randbytes(self.randint(0, 40)).replace(b"\0", b"/")

    def u32(self) -> int:
        return self.choice((0, 0xFFFFFFFF, self.getrandbits(32)))

    def u64(self) -> int:
        return self.choice((0, 0xFFFFFFFFFFFFFFFF, self.getrandbits(64)))

    def good(self, cls: type[m.Message]) -> m.Message:
        return GOOD[cls](self)

    def some_bytes(self, most: int, least: int = 0) -> bytes:
        return self.randbytes(self.randint(least, most))


GOOD: dict[type[m.Message], Callable[[Chance], m.Message]] = {
    m.Tclunk: lambda of: m.Tclunk(of.u32()),
    m.Tgetattr: lambda of: m.Tgetattr(of.u32(), of.u64()),
    m.Tlopen: lambda of: m.Tlopen(of.u32(), of.u32()),
    m.Tread: lambda of: m.Tread(of.u32(), of.u64(), of.u32()),
    m.Treaddir: lambda of: m.Treaddir(of.u32(), of.u64(), of.u32()),
    m.Twrite: lambda of: m.Twrite(of.u32(), of.u64(), of.some_bytes(300)),
    m.Twalk: lambda of: m.Twalk(of.u32(), of.u32(), tuple(of.name() for _ in range(of.randint(0, 16)))),
    m.Tlcreate: lambda of: m.Tlcreate(of.u32(), of.name(), of.u32(), of.u32(), of.u32()),
    m.Tunlinkat: lambda of: m.Tunlinkat(of.u32(), of.name(), of.u32()),
}


def both(cls: type[m.Message], body: bytes, around: bytes = b"\xff") -> tuple[Any, Any]:
    """What each of the two makes of a body, which stands between other bytes."""
    stop = AT + len(body)
    BUFFER[:AT] = around * AT
    BUFFER[AT:stop] = body
    BUFFER[stop : stop + 300] = around * 300
    reader, values = READERS[cls]
    try:
        expected = values(cls(*cls.layout.read(body, 0, len(body))))
    except RemoteProtocolError as error:
        expected = str(error)
    try:
        found = reader(BUFFER, AT, stop)
    except RemoteProtocolError as error:
        return str(error), expected
    if cls is m.Twrite:
        offset, start = found
        found = offset, BUFFER[start:stop]
    return found, expected


@each
def test_a_good_body_is_read_as_it_is_written(cls: type[m.Message]) -> None:
    chance = Chance(1)
    for _ in range(EXAMPLES):
        message = chance.good(cls)
        found, expected = both(cls, message.encode(0)[7:])
        assert found == expected == READERS[cls][1](message)


@each
def test_any_bytes_are_read_or_refused_alike(cls: type[m.Message]) -> None:
    chance = Chance(2)
    for _ in range(EXAMPLES):
        body = chance.some_bytes(chance.choice((20, 80)))
        found, expected = both(cls, body, chance.choice((b"\0", b"\1", b"\xff")))
        assert found == expected


@each
def test_a_good_body_with_one_thing_wrong_is_read_or_refused_alike(cls: type[m.Message]) -> None:
    """One byte is another, some are missing at the end, or some are too many."""
    chance = Chance(3)
    for _ in range(EXAMPLES):
        body = bytearray(chance.good(cls).encode(0)[7:])
        match chance.choice(("byte", "short", "long")):
            case "byte":
                body[chance.randrange(len(body))] = chance.randrange(256)
            case "short":
                del body[chance.randrange(len(body)) :]
            case _:
                body += chance.some_bytes(5, least=1)
        found, expected = both(cls, bytes(body))
        assert found == expected


@pytest.mark.parametrize("around", [b"\0", b"\1", b"\xff"])
@each
def test_every_length_of_a_body_cut_short_is_refused_whatever_stands_behind_it(
    cls: type[m.Message], around: bytes
) -> None:
    whole = {
        m.Twalk: m.Twalk(1, 2, (b"a", b"bc", b"d")),
        m.Tlcreate: m.Tlcreate(1, b"name", 2, 3, 4),
        m.Tunlinkat: m.Tunlinkat(1, b"name", 0),
        m.Twrite: m.Twrite(1, 2, b"data"),
        m.Tlopen: m.Tlopen(1, 2),
        m.Tread: m.Tread(1, 2, 3),
        m.Treaddir: m.Treaddir(1, 2, 3),
        m.Tgetattr: m.Tgetattr(1, 2),
        m.Tclunk: m.Tclunk(1),
    }[cls].encode(0)[7:]
    for stop in range(4, len(whole)):
        found, expected = both(cls, whole[:stop], around)
        assert isinstance(found, str)
        assert found == expected


def test_a_walk_of_seventeen_names_and_one_whose_count_lies_are_refused() -> None:
    body = bytes(8) + b"\x11\0" + b"\1\0n" * 17
    assert both(m.Twalk, body)[0] == both(m.Twalk, body)[1]
    assert isinstance(both(m.Twalk, body)[0], str)
    lies = bytes(8) + b"\2\0" + b"\1\0n"
    assert isinstance(both(m.Twalk, lies, b"\0")[0], str)
