"""Etcd itself as a `Store`, over grpcio (the extra ``fleet``).

    store = EtcdStore(Endpoints(("https://etcd-1:2379", "https://etcd-2:2379"), certificates))
    try:
        page = await store.list("/F/host/h1/")
    finally:
        await store.close()

What lives here: which calls are asked again and which are not, and whether it is still the same etcd that answers. What
must not: the channels (`members`), the stream of a watch (`watching`), or what etcd's words mean (`failures`).

A read is asked again, of the next member, until its time is over. A change is asked again only while it has certainly
not been made: before a connection stands, or where etcd says so. A grant carries an id of this client's, so that asking
again cannot grant two; a revocation can be repeated.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, NoReturn, TypeVar

import grpc

from uvmshare.errors import (
    LeaseNotFound,
    StoreError,
    StoreFull,
    StoreOutcomeUnknown,
    StoreReplaced,
    StoreUnavailable,
)
from uvmshare.etcd import failures, messages
from uvmshare.etcd.checking import changes_nothing, check_key, check_lease, check_txn, tells_itself
from uvmshare.etcd.members import Members, closed, is_cancelled
from uvmshare.etcd.protocol import PAGE, Get, Lease, LeaseStatus, Page, Reading
from uvmshare.etcd.renewing import Renewals
from uvmshare.etcd.translation import key_bytes, key_value, outcome, prefix_range, transaction
from uvmshare.etcd.watching import PROGRESS, Watch

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from uvmshare.etcd.endpoints import Endpoints
    from uvmshare.etcd.protocol import Changes, Compare, Operation, Outcome
    from uvmshare.etcd.wire import Message

__all__ = ["EtcdStore"]

A = TypeVar("A", bound=messages.Answer)


class EtcdStore:
    """A client of etcd, of the running loop: a `Store`."""

    def __init__(self, endpoints: Endpoints, *, progress: float = PROGRESS) -> None:
        self._endpoints = endpoints
        self._progress = progress
        self._members = Members(endpoints, self._look)
        self._cluster = 0
        self._seen = 0
        self._replaced: StoreReplaced | None = None
        self._watches: set[Watch] = set()
        self._renewals: Renewals | None = None

    def __repr__(self) -> str:
        return f"EtcdStore({', '.join(self._endpoints.urls)})"

    # Whether it is still the same etcd.

    def _look(self, answer: messages.Answer, seen: int = 0) -> None:
        """Look at an answer; `seen` is the revision that it cannot be older than."""
        header = answer.header
        if not header.cluster_id:  # some answers of the Maintenance service say nothing
            return
        if self._cluster and header.cluster_id != self._cluster:
            self._replace(f"cluster {header.cluster_id:x} answers, and {self._cluster:x} did before")
        if header.revision < seen:
            self._replace(
                f"etcd is at revision {header.revision}, and was at {seen} before: an older state was restored"
            )
        self._cluster = header.cluster_id
        if seen:
            self._seen = max(self._seen, header.revision)

    def _replace(self, words: str) -> NoReturn:
        self._replaced = StoreReplaced(f"{words}; see which one is right, and open the store anew")
        for watch in self._watches:
            watch.stop(self._replaced)
        raise self._replaced

    def _refuse(self) -> None:
        if self._members.closed:
            raise closed()
        if self._replaced is not None:
            raise self._replaced

    # How calls are asked.

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._endpoints.timeout

    async def ask(
        self, method: str, request: Message, answer: type[A], *, changes: bool = False, linearizable: bool = False
    ) -> A:
        """Ask one of etcd's services, as the calls of `Store` and `administration` do."""
        deadline = self._deadline()
        loop = asyncio.get_running_loop()
        while True:
            self._refuse()
            member = await self._members.ready(deadline)
            seen = max(self._seen, 1) if linearizable else 0
            # A change that was sent is worth waiting for. A read is asked of another member soon.
            patience = max(deadline - loop.time(), 0.1)
            try:
                got = await member.ask(method, request, answer, patience if changes else min(patience, 3.0))
            except grpc.aio.AioRpcError as error:
                if self._members.closed:
                    raise closed(unknown=changes) from error
                failed, again = failures.understood(error, member.target, changes=changes)
                if isinstance(failed, (StoreUnavailable, StoreOutcomeUnknown)):
                    self._members.leave(member)
                if not again or loop.time() >= deadline:
                    raise failed from error
                await asyncio.sleep(0.02)  # a refusal may come at once, and would again
            except asyncio.CancelledError as error:
                if is_cancelled() or not self._members.closed:
                    raise
                raise closed(unknown=changes) from error
            else:
                self._look_at_answer(got, seen, member.target, changes=changes)
                return got

    def _look_at_answer(self, answer: messages.Answer, seen: int, where: str, *, changes: bool) -> None:
        try:
            self._look(answer, seen)
        except StoreReplaced as error:
            if not changes:
                raise
            msg = f"a change was carried out by etcd at {where}, which is not the one that was asked before: {error}"
            raise StoreOutcomeUnknown(msg) from error

    async def _ask_until_known(self, method: str, request: Message, answer: type[A], *known: str) -> A:
        """Ask for a change that may be repeated, until its outcome is known.

        `known` are words of refusals that say what an earlier attempt came to. Any other failure says that of the last
        attempt alone, so it does not tell that nothing was changed.
        """
        deadline = self._deadline()
        unknown: StoreOutcomeUnknown | None = None
        while True:
            try:
                return await self.ask(method, request, answer, changes=True)
            except StoreOutcomeUnknown as error:
                unknown = error
                if self._members.closed or asyncio.get_running_loop().time() >= deadline:
                    raise
            except StoreError as error:
                if unknown is None or any(words in str(error) for words in known):
                    raise
                raise unknown from error

    # The calls of `Store`.

    async def cluster_id(self) -> int:
        """See `Store.cluster_id`."""
        if not self._cluster:  # whoever asks may read some keys and not others; this everybody may
            await self.ask("Maintenance/Status", messages.Empty(), messages.StatusResponse)
        self._refuse()
        return self._cluster

    async def get(self, key: str) -> Reading:
        """See `Store.get`."""
        request = messages.RangeRequest(key_bytes(check_key(key)))
        answer = await self.ask("KV/Range", request, messages.RangeResponse, linearizable=True)
        return Reading(key_value(answer.kvs[0]) if answer.kvs else None, answer.header.revision)

    async def list(self, prefix: str, *, revision: int = 0, after: str = "", limit: int = PAGE) -> Page:
        """See `Store.list`."""
        first, end = prefix_range(prefix)
        if after >= prefix and after:
            first = key_bytes(after) + b"\0"
        request = messages.RangeRequest(first, end, limit, revision)
        answer = await self.ask("KV/Range", request, messages.RangeResponse, linearizable=True)
        return Page(tuple(map(key_value, answer.kvs)), revision or answer.header.revision, answer.more)

    async def txn(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Outcome:
        """See `Store.txn`."""
        check_txn(compare, then, otherwise)
        request, added = transaction(compare, then, otherwise)
        changes = not changes_nothing(then, otherwise)
        try:
            answer = await self.ask("KV/Txn", request, messages.TxnResponse, changes=changes, linearizable=True)
        except StoreFull as error:
            if not tells_itself(compare, then, otherwise) or not await self._holds_yet(compare):
                msg = f"a change may be the one that filled etcd, and have been made: {error}"
                raise StoreOutcomeUnknown(msg) from error
            raise
        return outcome(answer, added)

    async def _holds_yet(self, compare: Sequence[Compare]) -> bool:
        """Whether comparisons hold after etcd has said that it is full.

        It says so of a change that it refused, and also of the one that it made as the last (`quotaApplierV3` in
        etcd's server/etcdserver/apply does what is asked, and says then that there was no space for it).
        """
        try:
            return (await self.txn(compare, [Get(compare[0].key)])).succeeded
        except StoreError:
            return False

    @asynccontextmanager
    async def watch(self, prefix: str, revision: int) -> AsyncIterator[AsyncIterator[Changes]]:
        """See `Store.watch`."""
        watch = await self._begin(prefix, revision)
        try:
            async with aclosing(watch.changes()) as changes:
                yield changes
        finally:
            self._watches.discard(watch)
            await watch.end()

    async def _begin(self, prefix: str, revision: int) -> Watch:
        deadline = self._deadline()
        loop = asyncio.get_running_loop()
        while True:
            self._refuse()
            member = await self._members.ready(deadline)
            watch = Watch(member, prefix, revision, self._look, progress=self._progress)
            self._watches.add(watch)
            try:
                async with asyncio.timeout_at(max(deadline, loop.time() + 0.1)):
                    await watch.begin(self._seen)
            except BaseException as error:
                self._watches.discard(watch)
                await watch.end()
                if isinstance(error, asyncio.CancelledError) and self._members.closed and not is_cancelled():
                    raise closed() from error
                if isinstance(error, TimeoutError):
                    self._members.leave(member)
                    msg = f"etcd at {member.target} does not take a watch"
                    raise StoreUnavailable(msg) from error
                if not isinstance(error, StoreUnavailable) or loop.time() >= deadline:
                    raise
                self._members.leave(member)
            else:
                return watch

    async def grant(self, seconds: int) -> Lease:
        """See `Store.grant`."""
        request = messages.LeaseGrantRequest(check_lease(seconds), secrets.randbits(62) + 1)
        try:
            answer = await self._ask_until_known(
                "Lease/LeaseGrant", request, messages.LeaseGrantResponse, failures.EXISTS
            )
        except StoreError as error:
            if failures.EXISTS not in str(error) and not isinstance(error, StoreFull):
                raise
            return await self._granted(request.id, error)
        return Lease(answer.id, answer.ttl)

    async def _granted(self, lease: int, refused: StoreError) -> Lease:
        """Return a lease that an earlier attempt granted, or the one that filled etcd; see `_holds_yet`."""
        try:
            return Lease(lease, (await self.time_to_live(lease)).granted)
        except StoreError as error:
            if isinstance(error, LeaseNotFound) and isinstance(refused, StoreFull):
                raise refused from error
            msg = f"lease {lease:x} may have been granted, and have ended: {error}"
            raise StoreOutcomeUnknown(msg) from error

    async def keep_alive(self, lease: int) -> int:
        """See `Store.keep_alive`."""
        deadline = self._deadline()
        loop = asyncio.get_running_loop()
        while True:
            self._refuse()
            member = await self._members.ready(deadline)
            renewals = self._renewals
            if renewals is None or renewals.over or renewals.member is not member:
                self._renewals = Renewals(member, self._look)
                if renewals is not None:
                    await renewals.end()
                renewals = self._renewals
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + 3.0)):
                    seconds = await renewals.renew(lease)
            except (TimeoutError, StoreUnavailable) as error:
                self._refuse()
                self._members.leave(member)
                if loop.time() >= deadline:
                    msg = f"etcd does not renew lease {lease:x}: no member answers"
                    raise StoreUnavailable(msg) from error
                continue
            if seconds <= 0:
                msg = f"lease {lease:x} is not there: it has ended"
                raise LeaseNotFound(msg)
            return seconds

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        try:
            await self._ask_until_known(
                "Lease/LeaseRevoke", messages.LeaseRevokeRequest(lease), messages.Answer, failures.NO_LEASE
            )
        except LeaseNotFound:
            return

    async def time_to_live(self, lease: int) -> LeaseStatus:
        """See `Store.time_to_live`."""
        request = messages.LeaseTimeToLiveRequest(lease, keys=True)
        answer = await self.ask("Lease/LeaseTimeToLive", request, messages.LeaseTimeToLiveResponse)
        if answer.ttl < 0:
            msg = f"lease {lease:x} is not there: it has ended"
            raise LeaseNotFound(msg)
        keys = tuple(sorted(key.decode("utf-8", "surrogateescape") for key in answer.keys))
        return LeaseStatus(lease, answer.granted_ttl, answer.ttl, keys)

    async def close(self) -> None:
        """See `Store.close`."""
        self._members.closed = True
        for watch in self._watches:
            watch.stop(closed())
        if self._renewals is not None:
            await self._renewals.end()
        await self._members.close()
