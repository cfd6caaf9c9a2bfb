"""Locks: protocol.md's lock and getlock, as fcntl(2) has them, with the host's programs taking part."""

from __future__ import annotations

import errno
import fcntl
import sys
from typing import TYPE_CHECKING, Final

import pytest
from tests.fileserver.harness import IN_AND_OUT, one_of
from tests.fileserver.locking import (
    BLOCKED,
    EVERYTHING,
    GRANTED,
    RD,
    UN,
    WR,
    host_lock,
    in_the_way,
    lock,
    lock_range,
    request,
)

from uvmshare.fileserver.limits import Limits
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


model = one_of(*IN_AND_OUT)


@pytest.fixture
def file(host: Host) -> Path:
    path = host.root / "f"
    path.write_bytes(bytes(1000))
    return path


@pytest.fixture
def fid(file: Path, guest: NinePClient) -> int:
    return guest.open("f", O.RDWR)


# The host's programs, by each of their calls


def _flock(kind: int) -> Callable[[int], object]:
    return lambda descriptor: fcntl.flock(descriptor, kind | fcntl.LOCK_NB)


def _fcntl(kind: int, start: int, length: int) -> Callable[[int], object]:
    return lambda descriptor: lock_range(descriptor, kind, start, length)


HOST: Final = {
    "flock exclusive": _flock(fcntl.LOCK_EX),
    "flock shared": _flock(fcntl.LOCK_SH),
    "fcntl exclusive, whole": _fcntl(fcntl.F_WRLCK, 0, 0),
    "fcntl shared, whole": _fcntl(fcntl.F_RDLCK, 0, 0),
    "fcntl exclusive, range": _fcntl(fcntl.F_WRLCK, 10, 10),
    "fcntl exclusive, elsewhere": _fcntl(fcntl.F_WRLCK, 500, 10),
}
GUEST: Final = {
    "exclusive, whole": (WR, EVERYTHING),
    "shared, whole": (RD, EVERYTHING),
    "exclusive, range": (WR, (10, 10)),
    "shared, range": (RD, (10, 10)),
}


def excludes(host: str, guest: str) -> bool:
    """Say what the table of docs/file-server.md does, in both directions."""
    if "shared" in host and "shared" in guest:
        return False
    if host.startswith("flock"):
        return "whole" in guest
    return "elsewhere" not in host or "whole" in guest


@pytest.mark.parametrize("guests", GUEST)
@pytest.mark.parametrize("hosts", HOST)
def test_a_lock_of_the_host_and_one_of_the_guest_exclude_each_other_as_the_table_says(
    guest: NinePClient, fid: int, file: Path, hosts: str, guests: str
) -> None:
    kind, span = GUEST[guests]
    wanted = BLOCKED if excludes(hosts, guests) else GRANTED
    with file.open("r+b") as opened:
        HOST[hosts](opened.fileno())
        assert lock(guest, fid, kind, 1, span) == wanted
    assert lock(guest, fid, kind, 1, span) == GRANTED
    with file.open("r+b") as opened:
        if wanted == BLOCKED:
            with pytest.raises(BlockingIOError):
                HOST[hosts](opened.fileno())
            assert lock(guest, fid, UN, 1) == GRANTED
        HOST[hosts](opened.fileno())


@pytest.mark.parametrize("theirs", GUEST)
@pytest.mark.parametrize("ours", GUEST)
def test_locks_of_two_mounts_exclude_each_other_as_the_table_says(
    host: Host, guest: NinePClient, fid: int, ours: str, theirs: str
) -> None:
    other = host.guest()
    there = other.open("f", O.RDWR)
    is_shared = GUEST[ours][0] == GUEST[theirs][0] == RD
    assert lock(guest, fid, *_first(ours)) == GRANTED
    assert lock(other, there, *_first(theirs)) == (GRANTED if is_shared else BLOCKED)


def _first(name: str) -> tuple[int, int, tuple[int, int]]:
    kind, span = GUEST[name]
    return kind, 1, span


def test_a_lock_that_is_refused_by_either_call_is_taken_by_neither(guest: NinePClient, fid: int, file: Path) -> None:
    with file.open("r+b") as one, file.open("r+b") as other:
        HOST["fcntl exclusive, range"](one.fileno())
        assert lock(guest, fid, WR, 1) == BLOCKED
        HOST["flock exclusive"](other.fileno())
    with file.open("r+b") as one, file.open("r+b") as other:
        HOST["flock exclusive"](one.fileno())
        assert lock(guest, fid, WR, 1) == BLOCKED
        HOST["fcntl exclusive, whole"](other.fileno())


def test_a_shared_lock_stays_when_the_exclusive_one_is_refused(guest: NinePClient, fid: int, file: Path) -> None:
    for theirs in ("flock shared", "fcntl shared, whole"):
        with file.open("r+b") as opened:
            HOST[theirs](opened.fileno())
            assert lock(guest, fid, RD, 1) == GRANTED
            assert lock(guest, fid, WR, 1) == BLOCKED
        with file.open("r+b") as opened:
            for call in ("flock exclusive", "fcntl exclusive, whole"):
                with pytest.raises(BlockingIOError):
                    HOST[call](opened.fileno())
        assert lock(guest, fid, WR, 1) == GRANTED
        assert lock(guest, fid, UN, 1) == GRANTED


def test_what_is_left_of_a_whole_lock_is_one_of_ranges(guest: NinePClient, fid: int, file: Path) -> None:
    assert lock(guest, fid, WR, 1) == GRANTED
    assert lock(guest, fid, UN, 1, (0, 100)) == GRANTED
    with file.open("r+b") as opened:
        HOST["flock exclusive"](opened.fileno())
        with pytest.raises(BlockingIOError):
            HOST["fcntl exclusive, elsewhere"](opened.fileno())


def test_flock_is_left_out_where_it_would_lock_ranges(
    guest: NinePClient, fid: int, file: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS takes both calls for one kind of lock, of two owners."""
    if model != "in-process":
        return  # another process's look at file systems is not to be changed
    from uvmshare.fileserver import syscalls

    monkeypatch.setattr(syscalls, "file_system_type", lambda _: 0x6969)
    assert lock(guest, fid, WR, 1) == GRANTED
    with file.open("r+b") as opened:
        HOST["flock exclusive"](opened.fileno())


# Owners


def test_two_owners_exclude_each_other(guest: NinePClient, fid: int) -> None:
    assert lock(guest, fid, WR, 1) == GRANTED
    assert lock(guest, fid, WR, 2) == BLOCKED
    assert lock(guest, fid, RD, 2) == BLOCKED
    assert lock(guest, fid, UN, 1) == GRANTED
    assert lock(guest, fid, WR, 2) == GRANTED
    assert lock(guest, fid, WR, 1) == BLOCKED


def test_two_descriptors_of_one_process_do_not(guest: NinePClient, fid: int) -> None:
    other = guest.open("f", O.RDWR)
    assert lock(guest, fid, WR, 1) == GRANTED
    assert lock(guest, other, WR, 1) == GRANTED
    assert lock(guest, other, WR, 2) == BLOCKED
    assert lock(guest, other, UN, 1) == GRANTED  # of the process, whichever descriptor it says it by
    assert lock(guest, fid, WR, 2) == GRANTED


def test_an_owner_is_a_client_and_a_process(guest: NinePClient, fid: int) -> None:
    assert guest.ask(m.Tlock(fid, WR, 0, 0, 0, 1, b"one"), m.Rlock).status == GRANTED
    assert guest.ask(m.Tlock(fid, WR, 0, 0, 0, 1, b"two"), m.Rlock).status == BLOCKED
    assert guest.ask(m.Tlock(fid, WR, 0, 0, 0, 1, b"one"), m.Rlock).status == GRANTED


def test_two_connections_exclude_each_other_even_with_the_same_owner(host: Host, file: Path) -> None:
    # Linux's clients are often all called "(none)", and process 1 is in every guest.
    name = host.share()
    one, two = host.connect(name), host.connect(name)
    first, second = one.open("f", O.RDWR), two.open("f", O.RDWR)
    assert lock(one, first, WR, 1) == GRANTED
    assert lock(two, second, WR, 1) == BLOCKED
    one.hang_up()
    assert one.drain() == []  # the connection, and with it its locks, is gone
    assert lock(two, second, WR, 1) == GRANTED


# Ranges and kinds


def test_disjoint_ranges_do_not_conflict(guest: NinePClient, fid: int) -> None:
    assert lock(guest, fid, WR, 1, (0, 10)) == GRANTED
    assert lock(guest, fid, WR, 2, (10, 10)) == GRANTED
    assert lock(guest, fid, WR, 2, (9, 1)) == BLOCKED
    assert lock(guest, fid, WR, 1, (19, 1)) == BLOCKED
    assert lock(guest, fid, WR, 1, (20, 0)) == GRANTED
    assert lock(guest, fid, WR, 2, (1 << 40, 1)) == BLOCKED


def test_shared_locks_share_and_exclude_exclusive_ones(guest: NinePClient, fid: int) -> None:
    assert [lock(guest, fid, RD, pid) for pid in (1, 2, 3)] == [GRANTED] * 3
    assert lock(guest, fid, WR, 4) == BLOCKED
    assert lock(guest, fid, WR, 1) == BLOCKED  # no upgrade while others share
    assert lock(guest, fid, UN, 2) == lock(guest, fid, UN, 3) == GRANTED
    assert lock(guest, fid, WR, 1) == GRANTED
    assert lock(guest, fid, RD, 2) == BLOCKED
    assert lock(guest, fid, RD, 1) == GRANTED  # and back again
    assert lock(guest, fid, RD, 2) == GRANTED


def test_a_blocked_upgrade_keeps_what_is_held(guest: NinePClient, fid: int) -> None:
    lock(guest, fid, RD, 1)
    lock(guest, fid, RD, 2)
    assert lock(guest, fid, WR, 1) == BLOCKED
    lock(guest, fid, UN, 2)
    assert lock(guest, fid, WR, 3) == BLOCKED  # the first one still shares


def test_a_part_is_unlocked(guest: NinePClient, fid: int) -> None:
    assert lock(guest, fid, WR, 1, (0, 100)) == GRANTED
    assert lock(guest, fid, UN, 1, (40, 20)) == GRANTED
    assert lock(guest, fid, WR, 2, (40, 20)) == GRANTED
    assert lock(guest, fid, WR, 2, (39, 1)) == lock(guest, fid, WR, 2, (60, 1)) == BLOCKED
    assert lock(guest, fid, UN, 1, (0, 40)) == GRANTED
    assert lock(guest, fid, WR, 2, (0, 40)) == GRANTED
    assert lock(guest, fid, WR, 2, (60, 1)) == BLOCKED


def test_unlocking_what_is_not_locked(guest: NinePClient, fid: int) -> None:
    assert lock(guest, fid, UN, 1) == GRANTED
    assert lock(guest, fid, UN, 1, (5, 5)) == GRANTED


@pytest.mark.parametrize(
    "span", [(0, 1 << 63), ((1 << 63) - 1, 1), ((1 << 63) - 1, 0), (5, (1 << 63) - 5), (1 << 62, 0)]
)
def test_ranges_up_to_the_largest_file(guest: NinePClient, fid: int, span: tuple[int, int]) -> None:
    assert lock(guest, fid, WR, 1, span) == GRANTED
    assert lock(guest, fid, WR, 2, ((1 << 63) - 1, 1)) == BLOCKED
    assert lock(guest, fid, UN, 1, span) == GRANTED
    assert lock(guest, fid, WR, 2) == GRANTED


@pytest.mark.parametrize("span", [(1 << 63, 1), ((1 << 64) - 1, 0), (0, (1 << 64) - 1), (0, (1 << 63) + 1)])
def test_ranges_past_it_are_refused(guest: NinePClient, fid: int, refused: Refused, span: tuple[int, int]) -> None:
    for kind in (RD, WR, UN):
        with refused(errno.EINVAL, errno.EOVERFLOW):
            lock(guest, fid, kind, 1, span)
    assert lock(guest, fid, WR, 2) == GRANTED


@pytest.mark.parametrize("kind", [3, 255])
def test_kinds_that_are_none(guest: NinePClient, fid: int, refused: Refused, kind: int) -> None:
    with refused(errno.EINVAL):
        lock(guest, fid, kind, 1)
    with refused(errno.EINVAL):
        in_the_way(guest, fid, kind, 1)


def test_locks_need_an_open_fid(guest: NinePClient, file: Path, refused: Refused) -> None:
    with guest.walked("f") as unopened, refused(errno.EBADF):
        lock(guest, unopened, WR, 1)


def test_a_file_open_for_reading_alone_can_be_shared(guest: NinePClient, file: Path) -> None:
    one, two = guest.open("f", O.RDONLY), guest.open("f", O.RDONLY)
    assert lock(guest, one, RD, 1) == lock(guest, two, RD, 2) == GRANTED
    assert lock(guest, guest.open("f", O.RDWR), WR, 3) == BLOCKED


def test_flock_takes_an_exclusive_lock_on_what_is_open_for_reading(guest: NinePClient, fid: int) -> None:
    # flock(2) asks for no access; Linux's client turns it into these locks.
    assert lock(guest, guest.open("f", O.RDONLY), WR, 1) == GRANTED
    assert lock(guest, fid, WR, 2) == BLOCKED


def test_two_names_of_a_file_are_one_file(guest: NinePClient, fid: int) -> None:
    guest.link("f", "g")
    assert lock(guest, fid, WR, 1) == GRANTED
    assert lock(guest, guest.open("g", O.RDWR), WR, 2) == BLOCKED


# How they end


def test_the_last_open_fid_takes_the_locks_along(guest: NinePClient, fid: int) -> None:
    other, watcher = guest.open("f", O.RDWR), guest.walk("f")
    assert lock(guest, fid, WR, 1) == GRANTED
    guest.clunk(fid)
    probe = guest.open("f", O.RDWR)
    assert lock(guest, probe, WR, 2) == BLOCKED
    guest.clunk(other)
    guest.clunk(probe)
    guest.ask(m.Tlopen(watcher, O.RDWR), m.Rlopen)
    assert lock(guest, watcher, WR, 2) == GRANTED


def test_a_new_session_has_no_locks(host: Host, file: Path) -> None:
    name = host.share()
    guest, other = host.connect(name), host.connect(name)
    assert lock(guest, guest.open("f", O.RDWR), WR, 1) == GRANTED
    guest.version()
    assert lock(other, other.open("f", O.RDWR), WR, 1) == GRANTED


def test_an_unlinked_file_is_locked_like_any_other(guest: NinePClient, fid: int) -> None:
    guest.unlink("f")
    assert lock(guest, fid, WR, 1) == GRANTED
    assert lock(guest, fid, WR, 2) == BLOCKED
    assert lock(guest, fid, UN, 1) == GRANTED
    assert lock(guest, fid, WR, 2) == GRANTED


# The host's programs


def test_the_host_excludes_a_guest(file: Path, guest: NinePClient, fid: int) -> None:
    with host_lock(file, fcntl.F_WRLCK, 0, 10):
        assert lock(guest, fid, RD, 1, (5, 1)) == BLOCKED
        assert lock(guest, fid, WR, 1, (10, 10)) == GRANTED
    assert lock(guest, fid, RD, 1, (5, 1)) == GRANTED


def test_a_guest_excludes_the_host(file: Path, guest: NinePClient, fid: int) -> None:
    assert lock(guest, fid, WR, 1, (5, 1)) == GRANTED
    with pytest.raises(BlockingIOError), host_lock(file, fcntl.F_RDLCK, 0, 10):
        pass
    with host_lock(file, fcntl.F_WRLCK, 6, 10):
        assert lock(guest, fid, UN, 1) == GRANTED
    with host_lock(file, fcntl.F_WRLCK):
        pass


# A lock of the old kind belongs to a whole process, and so says nothing when the server is in this one.
@pytest.mark.parametrize("model", ["mapped-xattr", "passthrough", "none"])
def test_a_posix_lock_of_the_host_takes_part_too(file: Path, guest: NinePClient, fid: int) -> None:
    with file.open("r+b") as opened:
        fcntl.lockf(opened, fcntl.LOCK_EX)
        assert lock(guest, fid, RD, 1) == BLOCKED
        assert in_the_way(guest, fid, WR, 1).lock_type == WR
    assert lock(guest, fid, RD, 1) == GRANTED


def test_no_process_of_the_host_is_told(file: Path, guest: NinePClient, fid: int) -> None:
    with file.open("r+b") as opened:
        fcntl.lockf(opened, fcntl.LOCK_EX)
        found = in_the_way(guest, fid, WR, 1)
    if found.lock_type == WR:  # not where the server is in this process
        assert found == m.Rgetlock(WR, 0, 0, 0, b"")


def test_directories_are_not_locked(host: Host, guest: NinePClient, refused: Refused) -> None:
    fid = guest.open("", O.DIRECTORY)
    for message in (request(fid, RD, 1), request(fid, UN, 1), m.Tgetlock(fid, WR, 0, 0, 1, b"vm")):
        with refused(errno.EISDIR):
            guest.rpc(message)


# getlock


def test_getlock_tells_what_is_in_the_way(guest: NinePClient, fid: int) -> None:
    assert lock(guest, fid, WR, 1, (10, 20)) == GRANTED
    found = in_the_way(guest, fid, RD, 2, (0, 0))
    assert (found.lock_type, found.start, found.length) == (WR, 10, 20)
    found = in_the_way(guest, fid, WR, 2, (15, 1))
    assert (found.lock_type, found.start, found.length) == (WR, 10, 20)
    assert lock(guest, fid, WR, 1, (100, 0)) == GRANTED
    found = in_the_way(guest, fid, RD, 2, (200, 5))
    assert (found.lock_type, found.start, found.length) == (WR, 100, 0)


def test_getlock_when_nothing_is(guest: NinePClient, fid: int) -> None:
    lock(guest, fid, WR, 1, (10, 20))
    lock(guest, fid, RD, 1, (50, 10))
    for kind, pid, span in ((WR, 1, (0, 0)), (WR, 2, (0, 10)), (RD, 2, (50, 10)), (UN, 2, (10, 20))):
        found = in_the_way(guest, fid, kind, pid, span)
        assert found == m.Rgetlock(UN, *span, pid, b"vm")


def test_getlock_takes_no_lock(file: Path, guest: NinePClient, fid: int) -> None:
    in_the_way(guest, fid, WR, 1)
    with host_lock(file, fcntl.F_WRLCK):
        found = in_the_way(guest, fid, WR, 1)
        assert found.lock_type == WR
    assert lock(guest, fid, WR, 2) == GRANTED


# Waiting


def wait_for(guest: NinePClient, fid: int, kind: int, pid: int) -> int:
    """Ask for a lock that somebody holds, and make sure that the request was taken."""
    tag = guest.send(request(fid, kind, pid, flags=LockFlag.BLOCK))
    guest.getattr(fid)  # answered although the one before is not
    return tag


def status(guest: NinePClient, tag: int) -> int:
    return m.expect(guest.wait(tag), m.Rlock).status


def test_a_lock_that_is_free_is_granted_at_once(guest: NinePClient, fid: int) -> None:
    assert status(guest, guest.send(request(fid, WR, 1, flags=LockFlag.BLOCK))) == GRANTED


def test_a_request_waits_until_the_lock_is_free(guest: NinePClient, fid: int) -> None:
    lock(guest, fid, WR, 1)
    tag = wait_for(guest, fid, WR, 2)
    assert lock(guest, fid, UN, 1) == GRANTED
    assert status(guest, tag) == GRANTED
    assert lock(guest, fid, WR, 1) == BLOCKED


def test_a_request_waits_for_the_host(file: Path, guest: NinePClient, fid: int) -> None:
    with host_lock(file, fcntl.F_WRLCK):
        tag = wait_for(guest, fid, RD, 1)
    assert status(guest, tag) == GRANTED


def test_a_request_waits_for_another_connection(host: Host, file: Path) -> None:
    name = host.share()
    one, two = host.connect(name), host.connect(name)
    first, second = one.open("f", O.RDWR), two.open("f", O.RDWR)
    lock(one, first, WR, 1)
    tag = wait_for(two, second, WR, 1)
    one.clunk(first)
    assert status(two, tag) == GRANTED


def test_a_flush_takes_a_waiting_request_back(file: Path, guest: NinePClient, fid: int) -> None:
    with host_lock(file, fcntl.F_WRLCK):
        tag = wait_for(guest, fid, WR, 1)
        assert not guest.flush(tag)  # no Rlock came
        guest.getattr(fid)
    with host_lock(file, fcntl.F_WRLCK):  # and none was taken
        guest.getattr(fid)


def test_a_new_session_takes_waiting_requests_back(host: Host, file: Path) -> None:
    name = host.share()
    guest = host.connect(name)
    with host_lock(file, fcntl.F_WRLCK):
        wait_for(guest, guest.open("f", O.RDWR), WR, 1)
        guest._sent.clear()
        guest.version()
    guest.root = guest.attach(name)
    fid = guest.open("f", O.RDWR)
    assert lock(guest, fid, WR, 2) == GRANTED  # nobody else came to hold it, and no Rlock came late


def test_the_tag_of_a_waiting_request_is_in_use(file: Path, guest: NinePClient, fid: int) -> None:
    with host_lock(file, fcntl.F_WRLCK):
        tag = wait_for(guest, fid, WR, 1)
        guest.send_raw(m.Tgetattr(fid, 0).encode(tag))
        assert guest.recv() == (tag, m.Rlerror(errno.EINVAL))
    assert guest.recv() == (tag, m.Rlock(GRANTED))


def test_a_guest_that_hangs_up_while_it_waits(host: Host, file: Path) -> None:
    name = host.share()
    guest, other = host.connect(name), host.connect(name)
    with host_lock(file, fcntl.F_WRLCK):
        wait_for(guest, guest.open("f", O.RDWR), WR, 1)
        guest.hang_up()
        assert guest.drain() == []
    assert lock(other, other.open("f", O.RDWR), WR, 1) == GRANTED


def test_waiting_has_an_end_and_the_client_may_ask_again(start_device: Callable[..., Device], tmp_path: Path) -> None:
    device = start_device(security_model="none", limits=Limits(lock_wait_seconds=0.01))
    (tmp_path / "f").write_bytes(b"")
    with device.connect(device.share(tmp_path.resolve())) as guest:
        fid = guest.open("f", O.RDWR)
        with host_lock(tmp_path / "f", fcntl.F_WRLCK):
            for _ in range(2):
                assert status(guest, wait_for(guest, fid, WR, 1)) == BLOCKED
        assert status(guest, guest.send(request(fid, WR, 1, flags=LockFlag.BLOCK))) == GRANTED


def test_locks_past_the_limit_are_refused(
    start_device: Callable[..., Device], tmp_path: Path, refused: Refused
) -> None:
    log = tmp_path / "log"
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "f").write_bytes(b"")
    device = start_device(security_model="none", log=log, limits=Limits(locks=10))
    with device.connect(device.share((tmp_path / "root").resolve())) as guest:
        fid = guest.open("f", O.RDWR)
        for n in range(10):
            assert lock(guest, fid, WR, 1, (n * 10, 1)) == GRANTED
        for _ in range(3):
            with refused(errno.ENOLCK):
                lock(guest, fid, WR, 1, (1000, 1))
        device.pid()  # the supervisor has then written what the mount process said
        assert log.read_text().count("10 ranges are locked, which is the limit") == 1
        assert lock(guest, fid, UN, 1, (0, 1)) == GRANTED
        assert lock(guest, fid, WR, 1, (1000, 1)) == GRANTED


def test_unlocking_the_middle_makes_no_more_ranges_than_the_limit(
    start_device: Callable[..., Device], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "f").write_bytes(b"")
    device = start_device(security_model="none", limits=Limits(locks=3))
    with device.connect(device.share(tmp_path.resolve())) as guest:
        fid = guest.open("f", O.RDWR)
        assert lock(guest, fid, WR, 1) == GRANTED
        for n in (1, 2):
            assert lock(guest, fid, UN, 1, (n * 10, 1)) == GRANTED
        with refused(errno.ENOLCK):
            lock(guest, fid, UN, 1, (30, 1))
        assert lock(guest, fid, UN, 1, (0, 5)) == GRANTED
        assert lock(guest, fid, UN, 1) == GRANTED
