"""Runs the agent with a kernel that only notes down its mounts, so that it needs neither root nor 9P.

    python fake_kernel.py DIRECTORY ARGUMENTS...

DIRECTORY/mounts.json is what is mounted, with the options that /proc/mounts would show. A mount asks its server with
the share's name and gets an errno. What is named in DIRECTORY/busy cannot be unmounted, in DIRECTORY/dead reads with
EIO, in DIRECTORY/hang does not end a read, in DIRECTORY/slow ends it when DIRECTORY/fifo does; until then it is busy,
which DIRECTORY/met-reader notes. A read that does not end is noted in DIRECTORY/hanging, and DIRECTORY/later says how
many seconds the clock is ahead. Where there is a FIFO DIRECTORY/says, what holds the directories of a mount says the
lines that come from it. Where there is a DIRECTORY/no-remount that says anything, no mount is made read-only
without its file system. Options that are named in DIRECTORY/passed-over are passed over without a word.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from uvmshare.guest import agent, mount, mount_paths, pinning, pins, work
from uvmshare.guest import table as mounts
from uvmshare.linux import mountinfo
from uvmshare.linux.mountinfo import Mounted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from uvmshare.guest.loop import Send

HERE = sys.argv[1]
FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4}
"""Of mount(2): MS_RDONLY, MS_NOSUID, MS_NODEV."""

_monotonic = time.monotonic


def clock() -> float:
    return _monotonic() + sum(map(float, named("later")))


def told() -> list[Any]:
    try:
        with open(f"{HERE}/mounts.json", encoding="utf-8") as file:
            found: list[Any] = json.load(file)
            return found
    except FileNotFoundError:
        return []


@contextmanager
def table() -> Iterator[list[Any]]:
    """Change what is mounted, at once: who reads it sees the old or the new, and so it stays when this is killed."""
    with open(f"{HERE}/lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = told()
        yield found
        with open(f"{HERE}/mounts.json.new", "w", encoding="utf-8") as file:
            json.dump(found, file)
        os.replace(f"{HERE}/mounts.json.new", f"{HERE}/mounts.json")


def named(what: str) -> list[str]:
    try:
        with open(f"{HERE}/{what}", encoding="utf-8") as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def mounted() -> list[Mounted]:
    return [Mounted(number, "", "", *rest) for number, *rest in told()]


def mount_number(descriptor: int) -> int:
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    numbers = [found.number for found in mounted() if (path + "/").startswith(found.path + "/")]
    return max(numbers, default=0)


def add(path: str, source: str, options: str) -> None:
    with table() as found:
        found.append([1 + max([entry[0] for entry in found], default=0), path, "9p", source, options])


def kernel_mount(source: str, directory: str, flags: int, options: str) -> int:
    named_options = dict(option.split("=") for option in options.split(",") if "=" in option)
    with socket.socket(fileno=os.dup(int(named_options["rfdno"]))) as connected:
        connected.sendall(f"{named_options['aname']}\n".encode())
        answer = connected.recv(16)
    code = int(answer) if answer else errno.EIO
    if not code:
        shown = [word for word, flag in FLAGS.items() if flags & flag]
        taken = [word for word in options.split(",") if word not in named("passed-over")]
        add(os.path.realpath(directory), source, ",".join([*shown, *taken]))
    return code


def bind(source: str, target: str) -> int:
    (found,) = [found for found in mounted() if found.path == source]
    add(os.path.realpath(target), found.source, found.options)
    return 0


def make_read_only(path: str, *, suid: bool, dev: bool) -> int:
    with table() as found:
        (entry,) = [entry for entry in found if entry[1] == os.path.realpath(path)]
        assert ("nosuid" in entry[4], "nodev" in entry[4]) == (not suid, not dev), "a remount says all flags"
        entry[4] += ",ro-here"
    return errno.EPERM if named("no-remount") else 0


def umount(name: str, *, lazy: bool) -> int:
    path = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
    if path in named("busy") and not lazy:
        return errno.EBUSY
    if path in named("reading") and not lazy:
        open(f"{HERE}/met-reader", "w").close()
        return errno.EBUSY
    with table() as found:
        for entry in reversed(found):
            if entry[1] == path:
                found.remove(entry)
                return 0
    return errno.EINVAL


def read(path: str) -> None:
    if path in named("dead"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    if path in named("denied"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    if path in named("hang"):
        open(f"{HERE}/hanging", "w").close()
        signal.pause()
    if path in named("slow"):
        with open(f"{HERE}/reading", "w", encoding="utf-8") as file:
            file.write(path)
        with open(f"{HERE}/fifo", encoding="utf-8") as fifo:
            fifo.read()
        os.unlink(f"{HERE}/reading")


def hold(path: str, prefixes: list[str], most: int, *, events: bool = False) -> Callable[[Send], None]:
    if not os.path.exists(f"{HERE}/says"):
        return pinning.pinning(path, prefixes, most, events=events)

    def task(send: Send) -> None:
        with open(f"{HERE}/says", encoding="utf-8") as said:
            for line in said:
                send(json.loads(line))

    return task


if __name__ == "__main__":
    pins.pinning = hold  # type: ignore[attr-defined]  # where it is called
    mount._mount = kernel_mount
    mountinfo.mounted = mounted  # type: ignore[assignment]  # it has one table
    mount_paths.mount_number = mount_number
    mount_paths.umount = umount
    work.bind = bind
    work.make_read_only = make_read_only
    work.read = read
    time.monotonic = clock
    # It is told of the mounts of the host that runs the test, of which those of this kernel are none.
    mounts.MountTable._compare = lambda _: None  # type: ignore[method-assign, assignment]  # as above
    sys.exit(agent.main(sys.argv[2:]))
