"""Why a figure is not met, and what was tried: written by hand, for what the last results miss.

What lives here: one text for each workload and peer. What must not: the numbers of the results, which are in the
tables beside it. `tests/benchmarks` holds that no figure is missed without one.
"""

# ruff: noqa: E501  prose for the cells of a table
from __future__ import annotations

from typing import Final

__all__ = ["REASONS"]

_FLOOR: Final = (
    "A bare Python loop with the same system calls takes a large part of the time of the C server's whole message, or more (table "
    "above): the rest is looking up, checking and packing. Tried and kept: no message objects, one `struct` call a "
    "header, handlers in a list, one `try` a turn, what is known of a file kept by ctime. Tried and dropped: fstat, openat "
    "and readlinkat through ctypes (0.71 to 2.6 us against 0.78 to 1.9 for `os`)"
)
_DIOD: Final = (
    "diod hands each request to a thread, which costs it most where there is one request at a time and least at depth 32. "
    "What is left of ours is the floor of the table above and the checks"
)
_SPREAD: Final = "The spread is the machine's, two virtual CPUs with nothing else of ours on them; a ratio whose rounds disagree is not called met"

REASONS: Final[dict[tuple[str, str], str]] = {
    ("getattr", "diod"): f"{_DIOD}. {_SPREAD}.",
    ("getattr", "minimal"): f"{_FLOOR}.",
    ("walk", "diod"): (
        f"{_DIOD}: a walk looks where it was, before and after (`fileserver/mount/files/boundary.py`), which diod does not. Profiled: "
        f"5.8 us of 20 are opening and closing, 3.1 fstat, 2 the looks. {_SPREAD}."
    ),
    ("walk", "minimal"): f"{_FLOOR}; one look at the working directory for a walk instead of two links a step.",
    ("open-read", "diod"): (
        f"{_DIOD}; opening goes by way of /proc/self/fd, 2.8 us against 1.5 by name, because a name may be another file's by "
        f"now. {_SPREAD}."
    ),
    ("open-read", "minimal"): f"{_FLOOR}.",
    ("create-unlink", "diod"): f"{_DIOD}. {_SPREAD}.",
    (
        "create-unlink",
        "minimal",
    ): f"{_FLOOR}; no second open for a new file, no look at paths where Landlock refuses by itself.",
    ("read-512k", "diod"): f"{_SPREAD}.",
    ("read-512k", "minimal"): f"{_SPREAD}.",
    ("read-1m", "diod"): f"{_SPREAD}.",
    ("read-1m", "minimal"): f"{_SPREAD}.",
    (
        "write-512k",
        "diod",
    ): f"{_SPREAD}. Writes are spliced; before that they were at 0.9 of the C server, which copies twice.",
    ("write-512k", "minimal"): (
        "By CPU time splicing gains 4 to 10 % on the C server's two copies; 20 % were measured without the client and "
        f"the message around. {_SPREAD}."
    ),
    (
        "write-1m",
        "diod",
    ): f"{_SPREAD}. Writes are spliced; before that they were at 0.9 of the C server, which copies twice.",
    ("write-1m", "minimal"): (
        "By CPU time splicing gains 4 to 10 % on the C server's two copies; 20 % were measured without the client and "
        f"the message around. {_SPREAD}."
    ),
    ("readdir", "diod"): f"{_SPREAD}.",
    ("readdir", "minimal"): f"{_SPREAD}.",
    ("readdir-changed", "diod"): (
        "Each entry is a pass of a Python loop: 0.6 us to unpack, slice and pack it, where C takes 0.2. Kept listings cannot "
        "help, because this row changes the directory before each listing. Tried: plain numbers instead of a call for each "
        "qid (a quarter less). Not tried: entries of one length unpacked in one call."
    ),
    ("readdir-changed", "minimal"): "The same loop as against diod.",
    ("cold-reads", "diod"): (
        "The cause that was found: a thread for each cold read took the interpreter lock from the loop. The kernel is now asked "
        "to read ahead and the loop tries again, which halved the CPU time of a message (54 to 24 us). What is left was not "
        f"traced; the C server, which waits for each read, is far behind both. {_SPREAD}."
    ),
}
