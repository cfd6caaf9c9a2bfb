"""Methods of the daemon's clients, each made from the description of its call.

What lives here: how a description becomes a method that waits, or one that is awaited; which methods belong together.
What must not: a connection (`client`), or what a call is (`client_calls`).
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, overload

from uvmshare import arguments
from uvmshare.daemon import client_calls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uvmshare.daemon.client import AsyncClient, Client
    from uvmshare.daemon.client_answers import Call

__all__ = [
    "Asked",
    "AsyncHosts",
    "AsyncMounts",
    "AsyncOperations",
    "AsyncOwners",
    "AsyncShares",
    "AsyncVms",
    "Awaited",
    "ClientHosts",
    "ClientMounts",
    "ClientOperations",
    "ClientOwners",
    "ClientShares",
    "ClientVms",
]

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound="Client | AsyncClient")
A = TypeVar("A", bound="Callable[..., Any]")


class _Group(Generic[C]):
    """Some of a client's methods, which concern one kind of thing."""

    def __init__(self, client: C) -> None:
        self.client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.client!r}>"


class _Method(Generic[P, T]):
    """A method of a client or of a group of its methods, made of the function that describes its call."""

    def __init__(self, describe: Callable[P, Call[T]]) -> None:
        self._describe = describe
        self.__doc__ = describe.__doc__

    @functools.cached_property
    def _said(self) -> inspect.Signature:
        return inspect.signature(self._describe)

    @functools.cached_property
    def _shown(self) -> inspect.Signature:
        """Its arguments and what is answered, without the call."""
        answer = str(self._said.return_annotation).removeprefix("Call[").removesuffix("]")
        return self._said.replace(return_annotation=answer)

    def _call(self, *args: P.args, **more: P.kwargs) -> Call[T]:
        arguments.only_known(self._describe.__name__, more, self._said.parameters)
        return self._describe(*args, **more)

    def _named(self, ask: A) -> A:
        """Have a method show the name, words and arguments of what describes its call."""
        functools.update_wrapper(ask, self._describe)
        del ask.__wrapped__  # type: ignore[attr-defined]  # else a signature would be the description's, with its Call
        ask.__signature__ = self._shown  # type: ignore[attr-defined]  # inspect reads it
        return ask


class Asked(_Method[P, T]):
    """A method that waits for the answer."""

    @overload
    def __get__(self, group: None, cls: type) -> Self: ...

    @overload
    def __get__(self, group: Client | _Group[Client], cls: type) -> Callable[P, T]: ...

    def __get__(self, group: Client | _Group[Client] | None, cls: type) -> Self | Callable[P, T]:
        if group is None:
            return self
        client = group.client if isinstance(group, _Group) else group

        def ask(*args: P.args, **more: P.kwargs) -> T:
            return client.ask(self._call(*args, **more))

        return self._named(ask)


class Awaited(_Method[P, T]):
    """A method whose answer is awaited."""

    @overload
    def __get__(self, group: None, cls: type) -> Self: ...

    @overload
    def __get__(self, group: AsyncClient | _Group[AsyncClient], cls: type) -> Callable[P, Awaitable[T]]: ...

    def __get__(self, group: AsyncClient | _Group[AsyncClient] | None, cls: type) -> Self | Callable[P, Awaitable[T]]:
        if group is None:
            return self
        client = group.client if isinstance(group, _Group) else group

        async def ask(*args: P.args, **more: P.kwargs) -> T:
            return await client.ask(self._call(*args, **more))

        return self._named(ask)


class ClientVms(_Group["Client"]):
    """VMs that the daemon knows. Call it to list yours."""

    __call__ = Asked(client_calls.list_vms)
    get = Asked(client_calls.get_vm)
    add = Asked(client_calls.add_vm)
    remove = Asked(client_calls.remove_vm)
    move = Asked(client_calls.move_vm)
    clone = Asked(client_calls.clone_vm)
    join = Asked(client_calls.join_vm)
    leave = Asked(client_calls.leave_vm)
    stats = Asked(client_calls.stats)
    examine = Asked(client_calls.examine_guest)


class ClientShares(_Group["Client"]):
    """Shares of VMs. Call it with a VM to list the shares that you hold."""

    __call__ = Asked(client_calls.list_shares)
    get = Asked(client_calls.get_share)
    add = Asked(client_calls.add_share)
    begin_add = Asked(client_calls.begin_add_share)
    release = Asked(client_calls.release_share)


class ClientMounts(_Group["Client"]):
    """Mounts in the guests of VMs. Call it with a VM to list the mounts that you hold."""

    __call__ = Asked(client_calls.list_mounts)
    map = Asked(client_calls.map_directory)
    unmap = Asked(client_calls.unmap_directory)


class ClientOwners(_Group["Client"]):
    """Owners, who hold shares and mounts. Callers choose their names."""

    renew = Asked(client_calls.renew)
    release = Asked(client_calls.release_owner)


class ClientOperations(_Group["Client"]):
    """Operations that nobody waited for. Call it to list them."""

    __call__ = Asked(client_calls.list_operations)
    get = Asked(client_calls.operation)


class ClientHosts(_Group["Client"]):
    """Hosts of a fleet. Call it to list them."""

    __call__ = Asked(client_calls.list_hosts)
    remove = Asked(client_calls.remove_host)
    write_back = Asked(client_calls.write_back)


class AsyncHosts(_Group["AsyncClient"]):
    """Hosts of a fleet. Call it to list them."""

    __call__ = Awaited(client_calls.list_hosts)
    remove = Awaited(client_calls.remove_host)
    write_back = Awaited(client_calls.write_back)


class AsyncVms(_Group["AsyncClient"]):
    """VMs that the daemon knows. Call it to list yours."""

    __call__ = Awaited(client_calls.list_vms)
    get = Awaited(client_calls.get_vm)
    add = Awaited(client_calls.add_vm)
    remove = Awaited(client_calls.remove_vm)
    move = Awaited(client_calls.move_vm)
    clone = Awaited(client_calls.clone_vm)
    join = Awaited(client_calls.join_vm)
    leave = Awaited(client_calls.leave_vm)
    stats = Awaited(client_calls.stats)
    examine = Awaited(client_calls.examine_guest)


class AsyncShares(_Group["AsyncClient"]):
    """Shares of VMs. Call it with a VM to list the shares that you hold."""

    __call__ = Awaited(client_calls.list_shares)
    get = Awaited(client_calls.get_share)
    add = Awaited(client_calls.add_share)
    begin_add = Awaited(client_calls.begin_add_share)
    release = Awaited(client_calls.release_share)


class AsyncMounts(_Group["AsyncClient"]):
    """Mounts in the guests of VMs. Call it with a VM to list the mounts that you hold."""

    __call__ = Awaited(client_calls.list_mounts)
    map = Awaited(client_calls.map_directory)
    unmap = Awaited(client_calls.unmap_directory)


class AsyncOwners(_Group["AsyncClient"]):
    """Owners, who hold shares and mounts. Callers choose their names."""

    renew = Awaited(client_calls.renew)
    release = Awaited(client_calls.release_owner)


class AsyncOperations(_Group["AsyncClient"]):
    """Operations that nobody waited for. Call it to list them."""

    __call__ = Awaited(client_calls.list_operations)
    get = Awaited(client_calls.operation)
