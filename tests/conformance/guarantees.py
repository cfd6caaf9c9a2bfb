"""What a way of mounting gives, tried in a guest: ``python3 -m tests.conformance.guarantees WHAT DIRECTORY``.

What lives here: the part that runs in the guest; it prints a word, or what was not so. What must not: how it is
mounted, and what is expected (`test_guarantees.py`). The standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SAID, HEARD, FOUND = "/run/guarantees.said", "/run/guarantees.heard", "/run/guarantees.found"
"""Pipes with which the host takes its turn, and hears what came of it."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_NO_NEW_PRIVS = 38
_READ_FILE = 1 << 2
_PATH_BENEATH = 1
_BLOCK = 100_000
FILLING = b"".join(b"%063d\n" % number for number in range(1 << 16))
"""What is written to a disk that takes far fewer bytes, and whose end is inside a block."""


def shared_writable_mmap() -> str:
    """mmap(2), MAP_SHARED and PROT_WRITE: is it there, and does read(2) see what was written through it?"""
    with open("mapped", "w+b", buffering=0) as file:
        file.truncate(mmap.PAGESIZE)
        try:
            mapped = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        with mapped:
            mapped[:5] = b"first"
            before = os.pread(file.fileno(), 5, 0)
            mapped.flush()
            after = os.pread(file.fileno(), 5, 0)
            os.pwrite(file.fileno(), b"later", 0)
            is_told = mapped[:5] == b"later"
    if (after, is_told) != (b"first", True):
        return f"read {after!r} after msync, mapping tells of a write: {is_told}"
    return "yes" if before == b"first" else "yes; read(2) sees it after msync(2)"


def access_control_lists() -> str:
    """setfacl(1), and whether the kernel holds another user to it."""
    with open("listed", "w", encoding="ascii") as file:
        file.write("text")
    os.chmod("listed", 0o600)
    if os.system("setfacl -m u:1234:r listed 2>/dev/null") != 0:
        return "no"
    for uid, is_allowed in ((1234, True), (1235, False)):
        pid = os.fork()
        if not pid:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                os.close(os.open("listed", os.O_RDONLY))
            except PermissionError:
                os._exit(0 if not is_allowed else 1)
            os._exit(0 if is_allowed else 1)
        if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
            return f"uid {uid} is held to something else"
    return "yes"


def landlock() -> str:
    """A program that is allowed to read what lies in a directory, and nothing else: can it?"""
    os.makedirs("allowed/below", exist_ok=True)
    for name in ("allowed/file", "allowed/below/file"):
        with open(name, "w", encoding="ascii") as file:
            file.write("text")
    can = {
        "the mount's root": _read_under_landlock(".", keep=False),
        "a directory that is kept open": _read_under_landlock("allowed", keep=True),
        "a directory": _read_under_landlock("allowed", keep=False),
    }
    allowed = [where for where, is_so in can.items() if is_so]
    return "yes" if len(allowed) == len(can) else f"only for {', '.join(allowed)}" if allowed else "no"


def _read_under_landlock(directory: str, *, keep: bool) -> bool:
    """Say whether a program that may read below the directory alone can. `keep`: somebody has it open meanwhile."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    libc = ctypes.CDLL(None, use_errno=True)
    handled = ctypes.create_string_buffer(struct.pack("Q", _READ_FILE))
    rules = libc.syscall(_CREATE_RULESET, handled, ctypes.c_size_t(8), 0)
    opened = os.open(directory, os.O_PATH | os.O_DIRECTORY)
    rule = ctypes.create_string_buffer(struct.pack("=Qi", _READ_FILE, opened))
    failed = rules < 0 or libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0)
    if not keep:
        os.close(opened)
    if failed or libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, rules, 0):
        os._exit(2)
    try:
        for name in ("allowed/file", "allowed/below/file"):
            os.close(os.open(name, os.O_RDONLY))
    except PermissionError:
        os._exit(1)
    os._exit(0)


def host_side_changes() -> str:
    """What the host does while a program has files open, and has looked at others: is it seen at once?

    The host has made what is there, and makes its changes when it is told to (`test_guarantees.py`).
    """
    kept, appended = os.open("kept", os.O_RDONLY), os.open("appended", os.O_RDONLY)
    assert os.read(kept, 64) == os.read(appended, 64) == b"before"
    with open("changed", "rb") as file, open("removed", "rb") as other:
        assert (file.read(), other.read()) == (b"before", b"before")
    assert "new" not in os.listdir()
    assert not os.path.exists("new")
    assert os.stat("grown").st_size == len("before")
    assert os.stat("mode").st_mode & 0o777 == 0o600

    with open(SAID, "w", encoding="ascii") as said:
        said.write("ready")
    with open(HEARD, encoding="ascii") as heard:
        heard.read()

    seen: dict[str, Callable[[], bool]] = {
        "new names": lambda: os.path.exists("new") and "new" in os.listdir(),
        "removed names": lambda: not os.path.exists("removed"),
        "attributes": lambda: (os.stat("grown").st_size, os.stat("mode").st_mode & 0o777) == (12, 0o640),
        "contents": lambda: _contents("changed") == b"AFTER!",
        "contents of open files": lambda: os.pread(kept, 6, 0) == b"AFTER!",
        "appended bytes of open files": lambda: os.pread(appended, 64, 0) == b"before, after",
    }
    missing = [what for what, is_so in seen.items() if not is_so()]
    return "yes" if not missing else f"not {', '.join(missing)}"


def _contents(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def full_disk() -> str:
    """Where a program is told that the host's disk is full."""
    told: list[str] = []
    descriptor = os.open("filling", os.O_WRONLY | os.O_CREAT)
    written = 0
    for _ in range(len(FILLING) // _BLOCK):
        try:
            count = os.write(descriptor, FILLING[written : written + _BLOCK])
        except OSError as error:
            return ", then ".join([*told, f"write: {errno.errorcode[error.errno or 0]}"])
        if not count and "write returns 0" not in told:
            told.append("write returns 0")
        written += count
    for name, call in (("fsync", os.fsync), ("close", os.close)):
        try:
            call(descriptor)
        except OSError as error:
            return ", then ".join([*told, f"{name}: {errno.errorcode[error.errno or 0]}"])
    return ", then ".join([*told, "never"])


WHAT: dict[str, Callable[[], str]] = {
    "mmap": shared_writable_mmap,
    "acls": access_control_lists,
    "landlock": landlock,
    "changes": host_side_changes,
    "full": full_disk,
}

if __name__ == "__main__":
    os.chdir(sys.argv[2])
    sys.stdout.write(WHAT[sys.argv[1]]())
