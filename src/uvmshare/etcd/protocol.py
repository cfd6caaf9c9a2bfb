"""What a fleet asks of its store: the protocol, and the data of its calls.

    page = await store.list("/F/host/h1/")
    async with store.watch("/F/host/h1/", page.revision + 1) as changes:
        async for change in changes:
            ...

What lives here: `Store`, and what its calls take and give. What must not: I/O, gRPC, or what the keys are for.

Keys are text. Etcd orders them by their UTF-8 bytes, which is the order of their code points. **Every call can be
cancelled at any time**: a change that was under way is then made or not, as with `StoreOutcomeUnknown`.

What every call may raise, beside what is said at it:

- `StoreUnavailable`: no member answers, or there is no majority. Nothing was changed.
- `StoreDenied`: the roles of etcd do not allow it. Nothing was changed.
- `StoreReplaced`: another cluster answers than before, or one that has gone back behind what it had answered. It is
  raised by every later call too: nothing more is asked through this store. Open another when it is clear which is
  right.
- `StoreUnsuitable`: a member is of a version that loses data.
- `StoreClosed`: `close` was called.
- `InvalidOptions`: an argument that etcd takes from nobody, such as an empty key. Nothing was asked.

Changes (`txn`, `grant`, `revoke`) may also raise `StoreOutcomeUnknown`. What to do then:

- `grant` and `revoke` have asked again by themselves, as long as that was possible: they may be called again.
- A `txn` that compares what it changes (`absent`, `unchanged`) may be sent again. If it was made the first time, the
  comparison fails, and what is there says so: put something of one's own into the value, such as a random id, where
  two callers may write the same.
- A `txn` that compares nothing is safe to repeat only if nobody else writes its keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

__all__ = [
    "MOST_OPERATIONS",
    "PAGE",
    "Change",
    "Changes",
    "Compare",
    "Delete",
    "Event",
    "Get",
    "KeyValue",
    "Lease",
    "LeaseStatus",
    "Operation",
    "Outcome",
    "Page",
    "Put",
    "Reading",
    "Store",
    "absent",
    "present",
    "unchanged",
]

MOST_OPERATIONS: Final = 128
"""How many comparisons, and how many operations of one branch, etcd takes in a transaction (``--max-txn-ops``)."""

PAGE: Final = 1000
"""How many keys `Store.list` returns at most, unless told otherwise."""


class KeyValue(msgspec.Struct, frozen=True, gc=False):
    """A key and what it has."""

    key: str
    value: bytes
    create_revision: int
    """The revision that made the key, the last time that it was made."""
    mod_revision: int
    """The revision that changed it last."""
    version: int
    """How often it was put since it was made; 1 after that."""
    lease: int = 0
    """The lease that it ends with; 0: none."""


class Reading(msgspec.Struct, frozen=True):
    """What `Store.get` gives: the key, or None where there is none, and the revision of the whole store then."""

    found: KeyValue | None
    revision: int


class Page(msgspec.Struct, frozen=True):
    """Keys of a prefix in order, and the revision at which they were read."""

    found: tuple[KeyValue, ...]
    revision: int
    more: bool
    """Whether there are keys behind the last of these."""


class Compare(msgspec.Struct, frozen=True):
    """A comparison of a transaction: what a key has, with a number or a value.

    A key that is not there has 0 as every number, and compares with no value: not even as "not equal".
    """

    key: str
    target: Literal["value", "create", "mod", "version", "lease"]
    to: int | bytes
    relation: Literal["equal", "not_equal", "greater", "less"] = "equal"


class Put(msgspec.Struct, frozen=True):
    """Give a key a value; its lease becomes this one, 0 none."""

    key: str
    value: bytes
    lease: int = 0


class Delete(msgspec.Struct, frozen=True):
    """Delete a key, or, with `prefix`, all that begin with it. What is not there is no error."""

    key: str
    prefix: bool = False


class Get(msgspec.Struct, frozen=True):
    """Read a key."""

    key: str


Operation: TypeAlias = Put | Delete | Get


class Outcome(msgspec.Struct, frozen=True):
    """What a transaction came to."""

    succeeded: bool
    """Whether all comparisons were true, and so the first branch was carried out."""
    revision: int
    """That of the store after it: of this transaction, where it changed something."""
    found: tuple[KeyValue | None, ...] = ()
    """What each `Get` of the branch that was carried out has found, in order."""
    deleted: int = 0
    """How many keys its `Delete`s have deleted."""


Change: TypeAlias = Literal["put", "delete"]


class Event(msgspec.Struct, frozen=True, gc=False):
    """A key was put or deleted."""

    change: Change
    at: KeyValue
    """After a put: all of it. After a delete: the key, and its `mod_revision`, which is that of the deletion."""


class Changes(msgspec.Struct, frozen=True):
    """What a watch tells at a time. Without events it is a sign of life."""

    revision: int
    """Every change up to and with this revision has been told. It never goes back."""
    events: tuple[Event, ...] = ()
    """All events of one or more revisions, in order; a revision is never divided."""


class Lease(msgspec.Struct, frozen=True):
    """A lease that was granted."""

    id: int
    seconds: int
    """How long it lives without a renewal. Etcd may give more than was asked: its least is 1.5 election timeouts."""


class LeaseStatus(msgspec.Struct, frozen=True):
    """What a lease has."""

    id: int
    granted: int
    """In seconds."""
    remaining: int
    """In seconds. After a change of etcd's leader a lease begins again with all that was granted."""
    keys: tuple[str, ...]
    """The keys that end with it."""


def absent(key: str) -> Compare:
    """Compare: there is no such key."""
    return Compare(key, "create", 0)


def present(key: str) -> Compare:
    """Compare: there is such a key."""
    return Compare(key, "create", 0, "greater")


def unchanged(found: KeyValue) -> Compare:
    """Compare: nobody has put or deleted this key since it was read."""
    return Compare(found.key, "mod", found.mod_revision)


class Store(Protocol):
    """A client of one store. All calls are linearizable: they see every change that was answered before they began."""

    async def cluster_id(self) -> int:
        """Return the id of the cluster, which etcd takes from its members and its token when it is made."""
        ...

    async def get(self, key: str) -> Reading:
        """Read one key."""
        ...

    async def list(self, prefix: str, *, revision: int = 0, after: str = "", limit: int = PAGE) -> Page:
        """Read the keys that begin with `prefix`, at most `limit`, from behind the key `after`.

        Revision 0 is the newest. Read the pages of one listing at the revision of its first. An empty
        prefix is every key. Raises `RevisionCompacted`.
        """
        ...

    async def txn(
        self, compare: Sequence[Compare], then: Sequence[Operation], otherwise: Sequence[Operation] = ()
    ) -> Outcome:
        """Carry out one branch, whole and in one revision: `then`, if all comparisons are true, else `otherwise`.

        A transaction without a `Put` or `Delete` in either branch is a read, and never of unknown outcome. No key may
        be put twice in a branch, nor put and deleted. Raises `LeaseNotFound` for a put with a lease that is not there,
        `StoreFull`, and `StoreOutcomeUnknown`.
        """
        ...

    def watch(self, prefix: str, revision: int) -> AbstractAsyncContextManager[AsyncIterator[Changes]]:
        """Watch the keys that begin with `prefix`, from this revision on: the first event that is told is not older.

        When the block is entered, etcd has taken the watch. The iterator never ends by itself and **never skips**: it
        tells every revision with changes once, in order, or raises. It tells something every 5 seconds, events or not,
        and raises:

        - `WatchEnded`: cut off, or nothing was heard for 15 s. It is not taken up again by itself: an etcd that was
          restored from a backup may have the same revisions with other changes. List, and watch from there.
        - `RevisionCompacted`: the revision to begin from, or to go on from, is gone.
        - `StoreReplaced`, `StoreDenied`, `StoreClosed`.
        """
        ...

    async def grant(self, seconds: int) -> Lease:
        """Grant a lease: keys that are put with it are deleted when it ends, all in one revision."""
        ...

    async def keep_alive(self, lease: int) -> int:
        """Renew a lease once; return the seconds that it has now, from a moment not before this call began.

        Raises `LeaseNotFound` when it has ended.
        """
        ...

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys. One that is not there is no error."""
        ...

    async def time_to_live(self, lease: int) -> LeaseStatus:
        """Say what a lease has left, and which keys hang on it. Raises `LeaseNotFound`."""
        ...

    async def close(self) -> None:
        """Close it. Watches and reads that are under way raise `StoreClosed`, changes `StoreOutcomeUnknown`.

        Leases go on until they end.
        """
        ...
