"""Symbolic links of a guest under mapped-xattr: files with an attribute, or real ones, and both forms in one tree."""

from __future__ import annotations

import errno
import os
import stat
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import pytest
from tests.root import needs_root

from uvmshare.errors import InvalidOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Device, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

DT_LNK: Final = 10

Guests = dict[str, "NinePClient"]


@pytest.fixture(scope="module")
def servers(start_device: Callable[..., Device]) -> dict[str, Device]:
    return {links: start_device(security_model="mapped-xattr", links=links) for links in ("mapped", "real")}


@pytest.fixture
def shared(xattr_directory: Path, request: pytest.FixtureRequest) -> Path:
    path = xattr_directory / str(request.node.name)
    (path / "root").mkdir(parents=True)
    (path / "outside").write_bytes(b"the host's own")
    return path / "root"


@pytest.fixture
def guests(servers: dict[str, Device], shared: Path) -> Iterator[Guests]:
    """A guest of each server, of one directory."""
    with ExitStack() as stack:
        found = {}
        for links, device in servers.items():
            name = device.share(shared)
            stack.callback(device.unshare, name)
            found[links] = stack.enter_context(device.connect(name, n_uname=0))
        yield found


def types(guest: NinePClient) -> dict[bytes, int]:
    return {entry.name: entry.type for entry in guest.entries()}


def test_a_guests_link_is_what_the_server_was_told_to_make(guests: Guests, shared: Path) -> None:
    for links, guest in guests.items():
        guest.symlink("../target", links)
        guest.mknod(f"fifo-{links}", stat.S_IFIFO | 0o600)
        assert (shared / f"fifo-{links}").is_file(), "links alone are real"
    assert (shared / "mapped").read_bytes() == b"../target"
    assert not (shared / "mapped").is_symlink()
    assert os.readlink(shared / "real") == "../target"


def test_both_forms_are_links_to_guests_under_either_setting(guests: Guests, shared: Path) -> None:
    for links, guest in guests.items():
        guest.symlink("target", links)
    for links, guest in guests.items():
        assert types(guest)[b"mapped"] == types(guest)[b"real"] == DT_LNK
        for form in ("mapped", "real"):
            assert stat.S_ISLNK(guest.stat(form).mode)
            assert guest.readlink(form) == b"target"
            guest.rename(form, f"{form}-moved")
            assert guest.readlink(f"{form}-moved") == b"target"
            guest.link(f"{form}-moved", form)
            assert guest.stat(form).nlink == 2
            guest.unlink(f"{form}-moved")
            with guest.walked(form) as fid:
                guest.setattr(fid, atime_ns=10**9, mtime_ns=10**9)
                guest.setattr(fid, uid=1000, gid=1000)
            assert guest.stat(form).mtime_sec == 1, (links, form)
            kept = 1000 if form == "mapped" else os.geteuid()  # a link of the host has nowhere to keep an owner
            assert guest.stat(form).uid == kept
    for form, guest in zip(("mapped", "real"), guests.values(), strict=True):
        guest.unlink(form)
    assert list(shared.iterdir()) == []


def test_the_server_follows_no_link_of_either_form(guests: Guests, refused: Refused, shared: Path) -> None:
    for links, guest in guests.items():
        for target in ("../outside", str(shared.parent / "outside"), ".."):
            guest.symlink(target, f"link-{links}")
            with refused(errno.ELOOP):
                guest.open(f"link-{links}")
            assert not guest.exists(f"link-{links}/outside")
            with refused(errno.EEXIST, errno.ELOOP):
                guest.write_file(f"link-{links}", b"written")
            with guest.walked(f"link-{links}") as fid, refused(errno.EINVAL):
                guest.setattr(fid, size=0)
            guest.unlink(f"link-{links}")
    assert (shared.parent / "outside").read_bytes() == b"the host's own"


def test_a_change_of_the_mode_of_a_link_does_not_reach_its_target(
    guests: Guests, refused: Refused, shared: Path
) -> None:
    outside = shared.parent / "outside"
    before = outside.stat()
    for links, guest in guests.items():
        guest.symlink("../outside", links)
        with guest.walked(links) as fid:
            if links == "mapped":
                guest.setattr(fid, mode=0o777)
            else:
                with refused(errno.EOPNOTSUPP):
                    guest.setattr(fid, mode=0o777)
            guest.setattr(fid, mtime_ns=1)
    assert outside.stat() == before


@needs_root
def test_a_server_that_is_not_root_makes_real_links_too(
    start_device: Callable[..., Device], shared: Path, xattr_directory: Path
) -> None:
    xattr_directory.chmod(0o755)
    os.chown(shared, 12345, 12345)
    shared.chmod(0o555)
    device = start_device(links="real", run_as=(12345, 12345, ()))
    name = device.share(shared)
    with device.connect(name, n_uname=0) as guest:
        guest.symlink("target", "link")
        assert guest.readlink("link") == b"target"
    device.unshare(name)
    assert (shared / "link").is_symlink()


def test_links_of_another_kind_are_refused_in_words(start_device: Callable[..., Device]) -> None:
    with pytest.raises(InvalidOptions, match="links is 'hard': pass 'mapped' or 'real'"):
        start_device(links="hard")
