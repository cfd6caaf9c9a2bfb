"""Setuid and setgid bits go when a user writes, as write(2) says, and stay when root does."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from uvmshare.ninep.constants import OpenFlag

if TYPE_CHECKING:
    from tests.fileserver.conftest import Host

ROOT, USER = 0, 1000


@pytest.mark.parametrize(
    ("uid", "mode", "left"),
    [
        (USER, 0o6755, 0o755),
        (USER, 0o2745, 0o2745),  # not for the group to execute: that bit was mandatory locking once
        (USER, 0o4644, 0o644),
        (ROOT, 0o6755, 0o6755),
    ],
)
@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
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
    if when == "while it is open":
        guest.setattr(guest.walk("f"), mode=mode)
    guest.write(fid, 0, b"after!")
    assert stat.S_IMODE(guest.stat("f").mode) == left
    assert guest.read_file("f") == b"after!"


def test_a_file_that_is_created_with_them_loses_them_too(host: Host) -> None:
    guest = host.guest(n_uname=USER)
    if host.model == "passthrough":
        host.root.chmod(0o777)
    fid = guest.create("f", OpenFlag.RDWR, 0o4755)
    assert stat.S_IMODE(guest.stat("f").mode) == 0o4755
    guest.write(fid, 0, b"x")
    assert stat.S_IMODE(guest.stat("f").mode) == 0o755
