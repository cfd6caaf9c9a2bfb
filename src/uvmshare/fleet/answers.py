"""What a gate answers: the documents of a host, as the caller may see them.

What lives here: making the API's documents from those in etcd. What must not: a read or a change of etcd.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from uvmshare.daemon.documents import Mount, NewVm, Reference, Released, Share, Vm
from uvmshare.daemon.fleet_documents import Host
from uvmshare.fleet.fence import length_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from uvmshare.fleet.callers import Caller
    from uvmshare.fleet.documents import Alive, Have, Holding, Want
    from uvmshare.fleet.reading import Found

__all__ = ["host_of", "mounts_of", "released_of", "share_of", "shares_of", "vm_of"]

_SILENT: Final = "its host has not said anything about it yet"
_LOST: Final = "host {host} is not heard of: it may be down, or cut off; it may serve on"
_LOST_FENCED: Final = "host {host} is not heard of: it may be down, or cut off; it serves on for {fence:g} s at most"


def vm_of(who: Caller, found: Found) -> Vm:
    """Return the document of a VM."""
    return vm_document(
        who, found.tenant, found.vm, host=found.host, want=found.want, have=found.have, lives=found.lives
    )


def vm_document(who: Caller, tenant: str, vm: str, *, host: str, want: Want, have: Have | None, lives: bool) -> Vm:
    """As `vm_of`, of what was read otherwise."""
    if have is not None and have.vm is not None:
        shown = msgspec.convert(have.vm, Vm, strict=False)
    else:
        shown = _unseen(want, have)
    if not lives:
        fence = length_of(want)
        why = _LOST if fence is None else _LOST_FENCED
        shown = msgspec.structs.replace(shown, state="lost", error=why.format(host=host, fence=fence))
    return msgspec.structs.replace(shown, id=who.shown(tenant, vm), host=host, epoch=want.epoch)


def _unseen(want: Want, have: Have | None) -> Vm:
    """Return the document of a VM of which its host has none: it has said nothing, or could not add it."""
    wanted = msgspec.convert({**want.vm, "id": want.vm.get("id", "vm")}, _Lenient)
    problem = None if have is None else have.problem
    return Vm(
        id=wanted.id,
        uid=0,
        state="finding" if problem is None else "failed",
        error=_SILENT if problem is None else str(problem.get("reason")),
        listen=wanted.listen,
        addresses=(),
        compute_system=None,
        security_model=wanted.security_model,
        links=wanted.links,
        read_only=wanted.read_only,
        cgroup=None,
        cgroup_limits={},
        use=None,
        agent=wanted.agent,
        agent_state=None,
        agent_since=None,
        agent_error=None,
        restarts=0,
        shares=0,
        mounts=0,
        notes=(),
        fence=wanted.fence,
    )


class _Lenient(NewVm, frozen=True, forbid_unknown_fields=False):
    """A VM that a gate of a later version may have written."""


def shares_of(who: Caller, found: Found, have: Have | None) -> list[Share]:
    """Return the shares that somebody holds."""
    leases = _leases(found.want.holdings.values(), "share")
    return [_share(who, found, each, leases) for each in (have.shares if have is not None else ())]


def share_of(who: Caller, found: Found, have: Have | None, name: str) -> Share | None:
    """Return one share, if there is one of that name."""
    return next((each for each in shares_of(who, found, have) if each.name == name), None)


def _share(who: Caller, found: Found, document: dict[str, Any], leases: Mapping[Any, float | None]) -> Share:
    shown = msgspec.convert(document, Share, strict=False)
    return msgspec.structs.replace(
        shown,
        vm=who.shown(found.tenant, found.vm),
        references=tuple(_with_lease(each, leases.get((each.owner, shown.name))) for each in shown.references),
    )


def mounts_of(who: Caller, found: Found, have: Have | None) -> list[Mount]:
    """Return the mounts that somebody holds, or that were taken away."""
    leases = _leases(found.want.holdings.values(), "mount")
    shown = [msgspec.convert(each, Mount, strict=False) for each in (have.mounts if have is not None else ())]
    return [
        msgspec.structs.replace(
            each,
            vm=who.shown(found.tenant, found.vm),
            references=tuple(_with_lease(ref, leases.get((ref.owner, each.guest_path))) for ref in each.references),
        )
        for each in shown
    ]


def _leases(holdings: Iterable[Holding], kind: str) -> dict[tuple[str, object], float | None]:
    return {
        (each.owner, each.share if kind == "share" else each.what.get("guest_path")): each.seconds
        for each in holdings
        if each.kind == kind
    }


def _with_lease(reference: Reference, seconds: float | None) -> Reference:
    return msgspec.structs.replace(reference, uid=0, lease=seconds, expires_in=None)


def released_of(released: list[Released], share: Share | None, *, nobody: bool) -> Released:
    """Return one answer for all that was released; `share` is what is left of it."""
    first = released[0] if released else Released(released=False, ended=share is None)
    if nobody:
        return msgspec.structs.replace(
            first,
            released=False,
            ended=share is None,
            references=() if share is None else share.references,
            mounts=() if share is None else share.mounts,
            holders=() if share is None else share.references,
        )
    return first if share is not None else msgspec.structs.replace(first, ended=True)


def host_of(name: str, alive: Alive | None, vms: int) -> Host:
    """Return the document of a host."""
    info = {} if alive is None else alive.info
    since = info.get("started")
    return Host(
        name=name,
        state="lost" if alive is None else "alive",
        version=info.get("version"),
        since=None if since is None else datetime.fromisoformat(since),
        vms=vms,
        notes=tuple(info.get("notes", ())),
    )
