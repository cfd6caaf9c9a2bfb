"""Code that runs in a mount process, as after a hole in it: what it tries, and what is to stop it.

What lives here: the attempts, with the layers that stop each. What must not: the process that makes them
(`taken_over_process`), or what is expected; that is in the tests. `docs/security.md` has the same table for readers.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

NOBODY: Final = 65534
CANARY: Final = b"the host's own"
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
WATCH_MASK: Final = 0x10003C0
"""IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE and IN_ONLYDIR (inotify(7)): what seccomp leaves."""
LISTEN_MASK: Final = 0x480003C6
"""FAN_MODIFY, FAN_ATTRIB, those of names, FAN_EVENT_ON_CHILD and FAN_ONDIR (fanotify_mark(2)): what seccomp leaves."""
_MACHINE: Final = os.uname().machine


@dataclass(frozen=True, slots=True)
class Scene:
    """What an attempt has to do with: the share's root, what lies outside, another process of the same user."""

    root: int
    outside: Path
    victim: int
    kept: int
    listening: str
    abstract: str
    port: int


@dataclass(frozen=True, slots=True)
class Layers:
    """What confines the process; all of it, unless something is masked as if this kernel had it not."""

    landlock: int | None = None
    """The ABI; None for the kernel's own."""
    namespace: bool = True
    seccomp: bool = True
    nothing: bool = False
    """Not confined at all: to see that the attempts work."""

    def has_landlock(self, abi: int) -> bool:
        """Say whether there is Landlock of that ABI."""
        from uvmshare.fileserver import syscalls

        kernels = syscalls.landlock_abi()
        return abi <= (kernels if self.landlock is None else min(kernels, self.landlock))


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. Each of `stopped_by` is enough: "namespace", "seccomp", "capabilities", or Landlock from an ABI on.

    `changes` says that a read-only share has no call for it. Those without `proves_itself` cannot be shown to work
    where nothing stops them: they would end the process, or this host may forbid them to everybody. Those that need
    root do not work for others anyway. `not_in_passthrough` are layers that leave that model alone.
    """

    name: str
    make: Callable[[Scene], object]
    stopped_by: frozenset[str]
    landlock: int = 0
    changes: bool = False
    proves_itself: bool = True
    needs_root: bool = False
    not_in_passthrough: frozenset[str] = frozenset()

    def is_stopped(self, layers: Layers, *, model: str, read_only: bool, enclosed: bool) -> bool:
        """Say whether any of the layers that there are is to stop it."""
        having = {"capabilities", "closed"}
        if enclosed:
            having.add("namespace")
        if layers.seccomp:
            having.add("seccomp")
        if self.changes and read_only and layers.seccomp:
            return True
        by_landlock = "landlock" if self.landlock and layers.has_landlock(self.landlock) else ""
        found = {*(self.stopped_by & having), by_landlock} - {""}
        if model == "passthrough":
            found -= self.not_in_passthrough
        return bool(found)


def _call(name: str, *arguments: object) -> int:
    """Call what Python does not have. Raises `OSError`."""
    return _checked(getattr(_LIBC, name)(*arguments), name)


def _checked(result: int, name: str) -> int:
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


_NUMBERS: Final = {  # x86_64, aarch64
    "bpf": (321, 280),
    "io_uring_setup": (425, 425),
    "userfaultfd": (323, 282),
    "add_key": (248, 217),
    "perf_event_open": (298, 241),
    "open_by_handle_at": (304, 265),
    "pidfd_getfd": (438, 438),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "timer_create": (222, 107),
    "memfd_create": (319, 279),
    "fchmodat2": (452, 452),
    "setxattrat": (463, 463),
    "openat2": (437, 437),
    "statx": (332, 291),
    "close_range": (436, 436),
    "kcmp": (312, 272),
    "process_madvise": (440, 440),
    "name_to_handle_at": (303, 264),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "landlock_restrict_self": (446, 446),
    "mount_setattr": (442, 442),
    "pivot_root": (155, 41),
    "quotactl": (179, 60),
    "swapon": (167, 224),
    "init_module": (175, 105),
    "kexec_load": (246, 104),
    "syslog": (103, 116),
    "acct": (163, 89),
    "fanotify_init": (300, 262),
    "move_pages": (279, 239),
    "sched_setaffinity": (203, 122),
    "ioprio_set": (251, 30),
    "truncate": (76, 45),
    "setrlimit": (160, 164),
}


def _system_call(name: str, *arguments: object) -> int:
    number = _NUMBERS[name][0 if _MACHINE == "x86_64" else 1]
    return _checked(_LIBC.syscall(ctypes.c_long(number), *arguments), name)


def _file(scene: Scene) -> str:
    return os.fspath(scene.outside / "file")


def _below(scene: Scene) -> str:
    return f"../{scene.outside.name}/file"


def _read(path: str, at: int | None = None) -> None:
    descriptor = os.open(path, os.O_RDONLY, dir_fd=at)
    assert os.pread(descriptor, 100, 0)


def _memory(protection: int, flags: int) -> None:
    _LIBC.mmap.restype = ctypes.c_void_p
    _LIBC.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    if _LIBC.mmap(None, 4096, protection, flags, -1, 0) == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), "mmap")


def _made_executable() -> None:
    memory = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _call("mprotect", ctypes.c_void_p(at), ctypes.c_size_t(4096), 5)


def _connect(family: int, address: str | tuple[str, int]) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.connect(address)


def _process_vm(scene: Scene, name: str) -> None:
    here = ctypes.create_string_buffer(8)

    class _Iovec(ctypes.Structure):
        _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))

    local = _Iovec(ctypes.addressof(here), 8)
    # The victim was forked from this process: what is here is there too.
    _call(name, scene.victim, ctypes.byref(local), 1, ctypes.byref(local), 1, 0)


def _signal_by_descriptor(scene: Scene) -> None:
    """What reached another process once: an open file whose signal and addressee one may choose."""
    told, _ = os.pipe2(os.O_CLOEXEC)
    fcntl.fcntl(told, fcntl.F_SETOWN, scene.victim)
    fcntl.fcntl(told, fcntl.F_SETSIG, signal.SIGURG)  # which is ignored, where it is not stopped
    fcntl.fcntl(told, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)


def _lease(scene: Scene) -> None:
    fcntl.fcntl(os.open("inside", os.O_RDONLY, dir_fd=scene.root), fcntl.F_SETLEASE, fcntl.F_RDLCK)


def _watch(scene: Scene) -> None:
    """Use the queue that was made before this process was confined, or make one."""
    queue = _made_before("inotify")
    queue = _call("inotify_init1", os.O_CLOEXEC) if queue is None else queue
    _call("inotify_add_watch", queue, os.fsencode(scene.outside), WATCH_MASK)


def _listen(scene: Scene) -> None:
    """Use the group that was made before this process was confined, or make one."""
    group = _made_before("[fanotify]")
    group = _call("fanotify_init", _FAN_REPORT_DFID_NAME, os.O_RDONLY) if group is None else group
    outside = ctypes.c_int(_AT_FDCWD), os.fsencode(scene.outside)
    _call("fanotify_mark", group, _FAN_MARK_ADD_DIRECTORY, ctypes.c_uint64(LISTEN_MASK), *outside)


def _listen_to_all(scene: Scene) -> None:
    """The same for the whole file system that the share is on, which tells of all that is outside."""
    group = _made_before("[fanotify]")
    group = _call("fanotify_init", _FAN_REPORT_DFID_NAME, os.O_RDONLY) if group is None else group
    _call("fanotify_mark", group, _FAN_MARK_ADD_FILESYSTEM, ctypes.c_uint64(_FAN_MODIFY), scene.root, b".")


_FAN_MARK_ADD_FILESYSTEM: Final = 0x101
_FAN_MODIFY: Final = 0x2
_FAN_REPORT_DFID_NAME: Final = 0xC00
_FAN_MARK_ADD_DIRECTORY: Final = 0x9


def _made_before(what: str) -> int | None:
    """Return a descriptor that this process has of such a kind; None when it has none."""
    listing = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY)
    for number in range(listing):
        with suppress(OSError):  # it is not open
            if os.readlink(str(number), dir_fd=listing) == f"anon_inode:{what}":
                return number
    return None


def _notify(scene: Scene) -> None:
    directory = os.open(".", os.O_RDONLY, dir_fd=scene.root)
    fcntl.fcntl(directory, fcntl.F_NOTIFY, fcntl.DN_CREATE)
    os.close(directory)  # or SIGIO would end this process at the next attempt


def _pidfd(scene: Scene) -> int:
    return os.pidfd_open(scene.victim)


def _capable(scene: Scene) -> None:
    """Ask for CAP_SYS_ADMIN in the effective set, which root had before it confined itself."""
    del scene

    class _Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class _Data(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))

    header, data = _Header(0x20080522, 0), (_Data * 2)()
    _call("capget", ctypes.byref(header), ctypes.byref(data))
    data[0].effective |= 1 << 21
    _call("capset", ctypes.byref(header), ctypes.byref(data))


def _device(scene: Scene) -> None:
    os.mknod("device", 0o020600, os.makedev(1, 5), dir_fd=scene.root)
    assert os.pread(os.open("device", os.O_RDONLY, dir_fd=scene.root), 1, 0) == b"\0"


def _as_other(scene: Scene) -> None:
    del scene
    _LIBC.setfsuid(1)
    changed = _LIBC.setfsuid(-1) == 1
    _LIBC.setfsuid(os.geteuid())
    if not changed:
        raise OSError(errno.EPERM, "setfsuid")


def _namespace_of_users(scene: Scene) -> None:
    del scene
    _call("unshare", 0x10000000)


def _new_process(flags: int) -> None:
    if os.getpid() != _checked(
        _LIBC.syscall(ctypes.c_long(56 if _MACHINE == "x86_64" else 220), flags, 0, 0, 0, 0), "clone"
    ):
        return
    os._exit(0)


def _a(name: str, make: Callable[[Scene], object], *by: str, **more: Any) -> Attempt:
    return Attempt(name, make, frozenset(by), **more)


_AT_FDCWD: Final = -100
_SIGINFO: Final = struct.Struct("@iiiiQ104x")

ATTEMPTS: Final = (
    # Files outside
    _a("read a file by its path", lambda s: _read(_file(s)), "namespace", landlock=1),
    _a("read a file by .. from the share", lambda s: _read(_below(s), s.root), "namespace", landlock=1),
    _a("read a file by /proc/PID/root", lambda s: _read(f"/proc/{s.victim}/root{_file(s)}"), "namespace", landlock=1),
    _a("list a directory", lambda s: os.listdir(s.outside), "namespace", landlock=1),
    _a("write a file", lambda s: os.open(_file(s), os.O_WRONLY), "namespace", landlock=1),
    _a("make a file", lambda s: os.open(s.outside / "made", os.O_WRONLY | os.O_CREAT), "namespace", landlock=1),
    _a("make a directory", lambda s: os.mkdir(s.outside / "new"), "namespace", landlock=1, changes=True),
    _a("make a symbolic link", lambda s: os.symlink("x", s.outside / "link"), "namespace", landlock=1, changes=True),
    _a("remove a file", lambda s: os.unlink(s.outside / "doomed"), "namespace", landlock=1, changes=True),
    _a("remove a directory", lambda s: os.rmdir(s.outside / "empty"), "namespace", landlock=1, changes=True),
    _a(
        "rename a file out of the share",
        lambda s: os.rename("inside2", s.outside / "moved", src_dir_fd=s.root),
        "namespace",
        landlock=1,
        changes=True,
    ),
    _a(
        "link a file into the share",
        lambda s: os.link(_file(s), "linked", dst_dir_fd=s.root),
        "namespace",
        landlock=1,
        changes=True,
    ),
    _a("truncate a file by its path", lambda s: os.truncate(_file(s), 1), "namespace", "seccomp", landlock=3),
    _a(
        "truncate a file while opening it",
        lambda s: os.open(_file(s), os.O_WRONLY | os.O_TRUNC),
        "namespace",
        landlock=1,
    ),
    # Attributes outside, of which Landlock knows nothing
    _a("read the attributes of a file", lambda s: os.stat(_file(s)), "namespace"),
    _a("read the attributes by .. from the share", lambda s: os.stat(_below(s), dir_fd=s.root), "namespace"),
    _a("open a file for its path alone", lambda s: os.open(_file(s), os.O_PATH), "namespace"),
    _a("read a symbolic link", lambda s: os.readlink(s.outside / "there"), "namespace"),
    _a("read an extended attribute", lambda s: os.getxattr(_file(s), "user.kept"), "namespace"),
    _a("list extended attributes", lambda s: os.listxattr(_file(s)), "namespace"),
    _a("change a mode", lambda s: os.chmod(_file(s), 0o777), "namespace", changes=True),
    _a(
        "change a mode by .. from the share",
        lambda s: os.chmod(_below(s), 0o777, dir_fd=s.root),
        "namespace",
        changes=True,
    ),
    _a(
        "change the mode of the directory above",
        lambda s: os.chmod("..", 0o711, dir_fd=s.root),
        "namespace",
        changes=True,
    ),
    _a(
        "change a mode by fchmodat2",
        lambda s: _system_call("fchmodat2", _AT_FDCWD, os.fsencode(_file(s)), 0o777, 0),
        "namespace",
        "seccomp",
        changes=True,
        proves_itself=False,
    ),
    _a("change an owner", lambda s: os.chown(_file(s), -1, os.getegid()), "namespace", changes=True),
    _a("set times", lambda s: os.utime(_file(s), (1, 1)), "namespace", changes=True),
    _a("set an extended attribute", lambda s: os.setxattr(_file(s), "user.x", b"x"), "namespace", changes=True),
    _a("remove an extended attribute", lambda s: os.removexattr(_file(s), "user.doomed"), "namespace", changes=True),
    _a(
        "open a file by its handle",
        lambda s: _system_call(
            "open_by_handle_at", s.root, ctypes.create_string_buffer(struct.pack("Ii128s", 8, 1, b"")), 0
        ),
        "seccomp",
        "capabilities",
        proves_itself=False,
    ),
    # Signals
    _a("send a signal by kill", lambda s: os.kill(s.victim, 0), "seccomp", landlock=6),
    _a("send a signal by tgkill", lambda s: _call("tgkill", s.victim, s.victim, signal.SIGURG), "seccomp", landlock=6),
    _a("send a signal by a pidfd", lambda s: signal.pidfd_send_signal(_pidfd(s), signal.SIGURG), "seccomp", landlock=6),
    _a(
        "queue a signal",
        lambda s: _system_call(
            "rt_sigqueueinfo", s.victim, int(signal.SIGURG), _SIGINFO.pack(signal.SIGURG, 0, -1, 0, 0)
        ),
        "seccomp",
        landlock=6,
    ),
    _a("send a signal by F_SETOWN and F_SETSIG", _signal_by_descriptor, "seccomp"),
    _a("take a lease", _lease, "seccomp"),
    _a("be notified of a directory", _notify, "seccomp"),
    _a("make a queue of what happens to files", lambda _: _call("inotify_init1", os.O_CLOEXEC), "seccomp"),
    _a("be told of a directory outside by a queue that is there", _watch, "seccomp", "namespace"),
    _a("be told of names outside by a group that is there", _listen, "seccomp", "namespace"),
    _a("be told of a whole file system by a group that is there", _listen_to_all, "seccomp", needs_root=True),
    _a("make a timer", lambda _: signal.setitimer(signal.ITIMER_REAL, 1000), "seccomp"),
    # Other processes
    _a("read another's environment", lambda s: _read(f"/proc/{s.victim}/environ"), "namespace", landlock=1),
    _a("open another's memory", lambda s: os.open(f"/proc/{s.victim}/mem", os.O_RDWR), "namespace", landlock=1),
    _a("trace another", lambda s: _call("ptrace", 0x4206, s.victim, 0, 0), "seccomp", landlock=1, proves_itself=False),
    _a("read another's memory", lambda s: _process_vm(s, "process_vm_readv"), "seccomp", landlock=1),
    _a("write another's memory", lambda s: _process_vm(s, "process_vm_writev"), "seccomp", landlock=1),
    _a("take another's descriptor", lambda s: _system_call("pidfd_getfd", _pidfd(s), 0, 0), "seccomp", landlock=1),
    _a(
        "start a program",
        lambda _: os.execv("/bin/true", ["true"]),
        "seccomp",
        "namespace",
        landlock=1,
        proves_itself=False,
    ),
    _a("fork", lambda _: _new_process(int(signal.SIGCHLD)), "seccomp", proves_itself=False),
    _a(
        "clone into namespaces",
        lambda _: _new_process(0x10000000 | int(signal.SIGCHLD)),
        "seccomp",
        proves_itself=False,
    ),
    _a("clone a thread that shares no files", lambda _: _new_process(0x10900), "seccomp", proves_itself=False),
    # Sockets
    _a("connect to a unix socket", lambda s: _connect(socket.AF_UNIX, s.listening), "seccomp", "namespace"),
    _a("connect to an abstract socket", lambda s: _connect(socket.AF_UNIX, s.abstract), "seccomp", landlock=6),
    _a("connect to loopback", lambda s: _connect(socket.AF_INET, ("127.0.0.1", s.port)), "seccomp", landlock=4),
    _a("make a netlink socket", lambda _: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "seccomp"),
    _a("make a pair of sockets", lambda _: socket.socketpair(), "seccomp"),
    # The kernel
    _a("enter a mount namespace", lambda _: _call("unshare", 0x20000), "seccomp", "capabilities", needs_root=True),
    _a("enter a user namespace", _namespace_of_users, "seccomp", proves_itself=False),
    _a(
        "enter another's namespace",
        lambda s: _call("setns", os.open(f"/proc/{s.victim}/ns/mnt", os.O_RDONLY), 0),
        "seccomp",
        "capabilities",
        "namespace",
        landlock=1,
        needs_root=True,
    ),
    _a(
        "mount",
        lambda s: _call("mount", b"x", os.fsencode(s.outside), b"tmpfs", 0, None),
        "seccomp",
        "capabilities",
        "namespace",
        landlock=1,
        proves_itself=False,
    ),
    _a(
        "clone a mount",
        lambda _: _system_call("open_tree", _AT_FDCWD, b"/", 1),
        "seccomp",
        "capabilities",
        needs_root=True,
    ),
    _a("change the root directory", lambda _: os.chroot("/"), "seccomp", "capabilities", needs_root=True),
    _a("make a keyring", lambda _: _system_call("add_key", b"user", b"x", b"x", 1, -3), "seccomp", proves_itself=False),
    _a("use io_uring", lambda _: _system_call("io_uring_setup", 1, bytes(120)), "seccomp", proves_itself=False),
    _a("use bpf", lambda _: _system_call("bpf", 0, bytes(128), 128), "seccomp", proves_itself=False),
    _a("use userfaultfd", lambda _: _system_call("userfaultfd", 0), "seccomp", proves_itself=False),
    _a("use perf", lambda _: _system_call("perf_event_open", bytes(128), 0, -1, -1, 0), "seccomp", proves_itself=False),
    _a("make a file in memory", lambda _: _system_call("memfd_create", b"x", 0), "seccomp"),
    _a(
        "use an ioctl",
        lambda s: fcntl.ioctl(os.open("inside", os.O_RDONLY, dir_fd=s.root), 0x541B, bytes(4)),
        "seccomp",
    ),
    _a("change the personality", lambda _: _call("personality", 0xFFFFFFFF), "seccomp"),
    _a("undo no_new_privs or rename by prctl", lambda _: _call("prctl", 15, b"x", 0, 0, 0), "seccomp"),
    # Memory and resources
    _a("map executable memory", lambda _: _memory(7, 0x22), "seccomp"),
    _a("make memory executable", lambda _: _made_executable(), "seccomp"),
    _a("map memory that is not counted", lambda _: _memory(3, 0x21), "seccomp"),
    _a("give other advice on memory", lambda _: mmap.mmap(-1, 4096, flags=0x22).madvise(20), "seccomp"),
    _a("raise a limit", lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)), "seccomp"),
    _a("run first", lambda _: os.setpriority(os.PRIO_PROCESS, 0, os.nice(0)), "seccomp"),
    # Identity
    _a("become another user", lambda _: os.setresuid(1, 1, 1), "seccomp", proves_itself=False),
    _a(
        "use another user's rights to files",
        _as_other,
        "seccomp",
        "capabilities",
        needs_root=True,
        not_in_passthrough=frozenset(("seccomp", "capabilities")),
    ),
    _a(
        "take a capability back",
        _capable,
        "capabilities",
        "seccomp",
        needs_root=True,
        not_in_passthrough=frozenset(("seccomp",)),
    ),
    _a(
        "make a device and open it",
        _device,
        "capabilities",
        "namespace",
        landlock=1,
        needs_root=True,
        not_in_passthrough=frozenset(("capabilities", "landlock")),
    ),
    # What finds and ends this process
    _a("unlock its own file", lambda s: fcntl.flock(s.kept, fcntl.LOCK_UN), "seccomp"),
    _a("put another descriptor in its place", lambda s: os.dup2(s.root, s.kept), "seccomp"),
    _a(
        "close all descriptors",
        lambda s: _system_call("close_range", s.kept, s.kept, 0),
        "seccomp",
        proves_itself=False,
    ),
    _a("close its own file", lambda s: os.close(s.kept), "seccomp"),
    _a("leave its session", lambda _: os.setpgid(0, 0), "seccomp"),
    # What was standard input and output
    _a("read standard input", lambda _: os.read(0, 1), "closed", proves_itself=False),
    _a("write standard output", lambda _: os.write(1, b"x"), "closed", proves_itself=False),
)
