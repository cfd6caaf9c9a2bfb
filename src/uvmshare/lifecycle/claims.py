"""Who wants a thing: claims of calls under way, each of which becomes a reference, or goes with a cancelled call.

What lives here: `Claims`, between what callers may ask for (`uvmshare.share.manager`, `uvmshare.mounts.manager`) and
what happens to a share or a mount (the `Engine`). What must not: a call to a VM or a guest.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from uvmshare import arguments
from uvmshare.lifecycle.entry import BlockOwner, Entry
from uvmshare.lifecycle.operation import failures_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable

    from uvmshare.lifecycle.engine import Engine

__all__ = ["Claims", "WritesReferences"]

E = TypeVar("E", bound=Entry[Any, Any])
E_contra = TypeVar("E_contra", bound=Entry[Any, Any], contravariant=True)
O = TypeVar("O")  # noqa: E741  what is asked for: options


class WritesReferences(Protocol[E_contra]):
    """What makes references outlast this process."""

    def check(self, owner: Hashable | None) -> None:
        """Refuse an owner that cannot be written down."""

    async def confirm(self, entry: E_contra, owner: Hashable | None) -> None:
        """Return when a crash does not lose the reference that this owner is about to be given."""

    def kept(self, entry: E_contra, owner: Hashable | None) -> None:
        """Take note that what was confirmed is a reference now."""

    def given_up(self, entry: E_contra, owner: Hashable | None) -> None:
        """Take note that what was confirmed is not wanted any more."""


class Claims(Generic[E, O]):
    """The claims and references of one manager.

    `writes` has its references outlast it, and `ready` then raises why nothing can be written down, if that is so.
    """

    def __init__(
        self,
        engine: Engine[E, O],
        writes: WritesReferences[E] | None = None,
        ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._engine = engine
        self._writes = writes
        self._ready = ready

    def check(self, owner: Hashable | None) -> None:
        """Refuse an owner that cannot be one, before anything is changed."""
        arguments.hashable("owner", owner)
        if self._writes is not None:
            self._writes.check(owner)

    def hold(self, options: O, owner: Hashable | None) -> Coroutine[object, object, E]:
        """Return the entry, live, with a claim on it that is as safe as a reference: `keep` or `withdraw` must follow.

        Cancelling this withdraws the claim and nothing else. Raises what `Engine.admit` and `Engine.join` do, and what
        the call raised that was to make it live, for every caller that waited.
        """
        # One coroutine less where nothing is written: a fifth of what an add of a share that is there costs.
        return self._claim(options) if self._writes is None else self._confirmed(options, owner, self._writes)

    async def _claim(self, options: O) -> E:
        while True:
            self._engine.admit(options)
            entry = self._engine.join(options)
            first = self._engine.goes_first(entry, options)
            if first is not None:
                await first
                continue
            entry.claims += 1
            self._engine.claimed(entry)
            if entry.live:
                return entry
            try:
                await (entry.operation or self._engine.bring(entry)).finish()
                self._engine.admit(options)
                self._engine.require_joined(entry)
            except BaseException:
                self.withdraw(entry)
                raise
            return entry

    async def _confirmed(self, options: O, owner: Hashable | None, writes: WritesReferences[E]) -> E:
        if self._ready is not None:
            self._engine.admit(options)
            await self._ready()
        entry = await self._claim(options)
        try:
            await writes.confirm(entry, owner)
        except BaseException:
            self.withdraw(entry)
            raise
        try:
            self._engine.admit(options)  # closing, or the VM's exit, takes it away whoever claims it
        except BaseException:
            self.withdraw(entry, owner)
            raise
        return entry

    def keep(self, entry: E, owner: Hashable | None) -> None:
        """Turn a claim that `hold` gave into a reference."""
        entry.claims -= 1
        entry.refer(owner)
        if self._writes is not None:
            self._writes.kept(entry, owner)

    def withdraw(self, entry: E, *held: Hashable | None) -> None:
        """Give a claim up, with the owner for whom `hold` gave it. If nobody else wants it, it is taken away."""
        entry.claims -= 1
        if self._writes is not None:
            for owner in held:
                self._writes.given_up(entry, owner)
        # Later, not now: this caller is being cancelled, perhaps with its whole event loop, which
        # would not wait for a task started here.
        self._engine.withdrawn(entry)

    def release(self, entry: E, owner: Hashable | None) -> bool:
        """Take the reference away, unless it is the last one; tell whether it is to be taken away for that."""
        if entry.to_be_taken_away:
            return True
        if not entry.held_by(owner):
            return False
        if entry.references > 1 or entry.claims:
            entry.unrefer(owner)
            self._engine.let_go(entry, owner)
            return False
        return True

    async def release_owner(self, owner: Hashable, release: Callable[[str], Awaitable[object]]) -> tuple[str, ...]:
        """Have all that an owner holds released, beside each other, and return the names or paths.

        Raises `Engine.error_of_left` with those that failed.
        """
        self.check(owner)
        held = tuple(key for key, entry in self._engine.table.items() if entry.held_by(owner))
        left = await failures_of({key: release(key) for key in held})
        if left:
            raise self._engine.error_of_left(left)
        return held

    @asynccontextmanager
    async def block(self, options: O) -> AsyncIterator[E]:
        """Hold it for the length of a block, by an owner of its own, and release it exactly once."""
        owner = BlockOwner()
        entry = await self.hold(options, owner)
        self.keep(entry, owner)
        try:
            yield entry
        except BaseException as error:
            await self.leave(entry, owner, error)
            raise
        await self.leave(entry, owner, None)

    async def leave(self, entry: E, owner: BlockOwner, error: BaseException | None) -> None:
        """Release the reference of a block that ended in `error`, which is then told what failed.

        Nobody else knows its owner, so the reference goes whatever the answer is.
        """
        if not entry.held_by(owner):  # closed, or revoked, meanwhile
            return
        try:
            await self._engine.end_block(entry, owner)
        except Exception as release_error:
            if error is None:
                raise
            error.add_note(f"and {self._engine.not_yet(entry)}: {release_error}")
