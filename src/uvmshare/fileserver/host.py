"""What this host can and cannot do for the file server.

What lives here: one function a finding, and the list of them. What must not: how they are shown
(`uvmshare.cli.doctor`).
"""

from __future__ import annotations

import errno
import os
import platform
import socket
import stat
import tempfile
from typing import TYPE_CHECKING, Final

from uvmshare import address
from uvmshare.errors import InvalidOptions
from uvmshare.fileserver import speed, syscalls
from uvmshare.fileserver.models import MAPPED
from uvmshare.fileserver.mount import confinement, enclosure
from uvmshare.finding import Finding
from uvmshare.hostpath import require_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["examine", "out_of_reach"]

_FEW_DESCRIPTORS: Final = 65536

_VHOST_VSOCK: Final = "/dev/vhost-vsock"
"""What QEMU opens to give a guest a CID."""


def _kernel() -> Finding:
    release = platform.release()
    major, minor = (int("".join(filter(str.isdigit, part)) or 0) for part in release.split(".")[:2])
    if (major, minor) < (5, 3):
        return Finding(
            "kernel",
            "bad",
            f"Linux {release}",
            "mount processes are watched through pidfd_open(2), which came with 5.3",
            "use a kernel of 5.3 or later",
        )
    return Finding("kernel", "good", f"Linux {release}")


def _proc() -> Finding:
    if os.path.isdir("/proc/self/fd"):
        return Finding("/proc", "good", "mounted")
    return Finding("/proc", "bad", "not mounted", "files are opened anew through /proc/self/fd", "mount /proc")


def _landlock() -> Finding:
    abi = syscalls.landlock_abi()
    if abi >= 3:
        return Finding("Landlock", "good", f"ABI {abi}")
    return Finding(
        "Landlock",
        "warning",
        f"ABI {abi}" if abi else "not there, or switched off",
        "the kernel does not hold mount processes to their share; the server's own checks do",
        "use Linux 6.2 or later with landlock among the kernel's lsm= (CONFIG_LSM)",
    )


def _seccomp() -> Finding:
    if confinement.has_seccomp():
        return Finding("seccomp", "good", f"filters on {platform.machine()}")
    return Finding(
        "seccomp",
        "warning",
        f"no filter on {platform.machine()}",
        "mount processes may use every system call",
        "use x86_64 or aarch64 and a kernel with CONFIG_SECCOMP_FILTER",
    )


def _groups() -> Finding:
    """Whether there are control groups of version 2 with the controllers that a VM's limits need."""
    try:
        with open("/sys/fs/cgroup/cgroup.controllers", encoding="ascii") as file:
            controllers = set(file.read().split())
    except OSError:
        controllers = set()
    if {"memory", "pids"} <= controllers:
        return Finding(
            "control groups", "good", "version 2, with memory and pids; a daemon with Delegate=yes divides them"
        )
    return Finding(
        "control groups",
        "warning",
        "not version 2, or without memory and pids",
        "the processes of a VM's file server have no common limits, and what they leave is not ended with the VM",
        "boot with systemd.unified_cgroup_hierarchy=1 and run the daemon as a service with Delegate=yes",
    )


def _namespaces() -> Finding:
    reason = enclosure.trouble()
    if not reason:
        return Finding("mount namespaces", "good", "a mount process sees its share and nothing else")
    return Finding(
        "mount namespaces",
        "warning",
        reason,
        "a mount process that a guest has taken over could see names and attributes of files outside its share, and "
        "change the attributes of this user's: Landlock knows nothing of them",
        "run as root, or allow user namespaces (user.max_user_namespaces, kernel.unprivileged_userns_clone, AppArmor's "
        "kernel.apparmor_restrict_unprivileged_userns); in a container, allow it mounts (CAP_SYS_ADMIN)",
    )


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding("privileges", "good", "root: every security model, and files of every owner")
    return Finding(
        "privileges",
        "warning",
        f"uid {os.geteuid()}",
        "the security model passthrough needs root, and files of other owners can only be served as far as this user "
        "may read and write them",
        "run as root for passthrough; mapped-xattr and none need no root",
    )


def _descriptors() -> Finding:
    hard = confinement.most_descriptors()
    if hard >= _FEW_DESCRIPTORS:
        return Finding("open files", "good", f"at most {hard} a process")
    return Finding(
        "open files",
        "warning",
        f"at most {hard} a process",
        "a guest that remembers more files than that gets EMFILE",
        "raise the hard limit (ulimit -Hn, LimitNOFILE= in systemd)",
    )


def _vsock() -> Finding:
    try:
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            probe.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    except OSError as error:
        return Finding(
            "vsock",
            "warning",
            f"cannot be bound: {error.strerror}",
            "vsock: addresses; unix:, firecracker:, cloud-hypervisor: and tcp: do without",
            "modprobe vsock",
        )
    if not os.path.exists(_VHOST_VSOCK):
        return Finding(
            "vsock",
            "warning",
            "can be bound, but /dev/vhost-vsock is missing",
            "QEMU guests cannot be reached over vsock; hybrid vsock (Firecracker, Cloud Hypervisor) does without",
            "modprobe vhost_vsock",
        )
    return Finding("vsock", "good", "can be bound, and QEMU can give guests a CID")


def _nowait() -> Finding:
    with tempfile.TemporaryFile() as file:
        file.write(b"x")
        file.flush()
        try:
            os.preadv(file.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT)
        except BlockingIOError:
            pass
        except OSError as error:
            return Finding(
                f"reads without waiting ({tempfile.gettempdir()})",
                "warning",
                error.strerror or str(error),
                "a read there that misses the page cache holds up the mount it belongs to (tmpfs never misses)",
                "share directories of a disk file system such as ext4, xfs or btrfs",
            )
    return Finding(f"reads without waiting ({tempfile.gettempdir()})", "good", "RWF_NOWAIT works")


def _events() -> Finding:
    """Say by which way events in guests come (docs/events.md)."""
    try:
        os.close(syscalls.fanotify_init())
    except OSError as error:
        refused = error
    else:
        return Finding("events", "good", "fanotify tells what changed, and who did it")
    why = "no more groups for this user" if refused.errno == errno.EMFILE else refused.strerror or str(refused)
    remedy = (
        "raise fs.fanotify.max_user_groups"
        if refused.errno == errno.EMFILE
        else "use Linux 5.13 or later, and let the server's container call fanotify_init(2)"
    )
    try:
        os.close(syscalls.inotify_init())
    except OSError as error:
        return Finding(
            "events",
            "warning",
            f"no fanotify: {why}; no inotify: {error.strerror or error}",
            "map --events: tools in guests hear nothing of changes by the host",
            f"{remedy}; or raise fs.inotify.max_user_instances",
        )
    return Finding(
        "events",
        "warning",
        f"by inotify, and mounts note down what they change themselves (no fanotify: {why})",
        "guests that have events write with more CPU time, and a change by the host may be missed that comes within "
        "10 ms of the guest's own one and leaves size and times as they are",
        remedy,
    )


def _hot_path() -> Finding:
    if speed.is_used():
        return Finding("compiled hot path", "good", speed.describe())
    return Finding(
        "compiled hot path",
        "warning",
        speed.describe(),
        "file servers are all Python: nothing is missing, but small requests cost more CPU time",
        "pip install ./native in a clone of uvmshare, which needs a C compiler and Python's headers; leave out "
        f"{speed.VARIABLE}=off if it is set",
    )


def _share(path: str) -> Finding:
    """Look at a directory or file as it would be shared: whether it can be read and written, and keeps attributes."""
    subject = f"share {path}"
    try:
        require_path("share", path, InvalidOptions)
    except InvalidOptions as error:
        return Finding(subject, "bad", str(error), "it cannot be shared", "give the path of a directory or file")
    remedy = "give a directory or file that exists and that you may read"
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            what = "it is neither a directory nor a regular file"
            return Finding(subject, "bad", what, "it cannot be shared", remedy)
        root = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        return Finding(subject, "bad", error.strerror or str(error), "it cannot be shared", remedy)
    try:
        os.getxattr(root, MAPPED + "uid")
    except OSError as error:
        if error.errno != errno.ENODATA:
            return Finding(
                subject,
                "warning",
                f"its file system keeps no user extended attributes ({error.strerror})",
                "a writable share under mapped-xattr, the default",
                "share it read-only, or use --security-model none or passthrough",
            )
    finally:
        os.close(root)
    if not os.access(path, os.W_OK | os.X_OK if stat.S_ISDIR(mode) else os.W_OK):
        return Finding(
            subject,
            "warning",
            "this user may not write it",
            "a guest of a writable share gets EACCES",
            "share it read-only, or serve it as its owner",
        )
    done = "listed" if stat.S_ISDIR(mode) else "read"
    return Finding(subject, "good", f"can be {done} and written, and keeps user extended attributes")


_HOST: Final[tuple[Callable[[], Finding], ...]] = (
    _kernel,
    _proc,
    _landlock,
    _seccomp,
    _groups,
    _namespaces,
    _user,
    _descriptors,
    _vsock,
    _nowait,
    _events,
    _hot_path,
)


def out_of_reach(addresses: Iterable[str]) -> list[str]:
    """Return, for each address of a file server that no guest can reach as the host is now, why, and what to do.

    It looks at socket files, whose file system may never answer.
    """
    return [f"{text}: {why}" for text in addresses if (why := _trouble(address.parse(text)))]


def _trouble(where: address.Address) -> str:
    if where.kind == "vsock" and not os.path.exists(_VHOST_VSOCK):
        return (
            f"no guest can reach this address: {_VHOST_VSOCK} is missing, without which QEMU gives no guest a CID "
            "(modprobe vhost_vsock)"
        )
    if where.path and not _is_socket(where.socket_path):
        return "no guest can reach this address: its socket was removed from there; start the file server anew"
    return ""


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except FileNotFoundError:
        return False
    except OSError:  # it cannot be told
        return True


def examine(shares: Iterable[str] = ()) -> list[Finding]:
    """Look at the host, and at each directory as a share. Nothing is changed."""
    return [look() for look in _HOST] + [_share(path) for path in shares]
