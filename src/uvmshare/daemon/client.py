"""The daemon's API for Python programs: the same names and the same errors as the library.

    with Client() as daemon:
        daemon.vms.add("build", listen=["firecracker:/run/fc/v.sock"])
        with daemon.holding("build", "/srv/project", lease=30) as share:
            ...  # the guest mounts the share of that name

What lives here: `Client`, and `AsyncClient` for programs with an event loop; the connection to the daemon's unix
socket. What must not: what can be asked (`uvmshare.daemon.calls` describes each call once, for both), or when a lease
is renewed (`uvmshare.daemon.holding`).
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from uvmshare import arguments
from uvmshare.daemon import calls
from uvmshare.daemon.calls import default_host
from uvmshare.daemon.holding import LEASE, Held, owner_of, renew_awaiting, renew_in_thread
from uvmshare.errors import DaemonError, InvalidOptions, UvmshareError
from uvmshare.process import require_process

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
    from types import TracebackType

    from uvmshare.daemon.calls import Call
    from uvmshare.daemon.documents import Event, Mount, Share
    from uvmshare.share.options import HostPath

__all__ = ["AsyncClient", "Client", "default_host"]

P = ParamSpec("P")
T = TypeVar("T")

_SECONDS: Final = 120.0
"""Longer than anything that the daemon waits for itself."""


class _Connection:
    """What both clients know of the daemon: where it is, and what goes wrong on the way to it."""

    def __init__(self, host: str | None, timeout: float) -> None:
        self.host = calls.require_host(host)
        self._path = self.host.removeprefix("unix:")
        self._timeout = arguments.seconds("timeout", timeout)
        self._is_closed = False
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of the daemon at {self.host}{': closed' if self._is_closed else ''}>"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        path = self._path
        if self._is_closed:
            msg = f"{self!r} asks nothing any more: make a new one"
            raise DaemonError(msg)
        require_process(self, self._process)
        nobody = f"no daemon answers at {path}: start one (uvmshare daemon), or name another with --host unix:PATH"
        if not os.path.exists(path):
            raise DaemonError(nobody)
        try:
            yield
        except httpx.ConnectError as error:
            if "Permission" in str(error):
                msg = f"{path}: you may not connect to the daemon: join the group of that socket, or start your own"
                raise DaemonError(msg) from error
            raise DaemonError(nobody) from error
        except httpx.TimeoutException as error:
            msg = f"{path}: the daemon gave no answer in time: what was asked may be done or not; see `uvmshare events`"
            raise DaemonError(msg) from error
        except httpx.InvalidURL as error:
            msg = f"{path}: a name in the request is too long, or holds what no name does: give another"
            raise InvalidOptions(msg) from error
        except httpx.HTTPError as error:
            msg = f"{path}: the daemon went away meanwhile: what was asked may be done or not; ask again"
            raise DaemonError(msg) from error

    @staticmethod
    def _sent(call: Call[Any]) -> dict[str, Any]:
        """Return what httpx is told of a request."""
        headers = {} if call.body is None else {"Content-Type": "application/json"}
        return {
            "method": call.method,
            "url": call.path,
            "params": dict(call.query),
            "content": call.body,
            "headers": headers,
        }


class _Asked(Generic[P, T]):
    """A method of a client that waits for the answer to the call that a function describes."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, group: None, cls: type) -> Self: ...

    @overload
    def __get__(self, group: Client | _Group, cls: type) -> Callable[P, T]: ...

    def __get__(self, group: Client | _Group | None, cls: type) -> Self | Callable[P, T]:
        if group is None:
            return self
        client = group if isinstance(group, Client) else group.client

        def ask(*args: P.args, **more: P.kwargs) -> T:
            return client.ask(_described(self._describe, *args, **more))

        return _named(ask, self._describe)


class _Awaited(Generic[P, T]):
    """A method of a client that awaits the answer to the call that a function describes."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    @overload
    def __get__(self, group: None, cls: type) -> Self: ...

    @overload
    def __get__(self, group: AsyncClient | _AsyncGroup, cls: type) -> Callable[P, Awaitable[T]]: ...

    def __get__(self, group: AsyncClient | _AsyncGroup | None, cls: type) -> Self | Callable[P, Awaitable[T]]:
        if group is None:
            return self
        client = group if isinstance(group, AsyncClient) else group.client

        async def ask(*args: P.args, **more: P.kwargs) -> T:
            return await client.ask(_described(self._describe, *args, **more))

        return _named(ask, self._describe)


def _described(describe: Callable[P, Call[T]], *args: P.args, **more: P.kwargs) -> Call[T]:
    arguments.only_known(describe.__name__, more, inspect.signature(describe).parameters)
    return describe(*args, **more)


def _named(ask: Callable[P, T], describe: Callable[P, Any]) -> Callable[P, T]:
    """Have a method show the name, words and arguments of what describes its call."""
    functools.update_wrapper(ask, describe)
    del ask.__wrapped__  # type: ignore[attr-defined]  # else a signature would be the description's, with its Call
    said = inspect.signature(describe)
    answer = str(said.return_annotation).removeprefix("Call[").removesuffix("]")
    ask.__signature__ = said.replace(return_annotation=answer)  # type: ignore[attr-defined]  # inspect reads it
    return ask


class _Group:
    """Some of a client's methods, which concern one kind of thing."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.client!r}>"


class Vms(_Group):
    """VMs that the daemon knows; called, it lists yours."""

    __call__ = _Asked(calls.list_vms)
    get = _Asked(calls.get_vm)
    add = _Asked(calls.add_vm)
    remove = _Asked(calls.remove_vm)
    stats = _Asked(calls.stats)
    examine = _Asked(calls.examine_guest)


class Shares(_Group):
    """Shares of VMs; called with a VM, it lists those that you hold."""

    __call__ = _Asked(calls.list_shares)
    get = _Asked(calls.get_share)
    add = _Asked(calls.add_share)
    begin_add = _Asked(calls.begin_add_share)
    release = _Asked(calls.release_share)


class Mounts(_Group):
    """Mounts in the guests of VMs; called with a VM, it lists those that you hold."""

    __call__ = _Asked(calls.list_mounts)
    map = _Asked(calls.map_directory)
    unmap = _Asked(calls.unmap_directory)


class Owners(_Group):
    """Those who hold shares and mounts: names of the caller's choice."""

    renew = _Asked(calls.renew)
    release = _Asked(calls.release_owner)


class Operations(_Group):
    """What takes a while, and was not waited for; called, it lists what there is."""

    __call__ = _Asked(calls.list_operations)
    get = _Asked(calls.operation)


class Client(_Connection):
    """The daemon, for programs that wait for its answers; from any number of threads.

    `host` is ``unix:PATH``, the daemon's socket; by default UVMSHARE_HOST, the user's own daemon or the system's. After
    `timeout` seconds without an answer a request raises `DaemonError`.

    Methods raise what the daemon said, as the same class that the library raises (`NotThere`, `InvalidOptions`,
    `OutcomeUnknown` ...), and `DaemonError` when there is no daemon. Arguments that cannot be are refused before
    anything is sent.
    """

    def __init__(self, host: str | None = None, *, timeout: float = _SECONDS) -> None:
        super().__init__(host, timeout)
        # Nothing of TLS or of a proxy is on a unix socket: SSL_CERT_FILE may name a file that is not here.
        transport = httpx.HTTPTransport(uds=self._path, verify=False, trust_env=False)
        self._http = httpx.Client(transport=transport, base_url="http://uvmshare", timeout=timeout, trust_env=False)
        self.vms = Vms(self)
        self.shares = Shares(self)
        self.mounts = Mounts(self)
        self.owners = Owners(self)
        self.operations = Operations(self)

    info = _Asked(calls.info)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. In a forked child that is left to the process that made it."""
        self._is_closed = True
        if os.getpid() == self._process:
            self._http.close()

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
    ) -> Iterator[Held[Share]]:
        """Hold a share for the length of a block, and renew its lease in the background (`uvmshare.daemon.holding`).

        Without `owner` the block has one of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding it raises. In the end it is released: `LeaseLost` says that it was not held any more,
        `DaemonError` that it could not be released. An error of the block goes first, and has a note of that.
        """
        owner = owner_of(owner)
        document = self.shares.add(
            vm, path, read_only=read_only, only=only, hide=hide, map_owner=map_owner, owner=owner, lease=lease
        )
        held = Held(
            document,
            owner,
            lease,
            renewal=calls.renew(owner, vm=vm, share=document.name),
            release=calls.release_share(vm, document.name, owner=owner),
        )
        with self._kept(held):
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
    ) -> Iterator[Held[Mount]]:
        """Hold a mapping for the length of a block, and renew its lease in the background (`uvmshare.daemon.holding`).

        Without `owner` the block has one of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding it raises. In the end it is released: `LeaseLost` says that it was not held any more,
        `DaemonError` that it could not be released. An error of the block goes first, and has a note of that.
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
        held = Held(
            document,
            owner,
            lease,
            renewal=calls.renew(owner),
            release=calls.unmap_directory(vm, guest_path, owner=owner),
        )
        with self._kept(held):
            yield held

    @contextmanager
    def _kept(self, held: Held[Any]) -> Iterator[None]:
        stop = renew_in_thread(held, lambda: self.ask(held.renewal))
        try:
            yield
        except BaseException as error:
            stop()
            try:
                self._release(held)
            except UvmshareError as more:
                error.add_note(f"and {more}")
            raise
        stop()
        self._release(held)

    def _release(self, held: Held[Any]) -> None:
        try:
            answer = self.ask(held.release)
        except UvmshareError as error:
            raise held.not_released(error) from error
        held.released(answer)

    # The same with documents that are made already, and by their former names.

    vm = _Asked(calls.get_vm)
    add_vm = _Asked(calls.post_vm)
    remove_vm = _Asked(calls.remove_vm)
    share = _Asked(calls.get_share)
    add_share = _Asked(calls.post_share)
    begin_add_share = _Asked(calls.begin_post_share)
    release_share = _Asked(calls.release_share)
    map = _Asked(calls.post_mount)
    unmap = _Asked(calls.unmap_directory)
    stats = _Asked(calls.stats)
    examine_guest = _Asked(calls.examine_guest)
    release_owner = _Asked(calls.release_owner)
    operation = _Asked(calls.operation)

    def renew(self, owner: str, *, lease: float | None = None, vm: str | None = None, share: str | None = None) -> int:
        """Let leases of an owner run afresh; return how many."""
        return self.owners.renew(owner, lease=lease, vm=vm, share=share).leases

    def ask(self, call: Call[T]) -> T:
        """Ask for what a call describes (`uvmshare.daemon.calls`), and return what was answered."""
        with self._explained():
            response = self._http.request(**self._sent(call))
        try:
            return calls.read(call, response.status_code, response.content)
        except calls.Unreadable as error:
            raise calls.no_daemon(self.host, error, self._version()) from error.error

    def _version(self) -> str | None:
        """Return the version of what answers; None when it is no daemon."""
        try:
            return calls.version_in(self._http.get(calls.VERSION).content)
        except httpx.HTTPError:
            return None

    def events(self, since: str | None = None, *, follow: bool = True) -> Iterator[Event | None]:
        """Give events as they happen; None where some are missing. Ends when the daemon does.

        `since` is the id of the last event that is known. With `follow` False it ends with the last that there is.
        """
        call = calls.events(since, follow=follow)
        lines = calls.EventLines()
        try:
            with self._explained(), self._http.stream(**self._sent(call), timeout=None) as response:
                if not response.is_success:
                    calls.check(response.status_code, response.read())
                for chunk in response.iter_bytes():
                    yield from lines.feed(chunk)
        except calls.Unreadable as error:
            raise calls.no_daemon(self.host, error, self._version()) from error.error


class _AsyncGroup:
    """Some of a client's methods, which concern one kind of thing."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.client!r}>"


class AsyncVms(_AsyncGroup):
    """VMs that the daemon knows; called, it lists yours."""

    __call__ = _Awaited(calls.list_vms)
    get = _Awaited(calls.get_vm)
    add = _Awaited(calls.add_vm)
    remove = _Awaited(calls.remove_vm)
    stats = _Awaited(calls.stats)
    examine = _Awaited(calls.examine_guest)


class AsyncShares(_AsyncGroup):
    """Shares of VMs; called with a VM, it lists those that you hold."""

    __call__ = _Awaited(calls.list_shares)
    get = _Awaited(calls.get_share)
    add = _Awaited(calls.add_share)
    begin_add = _Awaited(calls.begin_add_share)
    release = _Awaited(calls.release_share)


class AsyncMounts(_AsyncGroup):
    """Mounts in the guests of VMs; called with a VM, it lists those that you hold."""

    __call__ = _Awaited(calls.list_mounts)
    map = _Awaited(calls.map_directory)
    unmap = _Awaited(calls.unmap_directory)


class AsyncOwners(_AsyncGroup):
    """Those who hold shares and mounts: names of the caller's choice."""

    renew = _Awaited(calls.renew)
    release = _Awaited(calls.release_owner)


class AsyncOperations(_AsyncGroup):
    """What takes a while, and was not waited for; called, it lists what there is."""

    __call__ = _Awaited(calls.list_operations)
    get = _Awaited(calls.operation)


class AsyncClient(_Connection):
    """The daemon, for programs with an event loop: as `Client`, whose methods are awaited here. One event loop."""

    def __init__(self, host: str | None = None, *, timeout: float = _SECONDS) -> None:
        super().__init__(host, timeout)
        transport = httpx.AsyncHTTPTransport(uds=self._path, verify=False, trust_env=False)  # as for `Client`
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://uvmshare", timeout=timeout, trust_env=False
        )
        self.vms = AsyncVms(self)
        self.shares = AsyncShares(self)
        self.mounts = AsyncMounts(self)
        self.owners = AsyncOwners(self)
        self.operations = AsyncOperations(self)

    info = _Awaited(calls.info)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection."""
        self._is_closed = True
        await self._http.aclose()

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
    ) -> AsyncIterator[Held[Share]]:
        """Hold a share for the length of a block, and renew its lease in the background (`uvmshare.daemon.holding`).

        Without `owner` the block has one of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding it raises. In the end it is released: `LeaseLost` says that it was not held any more,
        `DaemonError` that it could not be released. An error of the block goes first, and has a note of that.
        """
        owner = owner_of(owner)
        document = await self.shares.add(
            vm, path, read_only=read_only, only=only, hide=hide, map_owner=map_owner, owner=owner, lease=lease
        )
        held = Held(
            document,
            owner,
            lease,
            renewal=calls.renew(owner, vm=vm, share=document.name),
            release=calls.release_share(vm, document.name, owner=owner),
        )
        async with self._kept(held):
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
    ) -> AsyncIterator[Held[Mount]]:
        """Hold a mapping for the length of a block, and renew its lease in the background (`uvmshare.daemon.holding`).

        Without `owner` the block has one of its own. With `lease` None there is no lease, and nothing is renewed.

        Raises what adding it raises. In the end it is released: `LeaseLost` says that it was not held any more,
        `DaemonError` that it could not be released. An error of the block goes first, and has a note of that.
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
        held = Held(
            document,
            owner,
            lease,
            renewal=calls.renew(owner),
            release=calls.unmap_directory(vm, guest_path, owner=owner),
        )
        async with self._kept(held):
            yield held

    @asynccontextmanager
    async def _kept(self, held: Held[Any]) -> AsyncIterator[None]:
        renewing = asyncio.get_running_loop().create_task(renew_awaiting(held, lambda: self.ask(held.renewal)))
        try:
            yield
        except BaseException as error:
            renewing.cancel()
            try:
                await self._release(held)
            except UvmshareError as more:
                error.add_note(f"and {more}")
            raise
        renewing.cancel()
        await self._release(held)

    async def _release(self, held: Held[Any]) -> None:
        # In a task of its own: a second cancellation breaks off the wait for it, and not the release.
        try:
            answer = await asyncio.shield(asyncio.ensure_future(self.ask(held.release)))
        except UvmshareError as error:
            raise held.not_released(error) from error
        held.released(answer)

    async def ask(self, call: Call[T]) -> T:
        """Ask for what a call describes (`uvmshare.daemon.calls`), and return what was answered."""
        with self._explained():
            response = await self._http.request(**self._sent(call))
        try:
            return calls.read(call, response.status_code, response.content)
        except calls.Unreadable as error:
            raise calls.no_daemon(self.host, error, await self._version()) from error.error

    async def _version(self) -> str | None:
        """Return the version of what answers; None when it is no daemon."""
        try:
            return calls.version_in((await self._http.get(calls.VERSION)).content)
        except httpx.HTTPError:
            return None

    async def events(self, since: str | None = None, *, follow: bool = True) -> AsyncIterator[Event | None]:
        """Give events as they happen, as `Client.events` does."""
        call = calls.events(since, follow=follow)
        lines = calls.EventLines()
        try:
            with self._explained():
                async with self._http.stream(**self._sent(call), timeout=None) as response:
                    if not response.is_success:
                        calls.check(response.status_code, await response.aread())
                    async for chunk in response.aiter_bytes():
                        for event in lines.feed(chunk):
                            yield event
        except calls.Unreadable as error:
            raise calls.no_daemon(self.host, error, await self._version()) from error.error
