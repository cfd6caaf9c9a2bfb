"""The HTTP API of a gate: the part of the daemon's API that a fleet has, and hosts.

What lives here: the routes; each asks `gate` and returns its answer. What must not: a decision.

The caller is known from the certificate of the connection (`server`), never from the request.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

import msgspec
from litestar import Litestar, Request, Response, Router, delete, get, post, put
from litestar.di import NamedDependency, Provide
from litestar.params import FromQuery, HeaderParameter, JSONBody, PathParameter, QueryParameter

from uvmshare.daemon.app import (
    ACCEPTED,
    EVENTS,
    FAILURES,
    Force,
    GuestPath,
    OwnerInPath,
    OwnerInQuery,
    ShareName,
    VmName,
    Wait,
    application,
    event_message,
    event_stream,
    get_openapi,
    peer_of,
)
from uvmshare.daemon.documents import (
    DEFAULT_OWNER,
    Finding,
    Health,
    Info,
    Mount,
    NewMount,
    NewShare,
    Operation,
    Released,
    ReleasedOwner,
    Removed,
    Renewal,
    Renewed,
    Share,
    Stats,
    Vm,
)
from uvmshare.daemon.fleet_documents import (
    Host,
    Joined,
    NewClone,
    NewMove,
    NewServed,
    PlacedVm,
    RemovedHost,
    WrittenBack,
)
from uvmshare.daemon.problems import problem_of
from uvmshare.errors import NotSupported, NotThere, UvmshareError
from uvmshare.fleet.callers import Caller
from uvmshare.fleet.gate import Gate
from uvmshare.fleet.tickets import Ticket

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

__all__ = ["make_gate_app"]

T = TypeVar("T")

_DESCRIPTION: Final = """Host directories for running VMs of many hosts.

As the daemon's own API, with certificates in place of users: an owner is a tenant's, a VM has a host. Statistics of a
guest, and what its agent finds, are asked for on its host."""

At = NamedDependency[Gate]
Who = NamedDependency[Caller]
OperationId = Annotated[str, PathParameter(description="An operation's id.", max_length=255, min_length=1)]
HostInPath = Annotated[str, PathParameter(description="A host's name.", max_length=63, min_length=1)]


def _who(request: Request[Any, Any, Any]) -> Caller:
    who: Caller = peer_of(request)
    return who


async def _answer(ticket: Ticket, work: Coroutine[Any, Any, T], status: int, *, wait: bool) -> T:
    """Answer with what becomes of it, or that it goes on, as asked."""
    if not wait:
        work.close()  # nothing here is needed for it to happen
        where = {"Location": f"/v1/operations/{ticket.text}"}
        return cast("T", Response(_operation(ticket), status_code=202, headers=where))
    return cast("T", Response(await work, status_code=status))


def _operation(ticket: Ticket, **more: Any) -> Operation:
    started = datetime.fromtimestamp(ticket.started, UTC)
    running = Operation(
        id=ticket.text,
        action=ticket.action,
        vm=ticket.vm,
        state="running",
        started=started,
        ended=None,
        result=None,
        problem=None,
    )
    return msgspec.structs.replace(running, **more)


@get("/info", summary="The gate", responses=FAILURES)
async def get_info(*, gate: At, who: Who) -> Info:
    """Tell its version."""
    del who
    return gate.info()


@get("/health", summary="Whether it is well", responses=FAILURES)
async def get_health(*, gate: At, who: Who) -> Health:
    """Answer, for monitoring: 200 when etcd answers the gate, 503 with the reason when it does not."""
    return await gate.health(who)


@get("/hosts", summary="List hosts", responses=FAILURES)
async def list_hosts(*, gate: At, who: Who) -> list[Host]:
    """List the hosts of the fleet, and how many of your VMs each has."""
    return await gate.hosts(who)


@delete("/hosts/{host:str}", summary="Remove a host", status_code=200, responses=FAILURES)
async def remove_host(*, gate: At, who: Who, host: HostInPath) -> RemovedHost:
    """Remove a lost host from the fleet, with its VMs. For administrators."""
    return await gate.remove_host(who, host)


@post("/hosts/{host:str}/served", summary="Write what a host serves", status_code=200, responses=FAILURES)
async def write_back(*, gate: At, who: Who, host: HostInPath, data: JSONBody[NewServed]) -> WrittenBack:
    """Write into etcd what a host serves, when etcd has an older state. For administrators."""
    return await gate.write_back(who, host, data)


@get("/vms", summary="List VMs", responses=FAILURES)
async def list_vms(*, gate: At, who: Who) -> list[Vm]:
    """List the VMs of your tenant; to an administrator, all."""
    return await gate.vms(who)


@post("/vms", summary="Add a VM", responses=ACCEPTED)
async def add_vm(*, gate: At, who: Who, data: JSONBody[PlacedVm], wait: Wait = True) -> Vm:
    """Start a file server for a VM on its host. To add the same VM again changes nothing."""
    found, revision = await gate.want_vm(who, data)
    return await _answer(
        Ticket("v", revision, (), time.time(), data.id), gate.add_vm(who, found, revision), 201, wait=wait
    )


@get("/vms/{vm:str}", summary="A VM", responses=FAILURES)
async def get_vm(*, gate: At, who: Who, vm: VmName) -> Vm:
    """Show one VM."""
    return await gate.vm(who, vm)


@delete("/vms/{vm:str}", summary="Remove a VM", status_code=200, responses=ACCEPTED)
async def remove_vm(*, gate: At, who: Who, vm: VmName, wait: Wait = True, force: FromQuery[bool] = False) -> Removed:
    """End its file server and forget it. While shares are held this needs force, and removes them."""
    found = await gate.want_no_vm(who, vm, force=force)
    ticket = Ticket("x", found.want_at.mod_revision, (found.host,), time.time(), vm)
    return await _answer(ticket, gate.remove_vm(found), 200, wait=wait)


@post("/vms/{vm:str}/move", summary="Move a VM", status_code=200, responses=FAILURES)
async def move_vm(*, gate: At, who: Who, vm: VmName, data: JSONBody[NewMove]) -> Vm:
    """Have another host serve a VM, with the same shares by the same names. The VM's memory is for others to move.

    Between "prepare" and "commit" the VM is served where it was. Each step may be repeated.
    """
    return await gate.move(who, vm, data)


@post("/vms/{vm:str}/clone", summary="Copy a VM", responses=ACCEPTED)
async def clone_vm(*, gate: At, who: Who, vm: VmName, data: JSONBody[NewClone], wait: Wait = True) -> Vm:
    """Add a VM with the same shares, names and holders as another has: for a snapshot that is restored twice."""
    found, revision = await gate.want_clone(who, vm, data)
    ticket = Ticket("v", revision, (), time.time(), who.shown(found.tenant, found.vm))
    return await _answer(ticket, gate.add_vm(who, found, revision), 201, wait=wait)


@post("/vms/{vm:str}/join", summary="Take on a host's VM", responses=ACCEPTED)
async def join_vm(*, gate: At, who: Who, vm: VmName, data: JSONBody[Joined], wait: Wait = True) -> Vm:
    """Have a VM that its host offers be in the fleet, with its shares' names and holders. Its guest notices nothing."""
    found, revision = await gate.want_joined(who, data)
    ticket = Ticket("j", revision, (), time.time(), vm)
    return await _answer(ticket, gate.add_vm(who, found, revision), 201, wait=wait)


@post("/vms/{vm:str}/leave", summary="Give a host its VM back", status_code=200, responses=ACCEPTED)
async def leave_vm(*, gate: At, who: Who, vm: VmName, wait: Wait = True) -> Removed:
    """Have a VM that joined be its host's own again, with all who hold something of it. Its guest notices nothing."""
    found = await gate.want_left(who, vm)
    ticket = Ticket("l", found.want_at.mod_revision, (found.host,), time.time(), vm)
    return await _answer(ticket, gate.remove_vm(found), 200, wait=wait)


@get("/vms/{vm:str}/shares", summary="List shares", responses=FAILURES)
async def list_shares(*, gate: At, who: Who, vm: VmName) -> list[Share]:
    """List the shares of a VM that your tenant holds."""
    return await gate.shares(who, vm)


@post("/vms/{vm:str}/shares", summary="Add a share", responses=ACCEPTED)
async def add_share(*, gate: At, who: Who, vm: VmName, data: JSONBody[NewShare], wait: Wait = True) -> Share:
    """Share a directory of the VM's host and hold it. The same again holds it once, with the new lease."""
    asked = await gate.want_share(who, vm, data)
    ticket = Ticket("s", asked.revision, (asked.id,), time.time(), vm)
    return await _answer(ticket, gate.add_share(who, asked), 201, wait=wait)


@get("/vms/{vm:str}/shares/{share:str}", summary="A share", responses=FAILURES)
async def get_share(*, gate: At, who: Who, vm: VmName, share: ShareName) -> Share:
    """Show one share."""
    return await gate.share(who, vm, share)


@delete("/vms/{vm:str}/shares/{share:str}", summary="Release a share", status_code=200, responses=ACCEPTED)
async def release_share(
    *,
    gate: At,
    who: Who,
    vm: VmName,
    share: ShareName,
    owner: OwnerInQuery = DEFAULT_OWNER,
    force: Force = False,
    wait: Wait = True,
) -> Released:
    """Release what an owner holds. The last release removes the share; then no guest reaches it any more."""
    ended = await gate.end_share(who, vm, share, owner, force=force)
    ticket = Ticket("e", ended.revision, ended.ids, time.time(), vm)
    return await _answer(ticket, gate.release_share(who, share, ended, force=force), 200, wait=wait)


@put("/vms/{vm:str}/shares/{share:str}/leases/{owner:str}", summary="Renew a lease", responses=FAILURES)
async def renew_lease(
    *, gate: At, who: Who, vm: VmName, share: ShareName, owner: OwnerInPath, data: JSONBody[Renewal]
) -> Renewed:
    """Renew the lease of one owner on one share."""
    return Renewed(leases=await gate.renew_share(who, vm, share, owner, data.lease))


@get("/vms/{vm:str}/mounts", summary="List mounts", responses=FAILURES)
async def list_mounts(*, gate: At, who: Who, vm: VmName) -> list[Mount]:
    """List the mounts in a VM's guest that your tenant holds."""
    return await gate.mounts(who, vm)


@post("/vms/{vm:str}/mounts", summary="Map a directory", responses=ACCEPTED)
async def map_directory(*, gate: At, who: Who, vm: VmName, data: JSONBody[NewMount], wait: Wait = True) -> Mount:
    """Share a directory of the VM's host and have the guest's agent mount it; both or neither."""
    asked = await gate.want_mount(who, vm, data)
    ticket = Ticket("m", asked.revision, (asked.id,), time.time(), vm)
    return await _answer(ticket, gate.add_mount(who, asked), 201, wait=wait)


@delete("/vms/{vm:str}/mounts", summary="Unmap a directory", status_code=200, responses=ACCEPTED)
async def unmap_directory(
    *,
    gate: At,
    who: Who,
    vm: VmName,
    guest_path: GuestPath,
    owner: OwnerInQuery = DEFAULT_OWNER,
    lazy: Annotated[bool, QueryParameter(description="Detach it although the guest uses it.")] = False,
    force: Force = False,
    wait: Wait = True,
) -> Released:
    """Release what an owner holds. The last release unmounts, and then the share goes too."""
    ended = await gate.end_mount(who, vm, guest_path, owner, "force" if force else "lazy" if lazy else "release")
    ticket = Ticket("e", ended.revision, ended.ids, time.time(), vm)
    return await _answer(ticket, gate.release_mount(who, guest_path, ended), 200, wait=wait)


@get("/vms/{vm:str}/stats", summary="What a guest does", responses=FAILURES)
async def get_stats(*, gate: At, who: Who, vm: VmName) -> list[Stats]:
    """Say that this is asked for on the VM's host."""
    raise _on_its_host((await gate.vm(who, vm)).host, "what a guest has done")


@get("/vms/{vm:str}/doctor", summary="Look at a guest", responses=FAILURES)
async def examine_guest(*, gate: At, who: Who, vm: VmName) -> list[Finding]:
    """Say that this is asked for on the VM's host."""
    raise _on_its_host((await gate.vm(who, vm)).host, "what a guest can do")


def _on_its_host(host: str | None, what: str) -> NotSupported:
    return NotSupported(f"{what} is not told through a gate: ask the daemon on host {host}")


@put("/leases/{owner:str}", summary="Renew all leases of an owner", responses=FAILURES)
async def renew_leases(*, gate: At, who: Who, owner: OwnerInPath, data: JSONBody[Renewal]) -> Renewed:
    """Renew every lease of one owner, in all VMs."""
    return Renewed(leases=await gate.renew(who, owner, data.lease))


@delete("/owners/{owner:str}", summary="Release an owner", status_code=200, responses=FAILURES)
async def release_owner(
    *,
    gate: At,
    who: Who,
    owner: OwnerInPath,
    force: Annotated[bool, QueryParameter(description="Whether it goes whatever the guests say.")] = False,
) -> ReleasedOwner:
    """Release everything that an owner of your tenant holds, in all VMs. To repeat it does no harm."""
    return await gate.release_owner(who, owner, force=force)


@get("/operations", summary="List operations", responses=FAILURES)
async def list_operations(*, who: Who) -> list[Operation]:
    """Answer with none: a gate remembers nothing; whoever asked has the operation's id."""
    del who
    return []


@get("/operations/{operation:str}", summary="An operation", responses=FAILURES)
async def get_operation(*, gate: At, who: Who, operation: OperationId, wait: Wait = False) -> Operation:
    """Show an operation, through whichever gate. With wait, the answer comes when it has ended."""
    ticket = Ticket.read(operation)
    if ticket is None:
        msg = f"there is no operation {operation!r}"
        raise NotThere(msg)
    try:
        ended, result = await gate.outcome(who, ticket, wait=wait)
    except UvmshareError as error:
        problem = problem_of(error, f"{ticket.action}, VM {ticket.vm}")
        return _operation(ticket, state="failed", ended=datetime.now(UTC), problem=problem)
    if not ended:
        return _operation(ticket)
    return _operation(ticket, state="succeeded", ended=datetime.now(UTC), result=result)


@get("/events", summary="Follow events", responses=EVENTS, media_type="text/event-stream")
async def follow_events(
    *,
    gate: At,
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
    await gate.require_reader(who)

    async def messages() -> AsyncIterator[bytes]:
        yield b": events of the fleet\n\n"
        async for event in gate.events(who, since or last_event_id, wait=follow):
            yield b"event: missed\ndata: {}\n\n" if event is None else event_message(event)

    return event_stream(messages())


def make_gate_app(gate: Gate, log: Any) -> Litestar:
    """Return the ASGI application over a gate."""
    routes = Router(
        "/v1",
        route_handlers=[
            get_info,
            get_health,
            list_hosts,
            remove_host,
            write_back,
            list_vms,
            add_vm,
            get_vm,
            remove_vm,
            move_vm,
            clone_vm,
            join_vm,
            leave_vm,
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
        "gate": Provide(lambda: gate, sync_to_thread=False),
        "who": Provide(_who, sync_to_thread=False),
    }
    return application([routes], dependencies, log, description=_DESCRIPTION)
