"""A fake of etcd as the store of a fleet: it passes the same tests (`tests/etcd`), in virtual time and with faults.

    etcd = FakeEtcd()
    gate, host = etcd.connect(), etcd.connect()
    gate.replies.append(FakeReply.LOSE_AFTER)      # how the next transaction ends
    host.cut()                                 # no answers, and its watches end
    etcd.compact()

What lives here: `FakeEtcd`, which has what the members of etcd have in common, and `FakeStore`, one client of it. What
must not: waiting for real time (leases end by the running loop's clock), or what only etcd itself can tell: roles, TLS.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from uvmshare.errors import (
    LeaseNotFound,
    RevisionCompacted,
    StoreClosed,
    StoreError,
    StoreFull,
    StoreOutcomeUnknown,
    StoreReplaced,
    StoreUnavailable,
    WatchEnded,
)
from uvmshare.etcd.checking import changes_nothing, check_key, check_lease, check_txn
from uvmshare.etcd.protocol import (
    PAGE,
    Changes,
    Delete,
    Event,
    Get,
    KeyValue,
    Lease,
    LeaseStatus,
    Outcome,
    Page,
    Put,
    Reading,
)
from uvmshare.testing.fakes import FakeReply

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence

    from uvmshare.etcd.protocol import Compare, Operation

__all__ = ["FakeEtcd", "FakeReply", "FakeStore"]

T = TypeVar("T")

_NO_ANSWER: Final = "etcd does not answer; the fake was cut off or stopped"
_ABSENT: Final = KeyValue("", b"", 0, 0, 0)
_TARGETS: Final[Mapping[str, Callable[[KeyValue], int]]] = {
    "create": lambda found: found.create_revision,
    "mod": lambda found: found.mod_revision,
    "version": lambda found: found.version,
    "lease": lambda found: found.lease,
}


@dataclass(slots=True, eq=False)
class _Lease:
    seconds: int
    deadline: float = 0.0
    keys: set[str] = field(default_factory=set)
    timer: asyncio.TimerHandle | None = None


def _holds(compare: Compare, found: KeyValue | None) -> bool:
    is_: Any  # `check_txn` saw to it that both are of one type
    if compare.target == "value":
        if found is None:
            return False
        is_ = found.value
    else:
        is_ = _TARGETS[compare.target](found or _ABSENT)
    to = compare.to
    match compare.relation:
        case "equal":
            return bool(is_ == to)
        case "not_equal":
            return bool(is_ != to)
        case "greater":
            return bool(is_ > to)
        case "less":
            return bool(is_ < to)


class FakeEtcd:
    """What the members of a cluster have in common. `connect` gives a client."""

    def __init__(self, *, cluster_id: int = 1, progress: float = 5.0) -> None:
        self.cluster_id = cluster_id
        self.revision = 1
        self.compacted = 0
        self.full = False
        """Whether the database has reached its quota: changes that put something are refused."""
        self.progress = progress
        """Every how many seconds a watch tells that it is alive."""
        self._versions: dict[str, list[Event]] = {}
        self._leases: dict[int, _Lease] = {}
        self._granted = 1000
        self._stores: list[FakeStore] = []
        self.running = True
        self.latency = 0.0
        """Seconds that each call takes to arrive, and its answer to come."""
        self.restored = 0
        """How often it has become what a backup has."""
        self.stopped = 0
        """How often it has lost its majority."""
        self.on_call: Callable[[str], None] = lambda _: None
        """Called with the name of each call when it arrives, and once more when its answer is under way."""

    def connect(self) -> FakeStore:
        """Return a new client."""
        store = FakeStore(self)
        self._stores.append(store)
        return store

    @property
    def leases(self) -> tuple[int, ...]:
        """The leases that have not ended."""
        return tuple(self._leases)

    # What happens to a cluster.

    def stop(self) -> None:
        """Lose the majority: nothing answers, watches end, and leases stand still."""
        self.running = False
        self.stopped += 1
        for lease in self._leases.values():
            self._stand_still(lease)
        self._end_watches()

    def start(self) -> None:
        """Have a majority again; leases begin anew with all that was granted."""
        self.running = True
        self.change_leader()

    def change_leader(self) -> None:
        """Let another member lead: every lease begins anew with all that was granted."""
        for number in self._leases:
            self._renew(number)

    def compact(self, revision: int = 0) -> None:
        """Forget what was before a revision; 0 is now."""
        self.compacted = revision = revision or self.revision
        for key, versions in list(self._versions.items()):
            old = [event for event in versions if event.at.mod_revision <= revision]
            kept = [event for event in old[-1:] if event.change == "put"] + versions[len(old) :]
            if kept:
                self._versions[key] = kept
            else:
                del self._versions[key]
        for watcher in self._watchers():
            watcher.wake()

    def backup(self) -> FakeEtcd:
        """Return a copy of all that it has, as a backup; leases are in it, clients are not."""
        copy = FakeEtcd(cluster_id=self.cluster_id, progress=self.progress)
        copy.revision, copy.compacted, copy._granted = self.revision, self.compacted, self._granted
        copy._versions = {key: list(versions) for key, versions in self._versions.items()}
        copy._leases = {number: _Lease(each.seconds, keys=set(each.keys)) for number, each in self._leases.items()}
        return copy

    def restore(self, backup: FakeEtcd, *, cluster_id: int | None = None) -> None:
        """Become what a backup has, under the same cluster id unless another is given. Clients stay connected.

        A call that is under way then is carried out by what there is now, as one is whose connection was made anew.
        """
        self.restored += 1
        for lease in self._leases.values():
            self._stand_still(lease)
        copy = backup.backup()
        self.cluster_id = copy.cluster_id if cluster_id is None else cluster_id
        self.revision, self.compacted, self._granted = copy.revision, copy.compacted, copy._granted  # noqa: SLF001  as above
        self._versions, self._leases = copy._versions, copy._leases  # noqa: SLF001  as above
        self.change_leader()
        self._end_watches()

    def expire(self, lease: int) -> None:
        """End a lease now, as if its time had passed."""
        ended = self._leases.pop(lease)
        self._stand_still(ended)
        self._write([Delete(key) for key in sorted(ended.keys)])

    # What clients ask.

    def find(self, key: str, revision: int = 0) -> KeyValue | None:
        """Return what a key has, or had at a revision."""
        for event in reversed(self._versions.get(key, ())):
            if not revision or event.at.mod_revision <= revision:
                return event.at if event.change == "put" else None
        return None

    def read(self, prefix: str = "", revision: int = 0) -> tuple[KeyValue, ...]:
        """Return what there is, in order."""
        found = (self.find(key, revision) for key in sorted(self._versions) if key.startswith(prefix))
        return tuple(each for each in found if each is not None)

    def events(self, prefix: str, first: int) -> list[Event]:
        """Return the events of a prefix from a revision on, in order."""
        found = [
            event
            for key, versions in self._versions.items()
            if key.startswith(prefix)
            for event in versions
            if event.at.mod_revision >= first
        ]
        return sorted(found, key=lambda event: event.at.mod_revision)

    def txn(self, compare: Iterable[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> Outcome:
        """Carry out a transaction."""
        if self.full and any(isinstance(operation, Put) for operation in (*then, *otherwise)):
            msg = "the database has reached its quota"
            raise StoreFull(msg)
        succeeded = all(_holds(each, self.find(each.key)) for each in compare)
        branch = then if succeeded else otherwise
        for operation in branch:
            if isinstance(operation, Put) and operation.lease and operation.lease not in self._leases:
                self.no_lease(operation.lease)
        found, deleted = self._write(branch)
        return Outcome(succeeded, self.revision, found, deleted)

    def _write(self, branch: Sequence[Operation]) -> tuple[tuple[KeyValue | None, ...], int]:
        revision = self.revision + 1
        found: list[KeyValue | None] = []
        deleted = 0
        for operation in branch:
            match operation:
                case Put(key, value, lease):
                    old = self._take_from_lease(key)
                    made, version = (old.create_revision, old.version + 1) if old else (revision, 1)
                    new = KeyValue(key, value, made, revision, version, lease)
                    self._versions.setdefault(key, []).append(Event("put", new))
                    self.revision = revision
                    if lease:
                        self._leases[lease].keys.add(key)
                case Delete(key, prefix):
                    for each in [each.key for each in self.read(key)] if prefix else [key]:
                        if self._take_from_lease(each):
                            gone = KeyValue(each, b"", 0, revision, 0)
                            self._versions[each].append(Event("delete", gone))
                            self.revision = revision
                            deleted += 1
                case Get(key):
                    found.append(self.find(key))
        for watcher in self._watchers():
            watcher.wake()
        return tuple(found), deleted

    def _take_from_lease(self, key: str) -> KeyValue | None:
        old = self.find(key)
        if old and old.lease in self._leases:
            self._leases[old.lease].keys.discard(key)
        return old

    def grant(self, seconds: int) -> Lease:
        """Grant a lease."""
        if self.full:
            msg = "the database has reached its quota"
            raise StoreFull(msg)
        self._granted += 1
        self._leases[self._granted] = _Lease(seconds)
        self._renew(self._granted)
        return Lease(self._granted, seconds)

    def keep_alive(self, lease: int) -> int:
        """Renew a lease."""
        if lease not in self._leases:
            self.no_lease(lease)
        self._renew(lease)
        return self._leases[lease].seconds

    def revoke(self, lease: int) -> None:
        """End a lease, if it is there."""
        if lease in self._leases:
            self.expire(lease)

    def time_to_live(self, lease: int) -> LeaseStatus:
        """Say what a lease has."""
        if lease not in self._leases:
            self.no_lease(lease)
        found = self._leases[lease]
        remaining = int(found.deadline - asyncio.get_running_loop().time())
        return LeaseStatus(lease, found.seconds, remaining, tuple(sorted(found.keys)))

    def no_lease(self, lease: int) -> NoReturn:
        """Raise `LeaseNotFound`."""
        msg = f"lease {lease:x} is not there: it has ended"
        raise LeaseNotFound(msg)

    def _renew(self, number: int) -> None:
        lease = self._leases[number]
        self._stand_still(lease)
        loop = asyncio.get_running_loop()
        lease.deadline = loop.time() + lease.seconds
        lease.timer = loop.call_at(lease.deadline, self.expire, number)

    def _stand_still(self, lease: _Lease) -> None:
        if lease.timer is not None:
            lease.timer.cancel()

    def _watchers(self) -> list[_Watcher]:
        return [watcher for store in self._stores for watcher in store.watchers]

    def _end_watches(self) -> None:
        for store in self._stores:
            store.end_watches()


class _Watcher:
    """One watch of a client."""

    def __init__(self, etcd: FakeEtcd, prefix: str, revision: int) -> None:
        self._etcd = etcd
        self._prefix = prefix
        self._next = revision
        self._told = revision - 1
        self._changed = asyncio.Event()
        self.ended: StoreError | None = None

    def wake(self) -> None:
        self._changed.set()

    def end(self, error: StoreError) -> None:
        self.ended = self.ended or error
        self.wake()

    async def changes(self) -> AsyncGenerator[Changes, None]:
        while True:
            if self.ended is not None:
                raise self.ended
            self._changed.clear()
            refuse_compacted(self._next, self._etcd)
            events = tuple(self._etcd.events(self._prefix, self._next))
            self._next = max(self._next, self._etcd.revision + 1)
            self._told = max(self._told, self._etcd.revision)
            if events:
                yield Changes(self._told, events)
                await asyncio.sleep(0)
                continue
            try:
                async with asyncio.timeout(self._etcd.progress):
                    await self._changed.wait()
            except TimeoutError:
                yield Changes(self._told)


def refuse_compacted(revision: int, etcd: FakeEtcd) -> None:
    """Raise `RevisionCompacted` where not every change from a revision on is there any more."""
    if revision <= etcd.compacted:
        msg = f"revision {revision} is gone: everything up to {etcd.compacted} was compacted"
        raise RevisionCompacted(msg)


class FakeStore:
    """A client of a `FakeEtcd`: a `Store`, and what can happen to one."""

    def __init__(self, etcd: FakeEtcd) -> None:
        self.etcd = etcd
        self.replies: deque[FakeReply] = deque()
        """How the next transactions end; others succeed."""
        self.decide: Callable[[str], FakeReply] = self._by_replies
        """How each call ends, given its name (``"txn"``, ``"get"``). A read that is lost is unavailable."""
        self.calls: list[str] = []
        """The names of the calls so far."""
        self.watchers: list[_Watcher] = []
        self._connected = True
        self._cuts = 0
        self._mended = asyncio.Event()
        self._seen: tuple[int, int] | None = None
        self._broken: StoreError | None = None

    def _by_replies(self, name: str) -> FakeReply:
        return self.replies.popleft() if name == "txn" and self.replies else FakeReply.SUCCEED

    # What happens to a client.

    def cut(self) -> None:
        """Cut it off: what is under way is lost, every call fails, watches end."""
        self._connected = False
        self._cuts += 1
        self.end_watches()
        self._mended.set()
        self._mended = asyncio.Event()

    def mend(self) -> None:
        """Connect it again."""
        self._connected = True

    def end_watches(self) -> None:
        """Cut its watches, and nothing else."""
        for watcher in self.watchers:
            watcher.end(WatchEnded("the watch was cut off"))

    # The calls of `Store`.

    async def _call(self, name: str, ask: Callable[[], T], *, changes: bool = False) -> T:
        self.calls.append(name)
        if self._broken is not None:
            raise self._broken
        reply, cuts, gone = self.decide(name), self._cuts, self._mended
        restored, stopped = self.etcd.restored, self.etcd.stopped
        lost = StoreOutcomeUnknown("no answer came to a change") if changes else StoreUnavailable(_NO_ANSWER)
        await asyncio.sleep(self.etcd.latency)
        if self._broken is not None:
            raise self._broken
        if not self._connected or not self.etcd.running or reply is FakeReply.FAIL:
            raise StoreUnavailable(_NO_ANSWER)
        if reply is FakeReply.LOSE_BEFORE:
            raise lost
        if reply is FakeReply.NEVER:
            await gone.wait()
            raise lost
        if self.etcd.restored == restored:
            self._look()
        self.etcd.on_call(name)
        if not self.etcd.running:
            raise lost
        try:
            answer = ask()
        finally:
            replaced = self._replaced()
            self._seen = (self.etcd.cluster_id, self.etcd.revision)
            self.etcd.on_call(name)
            await asyncio.sleep(self.etcd.latency)
        if reply is FakeReply.LOSE_AFTER or cuts != self._cuts or stopped != self.etcd.stopped:
            raise lost
        if replaced is not None:
            self._broken = self._broken or replaced
        if self._broken is not None:
            raise lost if changes else self._broken
        return answer

    def _replaced(self) -> StoreReplaced | None:
        """Return what says that another etcd is there than the one that answered before, or an older state of it."""
        seen, now = self._seen, (self.etcd.cluster_id, self.etcd.revision)
        if seen is None or (seen[0] == now[0] and seen[1] <= now[1]):
            return None
        return StoreReplaced(
            f"cluster {now[0]:x} at revision {now[1]} answers, and {seen[0]:x} at {seen[1]} did before"
        )

    def _look(self) -> None:
        self._broken = self._replaced()
        if self._broken is not None:
            raise self._broken

    async def cluster_id(self) -> int:
        """See `Store.cluster_id`."""
        return await self._call("cluster_id", lambda: self.etcd.cluster_id)

    async def get(self, key: str) -> Reading:
        """See `Store.get`."""
        check_key(key)
        return await self._call("get", lambda: Reading(self.etcd.find(key), self.etcd.revision))

    async def list(self, prefix: str, *, revision: int = 0, after: str = "", limit: int = PAGE) -> Page:
        """See `Store.list`."""

        def page() -> Page:
            if revision and revision < self.etcd.compacted:
                refuse_compacted(revision, self.etcd)
            if revision > self.etcd.revision:
                msg = f"there is no revision {revision} yet"
                raise StoreError(msg)
            found = [each for each in self.etcd.read(prefix, revision) if each.key > after]
            return Page(tuple(found[:limit]), revision or self.etcd.revision, len(found) > limit)

        return await self._call("list", page)

    async def txn(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Outcome:
        """See `Store.txn`."""
        check_txn(compare, then, otherwise)
        changes = not changes_nothing(then, otherwise)
        return await self._call("txn", lambda: self.etcd.txn(compare, then, otherwise), changes=changes)

    @asynccontextmanager
    async def watch(self, prefix: str, revision: int) -> AsyncIterator[AsyncIterator[Changes]]:
        """See `Store.watch`."""
        await self._call("watch", lambda: refuse_compacted(revision, self.etcd))
        watcher = _Watcher(self.etcd, prefix, revision)
        self.watchers.append(watcher)
        try:
            async with aclosing(watcher.changes()) as changes:
                yield changes
        finally:
            self.watchers.remove(watcher)

    async def grant(self, seconds: int) -> Lease:
        """See `Store.grant`."""
        check_lease(seconds)
        return await self._call("grant", lambda: self.etcd.grant(seconds), changes=True)

    async def keep_alive(self, lease: int) -> int:
        """See `Store.keep_alive`."""
        return await self._call("keep_alive", lambda: self.etcd.keep_alive(lease))

    async def revoke(self, lease: int) -> None:
        """See `Store.revoke`."""
        await self._call("revoke", lambda: self.etcd.revoke(lease), changes=True)

    async def time_to_live(self, lease: int) -> LeaseStatus:
        """See `Store.time_to_live`."""
        return await self._call("time_to_live", lambda: self.etcd.time_to_live(lease))

    async def close(self) -> None:
        """See `Store.close`."""
        self._broken = self._broken or StoreClosed("the store was closed")
        self._mended.set()
        for watcher in self.watchers:
            watcher.end(self._broken)
