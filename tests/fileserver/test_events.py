"""Events of what the host does: what an agent is told of names, and what is pretended to the reserved user.

The guest's side of it, in a real guest, is in tests/guest/test_events.py.
"""

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
from tests.fileserver.harness import WITHOUT_FANOTIFY, Device
from tests.fileserver.test_watched import BEGIN, CHANGES, asked, watched
from tests.fuse import HungFuse
from tests.root import require_root

from uvmshare.fileserver.counters import Events
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import NOFID, OpenFlag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fileserver.harness import Host, Refused

    from uvmshare.testing.client import NinePClient

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

EVENTS = b"trusted.uvmshare.events"
both_ways = pytest.mark.parametrize("model", ["passthrough", WITHOUT_FANOTIFY], ids=["fanotify", "inotify"])


class Agent:
    """An agent in a guest, which asks for events of these directories."""

    def __init__(self, guest: NinePClient, *directories: str) -> None:
        self.guest = guest
        self.root = guest.root
        asked(guest, "", BEGIN)
        self.uid = int(asked(guest, "", EVENTS))
        self.directories = {watched(guest, directory): directory for directory in directories}
        self.ghost = guest.new_fid()
        attached = m.Tattach(self.ghost, NOFID, b"", self.name, self.uid)
        guest.ask(attached, m.Rattach)

    name = b""

    def told(self) -> list[str]:
        """Wait for changes and return them, such as "Cf dir/name"; numbers of directories are left out."""
        said: list[str] = []
        while not said:
            for line in asked(self.guest, "", CHANGES).splitlines():
                words = line.split()
                if len(words) == 1:
                    continue
                places = [self._place(*words[at : at + 2]) for at in range(1, len(words), 2)]
                said.append(" ".join((words[0].decode(), *places)))
        return said

    def settle(self, directory: Path) -> None:
        """Have names compared once: what is older by then is known not to be another file with an inode of before."""
        (directory / "settled").touch()
        assert self.told() == [f"Cf {directory.name}/settled"]

    def _place(self, number: bytes, name: bytes) -> str:
        return os.path.join(self.directories[int(number)], bytes.fromhex(name.decode()).decode())

    @contextmanager
    def as_ghost(self) -> Iterator[NinePClient]:
        """Be the reserved user for a while."""
        self.guest.root = self.ghost
        try:
            yield self.guest
        finally:
            self.guest.root = self.root


@pytest.fixture
def agent(host: Host) -> Callable[..., Agent]:
    def begun(
        *directories: str, hide: tuple[str, ...] = (), allowed: tuple[str, ...] = (), read_only: bool = False
    ) -> Agent:
        name = host.share(hide=hide, allowed=allowed, read_only=read_only)
        Agent.name = name.encode()
        return Agent(host.connect(name), *directories)

    return begun


def _make_again(d: Path) -> None:
    (d / "f").unlink()
    (d / "f").write_text("1")


def _reuse_inode(d: Path) -> None:
    """Remove a file and make another: ext4 gives it the same inode."""
    (d / "f").unlink()
    (d / "new").write_text("1")


def _much(d: Path) -> None:
    (d / "f").write_text("1")
    (d / "h").unlink()
    (d / "sub").rmdir()
    (d / "new").mkdir()


CHANGES_AND_LINES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "create": (lambda d: (d / "new").write_text("1"), ["Cf d/new"]),
    "mkdir": (lambda d: (d / "new").mkdir(), ["Cd d/new"]),
    "symlink": (lambda d: (d / "new").symlink_to("f"), ["Cl d/new"]),
    "hard link": (lambda d: (d / "new").hardlink_to(d / "f"), ["Cf d/new"]),
    "mkfifo": (lambda d: os.mkfifo(d / "new"), ["Co d/new"]),
    "overwrite": (lambda d: (d / "f").write_text("other"), ["Mf d/f"]),
    "truncate": (lambda d: os.truncate(d / "f", 0), ["Mf d/f"]),
    "chmod": (lambda d: (d / "f").chmod(0o600), ["Af d/f"]),
    "chmod of a directory": (lambda d: (d / "sub").chmod(0o700), ["Ad d/sub"]),
    "touch": (lambda d: os.utime(d / "f"), ["Af d/f"]),
    "remove": (lambda d: (d / "f").unlink(), ["Df d/f"]),
    "rmdir": (lambda d: (d / "sub").rmdir(), ["Dd d/sub"]),
    "move out": (lambda d: (d / "f").rename(d.parent / "out"), ["Df d/f"]),
    "move in": (lambda d: (d.parent / "in").rename(d / "in"), ["Cf d/in"]),
    "rename": (lambda d: (d / "f").rename(d / "g"), ["Rf d/f d/g"]),
    "rename of a directory": (lambda d: (d / "sub").rename(d / "bus"), ["Rd d/sub d/bus"]),
    "rename over": (lambda d: (d / "f").rename(d / "h"), ["Rf d/f d/h"]),
    "rename to another directory": (lambda d: (d / "f").rename(d.parent / "e" / "f"), ["Rf d/f e/f"]),
    "replaced by a file that was made for it": (
        lambda d: ((d / "tmp").write_text("1"), (d / "tmp").rename(d / "f")),
        ["Mf d/f"],
    ),
    "removed and made again": (_make_again, ["Mf d/f"]),
    "removed and another one made": (_reuse_inode, ["Cf d/new", "Df d/f"]),
    "two at once": (
        _much,
        ["Dd d/sub", "Df d/h", "Cd d/new", "Mf d/f"],
    ),
}


@both_ways
@pytest.mark.parametrize(("change", "lines"), CHANGES_AND_LINES.values(), ids=CHANGES_AND_LINES)
def test_each_change_of_the_host_is_told_as_what_the_name_came_to(
    host: Host, agent: Callable[..., Agent], change: Callable[[Path], object], lines: list[str]
) -> None:
    for each in ("d/sub", "e"):
        (host.root / each).mkdir(parents=True)
    for name in ("d/f", "d/h", "in"):
        (host.root / name).write_text(name)
    told = agent("d", "d/sub", "e")
    told.settle(host.root / "d")
    with host.at_once():
        change(host.root / "d")
    assert sorted(told.told()) == sorted(lines)


@both_ways
def test_what_the_guest_does_itself_is_no_news_to_it(host: Host, agent: Callable[..., Agent]) -> None:
    (host.root / "d").mkdir()
    told = agent("d")
    guest = told.guest
    guest.write_file("d/own", b"1")
    guest.mkdir("d/made")
    guest.rename("d/own", "d/moved")
    with host.at_once():
        (host.root / "d" / "f").write_text("the host's")
    assert told.told() == ["Cf d/f"]
    (host.root / "d" / "moved").unlink()
    assert told.told() == ["Df d/moved"]


@both_ways
def test_names_that_the_share_does_not_show_are_not_told(host: Host, agent: Callable[..., Agent]) -> None:
    (host.root / "shown").mkdir()
    told = agent("", "shown", hide=("secret", "*.key/"))
    with host.at_once():
        for path in ("secret", "shown/secret", "shown/f"):
            (host.root / path).write_text("x")
        (host.root / "shown" / "a.key").mkdir()
        (host.root / "shown" / "secret").rename(host.root / "shown" / "public")
    assert sorted(told.told()) == ["Cf shown/f", "Cf shown/public"]


@both_ways
def test_nothing_but_allowed_names_is_told_of_a_root_with_an_allow_list(
    host: Host, agent: Callable[..., Agent]
) -> None:
    told = agent("", allowed=("yes",))
    with host.at_once():
        for name in ("no", "yes"):
            (host.root / name).write_text("x")
    assert told.told() == ["Cf yes"]


@both_ways
def test_for_a_guest_that_asks_for_no_events_the_kernel_is_to_tell_of_nothing(
    host: Host, agent: Callable[..., Agent]
) -> None:
    def told_of(share: str) -> list[list[str]]:
        """Return the directories of which the kernel tells the mount process of a share, as /proc has them."""
        (pid,) = host.device.mounts(share)
        texts = [path.read_text() for path in Path(f"/proc/{pid}/fdinfo").iterdir()]
        words = [line.split()[:2] for text in texts for line in text.splitlines()]
        return [each for each in words if each[0] in ("inotify", "fanotify") and not each[1].startswith("flags:")]

    (host.root / "d").mkdir()
    plain = host.share()
    guest = host.connect(plain)
    guest.write_file("d/f", b"x")
    (host.root / "d" / "new").touch()
    assert guest.exists("d/new")
    assert told_of(plain) == []
    guest.close()
    asks = agent("d")
    (host.root / "d" / "newer").touch()
    assert asks.told() == ["Cf d/newer"]
    kinds = {"inotify"} if host.model == WITHOUT_FANOTIFY else {"inotify", "fanotify"}
    assert {each[0] for each in told_of(asks.name.decode())} == kinds, "so it is seen where it does"


@both_ways
def test_what_is_done_for_events_is_counted(host: Host, agent: Callable[..., Agent], refused: Refused) -> None:
    def counted() -> Events:
        assert isinstance(host.device, Device)
        status = host.device.run(host.device.server.status(counters=True))
        return Events.of([mount.counted for share in status.shares for mount in share.mounts if mount.counted])

    (host.root / "d").mkdir()
    told = agent("d")
    assert counted() == Events(watched=1), "nothing was done before it was asked for"
    (host.root / "d" / "new").touch()
    assert told.told() == ["Cf d/new"]
    assert counted() == Events(heard=1, told=1, watched=1)
    with told.as_ghost() as guest:
        guest.clunk(guest.create("d/new", OpenFlag.WRONLY | OpenFlag.EXCL))
        with refused(errno.EPERM):
            guest.unlink("d/new")
    found = counted()
    assert (found.pretended, found.refused) == (1, 1)
    asked(told.guest, "", BEGIN)
    assert counted().watched == 0


@both_ways
def test_the_reserved_user_of_one_mount_is_any_user_of_another_which_is_told_of_what_the_first_does(
    host: Host, agent: Callable[..., Agent]
) -> None:
    first = agent("")
    second = Agent(host.connect(first.name.decode()), "")
    assert first.uid != second.uid
    first.guest.ask(m.Tattach(stranger := first.guest.new_fid(), NOFID, b"", first.name, second.uid), m.Rattach)
    first.guest.root = stranger
    first.guest.mkdir("made")
    assert (host.root / "made").is_dir()
    assert second.told() == ["Cd made"]
    with second.as_ghost() as guest:
        guest.mkdir("made")


@pytest.fixture
def propagating(host: Host) -> Iterator[None]:
    """Have mounts below the root be seen by mount processes, as where systemd runs (mount_namespaces(7))."""
    require_root("mounting needs root")
    for options in (["--bind", host.root], ["--make-shared"]):
        subprocess.run(["mount", *options, host.root], check=True)
    yield
    subprocess.run(["umount", "--lazy", host.root], check=True)


@both_ways
@pytest.mark.usefixtures("propagating")
def test_a_file_system_that_hangs_below_a_watched_directory_holds_up_nothing(
    host: Host, agent: Callable[..., Agent], refused: Refused
) -> None:
    for path in (host.root / "d" / "mnt", host.outside / "shown"):
        path.mkdir(parents=True)
    (host.outside / "shown" / "f").touch()
    told = agent("", "d")
    guest = told.guest
    with HungFuse(host.outside / "shown", host.root / "d" / "mnt") as fuse:
        fuse.hang_all()
        while asked(guest, "", CHANGES) != b"lost\n":
            pass
        (host.root / "d" / "new").touch()
        walked = guest.new_fid()
        walk = guest.send(m.Twalk(guest.root, walked, (b"d", b"mnt", b"f")))
        fuse.wait_until_asked()
        with told.as_ghost():
            assert guest.exists("d")
            with refused(errno.EPERM):
                guest.walk("d/mnt")
            # The number is that of the walk that is under way: whoever comes behind it waits, as any user would.
            behind = guest.send(m.Twalk(guest.root, walked, (b"d",)))
            assert guest.exists("d/new")
        fuse.release()
        assert isinstance(guest.wait(walk), m.Rwalk)
        with refused(errno.EINVAL):
            guest.wait(behind)
        guest.clunk(walked)


@both_ways
def test_a_removed_tree_is_told_by_the_directory_that_it_was_in(host: Host, agent: Callable[..., Agent]) -> None:
    (host.root / "a" / "b").mkdir(parents=True)
    told = agent("", "a", "a/b")
    shutil.rmtree(host.root / "a")
    found = told.told()
    while "Dd a" not in found:
        found += told.told()
    assert set(found) <= {"Dd a", "Dd a/b"}
