"""What 9P servers are known to get wrong, one function a row: each check is what a good local disk answers.

What lives here: the rows that one guest can see by itself. What must not: locks that the host and other mounts see,
read-only shares, escapes, devices (their tests are beside this package and in tests/fileserver).
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import TYPE_CHECKING

from tests.conformance.posix import calls, features
from tests.conformance.posix.suite import OTHER, TYPES, make, outcome

if TYPE_CHECKING:
    from tests.conformance.posix.suite import Suite


def check_unlinked_open_files(suite: Suite) -> None:
    suite.scratch()
    with open("f", "w+b", buffering=0) as file:
        file.write(b"content")
        os.unlink("f")
        at = "peers/unlinked"
        suite.check(f"{at}/fstat", outcome(lambda: os.fstat(file.fileno()).st_nlink), "0")
        suite.check(f"{at}/fchmod", outcome(os.fchmod, file.fileno(), 0o640), "ok")
        suite.check(f"{at}/mode", outcome(lambda: stat.S_IMODE(os.fstat(file.fileno()).st_mode)), str(0o640))
        suite.check(f"{at}/read", outcome(lambda: os.pread(file.fileno(), 9, 0).decode()), "content")
        suite.check(f"{at}/write", outcome(os.pwrite, file.fileno(), b"more", 7), "4")
        suite.check(f"{at}/ftruncate", outcome(os.ftruncate, file.fileno(), 3), "ok")
        suite.check(f"{at}/read-again", outcome(lambda: os.pread(file.fileno(), 9, 0).decode()), "con")
        suite.check(f"{at}/fsync", outcome(os.fsync, file.fileno()), "ok")


def check_renamed_open_files(suite: Suite) -> None:
    suite.scratch()
    os.makedirs("d/below")
    with open("d/below/f", "w+b", buffering=0) as file:
        at = os.open("d/below", os.O_RDONLY)
        os.rename("d/below/f", "d/below/g")
        suite.check("peers/renamed/fstat", outcome(lambda: os.fstat(file.fileno()).st_nlink), "1")
        os.rename("d", "e")
        suite.check("peers/renamed/fstat-below", outcome(lambda: os.fstat(file.fileno()).st_nlink), "1")
        suite.check("peers/renamed/openat-below", outcome(_reads_at, at, "g"), "ok")
        suite.check("peers/renamed/create-below", outcome(_makes_at, at, "h"), "ok")
        suite.check("peers/renamed/there", sorted(os.listdir("e/below")), ["g", "h"])
        os.close(at)


def _reads_at(at: int, name: str) -> None:
    os.close(os.open(name, os.O_RDONLY, dir_fd=at))


def _makes_at(at: int, name: str) -> None:
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=at))


def check_getlk(suite: Suite) -> None:
    suite.scratch()
    make("regular", "f", 0o666)
    descriptor = os.open("f", os.O_RDWR)
    suite.check("peers/F_GETLK/unlocked", outcome(features.is_locked_here, descriptor), "unlocked")
    suite.check("peers/F_GETLK/another", suite.run(OTHER, features.is_locked, "f", fcntl.F_WRLCK, 0, 10), "unlocked")
    os.close(descriptor)


def check_lock_owners(suite: Suite) -> None:
    suite.scratch()
    make("regular", "f", 0o666)
    one, two = os.open("f", os.O_RDWR), os.open("f", os.O_RDWR)
    suite.check("peers/locks/first", outcome(features.take, one, fcntl.F_WRLCK, 0, 10), "ok")
    suite.check("peers/locks/second-descriptor", outcome(features.take, two, fcntl.F_WRLCK, 0, 10), "ok")
    suite.check("peers/locks/disjoint", suite.run(OTHER, features.lock, "f", fcntl.F_WRLCK, 10, 10), "ok")
    suite.check("peers/locks/overlapping", suite.run(OTHER, features.lock, "f", fcntl.F_WRLCK, 9, 10), "EAGAIN")
    os.close(one)
    os.close(two)


def check_direct_sizes(suite: Suite) -> None:
    """Disks refuse them for their blocks' sake; a share has none, and page caches of programs use such sizes."""
    suite.scratch()
    descriptor = os.open("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    data = bytes(range(256)) * 40
    for size in (1, 511, 513, 4095, 4097, 10_001):
        suite.check(f"peers/O_DIRECT/write-{size}", outcome(os.pwrite, descriptor, data[:size], 0), str(size))
        suite.check(f"peers/O_DIRECT/read-{size}", os.pread(descriptor, size, 0) == data[:size], "True")
    suite.check("peers/O_DIRECT/odd-offset", os.pread(descriptor, 77, 33) == data[33:110], "True")
    os.close(descriptor)


def check_special_files(suite: Suite) -> None:
    suite.scratch()
    for kind in TYPES:
        suite.check(f"peers/special/{kind}/make", outcome(make, kind, kind, 0o666), "ok")
        suite.check(f"peers/special/{kind}/stat", outcome(calls.lstat, kind), "ok")
    suite.check("peers/special/fifo/passes", outcome(_through_fifo), "through")
    os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    suite.check("peers/special/device/write", outcome(calls.write, "null"), "ok")
    suite.check("peers/special/socket/connect", outcome(_connects), "ok")


def _through_fifo() -> str:
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("fifo", os.O_WRONLY)
    os.write(writer, b"through")
    found = os.read(reader, 9).decode()
    os.close(reader)
    os.close(writer)
    return found


def _connects() -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as speaking:
        listening.bind("spoken")
        listening.listen()
        speaking.connect("spoken")


def check_long_paths(suite: Suite) -> None:
    """Names as long as they may be below one another, past what one path could say."""
    suite.scratch()
    for _ in range(20):
        os.mkdir("d" * 255)
        os.chdir("d" * 255)
    suite.check("peers/long-paths/create", outcome(calls.create, "f" * 255), "ok")
    suite.check("peers/long-paths/rename", outcome(os.rename, "f" * 255, "g" * 255), "ok")
    suite.check("peers/long-paths/stat", outcome(calls.stat_, "g" * 255), "ok")
    os.chdir(suite.root)


def check_all(suite: Suite) -> None:
    check_unlinked_open_files(suite)
    check_renamed_open_files(suite)
    check_getlk(suite)
    check_lock_owners(suite)
    check_direct_sizes(suite)
    check_special_files(suite)
    check_long_paths(suite)
