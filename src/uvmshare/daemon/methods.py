"""Methods of the daemon's clients, each made of the one description of its call.

What lives here: how a description becomes a method that waits, or one that is awaited; which methods belong together.
What must not: a connection (`client`), or what a call is (`calls`).
"""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, overload

from uvmshare import arguments
from uvmshare.daemon import calls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uvmshare.daemon.calls import Call
    from uvmshare.daemon.client import AsyncClient, Client

__all__ = [
    "Asked",
    "AsyncMounts",
    "AsyncOperations",
    "AsyncOwners",
    "AsyncShares",
    "AsyncVms",
    "Awaited",
    "Mounts",
    "Operations",
    "Owners",
    "Shares",
    "Vms",
]

P = ParamSpec("P")
T = TypeVar("T")


class Asked(Generic[P, T]):
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
        client = group.client if isinstance(group, _Group) else group

        def ask(*args: P.args, **more: P.kwargs) -> T:
            return client.ask(_described(self._describe, *args, **more))

        return _named(ask, self._describe)


class Awaited(Generic[P, T]):
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
        client = group.client if isinstance(group, _AsyncGroup) else group

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

    __call__ = Asked(calls.list_vms)
    get = Asked(calls.get_vm)
    add = Asked(calls.add_vm)
    remove = Asked(calls.remove_vm)
    stats = Asked(calls.stats)
    examine = Asked(calls.examine_guest)


class Shares(_Group):
    """Shares of VMs; called with a VM, it lists those that you hold."""

    __call__ = Asked(calls.list_shares)
    get = Asked(calls.get_share)
    add = Asked(calls.add_share)
    begin_add = Asked(calls.begin_add_share)
    release = Asked(calls.release_share)


class Mounts(_Group):
    """Mounts in the guests of VMs; called with a VM, it lists those that you hold."""

    __call__ = Asked(calls.list_mounts)
    map = Asked(calls.map_directory)
    unmap = Asked(calls.unmap_directory)


class Owners(_Group):
    """Those who hold shares and mounts: names of the caller's choice."""

    renew = Asked(calls.renew)
    release = Asked(calls.release_owner)


class Operations(_Group):
    """What takes a while, and was not waited for; called, it lists what there is."""

    __call__ = Asked(calls.list_operations)
    get = Asked(calls.operation)


class _AsyncGroup:
    """Some of a client's methods, which concern one kind of thing."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.client!r}>"


class AsyncVms(_AsyncGroup):
    """VMs that the daemon knows; called, it lists yours."""

    __call__ = Awaited(calls.list_vms)
    get = Awaited(calls.get_vm)
    add = Awaited(calls.add_vm)
    remove = Awaited(calls.remove_vm)
    stats = Awaited(calls.stats)
    examine = Awaited(calls.examine_guest)


class AsyncShares(_AsyncGroup):
    """Shares of VMs; called with a VM, it lists those that you hold."""

    __call__ = Awaited(calls.list_shares)
    get = Awaited(calls.get_share)
    add = Awaited(calls.add_share)
    begin_add = Awaited(calls.begin_add_share)
    release = Awaited(calls.release_share)


class AsyncMounts(_AsyncGroup):
    """Mounts in the guests of VMs; called with a VM, it lists those that you hold."""

    __call__ = Awaited(calls.list_mounts)
    map = Awaited(calls.map_directory)
    unmap = Awaited(calls.unmap_directory)


class AsyncOwners(_AsyncGroup):
    """Those who hold shares and mounts: names of the caller's choice."""

    renew = Awaited(calls.renew)
    release = Awaited(calls.release_owner)


class AsyncOperations(_AsyncGroup):
    """What takes a while, and was not waited for; called, it lists what there is."""

    __call__ = Awaited(calls.list_operations)
    get = Awaited(calls.operation)
