"""What watches and leases of a store do, fake or etcd: the second part of the contract."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from uvmshare.errors import LeaseNotFound, RevisionCompacted, StoreClosed
from uvmshare.etcd.protocol import Delete, Event, KeyValue, Put

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.etcd.worlds import World

    from uvmshare.etcd.protocol import Changes, Store


class Seen:
    """What a watch has told, looked at as it comes: never back, no revision divided or twice."""

    def __init__(self, changes: AsyncIterator[Changes], first: int) -> None:
        self._changes = changes
        self._told = first - 1
        self.revisions: list[int] = []

    async def next(self) -> tuple[Event, ...]:
        """Return the events of the next message that has some."""
        while True:
            change = await anext(self._changes)
            revisions = [event.at.mod_revision for event in change.events]
            assert revisions == sorted(revisions)
            assert all(revision > self._told for revision in revisions)
            assert change.revision >= max([self._told, *revisions])
            self._told = change.revision
            self.revisions += revisions
            if change.events:
                return change.events

    async def until(self, revision: int) -> list[Event]:
        """Return all events up to that of a revision."""
        events: list[Event] = []
        while not events or events[-1].at.mod_revision < revision:
            events += await self.next()
        return events


@asynccontextmanager
async def watched(store: Store, prefix: str, first: int) -> AsyncIterator[Seen]:
    async with store.watch(prefix, first) as changes:
        yield Seen(changes, first)


async def put(store: Store, key: str, value: bytes, lease: int = 0) -> int:
    return (await store.txn([], [Put(key, value, lease)])).revision


async def test_a_watch_tells_what_comes_and_nothing_of_others(world: World) -> None:
    store, a = world.connect(), f"{world.prefix}a/1"
    first = (await store.get(a)).revision + 1
    async with watched(store, f"{world.prefix}a/", first) as seen:
        await put(store, f"{world.prefix}a", b"")
        await put(store, f"{world.prefix}a0", b"")
        made = await put(store, a, b"1")
        assert await seen.next() == (Event("put", KeyValue(a, b"1", made, made, 1)),)
        gone = (await store.txn([], [Delete(a)])).revision
        assert await seen.next() == (Event("delete", KeyValue(a, b"", 0, gone, 0)),)


async def test_a_watch_tells_what_was_from_its_revision_on(world: World) -> None:
    store = world.connect()
    revisions = [await put(store, f"{world.prefix}{number % 3}", str(number).encode()) for number in range(10)]
    for index in (0, 4, 9):
        async with watched(store, world.prefix, revisions[index]) as seen:
            events = await seen.until(revisions[-1])
            assert [event.at.value for event in events] == [str(number).encode() for number in range(index, 10)]


async def test_a_revision_is_told_whole_and_in_the_order_of_its_keys(world: World) -> None:
    store = world.connect()
    await put(store, f"{world.prefix}000", b"old")
    first = (await store.get(world.prefix)).revision + 1
    many = [Put(f"{world.prefix}{number:03}", bytes(100)) for number in range(1, 101)]
    done = await store.txn([], [*many, Delete(f"{world.prefix}000")])
    for _ in range(2):
        async with watched(store, world.prefix, first) as seen:
            events = await seen.next()
            assert {event.at.mod_revision for event in events} == {done.revision}
            assert len(events) == 101


async def test_every_watch_of_several_clients_tells_every_revision_once(world: World) -> None:
    stores = [world.connect() for _ in range(3)]
    first = (await stores[0].get(world.prefix)).revision + 1

    async def follow(store: Store) -> list[bytes]:
        async with watched(store, world.prefix, first) as seen:
            values: list[bytes] = []
            while not values or values[-1] != b"end":
                values += [event.at.value for event in await seen.next()]
            assert len(set(seen.revisions)) == len(values)
            return values

    async with asyncio.TaskGroup() as group:
        told = [group.create_task(follow(store)) for store in stores]
        writers = [
            group.create_task(put(store, f"{world.prefix}k", f"{index}-{number}".encode()))
            for number in range(10)
            for index, store in enumerate(stores)
        ]
        await asyncio.gather(*writers)
        await put(stores[0], f"{world.prefix}k", b"end")
    orders = [await each for each in told]
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 31


async def test_a_watch_may_begin_later_than_now(world: World) -> None:
    store = world.connect()
    now = (await store.get(world.prefix)).revision
    async with watched(store, world.prefix, now + 3) as seen:
        for number in range(1, 5):
            assert await put(store, f"{world.prefix}a", str(number).encode()) == now + number
        events = await seen.until(now + 4)
        assert [event.at.value for event in events] == [b"3", b"4"]


async def test_what_was_compacted_is_not_skipped_but_an_error(world: World) -> None:
    store = world.connect()
    first = await put(store, f"{world.prefix}a", b"1")
    gone = (await store.txn([], [Delete(f"{world.prefix}a")])).revision
    after = await put(store, f"{world.prefix}b", b"2")
    await world.compact(gone)
    for revision in (first, gone):  # the deletion itself is no longer there to be told
        with pytest.raises(RevisionCompacted):
            async with watched(store, world.prefix, revision) as seen:
                await seen.next()
    async with watched(store, world.prefix, after) as seen:
        assert [event.at.value for event in await seen.next()] == [b"2"]


async def test_a_watch_where_nothing_happens_tells_that_it_is_alive(world: World) -> None:
    store = world.connect()
    now = (await store.get(world.prefix)).revision
    async with store.watch(world.prefix, now + 1) as changes:
        change = await anext(changes)
        assert change.events == ()
        assert change.revision >= now
        revision = await put(store, f"{world.prefix}a", b"1")
        while not (change := await anext(changes)).events:
            pass
        assert [event.at.mod_revision for event in change.events] == [revision]


async def test_a_watch_of_a_store_that_is_closed_ends(world: World) -> None:
    store = world.connect()
    now = (await store.get(world.prefix)).revision
    async with store.watch(world.prefix, now + 1) as changes:
        waiting = asyncio.ensure_future(Seen(changes, now + 1).next())
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreClosed):
            await waiting


async def test_who_waits_for_changes_can_be_cancelled(world: World) -> None:
    store = world.connect()
    now = (await store.get(world.prefix)).revision

    async def follow(entered: asyncio.Event) -> None:
        async with watched(store, world.prefix, now + 1) as seen:
            entered.set()
            await seen.next()

    entered = asyncio.Event()
    task = asyncio.create_task(follow(entered))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await put(store, f"{world.prefix}a", b"1") == now + 1


async def test_keys_end_with_their_lease_in_one_revision(world: World) -> None:
    store, other = world.connect(), world.connect()
    lease = await store.grant(world.shortest)
    assert lease.seconds == world.shortest
    last = 0
    for name in ("a", "b", "c"):
        last = await put(store, f"{world.prefix}{name}", b"", lease.id)
    await put(store, f"{world.prefix}c", b"kept")  # its lease is none now
    status = await other.time_to_live(lease.id)
    assert (status.granted, status.keys) == (world.shortest, (f"{world.prefix}a", f"{world.prefix}b"))
    assert 0 <= status.remaining <= world.shortest
    async with watched(other, world.prefix, last + 2) as seen:
        events = await seen.next()
    assert sorted((event.change, event.at.key) for event in events) == [
        ("delete", f"{world.prefix}a"),
        ("delete", f"{world.prefix}b"),
    ]
    assert len({event.at.mod_revision for event in events}) == 1
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease.id)
    with pytest.raises(LeaseNotFound):
        await store.time_to_live(lease.id)
    with pytest.raises(LeaseNotFound):
        await put(store, f"{world.prefix}a", b"", lease.id)


async def test_a_lease_that_is_revoked_ends_with_its_keys(world: World) -> None:
    store = world.connect()
    lease = await store.grant(60)
    await put(store, f"{world.prefix}a", b"", lease.id)
    await store.revoke(lease.id)
    assert (await store.list(world.prefix)).found == ()
    await store.revoke(lease.id)
    with pytest.raises(LeaseNotFound):
        await store.keep_alive(lease.id)


async def test_a_lease_is_renewed_with_all_that_was_granted(world: World) -> None:
    store = world.connect()
    lease = await store.grant(60)
    assert await store.keep_alive(lease.id) == 60
    assert await asyncio.gather(*(store.keep_alive(lease.id) for _ in range(50))) == [60] * 50
    leases = [await store.grant(60 + number) for number in range(20)]
    assert len({each.id for each in leases}) == 20
    assert await asyncio.gather(*(store.keep_alive(each.id) for each in leases)) == [each.seconds for each in leases]


async def test_a_lease_that_never_was_is_not_found_beside_others_that_are(world: World) -> None:
    store = world.connect()
    lease = await store.grant(60)
    first, second = await asyncio.gather(store.keep_alive(lease.id), store.keep_alive(99), return_exceptions=True)
    assert first == 60
    assert isinstance(second, LeaseNotFound)


async def test_a_key_moves_from_one_lease_to_another(world: World) -> None:
    store, key = world.connect(), f"{world.prefix}a"
    one, two = await store.grant(60), await store.grant(60)
    await put(store, key, b"", one.id)
    await put(store, key, b"", two.id)
    await store.revoke(one.id)
    found = (await store.get(key)).found
    assert found is not None
    assert found.lease == two.id
    await store.revoke(two.id)
    assert (await store.get(key)).found is None
