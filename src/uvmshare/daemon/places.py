"""Where on the host the daemon keeps things.

What lives here: `Places`: directories, files and control groups, by VM. What must not: what is in them (`machine`,
`store`, `groups`).
"""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from uvmshare.hostfiles import make_own_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from uvmshare.daemon.groups import Group, Groups
    from uvmshare.daemon.store import VmRecord

__all__ = ["Places"]


class Places:
    """Where the daemon keeps things: what ends with the host's run, and what does not."""

    def __init__(self, run_dir: str, state_dir: str) -> None:
        self.groups: Groups | None = None
        """Where the processes of each VM are; None where the daemon has no group to divide."""
        self.group_limits: Mapping[str, str] = {}
        """Of every VM's group, unless it has others."""
        self.run_dir = os.path.abspath(run_dir)
        self.state_dir = os.path.abspath(state_dir)

    def make(self) -> None:
        """Make the directories, which are the daemon's alone to write in. Raises `OSError`."""
        make_own_directory(self.run_dir, 0o755)
        make_own_directory(self.state_dir, 0o700)
        make_own_directory(os.path.join(self.run_dir, "vms"), 0o711)
        make_own_directory(os.path.join(self.run_dir, "log"), 0o700)

    @property
    def store(self) -> str:
        """The daemon's own file."""
        return os.path.join(self.state_dir, "daemon.sqlite")

    @property
    def journal(self) -> str:
        """The journal of the Managers."""
        return os.path.join(self.state_dir, "journal.sqlite")

    def run_dir_of(self, record: VmRecord) -> str:
        """Return the run directory of a VM's file server, made for its user.

        Its parent is the daemon's, so that nobody can put another in its place. It gets its name when it is its user's.
        From then on it is not looked at from here, not even by stat(2): its user may have mounted there what never
        answers (FUSE). Raises `OSError`.
        """
        path = self.run_dir_at(record)
        parent, name = os.path.split(path)
        make_own_directory(parent, 0o711)
        if name not in os.listdir(parent):
            made = tempfile.mkdtemp(prefix=".new-", dir=parent)  # no VM's id begins like that
            if os.geteuid() == 0:
                os.chown(made, record.identity.uid, record.identity.gid)
            os.rename(made, path)
        return path

    def run_dir_at(self, record: VmRecord) -> str:
        """Return where the run directory of a VM's file server is, if there is one."""
        return os.path.join(self.run_dir, "vms", str(record.identity.uid), record.id)

    def group_of(self, record: VmRecord) -> Group | None:
        """Return the group of a VM's processes, made with its limits. Raises `FileServerError`."""
        if self.groups is None:
            return None
        return self.groups.of(record.key, {**self.group_limits, **record.wanted.cgroup})

    def group_at(self, record: VmRecord) -> Group | None:
        """Return the group of a VM's processes, with the limits that it has. Raises `FileServerError`."""
        return None if self.groups is None else self.groups.of(record.key, {})

    def log_of(self, record: VmRecord) -> str:
        """Return the log of a VM's file server: in a directory of the daemon's, which opens it."""
        return os.path.join(self.run_dir, "log", f"{record.identity.uid}-{record.id}.log")
