"""What the tests of the MountManager share: a guest and a VM with their managers, and what to mount."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from uvmshare.mounts import MountManager, MountOptions
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.fakes import FakeAgent, FakeVM

if TYPE_CHECKING:
    from uvmshare.mounts import MountInfo

HERE = os.path.dirname(__file__)
ABOVE = os.path.dirname(HERE)
PATH = "/run/uvmshare/x"
OPTIONS = MountOptions("0", PATH)
MAPPED = AddOptions(HERE)


def only(mounts: MountManager) -> MountInfo:
    """The one mount there is."""
    (info,) = mounts.mounts()
    return info


class Bench:
    """A guest and a VM with their managers."""

    def __init__(self, *, no_writable_file_shares: bool = False) -> None:
        self.agent = FakeAgent()
        self.vm = FakeVM()
        self.shares = Manager(self.vm, no_writable_file_shares=no_writable_file_shares)
        self.mounts = MountManager(self.agent, shares=self.shares)

    def empty(self) -> bool:
        return not (self.agent.mounts or self.vm.shares or self.mounts.mounts() or self.shares.shares())
