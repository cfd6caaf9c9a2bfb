"""The values of a fleet in etcd: JSON, which gates and hosts of different versions read and write.

What lives here: the documents, and how one is changed without losing what a later version wrote into it. What must not:
keys (`keys`), or what the documents of the API say: these are kept as they came, and read where they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from uvmshare.errors import UNREADABLE, InvalidDocument, StoreReplaced
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "EVERYBODY",
    "Alive",
    "Claim",
    "End",
    "FencedWant",
    "Have",
    "Holding",
    "Lease",
    "Name",
    "Outcome",
    "Tenant",
    "Want",
    "carried",
    "changed_fields",
    "decode",
    "encode",
    "read_request",
]

D = TypeVar("D", bound="_Document")

End = Literal["", "release", "lazy", "force"]
"""How a holding is to end: not at all; as `share rm` and `unmap` do; a mount as `unmap --lazy`; or with force."""


class _Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value. What a later version adds to it is not read, and kept."""


class Name(_Document, frozen=True):
    """The name of a VM: which host has it."""

    host: str
    epoch: int = 1
    """Counts the hosts that it was on."""
    moving: str | None = None


class Holding(_Document, frozen=True):
    """What one owner wants of a VM: a share, or a mount."""

    kind: Literal["share", "mount"]
    owner: str
    what: dict[str, Any]
    """`NewShare` or `NewMount`, without owner and lease. A field that the host does not know is refused by it."""
    lease: str = ""
    """The lease of etcd on which it hangs, in hexadecimal; empty without one."""
    seconds: float | None = None
    """How long that is."""
    share: str | None = None
    """The share's name, once the host has it; until then nobody was told that it is held."""
    end: End = ""
    """Whether it is to end. The host strikes it out then, or takes this back when it could not end it."""


class Want(_Document, frozen=True):
    """What is wanted of a host for one VM: everything that the VM has, in one document."""

    vm: dict[str, Any]
    """`NewVm`."""
    epoch: int = 1
    joined: bool = False
    """Whether it is a VM of the host's own. The host offers it, and has it back when it is wanted no more."""
    prepare: bool = False
    """Whether the host is only to say whether it could have it: it is on another host yet."""
    after: str = ""
    """The host that must have let go of it first."""
    also: tuple[str, ...] = ()
    """Hosts before that one which had not let go of it either."""
    hold: bool = False
    """Whether, as the VM is fenced, it is enough to wait until the time of these hosts is certainly over."""
    names: int = 0
    """Of a VM that comes from another host, or is a clone: the least number that no share was called. Else 0."""
    holdings: dict[str, Holding] = {}
    """By number, which is never used again."""
    last: int = 0
    """The greatest number that a holding had."""


class _FencedVm(_Document, frozen=True):
    fence: float | None = None


class FencedWant(_Document, frozen=True):
    """What of a `Want` says whether and when a host may serve it: read often, and without all that is held."""

    vm: _FencedVm = _FencedVm()
    epoch: int = 1
    prepare: bool = False
    after: str = ""
    hold: bool = False


class Claim(_Document, frozen=True):
    """Which boot has the name of a host."""

    boot: str
    since: float | None = None
    """Since when, in seconds of its CLOCK_BOOTTIME; None until that is certain."""


class Outcome(_Document, frozen=True):
    """What became of one holding that was asked for, or was to end."""

    at: int
    """The revision of what was wanted."""
    problem: dict[str, Any] | None = None
    """`Problem`: why not."""
    released: dict[str, Any] | None = None
    """`Released`."""


class Have(_Document, frozen=True):
    """What a host has of one VM."""

    seen: int
    """The revision of what was wanted, which this answers."""
    epoch: int = 1
    vm: dict[str, Any] | None = None
    """`Vm`, as the host has it; None when it could not be added."""
    problem: dict[str, Any] | None = None
    """`Problem`: why it could not."""
    shares: list[dict[str, Any]] = []
    """`Share`, each."""
    mounts: list[dict[str, Any]] = []
    """`Mount`, each."""
    names: int = 0
    """The least that no share was called."""
    held: dict[str, str] = {}
    """By the number of a holding that is held: the share's name."""
    outcomes: dict[str, Outcome] = {}
    """By the number of a holding, the last ones."""
    pending: tuple[str, ...] = ()
    """The numbers of holdings that are under way yet: this answers what was wanted but for them."""
    cluster: str = ""
    """The cluster of etcd that the host followed then, in hexadecimal. In another one, such as a backup that was
    restored, this is no answer. Empty from hosts of earlier versions."""


class Alive(_Document, frozen=True):
    """A host that lives."""

    info: dict[str, Any] = {}
    """`Info`."""
    boot: str = ""
    """Its boot id."""


class Lease(_Document, frozen=True):
    """An owner's lease."""

    lease: str
    """In hexadecimal."""
    seconds: float


EVERYBODY: Final = "*"


class Tenant(_Document, frozen=True):
    """What a tenant may have, and who of them may do what. `*` is everybody with a certificate of theirs."""

    vms: int = 64
    holdings: int = 1024
    """Of each VM."""
    holdings_in_all: int | None = None
    """Of all their VMs together; None for any number."""
    read: tuple[str, ...] = (EVERYBODY,)
    hold: tuple[str, ...] = (EVERYBODY,)
    """Who may share and map, and read."""
    own: tuple[str, ...] = (EVERYBODY,)
    """Who may add and remove VMs, and all else."""


def changed_fields(kind: type[msgspec.Struct], wanted: Any) -> dict[str, Any]:
    """Return the fields of a request that say something: a host of an earlier version knows fewer of them.

    `wanted` has the attributes of `kind`, and may have others.
    """
    found: dict[str, Any] = {}
    for each in msgspec.structs.fields(kind):
        value = getattr(wanted, each.name)
        default = each.default if each.default_factory is msgspec.NODEFAULT else each.default_factory()
        if default is msgspec.NODEFAULT or value != default:
            found[each.name] = msgspec.json.decode(msgspec.json.encode(value))  # as it is read again
    return found


def read_request(kind: type[Any], fields: Mapping[str, Any], **more: Any) -> Any:
    """Return a document. Raises `InvalidDocument` for what this version does not know, or would not take."""
    try:
        found = msgspec.convert(dict(fields), kind)
    except msgspec.ValidationError as error:
        msg = f"this host cannot do what is asked: {error}: it may have an earlier version of uvmshare than the gate"
        raise InvalidDocument(msg) from error
    return msgspec.structs.replace(found, **more)


def decode(kind: type[D], value: bytes, key: str) -> D:
    """Return a document. Raises `StoreReplaced` for what is none: then this is no fleet of ours."""
    try:
        return msgspec.json.decode(value, type=kind)
    except UNREADABLE as error:
        msg = f"{key} of etcd cannot be read ({reason_of(error)}): see who else writes below this prefix"
        raise StoreReplaced(msg) from error


def encode(document: _Document, before: bytes | None = None) -> bytes:
    """Return a document as it is written; what `before` has and this version does not know goes on in it."""
    if before is None:
        return msgspec.json.encode(document)
    return msgspec.json.encode(carried(document, msgspec.json.decode(before)))


def carried(new: Any, old: Any) -> Any:
    """Return `new` in plain form, with the fields of `old` that the classes of `new` do not have."""
    if isinstance(new, _Document):
        names = set(new.__struct_fields__)
        plain = msgspec.to_builtins(new)
        found = {name: carried(getattr(new, name), _part(old, name)) for name in new.__struct_fields__ if name in plain}
        return found | (
            {name: each for name, each in old.items() if name not in names} if isinstance(old, dict) else {}
        )
    if isinstance(new, dict):
        return {name: carried(each, _part(old, name)) for name, each in new.items()}
    return msgspec.to_builtins(new)


def _part(old: Any, name: str) -> Any:
    return old.get(name) if isinstance(old, dict) else None
