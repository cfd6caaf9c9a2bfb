"""The Linux file server as its users see it: a compute system that takes modify documents.

What lives here: `FileServer`, which starts or finds a supervisor process and speaks to it. What must
not: serving (`supervisor` and below), or what a share is to a caller (`uvmshare.share`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self

import msgspec

from uvmshare import address
from uvmshare.errors import ComputeSystemGone, FileServerError, OutcomeUnknown, UnsupportedPlatform
from uvmshare.fileserver import control
from uvmshare.fileserver.limits import Limits
from uvmshare.hcs import schema

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["FileServer"]

_CONTROL_SOCKET: Final = "control.sock"
_START_SECONDS: Final = 30.0
"""To start an interpreter and bind a few sockets; a loaded machine took 2."""
_END_SECONDS: Final = 30.0
_LAST_BREATH_SECONDS: Final = 1.0


class FileServer:
    """A Plan 9 device for one utility VM on Linux: a supervisor process, and one process a guest mount.

    It is a compute system (`uvmshare.hcs.utility_vm.ComputeSystem`)::

        async with await FileServer.start(listen=["unix:/run/vm1.9p"]) as server:
            manager = Manager(UtilityVM(server))

    `addresses` are those it listens on, with the ports that were really bound; `notes` say what the
    host's kernel lacks to confine mount processes fully. Reasons for ended connections go to the
    log, a line each, which is standard error unless `log` was given.

    Made by `start` or `connect`. Belongs to one event loop.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: subprocess.Popen[bytes] | None,
        modify_timeout: float,
    ) -> None:
        """Use `start` or `connect`."""
        self._reader = reader
        self._writer = writer
        self._process = process
        self._modify_timeout = modify_timeout
        self._waiting: dict[int, asyncio.Future[control.Reply]] = {}
        self._last_id = 0
        self._broken: str | None = None
        self._gone: ComputeSystemGone | None = None
        self._exited = asyncio.Event()
        self._on_exit: list[Callable[[ComputeSystemGone], None]] = []
        self._pidfd = -1
        self._closing = False
        self._listening = asyncio.create_task(self._listen())
        self.addresses: tuple[str, ...] = ()
        self.notes: tuple[str, ...] = ()

    # Starting and finding

    @classmethod
    async def start(
        cls,
        listen: Sequence[str],
        *,
        security_model: str = "mapped-xattr",
        allow_remote: bool = False,
        run_dir: str | os.PathLike[str] | None = None,
        log: str | os.PathLike[str] | None = None,
        socket_mode: int = 0o600,
        limits: Limits | None = None,
        modify_timeout: float = 30.0,
        run_as: tuple[int, int, Sequence[int]] | None = None,
    ) -> Self:
        """Start a supervisor that listens on these addresses (`uvmshare.address`).

        Without `run_dir` the supervisor ends when this process does, however it ends. With one it
        outlives it, logs to ``RUN_DIR/log`` unless `log` says otherwise, and `connect` finds it
        again. `run_as` is the uid, gid and supplementary groups that it runs as instead of this process's, which
        needs root; it then opens addresses and shares with that user's rights, and `run_dir` must be that
        user's already. `socket_mode` is that of unix socket files. After `modify_timeout` seconds a modify
        request without an answer raises `OutcomeUnknown`.

        Raises `InvalidAddress`, `FileServerError`, or `UnsupportedPlatform` on other systems than Linux.
        When it raises, nothing of it is left running.
        """
        _require_linux()
        for text in listen:
            address.parse(text)
        if not listen:
            msg = "a file server needs an address to listen on, such as unix:/run/vm1.9p"
            raise FileServerError(msg)
        checked = (limits or Limits()).checked()
        directory, log = _prepare(run_dir, log)
        ours, theirs = socket.socketpair()
        with theirs:
            process = _spawn(theirs, log, run_as)
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        server = cls(reader, writer, process, modify_timeout)
        try:
            configuration = control.Configuration(
                id=0,
                listen=tuple(listen),
                security_model=security_model,
                allow_remote=allow_remote,
                socket_mode=socket_mode,
                run_dir=directory,
                limits=checked,
            )
            await server._greet(configuration)
        except BaseException:
            await server._abandon()
            raise
        return server

    @classmethod
    async def connect(cls, run_dir: str | os.PathLike[str], *, modify_timeout: float = 30.0) -> Self:
        """Find the supervisor that was started with `run_dir`; its guests go on meanwhile.

        Raises `FileServerError` when there is none, `UnsupportedPlatform` on other systems than Linux.
        """
        _require_linux()
        path = os.path.join(run_dir, _CONTROL_SOCKET)
        try:
            reader, writer = await asyncio.open_unix_connection(path)
        except OSError as error:
            msg = f"no file server answers at {path!r}: {error.strerror or error}; start one with this run directory"
            raise FileServerError(msg) from error
        server = cls(reader, writer, None, modify_timeout)
        try:
            await server._greet(control.Status(0))
        except BaseException:
            await server._abandon()
            raise
        return server

    async def _greet(self, request: control.Configuration | control.Status) -> None:
        try:
            reply = await self._ask(request, _START_SECONDS)
        except (OutcomeUnknown, ComputeSystemGone) as error:
            msg = f"the file server did not start: {error}"
            raise FileServerError(msg) from error
        self.addresses = reply.addresses
        self.notes = reply.notes
        try:
            self._pidfd = os.pidfd_open(reply.pid)
        except ProcessLookupError:
            self._note_exit()
        else:
            asyncio.get_running_loop().add_reader(self._pidfd, self._note_exit)

    # What a compute system does

    async def modify(self, request: schema.ModifySettingRequest) -> None:
        """Carry out a modify document: add or remove a share of the device.

        When a removal returns, no process serves the share any more. Raises `InvalidDocument`,
        `AccessDenied`, `ShareExists`, `ShareNotFound`; `OutcomeUnknown` when no answer comes in time or
        the channel breaks; `ComputeSystemGone` when the supervisor has ended.
        """
        document = msgspec.Raw(schema.encode(request))
        await self._ask(control.Modify(self._next_id(), document), self._modify_timeout)

    async def status(self) -> control.Reply:
        """Return the addresses, the shares, and the mount processes of each.

        Raises `OutcomeUnknown` or `ComputeSystemGone`.
        """
        return await self._ask(control.Status(self._next_id()), self._modify_timeout)

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    # What tells that the supervisor has ended, which a channel that broke does not

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        """Have `callback` called once, in the event loop, when the supervisor has ended by itself.

        See `uvmshare.share.interfaces.TellsExit`. Closing the file server is no such end.
        """
        if self._gone is None:
            self._on_exit.append(callback)
        else:
            asyncio.get_running_loop().call_soon(callback, self._gone)

    async def wait_exit(self) -> str:
        """Return, with the reason, when the supervisor has ended, or this file server was closed."""
        await self._exited.wait()
        return str(self._gone)

    def _note_exit(self) -> None:
        """Take note of the supervisor's end: its process is gone, and with it every mount."""
        self._forget_process()
        reason = "the file server was closed" if self._closing else "the file server's process has ended"
        self._gone = ComputeSystemGone(reason)
        self._exited.set()
        callbacks, self._on_exit = self._on_exit, []
        if not self._closing:
            for callback in callbacks:
                callback(self._gone)

    def _forget_process(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def _require_channel(self) -> None:
        if self._gone is None and self._broken is not None:
            # A process that ends closes its sockets a moment before it is gone.
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_BREATH_SECONDS):
                    await self._exited.wait()
        if self._gone is not None:
            raise ComputeSystemGone(str(self._gone))
        if self._broken is not None:
            msg = f"{self._broken}, and its process goes on: connect to it again, if it has a run directory"
            raise OutcomeUnknown(msg)

    async def _ask(self, request: control.Request, seconds: float) -> control.Reply:
        await self._require_channel()
        answer: asyncio.Future[control.Reply] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = answer
        try:
            self._writer.write(control.encode(request))
            async with asyncio.timeout(seconds):
                await self._writer.drain()
                reply = await answer
        except TimeoutError as error:
            msg = f"the file server gave no answer within {seconds:g} s"
            raise OutcomeUnknown(msg) from error
        except ConnectionError as error:
            msg = f"the channel to the file server broke: {error}"
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
        reason = "the file server closed its control channel"
        try:
            while data := await self._reader.read(65536):
                incoming += data
                for body in control.split(incoming):
                    self._take(control.decode_reply(body))
        except (OSError, ValueError, msgspec.DecodeError) as error:
            reason = f"the channel to the file server broke: {error}"
        finally:
            self._broken = reason
            unknown = control.failure_of(OutcomeUnknown(f"{reason} before it answered"))
            for number in list(self._waiting):
                self._take(control.Reply(id=number, failure=unknown))

    def _take(self, reply: control.Reply) -> None:
        waiting = self._waiting.get(reply.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    # Ending

    async def aclose(self) -> None:
        """End the supervisor and every mount; guests get EIO from then on. Again is a no-op."""
        if not self._closing:
            self._closing = True
            with suppress(OutcomeUnknown, ComputeSystemGone, FileServerError):
                await self._ask(control.Shutdown(self._next_id()), _END_SECONDS)
        await self._abandon()

    async def detach(self) -> None:
        """Let go of a supervisor that has a run directory; it and its mounts go on. See `connect`."""
        self._closing = True
        await self._close_channel()
        if self._process is not None:
            self._process.returncode = 0  # not ours to wait for any more: init reaps it
            self._process = None

    async def _close_channel(self) -> None:
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()
        self._listening.cancel()
        with suppress(asyncio.CancelledError):
            await self._listening
        if self._gone is None:
            self._note_exit()

    async def _abandon(self) -> None:
        """Close the channel and see the process off, if it is this one's child."""
        self._closing = True
        await self._close_channel()
        process, self._process = self._process, None
        if process is not None:
            await asyncio.to_thread(_see_off, process)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _require_linux() -> None:
    if sys.platform != "linux":
        msg = "the file server runs on Linux; on Windows use the VM's compute system (uvmshare.hcs)"
        raise UnsupportedPlatform(msg)


def _prepare(
    run_dir: str | os.PathLike[str] | None, log: str | os.PathLike[str] | None
) -> tuple[str | None, str | os.PathLike[str] | None]:
    """Make the run directory, if there is to be one; say where it and the log are."""
    if run_dir is None:
        return None, log
    directory = os.path.abspath(run_dir)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as error:
        msg = f"cannot make the run directory {directory!r}: {error.strerror}"
        raise FileServerError(msg) from error
    return directory, log or os.path.join(directory, "log")


def _spawn(
    channel: socket.socket, log: str | os.PathLike[str] | None, run_as: tuple[int, int, Sequence[int]] | None
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-P", "-m", "uvmshare.fileserver.supervisor", str(channel.fileno())]
    if run_as is not None:
        # It becomes that user itself, once everything is loaded: the interpreter may be where only root reads.
        user, group, groups = run_as
        command += [str(user), str(group), ",".join(map(str, groups))]
    errors = None
    try:
        if log is not None:
            errors = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return subprocess.Popen(
            command,
            pass_fds=(channel.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # Ctrl-C is for the caller, which then ends the server in order
        )
    except OSError as error:
        msg = f"cannot start the file server: {error}"
        raise FileServerError(msg) from error
    finally:
        if errors is not None:
            os.close(errors)


def _see_off(process: subprocess.Popen[bytes]) -> None:
    """Wait for the supervisor, which ends with its channel; kill it when it does not."""
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
