"""What runs aside: fsync and slow reads do not hold up a mount, and a Tflush comes behind its request."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from tests.processes import DEADLINE

from uvmshare.fileserver.mount import outbox, waiting
from uvmshare.fileserver.mount import serving as serving_module
from uvmshare.fileserver.mount.aside import Aside
from uvmshare.fileserver.mount.files.openfile import OpenFile
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOTAG, VERSION
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fileserver.harness import Host

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


def an_open_file() -> OpenFile:
    return OpenFile(os.open(os.devnull, os.O_RDONLY), (0, 0))


class Jobs:
    """An `Aside` whose jobs end when they are told to, and what it has sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.broken = False
        self._came = threading.Condition()
        self.aside = Aside(self._send)

    def _send(self, replies: bytes) -> None:
        with self._came:
            broken = self.broken  # before anybody learns that it was sent, and mends it
            self.sent.append(replies)
            self._came.notify_all()
        if broken:
            raise BrokenPipeError

    def start(self, tag: int, reply: bytes, size: int = 0) -> threading.Event:
        """Start a job that answers `reply` once the event is set."""
        goes_on = threading.Event()

        def work() -> bytes:
            assert goes_on.wait(DEADLINE)
            return reply

        assert self.aside.start(tag, size, an_open_file(), work)
        return goes_on

    def wait_for(self, count: int) -> list[bytes]:
        """Wait until so many pieces were sent; return all."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.sent) >= count, DEADLINE)
            return list(self.sent)


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    made = Jobs()
    yield made
    made.aside.close()


def test_a_job_answers_when_it_is_done(jobs: Jobs) -> None:
    goes_on = jobs.start(1, b"reply")
    assert list(jobs.aside.pending) == [1]
    assert jobs.sent == []
    goes_on.set()
    assert jobs.wait_for(1) == [b"reply"]


def test_jobs_answer_in_any_order(jobs: Jobs) -> None:
    first, second = jobs.start(1, b"first"), jobs.start(2, b"second")
    second.set()
    assert jobs.wait_for(1) == [b"second"]
    first.set()
    assert jobs.wait_for(2) == [b"second", b"first"]


def test_flushes_come_behind_the_answer_in_one_piece(jobs: Jobs) -> None:
    goes_on = jobs.start(1, b"reply")
    assert jobs.aside.flush(1, b" flushed")
    assert jobs.aside.flush(1, b" flushed again")
    assert jobs.sent == []
    goes_on.set()
    assert jobs.wait_for(1) == [b"reply flushed flushed again"]


def test_a_flush_of_what_is_not_under_way(jobs: Jobs) -> None:
    assert not jobs.aside.flush(1, b"flushed")
    jobs.start(1, b"reply").set()
    jobs.wait_for(1)
    assert not jobs.aside.flush(2, b"flushed")


def test_a_dropped_job_says_nothing(jobs: Jobs) -> None:
    dropped = jobs.start(1, b"dropped")
    jobs.aside.flush(1, b"flushed")
    jobs.aside.drop_all()
    assert jobs.aside.pending == {}
    again = jobs.start(1, b"again")  # the tag is free
    dropped.set()
    again.set()
    assert jobs.wait_for(1) == [b"again"]
    jobs.aside.close()
    assert jobs.sent == [b"again"]


def test_a_dropped_job_does_not_take_the_new_ones_place(jobs: Jobs) -> None:
    dropped = jobs.start(1, b"dropped")
    jobs.aside.drop_all()
    again = jobs.start(1, b"again")
    dropped.set()
    jobs.start(2, b"other").set()
    jobs.wait_for(1)
    assert 1 in jobs.aside.pending
    again.set()
    assert sorted(jobs.wait_for(2)) == [b"again", b"other"]


def test_a_guest_that_is_gone_breaks_nothing(jobs: Jobs) -> None:
    jobs.broken = True
    jobs.start(1, b"lost").set()
    jobs.wait_for(1)
    jobs.broken = False
    jobs.start(2, b"reply").set()
    assert jobs.wait_for(2) == [b"lost", b"reply"]


def test_there_are_only_so_many_jobs(jobs: Jobs) -> None:
    events = [jobs.start(tag, b"x") for tag in range(64)]
    assert not jobs.aside.start(64, 0, an_open_file(), lambda: b"never")
    events[0].set()
    jobs.wait_for(1)
    jobs.start(64, b"x").set()
    for event in events:
        event.set()
    assert len(jobs.wait_for(65)) == 65


def test_requests_that_wait_for_other_file_systems_take_no_jobs_place(jobs: Jobs) -> None:
    class Errand:
        def __init__(self) -> None:
            self.flushes: list[bytes] = []
            self.dropped = False

    jobs.aside.pending.update({tag: Errand() for tag in range(100, 200)})
    jobs.start(1, b"x").set()
    assert jobs.wait_for(1) == [b"x"]


def test_replies_hold_only_so_much_memory(jobs: Jobs) -> None:
    goes_on = jobs.start(1, b"x", size=10 << 20)
    assert not jobs.aside.start(2, 10 << 20, an_open_file(), lambda: b"never")
    small = jobs.start(3, b"small", size=1 << 20)
    goes_on.set()
    jobs.wait_for(1)
    jobs.start(2, b"x", size=10 << 20).set()
    small.set()
    assert len(jobs.wait_for(3)) == 3


# The session, with a file system that is slow when it is told to be

in_process = pytest.mark.parametrize("model", ["in-process"])


class Disk:
    """Stands in for what waits on a disk; each call waits until it may go on."""

    def __init__(self) -> None:
        self.goes_on = threading.Event()
        self.error: OSError | None = None

    def wait(self, *_: object) -> None:
        assert self.goes_on.wait(DEADLINE)
        if self.error is not None:
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    stands_in, read = Disk(), os.pread

    def slow_read(descriptor: int, count: int, offset: int) -> bytes:
        stands_in.wait()
        return read(descriptor, count, offset)

    def nothing_is_cached(*_: object) -> None:
        return None

    monkeypatch.setattr(os, "fsync", stands_in.wait)
    monkeypatch.setattr(os, "fdatasync", stands_in.wait)
    monkeypatch.setattr(os, "pread", slow_read)
    monkeypatch.setattr(outbox, "_read_now", nothing_is_cached)
    monkeypatch.setattr(serving_module, "_AHEAD_MOST", -1)  # a thread reads at once
    yield stands_in
    stands_in.goes_on.set()


REQUESTS: dict[str, Callable[[int], m.Message]] = {
    "fsync": lambda fid: m.Tfsync(fid, 0),
    "fdatasync": lambda fid: m.Tfsync(fid, 1),
    "read": lambda fid: m.Tread(fid, 0, 100),
}
each_request = pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS.keys())
ANSWERS = (m.Rfsync(), m.Rread(b"content"))


@pytest.fixture
def fid(host: Host, guest: NinePClient) -> int:
    (host.root / "f").write_bytes(b"content")
    return guest.open("f", O.RDWR)


@in_process
@each_request
def test_others_are_served_meanwhile(
    guest: NinePClient, fid: int, disk: Disk, request_of: Callable[[int], m.Message]
) -> None:
    tag = guest.send(request_of(fid))
    assert guest.getattr(fid).size == 7
    guest.write_file("other", b"x")
    disk.goes_on.set()
    assert guest.wait(tag) in ANSWERS


@in_process
@each_request
def test_a_flush_waits_for_its_request(
    guest: NinePClient, fid: int, disk: Disk, request_of: Callable[[int], m.Message]
) -> None:
    tag = guest.send(request_of(fid))
    flush = guest.send(m.Tflush(tag))
    again = guest.send(m.Tflush(tag))
    guest.getattr(fid)  # answered; the three before are not
    assert not {tag, flush, again} & guest._replies.keys()
    disk.goes_on.set()
    order = [guest.recv()[0] for _ in range(3)]
    assert order == [tag, flush, again]


@in_process
@each_request
def test_its_tag_is_in_use(guest: NinePClient, fid: int, disk: Disk, request_of: Callable[[int], m.Message]) -> None:
    tag = guest.send(request_of(fid))
    guest.send_raw(m.Tgetattr(fid, 0).encode(tag))
    assert guest.recv() == (tag, m.Rlerror(errno.EINVAL))
    disk.goes_on.set()
    assert guest.recv()[1] in ANSWERS
    guest.send_raw(m.Tgetattr(fid, 0).encode(tag))
    assert isinstance(guest.recv()[1], m.Rgetattr)


@in_process
@each_request
def test_an_error_comes_back(guest: NinePClient, fid: int, disk: Disk, request_of: Callable[[int], m.Message]) -> None:
    disk.error = OSError(errno.EIO, "the disk is broken")
    disk.goes_on.set()
    tag = guest.send(request_of(fid))
    with pytest.raises(OSError, match="in answer to") as caught:
        guest.wait(tag)
    assert caught.value.errno == errno.EIO


@in_process
@each_request
def test_its_fid_may_be_clunked_meanwhile(
    host: Host, guest: NinePClient, fid: int, disk: Disk, request_of: Callable[[int], m.Message]
) -> None:
    tag = guest.send(request_of(fid))
    guest.clunk(fid)
    other = guest.open("f")  # might be given the same descriptor, were it closed
    disk.goes_on.set()
    assert guest.wait(tag) in ANSWERS
    assert guest.getattr(other).size == 7


@in_process
@each_request
def test_a_new_session_hears_nothing_of_it(
    host: Host, guest: NinePClient, fid: int, disk: Disk, request_of: Callable[[int], m.Message]
) -> None:
    guest.send(request_of(fid))
    guest.send_raw(m.Tversion(8192, VERSION).encode(NOTAG))
    assert isinstance(guest.recv()[1], m.Rversion)
    disk.goes_on.set()
    guest._sent.clear()
    guest.version(8192)
    assert guest._replies == {}


@in_process
@each_request
def test_a_guest_that_hangs_up_meanwhile_is_seen_off(
    guest: NinePClient, fid: int, disk: Disk, request_of: Callable[[int], m.Message]
) -> None:
    guest.send(request_of(fid))
    guest.getattr(fid)
    guest.close()
    disk.goes_on.set()  # the fixture of the share waits for the session's end


@in_process
def test_more_than_may_wait_are_served_in_turn(guest: NinePClient, fid: int, disk: Disk) -> None:
    tags = [guest.send(m.Tfsync(fid, 0)) for _ in range(100)]
    disk.goes_on.set()
    assert [guest.wait(tag) for tag in tags] == [m.Rfsync()] * 100


@in_process
@pytest.mark.parametrize("count", [100, 300_000, 1_000_000])
def test_what_is_read_aside_is_what_is_there(host: Host, guest: NinePClient, disk: Disk, count: int) -> None:
    data = os.urandom(1_000_000)
    (host.root / "large").write_bytes(data)
    disk.goes_on.set()
    fid = guest.open("large")
    assert guest.read(fid, 10, count) == data[10 : 10 + count]
    assert guest.read(fid, 999_999, count) == data[-1:]
    assert guest.read(fid, 1_000_000, count) == b""
    assert guest.read_file("large") == data


# Reads that are tried again while the kernel reads ahead


class Ahead:
    """A page cache that has nothing until it is told that the data has come; and no thread may read."""

    def __init__(self) -> None:
        self.has_come = threading.Event()
        self.tried = threading.Event()
        self.error: OSError | None = None
        self._read = outbox._read_now

    def read_now(self, file: OpenFile, into: memoryview, offset: int) -> int | None:
        if not self.has_come.is_set():
            self.tried.set()
            return None
        if self.error is not None:
            raise self.error
        return self._read(file, into, offset)


def no_thread(*_: object) -> bytes:
    raise AssertionError


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ahead]:
    made = Ahead()
    monkeypatch.setattr(outbox, "_read_now", made.read_now)
    monkeypatch.setattr(os, "pread", no_thread)
    monkeypatch.setattr(serving_module, "_AHEAD_SECONDS", 1e9)
    yield made
    made.has_come.set()


@in_process
def test_a_read_whose_data_is_on_its_way_is_answered_by_the_loop_itself(
    guest: NinePClient, fid: int, ahead: Ahead
) -> None:
    tags = [guest.send(m.Tread(fid, offset, 3)) for offset in (0, 3)]
    assert guest.getattr(fid).size == 7
    assert not set(tags) & guest._replies.keys()
    ahead.has_come.set()
    assert [guest.wait(tag) for tag in tags] == [m.Rread(b"con"), m.Rread(b"ten")]


@in_process
def test_a_flush_takes_a_read_back_whose_data_is_on_its_way(guest: NinePClient, fid: int, ahead: Ahead) -> None:
    tag = guest.send(m.Tread(fid, 0, 100))
    assert guest.ask(m.Tflush(tag), m.Rflush) == m.Rflush()
    ahead.has_come.set()
    guest.send_raw(m.Tgetattr(fid, 0).encode(tag))  # the tag is free
    got, reply = guest.recv()
    assert (got, type(reply)) == (tag, m.Rgetattr)


@in_process
def test_the_tag_of_a_read_whose_data_is_on_its_way_is_in_use(guest: NinePClient, fid: int, ahead: Ahead) -> None:
    tag = guest.send(m.Tread(fid, 0, 100))
    guest.send_raw(m.Tgetattr(fid, 0).encode(tag))
    assert guest.recv() == (tag, m.Rlerror(errno.EINVAL))
    ahead.has_come.set()
    assert guest.recv() == (tag, m.Rread(b"content"))


@in_process
def test_a_read_whose_data_does_not_come_has_an_error(guest: NinePClient, fid: int, ahead: Ahead) -> None:
    tag = guest.send(m.Tread(fid, 0, 100))
    assert ahead.tried.wait(DEADLINE)
    ahead.error = OSError(errno.EIO, "the disk is broken")
    ahead.has_come.set()
    with pytest.raises(OSError, match="in answer to") as caught:
        guest.wait(tag)
    assert caught.value.errno == errno.EIO


@in_process
def test_a_fid_may_be_clunked_while_its_data_is_on_its_way(guest: NinePClient, fid: int, ahead: Ahead) -> None:
    tag = guest.send(m.Tread(fid, 0, 100))
    guest.clunk(fid)
    guest.open("f")  # might be given the same descriptor, were it closed
    ahead.has_come.set()
    assert guest.wait(tag) == m.Rread(b"content")


@in_process
def test_a_new_session_hears_nothing_of_data_that_comes_late(guest: NinePClient, fid: int, ahead: Ahead) -> None:
    guest.send(m.Tread(fid, 0, 100))
    assert ahead.tried.wait(DEADLINE)
    guest.send_raw(m.Tversion(8192, VERSION).encode(NOTAG))
    assert isinstance(guest.recv()[1], m.Rversion)
    ahead.has_come.set()
    guest._sent.clear()
    guest.version(8192)
    assert guest._replies == {}


@in_process
@pytest.mark.parametrize("reason", ["slow", "refused", "many"])
def test_a_thread_reads_what_does_not_come_soon(
    guest: NinePClient, fid: int, ahead: Ahead, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ESPIPE, "no reading ahead")

    monkeypatch.setattr(os, "pread", lambda *_: b"by a thread")
    if reason == "slow":
        monkeypatch.setattr(serving_module, "_AHEAD_SECONDS", -1.0)
    elif reason == "refused":
        monkeypatch.setattr(os, "posix_fadvise", refused)
    else:
        monkeypatch.setattr(serving_module, "_MOST_AHEAD", 0)
    assert guest.read(fid, 0, 100) == b"by a thread"
    assert not ahead.has_come.is_set()


def test_a_connection_of_any_number_is_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        high = socket.socket(fileno=fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, 1100))  # past what select(2) takes
        with high:
            for connection in (ours, high):
                assert not waiting.is_readable(connection, 0)
            theirs.send(b"x")
            for connection in (ours, high):
                assert waiting.is_readable(connection, DEADLINE)
