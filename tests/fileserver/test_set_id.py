"""Setuid and setgid bits go when a user writes, as write(2) says, and stay when root does."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.harness import one_of

from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag

if TYPE_CHECKING:
    from tests.fileserver.harness import Host, Refused

ROOT, USER = 0, 1000

model = one_of("passthrough", "none", "in-process", pytest.param("mapped-xattr", marks=pytest.mark.long))
"""Each of them leaves other bits; in ``make test`` mapped-xattr does so in this process alone."""


def left_by(host: Host, mode: int) -> int:
    """What is left of a mode by the model: none has no such bits, since they would mean the server's user."""
    return mode & 0o777 if host.model == "none" else mode


@pytest.mark.parametrize(
    ("uid", "mode", "left"),
    [
        (USER, 0o6755, 0o755),
        (USER, 0o2745, 0o2745),  # not for the group to execute: that bit was mandatory locking once
        (USER, 0o4644, 0o644),
        (ROOT, 0o6755, 0o6755),
    ],
)
@pytest.mark.parametrize("when", ["before it is opened", "while it is open", "by another mount", "by the host"])
def test_a_write_takes_them_off(host: Host, uid: int, mode: int, left: int, when: str) -> None:
    name = host.share()
    guest = host.connect(name, n_uname=ROOT)
    guest.write_file("f", b"before")
    root, as_user = guest.root, guest.attach(name, n_uname=uid)
    if when == "before it is opened":
        guest.setattr(guest.walk("f"), mode=mode)
    guest.root = as_user
    fid = guest.open("f", OpenFlag.WRONLY)
    guest.root = root
    guest.write(fid, 0, b"during")
    if when == "while it is open":
        guest.setattr(guest.walk("f"), mode=mode)
    elif when == "by another mount":
        other = host.connect(name, n_uname=ROOT)
        other.setattr(other.walk("f"), mode=mode)
    elif when == "by the host":
        (host.root / "f").chmod(mode)
    guest.write(fid, 0, b"after!")
    assert stat.S_IMODE(guest.stat("f").mode) == left_by(host, left)
    assert guest.read_file("f") == b"after!"


def test_a_file_that_is_created_with_them_loses_them_too(host: Host) -> None:
    guest = host.guest(n_uname=USER)
    if host.model == "passthrough":
        host.root.chmod(0o777)
    fid = guest.create("f", OpenFlag.RDWR, 0o4755)
    assert stat.S_IMODE(guest.stat("f").mode) == left_by(host, 0o4755)
    guest.write(fid, 0, b"x")
    assert stat.S_IMODE(guest.stat("f").mode) == 0o755


@pytest.mark.parametrize("size", [1, 400_000])
def test_a_write_of_any_size_takes_off_what_the_host_has_set(host: Host, size: int) -> None:
    guest = host.guest(n_uname=USER)
    (host.root / "f").write_bytes(b"before")
    (host.root / "f").chmod(0o666)
    fid = guest.open("f", OpenFlag.WRONLY)
    (host.root / "f").chmod(0o6777)
    assert guest.ask(m.Twrite(fid, 0, bytes(size)), m.Rwrite).count == size
    assert stat.S_IMODE((host.root / "f").stat().st_mode) == 0o777
    assert stat.S_IMODE(guest.stat("f").mode) == 0o777


@pytest.mark.parametrize(("uid", "left"), [(USER, 0o755), (ROOT, 0o6755)])
@pytest.mark.parametrize("is_open", [False, True])
def test_a_change_of_size_takes_them_off_too(host: Host, uid: int, left: int, is_open: bool) -> None:
    guest = host.guest(n_uname=uid)
    (host.root / "f").write_bytes(b"before")
    (host.root / "f").chmod(0o6755)
    fid = guest.open("f", OpenFlag.WRONLY) if is_open else guest.walk("f")
    guest.setattr(fid, size=3)
    assert stat.S_IMODE(guest.stat("f").mode) == left_by(host, left)
    assert guest.read_file("f") == b"bef"


def test_a_directory_keeps_its_setgid_bit_when_its_size_is_not_changed(host: Host, refused: Refused) -> None:
    guest = host.guest(n_uname=USER)
    (host.root / "d").mkdir()
    (host.root / "d").chmod(0o2777)
    with refused(errno.EISDIR):
        guest.setattr(guest.walk("d"), size=0)
    assert stat.S_IMODE(guest.stat("d").mode) == 0o2777


@pytest.mark.parametrize("change", ["a write", "a large write", "a change of size", "a create that finds it"])
def test_no_content_of_a_guest_gets_the_bits_that_a_file_has_on_the_host(host: Host, change: str) -> None:
    # A setuid program of the host's in a share: under passthrough alone the guest's root is the host's.
    guest = host.guest(n_uname=ROOT)
    path = host.root / "program"
    path.write_bytes(b"the host's")
    path.chmod(0o6755)
    if change == "a change of size":
        guest.setattr(guest.walk("program"), size=4)
    elif change == "a create that finds it":
        guest.write(guest.create("program", OpenFlag.RDWR, 0o6777), 0, b"guest's")
    else:
        guest.ask(
            m.Twrite(guest.open("program", OpenFlag.WRONLY), 0, bytes(400_000 if "large" in change else 1)), m.Rwrite
        )
    assert path.stat().st_mode & 0o7777 == (0o6755 if host.model == "passthrough" else 0o755)
    assert stat.S_IMODE(guest.stat("program").mode) == left_by(host, 0o6755)
