"""The daemon's API for Python programs: the same names and the same errors as the library.

    with Client() as daemon:
        daemon.vms.add("build", listen=["firecracker:/run/fc/v.sock"])
        with daemon.holding("build", "/srv/project", lease=30) as share:
            ...  # the guest mounts the share of that name

What lives here: `Client`, `AsyncClient` for programs with an event loop, and the connection to the daemon's unix
socket. What must not: the calls (`client_calls` describes each once, for both clients), or when a lease is renewed
(`client_holding`).
"""

from __future__ import annotations

import os
import stat
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote, urlencode

import httpcore

from uvmshare import arguments
from uvmshare.daemon import client_answers, client_calls
from uvmshare.daemon.client_calls import default_host
from uvmshare.daemon.client_gates import AsyncGatePool, GatePool, tls_context
from uvmshare.daemon.client_holding import (
    LEASE,
    HeldDocument,
    held_mount,
    held_share,
    owner_of,
    renew_awaiting,
    renew_in_thread,
)
from uvmshare.daemon.client_methods import (
    Asked,
    AsyncHosts,
    AsyncMounts,
    AsyncOperations,
    AsyncOwners,
    AsyncShares,
    AsyncVms,
    Awaited,
    ClientHosts,
    ClientMounts,
    ClientOperations,
    ClientOwners,
    ClientShares,
    ClientVms,
)
from uvmshare.daemon.client_socket import FAILURES, async_pool, pool
from uvmshare.daemon.documents import MAX_TARGET
from uvmshare.errors import DaemonError, InvalidOptions, UvmshareError
from uvmshare.process import require_process

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator
    from types import TracebackType

    from uvmshare.daemon.client_answers import Call
    from uvmshare.daemon.documents import Event, Mount, Share
    from uvmshare.share.options import HostPath

__all__ = ["AsyncClient", "Client", "default_host"]

T = TypeVar("T")
D = TypeVar("D", "Share", "Mount")

_SECONDS: Final = 120.0
"""Longer than anything that the daemon waits for itself."""


def _not_yours(path: str) -> str:
    return f"{path}: you may not connect to the daemon: join the group of that socket, or start your own"


def _require_socket(path: str, nobody: str) -> None:
    """See that a daemon may listen there. Raises `DaemonError`, which says `nobody` unless more is known."""
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except PermissionError as error:
        raise DaemonError(_not_yours(path)) from error
    except OSError as error:
        raise DaemonError(nobody) from error
    if not is_socket:
        msg = f"{nobody} (what is there is no socket)"
        raise DaemonError(msg)


class _Connection:
    """What both clients know of the daemon: where it is, and what goes wrong on the way to it."""

    def __init__(self, host: str | None, timeout: float, certificate: str | None) -> None:
        self.host = client_calls.require_host(host)
        self._path = self.host.removeprefix("unix:")
        self._gates = client_calls.gates_of(self.host) if self.host.startswith("https:") else ()
        self._base = self._gates[0] if self._gates else "http://uvmshare"
        self._timeout = arguments.seconds("timeout", timeout)
        if certificate is not None:
            arguments.text("certificate", certificate, "give the path of a file in PEM (docs/fleet.md)")
        self._is_closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of the daemon at {self.host}{': closed' if self._is_closed else ''}>"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        path, what = self._path, "gate" if self._gates else "daemon"
        if self._is_closed:
            msg = f"{self!r} asks nothing any more: make a new one"
            raise DaemonError(msg)
        require_process(self, self._process)
        nobody = f"no daemon answers at {path}: start one (uvmshare daemon), or name another with --host unix:PATH"
        if self._gates:
            nobody = f"no gate of the fleet answers at {path}"
        else:
            _require_socket(path, nobody)
        try:
            yield
        except httpcore.ConnectError as error:
            if "Permission" in str(error):
                raise DaemonError(_not_yours(path)) from error
            if self._gates:
                nobody += f" ({error}): start one (uvmshare gate), or name another with --host https://NAME:PORT"
            raise DaemonError(nobody) from error
        except httpcore.TimeoutException as error:
            msg = f"{path}: the {what} gave no answer in time: what was asked may be done or not; see `uvmshare events`"
            raise DaemonError(msg) from error
        except FAILURES as error:
            msg = f"{path}: the {what} went away meanwhile: what was asked may be done or not; ask again"
            if self._gates:
                msg = f"{path}: the gate took no request, or went away ({error}): is the certificate one of its fleet?"
            raise DaemonError(msg) from error

    def _sent(self, call: Call[Any], *, timeout: float | None) -> dict[str, Any]:
        """Return what httpcore is told of a request. Raises `InvalidOptions`."""
        target = call.path + (f"?{urlencode(call.query, quote_via=quote)}" if call.query else "")
        if len(target) > MAX_TARGET:
            msg = f"the names in this request have more than {MAX_TARGET} bytes as they are sent: give shorter ones"
            raise InvalidOptions(msg)
        return {
            "method": call.method,
            "url": self._base + target,
            "headers": [] if call.body is None else [(b"Content-Type", b"application/json")],
            "content": call.body,
            "extensions": {"timeout": dict.fromkeys(("connect", "read", "write", "pool"), timeout)},
        }


class Client(_Connection):
    """The daemon's API for synchronous programs. Any number of threads may use one client.

    `host` is the daemon's socket, ``unix:PATH``. The default is UVMSHARE_HOST, else the user's own daemon, else the
    system's. `host` may also be a gate of a fleet, ``https://NAME:PORT``, or several gates with commas, which are tried
    in order. `certificate` is then the file with the caller's certificate; the default is UVMSHARE_CERT. After
    `timeout` seconds without an answer a request raises `DaemonError`.

    An error of the daemon is raised as the class that the library raises for it (`NotThere`, `InvalidOptions`,
    `OutcomeUnknown` ...). Without a daemon, methods raise `DaemonError`. Invalid arguments are refused before anything
    is sent.
    """

    def __init__(self, host: str | None = None, *, timeout: float = _SECONDS, certificate: str | None = None) -> None:
        super().__init__(host, timeout, certificate)
        self._pool = GatePool(self._gates, tls_context(certificate)) if self._gates else pool(self._path)
        self.vms = ClientVms(self)
        self.hosts = ClientHosts(self)
        self.shares = ClientShares(self)
        self.mounts = ClientMounts(self)
        self.owners = ClientOwners(self)
        self.operations = ClientOperations(self)

    info = Asked(client_calls.info)
    health = Asked(client_calls.health)
    following = Asked(client_calls.following)
    accept_fleet = Asked(client_calls.accept_fleet)
    offer_vm = Asked(client_calls.offer_vm)
    served = Asked(client_calls.served)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. In a forked child this does nothing: the process that made the client closes it."""
        self._is_closed = True
        if os.getpid() == self._process:
            self._pool.close()

    @contextmanager
    def holding(
        self,
        vm: str,
        path: HostPath,
        *,
        read_only: bool = False,
        only: Collection[str] = (),
        hide: Collection[str] = (),
        map_owner: str | None = None,
        owner: str | None = None,
        lease: float | None = LEASE,
    ) -> Iterator[HeldDocument[Share]]:
        """Hold a share for the length of a block, and renew its lease in the background (`client_holding`).

        Without `owner` the block has an owner of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding raises. The end of the block releases it. `LeaseLost` then says that it was no longer held,
        `DaemonError` that it could not be released. If the block itself raised an error, that error is raised, with a
        note of the other.
        """
        owner = owner_of(owner)
        document = self.shares.add(
            vm, path, read_only=read_only, only=only, hide=hide, map_owner=map_owner, owner=owner, lease=lease
        )
        with self._kept(held_share(vm, document, owner, lease)) as held:
            yield held

    @contextmanager
    def mapping(
        self,
        vm: str,
        path: HostPath,
        guest_path: str,
        *,
        read_only: bool = False,
        only: Collection[str] = (),
        hide: Collection[str] = (),
        map_owner: str | None = None,
        owner: str | None = None,
        lease: float | None = LEASE,
    ) -> Iterator[HeldDocument[Mount]]:
        """Hold a mapping for the length of a block, and renew its lease in the background (`client_holding`).

        Without `owner` the block has an owner of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding raises. The end of the block releases it. `LeaseLost` then says that it was no longer held,
        `DaemonError` that it could not be released. If the block itself raised an error, that error is raised, with a
        note of the other.
        """
        owner = owner_of(owner)
        document = self.mounts.map(
            vm,
            path,
            guest_path,
            read_only=read_only,
            only=only,
            hide=hide,
            map_owner=map_owner,
            owner=owner,
            lease=lease,
        )
        with self._kept(held_mount(vm, guest_path, document, owner, lease)) as held:
            yield held

    @contextmanager
    def _kept(self, held: HeldDocument[D]) -> Iterator[HeldDocument[D]]:
        stop = renew_in_thread(held, lambda: self.ask(held.renewal))
        try:
            yield held
        except BaseException as error:
            stop()
            try:
                self._release(held)
            except UvmshareError as more:
                error.add_note(f"and {more}")
            raise
        stop()
        self._release(held)

    def _release(self, held: HeldDocument[Any]) -> None:
        try:
            answer = self.ask(held.release)
        except UvmshareError as error:
            raise held.not_released(error) from error
        held.released(answer)

    def ask(self, call: Call[T]) -> T:
        """Send the request that `call` describes (`uvmshare.daemon.client_calls`), and return the answer."""
        with self._explained():
            response = self._pool.request(**self._sent(call, timeout=self._timeout))
        try:
            return client_answers.read(call, response.status, response.content)
        except client_answers.Unreadable as error:
            raise client_answers.no_daemon(self.host, error, self._version()) from error.error

    def _version(self) -> str | None:
        """Return the version of what answers; None when it is no daemon."""
        try:
            sent = self._sent(client_calls.info(), timeout=self._timeout)
            return client_answers.version_in(self._pool.request(**sent).content)
        except FAILURES:
            return None

    def events(self, since: str | None = None, *, follow: bool = True) -> Iterator[Event | None]:
        """Yield events as they happen, and None where some are missing. The iterator ends when the daemon ends.

        `since` is the id of the last event that the caller knows. With `follow` False the iterator ends after the last
        event.
        """
        call = client_calls.events(since, follow=follow)
        lines = client_answers.EventLines()
        try:
            with self._explained(), self._pool.stream(**self._sent(call, timeout=None)) as response:
                if response.status >= 300:
                    client_answers.check(response.status, response.read())
                for chunk in response.iter_stream():
                    yield from lines.feed(chunk)
        except client_answers.Unreadable as error:
            raise client_answers.no_daemon(self.host, error, self._version()) from error.error


class AsyncClient(_Connection):
    """The daemon's API for programs with an event loop: the methods of `Client`, awaited. For one event loop."""

    def __init__(self, host: str | None = None, *, timeout: float = _SECONDS, certificate: str | None = None) -> None:
        super().__init__(host, timeout, certificate)
        self._pool = AsyncGatePool(self._gates, tls_context(certificate)) if self._gates else async_pool(self._path)
        self.vms = AsyncVms(self)
        self.hosts = AsyncHosts(self)
        self.shares = AsyncShares(self)
        self.mounts = AsyncMounts(self)
        self.owners = AsyncOwners(self)
        self.operations = AsyncOperations(self)

    info = Awaited(client_calls.info)
    health = Awaited(client_calls.health)
    following = Awaited(client_calls.following)
    accept_fleet = Awaited(client_calls.accept_fleet)
    offer_vm = Awaited(client_calls.offer_vm)
    served = Awaited(client_calls.served)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        self._is_closed = True
        await self._pool.aclose()

    @asynccontextmanager
    async def holding(
        self,
        vm: str,
        path: HostPath,
        *,
        read_only: bool = False,
        only: Collection[str] = (),
        hide: Collection[str] = (),
        map_owner: str | None = None,
        owner: str | None = None,
        lease: float | None = LEASE,
    ) -> AsyncIterator[HeldDocument[Share]]:
        """Hold a share for the length of a block, and renew its lease in the background (`client_holding`).

        Without `owner` the block has an owner of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding raises. The end of the block releases it. `LeaseLost` then says that it was no longer held,
        `DaemonError` that it could not be released. If the block itself raised an error, that error is raised, with a
        note of the other.
        """
        owner = owner_of(owner)
        document = await self.shares.add(
            vm, path, read_only=read_only, only=only, hide=hide, map_owner=map_owner, owner=owner, lease=lease
        )
        async with self._kept(held_share(vm, document, owner, lease)) as held:
            yield held

    @asynccontextmanager
    async def mapping(
        self,
        vm: str,
        path: HostPath,
        guest_path: str,
        *,
        read_only: bool = False,
        only: Collection[str] = (),
        hide: Collection[str] = (),
        map_owner: str | None = None,
        owner: str | None = None,
        lease: float | None = LEASE,
    ) -> AsyncIterator[HeldDocument[Mount]]:
        """Hold a mapping for the length of a block, and renew its lease in the background (`client_holding`).

        Without `owner` the block has an owner of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding raises. The end of the block releases it. `LeaseLost` then says that it was no longer held,
        `DaemonError` that it could not be released. If the block itself raised an error, that error is raised, with a
        note of the other.
        """
        owner = owner_of(owner)
        document = await self.mounts.map(
            vm,
            path,
            guest_path,
            read_only=read_only,
            only=only,
            hide=hide,
            map_owner=map_owner,
            owner=owner,
            lease=lease,
        )
        async with self._kept(held_mount(vm, guest_path, document, owner, lease)) as held:
            yield held

    @asynccontextmanager
    async def _kept(self, held: HeldDocument[D]) -> AsyncIterator[HeldDocument[D]]:
        import asyncio  # noqa: PLC0415  `Client`, and with it every command, need not load it

        renewing = asyncio.get_running_loop().create_task(renew_awaiting(held, lambda: self.ask(held.renewal)))
        try:
            yield held
        except BaseException as error:
            renewing.cancel()
            try:
                await self._release(held)
            except UvmshareError as more:
                error.add_note(f"and {more}")
            raise
        renewing.cancel()
        await self._release(held)

    async def _release(self, held: HeldDocument[Any]) -> None:
        import asyncio  # noqa: PLC0415  as above

        # In a task of its own: a second cancellation breaks off the wait for it, and not the release.
        try:
            answer = await asyncio.shield(asyncio.ensure_future(self.ask(held.release)))
        except UvmshareError as error:
            raise held.not_released(error) from error
        held.released(answer)

    async def ask(self, call: Call[T]) -> T:
        """Send the request that `call` describes (`uvmshare.daemon.client_calls`), and return the answer."""
        with self._explained():
            response = await self._pool.request(**self._sent(call, timeout=self._timeout))
        try:
            return client_answers.read(call, response.status, response.content)
        except client_answers.Unreadable as error:
            raise client_answers.no_daemon(self.host, error, await self._version()) from error.error

    async def _version(self) -> str | None:
        """Return the version of what answers; None when it is no daemon."""
        try:
            sent = self._sent(client_calls.info(), timeout=self._timeout)
            return client_answers.version_in((await self._pool.request(**sent)).content)
        except FAILURES:
            return None

    async def events(self, since: str | None = None, *, follow: bool = True) -> AsyncGenerator[Event | None, None]:
        """Yield events as they happen, as `Client.events` does."""
        call = client_calls.events(since, follow=follow)
        lines = client_answers.EventLines()
        try:
            with self._explained():
                async with self._pool.stream(**self._sent(call, timeout=None)) as response:
                    if response.status >= 300:
                        client_answers.check(response.status, await response.aread())
                    async for chunk in response.aiter_stream():
                        for event in lines.feed(chunk):
                            yield event
        except client_answers.Unreadable as error:
            raise client_answers.no_daemon(self.host, error, await self._version()) from error.error
