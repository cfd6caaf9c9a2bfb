"""The daemon as a process: its socket, uvicorn on it, and the beginning and end of it all.

What lives here: `serve`. What must not: connections (`connections`), routes (`app`) or decisions (`service`).
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import resource
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
import uvicorn

from uvmshare import address
from uvmshare.daemon import systemd
from uvmshare.daemon.app import make_app
from uvmshare.daemon.connections import configured, cut_late, protocol
from uvmshare.daemon.groups import Groups, check_limits
from uvmshare.daemon.places import Places
from uvmshare.daemon.quotas import USER_SHARES, USER_VMS
from uvmshare.daemon.service import Service
from uvmshare.daemon.store import DaemonStore
from uvmshare.errors import DaemonError, UvmshareError
from uvmshare.hostfiles import bind_socket
from uvmshare.linux.notify import notify
from uvmshare.sqlite_journal import SqliteJournal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from types import FrameType

    from uvmshare.hostfiles import SocketFile

__all__ = ["Beside", "Daemon", "Settings", "SignalledServer", "default_run_dir", "default_state_dir", "serve"]

_BACKLOG: Final = 1024

_GRACE: Final = 20
"""Seconds that requests under way may take when the daemon ends; the next one settles what is not done then."""


class Settings:
    """Where the daemon listens and keeps things, and how many VMs and shares each user but root may have."""

    def __init__(
        self,
        *,
        socket_path: str | None = None,
        socket_mode: int = 0o660,
        socket_group: str | None = None,
        run_dir: str | None = None,
        state_dir: str | None = None,
        user_vms: int = USER_VMS,
        user_shares: int = USER_SHARES,
        cgroup: str | None = "auto",
        vm_cgroup: Mapping[str, str] | None = None,
    ) -> None:
        self.run_dir = default_run_dir() if run_dir is None else run_dir
        self.socket_path = os.path.join(self.run_dir, "uvmshare.sock") if socket_path is None else socket_path
        self.state_dir = default_state_dir() if state_dir is None else state_dir
        self.socket_mode = socket_mode
        self.socket_group = socket_group
        self.cgroup = cgroup
        self.vm_cgroup = dict(vm_cgroup or {})
        self.user_vms = user_vms
        self.user_shares = user_shares


def default_run_dir() -> str:
    """Return /run/uvmshare for root, and a directory of the user's own below XDG_RUNTIME_DIR."""
    if os.geteuid() == 0:
        return "/run/uvmshare"
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}", "uvmshare")


def default_state_dir() -> str:
    """Return /var/lib/uvmshare for root, and a directory of the user's own below XDG_STATE_HOME."""
    if os.geteuid() == 0:
        return os.environ.get("STATE_DIRECTORY") or "/var/lib/uvmshare"
    return os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "uvmshare")


class SignalledServer(uvicorn.Server):
    """uvicorn's server, which tells when it answers, and first of all when it ends."""

    def __init__(self, config: uvicorn.Config, *, started: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self.interrupted = False
        """Whether SIGINT ended it."""
        self._tell_started = started
        self._tell_ending = ending

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Have SIGINT and SIGTERM end it in order; uvicorn's own would raise them again, before the end is reached."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def end(number: int, frame: FrameType | None) -> None:
            self.interrupted = self.interrupted or number == signal.SIGINT
            self.handle_exit(number, frame)

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._tell_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End."""
        self._tell_ending()
        await super().shutdown(sockets)


class Daemon:
    """A daemon that answers; `stop` may be called from any thread."""

    def __init__(self, server: uvicorn.Server, service: Service, socket_path: str) -> None:
        self._server = server
        self.service = service
        self.socket_path = socket_path

    def stop(self) -> None:
        """Have it end in order, as SIGTERM does."""
        self._server.should_exit = True


class Beside(Protocol):
    """What runs beside a daemon, in its process."""

    def running(self, service: Service, store: DaemonStore) -> contextlib.AbstractAsyncContextManager[None]:
        """Run for the length of the block, while the daemon answers."""
        ...

    def routes(self) -> list[Any]:
        """Return what is answered on the daemon's socket beside its own."""
        ...


class _Nothing:
    """Nothing beside the daemon."""

    @contextlib.asynccontextmanager
    async def running(self, service: Service, store: DaemonStore) -> AsyncIterator[None]:
        """Run nothing."""
        del service, store
        yield

    def routes(self) -> list[Any]:
        """Return none."""
        return []


async def serve(
    settings: Settings,
    *,
    ready: Callable[[Daemon], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    beside: Beside | None = None,
) -> bool:
    """Be the daemon until SIGINT or SIGTERM; say whether it was SIGINT. VMs go on, for the next daemon to find.

    `ready` is called when requests are answered; `clock` is that of the leases; `beside` runs meanwhile. Raises
    `DaemonError` when it cannot be started, and `InvalidAddress` for a socket whose path is too long.
    """
    beside = beside or _Nothing()
    log = structlog.get_logger("uvmshare.daemon")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # the usual 1024 are fewer than several users may use
    places = Places(settings.run_dir, settings.state_dir)
    try:
        places.make()
    except OSError as error:
        msg = f"{error.filename}: {error.strerror}: give directories of your own with --run-dir and --state-dir"
        raise DaemonError(msg) from error
    places.groups = _groups(settings)
    places.group_limits = {} if places.groups is None else settings.vm_cgroup
    if settings.vm_cgroup and places.groups is None:
        log.warning("VMs have no limits", reason="there is no control group to divide: Delegate=yes and cgroup v2")
    with (
        DaemonStore(places.store) as store,
        SqliteJournal(places.journal) as journal,
        _listening(settings) as (listener, path),
    ):
        service = Service(
            places, store, journal, clock=clock, user_vms=settings.user_vms, user_shares=settings.user_shares
        )

        def started() -> None:
            notify("READY=1", f"STATUS=listening on {path}")
            log.info("daemon.started", socket=path, pid=os.getpid())
            ready(Daemon(server, service, path))

        def ending() -> None:
            notify("STOPPING=1")
            service.events.close()

        config = configured(
            make_app(service, log, beside.routes()),
            protocol(),
            grace=_GRACE,
            loop="asyncio",
            backlog=_BACKLOG,
            callback_notify=_sign_of_life,
            timeout_notify=max(1, int(systemd.watchdog_seconds() or 3600)),
        )
        server = SignalledServer(config, started=started, ending=ending)
        try:
            await service.start()
            async with beside.running(service, store):
                await server.serve(sockets=[listener])
        finally:
            await service.stop()
            await cut_late(server)
            log.info("daemon.stopped")
        return server.interrupted


async def _sign_of_life() -> None:
    notify("WATCHDOG=1")


def _groups(settings: Settings) -> Groups | None:
    """Return where VMs' control groups are: below the one that was named, or the daemon's own if that was delegated.

    Raises `DaemonError`.
    """
    try:
        check_limits(settings.vm_cgroup)
        if settings.cgroup in ("auto", "own"):
            return Groups.delegated(marked=settings.cgroup == "auto")
        return None if settings.cgroup is None else Groups.at(settings.cgroup)
    except UvmshareError as error:
        raise DaemonError(str(error)) from error


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[tuple[socket.socket, str]]:
    """Give the socket that systemd opened, or one that is opened here and goes away at the end."""
    given = systemd.inherited_sockets()
    if given:
        if len(given) > 1:
            msg = f"systemd gave {len(given)} sockets, and one is wanted: see the .socket unit"
            raise DaemonError(msg)
        with given[0]:
            yield given[0], given[0].getsockname()
        return
    listener, file = _bind(settings)
    try:
        with listener:
            yield listener, settings.socket_path
    finally:
        file.remove()


def _bind(settings: Settings) -> tuple[socket.socket, SocketFile]:
    path = address.parse(f"unix:{settings.socket_path}").path
    try:
        group = None if settings.socket_group is None else grp.getgrnam(settings.socket_group).gr_gid
    except KeyError as error:
        msg = f"there is no group {settings.socket_group!r}: make it (groupadd), or leave --socket-group out"
        raise DaemonError(msg) from error
    try:
        # The store is locked for this daemon alone; what may answer at the path is another one's.
        return bind_socket(path, settings.socket_mode, group=group)
    except OSError as error:
        msg = f"{path}: {error.strerror or error}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            msg = f"{path}: there is no directory {os.path.dirname(path)!r}: make it"
        if error.errno != errno.EADDRINUSE:  # which says what to do
            msg += ", or choose another socket with --socket"
        raise DaemonError(msg) from error
