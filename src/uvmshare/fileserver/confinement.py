"""What a mount process gives up before it reads its guest's first request.

What lives here: the order of giving up, and what the host's kernel cannot take away. What must not:
the system calls themselves (`syscalls`), which of them stay (`seccomp`).

The server's own checks come first (`tree`); these are behind them, for the day when one is wrong.
"""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import seccomp, syscalls
from uvmshare.fileserver.syscalls import LandlockAccess as Access

if TYPE_CHECKING:
    from collections.abc import Iterable

    from uvmshare.fileserver.export import Export
    from uvmshare.fileserver.limits import Limits

__all__ = ["allow_descriptors", "close_all_but", "confine", "has_seccomp", "missing", "most_descriptors"]

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
    return tuple(lacking)


def has_seccomp() -> bool:
    """Say whether mount processes get a seccomp filter here."""
    return seccomp.is_supported() and syscalls.has_seccomp_filters()


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor past standard error that is not in `keep`."""
    start = 3
    for descriptor in sorted(keep):
        if descriptor >= start:
            os.closerange(start, descriptor)
            start = descriptor + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def confine(export: Export, limits: Limits) -> bool:
    """Hold this process to one share, for ever; return whether Landlock does.

    No new privileges, no core dumps (they would hold the guest's data), as much memory as the limits
    say, files made with the very bits asked for; Landlock on
    the share's root and a seccomp filter where the host has them. Raises `OSError` when something that
    the host has does not work.
    """
    os.umask(0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory_bytes, limits.memory_bytes))
    syscalls.no_new_privileges()
    as_guest_users = export.security_model == "passthrough"
    has_landlock = bool(syscalls.landlock_abi())
    if has_landlock:
        allowed = _READ if export.read_only else _WRITE
        if as_guest_users and not export.read_only:
            allowed |= _NODES
        syscalls.landlock_restrict(export.root, allowed)
    if has_seccomp():
        seccomp.install(seccomp.allowed_calls(read_only=export.read_only, as_guest_users=as_guest_users))
    return has_landlock


def most_descriptors() -> int:
    """Return how many descriptors a mount process may get: root may raise the hard limit to ``fs.nr_open``."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.geteuid() != 0:
        return hard
    with open("/proc/sys/fs/nr_open", encoding="ascii") as file:
        return max(hard, int(file.read()))


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
