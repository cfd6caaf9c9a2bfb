"""The compiled hot path answers as the handlers do: byte for byte, whatever a guest sends.

Two file servers share the same tree, one with it and one without, and get the same requests in turn. So inode numbers
and times are the same on either side, and replies may differ in nothing at all.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import struct
import subprocess
import sys
import time
from contextlib import ExitStack
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuse import HungFuse
from tests.root import needs_root

from uvmshare.errors import ConnectionClosed
from uvmshare.fileserver import speed
from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, OpenFlag

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from tests.fileserver.harness import Device

    from uvmshare.testing.client import NinePClient

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("uvmshare_speed") is None, reason="uvmshare_speed is not built: make venv needs a compiler"
)

MSIZE: Final = 1 << 19
_LIMITS: Final = Limits()
ACCESS: Final = 3


def make_tree(root: Path) -> None:
    """Directories, files of all sizes, a link, a FIFO, an odd name; old enough for what is known of them to be kept."""
    deep = root / "one" / "two" / "three"
    deep.mkdir(parents=True)
    (root / "empty").write_bytes(b"")
    (root / "small").write_bytes(b"small content")
    (root / "read-only").write_bytes(b"read")
    (root / "read-only").chmod(0o444)
    (root / "set-id").write_bytes(b"#!")
    (root / "set-id").chmod(0o6755)
    (root / "large").write_bytes(bytes(range(256)) * 4096)
    (deep / "file").write_bytes(b"deep" * 5000)
    (root / "link").symlink_to("small")
    os.mkfifo(root / "fifo")
    for number in range(300):
        (root / "one" / f"entry-{number}").write_bytes(b"")


@pytest.fixture(params=["none", "mapped-xattr"])
def pair(
    request: pytest.FixtureRequest,
    devices_with: Devices,
    xattr_directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Two clients of one tree: with the compiled hot path, and without."""
    root = xattr_directory / f"compiled-{request.param}-{os.urandom(4).hex()}"
    root.mkdir()
    make_tree(root)
    settle(root)
    made = Pair([devices_with(request.param, wish) for wish in ("required", "off")], root)
    yield made
    made.close()


@pytest.fixture(scope="module")
def devices_with(start_device: Callable[..., Device]) -> Devices:
    """File servers of a security model, told whether to use the compiled hot path."""
    started: dict[tuple[str, str, Limits], Device] = {}

    def device(model: str, wish: str, limits: Limits = _LIMITS) -> Device:
        key = model, wish, limits
        if key not in started:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(speed.VARIABLE, wish)
                started[key] = start_device(security_model=model, limits=limits)
        return started[key]

    return device


def settle(root: Path) -> None:
    """Wait, by the host's clock, until a change of these files would give them other times; then read them.

    With relatime, Linux's usual way, only the first read after a change gives a file another atime.
    """
    newest = max(os.lstat(os.path.join(top, name)).st_ctime_ns for top, _, names in os.walk(root) for name in names)
    while time.time_ns() - newest < 50_000_000:
        os.sched_yield()
    for path in root.rglob("*"):
        if path.is_file():
            path.read_bytes()
        elif path.is_dir():
            os.listdir(path)
    os.listdir(root)


class Devices(Protocol):
    """Gives a file server of a security model, told whether to use the compiled hot path."""

    def __call__(self, model: str, wish: str, limits: Limits = ...) -> Device: ...


class Pair:
    """The same requests to both, one after the other."""

    def __init__(self, devices: list[Device], root: Path, **options: Any) -> None:
        self.root = root
        self._devices = devices
        self._names = [device.share(root, **options) for device in devices]
        self.clients: list[NinePClient] = []
        self.again()

    def again(self) -> None:
        """Begin with new connections: fid 0 is the root."""
        for client in self.clients:
            client.close()
        self.clients = [
            device.connect(name, msize=MSIZE) for device, name in zip(self._devices, self._names, strict=True)
        ]
        assert {client.root for client in self.clients} == {0}

    def close(self) -> None:
        for client in self.clients:
            client.close()
        for device, name in zip(self._devices, self._names, strict=True):
            device.unshare(name)

    def compiled(self) -> int:
        """How many requests the compiled hot path has served of those of the first client; the other one's are none."""
        counts: list[int] = []
        for device, name in zip(self._devices, self._names, strict=True):
            status = device.run(device.server.status(counters=True))
            (share,) = (each for each in status.shares if each.name == name)
            counts.append(sum(mount.counted.compiled for mount in share.mounts))
        assert counts[1] == 0
        return counts[0]

    def ask(self, *requests: bytes) -> list[bytes]:
        """Send requests at once, first to the one and then to the other; return the replies, which must be the same."""
        answers = [exchange(client.socket, b"".join(requests), len(requests)) for client in self.clients]
        assert answers[0] == answers[1], f"with the compiled hot path: {answers[0]!r}, without: {answers[1]!r}"
        return answers[0]


def exchange(connection: socket.socket, sent: bytes, count: int) -> list[bytes]:
    """Return as many replies, in the order of their tags, or those before the server ended the connection."""
    connection.sendall(sent)
    replies = []
    try:
        for _ in range(count):
            head = take(connection, 4)
            replies.append(head + take(connection, int.from_bytes(head, "little") - 4))
    except ConnectionClosed:
        replies.append(b"")
    return sorted(replies, key=lambda reply: reply[5:7])


def take(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            piece = connection.recv(size - len(data))
        except ConnectionResetError:
            piece = b""
        if not piece:
            msg = "the server ended it"
            raise ConnectionClosed(msg)
        data += piece
    return bytes(data)


NAMES: Final = st.sampled_from(
    [
        *b"one two three file small large empty link fifo set-id read-only missing . .. a/b entry-7".split(),
        *(b"", b"n" * 300, b"\xff\xfe"),
    ]
)
FIDS: Final = st.sampled_from([0, 0, 1, 1, 2, 2, 3, 4, 77, NOFID])
OFFSETS: Final = st.sampled_from([0, 0, 1, 4, 4096, 65536, 1 << 20, (1 << 31) + 5, (1 << 62) - 1, 1 << 62, 1 << 63])
COUNTS: Final = st.sampled_from([0, 1, 11, 4096, 16384, 16385, 65536, 262143, 262144, MSIZE - 11, 0xFFFFFFFF])
FLAGS: Final = st.sampled_from(
    [0, 0, 0, 1, 2, 2, 3, 0o100000, int(OpenFlag.DIRECTORY), 2 | int(OpenFlag.SYNC), 1 | int(OpenFlag.DSYNC)]
)
DATA: Final = st.sampled_from([b"", b"x", b"data" * 100, b"y" * 65536])

READS: Final = (
    st.builds(m.Tgetattr, FIDS, st.sampled_from([0, 0x7FF, 0xFFFFFFFFFFFFFFFF])),
    st.builds(m.Twalk, FIDS, FIDS, st.lists(NAMES, max_size=4).map(tuple)),
    st.builds(m.Twalk, st.just(0), FIDS, st.sampled_from([(b"small",), (b"one", b"two"), (b"large",), ()])),
    st.builds(m.Tread, FIDS, OFFSETS, COUNTS),
    st.builds(m.Tclunk, FIDS),
    st.builds(m.Tlopen, FIDS, FLAGS),
    st.builds(m.Treaddir, FIDS, st.sampled_from([0, 0, 1, 5, 1 << 40]), COUNTS),
)
ALL: Final = st.one_of(*READS, st.builds(m.Twrite, FIDS, st.sampled_from([0, 3, 70000, 1 << 62]), DATA))
BATCHES: Final = st.lists(st.one_of(*READS), min_size=1, max_size=12)


def framed(requests: list[m.Message]) -> list[bytes]:
    return [request.encode(tag) for tag, request in enumerate(requests)]


untimed: Final = settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@untimed
@given(requests=st.lists(ALL, min_size=1, max_size=25))
def test_any_requests_one_at_a_time_are_answered_alike(pair: Pair, requests: list[m.Message]) -> None:
    pair.again()
    for frame in framed(requests):
        pair.ask(frame)


@untimed
@given(batches=st.lists(BATCHES, min_size=1, max_size=4))
def test_any_requests_at_once_are_answered_alike(pair: Pair, batches: list[list[m.Message]]) -> None:
    pair.again()
    for batch in batches:
        pair.ask(*framed(batch))


@untimed
@given(
    request=ALL,
    wrong=st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 80), st.integers(0, 255)),
)
def test_a_malformed_request_ends_both_or_neither(
    pair: Pair, request: m.Message, wrong: tuple[int, int, int, int]
) -> None:
    pair.again()
    cut, size, byte, value = wrong
    frame = bytearray(request.encode(1))
    if 7 <= byte < len(frame):
        frame[byte] = value
    frame = frame[: max(7, len(frame) + cut)] if cut < 0 else frame + b"\0" * cut
    struct.pack_into("<I", frame, 0, max(0, len(frame) + size))
    pair.ask(b"".join((bytes(frame), b"\0" * 9)))


# What a share allows


class Rule(NamedTuple):
    """What a share allows, or what is below it, and whether the compiled hot path serves some of its requests."""

    options: Mapping[str, Any] = MappingProxyType({})
    limits: Limits = _LIMITS
    model: str = "none"
    mounted: Literal["", "tmpfs", "fuse"] = ""
    serves_some: bool = True


RULES: Final = {
    "read-only": Rule({"read_only": True}),
    "allowed names": Rule({"allowed": ("one", "small", "set-id", "missing")}),
    "hidden names": Rule({"hide": ("two/", "read-*")}),
    "few fids and open files": Rule(limits=Limits(fids=4, open_files=2)),
    "a rate": Rule(limits=Limits(operations_per_second=10_000_000), serves_some=False),
}
OF_ROOT: Final = {
    "an owner map": Rule({"map_owner": "1000/100:0/5"}),
    "passthrough": Rule(model="passthrough"),
    "a mount below": Rule(mounted="tmpfs"),
    "a file system below that may hang": Rule(mounted="fuse"),
}


@pytest.fixture(params=[*RULES, *(pytest.param(name, marks=needs_root) for name in OF_ROOT)])
def rule(request: pytest.FixtureRequest) -> Rule:
    return {**RULES, **OF_ROOT}[request.param]


@pytest.fixture
def ruled(rule: Rule, devices_with: Devices, xattr_directory: Path) -> Iterator[Pair]:
    """Two clients of one share that has a rule."""
    root = xattr_directory / f"compiled-{os.urandom(4).hex()}"
    root.mkdir()
    make_tree(root)
    with ExitStack() as mounts:
        point = root / "one" / "two"
        if rule.mounted == "tmpfs":
            subprocess.run(["mount", "-t", "tmpfs", "ours", point], check=True)
            mounts.callback(lambda: subprocess.run(["umount", point], check=True))
        elif rule.mounted == "fuse":
            shown = xattr_directory / f"shown-{root.name}"
            shown.mkdir()
            mounts.callback(HungFuse(shown, point).close)
        if rule.mounted:
            (point / "three").mkdir()
            (point / "three" / "file").write_bytes(b"on another file system")
        settle(root)
        made = Pair([devices_with(rule.model, wish, rule.limits) for wish in ("required", "off")], root, **rule.options)
        yield made
        made.close()


@settings(untimed, max_examples=25)
@given(requests=st.lists(ALL, min_size=1, max_size=25))
def test_any_requests_to_a_share_that_has_a_rule_are_answered_alike(ruled: Pair, requests: list[m.Message]) -> None:
    ruled.again()
    for frame in framed(requests):
        ruled.ask(frame)


def test_a_rule_leaves_the_compiled_path_what_it_does_not_concern(ruled: Pair, rule: Rule) -> None:
    plain = framed([m.Twalk(0, 1, (b"small",)), m.Tgetattr(1, 0x7FF), m.Tlopen(1, 0), m.Tread(1, 0, 9), m.Tclunk(1)])
    for _ in range(2):  # what nobody has looked at yet is not known
        replies = [m.decode(reply)[1] for reply in ruled.ask(*plain)]
        assert [type(reply).__name__ for reply in replies] == ["Rwalk", "Rgetattr", "Rlopen", "Rread", "Rclunk"]
    assert (ruled.compiled() > 0) == rule.serves_some


def test_plain_requests_are_served_by_the_compiled_path_and_counted_as_others_are(pair: Pair) -> None:
    walk = (m.Twalk(0, 1, (b"small",)), m.Tgetattr(1, 0x7FF), m.Tlopen(1, 0), m.Tread(1, 0, 100), m.Tclunk(1))
    pair.ask(*framed(list(walk)))  # what nobody has looked at yet is not known: Python looks
    before = pair.compiled()
    replies = [m.decode(reply)[1] for reply in pair.ask(*framed(list(walk)))]
    assert [type(reply).__name__ for reply in replies] == ["Rwalk", "Rgetattr", "Rlopen", "Rread", "Rclunk"]
    assert pair.compiled() - before == len(walk)


def test_a_write_is_served_by_the_compiled_path_and_is_all_there(pair: Pair) -> None:
    data = bytes(range(256)) * 256
    pair.ask(*framed([m.Twalk(0, 1, (b"large",)), m.Tlopen(1, 2)]))
    before = pair.compiled()
    pair.ask(*framed([m.Twrite(1, 100_000, data)]))
    assert pair.compiled() == before + 1
    assert (pair.root / "large").read_bytes()[100_000 : 100_000 + len(data)] == data


def test_a_write_to_a_file_with_set_id_takes_the_bits_off_all_the_same(pair: Pair) -> None:
    pair.ask(*framed([m.Twalk(0, 1, (b"set-id",)), m.Tlopen(1, 1)]))
    before = pair.compiled()
    pair.ask(*framed([m.Twrite(1, 0, b"!#")]))
    assert pair.compiled() == before, "a write that takes bits off is for its handler"
    assert (pair.root / "set-id").stat().st_mode & 0o6000 == 0


def test_a_directory_is_listed_alike_while_it_changes(pair: Pair) -> None:
    (pair.root / "one" / ("n" * 255)).write_bytes(b"")
    pair.ask(*framed([m.Twalk(0, 1, (b"one",)), m.Tlopen(1, 0)]))
    names = b""
    for offset in (0, 0, 40, 3, 290, 0):
        (reply,) = pair.ask(*framed([m.Treaddir(1, offset, 4096)]))
        names += reply
    assert b"entry-7" in names
    for offset in (0, 200, 302):
        pair.ask(*framed([m.Treaddir(1, offset, 65536)]))


def test_what_stands_for_a_link_or_a_device_is_listed_as_one(devices_with: Devices, xattr_directory: Path) -> None:
    root = xattr_directory / f"compiled-types-{os.urandom(4).hex()}"
    root.mkdir()
    pair = Pair([devices_with("mapped-xattr", wish) for wish in ("required", "off")], root)
    try:
        guest = pair.clients[0]
        guest.rpc(m.Tsymlink(0, b"mapped-link", b"anywhere", 0))
        guest.rpc(m.Tmknod(0, b"mapped-node", 0o020666, 1, 3, 0))
        guest.rpc(m.Tmkdir(0, b"directory", 0o755, 0))
        replies = pair.ask(*framed([m.Twalk(0, 1, ()), m.Tlopen(1, 0), m.Treaddir(1, 0, 8192)]))
        from uvmshare.ninep.types import decode_entries

        listed = m.decode(replies[2])[1]
        assert isinstance(listed, m.Rreaddir)
        found = {entry.name: entry.type for entry in decode_entries(listed.data)}
        assert (found[b"mapped-link"], found[b"mapped-node"], found[b"directory"]) == (10, 2, 4)
    finally:
        pair.close()


_ENCODES: Final = """
import ctypes, os, sys
import uvmshare_speed
from uvmshare.fileserver import syscalls
from uvmshare.fileserver.mount import seccomp
from uvmshare.fileserver.mount.files import virtfs

directory = os.open(sys.argv[1], os.O_RDONLY)
if sys.argv[2] == "refused":
    calls = seccomp.allowed_calls(read_only=False, as_guest_users=False) - {"getxattrat"}
    syscalls.no_new_privileges()
    seccomp.install(calls)
asked = []
buffer = ctypes.create_string_buffer(1 << 16)
raw = ctypes.string_at(buffer, syscalls.getdents64(directory, buffer))
mark = virtfs.MODE.encode()
uvmshare_speed.encode(
    raw, 0, 1 << 48, 0, bytes(16), 0, directory, mark, lambda path: asked.append(os.path.basename(path).decode()) or 8
)
os._exit(0 if asked == ["marked"] else 3)  # the filter lets nothing be written
"""


@pytest.mark.parametrize("getxattrat", ["allowed", "refused"])
def test_files_with_the_attribute_of_a_type_alone_are_looked_at(xattr_directory: Path, getxattrat: str) -> None:
    root = xattr_directory / f"compiled-marks-{os.urandom(4).hex()}"
    root.mkdir()
    for name, attribute in (("marked", "user.virtfs.mode"), ("other", "user.virtfs.uid"), ("plain", None)):
        (root / name).write_bytes(b"")
        if attribute is not None:
            os.setxattr(root / name, attribute, b"\x00\xa0\x00\x00")
    done = subprocess.run([sys.executable, "-P", "-c", _ENCODES, str(root), getxattrat], check=False)
    assert done.returncode == 0


def test_a_directory_whose_names_or_inodes_are_too_large_is_left_to_the_handler() -> None:
    encode = importlib.import_module("uvmshare_speed").encode

    def encoded(inode: int, name: bytes) -> object:
        length = -(-(20 + len(name)) // 8) * 8
        raw = (struct.pack("<QqHB", inode, 1, length, 8) + name).ljust(length, b"\0")
        return encode(raw, 0, 1 << 48, 0, bytes(16), 0, 3, b"user.virtfs.mode", None)

    entry = struct.pack("<BIQQBH", 0, 0, 5, 1, 8, 255) + b"n" * 255
    assert encoded(5, b"n" * 255) == (entry, struct.pack("<I", len(entry)), struct.pack("<q", 1))
    assert encoded(5, "\N{HIRAGANA LETTER A}".encode() * 255) is None, "a name of FAT's"
    assert encoded(1 << 48, b"name") is None


def test_a_read_only_share_refuses_alike(devices_with: Devices, root: Path) -> None:
    pair = Pair([devices_with("none", wish) for wish in ("required", "off")], root, read_only=True)
    try:
        for flags in range(4):
            (_, opened, written, _) = pair.ask(
                *framed([m.Twalk(0, 1, (b"file",)), m.Tlopen(1, flags), m.Twrite(1, 0, b"x"), m.Tclunk(1)])
            )
            assert (opened[4] == m.Rlerror.type) == (flags & ACCESS != 0)
            assert written[4] == m.Rlerror.type
    finally:
        pair.close()


def test_what_the_host_moves_out_of_the_share_is_not_opened(pair: Pair, tmp_path: Path) -> None:
    pair.ask(*framed([m.Twalk(0, 1, (b"one", b"two")), m.Twalk(1, 2, (b"three", b"file")), m.Tgetattr(2, 0x7FF)]))
    (pair.root / "one" / "two").rename(pair.root.parent / f"moved-{pair.root.name}")
    replies = pair.ask(*framed([m.Twalk(1, 3, (b"three",)), m.Tlopen(2, 0), m.Twalk(0, 4, (b"one", b"two"))]))
    assert [reply[4] for reply in replies[:2]] == [m.Rlerror.type] * 2


def test_a_module_of_another_contract_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("uvmshare_speed"), "CONTRACT", speed.CONTRACT + 1)
    assert speed._find("")[0] is None
    assert "another version" in speed._find("")[1]
    with pytest.raises(Exception, match="another version"):
        speed._find("required")


def test_a_program_that_requires_it_and_has_it_not_says_what_to_install() -> None:
    code = "import sys; sys.modules['uvmshare_speed'] = None; import uvmshare.fileserver.speed"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, speed.VARIABLE: "required"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "pip install ./native in a clone of uvmshare" in done.stderr
