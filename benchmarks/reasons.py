"""Why a figure is not met, and what was tried: written by hand, for what the last results miss.

What lives here: one text for each workload and peer. What must not: the numbers of the results, which are in the
tables beside it. `tests/benchmarks` holds that no figure is missed without one.
"""

# ruff: noqa: E501  prose for the cells of a table
from __future__ import annotations

from typing import Final

__all__ = ["REASONS"]

_SPREAD: Final = (
    "Where rounds disagree, the spread is the machine's, two virtual CPUs with nothing else of ours on them"
)

_HOT: Final = (
    "With the hot path the time of a mount process is (`perf`): of walks and of open-read at depth 32, 54 to 56 % the kernel, 31 to "
    "32 % the interpreter, 6 % the compiled module; of getattr 61, 21 and 12 %. The interpreter's part is the objects of fids and "
    "files, which the module makes by the Python side's own functions, so that there is one set of rules. The system calls are nearly "
    "the C server's: 12 against 10 for a walk of three names with its getattr and clunk (the two are the look where it was), 8 "
    "against 7 for open, read and clunk. Seccomp and Landlock, which the C server has not, are 2 to 4 % of the time"
)
_DIOD: Final = "diod hands each request to a thread, which costs it most where there is one request at a time and least where many wait. "
_PURE: Final = (
    "A bare Python loop with the same system calls takes a large part of the C server's whole message, or more (table "
    "above): the rest is looking up, checking and packing. Tried and kept: no message objects, one `struct` call a "
    "header, handlers in a list, one `try` a turn, what is known of a file kept by ctime. Tried and dropped: fstat, openat "
    "and readlinkat through ctypes (0.71 to 2.6 us against 0.78 to 1.9 for `os`)"
)
_CREATING: Final = (
    "Tlcreate and Tunlinkat are not in the compiled module: Python serves them, with the owner's attributes and the looks at the "
    "path. Tried and kept: no second open for a new file, no look at paths where Landlock refuses by itself"
)
_STATUS: Final = "Each file of `git status` is a walk that makes a fid, a getattr and a clunk: the walk's reason. Its listings are readdir-changed's"
_COPY: Final = "Reads and writes of this size are copied once by each server; what is left is the message around them, so the walk's reason"
_TCP: Final = "Over TCP the file server copies what it reads into the reply; sendfile(2) is for unix sockets alone."
_CHANGED: Final = (
    "98 % of the system calls ask each regular file for an attribute: under `mapped-xattr` a device, socket or FIFO of the guest is "
    "a regular file of the host with an attribute, so every regular file of a directory that changed is asked, or its type would be "
    "untrue. The C servers ask none. getxattrat(2), of Linux 6.13, takes 2.4 us, a path below /proc/self/fd 5; a whole entry costs "
    "diod 0.6. Types that are remembered by name and inode would cost nothing, and be wrong where another VM replaces a file and the "
    "file system gives its inode again"
)

REASONS: Final[dict[tuple[str, str], str]] = {
    ("getattr", "diod"): f"{_DIOD}{_SPREAD}.",
    ("getattr", "minimal"): f"{_HOT}.",
    ("getattr", "pure"): f"{_PURE}.",
    ("walk", "diod"): f"{_DIOD}{_HOT}.",
    ("walk", "minimal"): f"{_HOT}.",
    ("walk", "pure"): (
        f"{_PURE}; one look at the working directory for a walk instead of two links a step. A walk looks where it was, before and "
        "after (`fileserver/mount/files/boundary.py`), which diod does not."
    ),
    ("open-read", "diod"): f"{_DIOD}{_HOT}.",
    ("open-read", "minimal"): (
        f"{_HOT}. Opening goes by way of /proc/self/fd, 2.8 us against 1.5 by name, because a name may be another file's by now."
    ),
    ("open-read", "pure"): f"{_PURE}.",
    ("create-unlink", "diod"): f"{_DIOD}{_CREATING}.",
    ("create-unlink", "minimal"): f"{_CREATING}.",
    ("create-unlink", "pure"): f"{_CREATING}.",
    ("read-64k", "diod"): f"{_TCP} {_SPREAD}.",
    ("read-64k", "minimal"): f"{_COPY}. {_TCP}",
    ("read-64k", "pure"): f"{_COPY}. {_TCP}",
    ("read-128k", "diod"): f"{_TCP} {_SPREAD}.",
    ("read-128k", "minimal"): f"{_COPY}. {_TCP}",
    ("read-128k", "pure"): f"{_COPY}. {_TCP}",
    ("read-512k", "diod"): f"{_TCP} {_SPREAD}.",
    ("read-512k", "minimal"): f"{_TCP} {_SPREAD}.",
    ("read-512k", "pure"): f"{_TCP}",
    ("write-64k", "diod"): f"{_SPREAD}.",
    ("write-64k", "minimal"): f"{_COPY}.",
    ("write-64k", "pure"): f"{_COPY}.",
    ("write-128k", "minimal"): f"{_COPY}. {_SPREAD}.",
    ("write-128k", "pure"): f"{_COPY}. {_SPREAD}.",
    ("write-1m", "minimal"): f"{_COPY}. {_SPREAD}.",
    ("random-read-4k", "diod"): f"{_DIOD}{_SPREAD}.",
    ("write-512k", "diod"): f"{_SPREAD}.",
    ("write-512k", "minimal"): (
        "By CPU time splicing gains 4 to 10 % on the C server's two copies; 20 % were measured without the client and "
        f"the message around. {_SPREAD}."
    ),
    ("random-read-4k", "minimal"): f"{_HOT}.",
    ("readdir-changed", "diod"): f"{_CHANGED}.",
    ("readdir-changed", "minimal"): f"{_CHANGED}.",
    ("git-status", "diod"): f"{_STATUS}.",
    ("git-status", "minimal"): f"{_STATUS}.",
    ("git-status", "pure"): f"{_STATUS}.",
    ("cold-reads", "diod"): (
        "The cause that was found: a thread for each cold read took the interpreter lock from the loop. The kernel is now asked "
        "to read ahead and the loop tries again, which halved the CPU time of a message (54 to 24 us). What is left was not "
        f"traced. {_SPREAD}."
    ),
}
