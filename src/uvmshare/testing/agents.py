r"""Agents that say what a test likes, on streams without sockets: they run in any event loop, a virtual one too.

    streams = ScriptedStreams(lambda talk: talk.say(b"no JSON\n"), healthy)
    async with AgentClient("unix:/nowhere", streams=streams) as client:
        await client.reached()

What lives here: `ScriptedStreams`, `Talk`, and an agent with manners. What must not: what is to hold then.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from uvmshare.guest import wire

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.mounts.channel import Stream

__all__ = ["GREETING", "ScriptedStreams", "Talk", "greeted", "healthy"]

GREETING: Final[dict[str, Any]] = {
    "uvmshare": "agent",
    "version": wire.VERSION,
    "agent": "a",
    "boot": "b",
    "nonce": "c",
}


class Talk:
    """One connection, as its agent sees it. `heard` is called with each request of the host's."""

    def __init__(self) -> None:
        self.reader = asyncio.StreamReader()
        self.heard: Callable[[dict[str, Any]], None] = lambda _: None
        self.reads = True
        """Whether it takes what the host writes."""
        self.open = True
        self._unread = 0
        self._lines = wire.Lines()

    def say(self, data: bytes | dict[str, Any]) -> None:
        """Say bytes, or a message."""
        if self.open:
            self.reader.feed_data(data if isinstance(data, bytes) else wire.encode(data))

    def hang_up(self) -> None:
        """End the stream."""
        if self.open:
            self.open = False
            self.reader.feed_eof()

    # What the host does with it, as with an asyncio.StreamWriter and its transport.

    @property
    def transport(self) -> Talk:
        """The transport of the writer, which is the same here."""
        return self

    def write(self, data: bytes) -> None:
        """Hear what the host says."""
        if not self.reads:
            self._unread += len(data)
        elif self.open:
            for line in self._lines.feed(data):
                self.heard(json.loads(line))

    def get_write_buffer_size(self) -> int:
        """Return how many bytes the agent did not take."""
        return self._unread

    def is_closing(self) -> bool:
        """Tell whether nothing is said any more."""
        return not self.open

    def abort(self) -> None:
        """End it, as the host does."""
        self.hang_up()

    close = abort


class ScriptedStreams:
    """Streams to one agent after the other; the last one is there for ever."""

    def __init__(self, *agents: Callable[[Talk], None]) -> None:
        self._agents = deque(agents)
        self.given = 0
        """How many streams the host has taken."""

    async def next(self) -> Stream:
        """Return the stream to the next agent."""
        self.given += 1
        talk = Talk()
        agent = self._agents.popleft() if len(self._agents) > 1 else self._agents[0]
        agent(talk)
        return talk.reader, cast("asyncio.StreamWriter", talk)

    async def aclose(self) -> None:
        """Nothing is kept."""


def greeted(then: Callable[[Talk, dict[str, Any]], None]) -> Callable[[Talk], None]:
    """Return an agent that greets as it should, and does `then` with every later request."""

    def agent(talk: Talk) -> None:
        def heard(request: dict[str, Any]) -> None:
            if request["op"] == "hello":
                talk.say({"id": 0, "ok": True, "result": {}})
            else:
                then(talk, request)

        talk.heard = heard
        talk.say(GREETING)

    return agent


def _answer(talk: Talk, request: dict[str, Any]) -> None:
    results: dict[str, Any] = {"list": [], "health": [], "report": {"kernel": "6.1", "time": 1.0}}
    talk.say({"id": request["id"], "ok": True, "result": results.get(request["op"], {})})


healthy: Final = greeted(_answer)
"""An agent that does what it is asked, and has no mounts."""
