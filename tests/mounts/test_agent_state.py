"""Whether an agent is reached: seen without anybody asking it, and told. In virtual time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.mounts.test_hostile_agents import client_of
from tests.virtual_time import settle

from uvmshare.errors import InvalidTransition
from uvmshare.mounts import MountManager, MountOptions
from uvmshare.mounts.agent_state import TRANSITIONS, AgentEntry, AgentLife, AgentTrigger
from uvmshare.testing.agents import GREETING, greeted, healthy

if TYPE_CHECKING:
    from uvmshare.mounts import AgentClient, Reach
    from uvmshare.testing.agents import Talk

SOUGHT, REACHED, LOST, CLOSED = AgentLife
EXPECTED = {
    AgentTrigger.GREETED: {SOUGHT: REACHED, LOST: REACHED},
    AgentTrigger.CUT: {REACHED: LOST},
    AgentTrigger.CLIENT_CLOSED: dict.fromkeys(AgentLife, CLOSED),
}


@pytest.mark.parametrize("trigger", AgentTrigger)
@pytest.mark.parametrize("life", AgentLife)
def test_every_state_of_an_agent_with_every_trigger(life: AgentLife, trigger: AgentTrigger) -> None:
    following = EXPECTED[trigger].get(life)
    if following is None:
        with pytest.raises(InvalidTransition, match=f"is {life.value} has no"):
            TRANSITIONS.following(life, trigger)
    else:
        assert TRANSITIONS.following(life, trigger) is following


def test_what_cannot_happen_changes_nothing() -> None:
    reach = AgentEntry(lambda: 7.0)
    before = reach.seen(None)
    with pytest.raises(InvalidTransition):
        reach.apply(AgentTrigger.CUT)
    assert reach.seen(None) == before


def mute(talk: Talk, request: dict[str, Any]) -> None:
    """Take what is asked, keep the connection, and say nothing."""


def now() -> float:
    return asyncio.get_running_loop().time()


def state_of(client: AgentClient) -> str:
    return client.reach.state


def watched(client: AgentClient) -> list[tuple[str, float]]:
    """Note each change that the client tells, and when."""
    told: list[tuple[str, float]] = []

    def note(reach: Reach) -> None:
        assert reach.since.timestamp() == pytest.approx(now())
        told.append((reach.state, now()))

    client.on_reach(note)
    return told


async def test_an_agent_that_falls_silent_is_seen_to_be_lost_without_being_asked_anything() -> None:
    client, _ = client_of(greeted(mute), lambda _: None, clock=now)
    told = watched(client)
    begun = now()
    async with client:
        assert state_of(client) == "unreachable"
        assert client.reach.since.timestamp() == pytest.approx(begun)
        await settle()
        assert state_of(client) == "reached"
        await asyncio.sleep(9.9)
        assert state_of(client) == "reached"
        await asyncio.sleep(0.2)
        assert state_of(client) == "unreachable"
        assert client.reach.error == "it said nothing for 10 s"
        assert client.reach.losses == 1
    assert [state for state, _ in told] == ["reached", "unreachable"]
    assert told[1][1] - told[0][1] == pytest.approx(10.0)


async def test_an_agent_that_says_a_byte_now_and_then_is_lost_like_a_silent_one() -> None:
    def drips(talk: Talk, request: dict[str, Any]) -> None:
        talk.say(b" ")
        if talk.open:
            asyncio.get_running_loop().call_later(1.0, drips, talk, request)

    client, _ = client_of(greeted(drips), lambda _: None, clock=now)
    told = watched(client)
    async with client:
        await asyncio.sleep(10.1)
        assert state_of(client) == "unreachable"
    assert [state for state, _ in told] == ["reached", "unreachable"]


async def test_an_agent_that_answers_slowly_stays_reached() -> None:
    def late(talk: Talk, request: dict[str, Any]) -> None:
        asyncio.get_running_loop().call_later(4.9, talk.say, {"id": request["id"], "ok": True, "result": {}})

    client, streams = client_of(greeted(late), clock=now)
    told = watched(client)
    async with client:
        await asyncio.sleep(1000)
        assert state_of(client) == "reached"
        assert streams.given == 1
    assert len(told) == 1


async def test_an_idle_agent_is_asked_for_a_word_every_five_seconds_and_for_nothing_else() -> None:
    heard: list[str] = []

    def counts(talk: Talk, request: dict[str, Any]) -> None:
        heard.append(request["op"])
        talk.say({"id": request["id"], "ok": True, "result": {}})

    client, _ = client_of(greeted(counts))
    async with client:
        await asyncio.sleep(60.1)
    assert heard == ["ping"] * 12


async def test_an_agent_that_hangs_up_is_unreachable_until_it_is_there_again() -> None:
    talks: list[Talk] = []

    def agent(talk: Talk) -> None:
        talks.append(talk)
        healthy(talk)

    client, _ = client_of(agent, lambda _: None, healthy, clock=now)
    told = watched(client)
    async with client:
        await asyncio.sleep(3)
        talks[0].hang_up()
        await settle()
        assert state_of(client) == "unreachable"
        assert client.reach.error == "it hung up"
        since = client.reach.since
        await asyncio.sleep(5)  # the second says no first words for ten
        assert client.reach.since == since
        await asyncio.sleep(10)
        assert state_of(client) == "reached"
        assert client.reach.error is None
        assert client.reach.unreachable_since is None
    assert [state for state, _ in told] == ["reached", "unreachable", "reached"]


async def test_closing_the_client_is_no_loss_of_the_agent() -> None:
    client, _ = client_of(healthy, clock=now)
    told = watched(client)
    async with client:
        await settle()
    await settle()
    assert [state for state, _ in told] == ["reached"]
    assert state_of(client) == "unreachable"
    assert client.reach.losses == 0


async def test_an_agent_that_was_never_reached_tells_why() -> None:
    client, _ = client_of(lambda talk: talk.say({**GREETING, "version": 99}), clock=now)
    async with client:
        assert client.reach.error is None
        await settle()
        error = client.reach.error
        assert error is not None
        assert "speaks version 99" in error


async def test_a_mount_tells_since_when_its_agent_is_out_of_reach_and_what_was_known_before() -> None:
    client, _ = client_of(greeted(_mounts_and_falls_silent), lambda _: None, clock=now)
    async with client:
        mounts = MountManager(client, clock=now)
        info = await mounts.mount(MountOptions("0", "/run/uvmshare/x"))
        assert info.unreachable_since is None
        await asyncio.sleep(20)
        (info,) = mounts.mounts()
        assert info.state.value == "mounted"
        assert info.unreachable_since == client.reach.since


def _mounts_and_falls_silent(talk: Talk, request: dict[str, Any]) -> None:
    if request["op"] != "ping":
        result: Any = [] if request["op"] == "list" else {}
        talk.say({"id": request["id"], "ok": True, "result": result})


async def test_a_mount_that_the_guest_lost_is_told_and_so_is_that_it_is_there_again() -> None:
    client, _ = client_of(healthy, clock=now)  # it lists nothing, whatever it was asked to mount
    told: list[tuple[str, str]] = []
    async with client:
        mounts = MountManager(client, clock=now)
        mounts.on_change(lambda info, what: told.append((info.mount_path, what)))
        await settle()  # being reached, it is asked what it has
        await mounts.mount(MountOptions("0", "/run/uvmshare/x"))
        await settle()
        assert told == [], "nothing was lost yet"
        await mounts.settle()
        await settle()
    assert told == [("/run/uvmshare/x", "lost"), ("/run/uvmshare/x", "remounted")]
