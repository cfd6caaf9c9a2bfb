"""A fleet over three members of etcd, users who hold things, and somebody who breaks one thing after the other.

What lives here: gates, followers and users in this process, what is done to etcd and hosts, and the noting down. What
must not: what may come of it (`reference_history`). Hosts' daemons are those of `tests.fleet_model`; gates, followers
and etcd's client are the real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from tests.fleet.cluster import MEMBERS
from tests.fleet.fenced_hosts import Link
from tests.fleet.reference_history import (
    Backup,
    LeasedOwner,
    Reference,
    ReferenceHistory,
    Rest,
    Restore,
)
from tests.fleet_model.asking import ask
from tests.fleet_model.harness import ADMIN, ANN, FakeHost, placed, served
from tests.processes import DEADLINE

from uvmshare.errors import InvalidState, NotThere, OutcomeUnknown, StoreError, StoreFull, StoreUnavailable
from uvmshare.etcd.administration import Administration
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.etcd.protocol import Delete, Put, absent, unchanged
from uvmshare.fleet.documents import Tenant, encode
from uvmshare.fleet.fence import Fences
from uvmshare.fleet.follower import Follower
from uvmshare.fleet.gate import Gate
from uvmshare.fleet.keys import Keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from pathlib import Path

    from tests.fleet.cluster import Cluster

    from uvmshare.daemon.fleet_documents import NewServed
    from uvmshare.etcd.protocol import Store

__all__ = ["DISK", "FAULTS", "SETTINGS", "FleetChaos"]

DISK: Final = 512 << 20
"""Bytes of a member's disk: etcd keeps 128 MiB ready for its log alone."""
_QUOTA: Final = 32 << 20
SETTINGS: Final = (f"--quota-backend-bytes={_QUOTA}", "--snapshot-count=2000", "--max-wals=1", "--max-snapshots=1")
FAULTS: Final = (
    "kill leader",
    "kill member",
    "cut leader",
    "cut member",
    "stop member",
    "fill disk of leader",
    "fill disk of member",
    "fill database",
    "restore and follow",
    "restore and keep",
    "kill host",
    "cut host",
    "slow host",
)
_HOSTS: Final = ("h1", "h2")
_VMS: Final = {"a": "h1", "b": "h1", "c": "h2"}
_PATHS: Final = ("/srv/1", "/srv/2", "/srv/3")
_STAY: Final = 4
"""Owners without a lease."""
_LEASED: Final = 3
_LEASE: Final = 10
"""Seconds. A fault lasts less, unless the machine is so slow that no renewal came through, which is noted down."""
_PAUSE: Final = 0.02
"""Seconds at most between two requests of one owner."""
_LOOK: Final = 0.1
"""Seconds between two looks at what nobody tells of."""
_ASKED_MORE: Final = 30
"""Requests that are answered after a backup before it is restored, and while a fault lasts."""
_DELAY: Final = 0.3
"""Seconds that everything takes more on the way between etcd and a host that is slow."""
_BIG: Final = bytes(500_000)
_SCALE: Final = 60.0


async def _until(is_so: Callable[[], bool]) -> None:
    """Look until it is so."""
    async with asyncio.timeout(DEADLINE):
        while not is_so():  # noqa: ASYNC110  nobody tells of it
            await asyncio.sleep(_LOOK)


class _Host:
    """A host: its daemon, its follower, and its ways to the members, which can be cut."""

    def __init__(self, name: str, keys: Keys) -> None:
        self.fake = FakeHost(name)
        self.keys = keys
        self.links = [Link() for _ in range(MEMBERS)]
        self.urls: tuple[str, ...] = ()
        self.follower: Follower
        self._running: asyncio.Task[None] | None = None

    async def begin(self, urls: tuple[str, ...]) -> None:
        self.urls = tuple([await link.begin(url) for link, url in zip(self.links, urls, strict=True)])
        self.start()

    def start(self) -> None:
        @asynccontextmanager
        async def connect() -> AsyncIterator[Store]:
            store = EtcdStore(Endpoints(self.urls, timeout=5))
            try:
                yield store
            finally:
                await store.close()

        fake = self.fake
        fences = Fences(self.keys, fake.name, fake, clock=fake.clock, boot=lambda: fake.boot)
        self.follower = Follower(connect, self.keys, fake.name, fake, fake, chance=lambda: 0.0, fence=fences)
        self._running = asyncio.get_running_loop().create_task(self.follower.run())

    async def kill(self) -> None:
        """End its daemon at any moment; what it serves stays."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    def cut(self) -> None:
        for link in self.links:
            link.whole.clear()

    def mend(self) -> None:
        for link in self.links:
            link.whole.set()

    def slow(self, seconds: float) -> None:
        for link in self.links:
            link.delay = seconds

    async def end(self) -> None:
        await self.kill()
        for link in self.links:
            await link.end()

    def served(self) -> NewServed:
        """Return what a daemon tells of it (`Joining.served`)."""
        return served(self.fake, self.follower)


class FleetChaos:
    """A fleet, its users, and all that is noted down of them."""

    def __init__(self, cluster: Cluster, folder: Path, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.history = ReferenceHistory()
        self.done: list[str] = []
        self._folder = folder
        self._keys = Keys()
        self._hosts = {name: _Host(name, self._keys) for name in _HOSTS}
        self._gates: list[tuple[Gate, EtcdStore]] = []
        self._going = asyncio.Event()
        self._over = asyncio.Event()
        self._deaths: dict[int, asyncio.Event] = {}
        self._asking = 0
        self._number = 0
        self._answered = 0
        self._more = asyncio.Condition()

    # The fleet

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _connect(self, seconds: float = _SCALE) -> EtcdStore:
        urls = list(self.cluster.urls)
        self.random.shuffle(urls)
        return EtcdStore(Endpoints(tuple(urls), timeout=seconds))

    @asynccontextmanager
    async def _administrator(self, *urls: str) -> AsyncIterator[EtcdStore]:
        store = EtcdStore(Endpoints(urls or self.cluster.urls, timeout=_SCALE))
        try:
            yield store
        finally:
            await store.close()

    async def _start_gates(self) -> None:
        """Start the gates again, as whoever restores etcd does."""
        old, self._gates = self._gates, []
        for _ in range(2):
            store = self._connect(5)
            self._gates.append((Gate(store, self._keys), store))
        for _, store in old:
            await store.close()

    def _gate(self) -> Gate:
        return self.random.choice(self._gates)[0]

    async def _begin(self) -> None:
        await self.cluster.all_well()
        await self._start_gates()
        async with self._administrator() as store:
            registered = [Put(self._keys.registered(name), b"{}") for name in _HOSTS]
            await store.txn([], [Put(self._keys.tenant("acme"), encode(Tenant())), *registered])
        for host in self._hosts.values():
            await host.begin(self.cluster.urls)
        for vm, on in _VMS.items():
            gate = self._gate()
            await gate.add_vm(ANN, *await gate.want_vm(ANN, placed(vm, on)))

    async def _end(self) -> None:
        for host in self._hosts.values():
            await host.end()
        for _, store in self._gates:
            await store.close()

    def held(self) -> frozenset[Reference]:
        """Return what the hosts hold."""
        return frozenset(
            Reference(vm, path, owner)
            for host in self._hosts.values()
            for vm, held in host.fake.held().items()
            for path, owner in held
        )

    # Users

    async def _ask(self, reference: Reference, what: Any, name: str | None, lease: float | None) -> str | None:
        """Ask for one thing, and note it down; return the share's name while it is held."""
        asked, told = await ask(self._gate(), reference, what, name, lease)
        self.history.asked.append(asked)
        self._answered += asked.outcome == "made"
        async with self._more:
            self._more.notify_all()
        return told

    async def _use(self, owner: str, lease: float | None, until: asyncio.Event) -> None:
        """Be an owner: add and release, one after the other."""
        names: dict[Reference, str | None] = {}
        every = [Reference(vm, path, owner) for vm in _VMS for path in _PATHS]
        while not until.is_set():
            await self._going.wait()
            if until.is_set():
                return
            self._asking += 1
            try:
                reference = self.random.choice(every)
                name = names.get(reference)
                what = "release" if name is not None and self.random.random() < 0.5 else "add"
                names[reference] = await self._ask(reference, what, name, lease)
            finally:
                self._asking -= 1
                async with self._more:
                    self._more.notify_all()
            await asyncio.sleep(_PAUSE * self.random.random())

    async def _renew(self, noted: LeasedOwner, until: asyncio.Event) -> None:
        ending = asyncio.ensure_future(until.wait())
        try:
            while not until.is_set():
                began = self._now()
                try:
                    await self._gate().renew(ANN, noted.owner)
                except NotThere:
                    noted.lost.append(self._now())
                except StoreError:
                    pass
                else:
                    noted.renewed.append(began)
                    noted.answered.append(self._now())
                await asyncio.wait([ending], timeout=_LEASE / 5)
        finally:
            ending.cancel()

    async def _be_leased(self, number: int) -> None:
        """Be owners with a lease who die, one after the other."""
        while not self._over.is_set():
            self._number += 1
            noted = LeasedOwner(f"leased-{number}-{self._number}", _LEASE)
            self.history.owners.append(noted)
            until = self._deaths[number] = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._renew(noted, until))
                group.create_task(self._use(noted.owner, _LEASE, until))
            noted.died = self._now()

    async def _asked_more(self, number: int = _ASKED_MORE) -> None:
        """Wait until so many more requests are granted."""
        wanted = self._answered + number
        async with self._more:
            await asyncio.wait_for(self._more.wait_for(lambda: self._answered >= wanted), DEADLINE)

    async def _rest(self) -> None:
        """Have nobody ask, and note down what hosts hold when they hold what they should, or do not in a long time."""
        self._going.clear()
        async with self._more:
            await self._more.wait_for(lambda: not self._asking)

        def is_right() -> bool:
            return not self.history.wrongly_held([Rest(self._now(), self.held())])

        with contextlib.suppress(TimeoutError):  # what is wrong then is found in what is noted down
            await _until(is_right)
        self.history.rests.append(Rest(self._now(), self.held()))
        self._going.set()

    # What is broken

    async def _works(self) -> None:
        """Wait until there is a majority that takes a change."""
        async with self._administrator() as store:
            while True:
                with contextlib.suppress(StoreUnavailable, OutcomeUnknown):
                    await store.txn([], [Put("/probe", b"")])
                    return

    async def _break(self, fault: str) -> None:
        """Do one thing, see that the rest goes on, and undo it."""
        words = fault.split()
        if words[0] == "restore":
            await self._restore("mine" if words[-1] == "keep" else "follow")
        elif fault == "fill database":
            await self._fill_database()
        elif words[-1] == "host":
            await self._break_host(words[0])
        else:
            leader = await self.cluster.leader()
            others = [each for each in range(MEMBERS) if each != leader]
            number = leader if words[-1] == "leader" else self.random.choice(others)
            do: dict[str, tuple[Callable[[int], None], Callable[[int], None]]] = {
                "kill": (self.cluster.kill, self.cluster.start),
                "cut": (self.cluster.cut, self.cluster.mend),
                "stop": (self.cluster.stop, self.cluster.go_on),
            }
            if words[0] == "fill":
                await self._fill_disk(number)
            else:
                begin, undo = do[words[0]]
                begin(number)
                await self._works()
                await self._asked_more()
                undo(number)

    async def _fill_disk(self, number: int) -> None:
        """Have a member's disk be full until the member ends; make room, and start it, as an administrator does."""
        member = self.cluster.members[number]
        self.cluster.fill(number)
        async with self._administrator() as store:
            while not member.has_ended:
                with contextlib.suppress(StoreUnavailable, OutcomeUnknown):
                    await store.txn([], [Put("/fill", _BIG)])
        await self._works()
        await self._asked_more()
        self.cluster.free(number)
        self.cluster.kill(number)
        self.cluster.start(number)

    async def _fill_database(self) -> None:
        """Have etcd refuse changes for lack of room; then make room, and take its alarm back."""
        leases = [each for each in self.history.owners if each.died is None]
        async with self._administrator() as store:
            with contextlib.suppress(StoreFull):
                while True:
                    at = (await store.get("/fill")).found
                    compare = absent("/fill") if at is None else unchanged(at)
                    with contextlib.suppress(OutcomeUnknown):  # the one that fills it is made, or no answer came
                        await store.txn([compare], [Put("/fill", _BIG)])
            # Leases are renewed meanwhile.
            before = {each.owner: len(each.renewed) for each in leases}
            await _until(lambda: any(len(each.renewed) > before[each.owner] for each in leases))
            await self._make_room(store)

    async def _make_room(self, store: EtcdStore) -> None:
        await store.txn([], [Delete("/fill")])
        await Administration(store).compact((await store.get("/fill")).revision)
        for url in self.cluster.urls:
            async with self._administrator(url) as single:
                await single.get("/")  # it has compacted too
                await Administration(single).defragment()
        await Administration(store).disarm()

    async def _break_host(self, how: str) -> None:
        host = self._hosts[self.random.choice(_HOSTS)]
        if how == "slow":
            host.slow(_DELAY)
            await self._asked_more()
            host.slow(0.0)
        elif how == "kill":
            await host.kill()
            await self._asked_more(5)
            host.start()
        else:
            host.cut()
            await self._asked_more(5)
            host.mend()

    async def _restore(self, how: Any) -> None:
        """Take a backup, go on, and have etcd be what it was then."""
        leader = await self.cluster.leader()
        path = self._folder / f"backup-{len(self.history.backups)}"
        began = self._now()
        await asyncio.to_thread(self.cluster.back_up, path, leader)
        backup = Backup(began, self._now())
        self.history.backups.append(backup)
        await self._asked_more()
        stopped = self._now()
        await asyncio.to_thread(self.cluster.restore, path)
        await self.cluster.all_well()
        await self._start_gates()
        started = self._now()
        await _until(lambda: all(host.follower.held_back is not None for host in self._hosts.values()))
        held_first = self.held()
        await self._ask_of_held_back()
        held_last = self.held()
        for name, host in self._hosts.items():
            if how == "mine":
                await self._write_back(name, host.served())
            assert host.follower.accept()
        accepted = self._now()
        self.history.restores.append(Restore(backup, how, stopped, started, accepted, held_first, held_last))

    async def _ask_of_held_back(self) -> None:
        """Wait until users have asked for some more, whatever the answer was."""
        wanted = len(self.history.asked) + _STAY + _LEASED
        async with self._more:
            await asyncio.wait_for(self._more.wait_for(lambda: len(self.history.asked) >= wanted), DEADLINE)

    async def _write_back(self, host: str, served: NewServed) -> None:
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    written = await self._gate().write_back(ADMIN, host, served)
                except (StoreUnavailable, OutcomeUnknown, InvalidState):
                    continue
                assert not written.elsewhere
                return

    # All of it

    async def run(self, rounds: Iterable[str]) -> None:
        """Have these things happen, one a round."""
        try:
            await self._begin()
            self._going.set()
            async with asyncio.TaskGroup() as group:
                for number in range(_STAY):
                    group.create_task(self._use(f"stays-{number}", None, self._over))
                for number in range(_LEASED):
                    group.create_task(self._be_leased(number))
                await self._asked_more()
                for fault in rounds:
                    self.done.append(fault)
                    self._deaths[self.random.randrange(_LEASED)].set()
                    await self._break(fault)
                    await self.cluster.all_well()
                    await self._rest()
                    async with self._administrator() as store:
                        await Administration(store).compact((await store.get("/")).revision)
                self._over.set()
                for until in self._deaths.values():
                    until.set()
            await self._rest()
        finally:
            await self._end()
