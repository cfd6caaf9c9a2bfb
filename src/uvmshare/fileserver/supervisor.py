"""The supervisor of one VM's file server: one process, one loop, one thread.

What lives here: the loop, the table of shares and their mount processes, and what each request on
the control channel does. What must not: a guest's requests after its attach (`session`, in a mount
process).

It is single-threaded so that forking is safe. It holds the listening sockets and the shares, does the
handshake of each connection itself, with a deadline and a limit on those half open, and forks one
mount process for each good attach. Taking a share away means: no new attach, its mount processes
killed and reaped, then the answer.

Run as ``python -m uvmshare.fileserver.supervisor FD``, where FD is the control channel of the process
that starts it. Reasons for ended connections go to standard error, a line each::

    uvmshare: connection 7 (unix:/run/vm1.9p), share 0: a message of 3 bytes: ...; connection closed
"""

from __future__ import annotations

import errno
import gc
import os
import resource
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from uvmshare import address
from uvmshare.errors import FileServerError, InvalidDocument, ShareExists, ShareNotFound, UvmshareError
from uvmshare.fileserver import confinement, control, mount, syscalls
from uvmshare.fileserver.export import SECURITY_MODELS, Export
from uvmshare.fileserver.handshake import Handshake
from uvmshare.fileserver.listener import Listener
from uvmshare.fileserver.log import Log
from uvmshare.hcs import schema
from uvmshare.ninep import messages

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.fileserver.handshake import Attach

__all__ = ["Supervisor", "main"]

_RECEIVE: Final = 64 * 1024
_CONTROL_SOCKET: Final = "control.sock"
_NOTHING_LEFT: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What accept(2) says when the host has no descriptors or memory for one more connection."""


@dataclass(slots=True)
class _Mount:
    """One mount process. `pidfd` is readable once it has ended."""

    pid: int
    pidfd: int
    share: _Share
    connection: int
    peer: str


@dataclass(slots=True, eq=False)
class _Share:
    """One share and its mounts. `removals` are the requests that wait for its end; with one, it takes no attach."""

    export: Export
    mounts: dict[int, _Mount] = field(default_factory=dict)
    removals: list[tuple[_Controller, int]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _HalfOpen:
    """A connection that has not attached yet."""

    number: int
    socket: socket.socket
    peer: str
    deadline: float
    handshake: Handshake


@dataclass(slots=True, eq=False)
class _Controller:
    """One peer on the control channel."""

    socket: socket.socket
    incoming: bytearray = field(default_factory=bytearray)
    outgoing: bytearray = field(default_factory=bytearray)
    is_starter: bool = False


_log: Final = Log()


class Supervisor:
    """The state of one file server. `run` is its loop.

    Without a `run_dir` it ends with the process that started it; with one it goes on, and whoever can
    open ``RUN_DIR/control.sock`` can take over.
    """

    def __init__(self, starter: socket.socket) -> None:
        self._selector = selectors.DefaultSelector()
        self._configuration: control.Configuration | None = None
        self._listeners: list[Listener] = []
        self._deaf = False
        self._control_listener: Listener | None = None
        self._half_open: dict[int, _HalfOpen] = {}  # oldest first, because dicts keep their order
        self._shares: dict[str, _Share] = {}
        self._controllers: set[_Controller] = set()
        self._connections = 0
        self._goodbyes: deque[tuple[_Controller, int]] = deque()
        self._ending = False
        lifeline, self._life = os.pipe2(os.O_CLOEXEC)
        self._lifeline = lifeline
        self._add_controller(starter, is_starter=True)
        woken, waking = socket.socketpair()
        for end in (woken, waking):
            end.settimeout(0)
        self._woken, self._waking = woken, waking
        self._watch(woken, selectors.EVENT_READ, self._on_signal)

    # The loop

    def run(self) -> None:
        """Serve until told to end. Every mount process has been reaped then."""
        signal.set_wakeup_fd(self._waking.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        # Objects made so far are the same in every mount process: keep the collector from touching
        # their pages after a fork.
        gc.freeze()
        while not self._ending or self._mounts():
            for key, events in self._selector.select(self._time_left()):
                key.data(events)
            self._expire()
        self._finish()

    def _watch(self, what: int | socket.socket, events: int, callback: Callable[[int], None]) -> None:
        self._selector.register(what, events, callback)

    def _time_left(self) -> float | None:
        if self._deaf:
            return 1.0
        for first in self._half_open.values():
            return max(0.0, first.deadline - time.monotonic())
        return None

    def _expire(self) -> None:
        now = time.monotonic()
        for half in list(self._half_open.values()):
            if half.deadline > now:
                break
            self._drop(half, "no attach before the deadline")
        if self._deaf:
            self._listen_again()

    def _on_signal(self, _: int) -> None:
        with suppress(BlockingIOError):
            while numbers := self._woken.recv(64):
                if any(number in (signal.SIGTERM, signal.SIGINT) for number in numbers):
                    self._end()

    def _end(self) -> None:
        """Begin to end: no new connections, every mount killed."""
        if self._ending:
            return
        self._ending = True
        for listener in self._listeners:
            if not self._deaf:
                self._selector.unregister(listener.socket)
            listener.close()
        self._listeners = []
        self._deaf = False
        for half in list(self._half_open.values()):
            self._drop(half, None)
        for share in self._shares.values():
            self._kill_mounts(share)

    def _finish(self) -> None:
        for share in self._shares.values():
            share.export.close()
        if self._control_listener is not None:
            self._control_listener.close()
        for controller, number in self._goodbyes:
            self._answer(controller, control.Reply(id=number))
        for controller in self._controllers:
            controller.socket.settimeout(1.0)
            with suppress(OSError):
                controller.socket.sendall(controller.outgoing)
            controller.socket.close()

    # Connections before their attach

    def _on_connection(self, listener: Listener) -> None:
        if self._deaf or self._ending:
            return  # decided by what was ready beside it
        try:
            accepted = listener.accept()
        except OSError as error:
            if error.errno not in _NOTHING_LEFT:
                raise
            self._listen_no_more(error)
            return
        if accepted is None:
            return
        assert self._configuration is not None
        limits = self._configuration.limits
        if len(self._half_open) >= limits.half_open:
            self._drop(next(iter(self._half_open.values())), f"more than {limits.half_open} connections wait to attach")
        connection, peer = accepted
        self._connections += 1
        if len(self._half_open) + self._mounts() >= limits.connections:
            connection.close()
            _log(f"connection {self._connections} ({peer}): there are {limits.connections} already; connection closed")
            return
        half = _HalfOpen(
            self._connections,
            connection,
            peer,
            time.monotonic() + limits.handshake_seconds,
            Handshake(limits.msize),
        )
        self._half_open[half.number] = half
        self._watch(connection, selectors.EVENT_READ, lambda _: self._on_handshake(half))

    def _listen_no_more(self, error: OSError) -> None:
        """Stop accepting for a second: a listening socket that cannot be served would spin the loop."""
        _log(f"cannot accept connections: {error.strerror}; trying again in a second")
        if self._half_open:
            self._drop(next(iter(self._half_open.values())), "the host has no descriptors left")
        for listener in self._listeners:
            self._selector.unregister(listener.socket)
        if self._control_listener is not None:
            self._selector.unregister(self._control_listener.socket)
        self._deaf = True

    def _listen_again(self) -> None:
        self._deaf = False
        for listener in self._listeners:
            self._watch_listener(listener)
        self._watch_controls()

    def _watch_controls(self) -> None:
        if (controls := self._control_listener) is not None:
            self._watch(controls.socket, selectors.EVENT_READ, lambda _: self._on_controller(controls))

    def _watch_listener(self, listener: Listener) -> None:
        self._watch(listener.socket, selectors.EVENT_READ, lambda _: self._on_connection(listener))

    def _drop(self, half: _HalfOpen, reason: str | None) -> None:
        """Forget a connection that has not attached, and close it."""
        del self._half_open[half.number]
        self._selector.unregister(half.socket)
        if reason is not None:
            _log(f"connection {half.number} ({half.peer}): {reason}; connection closed")
        half.socket.close()

    def _on_handshake(self, half: _HalfOpen) -> None:
        if half.number not in self._half_open:
            return  # dropped by what was ready beside it
        try:
            data = half.socket.recv(_RECEIVE)
            if not data:
                broken_off = half.handshake.is_inside_message
                self._drop(half, "the connection ended inside a message" if broken_off else None)
                return
            while True:
                replies, attach = half.handshake.feed(data)
                if attach is None:
                    self._say(half, replies)
                    return
                refusal = self._admit(half, attach)
                if refusal is None:
                    self._say(half, replies)
                    self._begin_mount(half, attach)
                    return
                self._say(half, replies + messages.Rlerror(refusal).encode(attach.tag))
                data = attach.rest
        except BlockingIOError:
            return
        except (UvmshareError, OSError) as error:
            self._drop(half, str(error))

    @staticmethod
    def _say(half: _HalfOpen, replies: bytes) -> None:
        """Send the few bytes of a handshake: a peer whose socket has no room for them is not a guest."""
        if replies and half.socket.send(replies) != len(replies):
            raise OSError(errno.EPIPE, "the guest does not take the replies of its handshake")

    def _admit(self, half: _HalfOpen, attach: Attach) -> int | None:
        """Say why an attach is refused, as an errno; None when it is good."""
        assert self._configuration is not None
        aname = attach.message.aname.decode(errors="surrogateescape")
        share = self._shares.get(aname)
        if share is None or share.removals:
            _log(f"connection {half.number} ({half.peer}): there is no share {aname[:64]!r}; attach refused")
            return errno.ENOENT
        if self._mounts() >= self._configuration.limits.mounts:
            limit = self._configuration.limits.mounts
            _log(f"connection {half.number} ({half.peer}): there are {limit} mounts already; attach refused")
            return errno.EUSERS
        return None

    # Mount processes

    def _mounts(self) -> int:
        return sum(len(share.mounts) for share in self._shares.values())

    def _begin_mount(self, half: _HalfOpen, attach: Attach) -> None:
        assert self._configuration is not None
        share = self._shares[attach.message.aname.decode(errors="surrogateescape")]
        pid = os.fork()
        if pid == 0:
            who = f"connection {half.number} ({half.peer}), share {share.export.name}"
            mount.serve(
                half.socket,
                share.export,
                attach,
                self._configuration.limits,
                lifeline=self._lifeline,
                log=lambda reason: _log(f"{who}: {reason}"),
            )
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            # A mount process that cannot be watched would outlive its share.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        share.mounts[pid] = started = _Mount(pid, pidfd, share, half.number, half.peer)
        self._watch(pidfd, selectors.EVENT_READ, lambda _: self._on_mount_end(started))
        self._drop(half, None)

    def _on_mount_end(self, ended: _Mount) -> None:
        share = ended.share
        self._selector.unregister(ended.pidfd)
        os.close(ended.pidfd)
        _, status = os.waitpid(ended.pid, 0)
        del share.mounts[ended.pid]
        expected = self._ending or share.removals
        if os.WIFSIGNALED(status) and not expected:
            _log(
                f"connection {ended.connection} ({ended.peer}), share {share.export.name}: "
                f"its mount process {ended.pid} was killed by signal {os.WTERMSIG(status)}"
            )
        if share.removals:
            self._settle_removal(share)

    @staticmethod
    def _kill_mounts(share: _Share) -> None:
        """Kill, not ask: what the guest wrote is with the host's kernel, and a reply lost is a connection cut."""
        for running in share.mounts.values():
            signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)

    # The control channel

    def _add_controller(self, connection: socket.socket, *, is_starter: bool) -> None:
        connection.settimeout(0)
        controller = _Controller(connection, is_starter=is_starter)
        self._controllers.add(controller)
        self._watch(connection, selectors.EVENT_READ, lambda events: self._on_control(controller, events))

    def _on_controller(self, listener: Listener) -> None:
        if self._deaf:
            return  # decided by what was ready beside it
        try:
            accepted = listener.accept()
        except OSError as error:
            if error.errno not in _NOTHING_LEFT:
                raise
            self._listen_no_more(error)
            return
        if accepted is not None:
            self._add_controller(accepted[0], is_starter=False)

    def _lose_controller(self, controller: _Controller) -> None:
        self._controllers.discard(controller)
        self._selector.unregister(controller.socket)
        controller.socket.close()
        outlives = self._configuration is not None and self._configuration.run_dir is not None
        if controller.is_starter and not outlives:
            self._end()

    def _on_control(self, controller: _Controller, events: int) -> None:
        if controller not in self._controllers:
            return
        try:
            if events & selectors.EVENT_WRITE:
                self._send_rest(controller)
            if events & selectors.EVENT_READ:
                data = controller.socket.recv(_RECEIVE)
                if not data:
                    self._lose_controller(controller)
                    return
                controller.incoming += data
                for body in control.split(controller.incoming):
                    self._obey(controller, control.decode_request(body))
        except BlockingIOError:
            return
        except (OSError, ValueError, RecursionError, msgspec.DecodeError) as error:  # RecursionError: JSON too deep
            _log(f"control channel: {error}; channel closed")
            self._lose_controller(controller)

    def _answer(self, controller: _Controller, reply: control.Reply) -> None:
        if controller in self._controllers:
            controller.outgoing += control.encode(reply)
            with suppress(OSError):  # its end is seen by reading
                self._send_rest(controller)
            if len(controller.outgoing) > control.MAX_MESSAGE:
                _log("control channel: its peer takes no replies; channel closed")
                self._lose_controller(controller)

    def _send_rest(self, controller: _Controller) -> None:
        with suppress(BlockingIOError):
            while controller.outgoing:
                del controller.outgoing[: controller.socket.send(controller.outgoing)]
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if controller.outgoing else 0)
        key = self._selector.get_key(controller.socket)
        if key.events != wanted:
            self._selector.modify(controller.socket, wanted, key.data)

    def _obey(self, controller: _Controller, request: control.Request) -> None:
        try:
            match request:
                case control.Configuration():
                    self._start(request)
                    self._answer(controller, self._status(request.id))
                case control.Modify():
                    self._modify(controller, request)
                case control.Status():
                    self._answer(controller, self._status(request.id))
                case control.Shutdown():
                    self._goodbyes.append((controller, request.id))
                    self._end()
        except UvmshareError as error:
            self._answer(controller, control.Reply(id=request.id, failure=control.failure_of(error)))

    def _start(self, configuration: control.Configuration) -> None:
        if self._configuration is not None:
            msg = "this file server is configured already"
            raise FileServerError(msg)
        if configuration.security_model not in SECURITY_MODELS:
            msg = (
                f"there is no security model {configuration.security_model!r}; use one of {', '.join(SECURITY_MODELS)}"
            )
            raise FileServerError(msg)
        if configuration.security_model == "passthrough" and os.geteuid() != 0:
            msg = "the security model passthrough needs root: run as root, or choose mapped-xattr"
            raise FileServerError(msg)
        listeners: list[Listener] = []
        try:
            if configuration.run_dir is not None:
                path = os.path.join(configuration.run_dir, _CONTROL_SOCKET)
                self._control_listener = Listener(address.Address("unix", path=path))
            for text in configuration.listen:
                listeners.append(  # noqa: PERF401  what was bound so far is closed when a later one fails
                    Listener(
                        address.parse(text),
                        allow_remote=configuration.allow_remote,
                        socket_mode=configuration.socket_mode,
                    )
                )
        except BaseException:
            for listener in listeners:
                listener.close()
            if self._control_listener is not None:
                self._control_listener.close()
                self._control_listener = None
            raise
        self._watch_controls()
        self._configuration = configuration
        self._listeners = listeners
        for listener in listeners:
            self._watch_listener(listener)
        for note in confinement.missing():
            _log(f"this host has {note}")

    def _status(self, number: int) -> control.Reply:
        return control.Reply(
            id=number,
            pid=os.getpid(),
            addresses=tuple(str(listener.address) for listener in self._listeners),
            shares=tuple(
                control.Share(
                    name,
                    share.export.path,
                    share.export.read_only,
                    tuple(control.Mount(each.pid, each.connection, each.peer) for each in share.mounts.values()),
                )
                for name, share in self._shares.items()
            ),
            half_open=len(self._half_open),
            notes=confinement.missing(),
        )

    # Modify documents

    def _modify(self, controller: _Controller, request: control.Modify) -> None:
        document = schema.decode(bytes(request.document))
        if self._configuration is None or self._ending:
            msg = "this file server does not serve: it is being configured or ended"
            raise FileServerError(msg)
        if document.resource_path != schema.PLAN9_SHARES:
            msg = f"ResourcePath {document.resource_path!r}: this device has {schema.PLAN9_SHARES!r} alone"
            raise InvalidDocument(msg)
        if document.guest_request is not None:
            msg = "GuestRequest: a file server reaches no guest; mounting there is a separate part"
            raise InvalidDocument(msg)
        if document.settings is None:
            msg = "Settings: a Plan9Share is missing"
            raise InvalidDocument(msg)
        match document.request_type:
            case schema.RequestType.ADD:
                self._add(document.settings, self._configuration.security_model)
                self._answer(controller, control.Reply(id=request.id))
            case schema.RequestType.REMOVE:
                self._remove(document.settings, controller, request.id)
            case None:
                msg = "RequestType is missing; use Add or Remove"
                raise InvalidDocument(msg)

    def _add(self, settings: schema.Plan9Share, security_model: str) -> None:
        if settings.access_name in self._shares:
            msg = f"there is a share {settings.access_name!r} already"
            raise ShareExists(msg)
        export = Export.open(settings, security_model)
        self._shares[export.name] = _Share(export)

    def _remove(self, settings: schema.Plan9Share, controller: _Controller, number: int) -> None:
        share = self._shares.get(settings.access_name)
        if share is None:
            msg = f"there is no share {settings.access_name!r}"
            raise ShareNotFound(msg)
        share.removals.append((controller, number))
        self._kill_mounts(share)
        self._settle_removal(share)

    def _settle_removal(self, share: _Share) -> None:
        """Answer those who wait for the end of a share, once its last mount process has been reaped."""
        if share.mounts:
            return
        del self._shares[share.export.name]
        share.export.close()
        for controller, number in share.removals:
            self._answer(controller, control.Reply(id=number))


def _become(user: int, group: int, groups: list[int]) -> None:
    """Be that user and nobody else from now on, with no way back (setresuid(2))."""
    os.chdir("/")
    os.setgroups(groups)
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)


def main(arguments: list[str]) -> int:
    """Run a supervisor on the control channel whose descriptor is the first argument.

    The other three, if there are any, are the uid, gid and supplementary groups to run as.
    """
    if len(arguments) == 4:
        user, group, groups = arguments[1:]
        _become(int(user), int(group), [int(each) for each in groups.split(",") if each])
    syscalls.set_name("uvmshare")
    # A socket and a pidfd for each mount: the usual 1024 would be less than the limits allow.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    Supervisor(socket.socket(fileno=int(arguments[0]))).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
