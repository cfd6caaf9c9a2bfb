"""What a file system may have beyond names and bits: locks, extended attributes, ACLs, holes, odd opens, statfs.

What lives here: one function a feature, which another process can be told to run. What must not: what two mounts and
the host do together (the tests do that).

What Linux's 9P client cannot do whatever the server is not left out: the want is what it answers, with the reason.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
from typing import TYPE_CHECKING

from tests.conformance.posix import calls
from tests.conformance.posix.suite import GROUP, OTHER, OWNER, TYPES, make, outcome

if TYPE_CHECKING:
    from tests.conformance.posix.suite import Suite

_FLOCK = struct.Struct("hhqqi4x")
_O_TMPFILE = 0o20200000
_libc = ctypes.CDLL(None, use_errno=True)


def take(descriptor: int, kind: int, start: int, length: int) -> None:
    """Take or let go of a POSIX lock, without waiting."""
    fcntl.fcntl(descriptor, fcntl.F_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))


def lock(path: str, kind: int, start: int, length: int) -> None:
    """Take a POSIX lock and let it go when this returns; what is in the way is an error."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        take(descriptor, kind, start, length)
    finally:
        os.close(descriptor)


def whole(path: str, kind: int) -> None:
    """flock(2), without waiting."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def is_locked(path: str, kind: int, start: int, length: int) -> str:
    descriptor = os.open(path, os.O_RDWR)
    try:
        asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        found = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
        return "unlocked" if found[0] == fcntl.F_UNLCK else "locked"
    finally:
        os.close(descriptor)


def check_locks(suite: Suite) -> None:
    """fcntl(2): owners are processes; ranges that do not meet do not conflict; any close lets go of all."""
    suite.scratch()
    make("regular", "f", 0o666)
    one, two = os.open("f", os.O_RDWR), os.open("f", os.O_RDWR)
    suite.check("lock/first", outcome(take, one, fcntl.F_WRLCK, 0, 10), "ok")
    suite.check("lock/another-descriptor-of-the-process", outcome(take, two, fcntl.F_WRLCK, 0, 10), "ok")
    suite.check("lock/another-process", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 0, 10), "EAGAIN")
    suite.check("lock/another-process-reading", suite.run(OTHER, lock, "f", fcntl.F_RDLCK, 9, 1), "EAGAIN")
    suite.check("lock/disjoint", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 10, 10), "ok")
    suite.check("lock/asked-by-itself", outcome(is_locked_here, one), "unlocked")
    suite.check("lock/shared", outcome(take, one, fcntl.F_RDLCK, 0, 10), "ok")
    suite.check("lock/shared-by-another", suite.run(OTHER, lock, "f", fcntl.F_RDLCK, 0, 10), "ok")
    suite.check("lock/shared-not-exclusive", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 5, 1), "EAGAIN")
    suite.check("lock/part-unlocked", outcome(take, one, fcntl.F_UNLCK, 3, 4), "ok")
    suite.check("lock/hole-is-free", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 3, 4), "ok")
    suite.check("lock/left-of-hole", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 0, 3), "EAGAIN")
    suite.check("lock/right-of-hole", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 7, 3), "EAGAIN")
    suite.check("lock/to-the-end", outcome(take, one, fcntl.F_WRLCK, 100, 0), "ok")
    suite.check("lock/far-away", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 1 << 40, 1), "EAGAIN")
    os.close(two)
    suite.check("lock/after-close-of-another-descriptor", suite.run(OTHER, lock, "f", fcntl.F_WRLCK, 0, 0), "ok")
    os.close(one)
    descriptor = os.open("f", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    suite.check("flock/another-process", suite.run(OTHER, whole, "f", fcntl.LOCK_EX), "EAGAIN")
    suite.check("flock/another-process-shared", suite.run(OTHER, whole, "f", fcntl.LOCK_SH), "EAGAIN")
    suite.check("flock/another-descriptor", outcome(whole, "f", fcntl.LOCK_EX), "EAGAIN")
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    suite.check("flock/shared", suite.run(OTHER, whole, "f", fcntl.LOCK_SH), "ok")
    suite.check("flock/shared-not-exclusive", suite.run(OTHER, whole, "f", fcntl.LOCK_EX), "EAGAIN")
    os.close(descriptor)
    suite.check("flock/after-close", suite.run(OTHER, whole, "f", fcntl.LOCK_EX), "ok")


def is_locked_here(descriptor: int) -> str:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)
    found = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    return "unlocked" if found[0] == fcntl.F_UNLCK else "locked"


def check_xattrs(suite: Suite) -> None:
    for kind in ("regular", "directory"):
        suite.scratch()
        make(kind, "f", 0o755)
        at = f"xattr/{kind}"
        suite.check(f"{at}/none", outcome(os.listxattr, "f"), "[]")
        suite.check(f"{at}/absent", outcome(os.getxattr, "f", "user.a"), "ENODATA")
        suite.check(f"{at}/replace-absent", outcome(os.setxattr, "f", "user.a", b"1", os.XATTR_REPLACE), "ENODATA")
        suite.check(f"{at}/create", outcome(os.setxattr, "f", "user.a", b"1", os.XATTR_CREATE), "ok")
        suite.check(f"{at}/create-again", outcome(os.setxattr, "f", "user.a", b"2", os.XATTR_CREATE), "EEXIST")
        suite.check(f"{at}/replace", outcome(os.setxattr, "f", "user.a", b"22", os.XATTR_REPLACE), "ok")
        suite.check(f"{at}/read", outcome(os.getxattr, "f", "user.a"), "b'22'")
        name = "user." + "n" * 250
        suite.check(f"{at}/255-bytes", outcome(os.setxattr, "f", name, b"x"), "ok")
        suite.check(f"{at}/256-bytes", outcome(os.setxattr, "f", name + "n", b"x"), "ERANGE")
        suite.check(f"{at}/large", outcome(os.setxattr, "f", "user.large", b"v" * 3000), "ok")
        suite.check(f"{at}/large/read", os.getxattr("f", "user.large") == b"v" * 3000, "True")
        suite.check(f"{at}/too-large", outcome(os.setxattr, "f", "user.huge", b"v" * 65537), "E2BIG")
        suite.check(
            f"{at}/list",
            sorted(os.listxattr("f")) == sorted(["user.a", "user.large", name]),
            "True",
        )
        suite.check(f"{at}/remove", outcome(os.removexattr, "f", "user.a"), "ok")
        suite.check(f"{at}/removed", outcome(os.getxattr, "f", "user.a"), "ENODATA")
        suite.check(f"{at}/remove-absent", outcome(os.removexattr, "f", "user.a"), "ENODATA")
        suite.check(f"{at}/unknown-kind", outcome(os.setxattr, "f", "unknown.a", b"1"), "ENOTSUP")
        suite.check(f"{at}/by-another", suite.run(OTHER, os.setxattr, "f", "user.b", b"1"), "EACCES")


def check_special_files(suite: Suite) -> None:
    """They work between processes of the guest, whose kernel they belong to."""
    suite.scratch()
    for kind in TYPES:
        make(kind, kind, 0o666)
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("fifo", os.O_WRONLY)
    os.write(writer, b"through")
    suite.check("special/fifo", os.read(reader, 20).decode(), "through")
    os.close(reader)
    os.close(writer)
    os.mknod("null", 0o20666, os.makedev(1, 3))
    os.mknod("zero", 0o20666, os.makedev(1, 5))
    suite.check("special/null", outcome(_write_null), "ok")
    suite.check("special/zero", outcome(_read_zero), "0000")
    suite.check("special/socket", outcome(_speak), "said")


def _write_null() -> None:
    with open("null", "wb") as file:
        file.write(b"gone")


def _read_zero() -> str:
    with open("zero", "rb", buffering=0) as file:
        return file.read(2).hex()


def _speak() -> str:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as speaking:
        listening.bind("spoken")
        listening.listen()
        speaking.connect("spoken")
        heard, _ = listening.accept()
        with heard:
            speaking.sendall(b"said")
            return heard.recv(10).decode()


def check_direct(suite: Suite) -> None:
    """O_DIRECT with sizes that are no multiple of a block."""
    suite.scratch()
    data = os.urandom(70_001)
    descriptor = os.open("f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    suite.check("direct/write", outcome(os.write, descriptor, data), "70001")
    suite.check("direct/read", os.pread(descriptor, 70_001, 0) == data, "True")
    suite.check("direct/odd", os.pread(descriptor, 777, 333) == data[333:1110], "True")
    os.close(descriptor)
    with open("f", "rb") as file:
        suite.check("direct/plain", file.read() == data, "True")


def check_sparse(suite: Suite) -> None:
    suite.scratch()
    with open("f", "w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", 1 << 40)
        suite.check("sparse/size", os.fstat(file.fileno()).st_size, (1 << 40) + 3)
        suite.check("sparse/blocks", os.fstat(file.fileno()).st_blocks < 1000, "True")
        suite.check("sparse/hole", os.pread(file.fileno(), 4096, 1 << 39) == bytes(4096), "True")
        os.ftruncate(file.fileno(), 0)
        suite.check("sparse/freed", os.fstat(file.fileno()).st_blocks, 0)


def check_appended(suite: Suite) -> None:
    """What one descriptor appends is what another reads next, even when the last page had been read before."""
    for how, flags in (("appended", os.O_APPEND), ("written", 0)):
        suite.scratch()
        held = os.open("f", os.O_RDWR | os.O_CREAT)
        os.write(held, b"a" * 5000)
        os.pread(held, 5000, 0)
        writing = os.open("f", os.O_WRONLY | flags)
        if not flags:
            os.lseek(writing, 5000, os.SEEK_SET)
        os.write(writing, b"b" * 100)
        os.close(writing)
        with open("f", "rb") as file:
            suite.check(f"append/{how}-by-another-descriptor", file.read()[5000:] == b"b" * 100, "True")
        suite.check(f"append/{how}-by-another-descriptor/size", os.fstat(held).st_size, 5100)
        os.close(held)


def check_impossible(suite: Suite) -> None:
    """What Linux's client refuses by itself: fallocate(2), O_TMPFILE, renameat2(2) with flags."""
    suite.scratch()
    make("regular", "a")
    make("regular", "b")
    with open("f", "w+b") as file:
        for name, mode in (("plain", 0), ("keep-size", 1), ("punch-hole", 3)):
            _libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)
            result = _libc.fallocate(file.fileno(), mode, 0, 4096)
            got = "ok" if result == 0 else errno.errorcode[ctypes.get_errno()]
            suite.check(f"client/fallocate/{name}", got, "ENOTSUP")
    suite.check("client/O_TMPFILE", outcome(calls.open_, ".", _O_TMPFILE | os.O_RDWR), "ENOTSUP")
    for name, new, flag in (("noreplace", b"new", 1), ("exchange", b"b", 2)):
        result = _libc.renameat2(-100, b"a", -100, new, flag)
        got = "ok" if result == 0 else errno.errorcode[ctypes.get_errno()]
        suite.check(f"client/renameat2/{name}", got, "EINVAL")


def check_statfs(suite: Suite) -> None:
    suite.scratch()
    found = os.statvfs(".")
    suite.check("statfs/name-max", found.f_namemax, 255)
    suite.check("statfs/blocks", 0 < found.f_bavail <= found.f_bfree <= found.f_blocks, "True")
    suite.check("statfs/files", 0 < found.f_ffree <= found.f_files, "True")
    suite.check("statfs/block-size", found.f_frsize, 4096)


def check_listing(suite: Suite) -> None:
    """Entries come and go while a directory is listed: what stays is there once."""
    suite.scratch()
    names = [f"{number:04}" + "n" * 200 for number in range(600)]
    for name in names:
        make("regular", name)
    seen = []
    with os.scandir(".") as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) % 3 == 0 and entry.name in names:
                os.unlink(entry.name)
            if len(seen) % 50 == 0:
                make("regular", f"new{len(seen)}")
    old = [name for name in seen if name in names]
    suite.check("listing/each-once", len(old) == len(set(old)), "True")
    suite.check("listing/all-of-them", sorted(old) == names, "True")
    long = ["\u00fc" * 127 + "x", "n" * 255, "\udcff\udcfe"]
    suite.scratch()
    for name in long:
        make("regular", name)
    suite.check("listing/long-names", sorted(os.listdir(".")) == sorted(long), "True")


def check_shared_maps(suite: Suite, *, writable: bool) -> None:
    suite.scratch()
    with open("f", "w+b", buffering=0) as file:
        file.write(b"a" * 20_000)

        def change() -> str:
            with mmap.mmap(file.fileno(), 0) as mapped:
                mapped[5000:5003] = b"new"
                mapped.flush()
            return os.pread(file.fileno(), 5, 4999).decode()

        suite.check("mmap/shared-writing", outcome(change), "anewa" if writable else "EINVAL")


def check_acls(suite: Suite) -> None:
    """acl(5), as setfacl(1) sets it and the guest's kernel enforces it."""
    suite.scratch()
    make("regular", "f", 0o600)
    make("directory", "d", 0o755)
    suite.check("acl/before", suite.run(OTHER, calls.read, "f"), "EACCES")
    suite.check("acl/set", calls.run("setfacl", "-m", f"u:{OTHER.uid}:r", "f"), "")
    suite.check("acl/allowed", suite.run(OTHER, calls.read, "f"), "ok")
    suite.check("acl/not-more", suite.run(OTHER, calls.write, "f"), "EACCES")
    suite.check("acl/others-not", suite.run(GROUP, calls.read, "f"), "EACCES")
    suite.check("acl/shown", f"user:{OTHER.uid}:r--" in calls.run("getfacl", "-n", "f"), "True")
    suite.check("acl/mask", f"{os.stat('f').st_mode & 0o777:o}", "640")
    suite.check("acl/default", calls.run("setfacl", "-d", "-m", f"u:{OWNER.uid}:rwx", "d"), "")
    make_in = "d/new"
    os.close(os.open(make_in, os.O_CREAT | os.O_WRONLY, 0o666))
    suite.check("acl/inherited", f"user:{OWNER.uid}:rwx" in calls.run("getfacl", "-n", make_in), "True")
    os.mkdir("d/below", 0o777)
    suite.check(
        "acl/inherited-default", f"default:user:{OWNER.uid}:rwx" in calls.run("getfacl", "-n", "d/below"), "True"
    )
    suite.check("acl/removed", calls.run("setfacl", "-b", "f"), "")
    suite.check("acl/after", suite.run(OTHER, calls.read, "f"), "EACCES")


def check_all(suite: Suite) -> None:
    check_locks(suite)
    check_xattrs(suite)
    check_special_files(suite)
    check_direct(suite)
    check_sparse(suite)
    check_appended(suite)
    check_impossible(suite)
    check_statfs(suite)
    check_listing(suite)
