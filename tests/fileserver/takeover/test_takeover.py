"""A supervisor that dies, and the one that takes over: guests notice nothing, and shares can still be taken away."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.processes import await_answer, await_end, kill

from uvmshare.errors import ComputeSystemGone, FileServerError, InvalidState, OutcomeUnknown, ShareExists, ShareNotFound
from uvmshare.fileserver.limits import Limits
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from tests.fileserver.takeover.harness import Place

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)


# What goes on


def test_mounts_outlive_their_supervisor_and_a_new_one_takes_them_over(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1", read_only=True)
    guest, other = place.guest("0"), place.guest("1")
    fid = guest.open("file", os.O_RDWR)
    before = place.mounts(server)
    dead = place.kill(server)
    guest.write(fid, 0, b"CONTENT")
    assert guest.read(fid, 0, 7) == b"CONTENT"
    with pytest.raises(OSError, match=r"."):
        place.guest("0")  # nobody listens now
    server = place.start()
    assert place.mounts(server) == before
    assert server.lost == ()
    assert guest.read(fid, 0, 7) == b"CONTENT"
    guest.write(fid, 0, b"content")
    assert other.listdir() == [b"file"]
    assert place.guest("0").read_file("file") == b"content"
    assert place.run(server.status()).pid != dead
    assert "took over 2 shares and 2 mounts" in place.log()


def test_connecting_starts_the_one_that_takes_over(place: Place) -> None:
    server = place.start(socket_mode=0o640, limits=Limits(mounts=2))
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    server = place.connect()
    assert server.addresses == (place.address,)
    assert os.stat(place.address.removeprefix("unix:")).st_mode & 0o777 == 0o640
    assert guest.listdir() == [b"file"]
    place.guest("0")
    with pytest.raises(OSError, match=r".") as refused:
        place.guest("0")  # mounts that were taken over count
    assert refused.value.errno == errno.EUSERS


def test_a_share_that_was_taken_over_is_removed_with_its_mounts(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    place.add(server, "1")
    guests = [place.guest("0") for _ in range(3)]
    witness = place.guest("1")
    place.kill(server)
    server = place.start()
    new = place.guest("0")
    pidfds = [os.pidfd_open(pid) for pid in place.mounts(server)["0"]]
    assert len(pidfds) == 4
    place.remove(server, "0")
    for pidfd in pidfds:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(0), "a mount lives when the removal has returned"
        os.close(pidfd)
    for guest in (*guests, new):
        assert guest.drain() == []
    with pytest.raises(OSError, match=r".") as refused:
        place.guest("0")
    assert refused.value.errno == errno.ENOENT
    assert witness.listdir() == [b"file"]
    with pytest.raises(ShareNotFound):
        place.remove(server, "0")


def test_a_mount_that_was_taken_over_ends_by_itself_when_its_guest_hangs_up(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    server = place.start()
    (pid,) = place.mounts(server)["0"]
    pidfd = os.pidfd_open(pid)
    guest.close()
    await_end(pidfd)
    os.close(pidfd)
    await_answer(lambda: place.mounts(server), {"0": []})
    assert os.listdir(place.run_dir / "mounts") == []


def test_an_orderly_end_ends_mounts_that_were_taken_over(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    place.run(place.start().aclose())
    assert guest.drain() == []
    with pytest.raises(FileServerError, match="start one"):
        place.connect()
    server = place.start()
    assert place.mounts(server) == {}


def test_every_generation_takes_over_from_the_one_before(place: Place) -> None:
    server = place.start()
    guests = []
    for number in range(4):
        place.add(server, str(number))
        guests.append(place.guest(str(number)))
        place.kill(server)
        server = place.start()
    assert [len(mounts) for mounts in place.mounts(server).values()] == [1, 1, 1, 1]
    with pytest.raises(ShareExists):
        place.add(server, "0")
    place.remove(server, "0")
    place.add(server, "0", read_only=True)
    place.kill(server)
    server = place.start()
    assert guests[0].drain() == []
    assert [guest.listdir() for guest in guests[1:]] == [[b"file"]] * 3
    with pytest.raises(OSError, match=r".") as refused:
        place.guest("0").write_file("file", b"")
    assert refused.value.errno == errno.EROFS


def test_a_port_that_was_free_when_it_was_taken_is_the_same_again(place: Place) -> None:
    # On an address of its own: a port of 127.0.0.1 might be given to any other program while nobody listens.
    server = place.start(listen=["tcp:127.5.6.4:0"])
    (address,) = server.addresses
    place.add(server, "0")
    guest = place.guest("0", address)
    place.kill(server)
    server = place.connect()
    assert server.addresses == (address,)
    assert guest.listdir() == [b"file"]
    assert place.guest("0", address).listdir() == [b"file"]


def test_the_new_supervisor_hears_why_a_mount_ended(place: Place) -> None:
    """Through the mount's own pipe. What one says that ends while there is no supervisor, nobody hears."""
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    place.kill(server)
    server = place.start()
    guest.send_raw(b"\x02\0\0\0\0\0\0")
    assert guest.drain() == []
    place.mounts(server)
    assert [line for line in place.log().splitlines() if "share 0" in line and "of 2 bytes" in line]


# The same object goes on


def test_a_file_server_brings_a_new_supervisor_up_by_itself(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    told: list[Any] = []
    server.on_takeover(told.append)
    server.on_exit(told.append)
    pid = place.kill_under(server)
    assert {share.name for share in place.run(server.status()).shares} == {"0"}
    (status,) = told
    assert status.pid != pid
    assert guest.listdir() == [b"file"]
    place.remove(server, "0")
    assert guest.drain() == []


def test_what_was_asked_of_the_one_that_died_is_unknown_and_settled_by_the_manager(place: Place) -> None:
    server = place.start()
    manager = Manager(server)
    kept = place.run(manager.add(AddOptions(place.shared), owner="a"))
    guest = place.guest(kept)
    pid = int(place.run(server.status()).pid)
    os.kill(pid, signal.SIGSTOP)  # it reads nothing any more

    async def add_and_kill() -> None:
        task = asyncio.ensure_future(manager.add(AddOptions(place.shared, read_only=True), owner="b"))
        for _ in range(3):  # turns of the loop: the request is on its way
            await asyncio.sleep(0)
        assert server._link._waiting
        os.kill(pid, signal.SIGKILL)
        await task

    with pytest.raises(OutcomeUnknown):
        place.run(add_and_kill())
    assert [share.name for share in manager.shares()] == [kept]  # undone before the error was raised
    assert set(place.mounts(server)) == {kept}
    assert guest.listdir() == [b"file"]
    again = place.run(manager.add(AddOptions(place.shared, read_only=True), owner="b"))
    assert place.guest(again).listdir() == [b"file"]
    place.run(manager.aclose())
    assert place.mounts(server) == {}


def test_two_that_see_the_end_find_one_new_supervisor(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    second = place.connect()
    place.kill_under(server, second)

    async def both() -> tuple[Any, Any]:
        return await asyncio.gather(server.status(), second.status())

    one, two = place.run(both())
    assert one.pid == two.pid
    assert guest.listdir() == [b"file"]
    place.run(server.aclose())
    assert place.run(second.wait_exit()) == "the file server has ended"


def test_a_supervisor_that_was_told_to_end_is_not_started_again(place: Place) -> None:
    server = place.start()
    place.add(server, "0")
    gone: list[ComputeSystemGone] = []
    server.on_exit(gone.append)
    os.kill(int(place.run(server.status()).pid), signal.SIGTERM)
    assert place.run(server.wait_exit()) == "the file server has ended"
    assert len(gone) == 1
    with pytest.raises(ComputeSystemGone):
        place.run(server.status())


def test_while_none_can_be_started_requests_are_refused_and_mounts_go_on(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = place.start()
    place.add(server, "0")
    guest = place.guest("0")
    pid = int(place.run(server.status()).pid)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    monkeypatch.setattr(server, "_modify_timeout", 0.05)
    kill(pid)
    with pytest.raises((OutcomeUnknown, InvalidState)):
        place.add(server, "1")

    def is_in_trouble() -> bool:
        place.run(asyncio.sleep(0))  # a turn of the loop
        return bool(server._trouble)

    await_answer(is_in_trouble, wanted=True)
    with pytest.raises(InvalidState, match="nonexistent"):  # nothing was asked
        place.add(server, "1")
    assert guest.listdir() == [b"file"]
    monkeypatch.undo()

    async def until_it_serves() -> None:
        served = asyncio.Event()
        server.on_takeover(lambda _: served.set())
        await served.wait()

    place.run(until_it_serves())
    assert set(place.mounts(server)) == {"0"}
