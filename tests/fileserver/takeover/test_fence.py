"""A file server that serves until it is told: nothing before, nothing past it, whoever is dead or stopped by then."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import await_answer, wait_for_end

from uvmshare.errors import ConnectionClosed, FileServerError, InvalidState, RemoteProtocolError

if TYPE_CHECKING:
    from tests.fileserver.takeover.harness import Place

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

from uvmshare.fileserver.fence import Fence
from uvmshare.fileserver.mount.foreign import Errand
from uvmshare.fileserver.mount.handlers import table
from uvmshare.ninep.messages import Twrite

LONG_PAST = 0.001


def far() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) + 100_000


def fence_of(place: Place) -> Fence:
    return Fence(str(place.run_dir / "fence"))


def test_nothing_is_served_before_it_is_told_until_when_and_nothing_past_it(place: Place) -> None:
    server = place.start(fenced=True)
    place.add(server, "0")
    with pytest.raises(OSError, match=r".") as refused:
        place.guest("0")
    assert refused.value.errno == errno.EIO
    place.run(server.serve_until(far()))
    guest = place.guest("0")
    assert guest.read_file("file") == b"content"
    (pid,) = place.mounts(server)["0"]
    place.run(server.serve_until(LONG_PAST))
    wait_for_end(pid)
    with pytest.raises(ConnectionClosed):
        guest.read_file("file")
    place.run(server.serve_until(far()))
    assert place.guest("0").read_file("file") == b"content", "its share is still there"


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL])
def test_a_mount_carries_out_nothing_past_its_time_when_its_supervisor_is_dead_or_stopped(
    place: Place, how: signal.Signals
) -> None:
    server = place.start(fenced=True)
    place.add(server, "0")
    place.run(server.serve_until(far()))
    writer, idle = place.guest("0"), place.guest("0")
    fid = writer.open("file", os.O_RDWR)
    supervisor = int(place.run(server.status()).pid)
    place.let_go(server)
    os.kill(supervisor, how)
    writer.write(fid, 0, b"CONTENT")
    fence_of(place).move(LONG_PAST)
    with pytest.raises(ConnectionClosed):
        writer.write(fid, 0, b"too late")
    with pytest.raises(ConnectionClosed):
        idle.listdir()
    assert (place.shared / "file").read_bytes() == b"CONTENT"
    if how == signal.SIGSTOP:
        os.kill(supervisor, signal.SIGCONT)
        place.run(place.connect().status())


def test_a_mount_that_was_stopped_looks_again_before_it_serves(place: Place) -> None:
    server = place.start(fenced=True)
    place.add(server, "0")
    place.run(server.serve_until(far()))
    guest, idle = place.guest("0"), place.guest("0")
    fid = guest.open("file", os.O_RDWR)
    mount, asked_nothing = place.mounts(server)["0"]
    os.kill(int(place.run(server.status()).pid), signal.SIGSTOP)
    for pid in (mount, asked_nothing):
        os.kill(pid, signal.SIGSTOP)
    guest.send(Twrite(fid, 0, b"too late"))
    fence_of(place).move(LONG_PAST)
    for pid in (mount, asked_nothing):
        os.kill(pid, signal.SIGCONT)
        wait_for_end(pid)
    with pytest.raises(ConnectionClosed):
        idle.recv()
    with pytest.raises(ConnectionClosed):
        guest.write(fid, 0, b"too late")
    assert (place.shared / "file").read_bytes() == b"content"
    os.kill(server._link.greeting.pid, signal.SIGCONT)


def test_mounts_of_a_supervisor_that_died_go_on_until_their_time_and_the_next_one_moves_it(place: Place) -> None:
    server = place.start(fenced=True)
    place.add(server, "0")
    place.run(server.serve_until(far()))
    guest = place.guest("0")
    place.kill(server)
    server = place.connect()
    assert guest.read_file("file") == b"content"
    place.run(server.serve_until(far()))
    assert place.guest("0").read_file("file") == b"content"
    (first, second) = place.mounts(server)["0"]
    place.run(server.serve_until(LONG_PAST))
    wait_for_end(first)
    wait_for_end(second)
    await_answer(lambda: place.mounts(server)["0"], [])


def test_a_server_without_a_fence_has_none_to_move_and_its_mounts_are_not_taken_over_as_fenced(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    with pytest.raises(InvalidState, match="no fence"):
        place.run(server.serve_until(far()))
    place.guest("0")
    place.kill(server)
    with pytest.raises(FileServerError, match="look at no fence"):
        place.start(fenced=True)
    place.run(place.connect().aclose())


def test_every_message_is_looked_at_before_it_is_served() -> None:
    carried_out: list[int] = []

    def serve(session: Any, tag: int, fid: int, start: int, stop: int) -> bytes:
        del session, tag, fid, stop
        carried_out.append(start)
        return b""

    fence = Fence()
    looked_at = fence.looked_at([serve if each is not None else None for each in table.served(read_only=False)])
    assert sum(each is not None for each in looked_at) > 20
    for each in looked_at:
        if each is not None:
            with pytest.raises(RemoteProtocolError, match="fence"):
                each(None, 1, 2, 3, 4)
    assert not carried_out
    fence.move(far())
    assert all(each(None, 1, 2, 3, 4) == b"" for each in looked_at if each is not None)


def test_what_waited_for_a_thread_until_the_time_was_over_is_not_carried_out() -> None:
    carried_out: list[str] = []

    def work() -> bytes:
        carried_out.append("aside")
        return b""

    def serve(*_: Any) -> bytes:
        carried_out.append("errand")
        return b""

    fence = Fence()
    with pytest.raises(OSError, match="fence") as refused:
        fence.looked_at_beside(work)()
    assert refused.value.errno == errno.EIO
    errors: list[Exception] = []
    errand = Errand({"fence": fence}, SimpleNamespace, serve, 1, b"12345678")  # type: ignore[arg-type]  # no message is read
    errand.error = lambda _, error: errors.append(error) or b"Rlerror"  # type: ignore[method-assign,func-returns-value,assignment]  # one line
    assert errand.answer() == b"Rlerror"
    assert errors[0].errno == errno.EIO  # type: ignore[attr-defined]  # an OSError
    assert not carried_out
    fence.move(far())
    assert errand.answer() == b""
    assert carried_out == ["errand"]
