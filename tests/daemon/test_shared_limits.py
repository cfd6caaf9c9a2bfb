"""What a daemon keeps for all its users: nobody pushes out another's, and nobody takes all there is."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import struct
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from tests.processes import DEADLINE
from tests.root import needs_root

from uvmshare.daemon import identity
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.events import EventLog
from uvmshare.daemon.identity import Identity, Threads
from uvmshare.daemon.logs import Fairness
from uvmshare.daemon.operations import Operations
from uvmshare.daemon.quotas import USER_BYTES, Quotas, weight
from uvmshare.errors import HostPathHangs, LimitReached, NotThere
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client

ROOT, ALICE, BOB = Identity(0, 0), Identity(12345, 12345), Identity(65534, 65534)


def clock() -> float:
    return 0.0


async def nothing() -> None:
    pass


async def told(events: EventLog, who: Identity, after: str | None = "me-0") -> list[str | None]:
    """What somebody is told who asks once: the owners, and None where some are missing."""
    return [None if each is None else each.owner async for each in events.follow(who, after, wait=False)]


def test_one_user_pushes_out_no_events_of_another() -> None:
    events = EventLog("me", clock, kept=3)
    events.emit(EventKind.SHARE_HELD, (ALICE.uid, "vm"), owner="hers")
    for number in range(10):
        events.emit(EventKind.SHARE_HELD, (BOB.uid, "vm"), owner=f"his-{number}")
    his: list[str | None] = ["his-7", "his-8", "his-9"]
    assert asyncio.run(told(events, ALICE)) == ["hers"]
    assert asyncio.run(told(events, BOB)) == [None, *his]
    assert asyncio.run(told(events, ROOT)) == [None, "hers", *his]
    assert asyncio.run(told(events, BOB, "me-7")) == [None, *his]
    assert asyncio.run(told(events, BOB, "me-8")) == his, "of those behind it, all are kept"
    assert asyncio.run(told(events, BOB, "me-11")) == []


def test_one_who_reads_slowly_misses_only_what_is_not_kept_any_more() -> None:
    async def test() -> None:
        events = EventLog("me", clock, kept=3)
        for number in range(3):
            events.emit(EventKind.SHARE_HELD, (BOB.uid, "vm"), owner=f"his-{number}")
        following = events.follow(BOB, "me-0")

        async def next_owner() -> str | None:
            happening = await anext(following)
            return None if happening is None else happening.owner

        assert await next_owner() == "his-0"
        for number in range(3, 7):
            events.emit(EventKind.SHARE_HELD, (BOB.uid, "vm"), owner=f"his-{number}")
        assert [await next_owner() for _ in range(4)] == [None, "his-4", "his-5", "his-6"]
        events.emit(EventKind.SHARE_HELD, (ALICE.uid, "vm"), owner="hers")
        later = asyncio.create_task(next_owner())
        events.emit(EventKind.SHARE_HELD, (BOB.uid, "vm"), owner="his-7")
        assert await later == "his-7"
        events.close()
        with pytest.raises(StopAsyncIteration):
            await anext(following)

    asyncio.run(test())


def test_what_is_about_anothers_holding_is_told_to_him_and_root_alone() -> None:
    events = EventLog("me", clock)
    events.emit(EventKind.SHARE_HELD, (ALICE.uid, "vm"), owner="anyone")
    events.emit(EventKind.SHARE_HELD, (ALICE.uid, "vm"), owner="roots", uid=ROOT.uid)
    events.emit(EventKind.SHARE_HELD, (ALICE.uid, "vm"), owner="hers", uid=ALICE.uid)
    assert asyncio.run(told(events, ALICE)) == ["anyone", "hers"]
    assert asyncio.run(told(events, ROOT)) == ["anyone", "roots", "hers"]
    assert asyncio.run(told(events, BOB)) == []


def test_one_user_pushes_out_no_operations_of_another() -> None:
    async def test() -> None:
        operations = Operations("me", clock, kept=2)
        hers = operations.start("add VM", "vm", ALICE.uid, nothing())
        his = [operations.start("add VM", "vm", BOB.uid, nothing()) for _ in range(5)]
        await operations.settle()
        assert operations.find(hers.id, ALICE.uid) is hers
        assert operations.list(BOB.uid) == his[-2:]
        assert operations.list(ROOT.uid) == [hers, *his[-2:]]
        assert operations.find(hers.id, ROOT.uid) is hers
        for id_ in (his[0].id, hers.id):
            with pytest.raises(NotThere, match="the last 2 of each user"):
                operations.find(id_, BOB.uid)

    asyncio.run(test())


def test_events_and_operations_are_kept_by_their_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def long() -> str:
        return "a" * 100

    async def test() -> None:
        monkeypatch.setattr("uvmshare.daemon.operations._KEPT_BYTES", 350)
        operations = Operations("me", clock)
        begun = [operations.start("add VM", "vm", ALICE.uid, long(), 17) for _ in range(5)]
        assert operations.under_way(ALICE.uid) == (17,) * 5
        await operations.settle()
        await asyncio.sleep(0)
        assert operations.list(ALICE.uid) == begun[-3:]
        assert operations.under_way(ALICE.uid) == ()

    asyncio.run(test())
    monkeypatch.setattr("uvmshare.daemon.events._KEPT_CHARACTERS", 350)
    events = EventLog("me", clock)
    for number in range(5):
        events.emit(EventKind.SHARE_HELD, (BOB.uid, "vm"), owner=f"his-{number}", reason="a" * 100)
    assert asyncio.run(told(events, BOB)) == [None, "his-2", "his-3", "his-4"]


def test_one_user_does_not_fill_the_log() -> None:
    now = [0.0]
    fairness = Fairness(lambda: now[0], most=2)

    def written(**line: object) -> list[object]:
        with contextlib.suppress(structlog.DropEvent):
            return [fairness(None, "", {"event": "x", **line}).get("dropped", 0)]
        return []

    assert [written(user=BOB.uid) for _ in range(2)] == [[0], [0]]
    assert [written(vm=f"{BOB.uid}:vm") for _ in range(3)] == [[], [], []]
    assert [written(vm=f"{ALICE.uid}:vm"), written(), written(vm="0:vm"), written(user=0)] == [[0]] * 4
    now[0] += 60
    assert [written(user=BOB.uid) for _ in range(3)] == [[3], [0], []]


def test_a_user_holds_only_so_many_bytes_of_paths_and_names() -> None:
    quotas = Quotas(vms=1, shares=1000, unlimited={0})
    size = weight("/p", names=["n" * 255] * 1024)
    assert 1024 * 255 < size < USER_BYTES
    there = [size] * (USER_BYTES // size - 1)
    with quotas.adding(ALICE, lambda _: there, size):
        with pytest.raises(LimitReached, match=rf"uid {ALICE.uid} would hold \d+ bytes.*release"):
            quotas.adding(ALICE, lambda _: there, size).__enter__()
        with quotas.adding(BOB, lambda _: [], size), quotas.adding(ROOT, lambda _: there, size):
            pass
    with quotas.adding(ALICE, lambda _: there, size):
        pass
    quotas.require_room_for_operation(ALICE, [1] * 10)
    for many in ([USER_BYTES], [0] * 1000):
        with pytest.raises(LimitReached, match="operation"):
            quotas.require_room_for_operation(ALICE, many)


# Threads that look at users' files. A file system that does not answer is an event that nobody sets.


def me(uid: int) -> Identity:
    """A user with this process's own rights, so that the test needs no others: `uid` only counts."""
    return Identity(uid, 0)


@pytest.fixture
def no_rights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_take_on", lambda _: None)


@pytest.mark.usefixtures("no_rights")
def test_a_file_system_that_hangs_holds_up_its_user_alone_and_only_for_a_time() -> None:
    answers = threading.Event()

    async def test() -> None:
        threads = Threads(seconds=0, most=2)
        for path in ("/a", "/b", "/c"):  # the third finds no thread
            with pytest.raises(HostPathHangs, match=rf"^{path}: no answer within 0 s.*uid 12345.*umount"):
                await threads.acting_as(me(ALICE.uid), path, answers.wait)
        threads.seconds = DEADLINE
        assert await threads.acting_as(me(BOB.uid), "/his", lambda: "his") == "his"
        waiting = asyncio.create_task(threads.acting_as(me(ALICE.uid), "/d", lambda: "hers"))
        answers.set()
        assert await waiting == "hers", "a thread that ends is there for the next"

    asyncio.run(test())


@pytest.mark.usefixtures("no_rights")
def test_whoever_stops_waiting_leaves_the_thread_to_end_by_itself() -> None:
    answers, begun = threading.Event(), asyncio.Event()

    async def test() -> None:
        threads = Threads(seconds=DEADLINE, most=1)
        loop = asyncio.get_running_loop()

        def hang() -> None:
            loop.call_soon_threadsafe(begun.set)
            answers.wait()

        first = asyncio.create_task(threads.acting_as(me(ALICE.uid), "/a", hang))
        await begun.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.create_task(threads.acting_as(me(ALICE.uid), "/b", lambda: "hers"))
        answers.set()
        assert await second == "hers"

    asyncio.run(test())


@pytest.mark.usefixtures("no_rights")
def test_an_answer_that_comes_when_the_daemon_has_ended_troubles_nobody() -> None:
    answers, before = threading.Event(), set(threading.enumerate())

    async def test() -> None:
        with pytest.raises(HostPathHangs):
            await Threads(seconds=0).acting_as(me(ALICE.uid), "/a", answers.wait)

    asyncio.run(test())
    (late,) = set(threading.enumerate()) - before
    answers.set()
    late.join(DEADLINE)
    assert not late.is_alive()


def test_what_the_work_itself_raises_is_told_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> None:
        raise TimeoutError(errno.ETIMEDOUT, "of its own")

    async def test() -> None:
        threads = Threads(most=1)
        with pytest.raises(TimeoutError, match="of its own"):
            await threads.acting_as(me(ALICE.uid), "/a", slow)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", _refused)
            with pytest.raises(RuntimeError):
                await threads.acting_as(me(ALICE.uid), "/a", slow)
        assert await threads.acting_as(me(ALICE.uid), "/a", lambda: 1) == 1, "neither kept a thread's place"

    monkeypatch.setattr(identity, "_take_on", lambda _: None)
    asyncio.run(test())


def _refused(_: threading.Thread) -> None:
    raise RuntimeError


def test_a_directory_that_hangs_is_named_and_the_daemon_answers_others(
    daemon: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    hung = daemon.home.directory("hung")

    def look(path: str, **more: Any) -> AddOptions:
        if path == hung:
            answers.wait()
        return AddOptions(path, **more)

    monkeypatch.setattr(identity, "AddOptions", look)
    daemon.add_vm()
    assert daemon.daemon is not None
    threads = daemon.daemon.service.threads
    threads.seconds = 0
    with pytest.raises(HostPathHangs, match=rf"^{hung}: no answer.*uid \d+.*umount"):
        client.shares.add("vm", hung)
    threads.seconds = DEADLINE
    assert client.shares.add("vm", daemon.home.directory("well")).state == "added"
    with daemon.home.http() as http:
        threads.seconds = 0
        answer = http.post("/v1/vms/vm/shares", json={"path": hung})
    assert (answer.status_code, answer.json()["error"]) == (504, "HostPathHangs")
    assert "unmount" in answer.json()["remedy"]
    answers.set()


# A real file system that does not answer: FUSE's server is this test (Linux' include/uapi/linux/fuse.h).

_FUSE_INIT, _FUSE_GETATTR = 26, 3
_MNT_DETACH = 2


class SilentFileSystem:
    """A FUSE file system whose server says yes to being mounted, and then nothing any more."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._server = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._server},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
        if identity._libc.mount(b"silent", path.encode(), b"fuse.silent", 0, options) < 0:
            raise OSError(ctypes.get_errno(), "mount")
        kind, unique = self.next()
        assert kind == _FUSE_INIT
        answer = struct.pack("=IIIIHHI40x", 7, 31, 0, 0, 12, 12, 1 << 16)
        os.write(self._server, struct.pack("=IiQ", 16 + len(answer), 0, unique) + answer)

    def next(self) -> tuple[int, int]:
        """Take the next request, as a server does; from then on the kernel waits for the answer."""
        _, kind, unique = struct.unpack_from("=IIQ", os.read(self._server, 1 << 17))
        return kind, unique

    def end(self) -> None:
        """End the server, as its crash does: who waits gets an error."""
        os.close(self._server)


@contextmanager
def silent(path: str) -> Iterator[SilentFileSystem]:
    found = SilentFileSystem(path)
    try:
        yield found
    finally:
        found.end()
        identity._libc.umount2(path.encode(), _MNT_DETACH)


@pytest.mark.long
@needs_root
def test_a_fuse_server_that_does_not_answer_holds_up_nobody_else(daemon: Running, client: Client) -> None:
    path = daemon.home.directory("silent")
    daemon.add_vm()
    assert daemon.daemon is not None
    threads, before = daemon.daemon.service.threads, set(threading.enumerate())
    with silent(path) as file_system:
        threads.seconds = 0
        with pytest.raises(HostPathHangs, match=rf"^{path}: no answer"):
            client.shares.add("vm", path)
        assert file_system.next()[0] == _FUSE_GETATTR
        threads.seconds = DEADLINE
        assert client.shares.add("vm", daemon.home.directory("well")).state == "added"
        stuck = [thread for thread in set(threading.enumerate()) - before if thread.name == "acting-as"]
        assert stuck
    for thread in stuck:
        thread.join(DEADLINE)
        assert not thread.is_alive(), "the end of its server frees it"
