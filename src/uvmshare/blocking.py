"""The Manager for programs with threads instead of an event loop.

    with blocking.Manager(vm) as manager:
        name = manager.add("/srv/project", read_only=True)

What lives here: `Manager`, which hands each call to a `uvmshare.share.manager.Manager` in an event loop in a
background thread, and waits. What must not: any decision about a share.

What belongs to that event loop, such as a file server, is opened and closed in it::

    with blocking.Manager(FileServer(listen=["unix:/run/vm1.9p"])) as manager:
        ...

`uvmshare.serve` does that, and mounts too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from uvmshare.errors import ManagerClosed
from uvmshare.lifecycle.entry import BlockOwner
from uvmshare.process import require_process
from uvmshare.share import manager as asynchronous
from uvmshare.share import save_restore
from uvmshare.share.options import options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Hashable, Iterator
    from types import TracebackType
    from typing import Unpack

    from uvmshare.share.interfaces import VMPlan9
    from uvmshare.share.journal import Journal
    from uvmshare.share.manager import ShareInfo
    from uvmshare.share.options import AddOptions, HostPath, ShareKeywords
    from uvmshare.share.recovery import RecoveryReport
    from uvmshare.share.share import Share

__all__ = ["Manager"]

T = TypeVar("T")


class Manager:
    """The Plan 9 shares of one running utility VM, for synchronous callers in any number of threads.

    The methods are those of `uvmshare.share.manager.Manager`, with the same promises. A caller that is
    interrupted while it waits (KeyboardInterrupt) withdraws its own claim, and nothing else, as one that is
    cancelled does there.

    `vm` is a `VMPlan9`, or an asynchronous context manager that gives one: it is entered in the background
    event loop now, and left when the Manager ends. Raises what entering it raises.

    End it with `close` or a ``with`` block.
    """

    def __init__(
        self,
        vm: VMPlan9 | AbstractAsyncContextManager[VMPlan9],
        *,
        journal: Journal | None = None,
        no_writable_file_shares: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        _require_arguments(vm, journal, no_writable_file_shares=no_writable_file_shares, clock=clock)

        async def make(entered: VMPlan9) -> asynchronous.Manager:
            return asynchronous.Manager(
                entered, journal=journal, no_writable_file_shares=no_writable_file_shares, clock=clock
            )

        self._start(vm, make)

    @classmethod
    def restore(
        cls,
        state: bytes | str,
        vm: VMPlan9 | AbstractAsyncContextManager[VMPlan9],
        *,
        journal: Journal | None = None,
        no_writable_file_shares: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Return a Manager that has what `save` told: the same shares under the same names, held by the same."""
        _require_arguments(vm, journal, no_writable_file_shares=no_writable_file_shares, clock=clock)
        save_restore.decode(state)

        async def make(entered: VMPlan9) -> asynchronous.Manager:
            return await asynchronous.Manager.restore(
                state, entered, journal=journal, no_writable_file_shares=no_writable_file_shares, clock=clock
            )

        self = cls.__new__(cls)
        self._start(vm, make)
        return self

    def _start(
        self,
        vm: VMPlan9 | AbstractAsyncContextManager[VMPlan9],
        make: Callable[[VMPlan9], Coroutine[Any, Any, asynchronous.Manager]],
    ) -> None:
        """Start the background thread with its event loop, and make the Manager there."""
        self._process = os.getpid()
        self._vm = vm
        self._lock = threading.Lock()
        """Guards `_ended` together with handing something to the loop: after it is set, nothing is."""
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._ready: concurrent.futures.Future[asynchronous.Manager] = concurrent.futures.Future()
        self._result: concurrent.futures.Future[None] = concurrent.futures.Future()
        """How the background thread ended."""

        async def main() -> None:
            async with AsyncExitStack() as stack:
                if isinstance(vm, AbstractAsyncContextManager):
                    entered = await stack.enter_async_context(vm)
                else:
                    entered = vm
                self._ready.set_result(await make(entered))
                await self._end.wait()

        self._thread = threading.Thread(target=self._serve, args=(main(),), name="uvmshare", daemon=True)
        try:
            self._thread.start()
            self._manager = self._ready.result()
        except BaseException:
            self._post(self._cancel_everything)  # which ends the thread, if it has not ended
            raise

    def __repr__(self) -> str:
        return f"<blocking.Manager of {self._vm!r}{': closed' if self._ended else ''}>"

    @property
    def asynchronous(self) -> asynchronous.Manager:
        """The Manager in the background event loop, for what is to be run there (`run`)."""
        return self._manager

    @property
    def is_of_another_process(self) -> bool:
        """Whether this is a forked child of the process that made it, where nothing of it may be used."""
        return os.getpid() != self._process

    def __enter__(self) -> Self:
        try:
            self.run(self._manager.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self.is_of_another_process:
            return  # a forked child that ends: the block is its parent's to end
        try:
            self.close()
        finally:
            self._stop()

    def resolve_share_name(self, share: AddOptions | HostPath, **keywords: Unpack[ShareKeywords]) -> str:
        """Return the name that the share has or will have, without a call to the VM."""
        return self.run(_at_once(self._manager.resolve_share_name, options_of(share, keywords)))

    def add(
        self, share: AddOptions | HostPath, *, owner: Hashable | None = None, **keywords: Unpack[ShareKeywords]
    ) -> str:
        """Make sure that the VM has the share, hold a reference to it, and return its name."""
        self._manager.claims.check(owner)
        return self._hold(options_of(share, keywords), owner).name

    def remove(self, name: str, *, owner: Hashable | None = None) -> None:
        """Give a reference back; the last one takes the share off the VM."""
        self.run(self._manager.remove(name, owner=owner))

    def release_owner(self, owner: Hashable) -> tuple[str, ...]:
        """Give back every reference that `owner` holds, because it is known to be gone, and return the names."""
        return self.run(self._manager.release_owner(owner))

    @contextmanager
    def share(self, share: AddOptions | HostPath, **keywords: Unpack[ShareKeywords]) -> Iterator[str]:
        """Hold the share for the length of a block: ``with manager.share("/srv/project") as name:``."""
        owner = BlockOwner()
        held = self._hold(options_of(share, keywords), owner)
        try:
            yield held.name
        except BaseException as error:
            if not self.is_of_another_process:
                self._leave(held, owner, error)
            raise
        self._leave(held, owner, None)

    def shares(self, *, name: str | None = None, owner: Hashable | None = None) -> tuple[ShareInfo, ...]:
        """Return a snapshot of every share that the VM has or may have, and the PENDING ones, oldest first.

        Only the one of that `name`, if it is given, and only those that `owner` holds.
        """
        return self.run(_at_once(partial(self._manager.shares, name=name, owner=owner)))

    def recover(self, *, vm_is_new: bool = False, take_out_unknown: bool = False) -> RecoveryReport:
        """Find out what is shared, settle every difference, and return share by share what was found and done."""
        return self.run(self._manager.recover(vm_is_new=vm_is_new, take_out_unknown=take_out_unknown))

    def save(self) -> bytes:
        """Return what is shared as a document, from which `restore` makes it again in another process or host."""
        return self.run(_at_once(self._manager.save))

    def detach(self) -> tuple[ShareInfo, ...]:
        """End this Manager and its thread, and leave every share to another one on the same journal; return them."""
        there = self.run(self._manager.detach())
        self._stop()
        return there

    def close(self) -> None:
        """Take everything out, refuse new adds from now on, and end the background thread.

        Raises `SharesLeft` with what could not be taken out; then the thread goes on, and calling again
        tries again. Leaving a ``with`` block ends the thread all the same. Raises what leaving the VM's
        context raises.
        """
        with suppress(ManagerClosed):  # by an earlier call
            self.run(self._manager.aclose())
        self._stop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the background event loop and return its result.

        For what lives in that loop beside the Manager, such as a file server. When the caller is interrupted, the
        coroutine is cancelled. Raises `ManagerClosed` when the Manager has ended, or ends meanwhile.
        """
        future = self._submit(coroutine)
        try:
            return _result_of(future)
        except BaseException:
            future.cancel()
            raise

    # ------------------------------------------------------------------ in the caller's thread

    def _hold(self, options: AddOptions, owner: Hashable | None) -> Share:
        """Return the share with a reference of `owner` on it.

        Until this thread has the answer, there is only a claim. So an interrupt leaves nothing
        behind, however it falls together with the answer.
        """
        claim = _Claim(self._manager)
        try:
            share = self.run(claim.make(options, owner))
            self._post(claim.keep)
        except BaseException:
            self._post(claim.give_up)
            raise
        return share

    def _leave(self, share: Share, owner: BlockOwner, error: BaseException | None) -> None:
        # Not cancelled when this thread is interrupted: the reference is given back once, whatever happens.
        _result_of(self._submit(self._manager.claims.leave(share, owner, error)))

    def _submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self.is_of_another_process:  # before the lock, which a thread of the parent's may have had
            coroutine.close()
            require_process(self, self._process)
        if threading.current_thread() is self._thread:
            coroutine.close()
            msg = "called in the Manager's own event loop, where waiting would wait for ever: use the asyncio Manager"
            raise RuntimeError(msg)
        with self._lock:
            if not self._ended:
                return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        coroutine.close()
        raise ManagerClosed(_ENDED)

    def _post(self, callback: Callable[..., None], *args: object) -> None:
        """Have something done in the loop, after what was handed to it before. Not done when it has ended."""
        if self.is_of_another_process:
            return
        with self._lock:
            if not self._ended:
                self._loop.call_soon_threadsafe(callback, *args)

    def _stop(self) -> None:
        """End the thread and raise what it ended with."""
        require_process(self, self._process)
        with self._lock:
            if not self._ended:
                self._ended = True
                self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()
        self._result.result()

    # ------------------------------------------------------------------ in the background thread

    def _serve(self, main: Coroutine[Any, Any, None]) -> None:
        try:
            # Cancels what is still running in the end, which tells those who wait for it.
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                try:
                    runner.run(main)
                finally:
                    with self._lock:
                        self._ended = True
                    runner.run(asyncio.sleep(0))  # begins what was handed over last, so that it is cancelled too
            self._result.set_result(None)
        except BaseException as error:  # noqa: BLE001  it is raised in the thread that waits
            if self._ready.done():
                self._result.set_exception(error)
            else:
                self._result.set_result(None)
                self._ready.set_exception(error)

    def _cancel_everything(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()


def _require_arguments(
    vm: object, journal: object, *, no_writable_file_shares: bool, clock: Callable[[], float]
) -> None:
    """Refuse what no Manager can be made of, before there is a thread."""
    if not isinstance(vm, AbstractAsyncContextManager):
        asynchronous.require_vm(vm)
    asynchronous.require_settings(journal, no_writable_file_shares=no_writable_file_shares, clock=clock)


_ENDED = "this Manager was closed and its event loop has ended: make a new one"


class _Claim:
    """A claim on a share that a thread waits for. All of it happens in the loop's thread."""

    def __init__(self, manager: asynchronous.Manager) -> None:
        self._manager = manager
        self._owner: Hashable | None = None
        self._share: Share | None = None
        """The share, while the claim stands."""
        self._given_up = False

    async def make(self, options: AddOptions, owner: Hashable | None) -> Share:
        self._owner = owner
        self._share = share = await self._manager.claims.hold(options, owner)
        if self._given_up:
            self.give_up()
        return share

    def keep(self) -> None:
        if self._share is not None:
            self._manager.claims.keep(self._share, self._owner)
            self._share = None

    def give_up(self) -> None:
        self._given_up = True
        if self._share is not None:
            self._manager.claims.withdraw(self._share, self._owner)
            self._share = None


async def _at_once(function: Callable[..., T], *args: object) -> T:
    return function(*args)


_LOOK_FOR_SIGNALS = 1.0
"""Seconds. A wait ends at once for a signal that comes to this very thread while it waits, but not for one that came a
moment before, or that another thread of the process took; and on Windows for none (threading, signal)."""


def _result_of(future: concurrent.futures.Future[T]) -> T:
    try:
        while True:
            try:
                return future.result(_LOOK_FOR_SIGNALS)
            except TimeoutError:  # of this wait, or of what was waited for
                if future.done():
                    return future.result()
    except concurrent.futures.CancelledError:
        raise ManagerClosed(_ENDED) from None
