"""Those who would have more of what is told of names than it is for: whoever watches them, or changes them.

What a guest may have of the host's kernel is bounded; nothing is told that is not the guest's to know; and the thread
that tells never ends.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.fileserver.harness import add_document
from tests.processes import DEADLINE
from tests.root import require_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

import resource

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mount import listening, watched
from uvmshare.fileserver.mount.files.tree import Tree
from uvmshare.fileserver.mount.listening import Change
from uvmshare.fileserver.mount.sources import Group, Watches
from uvmshare.fileserver.mount.watched import Queue, Watched
from uvmshare.hcs.schema import Beside
from uvmshare.ninep.constants import READ_HEADER_SIZE


class Told:
    """A session that watches directories of a tree, and is told when a test says so: no thread looks."""

    def __init__(self, tree: Tree, most_marks: int, kind: type[Group | Watches] = Group) -> None:
        group = kind.open()
        assert group is not None, "this host has no queue to spare"
        group.most = min(group.most, most_marks)
        self.tree = tree
        self.queue = Queue(syscalls.inotify_init(), 2048, group)
        self.group = group
        self.watched = Watched(self.queue, tree, lambda _: None)
        self.watched._start = lambda: None  # type: ignore[method-assign]  # the test looks itself
        self.numbers: dict[int, str] = {}
        self.listen()

    def listen(self) -> int:
        uid = self.watched.listen()
        assert self.watched.listening is not None
        if isinstance(self.group, Group):
            self.group._own = 0  # the host is this process too
        return uid

    def watch(self, *paths: str) -> None:
        for path in paths:
            node = self.tree.walk(self.tree.root, path.encode().split(b"/"))[-1] if path else self.tree.root
            self.numbers[self.watched.add(node)[0]] = path

    def look(self) -> list[str]:
        """Have the thread look once; return what is told then, names of directories and files for their numbers."""
        self.watched.look(has_directories=bool(select.select([self.queue.descriptor], [], [], 0)[0]))
        said: list[str] = []
        while (reply := self.watched.wait(1, 4096)) is not None:
            for line in reply[READ_HEADER_SIZE:].decode().splitlines():
                what, *words = line.split()
                places = [
                    f"{self.numbers[int(words[at])]}/{bytes.fromhex(words[at + 1]).decode()}"
                    for at in range(0, len(words), 2)
                ]
                said.append(" ".join((what, *places)) if words else what)
        self.watched.flush(1)
        return said

    @property
    def marks(self) -> int:
        """How many directories the kernel is asked to tell of."""
        with open(f"/proc/self/fdinfo/{self.group.descriptor}", encoding="ascii") as file:
            return sum(line.startswith("fanotify ino:") for line in file)

    def close(self) -> None:
        self.queue.close()
        self.tree.close()


@pytest.fixture
def told(root: Path) -> Iterator[Callable[..., Told]]:
    made: list[Told] = []
    exports: list[Export] = []

    def watching(
        *paths: str,
        allowed: tuple[str, ...] = (),
        hide: tuple[str, ...] = (),
        most_marks: int = 4096,
        kind: type[Group | Watches] = Group,
    ) -> Told:
        settings = add_document("0", str(root), allowed=allowed).settings
        assert settings is not None
        export = Export.open(settings, "none", beside=Beside(hide=hide))
        exports.append(export)
        tree = Tree(export)
        tree.found_mounts(any_there=False)
        made.append(Told(tree, most_marks, kind))
        made[-1].watch(*paths)
        return made[-1]

    yield watching
    for each in made:
        each.close()
    for export in exports:
        export.close()


def test_directories_that_left_their_places_take_no_more_of_the_hosts_kernel_than_is_allowed(
    told: Callable[..., Told], root: Path
) -> None:
    (root / "away").mkdir()
    guest = told("", most_marks=8)
    lost = 0
    for count in range(40):
        path = root / str(count)
        path.mkdir()
        guest.watch(path.name)
        path.rename(root / "away" / path.name)
        (root / "away" / path.name / "made").mkdir()
        lost += "lost" in guest.look()
        assert guest.marks <= 8
    assert lost, "an agent that goes by the rules is told to begin anew, and has room then"
    guest.watched.begin()
    assert guest.marks == 0
    guest.listen()
    guest.watch("", "away")
    (root / "away" / "f").touch()
    assert guest.look() == ["Cf away/f"]


def test_directories_that_are_removed_leave_room_for_others(told: Callable[..., Told], root: Path) -> None:
    guest = told("", most_marks=8)
    for count in range(40):
        path = root / str(count)
        path.mkdir()
        guest.watch(path.name)
        path.rmdir()
        assert "lost" not in guest.look()
    (root / "d").mkdir()
    guest.watch("d")
    guest.look()
    (root / "d" / "f").touch()
    assert guest.look() == ["Cf d/f"]


def test_without_a_descriptor_left_nothing_false_is_told_and_telling_goes_on_afterwards(
    told: Callable[..., Told], root: Path
) -> None:
    (root / "d").mkdir()
    guest = told("", "d")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    (root / "d" / "f").touch()
    (root / "d" / "sub").mkdir()
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert guest.look() == ["lost"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    (root / "d" / "g").touch()
    assert "Cf d/g" in guest.look()


def test_a_file_that_cannot_be_looked_at_for_want_of_a_descriptor_is_not_told_as_removed(
    told: Callable[..., Told], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "f").touch()
    guest = told("")
    (root / "f").write_text("more")

    def no_more(*_: object) -> int:
        raise OSError(24, "too many")

    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "open_entry", no_more)
        assert guest.look() == ["lost"]


def test_a_mount_over_a_name_or_a_directory_is_not_asked_anything(told: Callable[..., Told], root: Path) -> None:
    """It may be a file system that never answers, and the thread that waits for it would hold all that is told."""
    require_root("mounting needs root")
    for path in ("d", "e"):
        (root / path).mkdir()
    guest = told("", "d", "e")
    (root / "d" / "name").mkdir()
    (root / "d" / "f").touch()
    (root / "e" / "f").touch()
    points = root / "d" / "name", root / "e"
    for point in points:
        subprocess.run(["mount", "-t", "tmpfs", "ours", point], check=True)
    try:
        (root / "e" / "f").touch()
        assert guest.look() == ["Cf d/f", str(number_of(guest, "d"))]
    finally:
        for point in points:
            subprocess.run(["umount", "--lazy", point], check=True)


def test_a_directory_that_was_moved_out_tells_nothing_until_it_is_back(told: Callable[..., Told], root: Path) -> None:
    (root / "d" / "sub").mkdir(parents=True)
    guest = told("", "d", "d/sub")
    outside = root.parent / "outside"
    for path in ("d", "d/sub"):
        moved = outside / path
        moved.parent.mkdir(exist_ok=True)
        (root / path).rename(moved)
        (moved / "secret").touch()
        (moved / "file").touch()
        (moved / "file").rename(moved / "renamed")
        assert not [line for line in guest.look() if line.split()[-1].split("/")[-1] in ("secret", "file", "renamed")]
        (moved / "secret").unlink()
        (moved / "renamed").unlink()
        moved.rename(root / path)
        guest.look()
        guest.watch(path)
        (root / path / "f").touch()
        assert f"Cf {path}/f" in guest.look()


def test_a_directory_that_another_one_or_a_link_replaces_tells_nothing(told: Callable[..., Told], root: Path) -> None:
    outside = root.parent / "outside"
    for made in (root / "d" / "sub", outside / "sub"):
        made.mkdir(parents=True)
    guest = told("", "d", "d/sub")
    for replace in (lambda: (root / "d").symlink_to(outside), lambda: outside.rename(root / "d")):
        (root / "d").rename(root / f"was{len(os.listdir(root))}")
        replace()
        guest.look()
        for path in ("d/secret", "d/sub/secret"):
            (root / path).touch()
        assert guest.look() == []
        if (root / "d").is_symlink():
            (root / "d").unlink()
            (root / "d").mkdir()
            guest.look()


def test_a_line_is_told_whole_to_whoever_reads_as_little_as_is_allowed(told: Callable[..., Told], root: Path) -> None:
    guest = told("")
    (root / ("x" * 255)).touch()
    assert guest.look() == ["Cf /" + "x" * 255]
    (root / ("x" * 255)).rename(root / ("y" * 255))
    guest.watched.look(has_directories=False)
    with pytest.raises(OSError, match="1100 bytes"):
        guest.watched.wait(1, 1099)
    reply = guest.watched.wait(1, 1100)
    assert reply is not None
    assert reply.endswith(b"y".hex().encode() * 255 + b"\n")


def test_a_name_that_is_allowed_and_hidden_is_not_told(told: Callable[..., Told], root: Path) -> None:
    guest = told("", allowed=("a", "b.key"), hide=("*.key",))
    for name in ("b.key", "a", "c"):
        (root / name).touch()
    assert guest.look() == ["Cf /a"]


def test_nothing_is_told_of_a_directory_that_may_have_other_names_for_what_is_hidden(
    told: Callable[..., Told], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("d", "e"):
        (root / name).mkdir()
    guest = told("", "d", "e", hide=("secret",))
    inode = (root / "d").stat().st_ino
    monkeypatch.setattr(watched, "folds", lambda directory: os.fstat(directory).st_ino == inode)
    for name in ("d", "e"):
        (root / name / "SECRET").mkdir()
        (root / name / "Secret").touch()
    assert sorted(guest.look()) == sorted(["Cd e/SECRET", "Cf e/Secret", str(number_of(guest, "e"))])
    with pytest.raises(OSError, match="nobody can say"):
        guest.watch("d")


def number_of(guest: Told, path: str) -> int:
    return next(number for number, each in guest.numbers.items() if each == path)


def test_no_more_names_are_listed_than_are_remembered(
    told: Callable[..., Told], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory of ten million names is not to fill the memory, nor to hold up whoever asks for it."""
    monkeypatch.setattr(listening, "_MOST_NAMES", 10)
    for name in ("large", "small"):
        (root / name).mkdir()
    for count in range(100):
        (root / "large" / str(count)).touch()
    guest = told("large", "small")
    (root / "large" / "new").touch()
    (root / "small" / "new").touch()
    assert guest.look() == ["Cf small/new"]
    for count in range(100):
        (root / "small" / str(count)).touch()
    assert guest.watched.listening is not None
    guest.watched.listening._compare_all()
    assert guest.look() == ["lost"]


def test_when_more_happens_than_the_kernel_keeps_the_mounts_own_changes_are_still_its_own(
    told: Callable[..., Told], root: Path
) -> None:
    (root / "file").unlink()  # which is so young that it might have been changed since
    for name in ("own", "others", "busy", "busier"):
        (root / name).touch()
    guest = told("", kind=Watches)
    tree, found = guest.tree, guest.watched.listening
    assert found is not None
    for name in ("own", "others"):
        (root / name).write_text("first")
    assert guest.look()
    for _ in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())):
        for name in ("busy", "busier"):  # one after the other, or they would be one event
            os.utime(root / name)
    found.own(Change((tree.child(tree.root, b"own"),)), lambda: (root / "own").write_text("the guest's"))
    made = Change((tree.root,), ((tree.root, b"made"),), "make")
    found.own(made, (root / "made").touch)
    renamed = Change((tree.root,), ((tree.root, b"own"), (tree.root, b"renamed")), "rename")
    found.own(renamed, lambda: (root / "own").rename(root / "renamed"))
    (root / "others").write_text("the host's")
    (root / "new").touch()
    lines = guest.look()
    assert sorted(line for line in lines if "bus" not in line) == ["Cf /new", "Mf /others"]
    (root / "end").touch()
    assert guest.look() == ["Cf /end"]


@pytest.mark.parametrize("kind", [Group, Watches], ids=["fanotify", "inotify"])
def test_a_change_that_cannot_be_noted_is_made_all_the_same_and_told_as_anothers(
    told: Callable[..., Told], root: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Group | Watches]
) -> None:
    guest = told("", kind=kind)
    tree, found = guest.tree, guest.watched.listening
    assert found is not None

    def no_more(*_: object) -> int:
        raise OSError(24, "too many")

    with monkeypatch.context() as patch:
        patch.setattr(syscalls, "open_entry", no_more)
        found.own(Change((tree.root,), ((tree.root, b"made"),), "make"), (root / "made").touch)
    assert guest.look() == ["Cf /made"]


def test_permissions_that_are_lent_are_the_mounts_own_doing(told: Callable[..., Told], root: Path) -> None:
    (root / "f").touch()
    guest = told("", kind=Watches)
    tree, found = guest.tree, guest.watched.listening
    assert found is not None
    file = tree.child(tree.root, b"f")
    (root / "f").write_text("so that what it was before is not in doubt")
    assert guest.look() == ["Mf /f"]
    with found.lending(file):
        (root / "f").chmod(0o600)
    assert guest.look() == []

    def write() -> None:
        with found.lending(file):
            (root / "f").chmod(0o640)
        (root / "f").write_text("written meanwhile")
        with found.lending(file):
            (root / "f").chmod(0o600)

    found.own(Change((file,)), write)
    assert guest.look() == []
    with found.lending(file):
        (root / "f").chmod(0o640)
    (root / "f").chmod(0o400)
    assert guest.look() == ["Af /f"]
    guest.watched.begin()
    with tree.lending.noted(file):
        pass


def test_telling_takes_no_more_than_a_fifth_of_a_processor() -> None:
    for took in (0.0, 0.001, 0.02, 0.3, 2.0):
        assert took <= (took + watched.pause_after(took)) / 5
    assert watched.pause_after(0.0) > 0, "what is done at once is told as one"


def test_the_reserved_user_is_one_that_no_container_gives_away(told: Callable[..., Told]) -> None:
    found = set()
    for _ in range(20):
        guest = told("")
        assert guest.watched.reserved is not None
        found.add(guest.watched.reserved)
        guest.watched.begin()
        assert guest.watched.listen() == guest.watched.reserved, "it is one for as long as the connection lasts"
    assert all(0x7000_0000 <= each < 0x7FFF_FFFF for each in found)
    assert len(found) > 10


def test_processes_that_look_at_once_whether_queues_are_to_spare_all_find_them(tmp_path: Path) -> None:
    """Each takes 33 of both kinds for a moment. Here there are so many beside those that the others keep."""
    script = tmp_path / "many.py"
    script.write_text(MANY)
    subprocess.run([sys.executable, script, str(33 + 8), tmp_path], check=True, timeout=DEADLINE)


MANY: Final = """
import ctypes
import os
import sys

from uvmshare.fileserver.mount.sources import Group
from uvmshare.fileserver.mount.watched import Queue

assert ctypes.CDLL(None).unshare(0x10000000) == 0, "no user namespace of its own"
for kind in ("inotify_instances", "fanotify_groups"):
    with open(f"/proc/sys/user/max_{kind}", "w") as file:
        file.write(sys.argv[1])
turn = os.memfd_create("turn")
begin, beginning = os.pipe()
end, ending = os.pipe()
told, telling = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        os.close(beginning)
        os.close(ending)
        os.read(begin, 1)  # all have been started
        queue = Queue.open_in_turn(turn, os.open(sys.argv[2], os.O_PATH))
        os.write(telling, b"y" if queue is not None and isinstance(queue.source, Group) else b"n")
        os.read(end, 1)  # all have told
        os._exit(0)
os.close(beginning)
said = b"".join(os.read(told, 1) for _ in range(8))
assert said == b"y" * 8, said
"""
