"""What mounts have done is counted where the supervisor, and the one after it, can read it."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import signal
from typing import TYPE_CHECKING

import pytest

from uvmshare import AddOptions, FileServer, Manager
from uvmshare.fileserver import counters
from uvmshare.fileserver.counters import BUCKETS, Counted, Counters, Events
from uvmshare.fileserver.mount import sources
from uvmshare.fileserver.mount.listening import Directory, Listening
from uvmshare.fileserver.mount.sources import Group
from uvmshare.fileserver.syscalls import Fanotify
from uvmshare.ninep import messages
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from pathlib import Path


async def counted(server: FileServer) -> Counted:
    (share,) = (await server.status(counters=True)).shares
    (mount,) = share.mounts
    assert mount.counted is not None
    return mount.counted


def _use(guest: NinePClient) -> None:
    guest.read_file("file")
    for _ in range(3):
        with pytest.raises(OSError, match=r"."):
            guest.read_file("missing")
        with pytest.raises(OSError, match=r"."):
            guest.write_file("new", b"")


@pytest.mark.parametrize("with_run_dir", [True, False])
def test_requests_bytes_and_errors_are_counted(tmp_path: Path, *, with_run_dir: bool) -> None:
    (tmp_path / "share").mkdir()
    (tmp_path / "share" / "file").write_bytes(b"x" * 10_000)

    async def test() -> None:
        run_dir = tmp_path / "run" if with_run_dir else None
        async with (
            FileServer(["tcp:127.0.0.1:0"], run_dir=run_dir) as server,
            Manager(server) as shares,
        ):
            name = await shares.add(AddOptions(tmp_path / "share", read_only=True))
            with await asyncio.to_thread(NinePClient.connect, server.addresses[0], name) as guest:
                await asyncio.to_thread(_use, guest)
                first = await counted(server)
                assert first.operations["Tread"] >= 1
                assert first.operations["Twalk"] >= 4
                assert first.errors[errno.ENOENT] == 6, "each write looks whether the file is there"
                assert first.errors[errno.EROFS] == 3
                assert first.sent > 10_000
                assert 100 < first.received < 10_000
                for _ in range(20):
                    await asyncio.to_thread(_use, guest)
                second = await counted(server)
                assert sum(second.operations.values()) > sum(first.operations.values())
                measured = sum(latency.count for latency in second.latencies.values())
                assert 0 < measured < sum(second.operations.values())
                for latency in second.latencies.values():
                    assert sum(latency.buckets) == latency.count
                    assert len(latency.buckets) == len(BUCKETS) + 1
                    assert latency.seconds > 0
                if run_dir is not None:
                    # The next supervisor goes on counting where this one was.
                    again = asyncio.Event()
                    server.on_takeover(lambda _: again.set())
                    os.kill((await server.status()).pid, signal.SIGKILL)
                    await again.wait()
                    third = await counted(server)
                    assert third.operations == second.operations
                    await asyncio.to_thread(_use, guest)
                    assert (await counted(server)).errors[errno.ENOENT] == second.errors[errno.ENOENT] + 6
            await shares.remove(name)
            if run_dir is not None:
                assert os.listdir(run_dir / "counters") == []

    asyncio.run(test())


def test_a_file_that_is_cut_off_or_gone_counts_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "counters")
    made = Counters(path)
    made.count_error(errno.ENOENT)
    made.count_error(100_000)
    assert counters.read(path).errors == {errno.ENOENT: 1, errno.EIO: 1}
    os.truncate(path, 100)
    assert counters.read(path) == Counted()
    os.unlink(path)
    assert counters.read(path) == Counted()


def test_what_a_mount_of_an_earlier_version_has_counted_is_read(tmp_path: Path) -> None:
    path = str(tmp_path / "counters")
    made = Counters(path)
    made.slots[messages.Tread.type] = 3
    made.set_beside(1, 2)
    made.slots[counters.COMPILED] = 3
    made.slots[counters.HEARD] = 3
    size = os.stat(path).st_size
    os.truncate(path, size - 8 * 7)  # it knew of no events
    found = counters.read(path)
    assert (found.operations, found.compiled, found.events) == ({"Tread": 3}, 3, Events())
    os.truncate(path, size - 8 * 8)  # nor of a compiled hot path
    found = counters.read(path)
    assert (found.operations, found.beside, found.compiled) == ({"Tread": 3}, 1, 0)
    os.truncate(path, size - 8 * 10)  # nor of requests beside its loop
    found = counters.read(path)
    assert (found.operations, found.beside, found.beside_device) == ({"Tread": 3}, 0, 0)


def test_without_room_for_a_file_it_counts_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    made = Counters(str(tmp_path / "counters"))
    made.count_received(7)
    assert isinstance(made.memory, mmap.mmap)
    assert counters.read(made.memory).received == 7
    assert counters.read(str(tmp_path / "counters")) == Counted()


def test_every_type_of_message_has_a_place_of_its_own() -> None:
    made = Counters()
    for number in messages.BY_TYPE:
        made.slots[number] += number
    found = counters.read(made.memory)
    assert found.operations == {cls.__name__: number for number, cls in messages.BY_TYPE.items()}
    assert (found.errors, found.received, found.sent, found.latencies) == ({}, 0, 0, {})


def test_what_several_mounts_did_for_events_is_added_up() -> None:
    names = ("HEARD", "COALESCED", "TOLD", "PRETENDED", "REFUSED", "OVERFLOWS", "WATCHED")
    found = []
    for factor in (1, 10):
        made = Counters()
        for number, name in enumerate(names, start=1):
            made.slots[getattr(counters, name)] = factor * number
        found.append(counters.read(made.memory))
    assert Events.of(found) == Events(**{name.lower(): 11 * number for number, name in enumerate(names, start=1)})
    assert Events.of([]) == Events()
    made.slots[counters.HEARD] = (1 << 64) - 1  # its process writes there what it likes
    large = counters.read(made.memory)
    assert Events.of([large, large]).heard == large.events.heard < 1 << 53


def test_words_of_the_kernel_are_counted_by_what_comes_of_them() -> None:
    def word(mask: int, pid: int, name: bytes = b"") -> bytes:
        told = sources._RECORD.pack(sources._DFID_NAME, 0, sources._RECORD.size + 2 + len(name), b"", 1, 0) + b"h"
        record = told + name + b"\0" if name else b""
        size = sources._METADATA.size
        return sources._METADATA.pack(size + len(record), 3, 0, size, mask, -1, pid) + record

    others, own = 1, os.getpid()
    taken, given = os.pipe2(os.O_NONBLOCK)
    try:
        counted = Counters()
        group = Group(taken, 10)
        group._numbers[b"h"] = 7
        found = Listening(group, lambda _: None, lambda *_: True, counted.slots)
        found._place_directory(7, Directory((0, 0), b""))
        for name in (b"f", b"f", b"g"):
            os.write(given, word(Fanotify.MODIFY, others, name))
        os.write(given, word(Fanotify.MODIFY, own, b"own"))
        found.read()
        assert counters.read(counted.memory).events == Events(heard=3, coalesced=1)
        for _ in range(2):
            os.write(given, word(Fanotify.Q_OVERFLOW, 0))
        found.read()
        assert counters.read(counted.memory).events == Events(heard=3, coalesced=1, overflows=2)
    finally:
        os.close(taken)
        os.close(given)
