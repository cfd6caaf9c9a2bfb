"""What an agent does by itself with a mount, a loss and a new mount, is told, however it is noticed, and once each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from uvmshare.mounts import AgentClient, MountManager, MountOptions
from uvmshare.testing.agents import ScriptedStreams, greeted
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.testing.agents import Talk

PATH = "/run/uvmshare/x"
A_PING = 6.0
"""Seconds in which the agent is asked for a word."""


class Told:
    """An agent with one mount, as the agent tells of it, and what the MountManager makes of that."""

    def __init__(self, *, adopted: int = 0, old: bool = False) -> None:
        self.state, self.again, self.changes = "mounted", adopted, 0
        self.old = old
        self.listed = 0
        self.events: list[str] = []

    def answer(self, talk: Talk, request: dict[str, Any]) -> None:
        result: Any = {"chosen": ""} if self.old else {"chosen": "", "again": self.again}
        if request["op"] == "ping":
            result = {} if self.old else {"changes": self.changes}
        elif request["op"] == "list":
            self.listed += 1
            result = [
                {"mount_path": PATH, "share_name": "0", "port": 5640, "cache": "none", "msize": 8192}
                | {"state": self.state, "again": self.again}
            ]
        talk.say({"id": request["id"], "ok": True, "result": result})

    def now(self, state: str, again: int = 0) -> None:
        self.state, self.again = state, self.again + again
        self.changes += 1 + again

    async def told_after(self, seconds: float = A_PING) -> list[str]:
        await asyncio.sleep(seconds)
        told, self.events = self.events, []
        return told


def with_a_mount(test: Callable[[Told], Any], **more: Any) -> Told:
    agent = Told(**more)

    async def story() -> None:
        client = AgentClient("unix:/nowhere", streams=ScriptedStreams(greeted(agent.answer)))
        async with client, MountManager(client) as mounts:
            mounts.on_change(lambda info, what: agent.events.append(what))
            await client.reached()
            await mounts.mount(MountOptions("0", PATH, cache="none", msize=8192), owner="a")
            assert await agent.told_after() == []
            await test(agent)

    run(story())
    return agent


def test_a_loss_and_the_new_mount_are_told_when_each_is_seen() -> None:
    async def test(agent: Told) -> None:
        agent.now("broken")
        assert await agent.told_after() == ["lost"]
        assert await agent.told_after(60.0) == [], "nothing is told twice"
        agent.now("mounted", again=1)
        assert await agent.told_after() == ["remounted"]

    with_a_mount(test)


def test_what_happened_between_two_looks_is_told_too() -> None:
    async def test(agent: Told) -> None:
        agent.now("mounted", again=3)
        assert await agent.told_after() == ["lost", "remounted"]
        agent.now("broken", again=1)
        assert await agent.told_after() == ["lost", "remounted", "lost"]
        agent.now("mounted")  # by another agent, which counts from the beginning
        agent.again = 0
        assert await agent.told_after() == ["remounted"]

    with_a_mount(test)


def test_what_an_agent_did_before_it_was_asked_for_the_mount_is_not_told() -> None:
    async def test(agent: Told) -> None:
        agent.now("mounted")
        assert await agent.told_after() == []

    with_a_mount(test, adopted=7)


def test_an_agent_of_an_earlier_release_is_asked_for_nothing_more() -> None:
    async def test(agent: Told) -> None:
        listed = agent.listed
        agent.now("mounted", again=1)
        assert await agent.told_after(600.0) == []
        assert agent.listed == listed

    with_a_mount(test, old=True)


def test_an_agent_that_changes_its_mind_with_each_word_is_asked_once_a_ping() -> None:
    async def test(agent: Told) -> None:
        before = agent.listed
        for _ in range(20):
            agent.now("mounted")
            await asyncio.sleep(A_PING)
        assert 0 < agent.listed - before <= 20

    with_a_mount(test)
