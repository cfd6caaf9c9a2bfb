"""A user whose own file server, agent or name server lies: what the daemon has for all stays for all."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import Home
from tests.daemon.test_users import ALICE, BOB, User, as_user
from tests.processes import DEADLINE, await_answer
from tests.root import needs_root

from uvmshare.address import Address
from uvmshare.daemon import connections, identity
from uvmshare.daemon.dialler import UserDialler
from uvmshare.daemon.identity import Identity, Threads
from uvmshare.errors import InvalidOptions, LimitReached, OperationDenied, OutcomeUnknown
from uvmshare.mounts.channel import Acceptor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.daemon.harness import Running

    from uvmshare.daemon.documents import NewShare
    from uvmshare.mounts.channel import Stream

if sys.platform == "win32":
    pytest.skip("the daemon runs on Linux", allow_module_level=True)

pytestmark = needs_root

MOST = 5


@pytest.fixture
def daemon() -> Iterator[Running]:
    with Home.made() as home:
        home.settings.user_shares = MOST
        with home.running() as running:
            yield running


@pytest.fixture
def alice(daemon: Running) -> User:
    return User(daemon, ALICE)


async def lie(*_: object, **__: object) -> Any:
    msg = "so says a process of the user's own"
    raise OutcomeUnknown(msg)


def ask_often(alice: User, work: Any) -> list[type[Exception]]:
    """Do something that fails, for more directories than a user may share."""
    failures: list[type[Exception]] = []
    for number in range(MOST + 2):
        path = f"{alice.folder}/{number}"
        os.mkdir(path)
        os.chown(path, alice.uid, alice.uid)
        with pytest.raises((OutcomeUnknown, LimitReached)) as failure:
            alice.do(lambda client, path=path, number=number: work(client, path, number))  # type: ignore[misc]  # mypy cannot type a lambda's default
        failures.append(failure.type)
    return failures


EXPECTED = [OutcomeUnknown] * MOST + [LimitReached] * 2


def test_shares_that_a_file_server_never_says_to_have_let_go_count_as_its_users(daemon: Running, alice: User) -> None:
    alice.add_vm()
    (machine,) = daemon.service.machines.values()
    assert machine._server is not None
    machine._server.remove_plan9 = lie  # type: ignore[method-assign]  # a stand-in on its control socket
    machine._server.add_plan9 = lie  # type: ignore[method-assign]  # the same
    failures = ask_often(alice, lambda client, path, _: client.shares.add("vm", path))
    assert (failures, len(machine.shares())) == (EXPECTED, MOST)


def test_shares_of_roots_that_a_file_server_never_says_to_have_let_go_count_as_roots(
    daemon: Running, alice: User
) -> None:
    alice.add_vm()
    (machine,) = daemon.service.machines.values()
    held = daemon.add_share(alice.folder, vm=f"{alice.uid}:vm", owner="job", read_only=True)
    assert machine._server is not None
    machine._server.remove_plan9 = lie  # type: ignore[method-assign]  # a stand-in on its control socket
    with daemon.home.client() as root, pytest.raises(OutcomeUnknown):
        root.shares.release(f"{alice.uid}:vm", held.name, owner="job")
    assert [info.orphan for info in machine.shares()] == [True]
    assert list(daemon.service.shares.held_by(alice.uid, machine)) == []
    assert len(list(daemon.service.shares.held_by(0, machine))) == 1


def test_mounts_that_an_agent_never_says_to_have_let_go_count_as_its_users(daemon: Running, alice: User) -> None:
    alice.add_vm(agent=f"unix:{alice.folder}/agent.sock")
    (machine,) = daemon.service.machines.values()
    assert machine.agent is not None
    machine.agent.add_mapped_directory = lie  # type: ignore[method-assign]  # the guest's answer
    machine.agent.remove_mapped_directory = lie  # type: ignore[method-assign]  # the same
    failures = ask_often(
        alice,
        lambda client, path, number: client.mounts.map("vm", path, f"/mnt/{number}", lease=60.0),
    )
    assert (failures, len(machine.mounted())) == (EXPECTED, MOST)


def test_a_request_that_failed_is_not_kept_whole(daemon: Running, alice: User, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[weakref.ref[Any]] = []
    alice.add_vm()
    add = daemon.service.shares.add

    def watched(who: Any, machine: Any, wanted: NewShare) -> Any:
        options = Watched(wanted)
        asked.append(weakref.ref(options))
        return add(who, machine, options)  # type: ignore[arg-type]  # all of one that is asked for

    class Watched:
        """What a request asks for, as an object that can be referred to weakly."""

        def __init__(self, wanted: NewShare) -> None:
            for name in wanted.__struct_fields__:
                setattr(self, name, getattr(wanted, name))

    monkeypatch.setattr(daemon.service.shares, "add", watched)
    with pytest.raises(InvalidOptions):
        alice.do(lambda client: client.shares.add("vm", "/nowhere", only=("a",)))
    # The daemon's thread lets go of it when it comes round to that.
    await_answer(lambda: (gc.collect(), [each() for each in asked])[1], [None])
    (kept,) = (each for each in daemon.service.operations.list(ALICE) if each.action == "add share")
    assert kept.problem is not None
    assert kept.problem.error == "InvalidOptions"


def test_names_that_are_never_looked_up_take_nobody_elses_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up, answered = socket.getaddrinfo, threading.Event()

    def slowly(host: Any, *args: Any, **more: Any) -> Any:
        if host == "never.example":
            answered.wait(DEADLINE)
        return look_up("127.0.0.1" if host == "never.example" else host, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        threads = Threads(seconds=DEADLINE)

        def dial(uid: int, host: str) -> asyncio.Task[Stream]:
            dialler = UserDialler(Address("tcp", host=host, port=port), None, Identity(uid, uid), threads)
            return asyncio.create_task(dialler.next())

        hers = [dial(ALICE, "never.example") for _ in range(2)]
        listening = asyncio.create_task(
            Acceptor.start(
                Address("tcp", host="never.example", port=0),
                None,
                run=lambda work: threads.acting_as(Identity(ALICE, ALICE), "", work),
            )
        )
        async with asyncio.timeout(DEADLINE):
            _, writer = await dial(BOB, "localhost")
            writer.close()
            assert await asyncio.to_thread(lambda: "there is a thread") == "there is a thread"
        assert not any(each.done() for each in (*hers, listening))
        answered.set()
        for _, writer in await asyncio.gather(*hers):
            writer.close()
        await (await listening).aclose()
        server.close()

    asyncio.run(test())


def test_a_user_has_no_more_quotas_for_being_many_uids_in_user_namespaces(
    daemon: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = tmp_path / "subuid"
    table.write_text("no line\nsomebody:x:1\nalice:100000:65536\n")
    monkeypatch.setattr(identity, "_SUBUID", str(table))
    monkeypatch.setattr(connections, "USER_CONNECTIONS", 1)
    ask = User(daemon, 100_000), User(daemon, 165_535), User(daemon, 165_536)
    for subordinate in ask[:2]:
        with pytest.raises(OperationDenied, match="user alice may be"):
            subordinate.do(lambda client: client.info())
    assert ask[2].do(lambda client: client.info()).you == 165_536
    where = daemon.home.settings.socket_path

    def connected() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(DEADLINE)
        connection.connect(where)
        return connection

    with as_user(100_000, connected), as_user(100_001, connected) as second:
        assert second.recv(1) == b"", "it is cut"
