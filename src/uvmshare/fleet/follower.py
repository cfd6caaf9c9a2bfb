"""A host that follows its fleet: its daemon makes what etcd says the host should have, and reports what it has.

What lives here: `Follower`: when it lists and watches, when it looks at which VM, and what it writes. What must not:
what follows from a look (`settling`), or how the daemon is asked (`local`).

It goes by levels, not by edges: a look compares all that is wanted of a VM with all that there is, so it does not
matter what was missed, or how often a look is repeated. It writes what it found in one transaction, which fails when
what is wanted has changed meanwhile; then it looks again.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import structlog

from uvmshare.errors import (
    InvalidState,
    LeaseNotFound,
    RevisionCompacted,
    StoreError,
    StoreReplaced,
    UvmshareError,
    WatchEnded,
)
from uvmshare.etcd.listing import listed
from uvmshare.etcd.protocol import Delete, Put, absent, unchanged
from uvmshare.fleet.documents import Alive, Have, Want, decode, encode
from uvmshare.fleet.fence import Fences, length_of
from uvmshare.fleet.settling import settle
from uvmshare.fleet.together import together
from uvmshare.fleet.view import View
from uvmshare.lifecycle.retry import Wait
from uvmshare.linux.boot import boot_id
from uvmshare.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from uvmshare.etcd.protocol import KeyValue, Store
    from uvmshare.fleet.documents import Holding
    from uvmshare.fleet.keys import Keys
    from uvmshare.fleet.local import Local, VmName
    from uvmshare.fleet.position import Position
    from uvmshare.fleet.settling import Job, Settled

__all__ = ["ALIVE_SECONDS", "Follower"]

ALIVE_SECONDS: Final = 10
"""Of the lease on which a host's sign of life hangs."""
_RELIST_SECONDS: Final = 600.0
"""After so long it lists again, whatever the watch says."""
_APART_SECONDS: Final = 1.0
"""Between two documents about one VM that answer nobody."""
_FENCE_SECONDS: Final = 1.0
"""After so long it is looked again whether any VM is fenced; the shortest fence has three times as long."""
_RETRY_FIRST: Final = 1.0
"""Seconds before something that could not be brought about is tried again; the wait doubles (`Wait`)."""
_RECONNECT_FIRST: Final = 0.5
_RECONNECT_LONGEST: Final = 30.0
"""Seconds before etcd is asked again, with as much again by chance: all hosts may have lost it at once."""


class _Relist(Exception):
    """It is time to list again."""


class _Look(NamedTuple):
    """What there was when one VM was looked at."""

    found: KeyValue
    want: Want
    last: KeyValue | None
    before: Have | None


class Follower:
    """One host of a fleet. Belongs to one event loop.

    `connect` opens etcd anew. `position` remembers where this host had got to, over restarts.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Store]],
        keys: Keys,
        host: str,
        local: Local,
        position: Position,
        *,
        chance: Callable[[], float] = random.random,
        fence: Fences | None = None,
    ) -> None:
        self._connect = connect
        self._keys = keys
        self._host = host
        self._local = local
        self._position = position
        self._chance = chance
        self._fence = Fences(keys, host, local) if fence is None else fence
        self._store: Store | None = None
        self._cluster = ""
        """Which one is followed, in hexadecimal."""
        self._view = View(keys, host)
        self._dirty: set[VmName] = set()
        self._looking: dict[VmName, asyncio.Task[None]] = {}
        self._again: dict[VmName, asyncio.TimerHandle] = {}
        self._waits: dict[VmName, Wait] = {}
        self._jobs: dict[VmName, dict[str, Job]] = {}
        """What takes longer than a look, by the number of the holding."""
        self._jobs_of: dict[VmName, int] = {}
        """The revision that made what is wanted of a VM, to which these numbers belong: another counts anew."""
        self._written: dict[VmName, tuple[float, int]] = {}
        """When a document about a VM was written last, and the revision of what is wanted that this made."""
        self._accepted = asyncio.Event()
        self.held_back: str | None = None
        """Why it follows nothing, until somebody accepts."""
        self.error: str | None = "etcd was not reached yet"
        """Why it is not connected; None while it is."""
        self._log = structlog.get_logger("uvmshare.fleet")

    # ------------------------------------------------------------------ connected, or not

    async def run(self) -> None:
        """Follow, for ever. Cancelling it leaves everything as it is."""
        hearing = asyncio.get_running_loop().create_task(self._hear())
        try:
            await self._keep_following()
        finally:
            for timer in self._again.values():
                timer.cancel()
            await self._cancel_all(hearing)
            await self._fence.end()

    async def _keep_following(self) -> None:
        wait = Wait(_RECONNECT_FIRST, _RECONNECT_LONGEST)
        while True:
            try:
                async with self._connect() as store:
                    self._store = store
                    await self._follow(store)
            except (_Relist, WatchEnded, RevisionCompacted) as error:
                self.error = str(error) or None
                wait.reset()
            except StoreReplaced as error:
                self.error = printable(str(error))
                self._log.error("fleet.lost", reason=self.error)
                await asyncio.sleep(_RECONNECT_LONGEST * self._chance())
            except StoreError as error:
                if self.error is None or not wait.last:
                    self._log.warning("fleet.unreachable", reason=printable(str(error)))
                self.error = printable(str(error))
                await asyncio.sleep(wait.next() * (1 + self._chance()))
            finally:
                self._store = None

    async def _follow(self, store: Store) -> None:
        """List, and watch from there, until that ends. Raises `StoreError`, `_Relist`."""
        page = await listed(store, self._keys.host(self._host))
        cluster = await store.cluster_id()
        revision = page.revision
        await self._stay_forward(cluster, revision)
        self._cluster = f"{cluster:x}"
        self._view = View(self._keys, self._host, page.found, revision)
        self.error = None
        self._log.info("fleet.followed", host=self._host, revision=revision, vms=len(self._view.wants))
        work = (self._live(store), self._watch(store, cluster, revision + 1), self._keep_fences(store))
        async with together(*work) as first_end:
            if not await self._fence.claim(store, self._view) or not await self._fence.renew(store, self._view):
                raise _Relist
            for vm in self._view.vms() | set(self._local.vms()):
                self._touch(vm)
            await first_end()

    async def _stay_forward(self, cluster: int, revision: int) -> None:
        """See that this is the etcd that was followed, and no older state of it; else wait until it is accepted."""
        followed, seen = self._position.fleet_place() or (cluster, 0)
        if followed != cluster or revision < seen:
            self.held_back = (
                f"etcd is another cluster than the one that this host followed ({cluster:x}, not {followed:x})"
                if followed != cluster
                else f"etcd is at revision {revision}, and this host has seen {seen}: a backup was restored"
            ) + "; nothing is changed here: `uvmshare host accept` follows it"
            self._log.error("fleet.held_back", reason=self.held_back)
            self._accepted.clear()
            await self._break_off()
            await self._accepted.wait()
            self.held_back = None
            self._log.warning("fleet.accepted", cluster=f"{cluster:x}", revision=revision)
            self._position.drop_fleet_place()
            self._fence.begin_anew()
            raise _Relist
        self._position.put_fleet_place(cluster, revision)

    async def _cancel_all(self, *others: asyncio.Task[None]) -> None:
        """Cancel all looks and jobs, and others, and wait until they have ended."""
        tasks: list[asyncio.Task[Any]] = [*others, *self._looking.values()]
        tasks += [job.task for jobs in self._jobs.values() for job in jobs.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _break_off(self) -> None:
        """Break off and forget all that was begun for another etcd.

        In this one the same numbers of holdings, and the same revisions, stand for other things. What has come of those
        there would be taken for what has come of these here.
        """
        looking = dict(self._looking)
        await self._cancel_all()
        for vm, task in looking.items():
            if self._looking.get(vm) is task:  # it was broken off before its first step
                del self._looking[vm]
        self._jobs.clear()
        self._jobs_of.clear()
        self._written.clear()
        self._waits.clear()

    @property
    def revision(self) -> int:
        """The revision of the fleet that this host has seen; 0 for none."""
        return self._view.revision

    def last_wanted(self, vm: VmName) -> Want | None:
        """Return what was wanted of a VM when the fleet was followed last; None when this process did not see it."""
        found = self._view.wants.get(vm)
        return None if found is None else decode(Want, found.value, found.key)

    def accept(self) -> bool:
        """Follow the etcd that is there now, although it is another or older; say whether anything waited for it."""
        waited = self.held_back is not None
        self._accepted.set()
        return waited

    async def _watch(self, store: Store, cluster: int, revision: int) -> None:
        try:
            async with asyncio.timeout(_RELIST_SECONDS), store.watch(self._keys.host(self._host), revision) as changes:
                async for each in changes:
                    for vm in self._view.apply(each.revision, each.events):
                        self._touch(vm)
                    self._position.put_fleet_place(cluster, each.revision)
        except TimeoutError:
            raise _Relist from None

    async def _live(self, store: Store) -> None:
        """Show that this host lives."""
        while True:
            lease = await store.grant(ALIVE_SECONDS)
            alive = Alive(info=_plain_info(self._local), boot=boot_id())
            await store.txn([], [Put(self._keys.alive(self._host), encode(alive), lease.id)])
            try:
                while True:
                    await asyncio.sleep(ALIVE_SECONDS / 4)
                    await store.keep_alive(lease.id)
            except LeaseNotFound:
                continue

    async def _keep_fences(self, store: Store) -> None:
        """Renew the times of fenced VMs. Raises `_Relist` when one was taken, and `StoreError`."""
        while True:
            seconds = self._fence.next_renewal(self._view)
            await asyncio.sleep(_FENCE_SECONDS if seconds is None else seconds)
            if not await self._fence.renew(store, self._view):
                raise _Relist

    async def _hear(self) -> None:
        """Look at each VM of which something changed on this host."""
        async for vm in self._local.changes():
            self._touch(vm)

    # ------------------------------------------------------------------ one VM

    def _touch(self, vm: VmName) -> None:
        """Have a VM looked at: at once, or when the look that is under way has ended."""
        self._dirty.add(vm)
        if vm not in self._looking:
            task = asyncio.get_running_loop().create_task(self._tend(vm))
            self._looking[vm] = task

    def _touch_later(self, vm: VmName, seconds: float) -> None:
        timer = self._again.pop(vm, None)
        if timer is not None:
            timer.cancel()
        self._again[vm] = asyncio.get_running_loop().call_later(seconds, self._touch, vm)

    async def _tend(self, vm: VmName) -> None:
        try:
            while vm in self._dirty:
                self._dirty.discard(vm)
                try:
                    await self._look(vm)
                except StoreError as error:
                    self._log.warning("fleet.unwritten", vm=vm.here, reason=printable(str(error)))
                    self._touch_later(vm, self._backed_off(vm))
                except UvmshareError as error:
                    self._log.warning("fleet.unfinished", vm=vm.here, reason=printable(str(error)))
                    self._touch_later(vm, self._backed_off(vm))
                except Exception:  # noqa: BLE001  a defect with one VM is not the others'; it is told, and tried again
                    self._log.exception("defect", vm=vm.here)
                    self._touch_later(vm, self._backed_off(vm))
        finally:
            del self._looking[vm]

    def _backed_off(self, vm: VmName) -> float:
        return self._waits.setdefault(vm, Wait(_RETRY_FIRST)).next()

    async def _look(self, vm: VmName) -> None:
        """Look at one VM, do what is to be done, and write what there is. Raises `StoreError`."""
        store, view = self._store, self._view
        if store is None or not view.revision or self.held_back is not None:
            return  # the next listing looks at all of them
        timer = self._again.pop(vm, None)
        if timer is not None:
            timer.cancel()
        found = view.wants.get(vm)
        if found is None:
            await self._end_jobs(vm)
            await self._leave(store, vm, view.haves.get(vm))
            return
        want = decode(Want, found.value, found.key)
        as_read, last = want, view.haves.get(vm)
        before = None if last is None else decode(Have, last.value, last.key)
        if length_of(want) is not None and not want.prepare:
            allowed = await self._allowed(store, found, vm, want)
            if allowed is None:
                return
            want = allowed
        dead = {
            (each.owner, each.lease)
            for each in want.holdings.values()
            if not view.lives(vm.tenant, each.owner, each.lease)
        }

        def lives(holding: Holding) -> bool:
            return (holding.owner, holding.lease) not in dead

        if self._jobs_of.get(vm) != found.create_revision:
            await self._end_jobs(vm)
            self._jobs_of[vm] = found.create_revision
        jobs = self._jobs.setdefault(vm, {})
        under_way = set(jobs)
        settled = await settle(self._local, vm, want, found.mod_revision, before, lives, jobs, self._fence.tell)
        for id_, job in jobs.items():
            if id_ not in under_way and id_ not in settled.told:
                job.task.add_done_callback(lambda task: None if task.cancelled() else self._touch(vm))
        await self._write(store, vm, _Look(found, as_read, last, before), settled)
        if settled.is_unfinished:
            self._touch_later(vm, self._backed_off(vm))
        else:
            self._waits.pop(vm, None)

    async def _allowed(self, store: Store, found: KeyValue, vm: VmName, want: Want) -> Want | None:
        """Return what is wanted of a fenced VM now: that it is served, or that it waits yet; None to look later."""
        wait = self._fence.wait(vm, want)
        if wait:
            if wait < float("inf"):  # else the host that had it lets go of it
                self._touch_later(vm, wait)
            return want if want.after else None
        if not await self._admit(store, found, vm):
            self._touch_later(vm, self._backed_off(vm))
            return None
        return msgspec.structs.replace(want, after="", also=(), hold=False)

    async def _admit(self, store: Store, found: KeyValue, vm: VmName) -> bool:
        """See that a fenced VM may be served now, and that it can be seen that it may be; else it is looked at again.

        Whoever takes the VM waits until this host's document about it is gone. So there is one before it is served.
        """
        try:
            if not await self._fence.admit(store, self._view, vm):
                return False
        except InvalidState as error:
            self._log.error("fleet.unserved", vm=vm.here, reason=printable(str(error)))
            return False
        if vm in self._view.haves:
            return True
        first = Have(seen=0, epoch=decode(Want, found.value, found.key).epoch, cluster=self._cluster)
        put = Put(self._keys.have(self._host, *vm), encode(first))
        return (await store.txn([unchanged(found)], [put])).succeeded

    async def _write(
        self,
        store: Store,
        vm: VmName,
        look: _Look,
        settled: Settled,
    ) -> None:
        """Write what there is, and strike out what is wanted no more, unless what is wanted has changed meanwhile."""
        found, want, last, before = look
        new, have = settled.want, msgspec.structs.replace(settled.have, cluster=self._cluster)
        loop = asyncio.get_running_loop()
        when, own = self._written.get(vm, (float("-inf"), 0))
        answers = before is None or found.mod_revision not in {before.seen, own}
        if before is not None and new == want and not answers and _same(before, have):
            self._forget_jobs(vm, settled)
            return
        wait = when + _APART_SECONDS - loop.time()
        if new == want and not answers and wait > 0:
            self._touch_later(vm, wait)
            return
        puts = [Put(self._keys.have(self._host, *vm), encode(have, None if last is None else last.value))]
        if new != want:
            puts.append(Put(found.key, encode(new, found.value)))
        done = await store.txn([unchanged(found)], puts)
        if done.succeeded:
            self._forget_jobs(vm, settled)
            self._written[vm] = (loop.time(), done.revision if new != want else 0)
        # Else the watch tells what has changed, and has the VM looked at again.

    def _forget_jobs(self, vm: VmName, settled: Settled) -> None:
        """Forget what came of holdings, now that it is written."""
        for id_ in settled.told:
            self._jobs[vm].pop(id_, None)

    async def _end_jobs(self, vm: VmName) -> None:
        """Break off what is under way of a VM that is wanted no more, or anew."""
        self._jobs_of.pop(vm, None)
        tasks = [job.task for job in self._jobs.pop(vm, {}).values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _leave(self, store: Store, vm: VmName, last: KeyValue | None) -> None:
        """End a VM of which nothing is wanted any more, and then say that it is not here."""
        before = None if last is None else decode(Have, last.value, last.key)
        try:
            is_certain = await self._local.remove_vm(vm, before)
        except UvmshareError as error:
            self._log.warning("fleet.vm_left", vm=vm.here, reason=printable(str(error)))
            self._touch_later(vm, self._backed_off(vm))
            return
        length = None if before is None or before.vm is None else before.vm.get("fence")
        if length is not None and (left := self._fence.left(vm, length, is_certain=is_certain)) > 0:
            self._touch_later(vm, left)
            return
        self._fence.forget(vm)
        if last is not None:
            await store.txn([absent(self._keys.want(self._host, *vm))], [Delete(last.key)])
        self._written.pop(vm, None)
        self._waits.pop(vm, None)


def _same(before: Have, have: Have) -> bool:
    def told(each: Have) -> tuple[object, ...]:
        return each.epoch, each.vm, each.problem, each.shares, each.mounts, each.pending, each.cluster

    return told(before) == told(have)


def _plain_info(local: Local) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(local.info())
    return plain
