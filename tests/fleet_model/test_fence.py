"""Hosts that serve one VM at a time, whatever is cut, stopped, killed or started again: never two at once.

The whole of it is in virtual time. Each host has a clock of its own, which goes at a rate of its own. A seed says what
happens; it is printed with what failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from tests.fleet_model.harness import ANN, FakeHost, Fleet, placed
from tests.fleet_model.serving import Noted, Served, overlaps, served

from uvmshare.errors import InvalidState, OutcomeUnknown, StillInUse, UvmshareError
from uvmshare.etcd.protocol import Put
from uvmshare.fleet.documents import Name, decode
from uvmshare.fleet.fence import Fences
from uvmshare.fleet.follower import Follower
from uvmshare.fleet.local import VmName
from uvmshare.testing.etcd import FakeStore
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from uvmshare.etcd.protocol import Changes
    from uvmshare.testing.etcd import FakeEtcd

structlog.configure(logger_factory=structlog.ReturnLoggerFactory())

BUILD = VmName("acme", "build")
LENGTH = 10.0
HOSTS = ("h1", "h2", "h3")


class StoppableStore(FakeStore):
    """A client of etcd whose process may be stopped: then nothing of it goes on, and its answers lie there.

    `late` says how many seconds each "request", "answer" and "change" is on its way.
    """

    def __init__(self, etcd: FakeEtcd, going: asyncio.Event, late: Callable[[str], float]) -> None:
        super().__init__(etcd)
        self._going = going
        self._late = late

    async def _arrive(self, what: str) -> None:
        await asyncio.sleep(self._late(what))
        await self._going.wait()

    async def _call(self, name: str, ask: Callable[[], Any], *, changes: bool = False) -> Any:
        await self._arrive("request")
        try:
            return await super()._call(name, ask, changes=changes)
        finally:
            await self._arrive("answer")

    @contextlib.asynccontextmanager
    async def watch(self, prefix: str, revision: int) -> AsyncIterator[AsyncIterator[Changes]]:
        async with super().watch(prefix, revision) as changes:

            async def arriving() -> AsyncGenerator[Changes, None]:
                async for each in changes:
                    await self._arrive("change")
                    yield each

            async with contextlib.aclosing(arriving()) as late:
                yield late


class FencedFleet(Fleet):
    """A fleet whose hosts note down when they serve VM `build`."""

    def __init__(self, *hosts: str) -> None:
        super().__init__(*hosts)
        self.history: list[Noted] = []
        self.late: Callable[[str, str], float] = lambda _, __: 0.0
        """How many seconds what is on its way to or from a host, "request", "answer" or "change"."""
        self.going = {host: asyncio.Event() for host in hosts}
        for name, host in self.hosts.items():
            self.going[name].set()
            self.watch(name, host)

    def watch(self, name: str, host: FakeHost) -> None:
        """Have a host note down when it serves, under a name."""
        loop = asyncio.get_running_loop()

        def note(what: str, vm: VmName) -> None:
            if vm == BUILD and what in ("told", "removed"):
                until = (host.until.get(vm, 0.0) - host.clock_begin) / host.clock_rate
                self.history.append(Noted(loop.time(), name, what, until))

        async def pause(_: str) -> None:
            await self.going[host.name].wait()
            await asyncio.sleep(0)

        host.note, host.pause = note, pause

    def connect(self, host: str) -> FakeStore:
        store = StoppableStore(self.etcd, self.going[host], lambda what: self.late(host, what))
        self.etcd._stores.append(store)
        return store

    def name(self) -> Name:
        (at,) = self.etcd.read(self.keys.name("acme", "build"))
        return decode(Name, at.value, at.key)

    def lives(self, host: str) -> bool:
        return self.etcd.find(self.keys.alive(host)) is not None

    def serves(self, host: str) -> bool:
        there = self.hosts[host]
        return BUILD in there.machines and there.until.get(BUILD, 0.0) > there.clock()

    async def reboot(self, host: str, seconds: float) -> None:
        """Have a host be off for a while."""
        await self.stop(host)
        fake = self.hosts[host]
        fake.machines.clear()
        fake.until.clear()
        self.history.append(Noted(asyncio.get_running_loop().time(), host, "removed"))
        await asyncio.sleep(seconds)
        fake.boot += "'"
        fake.clock_begin -= fake.clock()
        self.start(host)

    async def take(self, to: str) -> None:
        """Have a host take the VM, from one that lives or does not."""
        moving = self.name().moving
        if moving not in (None, to):
            await self.move_vm(to, "abort")
        await self.move_vm(to, take=not self.lives(self.name().host))


async def _fenced(*hosts: str) -> FencedFleet:
    fleet = FencedFleet(*hosts)
    await fleet.begin()
    await asyncio.sleep(LENGTH * 2)
    await fleet.add_vm(wanted=placed(fence=LENGTH))
    await fleet.add_share("/srv/x")
    return fleet


async def _one_trouble(fleet: FencedFleet, host: str, chance: random.Random) -> None:
    """Have something happen to a host or to etcd, for a while."""
    seconds = chance.choice((0.5, 3.0, 15.0, 40.0)) * chance.random()
    match chance.choice(("cut", "cut", "stop", "stop", "kill", "reboot", "leader", "majority", "lease")):
        case "cut":
            fleet.cut(host)
            await asyncio.sleep(seconds)
            fleet.mend(host)
        case "stop":
            fleet.going[host].clear()
            await asyncio.sleep(seconds)
            fleet.going[host].set()
        case "kill":
            await fleet.stop(host)
            await asyncio.sleep(seconds)
            fleet.start(host)
        case "reboot":
            await fleet.reboot(host, seconds)
        case "leader":
            fleet.etcd.change_leader()
        case "majority":
            fleet.etcd.stop()
            await asyncio.sleep(seconds / 4)
            fleet.etcd.start()
        case "lease":  # etcd has ended the lease of one that lives
            at = fleet.etcd.find(fleet.keys.alive(host))
            if at is not None:
                fleet.etcd.expire(at.lease)


async def _trouble(fleet: FencedFleet, host: str, chance: random.Random) -> None:
    while True:
        await asyncio.sleep(chance.uniform(0, 30))
        await _one_trouble(fleet, host, chance)


async def _takes(seed: int, takes: int) -> list[Served]:
    """Have a VM be taken so often while things happen to all hosts; return who served it when."""
    chance = random.Random(seed)
    fleet = await _fenced(*HOSTS)
    for each in fleet.hosts.values():
        each.clock_rate = chance.uniform(0.98, 1.02)
    on_its_way = random.Random(f"{seed} on its way")

    def late(_: str, __: str) -> float:
        return on_its_way.uniform(0, 12) if on_its_way.random() < 0.03 else on_its_way.uniform(0, 0.02)

    fleet.late = late
    troubles = [asyncio.ensure_future(_trouble(fleet, host, random.Random(f"{seed} {host}"))) for host in HOSTS]
    while fleet.name().epoch <= takes:
        to = chance.choice([host for host in HOSTS if host != fleet.name().host])
        with contextlib.suppress(UvmshareError, TimeoutError):
            async with asyncio.timeout(chance.choice((0.5, 20.0, 200.0))):  # whoever asks dies
                await fleet.take(to)
        await asyncio.sleep(chance.uniform(0, 10))
    for trouble in troubles:
        assert not trouble.done(), trouble.exception()
        trouble.cancel()
    await asyncio.gather(*troubles, return_exceptions=True)
    fleet.etcd.start()
    fleet.late = lambda _, __: 0.0
    for host in HOSTS:
        fleet.going[host].set()
        if host not in fleet._running:
            fleet.start(host)
        fleet.mend(host)
    await asyncio.sleep(200)
    at = fleet.name().host
    if not fleet.serves(at):  # nobody was left who had the last one who let go of it noticed
        await fleet.move_vm(at, "commit")
    assert [host for host in HOSTS if fleet.serves(host)] == [at]
    assert fleet.hosts[at].held() == {"build": {("/srv/x", "job")}}
    assert [host for host in HOSTS if fleet.hosts[host].machines] == [at]
    await fleet.end()
    return served(fleet.history)


def _try(seed: int, takes: int) -> None:
    try:
        found = run(_takes(seed, takes))
        assert overlaps(found) == []
        assert sum(each.by_itself for each in found) > takes / 20, "few were ended by their fence: nothing was tried"
        assert len({each.host for each in found}) == len(HOSTS)
    except BaseException as error:
        error.add_note(f"seed {seed}, {takes} takes")
        raise


@pytest.mark.parametrize("seed", range(3))
def test_never_two_hosts_serve_a_vm_whatever_is_cut_or_stopped(seed: int) -> None:
    _try(seed, 30)


@pytest.mark.long
def test_never_two_hosts_serve_a_vm_over_thousands_of_takes() -> None:
    for seed in range(100, 120):
        _try(seed, 200)


def test_without_the_wait_two_would_have_been_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fences, "wait", lambda *_: 0.0)
    assert any(overlaps(run(_takes(seed, 30))) for seed in range(3))


def test_the_check_finds_two_hosts_at_once_and_nothing_else() -> None:
    alone = [
        Noted(0, "a", "told", 10),
        Noted(5, "a", "told", 15),
        Noted(15, "b", "told", 25),
        Noted(20, "b", "removed"),
    ]
    assert served(alone) == [Served(0, 15, "a", by_itself=True), Served(15, 20, "b", by_itself=False)]
    assert overlaps(served(alone)) == []
    late = [Noted(20, "a", "told", 15)]  # what a process that was stopped told then is past
    assert overlaps(served([*alone[:3], *late, *alone[3:]])) == []
    both = [Noted(0, "a", "told", 10), Noted(9, "b", "told", 19)]
    assert [(one.host, other.host) for one, other in overlaps(served(both))] == [("a", "b")]


async def _a_host_that_is_cut_off() -> None:
    fleet = await _fenced("h1", "h2")
    assert fleet.serves("h1")
    assert (await fleet.gate.vm(ANN, "build")).fence == LENGTH
    with pytest.raises(InvalidState, match="without --take"):
        await fleet.move_vm("h2", take=True)
    fleet.cut("h1")
    await asyncio.sleep(LENGTH + 1)
    assert not fleet.serves("h1"), "it stops by itself"
    assert "serves on for 10 s at most" in str((await fleet.gate.vm(ANN, "build")).error)
    with pytest.raises(InvalidState, match=r"vm move --take\)"):
        await fleet.move_vm("h2")
    with pytest.raises(StillInUse, match="10 s more"):
        await fleet.remove_vm()
    began = asyncio.get_running_loop().time()
    assert (await fleet.move_vm("h2", take=True)).host == "h2"
    assert asyncio.get_running_loop().time() - began >= LENGTH + 1, "nobody knows when the other was told last"
    assert fleet.serves("h2")
    fleet.mend("h1")
    await asyncio.sleep(60)
    assert not fleet.hosts["h1"].machines
    assert fleet.serves("h2")
    began = asyncio.get_running_loop().time()
    await fleet.move_vm("h1")
    assert asyncio.get_running_loop().time() - began < LENGTH / 2, "the other let go of it, and said so"
    assert overlaps(served(fleet.history)) == []
    await fleet.end()


def test_a_host_that_is_cut_off_stops_by_itself_and_another_takes_its_vm() -> None:
    run(_a_host_that_is_cut_off())


async def _taken_before_it_let_go() -> None:
    fleet = await _fenced(*HOSTS)
    await fleet.stop("h1")
    await asyncio.sleep(LENGTH / 10)
    fleet.etcd.expire(fleet.etcd.find(fleet.keys.alive("h1")).lease)  # type: ignore[union-attr]  # it lives
    moving = asyncio.ensure_future(fleet.move_vm("h2", take=True))
    await asyncio.sleep(2)
    moving.cancel()
    assert (await fleet.move_vm("h3")).host == "h3", "the second one lives, and lets go of it at once"
    assert fleet.serves("h3")
    assert overlaps(served(fleet.history)) == []
    await fleet.end()


def test_a_vm_that_is_taken_again_before_the_first_host_let_go_waits_for_both() -> None:
    run(_taken_before_it_let_go())


async def _cut_off_when_it_began() -> None:
    fleet = FencedFleet("h1", "h2")
    await fleet.begin()
    await asyncio.sleep(60)
    note, begun = fleet.hosts["h1"].note, asyncio.Event()

    def cut(what: str, vm: VmName) -> None:
        note(what, vm)
        if what == "told":
            fleet.cut("h1")
            begun.set()

    fleet.hosts["h1"].note = cut
    adding = asyncio.ensure_future(fleet.add_vm(wanted=placed(fence=LENGTH)))
    await begun.wait()
    assert fleet.serves("h1")
    fleet.etcd.expire(fleet.etcd.find(fleet.keys.alive("h1")).lease)  # type: ignore[union-attr]  # it lives
    await fleet.move_vm("h2", take=True)
    with pytest.raises(OutcomeUnknown):
        await adding
    assert fleet.serves("h2")
    assert overlaps(served(fleet.history)) == []
    await fleet.end()


def test_a_host_that_is_cut_off_as_soon_as_it_serves_is_waited_for() -> None:
    run(_cut_off_when_it_began())


async def _answered_late() -> None:
    fleet = await _fenced("h1", "h2")
    late = {("h1", "answer"): LENGTH - 1, ("h1", "change"): LENGTH * 10}
    fleet.late = lambda host, what: late.get((host, what), 0.0)
    await asyncio.sleep(LENGTH / 3 + 0.1)  # it was renewed since, and has no answer yet
    fleet.etcd.expire(fleet.etcd.find(fleet.keys.alive("h1")).lease)  # type: ignore[union-attr]  # it lives
    await fleet.move_vm("h2", take=True)
    assert fleet.serves("h2")
    await asyncio.sleep(LENGTH)
    assert overlaps(served(fleet.history)) == []
    await fleet.end()


def test_the_time_of_a_renewal_runs_from_when_it_was_sent() -> None:
    run(_answered_late())


async def _one_hangs() -> None:
    fleet = await _fenced("h1", "h2")
    await fleet.add_vm(wanted=placed("other", fence=3))
    host, other = fleet.hosts["h1"], VmName("acme", "other")
    host.hangs.add(BUILD)
    for _ in range(40):
        await asyncio.sleep(0.5)
        assert host.until[other] > host.clock(), "it is served as ever"
    assert not fleet.serves("h1")
    host.hangs.clear()
    await asyncio.sleep(LENGTH)
    assert fleet.serves("h1")
    assert overlaps(served(fleet.history)) == []
    await fleet.end()


def test_a_file_server_that_hangs_keeps_no_other_from_its_time() -> None:
    run(_one_hangs())


async def _left_behind() -> None:
    fleet = await _fenced("h1", "h2")
    fleet.hosts["h1"].left = "a process that does not end"
    began = asyncio.get_running_loop().time()
    await fleet.move_vm("h2")
    assert asyncio.get_running_loop().time() - began > LENGTH / 2
    assert fleet.serves("h2")
    assert overlaps(served(fleet.history)) == []
    await fleet.end()


def test_a_host_that_cannot_be_sure_of_the_end_says_that_it_let_go_when_the_time_is_over() -> None:
    run(_left_behind())


async def _a_twin() -> None:
    fleet = await _fenced("h1")
    twin = FakeHost("h1")
    twin.boot = "another machine"
    fleet.watch("twin", twin)
    await asyncio.sleep(60)
    assert fleet.serves("h1")

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[FakeStore]:
        store = fleet.etcd.connect()
        yield store
        await store.close()

    fence = Fences(fleet.keys, "h1", twin, clock=twin.clock, boot=lambda: twin.boot)
    following = asyncio.ensure_future(
        Follower(connect, fleet.keys, "h1", twin, twin, chance=lambda: 0.0, fence=fence).run()
    )
    await asyncio.sleep(60)
    assert overlaps(served(fleet.history)) == []
    assert not fleet.serves("h1"), "its name is another machine's"
    assert twin.until[BUILD] > twin.clock()
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await fleet.end()


def test_of_two_machines_of_one_name_one_serves() -> None:
    run(_a_twin())


async def _another_etcd() -> None:
    fleet = await _fenced("h1", "h2")
    backup = fleet.etcd.backup()
    await fleet.move_vm("h2")
    fleet.etcd.restore(backup)
    await asyncio.sleep(LENGTH / 5)
    assert fleet.followers["h1"].accept()
    await asyncio.sleep(60)
    assert fleet.serves("h1")
    assert fleet.followers["h2"].accept()
    await asyncio.sleep(60)
    assert not fleet.hosts["h2"].machines
    assert overlaps(served(fleet.history)) == []
    await fleet.end()


def test_hosts_that_follow_a_backup_wait_until_what_it_has_forgotten_is_over() -> None:
    run(_another_etcd())


async def _removed() -> None:
    fleet = await _fenced("h1", "h2")
    fleet.cut("h1")
    await asyncio.sleep(LENGTH * 2)
    with pytest.raises(OutcomeUnknown):
        await fleet.remove_vm(force=True)
    (term,) = fleet.etcd.read(fleet.keys.term("h1"))
    assert term.value == b"1"
    await fleet.gate_store.txn([], [Put(fleet.keys.registered("h3"), b"{}")])
    fleet.mend("h1")
    await asyncio.sleep(60)
    assert not fleet.hosts["h1"].machines
    await fleet.end()


def test_a_fenced_vm_that_is_removed_is_renewed_no_more() -> None:
    run(_removed())
