"""A daemon whose VMs have hostile agents, all at the same time, and one VM whose agent is healthy.

In rounds: every agent is honest and each VM's owner maps a directory with a lease; then each agent but one turns
hostile, in a manner of its own; then the leases end. What a healthy VM's user waits for is counted in turns of the
daemon's loop and in bytes that a turn looks at, which is the same on every machine; the long test also takes the time.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from tests.daemon.hostile_agents import MANNERS
from uvicorn.protocols.http import h11_impl

from uvmshare.daemon import mounts
from uvmshare.guest import wire
from uvmshare.mounts import agent_client, connection, engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.machine import Machine

HOSTILE: Final = [manner for manner in MANNERS if manner != "honest"]
SHORT: Final = [manner for manner in HOSTILE if ": " not in manner][:24]
"""The manners of the short test. Those that only differ in what is said are in tests/mounts, too."""
GUESTS: Final = 8
LEASE: Final = 2.0
TARGET: Final = "/run/uvmshare/round-"
MOST_GROWN: Final = 1 << 20
"""Bytes; what is kept of two rounds is some hundred events, and what the interpreter keeps for itself."""


class Crowd:
    """The agents of all guests; the first is that of the healthy VM."""

    def __init__(self, running: Running, guests: int) -> None:
        self.paths = [f"{running.home.folder}/agent-{n}" for n in range(guests + 1)]
        command = [sys.executable, "-m", "tests.daemon.hostile_agents", *self.paths]
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root)
        self._told("ready")
        self.vms = [f"vm-{n}" for n in range(guests + 1)]
        self.machines: list[Machine] = []
        for vm, path in zip(self.vms, self.paths, strict=True):
            running.add_vm(vm, agent=f"unix:{path}")
        by_id = {machine.record.wanted.id: machine for machine in running.service.machines.values()}
        self.machines = [by_id[vm] for vm in self.vms]

    def _told(self, word: str) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline().decode().strip() == word

    def turn(self, manners: list[str]) -> None:
        """Have the agents behave so from now on; the healthy one stays as it is, and so do those that are left over."""
        manners = ["honest", *manners]
        manners += ["honest"] * (len(self.vms) - len(manners))
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(manners).encode() + b"\n")
        self._process.stdin.flush()
        self._told("turned")

    async def reached(self) -> None:
        """Wait until the daemon is connected with each agent."""
        for machine in self.machines:
            assert machine.agent is not None
            while machine.agent.info is None:
                await machine.agent._changed.wait()

    def end(self) -> None:
        self._process.communicate()


class Work:
    """What the daemon's loop does: turns, what agents said in each, and the turns that a request takes."""

    def __init__(self, running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
        loop: Any = running.loop
        self.turns = 0
        self.requests: list[int] = []
        """Of each request of the API, how many turns it took from its last byte to its answer."""
        self.most: Counter[int] = Counter()
        """By the longest line that a connection may have: the most bytes of it that one turn looked at."""
        self._here: Counter[Any] = Counter()
        self._thread = running.call(_thread)
        run_once, feed = loop._run_once, wire.Lines.feed
        run_asgi = h11_impl.RequestResponseCycle.run_asgi

        def counted_turn() -> None:
            self.turns += 1
            self._here.clear()
            run_once()

        def counted_feed(lines: wire.Lines, data: bytes) -> list[bytes]:
            if threading.get_ident() == self._thread:
                self._here[lines] += len(data)
                self.most[lines._longest] = max(self.most[lines._longest], self._here[lines])
            return feed(lines, data)

        async def counted_request(cycle: Any, app: Any) -> None:
            begun = self.turns
            await run_asgi(cycle, app)
            self.requests.append(self.turns - begun)

        monkeypatch.setattr(loop, "_run_once", counted_turn)
        monkeypatch.setattr(wire.Lines, "feed", counted_feed)
        monkeypatch.setattr(h11_impl.RequestResponseCycle, "run_asgi", counted_request)

    def of(self, client: Client, times: int = 8) -> int:
        """Return the fewest turns that one of some requests of the healthy VM's user took.

        The most would tell of the machine: while a request's thread waits for a processor, the loop turns.
        """
        self.requests.clear()
        for _ in range(times):
            assert [mount.state for mount in client.mounts("vm-0")] == ["mounted"]
        return min(self.requests)


async def _thread() -> int:
    return threading.get_ident()


@contextlib.contextmanager
def crowded(running: Running, guests: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    for module in (mounts, engine):  # how long a guest may take is no matter here
        monkeypatch.setattr(module, "REVOKE_GRACE", 0.05)
    for name in ("_REDIAL_BROKEN", "_REDIAL_LONGEST"):  # so that they have more occasion
        monkeypatch.setattr(agent_client, name, 0.2)
    crowd = Crowd(running, guests)
    try:
        yield crowd
    finally:
        crowd.end()


def play(running: Running, client: Client, crowd: Crowd, number: int, manners: list[str]) -> None:
    """Play a round to the point where the agents are hostile and the leases have not ended."""
    crowd.turn([])
    running.call(crowd.reached)
    path = running.home.directory("project")
    for vm in crowd.vms[1 : len(manners) + 1]:
        mount = client.mounts.map(vm, path, f"{TARGET}{number}", owner="job", lease=LEASE)
        assert mount.state == "mounted", vm
    crowd.turn(manners)


def end_leases(running: Running, client: Client, crowd: Crowd, manners: list[str]) -> None:
    """Let the leases end, and see that the guests have lost what they were on."""
    running.pass_time(LEASE)
    for vm, manner in zip(crowd.vms[1:], manners, strict=False):
        assert client.shares(vm) == [], manner
        for mount in client.mounts(vm):
            assert (mount.state, mount.share, mount.references) == ("revoked", None, ()), manner


def test_hostile_agents_keep_no_share_delay_nobody_and_fill_no_memory(
    daemon: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(SHORT) >= 20, "as many manners"
    rounds = [SHORT[at : at + GUESTS] for at in range(0, len(SHORT), GUESTS)]
    with crowded(daemon, GUESTS, monkeypatch) as crowd:
        client.mounts.map("vm-0", daemon.home.directory("healthy"), f"{TARGET}healthy")
        work = Work(daemon, monkeypatch)
        quiet = work.of(client)
        sizes: list[int] = []
        tracemalloc.start()
        try:
            for number, manners in enumerate(rounds):
                play(daemon, client, crowd, number, manners)
                assert work.of(client) <= 3 * quiet, manners
                end_leases(daemon, client, crowd, manners)
                assert work.of(client) <= 3 * quiet, manners
                gc.collect()
                sizes.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
        assert sizes[-1] - sizes[0] < MOST_GROWN, sizes
        greeting, later = work.most[connection._LONGEST_FIRST_WORDS], work.most[wire.MAX_LINE]
        assert greeting <= connection._LONGEST_FIRST_WORDS + connection._PIECE
        assert later <= connection._PIECE, "what one turn of the loop looks at of one agent"
        keepers = [machine.agent._keeping for machine in crowd.machines if machine.agent is not None]
        assert not any(keeper is None or keeper.done() for keeper in keepers)
        client.mounts.unmap("vm-0", f"{TARGET}healthy")
        assert client.shares("vm-0") == []


@pytest.mark.long
def test_every_manner_of_hostile_agent_at_the_same_time_leaves_a_daemon_that_answers(
    daemon: Running, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Print the time, too: the median of some hundred answers, and the best of some tries, since others run beside."""
    with crowded(daemon, len(HOSTILE), monkeypatch) as crowd:
        client.mounts.map("vm-0", daemon.home.directory("healthy"), f"{TARGET}healthy")
        quiet = min(_seconds(client) for _ in range(5))
        for number in range(2):
            play(daemon, client, crowd, number, HOSTILE)
            loud = min(_seconds(client) for _ in range(5))
            print(f"{len(HOSTILE)} hostile agents: {loud * 1e3:.2f} ms an answer, quiet {quiet * 1e3:.2f} ms")  # noqa: T201  the record
            (healthy,) = client.mounts("vm-0")
            assert healthy.state == "mounted"
            end_leases(daemon, client, crowd, HOSTILE)


def _seconds(client: Client) -> float:
    """Return the median of what answers take to a healthy VM's user."""
    took = []
    for _ in range(100):
        begun = time.perf_counter()
        client.mounts("vm-0")
        took.append(time.perf_counter() - begun)
    return statistics.median(took)
