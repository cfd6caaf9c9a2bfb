"""Nothing outside is told while the host moves directories and the root in the middle of a walk.

A mount's own process asks for its working directory; here that is this process, which goes back where it was.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare.errors import RemoteProtocolError

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mount.files import boundary as boundary_module
from uvmshare.fileserver.mount.files.tree import Tree
from uvmshare.hcs.schema import Plan9Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from uvmshare.fileserver.mount.files.node import Node


class Share:
    """A share ``root`` with ``d/e/f/file`` in it, and ``outside`` beside it."""

    def __init__(self, top: Path) -> None:
        self.root, self.outside = top / "root", top / "outside"
        (self.root / "d" / "e" / "f").mkdir(parents=True)
        self.outside.mkdir()
        for directory in (self.root, self.root / "d", self.root / "d" / "e", self.root / "d" / "e" / "f"):
            (directory / "file").write_bytes(b"")
        self.export = Export.open(Plan9Share(name="0", access_name="0", path=str(self.root)), "none")
        self.tree = Tree(self.export)
        self.tree.boundary.take_process(has_landlock=False)
        self.tree.found_mounts(any_there=False)

    def walk(self, *names: str, start: Node | None = None) -> list[str]:
        """Walk, and return the host's paths of what was reached, as they are now."""
        nodes = self.tree.walk(start or self.tree.root, [name.encode() for name in names])
        return [os.readlink(f"/proc/self/fd/{node.fd}") for node in nodes]

    def node(self, *names: str) -> Node:
        node = self.tree.walk(self.tree.root, [name.encode() for name in names])[-1]
        self.tree.boundary.confirm()
        return node


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    before = os.open(".", os.O_PATH)
    made = Share(tmp_path.resolve())
    try:
        yield made
    finally:
        os.fchdir(before)
        os.close(before)
        made.tree.close()
        made.export.close()


@pytest.fixture
def at_open(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], object]], None]:
    """Have the host do something right before, or right behind, the so many-th component is opened."""

    def arrange(number: int, act: Callable[[], object], *, behind: bool = False) -> None:
        count, open_ = [0], os.open

        def opened(name: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            count[0] += 1
            mine = count[0] == number
            if mine and not behind:
                act()
            try:
                return open_(name, flags, mode, dir_fd=dir_fd)
            finally:
                if mine and behind:
                    act()

        monkeypatch.setattr(os, "open", opened)

    return arrange


CHAINS = [("file",), ("e", "file"), ("e", "f"), ("e", "f", "file"), ("e", "nothing"), ("e", "file", "nothing")]


STEPS = [(names, number) for names in CHAINS for number in range(1, len(names) + 1)]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(("names", "number"), STEPS)
def test_a_directory_that_is_moved_out_at_any_step_of_a_walk_tells_nothing(
    share: Share, at_open: Callable[..., None], names: tuple[str, ...], number: int, behind: bool
) -> None:
    directory = share.node("d")
    at_open(number, lambda: (share.root / "d").rename(share.outside / "d"), behind=behind)
    with pytest.raises(FileNotFoundError):
        share.walk(*names, start=directory)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("inner", ["d", "d/e", "d/e/f"])
def test_a_component_that_is_moved_out_behind_the_walk_is_not_followed(
    share: Share, at_open: Callable[..., None], number: int, inner: str
) -> None:
    moved = share.outside / "moved"
    at_open(number, lambda: (share.root / inner).rename(moved))
    try:
        reached = share.walk("d", "e", "f", "file")
    except FileNotFoundError:
        reached = []
    assert not [path for path in reached if path.startswith(str(share.outside))]


def test_what_was_only_there_while_the_directory_was_outside_is_not_reached(
    share: Share, at_open: Callable[..., None]
) -> None:
    """The host takes a directory out, puts something in, takes it away again, and puts the directory back."""
    directory = share.node("d")
    (share.root / "d").rename(share.outside / "d")
    secret = share.outside / "d" / "secret"
    secret.write_bytes(b"")

    def put_back() -> None:
        secret.rename(share.outside / "secret")
        (share.outside / "d").rename(share.root / "d")

    at_open(1, put_back, behind=True)
    with pytest.raises(FileNotFoundError):
        share.walk("secret", start=directory)


def test_a_name_is_not_told_to_be_missing_in_a_directory_that_was_moved_out(
    share: Share, at_open: Callable[..., None]
) -> None:
    at_open(2, lambda: (share.root / "d").rename(share.outside / "d"))
    with pytest.raises(FileNotFoundError):
        share.walk("d", "nothing")


def test_a_root_that_is_moved_between_two_turns_is_found_again(share: Share) -> None:
    directory = share.node("d")
    share.root.rename(share.outside / "elsewhere")
    assert share.walk("e", "file", start=directory) == [
        f"{share.outside}/elsewhere/d/e",
        f"{share.outside}/elsewhere/d/e/file",
    ]
    share.tree.boundary.confirm()


def test_a_root_that_is_moved_within_a_turn_lets_everything_in_it_be(share: Share) -> None:
    share.walk("d", "e", "file")
    share.root.rename(share.outside / "elsewhere")
    share.tree.boundary.confirm()
    assert share.walk("d", "file")[-1] == f"{share.outside}/elsewhere/d/file"
    share.tree.boundary.confirm()


def test_what_takes_the_roots_place_before_a_turn_is_outside(share: Share) -> None:
    directory = share.node("d")
    share.root.rename(share.outside / "elsewhere")
    share.root.mkdir()
    (share.outside / "elsewhere" / "d").rename(share.root / "d")
    with pytest.raises(FileNotFoundError):
        share.walk("file", start=directory)
    share.tree.boundary.confirm()


def test_what_takes_the_roots_place_within_a_turn_ends_the_connection_before_a_reply_leaves(
    share: Share, at_open: Callable[..., None]
) -> None:
    directory = share.node("d")

    def swap() -> None:
        share.root.rename(share.outside / "elsewhere")
        share.root.mkdir()
        (share.outside / "elsewhere" / "d").rename(share.root / "d")

    at_open(1, swap)  # between the looks at the root's path and at the directory's
    share.walk("file", start=directory)
    with pytest.raises(RemoteProtocolError, match="moved while it was walked"):
        share.tree.boundary.confirm()


def test_a_root_that_was_removed_has_nothing_in_it(share: Share) -> None:
    directory = share.node("d")
    (share.root / "d").rename(share.outside / "d")
    (share.root / "file").unlink()
    share.root.rmdir()
    with pytest.raises(FileNotFoundError):
        share.walk("file", start=directory)
    share.tree.boundary.confirm()


def test_a_root_that_is_removed_within_a_turn(share: Share) -> None:
    share.walk("d", "e", "file")
    (share.root / "d").rename(share.outside / "d")
    (share.root / "file").unlink()
    share.root.rmdir()
    with pytest.raises(RemoteProtocolError):
        share.tree.boundary.confirm()


def test_a_file_is_no_place_to_walk_on_from(share: Share) -> None:
    file = share.node("d", "file")
    with pytest.raises(NotADirectoryError):
        share.walk("x", start=file)
    assert share.walk("d", "file", "x") == [f"{share.root}/d", f"{share.root}/d/file"]


@pytest.fixture
def entered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The directories that become the working one, from now on."""
    descriptors: list[int] = []
    fchdir = os.fchdir

    def noted(descriptor: int) -> None:
        descriptors.append(descriptor)
        fchdir(descriptor)

    monkeypatch.setattr(os, "fchdir", noted)
    return descriptors


def test_the_same_directory_is_asked_for_once_in_a_turn(share: Share, entered: list[int]) -> None:
    directory = share.node("d")
    entered.clear()
    for _ in range(10):
        share.walk("file", start=directory)
    assert entered == [directory.fd]
    share.tree.boundary.confirm()
    assert entered == [directory.fd, share.tree.root.fd]
    assert os.getcwd() == str(share.root)


def test_a_turn_holds_only_so_many_descriptors(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary_module, "_MOST_LET_IN", 8)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        share.walk("d", "e", "f", "file")
    assert len(os.listdir("/proc/self/fd")) - before <= 8


def test_deeper_than_a_path_can_say(share: Share) -> None:
    at: Node = share.tree.root
    name = b"n" * 200
    for _ in range(30):
        os.mkdir(name, dir_fd=at.fd)
        (at,) = share.tree.walk(at, [name])
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at.fd))
    assert share.tree.walk(at, [b"file"])[0].name == b"file"
    with pytest.raises(OSError, match="No such file") as caught:
        share.tree.walk(at, [b"nothing"])
    assert caught.value.errno == errno.ENOENT
    share.tree.boundary.confirm()


def test_a_walk_reads_no_directory_on_the_way_up(share: Share) -> None:
    """The C library's getcwd(3) would: with many entries in each, a walk far down would take seconds."""
    at: Node = share.tree.root
    for _ in range(30):
        os.mkdir(b"n" * 200, dir_fd=at.fd)
        (at,) = share.tree.walk(at, [b"n" * 200])
    os.fchdir(at.fd)
    with pytest.raises(OSError, match="getcwd") as caught:
        syscalls.working_directory()
    assert caught.value.errno == errno.ENAMETOOLONG
    os.fchdir(share.tree.root.fd)
    assert syscalls.working_directory() == os.getcwdb()


def test_a_walk_climbs_only_so_far_however_deep_the_tree_is(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    at: Node = share.tree.root
    name = b"n" * 200
    climbed: list[object] = []
    really = os.open

    def noted(path: Any, *arguments: Any, **more: Any) -> int:
        if path == "..":
            climbed.append(path)
        return really(path, *arguments, **more)

    monkeypatch.setattr(os, "open", noted)
    monkeypatch.setattr(boundary_module, "_MOST_CLIMBED", 30)
    for _ in range(30):
        os.mkdir(name, dir_fd=at.fd)
        (at,) = share.tree.walk(at, [name])
    os.mkdir(name, dir_fd=at.fd)
    climbed.clear()
    with pytest.raises(OSError, match="too deep") as caught:
        share.tree.walk(at, [name])
    assert caught.value.errno == errno.ENAMETOOLONG
    assert len(climbed) == 30
    share.tree.boundary.confirm()


def test_a_root_that_lets_nobody_in_is_not_mistaken_for_where_the_last_walk_ended(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host takes the permission to enter the root away and gives it back, and moves out what was walked last."""
    (share.root / "d" / "e" / "f" / "deep").mkdir()
    last, inner = share.node("d"), share.node("d", "e", "f")
    share.walk("e", "f", start=last)
    fchdir = os.fchdir

    def refused(descriptor: int) -> None:
        if descriptor == share.tree.root.fd:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        fchdir(descriptor)

    with monkeypatch.context() as denied:
        denied.setattr(os, "fchdir", refused)
        share.tree.boundary.confirm()
    (share.root / "d").rename(share.outside / "d")
    with pytest.raises(FileNotFoundError):
        share.tree.require_inside(inner)
    with pytest.raises(FileNotFoundError):
        share.walk("file", start=last)
    (share.outside / "d").rename(share.root / "d")
    assert share.walk("d", "e", "file")[-1] == f"{share.root}/d/e/file"


def test_what_cannot_be_looked_at_again_is_outside_and_no_error_of_a_request(
    share: Share, monkeypatch: pytest.MonkeyPatch
) -> None:
    share.walk("d", "e", "file")
    share.root.rename(share.outside / "elsewhere")

    def no_descriptors(*_: object, **__: object) -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(share.tree.boundary, "is_inside", no_descriptors)
    with pytest.raises(RemoteProtocolError):
        share.tree.boundary.confirm()


def swap(share: Share) -> None:
    """Put the directory beside the share in its place, and the share in that one's."""
    share.root.rename(share.outside.with_name("between"))
    share.outside.rename(share.root)
    share.outside.with_name("between").rename(share.outside)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("is_alone", [True, False])
def test_what_changes_places_with_the_share_while_it_is_looked_at_is_not_inside(
    share: Share, monkeypatch: pytest.MonkeyPatch, number: int, is_alone: bool
) -> None:
    """Paths are read one after the other: here the host acts before the so many-th."""
    directory = share.node("d")
    (share.root / "d").rename(share.outside / "d")
    share.tree.boundary.is_alone = is_alone
    readlink, getcwdb, count = os.readlink, syscalls.working_directory, [0]

    def act() -> None:
        count[0] += 1
        if count[0] == number:
            swap(share)

    def read(path: bytes, *, dir_fd: int) -> bytes:
        act()
        return readlink(path, dir_fd=dir_fd)

    def here() -> bytes:
        act()
        return getcwdb()

    monkeypatch.setattr(os, "readlink", read)
    monkeypatch.setattr(boundary_module, "working_directory", here)
    assert not share.tree.boundary.is_inside(directory)
    assert count[0] >= 2


def test_what_is_inside_is_inside_while_the_share_changes_places(share: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, readlink, count = share.node("d"), os.readlink, [0]

    def read(path: bytes, *, dir_fd: int) -> bytes:
        count[0] += 1
        if count[0] == 1:
            swap(share)
        return readlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "readlink", read)
    assert share.tree.boundary.is_inside(directory)


def test_a_root_that_is_moved_away_and_back_within_a_turn_lets_nothing_in_but_names(
    share: Share, at_open: Callable[..., None]
) -> None:
    """The host can do so unseen, for no two paths are read at one moment. The guest can do nothing with what it has."""
    directory = share.node("d")

    def away() -> None:
        share.root.rename(share.outside / "elsewhere")
        share.root.mkdir()
        (share.outside / "elsewhere" / "d").rename(share.root / "d")

    at_open(1, away)
    (reached,) = share.tree.walk(directory, [b"e"])
    share.root.rename(share.outside / "replaced")
    (share.outside / "elsewhere").rename(share.root)
    share.tree.boundary.confirm()
    assert os.readlink(f"/proc/self/fd/{reached.fd}") == f"{share.outside}/replaced/d/e"
    for node in (directory, reached):
        with pytest.raises(FileNotFoundError):
            share.tree.require_inside(node)
        with pytest.raises(FileNotFoundError):
            share.walk("file", start=node)
    share.tree.boundary.confirm()


@pytest.fixture
def enclosed(share: Share) -> Share:
    """The share, whose root has one path for ever, as in a mount namespace."""
    share.tree.boundary.take_process(has_landlock=False, enclosed=True)
    return share


def test_a_directory_that_is_moved_out_between_two_looks_of_a_turn_is_outside_for_the_second(enclosed: Share) -> None:
    directory, boundary = enclosed.node("d"), enclosed.tree.boundary
    boundary.require_directory_inside(directory)
    (enclosed.root / "d").rename(enclosed.outside / "d")
    with pytest.raises(FileNotFoundError):
        boundary.require_directory_inside(directory)
    with pytest.raises(FileNotFoundError):
        enclosed.walk("file", start=directory)
    (enclosed.outside / "d").rename(enclosed.root / "d")
    boundary.require_directory_inside(directory)
    assert enclosed.walk("file", start=directory) == [f"{enclosed.root}/d/file"]


def test_a_directory_beside_the_share_whose_name_begins_alike_is_outside_for_a_look(enclosed: Share) -> None:
    directory = enclosed.node("d")
    beside = enclosed.root.with_name("root-beside")
    beside.mkdir()
    (enclosed.root / "d").rename(beside / "d")
    for look in (enclosed.tree.boundary.require_directory_inside, enclosed.tree.require_inside):
        with pytest.raises(FileNotFoundError):
            look(directory)


def test_a_directory_is_entered_once_in_a_turn_and_left_by_the_next_one(enclosed: Share, entered: list[int]) -> None:
    first, second, boundary = enclosed.node("d"), enclosed.node("d", "e"), enclosed.tree.boundary
    entered.clear()
    for _ in range(10):
        boundary.require_directory_inside(first)
    for _ in range(10):
        boundary.require_directory_inside(second)
    assert entered == [first.fd, second.fd]
    boundary.confirm()
    boundary.require_directory_inside(second)
    assert entered == [first.fd, second.fd, second.fd]


def test_what_cannot_be_entered_is_looked_at_by_its_link(enclosed: Share, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, file, boundary = enclosed.node("d", "e", "f"), enclosed.node("d", "file"), enclosed.tree.boundary
    boundary.require_directory_inside(file)
    (enclosed.root / "d" / "file").rename(enclosed.outside / "file")
    with pytest.raises(FileNotFoundError):
        boundary.require_directory_inside(file)

    def refused(_: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "fchdir", refused)
    boundary.require_directory_inside(directory)
    (enclosed.root / "d" / "e" / "f").rename(enclosed.outside / "f")
    with pytest.raises(FileNotFoundError):
        boundary.require_directory_inside(directory)


def test_a_directory_that_was_removed_is_inside_and_has_nothing_to_walk_to(enclosed: Share) -> None:
    directory, boundary = enclosed.node("d", "e", "f"), enclosed.tree.boundary
    boundary.require_directory_inside(directory)
    (enclosed.root / "d" / "e" / "f" / "file").unlink()
    (enclosed.root / "d" / "e" / "f").rmdir()
    boundary.require_directory_inside(directory)
    with pytest.raises(FileNotFoundError):
        enclosed.walk("file", start=directory)


def test_a_directory_deeper_than_a_path_can_say_is_looked_at(enclosed: Share) -> None:
    at: Node = enclosed.tree.root
    name = b"n" * 200
    for _ in range(30):
        os.mkdir(name, dir_fd=at.fd)
        (at,) = enclosed.tree.walk(at, [name])
    enclosed.tree.boundary.require_directory_inside(at)
    (enclosed.root / name.decode()).rename(enclosed.outside / "n")
    with pytest.raises(FileNotFoundError):
        enclosed.tree.boundary.require_directory_inside(at)
    enclosed.tree.boundary.confirm()  # which lets go of the directory
