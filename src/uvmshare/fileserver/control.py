"""The control channel between a `FileServer` and its supervisor.

What lives here: the messages and their framing, for both ends. What must not: sockets, or what a
message does.

A message is its length (4 bytes, big endian) and JSON. Requests carry an `id` which the reply
repeats; replies come in any order. The first message of the starter is its `Configuration`, and the
reply to it says that the supervisor listens.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

import msgspec

from uvmshare import errors
from uvmshare.errors import UNREADABLE
from uvmshare.fileserver.counters import Counted  # noqa: TC001  msgspec reads the annotations
from uvmshare.fileserver.limits import Limits
from uvmshare.fileserver.models import LINKS, SECURITY_MODELS
from uvmshare.hcs import schema  # noqa: TC001  msgspec reads the annotations
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Configuration",
    "Failure",
    "Left",
    "LostShare",
    "Modify",
    "MountStatus",
    "Reply",
    "Request",
    "ServeUntil",
    "ShareStatus",
    "Shutdown",
    "Status",
    "decode_reply",
    "decode_request",
    "encode",
    "failure_of",
    "split",
    "to_exception",
]

MAX_MESSAGE: Final = 4 << 20
"""An allow-list of many thousand names fits; a broken peer's length word does not."""

_LONGEST_REASON: Final = 10_000
"""Characters: some paths fit, and what a broken peer says does not fill logs and events."""
_LONGEST_KIND: Final = 100

_LENGTH: Final = struct.Struct(">I")


Uid = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 2)]
"""A uid or gid; the highest number of 32 bits is nobody's (chown(2))."""


class _Request(msgspec.Struct, frozen=True, tag_field="do"):
    id: int


class Configuration(_Request, frozen=True, tag="start", kw_only=True):
    """Listen; the first request of the process that started the supervisor."""

    listen: tuple[str, ...]
    security_model: str
    links: str = "mapped"
    allow_remote: bool = False
    allow_uids: tuple[Uid | Literal["any"], ...] = ()
    socket_mode: Annotated[int, msgspec.Meta(ge=0, le=0o777)] = 0o600
    run_dir: str | None = None
    log: str | None = None
    log_reader: int | None = None
    """A descriptor that reads standard error, where that is a log which the starter opened for this supervisor."""
    limits: Limits = Limits()
    keep_out: tuple[str, ...] = ()
    """Directories besides `run_dir` that no share which a guest may write to may hold, or lie in."""
    fenced: bool = False
    """Whether it serves only until it is told (`ServeUntil`), and nothing before that."""

    def checked(self) -> Self:
        """Return the same configuration. Raises `FileServerError` for what a supervisor could not read."""
        if self.security_model not in SECURITY_MODELS:
            msg = f"there is no security model {self.security_model!r}; use one of {', '.join(SECURITY_MODELS)}"
            raise errors.FileServerError(msg)
        if self.links not in LINKS:
            msg = f"links are not made {self.links!r}; use one of {', '.join(LINKS)}"
            raise errors.FileServerError(msg)
        try:
            msgspec.convert(msgspec.structs.asdict(self) | {"limits": self.limits.checked()}, type(self))
        except UNREADABLE as error:
            msg = f"settings of a file server: {reason_of(error)}; give what `FileServer` documents"
            raise errors.FileServerError(msg) from error
        return self


class Modify(_Request, frozen=True, tag="modify"):
    """Carry out a modify document."""

    document: msgspec.Raw
    directory: str | None = None
    """Which directory (`uvmshare.directory`) the path of a share to add has to lead to; None: whichever it does."""
    hide: tuple[str, ...] = ()
    map_owner: str | None = None
    """As `schema.Beside` has them, of a share to add."""


class Status(_Request, frozen=True, tag="status"):
    """Tell the addresses, shares and mounts; with `counters`, what each mount has done."""

    counters: bool = False


class ServeUntil(_Request, frozen=True, tag="fence"):
    """Serve until then, in seconds of CLOCK_BOOTTIME."""

    until: Annotated[float, msgspec.Meta(ge=0)]


class Shutdown(_Request, frozen=True, tag="shutdown"):
    """End every mount, and the supervisor."""


Request = Configuration | Modify | Status | ServeUntil | Shutdown


class Failure(msgspec.Struct, frozen=True):
    """Why a request was not carried out: the name of a class of `uvmshare.errors`, and its text."""

    kind: str
    message: str


class MountStatus(msgspec.Struct, frozen=True):
    """One mount process."""

    pid: int
    connection: int
    peer: str
    counted: Counted | None = None
    """What it has done, where that was asked for."""


class ShareStatus(msgspec.Struct, frozen=True):
    """One share that is being served."""

    name: str
    path: str
    read_only: bool
    mounts: tuple[MountStatus, ...]
    document: schema.Plan9Share
    leaving: bool = False
    """It is being removed: its mounts have been killed and are ending."""
    directory: str | None = None
    """Which directory it is (`uvmshare.directory`)."""
    hide: tuple[str, ...] = ()
    map_owner: str | None = None


class LostShare(msgspec.Struct, frozen=True):
    """One share of a supervisor that died which the one after it could not take over, and why."""

    name: str
    path: str
    reason: str


class Left(msgspec.Struct, frozen=True):
    """One mount process that was killed and has not ended: it waits in the kernel for a file system.

    It serves nobody: its connection was cut. `where` says which file system, as far as that can be told.
    """

    pid: int
    share: str
    path: str
    where: str


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer to the request of that `id`. Without `failure` it was carried out."""

    id: int
    failure: Failure | None = None
    pid: int = 0
    addresses: tuple[str, ...] = ()
    shares: tuple[ShareStatus, ...] = ()
    half_open: int = 0
    notes: tuple[str, ...] = ()
    """What the host's kernel lacks for full confinement; empty when nothing."""
    lost: tuple[LostShare, ...] = ()
    """What this supervisor could not take over from the one before it."""
    directory: str | None = None
    """Which directory the share is that was added."""
    can_hide: bool = False
    """Whether this supervisor knows `hide` and `map_owner` of a `Modify`: one of 0.1 would pass them over."""
    left: tuple[Left, ...] = ()
    """Mount processes that are left behind: of a removal or a shutdown its own, of a status all that there are."""


_encoder = msgspec.json.Encoder()
_requests: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_replies = msgspec.json.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """Return the message with its length before it."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def split(buffer: bytearray) -> Iterator[bytes]:
    """Take every whole message out of `buffer` and give its body.

    Raises `ValueError` for a length that no message has.
    """
    while len(buffer) >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(buffer)
        if length > MAX_MESSAGE:
            msg = f"a control message of {length} bytes: at most {MAX_MESSAGE} are allowed"
            raise ValueError(msg)
        stop = _LENGTH.size + length
        if len(buffer) < stop:
            return
        body = bytes(buffer[_LENGTH.size : stop])
        del buffer[:stop]
        yield body


def decode_request(body: bytes) -> Request:
    """Read a request. Raises `msgspec.DecodeError`."""
    return _requests.decode(body)


def decode_reply(body: bytes) -> Reply:
    """Read a reply. Raises `msgspec.DecodeError`."""
    return _replies.decode(body)


def failure_of(error: Exception) -> Failure:
    """Say an exception across the channel."""
    return Failure(type(error).__name__, str(error))


def to_exception(failure: Failure) -> errors.UvmshareError:
    """Return the exception that a failure stands for; one this side does not know is a `ComputeSystemError`."""
    cls = getattr(errors, failure.kind, None)
    message = failure.message[:_LONGEST_REASON]
    if isinstance(cls, type) and issubclass(cls, errors.UvmshareError):
        with suppress(Exception):  # some are made of more than a text, and are never said there
            return cls(message)
    return errors.ComputeSystemError(f"{failure.kind[:_LONGEST_KIND]}: {message}")
