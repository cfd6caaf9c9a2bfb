"""Locks of a read-only share hold among the programs of its mount, and keep no program of the host waiting."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import sys
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import IN_AND_OUT, one_of
from tests.fileserver.locking import BLOCKED, GRANTED, RD, UN, WR, host_lock, in_the_way, lock, request

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import LockFlag
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Device, Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.mount.files.locks import END, GuestLocks, LockTable

model = one_of(*IN_AND_OUT)


@pytest.fixture
def file(host: Host) -> Path:
    path = host.root / "f"
    path.write_bytes(bytes(1000))
    return path


@pytest.fixture
def reader(host: Host, file: Path) -> NinePClient:
    return host.guest(read_only=True)


@pytest.mark.parametrize("kind", [RD, WR])
def test_no_program_of_the_host_waits_for_a_lock_of_a_read_only_share(
    host: Host, reader: NinePClient, file: Path, kind: int
) -> None:
    fid = reader.open("f")
    assert lock(reader, fid, kind, 1) == GRANTED
    with host_lock(file, fcntl.F_WRLCK):
        pass
    with file.open("r+b") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    writer = host.guest()
    assert lock(writer, writer.open("f", O.RDWR), WR, 1) == GRANTED
    flags = {flags & os.O_ACCMODE for flags in host.flags(file) if not flags & os.O_PATH}
    assert os.O_RDONLY in flags


def test_they_hold_among_the_programs_of_the_mount(reader: NinePClient) -> None:
    one, two = reader.open("f"), reader.open("f")
    assert lock(reader, one, WR, 1, (0, 10)) == GRANTED  # flock(2) asks for no file that may be written
    assert lock(reader, two, RD, 2, (5, 10)) == BLOCKED
    assert lock(reader, two, RD, 2, (10, 10)) == GRANTED
    assert lock(reader, one, RD, 1, (0, 15)) == GRANTED
    assert lock(reader, two, RD, 2, (0, 15)) == GRANTED
    assert lock(reader, one, WR, 1, (0, 1)) == BLOCKED
    assert in_the_way(reader, one, WR, 1, (0, 1)) == m.Rgetlock(RD, 0, 15, 2, b"vm")
    assert lock(reader, two, UN, 2) == GRANTED
    assert lock(reader, one, WR, 1, (0, 1)) == GRANTED
    assert in_the_way(reader, two, RD, 2) == m.Rgetlock(WR, 0, 1, 1, b"vm")


def test_a_lock_of_the_host_is_in_the_way_when_one_is_asked_for(reader: NinePClient, file: Path) -> None:
    fid = reader.open("f")
    with host_lock(file, fcntl.F_WRLCK, 0, 10):
        assert lock(reader, fid, RD, 1) == BLOCKED
        assert lock(reader, fid, RD, 1, (10, 1)) == GRANTED
        assert in_the_way(reader, fid, RD, 1) == m.Rgetlock(WR, 0, 10, 0, b"")
        tag = reader.send(request(fid, RD, 1, flags=LockFlag.BLOCK))
        reader.getattr(fid)  # answered although the one before is not
    assert m.expect(reader.wait(tag), m.Rlock).status == GRANTED


def test_a_request_waits_for_another_program_of_the_mount(reader: NinePClient) -> None:
    fid = reader.open("f")
    assert lock(reader, fid, WR, 1) == GRANTED
    tag = reader.send(request(fid, WR, 2, flags=LockFlag.BLOCK))
    reader.getattr(fid)
    assert lock(reader, fid, UN, 1) == GRANTED
    assert m.expect(reader.wait(tag), m.Rlock).status == GRANTED
    assert lock(reader, fid, WR, 1) == BLOCKED


def test_the_last_open_fid_takes_them_along(reader: NinePClient) -> None:
    one = reader.open("f")
    lock(reader, one, WR, 1)
    reader.clunk(one)
    assert lock(reader, reader.open("f"), WR, 2) == GRANTED


def test_two_mounts_do_not_see_each_others(host: Host, file: Path) -> None:
    name = host.share(read_only=True)
    one, two = host.connect(name), host.connect(name)
    assert lock(one, one.open("f"), WR, 1) == lock(two, two.open("f"), WR, 1) == GRANTED


@pytest.mark.parametrize("seed", range(20))
def test_the_rules_are_the_kernels(tmp_path: Path, seed: int) -> None:
    """The same requests to locks of the host and to those of a guest alone have the same answers."""

    def locked(flags: int) -> int:
        return os.open(tmp_path / "locked", flags | os.O_CREAT)

    def free(flags: int) -> int:
        return os.open(tmp_path / "free", flags | os.O_CREAT)

    choose = random.Random(seed)
    key = (0, 0)
    kernel, guest = LockTable(), GuestLocks()
    for _ in range(200):
        start = choose.randrange(12)
        span = start, choose.choice([start + 1, start + 3, start + 6, END])
        owner = b"vm", choose.randrange(4)
        kind = choose.choice([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
        if kind != fcntl.F_UNLCK:
            found = kernel.conflict(key, owner, kind, span, locked), guest.conflict(key, owner, kind, span, free)
            assert (found[0] is None) == (found[1] is None)
        assert kernel.splits(key, owner, span) == guest.splits(key, owner, span)
        assert kernel.set(key, owner, kind, span, locked) == guest.set(key, owner, kind, span, free)
        assert len(kernel) == len(guest)
    assert kernel.holdings.keys() == guest.holdings.keys()
    for table in (kernel, guest):
        table.forget_file(key)
        assert not table.holdings
        assert len(table) == 0
        table.clear()


# Where a read-only share may lock the host's files


def test_a_read_only_share_may_be_allowed_shared_locks_of_the_hosts_files(
    start_device: Callable[..., Device], tmp_path: Path, refused: Refused
) -> None:
    path = tmp_path.resolve() / "f"
    path.write_bytes(b"")
    device = start_device(security_model="none", limits=Limits(read_only_host_locks=True))
    ours, theirs = device.share(path.parent, read_only=True), device.share(path.parent)
    with device.connect(ours) as reader, device.connect(theirs) as writer:
        shared, exclusive = reader.open("f"), writer.open("f", O.RDWR)
        with refused(errno.EBADF):  # fcntl(2): what is open for reading alone cannot be locked for writing
            reader.rpc(request(shared, WR, 1))
        assert lock(reader, shared, RD, 1) == GRANTED
        with refused(errno.EBADF):
            reader.rpc(request(shared, WR, 1))
        assert lock(writer, exclusive, WR, 1) == BLOCKED
        with pytest.raises(BlockingIOError), host_lock(path, fcntl.F_WRLCK):
            pass
        assert lock(reader, shared, UN, 1) == GRANTED
        assert in_the_way(reader, shared, WR, 1).lock_type == UN
        assert lock(writer, exclusive, RD, 1) == GRANTED
        assert in_the_way(reader, shared, WR, 1).lock_type == RD
        assert lock(writer, exclusive, WR, 1) == GRANTED
        assert lock(reader, shared, RD, 1) == BLOCKED
    device.unshare(ours)
    device.unshare(theirs)
