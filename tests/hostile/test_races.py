"""Races: names that change hands while they are walked, opened, made and changed.

Two connections are served by two processes, so that their requests really run beside each other; a third party,
the host, swaps names from a process of its own. Each try is a few requests sent in one piece. The short tests make
a few ten thousand tries, the long one a million. What must hold is not who wins, but that nothing outside is ever
told or changed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import pytest
from tests.conformance.harness import Setting, keep
from tests.hostile.conftest import CANARY
from tests.processes import DEADLINE

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.hostile.conftest import Target

    from uvmshare.fileserver.models import SecurityModel
    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

BATCH: Final = 100
"""Tries that are sent in one piece: some 25 KiB, which the socket takes without being read."""

_HEADER: Final = struct.Struct("<IBH")


class Volley:
    """The same requests again and again on one connection, encoded once; the answers are looked at as bytes."""

    def __init__(self, client: NinePClient, requests: list[m.Message]) -> None:
        self._socket = client.socket
        frames = [request.encode(tag) for tag, request in enumerate(requests)]
        self._data = b"".join(frames) * BATCH
        self._expected = len(frames) * BATCH
        self._rest = bytearray()

    def fire(self) -> None:
        self._socket.sendall(self._data)

    def answers(self) -> bytes:
        """Wait for all answers to one firing, and return them as they came."""
        came = bytearray(self._rest)
        at = count = 0
        while count < self._expected:
            while len(came) - at < 4 or len(came) - at < int.from_bytes(came[at : at + 4], "little"):
                piece = self._socket.recv(1 << 18)
                assert piece, "the connection has ended"
                came += piece
            at += int.from_bytes(came[at : at + 4], "little")
            count += 1
        self._rest = came[at:]
        return bytes(came[:at])


def frames_of(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        size, number, _ = _HEADER.unpack_from(data, at)
        yield number, data[at + 7 : at + size]
        at += size


class Watch:
    """Says when an answer has anything of what lies outside: content, qid or size; counts both outcomes of a race."""

    def __init__(self, target: Target) -> None:
        self._foreign = {struct.pack("<Q", path.stat().st_ino) for path in (target.outside, target.outside / "canary")}
        self._size = struct.pack("<Q", len(CANARY))
        self.won = self.lost = 0

    def look(self, data: bytes) -> None:
        assert CANARY not in data, "content of a file outside"
        for inode in self._foreign:
            assert inode not in data, "a qid of a file outside"
        for number, body in frames_of(data):
            if number == m.Rgetattr.type:
                assert body[49:57] != self._size, "the size of a file outside"
                self.won += 1
            elif number == m.Rlerror.type:
                self.lost += 1


_RENAME_EXCHANGE: Final = 2
_libc: Final = ctypes.CDLL(None, use_errno=True)


@contextmanager
def swapping(directory: str, one: bytes, other: bytes) -> Iterator[None]:
    """Let a process of the host's exchange two names all the time (renameat2(2), RENAME_EXCHANGE)."""
    descriptor = os.open(directory, os.O_PATH)
    pid = os.fork()
    if pid == 0:
        try:
            while True:
                _libc.renameat2(descriptor, one, descriptor, other, _RENAME_EXCHANGE)
        finally:
            os._exit(1)
    os.close(descriptor)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def prepare(target: Target) -> None:
    """`swap` is a directory with a file "canary" of the guest's own, and `link` leads outside."""
    (target.root / "swap").mkdir()
    (target.root / "swap" / "canary").write_bytes(b"the guest's own")
    (target.root / "link").symlink_to("../outside")


# The root is fid 0; each try leaves no fid.
READ: Final = [
    m.Twalk(0, 1, (b"swap", b"canary")),
    m.Tgetattr(1, 0x7FF),
    m.Tlopen(1, OpenFlag.RDONLY),
    m.Tread(1, 0, 100),
    m.Tclunk(1),
]
CHANGE: Final = [
    m.Twalk(0, 1, (b"swap",)),
    m.Tgetattr(1, 0x7FF),
    m.Tsetattr(1, 0x1, 0o7777),
    m.Tmkdir(1, b"made", 0o6777, 0),
    m.Tlcreate(1, b"canary", OpenFlag.RDWR | OpenFlag.TRUNC, 0o666, 0),
    m.Twrite(1, 0, b"guest"),
    m.Tclunk(1),
    m.Tunlinkat(0, b"swap/canary", 0),
    m.Twalk(0, 1, (b"swap",)),
    m.Tunlinkat(1, b"made", 0x200),
    m.Tclunk(1),
    m.Twalk(0, 1, (b"swap", b"canary")),
    m.Tsetattr(1, 0x1FF, 0o6777, 12345, 12345, 3, 4, 5, 6, 7),
    m.Tclunk(1),
]
LIST: Final = [
    m.Twalk(0, 1, (b"swap",)),
    m.Tlopen(1, OpenFlag.DIRECTORY),
    m.Treaddir(1, 0, 4096),
    m.Tclunk(1),
]


def race(
    target: Target,
    rounds: int,
    requests: list[m.Message],
    against: list[m.Message] | None = None,
    *,
    has_raced: Callable[[Watch], object] = lambda _: True,
) -> Watch:
    """Fire requests round after round, beside another mount's; look at every answer.

    Where only one side had a CPU in all these rounds, there are more of them until `has_raced`.
    """
    watch = Watch(target)
    give_up = time.monotonic() + DEADLINE
    client = target.connect(n_uname=0)
    assert client.root == 0
    volley = Volley(client, requests)
    other = Volley(target.connect(n_uname=0), against) if against else None
    fired = 0
    while fired < rounds or not has_raced(watch):
        assert fired < rounds or time.monotonic() < give_up, "nothing raced"
        volley.fire()
        if other:
            other.fire()
        watch.look(volley.answers())
        if other:
            other.answers()
        fired += 1
    return watch


KINDS: Final = {"read": READ, "change": CHANGE, "list": LIST}


def host_swaps(target: Target, rounds: int, requests: list[m.Message]) -> Watch:
    prepare(target)
    reaches = requests is not LIST  # which asks for no attributes
    with swapping(str(target.root), b"swap", b"link"):
        watch = race(target, rounds, requests, has_raced=lambda seen: seen.lost and (seen.won or not reaches))
    target.require_unharmed()
    return watch


OTHERS: Final = [pytest.param(each, marks=pytest.mark.long) for each in ("mapped-xattr", "none")]
"""Models under which the same code walks; passthrough has guests that may become anybody."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["passthrough", *OTHERS])
def test_a_directory_that_the_host_swaps_for_a_link(attack: Callable[..., Target], model: str, kind: str) -> None:
    host_swaps(attack(model), 15, KINDS[kind])


SWAP: Final[list[m.Message]] = [  # with a real symbolic link, which a guest can make under these models
    m.Trenameat(0, b"swap", 0, b"away"),
    m.Trenameat(0, b"link", 0, b"swap"),
    m.Trenameat(0, b"swap", 0, b"link"),
    m.Trenameat(0, b"away", 0, b"swap"),
]


def guest_swaps(target: Target, rounds: int, requests: list[m.Message]) -> Watch:
    prepare(target)
    watch = race(target, rounds, requests, SWAP, has_raced=lambda seen: seen.lost)
    target.require_unharmed()
    return watch


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", ["passthrough", OTHERS[1]])
def test_a_directory_that_another_mount_swaps_for_a_link(attack: Callable[..., Target], model: str, kind: str) -> None:
    guest_swaps(attack(model), 15, KINDS[kind])


MAKE: Final[dict[str, list[m.Message]]] = {
    "directories": [m.Tmkdir(0, b"new", 0o6777, 0)],
    # Tlcreate turns the directory's fid into the file's: it is given a clone.
    "files": [m.Twalk(0, 1), m.Tlcreate(1, b"new", OpenFlag.RDWR | OpenFlag.TRUNC, 0o6777, 0), m.Tclunk(1)],
    "nodes": [m.Tmknod(0, b"new", 0o106777, 0, 0, 0)],
}
SNATCH: Final[list[m.Message]] = [
    m.Trenameat(0, b"new", 0, b"old"),
    m.Trenameat(0, b"trap", 0, b"new"),
    m.Trenameat(0, b"new", 0, b"trap"),
    m.Tunlinkat(0, b"old", 0x200),
    m.Tunlinkat(0, b"old", 0),
]


@pytest.mark.parametrize("what", MAKE)
@pytest.mark.parametrize("model", ["passthrough", *OTHERS])
def test_what_is_made_is_swapped_for_a_link_at_once(attack: Callable[..., Target], model: str, what: str) -> None:
    target = attack(model)
    (target.root / "trap").symlink_to("../outside/canary")
    race(target, 30, MAKE[what] * (5 // len(MAKE[what])), SNATCH)  # as long as what it runs against
    target.require_unharmed()


RENAME: Final = [
    m.Trenameat(0, b"a", 0, b"b"),
    m.Twalk(0, 1, (b"b", b"c")),
    m.Trename(1, 0, b"c"),
    m.Twalk(0, 2, (b"b",)),
    m.Twalk(0, 3, (b"c",)),
    m.Trename(2, 3, b"b"),
    m.Trenameat(3, b"b", 0, b"a"),
    m.Twalk(0, 4, (b"a",)),
    m.Trename(3, 4, b"c"),
    *(m.Tclunk(fid) for fid in (1, 2, 3, 4)),
]
WALK: Final = [
    m.Twalk(0, 1, (b"a", b"c", b"d")),
    m.Tgetattr(1, 0x7FF),
    m.Twalk(1, 2, (b"..",) * 16),
    m.Tgetattr(2, 0x7FF),
    m.Twalk(0, 3, (b"c", b"b", b"c", b"..", b"..", b"..", b"..", b"..", b"outside", b"canary")),
    *(m.Tclunk(fid) for fid in (1, 2, 3)),
]


def renames_against_walks(target: Target, rounds: int) -> Watch:
    (target.root / "a" / "c" / "d").mkdir(parents=True)
    watch = race(target, rounds, WALK, RENAME, has_raced=lambda seen: seen.won and seen.lost)
    target.require_unharmed()
    return watch


@pytest.mark.parametrize("model", ["mapped-xattr", OTHERS[1]])
def test_renames_against_walks(attack: Callable[..., Target], model: str) -> None:
    renames_against_walks(attack(model), 20)


@pytest.mark.parametrize("kind", ["read", "list"])
def test_a_directory_that_the_host_exchanges_with_one_outside(attack: Callable[..., Target], kind: str) -> None:
    # The directory outside is another one each time: what is under test is what a walk tells while it is not the
    # share's. Once inside it is shared, so the canary's own directory stays where it is.
    target = attack()
    prepare(target)
    (target.top / "other").mkdir()
    with swapping(str(target.top), b"root/swap", b"other"):
        race(target, 15, KINDS[kind], has_raced=lambda seen: seen.lost or kind == "list")
    target.require_unharmed()


LONG: Final = 1_000_000 // BATCH
"""Rounds of a million tries."""


@pytest.mark.soak
@pytest.mark.parametrize(
    ("model", "attacker", "kind", "share"),
    [
        ("mapped-xattr", host_swaps, "read", 4),
        ("none", host_swaps, "change", 8),
        ("passthrough", host_swaps, "list", 8),
        ("none", guest_swaps, "read", 4),
        ("passthrough", guest_swaps, "change", 8),
        ("none", guest_swaps, "list", 8),
    ],
)
def test_a_million_tries(
    attack: Callable[..., Target],
    model: SecurityModel,
    attacker: Callable[[Target, int, list[m.Message]], Watch],
    kind: str,
    share: int,
) -> None:
    watch = attacker(attack(model), LONG // share, KINDS[kind])
    by = "the host" if attacker is host_swaps else "another mount"
    note(f"{kind}, while {by} swaps it for a link out", model, LONG // share, watch)


@pytest.mark.long
def test_many_renames_against_many_walks(attack: Callable[..., Target]) -> None:
    note(
        "walks up and down, while another mount renames",
        "mapped-xattr",
        1000,
        renames_against_walks(attack("mapped-xattr"), 1000),
    )


def note(attack: str, model: SecurityModel, rounds: int, watch: Watch) -> None:
    """Keep the figures of a long race for docs/conformance.md. One that saw anything of what is outside has failed."""
    outcomes = {"reached the directory": watch.won, "met the link": watch.lost, "seen or changed outside": 0}
    keep("races", Setting("", model, "", 0, ""), {"attack": attack, "tries": rounds * BATCH, **outcomes})
