"""The shares that are served: which attach is admitted to one, and the mount processes of each.

What lives here: `ServedShares`, the one owner of that table, and how mounts begin and end. What must not:
requests and their answers (`main`), what a guest does in a share (`mount.serving`).

With a run directory, each change is in its table of shares before anybody is told of it, and each mount process
in a file of its own before it is forked, so that a new supervisor finds all of it (`takeover`).
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, Protocol

from uvmshare.directory import may_be_same
from uvmshare.errors import FileServerError, HostPathReplaced, InvalidState, ShareExists, ShareNotFound
from uvmshare.fileserver import counters, leaving
from uvmshare.fileserver.control import Left
from uvmshare.fileserver.counters import Counters
from uvmshare.fileserver.export import Export
from uvmshare.fileserver.mounttable import file_system_of, may_hang
from uvmshare.fileserver.rundir.keepout import KeepOut
from uvmshare.fileserver.rundir.sharetable import TakenShare
from uvmshare.fileserver.supervisor import said
from uvmshare.fileserver.supervisor.opening import Opened, Wanted
from uvmshare.fileserver.supervisor.said import Said
from uvmshare.hcs.schema import Plan9Share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvmshare.fileserver.control import Configuration
    from uvmshare.fileserver.counters import Counted
    from uvmshare.fileserver.fence import Fence
    from uvmshare.fileserver.handshake import Attach
    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.log import Log
    from uvmshare.fileserver.rundir.directory import Found, RunDirectory
    from uvmshare.fileserver.rundir.sharetable import ShareTable
    from uvmshare.fileserver.supervisor.connections import HalfOpen
    from uvmshare.fileserver.supervisor.loop import Loop
    from uvmshare.fileserver.supervisor.opening import Opener
    from uvmshare.hcs.schema import Beside

__all__ = ["MountProcess", "MountProcesses", "RunMount", "ServedShare", "ServedShares"]


_MOST_WATCHING: Final = 16
"""Mounts of one VM that may have the kernel's queues of what happens to files. Its user may have 128 of each kind
(``max_user_instances``), and a guest that attaches as often as it can is to leave some to other VMs."""


class RunMount(Protocol):
    """What a mount process does from its fork to its end (`mount.process.serve`)."""

    def __call__(
        self,
        connection: socket.socket,
        export: Export,
        attach: Attach,
        limits: Limits,
        *,
        lifeline: int | None,
        own_file: int | None,
        telling: int,
        counters: Counters,
        fence: Fence | None,
        turn: int | None,
    ) -> NoReturn:
        """Serve a connection to its end, then exit."""


class MountProcesses(NamedTuple):
    """All that a supervisor knows of mount processes: what they do, and what this host lacks to confine them."""

    serve: RunMount
    lacking: Callable[[], tuple[str, ...]]


@dataclass(slots=True, eq=False)
class MountProcess:
    """One mount process. `pidfd` is readable once it has ended."""

    pid: int
    pidfd: int
    share: ServedShare
    connection: int
    peer: str
    connected: socket.socket | None = None
    """Its connection, to be cut when it does not end; None for one that was taken over."""
    kill_at: float | None = None
    """When it is killed, once it was asked to leave, and then when it is left behind; by the monotonic clock."""
    was_killed: bool = False
    left: Left | None = None
    """What is told of it once it is left behind."""
    counters: Counters | None = None
    """None for one that was taken over: its counters are in the run directory."""
    said: Said | None = None
    watches: bool = True
    """Whether it may have the kernel's queues of what happens to files; of one that was taken over nobody knows."""


@dataclass(slots=True, eq=False)
class ServedShare:
    """One share and its mounts. `removals` are to be called at its end; with one, it takes no attach.

    `serial` is a number that no other share of this server ever has, since names come again.
    """

    serial: int
    document: Plan9Share
    export: Export
    directory: str
    """Which one it is: `Export.root_id`."""
    mounts: dict[int, MountProcess] = field(default_factory=dict)
    removals: list[Callable[[tuple[Left, ...]], None]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    """Mounts that its removal leaves behind."""


class ServedShares:
    """The table of shares."""

    def __init__(
        self,
        loop: Loop,
        log: Log,
        configuration: Configuration,
        run_dir: RunDirectory | None,
        opener: Opener,
        *,
        fence: Fence | None = None,
        serve: RunMount,
    ) -> None:
        self._loop = loop
        self._serve = serve
        self._log = log
        self._opener = opener
        self._fence = fence
        self._was_cut = True
        """Whether all mounts were ended since the fence was moved on last."""
        self._limits = configuration.limits
        self._security_model = configuration.security_model
        self._links = configuration.links
        self._run_dir = run_dir
        self._keep_out = [
            KeepOut(path, "a directory in which uvmshare keeps its state") for path in configuration.keep_out
        ]
        self._share_table: ShareTable | None = None
        self._by_name: dict[str, ServedShare] = {}
        self._serial = 0
        self.mount_count = 0
        self._left: dict[int, MountProcess] = {}
        """By pid, those that were left behind and have not ended."""
        self._leaving: dict[int, MountProcess] = {}
        """By pid, those that were asked to leave, and those that were killed, until they have ended or are left."""
        self._ending = False
        self._turn = os.memfd_create("turn", os.MFD_CLOEXEC)
        """What one mount process at a time locks while it makes the kernel's queues (`mount.watched`)."""
        self._lifeline: int | None = None
        if run_dir is None:
            self._lifeline, self._life = os.pipe2(os.O_CLOEXEC)

    def __iter__(self) -> Iterator[ServedShare]:
        return iter(self._by_name.values())

    # Taking over

    def take_over(self, entry: TakenShare, export: Export, directory: str, mounts: list[Found]) -> None:
        """Go on with a share of a supervisor that died, whose root is that directory, and with its mounts."""
        share = ServedShare(entry.serial, entry.document, export, directory)
        self._by_name[export.name] = share
        for found in mounts:
            self._watch(
                MountProcess(found.pid, found.pidfd, share, found.connection, found.peer), said.reopen(found.pid)
            )

    def leave_behind(self, found: Found) -> None:
        """Take note of a mount process that a supervisor before this one, or its taking over, has left behind."""
        export = Export("?", "?", -1, read_only=True, only=None, security_model="none")
        stuck = MountProcess(
            found.pid, found.pidfd, ServedShare(0, Plan9Share(), export, ""), found.connection, found.peer
        )
        stuck.left = Left(found.pid, "?", "?", self._where(stuck))
        self._left[found.pid] = stuck
        self._loop.watch(found.pidfd, lambda _: self._on_end(stuck))
        self._log(
            f"mount process {found.pid} ({found.peer}) was killed and does not end: it waits for {stuck.left.where}"
        )

    def write_to(self, share_table: ShareTable, last_serial: int) -> None:
        """Put every change down there from now on."""
        self._share_table = share_table
        self._serial = last_serial

    # Changes

    def add(self, document: Plan9Share, beside: Beside) -> str:
        """Open a share and serve it; return which directory it is.

        Raises `HostPathReplaced` when that is not the one of `beside`, `ShareExists`, what `Export.open` and
        `Opener.open` raise, and what `ShareTable.add` raises; then there is no such share.
        """
        if document.access_name in self._by_name:
            msg = f"there is a share {document.access_name!r} already"
            raise ShareExists(msg)
        root, found = self._opener.open(
            Wanted(document.path, lambda: self._open(document, beside), may_hang(document.path))
        )
        try:
            export = Export.of(document, self._security_model, root, links=self._links, beside=beside)
            if self._share_table is not None:
                self._share_table.add(TakenShare(self._serial + 1, found, document, export.hide, beside.map_owner))
        except BaseException:
            os.close(root)
            raise
        self._serial += 1
        self._by_name[export.name] = ServedShare(self._serial, document, export, found)
        return found

    def _open(self, document: Plan9Share, beside: Beside) -> Opened:
        """Look at all that must be looked at before a directory is shared, and open it. Waits for its file system."""
        if self._run_dir is not None:
            self._run_dir.require_outside(document)
        for kept in self._keep_out:
            kept.require_apart(document)
        export = Export.open(document, self._security_model, links=self._links, beside=beside)
        try:
            found = export.root_id()
        except OSError as error:
            msg = (
                f"share {document.access_name}: cannot tell which directory {document.path!r} is: {error.strerror}; "
                "see whether its file system is whole"
            )
            raise FileServerError(msg) from error
        if not may_be_same(beside.directory, found):
            msg = (
                f"share {document.access_name}: {document.path!r} leads to another directory than when it was "
                "asked for: ask again, for the one that is there now"
            )
            raise HostPathReplaced(msg)
        return Opened(export.root, found)

    def remove(self, name: str, when_gone: Callable[[tuple[Left, ...]], None]) -> None:
        """Take a share away: no new attach from now on, its mounts ended; `when_gone` once they have.

        It is told which are left behind.

        Raises `ShareNotFound`, and what `ShareTable.remove` raises; then nothing was changed.
        """
        share = self._by_name.get(name)
        if share is None:
            msg = f"there is no share {name!r}"
            raise ShareNotFound(msg)
        if not share.removals and self._share_table is not None:
            self._share_table.remove(share.serial)
        share.removals.append(when_gone)
        self._dismiss(share)
        self._settle(share)

    def end(self) -> None:
        """End every mount, because the server ends. No new one begins."""
        self._ending = True
        if self._share_table is not None:
            self._share_table.end()
        for share in self._by_name.values():
            self._dismiss(share)

    def serve_until(self, until: float) -> None:
        """Move the fence on. Raises `InvalidState` where there is none."""
        if self._fence is None:
            msg = "this file server has no fence: start it with one (fenced)"
            raise InvalidState(msg)
        self._fence.move(until)
        self._was_cut = False

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do."""
        times = [each.kill_at for each in self._leaving.values() if each.kill_at is not None]
        if self._fence is not None and not self._was_cut:
            times.append(time.monotonic() + max(0.0, self._fence.left))
        return min(times, default=None)

    def expire(self, now: float) -> None:
        """Kill the mounts that were asked to leave and are still there, and leave those behind that are then.

        Past the fence, all mounts are asked: they serve nothing any more, and their guests are to see that.
        """
        if self._fence is not None and not self._was_cut and self._fence.is_past:
            self._was_cut = True
            self._log("the time is over until which this host may serve the VM (its fence): its mounts end")
            for share in self._by_name.values():
                self._dismiss(share)
        for running in list(self._leaving.values()):
            if running.kill_at is not None and running.kill_at > now:
                continue
            if running.was_killed:
                del self._leaving[running.pid]
                self._leave_behind(running)
                continue
            leaving.kill(running.pidfd)
            running.was_killed = True
            running.kill_at = now + leaving.DEATH_SECONDS

    def _leave_behind(self, stuck: MountProcess) -> None:
        """Wait no longer for a mount process that was killed: cut its connection, and see to it when it ends."""
        share = stuck.share
        if stuck.connected is not None:
            with suppress(OSError):
                stuck.connected.shutdown(socket.SHUT_RDWR)
            stuck.connected.close()
            stuck.connected = None
        stuck.left = Left(stuck.pid, share.export.name, share.export.path, self._where(stuck))
        self._left[stuck.pid] = stuck
        share.left.append(stuck.left)
        del share.mounts[stuck.pid]
        self.mount_count -= 1
        self._log(
            f"connection {stuck.connection} ({stuck.peer}), share {share.export.name}: its mount process {stuck.pid} "
            f"was killed and does not end: it waits for {stuck.left.where}; it is left behind, and serves nobody"
        )
        if share.removals:
            self._settle(share)

    def _where(self, stuck: MountProcess) -> str:
        counted = self.counted(stuck)
        return file_system_of(counted.beside_device if counted.beside else 0) or "a file system that does not answer"

    @property
    def left(self) -> tuple[Left, ...]:
        """The mount processes that are left behind."""
        return tuple(each.left for each in self._left.values() if each.left is not None)

    def close(self) -> None:
        """Let go of everything, once no mount is left but those behind."""
        for stuck in self._left.values():
            os.close(stuck.pidfd)
            if self._run_dir is not None:
                self._run_dir.forget_mount(stuck.connection)
        for share in self._by_name.values():
            share.export.close()
        if self._share_table is not None:
            self._share_table.discard()
        os.close(self._turn)
        if self._lifeline is not None:
            os.close(self._lifeline)
            os.close(self._life)

    # Mounts

    def admit(self, connection: HalfOpen, attach: Attach) -> int | None:
        """Say why an attach is refused, as an errno; None when it is good."""
        aname = attach.message.aname.decode(errors="surrogateescape")
        share = self._by_name.get(aname)
        who = f"connection {connection.number} ({connection.peer})"
        if self._fence is not None and self._fence.is_past:
            self._log(f"{who}: this host may not serve the VM now (its fence); attach refused")
            return errno.EIO
        if share is None or share.removals:
            self._log(f"{who}: there is no share {aname[:64]!r}; attach refused")
            return errno.ENOENT
        if self.mount_count >= self._limits.mounts:
            self._log(f"{who}: there are {self._limits.mounts} mounts already; attach refused")
            return errno.EUSERS
        return None

    def begin(self, connection: HalfOpen, attach: Attach) -> None:
        """Fork the mount process of an attach that was admitted. Raises `OSError`; then there is none."""
        share = self._by_name[attach.message.aname.decode(errors="surrogateescape")]
        number, peer = connection.number, connection.peer
        own_file = None
        watches = sum(each.watches for each in self._running()) < _MOST_WATCHING
        told, telling = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        counted = Counters(None if self._run_dir is None else self._run_dir.new_counters(number))
        try:
            if self._run_dir is not None:
                own_file = self._run_dir.open_mount(share.serial, number, peer)
            pid = os.fork()
            if pid == 0:
                self._serve(
                    connection.socket,
                    share.export,
                    attach,
                    self._limits,
                    lifeline=self._lifeline,
                    own_file=own_file,
                    telling=telling,
                    counters=counted,
                    fence=self._fence,
                    turn=self._turn if watches else None,
                )
            counted.keep_to_one()
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                # A mount process that cannot be watched would outlive its share.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
        except BaseException:
            os.close(told)
            if self._run_dir is not None:
                self._run_dir.forget_mount(number)
            raise
        finally:
            os.close(telling)
            if own_file is not None:
                os.close(own_file)
        connected = None
        with suppress(OSError):  # no descriptor left: it is ended all the same
            # Not the socket's own dup, which sets O_NONBLOCK anew: the mount process has the same open file, and waits.
            connected = socket.socket(fileno=os.dup(connection.socket.fileno()))
        started = MountProcess(pid, pidfd, share, number, peer, connected, counters=counted, watches=watches)
        self._watch(started, told)

    def _running(self) -> Iterator[MountProcess]:
        """Return every mount process that has not ended, also those that were left behind."""
        for share in self._by_name.values():
            yield from share.mounts.values()
        yield from self._left.values()

    def counted(self, running: MountProcess) -> Counted:
        """Return what a mount has done."""
        if running.counters is not None:
            return counters.read(running.counters.memory)
        assert self._run_dir is not None, "a mount is taken over from one"
        return counters.read(self._run_dir.counters(running.connection))

    def hear_all(self) -> None:
        """Log what mounts have said until now."""
        for share in self._by_name.values():
            for running in share.mounts.values():
                if running.said is not None:
                    running.said.hear_all()

    def _watch(self, started: MountProcess, told: int | None) -> None:
        if told is not None:
            who = f"connection {started.connection} ({started.peer}), share {started.share.export.name}"
            started.said = Said(self._loop, told, lambda line: self._log(f"{who}: {line}"))
        started.share.mounts[started.pid] = started
        self.mount_count += 1
        self._loop.watch(started.pidfd, lambda _: self._on_end(started))

    def _on_end(self, ended: MountProcess) -> None:
        share = ended.share
        self._loop.forget(ended.pidfd)
        os.close(ended.pidfd)
        if ended.said is not None:
            ended.said.close()
        if ended.connected is not None:
            ended.connected.close()
        status = 0
        with suppress(ChildProcessError):  # taken over: not ours to reap
            _, status = os.waitpid(ended.pid, 0)
        if self._run_dir is not None:
            self._run_dir.forget_mount(ended.connection)
        if self._left.pop(ended.pid, None) is not None:
            self._log(f"mount process {ended.pid} of share {share.export.name}, which was left behind, has ended")
            return
        del share.mounts[ended.pid]
        self._leaving.pop(ended.pid, None)
        self.mount_count -= 1
        expected = self._ending or share.removals or ended.kill_at is not None
        if os.WIFSIGNALED(status) and not expected:
            self._log(
                f"connection {ended.connection} ({ended.peer}), share {share.export.name}: "
                f"its mount process {ended.pid} was killed by signal {os.WTERMSIG(status)}"
            )
        if share.removals:
            self._settle(share)

    def _dismiss(self, share: ServedShare) -> None:
        """Ask each mount once to tell its guest and end, and kill it if it does not; no promise of its is waited for.

        What the guest wrote is with the host's kernel, and a reply that is lost is a connection that was cut.
        """
        kill_at = time.monotonic() + leaving.LEAVE_SECONDS
        for running in share.mounts.values():
            if running.kill_at is None:
                running.kill_at = kill_at
                self._leaving[running.pid] = running
                leaving.ask(running.pidfd)

    def _settle(self, share: ServedShare) -> None:
        """Tell those who wait for the end of a share, once its last mount process has ended."""
        if share.mounts:
            return
        del self._by_name[share.export.name]
        share.export.close()
        for when_gone in share.removals:
            when_gone(tuple(share.left))
