"""One connection to a supervisor, and how one is started.

What lives here: `Link`: requests and their answers, and the end of the process behind it. What must not:
what is asked (`device`), or what is done when the supervisor is gone.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import msgspec

from uvmshare.errors import ComputeSystemGone, FileServerError, InvalidState, OutcomeUnknown
from uvmshare.fileserver import control
from uvmshare.fileserver.rundir.directory import CONTROL_SOCKET, LOG, lock_path, table_path
from uvmshare.fileserver.rundir.lockfile import LockFile
from uvmshare.fileserver.rundir.sharetable import ShareTable
from uvmshare.hostfiles import open_log, run_here
from uvmshare.linux.credentials import credentials
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvmshare.hostfiles import Runner

__all__ = ["Link", "NoFileServer", "RunAs"]

RunAs = tuple[int, int, Sequence[int]]
"""A uid, a gid, and supplementary groups."""

_START_SECONDS: Final = 30.0
"""To start an interpreter and bind a few sockets; a loaded machine took 2."""
_END_SECONDS: Final = 30.0
_LAST_BREATH_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 0.05
_CONNECT_SECONDS: Final = 5.0
"""A supervisor's socket answers at once, or its queue is full."""
_MOST_ASKED: Final = 4096
"""Requests without an answer. Each share has one at most; a supervisor that is stopped takes none."""


class NoFileServer(FileServerError):
    """There is no file server in a run directory, and nothing to take over."""


class Link:
    """A channel to one supervisor process. `greeting` is its first answer.

    `on_end` is called once, in the event loop, when the process has ended or the channel broke. Made by `start` or
    `find`. Belongs to one event loop.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, process: subprocess.Popen[bytes] | None
    ) -> None:
        """Use `start` or `find`."""
        self._reader = reader
        self._writer = writer
        self._process = process
        self._waiting: dict[int, asyncio.Future[control.Reply]] = {}
        self._last_id = 0
        self._asked: set[int] = set()
        """What was not answered yet, also where nobody waits any more: each is answered once."""
        self._broken: str | None = None
        self._pidfd = -1
        self._ended = asyncio.Event()
        self.on_end: Callable[[], None] = lambda: None
        self.greeting = control.Reply(id=0)
        self._listening = asyncio.create_task(self._listen())

    # Making one

    @classmethod
    async def start(
        cls,
        configuration: control.Configuration,
        run_as: RunAs | None = None,
        log: str | None = None,
        cgroup: str | None = None,
    ) -> Self:
        """Start a supervisor with that configuration.

        `run_as` are its uid, gid and supplementary groups. `log` is opened by this process and becomes its
        standard error; without one it opens the configuration's. `cgroup` is the directory of the control group that it
        runs in.

        Raises `FileServerError`, `InvalidAddress`; then no process of it is left.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process, log_reader = _spawn(theirs, run_as, log, cgroup)
            except BaseException:
                ours.close()
                raise
        configuration = msgspec.structs.replace(configuration, log_reader=log_reader)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        return await cls(reader, writer, process).greeted(configuration)

    @classmethod
    async def find(cls, run_dir: str, owner: RunAs | None = None, run: Runner = run_here) -> Self:
        """Connect to the supervisor that lives in a run directory.

        It has to be that of `owner`; without one, of the user whom the directory belongs to. `run` runs all that
        touches the directory.

        Raises `FileServerError` when there is none, and what `run` raises.
        """
        handover = _Handover()
        try:
            await run(lambda: handover.put(_connected(run_dir, owner)))
            reader, writer = await asyncio.open_unix_connection(sock=handover.connection)
        except BaseException:
            handover.give_up()
            raise
        return await cls(reader, writer, None).greeted(control.Status(0))

    @classmethod
    async def find_or_start(
        cls,
        run_dir: str,
        run_as: RunAs | None = None,
        log: str | None = None,
        cgroup: str | None = None,
        run: Runner = run_here,
    ) -> Self:
        """Connect to the supervisor of a run directory; when it died, start the one that takes over.

        Root, without `run_as`, starts it as the user whom the directory belongs to: what is written there is no
        reason to be root, and neither is the log's name there, which the supervisor opens itself.

        Raises `NoFileServer` when there is none, or it was told to end, and other `FileServerError`s when the new one
        cannot start.
        """
        give_up = asyncio.get_running_loop().time() + _START_SECONDS
        while True:
            try:
                return await cls.find(run_dir, run_as, run)
            except FileServerError as missing:
                # Its user wrote it, and may have written anything: no more of it is read than is needed here.
                table = await run(lambda: ShareTable.read_start(table_path(run_dir)))
                if table is None:
                    raise NoFileServer(str(missing)) from missing
            try:
                configuration = msgspec.structs.replace(
                    table.configuration,
                    run_dir=run_dir,
                    log=None if log else table.configuration.log or os.path.join(run_dir, LOG),
                )
                link = await cls.start(configuration, run_as or await run(lambda: _owner(run_dir)), log, cgroup)
            except FileServerError:
                late = asyncio.get_running_loop().time() > give_up
                if late or not await run(lambda: LockFile.is_held(lock_path(run_dir))):
                    raise
                await asyncio.sleep(_PAUSE_SECONDS)  # another one is about to listen
                continue
            if not table.ended:
                return link
            await link.shut_down()  # what its predecessor was about to do when it died
            await link.close()
            msg = f"the file server in {run_dir!r} was told to end, and has ended; start another one"
            raise NoFileServer(msg)

    async def greeted(self, request: control.Configuration | control.Status) -> Self:
        """Return this link with its first answer, the one to `request`.

        Raises `FileServerError`, `InvalidAddress`; then it is closed.
        """
        try:
            try:
                self.greeting = await self.ask(lambda _: request, _START_SECONDS)
            except (OutcomeUnknown, ComputeSystemGone) as error:
                msg = f"the file server did not start: {error}"
                raise FileServerError(msg) from error
            try:
                self._pidfd = os.pidfd_open(self.greeting.pid)
            except ProcessLookupError:
                self._note_end()
            except (OSError, OverflowError) as error:  # EINVAL, or EMFILE
                msg = f"the file server's process cannot be watched (pid {self.greeting.pid}): {reason_of(error)}"
                raise FileServerError(msg) from error
            else:
                asyncio.get_running_loop().add_reader(self._pidfd, self._note_end)
        except BaseException:
            await self.close()
            raise
        return self

    # Asking

    async def ask(self, make: Callable[[int], control.Request], seconds: float) -> control.Reply:
        """Send the request that `make` makes of a new id, and return the answer.

        Raises what the supervisor failed with; `OutcomeUnknown` when no answer comes in time or the channel breaks.
        """
        if self._broken is not None:
            raise OutcomeUnknown(self._broken)
        if len(self._asked) >= _MOST_ASKED or self._writer.transport.get_write_buffer_size() > control.MAX_MESSAGE:
            msg = (
                f"the file server has {len(self._asked)} requests that it does not answer: wait, or "
                "end it and start it again"
            )
            raise InvalidState(msg)
        self._last_id += 1
        request = make(self._last_id)
        answer: asyncio.Future[control.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = answer
        self._asked.add(request.id)
        try:
            self._writer.write(control.encode(request))
            async with asyncio.timeout(seconds):
                await self._writer.drain()
                reply = await answer
        except TimeoutError as error:
            msg = f"the file server gave no answer within {seconds:g} s"
            raise OutcomeUnknown(msg) from error
        except ConnectionError as error:
            msg = f"the channel to the file server broke: {reason_of(error)}"
            self._lose(msg)
            raise OutcomeUnknown(msg) from error
        finally:
            # A caller that was cancelled, or has waited long enough, takes no late answer.
            self._waiting.pop(request.id, None)
            answer.cancel()
        if reply.failure is not None:
            raise control.to_exception(reply.failure)
        return reply

    async def _listen(self) -> None:
        """Take replies until the channel ends, and then tell everyone who waits."""
        incoming = bytearray()
        why = "the file server closed its control channel"
        try:
            while data := await self._reader.read(65536):
                incoming += data
                for body in control.split(incoming):
                    self._take(control.decode_reply(body))
        except Exception as error:  # noqa: BLE001  a VM's user has that process: whatever it says, it loses its channel
            why = f"the channel to the file server broke: {reason_of(error)}"
        finally:
            self._lose(why)

    def _lose(self, why: str) -> None:
        """Ask no more there: everyone who waits is told so."""
        self._broken = self._broken or why
        unknown = control.failure_of(OutcomeUnknown(f"{why} before it answered"))
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_result(control.Reply(id=0, failure=unknown))
        self.on_end()

    def _take(self, reply: control.Reply) -> None:
        if reply.id not in self._asked:
            msg = "it answered what it was not asked"
            raise ValueError(msg)
        self._asked.discard(reply.id)
        waiting = self._waiting.get(reply.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    # The end of it

    @property
    def broken(self) -> str | None:
        """Why nothing can be asked any more; None while it can."""
        return self._broken

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self._ended.is_set()

    async def has_ended(self) -> bool:
        """Say whether the process has ended. One that ends closes its sockets a moment before it is gone."""
        if self._broken is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_BREATH_SECONDS):
                    await self._ended.wait()
        return self._ended.is_set()

    def _note_end(self) -> None:
        self._forget_process()
        self._ended.set()
        self.on_end()

    def _forget_process(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def shut_down(self) -> control.Reply | None:
        """Have the supervisor end, and every mount; return what it answers, None for nothing. The next is `close`."""
        with suppress(OutcomeUnknown, FileServerError, InvalidState):
            return await self.ask(control.Shutdown, _END_SECONDS)
        return None

    def abandon(self) -> None:
        """Hang up and wait for nothing. Who waits for an answer gets `OutcomeUnknown`."""
        self.on_end = lambda: None
        self._lose("this side hung up")
        self._writer.transport.abort()
        self._forget_process()
        self._leave_child()

    async def leave(self) -> None:
        """Hang up. The process goes on if it has a run directory, and is not this one's to wait for any more."""
        self.on_end = lambda: None
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)  # however what the process said ended it
        self._forget_process()
        self._leave_child()

    def _leave_child(self) -> None:
        if self._process is not None:
            self._process.poll()
            self._process.returncode = self._process.returncode or 0  # else init reaps it
            self._process = None

    async def close(self) -> None:
        """Hang up and see the process off, if it is this one's child."""
        process, self._process = self._process, None
        await self.leave()
        if process is not None:
            await _see_off(process)


class _Handover:
    """A connection that a thread makes for a coroutine. Whichever of the two ends last closes what nobody takes."""

    def __init__(self) -> None:
        self.connection: socket.socket | None = None
        self._is_given_up = False
        self._lock = threading.Lock()

    def put(self, connection: socket.socket) -> None:
        with self._lock:
            self.connection = connection
            if self._is_given_up:
                connection.close()

    def give_up(self) -> None:
        with self._lock:
            self._is_given_up = True
            if self.connection is not None:
                self.connection.close()


def _connected(run_dir: str, owner: RunAs | None) -> socket.socket:
    """Return a connection to the control socket in a run directory. Raises `FileServerError`."""
    path = os.path.join(run_dir, CONTROL_SOCKET)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        try:
            connection.connect(path)
        except OSError as error:
            msg = f"no file server answers at {path!r}: {error.strerror or error}; start one with this run directory"
            raise FileServerError(msg) from error
        _require_of_owner(connection, run_dir, owner)
        connection.setblocking(False)  # noqa: FBT003  it takes no keyword
    except BaseException:
        connection.close()
        raise
    return connection


def _require_of_owner(connection: socket.socket, run_dir: str, expected: RunAs | None) -> None:
    """See that whoever answers is the user whose directory it is, who could have put a link to another's socket there.

    Raises `FileServerError`.
    """
    peer = credentials(connection).uid
    try:
        owner = os.stat(run_dir).st_uid if expected is None else expected[0]
    except OSError as error:
        msg = f"run directory {run_dir!r}: {error.strerror}: make it, or give the one that the file server has"
        raise FileServerError(msg) from error
    if peer != owner:
        msg = (
            f"a process of user {peer} answers in the run directory {run_dir!r} of user {owner}: it is not that one's "
            "file server; see what control.sock there is, and remove it"
        )
        raise FileServerError(msg)


def _owner(directory: str) -> RunAs | None:
    """Return whose directory it is, for root to start a supervisor as.

    None when this process is that user, or not root.
    """
    found = os.stat(directory)
    if os.geteuid() != 0 or found.st_uid == 0:
        return None
    try:
        user = pwd.getpwuid(found.st_uid)
    except KeyError:
        return found.st_uid, found.st_gid, ()
    return found.st_uid, user.pw_gid, os.getgrouplist(user.pw_name, user.pw_gid)


def _spawn(
    channel: socket.socket, run_as: RunAs | None, log: str | None, cgroup: str | None
) -> tuple[subprocess.Popen[bytes], int | None]:
    """Start the process; return it, and the descriptor with which it can read its log, None when it opens that itself.

    Raises `FileServerError`.
    """
    command = [sys.executable, "-P", "-m", "uvmshare.fileserver"]
    arguments = [str(channel.fileno())]
    if run_as is not None:
        # It becomes that user itself, once everything is loaded: the interpreter may be where only root reads.
        user, group, groups = run_as
        arguments += [str(user), str(group), ",".join(map(str, groups))]
    errors = reader = entrance = None
    try:
        if log is not None:
            errors, reader = open_log(log)
        if cgroup is not None:
            entrance = os.open(os.path.join(cgroup, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)
            command.append(f"--enter={entrance}")
        process = subprocess.Popen(
            [*command, *arguments],
            pass_fds=[each for each in (channel.fileno(), reader, entrance) if each is not None],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the caller, which then ends the server in order
        )
    except OSError as error:
        msg = f"cannot start the file server: {reason_of(error)}"
        raise FileServerError(msg) from error
    else:
        return process, reader
    finally:
        for descriptor in (errors, reader, entrance):
            if descriptor is not None:
                os.close(descriptor)


async def _see_off(process: subprocess.Popen[bytes]) -> None:
    """Wait for the supervisor, which ends with its channel; kill it when it does not."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        process.wait()
        return
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(pidfd, ended.set)
    try:
        for _ in range(2):
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await ended.wait()
                break
            process.kill()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process.poll()
        process.returncode = process.returncode or 0  # one that cannot even be killed is not waited for
