"""What one host sees of a fleet at one revision: a listing of its prefix in etcd, and what changed since.

What lives here: `View`, which takes a listing and then changes, and says which VMs these are about. What must not: a
request to etcd, or what is done about it (`follower`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from uvmshare.errors import StoreReplaced
from uvmshare.fleet.documents import FencedWant, decode
from uvmshare.fleet.local import VmName

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvmshare.etcd.protocol import Event, KeyValue
    from uvmshare.fleet.keys import Keys

__all__ = ["View"]


class View:
    """The keys of one host. All of it is of one revision."""

    def __init__(self, keys: Keys, host: str, found: Iterable[KeyValue] = (), revision: int = 0) -> None:
        self._keys = keys
        self._host = host
        self.revision = revision
        self.wants: dict[VmName, KeyValue] = {}
        self.haves: dict[VmName, KeyValue] = {}
        self.fenced: dict[VmName, FencedWant] = {}
        """Of the VMs that are fenced, what says whether and when they may be served."""
        self.term: KeyValue | None = None
        """How many fenced VMs were taken from this host; None while none was."""
        self.fence: KeyValue | None = None
        """Which boot has this host's name."""
        self._markers: set[tuple[str, str, str]] = set()
        for each in found:
            self._put(each)

    def vms(self) -> set[VmName]:
        """Return every VM that anything is about."""
        return {*self.wants, *self.haves}

    def lives(self, tenant: str, owner: str, lease: str) -> bool:
        """Whether the lease on which something of an owner's hangs lives."""
        return not lease or (tenant, owner, lease) in self._markers

    def apply(self, revision: int, events: Iterable[Event]) -> set[VmName]:
        """Take all changes up to a revision, and return the VMs that they are about."""
        touched: set[VmName] = set()
        for event in events:
            if event.change == "put":
                touched |= self._put(event.at)
            else:
                touched |= self._delete(event.at.key)
        self.revision = revision
        return touched

    def _put(self, found: KeyValue) -> set[VmName]:
        at = self._keys.read_host(self._host, found.key)
        if at is not None and at.kind == "term":
            self.term = found
        elif at is not None and at.kind == "fence":
            self.fence = found
        if at is None or at.kind not in ("vm", "have", "owner"):
            return set()
        if at.kind == "owner":
            self._markers.add((at.tenant, at.name, at.lease))
            return set()  # whatever hangs on it is put in the same transaction, or after it
        vm = VmName(at.tenant, at.name)
        if at.kind == "have":
            self.haves[vm] = found
            return set()  # nobody else writes it
        self.wants[vm] = found
        self.fenced.pop(vm, None)
        with suppress(StoreReplaced):  # what cannot be read is not served: whoever looks at the VM says so
            want = decode(FencedWant, found.value, found.key)
            if want.vm.fence is not None:
                self.fenced[vm] = want
        return {vm}

    def _delete(self, key: str) -> set[VmName]:
        at = self._keys.read_host(self._host, key)
        if at is None:
            return set()
        if at.kind == "term":
            self.term = None
        elif at.kind == "fence":
            self.fence = None
        vm = VmName(at.tenant, at.name)
        if at.kind == "owner":
            self._markers.discard((at.tenant, at.name, at.lease))
            return {each for each in self.wants if each.tenant == at.tenant}
        if at.kind == "vm":
            self.wants.pop(vm, None)
            self.fenced.pop(vm, None)
            return {vm}
        if at.kind == "have":
            self.haves.pop(vm, None)
            return {vm}
        return set()
