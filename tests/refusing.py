"""File servers to which the host's kernel refuses fanotify, as in a container: events come by inotify there.

What lives here: what starts supervisors so. What must not: what they do then; that is in the tests.
"""

from __future__ import annotations

import errno
import platform
import struct
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["fanotify_refused"]

_FANOTIFY_INIT: Final = {"x86_64": 300, "aarch64": 262}[platform.machine()]
_INSTRUCTION: Final = struct.Struct("=HBBI")


def _refuse() -> None:
    """Let this process, and those that it starts, never call fanotify_init(2): seccomp(2), bpf(2)."""
    from uvmshare.fileserver import syscalls

    lines = (
        (0x20, 0, 0, 0),  # the number of the call
        (0x15, 0, 1, _FANOTIFY_INIT),
        (0x06, 0, 0, 0x00050000 | errno.EPERM),
        (0x06, 0, 0, 0x7FFF0000),
    )
    syscalls.no_new_privileges()
    program = b"".join(_INSTRUCTION.pack(*line) for line in lines)
    syscalls.set_seccomp_filter(program, len(lines))


class _Refusing:
    """Stands in the place of the module `subprocess` where supervisors are started."""

    DEVNULL = subprocess.DEVNULL

    def Popen(self, command: Sequence[str], **more: Any) -> subprocess.Popen[bytes]:  # noqa: N802  it is that name
        return subprocess.Popen(command, preexec_fn=_refuse, **more)  # noqa: PLW1509  it allocates little, and holds no lock


@contextmanager
def fanotify_refused() -> Iterator[None]:
    """Have the supervisors that are started meanwhile do without fanotify."""
    from uvmshare.fileserver import link

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(link, "subprocess", _Refusing())
        yield
