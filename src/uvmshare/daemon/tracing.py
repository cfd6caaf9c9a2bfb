"""OpenTelemetry spans, from a request to the modify call that it comes to.

What lives here: the tracer, and the wrapper around what adds and removes shares. What must not: an SDK; without
one that the program sets up, a span is a call or two that do nothing.

::

    add share                     the request, or `map` and the others
      Manager.add                 what the caller waits for; several may wait for one call
        modify                    the call to the file server, by the one that came first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span

    from uvmshare.errors import ComputeSystemGone
    from uvmshare.fileserver.device import FileServer
    from uvmshare.share.interfaces import NamedShare
    from uvmshare.share.options import AddOptions

__all__ = ["TracedFileServer", "span"]

_tracer: Final = trace.get_tracer("uvmshare.daemon")


def span(name: str, **attributes: str | bool | None) -> AbstractContextManager[Span]:
    """Begin a span below the current one, for the length of a block; an error that leaves the block is noted in it."""
    known = {f"uvmshare.{key}": value for key, value in attributes.items() if value is not None}
    return _tracer.start_as_current_span(name, attributes=known)


class TracedFileServer:
    """A file server whose modify calls are spans, as `uvmshare.share.interfaces.VMPlan9`."""

    def __init__(self, server: FileServer, vm: str) -> None:
        self._server = server
        self._vm = vm

    async def add_plan9(self, share: NamedShare) -> str | None:
        """Add a share. Raises what `FileServer.add_plan9` does."""
        with span("modify", vm=self._vm, request="Add", share=share.name):
            return await self._server.add_plan9(share)

    async def remove_plan9(self, share: NamedShare) -> None:
        """Remove a share. Raises what `FileServer.remove_plan9` does."""
        with span("modify", vm=self._vm, request="Remove", share=share.name):
            await self._server.remove_plan9(share)

    async def list_plan9(self) -> Mapping[str, AddOptions]:
        """Return what is served."""
        return await self._server.list_plan9()

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        """Tell of the end of the file server."""
        self._server.on_exit(callback)

    def on_takeover(self, callback: Callable[[object], None]) -> None:
        """Tell that another supervisor has taken over."""
        self._server.on_takeover(callback)
