"""Managers for programs that have threads and no event loop.

    with blocking.Manager(FileServer(listen=["firecracker:/run/fc/v.sock"])) as manager:
        name = manager.add("/srv/project", read_only=True)
        with blocking.MountManager(AgentClient("firecracker:/run/fc/v.sock"), shares=manager) as mounts:
            mounts.map("/srv/project", "/run/uvmshare/project", read_only=True)

What lives here: `Manager`, `MountManager` and `AgentClient`. Each hands its calls to the asynchronous class of the same
name, in an event loop in a background thread, and waits. What must not: any decision about a share or a mount, or the
thread (`uvmshare.loop_thread`).

Pass a file server or an agent's client as in an asyncio program, before it is started: the event loop in the background
enters and leaves it. `uvmshare.serve` puts all of this into one object.
"""

from __future__ import annotations

import time
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from uvmshare import arguments
from uvmshare.errors import AgentUnreachable, ManagerClosed
from uvmshare.lifecycle.entry import BlockOwner
from uvmshare.loop_thread import Claim, LoopThread
from uvmshare.mounts import agent_client
from uvmshare.mounts import manager as asynchronous_mounts
from uvmshare.mounts.engine import REVOKE_GRACE
from uvmshare.mounts.options import mapping_of
from uvmshare.share import manager as asynchronous
from uvmshare.share import save_restore
from uvmshare.share.options import options_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Hashable, Iterator
    from types import TracebackType
    from typing import Unpack

    from uvmshare.mounts.agent_state import Reach
    from uvmshare.mounts.interfaces import GuestAgent, GuestMount
    from uvmshare.mounts.mount import Mount, MountInfo
    from uvmshare.mounts.options import MapKeywords, MountOptions
    from uvmshare.mounts.report import AgentInfo, GuestReport, ListedMount, MountHealth
    from uvmshare.share.interfaces import VMPlan9
    from uvmshare.share.journal import Journal
    from uvmshare.share.manager import ShareInfo
    from uvmshare.share.options import AddOptions, HostPath, ShareKeywords
    from uvmshare.share.recovery import RecoveryReport
    from uvmshare.share.share import Share

__all__ = ["AgentClient", "Manager", "MountManager"]

T = TypeVar("T")


class Manager:
    """The Plan 9 shares of one running utility VM, for synchronous callers in any number of threads.

    The methods are those of `uvmshare.share.manager.Manager`, with the same promises. A caller that is interrupted
    while it waits (KeyboardInterrupt) withdraws its own claim and nothing else, like a cancelled caller there.

    `vm` is a `VMPlan9`, or an asynchronous context manager that gives one. The background event loop enters it now, and
    leaves it when the Manager ends. Raises what entering it raises.

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
        """Return a Manager with what `save` returned: the same shares, with the same names and the same owners."""
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
        self._vm = vm
        self._thread = LoopThread(self, lambda: ManagerClosed(_ENDED))

        async def begin(stack: AsyncExitStack) -> asynchronous.Manager:
            return await make(await _entered(vm, stack))

        self._manager = self._thread.start(begin)

    def __repr__(self) -> str:
        return f"<blocking.Manager of {self._vm!r}{': closed' if self._thread.ended else ''}>"

    @property
    def asynchronous(self) -> asynchronous.Manager:
        """The Manager in the background event loop, for coroutines that `run` runs there."""
        return self._manager

    @property
    def is_of_another_process(self) -> bool:
        """Whether this is a forked child of the process that made the Manager. The child may not use it."""
        return self._thread.is_of_another_process

    def __enter__(self) -> Self:
        try:
            self.run(self._manager.__aenter__())
        except BaseException:
            self._thread.stop()
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
            self._thread.stop()

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
        """Release a reference. The last release removes the share from the VM."""
        self.run(self._manager.remove(name, owner=owner))

    def release_owner(self, owner: Hashable) -> tuple[str, ...]:
        """Release every reference of `owner`, which is known to be gone. Return the names of their shares."""
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

        With `name`, only the share of that name. With `owner`, only shares that this owner holds.
        """
        return self.run(_at_once(partial(self._manager.shares, name=name, owner=owner)))

    def recover(self, *, vm_is_new: bool = False, take_out_unknown: bool = False) -> RecoveryReport:
        """Find out what is shared, and settle every difference. Return what was found and done for each share."""
        return self.run(self._manager.recover(vm_is_new=vm_is_new, take_out_unknown=take_out_unknown))

    def save(self) -> bytes:
        """Return what is shared as a document. `restore` makes the shares again from it, in another process or host."""
        return self.run(_at_once(self._manager.save))

    def detach(self) -> tuple[ShareInfo, ...]:
        """End this Manager and its thread. Return the shares, which another Manager on the same journal takes over."""
        there = self.run(self._manager.detach())
        self._thread.stop()
        return there

    def close(self) -> None:
        """Remove every share, refuse new adds from now on, and end the background thread.

        Raises `SharesLeft` with the shares that could not be removed. The thread then stays, and calling again tries
        again. Leaving a ``with`` block ends the thread in any case. Raises what leaving the VM's context raises.
        """
        with suppress(ManagerClosed):  # by an earlier call
            self.run(self._manager.aclose())
        self._thread.stop()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the background event loop and return its result.

        It is meant for objects that live in that loop beside the Manager, such as a file server. When the caller is
        interrupted, the coroutine is cancelled. Raises `ManagerClosed` when the Manager has ended, or ends meanwhile.
        """
        return self._thread.run(coroutine)

    @property
    def loop_thread(self) -> LoopThread:
        """The background event loop and its thread."""
        return self._thread

    def _hold(self, options: AddOptions, owner: Hashable | None) -> Share:
        return Claim(self._manager.claims).hold(self._thread, options, owner)

    def _leave(self, share: Share, owner: BlockOwner, error: BaseException | None) -> None:
        # Not cancelled when this thread is interrupted: the reference is given back once, whatever happens.
        self._thread.run_to_its_end(self._manager.claims.leave(share, owner, error))


class MountManager:
    """The mounts of one running guest, for synchronous callers in any number of threads.

    The methods are those of `uvmshare.mounts.manager.MountManager`, with the same promises. `shares` is the Manager of
    the VM's shares. `agent` is a `GuestAgent`, or an asynchronous context manager that gives one, such as a
    `uvmshare.AgentClient` that was not started. The background event loop of `shares` enters it now, and leaves it when
    the MountManager ends.

    End it with `close` or a ``with`` block, before the Manager. Raises what entering the agent raises.
    """

    def __init__(
        self,
        agent: GuestAgent | AbstractAsyncContextManager[GuestAgent],
        *,
        shares: Manager,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(agent, AgentClient):
            arguments.refuse_type("agent", agent, "uvmshare.AgentClient, which is entered in the Manager's event loop")
        if not isinstance(shares, Manager):
            arguments.refuse_type("shares", shares, "the blocking.Manager of the VM's shares")
        self._agent = agent
        self._shares = shares
        self._stack = AsyncExitStack()

        async def begin() -> asynchronous_mounts.MountManager:
            entered = await _entered(agent, self._stack)
            try:
                return asynchronous_mounts.MountManager(entered, shares=shares.asynchronous, clock=clock)
            except BaseException:
                await self._stack.aclose()
                raise

        self._mounts = shares.run(begin())

    def __repr__(self) -> str:
        return f"<blocking.{repr(self._mounts)[1:]}"

    @property
    def asynchronous(self) -> asynchronous_mounts.MountManager:
        """The MountManager in the background event loop, for coroutines that `Manager.run` runs there."""
        return self._mounts

    @property
    def agent(self) -> AgentClient:
        """The agent in the guest. Raises `WrongType` when the `agent` was not a `uvmshare.AgentClient`."""
        if not isinstance(self._agent, agent_client.AgentClient):
            arguments.refuse_type("agent", self._agent, "a uvmshare.AgentClient, which alone can be asked more")
        return AgentClient._beside(self._agent, self._shares.loop_thread)  # noqa: SLF001  a way of making one that is not public

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._shares.is_of_another_process:
            return  # a forked child that ends: the block is its parent's to end
        try:
            self.close()
        finally:
            with suppress(ManagerClosed):
                self._run(self._stack.aclose())

    def mount(self, options: MountOptions, *, owner: Hashable | None = None) -> MountInfo:
        """Make sure that the guest has the mount, hold a reference to it, and return what it is."""
        self._mounts.claims.check(owner)
        claim = _MountClaim(self._mounts.claims)
        claim.hold(self._shares.loop_thread, options, owner)
        return claim.held

    def map(
        self,
        share: AddOptions | HostPath,
        guest_path: str,
        *,
        owner: Hashable | None = None,
        **keywords: Unpack[MapKeywords],
    ) -> MountInfo:
        """Share a directory of the host and mount it in the guest; both or neither."""
        return self.mount(mapping_of(share, guest_path, keywords), owner=owner)

    def unmount(
        self,
        mount_path: str,
        *,
        owner: Hashable | None = None,
        lazy: bool = False,
        force: bool = False,
        grace: float = REVOKE_GRACE,
    ) -> MountInfo | None:
        """Release a reference. The last release unmounts, and removes the share if it came with the mount."""
        return self._run(self._mounts.unmount(mount_path, owner=owner, lazy=lazy, force=force, grace=grace))

    def unmap(
        self, guest_path: str, *, owner: Hashable | None = None, lazy: bool = False, force: bool = False
    ) -> MountInfo | None:
        """Release what `map` returned."""
        return self.unmount(guest_path, owner=owner, lazy=lazy, force=force)

    def revoke(
        self,
        mount_path: str,
        *,
        owners: Collection[Hashable | None] | None = None,
        grace: float = REVOKE_GRACE,
    ) -> MountInfo | None:
        """Take a mount away from all who hold it, or from `owners` alone, whatever the guest says."""
        return self._run(self._mounts.revoke(mount_path, owners=owners, grace=grace))

    def release_owner(self, owner: Hashable, *, lazy: bool = False, force: bool = False) -> tuple[str, ...]:
        """Release every reference of `owner`, which is known to be gone. Return the paths of their mounts."""
        return self._run(self._mounts.release_owner(owner, lazy=lazy, force=force))

    @contextmanager
    def mapped(
        self, share: AddOptions | HostPath, guest_path: str, **keywords: Unpack[MapKeywords]
    ) -> Iterator[MountInfo]:
        """Hold a mapping for the length of a block: ``with mounts.mapped("/srv/x", "/run/uvmshare/x"):``."""
        owner, options = BlockOwner(), mapping_of(share, guest_path, keywords)
        claim = _MountClaim(self._mounts.claims)
        held = claim.hold(self._shares.loop_thread, options, owner)
        try:
            yield claim.held
        except BaseException as error:
            if not self._shares.is_of_another_process:
                self._leave(held, owner, error)
            raise
        self._leave(held, owner, None)

    def _leave(self, mount: Mount, owner: BlockOwner, error: BaseException | None) -> None:
        # Not cancelled when this thread is interrupted, as of a share.
        self._shares.loop_thread.run_to_its_end(self._mounts.claims.leave(mount, owner, error))

    def mounts(self) -> tuple[MountInfo, ...]:
        """Return a snapshot of every mount that the guest has, may have or should have, oldest first."""
        return self._run(_at_once(self._mounts.mounts))

    def settle(self) -> tuple[GuestMount, ...]:
        """Ask the agent what the guest has, and mount again what it lost. Return mounts that nobody here asked for."""
        return self._run(self._mounts.settle())

    def close(self) -> None:
        """Unmount everything, refuse new mounts from now on, and leave the agent. A second call does nothing.

        Raises `MountsLeft` with the mounts that could not be taken away. The agent's client then stays, and calling
        again tries again. Leaving a ``with`` block leaves the agent in any case.
        """

        async def end() -> None:
            await self._mounts.aclose()
            await self._stack.aclose()

        with suppress(ManagerClosed):  # with the Manager, in whose event loop it was
            self._run(end())

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._shares.run(coroutine)


class _MountClaim(Claim["Mount", "MountOptions"]):
    """A claim on a mount. `held` is what that is when the claim is a reference."""

    held: MountInfo

    async def make(self, options: MountOptions, owner: Hashable | None) -> Mount:
        mount = await super().make(options, owner)
        now = mount.info()
        if owner is None:
            self.held = replace(now, references=now.references + 1)
        elif owner in now.owners:
            self.held = now
        else:
            self.held = replace(now, references=now.references + 1, owners=(*now.owners, owner))
        return mount


class AgentClient:
    """The agent in one guest, for synchronous callers: its state, its mounts, and its report on the guest.

    ``with blocking.AgentClient("firecracker:/run/fc/v.sock") as agent:``. The arguments are those of
    `uvmshare.AgentClient`; the connection lives in a background event loop. To mount, use a `MountManager`. Its
    ``agent`` is an `AgentClient` too.

    Raises what `uvmshare.AgentClient` and starting it raise.
    """

    def __init__(
        self,
        address: str,
        *,
        accept: bool = False,
        server_port: int = 5640,
        token: str | None = None,
        timeout: float = 30.0,
        allow_uids: Collection[int | Literal["any"]] = (),
    ) -> None:
        self._client = agent_client.AgentClient(
            address, accept=accept, server_port=server_port, token=token, timeout=timeout, allow_uids=allow_uids
        )
        ended = f"the client of the agent at {address} was closed: make a new one"
        self._thread = LoopThread(self, lambda: AgentUnreachable(ended))
        self._is_mine = True
        self._thread.start(lambda stack: stack.enter_async_context(self._client))

    @classmethod
    def _beside(cls, client: agent_client.AgentClient, thread: LoopThread) -> Self:
        """Return the one of a client that lives in an event loop already, and is ended there."""
        self = cls.__new__(cls)
        self._client, self._thread, self._is_mine = client, thread, False
        return self

    def __repr__(self) -> str:
        return f"<blocking.{repr(self._client)[1:]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None and self._thread.is_of_another_process:
            return  # a forked child that ends: the block is its parent's to end
        self.close()

    @property
    def reach(self) -> Reach:
        """Whether the agent can be reached, and since when."""
        return self._client.reach

    def reached(self, *, timeout: float | None = None) -> AgentInfo:
        """Wait until the agent is connected, at most `timeout` seconds. Raises `AgentUnreachable`."""
        return self._run(self._client.reached(timeout=timeout))

    def listed(self) -> tuple[ListedMount, ...]:
        """Return the mounts that the agent keeps, and how each is."""
        return self._run(self._client.listed())

    def health(self, *, within: float = 1.0) -> tuple[MountHealth, ...]:
        """Have the agent read each mount. Return whether each could be read within that many seconds."""
        return self._run(self._client.health(within=within))

    def report(self) -> GuestReport:
        """Return what the guest can and cannot do (`uvmshare.mounts.doctor` says what that means)."""
        return self._run(self._client.report())

    def close(self) -> None:
        """End the connection; the guest's mounts stay. It has no effect on the client of a MountManager."""
        if self._is_mine:
            self._thread.stop()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._thread.run(coroutine)


async def _entered(what: T | AbstractAsyncContextManager[T], stack: AsyncExitStack) -> T:
    """Return what callers gave, or what it gives when it is entered."""
    return await stack.enter_async_context(what) if isinstance(what, AbstractAsyncContextManager) else what


def _require_arguments(
    vm: object, journal: object, *, no_writable_file_shares: bool, clock: Callable[[], float]
) -> None:
    """Refuse what no Manager can be made of, before there is a thread."""
    if not isinstance(vm, AbstractAsyncContextManager):
        asynchronous.require_vm(vm)
    asynchronous.require_settings(journal, no_writable_file_shares=no_writable_file_shares, clock=clock)


_ENDED = "this Manager was closed and its event loop has ended: make a new one"


async def _at_once(function: Callable[..., T], *args: object) -> T:
    return function(*args)
