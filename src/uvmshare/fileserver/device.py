"""The Linux file server as its users see it: a VM's shares, which may be added and removed while it runs.

What lives here: `FileServer`, which starts or finds a supervisor process, and another one when it dies.
What must not: serving (`supervisor` and below), the channel (`link`), or what a share is to a caller
(`uvmshare.share`).
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, Self

import msgspec

from uvmshare import address, arguments, peers
from uvmshare.errors import (
    ComputeSystemGone,
    FileServerError,
    InvalidAddress,
    InvalidOptions,
    InvalidState,
    OperationDenied,
    OutcomeUnknown,
    ShareNotFound,
    UnsupportedPlatform,
    UvmshareError,
)
from uvmshare.fileserver import control
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.models import Links, SecurityModel
from uvmshare.hcs import schema
from uvmshare.heard import logger
from uvmshare.hostpath import absolute
from uvmshare.lifecycle.retry import Wait
from uvmshare.share.options import AddOptions

if sys.platform == "linux" or TYPE_CHECKING:  # these import what Windows does not have; `_require_linux` is in front
    from uvmshare.fileserver.link import Link, NoFileServer
    from uvmshare.fileserver.rundir.directory import LOG
    from uvmshare.hostfiles import make_directories, run_here

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from uvmshare.fileserver.link import RunAs
    from uvmshare.hostfiles import Runner
    from uvmshare.share.interfaces import NamedShare

__all__ = ["FileServer"]

_log: Final = logger("fileserver")
_END_SECONDS: Final = 30.0
_RESTART_FIRST: Final = 0.1
_RESTART_LONGEST: Final = 10.0
"""Seconds between two attempts to have a new supervisor; the wait doubles from the first to the longest."""


class FileServer:
    """A Plan 9 device for one utility VM on Linux: a supervisor process, and one process for each mount.

    It is what a Manager needs (`uvmshare.share.interfaces.VMPlan9`)::

        async with FileServer(listen=["unix:/run/vm1.9p"]) as server, Manager(server) as manager:
            await manager.add("/srv/project")

    Without a run directory, every share ends with the supervisor: `on_exit` tells it. With a run directory, shares and
    mounts outlive the supervisor, and another one is started by itself. A request that the dead supervisor did not
    answer has an unknown outcome. Requests that come meanwhile wait, and `on_takeover` tells when the new supervisor
    serves. The file server then ends only when somebody asks for that (`aclose`, SIGTERM).

    The constructor checks the arguments and starts nothing. ``async with`` starts and ends the file server, as `start`
    and `aclose` do. `connect` finds a supervisor that runs already. A `FileServer` belongs to one event loop.

    `addresses` are those it listens on, with the ports that were really bound. `notes` say what the host's kernel lacks
    to confine mount processes fully. `lost` are the shares that the supervisor could not take over from a dead one. All
    three are empty before the start. The log has one line for each connection that was ended, with the reason. It is
    standard error unless `log` was given.

    Arguments: `listen` are the addresses to listen on (`uvmshare.address`). `security_model` says who owns the files
    that a guest makes on the host. `links` says how the host keeps a symbolic link that a guest makes under
    ``mapped-xattr``: "mapped" is a file with an attribute, which no program of the host follows; "real" is a real link.
    Existing links of both kinds are read under either setting.

    Without `run_dir` the supervisor ends with this process, however this process ends. With `run_dir` the supervisor
    outlives this process, logs to ``RUN_DIR/log`` unless `log` says otherwise, and `connect` finds it again. When a
    supervisor died in that directory, the new one takes its shares and mounts over, and serves them at these addresses
    and with these limits. `run_as` is the uid, gid and supplementary groups that the supervisor runs as; it needs root.
    The supervisor then opens addresses and shares with that user's rights, and `run_dir` must belong to that user.
    `socket_mode` is the mode of unix socket files. Over TCP on loopback only that user, root and `allow_uids` may
    connect; these are uids of others, or "any". A modify request without an answer raises `OutcomeUnknown` after
    `modify_timeout` seconds. A writable share is refused (`AccessDenied`) when it holds, or lies in, one of the
    directories in `keep_out`, or the run directory. `cgroup` is the directory of a control group that all processes of
    the server run in. With `fenced` nothing is served until `serve_until` has said until when. `run` runs every
    function that touches the run directory. That directory may be another user's, and so be on a file system that never
    answers.

    Raises `InvalidAddress` and `InvalidOptions` (`WrongType`) for invalid arguments, before anything is started, and
    `UnsupportedPlatform` on other systems than Linux.
    """

    addresses: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    lost: tuple[control.LostShare, ...] = ()

    def __init__(
        self,
        listen: Sequence[str],
        *,
        security_model: SecurityModel = "mapped-xattr",
        links: Links = "mapped",
        allow_remote: bool = False,
        allow_uids: Sequence[int | Literal["any"]] = (),
        run_dir: str | os.PathLike[str] | None = None,
        log: str | os.PathLike[str] | None = None,
        socket_mode: int = 0o600,
        limits: Limits | None = None,
        modify_timeout: float = 30.0,
        run_as: RunAs | None = None,
        cgroup: str | None = None,
        keep_out: Sequence[str | os.PathLike[str]] = (),
        fenced: bool = False,
        run: Runner | None = None,
    ) -> None:
        _require_linux()
        addresses = arguments.list_of("listen", listen, str, "a list of addresses, such as ['unix:/run/vm1.9p']")
        if not addresses:
            msg = "listen is empty: a file server needs an address to listen on, such as 'unix:/run/vm1.9p'"
            raise InvalidOptions(msg)
        parsed = [address.parse(text) for text in addresses]
        for text, each in zip(addresses, parsed, strict=True):
            if parsed.count(each) > 1 and not (each.kind == "tcp" and each.port == 0):  # port 0 is another each time
                msg = f"address {text!r}: it is given twice; give each address once"
                raise InvalidAddress(msg)
        self._arrange(run_dir, log, modify_timeout=modify_timeout, run_as=run_as, cgroup=cgroup, run=run)
        self._configuration: control.Configuration | None = control.Configuration(
            0,
            listen=addresses,
            security_model=arguments.one_of("security_model", security_model, SecurityModel),
            links=arguments.one_of("links", links, Links),
            allow_remote=arguments.flag("allow_remote", allow_remote),
            allow_uids=peers.require_uids("allow_uids", allow_uids),
            socket_mode=arguments.number("socket_mode", socket_mode, least=0, most=0o777, such_as="0o600"),
            run_dir=self._run_dir,
            log=None if self._run_dir is None or self._log is not None else os.path.join(self._run_dir, LOG),
            limits=Limits() if limits is None else _limits(limits),
            keep_out=tuple(
                absolute("a directory of keep_out", each, InvalidOptions, utf8_for="what is sent")
                for each in arguments.list_of("keep_out", keep_out, (str, os.PathLike), "a list of directories")
            ),
            fenced=arguments.flag("fenced", fenced),
        ).checked()

    @classmethod
    def connect(
        cls,
        run_dir: str | os.PathLike[str],
        *,
        take_over: bool = True,
        log: str | os.PathLike[str] | None = None,
        modify_timeout: float = 30.0,
        run_as: RunAs | None = None,
        cgroup: str | None = None,
        run: Runner | None = None,
    ) -> Self:
        """Return the file server that was started with `run_dir`. Starting it finds its supervisor.

        Its guests keep working meanwhile. When the supervisor died, a new one is started with the same configuration,
        and takes over the shares and mounts. With `take_over` False it is not: a new `FileServer` of that directory can
        then take over with other settings. For root, the new supervisor runs as the owner of the directory, or as the
        user in `run_as`; with `run_as`, no other user's supervisor is accepted. `log` is where the new supervisor logs,
        ``RUN_DIR/log`` unless given, and `cgroup` the control group that it runs in. The other arguments are those of a
        new file server.
        """
        _require_linux()
        arguments.flag("take_over", take_over)
        if run_dir is None:
            arguments.refuse_type("run_dir", run_dir, "the directory that the file server was started with")
        self = cls.__new__(cls)
        self._configuration = None
        self._arrange(run_dir, log, modify_timeout=modify_timeout, run_as=run_as, cgroup=cgroup, run=run)
        self._take_over = take_over
        return self

    def _arrange(
        self,
        run_dir: str | os.PathLike[str] | None,
        log: str | os.PathLike[str] | None,
        *,
        modify_timeout: float,
        run_as: RunAs | None,
        cgroup: str | None,
        run: Runner | None,
    ) -> None:
        """Take what is the same for one that is started and one that is found."""
        _require_user(run_as)
        if cgroup is not None:
            arguments.text("cgroup", cgroup, "the directory of a control group")
        self._run = run_here if run is None else arguments.function("run", run)
        self._cgroup = cgroup
        self._run_as = run_as
        self._log = None if log is None else absolute("the log", log, InvalidOptions)
        self._run_dir = None if run_dir is None else _run_dir(run_dir)
        self._modify_timeout = arguments.seconds("modify_timeout", modify_timeout)
        self._take_over = True
        self._link: Link  # since it is started
        self._is_started = False
        self._gone: ComputeSystemGone | None = None
        self._exited = asyncio.Event()
        self._on_exit: list[Callable[[ComputeSystemGone], None]] = []
        self._on_takeover: list[Callable[[control.Reply], None]] = []
        self._on_left: list[Callable[[tuple[control.Left, ...]], None]] = []
        self._starting = False
        self._closing = False
        self._restarting: asyncio.Task[None] | None = None
        self._restart_wait = Wait(_RESTART_FIRST, _RESTART_LONGEST)
        self._linked_at = 0.0
        self._trouble = ""

    def __repr__(self) -> str:
        wanted = self.addresses or (() if self._configuration is None else self._configuration.listen)
        where = [f"at {', '.join(wanted)}"] * bool(wanted)
        where += [f"in {self._run_dir!r}"] * (self._run_dir is not None)
        if self._gone is not None:
            state = str(self._gone)
        elif not self._is_started:
            state = "closed" if self._closing else "not started"
        else:
            state = "serving" if self._restarting is None else "its supervisor died and is being started again"
        return f"<FileServer {' '.join(where)}: {state}>"

    # Starting and finding

    async def start(self) -> Self:
        """Start the supervisor, or find it (`connect`), and return this file server.

        Raises `FileServerError` when no supervisor can be started, or when none is found and none can take over;
        `InvalidState` when this was started before; and what `run` raises. After an error nothing of it is left
        running, and what was to be taken over is unchanged.
        """
        if self._closing or self._starting:
            msg = f"{self!r} was started before, and one FileServer is one file server: make a new one"
            raise InvalidState(msg)
        self._starting = True
        try:
            link = await self._first_link()
        except BaseException:
            self._starting = False
            raise
        if self._closing:  # meanwhile
            await (link.leave() if self._configuration is None else link.shut_down())
            await link.close()
            msg = f"{self!r} was closed while it was started"
            raise InvalidState(msg)
        self._use(link)
        return self

    async def _first_link(self) -> Link:
        directory = self._run_dir
        if self._configuration is not None:
            if directory is not None:
                await self._run(lambda: _make(directory))
            return await Link.start(self._configuration, self._run_as, self._log, self._cgroup)
        assert directory is not None, "what is found is found there"
        if self._take_over:
            return await Link.find_or_start(directory, self._run_as, self._log, self._cgroup, self._run)
        return await Link.find(directory, self._run_as, self._run)

    def _use(self, link: Link) -> None:
        self._link = link
        self._is_started = True
        self._linked_at = asyncio.get_running_loop().time()
        self.addresses = link.greeting.addresses
        self.notes = link.greeting.notes
        self.lost = link.greeting.lost
        link.on_end = self._note_end
        if link.broken is not None:
            self._note_end()

    # What the Manager asks for: `uvmshare.share.interfaces.VMPlan9`

    async def add_plan9(self, share: NamedShare) -> str | None:
        """Add a share, if its path leads to the directory of its options. Return the identity of that directory.

        Raises `HostPathReplaced`, `AccessDenied`, `InvalidDocument`, `ShareExists`, `DiskFull`; `OperationDenied` when
        an earlier version's supervisor can neither hide names nor map owners; `OutcomeUnknown` when no answer comes in
        time or the channel breaks; `InvalidState` when there is no supervisor now and none could be started yet, so
        that nothing was asked; `ComputeSystemGone` when the supervisor has ended for good.
        """
        options = share.options
        link = await self._require_link()
        if (options.hide or options.map_owner) and not link.greeting.can_hide:
            msg = (
                "the file server was started by an earlier uvmshare, which can neither hide names nor map owners: "
                "start it again, which ends its mounts, or kill its supervisor, and the next one takes them over"
            )
            raise OperationDenied(msg)
        document = _raw(
            schema.addition(
                share.name, options.host_path, read_only=options.read_only, allowed_names=options.allowed_names
            )
        )
        beside = options.directory, options.hide, options.map_owner
        reply = await link.ask(lambda number: control.Modify(number, document, *beside), self._modify_timeout)
        return reply.directory

    async def remove_plan9(self, share: NamedShare) -> None:
        """Remove a share; when this returns, no process serves it any more.

        `on_left` tells of processes that were killed and wait in the kernel for a file system that does not answer.
        Raises `ShareNotFound`, and what `add_plan9` raises for other reasons than its options.
        """
        await self._modify(schema.removal(share.name))

    async def list_plan9(self) -> dict[str, AddOptions]:
        """Return every share that is served, by its name; see `uvmshare.share.interfaces.ListsShares`.

        Waits for shares that are being removed. Raises what `remove_plan9` and `status` raise.
        """
        shares = (await self.status()).shares
        for share in shares:
            if share.leaving:
                with suppress(ShareNotFound):
                    await self._modify(schema.removal(share.name, share.document.port))
        return {
            share.name: AddOptions.recalled(
                share.path,
                read_only=share.read_only,
                allowed_names=tuple(sorted(share.document.allowed_files)),
                hide=share.hide,
                map_owner=share.map_owner,
                directory=share.directory,
            )
            for share in shares
            if not share.leaving
        }

    async def _modify(self, request: schema.ModifySettingRequest) -> None:
        """Have the supervisor carry out a modify document, which says all there is to say."""
        document = _raw(request)
        link = await self._require_link()
        reply = await link.ask(lambda number: control.Modify(number, document), self._modify_timeout)
        self._tell_left(reply)

    def _tell_left(self, reply: control.Reply) -> None:
        if reply.left:
            for callback in self._on_left:
                callback(reply.left)

    async def status(self, *, counters: bool = False) -> control.Reply:
        """Return the addresses, the shares, and the mount processes of each; with `counters`, also their counters.

        Raises `OutcomeUnknown`, `InvalidState` or `ComputeSystemGone`.
        """
        arguments.flag("counters", counters)
        return await (await self._require_link()).ask(
            lambda number: control.Status(number, counters=counters), self._modify_timeout
        )

    async def serve_until(self, until: float) -> None:
        """Serve until then, in seconds of CLOCK_BOOTTIME (clock_gettime(2)); a later call moves that on.

        Past it, mounts carry out no request, whoever is dead or stopped by then: their connections end, and the guest
        gets EIO. Guests may mount again when it is moved on. Shares stay. Raises what `status` raises, and
        `InvalidState` for a file server that was not started `fenced`.
        """
        arguments.seconds("until", until)
        await (await self._require_link()).ask(lambda number: control.ServeUntil(number, until), self._modify_timeout)

    async def _require_link(self) -> Link:
        link = self._require_started()
        if self._restarting is not None:
            await asyncio.wait({self._restarting}, timeout=self._modify_timeout)
        elif self._gone is None and await link.has_ended():
            self._note_end()
        if self._gone is not None:
            raise ComputeSystemGone(str(self._gone))
        if self._restarting is not None:
            msg = f"the file server in {self._run_dir!r} has died and is being started again: {self._trouble or 'wait'}"
            raise InvalidState(msg)
        link = self._require_started()
        if link.broken is not None and self._run_dir is None:
            msg = f"{link.broken}, and its process goes on, where nobody reaches it without a run directory"
            raise OutcomeUnknown(msg)
        return link

    def _require_started(self) -> Link:
        if not self._is_started:
            remedy = "was closed: make a new one" if self._closing else "is not started: use async with, or start it"
            msg = f"the file server {remedy}"
            raise InvalidState(msg)
        return self._link

    # Its end, and that of its supervisor, which are two things when there is a run directory

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        """Have `callback` called once, in the event loop, when the file server has ended by itself.

        See `uvmshare.share.interfaces.TellsExit`. Closing the file server does not call it. The end of a supervisor
        with a run directory calls it only if the supervisor was told to end.
        """
        arguments.function("callback", callback)
        if self._gone is None:
            self._on_exit.append(callback)
        else:
            asyncio.get_running_loop().call_soon(callback, self._gone)

    def on_takeover(self, callback: Callable[[control.Reply], None]) -> None:
        """Have `callback` called, in the event loop, whenever a new supervisor serves after one died.

        It gets what `status` would return: the shares that were taken over, and those that are `lost`. A Manager
        settles these by itself (`uvmshare.share.interfaces.TellsTakeover`).
        """
        self._on_takeover.append(arguments.function("callback", callback))

    def on_left(self, callback: Callable[[tuple[control.Left, ...]], None]) -> None:
        """Have `callback` called, in the event loop, with the processes that a removal, or `aclose`, leaves behind.

        Their connections are cut. `status` tells of them until they have ended.
        """
        self._on_left.append(arguments.function("callback", callback))

    async def wait_exit(self) -> str:
        """Return, with the reason, when the file server has ended, or was closed."""
        self._require_started()
        await self._exited.wait()
        return str(self._gone)

    def _note_end(self) -> None:
        """Take note that the supervisor's process has ended, or the channel to it broke."""
        if self._closing or self._gone is not None:
            return
        if self._run_dir is None:
            if self._require_started().ended:
                self._note_exit("the file server's process has ended")
        elif self._restarting is None:
            _log.warning("the supervisor in %r has died, and is started again", self._run_dir)
            self._restarting = asyncio.get_running_loop().create_task(self._restart(self._run_dir))

    async def _restart(self, run_dir: str) -> None:
        """Find the supervisor again, or have a new one take over."""
        died = self._require_started()
        await died.has_ended()
        await died.leave()
        if asyncio.get_running_loop().time() - self._linked_at > _RESTART_LONGEST:
            self._restart_wait.reset()
        while True:
            try:
                link = await Link.find_or_start(run_dir, self._run_as, self._log, self._cgroup, self._run)
                break
            except NoFileServer:
                self._restarting = None
                self._note_exit("the file server has ended")
                return
            except Exception as error:  # noqa: BLE001  what is found there is its user's, and this goes on whatever it is
                self._trouble = str(error) if isinstance(error, UvmshareError) else repr(error)
            await asyncio.sleep(self._restart_wait.next())
        self._restarting = None
        self._trouble = ""
        self._use(link)
        _log.info("another supervisor serves in %r; lost shares: %d", run_dir, len(link.greeting.lost))
        for callback in self._on_takeover:  # what it raises is the loop's to tell, and ends nothing here
            asyncio.get_running_loop().call_soon(callback, link.greeting)

    def _note_exit(self, reason: str) -> None:
        """Take note of the end for good: every mount has ended with it."""
        self._gone = ComputeSystemGone(reason)
        self._exited.set()
        callbacks, self._on_exit = self._on_exit, []
        if not self._closing:
            _log.error("%s", reason)
            for callback in callbacks:
                callback(self._gone)

    # Ending

    async def aclose(self) -> None:
        """End the supervisor and every mount; guests get EIO from then on. A second call does nothing.

        `on_left` tells of mount processes that wait in the kernel for a file system that does not answer, as after a
        removal. Raises `FileServerError` when the supervisor died and no new one can be started to end its mounts, or
        when a supervisor with a run directory does not confirm that they have ended.
        """
        if not self._is_started:
            self._closing = True
            return
        if not self._closing and self._restarting is not None:
            await asyncio.wait({self._restarting}, timeout=_END_SECONDS)
        first, self._closing = not self._closing, True
        dead = self._restarting is not None
        ended = True
        await self._stop_restarting()
        try:
            if first and self._gone is None and not dead:
                reply = await self._link.shut_down()
                ended = reply is not None or self._run_dir is None
                if reply is not None:
                    self._tell_left(reply)
        finally:
            await self._link.close()
            if self._gone is None:
                self._note_exit("the file server was closed")
        if dead:
            msg = (
                f"the file server in {self._run_dir!r} has died, its mounts go on, and none could be started to end "
                f"them: {self._trouble}"
            )
            raise FileServerError(msg)
        if not ended:
            msg = f"the file server in {self._run_dir!r} does not answer, and may go on with its mounts: end it"
            raise FileServerError(msg)

    async def detach(self) -> None:
        """Disconnect from a supervisor that has a run directory. It and its mounts keep running. See `connect`."""
        self._closing = True
        await self._stop_restarting()
        if not self._is_started:
            return
        await self._link.leave()
        if self._gone is None:
            self._note_exit("this side let go of the file server")

    def abandon(self) -> None:
        """Disconnect at once, as `detach` does, but wait for nothing. Requests under way have an unknown outcome."""
        self._closing = True
        if self._restarting is not None:
            self._restarting.cancel()
        if self._is_started:
            self._link.abandon()

    async def _stop_restarting(self) -> None:
        task, self._restarting = self._restarting, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def __aenter__(self) -> Self:
        return self if self._is_started and not self._closing else await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


def _raw(request: schema.ModifySettingRequest) -> msgspec.Raw:
    return msgspec.Raw(schema.encode(request))


def _require_linux() -> None:
    if sys.platform != "linux":
        msg = "the file server runs on Linux; on Windows, share with the VM's compute system (uvmshare.ComputeSystem)"
        raise UnsupportedPlatform(msg)


def _run_dir(path: str | os.PathLike[str]) -> str:
    return absolute("run_dir", path, InvalidOptions, utf8_for="what is written down in it")


def _make(run_dir: str) -> None:
    """Make a run directory, unless it is there."""
    try:
        make_directories(run_dir, 0o700)
    except OSError as error:
        msg = f"cannot make the run directory {run_dir!r}: {error.strerror}: give another one"
        raise FileServerError(msg) from error


def _limits(limits: Limits) -> Limits:
    if not isinstance(limits, Limits):
        arguments.refuse_type("limits", limits, "Limits, which `Limits.of` makes of names and numbers")
    return limits


def _require_user(run_as: RunAs | None) -> None:
    if run_as is None:
        return
    remedy = "a uid, a gid and a list of gids, such as (1000, 1000, (44,))"
    if not isinstance(run_as, tuple | list) or len(run_as) != 3 or not isinstance(run_as[2], tuple | list):
        arguments.refuse_type("run_as", run_as, remedy)
    for number in (run_as[0], run_as[1], *run_as[2]):
        if not isinstance(number, int) or isinstance(number, bool):
            arguments.refuse_type("run_as", run_as, remedy)
        if not 0 <= number < peers.NOBODY:
            arguments.refuse_value("run_as", run_as, remedy)
