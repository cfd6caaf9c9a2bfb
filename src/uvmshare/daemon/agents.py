"""Events of the agents in guests, and of the mounts there.

What lives here: `Agents`, which turns what an `AgentClient` and a `MountManager` tell into events, a bounded number of
them. What must not: how an agent is reached (`uvmshare.mounts`), or what a user may see (`events`).

========================  ==============================================================================
``agent.lost``            its connection ended, or it said nothing for ten seconds, without being asked
``agent.reached``         it is reached, for the first time or again
``mount.lost``            the guest does not have a mount any more that is held; it is mounted again
``mount.remounted``       the guest has it again
========================  ==============================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvmshare.daemon.damped import Damped
from uvmshare.daemon.event_kinds import EventKind
from uvmshare.daemon.shares import holder_of
from uvmshare.printable import printable
from uvmshare.share.options import AddOptions

if TYPE_CHECKING:
    from collections.abc import Hashable

    from uvmshare.daemon.events import EventLog
    from uvmshare.daemon.machine import Machine
    from uvmshare.daemon.store import VmKey
    from uvmshare.mounts.agent_state import Reach
    from uvmshare.mounts.mount import MountInfo

__all__ = ["Agents"]


class Agents:
    """The agents of all VMs, as far as is told of them."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._told: dict[VmKey, tuple[Damped[Reach], Damped[MountInfo]]] = {}

    def watch(self, machine: Machine) -> None:
        """Tell of the agent of a VM, and of the mounts in its guest, from now on. The agent is not reached yet."""
        assert machine.agent is not None, "whoever watches has one"
        assert machine.mounts is not None, "as above"
        key = machine.record.key
        self.forget(key)
        agent: Damped[Reach] = Damped(lambda _, state, reach, untold: self._tell_agent(machine, state, reach, untold))
        mounts: Damped[MountInfo] = Damped(
            lambda path, state, info, untold: self._tell_mount(machine, path, state, info, untold)
        )
        self._told[key] = agent, mounts
        machine.agent.on_reach(lambda reach: agent.note("", reach.state, reach, first="unreachable"))

        def changed(info: MountInfo, what: str) -> None:
            there = machine.mounted()
            if len(mounts) > 2 * len(there):
                mounts.keep({each.mount_path for each in there})
            mounts.note(info.mount_path, what, info, first="remounted")

        machine.mounts.on_change(changed)

    def forget(self, vm: VmKey) -> None:
        """Tell nothing more of a VM."""
        for damped in self._told.pop(vm, ()):
            damped.close()

    def _tell_agent(self, machine: Machine, state: str, reach: Reach, untold: int) -> None:
        self._events.emit(
            EventKind.AGENT_REACHED if state == "reached" else EventKind.AGENT_LOST,
            machine.record.key,
            agent=machine.agent_address,
            reason=None if reach.error is None else printable(reach.error),
            **_and(untold),
        )

    def _tell_mount(self, machine: Machine, path: Hashable, state: str, info: MountInfo, untold: int) -> None:
        """Tell each of those who hold it."""
        share = info.options.share
        assert isinstance(share, AddOptions), "this daemon asks for no others"
        for holder in map(holder_of, info.owners):
            if holder is not None:
                self._events.emit(
                    EventKind.MOUNT_LOST if state == "lost" else EventKind.MOUNT_REMOUNTED,
                    machine.record.key,
                    uid=holder[0],
                    share=info.share_name,
                    owner=holder[1],
                    path=share.host_path,
                    guest_path=path,
                    **_and(untold),
                )


def _and(untold: int) -> dict[str, Any]:
    """Say how many changes before this one were not told, if any were."""
    return {"untold": untold} if untold else {}
