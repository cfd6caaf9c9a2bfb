"""The fast readers of requests read what `messages` reads, and refuse what it refuses, on any bytes."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

name = st.binary(max_size=40).map(lambda value: value.replace(b"\0", b"/"))
u32, u64 = st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFFFFFFFFFF)
GOOD: dict[type[m.Message], st.SearchStrategy[m.Message]] = {
    m.Tclunk: st.builds(m.Tclunk, u32),
    m.Tgetattr: st.builds(m.Tgetattr, u32, u64),
    m.Tlopen: st.builds(m.Tlopen, u32, u32),
    m.Tread: st.builds(m.Tread, u32, u64, u32),
    m.Treaddir: st.builds(m.Treaddir, u32, u64, u32),
    m.Twrite: st.builds(m.Twrite, u32, u64, st.binary(max_size=300)),
    m.Twalk: st.builds(m.Twalk, u32, u32, st.lists(name, max_size=16).map(tuple)),
    m.Tlcreate: st.builds(m.Tlcreate, u32, name, u32, u32, u32),
    m.Tunlinkat: st.builds(m.Tunlinkat, u32, name, u32),
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
@given(data=st.data())
def test_a_good_body_is_read_as_it_is_written(cls: type[m.Message], data: st.DataObject) -> None:
    message = data.draw(GOOD[cls])
    found, expected = both(cls, message.encode(0)[7:])
    assert found == expected == READERS[cls][1](message)


@each
@given(data=st.data())
def test_any_bytes_are_read_or_refused_alike(cls: type[m.Message], data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=80))
    found, expected = both(cls, body, data.draw(st.sampled_from([b"\0", b"\1", b"\xff"])))
    assert found == expected


@each
@given(data=st.data())
def test_a_good_body_with_one_thing_wrong_is_read_or_refused_alike(cls: type[m.Message], data: st.DataObject) -> None:
    """One byte is another, some are missing at the end, or some are too many."""
    body = bytearray(data.draw(GOOD[cls]).encode(0)[7:])
    match data.draw(st.sampled_from(["byte", "short", "long"])):
        case "byte":
            body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        case "short":
            del body[data.draw(st.integers(0, len(body) - 1)) :]
        case _:
            body += data.draw(st.binary(min_size=1, max_size=5))
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
