"""Agents of several guests, in a process of their own; each turns hostile in one of many manners when it is told.

    python -m tests.daemon.hostile_agents SOCKET...

On each SOCKET one agent listens. A line on standard input has the names of manners, in the order of the sockets, as a
JSON list; it is answered by a line when it is so. An agent whose manner is "honest" mounts, unmounts and lists.

What lives here: the manners. What must not: what is to hold then.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from typing import TYPE_CHECKING, Any, Final

from tests.hostile_answers import LISTS, WRONG

from uvmshare.guest import wire
from uvmshare.testing.agents import GREETING, Talk

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MANNERS"]


class Guest:
    """A guest as far as its agent tells of it: its mounts."""

    def __init__(self) -> None:
        self.mounts: dict[str, dict[str, Any]] = {}

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request and return the answer to it."""
        good = {"id": request["id"], "ok": True}
        if request["op"] == "list":
            return {**good, "result": list(self.mounts.values())}
        if request["op"] == "modify":
            settings, options = request["request"]["Settings"], request["options"]
            path = settings["MountPath"]
            if request["request"]["RequestType"] == "Add":
                told = {"mount_path": path, "share_name": settings["ShareName"], "port": settings["Port"]}
                self.mounts[path] = {**told, "read_only": settings.get("ReadOnly", False), **options}
            else:
                self.mounts.pop(path, None)
        return {**good, "result": {}}


def removes(request: dict[str, Any]) -> bool:
    """Tell whether the guest is asked to unmount."""
    return request["op"] == "modify" and bool(request["request"]["RequestType"] == "Remove")


class Manner:
    """How an agent behaves. `hears` has each request behind hello; `greets`, if it is given, is for new connections."""

    def __init__(
        self,
        hears: Callable[[Talk, dict[str, Any], Guest], None],
        greets: Callable[[Talk], None] | None = None,
    ) -> None:
        self.hears = hears
        self.greets = greets


def honest(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    talk.say(guest.answer(request))


def says(said: bytes) -> Manner:
    return Manner(lambda talk, request, guest: talk.say(said))


def lists(result: object) -> Manner:
    """An agent that answers like an honest one, keeps everything, and tells of mounts as it likes."""

    def hears(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
        talk.say({"id": request["id"], "ok": True, "result": result if request["op"] == "list" else {}})

    return Manner(hears)


def refuses(code: str, message: str) -> Manner:
    """An agent that unmounts nothing, and says so."""

    def hears(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
        error = {"code": code, "message": message}
        talk.say({"id": request["id"], "ok": False, "error": error} if removes(request) else guest.answer(request))

    return Manner(hears)


def is_silent(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    pass


def answers_pings(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    if request["op"] == "ping":
        honest(talk, request, guest)


def chatters(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    """Answer, and go on for as long as anybody listens."""
    honest(talk, request, guest)
    _chatter(talk)


def _chatter(talk: Talk) -> None:
    if talk.open:
        talk.say(b'{"id":77,"ok":true,"result":{}}\n' * 2000)
        asyncio.get_running_loop().call_later(0.001, _chatter, talk)


def answers_twice(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    honest(talk, request, guest)
    honest(talk, request, guest)


def answers_at_length(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    """Answer with the longest line that there may be; nothing of it is against the rules."""
    answer = wire.encode({**guest.answer(request), "x": ""})
    talk.say(answer.replace(b'"x":""', b'"x":"' + b"x" * (wire.MAX_LINE - len(answer) - 16) + b'"'))


def answers_byte_by_byte(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    _drip(talk, wire.encode(guest.answer(request)))


def _drip(talk: Talk, rest: bytes) -> None:
    if talk.open and rest:
        talk.say(rest[:1])
        asyncio.get_running_loop().call_later(0.01, _drip, talk, rest[1:])


def hangs_up(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    talk.hang_up()


def hangs_up_in_the_answer(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    talk.say(wire.encode(guest.answer(request))[:-5])
    talk.hang_up()


def talks_nonsense(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    talk.say(random.Random(request["id"]).randbytes(5000))


def begins_an_answer(talk: Talk, request: dict[str, Any], guest: Guest) -> None:
    talk.say(b'{"id":')


def refuses_hello(talk: Talk) -> None:
    talk.heard = lambda _: talk.say({"id": 0, "ok": False, "error": {"code": "refused", "message": "not you"}})
    talk.say(GREETING)


NOBODYS: Final = {"mount_path": "/run/uvmshare/never", "share_name": "7", "port": 5640, "msize": 8192}

MANNERS: Final[dict[str, Manner]] = {
    "honest": Manner(honest),
    "an unmount is refused": refuses("refused", "not below what is allowed"),
    "an unmount fails": refuses("failed", "no"),
    "an unmount may have failed": refuses("unknown", "perhaps"),
    "it is busy for ever": refuses("busy", "sh (pid 7) works in it"),
    "nothing is answered": Manner(is_silent),
    "nothing but pings is answered": Manner(answers_pings),
    "it says that it unmounted, and did not": lists([]),
    "it lists mounts of nobody's": lists([NOBODYS]),
    "it lists as many mounts as there may be": lists([{**NOBODYS, "mount_path": f"/{n}"} for n in range(2000)]),
    "it chatters": Manner(chatters),
    "everything is answered twice": Manner(answers_twice),
    "every answer is as long as it may be": Manner(answers_at_length),
    "answers come byte by byte": Manner(answers_byte_by_byte),
    "it hangs up on each request": Manner(hangs_up),
    "it hangs up in the middle of each answer": Manner(hangs_up_in_the_answer),
    "it talks nonsense": Manner(talks_nonsense),
    "an answer begins and does not end": Manner(begins_an_answer),
    "hello is refused": Manner(is_silent, refuses_hello),
    "there is no greeting": Manner(is_silent, lambda _: None),
    "the greeting is no object": Manner(is_silent, lambda talk: talk.say(b"7\n")),
    "the greeting does not end": Manner(is_silent, lambda talk: talk.say(b"x" * (1 << 20))),
    "it hangs up instead of a greeting": Manner(is_silent, lambda talk: talk.hang_up()),
    **{f"to each request it says: {what}": says(said) for what, said in WRONG.items()},
    **{f"it lists {what}": lists(result) for what, result in LISTS.items()},
}


class _Talk(Talk):
    """A connection with a socket under it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__()
        self._socket = transport

    def say(self, data: bytes | dict[str, Any]) -> None:
        if self.open:
            self._socket.write(data if isinstance(data, bytes) else wire.encode(data))

    def hang_up(self) -> None:
        self.open = False
        self._socket.close()


class _Connected(asyncio.Protocol):
    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._talk = _Talk(transport)
        self._agent.greet(self._talk)

    def data_received(self, data: bytes) -> None:
        self._talk.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._talk.open = False
        self._agent.talks.discard(self._talk)


class Agent:
    """The agent of one guest."""

    def __init__(self) -> None:
        self.talks: set[Talk] = set()
        self._guest = Guest()
        self._manner = MANNERS["honest"]

    def greet(self, talk: Talk) -> None:
        self.talks.add(talk)
        talk.heard = lambda request: self._hear(talk, request)
        if self._manner.greets is not None:
            self._manner.greets(talk)
        else:
            talk.say(GREETING)

    def _hear(self, talk: Talk, request: dict[str, Any]) -> None:
        if request["op"] == "hello":
            talk.say({"id": 0, "ok": True, "result": {}})
        else:
            self._manner.hears(talk, request, self._guest)

    def turn(self, manner: str) -> None:
        """Behave in another manner from now on; what depends on the first words needs a new connection."""
        if self._manner is MANNERS[manner]:
            return
        self._manner = MANNERS[manner]
        if self._manner.greets is not None or manner == "honest":
            for talk in tuple(self.talks):
                talk.hang_up()
            self._guest.mounts.clear()


async def main(paths: list[str]) -> None:
    loop = asyncio.get_running_loop()
    agents = [Agent() for _ in paths]
    for agent, path in zip(agents, paths, strict=True):
        await loop.create_unix_server(lambda agent=agent: _Connected(agent), path)  # type: ignore[misc]  # it cannot infer the default's type
    print("ready", flush=True)  # noqa: T201  the test waits for it
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        for agent, manner in zip(agents, json.loads(line), strict=True):
            agent.turn(manner)
        print("turned", flush=True)  # noqa: T201  as above


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
