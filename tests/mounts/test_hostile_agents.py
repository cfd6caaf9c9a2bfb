"""What an agent may say and do to the host: nothing but end its own connection. In virtual time."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile_answers import LISTS, WRONG
from tests.virtual_time import settle

from uvmshare.errors import AgentUnreachable, GuestAgentError, InvalidDocument, UvmshareError
from uvmshare.mounts import connection
from uvmshare.mounts.agent_client import AgentClient
from uvmshare.mounts.interfaces import GuestMount, Mounted
from uvmshare.testing.agents import GREETING, ScriptedStreams, greeted, healthy
from uvmshare.testing.schedule import VirtualLoop

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.mounts.channel import Stream
    from uvmshare.testing.agents import Talk

MOUNT: Final = GuestMount("0", "/run/uvmshare/0", read_only=False, cache="none", msize=8192)


def client_of(*agents: Callable[[Talk], None], **more: Any) -> tuple[AgentClient, ScriptedStreams]:
    streams = ScriptedStreams(*agents)
    return AgentClient("unix:/nowhere", streams=streams, **more), streams


def is_kept(client: AgentClient) -> bool:
    return client._keeping is not None and not client._keeping.done()


# In one loop for all of a table: what `run` looks for behind each loop takes longer than they do.
async def test_what_may_not_be_said_loses_the_connection_and_the_next_one_serves() -> None:
    for what, said in WRONG.items():

        def says(talk: Talk, _: object = None, said: bytes = said) -> None:
            talk.say(said)

        for hostile in (says, greeted(says)):
            client, streams = client_of(hostile, healthy)
            async with client:
                assert await client.listed() == (), what
                assert streams.given == 2, what
                assert is_kept(client), what


async def test_a_result_of_another_type_is_an_error_and_loses_the_connection() -> None:
    for what, result in LISTS.items():

        def answers(talk: Talk, request: dict[str, Any], result: object = result) -> None:
            talk.say({"id": request["id"], "ok": True, "result": result})

        client, streams = client_of(greeted(answers), healthy)
        async with client:
            with pytest.raises(InvalidDocument, match="cannot be read"):
                await client.mapped_directories()
            assert await client.mapped_directories() == (), what
            assert streams.given == 2, what


async def test_no_greeting_ends_the_keeper() -> None:
    for field in ("version", "agent", "boot", "nonce", "token", "allow", "server", "release"):
        for value in (None, [1], {"x": 1}, "x" * 5000, 1 << 80, "\ud800"):

            def greets(talk: Talk, greeting: dict[str, Any] = {**GREETING, field: value}) -> None:  # noqa: B006  never changed
                talk.say(greeting)

            client, _ = client_of(greets, healthy)
            async with client:
                assert await client.listed() == (), (field, value)


async def test_no_answer_to_hello_ends_the_keeper() -> None:
    for answer in (7, {"proof": 7}, {"proof": ["x"]}, None, {"proof": "x" * 5000}, {"proof": "\ud800"}):

        def hostile(talk: Talk, answer: object = answer) -> None:
            talk.heard = lambda _: talk.say({"id": 0, "ok": True, "result": answer})
            talk.say({**GREETING, "token": True})

        client, _ = client_of(hostile, lambda talk: talk.hang_up(), token="secret")
        async with client:
            with pytest.raises(AgentUnreachable):
                await client.reached(timeout=60)
            assert is_kept(client)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    said=st.binary(max_size=200) | st.lists(st.sampled_from(sorted(WRONG.values(), key=len)[:-6])).map(b"".join),
    size=st.integers(1, 64),
    is_greeted=st.booleans(),
)
def test_any_bytes_in_any_pieces_leave_a_keeper_that_lives(said: bytes, size: int, is_greeted: bool) -> None:
    def say(talk: Talk, _: object = None) -> None:
        for at in range(0, len(said), size):
            asyncio.get_running_loop().call_soon(talk.say, said[at : at + size])

    async def test() -> None:
        client, streams = client_of(greeted(say) if is_greeted else say, healthy)
        async with client:
            results = await asyncio.gather(client.listed(), client.add_mapped_directory(MOUNT), return_exceptions=True)
            assert all(result in ((), Mounted()) or isinstance(result, UvmshareError) for result in results)
            while streams.given == 1:  # noqa: ASYNC110  the loop's time is virtual
                await asyncio.sleep(1)
            assert await client.listed() == ()
            assert is_kept(client)

    loop = VirtualLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(test())
    assert not loop.noise


async def test_a_defect_loses_the_connection_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*_: object) -> None:
        msg = "a defect"
        raise KeyError(msg)

    client, streams = client_of(healthy)
    async with client:
        await client.reached()
        with monkeypatch.context() as patched:
            patched.setattr(connection.AgentConnection, "_take", defective)
            asking = asyncio.create_task(client.listed())
            await settle()
        assert await asking == ()
        assert streams.given == 2


async def test_a_callback_that_fails_is_told_to_the_loop_and_ends_nothing() -> None:
    def fails() -> None:
        raise ValueError

    client, _ = client_of(healthy)
    client.on_connect(fails)
    async with client:
        assert await client.listed() == ()
        loop = cast("VirtualLoop", asyncio.get_running_loop())
        assert len(loop.noise) == 1
        loop.noise.clear()


async def test_an_agent_that_chatters_is_cut_at_its_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []
    really = connection._read

    def noted(*given: Any) -> object:
        read.append(given)
        return really(*given)

    monkeypatch.setattr(connection, "_read", noted)
    talks: list[Talk] = []

    def chatters(talk: Talk, _: object) -> None:
        talks.append(talk)
        talk.say(b'{"id":77,"ok":true,"result":{}}\n' * 10_000)

    client, _ = client_of(greeted(chatters), healthy)
    async with client:
        asking = asyncio.create_task(client.listed())
        await settle()
        assert not talks[0].open
        assert len(read) == 5, "a greeting twice, hello's answer and its proof, and the first word"
        assert await asking == ()


async def test_an_answer_that_comes_late_is_taken_once() -> None:
    asked: list[tuple[Talk, dict[str, Any]]] = []

    def late(talk: Talk, request: dict[str, Any]) -> None:
        if request["op"] == "ping":
            talk.say({"id": request["id"], "ok": True, "result": {}})
        else:
            asked.append((talk, request))

    client, streams = client_of(greeted(late), healthy, timeout=1.0)
    async with client:
        with pytest.raises(UvmshareError, match="gave no answer"):
            await client.listed()
        ((talk, request),) = asked
        for times in (1, 2):
            talk.say({"id": request["id"], "ok": True, "result": []})
            await settle()
            assert talk.open == (times == 1)
        await client.reached()
        assert streams.given == 2


@pytest.mark.parametrize(
    ("hostile", "most"),
    [
        (lambda talk: talk.say(b"no JSON\n"), 35),
        (greeted(lambda talk, _: talk.say(b"no JSON\n")), 70),
        (lambda talk: talk.hang_up(), 310),
        (lambda talk: (healthy(talk), asyncio.get_running_loop().call_soon(talk.hang_up)), 310),
    ],
)
async def test_an_agent_that_is_lost_again_and_again_is_dialled_less_and_less(
    hostile: Callable[[Talk], None], most: int
) -> None:
    client, streams = client_of(hostile)
    async with client:
        asyncio.get_running_loop().call_later(1, client.on_connect, lambda: None)
        await asyncio.sleep(600)
        assert 10 < streams.given < most
        assert is_kept(client)


async def test_an_agent_that_says_a_byte_a_second_is_lost() -> None:
    def slow(talk: Talk, _: object = None) -> None:
        if talk.open:
            talk.say(b"x")
            asyncio.get_running_loop().call_later(1, slow, talk)

    for hostile in (slow, greeted(slow)):
        client, _ = client_of(hostile, healthy)
        async with client:
            assert await client.listed() == ()
            assert asyncio.get_running_loop().time() < 60


async def test_an_agent_that_reads_nothing_is_lost() -> None:
    def mute(talk: Talk) -> None:
        def heard(request: dict[str, Any]) -> None:
            talk.say({"id": request["id"], "ok": True, "result": {}})
            talk.reads = False

        talk.heard = heard
        talk.say(GREETING)

    client, streams = client_of(mute, healthy)
    async with client:
        await client.reached()
        path = "/run/uvmshare/" + "x" * 4000
        adding = [client.add_mapped_directory(GuestMount("0", f"{path}{n}", False, "none", 8192)) for n in range(300)]
        await asyncio.gather(*adding)
        assert asyncio.get_running_loop().time() < 1, "the silence of the agent would have ended it later"
        assert streams.given == 2


async def test_an_agent_that_answers_nothing_but_pings_is_lost() -> None:
    def pings(talk: Talk, request: dict[str, Any]) -> None:
        if request["op"] == "ping":
            talk.say({"id": request["id"], "ok": True})

    client, streams = client_of(greeted(pings), healthy)
    async with client:
        for _ in range(300):
            asking = asyncio.create_task(client.listed())
            await settle()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert await client.listed() == ()
        assert streams.given == 2


async def test_what_others_wait_for_comes_between_the_pieces_of_a_long_line() -> None:
    turns = 0

    def count() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(count)

    def long(talk: Talk, request: dict[str, Any]) -> None:
        talk.say(json.dumps({"id": request["id"], "ok": True, "result": [], "x": "x" * 250_000}).encode() + b"\n")
        count()

    client, _ = client_of(greeted(long))
    async with client:
        listing = asyncio.create_task(client.listed())
        loop = cast("VirtualLoop", asyncio.get_running_loop())
        await listing
        assert turns >= 250_000 // connection._PIECE
        loop._ready.clear()


class Dialled:
    """Streams that the test makes, as if agents dialled."""

    def __init__(self) -> None:
        self._streams: asyncio.Queue[Stream] = asyncio.Queue()

    def dial(self, agent: Callable[[Talk], None]) -> None:
        streams = ScriptedStreams(agent)
        task = asyncio.get_running_loop().create_task(streams.next())
        task.add_done_callback(lambda task: self._streams.put_nowait(task.result()))

    async def next(self) -> Stream:
        return await self._streams.get()

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("others", [1, 40])
async def test_who_dials_first_and_says_nothing_keeps_nobody_out(others: int) -> None:
    streams = Dialled()
    async with AgentClient("tcp:127.0.0.1:1", accept=True, streams=streams) as client:
        talks: list[Talk] = []
        for _ in range(others):
            streams.dial(talks.append)
        await settle()
        streams.dial(healthy)
        await settle()
        assert asyncio.get_running_loop().time() < 1
        assert await client.listed() == ()
        assert not any(talk.open for talk in talks), "whoever else was heard is let go"


async def test_who_dials_without_the_token_denies_nothing_to_the_requests_of_the_agent_that_has_it() -> None:
    streams = Dialled()
    async with AgentClient("tcp:127.0.0.1:1", accept=True, streams=streams) as client:
        asking = asyncio.create_task(client.listed())
        for said in ({**GREETING, "token": True}, {**GREETING, "version": 9}):
            streams.dial(lambda talk, said=said: talk.say(said))  # type: ignore[misc]  # it cannot infer the default's type
        await settle()
        assert not asking.done()
        streams.dial(healthy)
        assert await asking == ()


async def test_an_agent_that_refuses_is_an_error_at_once() -> None:
    def refuses(talk: Talk) -> None:
        talk.heard = lambda _: talk.say({"id": 0, "ok": False, "error": {"code": "refused", "message": "not you"}})
        talk.say(GREETING)

    client, _ = client_of(refuses)
    async with client:
        with pytest.raises(AgentUnreachable, match="not you"):
            await client.listed()


async def test_the_words_of_an_agent_are_those_of_the_error() -> None:
    def fails(talk: Talk, request: dict[str, Any]) -> None:
        talk.say({"id": request["id"], "ok": False, "error": {"code": "other", "message": "not today"}})

    client, _ = client_of(greeted(fails))
    async with client:
        with pytest.raises(GuestAgentError, match="not today"):
            await client.add_mapped_directory(MOUNT)
