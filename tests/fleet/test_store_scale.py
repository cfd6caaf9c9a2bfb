"""A thousand followers and a hundred thousand keys on three members: figures, and limits that fail.

Its record is written to .cache/store-scale.json, for docs/etcd.md.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.fleet.cluster import cluster_in

from uvmshare.errors import WatchEnded
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.etcd.protocol import MOST_OPERATIONS, Put

if TYPE_CHECKING:
    from tests.fleet.cluster import Cluster

FOLLOWERS: Final = 1000
KEYS: Final = 100
"""Of each follower."""

RELIST: Final = 60.0
"""Seconds in which everybody has to have listed again after a restart of etcd."""

MEMORY: Final = 1 << 30
"""Bytes that a member may have at most."""

RECORD: Final = Path(__file__).parents[2] / ".cache" / "store-scale.json"


def prefix(number: int) -> str:
    return f"/F/host/h{number:04}/"


class Follower:
    """One client: it lists its prefix, watches it from there, lists again when that ends, and renews a lease."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        urls = cluster.urls
        turned = urls[number % len(urls) :] + urls[: number % len(urls)]
        self.store = EtcdStore(Endpoints(turned, timeout=120))
        self.prefix = prefix(number)
        self.keys: dict[str, bytes] = {}
        self.listed = asyncio.Event()
        self.changed = asyncio.Event()
        self.listed_at = 0.0
        self.told: dict[bytes, float] = {}
        self.lease = 0

    async def follow(self) -> None:
        while True:
            page = await self.store.list(self.prefix)
            self.keys = {each.key: each.value for each in page.found}
            self.listed_at = time.monotonic()
            self.listed.set()
            try:
                async with self.store.watch(self.prefix, page.revision + 1) as changes:
                    async for change in changes:
                        for event in change.events:
                            self.keys[event.at.key] = event.at.value
                            self.told[event.at.value] = time.monotonic()
                            self.changed.set()
            except WatchEnded:
                continue


def memory(cluster: Cluster) -> int:
    """Return the most that a member has now."""
    found = []
    for member in cluster.members:
        status = Path(f"/proc/{member.pid}/status").read_text()
        found.append(int(status.partition("VmRSS:")[2].split()[0]) * 1024)
    return max(found)


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {
        "p50_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99)] * 1000, 2),
        "most_ms": round(ordered[-1] * 1000, 2),
    }


async def measured(cluster: Cluster) -> dict[str, object]:
    record: dict[str, object] = {
        "followers": FOLLOWERS,
        "keys": FOLLOWERS * KEYS,
        "load": os.getloadavg()[0],
        "processors": os.cpu_count(),
    }
    await cluster.all_well()
    writer = EtcdStore(Endpoints(cluster.urls, timeout=120))
    began = time.monotonic()
    puts = [Put(f"{prefix(number)}vm/acme/{key:03}", b"x" * 300) for number in range(FOLLOWERS) for key in range(KEYS)]
    for at in range(0, len(puts), MOST_OPERATIONS):
        await writer.txn([], puts[at : at + MOST_OPERATIONS])
    record["written_s"] = round(time.monotonic() - began, 1)

    followers = [Follower(cluster, number) for number in range(FOLLOWERS)]
    began = time.monotonic()
    tasks = [asyncio.create_task(each.follow()) for each in followers]
    await asyncio.gather(*(each.listed.wait() for each in followers))
    record["listed_s"] = round(time.monotonic() - began, 1)
    assert all(len(each.keys) == KEYS for each in followers)

    sent: dict[bytes, float] = {}
    for number, follower in enumerate(followers):
        value = f"changed-{number}".encode()
        sent[value] = time.monotonic()
        await writer.txn([], [Put(f"{follower.prefix}vm/acme/000", value)])
    await asyncio.gather(*(each.changed.wait() for each in followers))
    took = [each.told[value] - sent[value] for each, value in zip(followers, sent, strict=True)]
    record["told"] = spread(took)

    for each in followers:
        each.lease = (await each.store.grant(600)).id
    began, renewals = time.monotonic(), []

    async def renew(each: Follower) -> None:
        at = time.monotonic()
        assert await each.store.keep_alive(each.lease) == 600
        renewals.append(time.monotonic() - at)

    await asyncio.gather(*map(renew, followers))
    record["renewed_at_once"] = {"all_s": round(time.monotonic() - began, 2), **spread(renewals)}

    record["member_mib"] = memory(cluster) >> 20
    for number in range(3):
        cluster.kill(number)
    for each in followers:
        each.listed.clear()
        each.keys.clear()
    began = time.monotonic()
    for number in range(3):
        cluster.start(number)
    await asyncio.gather(*(each.listed.wait() for each in followers))
    record["relisted_s"] = round(max(each.listed_at for each in followers) - began, 1)
    record["lost"] = sum(KEYS - len(each.keys) for each in followers)
    assert await asyncio.gather(*(each.store.keep_alive(each.lease) for each in followers)) == [600] * FOLLOWERS
    record["member_mib_after"] = memory(cluster) >> 20
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for store in (writer, *(each.store for each in followers)):
        await store.close()
    return record


@pytest.mark.long
def test_a_few_followers_list_watch_and_renew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.FOLLOWERS", 20)
    with cluster_in(tmp_path) as cluster:
        record = asyncio.run(measured(cluster))
    RECORD.with_stem("store-scale-quick").write_text(json.dumps(record, indent=1))
    assert record["lost"] == 0


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_thousand_followers_list_watch_and_renew(tmp_path: Path) -> None:
    with cluster_in(tmp_path) as cluster:
        record = asyncio.run(measured(cluster))
    RECORD.write_text(json.dumps(record, indent=1))
    print(json.dumps(record))  # noqa: T201  whoever runs it by hand wants to see it
    assert record["lost"] == 0
    assert float(str(record["relisted_s"])) < RELIST
    assert int(str(record["member_mib_after"])) << 20 < MEMORY
