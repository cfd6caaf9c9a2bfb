"""The HTTP API: paths, parameters, statuses, and the OpenAPI document that comes of them.

What lives here: the routes; each asks `service` and returns its answer. What must not: a decision.

Every path but /metrics is below /v1. The caller is known from the connection (`connections`), never from the request.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

import msgspec
from litestar import Litestar, Request, Response, Router, delete, get, post, put
from litestar.di import NamedDependency, Provide
from litestar.exceptions import ClientException, HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, JSONBody, PathParameter, QueryParameter
from litestar.response import Stream

from uvmshare.daemon import metrics
from uvmshare.daemon.connections import (
    MAX_BODY,
    MAX_CHUNKS,
    MAX_HEAD,
    MAX_HEADERS,
    PEER,
    READ_SECONDS,
    TAKE_SECONDS,
    USER_BYTES,
    USER_CONNECTIONS,
)
from uvmshare.daemon.documents import (
    DEFAULT_OWNER,
    MAX_TARGET,
    NAME,
    REQUESTS,
    Event,
    EventMessage,
    Finding,
    Health,
    Info,
    Mount,
    NewMount,
    NewShare,
    NewVm,
    Operation,
    Problem,
    Released,
    ReleasedOwner,
    Removed,
    Renewal,
    Renewed,
    Share,
    Stats,
    Vm,
)
from uvmshare.daemon.identity import Identity
from uvmshare.daemon.incoming import require_well_formed
from uvmshare.daemon.operations import Running
from uvmshare.daemon.problems import PROBLEM_TYPE, Refused, problem_of, words_of
from uvmshare.daemon.service import Service
from uvmshare.daemon.shares import whose
from uvmshare.daemon.store import name_for
from uvmshare.daemon.tracing import span
from uvmshare.errors import LimitReached, UvmshareError
from uvmshare.printable import json_text

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

__all__ = [
    "ACCEPTED",
    "EVENTS",
    "FAILURES",
    "Force",
    "GuestPath",
    "OwnerInPath",
    "OwnerInQuery",
    "ShareName",
    "VmName",
    "Wait",
    "application",
    "event_message",
    "event_stream",
    "get_openapi",
    "make_app",
    "peer_of",
]

T = TypeVar("T")

_MAX_THING: Final = 300
"""Characters of what was asked for that an error says again."""

_DESCRIPTION: Final = f"""Host directories for running VMs.

A body has at most {MAX_BODY} bytes in {MAX_CHUNKS} pieces (413), path and query {MAX_TARGET} (414), all headers
{MAX_HEADERS} lines and {MAX_HEAD} bytes (431). A request comes to its end within {READ_SECONDS:g} s (408), an answer is
taken within {TAKE_SECONDS:g} s, or the connection is cut. A user has at most {USER_CONNECTIONS} connections, and
{USER_BYTES} bytes of requests that are not answered yet (429). A request that is refused for one of these, or
because it is no HTTP, ends its connection. docs/daemon.md has the others."""

TheService = NamedDependency[Service]
Who = NamedDependency[Identity]
VmName = Annotated[
    str, PathParameter(description="A VM's id. Root names another user's VM UID:ID.", max_length=128, min_length=1)
]
ShareName = Annotated[str, PathParameter(description="A share's name, a decimal number.", max_length=32, min_length=1)]
OperationId = Annotated[str, PathParameter(description="An operation's id.", max_length=64, min_length=1)]
OwnerInPath = Annotated[str, PathParameter(description="Who holds it.", pattern=NAME, max_length=128, min_length=1)]
OwnerInQuery = Annotated[str, QueryParameter(description="Who holds it.", pattern=NAME, max_length=128, min_length=1)]
GuestPath = Annotated[str, QueryParameter(description="Where the guest has it mounted.", min_length=2, max_length=4095)]
Uid = Annotated[int | None, QueryParameter(description="Root only: whose owner is meant.", ge=0, le=0xFFFFFFFE)]
Force = Annotated[
    bool,
    QueryParameter(description="Take it from all owners of yours (root: from everybody), whatever the guest says."),
]
Wait = Annotated[
    bool,
    QueryParameter(description="Whether to answer when it is done. If false: 202 and the operation, which goes on."),
]

FAILURES: Final = {
    status: ResponseSpec(data_container=Problem, description=words, media_type=PROBLEM_TYPE, generate_examples=False)
    for status, words in {
        400: "The request cannot be read.",
        403: "The user may not.",
        404: "It is not there, or not the user's.",
        408: "The request did not come to its end in time.",
        409: "It conflicts with what is there.",
        410: "The VM is gone.",
        413: "The body is too large.",
        414: "Path and query are too long.",
        415: "The document is not said to be JSON.",
        422: "The request has an invalid value.",
        429: "The user has reached a limit.",
        431: "The headers are too large, or too many.",
        500: "A defect.",
        501: "This system does not have it.",
        502: "The file server, or the compute system, refused.",
        503: "The service behind it is away.",
        504: "No answer came in time; what may be left is removed.",
        507: "The host's disk is full.",
    }.items()
}
ACCEPTED: Final = {
    202: ResponseSpec(data_container=Operation, description="It goes on.", generate_examples=False),
    **FAILURES,
}


def peer_of(request: Request[Any, Any, Any]) -> Any:
    """Return who is at the other end of the connection of a request, as `ClientConnection.identify` found it."""
    scope: dict[str, Any] = request.scope  # type: ignore[assignment]  # the server puts more into it
    return scope[PEER]


def _who(request: Request[Any, Any, Any], service: TheService) -> Identity:
    who: Identity = peer_of(request)
    service.admit(who)
    return who


async def _answer(
    service: Service,
    who: Identity,
    action: tuple[str, str],
    work: Coroutine[Any, Any, T],
    status: int,
    *,
    wait: bool,
    document: object = None,
) -> T:
    """Do something that takes a while, and wait for it or not, as asked.

    What it really returns is a `Response` with a T in it, or with the operation; the route's own return type stays what
    the OpenAPI document is made of.
    """
    try:
        service.quotas.require_room_for_operation(who, service.operations.under_way(who.uid))
    except LimitReached:
        work.close()
        raise
    running = service.operations.start(*action, who.uid, _traced(*action, work), len(msgspec.json.encode(document)))
    if not wait:
        where = {"Location": f"/v1/operations/{running.id}"}
        return cast("T", Response(_operation(running), status_code=202, headers=where))
    # A client that goes away does not end it; cancelling this one does not either.
    assert running.task is not None, "it has just begun"
    result = await asyncio.shield(running.task)
    return cast("T", Response(result, status_code=status))


async def _traced(action: str, vm: str, work: Coroutine[Any, Any, T]) -> T:
    with span(action, vm=vm):
        return await work


def _operation(running: Running) -> Operation:
    return Operation(
        id=running.id,
        action=running.action,
        vm=running.vm,
        state="running" if running.ended is None else "succeeded" if running.problem is None else "failed",
        started=datetime.fromtimestamp(running.started, UTC),
        ended=None if running.ended is None else datetime.fromtimestamp(running.ended, UTC),
        result=running.result,
        problem=running.problem,
    )


# The routes, in the order of the OpenAPI document.


@get("/info", summary="The daemon", responses=FAILURES)
async def get_info(*, service: TheService, who: Who) -> Info:
    """Tell its version, and who you are to it."""
    return service.info(who)


@get("/health", summary="Whether it is well", responses=FAILURES)
async def get_health(*, service: TheService, who: Who) -> Health:
    """Answer, for monitoring: 200 when the daemon can write down what it does, 503 with the reason when it cannot."""
    return service.health(who)


@get("/vms", summary="List VMs", responses=FAILURES)
async def list_vms(*, service: TheService, who: Who) -> list[Vm]:
    """List your VMs; for root, all VMs."""
    machines = service.visible(who)
    await asyncio.gather(*(machine.reachable.look(machine.addresses) for machine in machines))
    return [service.vm(who, machine) for machine in machines]


@post("/vms", summary="Add a VM", responses=ACCEPTED)
async def add_vm(*, service: TheService, who: Who, data: JSONBody[NewVm], wait: Wait = True) -> Vm:
    """Start a file server for a VM, with your rights. To add the same VM again changes nothing."""
    return await _answer(service, who, ("add VM", data.id), service.add_vm(who, data), 201, wait=wait, document=data)


@get("/vms/{vm:str}", summary="A VM", responses=FAILURES)
async def get_vm(*, service: TheService, who: Who, vm: VmName) -> Vm:
    """Show one VM."""
    machine = service.find(who, vm)
    await machine.reachable.look(machine.addresses)
    return service.vm(who, machine)


@delete("/vms/{vm:str}", summary="Remove a VM", status_code=200, responses=ACCEPTED)
async def remove_vm(
    *,
    service: TheService,
    who: Who,
    vm: VmName,
    wait: Wait = True,
    force: Annotated[bool, QueryParameter(description="Whether shares that are held are removed too.")] = False,
) -> Removed:
    """End its file server and forget the VM. While shares are held, this needs force, and removes them too.

    The answer says what may be left of a file server that did not answer, where no control group ends its processes.
    """
    service.find(who, vm)
    return await _answer(service, who, ("remove VM", vm), service.remove_vm(who, vm, force=force), 200, wait=wait)


@get("/vms/{vm:str}/shares", summary="List shares", responses=FAILURES)
async def list_shares(*, service: TheService, who: Who, vm: VmName) -> list[Share]:
    """List the shares of a VM that you hold; for root, all of them."""
    machine = await service.find_ready(who, vm)
    await service.shares.look(machine)
    return service.shares.all(who, machine)


@post("/vms/{vm:str}/shares", summary="Add a share", responses=ACCEPTED)
async def add_share(*, service: TheService, who: Who, vm: VmName, data: JSONBody[NewShare], wait: Wait = True) -> Share:
    """Share a directory and hold it. Equal shares are one; the same owner again holds it once, with the new lease."""
    machine = await service.find_ready(who, vm)
    return await _answer(
        service, who, ("add share", vm), service.shares.add(who, machine, data), 201, wait=wait, document=data
    )


@get("/vms/{vm:str}/shares/{share:str}", summary="A share", responses=FAILURES)
async def get_share(*, service: TheService, who: Who, vm: VmName, share: ShareName) -> Share:
    """Show one share."""
    machine = await service.find_ready(who, vm)
    await service.shares.look(machine)
    return service.shares.get(who, machine, share)


@delete("/vms/{vm:str}/shares/{share:str}", summary="Release a share", status_code=200, responses=ACCEPTED)
async def release_share(
    *,
    service: TheService,
    who: Who,
    vm: VmName,
    share: ShareName,
    owner: OwnerInQuery = DEFAULT_OWNER,
    uid: Uid = None,
    force: Force = False,
    wait: Wait = True,
) -> Released:
    """Release what an owner holds. The last release removes the share; then no guest reaches it any more.

    It is no error if the owner holds nothing: the answer says that nothing was released, and who holds the share.
    While a mount holds the share, this fails (409) and says which and for whom; what the owner held is released.
    """
    machine = await service.find_ready(who, vm)
    service.shares.get(who, machine, share)
    work = service.releases.release_share(who, machine, share, whose(who, owner, uid), force=force)
    return await _answer(service, who, ("release share", vm), work, 200, wait=wait)


@put("/vms/{vm:str}/shares/{share:str}/leases/{owner:str}", summary="Renew a lease", responses=FAILURES)
async def renew_lease(
    *, service: TheService, who: Who, vm: VmName, share: ShareName, owner: OwnerInPath, data: JSONBody[Renewal]
) -> Renewed:
    """Renew the lease of one owner on one share."""
    machine = await service.find_ready(who, vm)
    service.shares.get(who, machine, share)
    return Renewed(leases=service.shares.renew(machine, share, f"{who.uid}/{owner}", data.lease))


@get("/vms/{vm:str}/mounts", summary="List mounts", responses=FAILURES)
async def list_mounts(*, service: TheService, who: Who, vm: VmName) -> list[Mount]:
    """List the mounts in a VM's guest that you hold; for root, all of them."""
    machine = await service.find_ready(who, vm)
    await service.shares.look(machine)
    return service.mounts.all(who, machine)


@post("/vms/{vm:str}/mounts", summary="Map a directory", responses=ACCEPTED)
async def map_directory(
    *, service: TheService, who: Who, vm: VmName, data: JSONBody[NewMount], wait: Wait = True
) -> Mount:
    """Share a directory and have the guest's agent mount it; both or neither. Whoever asks for the same shares it."""
    machine = await service.find_ready(who, vm)
    return await _answer(
        service, who, ("map", vm), service.mounts.map(who, machine, data), 201, wait=wait, document=data
    )


@delete("/vms/{vm:str}/mounts", summary="Unmap a directory", status_code=200, responses=ACCEPTED)
async def unmap_directory(
    *,
    service: TheService,
    who: Who,
    vm: VmName,
    guest_path: GuestPath,
    owner: OwnerInQuery = DEFAULT_OWNER,
    uid: Uid = None,
    lazy: Annotated[bool, QueryParameter(description="Detach it although the guest uses it.")] = False,
    force: Force = False,
    wait: Wait = True,
) -> Released:
    """Release what an owner holds. The last release unmounts, and then the share goes too.

    It is no error if the owner holds nothing: the answer says that nothing was released, and who holds the mount.
    With force, the guest has five seconds to unmount, and then the share is removed.
    """
    machine = await service.find_ready(who, vm)
    mount = service.mounts.get(who, machine, guest_path)
    holder = whose(who, owner, uid)
    work = service.releases.unmap(who, machine, mount.guest_path, holder, lazy=lazy, force=force)
    return await _answer(service, who, ("unmap", vm), work, 200, wait=wait)


@get("/vms/{vm:str}/stats", summary="What a guest does", responses=FAILURES)
async def get_stats(*, service: TheService, who: Who, vm: VmName) -> list[Stats]:
    """Tell operations, bytes, errors and latency of each share that you hold, since its connections began."""
    return await service.stats(who, await service.find_ready(who, vm))


@get("/metrics", include_in_schema=False, media_type="text/plain")
async def get_metrics(*, service: TheService, who: Who) -> Response[bytes]:
    """Tell Prometheus how everything is that you may see."""
    return Response(await metrics.render(service, who), media_type=metrics.CONTENT_TYPE)


@get("/vms/{vm:str}/doctor", summary="Look at a guest", responses=FAILURES)
async def examine_guest(*, service: TheService, who: Who, vm: VmName) -> list[Finding]:
    """Ask the guest's agent what the guest can and cannot do, and say what that breaks and what to do."""
    return await service.examine_guest(who, await service.find_ready(who, vm))


@put("/leases/{owner:str}", summary="Renew all leases of an owner", responses=FAILURES)
async def renew_leases(*, service: TheService, who: Who, owner: OwnerInPath, data: JSONBody[Renewal]) -> Renewed:
    """Renew every lease of one owner, in all VMs."""
    return Renewed(leases=service.leases.renew_all(f"{who.uid}/{owner}", data.lease))


@delete("/owners/{owner:str}", summary="Release an owner", status_code=200, responses=ACCEPTED)
async def release_owner(
    *,
    service: TheService,
    who: Who,
    owner: OwnerInPath,
    force: Annotated[bool, QueryParameter(description="Whether it goes whatever the guests say.")] = False,
    wait: Wait = True,
) -> ReleasedOwner:
    """Release everything that an owner of yours holds, in all VMs. A guest that does not unmount makes it fail.

    Repeating it does no harm. The answer says whether anything was released.
    """
    work = service.release_all(who, owner, force=force)
    return await _answer(service, who, ("release owner", "*"), work, 200, wait=wait)


@get("/operations", summary="List operations", responses=FAILURES)
async def list_operations(*, service: TheService, who: Who) -> list[Operation]:
    """List your operations that nobody waited for, oldest first, and the last that ended."""
    return [_operation(running) for running in service.operations.list(who.uid)]


@get("/operations/{operation:str}", summary="An operation", responses=FAILURES)
async def get_operation(*, service: TheService, who: Who, operation: OperationId, wait: Wait = False) -> Operation:
    """Show an operation. With wait, the answer comes when it has ended."""
    running = service.operations.find(operation, who.uid)
    if wait and running.task is not None:
        await asyncio.wait({running.task})
    return _operation(running)


EVENTS = {
    200: ResponseSpec(
        data_container=EventMessage,
        description="Server-sent events. The data of each is JSON: id, time, kind, vm, share, owner, detail.",
        generate_examples=False,
        media_type="text/event-stream",
    ),
    **FAILURES,
}


@get("/events", summary="Follow events", responses=EVENTS, media_type="text/event-stream")
async def follow_events(
    *,
    service: TheService,
    who: Who,
    since: Annotated[
        str | None, QueryParameter(description="Begin after the event with this id.", max_length=64)
    ] = None,
    last_event_id: Annotated[
        str | None,
        HeaderParameter(
            name="Last-Event-ID",
            description="The same as since; browsers send it when they reconnect.",
            max_length=64,
        ),
    ] = None,
    follow: Annotated[bool, QueryParameter(description="Whether to wait for more.")] = True,
) -> Response[Any]:
    """Send events as they happen. One of kind "missed" says that events after the given id are not kept any more."""

    async def messages() -> AsyncIterator[bytes]:
        yield b": events of the uvmshare daemon\n\n"
        async for happening in service.events.follow(who, since or last_event_id, wait=follow):
            if happening is None:
                yield b"event: missed\ndata: {}\n\n"
                continue
            event = service.events.document(happening, name_for(who, (happening.vm_uid, happening.vm)))
            yield event_message(event)

    return event_stream(messages())


def event_message(event: Event) -> bytes:
    """Return an event as it is in the stream."""
    data = json_text(event).encode()  # one line, whatever is in it
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.kind.encode(), data)


def event_stream(messages: AsyncIterator[bytes]) -> Response[Any]:
    """Return the answer that such messages are."""
    return Stream(messages, media_type="text/event-stream", headers={"Cache-Control": "no-store"})


@get("/openapi.json", include_in_schema=False, media_type="application/vnd.oai.openapi+json")
async def get_openapi(request: Request[Any, Any, Any]) -> bytes:
    """Describe all of this."""
    document = request.app.openapi_schema.to_schema()
    # Litestar leaves out the limits of what is in lists and maps.
    _, requests = msgspec.json.schema_components(REQUESTS, ref_template="#/components/schemas/{name}")
    document["components"]["schemas"].update(requests)
    return msgspec.json.encode(document)


def _on_error(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    thing = f"{request.method} {request.scope['path']}"[:_MAX_THING]
    if isinstance(error, UvmshareError):
        problem = problem_of(error, thing)
    elif isinstance(error, HTTPException):
        problem = problem_of(Refused(_words(request, error)), thing, status=error.status_code)
    else:
        report_defect(request.app.state["log"], thing, error)
        problem = problem_of(error, thing)
    headers = error.headers if isinstance(error, HTTPException) else None
    return Response(problem, status_code=problem.status, media_type=PROBLEM_TYPE, headers=headers)


def report_defect(log: Any, thing: str, error: Exception) -> None:
    """Write down what only a defect of ours raises."""
    log.error("defect", thing=thing, exc_info=error)


class _Request(Request[Any, Any, Any]):
    """A request whose body is refused in words. Only there: the same exceptions from anywhere else are defects."""

    async def json(self) -> Any:
        """Read the body. Litestar takes msgspec's other complaints, and not these two."""
        try:
            return await super().json()
        except UnicodeDecodeError as error:
            msg = "the document is not UTF-8"
            raise ClientException(msg) from error
        except RecursionError as error:
            msg = "the document is nested too deeply"
            raise ClientException(msg) from error


_STATUS_WORDS: Final = {
    404: "there is no such path; /v1/openapi.json lists those that there are",
    405: "this path has no {method}; /v1/openapi.json lists what each path has",
    413: f"the body has more than {MAX_BODY} bytes",
}
"""What the HTTP layer refuses without a field to name."""


def _words(request: Request[Any, Any, Any], error: HTTPException) -> str:
    if words := _STATUS_WORDS.get(error.status_code):
        return words.format(method=request.method)
    extra = error.extra if isinstance(error.extra, list) else []
    found = [(str(each.get("key", "")), str(each.get("message", ""))) for each in extra if isinstance(each, dict)]
    words = words_of(found or [("", error.detail)])
    return f"the document: {words}" if words.startswith("it is ") else words


def make_app(service: Service, log: Any, more: Sequence[Any] = ()) -> Litestar:
    """Return the ASGI application over a service; `more` are routes of what is beside it."""
    routes = Router(
        "/v1",
        route_handlers=[
            get_info,
            get_health,
            list_vms,
            add_vm,
            get_vm,
            remove_vm,
            list_shares,
            add_share,
            get_share,
            release_share,
            list_mounts,
            map_directory,
            unmap_directory,
            get_stats,
            examine_guest,
            renew_lease,
            renew_leases,
            release_owner,
            list_operations,
            get_operation,
            follow_events,
            get_openapi,
        ],
    )
    dependencies = {
        "service": Provide(lambda: service, sync_to_thread=False),
        "who": Provide(_who, sync_to_thread=False),
    }
    return application([routes, get_metrics, *more], dependencies, log, description=_DESCRIPTION)


def application(routes: list[Any], dependencies: dict[str, Provide], log: Any, *, description: str) -> Litestar:
    """Return an ASGI application whose errors are problem documents, and which describes itself."""
    app = Litestar(
        routes,
        dependencies=dependencies,
        before_request=require_well_formed,
        exception_handlers={Exception: _on_error},
        request_max_body_size=MAX_BODY,
        request_class=_Request,
        openapi_config=OpenAPIConfig(
            title="uvmshare",
            version="1",
            description=description,
            render_plugins=[],
            use_handler_docstrings=True,
        ),
        logging_config=None,
    )
    app.state["log"] = log
    return app
