"""The run directory: one server at a time, the table of its shares, and who may have one."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.fileserver.harness import add_document, remove_document
from tests.processes import await_answer, await_end
from tests.root import needs_root, require_root

from uvmshare.errors import AccessDenied, DiskFull, FileServerError
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.rundir import directory
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from tests.fileserver.takeover.harness import Place

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


# One at a time


def test_two_starts_at_once_are_one_server(place: Place) -> None:
    async def race(**settings: Any) -> list[Any]:
        both = [FileServer([place.address], security_model="none", **settings).start() for _ in range(2)]
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
        require_root("giving a directory away needs root")
        os.chown(made, 12345, 12345)
    else:
        made.rmdir()
        (place.directory / "elsewhere").mkdir()
        made.symlink_to(place.directory / "elsewhere")
    with pytest.raises(FileServerError, match="must be a directory of user"):
        place.start()
    shutil.rmtree(place.run_dir)


def test_a_mount_process_cannot_write_down_another_as_itself(place: Place) -> None:
    """The next supervisor kills whom its file names, if its share is gone."""
    server = place.start()
    place.add(server, "0")
    place.guest("0").stat("file")
    (pid,) = place.mounts(server)["0"]
    (own,) = (place.run_dir / "mounts").iterdir()
    descriptors = Path(f"/proc/{pid}/fd")
    (held,) = [each for each in descriptors.iterdir() if each.exists() and each.samefile(own)]
    about = Path(f"/proc/{pid}/fdinfo/{held.name}").read_text()
    assert int(about.partition("flags:")[2].split()[0], 8) & os.O_ACCMODE == os.O_RDONLY
    place.kill(server)
    assert place.mounts(place.start()) == {"0": [pid]}


def test_where_locks_are_for_writers_alone_a_mount_process_is_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, see flock(2)."""
    place.run_dir.mkdir(mode=0o700)
    held = directory.RunDirectory(str(place.run_dir))
    flock = fcntl.flock

    def for_writers(descriptor: int, how: int) -> None:
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", for_writers)
    monkeypatch.setattr(directory, "_may_be", lambda *_: True)  # a supervisor never takes itself for a mount
    own = held.open_mount(1, 7, "a guest")
    directory.introduce(own, 9)
    (found,) = held.find_mounts()
    assert (found.pid, found.serial, found.connection, found.root) == (os.getpid(), 1, 7, 9)
    os.close(found.pidfd)
    os.close(own)
    assert held.find_mounts() == []
    held.clear()


# What the server has


def test_a_file_server_lists_what_it_has(place: Place) -> None:
    server = place.start()
    manager = Manager(server)
    options = [AddOptions(place.shared), AddOptions(place.shared / "file", read_only=True)]
    names = [place.run(manager.add(each)) for each in options]
    expected = dict(zip(names, options, strict=True))
    assert place.run(server.list_plan9()) == expected
    place.kill(server)
    server = place.start()
    assert place.run(server.list_plan9()) == expected


def test_a_share_that_is_being_removed_is_not_listed_until_it_is_gone(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1")
    place.guest("0")
    (pid,) = place.mounts(server)["0"]
    pidfd = os.pidfd_open(pid)

    async def list_meanwhile() -> Any:
        removing = asyncio.ensure_future(server._modify(remove_document("0")))
        await asyncio.sleep(0)  # a turn of the loop: it is on its way
        listed = await server.list_plan9()
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(0)
        await removing
        return list(listed)

    assert place.run(list_meanwhile()) == ["1"]
    os.close(pidfd)


# The table on a full disk


def test_a_share_that_cannot_be_written_down_is_not_added_and_one_that_is_can_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uvmshare.fileserver import control
    from uvmshare.fileserver.rundir.sharetable import ShareTable, TakenShare
    from uvmshare.hcs.schema import Plan9Share

    path = str(tmp_path / "shares")
    configuration = control.Configuration(id=0, listen=("unix:/x",), security_model="none")
    first, second, third = (TakenShare(number, "root", Plan9Share(access_name=str(number))) for number in (1, 2, 3))
    share_table = ShareTable(path, configuration, [first])
    share_table.add(second)
    pwrite = os.pwrite

    def full(descriptor: int, data: bytes, offset: int) -> int:
        if len(data) == 1:
            return pwrite(descriptor, data, offset)  # no room is needed
        if offset < os.fstat(descriptor).st_size + 1 and len(data) > 10:
            return pwrite(descriptor, data[:10], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFull, match=r"No space left.*nothing was changed"):
        share_table.add(third)
    share_table.remove(1)
    table = ShareTable.read(path)
    assert table is not None
    assert (table.entries, table.removed) == ((second,), (first,))
    monkeypatch.undo()
    share_table.add(third)
    table = ShareTable.read(path)
    assert table is not None
    assert table.entries == (second, third)
    share_table.discard()


def test_a_table_does_not_grow_with_what_came_and_went(place: Place) -> None:
    server = place.start()
    place.add(server, "kept")

    async def come_and_go() -> None:
        for number in range(500):
            await server._modify(add_document(str(number), str(place.shared)))
            await server._modify(remove_document(str(number)))

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
    guest = place.guest("0")
    (pid,) = place.mounts(server)["0"]
    pidfd = os.pidfd_open(pid)
    other = place.guest("0")
    os.close(reader)
    guest.send_raw(b"\x03\0\0\0\0\0\0")  # the mount process has something to say
    assert guest.drain() == []
    await_end(pidfd)
    os.close(pidfd)
    with pytest.raises(OSError, match=r"."):
        place.guest("nothing")  # and so has the supervisor
    assert other.listdir() == [b"file"]
    await_answer(lambda: len(place.mounts(server)["0"]), 1)


def test_what_cannot_be_ended_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    from uvmshare.fileserver import device

    with monkeypatch.context() as nobody:
        nobody.setattr(sys, "executable", "/nonexistent/python")
        nobody.setattr(device, "_END_SECONDS", 0.05)
        place.kill_under(server)
        place.servers.remove(server)
        with pytest.raises(FileServerError, match="its mounts go on"):
            place.run(server.aclose())
    assert guest.listdir() == [b"file"]
    place.run(place.start().aclose())
    place.servers.clear()
    assert guest.drain() == []


@needs_root
def test_root_has_a_users_directory_taken_over_as_that_user(place: Place) -> None:
    user = (12345, 12345, ())
    place.directory.chmod(0o1777)  # as /tmp is
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
