"""A seccomp filter: the system calls that serving one share needs, and no others.

What lives here: which calls these are, by kind of share, with which arguments, and the filter program made of
them (seccomp(2), bpf(2)). What must not: what else is given up (`confinement`).

A call that is not allowed fails with EPERM: a mistake in the list is an error that the guest sees,
not a dead mount. New processes, executable memory, sockets, signals to anybody, and memory that is shared with others
are out of reach. So is closing the descriptors by which a mount process is found and ended.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import platform
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from uvmshare.fileserver import syscalls
from uvmshare.fileserver.mount import waiting
from uvmshare.fileserver.syscalls import Fanotify, Notify
from uvmshare.guest import keepalive

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["allowed_calls", "install", "is_supported"]

# Numbers by the name of the call: x86_64 (asm/unistd_64.h) and aarch64 (asm-generic/unistd.h). None is
# a call that the architecture does not have.
_NUMBERS: Final[dict[str, tuple[int | None, int | None]]] = {
    "brk": (12, 214),
    "capget": (125, 90),
    "capset": (126, 91),
    "chmod": (90, None),
    "chown": (92, None),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "dup": (32, 23),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fadvise64": (221, 223),
    "fanotify_mark": (301, 263),
    "fchdir": (81, 50),
    "fchmodat": (268, 53),
    "fchownat": (260, 54),
    "fcntl": (72, 25),
    "fdatasync": (75, 83),
    "fgetxattr": (193, 10),
    "flistxattr": (196, 13),
    "flock": (73, 32),
    "fremovexattr": (199, 16),
    "fsetxattr": (190, 7),
    "fstat": (5, 80),
    "fstatfs": (138, 44),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "futex": (202, 98),
    "getcwd": (79, 17),
    "getdents64": (217, 61),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getsockopt": (55, 209),
    "gettid": (186, 178),
    "getxattr": (191, 8),
    "getxattrat": (464, 464),
    "inotify_add_watch": (254, 27),
    "inotify_rm_watch": (255, 28),
    "ioctl": (16, 29),
    "lgetxattr": (192, 9),
    "linkat": (265, 37),
    "listxattr": (194, 11),
    "llistxattr": (195, 12),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "mkdirat": (258, 34),
    "mknodat": (259, 33),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "name_to_handle_at": (303, 264),
    "newfstatat": (262, 79),
    "openat": (257, 56),
    "openat2": (437, 437),
    "pipe2": (293, 59),
    "poll": (7, None),
    "ppoll": (271, 73),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "pwrite64": (18, 68),
    "pselect6": (270, 72),
    "read": (0, 63),
    "readlinkat": (267, 78),
    "recvfrom": (45, 207),
    "removexattr": (197, 14),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "select": (23, None),
    "sched_yield": (24, 124),
    "sendfile": (40, 71),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "setfsgid": (123, 152),
    "setfsuid": (122, 151),
    "setsockopt": (54, 208),
    "setxattr": (188, 5),
    "shutdown": (48, 210),
    "sigaltstack": (131, 132),
    "splice": (275, 76),
    "statx": (332, 291),
    "symlinkat": (266, 36),
    "unlinkat": (263, 35),
    "utimensat": (280, 88),
    "write": (1, 64),
}

_CHANGES: Final = frozenset(
    {
        "chmod", "chown", "fchmodat", "fchownat", "fdatasync", "fremovexattr", "fsetxattr", "fsync", "ftruncate",
        "linkat", "mkdirat", "mknodat", "pwrite64", "removexattr", "renameat", "renameat2", "setxattr", "symlinkat",
        "unlinkat", "utimensat",
    }
)  # fmt: skip
"""And what waits for the disk until changes are there."""
_IDENTITY: Final = frozenset({"capget", "capset", "setfsgid", "setfsuid"})
_PROBES: Final = frozenset({"getsockopt", "setsockopt"})
"""Of connections over vsock (`uvmshare.guest.keepalive`)."""
_WATCHES: Final = frozenset({"fanotify_mark", "inotify_add_watch", "inotify_rm_watch"})
"""Of a process that sees nothing but its share, and has a queue (`watched`); it can make none."""

_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Which column of the numbers, and the value of ``AUDIT_ARCH_*``."""

_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000

_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_NR, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_X32: Final = 0x40000000
_STDERR: Final = 2

_Line = tuple[int, int, int, int]
"""An instruction: code, jump if true, jump if false, operand."""


@dataclass(frozen=True, slots=True)
class _Argument:
    """What one argument of a call must be; `index` counts from 0.

    One of `values`, if there are any; none of `but`; without any bit of `without`; and with `is_null` all of its 64
    bits are 0. Of the others the low half is looked at, as the kernel does, which takes them for 32-bit numbers.
    """

    index: int
    values: tuple[int, ...] = ()
    but: tuple[int, ...] = ()
    without: int = 0
    is_null: bool = False

    def lines(self) -> list[_Line]:
        """Return instructions that refuse the call, or go on behind themselves."""
        refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
        low = (_LOAD, 0, 0, _ARGUMENTS + 8 * self.index)  # both architectures are little endian
        if self.is_null:
            high = (_LOAD, 0, 0, low[3] + 4)
            return [low, (_EQUAL, 1, 0, 0), refuse, high, (_EQUAL, 1, 0, 0), refuse]
        lines = [low]
        for left, value in zip(range(len(self.values), 0, -1), self.values, strict=True):
            lines.append((_EQUAL, left, 0, value))
        if self.values:
            lines.append(refuse)
        for value in self.but:
            lines += [(_EQUAL, 0, 1, value), refuse]
        if self.without:
            lines += [(_ANY_BIT, 0, 1, self.without), refuse]
        return lines


_THREAD: Final = 0x3D0F00
"""What glibc's pthread_create(3) asks of clone(2): all shared, and no namespace, no ptrace, no new process."""
_CLONE_DETACHED: Final = 0x400000
"""Which musl adds, and the kernel ignores."""
_MADV_DONTNEED, _MADV_FREE, _MADV_GUARD_INSTALL = 4, 8, 102  # what malloc(3) and the stacks of threads need
_F_SETPIPE_SZ: Final = 1031
WATCH_MASK: Final = Notify.CREATE | Notify.DELETE | Notify.MOVED_FROM | Notify.MOVED_TO | Notify.ONLYDIR
"""All that a mount process may ask a queue for,"""
NOTICE_MASK: Final = WATCH_MASK | Notify.MODIFY | Notify.ATTRIB
"""and a queue that stands in the place of a group."""
LISTEN_MASK: Final = (
    Fanotify.CREATE
    | Fanotify.DELETE
    | Fanotify.MOVED_FROM
    | Fanotify.MOVED_TO
    | Fanotify.MODIFY
    | Fanotify.ATTRIB
    | Fanotify.ONDIR
    | Fanotify.EVENT_ON_CHILD
)
"""All that it may ask a group for."""
MARK: Final = Fanotify.MARK_ADD | Fanotify.MARK_ONLYDIR
"""How it may ask for that: no mount or file system, and no event that others wait for."""
_FS_IOC_GETFLAGS: Final = 0x80086601
"""Whether a directory tells upper from lower case (`casefold`)."""

_RULES: Final[dict[str, tuple[_Argument, ...]]] = {
    "sendto": (_Argument(4, is_null=True),),  # to the peer of the connection, and nobody else
    "write": (_Argument(0, values=(_STDERR,)),),
    "fcntl": (
        # Never F_SETOWN, F_SETSIG, F_SETFL with O_ASYNC, F_NOTIFY, F_SETLEASE: each sends signals, or keeps others
        # waiting. Locks are those of the open file, which never wait.
        _Argument(
            1,
            values=(
                fcntl.F_GETFD,
                fcntl.F_SETFD,
                fcntl.F_GETFL,
                fcntl.F_DUPFD_CLOEXEC,
                fcntl.F_OFD_GETLK,
                fcntl.F_OFD_SETLK,
                _F_SETPIPE_SZ,
            ),
        ),
    ),
    # Shared memory would not count as this process's (RLIMIT_DATA).
    "mmap": (_Argument(2, without=mmap.PROT_EXEC), _Argument(3, without=mmap.MAP_SHARED)),
    "mprotect": (_Argument(2, without=mmap.PROT_EXEC),),
    "madvise": (_Argument(2, values=(_MADV_DONTNEED, _MADV_FREE, _MADV_GUARD_INSTALL)),),
    "clone": (_Argument(0, values=(_THREAD, _THREAD | _CLONE_DETACHED)),),
    "inotify_add_watch": (_Argument(2, values=(WATCH_MASK, NOTICE_MASK)),),
    "fanotify_mark": (_Argument(1, values=(MARK, Fanotify.MARK_FLUSH)), _Argument(2, values=(LISTEN_MASK, 0))),
    "ioctl": (_Argument(1, values=(_FS_IOC_GETFLAGS, waiting.COUNT_UNTAKEN)),),
    "pipe2": (_Argument(1, values=(os.O_CLOEXEC,)),),
    "ftruncate": (_Argument(0, but=(_STDERR,)),),
    # The size of a vsock buffer, up to the largest that was set before, and no other option of any socket.
    **dict.fromkeys(
        sorted(_PROBES), (_Argument(1, values=(socket.AF_VSOCK,)), _Argument(2, values=(keepalive.BUFFER_SIZE,)))
    ),
}

_INSTRUCTION: Final = struct.Struct("=HBBI")


_LETTING_GO: Final = ("close", "flock")
"""What would give up a descriptor that must be kept, or the lock by which a mount process is found."""


def is_supported() -> bool:
    """Say whether there is a filter for this architecture."""
    return platform.machine() in _ARCHITECTURES


def allowed_calls(
    *, read_only: bool, as_guest_users: bool, over_vsock: bool = False, watches: bool = False
) -> frozenset[str]:
    """Return the names of the calls that a share of this kind needs on a connection of this kind."""
    return _ALLOWED[read_only, as_guest_users, over_vsock, watches]


def _allowed(*, read_only: bool, as_guest_users: bool, over_vsock: bool, watches: bool) -> frozenset[str]:
    left_out = frozenset() if over_vsock else _PROBES
    if not watches:
        left_out |= _WATCHES
    if read_only:
        left_out |= _CHANGES
    if not as_guest_users:
        left_out |= _IDENTITY
    return frozenset(_NUMBERS) - left_out


_ALLOWED: Final = {
    (read_only, as_guest_users, over_vsock, watches): _allowed(
        read_only=read_only, as_guest_users=as_guest_users, over_vsock=over_vsock, watches=watches
    )
    for read_only, as_guest_users, over_vsock, watches in itertools.product((False, True), repeat=4)
}


def _assembled(*lines: _Line) -> bytes:
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


def _block(name: str, number: int, rules: tuple[_Argument, ...]) -> bytes:
    """Assemble what is done with one call."""
    verdict = (_RETURN, 0, 0, _ALLOW)
    if name == "clone3":  # its flags are in memory, where a filter cannot look; glibc then uses clone
        verdict = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    lines = [line for argument in rules for line in argument.lines()]
    return _assembled((_EQUAL, 0, len(lines) + 1, number), *lines, verdict)


_COLUMN, _ARCHITECTURE = _ARCHITECTURES.get(platform.machine(), (0, 0))
_HEAD: Final = _assembled(
    (_LOAD, 0, 0, _ARCH),
    (_EQUAL, 1, 0, _ARCHITECTURE),
    (_RETURN, 0, 0, _KILL_PROCESS),
    (_LOAD, 0, 0, _NR),
    (_AT_LEAST, 0, 1, _X32),  # the x32 numbers of x86_64, which nothing here uses
    (_RETURN, 0, 0, _ERRNO | errno.EPERM),
)
_HERE: Final = {name: number for name, columns in _NUMBERS.items() if (number := columns[_COLUMN]) is not None}
_BLOCKS: Final = {
    # Those with rules come first: of the others the kernel remembers the verdict, and does not run the filter.
    name: _block(name, _HERE[name], _RULES.get(name, ()))
    for name in (*_RULES, *sorted(_HERE.keys() - _RULES.keys()))
    if name in _HERE and name not in _LETTING_GO
}
_TAIL: Final = _assembled((_RETURN, 0, 0, _ERRNO | errno.EPERM))


def _body(calls: frozenset[str]) -> bytes:
    """Assemble all that does not depend on the descriptors that are kept."""
    return b"".join((*(block for name, block in _BLOCKS.items() if name in calls), _TAIL))


_BODIES: Final = {calls: _body(calls) for calls in _ALLOWED.values()}
"""Assembled once, and not in each mount process, which would make 150 KiB of memory its own: a page for nearly each
name of a call."""


def _program(calls: frozenset[str], kept: tuple[int, ...]) -> bytes:
    """Assemble the filter."""
    letting_go = [
        _block(name, _HERE[name], (_Argument(0, but=kept),) if kept else ()) for name in _LETTING_GO if name in calls
    ]
    return b"".join((_HEAD, *letting_go, _BODIES.get(calls) or _body(calls)))


def install(calls: frozenset[str], *, kept: Iterable[int] = ()) -> None:
    """Allow this process these calls alone, for ever, and never to close or unlock the descriptors `kept`.

    `no_new_privileges` comes first. Raises `OSError`.
    """
    program = _program(calls, tuple(kept))
    syscalls.set_seccomp_filter(program, len(program) // _INSTRUCTION.size)
