"""Mounts inside the guest: which there are, who holds them, and the channel to the guest's agent.

    async with AgentClient("firecracker:/run/fc/v.sock:5641") as agent:
        mounts = MountManager(agent, shares=Manager(server))
        await mounts.map("/srv/project", "/run/uvmshare/project", owner="build-7")
        ...
        await mounts.unmap("/run/uvmshare/project", owner="build-7")

What lives here: the public names, from most to least important, loaded when they are first used: the daemon's clients
need one that loads nothing. What must not: the file server.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from uvmshare.mounts.agent_client import AgentClient
    from uvmshare.mounts.agent_state import Reach
    from uvmshare.mounts.manager import MountManager
    from uvmshare.mounts.mount import MountInfo
    from uvmshare.mounts.options import MountOptions
    from uvmshare.mounts.state import MountState

__all__ = [  # noqa: RUF022  most to least important
    "MountManager",
    "AgentClient",
    "MountOptions",
    "MountInfo",
    "MountState",
    "Reach",
]

_HOME = {
    "AgentClient": "agent_client",
    "MountManager": "manager",
    "MountInfo": "mount",
    "MountOptions": "options",
    "MountState": "state",
    "Reach": "agent_state",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
