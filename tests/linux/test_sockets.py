"""A path that is taken for a socket: what a dead one left goes, and nothing else."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from uvmshare.linux.sockets import make_room

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def opened(path: Path) -> Iterator[int]:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield directory
    finally:
        os.close(directory)


def test_nothing_there_is_room_and_a_dead_socket_makes_room(tmp_path: Path) -> None:
    with opened(tmp_path) as directory:
        make_room(directory, "socket", os.geteuid())
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(tmp_path / "socket"))
        make_room(directory, "socket", os.geteuid())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["file", "directory", "link to a dead socket", "listening", "another user's"])
def test_what_is_no_dead_socket_of_the_user_stays(tmp_path: Path, what: str) -> None:
    path, dead = tmp_path / "socket", tmp_path / "dead"
    with socket.socket(socket.AF_UNIX) as bound, opened(tmp_path) as directory:
        bound.bind(str(dead if what == "link to a dead socket" else path if what != "file" else dead))
        uid, words = os.geteuid(), "no socket"
        if what == "file":
            path.write_text("precious")
        elif what == "directory":
            path.unlink()
            path.mkdir()
        elif what == "link to a dead socket":
            path.symlink_to(dead)
        elif what == "listening":
            bound.listen(1)
            words = f"in use, by process {os.getpid()}"
        else:
            uid, words = uid + 1, f"dead socket of uid {uid}"
        before = os.lstat(path)
        with pytest.raises(OSError, match=f"{words}.*, or choose another path"):
            make_room(directory, "socket", uid)
    assert os.path.samestat(os.lstat(path), before)


def test_a_socket_whose_queue_is_full_is_not_dead(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with (
        socket.socket(socket.AF_UNIX) as bound,
        socket.socket(socket.AF_UNIX) as waiting,
        opened(tmp_path) as directory,
    ):
        bound.bind(path)
        bound.listen(0)
        waiting.connect(path)
        with pytest.raises(OSError, match="in use: end that, or choose another path"):
            make_room(directory, "socket", os.geteuid())
        assert os.path.lexists(path)
