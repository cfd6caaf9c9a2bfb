"""What is told of names that this process and others change in turns, however late it is heard.

Real files in two directories, by both ways: the queue says who did something, or a ledger is kept.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.counters import Counters
from uvmshare.fileserver.mount.files.node import Node
from uvmshare.fileserver.mount.listening import Change, Directory, Listening
from uvmshare.fileserver.mount.sources import Source, Told
from uvmshare.fileserver.syscalls import Fanotify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

Place = tuple[int, bytes]
"""A directory and a name in it."""
Step = tuple[object, ...]
"""Who does what to which places; or a word alone of what the mount process does meanwhile."""


class Queue(Source):
    """A queue that a test fills."""

    def __init__(self, *, says_who: bool) -> None:
        super().__init__(-1, 10)
        self.says_who = says_who
        self.waiting: list[Told] = []

    def watch(self, number: int, descriptor: int, path: str) -> bool:
        del number, descriptor, path
        return True

    def forget(self, number: int, *, is_gone: bool) -> None:
        """Is never asked to."""

    def clear(self) -> None:
        """Is never asked to."""

    def _told_in(self, data: bytes) -> Iterator[Told]:
        raise NotImplementedError

    def read(self) -> tuple[list[Told], bool]:
        told, self.waiting = self.waiting, []
        return told, True


class Shared:
    """Two directories that are watched, and what a guest knows of the names in them by what it did and was told."""

    def __init__(self, top: Path, *, says_who: bool) -> None:
        self.queue = Queue(says_who=says_who)
        self.nodes: list[Node] = []  # each closes its descriptor
        for each in ("0", "1"):
            (top / each).mkdir(exist_ok=True)
            for left in (top / each).iterdir():
                left.unlink()
            self.nodes.append(Node(os.open(top / each, os.O_RDONLY | os.O_DIRECTORY), None, b""))
        self.directories = [node.fd for node in self.nodes]
        self.listening = Listening(self.queue, lambda number: os.dup(self.directories[number]), lambda *_: True, slots)
        for number, fd in enumerate(self.directories):
            found = os.fstat(fd)
            place = Directory((found.st_dev, found.st_ino), b"%d" % number)
            assert self.listening.add(number, fd, "", place)
        self.known: dict[Place, int] = {}
        """The inodes."""
        self.lines: list[str] = []

    def inode(self, place: Place) -> int | None:
        try:
            return os.stat(place[1], dir_fd=self.directories[place[0]], follow_symlinks=False).st_ino
        except FileNotFoundError:
            return None

    def there(self) -> dict[Place, int]:
        """Return all that there is."""
        found = {}
        for number, fd in enumerate(self.directories):
            for name in map(os.fsencode, os.listdir(fd)):
                inode = self.inode((number, name))
                assert inode is not None
                found[number, name] = inode
        return found

    # What is done

    def do(self, who: str, what: str, *places: Place) -> None:
        """Do something to these places; nothing when it cannot be done."""
        if (self.inode(places[0]) is None) != (what == "make") or (len(places) == 2 and places[0] == places[1]):
            return
        if who == "others":
            self._carry_out(what, places)
            return
        self._do_noted(what, places, lambda: self._carry_out(what, places, own=True))
        if what in ("remove", "rename"):
            self.known.pop(places[0], None)
        if what in ("make", "rename"):
            inode = self.inode(places[-1])
            assert inode is not None
            self.known[places[-1]] = inode

    def _do_noted(self, what: str, places: Sequence[Place], do: Callable[[], None]) -> None:
        names = tuple((self.nodes[number], name) for number, name in places)
        if what != "write":
            self.listening.own(Change(tuple(node for node, _ in names), names, what), do)
        elif self.listening.ledger is None:  # what changes no name is not noted then
            do()
        else:
            fd = os.open(places[0][1], os.O_PATH, dir_fd=self.directories[places[0][0]])
            self.listening.own(Change((Node(fd, None, b""),)), do)

    def _carry_out(self, what: str, places: Sequence[Place], *, own: bool = False) -> None:
        (number, name), (to, new) = places[0], places[-1]
        fd, to_fd = self.directories[number], self.directories[to]
        heard: list[tuple[Place, int]] = []
        if what in ("make", "write"):
            flags = os.O_WRONLY | (os.O_CREAT | os.O_EXCL if what == "make" else os.O_APPEND)
            opened = os.open(name, flags, 0o644, dir_fd=fd)
            os.write(opened, b"x")
            os.close(opened)
            heard += [(places[0], Fanotify.CREATE)] if what == "make" else []
            heard.append((places[0], Fanotify.MODIFY))
        elif what == "remove":
            os.unlink(name, dir_fd=fd)
            heard.append((places[0], Fanotify.DELETE))
        else:
            os.rename(name, new, src_dir_fd=fd, dst_dir_fd=to_fd)
            heard += [(places[0], Fanotify.MOVED_FROM), (places[1], Fanotify.MOVED_TO)]
        if not (own and self.queue.says_who):
            self.queue.waiting += [Told(place[0], place[1], mask) for place, mask in heard]

    # What the mount process does

    def compare(self) -> None:
        """Compare, and have the guest learn what is told. Each line must be one that it can believe."""
        assert self.listening.compare()
        while self.listening.has_lines:
            for line in self.listening.take(1 << 16).splitlines():
                self._learn(line)

    def _learn(self, line: bytes) -> None:
        words = line.decode().split()
        places = [(int(words[at]), bytes.fromhex(words[at + 1])) for at in range(1, len(words), 2)]
        self.lines.append(" ".join((words[0][0], *(f"{number}/{name.decode()}" for number, name in places))))
        first, last, what = places[0], places[-1], words[0][0]
        inode = self.inode(last)
        if what == "C":
            assert first not in self.known, f"{line!r}: it has that name"
        else:
            assert first in self.known, f"{line!r}: it has no such name"
        if what in "DR":
            before = self.known.pop(first)
            if what == "R":
                self.known[last] = before
        elif inode is not None:
            self.known[first] = inode

    def settle(self) -> None:
        """Read all, and compare."""
        self.listening.read()
        self.compare()


slots = Counters().slots
PLACES: Final = [(number, name) for number in (0, 1) for name in (b"a", b"b")]

both_ways = pytest.mark.parametrize("says_who", [True, False], ids=["told by whom", "by a ledger"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Shared]:
    top = tmp_path_factory.mktemp("shared")
    return lambda *, says_who: Shared(top, says_who=says_who)


_places = st.sampled_from(PLACES)
_steps = st.one_of(
    st.tuples(st.sampled_from(["own", "others"]), st.sampled_from(["make", "remove", "write"]), _places),
    st.tuples(st.sampled_from(["own", "others"]), st.just("rename"), _places, _places),
    st.sampled_from([("read",), ("compare",)]),
)


@both_ways
@given(steps=st.lists(_steps, max_size=16))
def test_whoever_does_what_in_whatever_order_the_guest_ends_with_the_names_that_there_are(
    shared: Callable[..., Shared], steps: list[Step], *, says_who: bool
) -> None:
    here = shared(says_who=says_who)
    for step in steps:
        if step == ("read",):
            here.listening.read()
        elif step == ("compare",):
            here.compare()
        else:
            here.do(*step)  # type: ignore[arg-type]  # as _steps has them
    here.settle()
    assert here.known == here.there()
    if all(step[0] != "others" for step in steps):
        assert here.lines == []


A, B, C = (0, b"a"), (0, b"b"), (1, b"c")
# In doubt a change is told: what has a question mark may be told, or only that attributes have changed.
ORDERS: Final[dict[str, tuple[list[Step], list[str]]]] = {
    "made, and written by others": ([("own", "make", A), ("others", "write", A)], ["M 0/a"]),
    "made, and removed by others": ([("own", "make", A), ("others", "remove", A)], ["D 0/a"]),
    "made, and renamed by others": ([("own", "make", A), ("others", "rename", A, C)], ["R 0/a 1/c"]),
    "made, and replaced by others": (
        [("own", "make", A), ("others", "make", C), ("others", "rename", C, A)],
        ["M 0/a"],
    ),
    "renamed, and written by others": ([("own", "rename", B, A), ("others", "write", A)], ["M 0/a"]),
    "renamed, and removed by others": ([("own", "rename", B, C), ("others", "remove", C)], ["D 1/c"]),
    "renamed, and renamed by others": ([("own", "rename", B, A), ("others", "rename", A, C)], ["R 0/a 1/c"]),
    "removed, and made by others": ([("own", "remove", B), ("others", "make", B)], ["C 0/b"]),
    "renamed, and its name taken by others": ([("own", "rename", B, C), ("others", "make", B)], ["C 0/b", "M 1/c?"]),
    "made by others, and removed": ([("others", "make", A), ("own", "remove", A)], []),
    "made by others, and renamed": ([("others", "make", A), ("own", "rename", A, C)], ["M 1/c"]),
    "removed by others, and made": ([("others", "remove", B), ("own", "make", B)], []),
    "written by others, and removed": ([("others", "write", B), ("own", "remove", B)], []),
    "written by others, and renamed": ([("others", "write", B), ("own", "rename", B, A)], ["M 0/a"]),
    "written by others, and renamed twice": (
        [("others", "write", B), ("own", "rename", B, A), ("own", "rename", A, C)],
        ["M 1/c"],
    ),
    "renamed by others, and renamed": ([("others", "rename", B, A), ("own", "rename", A, C)], ["D 0/b", "M 1/c?"]),
    "renamed by others, and removed": ([("others", "rename", B, A), ("own", "remove", A)], ["D 0/b"]),
}


@both_ways
@pytest.mark.parametrize("read_before", range(4))
@pytest.mark.parametrize(("steps", "lines"), ORDERS.values(), ids=ORDERS)
def test_what_others_do_before_and_after_the_mounts_own_change_is_told_as_what_it_came_to(
    shared: Callable[..., Shared], steps: list[Step], lines: list[str], read_before: int, *, says_who: bool
) -> None:
    """`read_before`: before which step the mount process has read last what the kernel says."""
    here = shared(says_who=says_who)
    here.do("own", "make", B)
    here.settle()
    for number, step in enumerate(steps):
        if number == read_before:
            here.listening.read()
        here.do(*step)  # type: ignore[arg-type]  # as ORDERS has them
    here.settle()
    said, doubtful = set(here.lines), {line[:-1] for line in lines if line[-1] == "?"}
    certain = {line for line in lines if line[-1] != "?"}
    doubtful |= {line.replace("M", "A", 1) for line in doubtful}
    assert certain <= said <= certain | doubtful
