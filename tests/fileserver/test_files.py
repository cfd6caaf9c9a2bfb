"""Opening, reading and writing files: protocol.md's lopen, lcreate, fsync; read(5) and write(5)."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O
from uvmshare.ninep.constants import QidType

if TYPE_CHECKING:
    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

GIB = 1 << 30


# Open and create


def test_open_says_which_file_and_leaves_iounit_to_msize(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"x")
    fid = guest.walk("f")
    reply = guest.ask(m.Tlopen(fid, O.RDONLY), m.Rlopen)
    assert reply.qid == guest.getattr(fid).qid
    assert reply.iounit == 0


def test_a_fid_is_opened_once(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"x")
    fid = guest.open("f")
    with refused():
        guest.rpc(m.Tlopen(fid, O.RDONLY))
    assert guest.read(fid, 0, 10) == b"x"


def test_create_opens_and_moves_the_fid(host: Host, guest: NinePClient) -> None:
    fid = guest.walk()
    reply = guest.ask(m.Tlcreate(fid, b"f", O.RDWR | O.CREATE | O.EXCL, 0o640, 0), m.Rlcreate)
    assert reply.iounit == 0
    assert reply.qid == guest.getattr(fid).qid == guest.stat("f").qid
    assert guest.write(fid, 0, b"hello") == 5
    assert guest.read(fid, 1, 3) == b"ell"
    assert (host.root / "f").read_bytes() == b"hello"
    assert guest.stat("f").mode == stat.S_IFREG | 0o640


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o644, 0o666, 0o777])
def test_create_gives_the_very_mode_that_is_asked_for(guest: NinePClient, mode: int) -> None:
    guest.create("f", O.WRONLY, mode)  # the guest's kernel applied its umask already
    assert stat.S_IMODE(guest.stat("f").mode) == mode
    guest.mkdir("d", mode)
    assert stat.S_IMODE(guest.stat("d").mode) == mode


def test_a_file_created_without_write_permission_can_be_written_through_its_fid(host: Host, guest: NinePClient) -> None:
    fid = guest.create("f", O.RDWR, 0o400)
    guest.write(fid, 0, b"git does this")
    assert (host.root / "f").read_bytes() == b"git does this"


def test_exclusive_create_of_what_exists(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"old")
    fid = guest.walk()
    with refused(errno.EEXIST):
        guest.rpc(m.Tlcreate(fid, b"f", O.WRONLY | O.CREATE | O.EXCL, 0o644, 0))
    assert guest.getattr(fid).qid.type == QidType.DIR  # the fid is still the directory
    assert (host.root / "f").read_bytes() == b"old"


def test_create_of_what_exists_opens_it(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"old")
    assert guest.read(guest.create("f", O.RDWR), 0, 10) == b"old"
    guest.create("f", O.RDWR | O.TRUNC)
    assert (host.root / "f").read_bytes() == b""


def test_create_in_what_is_no_directory(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"")
    with guest.walked("f") as fid, refused(errno.ENOTDIR):
        guest.rpc(m.Tlcreate(fid, b"x", O.WRONLY | O.CREATE, 0o644, 0))


def test_create_on_an_open_fid_is_an_error(host: Host, guest: NinePClient, refused: Refused) -> None:
    fid = guest.open("", O.DIRECTORY)
    with refused():
        guest.rpc(m.Tlcreate(fid, b"x", O.WRONLY | O.CREATE, 0o644, 0))
    assert guest.listdir() == []


@pytest.mark.parametrize("how", ["Twalk", "Twalk to itself", "Txattrwalk"])
def test_what_was_cloned_of_a_created_file_does_not_keep_it_open(host: Host, guest: NinePClient, how: str) -> None:
    # Who has a file open for writing keeps the host from running it (ETXTBSY), and counts as an open file.
    fid, clone = guest.create("f", O.RDWR, 0o755), 7000
    guest.write(fid, 0, b"#!/bin/sh")
    if how == "Twalk to itself":
        guest.ask(m.Twalk(fid, fid, ()), m.Rwalk)
    else:
        guest.rpc(m.Twalk(fid, clone, ()) if how == "Twalk" else m.Txattrwalk(fid, clone, b""))
        guest.clunk(fid)
        fid = clone
    assert not [flags for flags in host.flags(host.root / "f") if not flags & os.O_PATH]
    if how != "Txattrwalk":
        assert guest.getattr(fid).size == 9
        guest.ask(m.Tlopen(fid, O.RDWR), m.Rlopen)
        guest.write(fid, 9, b" -e")
        assert guest.read_file("f") == b"#!/bin/sh -e"


def test_a_created_file_is_written_through_its_own_fid_while_there_are_clones(host: Host, guest: NinePClient) -> None:
    fid = guest.create("f", O.RDWR, 0)
    guest.ask(m.Twalk(fid, 7000, ()), m.Rwalk)
    guest.write(fid, 0, b"content")
    guest.unlink("f")
    assert guest.read(fid, 0, 10) == b"content"
    assert guest.getattr(7000).nlink == 0


def test_truncation_on_open(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"long content")
    guest.write(guest.open("f", O.WRONLY | O.TRUNC), 0, b"new")
    assert (host.root / "f").read_bytes() == b"new"


def test_append(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"0")
    one, two = guest.open("f", O.WRONLY | O.APPEND), guest.open("f", O.WRONLY | O.APPEND)
    guest.write(one, 0, b"1")  # Linux's client sends whatever offset it believes in
    guest.write(two, 1, b"2")
    guest.write(one, 0, b"3")
    assert (host.root / "f").read_bytes() == b"0123"


def test_append_when_created(host: Host, guest: NinePClient) -> None:
    fid = guest.create("f", O.WRONLY | O.APPEND)
    for byte in (b"a", b"b", b"c"):
        guest.write(fid, 0, byte)
    assert (host.root / "f").read_bytes() == b"abc"


@pytest.mark.parametrize("extra", [O.DIRECT, O.NONBLOCK, O.NOCTTY, O.CLOEXEC, O.LARGEFILE, O.SYNC, O.DSYNC, O.NOFOLLOW])
def test_flags_that_are_the_guests_own_business_change_nothing(host: Host, guest: NinePClient, extra: O) -> None:
    guest.write(guest.create("f", O.RDWR | extra), 3, b"odd")
    fid = guest.open("f", O.RDWR | extra)
    assert guest.read(fid, 1, 7) == b"\0\0odd"
    guest.write(fid, 1, b"x")
    assert (host.root / "f").read_bytes() == b"\0x\0odd"


def test_flags_that_nobody_knows_do_no_harm(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"x")
    fid = guest.walk("f")
    reply = guest.send(m.Tlopen(fid, 0xFFFF0000 & ~(O.DIRECTORY | O.NOATIME)))
    with suppress(OSError):  # refusing is as good as ignoring
        guest.wait(reply)
    assert (host.root / "f").read_bytes() == b"x"
    assert guest.listdir() == [b"f"]


def test_the_access_mode_holds(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"x")
    reader, writer = guest.open("f", O.RDONLY), guest.open("f", O.WRONLY)
    with refused(errno.EBADF):
        guest.write(reader, 0, b"y")
    with refused(errno.EBADF):
        guest.read(writer, 0, 1)
    assert (host.root / "f").read_bytes() == b"x"


def test_reading_and_writing_need_an_open_fid(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"x")
    with guest.walked("f") as fid:
        for message in (m.Tread(fid, 0, 1), m.Twrite(fid, 0, b"y"), m.Treaddir(fid, 0, 1000), m.Tfsync(fid, 0)):
            with refused():
                guest.rpc(message)
    assert (host.root / "f").read_bytes() == b"x"


@pytest.mark.parametrize("flags", [O.WRONLY, O.RDWR, O.RDWR | O.DIRECTORY])
def test_a_directory_is_not_opened_for_writing(host: Host, guest: NinePClient, refused: Refused, flags: int) -> None:
    (host.root / "d").mkdir()
    with refused(errno.EISDIR):
        guest.open("d", flags)


def test_a_file_is_no_directory(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"")
    with refused(errno.ENOTDIR):
        guest.open("f", O.DIRECTORY)
    fid = guest.open("f")
    with refused():
        guest.readdir(fid)


def test_a_directory_is_no_file(host: Host, guest: NinePClient, refused: Refused) -> None:
    fid = guest.open("", O.DIRECTORY)
    with refused():
        guest.read(fid, 0, 100)
    with refused():
        guest.rpc(m.Twrite(fid, 0, b"x"))


# Special files: a guest's kernel handles them itself and never opens them here; only a hostile one does.


@pytest.fixture
def special(host: Host) -> None:
    if sys.platform == "win32":
        pytest.skip("the file server runs on Linux")
    os.mkfifo(host.root / "fifo")
    listening = socket.socket(socket.AF_UNIX)
    directory = os.open(host.root, os.O_PATH)
    listening.bind(f"/proc/self/fd/{directory}/socket")
    listening.close()
    os.close(directory)
    if os.geteuid() == 0:
        os.mknod(host.root / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
        os.mknod(host.root / "disk", stat.S_IFBLK | 0o666, os.makedev(7, 200))


@pytest.mark.usefixtures("special")
@pytest.mark.parametrize("flags", [O.RDONLY, O.WRONLY, O.RDWR, O.RDONLY | O.NONBLOCK, O.RDWR | O.TRUNC, O.NOACCESS])
def test_special_files_of_the_host_are_shown_and_not_opened(
    host: Host, guest: NinePClient, refused: Refused, flags: int
) -> None:
    for path in host.root.iterdir():
        seen, found = guest.stat(path.name), path.lstat()
        assert (seen.mode, seen.rdev) == (found.st_mode, found.st_rdev)
        with refused():
            guest.open(path.name, flags)
        with refused():
            guest.create(path.name, flags)
        assert guest.stat(path.name).mode == found.st_mode


@pytest.mark.usefixtures("special")
def test_an_opened_fifo_would_have_been_noticed(host: Host, guest: NinePClient, refused: Refused) -> None:
    # The other end is open, so that an open of the server would not block but succeed, and be seen here.
    if sys.platform == "win32":
        pytest.skip("the file server runs on Linux")
    reader = os.open(host.root / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with refused():
            guest.open("fifo", O.WRONLY)
        with guest.walked("fifo") as fid, refused():
            guest.setattr(fid, size=0)
        assert os.read(reader, 1) == b""
    finally:
        os.close(reader)


# Read and write


def test_reading_up_to_and_past_the_end(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"0123456789")
    fid = guest.open("f")
    assert guest.read(fid, 0, 100) == b"0123456789"
    assert guest.read(fid, 8, 1) == b"8"
    assert guest.read(fid, 8, 100) == b"89"
    for offset in (10, 11, 4 * GIB, (1 << 62)):
        assert guest.read(fid, offset, 100) == b""
    assert guest.read(fid, 0, 0) == b""


@pytest.mark.parametrize("offset", [1 << 63, (1 << 64) - 1, (1 << 63) - 1])
def test_offsets_that_no_file_has(host: Host, guest: NinePClient, refused: Refused, offset: int) -> None:
    (host.root / "f").write_bytes(b"x")
    fid = guest.open("f", O.RDWR)
    guest.send(m.Tread(fid, offset, 10))
    assert guest.recv()[1] in (m.Rread(b""), m.Rlerror(errno.EINVAL))
    with refused(errno.EINVAL, errno.EFBIG):
        guest.rpc(m.Twrite(fid, offset, b"0123"))
    assert (host.root / "f").read_bytes() == b"x"


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 65536, 262_144, 1_000_000, 3_000_001])
@pytest.mark.parametrize("msize", [4096, 1 << 20])
def test_content_of_any_size(host: Host, size: int, msize: int) -> None:
    if size > 65536 and msize == 4096:
        size = 65537
    data = os.urandom(size)
    guest = host.guest(msize=msize)
    guest.write_file("f", data)
    assert (host.root / "f").read_bytes() == data
    assert guest.read_file("f") == data
    assert guest.stat("f").size == size


@pytest.mark.parametrize("msize", [4096, 65536, 1 << 20])
@pytest.mark.parametrize("count", [0xFFFFFFFF, 1 << 31, 1 << 24])
def test_a_count_past_msize_gives_what_fits(host: Host, msize: int, count: int) -> None:
    (host.root / "f").write_bytes(bytes(2 << 20))
    guest = host.guest(msize=msize)
    fid = guest.open("f")
    assert msize - 24 <= len(guest.read(fid, 0, count)) <= msize - 11


def test_the_largest_read_and_write_that_fit(host: Host) -> None:
    guest = host.guest(msize=1 << 20)
    data = os.urandom((1 << 20) - 23)
    fid = guest.create("f")
    assert guest.ask(m.Twrite(fid, 0, data), m.Rwrite).count == len(data)
    assert guest.read(fid, 0, len(data)) == data


def test_a_file_that_shrinks_between_two_reads(host: Host, guest: NinePClient) -> None:
    path = host.root / "f"
    path.write_bytes(bytes(1 << 20))
    fid = guest.open("f")
    assert len(guest.read(fid, 0, 900_000)) == 900_000
    os.truncate(path, 10)
    assert guest.read(fid, 0, 900_000) == bytes(10)
    assert guest.read(fid, 900_000, 900_000) == b""


def test_a_file_that_shrinks_and_grows_while_it_is_read(host: Host, guest: NinePClient) -> None:
    # A reply whose count was announced is sent whole; the client would notice one that is not.
    path = host.root / "f"
    path.write_bytes(bytes(1 << 20))
    done = threading.Event()

    def change() -> None:
        while not done.is_set():
            os.truncate(path, 1000)
            os.truncate(path, 1 << 20)

    fid, thread = guest.open("f"), threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(100):
            for data in (guest.read(fid, 0, 1 << 20), guest.read(fid, 500, 4096)):
                assert not data.strip(b"\0")
        assert guest.getattr(fid).size in {1000, 1 << 20}
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("offset", [4 * GIB - 2, 4 * GIB, 5 * GIB + 1, 1 << 41])
def test_offsets_beyond_four_gib(host: Host, guest: NinePClient, offset: int) -> None:
    fid = guest.create("f")
    guest.write(fid, offset, b"far out")
    assert guest.read(fid, offset - 2, 100) == b"\0\0far out"
    assert guest.read(fid, 0, 10) == bytes(10)
    seen = guest.getattr(fid)
    assert seen.size == offset + 7
    assert seen.blocks * 512 < 1 << 20  # the hole takes no room
    assert seen.blocks == (host.root / "f").stat().st_blocks


def test_a_write_of_nothing(host: Host, guest: NinePClient) -> None:
    fid = guest.create("f")
    assert guest.ask(m.Twrite(fid, 100, b""), m.Rwrite).count == 0
    assert (host.root / "f").stat().st_size == 0


def test_two_fids_see_each_other(host: Host, guest: NinePClient) -> None:
    writer, reader = guest.create("f", O.WRONLY), guest.open("f")
    guest.write(writer, 0, b"one")
    assert guest.read(reader, 0, 10) == b"one"
    with (host.root / "f").open("ab") as file:
        file.write(b" two")
    assert guest.read(reader, 0, 10) == b"one two"


def test_two_guests_see_each_other(host: Host) -> None:
    name = host.share()
    one, two = host.connect(name), host.connect(name)
    one.write_file("f", b"from one")
    assert two.read_file("f") == b"from one"
    two.rename("f", "g")
    assert one.listdir() == [b"g"]


def test_fsync_of_files_and_directories(host: Host, guest: NinePClient) -> None:
    fid = guest.create("f")
    guest.write(fid, 0, b"x")
    guest.fsync(fid)
    guest.fsync(fid, datasync=True)
    guest.fsync(guest.open("", O.DIRECTORY))
    guest.fsync(guest.open("f", O.RDONLY))


# Files without their name


def test_an_unlinked_open_file_keeps_working(host: Host, guest: NinePClient) -> None:
    fid = guest.create("f", O.RDWR, 0o644)
    guest.write(fid, 0, b"content")
    guest.unlink("f")
    assert list(host.root.iterdir()) == []
    assert guest.read(fid, 0, 100) == b"content"
    guest.write(fid, 7, b" and more")
    guest.setattr(fid, mode=0o600, size=11, mtime_ns=1_000_000_000_000_000_000)
    guest.fsync(fid)
    seen = guest.getattr(fid)
    assert (seen.nlink, seen.size, stat.S_IMODE(seen.mode), seen.mtime_sec) == (0, 11, 0o600, 1_000_000_000)
    assert guest.read(fid, 0, 100) == b"content and"
    guest.clunk(fid)


def test_a_file_unlinked_by_the_host_keeps_working(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"content")
    fid, still = guest.open("f", O.RDWR), guest.walk("f")
    (host.root / "f").unlink()
    (host.root / "f").write_bytes(b"another")
    assert guest.read(fid, 0, 100) == b"content"
    assert guest.getattr(still).qid == guest.getattr(fid).qid != guest.stat("f").qid


def test_an_open_file_keeps_working_when_it_is_renamed(host: Host, guest: NinePClient) -> None:
    fid, unopened = guest.create("f"), guest.walk("f")
    guest.rename("f", "g")
    guest.write(fid, 0, b"x")
    guest.setattr(fid, mode=0o600)
    guest.setattr(unopened, size=1)
    guest.ask(m.Tlopen(unopened, O.RDONLY), m.Rlopen)
    assert guest.read(unopened, 0, 10) == b"x"
    assert stat.S_IMODE(guest.stat("g").mode) == 0o600


def test_fids_below_a_directory_that_is_renamed_keep_working(host: Host, guest: NinePClient) -> None:
    guest.mkdir("a")
    guest.mkdir("a/b")
    guest.mkdir("elsewhere")
    opened = guest.create("a/b/f")
    directory, file, listing = guest.walk("a/b"), guest.walk("a/b/f"), guest.open("a/b", O.DIRECTORY)
    guest.rename("a", "elsewhere/c")
    guest.write(opened, 0, b"x")
    assert guest.getattr(file).size == 1
    guest.clunk(guest.walk("f", start=directory))
    guest.ask(m.Tlcreate(guest.walk(start=directory), b"new", O.WRONLY | O.CREATE, 0o644, 0), m.Rlcreate)
    assert {entry.name for entry in guest.readdir(listing)} >= {b"f", b"new"}
    assert sorted(guest.listdir("elsewhere/c/b")) == [b"f", b"new"]
    assert (host.root / "elsewhere" / "c" / "b" / "new").exists()


def test_a_removed_directory_that_is_held(host: Host, guest: NinePClient, refused: Refused) -> None:
    guest.mkdir("d")
    fid, listing = guest.walk("d"), guest.open("d", O.DIRECTORY)
    guest.rmdir("d")
    assert guest.getattr(fid).qid.type == QidType.DIR
    with refused(errno.ENOENT):
        guest.rpc(m.Tlcreate(guest.walk(start=fid), b"f", O.WRONLY | O.CREATE, 0o644, 0))
    with refused(errno.ENOENT):
        guest.rpc(m.Tmkdir(fid, b"f", 0o755, 0))
    guest.send(m.Treaddir(listing, 0, 8192))
    assert guest.recv()[1] in (m.Rlerror(errno.ENOENT), m.Rreaddir(b""))  # as getdents(2) does
