"""One VM of the daemon: its file server, which is kept running, and its Manager.

What lives here: `Machine`, which starts, finds, starts again and ends the file server of one VM and puts the shares
back. What must not: who may ask for what (`service`).
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Literal

import structlog

from uvmshare.errors import ComputeSystemError, FileServerError, ShareExists, UvmshareError
from uvmshare.fileserver.device import FileServer
from uvmshare.fileserver.limits import Limits
from uvmshare.hcs.utility_vm import UtilityVM
from uvmshare.share.interfaces import Plan9Share
from uvmshare.share.manager import Manager
from uvmshare.share.state import ShareState

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.daemon.store import VmRecord
    from uvmshare.errors import ComputeSystemGone
    from uvmshare.hcs import schema

__all__ = ["Machine", "Places"]

_RETRY_FIRST: Final = 0.5
_RETRY_LONGEST: Final = 30.0
"""Seconds between two attempts to start a file server again; the wait doubles."""
_PATIENCE: Final = 30.0
"""Seconds that a request waits for a file server that is being started again; as long as its start may take."""

State = Literal["running", "restarting", "failed", "gone"]


class Places:
    """Where the daemon keeps things: what ends with the host's run, and what does not."""

    def __init__(self, run_dir: str, state_dir: str) -> None:
        self.run_dir = os.path.abspath(run_dir)
        self.state_dir = os.path.abspath(state_dir)

    def make(self) -> None:
        """Make the directories. Raises `OSError`."""
        os.makedirs(self.run_dir, mode=0o755, exist_ok=True)
        os.makedirs(self.state_dir, mode=0o700, exist_ok=True)
        os.makedirs(os.path.join(self.run_dir, "vms"), mode=0o711, exist_ok=True)
        os.makedirs(os.path.join(self.run_dir, "log"), mode=0o700, exist_ok=True)

    @property
    def store(self) -> str:
        """The daemon's own file."""
        return os.path.join(self.state_dir, "daemon.sqlite")

    def run_dir_of(self, record: VmRecord) -> str:
        """Return the run directory of a VM's file server, made for its user.

        Its parent is the daemon's, so that nobody can put another in its place. Raises `OSError`.
        """
        parent = os.path.join(self.run_dir, "vms", str(record.identity.uid))
        os.makedirs(parent, mode=0o711, exist_ok=True)
        path = os.path.join(parent, record.wanted.id)
        try:
            os.mkdir(path, mode=0o700)
        except FileExistsError:
            pass
        else:
            if os.geteuid() == 0:
                os.chown(path, record.identity.uid, record.identity.gid)
        return path

    def log_of(self, record: VmRecord) -> str:
        """Return the log of a VM's file server: in a directory of the daemon's, which opens it."""
        return os.path.join(self.run_dir, "log", f"{record.identity.uid}-{record.wanted.id}.log")


class _Steady:
    """The compute system that the Manager sees: the file server of the day.

    It tells nobody of a file server's end, since another takes its place; a request meanwhile waits for that one.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    async def modify(self, request: schema.ModifySettingRequest) -> None:
        """Carry the request out. Raises `ComputeSystemError`."""
        server = await self._machine.server()
        await server.modify(request)


class Machine:
    """One VM. `changed` is called with what happened to its file server, in a word."""

    def __init__(self, record: VmRecord, places: Places, changed: Callable[[Machine, str, str | None], None]) -> None:
        self.record = record
        self._places = places
        self._changed = changed
        self._server: FileServer | None = None
        self._ready = asyncio.Event()
        self._restarting: asyncio.Task[None] | None = None
        self._ending = False
        self.state: State = "restarting"
        self.error: str | None = None
        self.restarts = 0
        self.manager = Manager(UtilityVM(_Steady(self)), no_writable_file_shares=record.wanted.read_only)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the file server listens; nothing while there is none."""
        return self._server.addresses if self._server is not None else ()

    async def server(self) -> FileServer:
        """Return the file server, when one is being started again after a while.

        Raises `ComputeSystemError` when there is none after all: nothing was asked of it then.
        """
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._ready.wait()
        except TimeoutError as error:
            raise ComputeSystemError(self._why_not()) from error
        if self._server is None:
            raise ComputeSystemError(self._why_not())
        return self._server

    def _why_not(self) -> str:
        return f"VM {self.record.wanted.id} has no file server: {self.error or 'it is being started again'}"

    # Starting, and starting again

    async def start(self) -> None:
        """Start the file server of a new VM. Raises what `FileServer.start` does, and leaves nothing then."""
        self._take(await self._start_server())

    async def adopt(self) -> None:
        """Find the file server that an earlier daemon left, or start another; a VM that has neither is "failed"."""
        try:
            server = await FileServer.connect(self._places.run_dir_of(self.record))
        except (UvmshareError, OSError):
            await self._start_again()
        else:
            self._take(server)

    async def _start_server(self) -> FileServer:
        wanted = self.record.wanted
        limits = Limits.of(wanted.limits)
        try:
            return await FileServer.start(
                wanted.listen,
                security_model=wanted.security_model,
                allow_remote=wanted.allow_remote,
                run_dir=self._places.run_dir_of(self.record),
                log=self._places.log_of(self.record),
                socket_mode=int(wanted.socket_mode, 8),
                limits=limits,
                run_as=self._run_as(),
            )
        except OSError as error:
            msg = f"the file server of VM {wanted.id} cannot be started: {error}"
            raise FileServerError(msg) from error

    def _run_as(self) -> tuple[int, int, tuple[int, ...]] | None:
        """Return whose rights the file server has: the VM's user's, unless the daemon has no others to give."""
        user = self.record.identity
        return (user.uid, user.gid, user.groups) if os.geteuid() == 0 and not user.is_root else None

    def _take(self, server: FileServer) -> None:
        self._server = server
        self.state, self.error = "running", None
        server.on_exit(self._note_exit)
        self._ready.set()

    def _note_exit(self, reason: ComputeSystemGone) -> None:
        """Start another: the shares are the Manager's to know, and the new one gets them all."""
        if self._ending:
            return
        self._server = None
        self._ready.clear()
        self.state, self.error = "restarting", str(reason)
        self._changed(self, "restarting", self.error)
        self._restarting = asyncio.get_running_loop().create_task(self._keep_starting())

    async def _keep_starting(self) -> None:
        delay = _RETRY_FIRST
        while not await self._start_again():
            await asyncio.sleep(delay)
            delay = min(2 * delay, _RETRY_LONGEST)

    async def _start_again(self) -> bool:
        """Start a file server and give it the shares that the VM had; False when that failed."""
        try:
            server = await self._start_server()
            utility_vm = UtilityVM(server)
            for share in self.manager.shares():
                if share.state is ShareState.ADDED:
                    await self._put_back(utility_vm, Plan9Share(share.name, share.options))
        except UvmshareError as error:
            self.state, self.error = "failed", str(error)
            self._changed(self, "failed", self.error)
            return False
        self.restarts += 1
        self._take(server)
        self._changed(self, "restarted", None)
        return True

    async def _put_back(self, utility_vm: UtilityVM, share: Plan9Share) -> None:
        try:
            await utility_vm.add_plan9(share)
        except ShareExists:
            pass
        except ComputeSystemError as error:
            # The directory may be gone. The others go on, and whoever holds this one sees the reason in the log.
            structlog.get_logger("uvmshare.daemon").warning(
                "share not put back", vm=self.record.wanted.id, share=share.name, reason=str(error)
            )

    # Ending

    async def detach(self) -> None:
        """Let go of the file server; it and its guests go on, for the next daemon to find."""
        await self._stop_restarting()
        if self._server is not None:
            await self._server.detach()

    async def remove(self) -> None:
        """Take every share out and end the file server. Guests get EIO."""
        await self._stop_restarting()
        if self._server is not None:
            await self._server.aclose()
            self._server = None
        self.state, self.error = "gone", "it was removed"
        self._ready.set()  # whoever waits is told

    async def _stop_restarting(self) -> None:
        self._ending = True
        if self._restarting is not None:
            self._restarting.cancel()
            await asyncio.wait({self._restarting})
