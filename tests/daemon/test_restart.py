"""The daemon is killed and started again: nothing that somebody holds is lost, and nothing that nobody holds stays."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from tests.daemon.test_process import running
from tests.processes import DEADLINE

from uvmshare import errors
from uvmshare.fileserver.device import FileServer
from uvmshare.testing.client import NinePClient as Guest

if TYPE_CHECKING:
    from tests.daemon.harness import Home

    from uvmshare.hcs.schema import ModifySettingRequest


def test_leases_run_afresh_after_a_restart_and_end(home: Home) -> None:
    path = home.directory("project")
    with home.running() as daemon:
        daemon.add_vm()
        daemon.add_share(path, owner="leased", lease=30)
        daemon.add_share(path, owner="held")
    home.clock.now += 1000  # nobody could renew meanwhile
    with home.running() as daemon, home.client() as client:
        daemon.pass_time(29)
        (share,) = client.shares("vm")
        assert {each.owner: each.lease for each in share.references} == {"leased": 30, "held": None}
        daemon.pass_time(1)
        (share,) = client.shares("vm")
        assert [each.owner for each in share.references] == ["held"]


def test_a_lease_that_is_over_does_not_run_afresh_after_a_restart(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses(server: FileServer, request: ModifySettingRequest) -> None:
        raise errors.ComputeSystemError("it will not have it")  # noqa: EM101, TRY003

    path = home.directory("project")
    with home.running() as daemon:
        daemon.add_vm()
        daemon.add_share(path, owner="leased", lease=30)
        with monkeypatch.context() as patched:
            patched.setattr(FileServer, "remove_plan9", refuses)
            daemon.pass_time(30)
        with home.client() as client:
            assert [share.name for share in client.shares("vm")] == ["0"]
    with home.running() as daemon, home.client() as client:
        daemon.pass_time(0)
        assert client.shares("vm") == []


def test_a_directory_that_is_gone_meanwhile_hinders_nobody(home: Home) -> None:
    with home.running() as daemon:
        vm = daemon.add_vm()
        gone = daemon.add_share(home.directory("gone"))
        stays = daemon.add_share(home.directory("stays"))
    os.rmdir(f"{home.folder}/gone")
    with home.running(), home.client() as client:
        assert stays.name in {share.name for share in client.shares("vm")}
        with Guest.connect(vm.addresses[0], stays.name) as guest:
            guest.listdir("")
        client.shares.release("vm", gone.name)
        assert [share.name for share in client.shares("vm")] == [stays.name]


def test_what_links_are_to_be_outlives_the_daemon_and_the_file_server(home: Home) -> None:
    from uvmshare.daemon.places import Places

    path = home.directory("project")
    with home.running() as daemon:
        daemon.add_vm(links="real")
        share = daemon.add_share(path)
    run_dir = f"{Places(home.settings.run_dir, home.settings.state_dir).run_dir}/vms/{os.getuid()}/vm"
    _end_file_server(run_dir)
    with home.running(), home.client() as client:
        (vm,) = client.vms()
        assert vm.links == "real"
        with Guest.connect(vm.addresses[0], share.name) as guest:
            guest.symlink("target", "link")
        assert os.readlink(f"{path}/link") == "target"


def test_a_vm_whose_file_server_cannot_be_started_is_told_and_can_be_removed(home: Home) -> None:
    blocker = f"{home.folder}/vm.9p"
    with home.running() as daemon, home.client() as client:
        daemon.add_vm()
        daemon.add_share(home.directory("project"))
        client.vms.remove("vm", force=True)
        daemon.add_vm()
    from uvmshare.daemon.places import Places

    run_dir = f"{Places(home.settings.run_dir, home.settings.state_dir).run_dir}/vms/{os.getuid()}/vm"
    _end_file_server(run_dir)
    os.mkdir(blocker)  # what is to be its socket
    with home.running() as daemon, home.client() as client:
        (vm,) = client.vms()
        assert vm.state == "failed"
        assert blocker in (vm.error or "")
        with pytest.raises(errors.FileServerError, match="no file server"):
            daemon.add_share(home.directory("project"))
        os.rmdir(blocker)
        client.vms.remove("vm")
        assert client.vms() == []


def _end_file_server(run_dir: str) -> None:
    """End one in order, as whoever starts the host again does."""
    import asyncio

    from uvmshare import FileServer

    async def end() -> None:
        await (await FileServer.connect(run_dir).start()).aclose()

    asyncio.run(end())


class Load:
    """Clients that add, release and renew until they are told to stop, and what each of them was told."""

    def __init__(self, home: Home, clients: int) -> None:
        self.home = home
        self.stopping = threading.Event()
        self.held: dict[str, set[str]] = {}
        """By owner: the directories that it was told it holds, and did not ask to release."""
        self.in_doubt: dict[str, set[str]] = {}
        """By owner: those for which it got no answer."""
        self.asked = 0
        self.threads = [threading.Thread(target=self._run, args=(f"client-{number}",)) for number in range(clients)]

    def _run(self, owner: str) -> None:
        chance = random.Random(owner)
        held = self.held.setdefault(owner, set())
        in_doubt = self.in_doubt.setdefault(owner, set())
        with self.home.client() as client:  # which finds the next daemon by itself
            while not self.stopping.is_set():
                path = self.home.directory(f"d{chance.randrange(6)}")
                adding = path not in held
                try:
                    if adding:
                        client.shares.add("vm", path, owner=owner)
                        held.add(path)
                    else:
                        held.discard(path)
                        in_doubt.add(path)
                        (name,) = [share.name for share in client.shares("vm") if share.path == path]
                        client.shares.release("vm", name, owner=owner)
                    in_doubt.discard(path)
                    self.asked += 1
                except errors.DaemonError:  # it was killed meanwhile
                    held.discard(path)
                    in_doubt.add(path)
                except ValueError:  # the share of an earlier request without an answer is not there
                    in_doubt.discard(path)


def test_killed_under_load_it_comes_back_with_all_that_was_promised(home: Home) -> None:
    path = home.directory("open")
    with open(f"{path}/file", "w") as file:
        file.write("still there")
    load = Load(home, clients=4)
    guest: Guest | None = None
    try:
        for round_ in range(3):
            with running(home) as daemon, home.client() as client:
                if round_ == 0:
                    vm = client.vms.add(**home.new_vm())
                    share = client.shares.add("vm", path, owner="reader", read_only=True)
                    guest = Guest.connect(vm.addresses[0], share.name)
                    for thread in load.threads:
                        thread.start()
                events = client.events("0")
                for _ in range(60):  # it is killed in the middle of what goes on
                    next(events)
                daemon.end(signal.SIGKILL)
                with contextlib.suppress(errors.DaemonError):
                    for _ in events:
                        pass
            assert guest is not None
            assert guest.read_file("file") == b"still there"
        with running(home), home.client() as client:
            load.stopping.set()
            for thread in load.threads:
                thread.join(DEADLINE)
            there: dict[str, set[str]] = {}
            for found in client.shares("vm"):
                assert (found.state, found.orphan) == ("added", False)
                for reference in found.references:
                    there.setdefault(reference.owner, set()).add(found.path)
            assert there.pop("reader") == {path}
            for owner, held in load.held.items():
                kept = there.pop(owner, set())
                assert held <= kept, f"{owner} was told that it holds {held - kept}"
                assert kept - held <= load.in_doubt[owner], f"{owner} was not told that it holds {kept - held}"
            assert there == {}
            for owner in load.held:
                client.owners.release(owner)
            assert [each.path for each in client.shares("vm")] == [path]
            assert guest is not None
            assert guest.read_file("file") == b"still there"
        assert load.asked >= 20, "the load was one"
    finally:
        load.stopping.set()
        if guest is not None:
            guest.close()
