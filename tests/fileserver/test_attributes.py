"""Attributes: protocol.md's getattr, setattr, statfs and readlink."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import V9FS_MAGIC, GetattrMask, SetattrValid
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

LONG_AGO = 1_000_000_000
NS = 1_000_000_000


def test_the_fields_are_those_of_the_host(host: Host, guest: NinePClient) -> None:
    path = host.root / "f"
    path.write_bytes(b"x" * 5000)
    os.chmod(path, 0o640)
    os.link(path, host.root / "g")
    os.utime(path, ns=(LONG_AGO * NS + 1, LONG_AGO * NS + 2))
    found, seen = path.stat(), guest.stat("f")
    assert seen.valid & GetattrMask.BASIC == GetattrMask.BASIC
    assert (seen.mode, seen.nlink, seen.size) == (found.st_mode, 2, 5000)
    assert (seen.uid, seen.gid) == (found.st_uid, found.st_gid)
    assert seen.blocks == found.st_blocks
    assert (seen.atime_sec, seen.atime_nsec) == (LONG_AGO, 1)
    assert (seen.mtime_sec, seen.mtime_nsec) == (LONG_AGO, 2)
    assert seen.ctime_sec * NS + seen.ctime_nsec == found.st_ctime_ns


@pytest.mark.parametrize(
    ("msize", "blksize"),
    [(4096, 4096), (8192, 4096), (65536, 32768), (65536 + 24, 65536), (131072, 65536), (1 << 20, 131072)],
)
def test_programs_are_told_to_read_and_write_as_much_as_one_message_holds(host: Host, msize: int, blksize: int) -> None:
    """stdio writes this much at once; 4,096 bytes each took 8 MiB of it eight times as long."""
    (host.root / "f").write_bytes(b"")
    guest = host.guest(msize=msize)
    assert guest.stat("f").blksize == blksize
    assert guest.stat("").blksize == blksize


@pytest.mark.parametrize("mask", [0x17FF, 0x3FFF, GetattrMask.MODE, GetattrMask.SIZE | GetattrMask.NLINK, 0, 1 << 63])
def test_whatever_a_guest_asks_for_valid_says_what_holds(host: Host, guest: NinePClient, mask: int) -> None:
    (host.root / "f").write_bytes(b"12345")
    with guest.walked("f") as fid:
        seen = guest.getattr(fid, mask)
    wanted = mask & GetattrMask.BASIC
    assert seen.valid & wanted == wanted
    assert seen.valid & ~int(GetattrMask.ALL) == 0
    if wanted & GetattrMask.SIZE:
        assert seen.size == 5
    if wanted & GetattrMask.MODE:
        assert stat.S_ISREG(seen.mode)


def test_attributes_of_every_kind_of_file(host: Host, guest: NinePClient) -> None:
    (host.root / "d").mkdir()
    os.symlink("a target", host.root / "l")
    os.mkfifo(host.root / "p")
    kinds = {name: stat.S_IFMT(guest.stat(name).mode) for name in "dlp"}
    assert kinds == {"d": stat.S_IFDIR, "l": stat.S_IFLNK, "p": stat.S_IFIFO}
    assert guest.stat("l").size == len("a target")


def test_times_before_1970_do_not_break_the_answer(host: Host, guest: NinePClient) -> None:
    path = host.root / "f"
    path.write_bytes(b"")
    os.utime(path, ns=(-5 * NS, -7 * NS))
    guest.stat("f")
    assert guest.listdir() == [b"f"]


# setattr


def times(host: Host, name: str) -> tuple[int, int]:
    found = (host.root / name).stat()
    return found.st_atime_ns, found.st_mtime_ns


@pytest.mark.parametrize("mode", [0o000, 0o600, 0o644, 0o755, 0o777])
def test_permissions(host: Host, guest: NinePClient, mode: int) -> None:
    guest.write_file("f", b"")
    guest.mkdir("d")
    for name in "fd":
        with guest.walked(name) as fid:
            guest.setattr(fid, mode=mode)
        assert stat.S_IMODE(guest.stat(name).mode) == mode
        assert (host.root / name).stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("model", ["mapped-xattr", "passthrough"])
@pytest.mark.parametrize("mode", [0o4755, 0o2755, 0o1777, 0o7777])
def test_bits_beyond_permissions(guest: NinePClient, mode: int) -> None:
    guest.mkdir("d")
    guest.write_file("f", b"")
    for name in "fd":
        with guest.walked(name) as fid:
            guest.setattr(fid, mode=mode)
        assert stat.S_IMODE(guest.stat(name).mode) == mode


def test_the_type_in_a_mode_is_not_changed(guest: NinePClient) -> None:
    guest.write_file("f", b"")
    with guest.walked("f") as fid:
        guest.setattr(fid, mode=stat.S_IFDIR | 0o700)
    assert guest.stat("f").mode == stat.S_IFREG | 0o700
    assert guest.read_file("f") == b""


@pytest.mark.parametrize("size", [0, 3, 10, 100_000, 5 << 30])
@pytest.mark.parametrize("how", ["unopened", "open to write", "open to read and write"])
def test_size(host: Host, guest: NinePClient, size: int, how: str) -> None:
    (host.root / "f").write_bytes(b"0123456789")
    fid = guest.walk("f") if how == "unopened" else guest.open("f", O.WRONLY if how == "open to write" else O.RDWR)
    guest.setattr(fid, size=size)
    assert (host.root / "f").stat().st_size == guest.getattr(fid).size == size
    assert guest.read(guest.open("f"), 0, 20) == (b"0123456789" + bytes(20))[: min(size, 20)]


def test_a_size_that_no_file_has(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"x")
    with guest.walked("f") as fid:
        for size in (1 << 63, (1 << 64) - 1, (1 << 63) - 1):
            with refused(errno.EINVAL, errno.EFBIG):
                guest.setattr(fid, size=size)
    assert (host.root / "f").read_bytes() == b"x"


def test_the_size_of_what_is_no_file(host: Host, guest: NinePClient, refused: Refused) -> None:
    os.symlink("f", host.root / "l")
    (host.root / "f").write_bytes(b"target")
    for name in ("", "l"):
        with guest.walked(name) as fid, refused():
            guest.setattr(fid, size=0)
    assert (host.root / "f").read_bytes() == b"target"


@pytest.mark.parametrize("name", ["f", "d", ""])
def test_times_that_are_given(host: Host, guest: NinePClient, name: str) -> None:
    (host.root / "f").write_bytes(b"")
    (host.root / "d").mkdir()
    with guest.walked(name) as fid:
        guest.setattr(fid, atime_ns=LONG_AGO * NS + 123_456_789, mtime_ns=(LONG_AGO + 5) * NS + 987_654_321)
        assert times(host, name) == (LONG_AGO * NS + 123_456_789, (LONG_AGO + 5) * NS + 987_654_321)
        guest.setattr(fid, mtime_ns=LONG_AGO * NS)
        assert times(host, name) == (LONG_AGO * NS + 123_456_789, LONG_AGO * NS)
        guest.setattr(fid, atime_ns=0)
        assert times(host, name) == (0, LONG_AGO * NS)


@pytest.mark.parametrize("valid", [SetattrValid.ATIME, SetattrValid.MTIME, SetattrValid.ATIME | SetattrValid.MTIME])
def test_times_that_are_now(host: Host, guest: NinePClient, valid: SetattrValid) -> None:
    for name in ("f", "mark"):
        (host.root / name).write_bytes(b"")
        os.utime(host.root / name, ns=(LONG_AGO * NS, LONG_AGO * NS))
    os.utime(host.root / "mark")  # the host's own now, by the same clock and before
    now = times(host, "mark")[1]
    with guest.walked("f") as fid:
        # What the time fields hold does not count without *_SET.
        guest.ask(m.Tsetattr(fid, valid, atime_sec=7, mtime_sec=7), m.Rsetattr)
    atime, mtime = times(host, "f")
    assert (atime >= now) if valid & SetattrValid.ATIME else (atime == LONG_AGO * NS)
    assert (mtime >= now) if valid & SetattrValid.MTIME else (mtime == LONG_AGO * NS)


def test_one_time_now_and_one_given(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"")
    os.utime(host.root / "f", ns=(5, 5))
    with guest.walked("f") as fid:
        valid = SetattrValid.ATIME | SetattrValid.MTIME | SetattrValid.MTIME_SET
        guest.ask(m.Tsetattr(fid, valid, mtime_sec=LONG_AGO), m.Rsetattr)
    atime, mtime = times(host, "f")
    assert atime > 5
    assert mtime == LONG_AGO * NS


@pytest.mark.parametrize("nanoseconds", [NS, (1 << 30) - 1, (1 << 30) - 2, (1 << 64) - 1])
def test_nanoseconds_that_are_none(host: Host, guest: NinePClient, refused: Refused, nanoseconds: int) -> None:
    # 2^30 - 1 and 2^30 - 2 are UTIME_NOW and UTIME_OMIT of utimensat(2), which are not the guest's to say.
    (host.root / "f").write_bytes(b"")
    os.utime(host.root / "f", ns=(5, 5))
    valid = SetattrValid.MTIME | SetattrValid.MTIME_SET
    with guest.walked("f") as fid, refused(errno.EINVAL):
        guest.rpc(m.Tsetattr(fid, valid, mtime_sec=1, mtime_nsec=nanoseconds))
    assert times(host, "f") == (5, 5)


def test_a_change_of_several_of_which_one_cannot_be_changes_none(
    host: Host, guest: NinePClient, refused: Refused, snapshot: Callable[[Path], object]
) -> None:
    (host.root / "f").write_bytes(b"0123456789")
    before = snapshot(host.root)
    valid = SetattrValid.SIZE | SetattrValid.MODE | SetattrValid.MTIME | SetattrValid.MTIME_SET
    with guest.walked("f") as fid, refused(errno.EINVAL):
        guest.rpc(m.Tsetattr(fid, valid, mode=0o600, size=3, mtime_sec=1, mtime_nsec=NS))
    assert snapshot(host.root) == before


def test_a_change_time_alone_changes_nothing_else(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"x")
    os.utime(host.root / "f", ns=(5, 6))
    with guest.walked("f") as fid:
        guest.ask(m.Tsetattr(fid, SetattrValid.CTIME), m.Rsetattr)
        guest.ask(m.Tsetattr(fid, 0), m.Rsetattr)
    assert times(host, "f") == (5, 6)
    assert (host.root / "f").read_bytes() == b"x"


@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo"])
@pytest.mark.parametrize(
    "valid",
    [
        SetattrValid.CTIME,  # chown(2) with -1 and -1, as Linux's client sends it
        SetattrValid.CTIME | SetattrValid.UID | SetattrValid.GID,
        SetattrValid.CTIME | SetattrValid.MODE,
    ],
)
def test_what_is_set_to_what_it_was_has_a_new_change_time(
    host: Host, guest: NinePClient, kind: str, valid: SetattrValid, model: str
) -> None:
    if kind == "file":
        guest.write_file("f", b"x")
    elif kind == "directory":
        guest.mkdir("f")
    elif kind == "fifo":
        guest.ask(m.Tmknod(guest.root, b"f", stat.S_IFIFO | 0o644, 0, 0, 0), m.Rmknod)
    else:
        guest.symlink("x", "f")
    seen = guest.stat("f")
    before = clock_has_moved_past(host)
    with guest.walked("f") as fid:
        change = m.Tsetattr(fid, valid, mode=seen.mode & 0o7777, uid=seen.uid, gid=seen.gid)
        if kind == "link" and valid & SetattrValid.MODE and model in ("passthrough", "none"):
            with suppress(OSError):  # the host's links have no mode
                guest.rpc(change)
            return
        guest.ask(change, m.Rsetattr)
    after = guest.stat("f")
    assert after.ctime_sec * NS + after.ctime_nsec > before
    assert (after.mode, after.uid, after.gid, after.size) == (seen.mode, seen.uid, seen.gid, seen.size)
    assert (after.mtime_sec, after.mtime_nsec) == (seen.mtime_sec, seen.mtime_nsec)


def clock_has_moved_past(host: Host) -> int:
    """Wait until the file system's clock has ticked, and return the time before the tick."""
    path = host.outside / "clock"
    path.write_bytes(b"")
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.write_bytes(b"")
    path.unlink()
    return before


def test_several_at_once_as_linux_truncates(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"0123456789")
    os.utime(host.root / "f", ns=(5, 5))
    fid = guest.open("f", O.WRONLY)
    valid = SetattrValid.SIZE | SetattrValid.MTIME | SetattrValid.CTIME | SetattrValid.MODE
    guest.ask(m.Tsetattr(fid, valid, mode=0o600, size=4), m.Rsetattr)
    assert (host.root / "f").read_bytes() == b"0123"
    assert times(host, "f")[1] > 5
    assert stat.S_IMODE(guest.stat("f").mode) == 0o600


def test_attributes_of_a_symlink_are_its_own_and_not_its_targets(host: Host, guest: NinePClient) -> None:
    target = host.outside / "canary"
    os.symlink(target, host.root / "l")
    before = target.stat()
    with guest.walked("l") as fid:
        for change in (
            m.Tsetattr(fid, SetattrValid.MTIME | SetattrValid.MTIME_SET, mtime_sec=5),
            m.Tsetattr(fid, SetattrValid.MODE, mode=0o777),
            m.Tsetattr(fid, SetattrValid.UID | SetattrValid.GID, uid=1234, gid=1234),
            m.Tsetattr(fid, SetattrValid.SIZE),
        ):
            guest.send(change)
            assert isinstance(guest.recv()[1], (m.Rsetattr, m.Rlerror))  # a link has no mode or size to change
    assert target.stat() == before


@pytest.mark.parametrize("model", ["mapped-xattr", "passthrough"])
def test_owners(guest: NinePClient) -> None:
    guest.write_file("f", b"")
    guest.mkdir("d")
    guest.symlink("x", "l")
    for name in "fdl":
        with guest.walked(name) as fid:
            guest.setattr(fid, uid=1234)
            seen = guest.getattr(fid)
            assert seen.uid == 1234
            guest.setattr(fid, gid=2345)
            guest.setattr(fid, uid=3456)
        seen = guest.stat(name)
        assert (seen.uid, seen.gid) == (3456, 2345)


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_the_number_of_a_user_that_is_none(guest: NinePClient, refused: Refused, field: str) -> None:
    guest.write_file("f", b"")
    before = guest.stat("f")
    valid = SetattrValid.UID if field == "uid" else SetattrValid.GID
    with guest.walked("f") as fid, refused(errno.EINVAL):
        guest.rpc(m.Tsetattr(fid, valid, uid=0xFFFFFFFF, gid=0xFFFFFFFF))
    assert (guest.stat("f").uid, guest.stat("f").gid) == (before.uid, before.gid)


def test_unlinked_and_unopened_files_have_attributes(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"x")
    with guest.walked("f") as fid:
        (host.root / "f").unlink()
        assert guest.getattr(fid).nlink == 0
        guest.setattr(fid, mode=0o600, size=5)
        assert (stat.S_IMODE(guest.getattr(fid).mode), guest.getattr(fid).size) == (0o600, 5)


# statfs


def test_statfs(host: Host, guest: NinePClient) -> None:
    (host.root / "f").write_bytes(b"")
    for path in ("", "f"):
        seen, found = guest.statfs(path), os.statvfs(host.root)
        assert seen.fs_type == V9FS_MAGIC
        assert (seen.bsize, seen.blocks, seen.files) == (found.f_bsize, found.f_blocks, found.f_files)
        assert seen.bavail <= seen.bfree <= seen.blocks
        assert 0 < seen.ffree <= seen.files
        assert seen.namelen == 255


# readlink


@pytest.mark.parametrize("target", [b"x", b"../../..", b"/etc/passwd", b"\xff\xfe", b"a" * 4000, b"with space\n"])
def test_a_link_says_what_it_said(host: Host, guest: NinePClient, target: bytes) -> None:
    guest.symlink(target, "made by the guest")
    os.symlink(target, bytes(host.root) + b"/made by the host")
    for name in ("made by the guest", "made by the host"):
        assert guest.readlink(name) == target
        assert guest.stat(name).size == len(target)
        assert stat.S_ISLNK(guest.stat(name).mode)


def test_a_target_that_does_not_fit_msize_is_an_error_and_not_a_message_too_large(
    host: Host, guest: NinePClient, refused: Refused
) -> None:
    small = host.guest(msize=4096)
    os.symlink(b"a" * 4090, host.root / "l")
    with refused():
        small.readlink("l")
    assert small.listdir() == [b"l"]
    assert guest.readlink("l") == b"a" * 4090


def test_readlink_of_what_is_no_link(host: Host, guest: NinePClient, refused: Refused) -> None:
    (host.root / "f").write_bytes(b"/etc/passwd")
    for name in ("f", ""):
        with refused(errno.EINVAL):
            guest.readlink(name)
