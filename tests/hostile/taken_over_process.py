"""A process that is confined as a mount process is, and makes the attempts of code that took it over.

What lives here: `tried`. What must not: the attempts (`taken_over`).
"""

from __future__ import annotations

import mmap
import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from tests.hostile.taken_over import Attempt, Layers, Scene

    from uvmshare.fileserver.export import Export

if sys.platform == "win32":
    pytest.skip("the file server runs on Linux", allow_module_level=True)

__all__ = ["Found", "tried"]

_WORKED: Final = 0
_NOT_TRIED: Final = -1
_NO_ERRNO: Final = 254


@dataclass(slots=True)
class Found:
    """What became of the attempts: the errno of each, 0 for what worked."""

    errnos: dict[str, int] = field(default_factory=dict)
    enclosed: bool = False


def tried(export: Export, scene: Scene, attempts: list[Attempt], layers: Layers, *, user: int) -> Found:
    """Make the attempts in a process that became `user` and was confined to the export.

    It tells what became of each in memory that both processes have: it can write to nothing else.
    """
    shared = mmap.mmap(-1, 8 * (len(attempts) + 1))
    slots = memoryview(shared).cast("q")
    for number in range(len(attempts) + 1):
        slots[number] = _NOT_TRIED
    child = os.fork()
    if child == 0:
        try:
            slots[-1] = _confined(export, scene, layers, user)
            for number, attempt in enumerate(attempts):
                slots[number] = _outcome(attempt, scene)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert slots[-1] != _NOT_TRIED, f"the process ended ({status}) before it was confined"
    found = Found(enclosed=slots[-1] == 1)
    for number, attempt in enumerate(attempts):
        assert slots[number] != _NOT_TRIED, f"the process ended ({status}) when it was to {attempt.name}"
        found.errnos[attempt.name] = slots[number]
    slots.release()
    shared.close()
    return found


def _confined(export: Export, scene: Scene, layers: Layers, user: int) -> bool:
    """Become the user and a mount process; return whether it has a namespace of its own."""
    from uvmshare.fileserver import syscalls
    from uvmshare.fileserver.limits import Limits
    from uvmshare.fileserver.mount import confinement, enclosure
    from uvmshare.fileserver.mount.watched import Queue
    from uvmshare.linux.descriptors import close_all_but

    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        syscalls.set_dumpable(1)  # as a program that this user started
    close_all_but((export.root, scene.kept))
    if layers.nothing:
        return False
    if layers.landlock is not None:
        abi = min(layers.landlock, syscalls.landlock_abi())
        syscalls.landlock_abi = lambda: abi
    if not layers.namespace:
        enclosure.trouble = lambda: "masked"
    if not layers.seccomp:
        confinement.has_seccomp = lambda: False
    queue = Queue.open(export.root)
    enclosed = confinement.enter(export, os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC))
    assert queue is not None
    if not enclosed:
        queue.close()
    confinement.confine(export, Limits(), kept=(scene.kept,), enclosed=enclosed, watches=enclosed)
    return enclosed


def _outcome(attempt: Attempt, scene: Scene) -> int:
    try:
        attempt.make(scene)
    except OSError as error:
        return error.errno or _NO_ERRNO
    except (ValueError, AssertionError):
        return _NO_ERRNO
    return _WORKED
