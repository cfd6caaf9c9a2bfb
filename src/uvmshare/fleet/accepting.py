"""What a gate accepts of a host: its own VMs that join, and all that it serves when etcd has forgotten that.

What lives here: `Accepting`. What must not: what a host offers, or how it knows what it serves (`joining`); a VM that
another host takes (`moving`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.daemon.documents import NewVm
from uvmshare.errors import InvalidState, NotThere, StoreOutcomeUnknown
from uvmshare.etcd.protocol import Put, absent, present, unchanged
from uvmshare.fleet.documents import Holding, Name, Want, changed_fields, decode, encode
from uvmshare.fleet.owners import id_of
from uvmshare.fleet.sending import Sent

if TYPE_CHECKING:
    from uvmshare.daemon.fleet_documents import Joined, Served
    from uvmshare.etcd.protocol import Compare, KeyValue
    from uvmshare.fleet.owners import Owners
    from uvmshare.fleet.reading import Reader

__all__ = ["Accepting", "vm_of"]

_TRIES: Final = 100


def vm_of(joined: Joined) -> dict[str, Any]:
    """Return the settings of a VM as they are written, without a secret."""
    return changed_fields(NewVm, msgspec.structs.replace(joined.vm, agent_token=None))


class Accepting:
    """What one fleet accepts of its hosts."""

    def __init__(self, reader: Reader, owners: Owners) -> None:
        self._reader = reader
        self._owners = owners
        self._store = reader.store
        self._keys = reader.keys

    async def holdings(self, joined: Joined, last: int = 0) -> dict[str, Holding]:
        """Return what is held of a VM, by numbers behind `last`, with leases of etcd in place of the host's."""
        lengths = {(each.owner, each.lease) for each in joined.kept if each.lease is not None}
        leases = {each: await self._owners.lease(joined.tenant, *each) for each in sorted(lengths)}
        for (owner, _), lease in leases.items():
            marker = self._keys.marker(joined.host, joined.tenant, owner, lease)
            await self._store.txn([present(self._keys.registered(joined.host))], [Put(marker, b"", id_of(lease))])
        return {
            str(number): Holding(
                kind=each.kind,
                owner=each.owner,
                what=each.what,
                lease="" if each.lease is None else leases[each.owner, each.lease],
                seconds=each.lease,
                share=each.share,
            )
            for number, each in enumerate(joined.kept, last + 1)
        }

    async def write_back(self, served: Served) -> bool:
        """Write that a host has a VM as it serves it; False for one that another host has by now.

        Raises `NotThere` for a host that is not in the fleet.
        """
        keys, tenant, vm, host = self._keys, served.tenant, served.vm.id, served.host
        name, want, count = keys.name(tenant, vm), keys.want(host, tenant, vm), keys.count(tenant)
        with Sent() as sent:
            for _ in range(_TRIES):
                name_at, want_at, count_at, host_at = await self._reader.get_all(
                    [name, want, count, keys.registered(host)]
                )
                if host_at is None:
                    msg = f"there is no host {host!r} in this fleet: add it (uvmshare fleet add-host)"
                    raise NotThere(msg)
                there = None if name_at is None else decode(Name, name_at.value, name_at.key)
                if there is not None and there.host != host:
                    return False
                before = None if want_at is None else decode(Want, want_at.value, want_at.key)
                last = 0 if before is None else before.last
                settings = vm_of(served)
                file = served.agent_token_file or (None if before is None else before.vm.get("agent_token_file"))
                if file is not None:
                    settings["agent_token_file"] = file
                new = Want(
                    vm=settings,
                    epoch=max(served.epoch, 1 if there is None else there.epoch),
                    joined=served.joined,
                    names=max(served.names, 1),
                    holdings=await self.holdings(served, last),
                    last=last + len(served.kept),
                )
                puts = [
                    Put(name, encode(Name(host=host, epoch=new.epoch), None if name_at is None else name_at.value)),
                    Put(want, encode(new, None if want_at is None else want_at.value)),
                ]
                compare = [_as_read(name, name_at), _as_read(want, want_at), present(keys.registered(host))]
                if name_at is None:
                    compare.append(_as_read(count, count_at))
                    puts.append(Put(count, str((0 if count_at is None else int(count_at.value)) + 1).encode()))
                try:
                    if (await self._store.txn(compare, puts)).succeeded:
                        return True
                except StoreOutcomeUnknown as error:
                    sent.unknown = error  # the same again does no harm
        msg = f"VM {vm!r} of tenant {tenant} is changed by many others at once: ask again"
        raise InvalidState(msg)


def _as_read(key: str, at: KeyValue | None) -> Compare:
    return absent(key) if at is None else unchanged(at)
