"""Opening, truncating and writing: flags, lengths, holes, bits that a write clears, programs that run.

What lives here: what calls on one file's content do. What must not: names (`renames`), times (`times`).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

from tests.conformance.posix import calls
from tests.conformance.posix.suite import GROUP, OTHER, OWNER, ROOT, TYPES, make, outcome

if TYPE_CHECKING:
    from tests.conformance.posix.suite import Suite


def check_flags(suite: Suite) -> None:
    for kind in TYPES:
        suite.scratch()
        make(kind, "f", 0o777)
        os.symlink("f", "link")
        at = f"open/{kind}"
        exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        suite.check(f"{at}/exclusive", outcome(calls.open_, "f", exclusive), "EEXIST")
        suite.check(f"{at}/exclusive-link", outcome(calls.open_, "link", exclusive), "EEXIST")
        suite.check(f"{at}/no-follow-link", outcome(calls.open_, "link", os.O_RDONLY | os.O_NOFOLLOW), "ELOOP")
        want = {"directory": "ok", "symlink": "ENOENT"}.get(kind, "ENOTDIR")
        suite.check(f"{at}/directory", outcome(calls.open_, "f", os.O_RDONLY | os.O_DIRECTORY), want)
        want = {"directory": "EISDIR", "regular": "ok", "symlink": "ENOENT"}.get(kind, "ENXIO")
        suite.check(f"{at}/write", outcome(calls.open_, "f", os.O_WRONLY), want)
        want = {"directory": "EISDIR", "regular": "ok", "fifo": "ok", "symlink": "ENOENT"}.get(kind, "ENXIO")
        suite.check(f"{at}/both", outcome(calls.open_, "f", os.O_RDWR), want)
        want = {"directory": "ok", "regular": "ok", "fifo": "ok", "symlink": "ENOENT"}.get(kind, "ENXIO")
        suite.check(f"{at}/read", outcome(calls.open_, "f", os.O_RDONLY), want)
        want = {"regular": "ok", "fifo": "ok", "symlink": "ok", "directory": "EISDIR"}.get(kind, "ENXIO")
        suite.check(f"{at}/create", outcome(calls.open_, "f", os.O_RDWR | os.O_CREAT), want)
        suite.check(f"{at}/path", outcome(calls.open_, "f", os.O_PATH | os.O_NOFOLLOW), "ok")
        want = "ok" if kind == "symlink" else "EINVAL"
        suite.check(f"{at}/readlink", outcome(calls.readlink, "f"), want)
        want = {"directory": "EISDIR", "regular": "ok", "symlink": "ok"}.get(kind, "EINVAL")
        suite.check(f"{at}/truncate", outcome(calls.truncate, "f"), want)


def check_lengths(suite: Suite) -> None:
    for start in (0, 1, 4095, 4096, 100_000):
        for length in (0, 1, 4095, 4096, 4097, 65536, 567_890, 1 << 31, (1 << 32) + 1):
            for how in ("truncate", "ftruncate"):
                suite.scratch()
                with open("f", "wb") as file:
                    file.write(b"d" * start)
                at = f"{how}/{start}-to-{length}"
                if how == "truncate":
                    got = outcome(os.truncate, "f", length)
                else:
                    with open("f", "r+b") as file:
                        got = outcome(os.ftruncate, file.fileno(), length)
                suite.check(at, got, "ok")
                suite.check(f"{at}/size", os.stat("f").st_size, length)
                with open("f", "rb") as file:
                    kept = min(start, length)
                    end = min(length, start + 5000)
                    suite.check(f"{at}/content", file.read(end) == b"d" * kept + bytes(end - kept), "True")
    suite.scratch()
    make("regular", "f")
    with open("f", "rb") as reading, open("f", "r+b") as both:
        suite.check("ftruncate/reading", outcome(os.ftruncate, reading.fileno(), 0), "EINVAL")
        suite.check("ftruncate/negative", outcome(os.ftruncate, both.fileno(), -1), "EINVAL")
        suite.check("truncate/negative", outcome(os.truncate, "f", -1), "EINVAL")
        suite.check("truncate/enormous", outcome(os.truncate, "f", (1 << 63) - 1), "EFBIG")
        os.fchmod(both.fileno(), 0)
        suite.check("ftruncate/open-before-chmod", outcome(os.ftruncate, both.fileno(), 7), "ok")
        suite.check("ftruncate/open-before-chmod/size", os.fstat(both.fileno()).st_size, 7)
    suite.scratch()
    os.mkdir("d")
    with open("f", "w+b") as file:
        suite.check("posix_fallocate", outcome(os.posix_fallocate, file.fileno(), 10, 5000), "ok")
        suite.check("posix_fallocate/size", os.fstat(file.fileno()).st_size, 5010)
        suite.check("posix_fallocate/negative", outcome(os.posix_fallocate, file.fileno(), -1, 5), "EINVAL")
        suite.check("posix_fallocate/nothing", outcome(os.posix_fallocate, file.fileno(), 0, 0), "EINVAL")


def check_append(suite: Suite) -> None:
    suite.scratch()
    with open("f", "ab", buffering=0) as one, open("f", "ab", buffering=0) as two:
        for number in range(20):
            (one if number % 3 else two).write(b"%02d " % number)
        one.seek(0)
        one.write(b"end")
    with open("f", "rb") as file:
        want = b"".join(b"%02d " % number for number in range(20)) + b"end"
        suite.check("open/append/content", file.read() == want, "True")
    descriptor = os.open("f", os.O_RDWR | os.O_APPEND | os.O_TRUNC)
    suite.check("open/truncate/size", os.fstat(descriptor).st_size, 0)
    os.write(descriptor, b"new")
    os.lseek(descriptor, 0, os.SEEK_SET)
    suite.check("open/append/read", os.read(descriptor, 10).decode(), "new")
    os.close(descriptor)


def check_bits_that_writes_clear(suite: Suite) -> None:
    """What write(2), truncate(2) and open(2) with O_TRUNC take off, for whom it is not root."""
    changes = {
        "write": calls.write,
        "truncate": calls.truncate_to_one,
        "open-truncating": calls.open_truncating,
    }
    for name, change in changes.items():
        for user in (ROOT, OWNER, GROUP, OTHER):
            for mode in (0o4777, 0o2777, 0o6777, 0o2767, 0o6766, 0o1777, 0o777):
                suite.scratch()
                with open("f", "wb") as file:
                    file.write(b"some")
                os.chown("f", OWNER.uid, OWNER.gid)
                os.chmod("f", mode)
                at = f"clearing/{name}/{user.name}/{mode:o}"
                suite.check(at, suite.run(user, change, "f"), "ok")
                want = mode
                if user is not ROOT:
                    want &= ~stat.S_ISUID
                    if mode & stat.S_IXGRP or user is OTHER:
                        want &= ~stat.S_ISGID
                suite.check(f"{at}/mode", f"{stat.S_IMODE(os.stat('f').st_mode):o}", f"{want:o}")


def check_running_programs(suite: Suite) -> None:
    suite.scratch()
    shutil.copy("/bin/sleep", "program")
    os.chmod("program", 0o755)
    with subprocess.Popen(["./program", "1000"]) as running:
        try:
            while os.readlink(f"/proc/{running.pid}/exe") != os.path.realpath("program"):
                pass  # between fork and exec
            suite.check("ETXTBSY/write", outcome(calls.open_, "program", os.O_WRONLY), "ETXTBSY")
            suite.check("ETXTBSY/both", outcome(calls.open_, "program", os.O_RDWR), "ETXTBSY")
            suite.check("ETXTBSY/truncate", outcome(os.truncate, "program", 5), "ETXTBSY")
            suite.check("ETXTBSY/open-truncating", outcome(calls.open_truncating, "program"), "ETXTBSY")
            suite.check("ETXTBSY/read", outcome(calls.read, "program"), "ok")
        finally:
            running.kill()
    with open("program", "r+b"):
        got = outcome(calls.run, "./program", "0")
        suite.check("ETXTBSY/run-while-written", got, "ETXTBSY")
    suite.check("ETXTBSY/run", outcome(calls.run, "./program", "0"), "")


def check_addresses(suite: Suite) -> None:
    suite.scratch()
    libc = ctypes.CDLL(None, use_errno=True)
    bad = ctypes.c_void_p(1)
    for name, arguments in {
        "open": (bad, 0),
        "mkdir": (bad, 0o755),
        "rmdir": (bad,),
        "unlink": (bad,),
        "chmod": (bad, 0o644),
        "chown": (bad, 0, 0),
        "truncate": (bad, ctypes.c_long(0)),
        "symlink": (b"t", bad),
        "link": (bad, b"x"),
        "rename": (bad, b"x"),
        "mkfifo": (bad, 0o644),
        "chdir": (bad,),
    }.items():
        ctypes.set_errno(0)
        result = getattr(libc, name)(*arguments)
        suite.check(f"EFAULT/{name}", (result, ctypes.get_errno()), (-1, 14))


def check_mapped(suite: Suite) -> None:
    suite.scratch()
    with open("f", "w+b") as file:
        file.write(b"m" * 10_000)
        file.flush()
        with mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as private:
            suite.check("mmap/private/read", private[9_990:] == b"m" * 10, "True")
            private[:3] = b"own"
            suite.check("mmap/private/write", os.pread(file.fileno(), 3, 0).decode(), "mmm")
    # From a descriptor that cannot write: from another Linux's client refuses it, as it could be made writable.
    with open("f", "rb") as reading, mmap.mmap(reading.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
        suite.check("mmap/shared-reading/read", shared[:3].decode(), "mmm")


def check_all(suite: Suite) -> None:
    check_flags(suite)
    check_lengths(suite)
    check_append(suite)
    check_bits_that_writes_clear(suite)
    check_running_programs(suite)
    check_addresses(suite)
    check_mapped(suite)
