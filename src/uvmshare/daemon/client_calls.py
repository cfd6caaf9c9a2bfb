"""The calls of the daemon's API: each is described once, for `Client` and `AsyncClient`.

What lives here: for each call of the HTTP API, a function that checks its arguments and returns a `Call`. What must
not: how an answer is read (`client_answers`), a connection (`client`), or what a call does.
"""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import quote

import msgspec

from uvmshare import arguments
from uvmshare.daemon.client_answers import VERSION, Call
from uvmshare.daemon.documents import (
    DEFAULT_OWNER,
    LONGEST_LEASE,
    Finding,
    Health,
    Info,
    Mount,
    NewMount,
    NewShare,
    NewVm,
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
    Following,
    Host,
    Joined,
    NewClone,
    NewMove,
    NewOffer,
    NewServed,
    PlacedVm,
    RemovedHost,
    Served,
    WrittenBack,
)
from uvmshare.daemon.requests import Unfit, as_document, refused
from uvmshare.errors import InvalidAddress, InvalidOptions, UnsupportedPlatform
from uvmshare.fileserver.models import Links, SecurityModel
from uvmshare.hostpath import text_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from uvmshare.mounts.options import Cache
    from uvmshare.share.options import HostPath

__all__ = [
    "accept_fleet",
    "add_share",
    "add_vm",
    "begin_add_share",
    "clone_vm",
    "default_host",
    "encoded",
    "events",
    "examine_guest",
    "following",
    "gates_of",
    "get_share",
    "get_vm",
    "info",
    "join_vm",
    "leave_vm",
    "list_hosts",
    "list_mounts",
    "list_operations",
    "list_shares",
    "list_vms",
    "local_daemon",
    "map_directory",
    "move_vm",
    "offer_vm",
    "operation",
    "release_owner",
    "release_share",
    "remove_host",
    "remove_vm",
    "renew",
    "require_host",
    "served",
    "stats",
    "unmap_directory",
    "write_back",
]

T = TypeVar("T")

_SYSTEM: Final = "/run/uvmshare/uvmshare.sock"
_GATE: Final = re.compile(r"https://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


def default_host() -> str:
    """Return where the daemon is: UVMSHARE_HOST, else the user's own daemon if there is one, else the system's."""
    return os.environ.get("UVMSHARE_HOST") or local_daemon()


def local_daemon() -> str:
    """Return where this host's daemon is: the user's own if there is one, else the system's."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = os.path.join(runtime, "uvmshare", "uvmshare.sock") if runtime else ""
    return f"unix:{own}" if own and os.path.exists(own) else f"unix:{_SYSTEM}"


def require_host(host: str | None) -> str:
    """Return `host`, checked: the daemon's socket or a fleet's gates. None stands for `default_host`.

    Raises `InvalidAddress` for anything else, and `UnsupportedPlatform` where there are no unix sockets.
    """
    if host is not None and not isinstance(host, str):
        arguments.refuse_type("host", host, "unix:PATH, the socket of the daemon")
    host = default_host() if host is None else host
    if host.startswith("https:"):
        return ",".join(gates_of(host))
    if sys.platform == "win32":
        msg = "the daemon runs on Linux, and its clients reach it there, by its unix socket"
        raise UnsupportedPlatform(msg)
    if not host.startswith("unix:") or host == "unix:" or "\0" in host:
        msg = f"host {host!r}: the daemon is reached on a unix socket: write unix:PATH"
        raise InvalidAddress(msg)
    return host


def gates_of(host: str) -> tuple[str, ...]:
    """Return the addresses of a fleet's gates, in the order in which they are tried. Raises `InvalidAddress`."""
    found = tuple(each.strip().rstrip("/") for each in host.split(","))
    for each in found:
        if not _GATE.fullmatch(each):
            msg = f"host {host!r}: {each!r} is no gate of a fleet: write https://NAME:PORT, several with commas"
            raise InvalidAddress(msg)
    return found


def info() -> Call[Info]:
    """Return the daemon's version and settings, and which user it takes you for."""
    return Call("GET", VERSION, Info)


def health() -> Call[Health]:
    """Return the daemon's health. Raises `DaemonError` when it does not answer, or cannot write."""
    return Call("GET", "/v1/health", Health)


def list_vms() -> Call[list[Vm]]:
    """Return your VMs."""
    return Call("GET", "/v1/vms", list[Vm])


def get_vm(vm: str) -> Call[Vm]:
    """Return one VM. Raises `NotThere`."""
    return Call("GET", _vm(vm), Vm)


def add_vm(
    id: str,  # noqa: A002  what the document calls it
    *,
    listen: Collection[str] = (),
    compute_system: str | None = None,
    security_model: SecurityModel = "mapped-xattr",
    links: Links = "mapped",
    socket_mode: str = "600",
    allow_remote: bool = False,
    allow_uids: Collection[int | Literal["any"]] = (),
    read_only: bool = False,
    limits: Mapping[str, bool | float | None] | None = None,
    cgroup: Mapping[str, str] | None = None,
    agent: str | None = None,
    agent_dials: bool = False,
    agent_token: str | None = None,
    fence: float | None = None,
    on: str | None = None,
    agent_token_file: str | None = None,
) -> Call[Vm]:
    """Add a VM. Returns it when its file server listens. The arguments are those of `NewVm`.

    `on` is the host of the fleet where the VM runs. A fleet's gate needs it. `agent_token_file` is a file on that host
    with the agent's secret, which is not sent.
    """
    arguments.one_of("security_model", security_model, SecurityModel)
    arguments.one_of("links", links, Links)
    if agent_token is not None:
        arguments.text("agent_token", agent_token, "the secret that the agent was started with: a str", secret=True)
    wanted: dict[str, Any] = {
        "id": id,
        "listen": arguments.list_of("listen", listen, str, "a list of addresses, such as ['unix:/run/vm1.9p']"),
        "compute_system": compute_system,
        "security_model": security_model,
        "links": links,
        "socket_mode": socket_mode,
        "allow_remote": allow_remote,
        "allow_uids": arguments.list_of("allow_uids", allow_uids, (int, str), 'a list of uids, or ["any"]'),
        "read_only": read_only,
        "limits": {} if limits is None else limits,
        "cgroup": {} if cgroup is None else cgroup,
        "agent": agent,
        "agent_dials": agent_dials,
        "agent_token": agent_token,
        "fence": fence,
    }
    if on is None and agent_token_file is not None:
        msg = (
            f"agent_token_file is {agent_token_file!r}: that is a file on a host of a fleet: pass `on`, or agent_token"
        )
        raise InvalidOptions(msg)
    if on is None:
        return Call("POST", "/v1/vms", Vm, _document(NewVm, wanted))
    return Call("POST", "/v1/vms", Vm, _document(PlacedVm, {**wanted, "on": on, "agent_token_file": agent_token_file}))


def remove_vm(vm: str, *, force: bool = False) -> Call[Removed]:
    """Remove a VM; return what may be left of it. Without `force`, raises `StillInUse` while its shares are held."""
    return Call("DELETE", _vm(vm), Removed, query=_query(force=arguments.flag("force", force)))


def offer_vm(vm: str, tenant: str) -> Call[Joined]:
    """Let a tenant of this host's fleet take on a VM of yours. Returns what `join` of a gate's client needs.

    Raises `OperationDenied` for what this host does not let that tenant do, `NotThere` without a fleet.
    """
    wanted = {"tenant": arguments.text("tenant", tenant, "a tenant of the fleet")}
    return Call("POST", f"/v1/fleet/vms/{_name('vm', vm)}/offer", Joined, _document(NewOffer, wanted))


def join_vm(offered: Joined) -> Call[Vm]:
    """Take on a VM that its host offers (`offer_vm`), with its shares' names and holders. Its guest notices nothing."""
    if not isinstance(offered, Joined):
        arguments.refuse_type("offered", offered, "what offer_vm of the host's daemon returned")
    return Call("POST", f"{_vm(offered.vm.id)}/join", Vm, encoded(offered))


def move_vm(
    vm: str,
    to: str,
    *,
    step: Literal["all", "prepare", "commit", "abort"] = "all",
    take: bool = False,
    made_sure: bool = False,
) -> Call[Vm]:
    """Have another host of the fleet serve a VM, with the same shares by the same names. Returns it.

    `step` does a part of it: "prepare" before the VM's memory is moved, "commit" when it is, or "abort". With `take`
    and `made_sure` the VM is taken from a host that is not heard of. Raises what the other host cannot do.
    """
    wanted = {
        "to": arguments.text("to", to, "a host of the fleet"),
        "step": arguments.one_of("step", step, Literal["all", "prepare", "commit", "abort"]),
        "take": arguments.flag("take", take),
        "made_sure": arguments.flag("made_sure", made_sure),
    }
    return Call("POST", f"{_vm(vm)}/move", Vm, _document(NewMove, wanted))


def clone_vm(
    vm: str,
    id: str,  # noqa: A002  what the document calls it
    *,
    on: str,
    listen: Collection[str] = (),
    agent: str | None = None,
) -> Call[Vm]:
    """Add a VM with the same shares, names and holders as `vm` has, on a host of the fleet; for a snapshot's copy.

    Without `listen` and `agent` its addresses are those of `vm`.
    """
    wanted = {
        "id": id,
        "on": on,
        "listen": arguments.list_of("listen", listen, str, "a list of addresses, such as ['unix:/run/vm1.9p']"),
        "agent": agent,
    }
    return Call("POST", f"{_vm(vm)}/clone", Vm, _document(NewClone, wanted))


def leave_vm(vm: str) -> Call[Removed]:
    """Let a VM that joined the fleet leave it. Owners keep what they hold, and the guest notices nothing."""
    return Call("POST", f"{_vm(vm)}/leave", Removed)


def stats(vm: str) -> Call[list[Stats]]:
    """Return what a VM's guest has done with each share that you hold."""
    return Call("GET", f"{_vm(vm)}/stats", list[Stats])


def examine_guest(vm: str) -> Call[list[Finding]]:
    """Return what a VM's guest can and cannot do, as its agent reports it."""
    return Call("GET", f"{_vm(vm)}/doctor", list[Finding])


def list_shares(vm: str) -> Call[list[Share]]:
    """Return the shares of a VM that you hold."""
    return Call("GET", f"{_vm(vm)}/shares", list[Share])


def get_share(vm: str, share: str) -> Call[Share]:
    """Return one share. Raises `NotThere`."""
    return Call("GET", _share(vm, share), Share)


def add_share(
    vm: str,
    path: HostPath,
    *,
    read_only: bool = False,
    only: Collection[str] = (),
    hide: Collection[str] = (),
    map_owner: str | None = None,
    owner: str = DEFAULT_OWNER,
    lease: float | None = None,
) -> Call[Share]:
    """Share a directory or file of the host and hold it; return the share when the guest can mount it.

    `only` are the names at the top of the share that exist for the guest; empty means all. `hide` and `map_owner` are
    those of `AddOptions`. Each `owner` holds a share once. After `lease` seconds without `renew` the daemon releases
    it.
    """
    wanted = _shared(
        path, only=only, hide=hide, read_only=read_only, map_owner=map_owner, owner=owner, lease=_lease(lease)
    )
    return Call("POST", f"{_vm(vm)}/shares", Share, _document(NewShare, wanted))


def begin_add_share(
    vm: str,
    path: HostPath,
    *,
    read_only: bool = False,
    only: Collection[str] = (),
    hide: Collection[str] = (),
    map_owner: str | None = None,
    owner: str = DEFAULT_OWNER,
    lease: float | None = None,
) -> Call[Operation]:
    """Begin what `add` does, and return the operation at once. `operation` then tells its state."""
    waited_for = add_share(
        vm, path, read_only=read_only, only=only, hide=hide, map_owner=map_owner, owner=owner, lease=lease
    )
    return Call(waited_for.method, waited_for.path, Operation, waited_for.body, _query(wait=False))


def _shared(path: HostPath, *, only: Collection[str], hide: Collection[str], **more: object) -> dict[str, Any]:
    """Return the fields of a document that say what is shared, and for whom."""
    return {
        "path": _path(path),
        "only": arguments.list_of("only", only, str, "a list of names in the directory"),
        "hide": arguments.list_of("hide", hide, str, "a list of patterns, as in gitignore(5)"),
        **more,
    }


def release_share(
    vm: str, share: str, *, owner: str = DEFAULT_OWNER, uid: int | None = None, force: bool = False
) -> Call[Released]:
    """Release a share that an owner holds. After the last release no guest reaches the share any more.

    The answer says whether the share ended, and if not, who still holds it. With `force` the share is taken from all
    your owners; for root, from everybody. Raises `StillInUse` while a mount holds the share, or when force was not
    enough.
    """
    query = _query(owner=_owner(owner), uid=_uid(uid), force=arguments.flag("force", force))
    return Call("DELETE", _share(vm, share), Released, query=query)


def list_mounts(vm: str) -> Call[list[Mount]]:
    """Return the mounts in a VM's guest that you hold."""
    return Call("GET", f"{_vm(vm)}/mounts", list[Mount])


def map_directory(
    vm: str,
    path: HostPath,
    guest_path: str,
    *,
    read_only: bool = False,
    only: Collection[str] = (),
    hide: Collection[str] = (),
    map_owner: str | None = None,
    cache: Cache = "auto",
    msize: int | None = None,
    suid: bool = False,
    dev: bool = False,
    posixacl: bool = False,
    events: bool = False,
    owner: str = DEFAULT_OWNER,
    lease: float | None = None,
) -> Call[Mount]:
    """Share a directory and mount it in the guest; both or neither. The arguments are those of `NewMount`."""
    wanted = _shared(
        path,
        only=only,
        hide=hide,
        guest_path=guest_path,
        read_only=read_only,
        map_owner=map_owner,
        cache=cache,
        msize=msize,
        suid=suid,
        dev=dev,
        posixacl=posixacl,
        events=events,
        owner=owner,
        lease=_lease(lease),
    )
    return Call("POST", f"{_vm(vm)}/mounts", Mount, _document(NewMount, wanted))


def unmap_directory(
    vm: str,
    guest_path: str,
    *,
    owner: str = DEFAULT_OWNER,
    uid: int | None = None,
    lazy: bool = False,
    force: bool = False,
) -> Call[Released]:
    """Release a mount that an owner holds. The last release unmounts it, and removes its share.

    With `force` the mount is taken from all your owners; for root, from everybody. The guest then has five seconds to
    unmount, and its share is removed in any case. Raises `StillInUse` when force was not enough, and says who holds the
    mount.
    """
    query = _query(
        guest_path=arguments.text("guest_path", guest_path, "the path of the mount in the guest"),
        owner=_owner(owner),
        uid=_uid(uid),
        lazy=arguments.flag("lazy", lazy),
        force=arguments.flag("force", force),
    )
    return Call("DELETE", f"{_vm(vm)}/mounts", Released, query=query)


def renew(owner: str, *, lease: float | None = None, vm: str | None = None, share: str | None = None) -> Call[Renewed]:
    """Renew the leases of an owner, all or those on one share; return how many. Raises `NotThere` if there are none.

    With `lease`, each lease is that many seconds long from now on.
    """
    if (vm is None) != (share is None):
        msg = f"vm is {vm!r} and share is {share!r}: pass both for one share, or neither for all of the owner's"
        raise InvalidOptions(msg)
    path = f"/v1/leases/{_name('owner', owner)}"
    if vm is not None and share is not None:
        path = f"{_share(vm, share)}/leases/{_name('owner', owner)}"
    return Call("PUT", path, Renewed, _document(Renewal, {"lease": _lease(lease)}))


def release_owner(owner: str, *, force: bool = False) -> Call[ReleasedOwner]:
    """Release everything that an owner holds; with `force`, whatever guests say. Return how much was released."""
    query = _query(force=arguments.flag("force", force))
    return Call("DELETE", f"/v1/owners/{_name('owner', owner)}", ReleasedOwner, query=query)


def list_operations() -> Call[list[Operation]]:
    """Return your operations that nobody waited for, oldest first, and the last that ended."""
    return Call("GET", "/v1/operations", list[Operation])


def operation(operation: str, *, wait: bool = False) -> Call[Operation]:
    """Return the state of an operation; with `wait`, after it has ended."""
    path = f"/v1/operations/{_name('operation', operation)}"
    return Call("GET", path, Operation, query=_query(wait=arguments.flag("wait", wait)))


def list_hosts() -> Call[list[Host]]:
    """Return the hosts of a fleet, and how many of your VMs each has."""
    return Call("GET", "/v1/hosts", list[Host])


def following() -> Call[Following]:
    """Return how this host follows its fleet. Raises `NotThere` of a daemon that follows none."""
    return Call("GET", "/v1/fleet", Following)


def accept_fleet() -> Call[Following]:
    """Have this host follow the etcd that answers now, even if it is another one or an older state. Root only."""
    return Call("POST", "/v1/fleet/accept", Following)


def served() -> Call[list[Served]]:
    """Return the VMs of the fleet that this host serves, as `write_back` of a gate's client needs them. Root only."""
    return Call("GET", "/v1/fleet/served", list[Served])


def write_back(host: str, vms: Collection[Served]) -> Call[WrittenBack]:
    """Write what a host serves into etcd, when etcd was restored to an older state. For the fleet's administrators."""
    given = arguments.list_of("vms", vms, Served, "what served() of the host's daemon returned")
    return Call("POST", f"/v1/hosts/{_name('host', host)}/served", WrittenBack, encoded(NewServed(vms=given)))


def remove_host(host: str) -> Call[RemovedHost]:
    """Remove a lost host from its fleet, and return its VMs. Raises `StillInUse` if the host is alive."""
    return Call("DELETE", f"/v1/hosts/{_name('host', host)}", RemovedHost)


def events(since: str | None, *, follow: bool) -> Call[None]:
    """Describe the stream of events."""
    if since is not None:
        arguments.text("since", since, "the id of an event")
    query = _query(follow=arguments.flag("follow", follow), since=since or None)
    return Call("GET", "/v1/events", type(None), query=query)


# What arguments become


def _vm(vm: str) -> str:
    return f"/v1/vms/{_name('vm', vm)}"


def _share(vm: str, share: str) -> str:
    return f"{_vm(vm)}/shares/{_name('share', share)}"


def _name(what: str, name: str) -> str:
    """Return a name as one segment of a path. Raises `InvalidOptions` for what can be none."""
    if not isinstance(name, str):
        arguments.refuse_type(what, name, "its name: a str")
    if name in ("", ".", ".."):  # these would lead to another resource
        msg = f"{what} {name!r} is no name: pass one that begins with a letter or a digit"
        raise InvalidOptions(msg)
    try:
        return quote(name, safe=":@")
    except UnicodeEncodeError as error:
        raise _not_utf8(error) from error


def _path(path: HostPath) -> str:
    text = text_of("path", path, "a directory or file of the host: a str or a pathlib.Path")
    if not text:
        msg = "path is empty: pass a directory or file of the host"
        raise InvalidOptions(msg)
    return os.path.abspath(text)  # the daemon has a working directory of its own


def _lease(lease: float | None) -> float | None:
    return None if lease is None else arguments.seconds("lease", lease, most=LONGEST_LEASE)


def _owner(owner: str) -> str:
    return arguments.text("owner", owner, "who holds it: a name")


def _uid(uid: int | None) -> int | None:
    return None if uid is None else arguments.number("uid", uid, least=0, most=(1 << 32) - 2)


def _query(**query: str | int | bool | None) -> dict[str, str]:
    """Return the values of a query as they are sent. Raises `InvalidOptions` for what cannot be."""
    params = {key: _text(value) for key, value in query.items() if value is not None}
    for value in params.values():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _not_utf8(error) from error
    return params


def _text(value: str | int | bool) -> str:  # noqa: FBT001  as JSON has them
    return str(value).lower() if isinstance(value, bool) else str(value)


def _document(kind: type[msgspec.Struct], wanted: dict[str, Any]) -> bytes:
    """Return a document as it is sent, if the daemon can read it. Raises `InvalidOptions` for what it cannot."""
    try:
        document = as_document(kind, wanted)
    except Unfit as error:
        raise refused(error) from None
    return encoded(document)


def encoded(document: msgspec.Struct) -> bytes:
    """Return a document as it is sent. Raises `InvalidOptions` for a text that is not valid Unicode."""
    try:
        return msgspec.json.encode(document)
    except UnicodeEncodeError as error:
        raise _not_utf8(error) from error


def _not_utf8(error: UnicodeEncodeError) -> InvalidOptions:
    return InvalidOptions(
        f"{error.object!r} is not UTF-8, and the daemon's documents hold nothing else: rename it, or mount it "
        f"at a path that is (mount --bind)"
    )
