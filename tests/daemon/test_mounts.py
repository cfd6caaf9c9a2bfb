"""Mounts through the daemon and a guest's agent, whose kernel only notes down what it mounts (`tests/agent`)."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.guests import guest, mapped, replace, wanted
from tests.daemon.harness import supervisor_of
from tests.daemon.test_users import ALICE, User
from tests.root import needs_root

from uvmshare import errors
from uvmshare.cli.main import run
from uvmshare.daemon.documents import ReleasedOwner
from uvmshare.guest.mount import choose

if TYPE_CHECKING:
    from tests.daemon.guests import Guest
    from tests.daemon.harness import Home, Running

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.machine import Machine
    from uvmshare.mounts.channel import Stream
    from uvmshare.mounts.mount import MountInfo

__all__ = ["guest", "mapped"]

_FLAGS = ("suid", "dev", "posixacl", "events")


def test_two_programs_have_one_share_and_one_mount(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    for owner in ("one", "two", "one"):
        mount = client.mounts.map("vm", **wanted(guest, path, owner=owner))
        assert (mount.path, mount.guest_path, mount.state) == (path, f"{guest.allow}/project", "mounted")
    assert guest.mounted() == [f"{guest.allow}/project"]
    assert len(guest.server.asked) == 1
    (share,) = client.shares("vm")
    assert share.mounts == (mount.guest_path,)
    assert share.references == ()
    assert [each.owner for each in client.mounts("vm")[0].references] == ["one", "two"]
    assert client.vms.get("vm").mounts == 1
    client.mounts.unmap("vm", mount.guest_path, owner="one")
    assert guest.mounted()
    client.mounts.unmap("vm", mount.guest_path, owner="nobody")
    client.mounts.unmap("vm", mount.guest_path, owner="two")
    assert guest.mounted() == []
    assert (client.mounts("vm"), client.shares("vm")) == ([], [])
    with pytest.raises(errors.NotThere):
        client.mounts.unmap("vm", mount.guest_path, owner="two")


def test_what_a_user_says_of_rights_and_access_control_lists_reaches_the_guests_kernel_and_stays(
    home: Home, guest: Guest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", home.host)
    path = home.directory("project")
    asked: tuple[dict[str, bool], ...] = (
        {},
        {"suid": True},
        {"dev": True},
        {"posixacl": True},
        {"events": True},
        {"suid": True, "dev": True, "posixacl": True},
    )
    wanted_flags = {
        f"{guest.allow}/{n}": {f"no{flag}" for flag in ("suid", "dev") if not more.get(flag)}
        | {name for name in more if name == "posixacl"}
        for n, more in enumerate(asked)
    }
    chosen = choose("auto", None, read_only=False)
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        for n, more in enumerate(asked[:-1]):
            mount = client.mounts.map("vm", **wanted(guest, path, str(n), **more))
            given = {name: getattr(mount, name) for name in _FLAGS}
            assert given == {**dict.fromkeys(_FLAGS, False), **more}
            assert (mount.no_events is None) is not mount.events, "this kernel has no 9P"
            assert (mount.cache, mount.msize, mount.chosen) == ("auto", None, chosen)
        capfd.readouterr()
        assert run(["map", "vm", path, f"{guest.allow}/5", "--suid", "--dev", "--posixacl"]) == 0
        said = capfd.readouterr()
        assert said.out == f"{guest.allow}/5\n"
        assert said.err == f"{guest.allow}/5 is mounted with {chosen}\n"
        assert run(["mounts", "vm"]) == 0
        said = capfd.readouterr()
        assert said.out.count("mounted without events") == 1
        assert said.err.startswith(f"{guest.allow}/4 has no events: ")
        assert guest.flags() == wanted_flags
        with pytest.raises(errors.MountConflict, match="suid"):
            client.mounts.map("vm", **wanted(guest, path, "0", owner="other", suid=True))
        with pytest.raises(errors.MountConflict, match="posixacl"):
            client.mounts.map("vm", **wanted(guest, path, "3", owner="other"))
        with pytest.raises(errors.MountConflict, match="events"):
            client.mounts.map("vm", **wanted(guest, path, "4", owner="other"))

        # After a cut each is made beside the dead one, and bound in its place.
        agent = _machine(daemon).agent
        assert agent is not None
        for connection in tuple(guest.server.connected):
            connection.shutdown(socket.SHUT_RDWR)
        while not all(found.again for found in daemon.call(agent.listed)):
            pass
        assert guest.flags() == wanted_flags
    with home.running(), home.client() as client:  # a daemon that asks for what is written down
        restored = (event for event in client.events("0") if event is not None and event.kind == "mount.restored")
        for _ in asked:
            next(restored)
        found = {each.guest_path: each for each in client.mounts("vm")}
        for n, more in enumerate(asked):
            each = found[f"{guest.allow}/{n}"]
            assert {name for name in _FLAGS if getattr(each, name)} == set(more)
            assert (each.no_events is None) is not each.events
            assert (each.state, each.chosen) == ("mounted", chosen)
        assert guest.flags() == wanted_flags


def test_listing_shares_looks_at_the_mounts_once(
    mapped: Running, guest: Guest, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("a", "b", "c")
    for name in names:
        client.mounts.map("vm", **wanted(guest, mapped.home.directory(name), name))
    machine, looked = _machine(mapped), 0
    mounted = machine.mounted

    def look() -> tuple[MountInfo, ...]:
        nonlocal looked
        looked += 1
        return mounted()

    monkeypatch.setattr(machine, "mounted", look)
    assert [share.mounts for share in client.shares("vm")] == [(f"{guest.allow}/{name}",) for name in names]
    assert looked == 1


def test_what_cannot_be_mounted_leaves_neither_share_nor_lease(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    with pytest.raises(errors.MountRefused):
        client.mounts.map("vm", path, "/etc/x", owner="job", lease=60)
    with pytest.raises(errors.InvalidOptions):
        client.mounts.map("vm", **wanted(guest, f"{path}/missing", lease=60))
    with pytest.raises(errors.InvalidOptions):
        client.mounts.map("vm", path, "relative")
    assert (client.mounts("vm"), client.shares("vm"), guest.mounted()) == ([], [], [])
    with pytest.raises(errors.NotThere):
        client.owners.renew("job")
    taken = client.mounts.map("vm", **wanted(guest, path))
    with pytest.raises(errors.MountConflict, match="taken"):
        client.mounts.map("vm", **wanted(guest, mapped.home.directory("other"), owner="other"))
    assert client.mounts("vm") == [taken]


def test_a_lease_that_ends_takes_mount_and_share_away_although_they_are_used(
    mapped: Running, guest: Guest, client: Client
) -> None:
    path = mapped.home.directory("project")
    client.mounts.map("vm", **wanted(guest, path, owner="short", lease=10))
    client.mounts.map("vm", **wanted(guest, path, owner="long", lease=100))
    Path(guest.kernel, "busy").write_text(f"{guest.allow}/project")
    client.mounts.map("vm", **wanted(guest, path, "second", owner="short", lease=10))
    Path(guest.kernel, "busy").write_text(f"{guest.allow}/project\n{guest.allow}/second")
    with pytest.raises(errors.MountBusy):
        client.mounts.unmap("vm", f"{guest.allow}/second", owner="short")
    assert client.owners.renew("long").leases == 1
    mapped.pass_time(10)
    assert guest.mounted() == [f"{guest.allow}/project"]
    mapped.pass_time(90)
    assert guest.mounted() == []
    assert (client.mounts("vm"), client.shares("vm")) == ([], [])
    kinds = [event.kind for event in client.events("0", follow=False) if event is not None]
    assert kinds.count("lease.ended") == 3


def test_a_lease_that_is_shorter_than_the_mounting_begins_after_it(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        manager = _machine(daemon).require_mounts()
        mount = manager.mount

        async def mount_slowly(*args: Any, **more: Any) -> MountInfo:
            assert daemon.daemon is not None
            home.clock.now += 10
            await daemon.daemon.service.leases.expire()
            return await mount(*args, **more)

        manager.mount = mount_slowly  # type: ignore[method-assign]  # nothing else knows when it is under way
        client.mounts.map("vm", **wanted(guest, path, owner="job", lease=10))
        assert client.owners.renew("job").leases == 1
    with home.running() as daemon, home.client() as client:
        (found,) = client.mounts("vm")
        assert [each.owner for each in found.references] == ["job"]
        daemon.pass_time(10)
        assert (guest.mounted(), client.mounts("vm"), client.shares("vm")) == ([], [], [])


def test_a_guest_that_does_not_answer_keeps_no_directory(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    client.mounts.map("vm", **wanted(guest, path, owner="job", lease=10))
    machine = _machine(mapped)
    dials, released = _tell_dials(machine), _tell_releases(machine)
    guest.end()
    mapped.call(dials.get)  # it dials when it is not connected any more
    assert client.vms.get("vm").agent_state == "unreachable"
    assert mapped.daemon is not None
    leases = mapped.daemon.service.leases
    mapped.home.clock.now += 10

    async def end_lease() -> None:
        leases._see_to_those_over()
        await released.get()

    mapped.call(end_lease)
    mapped.call(leases.settle)
    assert client.shares("vm") == []
    (dead,) = client.mounts("vm")
    assert (dead.state, dead.share, dead.references) == ("revoked", None, ())
    assert guest.mounted() == [dead.guest_path]
    guest.start()
    mapped.call(lambda: until_unmounted(machine))
    assert guest.mounted() == []
    assert client.mounts("vm") == []


async def until_unmounted(machine: Machine) -> None:
    """Wait until the guest has unmounted what nobody holds any more."""
    mounts = machine.require_mounts()
    while mounts.mounts():
        for mount in tuple(mounts._engine.table.values()):
            if mount.operation is not None:
                await mount.operation.wait()
            else:
                mounts._engine.see_to(mount)


def _machine(daemon: Running) -> Machine:
    assert daemon.daemon is not None
    (machine,) = daemon.daemon.service.machines.values()
    return machine


def _tell_dials(machine: Machine) -> asyncio.Queue[Exception | None]:
    """Have each attempt to dial the agent told from now on, with the failure of the one before it."""
    agent, told = machine.agent, asyncio.Queue[Exception | None]()
    assert agent is not None
    streams = agent._streams
    assert streams is not None
    dial = streams.next

    async def dial_and_tell() -> Stream:
        told.put_nowait(agent._failure)
        return await dial()

    streams.next = dial_and_tell  # type: ignore[method-assign]  # nothing tells of an attempt
    return told


def _tell_releases(machine: Machine) -> asyncio.Queue[None]:
    """Have each release of a share told that the Manager has carried out."""
    manager, told = machine.require(), asyncio.Queue[None]()
    release = manager.remove

    async def release_and_tell(*args: Any, **more: Any) -> None:
        await release(*args, **more)
        told.put_nowait(None)

    manager.remove = release_and_tell  # type: ignore[method-assign]  # it is no event for users
    return told


def test_the_daemon_finds_its_mounts_again_and_the_guest_notices_nothing(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        client.mounts.map("vm", **wanted(guest, path, owner="leased", lease=30))
        before = client.mounts.map("vm", **wanted(guest, path, owner="held"))
    with home.running() as daemon, home.client() as client:
        (found,) = client.mounts("vm")
        assert {each.owner for each in found.references} == {"leased", "held"}
        restored = (event for event in client.events("0") if event is not None and event.kind == "mount.restored")
        assert {next(restored).owner, next(restored).owner} == {"leased", "held"}
        (found,) = client.mounts("vm")
        assert (found.state, found.share, found.path) == ("mounted", before.share, path)
        assert len(guest.server.asked) == 1
        daemon.pass_time(30)
        (found,) = client.mounts("vm")
        assert [each.owner for each in found.references] == ["held"]
        client.mounts.unmap("vm", found.guest_path, owner="held")
        assert (guest.mounted(), client.shares("vm")) == ([], [])


def test_a_mount_hides_and_maps_the_same_after_the_daemon_was_started_again(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    more: dict[str, Any] = {"hide": ("*", "!shown"), "map_owner": "1000:0"}
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        before = client.mounts.map("vm", **wanted(guest, path, **more))
        assert (before.hide, before.map_owner) == (("*", "!shown"), "1000/1000:0/0")
        with pytest.raises(errors.MountConflict, match="hides 2 patterns, owner=1000/1000:0/0"):
            client.mounts.map("vm", **wanted(guest, path))
    with home.running(), home.client() as client:
        restored = (event for event in client.events("0") if event is not None and event.kind == "mount.restored")
        next(restored)
        (found,) = client.mounts("vm")
        assert (found.share, found.hide, found.map_owner) == (before.share, before.hide, before.map_owner)
        (share,) = client.shares("vm")
        assert (share.name, share.hide, share.map_owner) == (before.share, before.hide, before.map_owner)
        client.mounts.unmap("vm", found.guest_path)
        assert client.shares("vm") == []


def test_a_mount_whose_directory_was_replaced_is_kept_by_its_holder_and_joined_by_nobody(
    home: Home, guest: Guest
) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        before = client.mounts.map("vm", **wanted(guest, path, owner="job-1"))
        replace(path)
        with pytest.raises(errors.MountConflict, match="was replaced since: have those who hold that mount release it"):
            client.mounts.map("vm", **wanted(guest, path, owner="job-2"))
        (found,) = client.mounts("vm")
        assert (found.share, found.directory) == (before.share, "replaced")
        assert [each.owner for each in found.references] == ["job-1"]
    # The next daemon asks for the very same mount, not for one of what is at the path now.
    with home.running(), home.client() as client:
        restored = (event for event in client.events("0") if event is not None and event.kind == "mount.restored")
        assert next(restored).owner == "job-1"
        (found,) = client.mounts("vm")
        assert (found.state, found.share, found.directory) == ("mounted", before.share, "replaced")
        assert len(guest.server.asked) == 1
        assert [share.name for share in client.shares("vm")] == [before.share]
        client.mounts.unmap("vm", found.guest_path, owner="job-1")
        again = client.mounts.map("vm", **wanted(guest, path, owner="job-2"))
        assert again.share != before.share


def test_a_mount_whose_directory_is_gone_from_its_path_outlives_the_daemon(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        client.mounts.map("vm", **wanted(guest, path, owner="job-1"))
    os.rmdir(path)
    with home.running(), home.client() as client:
        ended = (event for event in client.events("0") if event is not None and event.kind.startswith("mount."))
        assert next(ended).kind == "mount.restored"
        (found,) = client.mounts("vm")
        assert (found.state, found.directory) == ("mounted", "gone")


def test_a_mount_is_not_made_again_of_another_directory_than_it_was_of(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        client.mounts.map("vm", **wanted(guest, path, owner="job-1"))
    os.kill(supervisor_of(home, os.geteuid()), signal.SIGTERM)  # it ends in order, and nobody serves the directory
    replace(path)
    with home.running(), home.client() as client:
        ended = (event for event in client.events("0") if event is not None and event.kind.startswith("mount."))
        assert next(ended).kind == "mount.given_up"
        assert client.mounts("vm") == []


def test_what_is_given_back_before_the_guest_is_reached_again_stays_given_back(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        client.mounts.map("vm", **wanted(guest, path, owner="a", lease=30))
        client.mounts.map("vm", **wanted(guest, home.directory("gone"), "gone", owner="b"))
    guest.end()
    os.rmdir(f"{home.folder}/gone")
    with home.running() as daemon, home.client() as client:
        assert {mount.state for mount in client.mounts("vm")} <= {"restoring", "pending"}
        daemon.pass_time(30)
        held = {mount.guest_path for mount in client.mounts("vm") if mount.references}
        assert held <= {f"{guest.allow}/gone"}, "until the guest is seen to have lost it"
        assert [share.path for share in client.shares("vm") if share.path == path] == []


def test_a_vm_without_an_agent_says_so(daemon: Running, client: Client) -> None:
    daemon.add_vm()
    path = daemon.home.directory("project")
    with pytest.raises(errors.InvalidState, match="no agent"):
        client.mounts.map("vm", path, "/run/uvmshare/x")
    with pytest.raises(errors.InvalidState, match="no agent"):
        client.vms.examine("vm")
    assert client.mounts("vm") == []


def test_removing_a_vm_unmounts_what_the_guest_still_answers_for(mapped: Running, guest: Guest, client: Client) -> None:
    client.mounts.map("vm", **wanted(guest, mapped.home.directory("project")))
    with pytest.raises(errors.StillInUse):
        client.vms.remove("vm")
    client.vms.remove("vm", force=True)
    assert guest.mounted() == []


def test_a_revoked_mount_is_held_by_nobody_and_keeps_no_vm(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    client.mounts.map("vm", **wanted(guest, path, owner="job"))
    client.shares.add("vm", mapped.home.directory("other"), owner="another")
    machine = _machine(mapped)
    dials = _tell_dials(machine)
    guest.end()
    mapped.call(dials.get)  # it dials when it is not connected any more
    client.mounts.unmap("vm", wanted(guest, path)["guest_path"], owner="job", force=True)
    assert [(each.state, each.references) for each in client.mounts("vm")] == [("revoked", ())]
    with pytest.raises(errors.StillInUse, match=r"has 1 share\(s\) and 0 mount\(s\) that are held"):
        client.vms.remove("vm")
    client.shares.release("vm", client.shares("vm")[0].name, owner="another")
    client.vms.remove("vm")
    assert client.vms() == []


def test_an_owner_that_is_gone_gives_mounts_and_shares_back(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    client.mounts.map("vm", **wanted(guest, path, owner="job"))
    client.shares.add("vm", path, owner="job")
    client.mounts.map("vm", **wanted(guest, mapped.home.directory("other"), "other", owner="else"))
    assert client.owners.release("job") == ReleasedOwner(released=True, shares=1, mounts=1)
    assert guest.mounted() == [f"{guest.allow}/other"]
    (share,) = client.shares("vm")
    assert share.mounts == (f"{guest.allow}/other",)


@needs_root
def test_what_another_user_has_mounted_is_not_told(home: Home, guest: Guest, daemon: Running) -> None:
    alice = User(daemon, ALICE)
    os.chmod(guest.socket, 0o666)
    alice.add_vm(agent=f"unix:{guest.socket}")
    secret = home.directory("roots")
    with home.client() as root:
        root.mounts.map(f"{ALICE}:vm", **wanted(guest, secret, read_only=True))
    assert alice.do(lambda client: client.mounts("vm")) == []
    assert alice.do(lambda client: client.shares("vm")) == []
    with pytest.raises(errors.MountConflict) as refused:
        alice.do(lambda client: client.mounts.map("vm", **wanted(guest, alice.folder)))
    assert secret not in str(refused.value)
    with pytest.raises(errors.NotThere):
        alice.do(lambda client: client.mounts.unmap("vm", f"{guest.allow}/project"))
    assert guest.mounted() == [f"{guest.allow}/project"]


@needs_root
def test_an_agent_is_dialled_with_the_rights_of_the_vms_user(home: Home, guest: Guest, daemon: Running) -> None:
    alice = User(daemon, ALICE)
    os.chmod(guest.socket, 0o600)
    alice.add_vm(agent=f"unix:{guest.socket}")
    dials = _tell_dials(_machine(daemon))
    daemon.call(dials.get)  # that one may be the first
    assert "ermission denied" in str(daemon.call(dials.get))
    os.chmod(guest.socket, 0o666)
    assert alice.do(lambda client: client.mounts.map("vm", **wanted(guest, alice.folder)).state) == "mounted"


def test_doctor_tells_of_the_guest_too(
    mapped: Running, guest: Guest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", mapped.home.host)
    assert run(["doctor", "--vm", "vm", "--json"]) in {0, 1}
    subjects = {finding["subject"] for finding in json.loads(capfd.readouterr().out)}
    assert {"kernel", "guest kernel", "guest 9P client"} <= subjects
    assert run(["doctor", "--vm", "nothing", "--json"]) == 1
    (found,) = [each for each in json.loads(capfd.readouterr().out) if each["subject"] == "guest of nothing"]
    assert "'nothing'" in found["found"]
    assert found["remedy"]
    mapped.add_vm("deaf")
    path = mapped.home.directory("project")
    mapped.add_share(path, "deaf", owner="job-1")
    replace(path)
    mapped.add_share(path, "deaf", owner="job-2")
    assert run(["doctor", "--vm", "deaf"]) == 1
    told = capfd.readouterr().out
    assert "no agent" in told
    assert f"warning  share 0 ({path}): its path leads to another directory now" in told
    assert "release it and add the path again" in told
    assert f"good     share 1 ({path}): its path leads to the directory that is shared" in told


def test_the_commands_map_list_and_unmap(
    mapped: Running, guest: Guest, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UVMSHARE_HOST", mapped.home.host)
    path, target = mapped.home.directory("project"), f"{guest.allow}/project"

    def printed(*args: str) -> str:
        capfd.readouterr()
        assert run(args) == 0
        return capfd.readouterr().out

    assert printed("map", "vm", f"{path}:ro", target, "--owner", "job", "--lease", "60") == f"{target}\n"
    assert json.loads(printed("map", "vm", f"{path}:ro", target, "--json"))["state"] == "mounted"
    table = printed("mounts")
    assert table.splitlines()[0].split()[:2] == ["VM", "GUEST"]
    assert target in table
    assert json.loads(printed("mounts", "vm", "--json"))[0]["read_only"] is True
    assert printed("unmap", "vm", target) == f"{target}\n"
    assert printed("unmap", "vm", target, "--owner", "job", "--lazy") == f"{target}\n"
    assert printed("mounts") == ""
