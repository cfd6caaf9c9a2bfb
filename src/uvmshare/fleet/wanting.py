"""How a gate changes what a host should have of one VM: compare and set, until it succeeds.

What lives here: `Wanting`: what is wanted more, what is to end, and what the host said to it. What must not: how that
is shown (`answers`), or VMs as a whole (`gate`).

Everything may be asked again, through whichever gate: what is wanted already is not written a second time.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.daemon.documents import Problem, Released
from uvmshare.daemon.problems import to_exception
from uvmshare.errors import InvalidState, LimitReached, NotThere, StoreOutcomeUnknown
from uvmshare.etcd.protocol import Put, unchanged
from uvmshare.fleet.counting import Counting
from uvmshare.fleet.documents import Have, Holding, encode
from uvmshare.fleet.owners import id_of
from uvmshare.fleet.sending import Sent

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fleet.callers import Caller
    from uvmshare.fleet.documents import End
    from uvmshare.fleet.owners import Owners
    from uvmshare.fleet.reading import Found, Reader

__all__ = ["Asked", "Ended", "Wanting", "problem_in"]

_TRIES: Final = 100
"""Of one change, against others of the same VM."""
_PAUSE_SECONDS: Final = 0.05
"""At most, between two of them, by chance."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A holding that is wanted."""

    found: Found
    """The VM as it was before."""
    id: str
    revision: int
    """From which on it is wanted."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Holdings that are to end."""

    found: Found
    ids: tuple[str, ...]
    revision: int


class Wanting:
    """Changes of one fleet's wants."""

    def __init__(self, reader: Reader, owners: Owners) -> None:
        self._reader = reader
        self._owners = owners
        self._counting = Counting(reader)
        self._store = reader.store
        self._keys = reader.keys

    async def hold(self, who: Caller, vm: str, holding: Holding, *, only_there: bool = False) -> Asked:
        """Want something for an owner, with a lease if it has a length. Raises `LimitReached`, `LeaseNotFound`.

        With `only_there` nothing new is wanted: `NotThere` is raised for what the owner does not hold.
        """
        lease, is_counted = "", False
        with Sent() as sent:
            for _ in range(_TRIES):
                found = await self._reader.vm(who, vm, "hold")
                if holding.seconds is not None and not lease:
                    lease = await self._owners.lease(found.tenant, holding.owner, holding.seconds)
                wanted = msgspec.structs.replace(holding, lease=lease)
                id_, new = self._with(found, wanted)
                if only_there and id_ not in found.want.holdings:
                    msg = f"VM {vm!r}: {holding.owner} does not hold it any more"
                    raise NotThere(msg)
                if new is None:
                    return Asked(found, id_, found.want_at.mod_revision)
                if id_ not in found.want.holdings and not is_counted:
                    await self._counting.require_room(found.tenant, found.rights)
                    is_counted = True
                puts = [Put(found.want_at.key, encode(new, found.want_at.value))]
                if lease:
                    marker = self._keys.marker(found.host, found.tenant, holding.owner, lease)
                    puts.append(Put(marker, b"", id_of(lease)))
                revision = await self._send(found, puts, sent)
                if revision is not None:
                    return Asked(found, id_, revision)
        raise _too_many(vm)

    def _with(self, found: Found, wanted: Holding) -> tuple[str, Any]:
        """Return the number of a holding, and what is wanted then; None where it is that already."""
        want = found.want
        for id_, each in want.holdings.items():
            same = (each.kind, each.owner, each.what) == (wanted.kind, wanted.owner, wanted.what)
            if same and not each.end:
                if (each.lease, each.seconds) == (wanted.lease, wanted.seconds):
                    return id_, None
                changed = msgspec.structs.replace(each, lease=wanted.lease, seconds=wanted.seconds)
                return id_, msgspec.structs.replace(want, holdings={**want.holdings, id_: changed})
        if len(want.holdings) >= found.rights.holdings:
            msg = (
                f"VM {found.vm!r} has {len(want.holdings)} shares and mounts, and tenant {found.tenant} may have "
                f"{found.rights.holdings} of each: release what is not needed (uvmshare share rm)"
            )
            raise LimitReached(msg)
        id_ = str(want.last + 1)
        return id_, msgspec.structs.replace(want, last=want.last + 1, holdings={**want.holdings, id_: wanted})

    async def end(self, who: Caller, vm: str, choose: Callable[[Holding], bool], how: End) -> Ended:
        """Have the holdings end that `choose` says; none is no error."""
        sent: tuple[str, ...] = ()
        with Sent() as unknown:
            for _ in range(_TRIES):
                found = await self._reader.vm(who, vm, "hold")
                want = found.want
                ids = tuple(id_ for id_, each in want.holdings.items() if choose(each))
                if not ids or all(want.holdings[id_].end for id_ in ids):
                    return Ended(found, ids or sent, found.want_at.mod_revision)
                holdings = {
                    id_: msgspec.structs.replace(each, end=how) if id_ in ids else each
                    for id_, each in want.holdings.items()
                }
                new = msgspec.structs.replace(want, holdings=holdings)
                sent = ids
                put = Put(found.want_at.key, encode(new, found.want_at.value))
                revision = await self._send(found, [put], unknown)
                if revision is not None:
                    return Ended(found, ids, revision)
        raise _too_many(vm)

    async def _send(self, found: Found, puts: list[Put], sent: Sent) -> int | None:
        """Send one change; return its revision, or None when it is to be looked at again."""
        try:
            done = await self._store.txn([unchanged(found.want_at), unchanged(found.name_at)], puts)
        except StoreOutcomeUnknown as error:
            sent.unknown = error
            return None  # what is there then says whether it was carried out
        if done.succeeded:
            return done.revision
        await asyncio.sleep(_PAUSE_SECONDS * random.random())  # noqa: S311  no secret: others change the same VM
        return None

    # What the host said

    async def held(self, asked: Asked) -> tuple[Have, str]:
        """Wait for the host to hold something; return what it has, and the share's name. Raises what the host did."""
        words = f"VM {asked.found.vm!r}"
        have = await self._reader.when_seen(asked.found, asked.revision, words, (asked.id,))
        share = have.held.get(asked.id)
        outcome = have.outcomes.get(asked.id)
        if share is not None and (outcome is None or outcome.problem is None or _is_there(have, share)):
            return have, share
        if outcome is not None and outcome.problem is not None:
            raise problem_in(outcome.problem)
        msg = f"{words}: it was released meanwhile, or its lease has ended: ask again"
        raise NotThere(msg)

    async def ended(self, ended: Ended) -> tuple[Have, list[Released]]:
        """Wait for holdings to end; return what the host has then, and what it said. Raises what the host raised."""
        have = await self._reader.when_seen(ended.found, ended.revision, f"VM {ended.found.vm!r}", ended.ids)
        released = []
        for id_ in ended.ids:
            outcome = have.outcomes.get(id_)
            if outcome is not None and outcome.problem is not None:
                raise problem_in(outcome.problem)
            if outcome is not None and outcome.released is not None:
                released.append(msgspec.convert(outcome.released, Released))
        return have, released


def _is_there(have: Have, share: str) -> bool:
    return any(each.get("name") == share for each in have.shares) or any(
        each.get("share") == share for each in have.mounts
    )


def problem_in(found: dict[str, Any]) -> Exception:
    """Return the exception that a host's problem stands for: the same class as on the host."""
    return to_exception(msgspec.convert(found, Problem))


def _too_many(vm: str) -> InvalidState:
    return InvalidState(f"VM {vm!r} is changed by many others at once: ask again")
