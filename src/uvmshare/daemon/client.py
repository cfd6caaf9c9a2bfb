"""The daemon's API for Python programs: one class, the same names and the same errors as the library.

    with Client() as daemon:
        daemon.add_vm(NewVm(id="build", listen=("firecracker:/run/fc/v.sock",)))
        share = daemon.add_share("build", NewShare(path="/srv/project", owner="job-7", lease=30))

What lives here: requests over the daemon's unix socket and the documents of their answers. What must not: how they are
shown (`uvmshare.cli`).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from uvmshare.daemon.documents import (
    DEFAULT_OWNER,
    Event,
    Finding,
    Info,
    Mount,
    NewMount,
    NewShare,
    NewVm,
    Operation,
    Problem,
    Released,
    Removed,
    Renewal,
    Renewed,
    Share,
    Stats,
    Vm,
)
from uvmshare.daemon.problems import to_exception
from uvmshare.errors import UNREADABLE, DaemonError, InvalidOptions
from uvmshare.wording import reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

__all__ = ["Client", "default_host"]

T = TypeVar("T")

_SYSTEM: Final = "/run/uvmshare/uvmshare.sock"
_SECONDS: Final = 120.0
"""Longer than anything that the daemon waits for itself."""


class _Versioned(msgspec.Struct):
    """What every version's document of itself has."""

    version: str


def default_host() -> str:
    """Return where the daemon is: UVMSHARE_HOST, else the user's own where it is there, else the system's."""
    if host := os.environ.get("UVMSHARE_HOST"):
        return host
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    own = os.path.join(runtime, "uvmshare", "uvmshare.sock") if runtime else ""
    return f"unix:{own}" if own and os.path.exists(own) else f"unix:{_SYSTEM}"


class Client:
    """A connection to the daemon; several requests may follow each other on it. For threads, one each.

    Methods raise what the daemon said, as the same class that the library raises (`NotThere`, `InvalidOptions`,
    `OutcomeUnknown` ...), and `DaemonError` when there is no daemon.
    """

    def __init__(self, host: str | None = None, *, timeout: float = _SECONDS) -> None:
        self.host = host or default_host()
        if not self.host.startswith("unix:") or self.host == "unix:":
            msg = f"host {self.host!r}: the daemon is reached on a unix socket: write unix:PATH"
            raise DaemonError(msg)
        # Nothing of TLS or of a proxy is on a unix socket: SSL_CERT_FILE may name a file that is not here.
        transport = httpx.HTTPTransport(uds=self.host.removeprefix("unix:"), verify=False, trust_env=False)
        self._http = httpx.Client(transport=transport, base_url="http://uvmshare", timeout=timeout, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    # Requests

    def _ask(self, method: str, path: str, kind: type[T], body: Any = None, **query: Any) -> T:
        params = {key: _text(value) for key, value in query.items() if value is not None}
        try:
            content = None if body is None else msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise _not_utf8(error) from error
        with self._explained():
            response = self._http.request(
                method,
                path,
                params=params,
                content=content,
                headers={} if body is None else {"Content-Type": "application/json"},
            )
        self._check(response, response.content)
        if kind is type(None):
            return None
        try:
            return msgspec.json.decode(response.content, type=kind)
        except UNREADABLE as error:
            what = f"its answer to {method} {path}"
            raise self._unreadable(what, error) from error

    def _check(self, response: httpx.Response, content: bytes) -> None:
        if response.is_success:
            return
        try:
            problem = msgspec.json.decode(content, type=Problem)
        except UNREADABLE as error:
            what = f"its answer of status {response.status_code}"
            raise self._unreadable(what, error) from error
        raise to_exception(problem)

    def _unreadable(self, what: str, error: Exception) -> DaemonError:
        """Return what to say of an answer that makes no sense: most likely the daemon is of another version."""
        theirs, ours = self._version(), metadata.version("uvmshare")
        if theirs is None:
            return DaemonError(f"{self.host}: {what} is none of a uvmshare daemon: name another with --host unix:PATH")
        if theirs == ours:
            return DaemonError(f"{self.host}: {what} cannot be read ({reason_of(error)}): please report this defect")
        msg = f"{self.host}: {what} cannot be read: that daemon is uvmshare {theirs}, and this is {ours}: "
        return DaemonError(msg + "use the same version for both (start the daemon again after an upgrade)")

    def _version(self) -> str | None:
        """Return the version of what answers, whatever else it says; None when it is no daemon."""
        try:
            found = msgspec.json.decode(self._http.get("/v1/info").content, type=_Versioned)
        except (httpx.HTTPError, *UNREADABLE):
            return None
        return found.version

    @contextmanager
    def _explained(self) -> Iterator[None]:
        path = self.host.removeprefix("unix:")
        nobody = f"no daemon answers at {path}: start one (uvmshare daemon), or name another with --host unix:PATH"
        if not os.path.exists(path):
            raise DaemonError(nobody)
        try:
            yield
        except httpx.ConnectError as error:
            if "Permission" in str(error):
                msg = f"{path}: you may not connect to the daemon: join the group of that socket, or start your own"
                raise DaemonError(msg) from error
            raise DaemonError(nobody) from error
        except httpx.TimeoutException as error:
            msg = f"{path}: the daemon gave no answer in time: what was asked may be done or not; see `uvmshare events`"
            raise DaemonError(msg) from error
        except httpx.InvalidURL as error:
            msg = f"{path}: a name in the request is too long, or holds what no name does: give another"
            raise InvalidOptions(msg) from error
        except httpx.HTTPError as error:
            msg = f"{path}: the daemon went away meanwhile: what was asked may be done or not; ask again"
            raise DaemonError(msg) from error

    def info(self) -> Info:
        """Return what the daemon is, and who you are to it."""
        return self._ask("GET", "/v1/info", Info)

    def vms(self) -> list[Vm]:
        """Return your VMs."""
        return self._ask("GET", "/v1/vms", list[Vm])

    def vm(self, vm: str) -> Vm:
        """Return one VM."""
        return self._ask("GET", f"/v1/vms/{_quoted(vm)}", Vm)

    def add_vm(self, wanted: NewVm) -> Vm:
        """Add a VM, and return it when its file server listens."""
        return self._ask("POST", "/v1/vms", Vm, wanted)

    def remove_vm(self, vm: str, *, force: bool = False) -> Removed:
        """Remove a VM; return what may be left of it."""
        return self._ask("DELETE", f"/v1/vms/{_quoted(vm)}", Removed, force=force)

    def shares(self, vm: str) -> list[Share]:
        """Return the shares of a VM that you hold."""
        return self._ask("GET", f"/v1/vms/{_quoted(vm)}/shares", list[Share])

    def share(self, vm: str, share: str) -> Share:
        """Return one share."""
        return self._ask("GET", f"/v1/vms/{_quoted(vm)}/shares/{_quoted(share)}", Share)

    def add_share(self, vm: str, wanted: NewShare) -> Share:
        """Add a share and hold it; return it when the guest can mount it."""
        return self._ask("POST", f"/v1/vms/{_quoted(vm)}/shares", Share, wanted)

    def begin_add_share(self, vm: str, wanted: NewShare) -> Operation:
        """As `add_share`, but return at once what `operation` then tells of."""
        return self._ask("POST", f"/v1/vms/{_quoted(vm)}/shares", Operation, wanted, wait=False)

    def release_share(
        self, vm: str, share: str, *, owner: str = DEFAULT_OWNER, uid: int | None = None, force: bool = False
    ) -> Released:
        """Give back what an owner holds; when the last one returns, no guest reaches the share any more.

        The answer says whether it ended, and who holds it otherwise. With `force` it is taken from everybody of yours;
        for root, from everybody. Raises `StillInUse` while a mount holds it, or when force was not enough.
        """
        path = f"/v1/vms/{_quoted(vm)}/shares/{_quoted(share)}"
        return self._ask("DELETE", path, Released, owner=owner, uid=uid, force=force)

    def mounts(self, vm: str) -> list[Mount]:
        """Return the mounts in a VM's guest that you hold."""
        return self._ask("GET", f"/v1/vms/{_quoted(vm)}/mounts", list[Mount])

    def map(self, vm: str, wanted: NewMount) -> Mount:
        """Share a directory and mount it in the guest; both or neither."""
        return self._ask("POST", f"/v1/vms/{_quoted(vm)}/mounts", Mount, wanted)

    def unmap(
        self,
        vm: str,
        guest_path: str,
        *,
        owner: str = DEFAULT_OWNER,
        uid: int | None = None,
        lazy: bool = False,
        force: bool = False,
    ) -> Released:
        """Give back what an owner holds; the last one unmounts it, and takes its share out.

        With `force` it is taken from everybody of yours, for root from everybody, and the guest has no say: it has five
        seconds to unmount. Raises `StillInUse` when force was not enough, and says who holds it.
        """
        path = f"/v1/vms/{_quoted(vm)}/mounts"
        asked = {"guest_path": guest_path, "owner": owner, "uid": uid, "lazy": lazy, "force": force}
        return self._ask("DELETE", path, Released, **asked)

    def stats(self, vm: str) -> list[Stats]:
        """Return what a VM's guest has done with each share that you hold."""
        return self._ask("GET", f"/v1/vms/{_quoted(vm)}/stats", list[Stats])

    def examine_guest(self, vm: str) -> list[Finding]:
        """Return what a VM's guest can and cannot do, by its agent."""
        return self._ask("GET", f"/v1/vms/{_quoted(vm)}/doctor", list[Finding])

    def renew(self, owner: str, *, lease: float | None = None, vm: str | None = None, share: str | None = None) -> int:
        """Let leases of an owner run afresh, all or those on one share; return how many. Raises `NotThere` for none."""
        path = f"/v1/leases/{_quoted(owner)}"
        if vm is not None and share is not None:
            path = f"/v1/vms/{_quoted(vm)}/shares/{_quoted(share)}/leases/{_quoted(owner)}"
        return self._ask("PUT", path, Renewed, Renewal(lease=lease)).leases

    def release_owner(self, owner: str, *, force: bool = False) -> None:
        """Give back everything that an owner holds; with `force`, whatever guests say."""
        self._ask("DELETE", f"/v1/owners/{_quoted(owner)}", type(None), force=force)

    def operation(self, operation: str, *, wait: bool = False) -> Operation:
        """Return what became of an operation; with `wait`, when it has ended."""
        return self._ask("GET", f"/v1/operations/{_quoted(operation)}", Operation, wait=wait)

    def events(self, since: str | None = None, *, follow: bool = True) -> Iterator[Event | None]:
        """Give events as they happen; None where some are missing. Ends when the daemon does."""
        query = {"follow": _text(follow), **({"since": _text(since)} if since else {})}
        with self._explained(), self._http.stream("GET", "/v1/events", params=query, timeout=None) as response:
            if not response.is_success:
                self._check(response, response.read())
            kind = b""
            for line in _lines(response.iter_bytes()):
                field, _, value = line.partition(b": ")
                if field == b"event":
                    kind = value
                elif field == b"data":
                    yield None if kind == b"missed" else self._event(value)

    def _event(self, data: bytes) -> Event:
        try:
            return msgspec.json.decode(data, type=Event)
        except UNREADABLE as error:
            what = "an event that it sent"
            raise self._unreadable(what, error) from error


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Give the whole lines: a line feed ends one and nothing else does, whatever a name in it holds."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def _quoted(name: str) -> str:
    """Return a name as one segment of a path. Raises `InvalidOptions` for what can be none."""
    if name in ("", ".", ".."):  # these would lead to another resource
        msg = f"{name!r} is no name: the names that there are begin with a letter or a digit"
        raise InvalidOptions(msg)
    try:
        return quote(name, safe=":@")
    except UnicodeEncodeError as error:
        raise _not_utf8(error) from error


def _text(value: Any) -> str:
    """Return a value of a query. Raises `InvalidOptions` for what cannot be sent."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _not_utf8(error) from error
    return text


def _not_utf8(error: UnicodeEncodeError) -> InvalidOptions:
    return InvalidOptions(
        f"{error.object!r} is not UTF-8, and the daemon's documents hold nothing else: rename it, or mount it "
        f"at a path that is (mount --bind)"
    )
