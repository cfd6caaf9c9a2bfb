"""Agents and mounts of guests as the daemon sees them: what is so is shown, each change is an event, a flood is not."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import time
from itertools import pairwise
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from tests.daemon.guests import guest, mapped, wanted
from tests.processes import DEADLINE

from uvmshare.cli.main import run as run_command
from uvmshare.daemon import damped
from uvmshare.daemon.agents import Agents
from uvmshare.daemon.events import EventLog
from uvmshare.daemon.identity import Identity
from uvmshare.mounts import AgentClient, MountManager
from uvmshare.share.manager import Manager
from uvmshare.share.options import AddOptions
from uvmshare.testing.agents import ScriptedStreams, healthy
from uvmshare.testing.fakes import FakeVM
from uvmshare.testing.schedule import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest
    from tests.daemon.guests import Guest
    from tests.daemon.harness import Running

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.documents import Event
    from uvmshare.daemon.machine import Machine
    from uvmshare.testing.agents import Talk

__all__ = ["guest", "mapped"]


def of_guest(events: Iterator[Event | None]) -> Iterator[Event]:
    """Give the events that are about an agent, or about what a guest did with a mount."""
    kinds = {"agent.lost", "agent.reached", "mount.lost", "mount.remounted"}
    return (event for event in events if event is not None and event.kind in kinds)


def test_the_death_of_an_agent_is_seen_without_asking_it_and_so_is_its_return(
    mapped: Running,
    guest: Guest,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", mapped.home.host)

    def shown(*args: str) -> str:
        capfd.readouterr()
        assert run_command(args) == 0
        return capfd.readouterr().out

    with mapped.home.client() as following:
        events = of_guest(following.events("0"))
        assert next(events).kind == "agent.reached"
        path = mapped.home.directory("project")
        client.mounts.map("vm", **wanted(guest, path, owner="job"))
        vm = client.vms.get("vm")
        assert (vm.agent_state, vm.agent_error) == ("reached", None)
        assert vm.agent_since is not None
        assert "reached since " in shown("vm", "ls")
        assert client.mounts("vm")[0].unreachable_since is None

        guest.end()
        event = next(events)
        assert event.kind == "agent.lost"
        assert event.detail["reason"]
        vm = client.vms.get("vm")
        assert vm.agent_state == "unreachable"
        assert vm.agent_since is not None
        (mount,) = client.mounts("vm")
        assert mount.state == "mounted", "as far as was known"
        assert mount.unreachable_since == vm.agent_since
        assert "unreachable since " in shown("vm", "ls")
        assert "mounted, unreachable since " in shown("mounts")
        (stats,) = client.vms.stats("vm")
        assert stats.unreachable_since == vm.agent_since
        assert "unreachable since " in shown("stats")
        assert f"mount {guest.allow}/project" in shown("share", "ls")

        os.unlink(f"{guest.kernel}/mounts.json")  # the guest is started anew: nothing is mounted, nothing is kept
        shutil.rmtree(f"{guest.folder}/state")
        guest.start()
        told = [next(events) for _ in range(3)]
        assert [each.kind for each in told] == ["agent.reached", "mount.lost", "mount.remounted"]
        assert [each.owner for each in told] == [None, "job", "job"]
        assert told[1].detail["guest_path"] == f"{guest.allow}/project"
        assert guest.mounted() == [f"{guest.allow}/project"]
        assert client.mounts("vm")[0].unreachable_since is None


def test_an_agent_whom_nobody_has_reached_yet_tells_why(daemon: Running, client: Client) -> None:
    vm = daemon.add_vm(agent=f"unix:{daemon.home.folder}/nobody")
    assert (vm.agent_state, vm.agent_since is None) == ("unreachable", False)
    machine = daemon.service.machines[os.getuid(), "vm"]

    async def tried() -> None:
        assert machine.agent is not None
        async with asyncio.timeout(DEADLINE):
            while machine.agent.reach.error is None:
                await machine.agent._changed.wait()

    daemon.call(tried)
    assert client.vms.get("vm").agent_error == "No such file or directory"
    assert daemon.add_vm("without").agent_state is None


def test_a_vm_whose_socket_was_removed_says_that_no_guest_reaches_it(
    daemon: Running, client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", daemon.home.host)
    address = daemon.add_vm().addresses[0]
    assert client.vms.get("vm").notes == ()
    os.unlink(address.removeprefix("unix:"))
    assert client.vms.get("vm").notes == (
        f"{address}: no guest can reach this address: its socket was removed from there; start the file server anew",
    )
    assert run_command(["vm", "ls"]) == 0
    assert "its socket was removed" in capfd.readouterr().out


def flaps(talk: Talk) -> None:
    """Greet as an agent does, and hang up when there is time for it."""
    healthy(talk)
    asyncio.get_running_loop().call_later(0.01, talk.hang_up)


def test_an_agent_that_flaps_makes_a_bounded_number_of_events_and_the_last_is_what_is_so() -> None:
    async def test() -> None:
        events = EventLog("here", time.time)
        client = AgentClient("unix:/nowhere", streams=ScriptedStreams(*[flaps] * 1000, healthy))
        record = SimpleNamespace(key=(0, "vm"))
        machine = SimpleNamespace(
            record=record, agent=client, mounts=MountManager(client), agent_address="unix:/nowhere", mounted=tuple
        )
        Agents(events).watch(cast("Machine", machine))
        begun = asyncio.get_running_loop().time()
        async with client:
            await asyncio.sleep(3600)
            assert client.reach.losses == 1000
            assert client.reach.state == "reached"
        kinds = [event.kind async for event in events.follow(Identity(0, 0), "0", wait=False) if event is not None]
        assert kinds[-1] == "agent.reached"
        assert all(one != other for one, other in pairwise(kinds))
        most = damped.AT_ONCE + (asyncio.get_running_loop().time() - begun) / damped.EVERY + 1
        assert damped.AT_ONCE < len(kinds) <= most

    run(test())


def test_an_agent_that_says_again_and_again_that_a_mount_is_lost_makes_few_events(tmp_path: Path) -> None:
    async def test() -> None:
        told: list[str] = []
        events = SimpleNamespace(emit=lambda kind, *_, **__: told.append(kind))
        client = AgentClient("unix:/nowhere", streams=ScriptedStreams(healthy))  # it lists nothing, whatever it mounts
        async with client:
            await client.reached()
            mounts = MountManager(client, shares=Manager(FakeVM()))
            agents = Agents(cast("Any", events))
            record = SimpleNamespace(key=(0, "vm"))
            machine = SimpleNamespace(
                record=record, agent=client, mounts=mounts, agent_address="unix:/nowhere", mounted=mounts.mounts
            )
            agents.watch(cast("Machine", machine))
            await mounts.map(AddOptions(str(tmp_path)), "/run/uvmshare/x", owner="0/job")
            for _ in range(500):
                await mounts.settle()
                await asyncio.sleep(0.1)
            assert 2 <= len(told) <= damped.AT_ONCE + 2
            assert set(told) == {"mount.lost", "mount.remounted"}

    run(test())


def test_releasing_what_one_does_not_hold_says_who_does_and_fails(
    mapped: Running, guest: Guest, client: Client, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", mapped.home.host)
    one, two = mapped.home.directory("one"), mapped.home.directory("two")
    first = client.shares.add("vm", one, owner="job-7").name
    second = client.shares.add("vm", two).name
    client.mounts.map("vm", **wanted(guest, mapped.home.directory("three"), owner="job-8"))
    target = f"{guest.allow}/project"

    def failed(*args: str) -> tuple[str, str]:
        capfd.readouterr()
        assert run_command(args) == 1
        told = capfd.readouterr()
        return told.out, told.err

    out, err = failed("share", "rm", "vm", first, second)
    assert out == f"{second}\n", "the others are released all the same"
    assert err == f"uvmshare: error: {first}: not held by 'default'; held by job-7: --owner job-7\n"
    _, err = failed("unmap", "vm", target)
    assert err == f"uvmshare: error: {target}: not held by 'default'; held by job-8: --owner job-8\n"
    _, err = failed("unmap", "vm", target, "--owner", "job-8", "--uid", "777")
    assert "not held by 'job-8' of uid 777; held by job-8" in err
    assert guest.mounted() == [target]
    out, err = failed("vm", "rm", "nobody", "nor-this")
    assert out == ""
    assert err.count("\n") == 2
    assert "'nobody'" in err
    assert "'nor-this'" in err
    assert run_command(["unmap", "vm", target, "--owner", "job-8"]) == 0
    assert run_command(["share", "rm", "vm", first, "--owner", "job-7"]) == 0


def test_a_mount_that_the_agent_mounts_again_by_itself_makes_events(
    mapped: Running, guest: Guest, client: Client
) -> None:
    with mapped.home.client() as following:
        events = of_guest(following.events("0"))
        assert next(events).kind == "agent.reached"
        client.mounts.map("vm", **wanted(guest, mapped.home.directory("project"), owner="job"))
        guest.server.connected[-1].shutdown(socket.SHUT_RDWR)
        told = [next(events) for _ in range(2)]
        assert [(each.kind, each.owner) for each in told] == [("mount.lost", "job"), ("mount.remounted", "job")]
        assert len(guest.server.asked) == 2
