"""Addresses of the file server, and of the agent in a guest: one syntax everywhere.

What lives here: reading an address and writing it again. What must not: sockets.

=====================================  =====================================================
``unix:PATH``                          a unix stream socket
``firecracker:UDS_PATH[:PORT]``        hybrid vsock: the host's side of guest port PORT, which is
``cloud-hypervisor:UDS_PATH[:PORT]``   the unix socket ``UDS_PATH_PORT``
``vsock:CID[:PORT]``                   a vsock port that accepts the guest CID alone
``tcp:HOST:PORT``                      TCP; PORT 0 takes a free one; IPv6 in brackets
=====================================  =====================================================

PORT is 5640 unless given, and 5641 for agents: ports below 1024 need root on vsock. For an agent that listens, the
unix socket of hybrid vsock is ``UDS_PATH`` itself, where the port is asked for (`uvmshare.mounts.channel`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Literal

from uvmshare import arguments
from uvmshare.errors import InvalidAddress

__all__ = ["DEFAULT_PORT", "Address", "parse"]

DEFAULT_PORT: Final = 5640
_LONGEST_HOST: Final = 254
_LONGEST_LABEL: Final = 63
"""Letters of a name of a host with its last dot, and of one part of it (RFC 1035, 2.3.4)."""
_MAX_UNIX_PATH: Final = 107
"""``sun_path`` has 108 bytes with its NUL (unix(7))."""
_ANY_CID: Final = 0xFFFFFFFF
_MOST_DIGITS: Final = 20
_FIRST_GUEST_CID: Final = 3
"""0 is the hypervisor, 1 local, 2 the host (vsock(7))."""

Kind = Literal["unix", "firecracker", "cloud-hypervisor", "vsock", "tcp"]


@dataclass(frozen=True, slots=True)
class Address:
    """One address. `path` is of the unix kinds, `host` of tcp, `cid` of vsock; `port` of all but unix."""

    kind: Kind
    path: str = ""
    host: str = ""
    cid: int = 0
    port: int = 0

    @property
    def socket_path(self) -> str:
        """The unix socket's path: for hybrid vsock the one that belongs to the port; else ''."""
        return self.path if self.kind == "unix" or not self.path else f"{self.path}_{self.port}"

    def with_port(self, port: int) -> Address:
        """Return the same address with the port that was really bound."""
        return replace(self, port=port)

    def __str__(self) -> str:
        match self.kind:
            case "unix":
                return f"unix:{self.path}"
            case "vsock":
                return f"vsock:{self.cid}:{self.port}"
            case "tcp":
                host = f"[{self.host}]" if ":" in self.host else self.host
                return f"tcp:{host}:{self.port}"
            case _:
                return f"{self.kind}:{self.path}:{self.port}"


def parse(text: str, *, default_port: int = DEFAULT_PORT) -> Address:
    """Read an address; `default_port` is its port when it names none (tcp always does).

    Raises `InvalidAddress`, which names the text, what is wrong with it, and the form that is right; `WrongType` for
    what is no text.
    """
    if not isinstance(text, str):
        arguments.refuse_type("address", text, "a str, such as 'unix:/run/vm1.9p'")
    kind, colon, rest = text.partition(":")
    if not colon or not rest:
        raise _without_kind(text, "")
    match kind:
        case "unix":
            return _checked(text, Address("unix", path=rest))
        case "firecracker" | "cloud-hypervisor":
            path, port = _split_port(text, rest, default_port)
            return _checked(text, Address(kind, path=path, port=port))
        case "vsock":
            cid_text, port = _split_port(text, rest, default_port, strict=True)
            cid = _number(text, cid_text, "the CID", _ANY_CID - 1)
            if cid < _FIRST_GUEST_CID:
                raise _wrong(text, f"CID {cid} is no guest's", "the CID that the VM was given, 3 or more")
            return Address("vsock", cid=cid, port=port)
        case "tcp":
            host, colon, port_text = rest.rpartition(":")
            if not colon or not host:
                raise _half_of_tcp(text, rest)
            if host.startswith("[") and host.endswith("]"):
                host = host[1:-1]
            elif ":" in host:
                raise _wrong(text, "an IPv6 host stands in brackets", "tcp:[::1]:5640")
            _require_host(text, host)
            return Address("tcp", host=host, port=_number(text, port_text, "the port", 0xFFFF))
        case _:
            raise _without_kind(text, kind)


def _half_of_tcp(text: str, rest: str) -> InvalidAddress:
    if rest.isascii() and rest.isdigit():
        return _wrong(text, "it has no host", f"tcp:127.0.0.1:{rest}")
    return _wrong(text, "it has no port", "tcp:HOST:PORT")


def _without_kind(text: str, kind: str) -> InvalidAddress:
    if text.startswith("/"):
        return _wrong(text, "it has no kind", f"unix:{text}")
    if re.fullmatch(r"[A-Za-z0-9.-]+:[0-9]+", text):
        return _wrong(text, "it has no kind", f"tcp:{text}")
    if not kind:
        return _wrong(text, "it has no kind or nothing behind it", "unix:PATH, vsock:CID[:PORT] or tcp:HOST:PORT")
    return _wrong(text, f"there is no kind {kind!r}", "unix:, firecracker:, cloud-hypervisor:, vsock: or tcp:")


def _wrong(text: str, reason: str, remedy: str) -> InvalidAddress:
    return InvalidAddress(f"address {text!r}: {reason}; use {remedy}")


def _require_host(text: str, host: str) -> None:
    """Refuse what no look-up takes: it would not fail as a look-up does."""
    if not host.isascii() or not host.isprintable() or " " in host:
        raise _wrong(text, f"the host {host!r} is no name and no number", "ASCII, a name of other letters as xn--...")
    labels = host.removesuffix(".").split(".")
    if len(host) > _LONGEST_HOST or not all(0 < len(label) <= _LONGEST_LABEL for label in labels):
        raise _wrong(text, "the host, or a part of it, is empty or too long", "a name that DNS can have, or a number")


def _number(text: str, number: str, what: str, most: int) -> int:
    if not (number.isascii() and number.isdigit()) or len(number) > _MOST_DIGITS or int(number) > most:
        raise _wrong(text, f"{what} {number!r} is not a number from 0 to {most}", "decimal digits")
    return int(number)


def _split_port(text: str, rest: str, default: int, *, strict: bool = False) -> tuple[str, int]:
    """Split ``X[:PORT]``. A path may have colons: there only digits behind the last one are a port."""
    head, colon, tail = rest.rpartition(":")
    if not colon or not (strict or (tail.isascii() and tail.isdigit())):
        return rest, default
    port = _number(text, tail, "the port", 0xFFFFFFFE)
    if not head or port == 0:
        raise _wrong(text, "the part before the port is empty" if not head else "port 0 is none", "KIND:X:PORT")
    return head, port


def _checked(text: str, address: Address) -> Address:
    if "\0" in address.path:
        raise _wrong(text, "the path contains NUL", "a path in the file system")
    try:
        length = len(address.socket_path.encode())
    except UnicodeEncodeError as error:
        raise _wrong(text, "it is not UTF-8, and what is sent holds nothing else", "a path that is UTF-8") from error
    if length > _MAX_UNIX_PATH:
        raise _wrong(
            text,
            f"the socket's path has {length} bytes and unix sockets take {_MAX_UNIX_PATH}",
            "a shorter directory",
        )
    return address
