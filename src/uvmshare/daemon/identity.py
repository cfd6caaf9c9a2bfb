"""Who asks, and looking at the host's files with his rights instead of the daemon's.

What lives here: `Identity`, how it is read from a connection, and `acting_as`. What must not: what an
identity may do with VMs and shares (`service`).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import stat
import struct
import threading
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from uvmshare.errors import OperationDenied
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Identity", "acting_as", "checked_options", "of_process", "peer_of"]

T = TypeVar("T")

_UCRED: Final = struct.Struct("iII")
_SO_PEERGROUPS: Final = 59
_MOST_GROUPS: Final = 65536
"""NGROUPS_MAX (setgroups(2))."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_machine: Final = os.uname().machine
_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159, "riscv64": 159}.get(_machine)
_SYS_FACCESSAT2: Final = 439  # the same on every architecture
_AT_FDCWD: Final = -100
_AT_EACCESS: Final = 0x200


class Identity(msgspec.Struct, frozen=True):
    """A user of the host: what decides about his rights to files."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()

    @property
    def is_root(self) -> bool:
        """Whether it may do everything."""
        return self.uid == 0


def of_process() -> Identity:
    """Return the identity of this process."""
    return Identity(os.geteuid(), os.getegid(), tuple(sorted(os.getgroups())))


def peer_of(connection: socket.socket) -> Identity:
    """Return who opened the other end of a unix socket, as he was then (unix(7), SO_PEERCRED and SO_PEERGROUPS).

    Raises `OSError` for any other socket.
    """
    _, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid == 0xFFFFFFFF:
        raise OSError(errno.ENOTCONN, "the socket has no peer that is known")
    groups = _peer_groups(connection)
    return Identity(uid, gid, tuple(sorted(groups)))


def _peer_groups(connection: socket.socket) -> tuple[int, ...]:
    size = 4 * 64
    while True:
        try:
            data = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size)
        except OSError as error:
            if error.errno != errno.ERANGE or size >= 4 * _MOST_GROUPS:
                raise
            size *= 4
        else:
            return struct.unpack(f"{len(data) // 4}I", data)


def _take_on(identity: Identity) -> None:
    """Give this thread, and it alone, the file system rights of a user (setfsuid(2), setgroups(2)).

    Raw system calls: the C library's would change every thread. Leaving uid 0 also takes the
    capabilities that reach past permissions (capabilities(7)).
    """
    if _SETGROUPS is None:
        msg = f"acting for another user is not known on {_machine}: run the daemon as that user"
        raise OperationDenied(msg)
    groups = (ctypes.c_uint32 * len(identity.groups))(*identity.groups)
    if _libc.syscall(_SETGROUPS, ctypes.c_size_t(len(identity.groups)), groups) < 0:
        raise OSError(ctypes.get_errno(), "setgroups")
    _libc.setfsgid(ctypes.c_uint32(identity.gid))
    _libc.setfsuid(ctypes.c_uint32(identity.uid))
    # Neither tells whether it worked; asking for what cannot be gives what is (setfsuid(2)).
    nobody = ctypes.c_uint32(0xFFFFFFFF)
    _libc.setfsuid.restype = _libc.setfsgid.restype = ctypes.c_uint32
    if _libc.setfsuid(nobody) != identity.uid or _libc.setfsgid(nobody) != identity.gid:
        raise OSError(errno.EPERM, "setfsuid")


async def acting_as(identity: Identity, work: Callable[[], T]) -> T:
    """Return what `work` returns, run with the file system rights of `identity`, on a thread of its own.

    The thread ends with the work, and its rights with it. A process that is not root has no other rights to
    give than its own. Cancelling waits for nothing: the thread ends by itself.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    own = of_process()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None only where T is

    def run() -> None:
        result, failure = None, None
        try:
            if own.is_root and not identity.is_root:
                _take_on(identity)
            result = work()
        except BaseException as error:  # noqa: BLE001  it belongs to the one who waits
            failure = error
        loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=run, name="acting-as", daemon=True).start()
    return await done


async def checked_options(identity: Identity, path: str, *, read_only: bool, only: tuple[str, ...]) -> AddOptions:
    """Return share options, looked at with the rights of `identity` alone.

    The path is resolved with these rights, so that nothing is told of what the user could not see himself.
    He must be able to list the directory (read a file), and to write to it unless it is read-only. That
    refuses early and says why. It is not what keeps him from other people's files, since the path may lead elsewhere a
    moment later: the file server itself runs as the VM's user, and opens it with that one's rights.

    Raises `InvalidOptions`, `OperationDenied`.
    """

    def look() -> AddOptions:
        options = AddOptions(path, read_only=read_only, restrict=bool(only), allowed_names=only)
        _require_access(path, options, identity.uid)
        return options

    return await acting_as(identity, look)


def _require_access(path: str, options: AddOptions, uid: int) -> None:
    is_directory = stat.S_ISDIR(os.stat(path).st_mode)
    wanted = os.R_OK | (os.X_OK if is_directory else 0) | (0 if options.read_only else os.W_OK)
    if _libc.syscall(_SYS_FACCESSAT2, _AT_FDCWD, ctypes.c_char_p(os.fsencode(path)), wanted, _AT_EACCESS) == 0:
        return
    number = ctypes.get_errno()
    if number == errno.ENOSYS:
        msg = f"{path}: whether uid {uid} may share it cannot be told: that needs Linux 5.8 or later"
    elif number == errno.EROFS:
        msg = f"{path}: it is on a file system that is mounted read-only: share it read-only"
    else:
        what = "read" if options.read_only else "read and write"
        msg = f"{path}: uid {uid} may not {what} it ({os.strerror(number)}): share what that user may {what} himself"
    raise OperationDenied(msg)
