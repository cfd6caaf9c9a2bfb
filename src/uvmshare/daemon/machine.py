"""One VM of the daemon: its file server, the Manager of its shares, and the MountManager of its guest.

What lives here: `Machine`, which starts, finds and ends what one VM has. What must not: who may ask for what
(`service`), where on the host it is kept (`places`), or how a file server that died is started again (`FileServer`).
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from uvmshare import address, peers
from uvmshare.daemon.addresses import Reachable
from uvmshare.daemon.dialler import UserDialler
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.fates import Fates
from uvmshare.daemon.left import LeftBehind
from uvmshare.daemon.shares import holder_of, may_see
from uvmshare.daemon.tracing import TracedFileServer
from uvmshare.errors import (
    ComputeSystemGone,
    FileServerError,
    InvalidState,
    OutcomeUnknown,
    UnsupportedPlatform,
    UvmshareError,
)
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.link import NoFileServer
from uvmshare.fileserver.rundir.directory import table_path
from uvmshare.guest.wire import DEFAULT_PORT as AGENT_PORT
from uvmshare.mounts.agent_client import AgentClient
from uvmshare.mounts.channel import Acceptor, Dialler
from uvmshare.mounts.manager import MountManager
from uvmshare.printable import printable
from uvmshare.share.manager import Manager
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from uvmshare.daemon.groups import Group
    from uvmshare.daemon.identity import Identity, Threads
    from uvmshare.daemon.places import Places
    from uvmshare.daemon.store import VmRecord
    from uvmshare.directory import Fate
    from uvmshare.fileserver import control
    from uvmshare.fileserver.link import RunAs
    from uvmshare.mounts.channel import AgentStreams
    from uvmshare.mounts.mount import MountInfo
    from uvmshare.share.journal import Journal
    from uvmshare.share.manager import ShareInfo
    from uvmshare.share.recovery import RecoveryReport

__all__ = ["Machine"]

T = TypeVar("T")

MachineState = Literal["finding", "running", "failed", "gone"]

_AGENT_SECONDS: Final = 10.0
"""For one request in the guest. A lease that ends with a guest that hangs takes this and its grace longer."""
_FIND_SECONDS: Final = 60.0
"""To find a VM's file server, or to start another: each of these takes seconds, and its user's own process answers."""
_LAST_FIND_SECONDS: Final = 10.0
"""To find the file server of a VM that is removed and was not found before, so that it ends in order."""
_COUNT_SECONDS: Final = 3.0
"""To tell what its mounts have done; it is read from memory."""
_LET_GO_SECONDS: Final = 10.0
"""For the calls under way when the daemon ends. What is not answered then is settled by the next one."""
_TAKE_OUT_SECONDS: Final = 40.0
"""For shares to be removed when their VM is removed, before its file server is ended with them."""
_LAST_UNMOUNT_SECONDS: Final = 10.0
"""For a guest to unmount everything when its VM is removed."""

_COMPUTE_SYSTEMS: Final = (
    "VM {id!r}: compute system {system!r} is reached on its Windows host alone, and this daemon runs on Linux: there, "
    "in a process of your own, use a Manager over uvmshare.hcs.compute_system.ComputeSystem (docs/windows.md)"
)


class Machine:
    """One VM. Made by `add` for a new one, or by `find` for one that an earlier daemon had.

    `changed` is called with the machine, what happened to its file server, in a word, the reason, and the one user who
    may hear of it besides root (None: the VM's user); `fated` with it, a share and what became of the share's
    directory, when that is seen; `watch` when its agent is about to be sought.
    """

    def __init__(
        self,
        record: VmRecord,
        places: Places,
        journal: Journal,
        changed: Callable[[Machine, EventKind, str | None, int | None], None],
        threads: Threads,
        *,
        fated: Callable[[Machine, ShareInfo, Fate], None],
        watch: Callable[[Machine], None],
    ) -> None:
        self.record = record
        self.threads = threads
        self.fates = Fates(threads, record.identity, lambda share, fate: fated(self, share, fate))
        """What became of the directories of its shares."""
        self.reachable = Reachable(threads, record.identity)
        """Whether guests can reach its addresses."""
        self._journal = journal
        self._places = places
        self._changed = changed
        self._watch = watch
        self._server: FileServer | None = None
        self.group: Group | None = None
        """Where its processes are."""
        self.state: MachineState = "finding"
        self.error: str | None = "it is still being found, or started"
        self.tried = asyncio.Event()
        """Whether it was looked for, with or without success."""
        self.found = asyncio.Event()
        """Whether what it has is known: it was added or found; or it was removed, and has nothing."""
        self.restarts = 0
        self._left = LeftBehind(self.audience)
        self._ending: asyncio.Task[bool] | None = None
        self.manager: Manager | None = None
        """None while there is no file server."""
        self.mounts: MountManager | None = None
        """None without an agent in the guest."""
        self.agent: AgentClient | None = None
        self.fleet_below: tuple[str, ...] = ()
        """Below which directories the fleet may share here (`uvmshare.daemon.shares.options_of`)."""
        self.epoch: int | None = None
        """In a fleet: counts the hosts that it was on."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the file server listens; nothing while there is none."""
        return self._server.addresses if self._server is not None else ()

    @property
    def agent_reached(self) -> bool:
        """Whether the agent in the guest is reached now."""
        return self.agent is not None and self.agent.reach.state == "reached"

    @property
    def unreachable_since(self) -> datetime | None:
        """Since when the agent in the guest is out of reach; None while it is reached, or nobody seeks one."""
        return None if self.agent is None else self.agent.reach.unreachable_since

    @property
    def agent_address(self) -> str | None:
        """Where the agent is reached, or reaches the daemon, with the port that was really bound."""
        if self.agent is None:
            return self.record.wanted.agent
        return str(self.agent.address.with_port(self.agent.port))

    def shares(self, *, name: str | None = None, owner: str | None = None) -> tuple[ShareInfo, ...]:
        """Return a snapshot of every share, or of that name alone, or of those that a holder has."""
        return () if self.manager is None else self.manager.shares(name=name, owner=owner)

    def share(self, name: str) -> ShareInfo | None:
        """Return a snapshot of one share, if there is one of that name."""
        return next(iter(self.shares(name=name)), None)

    def mounted(self) -> tuple[MountInfo, ...]:
        """Return a snapshot of every mount."""
        return () if self.mounts is None else self.mounts.mounts()

    async def counted(self) -> tuple[control.ShareStatus, ...]:
        """Return the shares that are served and what their mounts have done.

        Raises `OutcomeUnknown` when no answer comes in time, and what else `FileServer.status` does; `FileServerError`
        where there is none.
        """
        return (await self._status(counters=True)).shares

    async def left_behind(self, who: Identity) -> tuple[control.Left, ...]:
        """Return the processes that removals left in the kernel and that are there still, as far as `who` may see them.

        Raises as `counted` does.
        """
        left = (await self._status()).left
        return tuple(each for each in left if who.is_root or self._left.audience(each.share) is None)

    async def _status(self, *, counters: bool = False) -> control.Reply:
        self.require()
        assert self._server is not None
        try:
            async with asyncio.timeout(_COUNT_SECONDS):
                return await self._server.status(counters=counters)
        except TimeoutError as error:
            msg = f"the file server of VM {self.record.id!r} gave no answer within {_COUNT_SECONDS:g} s: ask again"
            raise OutcomeUnknown(msg) from error

    def left_by(self, share: str) -> tuple[str, ...]:
        """Return what the removal of a share left in the kernel, in words; of the last ones."""
        return self._left.words(share)

    async def serve_until(self, until: float) -> None:
        """Have a fenced VM be served until then, in seconds of CLOCK_BOOTTIME. Raises as `FileServer.serve_until`."""
        self.require()
        assert self._server is not None, "as that says"
        await self._server.serve_until(until)

    def require(self) -> Manager:
        """Return the Manager. Raises `FileServerError` with the reason when there is no file server."""
        if self.manager is None:
            msg = f"VM {self.record.id!r} has no file server: {self.error}; remove the VM and add it again"
            raise FileServerError(msg)
        return self.manager

    def require_mounts(self) -> MountManager:
        """Return the MountManager. Raises `InvalidState` for a VM without an agent, and as `require` does."""
        self.require()
        if self.mounts is None:
            msg = f"VM {self.record.id!r} has no agent: add it with the address of one (uvmshare guest agent)"
            raise InvalidState(msg)
        return self.mounts

    # Starting and finding

    async def when_tried(self, seconds: float) -> None:
        """Wait until it was looked for, at most so long. Raises `InvalidState` when it is still being found."""
        try:
            async with asyncio.timeout(seconds):
                await self.tried.wait()
        except TimeoutError as error:
            msg = f"VM {self.record.id!r} is still being found since the daemon was started: ask again later"
            raise InvalidState(msg) from error

    async def add(self, brought: bytes | None = None) -> None:
        """Start the file server of a new VM. Raises what starting it does, and leaves nothing then."""
        self.group = self._places.group_of(self.record)
        try:
            server = await self._start_server()
            try:
                await self._take(server, vm_is_new=False, take_out_unknown=True, brought=brought)
            except BaseException:
                await server.aclose()
                raise
        except BaseException:
            await self._end_group()
            raise
        self.tried.set()
        self.found.set()

    async def find(self) -> None:
        """Find what an earlier daemon left of the VM, or start it anew; with neither, it is "failed".

        Whoever has found it sets `found`, once it is known who holds what. Cancelling it leaves everything as it is.
        """
        if self.record.unreadable is not None:
            self.state, self.error = "failed", self.record.unreadable
            self.tried.set()
            return
        try:
            if self.group is None:
                self.group = self._places.group_of(self.record)
        except FileServerError as error:  # limits that cannot be set any more are no reason to leave a VM alone
            self._changed(self, EventKind.VM_UNLIMITED, str(error), None)
        try:
            server, is_new = await self._find_server()
            self._server = server
            try:
                await self._take(server, vm_is_new=is_new)
            except Exception:
                # Not when it is cancelled: what the Manager has under way would be told that the VM is gone, and would
                # forget who held what.
                self._server = None
                await server.detach()
                raise
        except (UvmshareError, OSError) as error:
            self.state, self.error = "failed", printable(str(error))
        except Exception as error:  # noqa: BLE001  its user's own process answers there, and other users' VMs must start
            self.state, self.error = "failed", f"what was found of it cannot be understood: {error!r}"
        finally:
            self.tried.set()

    async def _find_server(self) -> tuple[FileServer, bool]:
        """Return the file server that is there, or else one that was started, and whether it was."""
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                try:
                    return await self._connect(), False
                except FileServerError:  # the host was started again, and nothing is left to be found
                    return await self._start_server(), True
        except TimeoutError as error:
            msg = f"its file server was not found, and none could be started, within {_FIND_SECONDS:g} s"
            raise FileServerError(msg) from error

    async def _connect(self) -> FileServer:
        """Return the file server that is there, or one that takes over from one that died. Raises `FileServerError`."""
        return await FileServer.connect(
            self._places.run_dir_at(self.record),
            log=self._places.log_of(self.record),
            cgroup=self._cgroup,
            run_as=self._run_as,
            run=self._as_user,
        ).start()

    @property
    def _run_as(self) -> RunAs | None:
        """Its user's rights, unless the daemon has no others to give."""
        user = self.record.identity
        return (user.uid, user.gid, user.groups) if os.geteuid() == 0 and not user.is_root else None

    async def _as_user(self, work: Callable[[], T], /) -> T:
        """Run what touches its user's run directory: beside the loop, and with the bounds of what users ask for."""
        return await self.threads.acting_as(self.record.identity, self._places.run_dir_at(self.record), work)

    @property
    def _cgroup(self) -> str | None:
        return None if self.group is None else self.group.path

    async def _end_group(self) -> bool:
        """Kill whatever is left of the VM's processes; say whether it is certain that none is left."""
        group, self.group = self.group, None
        if group is None:
            return False
        try:
            await group.end()
        except FileServerError as error:
            self._changed(self, EventKind.VM_UNENDED, str(error), None)
            return False
        return True

    async def _start_server(self, *, is_trial: bool = False) -> FileServer:
        wanted = self.record.wanted
        if wanted.compute_system is not None:
            raise UnsupportedPlatform(_COMPUTE_SYSTEMS.format(id=self.record.id, system=wanted.compute_system))
        limits = Limits.of(wanted.limits)
        try:
            return await FileServer(
                wanted.listen,
                security_model=wanted.security_model,
                links=wanted.links,
                allow_remote=wanted.allow_remote,
                allow_uids=wanted.allow_uids,
                run_dir=None if is_trial else self._places.run_dir_of(self.record),
                log=self._places.log_of(self.record),
                socket_mode=int(wanted.socket_mode, 8),
                limits=limits,
                cgroup=self._cgroup,
                # Whoever writes there says who has what, in this VM or in another's.
                keep_out=(self._places.state_dir, self._places.run_dir),
                run_as=self._run_as,
                fenced=wanted.fence is not None,
                run=self._as_user,
            ).start()
        except OSError as error:
            msg = f"the file server of VM {self.record.id} cannot be started: {reason_of(error)}: see uvmshare doctor"
            raise FileServerError(msg) from error

    async def try_to_listen(self) -> None:
        """Start a file server as that of the VM would be, and end it. Raises what starting it does."""
        self.group = self._places.group_of(self.record)
        try:
            server = await self._start_server(is_trial=True)
            await server.aclose()
        finally:
            await self._end_group()

    async def _take(
        self, server: FileServer, *, vm_is_new: bool, take_out_unknown: bool = False, brought: bytes | None = None
    ) -> None:
        """Have a Manager find what is shared there, and settle what is in doubt. When it raises, nothing was taken.

        `take_out_unknown` is for a VM that is added: a run directory in which one of that name ended out of order may
        hold shares of it yet.
        """
        traced = TracedFileServer(server, f"{self.record.identity.uid}:{self.record.id}")
        read_only = self.record.wanted.read_only
        if brought is not None:
            manager = await Manager.restore(brought, traced, journal=self._journal, no_writable_file_shares=read_only)
        else:
            manager = Manager(traced, journal=self._journal, no_writable_file_shares=read_only)
            await manager.recover(vm_is_new=vm_is_new, take_out_unknown=take_out_unknown)
        try:
            await self._start_agent(server, manager)
        except BaseException:
            await manager.detach()
            raise
        self._server, self.manager = server, manager
        self.state, self.error = "running", None
        server.on_exit(self._note_exit)
        server.on_takeover(self._note_takeover)
        manager.on_settled(self._note_settled)
        server.on_left(self._note_left)

    async def _start_agent(self, server: FileServer, manager: Manager) -> None:
        wanted, user = self.record.wanted, self.record.identity
        if wanted.agent is None:
            return
        listens = address.parse(server.addresses[0])
        where = address.parse(wanted.agent, default_port=AGENT_PORT)
        agent = AgentClient(
            where,
            accept=wanted.agent_dials,
            server_port=listens.port or address.DEFAULT_PORT,
            token=wanted.agent_token,
            timeout=_AGENT_SECONDS,
            streams=await self._streams(where, user),
        )
        self.agent, self.mounts = agent, MountManager(agent, shares=manager)
        self._watch(self)
        await agent.start()

    async def _streams(self, where: address.Address, user: Identity) -> AgentStreams:
        """Return where connections to the agent come from: all of them made with the rights of the VM's user."""
        wanted = self.record.wanted
        users = peers.allowed(wanted.allow_uids, user.uid)
        if not wanted.agent_dials:
            if wanted.agent_token is not None:
                users = None  # the agent proves who it is
            if os.geteuid() == 0 and not user.is_root:
                return UserDialler(where, users, user, self.threads)
            return Dialler(where, users)

        async def run(work: Callable[[], T]) -> T:
            return await self.threads.acting_as(user, where.path, work)

        try:
            return await Acceptor.start(
                where, users, has_token=wanted.agent_token is not None, mode=int(wanted.socket_mode, 8), run=run
            )
        except OSError as error:
            msg = f"cannot listen on {where} for the agent of VM {self.record.id!r}: {error.strerror or error}"
            if error.errno != errno.EADDRINUSE or not where.path:  # which says what to do
                msg += ": choose another address, or end what is there"
            raise FileServerError(msg) from error

    def _note_takeover(self, status: control.Reply) -> None:
        self.restarts += 1
        # The VM's user is told of this, and may not see what another user holds there.
        lost = ", ".join(share.name for share in status.lost if self.audience(share.name) is None)
        self._changed(
            self, EventKind.VM_RESTARTED, f"lost share(s) {lost}, which are added again" if lost else None, None
        )

    def audience(self, share: str) -> int | None:
        """Return who may hear of a share: None for the VM's user and root, or root's uid for root alone.

        The VM's user may when they hold it, or a mount of it, or did until it was taken away. Where nobody knows any
        more whose it is, they may only if the daemon is their own.
        """
        owners = [owner for info in self.shares(name=share) for owner in info.owners]
        for info in self.mounted():
            if info.share_name == share:
                owners += (*info.owners, *info.taken_from)
        holders = [str(owner) for owner in owners if holder_of(owner) is not None]
        user = self.record.identity
        seen = any(may_see(user, holder) for holder in holders) if holders else user.uid == os.geteuid()
        return None if seen else 0

    def _note_left(self, left: tuple[control.Left, ...]) -> None:
        for each in left:
            self._changed(self, EventKind.VM_LEFT_BEHIND, *self._left.note(each))

    def _note_settled(self, outcome: RecoveryReport | Exception) -> None:
        why = outcome if isinstance(outcome, Exception) else outcome.listing_error
        if why is not None:  # what a supervisor of its user's says may be anything
            self._changed(self, EventKind.VM_UNSETTLED, printable(str(why) or repr(why)), None)

    def _note_exit(self, reason: ComputeSystemGone) -> None:
        self.state, self.error = "gone", str(reason)
        self._changed(self, EventKind.VM_GONE, self.error, None)
        self._ending = asyncio.get_running_loop().create_task(self._end_group())

    # Ending

    async def detach(self) -> None:
        """Let go of everything; file server, guests and shares go on, for the next daemon to find.

        Takes some seconds at most: what does not answer then is left as it is. Raises `OutcomeUnknown` for that.
        """
        try:
            async with asyncio.timeout(_LET_GO_SECONDS):
                await self._detach()
        except TimeoutError as error:
            if self._server is not None:
                self._server.abandon()
            msg = f"what was under way did not end within {_LET_GO_SECONDS:g} s: the next daemon settles it"
            raise OutcomeUnknown(msg) from error

    async def _detach(self) -> None:
        if self.manager is None:
            return
        await self._settled()
        if self.agent is not None:
            await self.agent.aclose()
        if self.state != "gone":
            await self.manager.detach()
        if self._server is not None:
            await self._server.detach()

    async def _settled(self) -> None:
        if self._ending is not None:
            await asyncio.wait({self._ending})

    async def remove(self) -> str | None:
        """Unmount and remove everything, and end the file server. A guest that does not answer gets EIO.

        Return what may be left, and why: None when it is certain that no process is.
        """
        await self._settled()
        mounts, self.mounts = self.mounts, None
        if mounts is not None:
            if self.agent_reached:
                with suppress(UvmshareError, TimeoutError):
                    async with asyncio.timeout(_LAST_UNMOUNT_SECONDS):
                        await mounts.aclose()
            mounts.vm_exited(ComputeSystemGone("the VM was removed from the daemon"))
        if self.agent is not None:
            await self.agent.aclose()
        manager, self.manager = self.manager, None
        if manager is not None:
            with suppress(UvmshareError, TimeoutError):  # what cannot be removed ends with the file server
                async with asyncio.timeout(_TAKE_OUT_SECONDS):
                    await manager.aclose()
        left = await self._end_server()
        if await self._end_group() and left is not None:
            left = None
            with suppress(UvmshareError, OSError):  # else a VM that gets its name would begin with its shares
                await self._as_user(lambda: os.unlink(table_path(self._places.run_dir_at(self.record))))
        self.state, self.error = "gone", "it was removed"
        self.tried.set()
        self.found.set()
        return left

    async def _end_server(self) -> str | None:
        """End the file server, also one that was not found yet; return what may be left, as `remove` does."""
        with suppress(FileServerError):
            self.group = self.group or self._places.group_at(self.record)
        try:
            if self._server is None:
                async with asyncio.timeout(_LAST_FIND_SECONDS):
                    self._server = await self._connect()
            await self._server.aclose()
        except NoFileServer:
            return None
        except TimeoutError:
            why = f"it did not answer within {_LAST_FIND_SECONDS:g} s"
        except Exception as error:  # noqa: BLE001  its user's own process answers there, and the VM goes all the same
            why = printable(str(error) or repr(error))
        else:
            return None
        return (
            f"its file server may be running, and its guest reach what was shared: {why}; end the processes of "
            f"{self._places.run_dir_at(self.record)}"
        )
