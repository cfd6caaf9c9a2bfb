"""Who wants a share: claims of calls that have not returned yet, which become references or are given up.

What lives here: `Claims`, between what callers may ask for (`uvmshare.share.manager`) and what happens to a share
(`uvmshare.share.engine`). What must not: a call to the VM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from uvmshare import arguments
from uvmshare.errors import ComputeSystemGone, ManagerClosed, OperationDenied
from uvmshare.share.interfaces import RefusesOptions
from uvmshare.share.ledger import check_owner
from uvmshare.share.state import Life, Trigger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from uvmshare.share.engine import Engine
    from uvmshare.share.entry import BlockOwner
    from uvmshare.share.options import AddOptions
    from uvmshare.share.share import Share

__all__ = ["Claims"]


class Claims:
    """The claims and references of one Manager. `read` returns when the tables hold what its journal says."""

    def __init__(self, engine: Engine, read: Callable[[], Awaitable[None]], *, no_writable_file_shares: bool) -> None:
        self._engine = engine
        self._read = read
        self._no_writable_file_shares = no_writable_file_shares

    async def claim(self, options: AddOptions) -> Share:
        """Return the share, live, with a claim on it that becomes `keep` or `withdraw`."""
        if self._engine.ledger is not None:
            self.admit(options)
            await self._read()
            await self._engine.ledger.ready()
        while True:
            self.admit(options)
            share = self._engine.find(options) or self._engine.allocate(options)
            operation = share.operation
            if share.state is Life.ADDED:
                share.claims += 1
                return share
            if share.state is Life.REMOVING:
                # How that ends is for those who asked; then look again.
                assert operation is not None, "it is under way"
                await operation.wait()
                continue
            if operation is None:
                operation = self._engine.start_add(share)
            share.claims += 1
            try:
                await operation.finish()
                self.admit(options)
            except BaseException:
                self.withdraw(share)
                raise
            return share

    async def hold(self, options: AddOptions, owner: Hashable | None) -> Share:
        """Return the share, live, with a claim on it that is as safe as a reference, and may become one."""
        share = await self.claim(options)
        if self._engine.ledger is None:
            return share
        try:
            await self._engine.ledger.confirm(share, owner)
        except BaseException:
            self.withdraw(share)
            raise
        try:
            self.admit(options)  # closing, or the VM's exit, takes a share out whoever claims it
        except BaseException:
            self.withdraw(share, owner)
            raise
        return share

    def keep(self, share: Share, owner: Hashable | None) -> None:
        """Turn a claim that `hold` gave into a reference."""
        share.claims -= 1
        share.refer(owner)
        if self._engine.ledger is not None:
            self._engine.ledger.kept(share, owner)

    def withdraw(self, share: Share, *held: Hashable | None) -> None:
        """Give a claim up, with the owner for whom `hold` gave it. If nobody else wants the share, it is taken out."""
        share.claims -= 1
        if self._engine.ledger is not None:
            for owner in held:
                self._engine.ledger.given_up(share, owner)
        # Later, not now: this caller is being cancelled, perhaps with its whole event loop, which
        # would not wait for a task started here.
        self._engine.retry_later(share)

    async def leave(self, share: Share, owner: BlockOwner, error: BaseException | None) -> None:
        """Give back the reference of a block that ended in `error`.

        Nobody else knows its owner, so the reference goes whatever the VM answers.
        """
        if not share.held_by(owner):  # closed meanwhile
            return
        share.unrefer(owner)
        if share.state is Life.LOST and not share.references:
            self._engine.disown(share, Trigger.GIVEN_UP)
        if not share.to_be_taken_out:
            return
        try:
            await self._engine.start_remove(share).finish()
        except Exception as release_error:
            if error is None:
                raise
            error.add_note(f"and share {share.name} could not be removed yet: {release_error}")

    def check(self, owner: Hashable | None) -> None:
        """Refuse an owner that cannot be one."""
        arguments.hashable("owner", owner)
        if self._engine.ledger is not None:
            check_owner(owner)

    def admit(self, options: AddOptions) -> None:
        """Refuse what cannot or may not be added."""
        self.require_open()
        if self._engine.vm_gone is not None:
            msg = f"no share can be added any more: {self._engine.vm_gone}"
            raise ComputeSystemGone(msg) from self._engine.vm_gone
        if self._no_writable_file_shares and not options.read_only:
            msg = f"{options.host_path}: this Manager allows no writable shares: pass read_only=True"
            raise OperationDenied(msg)
        if isinstance(self._engine.vm, RefusesOptions):
            self._engine.vm.require_able(options)

    def release(self, share: Share, owner: Hashable | None) -> bool:
        """Take the reference away, unless it is the last one; tell whether the share is to be taken out for it."""
        if share.state is Life.PENDING:
            self._engine.drop(share)
            return False
        if share.to_be_taken_out:
            return True
        if not share.held_by(owner):
            return False
        if share.references > 1 or (share.claims and share.state is not Life.LOST):
            share.unrefer(owner)
            if self._engine.ledger is not None:
                self._engine.ledger.holds(share, owner)
            return False
        if share.state is Life.LOST:
            self._engine.disown(share, Trigger.GIVEN_UP)
        return True

    def require_open(self) -> None:
        """Refuse what comes after the end. Raises `ManagerClosed`."""
        if self._engine.closed:
            msg = "this Manager was closed and adds no more shares: make a new one"
            raise ManagerClosed(msg)
