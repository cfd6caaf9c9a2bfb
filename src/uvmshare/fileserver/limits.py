"""What one VM, and one mount of it, may use of the host.

What lives here: the numbers and their reasons. What must not: enforcing them, which each place does, with a line in the
log; `uvmshare.fileserver.mount.throttle` holds a mount to its rates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

import msgspec

from uvmshare.errors import FileServerError
from uvmshare.ninep.constants import MIN_MSIZE
from uvmshare.printable import valid
from uvmshare.wording import complaint, kind_in_words

__all__ = ["Limits"]


Count = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
"""What setrlimit(2) and JSON take."""
Seconds = Annotated[float, msgspec.Meta(gt=0, le=2_000_000)]
"""Some 23 days: poll(2) takes milliseconds in 31 bits."""


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of one file server. Counts, bytes, seconds, and what is allowed at all; None is no limit."""

    # Of a VM

    connections: Count = 2048
    """Connections of any kind. One more is closed at once."""

    half_open: Count = 64
    """Connections that have not attached yet. One more, and the oldest of them is closed: a guest
    that opens silent connections cannot keep a good one out."""

    handshake_seconds: Seconds = 10.0
    """How long a connection may take from accept to attach."""

    mounts: Count = 1024
    """Mount processes: one for each connection that has attached."""

    # Of a mount

    msize: Annotated[int, msgspec.Meta(ge=MIN_MSIZE, le=1 << 24)] = 1 << 20
    """The largest message, in bytes. 1 MiB is the most that Linux's fd transport takes."""

    fids: Count = 4_000_000
    """Fids. Linux's client holds one for each directory entry that it remembers, and one for each open file."""

    open_files: Count = 4_000_000
    """Fids that are open. Before Linux 6.4 its client keeps each file that was written to open for as long as it
    remembers it, with `cache=loose`."""

    descriptors: Count = 262144
    """Descriptors of a mount process (RLIMIT_NOFILE), or as many as the host allows. A fid has one for its file
    and one for each directory on the way, and one more where it is open. When there are as many, those that nobody uses
    are closed until they are used: of files that are not open, and then of open ones that have a name."""

    keep_seconds: Seconds = 30.0
    """How long descriptors that nobody uses stay open in a mount that sends nothing. While they are open, deleted files
    use their space, and file systems below the share cannot be unmounted."""

    locks: Count = 4096
    """Byte ranges that are locked, and lock requests that wait."""

    read_only_host_locks: bool = False
    """Whether read-only shares lock the host's files, for reading: a program of the host that writes waits then for as
    long as a guest likes. Without it, locks of a read-only share hold among the programs of its mount alone."""

    lock_wait_seconds: Seconds = 10.0
    """How long a lock request may wait for its answer. Linux's client then asks again by itself, every
    30 seconds, and can only be interrupted in between."""

    xattr_bytes: Count = 4 << 20
    """Values of extended attributes that open fids hold."""

    memory_bytes: Count = 1280 << 20
    """The data of a mount process (RLIMIT_DATA). A request that needs more is answered with ENOMEM. A million files
    that the guest remembers take 330 MB, and 1.1 GB where Linux's client keeps them open for writing."""

    idle_seconds: Seconds | None = None
    """How long a mount may send nothing, or take none of its replies. Linux's client sends nothing while
    nobody uses the mount."""

    peer_seconds: Annotated[float, msgspec.Meta(ge=4, le=86_400)] = 60.0
    """How long the kernel of a TCP peer may answer nothing, not even this kernel's own questions, before its mount ends
    and its locks with it. Behind QEMU's user network the peer is QEMU, which runs while the guest is paused. Over
    vsock: how soon a connection ends that the guest knows nothing of, such as one that was restored from a snapshot; a
    guest that answers nothing, because it is paused, keeps its mount."""

    bytes_per_second: Count | None = None
    """Bandwidth, of requests and replies together."""

    operations_per_second: Count | None = None
    """Requests."""

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Return limits from their names and numbers, which may be text.

        Raises `FileServerError` for what is no limit or no number for one, `TypeError` for what is no mapping.
        """
        if not isinstance(values, Mapping):
            msg = f"limits are {values!r}: pass a mapping of their names to numbers"
            raise TypeError(msg)
        # The reason that msgspec gives holds the name, and cannot hold half a character.
        named = {valid(str(name)): valid(each) if isinstance(each, str) else each for name, each in values.items()}
        try:
            return msgspec.convert(named, cls, strict=False)
        except msgspec.ValidationError as error:
            raise FileServerError(_wrong(str(error), named, cls.__struct_fields__)) from error

    def checked(self) -> Self:
        """Return the same limits. Raises `FileServerError` when one of them cannot be."""
        return self.of(msgspec.structs.asdict(self))


def _wrong(said: str, given: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Say which limit is wrong: msgspec stops at the first."""
    unknown = next((each for each in given if each not in names), None)
    if unknown is not None:
        return f"there is no limit {unknown!r}; there are {', '.join(names)}"
    field, words = complaint(said)
    if kinds := re.fullmatch(r"Expected `(.*)`, got `str`.*", said):  # numbers may be text here
        words = f"it has to be {kind_in_words(kinds[1]).replace('null', 'none')}"
    if given.get(field) is None:
        return f"limit {field} cannot be lifted: {words.removeprefix('it is null, and has to be').strip()} is needed"
    return f"limit {field} is {given[field]!r}: {words}"
