"""What the host refuses: the guest is told the errno that a local file system would give."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.root import require_root

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fileserver.harness import Device, Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

NUMBERS = ["EDQUOT", "ESTALE", "ENOSPC", "EIO", "EFBIG", "EROFS", "ENOMEM", "ETXTBSY", "ENOTCONN", "EUCLEAN"]


@pytest.mark.parametrize("model", ["in-process"])
@pytest.mark.parametrize("number", NUMBERS)
def test_whatever_the_hosts_file_system_says_is_said(
    host: Host, guest: NinePClient, monkeypatch: pytest.MonkeyPatch, refused: Refused, number: str
) -> None:
    (host.root / "f").write_bytes(b"content")
    (host.root / "d").mkdir()
    wanted = getattr(errno, number)

    def fails(*_: object, **__: object) -> int:
        raise OSError(wanted, os.strerror(wanted))

    fid = guest.open("f", O.RDWR)
    for name in ("pwrite", "mkdir", "rename", "unlink", "rmdir", "ftruncate", "truncate"):
        monkeypatch.setattr(os, name, fails)
    for request in (
        m.Twrite(fid, 0, b"x"),
        m.Tmkdir(guest.root, b"new", 0o755, 0),
        m.Trenameat(guest.root, b"f", guest.root, b"g"),
        m.Tunlinkat(guest.root, b"f", 0),
        m.Tunlinkat(guest.root, b"d", 0x200),
        m.Tsetattr(fid, 8, size=3),
    ):
        with refused(wanted):
            guest.rpc(request)
    monkeypatch.undo()
    assert guest.read_file("f") == b"content"


@contextmanager
def small_disk(at: Path) -> Iterator[None]:
    at.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "tmpfs", at], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", at], check=True)


@pytest.mark.parametrize("model", ["passthrough", "in-process"])
def test_a_full_disk_and_another_one(host: Host, refused: Refused) -> None:
    require_root("a file system is only mounted by root")
    (host.root / "f").write_bytes(b"content")
    with small_disk(host.root / "small"):
        (host.root / "small" / "full").write_bytes(b"")
        with host.device.connect(host.share()) as guest:
            writing = guest.open("small/full", O.RDWR)
            with refused(errno.ENOSPC):
                for page in range(20):
                    guest.write(writing, page * 4096, bytes(4096))
            assert guest.stat("small/full").size == 65536
            with guest.walked("small") as small, guest.walked("f") as file:
                with refused(errno.EXDEV):
                    guest.rpc(m.Trenameat(guest.root, b"f", small, b"f"))
                with refused(errno.EXDEV):
                    guest.rpc(m.Tlink(small, file, b"f"))
                with refused(errno.EBUSY):
                    guest.rpc(m.Tunlinkat(guest.root, b"small", 0x200))
                with refused(errno.ENOSPC):
                    for number in range(20):
                        guest.rpc(m.Tmkdir(small, b"%d" % number, 0o755, 0))
            assert guest.read_file("f") == b"content"


@pytest.mark.parametrize("model", ["passthrough", "in-process"])
@pytest.mark.parametrize("flags", [0, O.DSYNC])
@pytest.mark.parametrize("size", [8192, 200_000])  # the larger one is spliced
def test_a_write_that_fits_in_part_is_an_error(host: Host, refused: Refused, flags: int, size: int) -> None:
    require_root("a file system is only mounted by root")
    with small_disk(host.root / "small"):
        (host.root / "small" / "f").write_bytes(b"")
        with host.device.connect(host.share()) as guest:
            writing = guest.open("small/f", O.RDWR | flags)
            assert guest.write(writing, 0, bytes(61440)) == 61440
            with refused(errno.ENOSPC):
                guest.rpc(m.Twrite(writing, 61440, b"x" * size))
            with refused(errno.ENOSPC):
                guest.rpc(m.Twrite(writing, 65536, b"x"))
            assert guest.read_file("small/f") == bytes(61440) + b"x" * 4096


def test_a_server_that_acts_as_guest_users_has_no_groups_of_its_own(
    start_device: Callable[..., Device], tmp_path: Path
) -> None:
    require_root("passthrough needs root")
    (tmp_path / "root").mkdir()
    before = os.getgroups()
    os.setgroups([4711, 4712])
    try:
        device = start_device(security_model="passthrough")
        with device.connect(device.share((tmp_path / "root").resolve())) as guest:
            guest.stat()
            (pid,) = device.mounts("0")
            status = Path(f"/proc/{pid}/status").read_text()
            supervisor = Path(f"/proc/{device.pid()}/status").read_text()
    finally:
        os.setgroups(before)
    assert "\nGroups:\t4711 4712" in supervisor, "the server had no groups to drop"
    assert "\nGroups:\t \n" in status


@pytest.mark.parametrize("what", ["directory", "file"])
def test_a_share_whose_directory_was_removed_is_not_there_for_who_comes_then(
    start_device: Callable[..., Device], tmp_path: Path, refused: Refused, what: str
) -> None:
    log = tmp_path / "log"
    device = start_device(log=log)
    place = tmp_path / "place"
    place.mkdir()
    (place / "file").write_bytes(b"content")
    name = device.share(place, allowed=("file",) if what == "file" else ())
    with device.connect(name) as before:
        shutil.rmtree(place)
        place.mkdir()  # by path another directory is there, and it is not shared
        (place / "file").write_bytes(b"other")
        with refused(errno.ENOENT), device.connect(name) as late:
            late.read_file("file")
        with refused(errno.ENOENT):
            before.read_file("file")
    assert "Error" not in log.read_text()
