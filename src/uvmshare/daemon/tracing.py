"""OpenTelemetry spans, from a request to the modify call that it comes to.

What lives here: the tracer, and the wrapper around what carries modify documents out. What must not: an SDK; without
one that the program sets up, a span is a call or two that do nothing.

::

    add share                     the request, or `map` and the others
      add_to_vm                   what the caller waits for; several may wait for one call
        modify                    the document that was sent, by the one that came first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from opentelemetry import trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span

    from uvmshare.errors import ComputeSystemGone
    from uvmshare.fileserver.device import FileServer
    from uvmshare.hcs import schema

__all__ = ["TracedFileServer", "span"]

_tracer: Final = trace.get_tracer("uvmshare.daemon")


def span(name: str, **attributes: str | bool | None) -> AbstractContextManager[Span]:
    """Begin a span below the current one, for the length of a block; an error that leaves the block is noted in it."""
    known = {f"uvmshare.{key}": value for key, value in attributes.items() if value is not None}
    return _tracer.start_as_current_span(name, attributes=known)


class TracedFileServer:
    """A file server whose modify calls are spans, as `uvmshare.hcs.utility_vm.ComputeSystem`."""

    def __init__(self, server: FileServer, vm: str) -> None:
        self._server = server
        self._vm = vm

    async def modify(self, request: schema.ModifySettingRequest) -> None:
        """Carry the request out. Raises what `FileServer.modify` does."""
        with self._span(request):
            await self._server.modify(request)

    async def add_share(self, request: schema.ModifySettingRequest, beside: schema.Beside) -> str | None:
        """Add a share, if its path leads to that directory. Raises what `FileServer.add_share` does."""
        with self._span(request):
            return await self._server.add_share(request, beside)

    def _span(self, request: schema.ModifySettingRequest) -> AbstractContextManager[Span]:
        kind = request.request_type.value if request.request_type is not None else None
        share = request.settings.access_name if request.settings is not None else None
        return span("modify", vm=self._vm, request=kind, share=share)

    async def plan9_beside(self) -> dict[str, schema.Beside]:
        """Return what the documents do not say of each share."""
        return await self._server.plan9_beside()

    async def plan9_shares(self) -> tuple[schema.Plan9Share, ...]:
        """Return what is served."""
        return await self._server.plan9_shares()

    def on_exit(self, callback: Callable[[ComputeSystemGone], None]) -> None:
        """Tell of the end of the file server."""
        self._server.on_exit(callback)
