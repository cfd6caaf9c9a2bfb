"""Who is at the other end of a connection inside this host: the user whom its socket belongs to.

What lives here: asking the kernel for a TCP socket's owner (sock_diag(7), or /proc/net/tcp), and `Allowed`, the users
who may be there. What must not: what follows from it.

A port on loopback is open to every user of the host, and nothing in TCP says who connects. The kernel knows: it is
asked for the socket whose addresses are those of this end, the other way round. The answer counts only if that socket
is somebody's now (an inode; one that was closed already is shown as root's), is connected, and if this end is connected
*afterwards* too: until then nobody else can have had a socket with the same two addresses. Linux.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, cast

from uvmshare import arguments
from uvmshare.errors import AccessDenied, InvalidOptions
from uvmshare.linux.credentials import credentials
from uvmshare.linux.loopback import numeric

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Collection

__all__ = [
    "ANY",
    "NOBODY",
    "Allowed",
    "allowed",
    "of_this_process",
    "require_listener",
    "require_peer",
    "require_uids",
    "require_unix_peer",
]

Allowed = frozenset[int] | None
"""Uids, or None for every user of the host."""

ANY: Final = "any"
NOBODY: Final = 0xFFFFFFFF
"""No user's number: "leave it as it is" (chown(2))."""

_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2, _CLOSE_WAIT, _LISTEN = 1, 4, 5, 8, 10
"""States of a TCP socket (``TCP_ESTABLISHED`` and so on, include/net/tcp_states.h)."""

_THEIR_STATES: Final = (_ESTABLISHED, _FIN_WAIT1, _FIN_WAIT2)
_OUR_STATES: Final = (_ESTABLISHED, _CLOSE_WAIT)

# sock_diag(7), netlink(7)
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NLMSG_ERROR: Final = 2
_HEADER: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI")
_SOCKET_ID: Final = struct.Struct("!HH16s16s")
_SOCKET_ID_REST: Final = struct.pack("=III", 0, 0xFFFFFFFF, 0xFFFFFFFF)
"""No interface, and INET_DIAG_NOCOOKIE twice."""
_FOUND: Final = struct.Struct("=BBBB")
_FOUND_REST: Final = struct.Struct("=IIIII")
_ID_BYTES: Final = 48
_ALL_STATES: Final = 0xFFFFFFFF


_UID_MAP_OF_ALL: Final = b"0 0 4294967295"
_OVERFLOW_UID: Final = 65534


class _End(NamedTuple):
    """An address and a port; an IPv4 address that is mapped into IPv6 is the IPv4 one."""

    address: ipaddress.IPv4Address | ipaddress.IPv6Address
    port: int


class _Socket(NamedTuple):
    """What the kernel tells of a TCP socket."""

    state: int
    here: _End
    there: _End
    uid: int
    inode: int


def require_uids(name: str, value: Collection[int | str]) -> tuple[int | Literal["any"], ...]:
    """Return an argument that says which users may connect. Raises `InvalidOptions` for what is no list of uids."""
    remedy = 'a list of uids, such as [1000], or ["any"]'
    uids = arguments.list_of(name, value, (int, str), remedy)
    for uid in uids:
        if uid != ANY and (isinstance(uid, str) or not 0 <= uid < NOBODY):
            msg = f"{name} has {arguments.shown(uid)} in it: pass {remedy}"
            raise InvalidOptions(msg)
    return cast("tuple[int | Literal['any'], ...]", uids)


def allowed(extra: Collection[int | str], *uids: int) -> Allowed:
    """Return who may connect: these users, root, and `extra` ones, each a uid or "any"."""
    if ANY in extra:
        return None
    return frozenset((0, *uids, *map(int, extra)))


def of_this_process(extra: Collection[int | str]) -> Allowed:
    """Return who may connect to what this process's user has. On Windows nothing is asked, and it is anybody."""
    return None if sys.platform == "win32" else allowed(extra, os.geteuid())


def require_peer(connection: socket.socket, users: Allowed) -> None:
    """See that the other end of an accepted TCP connection belongs to one of these users. Raises `AccessDenied`."""
    if users is not None:
        _require(connection, users, _owner_of_peer(connection))


def require_listener(connection: socket.socket, users: Allowed) -> None:
    """See that whoever listens where this TCP connection was made to is one of these users.

    A connection that nobody has accepted yet has no owner; then it is who listens that counts, and it must be so
    afterwards as well: it would have ended with its listening socket. Raises `AccessDenied`.
    """
    if users is None:
        return
    here, there = _ends(connection)
    if _waits(_look_up(_Query(there, here, here))):
        listening = _look_up(_Query(there, None, here))
        if _waits(_look_up(_Query(there, here, here))) and listening is not None and listening.state == _LISTEN:
            _require_connected(connection)
            _require(connection, users, listening.uid)
            return
    _require(connection, users, _owner_of_peer(connection))


def _waits(found: _Socket | None) -> bool:
    """Say whether a connection was not accepted yet."""
    return found is not None and found.state == _ESTABLISHED and not found.inode


def require_unix_peer(connection: socket.socket, users: Allowed) -> None:
    """See that the other end of a unix socket belongs to one of these users (unix(7), SO_PEERCRED).

    Raises `AccessDenied`.
    """
    if users is None:
        return
    _require_user(credentials(connection).uid, users, "who answers there")


def _require(connection: socket.socket, users: frozenset[int], owner: int) -> None:
    host, port = connection.getpeername()[:2]
    _require_user(owner, users, f"the socket {host}:{port}")


def _require_user(uid: int, users: frozenset[int], what: str) -> None:
    if uid == _OVERFLOW_UID and not _sees_all_users():
        msg = f"{what} belongs to a user whom this user namespace does not know: use a unix socket"
        raise AccessDenied(msg)
    if uid not in users:
        known = ", ".join(map(str, sorted(users)))
        msg = f"{what} belongs to uid {uid}, and only uid {known} may be there: allow it with --allow-uid {uid}"
        raise AccessDenied(msg)


def _owner_of_peer(connection: socket.socket) -> int:
    """Return the uid of the socket at the other end. Raises `AccessDenied`."""
    here, there = _ends(connection)
    found = _look_up(_Query(there, here, here))
    if (
        found is None
        or found.state not in _THEIR_STATES
        or not found.inode
        or (found.here, found.there) != (there, here)
    ):
        msg = f"the socket {there.address}:{there.port} is nobody's (any more): it was closed, or is not of this host"
        raise AccessDenied(msg)
    _require_connected(connection)
    return found.uid


def _require_connected(connection: socket.socket) -> None:
    """See that this end is connected still, so that what was found is its other end and no later one's."""
    state = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    if state not in _OUR_STATES:
        msg = "the connection has ended meanwhile"
        raise AccessDenied(msg)


def _ends(connection: socket.socket) -> tuple[_End, _End]:
    try:
        here, there = connection.getsockname(), connection.getpeername()
    except OSError as error:
        msg = f"the connection has ended already: {error.strerror}"
        raise AccessDenied(msg) from error
    return _End(numeric(here[0]), here[1]), _End(numeric(there[0]), there[1])


# Asking the kernel


class _Query(NamedTuple):
    """The socket at `here` that is connected to `there`; None for one that listens for what comes `towards` it."""

    here: _End
    there: _End | None
    towards: _End


def _look_up(query: _Query) -> _Socket | None:
    """Return the socket, or None when there is none. Raises `AccessDenied` when that cannot be seen."""
    try:
        found = _from_netlink(query)
    except OSError:  # no such family in this container, or no such module
        return _from_proc(query)
    # "None" is also what a kernel without the module tcp_diag says. It knows the other end, if it knows any.
    if found is None and (query.there is None or _from_netlink(_Query(query.there, query.here, query.here)) is None):
        return _from_proc(query)
    return found


def _from_netlink(query: _Query) -> _Socket | None:
    # The kernel looks for a connected socket first and then for one that listens: at port 0 none is connected.
    there = query.there or _End(query.towards.address, 0)
    family = socket.AF_INET if query.here.address.version == 4 else socket.AF_INET6
    identity = _SOCKET_ID.pack(query.here.port, there.port, _padded(query.here), _padded(there)) + _SOCKET_ID_REST
    body = _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + identity
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as asking:
        asking.settimeout(1.0)  # the kernel answers within the call
        asking.sendto(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + body, (0, 0))
        answer, sender = asking.recvfrom(8192)
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if sender[0] != 0 or kind not in (_NLMSG_ERROR, _SOCK_DIAG_BY_FAMILY):
        raise OSError(errno.EPROTO, "no answer of the kernel's")
    if kind == _NLMSG_ERROR:
        number = -struct.unpack_from("=i", answer, _HEADER.size)[0]
        if number == errno.ENOENT:
            return None
        raise OSError(number, os.strerror(number))
    family, state, _, _ = _FOUND.unpack_from(answer, _HEADER.size)
    at = _HEADER.size + _FOUND.size
    port, far_port, source, destination = _SOCKET_ID.unpack_from(answer, at)
    _, _, _, uid, inode = _FOUND_REST.unpack_from(answer, at + _ID_BYTES)
    return _Socket(state, _end(family, source, port), _end(family, destination, far_port), uid, inode)


def _padded(end: _End) -> bytes:
    return end.address.packed.ljust(16, b"\0")


def _end(family: int, packed: bytes, port: int) -> _End:
    text = socket.inet_ntop(family, packed[:4] if family == socket.AF_INET else packed)
    return _End(numeric(text), port)


def _from_proc(query: _Query) -> _Socket | None:
    """Look the socket up in proc_pid_net(5)'s tables, where netlink is not to be had. Raises `AccessDenied`."""
    listening: list[_Socket] = []
    seen = False
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/thread-self/net/{name}", "rb") as table:
                next(table)
                seen = True
                for line in table:
                    found = _of_line(line)
                    if found.here.port != query.here.port:
                        continue
                    if query.there is None:
                        if found.state == _LISTEN and _covers(found.here, query.here):
                            listening.append(found)
                    elif (found.here, found.there) == (query.here, query.there):
                        return found
        except (OSError, ValueError, StopIteration):
            continue
    if not seen:
        msg = (
            "whose socket it is cannot be seen here: neither NETLINK_SOCK_DIAG nor /proc/net/tcp; allow this container "
            "one of them, use a unix socket, or allow every user with --allow-uid any"
        )
        raise AccessDenied(msg)
    if len({each.uid for each in listening}) != 1:  # two users' sockets: which of them it is, the table does not say
        return None
    return listening[0]


def _covers(listener: _End, address: _End) -> bool:
    return listener.address == address.address or listener.address.is_unspecified


def _of_line(line: bytes) -> _Socket:
    words = line.split()
    return _Socket(int(words[3], 16), _of_hex(words[1]), _of_hex(words[2]), int(words[7]), int(words[9]))


def _of_hex(text: bytes) -> _End:
    """Read an address as the kernel prints it: words of the host's byte order, and the port."""
    address, _, port = text.partition(b":")
    packed = b"".join(struct.pack("=I", int(address[at : at + 8], 16)) for at in range(0, len(address), 8))
    return _End(
        numeric(socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)), int(port, 16)
    )


def _sees_all_users() -> bool:
    """Say whether every uid has a number of its own here; in a user namespace, unknown ones share one."""
    try:
        with open("/proc/self/uid_map", "rb") as table:
            return b" ".join(table.read().split()) == _UID_MAP_OF_ALL
    except OSError:
        return False
