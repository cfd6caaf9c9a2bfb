"""Descriptors that nobody uses are closed, and no guest notices: the very same file is found again, or none."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from tests.processes import await_answer

from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import LockType
from uvmshare.ninep.constants import OpenFlag as O
from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver import speed
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mount import buffers
from uvmshare.fileserver.mount import idle as idle_module
from uvmshare.fileserver.mount.serving import Serving
from uvmshare.fileserver.mount.waiting import set_time_out
from uvmshare.hcs.schema import Plan9Share, Plan9ShareFlags

if TYPE_CHECKING:
    import mmap
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device

DEADLINE = 60.0
EVERYTHING = 1 << 30
ROOT = 1 << 30


def _is_there(descriptor: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{descriptor}")  # not the one that listed them


class Mount:
    """A session in a thread. Its descriptors are let go between two requests, when its thread only waits."""

    def __init__(self, client: NinePClient, session: Serving, log: list[str]) -> None:
        self.client = client
        self.session = session
        self.log = log

    def rest(self) -> int:
        """Let everything go that may be."""
        return self.session.idle.let_go(EVERYTHING)

    def crowd(self) -> int:
        """Let everything go that may be when there are too many, open files too."""
        return self.session.idle.let_go(EVERYTHING, opened_too=True)

    def open_in(self, root: Path) -> list[str]:
        """Return what is open of regular files below a directory."""
        paths = [os.readlink(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd") if _is_there(each)]
        return [path for path in paths if path.startswith(f"{root}/") and os.path.isfile(path)]

    def gone(self, fid: int) -> None:
        with pytest.raises(OSError, match="No such file") as caught:
            self.client.getattr(fid)
        assert caught.value.errno == errno.ENOENT


@contextmanager
def mounted(root: Path, *, allowed: tuple[str, ...] = (), descriptors: int = 1024) -> Iterator[Mount]:
    flags = int(Plan9ShareFlags.RESTRICT_FILE_ACCESS) if allowed else 0
    path = str(root.resolve())
    export = Export.open(Plan9Share(name="0", access_name="0", path=path, flags=flags, allowed_files=allowed), "none")
    ours, theirs = socket.socketpair()
    ours.settimeout(DEADLINE)
    log: list[str] = []
    session = Serving(theirs, export, Limits(), log.append, descriptors=descriptors)
    attach = 0, m.Tattach(ROOT, 0xFFFFFFFF, b"", b"0", 0)
    server = threading.Thread(target=session.run, args=(attach, 1 << 20, b""))
    server.start()
    with ours, theirs, NinePClient(ours, timeout=DEADLINE) as client:
        assert isinstance(client.recv()[1], m.Rattach)
        client.root = ROOT
        yield Mount(client, session, log)
        client.hang_up()
        server.join(DEADLINE)
    assert not server.is_alive()
    export.close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "root"
    (made / "a" / "b").mkdir(parents=True)
    (made / "a" / "b" / "f").write_bytes(b"content")
    return made


@pytest.fixture
def mount(root: Path) -> Iterator[Mount]:
    with mounted(root) as made:
        yield made


def test_what_was_let_go_is_used_as_before(mount: Mount, root: Path) -> None:
    client = mount.client
    fid = client.walk("a/b/f")
    before = client.getattr(fid)
    assert mount.rest() == 3  # the file and the two directories above it
    assert client.getattr(fid) == before
    mount.rest()
    with client.walked("a") as a:
        mount.rest()
        assert client.stat("a/b/f").qid == before.qid
        inner = client.walk("b/f", start=a)
        assert client.getattr(inner).qid == before.qid
    mount.rest()
    clone = client.walk(start=fid)
    mount.rest()
    client.rpc(m.Tlopen(clone, O.RDWR))
    assert client.read(clone, 0, 100) == b"content"
    mount.rest()
    client.write(clone, 0, b"CONTENT")
    client.setattr(fid, size=3)
    assert (root / "a" / "b" / "f").read_bytes() == b"CON"


def test_a_file_that_a_fid_has_open_stays_open(mount: Mount, root: Path) -> None:
    client = mount.client
    made = client.create("a/new", O.RDWR)
    opened = client.open("a/b/f", O.RDONLY)
    mount.rest()
    (root / "a" / "new").unlink()
    (root / "a" / "b" / "f").unlink()
    mount.rest()
    client.write(made, 0, b"x")
    assert client.read(made, 0, 10) == b"x"
    assert client.read(opened, 0, 10) == b"content"
    assert client.getattr(opened).nlink == client.getattr(made).nlink == 0


def test_a_file_without_a_name_is_found_by_whoever_has_it_open(mount: Mount) -> None:
    """Linux's client asks for the attributes of an open file that was removed by another fid, which it walked to it."""
    client = mount.client
    entry = client.walk("a/b/f")
    opened = client.open("a/b/f", O.RDONLY)
    mount.rest()
    client.unlink("a/b/f")
    assert client.getattr(entry).nlink == 0
    mount.rest()
    assert client.getattr(entry).qid == client.getattr(opened).qid
    mount.rest()
    client.clunk(opened)
    mount.gone(entry)


@pytest.mark.parametrize("steps", [1, 3])
def test_what_the_guest_renames_is_followed(mount: Mount, root: Path, steps: int) -> None:
    client = mount.client
    (root / "a" / "c").mkdir()
    fid, directory = client.walk("a/b/f"), client.walk("a/b")
    before = client.getattr(fid).qid
    mount.rest()
    place = "a/b/f"
    for number in range(steps):
        client.rename(place, f"a/c/g{number}")
        place = f"a/c/g{number}"
    client.rename("a/c", "c")
    client.rename("a/b", "b")
    mount.rest()
    assert client.getattr(fid).qid == before
    mount.rest()
    assert client.listdir("b") == []
    assert client.getattr(directory).qid == client.stat("b").qid


def test_what_was_renamed_while_it_was_open_is_found_by_its_new_name(mount: Mount, root: Path) -> None:
    client = mount.client
    fid = client.walk("a/b/f")
    before = client.getattr(fid).qid
    (root / "a" / "b" / "f").rename(root / "a" / "b" / "g")
    mount.rest()
    assert client.getattr(fid).qid == before
    (root / "a" / "b" / "g").rename(root / "elsewhere")
    mount.rest()  # its directory has it no more, so that it is kept
    assert client.getattr(fid).qid == before


def test_another_file_of_the_same_name_is_not_taken_for_it(mount: Mount, root: Path) -> None:
    client, path = mount.client, root / "a" / "b" / "f"
    fid = client.walk("a/b/f")
    mount.rest()
    new = root / "new"
    new.write_bytes(b"other")
    new.rename(path)
    mount.gone(fid)
    assert client.read_file("a/b/f") == b"other"


def test_a_new_file_with_the_old_ones_inode_is_not_taken_for_it(
    mount: Mount, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many file systems give an inode's number to the next file: what tells them apart is the handle, or the birth."""
    client, path = mount.client, root / "a" / "b" / "f"
    for has_handles in (True, False):
        if not has_handles:
            monkeypatch.setattr(idle_module, "file_handle", lambda _: b"")
        for _ in range(100):
            inode = path.stat().st_ino
            fid = client.walk("a/b/f")
            mount.rest()
            path.unlink()
            path.write_bytes(b"other")
            mount.gone(fid)
            client.clunk(fid)
            if path.stat().st_ino == inode:
                break


@pytest.mark.parametrize("what", ["link", "directory link", "moved out", "hidden"])
def test_nothing_outside_is_found_again(tmp_path: Path, root: Path, what: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_bytes(b"outside")
    with mounted(root, allowed=("a",)) as mount:
        client = mount.client
        fid = client.walk("a/b/f")
        mount.rest()
        inner = root / "a" / "b"
        if what == "link":
            (inner / "f").rename(outside / "moved")
            (inner / "f").symlink_to(outside / "moved")
        elif what == "directory link":
            inner.rename(outside / "b")
            inner.symlink_to(outside / "b")
        elif what == "moved out":
            inner.rename(outside / "b")
        else:
            (root / "a").rename(root / "not allowed")
        mount.gone(fid)


def test_as_many_files_are_remembered_as_there_are_fids(root: Path) -> None:
    for number in range(1500):
        (root / "a" / str(number)).touch()
    before = len(os.listdir("/proc/self/fd"))
    with mounted(root, descriptors=1200) as mount:
        client = mount.client
        fids = [client.walk(f"a/{number}") for number in range(1500)]
        assert len(os.listdir("/proc/self/fd")) < before + 1300
        inodes = [client.getattr(fid).qid.path for fid in fids]
        assert inodes == [(root / "a" / str(number)).stat().st_ino for number in range(1500)]
    assert any("descriptors are open" in line for line in mount.log)


def test_more_renames_than_are_remembered_lose_the_first(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle_module, "_MOST_RENAMES", 2)
    client = mount.client
    fid, last = client.walk("a/b/f"), client.walk("a/b")
    mount.rest()
    client.rename("a/b/f", "a/b/g")
    client.rename("a/b", "a/c")
    client.rename("a/c", "a/d")
    mount.gone(fid)
    assert client.getattr(last).qid == client.stat("a/d").qid


def test_a_circle_of_renames_ends(mount: Mount, root: Path) -> None:
    client = mount.client
    fid = client.walk("a/b/f")
    mount.rest()
    client.rename("a/b/f", "a/b/g")
    client.rename("a/b/g", "a/b/f")
    (root / "a" / "b" / "f").unlink()
    mount.gone(fid)


def test_a_large_write_that_pauses_is_written_whole(mount: Mount, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paused = threading.Event()
    monkeypatch.setattr(mount.session, "bear_silence", paused.set)
    monkeypatch.setattr(mount.session, "_wait", 0.01)
    set_time_out(mount.session._connection, 0.01)
    client = mount.client
    fid = client.open("a/b/f", O.WRONLY)
    data = os.urandom(600_000)
    whole = m.Twrite(fid, 0, data).encode(1)
    client.send_raw(whole[:300_000])
    paused.clear()
    assert paused.wait(DEADLINE)
    client.send_raw(whole[300_000:])
    assert client.recv()[1] == m.Rwrite(len(data))
    assert (root / "a" / "b" / "f").read_bytes() == data


@pytest.mark.parametrize("is_compiled", [True, False])
@pytest.mark.parametrize("is_large", [True, False])
def test_what_has_come_of_a_message_is_there_when_a_silent_mount_has_given_its_memory_back(
    root: Path, monkeypatch: pytest.MonkeyPatch, *, is_large: bool, is_compiled: bool
) -> None:
    if not is_compiled:
        monkeypatch.setattr(speed, "compiled", None)
    given_back = threading.Event()
    give_back = buffers.give_back

    def note(*given: mmap.mmap, kept: int = 0) -> None:
        give_back(*given, kept=kept)
        if kept:
            given_back.set()

    with mounted(root) as mount:
        client = mount.client
        set_time_out(mount.session._connection, 0.01)
        fid = client.open("a/b/f", O.WRONLY | O.APPEND)  # what is appended is received before it is written
        data = os.urandom(600_000)
        request = m.Twrite(fid, 0, data) if is_large else m.Tgetattr(fid, 0)
        whole = request.encode(1)
        half = len(whole) // 2
        monkeypatch.setattr(buffers, "give_back", note)
        client.send_raw(whole[:half])
        assert given_back.wait(DEADLINE)
        client.send_raw(whole[half:])
        answer = client.recv()[1]
        if is_large:
            assert answer == m.Rwrite(len(data))
            assert (root / "a" / "b" / "f").read_bytes() == b"content" + data
        else:
            assert isinstance(answer, m.Rgetattr)


def test_a_mount_process_that_nobody_uses_holds_no_file_open(start_device: Callable[..., Device], root: Path) -> None:
    for number in range(300):
        (root / "a" / str(number)).touch()
    device = start_device(limits=Limits(keep_seconds=0.05, descriptors=4096))
    name = device.share(root)
    with device.connect(name) as client:
        fids = [client.walk(f"a/{number}") for number in range(300)]
        (pid,) = device.mounts(name)
        await_answer(lambda: len(os.listdir(f"/proc/{pid}/fd")) < 20, True)
        assert [client.getattr(fid).qid.path for fid in fids] == [
            (root / "a" / str(number)).stat().st_ino for number in range(300)
        ]
        await_answer(lambda: len(os.listdir(f"/proc/{pid}/fd")) < 20, True)
    device.unshare(name)


# Open files


def opened_as(client: NinePClient, way: str) -> int:
    """Open a file to read and write: one that is made, or one that was there."""
    return client.create("a/new", O.RDWR) if way == "made" else client.open("a/b/f", O.RDWR)


@pytest.mark.parametrize("way", ["made", "opened"])
def test_an_open_file_that_was_let_go_is_used_as_before(mount: Mount, root: Path, way: str) -> None:
    client = mount.client
    fid = opened_as(client, way)
    path = root / ("a/new" if way == "made" else "a/b/f")
    for number in range(3):
        assert mount.crowd() >= 1
        client.write(fid, 0, b"%d" % number)
        mount.crowd()
        assert client.read(fid, 0, 1) == b"%d" % number
        mount.crowd()
        client.setattr(fid, size=1)
        assert path.read_bytes() == b"%d" % number
    mount.crowd()
    clone = client.walk(start=fid)
    client.rpc(m.Tlopen(clone, O.RDONLY))
    client.rpc(m.Tfsync(fid, 0))
    mount.crowd()
    client.clunk(fid)
    assert client.read(clone, 0, 10) == b"2"
    client.clunk(clone)
    assert mount.open_in(root) == []


@pytest.mark.parametrize("way", ["made", "opened"])
@pytest.mark.parametrize("how", ["unlink", "rename over", "remove"])
def test_what_the_guest_removes_stays_open_though_it_was_let_go(mount: Mount, root: Path, way: str, how: str) -> None:
    client = mount.client
    fid = opened_as(client, way)
    name = "a/new" if way == "made" else "a/b/f"
    client.write(fid, 0, b"content")
    other = client.walk(name)
    (root / "other").write_bytes(b"other")
    mount.crowd()
    if how == "unlink":
        client.unlink(name)
    elif how == "remove":
        client.rpc(m.Tremove(other))
    else:
        client.rename("other", name)
    mount.crowd()
    client.write(fid, 0, b"C")
    assert client.read(fid, 0, 10) == b"Content"
    assert client.getattr(fid).nlink == 0
    assert mount.crowd() == 0 or client.read(fid, 0, 10) == b"Content"


@pytest.mark.parametrize("what", ["removed", "replaced", "renamed", "moved out"])
def test_an_open_file_that_was_let_go_is_lost_when_the_host_takes_it(mount: Mount, root: Path, what: str) -> None:
    client, path = mount.client, root / "a" / "b" / "f"
    fid = client.open("a/b/f", O.RDWR)
    mount.crowd()
    if what == "removed":
        path.unlink()
    elif what == "replaced":
        (root / "new").write_bytes(b"other")
        (root / "new").rename(path)
    elif what == "renamed":
        path.rename(root / "a" / "elsewhere")
    else:
        (root / "a" / "b").rename(root.parent / "outside")
    for call in (lambda: client.read(fid, 0, 10), lambda: client.write(fid, 0, b"x")):
        with pytest.raises(OSError, match="Stale") as caught:
            call()
        assert caught.value.errno == errno.ESTALE
    client.clunk(fid)
    if what == "replaced":
        assert path.read_bytes() == b"other"


def test_an_open_file_that_the_guest_renames_is_followed(mount: Mount) -> None:
    client = mount.client
    fid = client.open("a/b/f", O.RDWR)
    mount.crowd()
    client.rename("a/b/f", "g")
    assert client.read(fid, 0, 10) == b"content"


def test_what_the_host_took_a_name_from_is_not_let_go(mount: Mount, root: Path) -> None:
    client = mount.client
    made, opened = opened_as(client, "made"), opened_as(client, "opened")
    client.write(made, 0, b"new")
    (root / "a" / "new").unlink()
    (root / "a" / "b" / "f").rename(root / "elsewhere")
    mount.crowd()
    assert (client.read(made, 0, 10), client.read(opened, 0, 10)) == (b"new", b"content")


def test_an_open_file_comes_back_as_it_was_opened(mount: Mount, root: Path) -> None:
    client = mount.client
    fid = client.open("a/b/f", O.WRONLY | O.APPEND)
    reading = client.open("a/b/f", O.RDONLY)
    truncated = client.open("a/b/f", O.RDWR | O.TRUNC)
    client.write(truncated, 0, b"content")
    mount.crowd()
    client.write(fid, 0, b", more")
    assert (root / "a" / "b" / "f").read_bytes() == b"content, more"
    for call in (lambda: client.read(fid, 0, 1), lambda: client.write(reading, 0, b"x")):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()


def test_locks_stay_with_an_open_file_that_was_let_go(mount: Mount, root: Path) -> None:
    client = mount.client
    fid = client.open("a/b/f", O.RDWR)
    assert client.rpc(m.Tlock(fid, LockType.WRLCK, 0, 0, 0, 1, b"guest")) == m.Rlock(0)
    mount.crowd()
    with open(root / "a" / "b" / "f", "r+b") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    client.clunk(fid)
    with open(root / "a" / "b" / "f", "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_open_file_that_another_thread_works_with_is_not_let_go(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mount.client
    fid = client.open("a/b/f", O.RDWR)
    begun, go = threading.Event(), threading.Event()

    def sync(descriptor: int) -> None:
        begun.set()
        assert go.wait(DEADLINE)
        os.fstat(descriptor)

    monkeypatch.setattr("uvmshare.fileserver.mount.handlers.files.os.fsync", sync)
    client.send(m.Tfsync(fid, 0))
    assert begun.wait(DEADLINE)
    file = mount.session.fids[fid].file
    assert file is not None
    mount.crowd()
    assert file.away is None
    go.set()
    assert isinstance(client.recv()[1], m.Rfsync)
    mount.crowd()
    assert file.away is not None


def test_as_many_files_are_open_as_there_are_fids(root: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with mounted(root, descriptors=1200) as mount:
        client = mount.client
        fids = []
        for number in range(1500):
            fids.append(client.create(f"a/{number}", O.RDWR))
            client.write(fids[-1], 0, b"%d" % number)
            assert len(os.listdir("/proc/self/fd")) < before + 1300
        for number, fid in enumerate(fids):
            assert client.read(fid, 0, 10) == b"%d" % number
            assert len(os.listdir("/proc/self/fd")) < before + 1300
        client.unlink("a/7")
        assert client.read(fids[7], 0, 10) == b"7"
