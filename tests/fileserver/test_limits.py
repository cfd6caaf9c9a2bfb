"""What a VM and a mount may use of the host: each limit is an errno or a closed connection, and a line in the log."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.processes import DEADLINE

from uvmshare import FileServer
from uvmshare.daemon.documents import NewVm
from uvmshare.errors import ConnectionClosed, FileServerError
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.throttle import Throttle
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Device, Refused


if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

deterministic = settings(deadline=None, derandomize=True, database=None)


@dataclass
class Clock:
    """A time that only sleeping and `passes` move."""

    now: float = 1000.0
    slept: float = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept += seconds
        self.now += seconds


def throttle(clock: Clock, **rates: int) -> Throttle:
    return Throttle(Limits.of(rates), clock=clock, sleep=clock.sleep)


def test_without_a_rate_nothing_waits() -> None:
    clock = Clock()
    free = throttle(clock)
    assert not free.is_needed
    free.spend(1_000_000, 1 << 40)
    assert clock.slept == 0


def test_a_burst_is_free_and_the_rest_takes_its_time() -> None:
    clock = Clock()
    held = throttle(clock, operations_per_second=100)
    assert held.is_needed
    held.spend(25, 1 << 40)  # a quarter of a second's worth; bytes have no rate
    assert clock.slept == 0
    for _ in range(100):
        held.spend(1, 0)
    assert clock.slept == pytest.approx(1.0)


def test_a_pause_refills_no_more_than_a_burst() -> None:
    clock = Clock()
    held = throttle(clock, operations_per_second=100)
    clock.now += 3600
    held.spend(25, 0)
    assert clock.slept == 0
    held.spend(1, 0)
    assert clock.slept == pytest.approx(0.01)


def test_one_large_request_is_delayed_and_not_refused() -> None:
    clock = Clock()
    held = throttle(clock, bytes_per_second=1000)
    held.spend(1, 1_000_250)
    assert clock.slept == pytest.approx(1000.0)
    held.spend(1, 0)
    assert clock.slept == pytest.approx(1000.0)  # it has been paid for


@deterministic
@given(
    st.integers(1, 1000),
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50_000), st.floats(0, 5)), max_size=60),
)
def test_no_more_than_the_rates_and_a_burst(operations: int, size: int, turns: list[tuple[int, int, float]]) -> None:
    clock = Clock()
    held = throttle(clock, operations_per_second=operations, bytes_per_second=size)
    begin, spent = clock.now, [0, 0]
    for count, cost, pause in turns:
        held.spend(count, cost)
        spent[0] += count
        spent[1] += cost
        passed = clock.now - begin
        for total, rate in zip(spent, (operations, size), strict=True):
            assert total <= rate * (passed + 0.25) * (1 + 1e-9) + 1e-6
        clock.now += pause


# A real server


def serve(start_device: Callable[..., Device], tmp_path: Path, limits: Limits) -> tuple[Device, str, Path]:
    root = (tmp_path / "root").resolve()
    root.mkdir()
    (root / "file").write_bytes(b"content")
    log = tmp_path / "log"
    device = start_device(security_model="none", log=log, limits=limits)
    return device, device.share(root), log


def lines(device: Device, log: Path, words: str) -> int:
    device.pid()  # a turn of the supervisor's loop: it has written what it had to
    return sum(words in line for line in log.read_text().splitlines())


def test_fids(start_device: Callable[..., Device], tmp_path: Path, refused: Refused) -> None:
    device, name, log = serve(start_device, tmp_path, Limits(fids=10))
    with device.connect(name) as guest:
        for fid in range(100, 109):
            guest.ask(m.Twalk(guest.root, fid), m.Rwalk)
        for _ in range(5):
            with refused(errno.EMFILE):
                guest.rpc(m.Twalk(guest.root, 109))
        with refused(errno.EMFILE):
            guest.rpc(m.Txattrwalk(guest.root, 109, b""))
        with refused(errno.EMFILE):
            guest.attach(name)
        assert lines(device, log, "10 fids") == 1  # said once, not each time
        guest.ask(m.Twalk(108, 108), m.Rwalk)
        guest.ask(m.Tclunk(108), m.Rclunk)
        guest.ask(m.Twalk(guest.root, 109), m.Rwalk)


def test_open_files(start_device: Callable[..., Device], tmp_path: Path, refused: Refused) -> None:
    device, name, log = serve(start_device, tmp_path, Limits(open_files=5))
    with device.connect(name) as guest:
        fids = [guest.open("file") for _ in range(5)]
        with refused(errno.EMFILE):
            guest.open("file")
        with refused(errno.EMFILE):
            guest.open("", O.DIRECTORY)
        with refused(errno.EMFILE):
            guest.create("new")
        assert guest.exists("file")
        assert not guest.exists("new")
        assert lines(device, log, "5 files") == 1
        guest.clunk(fids.pop())
        fids.append(guest.create("new"))
        guest.ask(m.Tremove(fids.pop()), m.Rremove)
        fids.append(guest.open("file"))
        guest.version()
        guest.root = guest.attach(name)
        assert len([guest.open("file") for _ in range(5)]) == 5


def test_connections(start_device: Callable[..., Device], tmp_path: Path) -> None:
    device, name, log = serve(start_device, tmp_path, Limits(connections=3))
    with device.connect(name) as one, device.connect(name) as two, device.dial() as half_open:
        half_open.version()
        with device.dial() as too_many:
            assert too_many.drain() == []
        assert one.listdir() == two.listdir() == [b"file"]
        half_open.root = half_open.attach(name)
        assert half_open.listdir() == [b"file"]
        assert lines(device, log, "there are 3 already") >= 1
        with pytest.raises(ConnectionClosed):
            device.connect(name)


def test_a_silent_mount_is_ended_when_asked_for(start_device: Callable[..., Device], tmp_path: Path) -> None:
    device, name, log = serve(start_device, tmp_path, Limits(idle_seconds=0.05))
    with contextlib.suppress(ConnectionClosed), device.connect(name) as guest:
        assert guest.drain() == []
    assert lines(device, log, "nothing came for 0.05 s") == 1


def test_a_waiting_lock_is_not_silence_for_ever(start_device: Callable[..., Device], tmp_path: Path) -> None:
    device, name, _ = serve(start_device, tmp_path, Limits(idle_seconds=DEADLINE, lock_wait_seconds=0.05))
    with device.connect(name) as guest:
        fid = guest.open("file", O.RDWR)
        guest.ask(m.Tlock(fid, 1, 0, 0, 0, 1, b"vm"), m.Rlock)
        reply = guest.ask(m.Tlock(fid, 1, 1, 0, 0, 2, b"vm"), m.Rlock)
        assert reply.status == 1


def test_rates_slow_a_mount_down_and_change_nothing(start_device: Callable[..., Device], tmp_path: Path) -> None:
    # The first write of a whole message is more than a burst: it waits, however slow the machine is.
    limits = Limits(operations_per_second=10_000, bytes_per_second=4_000_000)
    device, name, log = serve(start_device, tmp_path, limits)
    with device.connect(name) as guest:
        guest.write_file("large", b"x" * 1_100_000)
        assert guest.read_file("large") == b"x" * 1_100_000
        assert {guest.stat("file").size for _ in range(100)} == {7}
        assert lines(device, log, "its rate is 10000 requests and 4000000 bytes a second, which is the limit") == 1


def test_memory(start_device: Callable[..., Device], tmp_path: Path, refused: Refused) -> None:
    limits = Limits(memory_bytes=48 << 20, xattr_bytes=1 << 40)  # so that the one is met and not the other
    device, name, log = serve(start_device, tmp_path, limits)
    with device.connect(name) as guest, device.connect(name) as witness:
        fids: list[int] = []
        with refused(errno.ENOMEM):  # each value is held until its fid is clunked
            for _ in range(2000):
                fids.append(guest.walk("file"))
                guest.ask(m.Txattrcreate(fids[-1], b"user.x", 65536, 0), m.Rxattrcreate)
                guest.ask(m.Twrite(fids[-1], 0, bytes(65535)), m.Rwrite)
        assert len(fids) > 10
        assert lines(device, log, f"{48 << 20} bytes of memory are used, which is the limit") == 1
        assert witness.listdir() == [b"file"]
        for fid in fids:
            with refused(errno.EINVAL):  # a byte is missing
                guest.clunk(fid)
        assert guest.read_file("file") == b"content"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mounts": 0}, "limit mounts is 0: it is less than 1"),
        ({"fids": "many"}, "limit fids is 'many': it has to be a whole number"),
        ({"msize": 100}, "limit msize is 100: it is less than 4096"),
        ({"half_open": -1}, "limit half_open is -1: it is less than 1"),
        ({"handshake_seconds": 0}, "limit handshake_seconds is 0: it is not more than 0"),
        ({"dogs": 1}, "there is no limit 'dogs'; there are "),
    ],
)
def test_a_limit_that_cannot_be_is_refused_with_what_it_has_to_be(values: dict[str, object], words: str) -> None:
    with pytest.raises(FileServerError, match=f"^{words}"):
        Limits.of(values)


def test_whoever_asks_for_a_limit_that_there_is_not_is_told_of_all() -> None:
    with pytest.raises(FileServerError) as refused_for:
        Limits.of({"dogs": 1})
    assert all(field in str(refused_for.value) for field in Limits.__struct_fields__)


def test_limits_are_read_from_text() -> None:
    assert Limits.of({"mounts": "4", "idle_seconds": None, "handshake_seconds": "2.5"}) == Limits(
        mounts=4, handshake_seconds=2.5
    )


def test_a_server_does_not_start_with_limits_that_cannot_be(tmp_path: Path) -> None:
    async def start() -> None:
        await FileServer([f"unix:{tmp_path}/9p"], limits=Limits(mounts=-1)).start()

    with pytest.raises(FileServerError, match="mounts"):
        asyncio.run(start())
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_allowed_is_a_limit_in_commands_and_in_the_daemons_documents() -> None:
    allowed = Limits(read_only_host_locks=True)
    for text in ("true", "1"):
        assert Limits.of({"read_only_host_locks": text}) == allowed
    with pytest.raises(FileServerError, match="read_only_host_locks"):
        Limits.of({"read_only_host_locks": "perhaps"})
    sent = msgspec.json.encode({"id": "vm", "listen": ["unix:/x"], "limits": msgspec.to_builtins(allowed)})
    assert Limits.of(msgspec.json.decode(sent, type=NewVm).limits) == allowed
