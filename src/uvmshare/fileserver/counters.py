"""What a mount process has done, in memory that its supervisor can read.

What lives here: `Counters`, as the mount process writes them, and `Counted`, as others read them. What must not: when
something is counted (`mount.serving`, and for some numbers `mount.handlers`).

All of it is an array of 64-bit numbers, shared since before the fork, and with that one mount alone, so that
counting a request is one addition in it. Latencies are measured in one turn of the loop of `SAMPLED`, by handlers
that are wrapped for it, so that all other turns pay nothing for them. Readers may see a number while it is being
changed; nothing depends on it. With a run directory the array is a file there, for the next supervisor to find.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from uvmshare.ninep import messages

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = [
    "BUCKETS",
    "COALESCED",
    "COMPILED",
    "EXPECTED",
    "HEARD",
    "OVERFLOWS",
    "PRETENDED",
    "RECEIVED",
    "REFUSED",
    "SAMPLED",
    "SENT",
    "TOLD",
    "WATCHED",
    "Counted",
    "Counters",
    "Events",
    "Latency",
    "errno_name",
    "read",
]

S = TypeVar("S")

SAMPLED: Final = 16
"""Latencies are measured in one turn of so many."""

BUCKETS: Final = tuple(10e-6 * 4**step for step in range(10))
"""Upper bounds of latencies in seconds: 10 µs to 2.6 s; what takes longer is beyond the last."""

EXPECTED: Final = frozenset({errno.ENOENT, errno.ENODATA, errno.EOPNOTSUPP, errno.EEXIST, errno.ENOTEMPTY})
"""The answers "no" to what programs ask in ordinary life, which are no sign of trouble: a name that is looked for along
a path and is not there, an attribute that a file has not or that its file system has none of (a guest's kernel asks for
security.capability before it writes), and what is made, or taken away, unless it is there (mkdir -p, O_EXCL, rmdir)."""

_OPERATIONS: Final = 0
"""By message type, whatever a guest makes of it."""
_ERRORS: Final = 256
"""By errno; what is above 255 counts as EIO."""
RECEIVED: Final = 512
SENT: Final = 513
"""Bytes from the guest, and to it."""
_LATENCIES: Final = 514
_PER_TYPE: Final = 2 + len(BUCKETS) + 1
"""How many were measured, their sum in nanoseconds, and how many in each bucket."""
_BESIDE: Final = _LATENCIES + 64 * _PER_TYPE
"""Requests that threads are at, of file systems that may never answer, and the device of the one that takes longest.
Behind all that mounts of earlier versions have, which a new supervisor reads."""
_BESIDE_DEVICE: Final = _BESIDE + 1
COMPILED: Final = _BESIDE_DEVICE + 1
"""Requests that the compiled hot path served (`mount.plain`), of those by message type."""
_EVENTS: Final = COMPILED + 1
HEARD, COALESCED, TOLD, PRETENDED, REFUSED, OVERFLOWS, WATCHED = range(_EVENTS, _EVENTS + 7)
"""What `Events` has, in its order."""
_SLOTS: Final = WATCHED + 1
_SIZE: Final = 8 * _SLOTS
_BOUNDS: Final = tuple(int(bound * 1e9) for bound in BUCKETS)
_EIO: Final = 5


_MOST: Final = (1 << 53) - 1
"""What a number counts to; one that is beyond it is no count, and others must be able to add it up."""

Count = Annotated[int, msgspec.Meta(ge=0, le=_MOST)]
Kind = Annotated[str, msgspec.Meta(pattern=r"^T[a-z]+$(?!\n)", max_length=32)]
Errno = Annotated[int, msgspec.Meta(ge=0, le=4095)]
_BUCKET_COUNT: Final = len(BUCKETS) + 1


class Latency(msgspec.Struct, frozen=True):
    """Latencies of one kind of request, of those that were measured."""

    count: Count
    seconds: Annotated[float, msgspec.Meta(ge=0, le=_MOST)]
    """Their sum."""
    buckets: Annotated[tuple[Count, ...], msgspec.Meta(min_length=_BUCKET_COUNT, max_length=_BUCKET_COUNT)]
    """How many took at most each of `BUCKETS`, and no less than the one before; then those beyond."""


class Events(msgspec.Struct, frozen=True):
    """What one mount has done for events in its guest (docs/events.md). All but `watched` are sums since it began."""

    heard: Count = 0
    """Words of the host's kernel that another process changed a name."""
    coalesced: Count = 0
    """Those of a name that the kernel had spoken of already some milliseconds before: both are one change."""
    told: Count = 0
    """Changes that the agent was told."""
    pretended: Count = 0
    """Operations of the agent's that were answered as if they were carried out; a change may take two."""
    refused: Count = 0
    """Operations of the reserved user that were refused."""
    overflows: Count = 0
    """How often more happened than the kernel keeps, or the agent took. Then names are compared with what they were, or
    the agent begins anew."""
    watched: Count = 0
    """Directories that are watched now, for pins or events."""

    @classmethod
    def of(cls, counted: Collection[Counted]) -> Events:
        """Return what several mounts have done together."""
        return cls(
            *(min(sum(numbers), _MOST) for numbers in zip(*(_each(found.events) for found in counted), strict=True))
        )


class Counted(msgspec.Struct, frozen=True):
    """What one mount has done since it began. Another user's process may have said so: what is no count is refused."""

    operations: Annotated[dict[Kind, Count], msgspec.Meta(max_length=128)] = {}
    """By kind of request: Tread, Twalk ..."""
    errors: Annotated[dict[Errno, Count], msgspec.Meta(max_length=256)] = {}
    """Requests that were answered with an error, by errno."""
    received: Count = 0
    """Bytes, from the guest."""
    sent: Count = 0
    """Bytes, to the guest."""
    beside: Count = 0
    """Requests that wait for file systems that may never answer."""
    beside_device: Count = 0
    """The device (stat(2)) of the one that waits longest."""
    compiled: Count = 0
    """How many of the requests the compiled hot path served: 0 where it is not used."""
    latencies: Annotated[dict[Kind, Latency], msgspec.Meta(max_length=128)] = {}
    events: Events = Events()

    def answered(self, *, expected: bool) -> dict[Errno, Count]:
        """Return the `errors` that are `EXPECTED`, or those that are not."""
        return {number: count for number, count in self.errors.items() if (number in EXPECTED) is expected}


def _each(events: Events) -> tuple[int, ...]:
    return msgspec.structs.astuple(events)


class Counters:
    """The array. `path` is a file that does not exist yet, or None for memory that has no name."""

    def __init__(self, path: str | None = None) -> None:
        """Make the array. A file that cannot be had, as on a full disk, is done without: raises nothing."""
        descriptor = -1
        if path is not None:
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                # Room that is promised: a page that the disk has no room for would be the process's end (SIGBUS).
                os.posix_fallocate(descriptor, 0, _SIZE)
                self.memory = mmap.mmap(descriptor, _SIZE)
        if descriptor >= 0:
            os.close(descriptor)
        if not hasattr(self, "memory"):
            self.memory = mmap.mmap(-1, _SIZE)
        self.slots = memoryview(self.memory).cast("Q")
        """The numbers: requests at the number of their type, so that the loop adds to them without a call."""

    def keep_to_one(self) -> None:
        """Keep the memory from processes that are forked from now on: it is one mount's and its supervisor's.

        madvise(2), MADV_DONTFORK. They must not touch `slots` then. A mapping that cannot be kept back stays as it is.
        """
        with suppress(OSError):
            self.memory.madvise(mmap.MADV_DONTFORK)

    def count_error(self, number: int) -> None:
        """Count a request that is answered with an error."""
        self.slots[_ERRORS + (number if 0 < number < 256 else _EIO)] += 1

    def count_received(self, size: int) -> None:
        """Count bytes from the guest."""
        self.slots[RECEIVED] += size

    def set_sent(self, size: int) -> None:
        """Say how many bytes went to the guest so far."""
        self.slots[SENT] = size

    def set_beside(self, count: int, device: int) -> None:
        """Say how many requests threads are at, and the device of the one that takes longest."""
        self.slots[_BESIDE] = count
        self.slots[_BESIDE_DEVICE] = device

    def count_latency(self, number: int, took: int) -> None:
        """Count how long a request of that type took, in nanoseconds."""
        slots, at = self.slots, _LATENCIES + (number >> 1) * _PER_TYPE
        slots[at] += 1
        slots[at + 1] += took
        slots[at + 2 + sum(took > bound for bound in _BOUNDS)] += 1

    def measured(
        self, served: list[Callable[[S, int, int, int, int], bytes | None] | None]
    ) -> list[Callable[[S, int, int, int, int], bytes | None] | None]:
        """Return what serves each message type, measuring how long that takes."""
        return [None if serve is None else self._measured(number, serve) for number, serve in enumerate(served)]

    def _measured(
        self, number: int, serve: Callable[[S, int, int, int, int], bytes | None]
    ) -> Callable[[S, int, int, int, int], bytes | None]:
        count, clock = self.count_latency, time.perf_counter_ns

        def measuring(session: S, tag: int, fid: int, start: int, stop: int) -> bytes | None:
            begun = clock()
            try:
                return serve(session, tag, fid, start, stop)
            finally:
                count(number, clock() - begun)

        return measuring


def errno_name(number: int) -> str:
    """Return the name of an errno, or its number where it has none."""
    return errno.errorcode.get(number, str(number))


def read(source: mmap.mmap | str) -> Counted:
    """Read an array: one that is shared, or a file. One that is not there counts nothing."""
    data = b""
    if isinstance(source, str):
        # Not mapped: who owns the file may cut it off at any moment.
        with suppress(OSError), open(source, "rb") as file:
            data = file.read(_SIZE)
    else:
        data = source[:_SIZE]
    if len(data) < 8 * _BESIDE:
        return Counted()
    data = data.ljust(_SIZE, b"\0")
    # The mount's process writes there what it likes.
    slots = tuple(min(number, _MOST) for number in struct.unpack(f"@{_SLOTS}Q", data))
    names = {number: cls.__name__ for number, cls in messages.BY_TYPE.items()}
    latencies = {}
    for number, name in names.items():
        at = _LATENCIES + (number >> 1) * _PER_TYPE
        if number % 2 == 0 and slots[at]:
            latencies[name] = Latency(slots[at], slots[at + 1] / 1e9, slots[at + 2 : at + _PER_TYPE])
    return Counted(
        operations={name: slots[number] for number, name in names.items() if slots[number]},
        errors={number: slots[_ERRORS + number] for number in range(256) if slots[_ERRORS + number]},
        received=slots[RECEIVED],
        sent=slots[SENT],
        beside=slots[_BESIDE],
        beside_device=slots[_BESIDE_DEVICE],
        compiled=slots[COMPILED],
        latencies=latencies,
        events=Events(*slots[_EVENTS:]),
    )
