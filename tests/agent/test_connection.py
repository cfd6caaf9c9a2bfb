"""The connection between the agent and its client: lost answers, bad words, tokens, and who else reaches either end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest
from tests.agent.conftest import serving
from tests.processes import DEADLINE
from tests.root import require_root

from uvmshare.address import parse
from uvmshare.errors import AgentUnreachable, OperationTimedOut, OutcomeUnknown
from uvmshare.guest import session, wire
from uvmshare.guest.agent import Agent
from uvmshare.guest.mount import ServerAddress
from uvmshare.mounts import agent_client, channel, connection
from uvmshare.mounts.channel import Acceptor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.agent.conftest import Bench


# ---------------------------------------------------------------------- the host's connection


def test_a_request_whose_answer_was_lost_is_sent_again(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        dropped: list[bytes] = []

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Hand on what comes, but hang up instead of handing on the first answer to a modify request."""
            agent = await bench.raw()

            async def up() -> None:
                while line := await reader.readline():
                    agent.writer.write(line)
                agent.writer.close()

            upwards = asyncio.create_task(up())
            while line := await agent.reader.readline():
                if b'"result":{"chosen"' in line and not dropped:
                    dropped.append(line)
                    break
                writer.write(line)
            writer.close()
            await upwards

        path = str(bench.directory / "between")
        async with serving(between, path), bench.client(f"unix:{path}") as client:
            await client.add_mapped_directory(bench.mount("a"))
            assert dropped
            assert bench.server.asked == ["0"], "it was asked twice and did it once"

    bench.run(test)


def test_a_newer_connection_ends_the_older_one_and_what_that_had_not_begun(bench: Bench) -> None:
    async def test() -> None:
        bench.server.answers["0"] = None
        await bench.start_agent()
        first = await bench.raw()
        await first.greet("me")
        settings = {"MountPath": f"{bench.allow}/a", "Port": 1, "ShareName": "0"}
        request = {"RequestType": "Add", "ResourceType": "MappedDirectory", "Settings": settings}
        first.writer.write(wire.encode({"id": 1, "op": "modify", "request": request, "timeout": DEADLINE}))
        await bench.server.until_asked(1)
        settings["ShareName"] = "1"
        first.writer.write(wire.encode({"id": 2, "op": "modify", "request": request}))
        assert (await first.ask(id=3, op="ping"))["id"] == 3
        second = await bench.raw()
        await second.greet("me")
        with pytest.raises(EOFError):
            await first.next()
        settings["ShareName"] = "2"
        bench.server.cut()  # what has begun is over now
        answer = await second.ask(id=1, op="modify", request=request)
        assert answer["ok"]
        assert bench.server.asked == ["0", "2"]
        for raw in (first, second):
            raw.writer.close()

    bench.run(test)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "dance"}, "no request 'dance'"),
        ({"request": 7}, "needs a request document"),
        ({"options": 7}, "needs a request document"),
        ({"timeout": 0}, "above 0"),
        ({"timeout": "long"}, "above 0"),
        ({"request": {"ResourceType": "NetworkAdapter"}}, "want MappedDirectory"),
        ({"request": {"ResourceType": "MappedDirectory"}}, "needs Settings"),
        ({"RequestType": "Update"}, "want Add or Remove"),
        ({"ShareName": "x"}, "decimal name"),
        ({"ShareName": "1,uname=x"}, "decimal name"),
        ({"Port": 0}, "the port of the file server"),
        ({"ReadOnly": 1}, "true or false"),
        ({"MountPath": "x"}, "absolute path"),
        ({"MountPath": "/mnt/../etc"}, "write it plainly"),
        ({"MountPath": 7}, "absolute path"),
        ({"MountPath": "/etc/x"}, "is not below"),
        ({"cache": 7}, "a word and a number"),
        ({"cache": "all"}, "auto, none, loose, mmap, readahead"),
        ({"posixacl": 1}, "posixacl 1: want true or false"),
        ({"events": "on"}, "events 'on': want true or false"),
        ({"events": True, "cache": "loose"}, "want another cache"),
        ({"msize": 1}, "4096 to"),
    ],
)
def test_a_request_that_cannot_be_is_one_clear_line(bench: Bench, change: dict[str, Any], words: str) -> None:
    async def test() -> None:
        await bench.start_agent()
        raw = await bench.raw()
        await raw.greet("me")
        settings: dict[str, Any] = {"MountPath": f"{bench.allow}/a", "Port": 1, "ShareName": "0"}
        request: dict[str, Any] = {"RequestType": "Add", "ResourceType": "MappedDirectory", "Settings": settings}
        message: dict[str, Any] = {"id": 1, "op": "modify", "request": request, "options": {}}
        for name, value in change.items():
            parts = {
                "RequestType": request,
                **dict.fromkeys(("cache", "msize", "posixacl", "events"), message["options"]),
            }
            place = message if name in ("op", "request", "options", "timeout") else parts.get(name, settings)
            place[name] = value
        answer = await raw.ask(**message)
        assert not answer["ok"]
        assert words in answer["error"]["message"]
        assert "\n" not in answer["error"]["message"]
        assert not bench.server.asked
        raw.writer.close()

    bench.run(test)


@pytest.mark.parametrize(
    "sent",
    [
        b"no JSON\n",
        b"7\n",
        b'{"op":"ping"}\n',
        b'{"id":1,"op":"ping"}\n',  # before hello
        b"[" * 100_000 + b"\n",
        b"x" * (wire.MAX_LINE + 1),
        b"x" * wire.MAX_LINE + b"\n",
    ],
)
def test_what_is_not_of_the_protocol_ends_the_connection_and_nothing_else(bench: Bench, sent: bytes) -> None:
    async def test() -> None:
        await bench.start_agent()
        raw = await bench.raw()
        await raw.next()
        raw.writer.write(sent)
        with pytest.raises((EOFError, ConnectionError)):
            await raw.next()
        raw.writer.close()
        async with bench.client() as client:
            assert await client.listed() == ()

    bench.run(test)


@pytest.mark.parametrize(
    ("hello", "words"),
    [
        ({"version": 9}, "speaks version 1"),
        ({"client": ""}, "needs a client"),
        ({"nonce": 7}, "needs a client and a nonce"),
    ],
)
def test_a_hello_that_cannot_be_is_refused(bench: Bench, hello: dict[str, object], words: str) -> None:
    async def test() -> None:
        await bench.start_agent()
        raw = await bench.raw()
        await raw.next()
        answer = await raw.ask(**{"id": 0, "op": "hello", "version": 1, "client": "me", "nonce": "n", **hello})
        assert words in answer["error"]["message"]
        with pytest.raises(EOFError):
            await raw.next()
        raw.writer.close()

    bench.run(test)


def test_a_token_is_proven_by_both(bench: Bench) -> None:
    async def test() -> None:
        (bench.directory / "token").write_text("secret\n")
        await bench.start_agent("--token-file", str(bench.directory / "token"))
        async with bench.client(token="secret") as client:
            assert (await client.reached()).token
        for token, words in ((None, "asks for a token"), ("wrong", "is not this agent's")):
            async with bench.client(token=token) as client:
                with pytest.raises(AgentUnreachable, match=words):
                    await client.listed()
        await bench.end_agent()
        await bench.start_agent(environment={"UVMSHARE_AGENT_TOKEN": ""})
        async with bench.client(token="secret") as client:
            with pytest.raises(AgentUnreachable, match="started without a token"):
                await client.reached()

    bench.run(test)


@pytest.mark.parametrize(
    ("greeting", "words"),
    [
        ({"uvmshare": "other"}, "not an agent's greeting"),
        ({"version": 2}, "version 2 of the protocol"),
        ({"boot": 7}, "boot: it is a whole number, and has to be a text"),
        ({"token": True}, "did not prove"),
    ],
)
def test_what_is_no_agent_of_ours_is_not_trusted(bench: Bench, greeting: dict[str, object], words: str) -> None:
    async def test() -> None:
        async def pretend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            first = {"uvmshare": "agent", "version": 1, "agent": "x", "boot": "x", "nonce": "x"}
            writer.write(wire.encode({**first, **greeting}))
            await reader.readline()
            writer.write(wire.encode({"id": 0, "ok": True, "result": {"proof": "made up"}}))
            await reader.read()
            writer.close()

        async with (
            serving(pretend, bench.socket),
            bench.client(token="secret" if "token" in greeting else None) as client,
        ):
            await bench.until_it_failed(client)
            with pytest.raises(AgentUnreachable, match=words):
                await client.reached(timeout=0.01)

    bench.run(test)


def test_an_agent_that_cannot_be_reached_was_sent_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_client, "_GRACE", 0.05)

    async def test() -> None:
        client = bench.client(timeout=0.05)
        with pytest.raises(AgentUnreachable, match="not open"):
            await client.listed()
        async with client:
            assert client.info is None
            with pytest.raises(AgentUnreachable, match="is 'uvmshare guest agent' running"):
                await client.add_mapped_directory(bench.mount("a"))
        with pytest.raises(AgentUnreachable, match="not open"):
            await client.listed()

    bench.run(test)


def test_an_agent_that_does_not_answer_leaves_the_outcome_unknown(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_client, "_GRACE", 0.05)

    async def test() -> None:
        await bench.start_agent()
        async with bench.client(timeout=0.1) as client:
            await client.reached(timeout=DEADLINE)
            await bench.stop_agent()
            with pytest.raises(OperationTimedOut, match=r"no answer to modify within 0\.15 s"):
                await client.add_mapped_directory(bench.mount("a"))
            bench.agents[0].send_signal(signal.SIGCONT)

    bench.run(test)


def test_a_client_that_is_closed_while_it_waits_leaves_the_outcome_unknown(bench: Bench) -> None:
    async def test() -> None:
        bench.server.answers["0"] = None
        await bench.start_agent()
        client = await bench.client().start()
        adding = asyncio.create_task(client.add_mapped_directory(bench.mount("a")))
        await bench.server.until_asked(1)
        await client.aclose()
        with pytest.raises(OutcomeUnknown, match="could then not be reached"):
            await adding

    bench.run(test)


def test_an_agent_that_says_nothing_any_more_is_dialled_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_SILENCE", 0.05)

    async def test() -> None:
        await bench.start_agent()
        async with bench.client() as client:
            reached = asyncio.Queue[None]()
            client.on_connect(lambda: reached.put_nowait(None))
            await reached.get()
            client.on_connect(lambda: None)
            await bench.stop_agent()

            async def lost() -> bool:
                return client.info is None

            await bench.until(lost)
            monkeypatch.setattr(connection, "_SILENCE", DEADLINE)
            while not reached.empty():  # a busy machine may have been too slow for that before
                reached.get_nowait()
            bench.agents[0].send_signal(signal.SIGCONT)
            await reached.get()
            assert await client.listed() == ()

    bench.run(test)


# ---------------------------------------------------------------------- whoever else reaches the agent, or the host


def test_connections_without_the_token_keep_the_host_out_of_nothing(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent(environment={"UVMSHARE_AGENT_TOKEN": "secret"})
        strangers = []
        for _ in range(40):
            strangers.append(await bench.raw())
            await strangers[-1].next()
        async with bench.client(token="secret") as client:
            assert await client.listed() == ()
            for _ in range(20):
                await (await bench.raw()).next()
            assert await client.listed() == (), "nor those that come later"
            for raw in strangers:
                with pytest.raises((EOFError, ConnectionError)):
                    await raw.next()

    bench.run(test)


def test_more_hosts_than_an_agent_serves_are_told_so(bench: Bench) -> None:
    async def test() -> None:
        await bench.start_agent()
        for number in range(16):
            await (await bench.raw()).greet(f"host {number}")
        late = await bench.raw()
        await late.next()
        answer = await late.ask(id=0, op="hello", version=1, client="late", nonce="n")
        assert "16 hosts are connected" in answer["error"]["message"]
        again = await bench.raw()
        await again.greet("host 3")  # in the place of its older connection

    bench.run(test)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Agent]:
    """An agent in this process that has no mounts and is given its connections."""
    options = argparse.Namespace(
        allow=[str(tmp_path)],
        server=ServerAddress("unix", "/nowhere"),
        peer_cid=2,
        state=str(tmp_path),
        check_every=600.0,
        hung_after=0.0,
        pins=0,
        events=False,
    )
    agent = Agent(options, "")
    yield agent
    agent._table._mountinfo.close()
    agent.loop._poll.close()
    os.close(agent._lock)


def test_a_connection_that_does_not_say_hello_is_ended(alone: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_HELLO", 0.01)
    ours, theirs = socket.socketpair()
    with ours:
        stranger = alone._begin(theirs, lambda: None)
        while stranger.open:
            alone.loop.turn()
        assert ours.recv(65536).endswith(b"}\n")
        assert ours.recv(1) == b""
    assert not alone.sessions


def test_a_host_that_speaks_often_makes_one_timer(alone: Agent) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        host = alone._begin(theirs, lambda: None)
        ours.sendall(wire.encode({"id": 0, "op": "hello", "version": 1, "client": "me", "nonce": "n"}))
        alone.loop.turn()
        before = len(alone.loop._timers)
        for number in range(100):
            ours.sendall(wire.encode({"id": number, "op": "ping"}))
            alone.loop.turn()
        assert len(alone.loop._timers) == before
        host.close()


def defect(*_: object) -> None:
    1 / 0  # noqa: B018  what it gives is not the point


def test_a_defect_ends_a_connection_and_not_the_agent(alone: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(alone, "log", log.append)
    monkeypatch.setattr(alone, "carry_out", defect)
    ours, theirs = socket.socketpair()
    with ours:
        host = alone._begin(theirs, lambda: None)
        ours.sendall(wire.encode({"id": 0, "op": "hello", "version": 1, "client": "me", "nonce": "n"}) + b'{"id":1}\n')
        alone.loop.turn()
        assert not host.open
    assert log == ["a connection is ended: a defect, please report it: ZeroDivisionError('division by zero')"]
    alone.loop.later(0.0, defect)
    alone.loop.turn()


@pytest.mark.parametrize("words", ["no socket", "in use, by process"])
def test_the_agent_removes_nothing_but_a_dead_socket_of_its_own(bench: Bench, words: str) -> None:
    async def test() -> None:
        target = bench.directory / "target"
        target.write_text("precious")
        listening = socket.socket(socket.AF_UNIX)
        with listening:
            if words == "no socket":
                os.symlink(target, bench.socket)
            else:
                listening.bind(bench.socket)
                listening.listen(1)
            before = os.lstat(bench.socket)
            process = await bench.spawn(capture=True)
            _, error = await process.communicate()
            assert process.returncode == 1
            assert error.decode().startswith("uvmshare guest agent: cannot listen on unix:")
            assert words in error.decode()
            assert os.path.samestat(os.lstat(bench.socket), before)
            assert target.read_text() == "precious"

    bench.run(test)


def test_a_socket_of_another_user_is_left_alone_by_the_agent_and_by_the_host(bench: Bench) -> None:
    async def test() -> None:
        dead = socket.socket(socket.AF_UNIX)
        dead.bind(bench.socket)
        dead.close()
        os.chown(bench.socket, 65534, 65534)
        process = await bench.spawn(capture=True)
        _, error = await process.communicate()
        assert (
            "a dead socket of uid 65534, which only they remove: have them do so, or choose another path"
            in error.decode()
        )
        with pytest.raises(OSError, match="a dead socket of uid 65534"):
            await Acceptor.start(parse(f"unix:{bench.socket}"), None)
        os.chown(bench.socket, os.geteuid(), -1)
        acceptor = await Acceptor.start(parse(f"unix:{bench.socket}"), None)
        await acceptor.aclose()

    require_root("only root gives a file to another user")
    bench.run(test)


def test_who_dials_the_host_waits_in_the_kernel_until_it_is_his_turn(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "_ACCEPT_EVERY", DEADLINE)

    async def test() -> None:
        acceptor = await Acceptor.start(parse(f"unix:{bench.directory}/host"), None)
        writers = [(await asyncio.open_unix_connection(f"{bench.directory}/host"))[1] for _ in range(30)]
        _, taken = await acceptor.next()
        waiting = asyncio.create_task(acceptor.next())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiting.done(), "one was accepted, and the next one is not yet"
        waiting.cancel()
        await acceptor.aclose()
        for writer in (*writers, taken):
            writer.transport.abort()

    bench.run(test)


def test_the_host_keeps_few_of_those_who_dial_and_no_one_takes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "_ACCEPT_EVERY", 0.0)

    async def test() -> None:
        acceptor = await Acceptor.start(parse("tcp:localhost:0"), None)
        dialled = [await asyncio.open_connection("localhost", acceptor.port) for _ in range(20)]
        for reader, _ in dialled[:4]:
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b"", "the oldest give way"
        newest = (await acceptor.next())[1]
        assert newest.get_extra_info("peername") == dialled[-1][1].get_extra_info("sockname")
        await acceptor.aclose()
        for _, writer in (*dialled, (None, newest)):
            writer.transport.abort()

    bench.run(test)
