"""What keys and transactions of a store do, fake or etcd: the first part of the contract."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from uvmshare.errors import InvalidOptions, LeaseNotFound, RevisionCompacted, StoreClosed, StoreError
from uvmshare.etcd.protocol import Compare, Delete, Get, KeyValue, Put, absent, present, unchanged

if TYPE_CHECKING:
    from tests.etcd.worlds import World

    from uvmshare.etcd.protocol import Operation, Store


async def put(store: Store, key: str, value: bytes) -> int:
    return (await store.txn([], [Put(key, value)])).revision


async def test_a_key_is_what_was_put_and_counts_its_changes(world: World) -> None:
    store, key = world.connect(), f"{world.prefix}a"
    before = await store.get(key)
    assert before.found is None
    first = await put(store, key, b"1")
    second = await put(store, key, b"\x00\xff")
    assert (first, second) == (before.revision + 1, before.revision + 2)
    reading = await store.get(key)
    assert reading.revision == second
    assert reading.found == KeyValue(key, b"\x00\xff", first, second, 2)


async def test_a_key_that_was_deleted_begins_anew(world: World) -> None:
    store, key = world.connect(), f"{world.prefix}a"
    await put(store, key, b"1")
    gone = await store.txn([], [Delete(key)])
    assert (gone.succeeded, gone.deleted) == (True, 1)
    assert (await store.get(key)).found is None
    made = await put(store, key, b"2")
    assert (await store.get(key)).found == KeyValue(key, b"2", made, made, 1)


async def test_deleting_what_is_not_there_changes_no_revision(world: World) -> None:
    store = world.connect()
    before = (await store.get(f"{world.prefix}a")).revision
    done = await store.txn([], [Delete(f"{world.prefix}a"), Delete(world.prefix, prefix=True)])
    assert (done.succeeded, done.deleted, done.revision) == (True, 0, before)


async def test_all_of_a_prefix_is_deleted_and_nothing_beside_it(world: World) -> None:
    store, inner = world.connect(), f"{world.prefix}a/"
    for key in (f"{inner}1", f"{inner}2", f"{world.prefix}a", f"{world.prefix}a0", f"{world.prefix}b"):
        await put(store, key, b"")
    assert (await store.txn([], [Delete(inner, prefix=True)])).deleted == 2
    left = [each.key for each in (await store.list(world.prefix)).found]
    assert left == [f"{world.prefix}a", f"{world.prefix}a0", f"{world.prefix}b"]


async def test_keys_are_listed_in_order_by_pages_at_one_revision(world: World) -> None:
    store = world.connect()
    names = [f"{world.prefix}{name}" for name in ("a", "a/b", "a0", "b", "é", "z", "中")]
    for name in reversed(names):
        await put(store, name, name.encode())
    page = await store.list(world.prefix, limit=3)
    assert page.more
    await put(store, f"{world.prefix}c", b"new")
    await store.txn([], [Delete(names[4])])
    rest = await store.list(world.prefix, revision=page.revision, after=page.found[-1].key, limit=100)
    assert not rest.more
    assert rest.revision == page.revision
    assert [each.key for each in (*page.found, *rest.found)] == sorted(names)
    assert all(each.value == each.key.encode() for each in rest.found)


async def test_a_listing_of_nothing_is_empty(world: World) -> None:
    page = await world.connect().list(world.prefix)
    assert (page.found, page.more) == ((), False)


async def test_one_branch_is_carried_out_whole(world: World) -> None:
    store, a, b = world.connect(), f"{world.prefix}a", f"{world.prefix}b"
    done = await store.txn([absent(a), absent(b)], [Put(a, b"1"), Put(b, b"2"), Get(a)], [Get(b)])
    assert done.succeeded
    assert done.found == (KeyValue(a, b"1", done.revision, done.revision, 1),)
    assert {each.mod_revision for each in (await store.list(world.prefix)).found} == {done.revision}
    again = await store.txn([absent(a), absent(b)], [Put(a, b"3")], [Get(b), Get(f"{world.prefix}c"), Delete(a)])
    assert not again.succeeded
    assert again.found == (KeyValue(b, b"2", done.revision, done.revision, 1), None)
    assert again.deleted == 1


@pytest.mark.parametrize(
    ("target", "to", "smaller"),
    [("value", b"m", b"l"), ("version", 2, 1), ("lease", 0, -1), ("create", -1, -2), ("mod", -1, -2)],
)
async def test_every_target_is_compared_in_every_relation(world: World, target: Any, to: Any, smaller: Any) -> None:
    store, key = world.connect(), f"{world.prefix}a"
    made = await put(store, key, b"x")
    changed = await put(store, key, b"m")
    if to == -1:  # the revisions are known only now
        to = made if target == "create" else changed
        smaller = to - 1

    async def holds(relation: Any, value: Any) -> bool:
        return (await store.txn([Compare(key, target, value, relation)], [])).succeeded

    for relation, same, other in (
        ("equal", True, False),
        ("not_equal", False, True),
        ("greater", False, True),
        ("less", False, False),
    ):
        assert await holds(relation, to) is same, relation
        assert await holds(relation, smaller) is other, relation


async def test_a_key_that_is_not_there_has_numbers_of_0_and_no_value(world: World) -> None:
    store, key = world.connect(), f"{world.prefix}a"

    async def holds(*compare: Compare) -> bool:
        return (await store.txn(compare, [])).succeeded

    target: Any
    for target in ("create", "mod", "version", "lease"):
        assert await holds(Compare(key, target, 0))
    assert await holds(absent(key))
    assert not await holds(present(key))
    assert not await holds(Compare(key, "value", b""))
    assert not await holds(Compare(key, "value", b"x", "not_equal"))


async def test_of_two_who_compare_the_same_one_wins(world: World) -> None:
    one, two, key = world.connect(), world.connect(), f"{world.prefix}a"
    await put(one, key, b"0")
    found = (await one.get(key)).found
    assert found is not None
    done = await asyncio.gather(
        *(each.txn([unchanged(found)], [Put(key, value)]) for each, value in ((one, b"1"), (two, b"2")))
    )
    assert sorted(each.succeeded for each in done) == [False, True]


async def test_a_transaction_that_changes_nothing_reads_at_one_revision(world: World) -> None:
    store = world.connect()
    last = await put(store, f"{world.prefix}a", b"1")
    done = await store.txn([], [Get(f"{world.prefix}a"), Get(f"{world.prefix}b")])
    assert done.revision == last
    assert [each and each.value for each in done.found] == [b"1", None]


@pytest.mark.parametrize(
    ("then", "words"),
    [
        ([Put("k", b"1"), Put("k", b"2")], "twice"),
        ([Put("k", b"1"), Delete("k")], "puts and deletes"),
        ([Put("k/a", b"1"), Delete("k/", prefix=True)], "puts and deletes"),
        ([], "nothing"),
        ([Put("", b"1")], "empty"),
        ([Put(str(number), b"") for number in range(129)], "129 operations"),
        ([Put("k", bytes(2**21))], "bytes"),
    ],
)
async def test_what_etcd_takes_from_nobody_is_refused_before_it_is_asked(
    world: World, then: list[Operation], words: str
) -> None:
    store = world.connect()
    before = (await store.get(world.prefix)).revision
    with pytest.raises(InvalidOptions, match=words):
        await store.txn([], then)
    with pytest.raises(InvalidOptions, match=words):
        await store.txn([], [], then)
    with pytest.raises(InvalidOptions, match="pass bytes"):
        await store.txn([Compare("k", "mod", b"1")], [])
    assert (await store.get(world.prefix)).revision == before


async def test_as_much_as_is_allowed_is_taken(world: World) -> None:
    store = world.connect()
    many = [Put(f"{world.prefix}{number:03}", b"x" * 8000) for number in range(128)]
    assert (await store.txn([absent(each.key) for each in many], many)).succeeded
    assert len((await store.list(world.prefix)).found) == 128


async def test_an_older_revision_is_read_until_it_is_compacted(world: World) -> None:
    store, key = world.connect(), f"{world.prefix}a"
    first = await put(store, key, b"1")
    second = await put(store, key, b"2")
    last = (await store.txn([], [Delete(key)])).revision
    assert [each.value for each in (await store.list(world.prefix, revision=first)).found] == [b"1"]
    await world.compact(second)
    assert [each.value for each in (await store.list(world.prefix, revision=second)).found] == [b"2"]
    assert (await store.list(world.prefix, revision=last)).found == ()
    with pytest.raises(RevisionCompacted):
        await store.list(world.prefix, revision=first)
    with pytest.raises(StoreError, match="revision"):
        await store.list(world.prefix, revision=last + 1000)


async def test_every_client_sees_the_same_cluster_and_what_was_answered_to_another(world: World) -> None:
    one, two = world.connect(), world.connect()
    assert await one.cluster_id() == await two.cluster_id() != 0
    for number in range(20):
        revision = await put(one, f"{world.prefix}a", str(number).encode())
        reading = await two.get(f"{world.prefix}a")
        assert reading.revision >= revision
        assert reading.found is not None
        assert reading.found.value == str(number).encode()


async def test_a_put_with_a_lease_that_is_not_there_changes_nothing(world: World) -> None:
    store, key = world.connect(), f"{world.prefix}a"
    with pytest.raises(LeaseNotFound):
        await store.txn([], [Put(f"{world.prefix}b", b""), Put(key, b"1", lease=12345)])
    assert (await store.list(world.prefix)).found == ()


async def test_a_store_that_was_closed_asks_nothing(world: World) -> None:
    store = world.connect()
    await put(store, f"{world.prefix}a", b"1")
    await store.close()
    await store.close()
    for call in (store.get("a"), store.list("a"), store.txn([], [Put("a", b"")]), store.grant(5), store.cluster_id()):
        with pytest.raises(StoreClosed):
            await call
    with pytest.raises(StoreClosed):
        async with store.watch("a", 1):
            pass
