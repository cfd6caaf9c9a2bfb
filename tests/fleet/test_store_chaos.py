"""What the store promises, while members of etcd are killed, cut off and stopped: the history is checked afterwards."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Final

import pytest
from tests.fleet.cluster import MEMBERS, cluster_in
from tests.fleet.store_history import Kept, StoreHistory, Write

from uvmshare.errors import (
    LeaseNotFound,
    StoreOutcomeUnknown,
    StoreReplaced,
    StoreUnavailable,
    WatchEnded,
)
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.etcd.protocol import Put, absent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.fleet.cluster import Cluster

    from uvmshare.etcd.protocol import Changes, Event

WRITERS: Final = 3
LEASE: Final = 10
"""Seconds. A fault lasts less, unless the machine is so slow that no renewal came through, which is noted down."""

_SCALE: Final = 60.0
"""Seconds that a call may take: a machine four times slower than this one loses nothing by it."""


class Chaos:
    """Clients that note down what they do, and somebody who breaks things meanwhile."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster = cluster
        self.random = random.Random(seed)
        self.history = StoreHistory()
        self.over = asyncio.Event()
        self.first = 0
        self.numbers = 0

    def store(self, seconds: float) -> EtcdStore:
        urls = list(self.cluster.urls)
        self.random.shuffle(urls)
        return EtcdStore(Endpoints(tuple(urls), timeout=seconds))

    async def write(self, writer: int) -> None:
        """Write until it is over, each value once; a key each, and one that all write."""
        store, now = self.store(3), asyncio.get_running_loop().time
        try:
            while not self.over.is_set():
                self.numbers += 1
                value = f"{writer}-{self.numbers}".encode()
                key = f"/c/{self.random.choice(['shared', str(writer)])}"
                began = now()
                try:
                    done = await store.txn([], [Put(key, value)])
                except StoreOutcomeUnknown:
                    write = Write(key, value, began, now(), "unknown")
                except StoreUnavailable:
                    write = Write(key, value, began, now(), "refused")
                else:
                    write = Write(key, value, began, now(), "made", done.revision)
                self.history.writes.append(write)
        finally:
            await store.close()

    async def watch(self) -> None:
        """Be told everything, and begin again from what was told last; here nothing is restored from a backup."""
        store, told = self.store(_SCALE), self.first - 1
        seen: list[tuple[int, str, bytes]] = []
        self.history.seen.append(seen)
        self.history.first.append(self.first)
        try:
            while True:
                try:
                    async with store.watch("/c/", told + 1) as changes:
                        async for change in changes:
                            for event in change.events:
                                seen.append((event.at.mod_revision, event.at.key, event.at.value))
                                told = event.at.mod_revision
                                if event.at.key == "/c/end":
                                    return
                except WatchEnded:
                    continue
        finally:
            await store.close()

    async def keep(self) -> None:
        """Renew a lease until it is over, or gone."""
        store, now = self.store(_SCALE), asyncio.get_running_loop().time
        try:
            began = now()
            lease = await store.grant(LEASE)
            kept = Kept(lease.id, lease.seconds, [began])
            self.history.kept.append(kept)
            while not self.over.is_set():
                began = now()
                try:
                    await store.keep_alive(lease.id)
                except LeaseNotFound:
                    kept.lost = now()
                    return
                kept.renewed.append(began)
                await asyncio.wait([asyncio.ensure_future(self.over.wait())], timeout=LEASE / 5)
        finally:
            await store.close()

    async def _works(self) -> None:
        """Wait until there is a majority that takes a change."""
        store = self.store(_SCALE)
        try:
            while True:
                try:
                    await store.txn([], [Put("/probe", b"")])
                except StoreOutcomeUnknown:
                    continue
                return
        finally:
            await store.close()

    async def break_things(self, rounds: int) -> list[str]:
        """Do something to a member, see that the rest goes on, and undo it. Return what was done."""
        done = []
        for _ in range(rounds):
            leader = await self.cluster.leader()
            follower = self.random.choice([each for each in range(MEMBERS) if each != leader])
            fault = self.random.choice(["kill leader", "cut leader", "kill follower", "cut follower", "stop follower"])
            done.append(fault)
            number = leader if fault.endswith("leader") else follower
            match fault.partition(" ")[0]:
                case "kill":
                    self.cluster.kill(number)
                    await self._works()
                    self.cluster.start(number)
                case "cut":
                    self.cluster.cut(number)
                    await self._works()
                    self.cluster.mend(number)
                case _:
                    self.cluster.stop(number)
                    await self._works()
                    self.cluster.go_on(number)
            await self.cluster.all_well()
        return done

    async def run(self, rounds: int) -> list[str]:
        """Run all of it; return the problems that the history has."""
        await self.cluster.all_well()
        store = self.store(_SCALE)
        self.first = (await store.get("/c/")).revision + 1
        dead = await store.grant(LEASE)  # its client never renews it
        await store.txn([], [Put("/dead", b"", dead.id)])
        async with asyncio.TaskGroup() as group:
            for writer in range(WRITERS):
                group.create_task(self.write(writer))
            watchers = [group.create_task(self.watch()) for _ in range(2)]
            for _ in range(3):
                group.create_task(self.keep())
            done = await self.break_things(rounds)
            self.over.set()
            while not all(watcher.done() for watcher in watchers):
                await store.txn([absent("/c/end")], [Put("/c/end", b"end")])
                await asyncio.wait(watchers, timeout=1)
        await self._gone(store)
        problems = self.history.problems(await self._log(store))
        await store.close()
        print(f"{rounds} rounds: {', '.join(done)}; {len(self.history.writes)} writes")  # noqa: T201  a failed test shows it
        return problems

    async def _gone(self, store: EtcdStore) -> None:
        """See the key of the client that is dead go with its lease."""
        reading = await store.get("/dead")
        if reading.found is None:
            return
        async with store.watch("/dead", reading.revision + 1) as changes:
            async for change in changes:
                if change.events:
                    return

    async def _log(self, store: EtcdStore) -> list[Event]:
        log: list[Event] = []
        async with store.watch("/c/", self.first) as changes:
            while not log or log[-1].at.key != "/c/end":
                log += (await anext(changes)).events
        return log


def storm(folder: Path, rounds: int, seed: int) -> None:
    print(f"seed {seed}")  # noqa: T201  a failed test shows it
    with cluster_in(folder) as cluster:

        async def whole() -> None:
            chaos = Chaos(cluster, seed)
            problems = await chaos.run(rounds)
            assert not problems, problems[:10]
            outcomes = {write.outcome for write in chaos.history.writes}
            assert "made" in outcomes

        asyncio.run(whole())


@pytest.mark.long
def test_nothing_acknowledged_is_lost_and_no_watch_skips_while_members_fail(tmp_path: Path) -> None:
    storm(tmp_path, 3, random.SystemRandom().randrange(2**32))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_nothing_is_lost_in_a_hundred_rounds(tmp_path: Path) -> None:
    storm(tmp_path, 100, random.SystemRandom().randrange(2**32))


async def until_it_ends(changes: AsyncIterator[Changes]) -> None:
    async for _ in changes:
        pass


def test_a_backup_that_is_restored_is_told_and_nothing_is_changed_in_it(tmp_path: Path) -> None:
    with cluster_in(tmp_path) as cluster:

        async def whole() -> None:
            urls = Endpoints(cluster.urls, timeout=_SCALE)
            store, fresh = EtcdStore(urls), EtcdStore(urls)
            await store.txn([absent("a")], [Put("a", b"1")])
            cluster.back_up(tmp_path / "backup")
            last = await store.txn([], [Put("b", b"2")])
            async with store.watch("", last.revision + 1) as changes:
                cluster.restore(tmp_path / "backup")
                with pytest.raises((WatchEnded, StoreReplaced)):
                    await until_it_ends(changes)
            with pytest.raises(StoreReplaced):
                await store.list("")
            with pytest.raises(StoreReplaced):
                await store.txn([], [Put("c", b"3")])
            assert [each.key for each in (await fresh.list("")).found] == ["a"]
            await store.close()
            await fresh.close()

        asyncio.run(whole())
