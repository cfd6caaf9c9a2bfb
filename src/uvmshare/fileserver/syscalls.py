"""System calls that Python's `os` does not have.

What lives here: ctypes for them, each with its manual page; the only ctypes of the file server but for its heap
(`supervisor.together`).
What must not: why they are called (`mount.confinement`, `mount.files`).

Everything is looked up when the module is imported, because a confined mount process can load nothing.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "UTIME_NOW",
    "UTIME_OMIT",
    "Capability",
    "Fanotify",
    "LandlockAccess",
    "MountCrossed",
    "MountFlag",
    "Notify",
    "clone_mounts",
    "drop_capabilities",
    "drop_supplementary_groups",
    "fanotify_init",
    "fanotify_mark",
    "file_system_type",
    "getdents64",
    "has_seccomp_filters",
    "inotify_add_watch",
    "inotify_init",
    "inotify_init_at_once",
    "inotify_rm_watch",
    "keep_capabilities",
    "landlock_abi",
    "landlock_restrict",
    "mount",
    "move_mount",
    "new_namespaces",
    "no_new_privileges",
    "open_entry",
    "pivot_root",
    "set_dumpable",
    "set_mount_flags",
    "set_name",
    "set_seccomp_filter",
    "set_times",
    "unmount",
    "with_spare",
    "working_directory",
]

_libc: Final = ctypes.CDLL(None, use_errno=True)
for _name in (
    "capget",
    "capset",
    "fanotify_init",
    "fanotify_mark",
    "fstatfs",
    "inotify_add_watch",
    "inotify_init1",
    "inotify_rm_watch",
    "mount",
    "prctl",
    "syscall",
    "umount2",
    "unshare",
    "utimensat",
):  # ctypes makes an object for a function when it is first asked for: once, and not in each mount process
    getattr(_libc, _name)

# The same on every architecture (numbers past 424 are shared); getdents64 and capset are not.
_LANDLOCK_CREATE_RULESET: Final = 444
_LANDLOCK_ADD_RULE: Final = 445
_LANDLOCK_RESTRICT_SELF: Final = 446
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_LANDLOCK_RULE_PATH_BENEATH: Final = 1

_PR_SET_NAME: Final = 15
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_PR_SET_NO_NEW_PRIVS: Final = 38


def _check(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        msg = f"{call}: {os.strerror(number)}"
        raise OSError(number, msg)
    return result


def no_new_privileges() -> None:
    """``prctl(PR_SET_NO_NEW_PRIVS)``, see prctl(2). Raises `OSError`."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")


def set_name(name: str) -> None:
    """Name this process for ps(1) and top(1), at most 15 bytes. Raises `OSError`."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl(PR_SET_NAME)")


class _SockFprog(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def set_seccomp_filter(program: bytes, instructions: int) -> None:
    """``prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER)``, see seccomp(2). Raises `OSError`."""
    described = _SockFprog(instructions, program)
    _check(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(described), 0, 0), "prctl(PR_SET_SECCOMP)")


def has_seccomp_filters() -> bool:
    """Say whether the kernel takes seccomp filters: asking with none is EFAULT where it does."""
    return bool(
        _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, None, 0, 0) < 0 and ctypes.get_errno() == errno.EFAULT
    )


class LandlockAccess:
    """``LANDLOCK_ACCESS_FS_*``, see landlock(7)."""

    WRITE_FILE: Final = 1 << 1
    READ_FILE: Final = 1 << 2
    READ_DIR: Final = 1 << 3
    REMOVE_DIR: Final = 1 << 4
    REMOVE_FILE: Final = 1 << 5
    MAKE_CHAR: Final = 1 << 6
    MAKE_DIR: Final = 1 << 7
    MAKE_REG: Final = 1 << 8
    MAKE_SOCK: Final = 1 << 9
    MAKE_FIFO: Final = 1 << 10
    MAKE_BLOCK: Final = 1 << 11
    MAKE_SYM: Final = 1 << 12
    REFER: Final = 1 << 13
    TRUNCATE: Final = 1 << 14


_FS_ACCESSES: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many access rights to files each ABI of Landlock knows; since 5 also ioctls on devices."""


def landlock_abi() -> int:
    """Return the ABI of Landlock, 0 when the kernel has none or it is switched off."""
    version: int = _libc.syscall(
        _LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_CREATE_RULESET_VERSION)
    )
    return max(version, 0)


class _RulesetAttr(ctypes.Structure):
    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class _PathBeneathAttr(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def landlock_restrict(directory: int, allowed: int) -> None:
    """Confine this process to `allowed` below the directory, for ever; see landlock(7).

    Everything that the kernel's ABI can forbid is forbidden elsewhere: files, since ABI 4 binding and
    connecting TCP, since ABI 6 signals and abstract sockets to processes outside. `no_new_privileges`
    comes first. Raises `OSError`.
    """
    abi = landlock_abi()
    handled = (1 << _FS_ACCESSES[min(abi, 5)]) - 1
    attr = _RulesetAttr(handled, 0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _check(
        _libc.syscall(_LANDLOCK_CREATE_RULESET, ctypes.byref(attr), ctypes.c_size_t(size), ctypes.c_uint32(0)),
        "landlock_create_ruleset",
    )
    try:
        rule = _PathBeneathAttr(allowed & handled, directory)
        _check(
            _libc.syscall(
                _LANDLOCK_ADD_RULE, ruleset, _LANDLOCK_RULE_PATH_BENEATH, ctypes.byref(rule), ctypes.c_uint32(0)
            ),
            "landlock_add_rule",
        )
        _check(_libc.syscall(_LANDLOCK_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)), "landlock_restrict_self")
    finally:
        os.close(ruleset)


_StatFs: Final = ctypes.c_long * (256 // ctypes.sizeof(ctypes.c_long))
"""Enough: ``struct statfs`` has 120 bytes on 64-bit Linux, and begins with a long, ``f_type``."""


def file_system_type(descriptor: int) -> int:
    """Return the magic number of the file system that a file is on, see fstatfs(2). Raises `OSError`."""
    found = _StatFs()
    _check(_libc.fstatfs(descriptor, found), "fstatfs")
    return found[0] & 0xFFFFFFFF


class MountCrossed(Exception):
    """A name of a directory, which is a descriptor, leads into another mount."""

    def __init__(self, directory: int, name: bytes) -> None:
        super().__init__(directory, name)
        found = os.fstat(directory)
        self.place = found.st_dev, found.st_ino, name
        """The same for each that leads into it: device and inode of the directory, and the name."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_OPENAT2: Final = 437
_RESOLVE_NO_XDEV: Final = 1
_ENTRY_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_how: Final = _OpenHow(_ENTRY_FLAGS, 0, _RESOLVE_NO_XDEV)
_openat2 = ctypes.CDLL(None, use_errno=True)["syscall"]
_openat2.restype = ctypes.c_long
_openat2.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t)
_how_at: Final = ctypes.addressof(_how)
_how_size: Final = ctypes.sizeof(_how)


def open_entry(name: bytes, directory: int) -> int:
    """Open a directory's entry for its path alone, no symbolic link followed and no mount entered: openat2(2).

    The kernel sees a mount before it asks its file system anything. Raises `MountCrossed` there, and `OSError`.
    """
    while True:
        descriptor = _openat2(_OPENAT2, directory, name, _how_at, _how_size)
        if descriptor >= 0:
            return int(descriptor)
        number = ctypes.get_errno()
        if number == errno.EXDEV:
            raise MountCrossed(directory, name)
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _open_entry_plainly(name: bytes, directory: int) -> int:
    """Do what `open_entry` does, and enter mounts."""
    return os.open(name, _ENTRY_FLAGS, dir_fd=directory)


def _has_openat2() -> bool:
    """Say whether the kernel has openat2(2) (Linux 5.6), and a container's filter lets it be called."""
    probe = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        os.close(open_entry(b".", probe))
    except OSError:
        return False
    finally:
        os.close(probe)
    return True


if not _has_openat2():
    open_entry = _open_entry_plainly


class Notify:
    """``IN_*``, see inotify(7). What happened to names has the same bits as with `Fanotify`."""

    MODIFY: Final = 0x2
    ATTRIB: Final = 0x4
    MOVED_FROM: Final = 0x40
    MOVED_TO: Final = 0x80
    CREATE: Final = 0x100
    DELETE: Final = 0x200
    Q_OVERFLOW: Final = 0x4000
    IGNORED: Final = 0x8000
    ONLYDIR: Final = 0x1000000
    ISDIR: Final = 0x40000000


def inotify_init() -> int:
    """Return a queue of what happens to files. Raises `OSError`: EMFILE when this user has as many as allowed."""
    return _check(_libc.inotify_init1(os.O_CLOEXEC), "inotify_init1")


def inotify_init_at_once() -> int:
    """Return such a queue that never waits when it is read. Raises `OSError`."""
    return _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify_init1")


def inotify_add_watch(queue: int, path: str, mask: int) -> int:
    """Have a queue told of what happens there and return the number of that. Raises `OSError`."""
    return _check(_libc.inotify_add_watch(queue, os.fsencode(path), ctypes.c_uint32(mask)), "inotify_add_watch")


def inotify_rm_watch(queue: int, number: int) -> None:
    """Have a queue told of it no more. Raises `OSError`."""
    _check(_libc.inotify_rm_watch(queue, number), "inotify_rm_watch")


def with_spare(make: Callable[[], int], spare: int) -> int:
    """Return a descriptor that `make` makes, where `spare` more can be made. Raises `OSError` where they cannot."""
    made: list[int] = []
    try:
        made.extend(make() for _ in range(1 + spare))
        return made.pop(0)
    finally:
        for each in made:
            os.close(each)


class Fanotify:
    """``FAN_*``, see fanotify_init(2), fanotify_mark(2) and fanotify(7)."""

    MODIFY: Final = 0x2
    ATTRIB: Final = 0x4
    MOVED_FROM: Final = 0x40
    MOVED_TO: Final = 0x80
    CREATE: Final = 0x100
    DELETE: Final = 0x200
    Q_OVERFLOW: Final = 0x4000
    EVENT_ON_CHILD: Final = 0x8000000
    ONDIR: Final = 0x40000000
    CLOEXEC: Final = 0x1
    NONBLOCK: Final = 0x2
    REPORT_DIR_FID: Final = 0x400
    REPORT_NAME: Final = 0x800
    MARK_ADD: Final = 0x1
    MARK_ONLYDIR: Final = 0x8
    MARK_FLUSH: Final = 0x80


def fanotify_init() -> int:
    """Return a group that is told of names in directories, with who changed them; it never waits when it is read.

    No privilege is needed since Linux 5.13. Raises `OSError`: EMFILE when this user has as many as allowed.
    """
    flags = Fanotify.CLOEXEC | Fanotify.NONBLOCK | Fanotify.REPORT_DIR_FID | Fanotify.REPORT_NAME
    return _check(_libc.fanotify_init(ctypes.c_uint(flags), ctypes.c_uint(os.O_RDONLY)), "fanotify_init")


def fanotify_mark(group: int, flags: int, mask: int, path: str) -> None:
    """Have a group told of what happens in a directory, or no more. Raises `OSError`."""
    told = ctypes.c_uint64(mask), ctypes.c_int(_AT_FDCWD), os.fsencode(path)
    _check(_libc.fanotify_mark(ctypes.c_int(group), ctypes.c_uint(flags), *told), "fanotify_mark")


_getdents64 = _libc.getdents64  # glibc 2.30
_getdents64.restype = ctypes.c_ssize_t
_getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


def getdents64(descriptor: int, buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Fill `buffer` with directory entries, see getdents(2); return how many bytes, 0 at the end.

    Raises `OSError`.
    """
    return _check(_getdents64(descriptor, buffer, len(buffer)), "getdents64")


_GETCWD: Final = {"x86_64": 79, "aarch64": 17}.get(os.uname().machine)
_CWD_SIZE: Final = os.sysconf("SC_PAGE_SIZE")
_cwd: Final = ctypes.create_string_buffer(_CWD_SIZE)


def working_directory() -> bytes:
    """Return the path of the working directory, see getcwd(2); one that lies outside does not begin with a slash.

    It is the kernel's word, of a page at most: the C library's getcwd(3) goes on by itself where that is too long, and
    reads every directory on the way up, which a guest may have made large. One thread at a time. Raises `OSError`.
    """
    if _GETCWD is None:
        raise OSError(errno.ENOSYS, "getcwd: its number is not known on this architecture")
    length = _libc.syscall(_GETCWD, _cwd, _CWD_SIZE)
    if length < 0:
        _check(length, "getcwd")
    return _cwd.value


UTIME_NOW: Final = (1 << 30) - 1
UTIME_OMIT: Final = (1 << 30) - 2


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_longlong), ("nanoseconds", ctypes.c_long))


_TwoTimes: Final = _Timespec * 2

_AT_FDCWD: Final = -100


def set_times(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """Set both times, see utimensat(2); seconds and nanoseconds, of which the latter may be ``UTIME_*``.

    `os.utime` cannot leave one of them alone. Raises `OSError`.
    """
    times = _TwoTimes(_Timespec(*atime), _Timespec(*mtime))
    _check(_libc.utimensat(_AT_FDCWD, path.encode(), times, 0), "utimensat")


def drop_supplementary_groups() -> None:
    """``setgroups([])``. Raises `PermissionError` without CAP_SETGID."""
    os.setgroups([])


class Capability:
    """Numbers of capabilities(7), those that serving may need."""

    CHOWN: Final = 0
    DAC_OVERRIDE: Final = 1
    FOWNER: Final = 3
    FSETID: Final = 4
    SETGID: Final = 6
    SETUID: Final = 7
    MKNOD: Final = 27


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_Capabilities: Final = _CapData * 2
_CAP_HEADER: Final = _CapHeader(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3


def keep_capabilities(*capabilities: int) -> None:
    """Add these to the effective capabilities, see capset(2). They must be permitted. Raises `OSError`."""
    data = _Capabilities()
    _check(_libc.capget(ctypes.byref(_CAP_HEADER), ctypes.byref(data)), "capget")
    for capability in capabilities:
        data[capability // 32].effective |= 1 << (capability % 32)
    _check(_libc.capset(ctypes.byref(_CAP_HEADER), ctypes.byref(data)), "capset")


_PR_CAPBSET_DROP: Final = 24
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_MOST_CAPABILITIES: Final = 64


def drop_capabilities(keep: frozenset[int]) -> None:
    """Give up every capability but these, for ever; see capabilities(7). Raises `OSError`.

    What is kept is what was permitted before. The inheritable, ambient and bounding sets are empty then: they
    matter for new programs alone, and none is ever run. Who may not change the bounding set has nothing to give up.
    """
    with suppress(OSError):  # EPERM without CAP_SETPCAP, EINVAL past the last one that the kernel knows
        for capability in range(_MOST_CAPABILITIES):
            _check(_libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0), "prctl(PR_CAPBSET_DROP)")
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl(PR_CAP_AMBIENT)")
    data = _Capabilities()
    _check(_libc.capget(ctypes.byref(_CAP_HEADER), ctypes.byref(data)), "capget")
    for word, each in enumerate(data):
        each.permitted &= sum(1 << capability % 32 for capability in keep if capability // 32 == word)
        each.effective = each.permitted
        each.inheritable = 0
    _check(_libc.capset(ctypes.byref(_CAP_HEADER), ctypes.byref(data)), "capset")


_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4


def set_dumpable(value: int) -> int:
    """Say who may look into this process, see PR_SET_DUMPABLE in prctl(2); return what it was. Raises `OSError`."""
    before = _check(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0), "prctl(PR_GET_DUMPABLE)")
    _check(_libc.prctl(_PR_SET_DUMPABLE, value, 0, 0, 0), "prctl(PR_SET_DUMPABLE)")
    return before


# Mounts and namespaces

_CLONE_NEWNS: Final = 0x20000
_CLONE_NEWUSER: Final = 0x10000000
_OPEN_TREE: Final = 428
_MOVE_MOUNT: Final = 429
_MOUNT_SETATTR: Final = 442
_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}.get(platform.machine(), -1)
_OPEN_TREE_CLONE: Final = 1
_AT_RECURSIVE: Final = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MNT_DETACH: Final = 2


class MountFlag:
    """``MS_*`` of mount(2). The first four have the same numbers as ``MOUNT_ATTR_*`` of mount_setattr(2)."""

    RDONLY: Final = 1
    NOSUID: Final = 2
    NODEV: Final = 4
    NOEXEC: Final = 8
    REMOUNT: Final = 0x20
    BIND: Final = 0x1000
    REC: Final = 0x4000
    SLAVE: Final = 0x80000


def new_namespaces(*, users: bool) -> None:
    """Enter a mount namespace of this process's own, and a user namespace to have it in; see unshare(2).

    Raises `OSError`.
    """
    _check(_libc.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if users else 0)), "unshare")


def mount(target: str, flags: int, *, kind: str | None = None, options: str | None = None) -> None:
    """Attach a file system of that kind, or change what is there; see MS_REMOUNT and others in its manual page."""
    what = None if kind is None else kind.encode()
    told = None if options is None else options.encode()
    _check(_libc.mount(what, os.fsencode(target), what, ctypes.c_ulong(flags), told), f"mount {target}")


def clone_mounts(path: str, *, below: bool = False) -> int:
    """Return a mount of a directory that is attached nowhere yet, with what is mounted `below` it; see open_tree(2).

    Raises `OSError`: EINVAL for a directory of another mount namespace.
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if below else 0)
    return _check(
        _libc.syscall(_OPEN_TREE, ctypes.c_int(_AT_FDCWD), os.fsencode(path), ctypes.c_uint(flags)), "open_tree"
    )


def move_mount(descriptor: int, target: str) -> None:
    """Attach what `clone_mounts` returned, see MOVE_MOUNT_F_EMPTY_PATH in its manual. Raises `OSError`."""
    _check(
        _libc.syscall(
            _MOVE_MOUNT,
            ctypes.c_int(descriptor),
            b"",
            ctypes.c_int(_AT_FDCWD),
            os.fsencode(target),
            ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH),
        ),
        "move_mount",
    )


class _MountAttr(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "users"))


def set_mount_flags(target: str, flags: int) -> None:
    """Add flags to a mount and to what is mounted below it; see mount_setattr(2). Raises `OSError`.

    A kernel before 5.12 does it to the mount alone.
    """
    attr = _MountAttr(flags)
    try:
        _check(
            _libc.syscall(
                _MOUNT_SETATTR,
                ctypes.c_int(_AT_FDCWD),
                os.fsencode(target),
                ctypes.c_uint(_AT_RECURSIVE),
                ctypes.byref(attr),
                ctypes.c_size_t(ctypes.sizeof(attr)),
            ),
            "mount_setattr",
        )
    except OSError as error:
        if error.errno != errno.ENOSYS:
            raise
        kept = os.statvfs(target).f_flag & (MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC)
        mount(target, MountFlag.REMOUNT | MountFlag.BIND | kept | flags)


def pivot_root(new: str, old: str) -> None:
    """Make `new` the root of all paths, and attach the one before it at `old`. Raises `OSError`."""
    _check(_libc.syscall(_PIVOT_ROOT, os.fsencode(new), os.fsencode(old)), "pivot_root")


def unmount(target: str) -> None:
    """Detach a mount and all below it, see MNT_DETACH in umount(2). Raises `OSError`."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), f"umount {target}")
