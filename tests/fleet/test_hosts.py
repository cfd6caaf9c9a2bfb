"""Whole daemons and gates as processes, over three members of etcd with TLS and roles: cables cut, processes killed.

The 9P client stands for the guests; `uvmshare demo --fleet` does the same with real ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import pytest
from tests.etcd.member import program
from tests.processes import DEADLINE

from uvmshare.demo.stage import HOSTS, TENANT, Stage
from uvmshare.errors import OutcomeUnknown
from uvmshare.testing.client import NinePClient

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from uvmshare.daemon.client import AsyncClient


@contextlib.asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[Stage]:
    stage = Stage(str(folder))
    async with stage.machines:
        await stage.start_etcd()
        await stage.start_gates_and_hosts()
        yield stage


def _address(stage: Stage, vm: str) -> str:
    return f"unix:{stage.directory}/{vm}.9p"


def _read(stage: Stage, vm: str, share: str) -> bytes:
    with NinePClient.connect(_address(stage, vm), share) as guest:
        return guest.read_file("hello")


async def _states(fleet: AsyncClient) -> list[str]:
    return [host.state for host in await fleet.hosts()]


async def _a_fleet(folder: Path) -> None:
    async with _running(folder) as stage, stage.client() as fleet:
        project = stage.make("project", "from the host")
        other = stage.make("other", "another")
        for vm, host in zip(("one", "two"), HOSTS, strict=True):
            assert (await fleet.vms.add(vm, listen=[_address(stage, vm)], on=host)).host == host
            share = await fleet.shares.add(vm, project, owner="stays")
            assert _read(stage, vm, share.name) == b"from the host"
            await fleet.shares.add(vm, other, owner="laptop", lease=3)
        # Whoever held the lease is gone; the hosts are told by etcd, through the gate that is left.
        await stage.machines.kill("gate-1")
        for vm in ("one", "two"):
            await stage.in_time(lambda vm=vm: fleet.shares(vm), lambda shares: len(shares) == 1)  # type: ignore[misc]  # mypy cannot infer a default's type
            assert [each.owner for each in (await fleet.shares(vm))[0].references] == ["stays"]
        # A host without its cable serves on, and does later what it was asked meanwhile.
        await stage.machines.cut("host-1")
        await stage.in_time(lambda: _states(fleet), lambda states: states == ["lost", "alive"])
        assert _read(stage, "one", "0") == b"from the host"
        with pytest.raises(OutcomeUnknown):
            await fleet.shares.add("one", other, owner="late")
        await fleet.shares.add("two", other, owner="in-time")
        await stage.machines.mend("host-1")
        await stage.in_time(lambda: fleet.shares("one"), lambda shares: len(shares) == 2)
        # A daemon that is killed leaves its file servers, and the next one goes on.
        await stage.machines.kill("host-2")
        assert _read(stage, "two", "0") == b"from the host"
        await stage.start_host("host-2")
        await stage.in_time(lambda: _states(fleet), lambda states: states == ["alive", "alive"])
        async with stage.daemon("host-2") as own:
            await stage.in_time(own.following, lambda found: found.error is None)
        assert (await fleet.shares.add("two", project, owner="stays")).name == "0"
        assert "fork" not in await asyncio.to_thread(stage.log_of, "host-2"), "grpc says nothing of forks"
        # And a VM of a host's own joins, and leaves.
        async with stage.daemon("host-2") as own:
            await own.vms.add("own", listen=[_address(stage, "own")])
            name = (await own.shares.add("own", project, owner="mine")).name
            await fleet.vms.join(await own.offer_vm("own", TENANT))
            assert [each.name for each in await fleet.shares("own")] == [name]
            await fleet.vms.leave("own")
            assert [each.owner for each in (await own.shares("own"))[0].references] == ["mine"]
            assert _read(stage, "own", name) == b"from the host"
            await own.vms.remove("own", force=True)
        for vm in ("one", "two"):
            await fleet.vms.remove(vm, force=True)
        assert await fleet.vms() == []


def test_a_fleet_of_daemons_and_gates_goes_on_whatever_is_cut_or_killed(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    program("etcd")  # skips without it

    async def main() -> None:
        async with asyncio.timeout(4 * DEADLINE):
            await _a_fleet(tmp_path)

    asyncio.run(main())
