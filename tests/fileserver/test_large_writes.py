"""Large writes go from the socket straight to the file; the guest sees no difference, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

import pytest

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

if TYPE_CHECKING:
    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

SIZE = 900_001
DATA = os.urandom(SIZE)
in_process = pytest.mark.parametrize("model", ["in-process"])


@pytest.fixture
def fid(host: Host, guest: NinePClient) -> int:
    (host.root / "f").write_bytes(b"before")
    return guest.open("f", O.RDWR)


@pytest.fixture
def splices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How much each splice(2) of this process has moved."""
    moved: list[int] = []
    splice = os.splice

    def noted(source: int, sink: int, count: int, offset_dst: int | None = None) -> int:
        moved.append(splice(source, sink, count, offset_dst=offset_dst))
        return moved[-1]

    monkeypatch.setattr(os, "splice", noted)
    return moved


@pytest.mark.parametrize("offset", [0, 3, 1 << 20])
@pytest.mark.parametrize("size", [131_072, 200_000, SIZE])
def test_a_large_write_is_in_the_file(host: Host, guest: NinePClient, fid: int, offset: int, size: int) -> None:
    for _ in range(2):  # the second one is expected, and received differently
        assert guest.ask(m.Twrite(fid, offset, DATA[:size]), m.Rwrite).count == size
    content = (host.root / "f").read_bytes()
    assert content[offset : offset + size] == DATA[:size]
    assert content[:offset] == (b"before" + bytes(offset))[:offset]
    assert len(content) == offset + size


def test_requests_around_large_writes_are_answered(host: Host, guest: NinePClient, fid: int) -> None:
    stream, expected = b"", list[m.Message]()
    for number in range(6):
        piece = DATA[number * 140_000 : (number + 1) * 140_000]
        messages: list[m.Message] = [
            *(m.Tgetattr(fid, 0x7FF), m.Twrite(fid, number * 140_000, piece)),
            *(m.Twrite(fid, 2_000_000 + number * 3, b"abc"), m.Tread(fid, number * 140_000, 10)),
        ]
        for message in messages:
            stream += message.encode(len(expected))
            expected.append(message)
    guest.send_raw(stream)
    replies = dict(guest.recv() for _ in expected)
    for tag, message in enumerate(expected):
        reply = replies[tag]
        if isinstance(message, m.Twrite):
            assert reply == m.Rwrite(len(message.data))
        elif isinstance(message, m.Tread):
            assert reply == m.Rread(DATA[message.offset : message.offset + 10])
        else:
            assert isinstance(reply, m.Rgetattr)
    assert (host.root / "f").read_bytes()[: 6 * 140_000] == DATA[: 6 * 140_000]


@pytest.mark.parametrize("cut", [1, 7, 11, 22, 23, 24, 5000, 69_632, 200_000])
def test_a_large_write_that_comes_in_two_pieces(host: Host, guest: NinePClient, fid: int, cut: int) -> None:
    frame = m.Twrite(fid, 0, DATA).encode(1)
    guest.send_raw(frame[:cut])
    guest.send_raw(frame[cut:])
    assert guest.recv() == (1, m.Rwrite(SIZE))
    assert (host.root / "f").read_bytes() == DATA


@in_process
def test_the_data_is_spliced_and_not_received(guest: NinePClient, fid: int, splices: list[int]) -> None:
    guest.ask(m.Twrite(fid, 0, DATA), m.Rwrite)
    assert sum(splices) >= 2 * (SIZE - 69_632)  # into the pipe and out of it
    splices.clear()
    guest.ask(m.Twrite(fid, 0, DATA), m.Rwrite)
    assert sum(splices) >= 2 * (SIZE - 4096)


@pytest.mark.parametrize("extra", [-1, 1, 4000, -SIZE])
def test_a_count_that_is_not_that_of_the_data_breaks_the_protocol(guest: NinePClient, fid: int, extra: int) -> None:
    frame = bytearray(m.Twrite(fid, 0, DATA).encode(1))
    frame[19:23] = (SIZE + extra).to_bytes(4, "little")
    guest.send_raw(bytes(frame))
    assert guest.drain() == []


def test_a_large_write_past_msize_breaks_the_protocol(host: Host) -> None:
    name = host.share()
    guest = host.connect(name, msize=65536)
    fid = guest.create("new", O.RDWR)
    guest.send_raw(m.Twrite(fid, 0, bytes(300_000)).encode(1)[:100])
    assert guest.drain() == []
    assert (host.root / "new").read_bytes() == b""


def test_what_cannot_be_written_is_refused_and_the_data_skipped(host: Host, guest: NinePClient, fid: int) -> None:
    reading = guest.open("f", O.RDONLY)
    walked = guest.walk("f")
    directory = guest.open("", O.DIRECTORY)
    for bad in (7777, reading, walked, guest.root, directory):
        guest.send(m.Twrite(bad, 0, DATA))
        reply = guest.recv()[1]
        assert reply == m.Rlerror(errno.EBADF), bad
    assert guest.getattr(fid).size == 6
    assert (host.root / "f").read_bytes() == b"before"


def test_a_read_only_share_takes_no_large_write(host: Host, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"before")
    guest = host.guest(read_only=True)
    fid = guest.open("f")
    with refused(errno.EROFS):
        guest.rpc(m.Twrite(fid, 0, DATA))
    assert (host.root / "f").read_bytes() == b"before"


@pytest.mark.parametrize("flag", [O.APPEND, O.SYNC, O.DSYNC])
def test_a_file_that_appends_or_waits_for_the_disk(host: Host, guest: NinePClient, flag: O) -> None:
    (host.root / "f").write_bytes(b"before")
    fid = guest.open("f", O.WRONLY | flag)
    assert guest.ask(m.Twrite(fid, 0, DATA), m.Rwrite).count == SIZE
    before = b"before" if flag == O.APPEND else b""
    assert (host.root / "f").read_bytes() == before + DATA


def test_a_large_write_at_an_offset_that_cannot_be(guest: NinePClient, fid: int) -> None:
    for offset in ((1 << 63) - 10, 1 << 63, (1 << 64) - 1):
        guest.send(m.Twrite(fid, offset, DATA))
        reply = guest.recv()[1]
        assert isinstance(reply, m.Rlerror)
    assert guest.getattr(fid).size == 6


@pytest.mark.parametrize("cut", [23, 100_000, SIZE])
def test_a_guest_that_hangs_up_in_a_large_write(host: Host, guest: NinePClient, fid: int, cut: int) -> None:
    guest.send_raw(m.Twrite(fid, 0, DATA).encode(1)[:cut])
    guest.hang_up()
    assert guest.drain() == []
    host.guest().stat("f")  # others go on


def failing(monkeypatch: pytest.MonkeyPatch, at: int, number: int) -> None:
    """Have the so many-th move from the pipe to the file fail; there are several, however fast the data comes."""
    splice, count = os.splice, [0]

    def fails(source: int, sink: int, size: int, offset_dst: int | None = None) -> int:
        if offset_dst is None:
            return splice(source, sink, min(size, SIZE // 8))
        count[0] += 1
        if count[0] == at:
            raise OSError(number, os.strerror(number))
        return splice(source, sink, size, offset_dst=offset_dst)

    monkeypatch.setattr(os, "splice", fails)


@in_process
@pytest.mark.parametrize("at", [1, 2])
def test_a_disk_that_is_full_in_the_middle_is_an_error(
    host: Host, guest: NinePClient, fid: int, monkeypatch: pytest.MonkeyPatch, *, refused: Refused, at: int
) -> None:
    failing(monkeypatch, at, errno.ENOSPC)
    with refused(errno.ENOSPC):
        guest.rpc(m.Twrite(fid, 0, DATA))
    content = (host.root / "f").read_bytes()
    assert 0 < len(content) < SIZE
    assert content == DATA[: len(content)]
    assert guest.read(fid, 0, 10) == DATA[:10]  # what was not written was skipped


@in_process
def test_a_file_system_that_takes_nothing_is_not_asked_for_ever(
    host: Host, guest: NinePClient, fid: int, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    splice, refusals = os.splice, [0]

    def takes_nothing(source: int, sink: int, size: int, offset_dst: int | None = None) -> int:
        if offset_dst is None:
            return splice(source, sink, size)
        refusals[0] += 1
        assert refusals[0] == 1
        return 0

    monkeypatch.setattr(os, "splice", takes_nothing)
    with refused(errno.EIO):
        guest.rpc(m.Twrite(fid, 0, DATA))
    content = (host.root / "f").read_bytes()
    assert 0 < len(content) < SIZE
    assert content == DATA[: len(content)]
    assert guest.read(fid, 0, 10) == DATA[:10]  # what was not written was skipped


@in_process
def test_a_file_system_that_cannot_splice_gets_copies(
    host: Host, guest: NinePClient, fid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, errno.EINVAL)
    assert guest.ask(m.Twrite(fid, 0, DATA), m.Rwrite).count == SIZE
    assert (host.root / "f").read_bytes() == DATA
    assert guest.ask(m.Twrite(fid, 5, DATA), m.Rwrite).count == SIZE
    assert (host.root / "f").read_bytes()[5:] == DATA


@in_process
def test_a_copy_that_fails_leaves_nothing_in_the_pipe(
    host: Host, guest: NinePClient, fid: int, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    failing(monkeypatch, 1, errno.EINVAL)
    pwrite, count = os.pwrite, [0]

    def full(descriptor: int, data: bytes, offset: int) -> int:
        count[0] += 1
        if count[0] == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(descriptor, data if count[0] == 1 else data[:1000], offset)

    monkeypatch.setattr(os, "pwrite", full)
    with refused(errno.ENOSPC):
        guest.rpc(m.Twrite(fid, 0, DATA))
    content = (host.root / "f").read_bytes()
    assert content == DATA[: len(content)]
    assert 1000 <= len(content) < SIZE
    assert guest.getattr(fid).size == len(content)


@in_process
def test_where_there_is_no_pipe_it_is_received_first(
    host: Host, guest: NinePClient, fid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_pipe() -> tuple[int, int]:
        raise OSError(errno.EMFILE, "no more descriptors")

    def no_splice(*_: object) -> int:
        raise AssertionError

    monkeypatch.setattr(os, "pipe", no_pipe)
    monkeypatch.setattr(os, "splice", no_splice)
    assert guest.ask(m.Twrite(fid, 0, DATA), m.Rwrite).count == SIZE
    assert (host.root / "f").read_bytes() == DATA


@in_process
def test_a_beginning_that_is_written_in_part_is_written_again(
    host: Host, guest: NinePClient, fid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite, refusals = os.pwrite, [1]

    def short_once(descriptor: int, data: bytes, offset: int) -> int:
        return pwrite(descriptor, data[:1] if refusals and refusals.pop() else data, offset)

    monkeypatch.setattr(os, "pwrite", short_once)
    assert guest.ask(m.Twrite(fid, 0, DATA), m.Rwrite).count == SIZE
    assert (host.root / "f").read_bytes() == DATA


def test_the_setuid_bit_goes_before_a_large_write_by_a_user(host: Host) -> None:
    guest = host.guest(n_uname=0)
    fid = guest.create("f", O.RDWR, mode=0o4755)
    user = guest.attach(host._names[-1], n_uname=1000)
    other = guest.walk("f", start=user)
    guest.ask(m.Tlopen(other, O.RDWR), m.Rlopen)
    assert guest.ask(m.Twrite(other, 0, DATA), m.Rwrite).count == SIZE
    assert guest.getattr(fid).mode & 0o7000 == 0
