"""A supervisor that dies, and the one that takes over: guests notice nothing, and shares can still be taken away."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from uvmshare.errors import (
    AccessDenied,
    ComputeSystemGone,
    DiskFull,
    FileServerError,
    InvalidState,
    OutcomeUnknown,
    ShareExists,
    ShareNotFound,
)
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.limits import Limits
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.share.interfaces import ListedShare
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.client import Client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from tests.fileserver.conftest import add_document, remove_document
else:
    from fileserver.conftest import add_document, remove_document

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

DEADLINE: Final = 60.0


def await_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(DEADLINE * 1000), "a process that was to end does not"


class Place:
    """A run directory, an address, and whoever serves there; called from tests that are not asynchronous."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="9p-"))
        self.run_dir = self.directory / "run"
        self.address = f"unix:{self.directory}/s"
        self.shared = self.directory / "shared"
        self.shared.mkdir()
        (self.shared / "file").write_bytes(b"content")
        self.runner = asyncio.Runner()
        self.guests = ExitStack()
        self.servers: list[FileServer] = []

    def run(self, call: Awaitable[Any]) -> Any:
        async def bounded() -> Any:
            async with asyncio.timeout(DEADLINE):
                return await call

        return self.runner.run(bounded())

    def start(self, **settings: Any) -> FileServer:
        given: dict[str, Any] = {"listen": [self.address], "security_model": "none", "run_dir": self.run_dir}
        server: FileServer = self.run(FileServer.start(**given | settings))
        self.servers.append(server)
        return server

    def connect(self) -> FileServer:
        server: FileServer = self.run(FileServer.connect(self.run_dir))
        self.servers.append(server)
        return server

    def let_go(self, server: FileServer) -> None:
        """Be as a process that ended: know nothing of the server any more."""
        self.run(server.detach())
        self.servers.remove(server)

    def add(self, server: FileServer, name: str, path: Path | None = None, **options: Any) -> None:
        self.run(server.modify(add_document(name, str(path or self.shared), **options)))

    def remove(self, server: FileServer, name: str) -> None:
        self.run(server.modify(remove_document(name)))

    def guest(self, name: str, address: str | None = None) -> Client:
        return self.guests.enter_context(Client.connect(address or self.address, name, timeout=DEADLINE))

    def mounts(self, server: FileServer) -> dict[str, list[int]]:
        return {share.name: [each.pid for each in share.mounts] for share in self.run(server.status()).shares}

    def kill(self, server: FileServer) -> int:
        """Kill -9 the supervisor behind a server, from which the test lets go; give its pid."""
        pid = int(self.run(server.status()).pid)
        self.let_go(server)
        kill(pid)
        return pid

    def log(self) -> str:
        return (self.run_dir / "log").read_text()

    def close(self) -> None:
        self.guests.close()
        for server in self.servers:
            self.run(server.aclose())
        with suppress(FileServerError):
            self.run(self.connect().aclose())
        self.runner.close()
        left = [name for name in os.listdir(self.run_dir) if name != "log"] if self.run_dir.exists() else []
        shutil.rmtree(self.directory)
        assert left == [], "an orderly end leaves the log alone"


def kill(pid: int) -> None:
    """Kill -9 a process and wait until it is gone, or a zombie."""
    pidfd = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    await_end(pidfd)
    os.close(pidfd)


@pytest.fixture
def place() -> Iterator[Place]:
    made = Place()
    yield made
    made.close()


# What goes on


def test_mounts_outlive_their_supervisor_and_a_new_one_takes_them_over(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1", read_only=True)
    guest, other = place.guest("0"), place.guest("1")
    fid = guest.open("file", os.O_RDWR)
    before = place.mounts(server)
    dead = place.kill(server)
    guest.write(fid, 0, b"CONTENT")
    assert guest.read(fid, 0, 7) == b"CONTENT"
    with pytest.raises(OSError, match=r"."):
        place.guest("0")  # nobody listens now
    server = place.start()
    assert place.mounts(server) == before
    assert server.lost == ()
    assert guest.read(fid, 0, 7) == b"CONTENT"
    guest.write(fid, 0, b"content")
    assert other.listdir() == [b"file"]
    assert place.guest("0").read_file("file") == b"content"
    assert place.run(server.status()).pid != dead
    assert "took over 2 shares and 2 mounts" in place.log()


def test_connecting_starts_the_one_that_takes_over(place: Place) -> None:
    server = place.start(socket_mode=0o640, limits=Limits(mounts=2))
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    server = place.connect()
    assert server.addresses == (place.address,)
    assert os.stat(place.address.removeprefix("unix:")).st_mode & 0o777 == 0o640
    assert guest.listdir() == [b"file"]
    place.guest("0")
    with pytest.raises(OSError, match=r".") as refused:
        place.guest("0")  # mounts that were taken over count
    assert refused.value.errno == errno.EUSERS


def test_a_share_that_was_taken_over_is_removed_with_its_mounts(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1")
    guests = [place.guest("0") for _ in range(3)]
    witness = place.guest("1")
    place.kill(server)
    server = place.start()
    new = place.guest("0")
    pidfds = [os.pidfd_open(pid) for pid in place.mounts(server)["0"]]
    assert len(pidfds) == 4
    place.remove(server, "0")
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(0), "a mount lives when the removal has returned"
        os.close(pidfd)
    for guest in (*guests, new):
        assert guest.drain() == []
    with pytest.raises(OSError, match=r".") as refused:
        place.guest("0")
    assert refused.value.errno == errno.ENOENT
    assert witness.listdir() == [b"file"]
    with pytest.raises(ShareNotFound):
        place.remove(server, "0")


def test_a_mount_that_was_taken_over_ends_by_itself_when_its_guest_hangs_up(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    server = place.start()
    (pid,) = place.mounts(server)["0"]
    pidfd = os.pidfd_open(pid)
    guest.close()
    await_end(pidfd)
    os.close(pidfd)
    place.mounts(server)  # a turn of its loop, in which it sees that too
    assert place.mounts(server) == {"0": []}
    assert os.listdir(place.run_dir / "mounts") == []


def test_an_orderly_end_ends_mounts_that_were_taken_over(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    place.run(place.start().aclose())
    assert guest.drain() == []
    with pytest.raises(FileServerError, match="start one"):
        place.connect()
    server = place.start()
    assert place.mounts(server) == {}


def test_every_generation_takes_over_from_the_one_before(place: Place) -> None:
    server = place.start()
    guests = []
    for number in range(4):
        place.add(server, str(number))
        guests.append(place.guest(str(number)))
        place.kill(server)
        server = place.start()
    assert [len(mounts) for mounts in place.mounts(server).values()] == [1, 1, 1, 1]
    with pytest.raises(ShareExists):
        place.add(server, "0")
    place.remove(server, "0")
    place.add(server, "0", read_only=True)
    place.kill(server)
    server = place.start()
    assert guests[0].drain() == []
    assert [guest.listdir() for guest in guests[1:]] == [[b"file"]] * 3
    with pytest.raises(OSError, match=r".") as refused:
        place.guest("0").write_file("file", b"")
    assert refused.value.errno == errno.EROFS


def test_a_port_that_was_free_when_it_was_taken_is_the_same_again(place: Place) -> None:
    server = place.start(listen=["tcp:127.0.0.1:0"])
    (address,) = server.addresses
    place.add(server, "0")
    guest = place.guest("0", address)
    place.kill(server)
    server = place.connect()
    assert server.addresses == (address,)
    assert guest.listdir() == [b"file"]
    assert place.guest("0", address).listdir() == [b"file"]


def test_a_mount_still_leaves_its_reasons_in_the_log(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    before, guest = place.guest("0"), place.guest("0")
    place.kill(server)
    before.send_raw(b"\x03\0\0\0\0\0\0")
    assert before.drain() == []
    place.start()
    guest.send_raw(b"\x02\0\0\0\0\0\0")
    assert guest.drain() == []
    assert [line for line in place.log().splitlines() if "share 0" in line and "of 3 bytes" in line]
    assert [line for line in place.log().splitlines() if "share 0" in line and "of 2 bytes" in line]


# The same object goes on


def test_a_file_server_brings_a_new_supervisor_up_by_itself(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    told: list[Any] = []
    server.on_takeover(told.append)
    server.on_exit(told.append)
    pid = int(place.run(server.status()).pid)
    kill(pid)
    place.run(asyncio.sleep(0))
    assert {share.name for share in place.run(server.status()).shares} == {"0"}
    (status,) = told
    assert status.pid != pid
    assert guest.listdir() == [b"file"]
    place.remove(server, "0")
    assert guest.drain() == []


def test_what_was_asked_of_the_one_that_died_is_unknown_and_settled_by_the_manager(place: Place) -> None:
    server = place.start()
    manager = Manager(UtilityVM(server))
    kept = place.run(manager.add_to_vm(AddOptions(place.shared), owner="a"))
    guest = place.guest(kept)
    pid = int(place.run(server.status()).pid)
    os.kill(pid, signal.SIGSTOP)  # it reads nothing any more

    async def add_and_kill() -> None:
        task = asyncio.ensure_future(manager.add_to_vm(AddOptions(place.shared, read_only=True), owner="b"))
        for _ in range(3):  # turns of the loop: the request is on its way
            await asyncio.sleep(0)
        assert server._link._waiting
        os.kill(pid, signal.SIGKILL)
        await task

    with pytest.raises(OutcomeUnknown):
        place.run(add_and_kill())
    assert [share.name for share in manager.shares()] == [kept]  # undone before the error was raised
    assert set(place.mounts(server)) == {kept}
    assert guest.listdir() == [b"file"]
    again = place.run(manager.add_to_vm(AddOptions(place.shared, read_only=True), owner="b"))
    assert place.guest(again).listdir() == [b"file"]
    place.run(manager.aclose())
    assert place.mounts(server) == {}


def test_two_that_see_the_end_find_one_new_supervisor(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    second = place.connect()
    kill(int(place.run(server.status()).pid))

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(server.status(), second.status())

    one, two = place.run(both())
    assert one.pid == two.pid
    assert guest.listdir() == [b"file"]


def test_a_supervisor_that_was_told_to_end_is_not_started_again(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    gone: list[ComputeSystemGone] = []
    server.on_exit(gone.append)
    os.kill(int(place.run(server.status()).pid), signal.SIGTERM)
    assert place.run(server.wait_exit()) == "the file server has ended"
    assert len(gone) == 1
    with pytest.raises(ComputeSystemGone):
        place.run(server.status())


def test_while_none_can_be_started_requests_are_refused_and_mounts_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    pid = int(place.run(server.status()).pid)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(server, "_modify_timeout", 0.05)
    kill(pid)
    with pytest.raises((OutcomeUnknown, InvalidState)):
        place.add(server, "1")
    with pytest.raises(InvalidState, match="nonexistent"):  # nothing was asked
        place.add(server, "1")
    assert guest.listdir() == [b"file"]
    monkeypatch.undo()

    async def until_it_serves() -> None:
        served = asyncio.Event()
        server.on_takeover(lambda _: served.set())
        await served.wait()

    place.run(until_it_serves())
    assert set(place.mounts(server)) == {"0"}


# What cannot be taken over


def test_a_directory_that_is_gone_or_another_is_had_through_its_mounts(place: Place) -> None:
    one, two, three = (place.directory / name for name in ("one", "two", "three"))
    server = place.start()
    for name, path in (("1", one), ("2", two), ("3", three)):
        path.mkdir()
        (path / "mine").write_bytes(name.encode())
        place.add(server, name, path)
    guest = place.guest("1")
    for path in (one, two, three):
        path.rename(path.with_name(f"{path.name}-moved"))
    two.mkdir()  # another directory in its place, which was never shared
    place.kill(server)
    server = place.start()
    assert set(place.mounts(server)) == {"1"}
    assert place.guest("1").read_file("mine") == guest.read_file("mine") == b"1"
    lost = {each.name: each.reason for each in server.lost}
    assert set(lost) == {"2", "3"}
    assert "another directory" in lost["2"]
    assert "No such file" in lost["3"]
    assert place.run(server.status()).lost == server.lost
    for name in ("2", "3"):
        assert f"share {name} " in place.log()
    place.add(server, "2", two)


def test_a_table_of_another_boot_is_void_and_says_so(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.kill(server)
    table = place.run_dir / "shares"
    header, _, rest = table.read_bytes().partition(b"\n")
    from uvmshare.fileserver.ledger import boot_id

    table.write_bytes(resign(header.replace(boot_id().encode(), b"another")) + b"\n" + rest)
    server = place.start()
    assert place.mounts(server) == {}
    (lost,) = server.lost
    assert (lost.name, lost.path) == ("0", str(place.shared))
    assert "host was started anew" in lost.reason


def resign(line: bytes) -> bytes:
    import zlib

    return b"+ %08x %s" % (zlib.crc32(line[11:]), line[11:])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[:20] + b"x" + data[21:], "damaged"),
        (lambda data: b"", "no first line"),
        (lambda data: resign(data.split(b"\n")[0].replace(b'"version":1', b'"version":9')) + b"\n", "version is 9"),
        (lambda data: data[:-9] + b"x" + data[-8:], "damaged"),
    ],
)
def test_a_damaged_table_is_said_and_removing_it_is_the_way_out(
    place: Place, damage: Callable[[bytes], bytes], reason: str
) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    table = place.run_dir / "shares"
    table.write_bytes(damage(table.read_bytes()))
    with pytest.raises(FileServerError, match=rf"{table}.*{reason}.*remove it"):
        place.start()
    assert guest.listdir() == [b"file"]  # it stays as it was
    table.unlink()
    server = place.start()
    assert guest.drain() == []
    assert place.mounts(server) == {}


def test_a_line_that_broke_off_was_never_answered_for(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1")
    place.kill(server)
    table = place.run_dir / "shares"
    table.write_bytes(table.read_bytes()[:-7])
    server = place.start()
    assert set(place.mounts(server)) == {"0"}
    place.add(server, "1")


def test_other_owners_of_files_are_not_taken_over_silently(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    with pytest.raises(FileServerError, match="security model none, not mapped-xattr"):
        place.start(security_model="mapped-xattr")
    assert guest.listdir() == [b"file"]


def test_an_address_that_is_taken_leaves_everything_for_the_next(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    elsewhere = place.start(run_dir=None)
    with pytest.raises(FileServerError, match=f"process {place.run(elsewhere.status()).pid}"):
        place.start()
    place.servers.remove(elsewhere)
    place.run(elsewhere.aclose())
    server = place.start()
    assert place.mounts(server)["0"]
    assert guest.listdir() == [b"file"]


def test_a_mount_that_cannot_be_identified_is_not_passed_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    server = place.start()
    place.add(server, "0")
    place.guest("0")
    place.kill(server)
    from uvmshare.fileserver import rundir

    (name,) = os.listdir(place.run_dir / "mounts")
    path = place.run_dir / "mounts" / name
    lines = path.read_text().splitlines()
    saved = path.read_text()
    who = json.loads(lines[1]) | {"started": 1}  # as another PID namespace would have it
    path.write_text(f"{lines[0]}\n{json.dumps(who)}\n")
    monkeypatch.setattr(rundir, "_INTRODUCED_SECONDS", 0.0)
    held = rundir.RunDirectory(str(place.run_dir))
    with pytest.raises(FileServerError, match="cannot be identified"):
        held.find_mounts()
    held.release()
    path.write_text(saved)
    assert place.mounts(place.start())["0"]


# One at a time


def test_two_starts_at_once_are_one_server(place: Place) -> None:
    async def race(**settings: Any) -> list[Any]:
        both = [FileServer.start([place.address], security_model="none", **settings) for _ in range(2)]
        return await asyncio.gather(*both, return_exceptions=True)

    for settings in ({"run_dir": place.run_dir}, {}):
        for _ in range(3):
            results = place.run(race(**settings))
            (server,) = [each for each in results if isinstance(each, FileServer)]
            (error,) = [each for each in results if not isinstance(each, FileServer)]
            pid = place.run(server.status()).pid
            assert isinstance(error, FileServerError)
            assert f"process {pid}" in str(error)
            assert "\n" not in str(error)
            place.run(server.aclose())


def test_a_second_server_in_a_run_directory_names_the_first(place: Place) -> None:
    server = place.start()
    with pytest.raises(FileServerError, match=rf"{place.run_dir}.*process {place.run(server.status()).pid}"):
        place.start(listen=["tcp:127.0.0.1:0"])


@pytest.mark.parametrize("kind", ["unix:{}/t", "firecracker:{}/v", "cloud-hypervisor:{}/v:7"])
def test_files_that_a_dead_server_left_never_block_a_start(place: Place, kind: str) -> None:
    address = kind.format(place.directory)
    server = place.start(listen=[address])
    place.kill(server)
    left = set(os.listdir(place.directory)) | set(os.listdir(place.run_dir))
    assert {"control.sock", "lock", "shares"} < left
    assert any(name.startswith(("t", "v_")) for name in left)
    server = place.start(listen=[address])
    assert server.addresses[0].startswith(address)
    place.run(server.aclose())
    assert sorted(os.listdir(place.directory)) == ["run", "shared"]


def test_a_writable_share_may_not_hold_the_run_directory(place: Place) -> None:
    server = place.start()
    for path in (place.directory, place.run_dir, place.run_dir / "mounts"):
        with pytest.raises(AccessDenied, match="run directory"):
            place.add(server, "0", path)
    place.add(server, "0", place.directory, read_only=True)
    assert place.guest("0").read_file("run/shares")


@pytest.mark.parametrize(
    ("directory", "fault"),
    [(each, fault) for each in ("run", "run/mounts") for fault in ("writable", "another's")] + [("run/mounts", "link")],
)
def test_where_another_user_could_name_a_mount_process_no_server_starts(
    place: Place, directory: str, fault: str
) -> None:
    """A server kills what it takes for a mount process of a share that is gone."""
    made = place.directory / directory
    made.mkdir(parents=True, mode=0o700)
    if fault == "writable":
        made.chmod(0o1777)
    elif fault == "another's":
        if os.geteuid() != 0:
            pytest.skip("giving a directory away needs root")
        os.chown(made, 12345, 12345)
    else:
        made.rmdir()
        (place.directory / "elsewhere").mkdir()
        made.symlink_to(place.directory / "elsewhere")
    with pytest.raises(FileServerError, match="must be a directory of user"):
        place.start()
    shutil.rmtree(place.run_dir)


# What the server has


def test_a_utility_vm_lists_what_the_file_server_has(place: Place) -> None:
    server = place.start()
    vm = UtilityVM(server)
    manager = Manager(vm)
    options = [AddOptions(place.shared), AddOptions(place.shared / "file", read_only=True)]
    names = [place.run(manager.add_to_vm(each)) for each in options]
    expected = {name: ListedShare.of(each) for name, each in zip(names, options, strict=True)}
    assert place.run(vm.list_plan9()) == expected
    place.kill(server)
    server = place.start()
    assert place.run(UtilityVM(server).list_plan9()) == expected


def test_a_share_that_is_being_removed_is_not_listed_until_it_is_gone(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1")
    place.guest("0")
    (pid,) = place.mounts(server)["0"]
    pidfd = os.pidfd_open(pid)

    async def list_meanwhile() -> Any:
        removing = asyncio.ensure_future(server.modify(remove_document("0")))
        await asyncio.sleep(0)  # a turn of the loop: it is on its way
        listed = await server.plan9_shares()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(0)
        await removing
        return [share.access_name for share in listed]

    assert place.run(list_meanwhile()) == ["1"]
    os.close(pidfd)


# The table on a full disk


def test_a_share_that_cannot_be_written_down_is_not_added_and_one_that_is_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uvmshare.fileserver import control
    from uvmshare.fileserver.ledger import Entry, Ledger
    from uvmshare.hcs.schema import Plan9Share

    path = str(tmp_path / "shares")
    configuration = control.Configuration(id=0, listen=("unix:/x",), security_model="none")
    first, second, third = (Entry(number, "root", Plan9Share(access_name=str(number))) for number in (1, 2, 3))
    ledger = Ledger(path, configuration, [first])
    ledger.add(second)
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) == 1:
            return pwrite(descriptor, data, offset)  # no room is needed
        if offset < os.fstat(descriptor).st_size + 1 and len(data) > 10:
            return pwrite(descriptor, data[:10], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match=r"No space left.*nothing was changed"):
        ledger.add(third)
    ledger.remove(1)
    table = Ledger.read(path)
    assert table is not None
    assert (table.entries, table.removed) == ((second,), (first,))
    monkeypatch.undo()
    ledger.add(third)
    table = Ledger.read(path)
    assert table is not None
    assert table.entries == (second, third)
    ledger.discard()


def test_a_table_does_not_grow_with_what_came_and_went(place: Place) -> None:
    server = place.start()
    place.add(server, "kept")

    async def come_and_go() -> None:
        for number in range(500):
            await server.modify(add_document(str(number), str(place.shared)))
            await server.modify(remove_document(str(number)))

    place.run(come_and_go())
    assert (place.run_dir / "shares").stat().st_size < 32 << 10
    place.kill(server)
    assert set(place.mounts(place.start())) == {"kept"}


# Who started it, and as whom


def test_a_log_whose_reader_is_gone_ends_nobody(place: Place) -> None:
    fifo = place.directory / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    server = place.start(log=fifo)
    place.add(server, "0")
    guest, other = place.guest("0"), place.guest("0")
    os.close(reader)
    guest.send_raw(b"\x03\0\0\0\0\0\0")  # the mount process has something to say
    assert guest.drain() == []
    with pytest.raises(OSError, match=r"."):
        place.guest("nothing")  # and so has the supervisor
    assert other.listdir() == [b"file"]
    assert len(place.mounts(server)["0"]) == 1


def test_what_cannot_be_ended_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    pid = int(place.run(server.status()).pid)
    from uvmshare.fileserver import device

    with monkeypatch.context() as nobody:
        nobody.setattr(sys, "executable", "/nonexistent/python")
        nobody.setattr(device, "_END_SECONDS", 0.05)
        kill(pid)
        place.run(asyncio.sleep(0))  # a turn of the loop, in which the end is seen
        place.servers.remove(server)
        with pytest.raises(FileServerError, match="its mounts go on"):
            place.run(server.aclose())
    assert guest.listdir() == [b"file"]
    place.run(place.start().aclose())
    place.servers.clear()
    assert guest.drain() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_root_has_a_users_directory_taken_over_as_that_user(place: Place) -> None:
    user = (12345, 12345, ())
    place.directory.chmod(0o777)
    place.run_dir.mkdir()
    os.chown(place.run_dir, 12345, 12345)
    server = place.start(run_as=user)
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    table = place.run_dir / "shares"
    assert table.stat().st_uid == 12345
    server = place.connect()
    with open(f"/proc/{place.run(server.status()).pid}/status", encoding="ascii") as status:
        assert "Uid:\t12345\t12345\t12345\t12345\n" in status.read()
    assert guest.listdir() == [b"file"]
    place.remove(server, "0")
    assert guest.drain() == []
