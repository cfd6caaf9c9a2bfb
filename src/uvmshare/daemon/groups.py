"""One control group (cgroup v2) a VM: all its processes, their limits, and their end together.

What lives here: `Groups`, the groups below one that was delegated to the daemon, and `Group`, a VM's. What must not:
which limits a user may ask for (`service`), or when a VM begins and ends (`machine`).

::

    uvmshare.service/           delegated (Delegate=yes)
        daemon/                 the daemon itself: a group with limits below it holds no process (cgroups(7))
        vm-1000-build/          the supervisor and the mount processes of a VM

Without a delegated group everything works, and what a file server leaves behind when it ends is nobody's to kill.
Sources: Documentation/admin-guide/cgroup-v2.rst in Linux, and systemd's CGROUP_DELEGATION.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from uvmshare.daemon.documents import Use
from uvmshare.errors import FileServerError, InvalidOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvmshare.daemon.store import VmKey

__all__ = ["LIMITS", "Group", "Groups", "check_limits", "exceeds"]

_DAEMON: Final = "daemon"
_DELEGATED: Final = ("user.delegate", "trusted.delegate")
"""Extended attributes by which systemd says that a group is its service's to divide."""

_COUNT: Final = re.compile(r"max|[0-9]{1,19}")
_CPU: Final = re.compile(r"(max|[0-9]{1,12})( [1-9][0-9]{0,11})?")
_WEIGHT: Final = re.compile(r"[1-9][0-9]{0,4}")
_IO: Final = re.compile(r"[0-9]{1,7}:[0-9]{1,7}( (rbps|wbps|riops|wiops)=(max|[0-9]{1,19})){1,4}")

LIMITS: Final[Mapping[str, re.Pattern[str]]] = {
    "memory.max": _COUNT,
    "memory.high": _COUNT,
    "memory.swap.max": _COUNT,
    "pids.max": _COUNT,
    "cpu.max": _CPU,
    "cpu.weight": _WEIGHT,
    "io.weight": _WEIGHT,
    "io.max": _IO,
}
"""The limits of a group that can be set, by the kernel's own names of their files, and how a value looks."""

_END_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.01


def check_limits(limits: Mapping[str, str]) -> None:
    """See that limits are ones that a group has. Raises `InvalidOptions`."""
    for name, value in limits.items():
        form = LIMITS.get(name)
        if form is None:
            msg = f"there is no limit {name!r} of a group: use {', '.join(LIMITS)}"
            raise InvalidOptions(msg)
        if not form.fullmatch(value):
            msg = f"{name}={value!r} is no such limit: write it as the kernel does, such as {_EXAMPLES[name]!r}"
            raise InvalidOptions(msg)


_EXAMPLES: Final = {
    "memory.max": "1073741824",
    "memory.high": "1073741824",
    "memory.swap.max": "0",
    "pids.max": "64",
    "cpu.max": "50000 100000",
    "cpu.weight": "100",
    "io.weight": "100",
    "io.max": "8:0 rbps=50000000",
}


def exceeds(name: str, wanted: str, most: str) -> bool:
    """Say whether a limit allows more than another one of the same name."""
    if name == "io.max":
        return wanted != most
    return _amount(name, wanted) > _amount(name, most)


def _amount(name: str, value: str) -> float:
    quota, _, period = value.partition(" ")
    if quota == "max":
        return float("inf")
    return int(quota) / int(period or 100000) if name == "cpu.max" else int(quota)


class Group(NamedTuple):
    """The group of one VM."""

    path: str

    def open_procs(self) -> int:
        """Open the file through which a process enters the group: it writes "0" there. Raises `OSError`."""
        return os.open(os.path.join(self.path, "cgroup.procs"), os.O_WRONLY | os.O_CLOEXEC)

    def use(self) -> Use:
        """Return what its processes use now."""
        cpu = _read(self.path, "cpu.stat")
        spent = re.search(r"^usage_usec ([0-9]+)$", cpu or "", re.MULTILINE)
        return Use(
            memory=_number(self.path, "memory.current"),
            processes=_number(self.path, "pids.current"),
            cpu_seconds=None if spent is None else int(spent[1]) / 1e6,
        )

    async def end(self) -> None:
        """Kill every process in it, wait until none is left, and remove it.

        Raises `FileServerError` when one does not end, because what it waits for does not answer.
        """
        give_up = time.monotonic() + _END_SECONDS
        while True:
            self._kill()
            try:
                os.rmdir(self.path)
            except FileNotFoundError:
                return
            except OSError as error:
                if error.errno not in (errno.EBUSY, errno.ENOTEMPTY) or time.monotonic() > give_up:
                    msg = f"group {self.path!r} cannot be removed: {error.strerror}; its processes were killed"
                    raise FileServerError(msg) from error
            else:
                return
            await asyncio.sleep(_PAUSE_SECONDS)

    def _kill(self) -> None:
        try:
            _write(self.path, "cgroup.kill", "1")
        except OSError:  # before Linux 5.14: until none is left that could fork another
            for pid in (_read(self.path, "cgroup.procs") or "").split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)


class Groups:
    """The groups of all VMs, below one that is the daemon's."""

    def __init__(self, top: str) -> None:
        """Use `delegated` or `at`."""
        self.top = top
        self.controllers: frozenset[str] = frozenset()

    @classmethod
    def delegated(
        cls, *, marked: bool = True, proc: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup"
    ) -> Groups | None:
        """Return the groups below this process's own, if a service manager gave it that to divide; else None.

        A user's systemd does not mark the groups that it gave (252: cgroup_xattr_apply): for its services, `marked` is
        false, and the group is taken as given if there is one.
        """
        with suppress(OSError), open(proc, encoding="ascii") as table:
            for line in table:
                if line.startswith("0::"):
                    own = os.path.join(root, line[3:].strip().removesuffix(" (deleted)").lstrip("/"))
                    top = os.path.dirname(own) if os.path.basename(own) == _DAEMON else own
                    given = _is_delegated(top) if marked else os.path.exists(os.path.join(top, "cgroup.procs"))
                    return cls.at(top) if given else None
        return None

    @classmethod
    def at(cls, top: str) -> Groups:
        """Return the groups below `top`, after this process has moved out of it. Raises `FileServerError`."""
        groups = cls(os.path.abspath(top))
        try:
            groups._take()
        except OSError as error:
            msg = f"group {groups.top!r} cannot be divided: {error.strerror}: delegate one to this user (Delegate=yes)"
            raise FileServerError(msg) from error
        return groups

    def _take(self) -> None:
        if os.path.isdir(self.top) and not os.path.exists(os.path.join(self.top, "cgroup.procs")):
            raise OSError(errno.ENOTSUP, "it is no control group (cgroup v2)")
        own = os.path.join(self.top, _DAEMON)
        with suppress(FileExistsError):
            os.mkdir(own)
        for pid in (_read(self.top, "cgroup.procs") or "").split():
            with suppress(ProcessLookupError):
                _write(own, "cgroup.procs", pid)
        for name in (_read(self.top, "cgroup.controllers") or "").split():
            with suppress(OSError):
                _write(self.top, "cgroup.subtree_control", f"+{name}")
        self.controllers = frozenset((_read(self.top, "cgroup.subtree_control") or "").split())

    def of(self, key: VmKey, limits: Mapping[str, str]) -> Group:
        """Return the group of a VM, made if it is not there, with these limits. Raises `FileServerError`."""
        path = os.path.join(self.top, f"vm-{key[0]}-{key[1]}")
        try:
            with suppress(FileExistsError):
                os.mkdir(path)
            for name, value in limits.items():
                self._limit(path, name, value)
        except OSError as error:
            msg = f"group {path!r} cannot be made: {error.strerror}: see that the daemon may write in {self.top!r}"
            raise FileServerError(msg) from error
        return Group(path)

    def _limit(self, path: str, name: str, value: str) -> None:
        controller = name.partition(".")[0]
        if controller not in self.controllers:
            msg = f"{name} cannot be set: the controller {controller!r} was not delegated to the daemon (Delegate=)"
            raise FileServerError(msg)
        try:
            _write(path, name, value)
        except OSError as error:
            msg = f"{name}={value!r} cannot be set: {error.strerror}: give a value that this kernel takes"
            raise FileServerError(msg) from error


def _is_delegated(path: str) -> bool:
    for name in _DELEGATED:
        with suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _read(directory: str, name: str) -> str | None:
    try:
        with open(os.path.join(directory, name), encoding="ascii") as file:
            return file.read()
    except OSError:
        return None


def _number(directory: str, name: str) -> int | None:
    text = (_read(directory, name) or "").strip()
    return int(text) if text.isdigit() else None


def _write(directory: str, name: str, text: str) -> None:
    descriptor = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode("ascii"))
    finally:
        os.close(descriptor)
