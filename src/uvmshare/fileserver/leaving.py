"""How a mount process is ended: asked to leave, and killed a moment later.

What lives here: the signal, how long it has, and the two ways to send one. What must not: what it does then
(`mount.serving`, `mount.outbox`), or which mounts are ended (`supervisor.shares`, `rundir.directory`).

It is asked so that it can tell its guest, which then sees EIO and nothing that is harder to understand. It waits until
the guest has taken that: Firecracker and Cloud Hypervisor drop what they have not read yet when the guest sends
something to a connection that is closed. Nobody relies on it: a mount that does not end by itself, because its guest,
its file system or whoever broke into it holds it up, is killed, and a removal is answered only after its end, or once
it is left behind: no process that was killed goes on, but one that waits in the kernel stays until what it waits for
answers.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Final

__all__ = ["DEATH_SECONDS", "LEAVE", "LEAVE_SECONDS", "STALL_SECONDS", "TELL_SECONDS", "ask", "kill"]

LEAVE: Final = signal.SIGUSR1
"""The supervisor has no handler of this one, so that a mount process that was forked this very moment simply ends."""

LEAVE_SECONDS: Final = 2.0
"""What a mount process has. Emulated guests with twelve busy threads took up to 0.33 s for all that waited for them, on
a host with four times as much to do as it has CPUs. What a mount process does until then it might have done before the
share was to be taken away."""

TELL_SECONDS: Final = 1.7
"""How much of that it waits for its guest, between two replies; the rest is for what it does before its end."""

STALL_SECONDS: Final = 0.5
"""A guest that takes nothing for so long is not waited for."""

DEATH_SECONDS: Final = 3.0
"""What a process that was killed has to end. One that waits in the kernel for a file system that does not answer may
never: then its connection is cut, and it is left behind."""


def ask(pidfd: int) -> None:
    """Ask a mount process to tell its guest and end."""
    with suppress(ProcessLookupError):  # taken over, and reaped by another
        signal.pidfd_send_signal(pidfd, LEAVE)


def kill(pidfd: int) -> None:
    """End a mount process, whatever it does."""
    with suppress(ProcessLookupError):  # as above
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
