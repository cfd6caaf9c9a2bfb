"""Which VMs this host may serve, and until when: at most one host serves a VM that is fenced.

What lives here: `Fences`: this host's claim to its name, the renewals of its VMs' times, and how long a VM must wait
that comes from another host. What must not: when a VM is looked at (`follower`), or how its mounts obey
(`uvmshare.fileserver.fence`).

A renewal is one transaction: if no VM was taken from this host (`term`) since what is wanted of it was listed, and the
name is still this boot's, then each of its VMs may be served until the moment of sending plus the length of the VM's
fence. Whoever takes a VM raises `term` in the same transaction. So every renewal that succeeded was sent before the VM
was taken, and its time ends one length after that at the latest. The next host waits so long, and a second more, from
when it sees that it has the VM. No lease of etcd and no wall clock is part of that: only that the clocks of two hosts
go about equally fast.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import structlog

from uvmshare.errors import InvalidState, UvmshareError
from uvmshare.etcd.protocol import Compare, Put, absent, unchanged
from uvmshare.fleet.documents import Claim, decode, encode
from uvmshare.linux.boot import boot_id
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.etcd.protocol import Store
    from uvmshare.fleet.documents import FencedWant, Want
    from uvmshare.fleet.keys import Keys
    from uvmshare.fleet.local import Local, VmName
    from uvmshare.fleet.view import View

__all__ = ["MARGIN", "Fences", "boottime", "length_of"]

MARGIN: Final = 1.0
"""Seconds that a host waits beyond a fence: as far as two clocks may go apart meanwhile."""
_RENEWALS: Final = 3
"""In the length of a fence."""
_TOLD_SECONDS: Final = 5.0
"""For a file server to take its new time. One that does not, as a process that is stopped, has the time that it had."""


def boottime() -> float:
    """Return seconds that go on while the machine is suspended (clock_gettime(2), CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def length_of(want: Want | FencedWant) -> float | None:
    """Return the length of a VM's fence in seconds; None without one."""
    fence = want.vm.get("fence") if isinstance(want.vm, dict) else want.vm.fence
    return None if fence is None else float(fence)


class Fences:
    """The fences of one host's VMs. Belongs to one event loop. `clock` is CLOCK_BOOTTIME."""

    def __init__(
        self,
        keys: Keys,
        host: str,
        local: Local,
        *,
        clock: Callable[[], float] = boottime,
        boot: Callable[[], str] = boot_id,
    ) -> None:
        self._keys = keys
        self._host = host
        self._local = local
        self._clock = clock
        self._boot = boot
        self._claim: bytes | None = None
        """What `fence` has in etcd since this host's name is this boot's."""
        self._since = 0.0
        """When it was claimed; nobody who had the name before was told later than that."""
        self._until: dict[VmName, float] = {}
        self._seen: dict[tuple[VmName, int], float] = {}
        """When it was seen first that a VM, in an epoch, was taken from another host."""
        self._doubtful: set[VmName] = set()
        """VMs that were removed, with processes that may serve on until their time."""
        self._telling: dict[VmName, asyncio.Task[None]] = {}
        self._renewing = asyncio.Lock()
        self._is_anew = False
        """Whether nothing is to be made of a claim that is there: etcd is another one, or an older state."""
        self.rival: str | None = None
        """Why no fenced VM is served here: another machine has this host's name."""
        self._log = structlog.get_logger("uvmshare.fleet")

    # This host's name

    async def claim(self, store: Store, view: View) -> bool:
        """Have this host's name be this boot's, as of a listing; False when it changed meanwhile: list again.

        A boot that takes the name over from an earlier one serves no fenced VM until what that one was told has ended.
        Raises `StoreError`.
        """
        at, key, boot = view.fence, self._keys.fence(self._host), self._boot()
        there = None if at is None else decode(Claim, at.value, at.key)
        if there is not None and there.boot == boot and there.since is not None and not self._is_anew:
            assert at is not None, "it is what was read"
            self._claim, self._since = at.value, there.since
            return True
        if self._claim is not None and not self._is_anew and (there is None or there.boot != boot):
            self.rival = (
                f"another machine follows the fleet under the name {self._host}, or the host was removed from it: see "
                "that each host has a name of its own, and start this daemon again"
            )
            self._log.error("fleet.fence_lost", host=self._host, reason=self.rival)
            return True
        unmoved = absent(key) if at is None else unchanged(at)
        if there is None or there.boot != boot:
            first = encode(Claim(boot=boot), None if at is None else at.value)
            done = await store.txn([unmoved], [Put(key, first)])
            if not done.succeeded:
                return False
            unmoved = Compare(key, "value", first)
        # Only now is it certain that nobody else is told anything any more.
        since = self._clock()
        value = encode(Claim(boot=boot, since=since))
        if not (await store.txn([unmoved], [Put(key, value)])).succeeded:
            return False
        self._claim, self._since, self._is_anew = value, since, False
        return True

    def begin_anew(self) -> None:
        """Trust no claim that is there: etcd was replaced, and what another host was told since is not in it."""
        self._is_anew = True
        self._claim = None  # until there is a new one, nothing is renewed

    # What a VM has to wait for

    def wait(self, vm: VmName, want: Want | FencedWant) -> float:
        """Return how many seconds this host has to wait yet before it may serve a fenced VM; 0 for none.

        Infinity where the host that had it has to say so.
        """
        length = length_of(want)
        assert length is not None, "it is asked of fenced VMs"
        begin = self._since + length + MARGIN
        if want.hold:
            begin = max(begin, self._seen.setdefault((vm, want.epoch), self._clock()) + length + MARGIN)
        elif want.after:
            return float("inf")
        return max(0.0, begin - self._clock())

    def left(self, vm: VmName, length: float, *, is_certain: bool) -> float:
        """Return for how many seconds a VM may be served yet that was removed here; not at all where that is certain.

        Once it was not certain, it is not afterwards: a VM that is removed again is not there.
        """
        if not is_certain:
            self._doubtful.add(vm)
        if vm not in self._doubtful:
            return 0.0
        until = self._until.get(vm)
        if until is None:  # by an earlier daemon
            until = self._seen.setdefault((vm, 0), self._clock()) + length
        return max(0.0, until - self._clock())

    def forget(self, vm: VmName) -> None:
        """Forget a VM that has ended here."""
        self._until.pop(vm, None)
        self._doubtful.discard(vm)
        for each in [each for each in self._seen if each[0] == vm]:
            del self._seen[each]

    # Renewals

    async def admit(self, store: Store, view: View, vm: VmName) -> bool:
        """See that a VM has time to be served now; False when something has changed: look again.

        Raises `StoreError`, and `InvalidState` while another machine has this host's name.
        """
        if self.rival is not None:
            raise InvalidState(self.rival)
        if self._until.get(vm, 0.0) <= self._clock():
            return await self.renew(store, view) and self._until.get(vm, 0.0) > self._clock()
        return True

    async def tell(self, vm: VmName) -> None:
        """Have a VM's file server serve as long as it may. Raises `UvmshareError`."""
        async with asyncio.timeout(_TOLD_SECONDS):
            await self._local.serve_until(vm, self._until[vm])

    async def renew(self, store: Store, view: View) -> bool:
        """Renew the times of all VMs that this host may serve; False when one was taken: list again.

        Raises `StoreError`; then it may have been renewed or not, and no time was moved on.
        """
        async with self._renewing:
            if self._claim is None or self.rival is not None:
                return True
            lengths = self._lengths(view)
            if not lengths:
                return True
            term, key = view.term, self._keys.term(self._host)
            compare = [
                Compare(self._keys.fence(self._host), "value", self._claim),
                absent(key) if term is None else unchanged(term),
            ]
            sent = self._clock()
            # With a put: etcd may answer a transaction that only compares from an old state.
            done = await store.txn(compare, [Put(self._keys.fence(self._host), self._claim)])
            if not done.succeeded:
                return False
            for vm, length in lengths.items():
                self._until[vm] = sent + length
        # Nobody waits for that: one file server that hangs is not to keep others from their time.
        for vm in set(lengths) & set(self._local.vms()) - set(self._telling):
            self._telling[vm] = asyncio.get_running_loop().create_task(self._tell_quietly(vm))
        return True

    async def end(self) -> None:
        """Tell nobody anything any more."""
        tasks = list(self._telling.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell_quietly(self, vm: VmName) -> None:
        try:
            await self.tell(vm)
        except (UvmshareError, TimeoutError) as error:  # it serves until the time that it has, and is told again
            self._log.warning("fleet.fence_untold", vm=vm.here, reason=printable(str(error) or repr(error)))
        finally:
            del self._telling[vm]

    def _lengths(self, view: View) -> dict[VmName, float]:
        """Return the lengths of the fences of the VMs that this host may serve, as of what was listed."""
        return {
            vm: want.vm.fence
            for vm, want in view.fenced.items()
            if want.vm.fence is not None and not want.prepare and not self.wait(vm, want)
        }

    def next_renewal(self, view: View) -> float | None:
        """Return in how many seconds the next renewal is due; None while nothing is fenced."""
        lengths = self._lengths(view)
        return min(lengths.values()) / _RENEWALS if lengths else None
