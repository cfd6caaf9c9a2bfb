"""Listening sockets: from an address to a socket, and which peers may connect to it.

What lives here: binding, taking over a socket file that a dead server left, and the check of a
peer. What must not: how many connections there may be (`connections`), or what is said on one (`handshake`).
"""

from __future__ import annotations

import encodings.idna  # noqa: F401  getaddrinfo(3) needs it, and a supervisor that became another user loads nothing
import errno
import os
import socket
import stat
from typing import TYPE_CHECKING, Final

from uvmshare import peers
from uvmshare.errors import FileServerError, InvalidAddress
from uvmshare.fileserver.rundir.lockfile import LockFile
from uvmshare.hostfiles import bind_socket
from uvmshare.linux.loopback import is_loopback

if TYPE_CHECKING:
    from uvmshare.address import Address
    from uvmshare.hostfiles import SocketFile

__all__ = ["Listener"]

_BACKLOG: Final = 128


class Listener:
    """One listening socket. `address` is what was really bound: a TCP port 0 is the port it became.

    A unix socket file has `socket_mode`, and goes away with `close()`.
    """

    def __init__(
        self,
        address: Address,
        *,
        allow_remote: bool = False,
        socket_mode: int = 0o600,
        lock: bool = True,
        users: peers.Allowed = None,
    ) -> None:
        """Bind and listen. Without `lock`, somebody sees to it that there is one server for a unix socket.

        `users` may connect over TCP on loopback, None is every user of this host.

        Raises `InvalidAddress` for a TCP host off loopback without `allow_remote`, `FileServerError`
        when the address cannot be had.
        """
        self.address = address
        self._users: peers.Allowed = None
        self._file: SocketFile | None = None
        self._lock: LockFile | None = None
        try:
            if address.kind == "tcp":
                self.socket = self._bind_tcp(allow_remote=allow_remote)
                self.address = address.with_port(self.socket.getsockname()[1])
                if is_loopback(self.socket.getsockname()[0]):
                    self._users = users
            elif address.kind == "vsock":
                self.socket = self._bind_vsock()
            else:
                self.socket = self._bind_unix(socket_mode, lock=lock)
        except OSError as error:
            msg = f"cannot listen on {address}: {error.strerror or error}{_remedy(error, address.kind)}"
            raise FileServerError(msg) from error
        self.socket.settimeout(0)

    def _bind_tcp(self, *, allow_remote: bool) -> socket.socket:
        address = self.address
        family, kind, protocol, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        if not allow_remote and not is_loopback(str(where[0])):
            msg = (
                f"address {str(address)!r}: {where[0]} is not loopback, and 9P has no authentication here; "
                "use a loopback address, or allow remote guests explicitly (--allow-remote)"
            )
            raise InvalidAddress(msg)
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(where)
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening

    def _bind_vsock(self) -> socket.socket:
        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            listening.bind((socket.VMADDR_CID_ANY, self.address.port))
            listening.listen(_BACKLOG)
        except BaseException:
            listening.close()
            raise
        return listening

    def _bind_unix(self, mode: int, *, lock: bool) -> socket.socket:
        path = self.address.socket_path
        if os.path.lexists(path) and not stat.S_ISSOCK(os.stat(path, follow_symlinks=False).st_mode):
            raise OSError(errno.EADDRINUSE, "there is a file that is no socket")
        if lock:  # of two servers that find one dead socket file, one takes it over
            self._lock = LockFile.take(f"{path}.lock", f"address {self.address}")
        try:
            listening, self._file = bind_socket(path, mode)
            listening.listen(_BACKLOG)
        except BaseException:
            if self._file is not None:
                listening.close()
                self._file.remove()
            if self._lock is not None:
                self._lock.release()
            raise
        return listening

    def accept(self) -> tuple[socket.socket, str] | None:
        """Take a connection and say who it is; None when there is none, or it is not the guest's.

        Raises `OSError` when the host has no descriptors left; `AccessDenied` for another user of this host, who
        was cut then.
        """
        try:
            connection, peer = self.socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return None
        connection.settimeout(0)
        if self.address.kind == "vsock":
            if peer[0] != self.address.cid:
                connection.close()
                return None
            return connection, f"vsock:{peer[0]}:{peer[1]}"
        if self.address.kind == "tcp":
            try:
                peers.require_peer(connection, self._users)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except BaseException:
                connection.close()
                raise
            return connection, f"tcp:{peer[0]}:{peer[1]}"
        return connection, str(self.address)

    def close(self) -> None:
        """Stop listening and remove the socket file, if it is still this listener's."""
        self.socket.close()
        if self._file is not None:
            self._file.remove()
        if self._lock is not None:
            self._lock.release()


_REMEDIES: Final = {
    errno.EADDRINUSE: "end what is there, or choose another address",
    errno.EADDRNOTAVAIL: "this host has no such address: give one of its own",
    errno.EAFNOSUPPORT: "load the kernel's vsock modules (modprobe vhost_vsock)",
    errno.ENOENT: "make the directory first",
    errno.ENOTDIR: "what should be its directory is a file: choose another path",
}


def _remedy(error: OSError, kind: str) -> str:
    if isinstance(error, socket.gaierror):  # its numbers are no errno's
        return "; give a name that this host knows, or an address in numbers"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"; this user may not: choose {'a port of 1024 or more' if kind == 'tcp' else 'another directory'}"
    return f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
