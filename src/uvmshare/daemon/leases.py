"""The leases of the daemon: how long an owner holds something without renewing; on the clock, in the store, at the end.

What lives here: `Leases`, which keeps the deadlines (`deadlines`) and the store in step, and watches the clock. What
must not: how something that is leased is released (`shares`, `mounts`), or how long a lease may be (`documents`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import structlog

from uvmshare.daemon.deadlines import Deadlines
from uvmshare.errors import DaemonError, NotThere, UvmshareError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from uvmshare.daemon.deadlines import Lease
    from uvmshare.daemon.store import DaemonStore, LeaseKey, VmKey

__all__ = ["Leases"]

_RETRY: Final = 5.0
"""Seconds before a lease that is over, but could not be released, is tried again."""


class Leases:
    """Every lease of the daemon. `clock` counts seconds from any zero.

    `ended` gives back what a lease that is over was on, and forgets the lease. Raising `UvmshareError` it says that
    this could not be done, and is called again some seconds later.
    """

    def __init__(
        self, store: DaemonStore, clock: Callable[[], float], ended: Callable[[LeaseKey], Awaitable[None]]
    ) -> None:
        self._store = store
        self._clock = clock
        self._ended = ended
        self._deadlines: Deadlines[LeaseKey] = Deadlines(clock)
        self._changed = asyncio.Event()
        self._over: set[LeaseKey] = set()
        """What is written down as over: it could not be released, and the next daemon goes on with it at once."""
        self._ending: set[LeaseKey] = set()
        """What is being released now."""
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, key: LeaseKey) -> Lease | None:
        """Return a lease, if there is one."""
        return self._deadlines.get(key)

    def left(self, key: LeaseKey) -> float | None:
        """Return the seconds that a lease has left."""
        return self._deadlines.left(key)

    def restore(self, vm: VmKey) -> None:
        """Let the leases that an earlier daemon wrote down run afresh."""
        for key, seconds in self._store.leases(vm).items():
            self._deadlines.grant(key, seconds)
        self._changed.set()

    def keep(self, vm: VmKey, held: Collection[LeaseKey]) -> None:
        """Forget the leases of a VM that are on nothing which is held, now that this is known."""
        self.forget(*(key for key in self.of_vm(vm) if key not in held))

    def grant(self, key: LeaseKey, seconds: float) -> None:
        """Let a lease run afresh for so long. Written down before it returns."""
        found = self._deadlines.get(key)
        if found is None or found.seconds != seconds or key in self._over:
            self._over.discard(key)
            self._store.put_lease(key, seconds)
        self._deadlines.grant(key, seconds)
        self._changed.set()

    def forget(self, *keys: LeaseKey) -> None:
        """Forget leases, those that there are. Raises `DaemonError` when the store cannot: they are there still."""
        known = [key for key in keys if key in self._deadlines]
        if known:
            self._store.drop_leases(known)
        for key in known:
            self._deadlines.drop(key)
        self._over.difference_update(keys)

    def of_vm(self, vm: VmKey) -> list[LeaseKey]:
        """Return what is leased in a VM."""
        return [key for key in self._deadlines.held() if key.vm == vm]

    def renew(self, keys: Iterable[LeaseKey], seconds: float | None) -> int:
        """Let leases run afresh, for as long as each was or for `seconds`; return how many there were.

        One that is over, and whose reference is being released now, is not there any more.
        """
        renewed = 0
        for key in keys:
            found = self._deadlines.get(key)
            if found is not None and key not in self._ending:
                self.grant(key, found.seconds if seconds is None else seconds)
                renewed += 1
        return renewed

    def renew_all(self, owner: str, seconds: float | None) -> int:
        """Let every lease of an owner ("UID/NAME") run afresh. Raises `NotThere` when there is none."""
        renewed = self.renew([key for key in self._deadlines.held() if key.owner == owner], seconds)
        if not renewed:
            raise no_lease(owner)
        return renewed

    async def watch(self) -> None:
        """See to leases that end, for ever.

        Nothing in here reads what a guest or another user says; what gives a lease back runs in a task of its own.
        """
        while True:
            self._changed.clear()
            deadline = self._deadlines.next_deadline()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if deadline is None else max(0.0, deadline - self._clock())):
                    await self._changed.wait()
            self._see_to_those_over()

    def _see_to_those_over(self) -> None:
        # Beside each other, and beside what comes next: a guest that hangs holds up no other's leases.
        for key in self._deadlines.due():
            self._deadlines.postpone(key, _RETRY)
            if key not in self._ending:
                self._ending.add(key)
                task = asyncio.get_running_loop().create_task(self._expire(key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def expire(self) -> None:
        """See to the leases that are over now, and wait until they were seen to."""
        self._see_to_those_over()
        await self.settle()

    async def settle(self, seconds: float | None = None) -> None:
        """Wait for what is being released. What takes longer than `seconds` is left to the next daemon."""
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=seconds)
        for task in late:
            task.cancel()

    async def _expire(self, key: LeaseKey) -> None:
        try:
            await self._ended(key)
        except Exception as error:  # noqa: BLE001  whatever it was, the lease is over, and this is tried again
            structlog.get_logger("uvmshare.daemon").warning(
                "lease is over, and what it was on could not be released",
                vm=f"{key.vm[0]}:{key.vm[1]}",
                owner=key.owner,
                reason=str(error) if isinstance(error, UvmshareError) else repr(error),
            )
            self._deadlines.postpone(key, _RETRY)
            self._note_over(key)
            self._changed.set()
        finally:
            self._ending.discard(key)

    def _note_over(self, key: LeaseKey) -> None:
        """Write down that it is over, so that a daemon that is started again does not let it run afresh."""
        if key in self._over or key not in self._deadlines:
            return
        with suppress(DaemonError):  # a disk that takes nothing; the lease is tried again all the same
            self._store.put_lease(key, 0.0)
            self._over.add(key)


def no_lease(owner: str) -> NotThere:
    """Return the error of a lease that is not there any more."""
    name = owner.partition("/")[2]
    return NotThere(f"owner {name!r} has no lease there: it may have ended; ask for what it was on again")
