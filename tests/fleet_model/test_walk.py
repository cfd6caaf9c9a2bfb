"""From a gate to a host and back, through a fake etcd."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.fleet_model.harness import ADMIN, ANN, EVE, fleet, placed

from uvmshare.daemon.documents import NewShare
from uvmshare.errors import (
    AlreadyThere,
    HostPathNotFound,
    InvalidOptions,
    LeaseNotFound,
    LimitReached,
    MountBusy,
    NotThere,
    OperationDenied,
    OutcomeUnknown,
    StillInUse,
)
from uvmshare.etcd.protocol import Get, Put
from uvmshare.fleet.callers import Caller
from uvmshare.fleet.gate import Gate
from uvmshare.fleet.tickets import Ticket
from uvmshare.testing.etcd import FakeReply

if TYPE_CHECKING:
    from uvmshare.testing.etcd import FakeStore


async def test_a_share_that_a_gate_is_asked_for_is_held_on_the_host_and_released_again() -> None:
    async with fleet() as f:
        vm = await f.add_vm()
        assert (vm.id, vm.host, vm.state, vm.epoch) == ("build", "h1", "running", 1)
        share = await f.add_share("/srv/x")
        assert (share.vm, share.name, share.path) == ("build", "0", "/srv/x")
        assert [(each.owner, each.lease) for each in share.references] == [("job", None)]
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}
        released = await f.release_share("0")
        assert (released.released, released.ended) == (True, True)
        assert f.hosts["h1"].held() == {"build": set()}
        assert await f.gate.shares(ANN, "build") == []
        await f.remove_vm()
        assert f.hosts["h1"].machines == {}
        assert await f.gate.vms(ANN) == []


async def test_the_same_again_writes_nothing() -> None:
    async with fleet() as f:
        await f.add_vm()
        first = await f.add_share("/srv/x")
        await asyncio.sleep(30)
        before = f.etcd.revision
        assert await f.add_share("/srv/x") == first
        assert (await f.add_vm()).id == "build"
        assert f.etcd.revision == before


async def test_an_add_is_answered_without_time_passing_and_so_are_many_one_after_the_other() -> None:
    async with fleet() as f:
        await f.add_vm()
        loop = asyncio.get_running_loop()
        before = loop.time()
        for number in range(20):
            await f.add_share(f"/srv/{number}")
        assert loop.time() == before


async def test_what_the_host_refuses_is_the_same_error_at_the_gate_and_is_wanted_no_more() -> None:
    async with fleet() as f:
        await f.add_vm()
        f.hosts["h1"].refused["/srv/none"] = HostPathNotFound("/srv/none: there is no such directory")
        with pytest.raises(HostPathNotFound, match="no such directory"):
            await f.add_share("/srv/none")
        del f.hosts["h1"].refused["/srv/none"]
        await asyncio.sleep(120)
        assert f.hosts["h1"].held() == {"build": set()}
        await f.add_share("/srv/none")
        assert f.hosts["h1"].held() == {"build": {("/srv/none", "job")}}


async def test_what_was_held_once_is_tried_again_until_it_is_there() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        host = f.hosts["h1"]
        await f.stop("h1")
        host.machines.clear()  # it was started anew, and its file systems are late
        host.refused["/srv/x"] = HostPathNotFound("not there yet")
        f.start("h1")
        await asyncio.sleep(30)
        assert host.held() == {"build": set()}
        del host.refused["/srv/x"]
        await asyncio.sleep(120)
        assert host.held() == {"build": {("/srv/x", "job")}}
        assert [each.name for each in await f.gate.shares(ANN, "build")] == ["1"], "no name is given twice"


async def test_a_vm_that_the_host_cannot_add_leaves_nothing() -> None:
    async with fleet() as f:
        f.hosts["h1"].refused["unix:/run/build.9p"] = InvalidOptions("the address is in use")
        with pytest.raises(InvalidOptions, match="in use"):
            await f.add_vm()
        await asyncio.sleep(10)
        assert await f.gate.vms(ANN) == []
        del f.hosts["h1"].refused["unix:/run/build.9p"]
        await f.add_vm()


async def test_a_lease_that_nobody_renews_ends_on_every_host_and_one_that_is_renewed_does_not() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_vm(wanted=placed("test", "h2"))
        for vm in ("build", "test"):
            await f.add_share("/srv/x", "dying", 10, vm=vm)
            await f.add_share("/srv/y", "living", 10, vm=vm)
            await f.add_share("/srv/z", "staying", vm=vm)
        for _ in range(6):
            await asyncio.sleep(3)
            assert await f.gate.renew(ANN, "living") == 1
        left = {("/srv/y", "living"), ("/srv/z", "staying")}
        assert f.hosts["h1"].held() == {"build": left}
        assert f.hosts["h2"].held() == {"test": left}
        with pytest.raises(NotThere):
            await f.gate.renew(ANN, "dying")


async def test_an_owner_who_comes_back_gets_nothing_that_they_held_before() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/old", "job", 5)
        await f.stop("h1")
        await asyncio.sleep(20)
        wanting = asyncio.ensure_future(f.add_share("/srv/new", "job", 30))
        await asyncio.sleep(1)
        f.start("h1")
        await wanting
        assert f.hosts["h1"].held() == {"build": {("/srv/new", "job")}}


async def test_a_lease_gets_another_length_with_a_renewal() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/x", "job", 5)
        await f.gate.renew(ANN, "job", 60)
        await asyncio.sleep(30)
        assert [each.references[0].lease for each in await f.gate.shares(ANN, "build")] == [60]
        await asyncio.sleep(60)
        assert f.hosts["h1"].held() == {"build": set()}


async def test_a_host_that_does_not_answer_is_an_outcome_unknown_and_does_it_when_it_is_back() -> None:
    async with fleet() as f:
        await f.add_vm()
        f.cut("h1")
        with pytest.raises(OutcomeUnknown, match="happens when the host is back"):
            await f.add_share("/srv/x")
        assert f.hosts["h1"].held() == {"build": set()}
        await asyncio.sleep(20)
        assert (await f.gate.vm(ANN, "build")).state == "lost"
        f.mend("h1")
        await asyncio.sleep(120)
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}
        assert (await f.gate.vm(ANN, "build")).state == "running"


async def test_a_transaction_of_unknown_outcome_is_found_out_about() -> None:
    for reply in (FakeReply.LOSE_AFTER, FakeReply.LOSE_BEFORE):
        async with fleet() as f:
            lose_changes(f.gate_store, [reply] * 4)
            await f.add_vm()
            await f.add_share("/srv/x")
            assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}
            released = await f.release_share("0")
            assert (released.released, released.ended) == (True, True)
            await f.remove_vm()
            assert f.hosts["h1"].machines == {}


def lose_changes(store: FakeStore, replies: list[FakeReply]) -> None:
    """Have every other transaction that changes something end so."""
    sent, is_lost = store.txn, [False]

    async def txn(compare: Any, then: Any, otherwise: Any = ()) -> Any:
        if not all(isinstance(each, Get) for each in then) and replies:
            is_lost[0] = not is_lost[0]
            if is_lost[0]:
                store.replies.append(replies.pop())
        return await sent(compare, then, otherwise)

    store.txn = txn  # type: ignore[method-assign]  # what a test puts between


async def test_a_release_that_the_guest_refuses_fails_and_is_held_still() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_mount("/srv/x", "/mnt/x")
        f.hosts["h1"].unreleased["/srv/x"] = MountBusy("/mnt/x is in use by make")
        with pytest.raises(MountBusy, match="make"):
            await f.release_mount("/mnt/x")
        assert [each.guest_path for each in await f.gate.mounts(ANN, "build")] == ["/mnt/x"]
        del f.hosts["h1"].unreleased["/srv/x"]
        assert (await f.release_mount("/mnt/x")).released
        assert await f.gate.mounts(ANN, "build") == []


async def test_force_takes_a_share_from_all_of_the_tenants_owners() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/x", "one")
        await f.add_share("/srv/x", "two")
        first = await f.release_share("0", "one")
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "two")}}, first
        await f.add_share("/srv/x", "one")
        assert (await f.release_share("0", "nobody", force=True)).ended
        assert f.hosts["h1"].held() == {"build": set()}


async def test_an_owner_is_released_in_all_vms() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_vm(wanted=placed("test", "h2"))
        await f.add_share("/srv/x", "job", 60)
        await f.add_share("/srv/x", "job", vm="test")
        await f.add_share("/srv/y", "other", vm="test")
        released = await f.gate.release_owner(ANN, "job", force=False)
        assert (released.released, released.shares) == (True, 2)
        assert f.hosts["h2"].held() == {"test": {("/srv/y", "other")}}
        assert not (await f.gate.release_owner(ANN, "job", force=False)).released


async def test_another_tenants_vm_is_not_there() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        assert await f.gate.vms(EVE) == []
        for name in ("build", "acme:build"):
            for asked in (
                f.gate.vm(EVE, name),
                f.gate.shares(EVE, name),
                f.gate.want_share(EVE, name, NewShare(path="/srv/x")),
                f.gate.want_no_vm(EVE, name, force=True),
                f.gate.end_share(EVE, name, "0", "job", force=True),
                f.gate.renew_share(EVE, name, "0", "job"),
            ):
                with pytest.raises(NotThere, match="or none of yours"):
                    await asked
        assert (await f.gate.vm(ADMIN, "acme:build")).id == "acme:build"


async def test_a_role_bounds_what_its_holder_may_do() -> None:
    reader, holder, owner, nobody = (Caller("acme", name) for name in ("reader", "holder", "owner", "nobody"))
    async with fleet(read=("reader",), hold=("holder",), own=("owner",)) as f:
        await f.gate.add_vm(owner, *await f.gate.want_vm(owner, placed()))
        for who in (reader, holder, nobody):
            with pytest.raises(OperationDenied, match="'own'"):
                await f.gate.want_vm(who, placed("second"))
        for who in (reader, nobody):
            with pytest.raises(OperationDenied, match="'hold'"):
                await f.gate.want_share(who, "build", NewShare(path="/srv/x"))
        await f.gate.add_share(holder, await f.gate.want_share(holder, "build", NewShare(path="/srv/x")))
        for who in (reader, holder, owner):
            assert len(await f.gate.shares(who, "build")) == 1
        with pytest.raises(OperationDenied, match="'read'"):
            await f.gate.shares(nobody, "build")


async def test_quotas_of_vms_and_holdings_are_exact() -> None:
    async with fleet(vms=2, holdings=2) as f:
        names = [f"vm{number}" for number in range(6)]
        outcomes = await asyncio.gather(*(f.add_vm(wanted=placed(name)) for name in names), return_exceptions=True)
        assert sum(isinstance(each, LimitReached) for each in outcomes) == 4
        there = [vm.id for vm in await f.gate.vms(ANN)]
        assert len(there) == 2
        shares = [f.add_share(f"/srv/{number}", vm=there[0]) for number in range(6)]
        added = await asyncio.gather(*shares, return_exceptions=True)
        assert sum(isinstance(each, LimitReached) for each in added) == 4
        await f.remove_vm(there[0], force=True)
        await f.add_vm(wanted=placed("third"))


async def test_a_tenants_vms_have_no_more_in_all_than_they_may_but_for_what_gates_let_in_at_once() -> None:
    async with fleet(holdings_in_all=3) as f:
        await f.add_vm()
        await f.add_vm(wanted=placed("test"))
        for vm, path in (("build", "/srv/a"), ("test", "/srv/a"), ("test", "/srv/b")):
            await f.add_share(path, vm=vm)
        with pytest.raises(LimitReached, match="has 3 shares and mounts in all their VMs"):
            await f.add_share("/srv/c")
        assert (await f.add_share("/srv/a")).name == "0", "what is held already counts once"
        other = Gate(f.etcd.connect(), f.keys)
        with pytest.raises(LimitReached):
            await other.want_share(ANN, "build", NewShare(path="/srv/c"))


async def test_what_a_later_version_has_written_is_kept_by_gates_and_hosts() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        await f.add_share("/srv/y", "living", 600)
        await f.stop("h1")
        keys = f.keys
        for key in (keys.name("acme", "build"), keys.want("h1", "acme", "build"), keys.have("h1", "acme", "build")):
            (at,) = f.etcd.read(key)
            later = {**msgspec.json.decode(at.value), "later": {"a": [1]}}
            for holding in later.get("holdings", {}).values():
                holding["later"] = "too"
            await f.gate_store.txn([], [Put(key, msgspec.json.encode(later))])
        f.start("h1")
        await f.add_share("/srv/z")
        assert (await f.release_share("0")).ended
        await f.gate.renew(ANN, "living", 300)
        await asyncio.sleep(10)
        for key in (keys.name("acme", "build"), keys.want("h1", "acme", "build"), keys.have("h1", "acme", "build")):
            assert msgspec.json.decode(f.etcd.read(key)[0].value)["later"] == {"a": [1]}, key
        await f.move_vm("h2")
        (at,) = f.etcd.read(keys.want("h2", "acme", "build"))
        want = msgspec.json.decode(at.value)
        assert want["later"] == {"a": [1]}
        assert {each["what"]["path"]: each.get("later") for each in want["holdings"].values()} == {
            "/srv/y": "too",
            "/srv/z": None,
        }
        assert msgspec.json.decode(f.etcd.read(keys.name("acme", "build"))[0].value)["later"] == {"a": [1]}


async def test_a_vm_that_is_held_is_removed_by_force_alone() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        with pytest.raises(StillInUse):
            await f.remove_vm()
        await f.remove_vm(force=True)
        assert f.hosts["h1"].machines == {}


async def test_a_vm_of_the_same_name_with_other_settings_or_on_another_host_is_refused() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        with pytest.raises(AlreadyThere, match="other settings"):
            await f.add_vm(wanted=placed(read_only=True))
        with pytest.raises(AlreadyThere, match="on host h1"):
            await f.add_vm(wanted=placed(on="h2"))
        with pytest.raises(NotThere, match="no host 'h9'"):
            await f.add_vm(wanted=placed("other", "h9"))


async def test_what_is_not_waited_for_can_be_asked_about_through_any_gate() -> None:
    async with fleet() as f:
        await f.add_vm()
        asked = await f.gate.want_share(ANN, "build", NewShare(path="/srv/x", owner="job"))
        ticket = Ticket.read(Ticket("s", asked.revision, (asked.id,), 12.5, "build").text)
        assert ticket is not None
        ended, share = await f.gate.outcome(ANN, ticket, wait=True)
        assert ended
        assert share.path == "/srv/x"
        with pytest.raises(NotThere):
            await f.gate.outcome(EVE, ticket, wait=False)


async def test_a_lost_host_is_removed_with_its_vms_and_ends_them_when_it_comes_back() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        assert [(host.name, host.state, host.vms) for host in await f.gate.hosts(ANN)] == [
            ("h1", "alive", 1),
            ("h2", "alive", 0),
        ]
        with pytest.raises(StillInUse, match="lives"):
            await f.gate.remove_host(ADMIN, "h1")
        with pytest.raises(OperationDenied, match="no administrator"):
            await f.gate.remove_host(ANN, "h1")
        await f.stop("h1")
        await asyncio.sleep(20)
        assert (await f.gate.remove_host(ADMIN, "h1")).vms == ("acme:build",)
        assert await f.gate.vms(ANN) == []
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}
        f.start("h1")
        await asyncio.sleep(1)
        assert f.hosts["h1"].machines == {}


async def test_a_lease_that_ends_between_is_gone_and_nothing_is_wanted() -> None:
    async with fleet() as f:
        await f.add_vm()
        sent = f.gate_store.txn

        async def late(compare: Any, then: Any, otherwise: Any = ()) -> Any:
            if any(getattr(each, "lease", 0) for each in then) and len(then) > 1:
                await f.gate_store.revoke(f.etcd.leases[-1])
            return await sent(compare, then, otherwise)

        f.gate_store.txn = late  # type: ignore[method-assign]  # what a test puts between
        with pytest.raises(LeaseNotFound):
            await f.add_share("/srv/x", "job", 10)
        assert f.hosts["h1"].held() == {"build": set()}


async def test_what_its_user_takes_away_on_the_host_comes_back() -> None:
    async with fleet() as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        host = f.hosts["h1"]
        (vm,) = host.machines
        del host.machines[vm]
        host.note_change(vm)
        await asyncio.sleep(5)
        assert host.held() == {"build": {("/srv/x", "job")}}
