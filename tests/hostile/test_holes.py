"""Holes that were found and closed: each is held closed by the shortest way through it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import itertools
import os
import resource
import signal
import socket
import struct
import sys
import threading
from collections import deque
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import DEADLINE, await_end, children_of, status_of

from uvmshare.errors import ConnectionClosed, FileServerError
from uvmshare.fileserver import control
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.link import Link
from uvmshare.fileserver.mount import serving as serving_module
from uvmshare.fileserver.mount.aside import Aside
from uvmshare.fileserver.mount.confinement import missing
from uvmshare.fileserver.mount.files.listing import Listing
from uvmshare.fileserver.mount.files.openfile import OpenFile
from uvmshare.fileserver.mount.files.ownership import FileOwner, Ownership
from uvmshare.fileserver.mount.files.tree import Tree
from uvmshare.fileserver.mount.process import serve
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.fileserver.supervisor.main import Supervisor
from uvmshare.fileserver.supervisor.shares import MountProcesses
from uvmshare.hcs.schema import PLAN9_SHARES, ModifySettingRequest, Plan9Share, Plan9ShareFlags, RequestType
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import LockFlag, LockStatus, LockType, OpenFlag
from uvmshare.testing.client import NinePClient
from uvmshare.testing.connection import dial

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.hostile.conftest import Target

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


def opened(path: Path, *, only: tuple[str, ...] = ()) -> Export:
    flags = Plan9ShareFlags.RESTRICT_FILE_ACCESS if only else Plan9ShareFlags(0)
    share = Plan9Share(name="0", access_name="0", path=os.path.realpath(path), flags=int(flags), allowed_files=only)
    return Export.open(share, "none")


# A new directory's bits, and what has its name by then


def test_the_bits_of_a_new_directory_do_not_go_through_a_link_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    outside.chmod(0o600)
    export = opened(root)
    tree = Tree(export)
    mkdir = os.mkdir

    def swapped(name: bytes, mode: int, *, dir_fd: int) -> None:
        mkdir(name, mode, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)  # what another mount of the tree may do at this very moment
        os.symlink("../outside", name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swapped)
    with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
        Ownership(tree).mkdir(tree.root, b"made", 0o6777, FileOwner(0, 0))
    assert outside.stat().st_mode & 0o7777 == 0o600
    tree.close()
    export.close()


# A listing that runs aside, and a clunk


def test_a_directory_stays_open_while_its_listing_runs_aside(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    for name in ("hidden", "directory/inside"):
        (tmp_path / name).write_bytes(b"")
    export = opened(tmp_path, only=("directory",))
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE)
    session = Serving(theirs, export, Limits(), lambda _: None)
    attach = 0, m.Tattach(0, 0xFFFFFFFF, b"", b"0", 0)
    server = threading.Thread(target=session.run, args=(attach, 65536, b""))
    server.start()
    with ours, theirs, NinePClient(ours, timeout=DEADLINE) as client:
        assert isinstance(client.recv()[1], m.Rattach)
        client.root = 0
        client.rpc(m.Twalk(0, 1, (b"directory",)))
        client.rpc(m.Tlopen(1, OpenFlag.DIRECTORY))
        file = session.open_file(1)
        listing, number = file.listing, file.fd
        assert isinstance(listing, Listing)
        listing.is_large = True
        with listing._lock:  # the job waits here
            tag = client.send(m.Treaddir(1, 0, 4096))
            client.rpc(m.Tgetattr(0, 0))  # served behind it: the job has begun
            del file
            client.rpc(m.Tclunk(1))
            client.rpc(m.Twalk(0, 2))
            client.rpc(m.Tlopen(2, OpenFlag.DIRECTORY))  # takes the first free number
            assert session.open_file(2).fd != number
        listed = m.expect(client.wait(tag), m.Rreaddir)
        assert b"inside" in bytes(listed.data)
        assert b"hidden" not in bytes(listed.data)
        client.hang_up()
        server.join(DEADLINE)
    assert not server.is_alive()
    export.close()


def test_a_directory_that_left_the_share_is_not_listed_on(attack: Callable[..., Target]) -> None:
    target = attack()
    (target.root / "directory").mkdir()
    for number in range(4):
        (target.root / "directory" / f"old{number}").touch()
    client = target.connect()
    fid = client.open("directory", OpenFlag.DIRECTORY)
    cookies = [entry.offset for entry in client.readdir(fid)]
    (target.root / "directory").rename(target.top / "moved")
    (target.top / "moved" / "secret").touch()
    for cookie in (0, *cookies):
        with pytest.raises(FileNotFoundError):
            client.rpc(m.Treaddir(fid, cookie, 4096))
    target.require_unharmed()


# Descriptors


def no_more_descriptors(pid: int) -> tuple[int, int]:
    """Take from a process every descriptor that it does not have yet; returns its limits as they were."""
    used = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = next(number for number in range(len(used) + 1) if number not in used)
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, before[1]))
    return before


def test_a_share_that_cannot_be_opened_for_want_of_descriptors_is_refused_and_the_rest_goes_on(
    attack: Callable[..., Target],
) -> None:
    target = attack()
    client = target.connect()
    pid = target.pid
    for room in (0, 1):
        before = no_more_descriptors(pid)
        soft = resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft + room, before[1]))
        with pytest.raises(FileServerError, match="Too many open files"):
            target.device.share(target.root)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    client.stat()
    target.device.unshare(target.device.share(target.root))
    target.require_unharmed()


def test_a_supervisor_without_descriptors_goes_on_and_takes_guests_and_controllers_again(
    attack: Callable[..., Target], tmp_path: Path
) -> None:
    target = attack(run_dir=tmp_path / "run")
    pid = target.pid
    before = no_more_descriptors(pid)
    waiting = [dial(target.device.address, timeout=DEADLINE) for _ in range(5)]
    controller = socket.socket(socket.AF_UNIX)
    controller.connect(str(tmp_path / "run" / "control.sock"))
    target.witness.read_file("file")
    assert target.pid == pid
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    for each in waiting:
        with NinePClient.connect(each, target.name, timeout=DEADLINE) as client:
            client.stat()
    controller.settimeout(DEADLINE)
    controller.sendall(control.encode(control.Status(7)))
    assert controller.recv(65536)
    controller.close()
    target.require_unharmed()
    target.require_nothing_left()


def add(path: Path) -> ModifySettingRequest:
    share = Plan9Share(name="0", access_name="0", path=os.path.realpath(path), port=564)
    return ModifySettingRequest(resource_path=PLAN9_SHARES, request_type=RequestType.ADD, settings=share)


def test_a_mount_process_that_cannot_be_watched_does_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "share").mkdir()
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        failures = [OSError(errno.EMFILE, "no descriptors")]
        pidfd_open = os.pidfd_open

        def fails_once(number: int) -> int:
            if failures:
                raise failures.pop()
            return pidfd_open(number)

        monkeypatch.setattr(os, "pidfd_open", fails_once)
        try:
            Supervisor(theirs, MountProcesses(serve, missing)).run()
        finally:
            os._exit(0)
    theirs.close()

    async def talk() -> None:
        address = f"unix:{tmp_path}/s"
        link = Link(*await asyncio.open_unix_connection(sock=ours), None)
        await link.greeted(control.Configuration(id=0, listen=(address,), security_model="none"))
        server = FileServer([address], modify_timeout=DEADLINE)
        server._use(link)
        await server._modify(add(tmp_path / "share"))
        with suppress(ConnectionClosed), NinePClient.connect(address, "0", timeout=DEADLINE) as client:
            assert client.drain() == []  # it may have answered before it was ended
        status = await server.status()
        assert status.shares[0].mounts == ()
        assert children_of(pid) == []
        with NinePClient.connect(address, "0", timeout=DEADLINE) as client:
            assert client.listdir() == []
        await server.aclose()

    asyncio.run(talk())
    assert os.waitpid(pid, 0)[1] == 0


def walked(client: NinePClient, fid: int, names: tuple[bytes, ...]) -> int:
    """How many of the names a walk found. It says no more than how far it got, and an errno at the first."""
    try:
        return len(m.expect(client.rpc(m.Twalk(fid, fid, names)), m.Rwalk).qids)
    except OSError as error:
        assert error.errno == errno.EMFILE  # noqa: PT017  any other is the test's failure as it stands
        return 0


def test_a_deep_tree_takes_no_more_descriptors_than_the_limit(attack: Callable[..., Target]) -> None:
    most = 200
    target = attack(limits=Limits(descriptors=most))
    os.makedirs(target.root.joinpath(*["d"] * 160))
    client = target.connect()
    names = (b"d",) * 16
    reached = []
    for fid in (1000, 1001):
        client.rpc(m.Twalk(client.root, fid))
        reached.append(sum(walked(client, fid, names) for _ in range(10)))
    assert reached == [160, 160]
    (pid,) = target.mounts()
    assert len(os.listdir(f"/proc/{pid}/fd")) <= most
    spare = range(2000, 2000 + most)
    deque((client.rpc(m.Twalk(client.root, fid, (b"d",))) for fid in spare), maxlen=0)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= most
    with pytest.raises(OSError, match="Too many open files"):
        deque((client.rpc(m.Tlopen(fid, OpenFlag.DIRECTORY)) for fid in spare), maxlen=0)
    assert len(os.listdir(f"/proc/{pid}/fd")) <= most
    assert sum(f"no descriptor is left: the limit is {most}" in line for line in target.reasons()) == 1
    for fid in spare:
        client.rpc(m.Tclunk(fid))
    client.stat("d/d/d")  # it goes on once the guest lets go
    target.require_unharmed()


# Identities


def test_a_group_that_cannot_be_leaves_the_server_who_it_is(attack: Callable[..., Target]) -> None:
    target = attack("passthrough")
    (target.root / "roots").write_bytes(b"content")
    (target.root / "roots").chmod(0o600)
    target.root.chmod(0o777)
    client = target.connect(n_uname=1000)
    for request in (
        m.Tmkdir(client.root, b"a", 0o755, 0xFFFFFFFF),
        m.Tsymlink(client.root, b"b", b"c", 0xFFFFFFFF),
        m.Tmknod(client.root, b"d", 0o100644, 0, 0, 0xFFFFFFFF),
    ):
        with pytest.raises(OSError, match="in answer to"):
            client.rpc(request)
        # Permission is the guest's kernel's to check: the server itself can open every file of the share.
        assert client.read_file("roots") == b"content"
    assert os.listdir(target.root) == ["roots"]
    target.require_unharmed()


# The control channel


NESTED: Final = 400_000
TOO_DEEP: Final = {
    "lists": b"[" * NESTED,
    "a document of lists": b'{"do":"modify","id":1,"document":' + b"[" * NESTED + b"]" * NESTED + b"}",
    "a document of objects": b'{"do":"modify","id":1,"document":' + b'{"a":' * NESTED,
    "settings": b'{"do":"modify","id":1,"document":{"Settings":' + b"[" * NESTED + b"]" * NESTED + b"}}",
    "no UTF-8": b'{"do":"modify","id":"\xff\xfe"}',
    "half a character": b'{"do":"modify","id":1,"document":{"Settings":{"Path":"\\ud800"}}}',
    "a huge number": b'{"do":"status","id":' + b"9" * 5000 + b"}",
}


def test_nonsense_on_the_control_channel_ends_that_channel_alone(attack: Callable[..., Target], tmp_path: Path) -> None:
    target = attack(run_dir=tmp_path / "run")
    for body in (*TOO_DEEP.values(), b"", b"{}", b"null"):
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(DEADLINE)
            channel.connect(str(tmp_path / "run" / "control.sock"))
            with suppress(OSError):  # it may be closed before it has taken all
                channel.sendall(struct.pack(">I", len(body)) + body)
                channel.recv(65536)
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(tmp_path / "run" / "control.sock"))
        channel.sendall(b"\xff\xff\xff\xff")
        assert channel.recv(1) == b""
    target.require_unharmed()
    target.require_nothing_left()


def test_a_controller_that_never_reads_is_let_go(attack: Callable[..., Target], tmp_path: Path) -> None:
    target = attack(run_dir=tmp_path / "run")
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(DEADLINE)
        channel.connect(str(tmp_path / "run" / "control.sock"))
        request = control.encode(control.Status(1)) * 1000
        with pytest.raises(ConnectionError):
            channel.sendall(request * 1000)  # tens of megabytes of requests, and more of replies
    assert int(status_of(target.pid, "VmHWM").split()[0]) < 128 << 10
    target.require_unharmed()
    target.require_nothing_left()


def test_only_the_owner_may_open_the_control_socket_and_the_shares(
    attack: Callable[..., Target], tmp_path: Path
) -> None:
    old = os.umask(0)
    try:
        target = attack(run_dir=tmp_path / "run")
    finally:
        os.umask(old)
    assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
    for path in (str(tmp_path / "run" / "control.sock"), target.device.address.removeprefix("unix:"), str(target.log)):
        assert os.stat(path).st_mode & 0o777 == 0o600, path


# Locks that wait


def test_a_guest_that_never_stops_sending_still_gets_the_locks_it_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = opened(tmp_path)
    ours, theirs = socket.socketpair()
    session = Serving(theirs, export, Limits(), lambda _: None)
    tries: list[int] = []

    def try_again() -> bool:
        tries.append(1)
        return len(tries) == 3

    ticks = itertools.count()
    monkeypatch.setattr(serving_module, "time", SimpleNamespace(monotonic=lambda: float(next(ticks))))
    with ours, theirs:
        session.wait_for_lock(7, try_again)
        ours.sendall(bytes(100))  # there is always more to read
        for _ in range(50):
            assert session._receive(0, 1) == 1
        assert len(tries) == 3
        ours.settimeout(DEADLINE)
        reply = m.decode(ours.recv(100))
        assert reply == (7, m.Rlock(LockStatus.SUCCESS))
        session.close()
    export.close()


def test_a_lock_that_waits_goes_with_its_fid(attack: Callable[..., Target]) -> None:
    target = attack(limits=Limits(lock_wait_seconds=DEADLINE))
    (target.root / "file").touch()
    client = target.connect()
    with open(target.root / "file", "r+b") as file:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
        fid = client.open("file", OpenFlag.RDWR)
        tag = client.send(m.Tlock(fid, LockType.WRLCK, LockFlag.BLOCK, 0, 0, 1, b"guest"))
        client.rpc(m.Tclunk(fid))
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_UNLCK, 0, 0, 0, 0))
        with pytest.raises(OSError, match="Bad file descriptor"):
            client.wait(tag)
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    target.require_unharmed()


# Aside


def test_a_request_is_served_in_turn_when_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: threading.Thread) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    sent: list[bytes] = []
    aside = Aside(sent.append)
    file = OpenFile(os.open(os.devnull, os.O_RDONLY), (0, 0))
    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", no_thread)
        assert aside.start(1, 100, file, lambda: b"never") is False
        assert aside.pending == {}
    assert aside.start(1, 100, file, lambda: b"answer") is True
    assert aside._threads is not None
    aside._threads.shutdown(wait=True)
    assert sent == [b"answer"]
    aside.close()


# Signals


def test_the_end_of_a_supervisor_that_was_started_with_sigio_ignored_ends_its_mounts(
    attack: Callable[..., Target],
) -> None:
    old = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        target = attack()
    finally:
        signal.signal(signal.SIGIO, old)
    target.connect()
    (mount,) = target.mounts()
    watched = os.pidfd_open(mount)
    os.kill(target.pid, signal.SIGKILL)
    await_end(watched)
    os.close(watched)
