"""The documents of the daemon's HTTP API, for the daemon and its clients.

What lives here: what is sent and answered, field by field, with the limits of each. What must not: what a
request does (`service`), or where it is sent to (`app`).
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from uvmshare.directory import Fate
from uvmshare.fileserver.models import Links, SecurityModel
from uvmshare.hiding import MOST_BYTES, MOST_PATTERNS
from uvmshare.mounts.cache import Cache

__all__ = [
    "DEFAULT_OWNER",
    "HINTS",
    "LONGEST_LEASE",
    "MAX_TARGET",
    "NAME",
    "PATTERNS",
    "REQUESTS",
    "SECRETS",
    "Answer",
    "Event",
    "EventMessage",
    "Finding",
    "Health",
    "Info",
    "Mount",
    "NewMount",
    "NewShare",
    "NewVm",
    "Operation",
    "OwnerName",
    "Problem",
    "Reference",
    "Released",
    "ReleasedOwner",
    "Removed",
    "Renewal",
    "Renewed",
    "Request",
    "Share",
    "Stats",
    "Use",
    "Vm",
    "VmId",
]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._@-]*$(?!\n)"
"""Python's ``$`` also matches before a line feed at the end, and no name has one."""
_OWNERS = r"^(all|[0-9]{1,10}(/[0-9]{1,10})?):[0-9]{1,10}(/[0-9]{1,10})?$(?!\n)"
_MODE = r"^[0-7]{3}$(?!\n)"

PATTERNS = {
    NAME: "letters, digits and . _ @ - alone, and begin with a letter or digit",
    _OWNERS: "HOST:GUEST in numbers, such as 1000:0, 1000/100:0/0 or all:0",
    _MODE: "three octal digits, such as 660",
}
"""What a value has to be that matches each of the regular expressions here: said to whoever sends another."""
HINTS = {
    "guest_path": "give an absolute path in the guest other than /, such as /mnt/project",
    "lease": "give seconds, at most a year of them, or none to hold it until it is released",
    "msize": "give bytes, from 4096 to 16777216, or none to let the guest choose",
}
"""What to give for a field, where what is wrong with a value does not say it."""

VmId = Annotated[str, msgspec.Meta(pattern=NAME, min_length=1, max_length=64, description="A name for the VM.")]
OwnerName = Annotated[
    str,
    msgspec.Meta(
        pattern=NAME,
        min_length=1,
        max_length=128,
        description="Who holds a share: a name of the caller's choice, kept apart for each user of the host.",
    ),
]
MAX_TARGET: Final = 16 << 10
"""Bytes of a request's path and query: the longest path there is, with each byte as %XX, and the rest."""
LONGEST_LEASE: Final = 31_536_000.0
"""Seconds: a year. Who holds something for longer takes no lease."""
LeaseSeconds = Annotated[
    float,
    msgspec.Meta(
        gt=0,
        le=LONGEST_LEASE,
        description="Seconds until the reference is released, unless it is renewed before.",
    ),
]
HostPath = Annotated[
    str, msgspec.Meta(min_length=1, max_length=4096, description="A directory or file of the host, absolute.")
]
AllowedNames = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=255)], ...],
    msgspec.Meta(
        max_length=1024, description="Names at the top of the directory; the guest sees no others. Empty: all of them."
    ),
]
HiddenNames = Annotated[
    tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=MOST_BYTES)], ...],
    msgspec.Meta(
        max_length=MOST_PATTERNS,
        description="Patterns as in gitignore(5), from the directory on, of what does not exist for the guest.",
    ),
]
MappedOwner = Annotated[
    str,
    msgspec.Meta(
        pattern=_OWNERS,
        max_length=64,
        description="HOST:GUEST, each UID or UID/GID: files of that owner of the host, or of 'all', are the guest's.",
    ),
]
AddressText = Annotated[str, msgspec.Meta(min_length=1, max_length=512)]
Uid = Annotated[int, msgspec.Meta(ge=0, le=0xFFFFFFFE)]
LimitName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
LimitValue = (
    bool | Annotated[int, msgspec.Meta(ge=0, le=1 << 53)] | Annotated[float, msgspec.Meta(ge=0, le=1 << 53)] | None
)

DEFAULT_OWNER = "default"


SECRETS = frozenset({"agent_token"})
"""Fields whose values are told to nobody: no repr, error, event or line of a log shows one."""


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a client sends: a field that nobody knows is a mistake worth an answer."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """Return the fields as they may be shown: of a secret, whether there is one."""
        return [(name, self._shown(name)) for name in self.__struct_fields__]

    def _shown(self, name: str) -> object:
        value: object = getattr(self, name)
        return "(secret)" if name in SECRETS and value is not None else value


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon sends."""


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What the processes of a VM's file server use now; null where the kernel does not count it for the group."""

    memory: int | None = None
    """Bytes, what is cached of files included."""
    processes: int | None = None
    cpu_seconds: float | None = None


class NewVm(Request, frozen=True):
    """A VM that is to get shares: where its guest connects, or its compute system on Windows."""

    id: VmId
    listen: Annotated[tuple[AddressText, ...], msgspec.Meta(max_length=16)] = ()
    """Addresses on which the VM's file server listens, such as firecracker:/run/fc/v.sock."""
    compute_system: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    """The id of a Hyper-V compute system, in place of addresses."""
    security_model: SecurityModel = "mapped-xattr"
    links: Links = "mapped"
    """How the host keeps symbolic links that the guest makes under mapped-xattr."""
    socket_mode: Annotated[str, msgspec.Meta(pattern=_MODE, max_length=3)] = "600"
    """Permissions of the file server's unix sockets, three octal digits."""
    allow_remote: bool = False
    """Whether a TCP address may be off loopback."""
    allow_uids: Annotated[tuple[Uid | Literal["any"], ...], msgspec.Meta(max_length=64)] = ()
    """Other users of the host who may be at the other end of TCP on loopback, or of the agent's unix socket, besides
    the VM's user and root: those that the VM's monitor runs as."""
    read_only: bool = False
    """Whether writable shares are refused."""
    limits: Annotated[dict[LimitName, LimitValue], msgspec.Meta(max_length=32)] = {}
    """What the VM or one mount of it may use; see `uvmshare serve --limit`."""
    cgroup: Annotated[dict[LimitName, Annotated[str, msgspec.Meta(max_length=256)]], msgspec.Meta(max_length=32)] = {}
    """Limits of the control group of all its file server's processes, by the kernel's names: memory.max, memory.high,
    memory.swap.max, pids.max, cpu.max, cpu.weight, io.weight, io.max. Others than the daemon's own are for root, unless
    they allow less."""
    agent: AddressText | None = None
    """Where the agent in the guest is reached, such as firecracker:/run/fc/v.sock or tcp:127.0.0.1:5641; it mounts."""
    agent_dials: bool = False
    """Whether the agent dials, and this address is where the daemon listens for it."""
    agent_token: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    """The secret that the agent was started with, if it was. Never told to anybody."""
    fence: Annotated[float, msgspec.Meta(ge=3, le=3600)] | None = None
    """For a VM of a fleet that no two hosts may serve at once: for how many seconds a host that does not reach etcd
    goes on serving it. A host that takes the VM waits longer than that."""


class Vm(Answer, frozen=True, omit_defaults=True):
    """A VM that the daemon knows."""

    id: str
    """As the one who asks has to name it: to root, other users' VMs are UID:ID."""
    uid: int
    """The user of the host to whom it belongs."""
    state: Literal["finding", "running", "failed", "gone", "lost"]
    """Of its file server. "finding": the daemon was started, and looks for it. "running": it serves, or is being
    started again. "failed": it cannot be found or started, and is tried again. "gone": somebody ended it. "lost", in a
    fleet: its host is not heard of, and the rest is what was known last."""
    error: str | None
    """Why it is not running."""
    listen: tuple[str, ...]
    addresses: tuple[str, ...]
    """Where the file server really listens."""
    compute_system: str | None
    security_model: SecurityModel
    links: Links
    read_only: bool
    cgroup: str | None
    """The control group of its file server's processes; null where the daemon has none to divide."""
    cgroup_limits: dict[str, str]
    use: Use | None
    """What these processes use now."""
    agent: str | None
    agent_state: Literal["reached", "unreachable"] | None
    """Of the agent in the guest; null when the VM has none. One that falls silent is unreachable within ten seconds."""
    agent_since: datetime | None
    """Since when that is so; null without an agent, and while the VM's file server is not found."""
    agent_error: str | None
    """Why the agent is unreachable, as far as that is known."""
    restarts: int
    """How often its file server was started again since the daemon started."""
    shares: int
    """How many shares of it the one who asks can see."""
    mounts: int
    """How many mounts in its guest the one who asks can see."""
    notes: tuple[str, ...]
    """Why no guest can reach an address of it as the host is now, and what to do; empty when none is known to be so."""
    host: str | None = None
    """In a fleet: which host has it."""
    epoch: int | None = None
    """In a fleet: counts the hosts that it was on."""
    fence: float | None = None
    """In a fleet: the length of its fence, as `NewVm` has it."""


class Removed(Answer, frozen=True):
    """What the removal of a VM came to."""

    left: str | None
    """What may be left of its file server, and so of the guest's access, and why; null when nothing is."""


class NewShare(Request, frozen=True):
    """A directory or file of the host, for a guest, and who wants it."""

    path: HostPath
    read_only: bool = False
    only: AllowedNames = ()
    hide: HiddenNames = ()
    map_owner: MappedOwner | None = None
    owner: OwnerName = DEFAULT_OWNER
    lease: LeaseSeconds | None = None


class Reference(Answer, frozen=True):
    """One reference to a share."""

    owner: str
    uid: int
    lease: float | None
    """Seconds from one renewal to the next; null when it holds until it is released."""
    expires_in: float | None
    """Seconds that are left of them."""


class Share(Answer, frozen=True):
    """A share of a VM, as far as the one who asks may see it."""

    vm: str
    name: str
    """What the guest passes as aname."""
    path: str
    read_only: bool
    only: tuple[str, ...]
    hide: tuple[str, ...]
    map_owner: str | None
    state: str
    busy: str | None
    orphan: bool
    since: datetime
    last_error: str | None
    directory: Fate
    """What the path leads to now: "there", the directory that is shared; "replaced", another one, which an add would
    share under another name; "gone", nothing; "unknown", when nobody can tell, or its file system does not answer."""
    references: tuple[Reference, ...]
    mounts: tuple[str, ...]
    """Where the guest has it mounted for those whom the daemon maps it for: these hold it too."""


class NewMount(Request, frozen=True):
    """A directory of the host that is to be at a path of the guest, and who wants it."""

    path: HostPath
    guest_path: Annotated[str, msgspec.Meta(min_length=2, max_length=4095)]
    """Absolute, below what the guest's agent allows."""
    read_only: bool = False
    only: AllowedNames = ()
    hide: HiddenNames = ()
    map_owner: MappedOwner | None = None
    cache: Cache = "auto"
    """What the guest's kernel may keep (Linux's 9p.rst); "auto": the guest chooses, by its kernel, what hides no change
    of the host's."""
    msize: Annotated[int, msgspec.Meta(ge=4096, le=1 << 24)] | None = None
    """The largest 9P message, in bytes; null: the guest chooses."""
    suid: bool = False
    """Whether set-user-ID programs in it have their rights in the guest; else the guest mounts it nosuid."""
    dev: bool = False
    """Whether device nodes in it can be opened in the guest; else the guest mounts it nodev."""
    posixacl: bool = False
    """Whether the guest's kernel keeps access control lists and holds its programs to them."""
    events: bool = False
    """Whether what is changed on the host is an event in the guest (inotify); not with the cache "loose"."""
    owner: OwnerName = DEFAULT_OWNER
    lease: LeaseSeconds | None = None


class Mount(Answer, frozen=True):
    """A mount in a guest, as far as the one who asks may see it."""

    vm: str
    guest_path: str
    share: str | None
    """The name of its share; null while it has none."""
    path: str
    """The host's."""
    read_only: bool
    only: tuple[str, ...]
    hide: tuple[str, ...]
    map_owner: str | None
    cache: str
    msize: int | None
    suid: bool
    dev: bool
    posixacl: bool
    events: bool
    """Whether what is changed on the host is to be an event in the guest."""
    no_events: str | None
    """Why there are no events, in the words of the guest's agent; null while there are, before it was mounted, and when
    none were asked for."""
    chosen: str | None
    """The cache mode and msize that the mount has, in the words of the guest's kernel, such as
    cache=mmap,msize=262144; null before it was mounted, and when its agent does not tell."""
    state: str
    """Of the guest's mount; "revoked" when its share was taken away and the guest may still have it, dead; or
    "restoring", while the daemon that was started again has not reached the agent yet."""
    busy: str | None
    since: datetime | None
    last_error: str | None
    unreachable_since: datetime | None
    """Since when the agent in the guest is out of reach: `state` is then what was known before; null while it is
    reached."""
    directory: Fate
    """What the path leads to now; see a share's."""
    references: tuple[Reference, ...]


class Released(Answer, frozen=True):
    """What a release came to, and who still holds the directory."""

    released: bool
    """Whether anything was released; false when the owner held nothing of it."""
    ended: bool
    """Whether nothing in the guest reaches the directory by that share any more."""
    references: tuple[Reference, ...] = ()
    """Who still holds the share, or the mount, as far as the one who asks may see them."""
    mounts: tuple[str, ...] = ()
    """Where the guest still has it mounted for somebody whom the one who asks may see."""
    held_by_others: bool = False
    """Whether another user still holds it."""
    holders: tuple[Reference, ...] = ()
    """Who holds what was to be released, the share itself or the mount, as far as the one who asks may see them."""
    guest: str | None = None
    """Why the guest may still have the mount, dead; null when it has unmounted."""
    left_behind: tuple[str, ...] = ()
    """Processes that were killed and wait in the host's kernel for a file system that does not answer. None of them
    serves the guest."""


class ReleasedOwner(Answer, frozen=True):
    """What the release of an owner came to."""

    released: bool
    """Whether anything was released; false when the owner held nothing, in no VM."""
    shares: int
    """How many shares were released."""
    mounts: int
    """How many mounts were."""


class EventCounts(Answer, frozen=True):
    """What the file server has done for events in the guest, for one share. All but `watched` are sums."""

    heard: int
    """How often the host's kernel said that another process changed a name in a directory that is watched."""
    coalesced: int
    """How many of these were one change with an earlier one, some milliseconds before."""
    told: int
    """Changes that the agent was told."""
    pretended: int
    """Operations by which the agent repeated changes; a change may take two."""
    refused: int
    """Operations of the reserved user that were refused."""
    overflows: int
    """How often more happened than could be kept: each time the names were compared with what they were."""
    watched: int
    """Directories that are watched now."""


class Stats(Answer, frozen=True):
    """What the guest has done with one share, over all connections that it is mounted by."""

    vm: str
    share: str
    path: str
    read_only: bool
    connections: int
    operations: int
    errors: int
    """Operations that were answered with an error which tells of trouble, such as EIO or EACCES."""
    expected: int
    """Those that were answered with one that programs meet in normal use: ENOENT, ENODATA, EOPNOTSUPP, EEXIST,
    ENOTEMPTY. They are not among the errors."""
    errnos: dict[str, int]
    """Both, by the name of the error."""
    received: int
    """Bytes, from the guest."""
    sent: int
    """Bytes, to the guest."""
    latency: float | None
    """Seconds in a request's handler, the mean of those that were measured, one turn in sixteen."""
    compiled: int
    """How many of the operations the compiled hot path served: 0 where it is not in use."""
    kinds: dict[str, int]
    """Operations by kind."""
    events: EventCounts
    unreachable_since: datetime | None
    """Since when the agent in the guest is out of reach, for a share that mounts of the daemon's hold; null while it is
    reached, and for other shares."""
    epoch: int | None = None
    """In a fleet: the VM's, which counts the hosts that it was on."""


class Finding(Answer, frozen=True):
    """One thing that was looked at. `breaks` and `remedy` are empty when it is good."""

    subject: str
    verdict: Literal["good", "warning", "bad"]
    found: str
    breaks: str
    remedy: str


class Renewal(Request, frozen=True):
    """A new lease, or the same again."""

    lease: LeaseSeconds | None = None
    """Seconds; null keeps the length that each lease has."""


class Renewed(Answer, frozen=True):
    """What a renewal came to."""

    leases: int
    """How many leases of that owner run afresh."""


class Problem(Answer, frozen=True):
    """Why a request failed: application/problem+json (RFC 9457) with four members of our own."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    error: str
    """The class in `uvmshare.errors`."""
    thing: str
    """What the request was about."""
    reason: str
    remedy: str


class Operation(Answer, frozen=True):
    """Something that takes a while. It goes on whether or not somebody waits for it."""

    id: str
    action: str
    vm: str
    state: Literal["running", "succeeded", "failed"]
    started: datetime
    ended: datetime | None
    result: Any
    """What the request would have answered, once it has succeeded."""
    problem: Problem | None


class Event(Answer, frozen=True):
    """Something that happened."""

    id: str
    """To be sent as Last-Event-ID."""
    time: datetime
    kind: str
    vm: str
    share: str | None
    owner: str | None
    detail: dict[str, Any]


class EventMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An event as it is in the stream: its fields, as a browser's EventSource gives them."""

    event: str
    """Its kind; or "missed", when some before the next are not kept any more."""
    data: str
    """The `Event`, as JSON; empty braces with "missed"."""
    id: str = ""


class Info(Answer, frozen=True):
    """The daemon itself."""

    version: str
    pid: int
    uid: int
    started: datetime
    you: int
    """The uid that the daemon takes you for."""
    notes: tuple[str, ...]
    """What the host's kernel lacks to confine file servers fully."""


class Health(Answer, frozen=True):
    """The daemon answers, and can write down what it does."""

    version: str
    vms: dict[str, int]
    """How many VMs that the one who asks can see are in each state."""


REQUESTS = (NewVm, NewShare, NewMount, Renewal)
"""What requests have as their bodies."""
