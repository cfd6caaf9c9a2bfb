"""A VM that moves from one host to another, and a copy of one, through a fake etcd and fake daemons."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.fleet_model.harness import ANN, EVE, fleet, own_vm

from uvmshare.daemon.fleet_documents import NewClone, NewMove
from uvmshare.errors import (
    AlreadyThere,
    HostPathNotFound,
    InvalidOptions,
    InvalidState,
    NotThere,
    OperationDenied,
    OutcomeUnknown,
)
from uvmshare.fleet.callers import Caller
from uvmshare.fleet.documents import Name, decode
from uvmshare.fleet.local import VmName

if TYPE_CHECKING:
    from tests.fleet_model.harness import Fleet

BUILD = VmName("acme", "build")


def _moving(f: Fleet) -> Name:
    (at,) = f.etcd.read(f.keys.name("acme", "build"))
    return decode(Name, at.value, at.key)


def _names(f: Fleet, host: str) -> dict[str, set[str]]:
    return {name: owners for name, (_, owners) in f.hosts[host].machines[BUILD].shares.items()}


async def test_a_vm_moves_with_its_shares_names_and_holders_and_no_name_is_used_again() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        for path in ("/srv/a", "/srv/gone", "/srv/b", "/srv/gone-too"):
            await f.add_share(path)
        await f.add_mount("/srv/m", "/mnt/m", "living", 20)
        for name in ("1", "3"):
            await f.release_share(name)
        moved = await f.move_vm("h2")
        assert (moved.host, moved.epoch, moved.state) == ("h2", 2, "running")
        assert BUILD not in f.hosts["h1"].machines
        assert _names(f, "h2") == {"0": {"job"}, "2": {"job"}}
        (mount,) = await f.gate.mounts(ANN, "build")
        assert (mount.guest_path, mount.share, mount.references[0].lease) == ("/mnt/m", "4", 20)
        assert (await f.add_share("/srv/new")).name == "5"
        assert (await f.add_share("/srv/a")).name == "0", "it is held, and is the same again"
        await asyncio.sleep(60)
        assert f.hosts["h2"].held() == {"build": {("/srv/a", "job"), ("/srv/b", "job"), ("/srv/new", "job")}}
        assert not f.etcd.read(f.keys.have("h1", "acme", "build"))
        assert (await f.move_vm("h2")).epoch == 2, "the same again changes nothing"
        assert (await f.move_vm("h1")).epoch == 3
        assert (await f.add_share("/srv/newer")).name == "6"


async def test_a_lease_is_renewed_where_its_vm_has_moved_to() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x", "living", 5)
        await f.move_vm("h2")
        for _ in range(10):
            await asyncio.sleep(2)
            await f.gate.renew(ANN, "living")
        assert f.hosts["h2"].held() == {"build": {("/srv/x", "living")}}


async def test_a_vm_that_came_from_another_host_and_is_lost_comes_back_with_the_same_names() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        await f.move_vm("h2")
        await f.add_share("/srv/y")
        await f.add_share("/srv/gone")
        await f.release_share("2")
        host = f.hosts["h2"]
        del host.machines[BUILD]
        host.note_change(BUILD)
        await asyncio.sleep(5)
        assert _names(f, "h2") == {"0": {"job"}, "1": {"job"}}
        assert (await f.add_share("/srv/z")).name == "3"


async def test_between_its_steps_a_vm_is_served_where_it_was_and_what_is_added_then_moves_too() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        for _ in range(2):
            assert (await f.move_vm("h2", "prepare")).host == "h1"
        assert f.hosts["h2"].writes == []
        await f.add_share("/srv/late", "late", 60)
        assert f.hosts["h1"].held()["build"] == {("/srv/x", "job"), ("/srv/late", "late")}
        assert (await f.move_vm("h2", "commit")).host == "h2"
        assert f.hosts["h2"].held() == {"build": {("/srv/x", "job"), ("/srv/late", "late")}}


async def test_what_another_host_cannot_share_is_an_error_and_the_vm_stays() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        f.hosts["h2"].refused["/srv/x"] = HostPathNotFound("/srv/x: there is no such directory")
        with pytest.raises(HostPathNotFound):
            await f.move_vm("h2")
        await asyncio.sleep(10)
        assert _moving(f).moving is None
        assert not f.etcd.read(f.keys.host("h2") + "vm/")
        assert not f.etcd.read(f.keys.host("h2") + "have/")
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}
        with pytest.raises(InvalidState, match="was not prepared"):
            await f.move_vm("h2", "commit")
        with pytest.raises(NotThere, match="no host 'h9'"):
            await f.move_vm("h9")


async def test_what_was_prepared_goes_when_it_is_aborted_and_when_nobody_commits_it() -> None:
    async with fleet("h1", "h2", "h3") as f:
        await f.add_vm()
        await f.move_vm("h2", "prepare")
        with pytest.raises(InvalidState, match="abort that first"):
            await f.move_vm("h3")
        for _ in range(2):
            assert (await f.move_vm("h2", "abort")).host == "h1"
        await asyncio.sleep(1)
        assert not f.etcd.read(f.keys.host("h2") + "have/")
        await f.move_vm("h2", "prepare")
        await asyncio.sleep(700)
        assert not f.etcd.read(f.keys.host("h2") + "vm/")
        with pytest.raises(InvalidState, match="longer ago"):
            await f.move_vm("h2", "commit")
        assert (await f.move_vm("h3")).host == "h3"


async def commit_while_the_old_host_is_cut_off(f: Fleet) -> None:
    """Move the VM from h1 to h2, as far as that goes while nobody hears of h1."""
    await f.add_vm()
    await f.add_share("/srv/x")
    await f.move_vm("h2", "prepare")
    f.cut("h1")
    with pytest.raises(OutcomeUnknown):
        await f.move_vm("h2", "commit")


async def test_a_vm_waits_until_its_old_host_has_let_go() -> None:
    async with fleet("h1", "h2") as f:
        await commit_while_the_old_host_is_cut_off(f)
        assert BUILD in f.hosts["h1"].machines
        assert BUILD not in f.hosts["h2"].machines, "two would serve it"
        f.mend("h1")
        await asyncio.sleep(60)
        assert BUILD not in f.hosts["h1"].machines
        assert (await f.move_vm("h2", "commit")).host == "h2"
        assert f.hosts["h2"].held() == {"build": {("/srv/x", "job")}}


async def test_a_vm_that_moves_on_before_its_first_host_has_let_go_waits_for_both() -> None:
    async with fleet("h1", "h2", "h3") as f:
        await commit_while_the_old_host_is_cut_off(f)
        with pytest.raises(OutcomeUnknown):
            await f.move_vm("h3")
        await asyncio.sleep(100)
        assert [name for name, host in f.hosts.items() if host.machines] == ["h1"], "it serves yet"
        f.mend("h1")
        await asyncio.sleep(60)
        assert (await f.move_vm("h3", "commit")).host == "h3"
        assert [name for name, host in f.hosts.items() if host.machines] == ["h3"]


async def test_a_vm_comes_back_to_a_host_that_did_not_hear_that_it_had_gone() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/old")
        f.cut("h1")
        await asyncio.sleep(20)
        await f.move_vm("h2", take=True, made_sure=True)
        await f.release_share("0")
        await f.add_share("/srv/new")
        with pytest.raises(InvalidState, match="has not let go of an earlier VM"):
            await f.move_vm("h1")
        f.mend("h1")
        await asyncio.sleep(60)
        await f.move_vm("h1")
        assert _names(f, "h1") == {"1": {"job"}}
        assert f.hosts["h1"].held() == {"build": {("/srv/new", "job")}}


async def test_a_vm_is_taken_from_a_lost_host_by_whoever_made_sure_alone() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        with pytest.raises(InvalidState, match="without --take"):
            await f.move_vm("h2", take=True, made_sure=True)
        await f.stop("h1")
        await asyncio.sleep(20)
        with pytest.raises(InvalidState, match="--take --i-made-sure"):
            await f.move_vm("h2")
        with pytest.raises(InvalidOptions, match="--i-made-sure"):
            await f.move_vm("h2", take=True)
        assert (await f.move_vm("h2", take=True, made_sure=True)).state == "running"
        assert _names(f, "h2") == {"0": {"job"}}
        f.start("h1")
        await asyncio.sleep(5)
        assert f.hosts["h1"].machines == {}, "it ends what is not its any more"
        assert not f.etcd.read(f.keys.host("h1") + "have/")


async def test_who_moves_or_copies_a_vm_owns_it() -> None:
    reader = Caller("acme", "reader")
    async with fleet("h1", "h2", own=("ann",)) as f:
        await f.add_vm()
        for who, error in ((reader, OperationDenied), (EVE, NotThere)):
            with pytest.raises(error):
                await f.gate.move(who, "build", NewMove(to="h2"))
            with pytest.raises(error):
                await f.gate.move(who, "build", NewMove(to="h2", step="abort"))
            with pytest.raises(error):
                await f.gate.want_clone(who, "build", NewClone(id="two", on="h2"))


async def test_a_vm_of_a_hosts_own_does_not_move() -> None:
    async with fleet("h1", "h2") as f:
        await f.join_vm(own_vm(f.hosts["h1"]))
        with pytest.raises(InvalidState, match="vm leave"):
            await f.move_vm("h2")


async def test_a_copy_of_a_vm_has_the_same_shares_by_the_same_names_and_a_life_of_its_own() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/gone")
        await f.add_share("/srv/x")
        await f.add_share("/srv/y", "living", 10)
        await f.release_share("0")
        copy = await f.gate.add_vm(ANN, *await f.gate.want_clone(ANN, "build", NewClone(id="copy", on="h2")))
        assert (copy.id, copy.host, copy.listen, copy.epoch) == ("copy", "h2", ("unix:/run/build.9p",), 1)
        assert {each.name: each.path for each in await f.gate.shares(ANN, "copy")} == {"1": "/srv/x", "2": "/srv/y"}
        assert (await f.add_share("/srv/z", vm="copy")).name == "3"
        for _ in range(10):
            await asyncio.sleep(3)
            await f.gate.renew(ANN, "living")
        assert ("/srv/y", "living") in f.hosts["h2"].held()["copy"]
        await asyncio.sleep(30)
        assert f.hosts["h2"].held() == {"copy": {("/srv/x", "job"), ("/srv/z", "job")}}
        assert f.hosts["h1"].held() == {"build": {("/srv/x", "job")}}
        await f.remove_vm(force=True)
        assert [vm.id for vm in await f.gate.vms(ANN)] == ["copy"]
        with pytest.raises(AlreadyThere):
            await f.gate.want_clone(ANN, "copy", NewClone(id="copy", on="h1"))
        here = NewClone(id="here", on="h1", listen=("unix:/run/here.9p",), agent="unix:/run/here.agent")
        assert (await f.gate.add_vm(ANN, *await f.gate.want_clone(ANN, "copy", here))).listen == ("unix:/run/here.9p",)


async def test_a_copy_that_its_host_cannot_have_leaves_nothing() -> None:
    async with fleet("h1", "h2") as f:
        await f.add_vm()
        await f.add_share("/srv/x")
        f.hosts["h2"].refused["/srv/x"] = HostPathNotFound("/srv/x: there is no such directory")
        with pytest.raises(HostPathNotFound):
            await f.gate.add_vm(ANN, *await f.gate.want_clone(ANN, "build", NewClone(id="copy", on="h2")))
        assert [vm.id for vm in await f.gate.vms(ANN)] == ["build"]
