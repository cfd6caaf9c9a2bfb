"""What the daemon is asked, over its unix socket and so with the rights of the user whose process this is.

What lives here: the requests and the documents of their answers. What must not: when they are made (`watcher`).
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from uvmshare.daemon.client import default_host
from uvmshare.daemon.documents import Event, Info, Mount, Problem, Share, Stats, Vm
from uvmshare.daemon.problems import to_exception
from uvmshare.errors import UNREADABLE, DaemonError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from types import TracebackType

__all__ = ["Source"]

T = TypeVar("T")

_SECONDS: Final = 15.0
"""For an answer. The daemon itself waits for a VM that it looks for, and for a file system, some seconds less."""


class Source:
    """The daemon, for one who only looks. Methods raise what it said, and `DaemonError` when it says nothing."""

    def __init__(self, host: str | None = None) -> None:
        self.host = host or default_host()
        if not self.host.startswith("unix:") or self.host == "unix:":
            msg = f"host {self.host!r}: the daemon is reached on a unix socket: write unix:PATH"
            raise DaemonError(msg)
        self.path = self.host.removeprefix("unix:")
        transport = httpx.AsyncHTTPTransport(uds=self.path, verify=False, trust_env=False)
        self._http = httpx.AsyncClient(
            transport=transport, base_url="http://uvmshare", timeout=_SECONDS, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def info(self) -> Info:
        """Return what the daemon is, and who you are to it."""
        return await self._ask("/v1/info", Info)

    async def vms(self) -> list[Vm]:
        """Return your VMs."""
        return await self._ask("/v1/vms", list[Vm])

    async def shares(self, vm: str) -> list[Share]:
        """Return the shares of a VM that you hold."""
        return await self._ask(f"/v1/vms/{quote(vm, safe=':@')}/shares", list[Share])

    async def mounts(self, vm: str) -> list[Mount]:
        """Return the mounts in a VM's guest that you hold."""
        return await self._ask(f"/v1/vms/{quote(vm, safe=':@')}/mounts", list[Mount])

    async def stats(self, vm: str) -> list[Stats]:
        """Return what a VM's guest has done with each share that you hold."""
        return await self._ask(f"/v1/vms/{quote(vm, safe=':@')}/stats", list[Stats])

    async def events(self, since: str) -> AsyncGenerator[Event | None, None]:
        """Give events behind that one, then new ones as they come; None where some are missing."""
        async with (
            self._explained(),
            self._http.stream("GET", "/v1/events", params={"since": since}, timeout=None) as response,
        ):
            if not response.is_success:
                raise _refused(response, await response.aread())
            kind = b""
            async for line in _lines(response.aiter_bytes()):
                field, _, value = line.partition(b": ")
                if field == b"event":
                    kind = value
                elif field == b"data":
                    yield None if kind == b"missed" else _read(value, Event)

    async def _ask(self, path: str, kind: type[T]) -> T:
        async with self._explained():
            response = await self._http.get(path)
        if not response.is_success:
            raise _refused(response, response.content)
        return _read(response.content, kind)

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            msg = (
                f"no daemon answers at {self.path}: start one (uvmshare daemon), or name another with --host unix:PATH"
            )
            if "Permission" in str(error):
                msg = (
                    f"{self.path}: you may not connect to the daemon: join the group of that socket, or start your own"
                )
            raise DaemonError(msg) from error
        except httpx.TimeoutException as error:
            msg = f"{self.path}: the daemon gave no answer within {_SECONDS:g} s"
            raise DaemonError(msg) from error
        except httpx.HTTPError as error:
            msg = f"{self.path}: the daemon went away meanwhile ({error})"
            raise DaemonError(msg) from error


def _read(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        msg = f"the daemon's answer cannot be read ({error}): is it a daemon of this version?"
        raise DaemonError(msg) from error


def _refused(response: httpx.Response, content: bytes) -> Exception:
    try:
        return to_exception(msgspec.json.decode(content, type=Problem))
    except UNREADABLE:
        return DaemonError(f"status {response.status_code}, and no reason that can be read: is it a uvmshare daemon?")


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Give the whole lines: a line feed ends one and nothing else does, whatever a name in it holds."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line
