"""The documents of a fleet that a daemon of one host does not have: where VMs are, hosts, and how a host follows.

What lives here: what is sent and answered, field by field. What must not: what both have (`documents`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec

from uvmshare.daemon.documents import AddressText, Answer, HostPath, LeaseSeconds, NewVm, OwnerName, Request, VmId

__all__ = [
    "Following",
    "Host",
    "Joined",
    "Kept",
    "NewClone",
    "NewMove",
    "NewOffer",
    "NewServed",
    "PlacedVm",
    "RemovedHost",
    "Served",
    "WrittenBack",
]

HostName = Annotated[str, msgspec.Meta(min_length=1, max_length=63, description="A host of the fleet.")]
TenantName = Annotated[str, msgspec.Meta(min_length=1, max_length=32, description="A tenant of the fleet.")]


class PlacedVm(NewVm, frozen=True, kw_only=True):
    """A VM that is to get shares, and the host of the fleet where it runs."""

    on: HostName
    agent_token_file: HostPath | None = None
    """A file on that host with the agent's secret, which the tenant's user there can read. The secret stays there."""


class NewOffer(Request, frozen=True):
    """Whose a VM of this host's own is to be in the fleet."""

    tenant: TenantName


class NewMove(Request, frozen=True):
    """To which host a VM is to move, and which step of it is to be done."""

    to: HostName
    step: Literal["all", "prepare", "commit", "abort"] = "all"
    """Prepared, the host looks whether it could serve the VM, for at most ten minutes; committed, it does."""
    take: bool = False
    """Whether the VM is taken from a host that is not heard of, and may serve on."""
    made_sure: bool = False
    """That whoever asks has made sure that it does not."""


class NewClone(Request, frozen=True):
    """A copy of a VM: what it is called, and where it is."""

    id: VmId
    on: HostName
    listen: Annotated[tuple[AddressText, ...], msgspec.Meta(max_length=16)] = ()
    """Its addresses; none for those of the VM that is copied."""
    agent: AddressText | None = None
    """Where its agent is reached; null for the same address."""


class Kept(Request, frozen=True):
    """What an owner holds of a VM that a host gives to its fleet, or takes back."""

    kind: Literal["share", "mount"]
    share: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    """The share's name, which stays."""
    owner: OwnerName
    what: dict[str, Any]
    """`NewShare` or `NewMount`, without owner and lease."""
    lease: LeaseSeconds | None = None
    """Seconds of the owner's lease, which runs afresh."""


class Joined(Request, frozen=True):
    """A VM of a host's own as it goes to the fleet: with its name, its shares' names, and who holds them."""

    host: HostName
    tenant: TenantName
    vm: NewVm
    """Without the agent's token, which stays on the host."""
    kept: Annotated[tuple[Kept, ...], msgspec.Meta(max_length=4096)] = ()


class Served(Joined, frozen=True):
    """A VM of the fleet as its host serves it."""

    epoch: Annotated[int, msgspec.Meta(ge=1)] = 1
    names: Annotated[int, msgspec.Meta(ge=0)] = 0
    """The least number that no share of it was called."""
    joined: bool = False
    """Whether it is the host's own."""
    agent_token_file: HostPath | None = None
    """The file on the host with its agent's secret."""


class NewServed(Request, frozen=True):
    """All that a host serves."""

    vms: Annotated[tuple[Served, ...], msgspec.Meta(max_length=65536)]


class WrittenBack(Answer, frozen=True):
    """What came of it when a host wrote what it serves."""

    vms: tuple[str, ...]
    """Which VMs are written."""
    elsewhere: tuple[str, ...]
    """Which are another host's by now: this host ends them."""


class Host(Answer, frozen=True):
    """A host of a fleet."""

    name: str
    state: Literal["alive", "lost"]
    """Whether it is heard of."""
    version: str | None
    """Of its daemon; null while it is lost."""
    since: datetime | None
    """Since when its daemon runs; null while it is lost."""
    vms: int
    """How many VMs on it the one who asks can see."""
    notes: tuple[str, ...]
    """What its kernel lacks to confine file servers fully."""


class RemovedHost(Answer, frozen=True):
    """What the removal of a host from its fleet came to."""

    vms: tuple[str, ...]
    """Which VMs went with it."""


class Following(Answer, frozen=True):
    """How a host follows its fleet."""

    host: str
    """Its name there."""
    fleet: str
    tenants: tuple[str, ...]
    """Whom it serves."""
    revision: int | None
    """The revision of etcd that it has seen; null before the first."""
    error: str | None
    """Why it does not follow now; null while it does."""
    held_back: bool
    """Whether it waits for root to accept another etcd, or an older state of it."""
