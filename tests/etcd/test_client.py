"""What the client of etcd does when a member dies, stands still, comes back as another, or is one of several."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from tests.etcd.member import free_port, start_single
from tests.processes import DEADLINE

from uvmshare.errors import (
    LeaseNotFound,
    LimitReached,
    StoreFull,
    StoreOutcomeUnknown,
    StoreReplaced,
    StoreUnavailable,
    StoreUnsuitable,
    WatchEnded,
)
from uvmshare.etcd.administration import Administration
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.etcd.protocol import Delete, Put, absent, unchanged

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.etcd.member import Member

    from uvmshare.etcd.protocol import Changes


@pytest.fixture(name="single")
def _single(tmp_path: Path) -> Iterator[tuple[Member, str]]:
    member, url = start_single(tmp_path / "data")
    yield member, url
    member.kill()


@asynccontextmanager
async def opened(*urls: str, seconds: float = DEADLINE) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(Endpoints(urls, timeout=seconds), progress=0.2)
    try:
        yield store
    finally:
        await store.close()


async def events(changes: AsyncIterator[Changes]) -> None:
    async for _ in changes:
        pass


def test_a_member_that_is_not_there_is_passed_over(single: tuple[Member, str]) -> None:
    async def test() -> None:
        async with opened(f"http://127.0.0.1:{free_port()}", single[1], f"http://127.0.0.1:{free_port()}") as store:
            assert (await store.txn([absent("a")], [Put("a", b"1")])).succeeded
            lease = await store.grant(60)
            assert await store.keep_alive(lease.id) == 60

    asyncio.run(test())


def test_a_change_that_nobody_could_be_asked_for_was_certainly_not_made() -> None:
    async def test() -> None:
        async with opened(f"http://127.0.0.1:{free_port()}", seconds=0.1) as store:
            with pytest.raises(StoreUnavailable, match="cannot be reached"):
                await store.txn([], [Put("a", b"1")])
            with pytest.raises(StoreUnavailable):
                await store.get("a")
            with pytest.raises(StoreUnavailable):
                await store.keep_alive(1)
            with pytest.raises(StoreUnavailable):
                await store.grant(5)
            with pytest.raises(StoreUnavailable):
                async with store.watch("a", 1):
                    pass

    asyncio.run(test())


def test_of_a_change_to_a_member_that_stands_still_nobody_knows(single: tuple[Member, str]) -> None:
    member, url = single

    async def test() -> None:
        async with opened(url) as reader, opened(url, seconds=1) as store:
            before = await reader.get("a")
            await store.get("a")
            async with store.watch("", before.revision + 1) as changes:
                member.signal(signal.SIGSTOP)
                with pytest.raises(StoreOutcomeUnknown):
                    await store.txn([absent("a")], [Put("a", b"mine")])
                with pytest.raises(StoreUnavailable):
                    await store.get("a")
                with pytest.raises(WatchEnded, match="list"):
                    await events(changes)
                member.signal(signal.SIGCONT)
            # The same again tells whether it was made the first time: what is there is what was to be there.
            await reader.txn([absent("a")], [Put("a", b"mine")])
            found = (await reader.get("a")).found
            assert found is not None
            assert (found.value, found.version) == (b"mine", 1)

    asyncio.run(test())


def test_a_member_that_was_killed_and_started_has_what_was_acknowledged(single: tuple[Member, str]) -> None:
    member, url = single

    async def test() -> None:
        async with opened(url) as store:
            revision = (await store.txn([], [Put("a", b"1")])).revision
            lease = await store.grant(60)
            async with store.watch("", revision + 1) as changes:
                member.kill()
                with pytest.raises(WatchEnded):
                    await events(changes)
                member.start()
                assert (await store.get("a")).revision >= revision
                assert await store.keep_alive(lease.id) == 60
                with pytest.raises(LeaseNotFound):
                    await store.keep_alive(4711)
            async with store.watch("", revision) as changes:
                while not (told := await anext(changes)).events:
                    pass
                assert [event.at.value for event in told.events] == [b"1"]

    asyncio.run(test())


def test_an_etcd_that_begins_anew_is_told_and_not_used(single: tuple[Member, str], tmp_path: Path) -> None:
    member, url = single

    async def test() -> None:
        async with opened(url) as store, opened(url) as fresh:
            for number in range(3):
                await store.txn([], [Put("a", str(number).encode())])
            member.kill()
            (tmp_path / "data").rename(tmp_path / "old")
            member.start()
            with pytest.raises(StoreReplaced, match="revision 1, and was at 4 before"):
                await store.get("a")
            for call in (store.list(""), store.txn([], [Put("a", b"")]), store.grant(5), store.keep_alive(1)):
                with pytest.raises(StoreReplaced):
                    await call
            with pytest.raises(StoreReplaced):
                async with store.watch("", 1):
                    pass
            assert (await fresh.get("a")).found is None

    asyncio.run(test())


def test_another_cluster_among_the_endpoints_is_told(single: tuple[Member, str], tmp_path: Path) -> None:
    member, url = single
    other, other_url = start_single(tmp_path / "other", "--initial-cluster-token=other")

    async def test() -> None:
        other.kill()  # the first answer is the other's otherwise, where the first member is slow to begin
        async with opened(url, other_url) as store:
            await store.get("a")
            other.start()
            member.kill()
            with pytest.raises(StoreReplaced, match="cluster"):
                await store.get("a")

    try:
        asyncio.run(test())
    finally:
        other.kill()


def test_a_version_that_loses_data_is_not_used(single: tuple[Member, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from uvmshare.etcd import members, versions

    monkeypatch.setattr(members, "judge", lambda _, where: versions.judge("3.5.1", where))

    async def test() -> None:
        async with opened(single[1]) as store:
            with pytest.raises(StoreUnsuitable, match="etcd 3"):
                await store.txn([], [Put("a", b"")])

    asyncio.run(test())


def test_debians_version_is_warned_of_once(single: tuple[Member, str], caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with opened(single[1]) as store:
            await store.get("a")
            await store.get("a")

    asyncio.run(test())
    assert [record.name for record in caplog.records].count("uvmshare.etcd") == 1


def test_a_caller_who_is_cancelled_leaves_the_client_usable(single: tuple[Member, str]) -> None:
    async def test() -> None:
        async with opened(single[1]) as store:
            lease = await store.grant(60)
            for steps in range(12):
                calls = [
                    asyncio.ensure_future(call)
                    for call in (store.get("a"), store.txn([], [Put("a", b"")]), store.keep_alive(lease.id))
                ]
                for _ in range(steps):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
                done = await asyncio.gather(*calls, return_exceptions=True)
                assert all(not isinstance(each, Exception) for each in done)
            assert await asyncio.gather(*(store.keep_alive(lease.id) for _ in range(9))) == [60] * 9

    asyncio.run(test())


def test_a_full_database_refuses_changes_and_takes_them_again_when_there_is_room(tmp_path: Path) -> None:
    member, url = start_single(tmp_path / "data", "--quota-backend-bytes=2097152")

    async def test() -> None:
        async with opened(url) as store:
            lease = await store.grant(60)
            revision = 0

            async def fill() -> None:
                nonlocal revision
                for number in range(100):
                    at = (await store.get("a")).found
                    compare = absent("a") if at is None else unchanged(at)
                    with contextlib.suppress(StoreOutcomeUnknown):  # the one that fills it is made
                        revision = (await store.txn([compare], [Put("a", bytes([number]) * 100_000)])).revision

            with pytest.raises(StoreFull, match="compact and defragment"):
                await fill()
            with pytest.raises(StoreOutcomeUnknown, match="may be the one that filled etcd"):
                await store.txn([], [Put("a", b"")])
            with pytest.raises(LimitReached):
                await store.grant(60)
            assert await store.keep_alive(lease.id) == 60
            found = (await store.get("a")).found
            assert found is not None
            # What was acknowledged is there, and nothing that was refused; the one that filled it may be.
            assert revision <= found.mod_revision <= revision + 1
            assert (await store.txn([], [Delete("a")])).deleted == 1
            administration = Administration(store)
            assert "NOSPACE" in str((await administration.status()).errors)
            await administration.compact((await store.get("a")).revision)
            await administration.defragment()
            await administration.disarm()
            assert (await store.txn([absent("a")], [Put("a", b"again")])).succeeded

    try:
        asyncio.run(test())
    finally:
        member.kill()


def test_nothing_but_the_client_needs_grpc() -> None:
    import subprocess
    import sys

    modules = "uvmshare.etcd.protocol, uvmshare.etcd.endpoints, uvmshare.testing.etcd"
    code = f"import sys, {modules}; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_grpc_is_told_to_leave_forks_alone_before_it_is_loaded() -> None:
    """Its handlers can end a child of a process that has more threads; see `uvmshare.etcd`."""
    code = (
        "import os, sys, uvmshare.etcd\n"
        "assert 'grpc' not in sys.modules\n"
        "import uvmshare.etcd.client\n"
        "assert 'grpc' in sys.modules\n"
        "print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout == b"0\n"
