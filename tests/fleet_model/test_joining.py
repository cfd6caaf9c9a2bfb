"""A VM of a host's own that the fleet takes on and gives back, through a fake etcd and a fake daemon."""

from __future__ import annotations

import asyncio

import pytest
from tests.fleet_model.harness import ADMIN, ANN, EVE, fleet, kept_share, own_vm

from uvmshare.daemon.documents import NewVm
from uvmshare.daemon.fleet_documents import NewServed, Served
from uvmshare.errors import (
    AlreadyThere,
    InvalidOptions,
    InvalidState,
    LimitReached,
    NotThere,
    OperationDenied,
    OutcomeUnknown,
)
from uvmshare.fleet.callers import Caller
from uvmshare.fleet.local import VmName
from uvmshare.fleet.tickets import Ticket

BUILD = VmName("acme", "build")


async def test_a_vm_joins_with_its_shares_names_and_holders_and_leaves_with_them() -> None:
    async with fleet() as f:
        host = f.hosts["h1"]
        offered = own_vm(host, kept_share("/srv/x", "0", "job", 30), kept_share("/srv/y", "4"))
        vm = await f.join_vm(offered)
        assert (vm.id, vm.host, vm.state) == ("build", "h1", "running")
        assert host.writes == [], "nothing was added or removed"
        shares = {each.name: each for each in await f.gate.shares(ANN, "build")}
        assert {name: [(r.owner, r.lease) for r in each.references] for name, each in shares.items()} == {
            "0": [("job", 30)],
            "4": [("job", None)],
        }
        assert (await f.add_share("/srv/y")).name == "4", "they hold it already"
        assert (await f.add_share("/srv/z")).name == "5"
        assert (await f.release_share("5")).ended
        host.writes.clear()
        await f.gate.remove_vm(await f.gate.want_left(ANN, "build"))
        assert host.writes == []
        assert host.machines == {}
        there = host.own[BUILD]
        assert {name: owners for name, (_, owners) in there.shares.items()} == {"0": {"job"}, "4": {"job"}}
        assert host.told is not None
        assert {each["name"]: each["references"][0]["lease"] for each in host.told} == {"0": 30, "4": None}
        assert await f.gate.vms(ANN) == []
        assert (await f.join_vm(offered)).epoch == 1, "it may come again"


async def test_a_lease_runs_in_the_fleet_from_when_its_vm_has_joined() -> None:
    async with fleet() as f:
        offered = own_vm(f.hosts["h1"], kept_share("/srv/x", "0", "dying", 5), kept_share("/srv/y", "1", "living", 5))
        await f.join_vm(offered)
        for _ in range(10):
            await asyncio.sleep(2)
            await f.gate.renew(ANN, "living")
        assert f.hosts["h1"].held() == {"build": {("/srv/y", "living")}}


async def test_a_vm_that_nobody_offers_is_an_error_and_nothing_is_wanted() -> None:
    async with fleet() as f:
        offered = own_vm(f.hosts["h1"])
        f.hosts["h1"].own.clear()
        with pytest.raises(NotThere, match="offers no such VM"):
            await f.join_vm(offered)
        assert await f.gate.vms(ANN) == []
        assert [each.value for each in f.etcd.read(f.keys.count("acme"))] == [b"0"]


async def test_a_vm_that_joined_is_given_back_whatever_takes_it_out_of_the_fleet() -> None:
    async with fleet() as f:
        host = f.hosts["h1"]
        await f.join_vm(own_vm(host, kept_share("/srv/x", "0")))
        with pytest.raises(InvalidState, match="vm leave"):
            await f.remove_vm(force=True)
        await f.stop("h1")
        await asyncio.sleep(20)
        assert (await f.gate.remove_host(ADMIN, "h1")).vms == ("acme:build",)
        f.start("h1")
        await asyncio.sleep(5)
        assert host.own[BUILD].shares["0"][1] == {"job"}
        assert host.writes == []


async def test_a_vm_that_was_added_through_the_fleet_does_not_leave() -> None:
    async with fleet() as f:
        await f.add_vm()
        with pytest.raises(InvalidState, match="vm rm"):
            await f.gate.want_left(ANN, "build")
        with pytest.raises(AlreadyThere):
            await f.join_vm(own_vm(f.hosts["h1"]))


async def test_who_joins_a_vm_needs_its_tenants_certificate_and_the_role() -> None:
    reader = Caller("acme", "reader")
    async with fleet(own=("ann",)) as f:
        offered = own_vm(f.hosts["h1"], kept_share("/srv/x", "0"))
        with pytest.raises(OperationDenied, match="'own'"):
            await f.join_vm(offered, reader)
        with pytest.raises(InvalidOptions, match="offered to tenant acme"):
            await f.join_vm(offered, EVE)
        assert (await f.join_vm(offered, ADMIN)).id == "acme:build"
        with pytest.raises(NotThere):
            await f.gate.want_left(EVE, "build")
        with pytest.raises(OperationDenied, match="'own'"):
            await f.gate.want_left(reader, "build")


async def test_a_vm_with_more_than_its_tenant_may_have_does_not_join() -> None:
    async with fleet(holdings=1) as f:
        with pytest.raises(LimitReached, match="has 2 shares and mounts"):
            await f.join_vm(own_vm(f.hosts["h1"], kept_share("/srv/x", "0"), kept_share("/srv/y", "1")))


async def test_a_vm_joins_and_leaves_when_its_host_is_back() -> None:
    async with fleet() as f:
        host = f.hosts["h1"]
        offered = own_vm(host, kept_share("/srv/x", "0"))
        await asyncio.sleep(1)
        f.cut("h1")
        with pytest.raises(OutcomeUnknown):
            await f.join_vm(offered)
        f.mend("h1")
        await asyncio.sleep(60)
        assert host.held() == {"build": {("/srv/x", "job")}}
        f.cut("h1")
        found = await f.gate.want_left(ANN, "build")
        ticket = Ticket("l", 1, ("h1",), 0.0, "build")
        assert await f.gate.outcome(ANN, ticket, wait=False) == (False, None)
        with pytest.raises(OutcomeUnknown):
            await f.gate.remove_vm(found)
        f.mend("h1")
        await asyncio.sleep(60)
        assert (await f.gate.outcome(ANN, ticket, wait=False))[0]
        assert host.own[BUILD].shares["0"][1] == {"job"}


async def test_what_a_host_serves_is_written_once_and_not_what_another_host_has_by_now() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        wanted = NewVm(id="build", listen=("unix:/run/build.9p",))
        theirs = Served(host="h2", tenant="acme", vm=wanted)
        mine = Served(
            host="h2",
            tenant="acme",
            vm=NewVm(id="mine", listen=("unix:/run/mine.9p",)),
            kept=(kept_share("/srv/x", "3", "job", 20),),
            epoch=4,
            names=5,
        )
        for _ in range(2):
            written = await f.gate.write_back(ADMIN, "h2", NewServed(vms=(theirs, mine)))
            assert (written.vms, written.elsewhere) == (("acme:mine",), ("acme:build",))
        assert [each.value for each in f.etcd.read(f.keys.count("acme"))] == [b"2"]
        await asyncio.sleep(1)
        (share,) = await f.gate.shares(ANN, "mine")
        assert (share.name, [(each.owner, each.lease) for each in share.references]) == ("3", [("job", 20)])
        assert (await f.gate.vm(ANN, "mine")).epoch == 4
        assert (await f.add_share("/srv/new", vm="mine")).name == "5"
        await asyncio.sleep(60)
        assert f.hosts["h2"].held() == {"mine": {("/srv/new", "job")}}
        with pytest.raises(InvalidOptions, match="another host"):
            await f.gate.write_back(ADMIN, "h1", NewServed(vms=(mine,)))
        with pytest.raises(NotThere, match="no host 'h9'"):
            await f.gate.write_back(ADMIN, "h9", NewServed(vms=(Served(host="h9", tenant="acme", vm=wanted),)))
        with pytest.raises(OperationDenied, match="no administrator"):
            await f.gate.write_back(ANN, "h2", NewServed(vms=()))
