"""The first words on a connection, without a connection."""

from __future__ import annotations

import errno

import pytest

from uvmshare.errors import RemoteProtocolError
from uvmshare.fileserver.handshake import Handshake, negotiate
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION
from uvmshare.ninep.types import Qid

LARGEST = 1 << 20
VERSION_MESSAGE = m.Tversion(65536, VERSION).encode(NOTAG)
ATTACH = m.Tattach(0, NOFID, b"root", b"0", NONUNAME)


@pytest.mark.parametrize(
    ("offered", "version", "reply"),
    [
        (LARGEST, VERSION, m.Rversion(LARGEST, VERSION)),
        (LARGEST + 1, VERSION, m.Rversion(LARGEST, VERSION)),
        (0xFFFFFFFF, VERSION, m.Rversion(LARGEST, VERSION)),
        (4096, VERSION, m.Rversion(4096, VERSION)),
        (4095, VERSION, m.Rlerror(errno.EINVAL)),
        (0, VERSION, m.Rlerror(errno.EINVAL)),
        (8192, b"9P2000.u", m.Rversion(8192, b"unknown")),
        (LARGEST * 2, b"", m.Rversion(LARGEST, b"unknown")),
    ],
)
def test_negotiation(offered: int, version: bytes, reply: m.Message) -> None:
    assert negotiate(m.Tversion(offered, version), LARGEST) == reply


def test_byte_by_byte() -> None:
    handshake = Handshake(LARGEST)
    replies, attach = bytearray(), None
    for byte in VERSION_MESSAGE + ATTACH.encode(7):
        assert attach is None
        more, attach = handshake.feed(bytes([byte]))
        replies += more
    assert bytes(replies) == m.Rversion(65536, VERSION).encode(NOTAG)
    assert attach is not None
    assert (attach.tag, attach.message, attach.msize, attach.rest) == (7, ATTACH, 65536, b"")


def test_what_comes_behind_the_attach_is_kept_as_it_is() -> None:
    rest = m.Tgetattr(0, 1).encode(1) + b"\xff" * 100
    replies, attach = Handshake(LARGEST).feed(VERSION_MESSAGE + ATTACH.encode(7) + rest)
    assert replies == m.Rversion(65536, VERSION).encode(NOTAG)
    assert attach is not None
    assert attach.rest == rest


def test_an_attach_that_was_refused_is_followed_by_another() -> None:
    handshake = Handshake(LARGEST)
    _, first = handshake.feed(VERSION_MESSAGE + ATTACH.encode(1) + ATTACH.encode(2))
    assert first is not None
    assert first.tag == 1
    _, second = handshake.feed(first.rest)
    assert second is not None
    assert (second.tag, second.msize) == (2, 65536)


def test_the_last_version_counts() -> None:
    again = m.Tversion(8192, VERSION).encode(NOTAG)
    replies, attach = Handshake(LARGEST).feed(VERSION_MESSAGE + again + ATTACH.encode(1))
    assert len(replies) == 2 * len(m.Rversion(0, VERSION).encode(0))
    assert attach is not None
    assert attach.msize == 8192


def test_authentication_and_flushes_are_answered() -> None:
    replies, attach = Handshake(LARGEST).feed(
        VERSION_MESSAGE + m.Tauth(1, b"", b"", 0).encode(1) + m.Tflush(9).encode(2)
    )
    assert attach is None
    assert replies.endswith(m.Rlerror(errno.EOPNOTSUPP).encode(1) + m.Rflush().encode(2))


@pytest.mark.parametrize(
    "data",
    [
        ATTACH.encode(1),
        m.Tversion(65536, b"9P2000").encode(NOTAG) + ATTACH.encode(1),
        m.Tversion(100, VERSION).encode(NOTAG) + ATTACH.encode(1),
        VERSION_MESSAGE + m.Tversion(65536, b"9P2000").encode(NOTAG) + ATTACH.encode(1),
        VERSION_MESSAGE + m.Twalk(0, 1).encode(1),
        VERSION_MESSAGE + m.Rattach(Qid(0, 0, 0)).encode(1),
        b"\0\0\0\0",
        (8193).to_bytes(4, "little"),
        VERSION_MESSAGE * 33,
    ],
)
def test_what_ends_it(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        Handshake(LARGEST).feed(data)
