"""The caller's identity, and looking at the host's files with the caller's rights instead of the daemon's.

What lives here: `Identity`, how it is read from a connection, and the `Threads` that look at files for users. What must
not: what an identity may do with VMs and shares (`service`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import encodings.idna  # noqa: F401  looking up a name needs it, and a user may not read this Python's files
import errno
import functools
import os
import socket
import struct
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import structlog

from uvmshare.errors import HostPathHangs, OperationDenied
from uvmshare.hostfiles import open_path, require_access
from uvmshare.linux.credentials import credentials
from uvmshare.linux.fsuid import set_fs_identity
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Identity", "Threads", "checked_options", "of_process", "peer_of", "whose_subordinate"]

T = TypeVar("T")

_SO_PEERGROUPS: Final = 59
_MOST_GROUPS: Final = 65536
"""NGROUPS_MAX (setgroups(2))."""

_SUBUID: Final = "/etc/subuid"
"""Which users may be which other uids, in user namespaces of theirs (subuid(5)): NAME:FIRST:COUNT."""

_SECONDS: Final = 8.0
"""For a file system to answer. The user's own may never do so (FUSE), nor one of the network whose server is away. Less
than dialling an agent may take, so that its path is what is named."""
_MOST_AT_ONCE: Final = 8
"""Threads that look at files for one user. One that hangs cannot be ended, so this many is all that they can hold."""

_libc: Final = ctypes.CDLL(None, use_errno=True)
_machine: Final = os.uname().machine
_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159, "riscv64": 159}.get(_machine)
_CAP_HEADER: Final = struct.Struct("=Ii")
_CAPABILITY_VERSION_3: Final = 0x20080522
_CAP_DATA: Final = struct.Struct("=IIIIII")
"""Effective, permitted and inheritable ones below 32, then those above."""
_OF_FILES: Final = 1 << 1 | 1 << 2 | 1 << 3
"""CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH and CAP_FOWNER: what root has over others' files as such."""


class Identity(msgspec.Struct, frozen=True):
    """A user of the host: what decides about their rights to files."""

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
    """Return who opened the other end of a unix socket, as they were then (unix(7), SO_PEERCRED and SO_PEERGROUPS).

    Raises `OSError` for any other socket.
    """
    _, uid, gid = credentials(connection)
    if uid == 0xFFFFFFFF:
        raise OSError(errno.ENOTCONN, "the socket has no peer that is known")
    groups = _peer_groups(connection)
    return Identity(uid, gid, tuple(sorted(groups)))


def whose_subordinate(uid: int) -> str | None:
    """Return the user, by name or number, who may be that uid in user namespaces (subuid(5)); None when nobody may."""
    try:
        changed = os.stat(_SUBUID).st_mtime_ns
    except OSError:
        return None
    return next((owner for owner, first, count in _subordinates(changed) if first <= uid < first + count), None)


@functools.lru_cache(maxsize=1)
def _subordinates(_changed: int) -> tuple[tuple[str, int, int], ...]:
    """Read the table; what is no line of it is left out."""
    found = []
    with contextlib.suppress(OSError), open(_SUBUID, encoding="utf-8", errors="replace") as table:
        for line in table:
            with contextlib.suppress(ValueError):
                owner, first, count = line.strip().split(":")
                found.append((owner, int(first), int(count)))
    return tuple(found)


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
    set_fs_identity(identity.uid, identity.gid)


def _keep_capabilities(kept: int) -> None:
    """Have this thread, and it alone, no capabilities but those of the mask, for good (capset(2), capabilities(7)).

    setfsuid(2) takes those of files alone. The others would be left: CAP_SYS_PTRACE opens every process's root, working
    directory and files below /proc, and CAP_SYS_ADMIN much else.
    """
    header = _CAP_HEADER.pack(_CAPABILITY_VERSION_3, 0)
    data = ctypes.create_string_buffer(_CAP_DATA.size)
    if _libc.capget(header, data) < 0:
        raise OSError(ctypes.get_errno(), "capget")
    effective, permitted, _, *_ = _CAP_DATA.unpack(data.raw)
    wanted = _CAP_DATA.pack(effective & kept, permitted & kept, 0, 0, 0, 0)
    if _libc.capset(header, wanted) < 0:
        raise OSError(ctypes.get_errno(), "capset")


class Threads:
    """The threads that look at files for users: so many at once for each user, and nobody waits longer than `seconds`.

    A system call on a file system that does not answer cannot be broken off, so its thread stays until the file system
    answers or is unmounted, and counts as long as it does. That user's other requests then find fewer threads, or none;
    nobody else notices.
    """

    def __init__(self, seconds: float = _SECONDS, most: int = _MOST_AT_ONCE) -> None:
        self.seconds = seconds
        self._free: defaultdict[int, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(most))

    async def acting_as(self, identity: Identity, path: str, work: Callable[[], T]) -> T:
        """Return what `work` returns, run with the file system rights of `identity`, on a thread of its own.

        The thread ends with the work, and its rights with it. A process that is not root has no other rights to
        give than its own. Cancelling waits for nothing: the thread ends by itself. Raises what `work` does, and
        `HostPathHangs` for `path`, when the time is over.
        """
        free = self._free[identity.uid]
        try:
            async with asyncio.timeout(self.seconds) as limit:
                await free.acquire()
                return await self._start(identity, work, free)
        except TimeoutError as error:
            if not limit.expired():
                raise
            structlog.get_logger("uvmshare.daemon").warning(
                "a file system does not answer", path=path, user=identity.uid, seconds=self.seconds
            )
            msg = (
                f"{path}: no answer within {self.seconds:g} s, so its file system hangs, or others do that uid "
                f"{identity.uid} asked for: mend or end what serves it, or unmount it (umount -f), and ask again"
            )
            raise HostPathHangs(msg) from error

    def _start(self, identity: Identity, work: Callable[[], T], free: asyncio.Semaphore) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        own = of_process()

        def settle(result: T | None, error: BaseException | None) -> None:
            free.release()
            if done.cancelled():  # by the one who waited, or because the time was over
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
                    _keep_capabilities(0)
                elif own.is_root:
                    _keep_capabilities(_OF_FILES)
                result = work()
            except BaseException as error:  # noqa: BLE001  it belongs to the one who waits
                failure = error
            with contextlib.suppress(RuntimeError):  # the daemon ended meanwhile, and its loop with it
                loop.call_soon_threadsafe(settle, result, failure)

        try:
            threading.Thread(target=run, name="acting-as", daemon=True).start()
        except RuntimeError:  # the host has no room for another
            free.release()
            raise
        return done


async def checked_options(
    threads: Threads,
    identity: Identity,
    path: str,
    *,
    read_only: bool,
    only: tuple[str, ...],
    hide: tuple[str, ...] = (),
    map_owner: str | None = None,
) -> AddOptions:
    """Return share options, looked at with the rights of `identity` alone.

    The path is resolved with these rights, so that nothing is told of what the user could not see himself.
    They must be able to list the directory (read a file), and to write to it unless it is read-only. That
    refuses early and says why. It is not what keeps them from other people's files, since the path may lead elsewhere a
    moment later: the file server itself runs as the VM's user, and opens it with that one's rights.

    Raises `InvalidOptions`, `OperationDenied`, `HostPathHangs`.
    """

    def look() -> AddOptions:
        try:
            os.close(open_path(path))
        except OSError as error:
            if error.errno == errno.ELOOP:  # the rest is said better below
                msg = f"{path}: {error.strerror}: give the path of the directory itself"
                raise OperationDenied(msg) from error
        options = AddOptions(path, read_only=read_only, allowed_names=only or None, hide=hide, map_owner=map_owner)
        require_access(path, identity.uid, read_only=options.read_only)
        return options

    return await threads.acting_as(identity, path, look)
