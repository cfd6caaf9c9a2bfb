"""The supervisor of one VM's file server: one process, one loop, one thread.

What lives here: how it starts and ends, and what each request on the control channel does. What must
not: a guest's requests after its attach (`mount.serving`).

It is single-threaded so that forking is safe. It holds the listening sockets and the shares, does the
handshake of each connection itself (`connections`), and forks one mount process for each good attach
(`shares`). Taking a share away means: no new attach, its mount processes ended (asked, and killed a
moment later) and reaped, then the answer.

Run as ``python -m uvmshare.fileserver FD``, where FD is the control channel of the process
that starts it. Reasons for ended connections go to standard error, a line each::

    uvmshare: connection 7 (unix:/run/vm1.9p), share 0: a message of 3 bytes: ...; connection closed
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from uvmshare import address, peers
from uvmshare.errors import FileServerError, InvalidDocument, UvmshareError
from uvmshare.fileserver import control, syscalls
from uvmshare.fileserver.fence import Fence
from uvmshare.fileserver.log import Log
from uvmshare.fileserver.rundir.directory import RunDirectory
from uvmshare.fileserver.rundir.sharetable import ShareTable
from uvmshare.fileserver.supervisor.connections import Connections
from uvmshare.fileserver.supervisor.controllers import Controllers
from uvmshare.fileserver.supervisor.listener import Listener
from uvmshare.fileserver.supervisor.loop import Listening, Loop
from uvmshare.fileserver.supervisor.opening import Opener
from uvmshare.fileserver.supervisor.shares import ServedShares
from uvmshare.fileserver.supervisor.takeover import Inheritance, inherit
from uvmshare.fileserver.supervisor.together import bring_together
from uvmshare.hcs import schema
from uvmshare.hostfiles import open_log
from uvmshare.printable import safe_stderr

if TYPE_CHECKING:
    from uvmshare.fileserver.supervisor.controllers import Controller
    from uvmshare.fileserver.supervisor.shares import MountProcesses

__all__ = ["Supervisor", "main"]

_log: Final = Log()


class _Server:
    """What there is once the supervisor was configured."""

    def __init__(self, loop: Loop, configuration: control.Configuration, processes: MountProcesses) -> None:
        """Listen, and take over what is in the run directory. Raises `UvmshareError`; all is as it was then."""
        self.configuration = configuration
        self._processes = processes
        if configuration.log is not None:
            _log.bound(_log_to(configuration.log))
        else:
            _log.bound(configuration.log_reader)
        self.listeners: list[Listener] = []
        self.control_listener: Listener | None = None
        self.run_dir = None if configuration.run_dir is None else RunDirectory(configuration.run_dir)
        inheritance = Inheritance()
        opener = Opener(loop, _log)
        try:
            if self.run_dir is not None:
                inheritance = inherit(self.run_dir, configuration, opener)
            fence = self._fence(inheritance) if configuration.fenced else None
            self._listen()
            self.shares = ServedShares(
                loop, _log, configuration, self.run_dir, opener, fence=fence, serve=processes.serve
            )
            if self.run_dir is not None:
                entries = [entry for entry, *_ in inheritance.shares]
                try:
                    share_table = ShareTable(self.run_dir.table, self._bound(), entries)
                except OSError as error:
                    why = error.strerror or error
                    msg = f"cannot write the table of shares {self.run_dir.table!r}: {why}: make room there"
                    raise FileServerError(msg) from error
                self.shares.write_to(share_table, inheritance.last_serial)
        except BaseException:
            inheritance.close()
            for listener in self.all_listeners():
                listener.close()
            if self.run_dir is not None:
                self.run_dir.release()
            raise
        for entry, export, directory, mounts in inheritance.shares:
            self.shares.take_over(entry, export, directory, mounts)
        for found in inheritance.left:
            self.shares.leave_behind(found)
        self.lost = tuple(inheritance.lost)
        self.connections = Connections(loop, _log, configuration.limits, self.shares, inheritance.last_connection)
        if inheritance.found:
            _log(
                f"took over {len(inheritance.shares)} shares and {self.shares.mount_count} mounts of a supervisor that "
                "died; connections that had not attached were cut"
            )
        for lost in self.lost:
            _log(f"share {lost.name} ({lost.path}) is lost: {lost.reason}")

    def _fence(self, inheritance: Inheritance) -> Fence:
        fence = Fence(None if self.run_dir is None else self.run_dir.fence)
        if not inheritance.shares:  # what is there may be of another boot, whose clock was another
            fence.move(0)
        return fence

    def _listen(self) -> None:
        configuration = self.configuration
        for text in configuration.listen:
            self.listeners.append(
                Listener(
                    address.parse(text),
                    allow_remote=configuration.allow_remote,
                    socket_mode=configuration.socket_mode,
                    users=peers.allowed(configuration.allow_uids, os.geteuid()),
                )
            )
        if self.run_dir is not None:
            # Its lock is the run directory's.
            self.control_listener = Listener(address.Address("unix", path=self.run_dir.control), lock=False)

    def _bound(self) -> control.Configuration:
        """Return the configuration with the addresses that were really bound, which a successor needs again."""
        return msgspec.structs.replace(self.configuration, listen=tuple(str(each.address) for each in self.listeners))

    def all_listeners(self) -> list[Listener]:
        """Return those of guests and of the control socket."""
        return self.listeners if self.control_listener is None else [*self.listeners, self.control_listener]

    def status(self, number: int, *, counters: bool = False) -> control.Reply:
        """Tell what there is, in the reply to the request of that number; with `counters`, what each mount has done."""
        return control.Reply(
            id=number,
            pid=os.getpid(),
            addresses=tuple(str(listener.address) for listener in self.listeners),
            shares=tuple(
                control.ShareStatus(
                    share.export.name,
                    share.export.path,
                    share.export.read_only,
                    tuple(
                        control.MountStatus(
                            each.pid, each.connection, each.peer, self.shares.counted(each) if counters else None
                        )
                        for each in share.mounts.values()
                    ),
                    document=share.document,
                    leaving=bool(share.removals),
                    directory=share.directory,
                    hide=share.export.hide,
                    map_owner=None if share.export.map_owner is None else str(share.export.map_owner),
                )
                for share in self.shares
            ),
            half_open=len(self.connections),
            notes=self._processes.lacking(),
            lost=self.lost,
            can_hide=True,
            left=self.shares.left,
        )


class Supervisor:
    """The state of one file server. `run` is its loop.

    Without a `run_dir` it ends with the process that started it; with one it goes on, and whoever can
    open ``RUN_DIR/control.sock`` can take over.
    """

    def __init__(self, starter: socket.socket, processes: MountProcesses) -> None:
        self._processes = processes
        self._loop = Loop()
        self._listening = Listening(self._loop, _log, self._relieve)
        self._controllers = Controllers(self._loop, _log, self._obey, self._on_starter_left)
        self._controllers.add(starter, is_starter=True)
        self._server: _Server | None = None
        self._goodbyes: deque[tuple[Controller, int]] = deque()
        self._ending = False
        woken, waking = socket.socketpair()
        for end in (woken, waking):
            end.settimeout(0)
        self._woken, self._waking = woken, waking
        self._loop.watch(woken, self._on_signal)

    # The loop

    def run(self) -> None:
        """Serve until told to end. Every mount process has been reaped then."""
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        bring_together()
        # Objects made so far are the same in every mount process: keep the collector from touching
        # their pages after a fork.
        gc.freeze()
        while not self._ending or (self._server is not None and self._server.shares.mount_count):
            self._loop.turn(self._time_left())
            _log.cut()
            now = time.monotonic()
            self._listening.expire(now)
            if self._server is not None:
                self._server.connections.expire(now)
                self._server.shares.expire(now)
        self._finish()

    def _time_left(self) -> float | None:
        deadlines: list[float | None] = [self._listening.deadline]
        if self._server is not None:
            deadlines += [self._server.connections.deadline, self._server.shares.deadline]
        first = min((each for each in deadlines if each is not None), default=None)
        return None if first is None else max(0.0, first - time.monotonic())

    def _on_signal(self, _: int) -> None:
        with suppress(BlockingIOError):
            while numbers := self._woken.recv(64):
                if any(number in (signal.SIGTERM, signal.SIGINT) for number in numbers):
                    self._end()

    def _relieve(self) -> None:
        if self._server is not None:
            self._server.connections.relieve()

    def _on_starter_left(self) -> None:
        if self._server is None or self._server.run_dir is None:
            self._end()

    def _end(self) -> None:
        """Begin to end: no new connections, every mount ended."""
        if self._ending:
            return
        self._ending = True
        if self._server is not None:
            self._server.shares.end()
            for listener in self._server.listeners:
                self._listening.close(listener)
            self._server.connections.close()

    def _finish(self) -> None:
        server = self._server
        if server is not None:
            if server.control_listener is not None:
                self._listening.close(server.control_listener)
            server.shares.close()
            if server.run_dir is not None:
                server.run_dir.clear()
        left = () if server is None else server.shares.left
        for controller, number in self._goodbyes:
            self._controllers.answer(controller, control.Reply(id=number, left=left))
        self._controllers.close()

    # Requests

    def _obey(self, controller: Controller, request: control.Request) -> None:
        try:
            match request:
                case control.Configuration():
                    server = self._start(request)
                    self._controllers.answer(controller, server.status(request.id))
                case control.Modify():
                    self._modify(controller, request)
                case control.Status():
                    self._require_server().shares.hear_all()
                    status = self._require_server().status(request.id, counters=request.counters)
                    self._controllers.answer(controller, status)
                case control.ServeUntil():
                    self._require_server().shares.serve_until(request.until)
                    self._controllers.answer(controller, control.Reply(id=request.id))
                case control.Shutdown():
                    self._goodbyes.append((controller, request.id))
                    self._end()
        except UvmshareError as error:
            self._controllers.answer(controller, control.Reply(id=request.id, failure=control.failure_of(error)))

    def _require_server(self) -> _Server:
        if self._server is None or self._ending:
            msg = "this file server does not serve: it is being configured or ended"
            raise FileServerError(msg)
        return self._server

    def _start(self, configuration: control.Configuration) -> _Server:
        if self._server is not None:
            msg = "this file server is configured already"
            raise FileServerError(msg)
        if configuration.checked().security_model == "passthrough" and os.geteuid() != 0:
            msg = "the security model passthrough needs root: run as root, or choose mapped-xattr"
            raise FileServerError(msg)
        self._server = server = _Server(self._loop, configuration, self._processes)
        for listener in server.listeners:
            self._listening.open(listener, server.connections.welcome)
        if server.control_listener is not None:
            self._listening.open(server.control_listener, lambda connection, _: self._controllers.add(connection))
        for note in self._processes.lacking():
            _log(f"this host has {note}")
        return server

    def _modify(self, controller: Controller, request: control.Modify) -> None:
        document = schema.decode(bytes(request.document))
        shares = self._require_server().shares
        if document.resource_path != schema.PLAN9_SHARES:
            msg = f"ResourcePath {document.resource_path!r}: this device has {schema.PLAN9_SHARES!r} alone"
            raise InvalidDocument(msg)
        if document.guest_request is not None:
            msg = "GuestRequest: a file server reaches no guest; mounting there is a separate part"
            raise InvalidDocument(msg)
        if document.settings is None:
            msg = "Settings: a Plan9Share is missing"
            raise InvalidDocument(msg)

        def done(left: tuple[control.Left, ...]) -> None:
            self._controllers.answer(controller, control.Reply(id=request.id, left=left))

        match document.request_type:
            case schema.RequestType.ADD:
                beside = schema.Beside(directory=request.directory, hide=request.hide, map_owner=request.map_owner)
                directory = shares.add(document.settings, beside)
                self._controllers.answer(controller, control.Reply(id=request.id, directory=directory))
            case schema.RequestType.REMOVE:
                shares.remove(document.settings.access_name, done)
            case None:
                msg = "RequestType is missing; use Add or Remove"
                raise InvalidDocument(msg)


def _log_to(path: str) -> int | None:
    """Make a file standard error, for this process and its mounts; return a descriptor that reads it.

    Raises `FileServerError`.

    Here, not where the supervisor was started: that one may have been root's, and the directory another user's.
    """
    try:
        descriptor, reader = open_log(path)
    except OSError as error:
        msg = f"cannot log to {path}: {error.strerror}: give another file as its log"
        raise FileServerError(msg) from error
    os.dup2(descriptor, 2)
    os.close(descriptor)
    return reader


def _become(user: int, group: int, groups: list[int]) -> None:
    """Be that user and nobody else from now on, with no way back (setresuid(2))."""
    os.chdir("/")
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def main(arguments: list[str], processes: MountProcesses) -> int:
    """Run a supervisor on the control channel whose descriptor is the first argument.

    The other three, if there are any, are the uid, gid and supplementary groups to run as. ``--enter=FD`` before them
    is the ``cgroup.procs`` of the control group to run in, which this process enters before it makes another.
    """
    if arguments[0].startswith("--enter="):
        entrance = int(arguments.pop(0).removeprefix("--enter="))
        os.write(entrance, b"0")
        os.close(entrance)
    if len(arguments) == 4:
        user, group, groups = arguments[1:]
        _become(int(user), int(group), [int(each) for each in groups.split(",") if each])
    safe_stderr()
    syscalls.set_name("uvmshare")
    # A socket and a pidfd for each mount: the usual 1024 would be less than the limits allow.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Supervisor(socket.socket(fileno=int(arguments[0])), processes).run()
    return 0
