"""Events of a fleet, made from what hosts write into etcd. A gate keeps none, so any gate can continue for another.

What lives here: `follow`, and what a change of a host's document is in words. What must not: how events are sent
(`app`).

The id of an event is a revision of etcd; of several in one revision, all but the last have their place behind a dot.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from uvmshare.daemon.documents import Event
from uvmshare.daemon.events import BEGINNING
from uvmshare.errors import RevisionCompacted, StoreReplaced, WatchEnded
from uvmshare.etcd.listing import listed
from uvmshare.fleet.documents import Have, Name, decode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from uvmshare.etcd.protocol import Event as Change
    from uvmshare.fleet.callers import Caller
    from uvmshare.fleet.reading import Reader

__all__ = ["follow"]


class _Happening(NamedTuple):
    kind: str
    vm: str = ""
    share: str | None = None
    owner: str | None = None
    detail: dict[str, Any] = {}  # noqa: RUF012  nobody changes it


class _Position(NamedTuple):
    revision: int
    told: int
    """How many events of the next revision are known already."""


def _position(after: str) -> _Position | None:
    revision, dot, told = after.partition(".")
    if not all(
        part.isascii() and part.isdigit() and len(part) < 20 for part in ((revision, told) if dot else (revision,))
    ):
        return None
    return _Position(int(revision) - 1, int(told) + 1) if dot else _Position(int(revision), 0)


async def follow(reader: Reader, who: Caller, after: str | None, *, wait: bool) -> AsyncIterator[Event | None]:
    """Give who asks the events behind the one of an id (None: from now on), then new ones as they come.

    "0" is everything that there is. A None says that some are missing. Without `wait` it ends with the last there is.
    """
    told = _Told(reader, who)
    position = None if after in (None, BEGINNING) else _position(after or "")
    if position is None or not await told.begin_at(position.revision):
        if after not in (None, BEGINNING):
            yield None
        for event in await told.begin_now(everything=after == BEGINNING):
            yield event
        position = _Position(told.revision, 0)
    until = (await reader.store.get(reader.keys.registered("-"))).revision
    skipped = position.told
    while wait or told.revision < until:
        try:
            async with reader.store.watch(reader.keys.all_hosts, told.revision + 1) as changes:
                async for each in changes:
                    for event in told.apply(each.events):
                        if skipped:
                            skipped -= 1
                            continue
                        yield event
                    told.revision = each.revision
                    if not wait and told.revision >= until:
                        return
        except WatchEnded:
            continue
        except RevisionCompacted:
            yield None
            for event in await told.begin_now(everything=False):
                yield event


class _Told:
    """What one client was told: the documents at one revision."""

    def __init__(self, reader: Reader, who: Caller) -> None:
        self._reader = reader
        self._keys = reader.keys
        self._who = who
        self._haves: dict[str, Have] = {}
        """By key."""
        self.revision = 0

    async def begin_at(self, revision: int) -> bool:
        """Begin with what there was at a revision; False when etcd has forgotten it, or is not there yet."""
        now = (await self._reader.store.get(self._keys.registered("-"))).revision
        if not 0 < revision <= now:
            return False
        try:
            await self._load(revision)
        except RevisionCompacted:
            return False
        self.revision = revision
        return True

    async def begin_now(self, *, everything: bool) -> list[Event]:
        """Begin with what there is; return events of all of it, if that is asked for."""
        revision = (await self._reader.store.get(self._keys.registered("-"))).revision
        while True:
            with suppress(RevisionCompacted):
                await self._load(revision)
                break
            revision = (await self._reader.store.get(self._keys.registered("-"))).revision
        self.revision = revision
        if not everything:
            return []
        found = [each for key, have in self._haves.items() for each in self._differences(key, None, have)]
        return self._numbered(found, revision)

    async def _load(self, revision: int) -> None:
        found: dict[str, Have] = {}
        store = self._reader.store
        for name in (await listed(store, self._keys.names(self._who.tenant), revision=revision)).found:
            host = decode(Name, name.value, name.key).host
            key = self._keys.have(host, *self._keys.vm_of_name(name.key))
            for each in (await listed(store, key, revision=revision)).found:
                if each.key == key:
                    found[key] = decode(Have, each.value, each.key)
        self._haves = found

    def apply(self, changes: tuple[Change, ...]) -> Iterator[Event]:
        """Give the events that changes are, in order."""
        at = 0
        while at < len(changes):
            revision = changes[at].at.mod_revision
            found: list[_Happening] = []
            while at < len(changes) and changes[at].at.mod_revision == revision:
                found += self._happenings(changes[at])
                at += 1
            yield from self._numbered(found, revision)

    def _numbered(self, found: list[_Happening], revision: int) -> list[Event]:
        ids = [f"{revision}.{number}" for number in range(len(found) - 1)] + [str(revision)]
        now = datetime.fromtimestamp(time.time(), UTC)
        return [Event(id=id_, time=now, **each._asdict()) for id_, each in zip(ids, found, strict=False)]

    def _happenings(self, change: Change) -> Iterator[_Happening]:
        host = self._keys.host_of(change.at.key)
        at = self._keys.read_host(host, change.at.key)
        if at is None:
            return
        if at.kind == "alive":
            is_first = change.at.create_revision == change.at.mod_revision
            if change.change == "delete" or is_first:
                yield _Happening("host.lost" if change.change == "delete" else "host.alive", detail={"host": host})
        if at.kind != "have" or self._who.tenant not in ("", at.tenant):
            return
        before = self._haves.pop(change.at.key, None)
        have = None
        if change.change == "put":
            with suppress(StoreReplaced):  # what cannot be read is no event
                have = self._haves[change.at.key] = decode(Have, change.at.value, change.at.key)
        yield from self._differences(change.at.key, before, have)

    def _differences(self, key: str, before: Have | None, have: Have | None) -> Iterator[_Happening]:
        """Give what became of a VM between two documents of its host."""
        host = self._keys.host_of(key)
        at = self._keys.read_host(host, key)
        assert at is not None, "it was read before"
        vm = self._who.shown(at.tenant, at.name)
        old = {} if before is None else before.vm or {}
        new = {} if have is None else have.vm or {}
        if new and not old:
            yield _Happening("vm.added", vm, detail={"host": host, "addresses": list(new.get("addresses", ()))})
        elif new.get("state") != old.get("state") and new:
            yield _Happening(f"vm.{new.get('state')}", vm, detail={"host": host, "reason": new.get("error")})
        if old and new and new.get("agent_state") != old.get("agent_state"):
            yield _Happening(f"agent.{new.get('agent_state')}", vm, detail={"reason": new.get("agent_error")})
        yield from _references(vm, "share", before, have)
        yield from _references(vm, "mount", before, have)
        if old and not new:
            yield _Happening("vm.removed", vm, detail={"host": host})


def _references(vm: str, kind: str, before: Have | None, have: Have | None) -> Iterator[_Happening]:
    old, new = _held(kind, before), _held(kind, have)
    for each, detail in new.items():
        if each not in old:
            yield _Happening(f"{kind}.held", vm, each[0], each[1], detail)
    for each, detail in old.items():
        if each not in new:
            yield _Happening(f"{kind}.released", vm, each[0], each[1], detail)


def _held(kind: str, have: Have | None) -> dict[tuple[str | None, str, str], dict[str, Any]]:
    """Return who holds what: by the share's name, the owner, and the place."""
    found: dict[tuple[str | None, str, str], dict[str, Any]] = {}
    documents = [] if have is None else have.shares if kind == "share" else have.mounts
    for each in documents:
        place = each["path"] if kind == "share" else each["guest_path"]
        detail = {"path": each["path"]} | ({} if kind == "share" else {"guest_path": place})
        for reference in each["references"]:
            found[each["name"] if kind == "share" else each["share"], reference["owner"], place] = detail
    return found
