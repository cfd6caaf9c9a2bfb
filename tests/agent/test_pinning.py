"""Which directories are pinned after which changes, with a file system of the host in the mount's place.

What lives here: the child's own reckoning. What must not: what a guest's kernel makes of a pin
(tests/guest/test_pins.py). The questions to the file server are answered by what is there; a test says what it tells
of changes, and makes them.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

if sys.platform == "win32":
    pytest.skip("it runs in Linux guests", allow_module_level=True)

from uvmshare.guest import pinning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[Path], object]


class Over(Exception):
    """There is no more to be told."""


class Server:
    """Answers what the child asks."""

    def __init__(self, top: Path, changes: list[tuple[str, Change]], most: int) -> None:
        self.top = top
        self.changes = changes
        self.most = most
        self.moved: dict[int, str] = {}
        """By inode, where the host has a directory that the guest still has elsewhere."""
        self.numbers: dict[int, int] = {}

    def path(self, descriptor: int) -> str:
        """Return where the guest has a directory."""
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        return "" if path == str(self.top) else os.path.relpath(path, self.top)

    def answer(self, path: str, name: str) -> bytes:
        descriptor = int(os.path.basename(path))
        if name == pinning._BEGIN:
            self.numbers.clear()
            return b"1 %d" % self.most
        if name == pinning._CHANGES:
            if not self.changes:
                raise Over
            told, change = self.changes.pop(0)
            number = self.numbers[os.stat(self.top / told).st_ino] if told != "lost" else 0
            change(self.top)
            return b"%d\n" % number if number else b"lost\n"
        found = os.fstat(descriptor)
        if not found.st_nlink:
            raise OSError(errno.ENOENT, "removed")
        number = self.numbers.setdefault(found.st_ino, len(self.numbers) + 1)
        return b"%d %s" % (number, os.fsencode(self.moved.get(found.st_ino, self.path(descriptor))))


Pinned = list[str]


@pytest.fixture
def top(tmp_path: Path) -> Path:
    for each in ("a/b/c", "src", "node_modules/x/y"):
        (tmp_path / each).mkdir(parents=True)
    return tmp_path.resolve()


@pytest.fixture
def run(top: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Pinned, list[dict[str, object]]]]:
    """Run the child until there is nothing more to tell; return what is pinned then, and what it told of it."""

    def until_over(
        *changes: tuple[str, Change], most: int = 100, moved: Callable[[Server], object] = lambda _: None
    ) -> tuple[Pinned, list[dict[str, object]]]:
        server = Server(top, list(changes), most)
        moved(server)
        monkeypatch.setattr(os, "getxattr", server.answer)
        monkeypatch.setattr(pinning, "_path", server.path)
        told: list[dict[str, object]] = []
        pins = pinning._Pins(os.open(top, os.O_PATH), 1000, told.append)
        with pytest.raises(Over):
            pins.run()
        for pin in pins._by_path.values():
            assert server.path(pin.descriptor) == pin.path
            assert pins._by_number[pin.number] is pin
        assert len(pins._by_number) == len(pins._by_path)
        found = sorted(pins._by_path)
        for pin in pins._by_path.values():
            os.close(pin.descriptor)
        return found, told

    return until_over


def there(top: Path) -> Pinned:
    """Return the directories that there are, but for what is below those that are left out."""
    found = [path.relative_to(top) for path in top.rglob("*") if path.is_dir()]
    return ["", *sorted(str(path) for path in found if pinning.SHALLOW.isdisjoint(path.parts[:-1]))]


def replace(top: Path) -> None:
    (top / "a").rename(top / "z")
    (top / "a" / "new").mkdir(parents=True)


def change_much(top: Path) -> None:
    replace(top)
    shutil.rmtree(top / "src")
    (top / "z" / "b" / "made").mkdir()


CHANGES: dict[str, list[tuple[str, Change]]] = {
    "nothing": [],
    "make": [("src", lambda top: (top / "src" / "made" / "below").mkdir(parents=True))],
    "remove": [("a", lambda top: shutil.rmtree(top / "a" / "b"))],
    "rename": [("", lambda top: (top / "a").rename(top / "z"))],
    "replace": [("", replace)],
    "move, first told at the new place": [
        ("src", lambda top: (top / "a" / "b").rename(top / "src" / "b")),
        ("a", lambda _: None),
    ],
    "move, first told at the old place": [
        ("a", lambda top: (top / "a" / "b").rename(top / "src" / "b")),
        ("src", lambda _: None),
    ],
    "rename twice": [
        ("", lambda top: (top / "a").rename(top / "z")),
        ("z/b", lambda top: (top / "z" / "b" / "made").mkdir()),
    ],
    "rename over": [("", lambda top: (top / "a" / "b" / "c").rename(top / "src")), ("a/b", lambda _: None)],
    "lost": [("lost", change_much)],
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_after_each_change_just_the_directories_that_are_there_are_pinned(
    top: Path, run: Callable[..., tuple[Pinned, object]], changes: list[tuple[str, Change]]
) -> None:
    found, _ = run(*changes)
    assert found == there(top)


def test_what_the_guest_has_elsewhere_than_the_host_is_not_pinned_nor_what_is_below_it(
    top: Path, run: Callable[..., tuple[Pinned, object]]
) -> None:
    found, _ = run(moved=lambda server: server.moved.update({(top / "a").stat().st_ino: "z"}))
    assert found == [each for each in there(top) if not each.startswith("a")]


def test_what_the_host_has_renamed_is_let_go_with_what_is_below_it(
    top: Path, run: Callable[..., tuple[Pinned, object]]
) -> None:
    servers: list[Server] = []
    inode = (top / "a").stat().st_ino
    change: Change = lambda _: servers[0].moved.update({inode: "z"})  # noqa: E731  it is one of a table's
    found, told = run(("", change), moved=servers.append)
    assert found == [each for each in there(top) if not each.startswith("a")]
    assert told == [{"directories": len(there(top)), "full": False}, {"directories": len(found), "full": False}]


def test_no_more_are_pinned_than_the_file_server_takes_and_those_above_come_first(
    top: Path, run: Callable[..., tuple[Pinned, object]]
) -> None:
    found, told = run(most=4)
    assert found == ["", "a", "node_modules", "src"]
    assert told == [{"directories": 4, "full": True}]


def test_room_that_comes_free_is_used(top: Path, run: Callable[..., tuple[Pinned, object]]) -> None:
    found, told = run(("", lambda top: shutil.rmtree(top / "node_modules")), ("a", lambda _: None), most=4)
    assert found == ["", "a", "a/b", "src"]
    assert told == [
        {"directories": 4, "full": True},
        {"directories": 3, "full": False},
        {"directories": 4, "full": True},
    ]


def test_a_directory_that_was_pinned_before_its_making_was_repeated_is_let_go_unless_a_program_watches_it(
    top: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(top, [], 100)
    monkeypatch.setattr(os, "getxattr", server.answer)
    monkeypatch.setattr(pinning, "_path", server.path)
    pins = pinning._Pins(os.open(top, os.O_PATH), 1000, lambda _: None)
    with pytest.raises(Over):
        pins.run()
    number = pins._by_path[""].number
    assert not pins._is_news(number, "a", {os.stat(top / "a").st_ino})
    assert sorted(pins._by_path) == there(top)
    assert pins._is_news(number, "a", {os.stat(top / "src").st_ino})
    assert sorted(pins._by_path) == [path for path in there(top) if path.partition("/")[0] != "a"]
    assert pins._is_news(number, "not pinned", set())
    for pin in pins._by_path.values():
        os.close(pin.descriptor)
