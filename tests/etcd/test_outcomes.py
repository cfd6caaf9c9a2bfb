"""What the client of etcd says of a change: that it was certainly not made, or that nobody knows."""

from __future__ import annotations

import asyncio
import signal
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from tests.etcd.member import free_port, start_single
from tests.processes import DEADLINE

from uvmshare.errors import StoreClosed, StoreFull, StoreOutcomeUnknown, StoreReplaced, StoreUnavailable
from uvmshare.etcd.checking import tells_itself
from uvmshare.etcd.client import EtcdStore
from uvmshare.etcd.endpoints import Endpoints
from uvmshare.etcd.messages import ResponseHeader
from uvmshare.etcd.protocol import Compare, Delete, Put, absent, present

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from pathlib import Path

    from tests.etcd.member import Member

    from uvmshare.etcd.protocol import Store

    Ask = Callable[[Store], Awaitable[object]]

CHANGES: dict[str, Ask] = {
    "put": lambda store: store.txn([absent("a")], [Put("a", b"")]),
    "delete": lambda store: store.txn([], [Delete("a")]),
    "grant": lambda store: store.grant(5),
    "revoke": lambda store: store.revoke(7),
}
NO_ANSWER = grpc.StatusCode.UNAVAILABLE, "Socket closed"
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"
NO_LEASE = grpc.StatusCode.NOT_FOUND, "etcdserver: requested lease not found"
DENIED = grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied"


class ScriptedMember:
    """A member whose next answers are given: a header with fields of the answer, or a failure."""

    target = "etcd-1:2379"

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)

    async def ask(self, method: str, request: Any, answer: Any, seconds: float) -> Any:
        del method, request, seconds
        given = self.answers.pop(0)
        if isinstance(given, Exception):
            raise given
        if isinstance(given[0], grpc.StatusCode):
            code, words = given
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), words)
        header, fields = given
        return answer(header=header, **fields)


class ScriptedMembers:
    """The only member of a cluster."""

    closed = False

    def __init__(self, member: ScriptedMember) -> None:
        self.member = member

    async def ready(self, deadline: float) -> ScriptedMember:
        del deadline
        if isinstance(self.member.answers[0], StoreUnavailable):
            raise self.member.answers.pop(0)
        return self.member

    def leave(self, member: ScriptedMember) -> None:
        assert member is self.member


def scripted(*answers: Any) -> EtcdStore:
    """Return a store that was at revision 9 of cluster 1, and what the next calls are answered."""
    store = EtcdStore(Endpoints(("http://127.0.0.1:1",)))
    store._members = ScriptedMembers(ScriptedMember(header(), *answers))  # type: ignore[assignment]  # what is asked of it
    return store


def header(cluster: int = 1, revision: int = 9, **fields: Any) -> tuple[ResponseHeader, dict[str, Any]]:
    return ResponseHeader(cluster, 1, revision), fields


@pytest.mark.parametrize("change", CHANGES)
def test_of_a_change_that_another_etcd_answers_nobody_knows_and_nothing_more_is_asked(change: str) -> None:
    async def test() -> None:
        store = scripted(header(cluster=2))
        await store.get("a")
        with pytest.raises(StoreOutcomeUnknown, match="not the one that was asked before: cluster 2 answers"):
            await CHANGES[change](store)
        for ask in CHANGES.values():
            with pytest.raises(StoreReplaced):
                await ask(store)
        with pytest.raises(StoreReplaced):
            await store.get("a")

    asyncio.run(test())


def test_of_a_change_that_an_older_state_answers_nobody_knows() -> None:
    async def test() -> None:
        store = scripted(header(revision=8))
        await store.get("a")
        with pytest.raises(StoreOutcomeUnknown, match="an older state was restored"):
            await store.txn([absent("a")], [Put("a", b"")])

    asyncio.run(test())


def test_a_read_that_another_etcd_answers_has_no_outcome() -> None:
    async def test() -> None:
        store = scripted(header(cluster=2))
        await store.get("a")
        with pytest.raises(StoreReplaced):
            await store.get("a")

    asyncio.run(test())


@pytest.mark.parametrize("change", ["grant", "revoke"])
@pytest.mark.parametrize("then", [DENIED, FULL, StoreUnavailable("no member of etcd answers")])
def test_that_the_last_of_several_attempts_was_refused_says_nothing_of_the_first(change: str, then: Any) -> None:
    async def test() -> None:
        store = scripted(NO_ANSWER, then)
        await store.get("a")
        with pytest.raises(StoreOutcomeUnknown):
            await CHANGES[change](store)

    asyncio.run(test())


def test_a_refusal_that_says_what_the_first_attempt_came_to_is_believed() -> None:
    async def test() -> None:
        store = scripted(NO_ANSWER, NO_LEASE)
        await store.get("a")
        await store.revoke(7)
        exists = grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: lease already exists"
        store = scripted(NO_ANSWER, exists, header(granted_ttl=6, ttl=6), NO_ANSWER, exists, DENIED)
        await store.get("a")
        assert (await store.grant(5)).seconds == 6
        with pytest.raises(StoreOutcomeUnknown, match="may have been granted, and have ended"):
            await store.grant(5)

    asyncio.run(test())


def test_a_request_that_comes_while_a_member_is_met_anew_changes_nothing_in_another_etcd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    member, url = start_single(tmp_path / "data", port=port)

    async def test() -> None:
        nonlocal member
        store, fresh = (EtcdStore(Endpoints((url,), timeout=DEADLINE)) for _ in range(2))
        try:
            await store.get("a")
            member.kill()
            member, _ = start_single(tmp_path / "other", "--initial-cluster-token=other", port=port)
            await fresh.list("")
            met, ask = _told_when_asked(monkeypatch, store), store.txn
            first = asyncio.ensure_future(ask([absent("b")], [Put("b", b"")]))
            await met.wait()
            outcomes = await asyncio.gather(first, ask([absent("c")], [Put("c", b"")]), return_exceptions=True)
            assert [type(each) for each in outcomes] == [StoreReplaced] * 2
            assert not (await fresh.list("")).found
        finally:
            await store.close()
            await fresh.close()

    try:
        asyncio.run(test())
    finally:
        member.kill()


def test_a_change_that_a_full_etcd_made_nevertheless_is_not_called_refused() -> None:
    """The one that fills it is made, and refused with the same words as those that are not."""

    async def test() -> None:
        away = StoreUnavailable("no member of etcd answers")
        store = scripted(FULL, header(succeeded=True), FULL, header(succeeded=False), FULL, away, FULL)
        await store.get("a")
        with pytest.raises(StoreFull):
            await CHANGES["put"](store)
        for _ in range(2):
            with pytest.raises(StoreOutcomeUnknown, match="may be the one that filled etcd"):
                await CHANGES["put"](store)
        with pytest.raises(StoreOutcomeUnknown):
            await store.txn([], [Put("a", b"")])  # nothing tells whether this was made

    asyncio.run(test())


def test_a_lease_that_a_full_etcd_granted_nevertheless_is_granted() -> None:
    async def test() -> None:
        store = scripted(FULL, header(granted_ttl=5, ttl=5), FULL, header(ttl=-1), FULL, DENIED)
        await store.get("a")
        assert (await store.grant(5)).seconds == 5
        with pytest.raises(StoreFull):
            await store.grant(5)
        with pytest.raises(StoreOutcomeUnknown):
            await store.grant(5)

    asyncio.run(test())


@pytest.mark.parametrize(
    ("compare", "then", "otherwise", "tells"),
    [
        ([absent("a")], [Put("a", b"")], [], True),
        ([Compare("a", "mod", 7)], [Put("a", b"")], [], True),
        ([Compare("a", "mod", 7)], [Delete("a")], [], True),
        ([Compare("a", "mod", 7), absent("b")], [Put("c", b""), Delete("a")], [], True),
        ([absent("a")], [Delete("a")], [], False),
        ([present("a")], [Put("a", b"")], [], False),
        ([Compare("a", "create", 7)], [Put("a", b"")], [], False),
        ([Compare("a", "value", b"")], [Put("a", b"")], [], False),
        ([absent("a")], [Put("b", b"")], [], False),
        ([absent("a")], [Put("a", b"")], [Put("b", b"")], False),
        ([], [Put("a", b"")], [], False),
    ],
)
def test_whether_a_change_was_made_can_be_told_where_it_compares_what_it_changes(
    compare: list[Compare], then: list[Put | Delete], otherwise: list[Put], tells: Any
) -> None:
    assert tells_itself(compare, then, otherwise) is tells


def _told_when_asked(monkeypatch: pytest.MonkeyPatch, store: EtcdStore) -> asyncio.Event:
    """Return an event that is set when the only member is asked for something."""
    asked, only = asyncio.Event(), store._members._members[0]
    ask = only.ask

    async def told(*arguments: Any) -> Any:
        asked.set()
        return await ask(*arguments)

    monkeypatch.setattr(only, "ask", told)
    return asked


def _with_a_member(place: Path, test: Callable[[Member, EtcdStore], Coroutine[Any, Any, None]]) -> None:
    """Run a test with an etcd of one member, and a store that has met it."""
    member, url = start_single(place / "data")

    async def met() -> None:
        store = EtcdStore(Endpoints((url,), timeout=DEADLINE))
        await store.get("a")
        await test(member, store)

    try:
        asyncio.run(met())
    finally:
        member.kill()


def test_who_waits_for_a_connection_is_told_when_the_store_is_closed() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            for ask in (lambda store: store.get("a"), CHANGES["put"]):
                store = EtcdStore(Endpoints((f"http://127.0.0.1:{silent.getsockname()[1]}",), timeout=DEADLINE))
                asking = asyncio.ensure_future(ask(store))
                connection, _ = await asyncio.to_thread(silent.accept)
                with connection:
                    await store.close()
                    with pytest.raises(StoreClosed):
                        await asking

    asyncio.run(test())


def test_who_waits_for_a_member_to_say_what_it_is_is_told_when_the_store_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(member: Member, store: EtcdStore) -> None:
        asked = _told_when_asked(monkeypatch, store)
        store._members.leave(store._members._members[0])
        member.signal(signal.SIGSTOP)
        asking = asyncio.ensure_future(store.txn([], [Put("a", b"")]))
        await asked.wait()
        await asyncio.sleep(0)
        await store.close()
        with pytest.raises(StoreClosed):
            await asking

    _with_a_member(tmp_path, test)


def test_who_has_just_met_a_member_is_told_when_the_store_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(_: Member, store: EtcdStore) -> None:
        only = store._members._members[0]
        ask = only.ask

        async def closes(*arguments: Any) -> Any:
            answer = await ask(*arguments)
            await store.close()
            return answer

        monkeypatch.setattr(only, "ask", closes)
        store._members.leave(only)
        with pytest.raises(StoreClosed):
            await store.txn([], [Put("a", b"")])

    _with_a_member(tmp_path, test)
