"""What a mount does itself is never told back to its guest, whatever it is; and what the host does meanwhile is.

By both ways: with fanotify, which says who did something, and by inotify, where the mount notes down what it does.
"""

from __future__ import annotations

import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.fileserver.test_events import Agent, agent, both_ways
from tests.root import require_root

from uvmshare.fileserver.mount.splicing import SPLICE_MIN
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag, SetattrValid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.fileserver.harness import Host

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

__all__ = ["agent"]


def _write(guest: NinePClient, path: str, data: bytes, flags: int = OpenFlag.WRONLY) -> None:
    fid = guest.open(path, flags)
    assert guest.write(fid, 0, data) == len(data)
    guest.clunk(fid)


def _setattr(guest: NinePClient, path: str, **what: int) -> None:
    with guest.walked(path) as fid:
        guest.setattr(fid, **what)


def _ctime(guest: NinePClient) -> None:
    with guest.walked("d/f") as fid:
        guest.ask(m.Tsetattr(fid, SetattrValid.CTIME, 0, 0, 0, 0, 0, 0, 0, 0), m.Rsetattr)


def _set_attribute(guest: NinePClient) -> None:
    with guest.walked("d/f") as fid:
        guest.ask(m.Txattrcreate(fid, b"user.a", 5, 0), m.Rxattrcreate)
        guest.write(fid, 0, b"value")


def _rename_a_fid(guest: NinePClient) -> None:
    with guest.walked("d/f") as fid, guest.walked("e") as to:
        guest.ask(m.Trename(fid, to, b"moved"), m.Rrename)


def _remove_a_fid(guest: NinePClient) -> None:
    fid = guest.walk("d/f")
    guest.ask(m.Tremove(fid), m.Rremove)
    guest.free_fid(fid)


def _make_a_tree(guest: NinePClient) -> None:
    guest.mkdir("d/new")
    for count in range(50):
        guest.write_file(f"d/new/{count}", b"x")
        guest.write_file(f"d/{count}", b"x")
    guest.link("d/0", "d/linked")
    guest.unlink("d/0")
    guest.rename("d/new", "e/new")


def _write_again_and_again(guest: NinePClient) -> None:
    fid = guest.open("d/f", OpenFlag.RDWR)
    for count in range(200):
        guest.write(fid, count, b"x")
    guest.clunk(fid)


def _write_while_it_is_opened(guest: NinePClient) -> None:
    for _ in range(50):
        _write(guest, "d/f", b"x")


def _fail(guest: NinePClient) -> None:
    for attempt in (
        lambda: guest.mkdir("d/sub"),
        lambda: guest.link("d/f", "d/sub"),
        lambda: guest.rmdir("d/f"),
        lambda: guest.unlink("d/none"),
        lambda: guest.rename("d/f", "d/sub"),
        lambda: guest.create("d/f", OpenFlag.EXCL),
        lambda: guest.mkdir("d/.."),
    ):
        with pytest.raises(OSError, match="in answer to"):
            attempt()


OWN: dict[str, Callable[[NinePClient], object]] = {
    "create": lambda guest: guest.clunk(guest.create("d/new")),
    "create and write": lambda guest: guest.write_file("d/new", b"content"),
    "write": lambda guest: _write(guest, "d/f", b"other"),
    "write again and again": _write_again_and_again,
    "write, each time by another fid": _write_while_it_is_opened,
    "append": lambda guest: _write(guest, "d/f", b"more", OpenFlag.WRONLY | OpenFlag.APPEND),
    "write to the disk": lambda guest: _write(guest, "d/f", b"kept", OpenFlag.WRONLY | OpenFlag.SYNC),
    "write much": lambda guest: _write(guest, "d/f", bytes(4 * SPLICE_MIN)),
    "open and truncate": lambda guest: _write(guest, "d/f", b"", OpenFlag.WRONLY | OpenFlag.TRUNC),
    "create over": lambda guest: guest.clunk(guest.create("d/f", OpenFlag.RDWR | OpenFlag.TRUNC)),
    "truncate": lambda guest: _setattr(guest, "d/f", size=0),
    "grow": lambda guest: _setattr(guest, "d/f", size=100_000),
    "chmod": lambda guest: _setattr(guest, "d/f", mode=0o600),
    "chmod of a directory": lambda guest: _setattr(guest, "d/sub", mode=0o700),
    "chown": lambda guest: _setattr(guest, "d/f", uid=1, gid=2),
    "touch": lambda guest: _setattr(guest, "d/f", mtime_ns=1),
    "a new ctime": _ctime,
    "set an attribute": _set_attribute,
    "mkdir": lambda guest: guest.mkdir("d/new"),
    "symlink": lambda guest: guest.symlink("f", "d/new"),
    "mkfifo": lambda guest: guest.mknod("d/new", stat.S_IFIFO | 0o600),
    "hard link": lambda guest: guest.link("d/f", "d/new"),
    "unlink": lambda guest: guest.unlink("d/f"),
    "unlink one of two names": lambda guest: guest.unlink("d/twin"),
    "rmdir": lambda guest: guest.rmdir("d/sub"),
    "remove what a fid stands for": _remove_a_fid,
    "rename": lambda guest: guest.rename("d/f", "d/g"),
    "rename over": lambda guest: guest.rename("d/f", "d/h"),
    "rename to another directory": lambda guest: guest.rename("d/f", "e/f"),
    "rename out of what is watched": lambda guest: guest.rename("d/f", "other/f"),
    "rename into what is watched": lambda guest: guest.rename("other/in", "d/in"),
    "rename a directory": lambda guest: guest.rename("d/sub", "d/bus"),
    "rename to another name of the same file": lambda guest: guest.rename("d/h", "d/twin"),
    "rename what a fid stands for": _rename_a_fid,
    "much at once": _make_a_tree,
    "what is refused": _fail,
}


@both_ways
@pytest.mark.parametrize("change", OWN.values(), ids=OWN)
def test_whatever_a_mount_changes_is_never_told_back_to_its_guest(
    host: Host, agent: Callable[..., Agent], change: Callable[[NinePClient], object]
) -> None:
    for each in ("d/sub", "e", "other"):
        (host.root / each).mkdir(parents=True)
    for name in ("d/f", "d/h", "other/in"):
        (host.root / name).write_text(name)
    (host.root / "d" / "twin").hardlink_to(host.root / "d" / "h")
    told = agent("d", "d/sub", "e")
    told.settle(host.root / "d")
    for directory in ("d", "e"):  # so that nothing of before is in doubt
        (host.root / directory / "begun").touch()
        assert told.told() == [f"Cf {directory}/begun"]
    change(told.guest)
    (host.root / "e" / "end").touch()
    assert told.told() == ["Cf e/end"]
    (host.root / "d" / "end").touch()
    assert told.told() == ["Cf d/end"], "nor later"


@both_ways
def test_what_the_host_does_to_what_the_guest_has_just_changed_is_told(host: Host, agent: Callable[..., Agent]) -> None:
    d = host.root / "d"
    d.mkdir()
    told = agent("d")
    guest = told.guest
    changes: dict[str, tuple[Callable[[], object], Callable[[], object], str]] = {
        "a": (lambda: guest.write_file("d/a", b"guest's"), lambda: (d / "a").write_text("the host's"), "Mf d/a"),
        "b": (lambda: guest.write_file("d/b", b"guest's"), (d / "b").unlink, "Df d/b"),
        "c": (lambda: guest.write_file("d/c", b"guest's"), lambda: (d / "c").rename(d / "z"), "Rf d/c d/z"),
        "e": (lambda: guest.mkdir("d/e"), (d / "e").rmdir, "Dd d/e"),
        "f": (lambda: guest.write_file("d/f", b"guest's"), lambda: (d / "f").chmod(0o600), "f d/f"),
    }
    for name, (own, others, line) in changes.items():
        own()
        with host.at_once():
            others()
        found = told.told()
        assert [each for each in found if each.endswith(line)] == found, name
        assert len(found) == 1


@both_ways
def test_what_the_guest_does_to_what_the_host_has_just_changed_takes_nothing_from_what_is_told(
    host: Host, agent: Callable[..., Agent]
) -> None:
    d = host.root / "d"
    d.mkdir()
    for name in ("written", "appended", "renamed"):
        (d / name).write_text("1")
    told = agent("d")
    told.settle(d)
    guest = told.guest
    for name in ("written", "appended"):
        with host.at_once(), (d / name).open("a") as file:
            file.write("the host's")
        _write(guest, f"d/{name}", b"x")
        assert told.told() == [f"Mf d/{name}"]
    with host.at_once():
        (d / "renamed").write_text("the host's")
    guest.rename("d/renamed", "d/moved")
    assert told.told() == ["Mf d/moved"]
    (d / "made").write_text("the host's")
    guest.unlink("d/made")
    (d / "end").touch()
    assert told.told() == ["Cf d/end"], "what has come and gone is nothing"


@pytest.fixture
def layered(host: Host) -> Iterator[Path]:
    """A directory on overlayfs, with a file that is copied when it is first opened for writing."""
    require_root("mounting needs root")
    top = host.outside / "layers"
    top.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "ours", top], check=True)
    for each in ("below", "above", "work", "merged"):
        (top / each).mkdir()
    (top / "below" / "f").write_text("below")
    layers = f"lowerdir={top}/below,upperdir={top}/above,workdir={top}/work"
    subprocess.run(["mount", "-t", "overlay", "ours", "-o", layers, top / "merged"], check=True)
    yield top / "merged"
    subprocess.run(["umount", "--lazy", top / "merged", top], check=True)


@both_ways
def test_on_a_file_system_without_file_handles_the_hosts_changes_are_told_and_the_mounts_own_are_not(
    host: Host, layered: Path
) -> None:
    name = host.share(layered)
    guest = host.connect(name)
    fid = guest.walk("f")
    Agent.name = name.encode()
    told = Agent(guest, "")
    (layered / "begun").touch()  # from then on it is known that nobody has just changed the file
    assert told.told() == ["Cf begun"]
    guest.ask(m.Tlopen(fid, OpenFlag.RDWR), m.Rlopen)
    guest.write(fid, 0, b"above")
    guest.clunk(fid)
    guest.write_file("own", b"x")
    (layered / "new").touch()
    assert told.told() == ["Cf new"]
    with host.at_once():
        (layered / "f").write_text("the host's")
    assert told.told() == ["Mf f"]
