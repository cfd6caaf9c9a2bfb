"""What can happen to the fake's clients, and so to those of the tests above it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import (
    LeaseNotFound,
    RevisionCompacted,
    StoreFull,
    StoreOutcomeUnknown,
    StoreReplaced,
    StoreUnavailable,
    WatchEnded,
)
from uvmshare.etcd.protocol import Delete, Put, absent
from uvmshare.testing.etcd import FakeEtcd, FakeReply

if TYPE_CHECKING:
    from uvmshare.testing.etcd import FakeStore


async def change(store: FakeStore, key: str) -> bool:
    return (await store.txn([absent(key)], [Put(key, b"")])).succeeded


async def test_an_answer_is_lost_after_the_change_was_made() -> None:
    etcd = FakeEtcd()
    store = etcd.connect()
    store.replies += [FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE, FakeReply.FAIL]
    with pytest.raises(StoreOutcomeUnknown):
        await change(store, "a")
    with pytest.raises(StoreOutcomeUnknown):
        await change(store, "b")
    with pytest.raises(StoreUnavailable):
        await change(store, "c")
    assert [each.key for each in etcd.read()] == ["a"]
    assert not await change(store, "a")


async def test_who_is_cancelled_may_have_changed_something() -> None:
    made = set()
    for steps in range(4):
        etcd = FakeEtcd()
        task = asyncio.create_task(change(etcd.connect(), "a"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        made.add((task.cancelled(), etcd.find("a") is not None))
    assert made == {(True, False), (True, True), (False, True)}


async def test_a_client_that_is_cut_off_hears_nothing_and_loses_what_is_under_way() -> None:
    etcd = FakeEtcd()
    cut, other = etcd.connect(), etcd.connect()
    async with cut.watch("", 1) as changes, other.watch("", 1) as others:
        cut.replies.append(FakeReply.NEVER)
        hangs = asyncio.create_task(change(cut, "a"))
        await asyncio.sleep(0.1)
        cut.cut()
        with pytest.raises(StoreOutcomeUnknown):
            await hangs
        with pytest.raises(StoreUnavailable):
            await cut.get("a")
        with pytest.raises(WatchEnded):
            await anext(changes)
        await change(other, "b")
        assert [event.at.key for event in (await anext(others)).events] == ["b"]
    cut.mend()
    assert (await cut.get("b")).found is not None


async def test_leases_stand_still_while_there_is_no_majority() -> None:
    etcd = FakeEtcd()
    store = etcd.connect()
    lease = await store.grant(10)
    await asyncio.sleep(9)
    etcd.stop()
    with pytest.raises(StoreUnavailable):
        await store.keep_alive(lease.id)
    await asyncio.sleep(100)
    etcd.start()
    await asyncio.sleep(9)
    assert (await store.time_to_live(lease.id)).remaining == 1
    await asyncio.sleep(2)
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease.id)


async def test_an_older_state_and_another_cluster_are_told_and_nothing_more_is_asked() -> None:
    etcd = FakeEtcd()
    one, two, new = etcd.connect(), etcd.connect(), etcd.connect()
    backup = etcd.backup()
    await change(one, "a")
    etcd.restore(backup)
    for _ in range(2):
        with pytest.raises(StoreReplaced):
            await change(one, "b")
    await change(two, "c")
    etcd.restore(backup, cluster_id=2)
    with pytest.raises(StoreReplaced):
        await two.get("c")
    assert await new.cluster_id() == 2
    assert etcd.read() == ()


async def test_a_watch_that_did_not_keep_up_with_a_compaction_says_so() -> None:
    etcd = FakeEtcd()
    store = etcd.connect()
    async with store.watch("", 2) as changes:
        await change(store, "a")
        await change(store, "b")
        etcd.compact()
        with pytest.raises(RevisionCompacted):
            await anext(changes)


async def test_a_full_database_takes_deletions_and_renewals_alone() -> None:
    etcd = FakeEtcd()
    store = etcd.connect()
    await change(store, "a")
    lease = await store.grant(5)
    etcd.full = True
    with pytest.raises(StoreFull):
        await change(store, "b")
    with pytest.raises(StoreFull):
        await store.grant(5)
    assert await store.keep_alive(lease.id) == 5
    assert (await store.txn([], [Delete("a")])).deleted == 1
