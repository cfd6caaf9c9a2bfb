"""Mounts inside the guest: which there are, who holds them, and the channel to the guest's agent.

    async with AgentClient("firecracker:/run/fc/v.sock:5641") as agent:
        mounts = MountManager(agent, shares=Manager(server))
        await mounts.map("/srv/project", "/run/uvmshare/project", owner="build-7")
        ...
        await mounts.unmap("/run/uvmshare/project", owner="build-7")

What lives here: the public names, from most to least important. What must not: the file server.
"""

from uvmshare.mounts.agent_client import AgentClient
from uvmshare.mounts.manager import MountManager
from uvmshare.mounts.mount import MountInfo
from uvmshare.mounts.options import MountOptions
from uvmshare.mounts.reach import Reach
from uvmshare.mounts.state import MountState

__all__ = [  # noqa: RUF022  most to least important
    "MountManager",
    "AgentClient",
    "MountOptions",
    "MountInfo",
    "MountState",
    "Reach",
]
