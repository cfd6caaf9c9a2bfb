"""What a mount process gives up before it reads its guest's first request.

What lives here: the order of giving up, and what the host's kernel cannot take away. What must not:
the system calls themselves (`syscalls`), which of them stay (`seccomp`), the namespace that comes first (`enclosure`).

The server's own checks come first (`tree`); these are behind them, for the day when one is wrong.
"""

from __future__ import annotations

import os
import resource
import threading
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.mount import enclosure, seccomp
from uvmshare.fileserver.syscalls import Capability
from uvmshare.fileserver.syscalls import LandlockAccess as Access

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvmshare.fileserver.export import Export
    from uvmshare.fileserver.limits import Limits

__all__ = ["allow_descriptors", "confine", "enter", "has_seccomp", "missing", "most_descriptors"]

_READ: Final = Access.READ_FILE | Access.READ_DIR
_WRITE: Final = (
    _READ
    | Access.WRITE_FILE
    | Access.TRUNCATE
    | Access.REMOVE_DIR
    | Access.REMOVE_FILE
    | Access.MAKE_DIR
    | Access.MAKE_REG
    | Access.MAKE_SOCK
    | Access.MAKE_FIFO
    | Access.MAKE_SYM
    | Access.REFER
)
_NODES: Final = Access.MAKE_CHAR | Access.MAKE_BLOCK

_FILES_OF_ALL: Final = frozenset((Capability.DAC_OVERRIDE, Capability.FOWNER, Capability.FSETID))
"""What root needs to serve files of every owner, with the bits that are asked for."""
_FILES_AS_OTHERS: Final = frozenset((Capability.CHOWN, Capability.SETUID, Capability.SETGID, Capability.MKNOD))
"""And what passthrough needs beside it: files are made as the guest's users, by setfsuid(2) and setfsgid(2)."""

_NONE_AT_ALL: Final = (
    resource.RLIMIT_CORE,  # it would hold the guest's data
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_MSGQUEUE,
    resource.RLIMIT_NICE,
    resource.RLIMIT_RTPRIO,
    resource.RLIMIT_SIGPENDING,
)
_MOST_THREADS: Final = 64
"""Four serve what is slow, 48 what may never answer (`lanes`), and some wait. The limit holds in a user namespace
alone: elsewhere it counts all of a user's, or, for root, nothing (setrlimit(2))."""
_STACK: Final = 512 * 1024
"""Of a thread. It counts as data (RLIMIT_DATA), and the usual 8 MiB of each would be most of what there is."""
_COUNTS_IN_NAMESPACE: Final = (5, 14)
"""The Linux from which RLIMIT_NPROC counts in each user namespace apart."""


def missing() -> tuple[str, ...]:
    """Say what this host lacks for full confinement, one sentence a thing; nothing when it has all."""
    lacking = []
    abi = syscalls.landlock_abi()
    if abi == 0:
        lacking.append("no Landlock: mount processes are held to their share by the server's checks alone")
    elif abi < 3:
        lacking.append(f"Landlock of ABI {abi} cannot forbid truncation outside the share; ABI 3 can (Linux 6.2)")
    if not has_seccomp():
        lacking.append("no seccomp filter: mount processes may use every system call")
    reason = enclosure.trouble()
    if reason:
        lacking.append(
            f"no mount namespaces for mount processes ({reason}): names and attributes outside a share are kept from "
            "them by the server's checks alone"
        )
    return tuple(lacking)


def has_seccomp() -> bool:
    """Say whether mount processes get a seccomp filter here."""
    return seccomp.is_supported() and syscalls.has_seccomp_filters()


def enter(export: Export, table: int) -> bool:
    """Begin, before anything of the share is opened: see the share and nothing else from now on, where that is allowed.

    `table` becomes its table of mounts. Returns what `enclosure.enclose` does. What must be read of the host's files
    was read before. Raises `OSError`: then the process must end.
    """
    enclosed = enclosure.enclose(export.root, read_only=export.read_only, table=table)
    for standard in (0, 1):  # whatever they were, it lies outside the share
        os.dup2(export.root, standard)
    return enclosed


def confine(
    export: Export,
    limits: Limits,
    *,
    kept: Iterable[int] = (),
    enclosed: bool = False,
    over_vsock: bool = False,
    watches: bool = False,
) -> bool:
    """Hold this process to one share, for ever; return whether Landlock does.

    As much memory as the limits say, no other resources; files made with the very bits asked for; no capability that
    the security model does not need; no new privileges; Landlock on the share's root and a seccomp filter where the
    host has them. The descriptors `kept` can never be closed; `enclosed` is what `enter` said; `over_vsock` leaves what
    probes of such a connection need, and `watches` what a queue needs that was made before (`watched`). Raises
    `OSError` when something that the host has does not work.
    """
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    threading.stack_size(_STACK)
    for each in _NONE_AT_ALL:
        resource.setrlimit(each, (0, 0))
    if enclosed and os.geteuid() != 0 and _linux() >= _COUNTS_IN_NAMESPACE:
        resource.setrlimit(resource.RLIMIT_NPROC, (_MOST_THREADS, _MOST_THREADS))
    as_guest_users = export.security_model == "passthrough"
    needed: frozenset[int] = frozenset()
    if os.geteuid() == 0:
        needed = _FILES_OF_ALL | _FILES_AS_OTHERS if as_guest_users else _FILES_OF_ALL
    syscalls.drop_capabilities(needed)
    syscalls.no_new_privileges()
    has_landlock = bool(syscalls.landlock_abi())
    if has_landlock:
        allowed = _READ if export.read_only else _WRITE
        if as_guest_users and not export.read_only:
            allowed |= _NODES
        syscalls.landlock_restrict(export.root, allowed)
    if has_seccomp():
        calls = seccomp.allowed_calls(
            read_only=export.read_only, as_guest_users=as_guest_users, over_vsock=over_vsock, watches=watches
        )
        seccomp.install(calls, kept=kept)
    return has_landlock


def _linux() -> tuple[int, ...]:
    """Return the first two numbers of the kernel's version."""
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])


def most_descriptors() -> int:
    """Return how many descriptors a mount process may get: root may raise the hard limit to ``fs.nr_open``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() != 0:
        return hard
    descriptor = os.open("/proc/sys/fs/nr_open", os.O_RDONLY | os.O_CLOEXEC)  # no file object: its code is memory
    try:
        return max(hard, int(os.read(descriptor, 64)))
    finally:
        os.close(descriptor)


def allow_descriptors(limit: int) -> int:
    """Allow as many descriptors as the limits say and can be had; return how many that are. Raises `OSError`."""
    most = min(limit, most_descriptors())
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ValueError, PermissionError):  # root without CAP_SYS_RESOURCE, in a container
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most
