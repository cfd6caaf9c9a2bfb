"""What memory a mount process has of its own, in pages: what it has changed of its supervisor's, and what it made."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from tests.processes import await_answer

from uvmshare.fileserver.limits import Limits
from uvmshare.ninep import messages as m
from uvmshare.ninep.constants import OpenFlag as O

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.fileserver.harness import Device

MIB: Final = 1 << 20
MOST: Final = 6 * MIB
"""CPython 3.11 was measured at 4.3: a page is a process's own as soon as it uses an object there."""
LARGE: Final = 1_000_000


def own(pid: int) -> int:
    """The bytes that a process shares with no other (proc(5), smaps_rollup)."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    return sum(int(each) * 1024 for each in re.findall(r"^Private_\w+:\s+(\d+) kB", rollup, re.MULTILINE))


def test_mount_processes_have_little_memory_of_their_own(start_device: Callable[..., Device], root: Path) -> None:
    device = start_device()
    name = device.share(root)
    with device.connect(name) as one, device.connect(name) as other:
        for client in (one, other):
            client.getattr(client.root)
        assert max(map(own, device.mounts(name))) < MOST
    device.unshare(name)


def test_a_mount_whose_guest_says_nothing_gives_back_what_large_messages_took(
    start_device: Callable[..., Device], root: Path
) -> None:
    device = start_device(limits=Limits(keep_seconds=0.05))
    name = device.share(root)
    with device.connect(name) as client:
        client.getattr(client.root)
        (pid,) = device.mounts(name)
        before = own(pid)
        fid = client.open("file", O.WRONLY | O.APPEND)  # what is appended is received before it is written
        client.ask(m.Twrite(fid, 0, bytes(LARGE)), m.Rwrite)
        await_answer(lambda: own(pid) - before < LARGE // 2, True)
    device.unshare(name)
