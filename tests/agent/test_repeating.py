"""What the agent reads in /proc of the watches of programs, when it does, and how a directory is made.

The repeating itself is in tests/guest/test_events.py.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

if sys.platform == "win32":
    pytest.skip("it runs in Linux guests", allow_module_level=True)

from uvmshare.fileserver import syscalls
from uvmshare.guest import watches as module
from uvmshare.guest.repeating import Repeater, _Words
from uvmshare.guest.watches import Watches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Queue:
    """A program's queue of inotify."""

    def __init__(self, *paths: Path) -> None:
        self.descriptor = syscalls.inotify_init()
        self.watch(*paths)

    def watch(self, *paths: Path) -> None:
        for path in paths:
            syscalls.inotify_add_watch(self.descriptor, str(path), syscalls.Notify.CREATE)

    def close(self) -> None:
        os.close(self.descriptor)


def test_what_a_program_watches_is_found_by_its_inode_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("watched", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "f").touch()
    inodes = {name: os.stat(tmp_path / name).st_ino for name in ("watched", "other", "f")}
    watches = Watches(os.stat(tmp_path).st_dev)
    queue = Queue(tmp_path / "watched", tmp_path / "f")
    try:
        assert not watches.known()
        assert watches.all() & set(inodes.values()) == {inodes["watched"], inodes["f"]}
        assert watches.known() & set(inodes.values()) == {inodes["watched"], inodes["f"]}
        assert not Watches(os.makedev(0, 0)).all()
    finally:
        queue.close()
    assert not watches.known() & set(inodes.values()), "what is known is looked at again"
    assert not watches.all() & set(inodes.values())


def test_to_look_at_all_processes_takes_no_more_than_a_fifth_of_a_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what is watched meanwhile is found: the look comes after the wait."""
    clock, slept, queues = {"monotonic": 100.0, "process": 5.0}, list[float](), list[Queue]()

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 6))
        clock["monotonic"] += seconds
        queues.append(Queue(tmp_path))

    def look(plain: Callable[[], set[int]]) -> set[int]:
        for each in clock:
            clock[each] += 0.02
        return plain()

    fake = SimpleNamespace(monotonic=lambda: clock["monotonic"], process_time=lambda: clock["process"], sleep=sleep)
    monkeypatch.setattr(module, "time", fake)
    found = os.stat(tmp_path)
    watches = Watches(found.st_dev)
    plain = watches._look_at_all
    monkeypatch.setattr(watches, "_look_at_all", lambda: look(plain))
    assert found.st_ino not in watches.all()
    clock["monotonic"] += 0.01
    assert found.st_ino in watches.all()
    assert slept == [0.07]
    clock["monotonic"] += 10
    assert found.st_ino in watches.all()
    assert slept == [0.07], "after a quiet time it is looked at once"
    for each in queues:
        each.close()


class World:
    """Directories that are held, and queues that may watch them; the repeater's own operations are only noted."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.held = {number: os.open(top / str(number), os.O_PATH) for number in range(3)}
        self.repeater = Repeater.__new__(Repeater)
        self.repeater.repeated = self.repeater.failed = 0
        self.repeater._as_reserved = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        self.repeater._repeat = self._note  # type: ignore[method-assign]
        watches = self.repeater._watches = Watches(os.stat(top).st_dev)
        self._all = watches.all
        watches.all = self._count  # type: ignore[method-assign]
        self.scans = 0
        self.done: list[str] = []
        self.news: list[int] = []

    def _note(self, words: _Words) -> None:
        self.done.append(f"{words.what}{words.kind} {words.number}/{words.name}")

    def _count(self) -> set[int]:
        self.scans += 1
        return self._all()

    def _place(self, number: int) -> tuple[int, int] | None:
        held = self.held.get(number)
        return None if held is None else (held, os.fstat(held).st_ino)

    def _is_news(self, number: int, _: str, watched: set[int]) -> bool:
        place = self._place(number)
        assert place is not None
        assert place[1] in watched
        self.news.append(number)
        return True

    def carry_out(self, *lines: str) -> tuple[list[str], int]:
        """Return what was repeated, and how often all processes were looked at for it."""
        self.done, self.scans = [], 0
        told = [line.replace("/a", f" {b'a'.hex()}").encode() for line in lines]
        self.repeater.carry_out(told, self._place, self._is_news, lambda *_: None)
        return self.done, self.scans

    def close(self) -> None:
        for each in self.held.values():
            os.close(each)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for number in range(3):
        (tmp_path / str(number)).mkdir()
    made = World(tmp_path)
    yield made
    made.close()


def test_processes_are_looked_at_only_where_no_queue_that_is_known_watches(world: World) -> None:
    queue = Queue(world.top / "0")
    assert world.carry_out("Mf 0/a") == (["Mf 0/a"], 1)
    assert world.carry_out("Mf 0/a", "Df 0/a") == (["Mf 0/a", "Df 0/a"], 0)
    assert world.carry_out("Mf 0/a", "Cf 1/a") == (["Mf 0/a"], 1), "a program may have come to watch there"
    queue.close()
    assert world.carry_out("Mf 0/a") == ([], 1), "nobody watches any more"


def test_a_watch_that_is_made_just_before_a_change_is_seen_in_whatever_queue(world: World) -> None:
    first = Queue(world.top / "0")
    assert world.carry_out("Mf 0/a") == (["Mf 0/a"], 1)
    first.watch(world.top / "1")
    assert world.carry_out("Cf 1/a") == (["Cf 1/a"], 0)
    second = Queue(world.top / "2")
    assert world.carry_out("Cf 2/a") == (["Cf 2/a"], 1)
    first.close()
    assert world.carry_out("Cf 2/a") == (["Cf 2/a"], 0)
    assert world.carry_out("Cf 0/a") == ([], 1)
    third = Queue(world.top / "0")  # by the descriptor of one that was known
    assert world.carry_out("Cf 0/a") == (["Cf 0/a"], 1)
    for each in (second, third):
        each.close()


def test_before_a_directory_is_made_once_more_all_that_is_watched_is_known(world: World) -> None:
    first, second = Queue(world.top / "0"), None
    assert world.carry_out("Mf 0/a")[1] == 1
    second = Queue(world.top / "1")
    assert world.carry_out("Cd 0/a") == (["Cd 0/a"], 1)
    assert world.news == [0]
    for each in (first, second):
        each.close()


def test_a_directory_that_is_let_go_meanwhile_has_nothing_repeated_in_it(world: World) -> None:
    queue = Queue(world.top / "0", world.top / "1")
    assert world.carry_out("Mf 1/a")[1] == 1

    def let_go(*_: object) -> bool:
        os.close(world.held.pop(1))
        return True

    world._is_news = let_go  # type: ignore[method-assign,assignment]
    assert world.carry_out("Cd 0/a", "Mf 1/a") == (["Cd 0/a"], 1)
    queue.close()


def test_a_directory_that_is_made_is_opened_and_the_process_is_as_urgent_as_before(tmp_path: Path) -> None:
    at, before = os.open(tmp_path, os.O_PATH), os.sched_getscheduler(0)
    repeater = Repeater.__new__(Repeater)  # the making alone needs no mount
    opened = repeater._make_directory(_Words("Cd", at, "made", at, ""))
    assert opened is not None
    assert os.path.samestat(os.fstat(opened), os.stat(tmp_path / "made"))
    with pytest.raises(FileExistsError):
        repeater._make_directory(_Words("Cd", at, "made", at, ""))
    assert os.sched_getscheduler(0) == before
    for each in (opened, at):
        os.close(each)
