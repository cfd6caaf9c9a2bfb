"""A VM whose user's process does not answer: the daemon starts, answers others, and ends; the VM's leases run."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest
from tests.daemon.harness import supervisor_of
from tests.daemon.test_users import ALICE, User, as_user
from tests.processes import await_answer, kill
from tests.root import needs_root

from uvmshare import errors
from uvmshare.daemon import machine, service
from uvmshare.fileserver.device import FileServer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.daemon.harness import Home, Running


@pytest.fixture
def silent(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Event]:
    """A file server of one VM, "vm", that is not found before the event is set; requests wait for it no second."""
    answers = asyncio.Event()
    start = FileServer.start

    async def late(server: FileServer) -> FileServer:
        if "/vm'" in repr(server):
            await answers.wait()
        return await start(server)

    with home.running() as daemon:
        daemon.add_vm()
        daemon.add_vm("other")
        daemon.add_share(home.directory("leased"), owner="leased", lease=30)
        daemon.add_share(home.directory("held"), owner="held")
    monkeypatch.setattr(FileServer, "start", late)
    monkeypatch.setattr(service, "_READY_SECONDS", 0)
    monkeypatch.setattr(machine, "_LAST_FIND_SECONDS", 0.1)
    yield answers
    monkeypatch.undo()


async def told(daemon: Running, answers: asyncio.Event) -> None:
    answers.set()
    assert daemon.daemon is not None
    await daemon.daemon.service.machines[os.getuid(), "vm"].found.wait()


def test_a_vm_that_is_still_being_found_keeps_no_other_waiting(home: Home, silent: asyncio.Event) -> None:
    with home.running(found=False) as daemon, home.client() as client:
        vm = client.vms.get("vm")
        assert (vm.state, vm.error) == ("finding", "it is still being found, or started")
        daemon.call(daemon.service.machines[os.getuid(), "other"].found.wait)
        assert client.vms.get("other").state == "running"
        client.shares.add("other", home.directory("project"))
        for ask in (
            lambda: client.shares("vm"),
            lambda: client.mounts("vm"),
            lambda: client.vms.stats("vm"),
            lambda: client.shares.add("vm", home.directory("project")),
            lambda: client.shares.release("vm", "0"),
            lambda: client.owners.release("held"),
            lambda: client.vms.remove("vm"),
        ):
            with pytest.raises(errors.InvalidState, match=r"'vm' is still being found.*ask again"):
                ask()
        daemon.call(lambda: told(daemon, silent))
        assert client.vms.get("vm").state == "running"
        assert {each.owner for share in client.shares("vm") for each in share.references} == {"leased", "held"}
        client.owners.release("held")


def test_a_lease_that_ends_while_its_vm_is_being_found_ends_the_share_once_it_is(
    home: Home, silent: asyncio.Event
) -> None:
    with home.running(found=False) as daemon, home.client() as client:
        leases = daemon.service.leases
        assert client.owners.renew("leased").leases == 1
        home.clock.now += 30

        async def see() -> None:
            leases._see_to_those_over()

        daemon.call(see)
        with pytest.raises(errors.NotThere, match="no lease"):
            client.owners.renew("leased")  # it is over for good, although the share is there yet
        daemon.call(lambda: told(daemon, silent))
        daemon.call(leases.settle)
        assert [each.owner for share in client.shares("vm") for each in share.references] == ["held"]
        kinds = [event.kind for event in client.events("0", follow=False) if event is not None]
        assert kinds[-3:] == ["vm.found", "lease.ended", "share.removed"]


def test_a_vm_that_is_not_found_can_be_removed_with_all_that_it_had(home: Home, silent: asyncio.Event) -> None:
    with home.running(found=False) as daemon, home.client() as client:
        home.clock.now += 30
        client.vms.remove("vm", force=True)
        assert [vm.id for vm in client.vms()] == ["other"]
        daemon.call(daemon.service.leases.expire)
        with pytest.raises(errors.NotThere):
            client.owners.renew("leased")
    kill(supervisor_of(home, os.getuid()))
    silent.set()


def test_a_vm_that_could_not_be_found_is_looked_for_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with home.running() as daemon:
        daemon.add_vm()
        daemon.add_share(home.directory("project"), lease=30)
    start, broken = FileServer.start, [IndexError("nonsense"), IndexError("nonsense"), OSError("more nonsense")]

    async def at_last(server: FileServer) -> FileServer:
        if broken:
            raise broken.pop()
        return await start(server)

    monkeypatch.setattr(FileServer, "start", at_last)
    monkeypatch.setattr(service, "_FIND_AGAIN_FIRST", 0.0)
    with home.running(found=False) as daemon, home.client() as client:
        daemon.call(daemon.service.machines[os.getuid(), "vm"].found.wait)
        assert client.vms.get("vm").state == "running"
        assert [each.lease for share in client.shares("vm") for each in share.references] == [30]
        kinds = [event.kind for event in client.events("0", follow=False) if event is not None]
        assert kinds == ["vm.failed", "vm.failed", "vm.found"], "and a reason is told once"


@needs_root
def test_a_stand_in_on_a_users_own_control_socket_keeps_nobody(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with home.running() as daemon:
        User(daemon, ALICE).add_vm()
        daemon.add_vm("roots")
    kill(supervisor_of(home, ALICE))
    path = f"{home.settings.run_dir}/vms/{ALICE}/vm/control.sock"
    os.unlink(path)
    monkeypatch.setattr(service, "_READY_SECONDS", 0)
    with socket.socket(socket.AF_UNIX) as stand_in:
        as_user(ALICE, lambda: stand_in.bind(path))
        as_user(ALICE, stand_in.listen)
        stand_in.settimeout(60)
        with home.running(found=False) as daemon, home.client() as client:
            connection, _ = stand_in.accept()
            with connection:
                daemon.call(daemon.service.machines[0, "roots"].found.wait)
                assert client.vms.get("roots").state == "running"
                alice = User(daemon, ALICE)
                assert alice.do(lambda client: client.vms.get("vm")).state == "finding"
                with pytest.raises(errors.InvalidState):
                    alice.do(lambda client: client.shares("vm"))
                # The daemon ends although nobody answers there.
    with home.running(found=False) as daemon, home.client() as client:
        daemon.call(daemon.service.machines[ALICE, "vm"].found.wait)
        assert client.vms.get(f"{ALICE}:vm").state == "running"


def test_a_file_server_that_is_stopped_does_not_keep_the_daemon_from_ending(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_LET_GO_SECONDS", 0.1)
    monkeypatch.setattr(service, "_END_SECONDS", 0.1)
    with home.running() as daemon, home.client() as client:
        daemon.add_vm()
        share = daemon.add_share(home.directory("project"), owner="a")
        supervisor = supervisor_of(home, os.getuid())
        os.kill(supervisor, signal.SIGSTOP)
        with home.http() as http:
            begun = http.delete(f"/v1/vms/vm/shares/{share.name}?owner=a&wait=false")
            assert begun.status_code == 202
            service_ = daemon.service
            await_answer(lambda: service_.machines[os.getuid(), "vm"].shares()[0].busy, "removing")
    os.kill(supervisor, signal.SIGCONT)
    with home.running(found=False) as daemon, home.client() as client:
        daemon.call(daemon.service.machines[os.getuid(), "vm"].found.wait)
        assert all(each.state == "added" for each in client.shares("vm")), "the next daemon settled it"


@pytest.mark.parametrize(
    "failure", [KeyError("a defect"), OSError(), RecursionError(), ExceptionGroup("", [ValueError()])]
)
def test_a_takeover_that_cannot_be_settled_is_told_and_ends_nothing(failure: Exception) -> None:
    told: list[tuple[object, ...]] = []

    found = machine.Machine.__new__(machine.Machine)
    found._changed = lambda *what: told.append(what[1:])
    found._note_settled(failure)
    ((kind, words, audience),) = told
    assert (kind, audience) == ("vm.unsettled", None)
    assert words, "an error without words is told by its type"
