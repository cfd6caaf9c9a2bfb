"""Input that is no 9P ends its own connection, with a reason in the log, and never another one."""

from __future__ import annotations

import random
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest
from tests.thinned import every

from uvmshare.errors import ConnectionClosed
from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, NONUNAME, NOTAG, VERSION
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

SHARE: Final = "0"
MSIZE: Final = 65536


def frame(number: int, body: bytes = b"", *, size: int | None = None, tag: int = 1) -> bytes:
    """A message with any size word, type and body."""
    word = 7 + len(body) if size is None else size
    return word.to_bytes(4, "little") + bytes([number]) + tag.to_bytes(2, "little") + body


ATTACH: Final = m.Tattach(0, NOFID, b"root", SHARE.encode(), NONUNAME).encode(1)
VERSION_MESSAGE: Final = m.Tversion(MSIZE, VERSION).encode(NOTAG)
WALK: Final = m.Twalk(0, 1, (b"name",)).encode(1)
NEVER_SENT: Final = (0, 1, 5, 6, 10, 99, 106, 112, 124, 127, 200, 255)

SIZES: Final = {f"a message of {size} bytes": frame(120, size=size) for size in range(7)} | {
    "a size past msize": frame(118, size=MSIZE + 1),
    "a size of 4 GiB": frame(118, size=0xFFFFFFFF),
    "a size of 2 GiB": frame(118, size=1 << 31),
}
TYPES: Final = {f"type {number}": frame(number) for number in NEVER_SENT} | {
    cls.__name__: frame(number) for number, cls in m.BY_TYPE.items() if cls.__name__.startswith("R")
}
BODIES: Final = {
    "a message without its fields": frame(m.Twalk.type),
    "a walk cut short": frame(m.Twalk.type, WALK[7:-1]),
    "a walk with bytes behind it": frame(m.Twalk.type, WALK[7:] + b"\0"),
    "a name longer than its message": frame(m.Twalk.type, WALK[7:-6] + b"\xff\xff" + b"name"),
    "seventeen names": frame(m.Twalk.type, bytes(4) + b"\1\0\0\0" + b"\x11\0" + b"\1\0n" * 17),
    "a name with NUL": WALK.replace(b"name", b"na\0e"),
    "a name of NUL": m.Tmkdir(0, b"!", 0, 0).encode(1).replace(b"!", b"\0"),
    "a write with less data than it says": frame(m.Twrite.type, bytes(12) + b"\x10\0\0\0" + b"short"),
    "a write with more data than it says": frame(m.Twrite.type, bytes(12) + b"\1\0\0\0" + b"long"),
    "a fid of three bytes": frame(m.Tclunk.type, bytes(3)),
}
GARBAGE: Final = {
    "text": b"GET / HTTP/1.1\r\nHost: share\r\n\r\n",
    "zeros": bytes(64),
    "ones": b"\xff" * 64,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
}

BEFORE_THE_ATTACH: Final = (
    {name: VERSION_MESSAGE + data for name, data in (SIZES | TYPES).items()}
    | {f"{name} at once": data for name, data in (SIZES | TYPES | GARBAGE).items()}
    | {
        "attach without version": ATTACH,
        "walk without anything": WALK,
        "read without anything": m.Tread(0, 0, 1).encode(1),
        "walk after version": VERSION_MESSAGE + WALK,
        "clunk after version": VERSION_MESSAGE + m.Tclunk(0).encode(1),
        "attach after a version that is unknown": m.Tversion(MSIZE, b"9P2000").encode(NOTAG) + ATTACH,
        "attach after a version too small": m.Tversion(100, VERSION).encode(NOTAG) + ATTACH,
        "attach after the second version is unknown": VERSION_MESSAGE
        + m.Tversion(MSIZE, b"9P2000").encode(NOTAG)
        + ATTACH,
        "a version with NUL": m.Tversion(MSIZE, b"9P2000!L").encode(NOTAG).replace(b"!", b"\0"),
        "an attach cut short": VERSION_MESSAGE + frame(m.Tattach.type, ATTACH[7:-1]),
        "an attach that says 32 KiB": VERSION_MESSAGE + frame(m.Tattach.type, size=32768),
        "a hundred attaches to nothing": VERSION_MESSAGE + m.Tattach(0, NOFID, b"", b"no", 0).encode(1) * 100,
        "a hundred versions": VERSION_MESSAGE * 100,
    }
)
AFTER_THE_ATTACH: Final = (
    SIZES
    | TYPES
    | BODIES
    | GARBAGE
    | {
        "walk after a version without attach": m.Tversion(MSIZE, b"9P2000").encode(NOTAG) + WALK,
        "a good message, then a bad one": WALK + frame(3),
    }
)


@dataclass(frozen=True, slots=True)
class Server:
    """A server whose log is read, and a guest that must not notice anything."""

    device: Device
    log: Path
    witness: NinePClient

    def reasons(self) -> list[str]:
        """The log's lines. Asking for the status first lets the supervisor finish what it was at."""
        self.device.pid()
        return self.log.read_text().splitlines()

    def check_witness(self) -> None:
        assert self.witness.read_file("file") == b"content"
        with self.device.connect(SHARE) as another:
            assert another.listdir() == [b"file"]


LINES = 100
"""A log takes 200 lines at once; these tests make them faster than it takes more."""


@pytest.fixture(scope="module")
def servers() -> Iterator[list[Server]]:
    used: list[Server] = []
    yield used
    for each in used:
        each.witness.close()


@pytest.fixture
def served(
    servers: list[Server], start_device: Callable[..., Device], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    if not servers or len(servers[-1].reasons()) > LINES:
        root = tmp_path_factory.mktemp("served").resolve()
        (root / "file").write_bytes(b"content")
        log = tmp_path_factory.mktemp("log") / "log"
        device = start_device(security_model="none", log=log, limits=Limits(msize=MSIZE))
        assert device.share(root) == SHARE
        servers.append(Server(device, log, device.connect(SHARE)))
    return servers[-1]


@pytest.mark.parametrize("data", BEFORE_THE_ATTACH.values(), ids=BEFORE_THE_ATTACH.keys())
def test_before_the_attach(served: Server, data: bytes) -> None:
    before = len(served.reasons())
    with served.device.dial() as client:
        client.send_raw(data)
        replies = client.drain()
    assert not [reply for reply in replies if isinstance(reply, m.Rattach)]
    new = served.reasons()[before:]
    assert [line for line in new if line.endswith("connection closed")], f"no reason in the log: {new}"
    served.check_witness()


@pytest.mark.parametrize("data", AFTER_THE_ATTACH.values(), ids=AFTER_THE_ATTACH.keys())
def test_after_the_attach(served: Server, data: bytes) -> None:
    before = len(served.reasons())
    with served.device.connect(SHARE, msize=MSIZE) as client:
        client.send_raw(data)
        replies = client.drain()
    assert all(isinstance(reply, (m.Rwalk, m.Rlerror, m.Rversion)) for reply in replies)
    new = served.reasons()[before:]
    assert [line for line in new if "share 0" in line and line.endswith("connection closed")], f"no reason: {new}"
    assert not [line for line in new if "Error:" in line], new  # a bug would show its class
    served.check_witness()


@pytest.mark.parametrize("cut", every(3, range(1, len(VERSION_MESSAGE + ATTACH))))
def test_a_handshake_that_ends_in_the_middle(served: Server, cut: int) -> None:
    with served.device.dial() as client:
        client.send_raw((VERSION_MESSAGE + ATTACH)[:cut])
        client.hang_up()
        assert all(isinstance(reply, m.Rversion) for reply in client.drain())
    if cut % 10 == 0:
        served.check_witness()


@pytest.mark.parametrize("cut", range(1, len(WALK)))
def test_a_session_that_ends_in_the_middle(served: Server, cut: int) -> None:
    before = len(served.reasons())
    with served.device.connect(SHARE) as client:
        client.send_raw(WALK[:cut])
        client.hang_up()
        assert client.drain() == []
    assert [line for line in served.reasons()[before:] if line.endswith("connection closed")]


def test_a_guest_that_says_goodbye_is_not_worth_a_line(served: Server) -> None:
    before = len(served.reasons())
    with served.device.connect(SHARE) as client:
        client.hang_up()
        assert client.drain() == []
    assert served.reasons()[before:] == []


def test_an_attach_and_requests_in_one_piece(served: Server) -> None:
    # Nothing is wrong with it: what came behind the attach goes to the mount process.
    with served.device.dial() as client:
        requests = b"".join(m.Tgetattr(0, 0x7FF).encode(tag) for tag in range(2, 100))
        client.send_raw(VERSION_MESSAGE + ATTACH + requests[:-3])
        assert [type(client.recv()[1]) for _ in range(2)] == [m.Rversion, m.Rattach]
        client.send_raw(requests[-3:])
        assert [client.recv()[0] for _ in range(2, 100)] == list(range(2, 100))


def test_a_second_version_in_the_handshake_begins_again(served: Server) -> None:
    with served.device.dial() as client:
        client.version(8192)
        assert client.version(16384) == 16384
        client.root = client.attach(SHARE)
        assert client.listdir() == [b"file"]


def test_an_attach_that_is_refused_may_be_followed_by_a_good_one_in_the_same_piece(served: Server) -> None:
    with served.device.dial() as client:
        client.send_raw(VERSION_MESSAGE + m.Tattach(0, NOFID, b"", b"no", 0).encode(3) + ATTACH + WALK)
        replies = [client.recv() for _ in range(4)]
        assert [(tag, type(reply)) for tag, reply in replies] == [
            (NOTAG, m.Rversion),
            (3, m.Rlerror),
            (1, m.Rattach),
            (1, m.Rlerror),
        ]


def test_a_message_larger_than_the_agreed_msize_but_not_than_the_servers(served: Server) -> None:
    with served.device.connect(SHARE, msize=8192) as client:
        client.send_raw(m.Twrite(0, 0, bytes(8192)).encode(1))
        assert client.drain() == []
    served.check_witness()


CONVERSATION: Final = [
    m.Twalk(0, 1, (b"file",)),
    m.Tlopen(1, O.RDONLY),
    m.Tread(1, 0, 100),
    m.Treaddir(0, 0, 4096),
    m.Tgetattr(1, 0x3FFF),
    m.Tsetattr(1, 0x20),
    m.Tlock(1, 0, 0, 0, 0, 1, b"vm"),
    m.Txattrwalk(1, 2, b"user.x"),
    m.Tflush(3),
    m.Tstatfs(0),
    m.Twalk(0, 3),
    m.Tlopen(3, O.DIRECTORY),
    m.Treaddir(3, 0, 4096),
    m.Tclunk(3),
    m.Tclunk(1),
]


@pytest.mark.parametrize("seed", every(4, range(60)))
def test_good_messages_with_bytes_changed_never_hang_or_hurt_another(served: Server, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    root = (tmp_path / "fuzzed").resolve()
    root.mkdir()
    (root / "file").write_bytes(b"content")
    name = served.device.share(root)
    data = bytearray(b"".join(message.encode(tag) for tag, message in enumerate(CONVERSATION)))
    for _ in range(chance.randint(1, 12)):
        data[chance.randrange(len(data))] = chance.choice((0, 1, 2, 0x7F, 0x80, 0xFF, chance.randrange(256)))
    before = len(served.reasons())
    with served.device.connect(name, msize=MSIZE) as client:
        with suppress(ConnectionClosed):
            client.send_raw(bytes(data))
            client.hang_up()
        client.drain()
    bugs = [line for line in served.reasons()[before:] if "Error:" in line or "signal" in line]
    assert not bugs
    served.device.unshare(name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fuzzed"]
    if seed % 10 == 0:
        served.check_witness()


@pytest.mark.parametrize("seed", every(4, range(20)))
def test_noise_never_hangs(served: Server, seed: int) -> None:
    noise = random.Random(seed).randbytes(5000)
    for client in (served.device.dial(), served.device.connect(SHARE)):
        with client:
            with suppress(ConnectionClosed):  # the first bytes end the connection, and the rest may find it closed
                client.send_raw(noise)
                client.hang_up()
            client.drain()
    served.check_witness()
