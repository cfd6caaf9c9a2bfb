"""How the daemon's clients read: a call's answer, the daemon's events, and answers that make no sense.

What lives here: `Call`, and the reading of the bytes that come back. What must not: the calls themselves
(`client_calls`), or a connection (`client`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Generic, Literal, TypeVar

import msgspec

from uvmshare.daemon.documents import Event, Problem
from uvmshare.daemon.problems import to_exception
from uvmshare.errors import UNREADABLE, DaemonError
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["VERSION", "Call", "EventLines", "Unreadable", "check", "no_daemon", "read", "version_in"]

T = TypeVar("T")

VERSION: Final = "/v1/info"
"""Where every version of the daemon tells which it is."""


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request, and the type of its answer."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    kind: type[T]
    body: bytes | None = field(default=None, repr=False)
    """A document, which may hold a secret."""
    query: Mapping[str, str] = field(default_factory=dict)


class Unreadable(Exception):
    """An answer that makes no sense: the answer, and why."""

    def __init__(self, what: str, error: Exception) -> None:
        self.what = what
        self.error = error
        super().__init__(what)


class _Versioned(msgspec.Struct):
    """What every version's document of itself has."""

    version: str


def read(call: Call[T], status: int, content: bytes) -> T:
    """Return what an answer says. Raises the error that the daemon answered, and `Unreadable`."""
    check(status, content)
    try:
        return msgspec.json.decode(content, type=call.kind)
    except UNREADABLE as error:
        what = f"its answer to {call.method} {call.path}"
        raise Unreadable(what, error) from error


def check(status: int, content: bytes) -> None:
    """Raise the error of an answer that is not a success."""
    if 200 <= status < 300:
        return
    try:
        problem = msgspec.json.decode(content, type=Problem)
    except UNREADABLE as error:
        what = f"its answer of status {status}"
        raise Unreadable(what, error) from error
    raise to_exception(problem)


def version_in(content: bytes) -> str | None:
    """Return the version in an answer to `VERSION`, whatever else it says; None when no daemon answered."""
    try:
        return msgspec.json.decode(content, type=_Versioned).version
    except UNREADABLE:
        return None


def no_daemon(host: str, found: Unreadable, theirs: str | None) -> DaemonError:
    """Return what to say of an answer that makes no sense: most likely the daemon is of another version."""
    from importlib import metadata  # noqa: PLC0415  only who meets a daemon of another version needs it

    ours = metadata.version("uvmshare")
    if theirs is None:
        return DaemonError(f"{host}: {found.what} is not from a uvmshare daemon: name another with --host unix:PATH")
    if theirs == ours:
        return DaemonError(f"{host}: {found.what} cannot be read ({reason_of(found.error)}): please report this defect")
    msg = f"{host}: {found.what} cannot be read: that daemon is uvmshare {theirs}, and this is {ours}: "
    return DaemonError(msg + "use the same version for both (start the daemon again after an upgrade)")


class EventLines:
    """Events from the pieces of the daemon's stream. Only a line feed ends a line."""

    def __init__(self) -> None:
        self._rest = b""
        self._kind = b""

    def feed(self, chunk: bytes) -> Iterator[Event | None]:
        """Give the events that end in this piece; None where some are missing. Raises `Unreadable`."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.partition(b": ")
            if name == b"event":
                self._kind = value
            elif name == b"data":
                yield None if self._kind == b"missed" else _event(value)


def _event(data: bytes) -> Event:
    try:
        return msgspec.json.decode(data, type=Event)
    except UNREADABLE as error:
        what = "an event that it sent"
        raise Unreadable(what, error) from error
