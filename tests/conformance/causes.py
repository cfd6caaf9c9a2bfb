"""Checks that come out otherwise over 9P than on the guest's own ext4, each with its cause.

What lives here: the list, and nothing that decides. A difference that is not in it fails its test. Each cause lies in
the client, and test_causes.py shows it on the wire: what the client sent, or that it sent nothing.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.conformance.harness import Setting


class Cause(NamedTuple):
    """Why checks whose names match differ, in the settings named ("" is every one).

    `mounts` is an option of the mount.
    """

    pattern: str
    why: str
    models: str = ""
    caches: str = ""
    kernels: str = ""
    mounts: str = ""


CAUSES = (
    Cause(
        r"utimensat/.*/sub-second-.*",
        "Linux's 9P client cuts times that are set to whole seconds: its superblock names no finer granularity",
    ),
    Cause(
        r"read-only/(other/[a-z]+/(chmod|lchown|link-from)|(root|other)/(access|regular/rename-to))",
        "the guest has mounted the read-only share writable: its kernel answers by modes and owners before it asks",
        mounts="rw",
    ),
    Cause(
        r"append/appended-by-another-descriptor",
        "Linux's 9P client keeps the last page that it has read when a descriptor whose own offset is elsewhere "
        "appends to the file: it does not ask the server, whose file has the right bytes",
        caches="readahead",
    ),
    Cause(
        r"offset/pwrite/(past-all|11(/.*)?)",
        "Linux 6.12's client lets a write that the server refuses return 0, and fails the next one with EIO without "
        "sending it",
        kernels="6.12",
    ),
    Cause(
        r"sparse/blocks",
        "Linux 6.1's client counts the blocks of a file that it caches by itself, those of holes too, and does not ask",
        caches="loose",
        kernels="6.1",
    ),
    Cause(
        r"clearing/write/other/(2767|6766)/mode",
        "Linux 6.1's client leaves it to the server to take the setgid bit off when a stranger to the file's group "
        "writes, and 9P tells a server a user's number but not its groups; without group-execute the bit stays",
        kernels="6.1",
    ),
    Cause(
        r"unlinked/.*/held-by-path/.*|descriptor/fifo/unlinked/.*",
        "Linux's 9P client lets go of every fid of a name that is removed but the open ones, and it opens none for "
        "O_PATH, FIFOs and devices: what holds the file by such a descriptor then looks for the name again",
    ),
    Cause(
        r"utimensat/.*/-\d+/[am]time",
        "Linux's 9P client sends a time before 1970 as 0",
    ),
)


def cause_of(check: str, setting: Setting) -> str | None:
    """Return why a check differs in a setting, or None when nothing explains it."""
    for cause in CAUSES:
        if (
            re.fullmatch(cause.pattern, check)
            and (not cause.models or setting.model in cause.models.split())
            and (not cause.caches or setting.cache in cause.caches.split())
            and (not cause.kernels or setting.kernel in cause.kernels.split())
            and (not cause.mounts or cause.mounts in setting.more.split(","))
        ):
            return cause.why
    return None
