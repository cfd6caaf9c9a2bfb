"""Mounts through the daemon and a guest's agent, whose kernel only notes down what it mounts (`tests/agent`)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socketserver
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.daemon.harness import HUNG
from tests.daemon.test_users import ALICE, User

from uvmshare import errors
from uvmshare.cli.main import run
from uvmshare.daemon.documents import NewMount, NewShare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.daemon.harness import Home, Running

    from uvmshare.daemon.client import Client
    from uvmshare.daemon.machine import Machine

AGENT = Path(__file__).parents[1] / "agent" / "fake_kernel.py"


class _Answer(socketserver.StreamRequestHandler):
    """What a mount of that kernel asks of its file server: may I have this share?"""

    def handle(self) -> None:
        share = self.rfile.readline()
        if share:
            assert isinstance(self.server, _Server)
            self.server.asked.append(share.decode().strip())
            self.wfile.write(b"0")
            self.wfile.flush()
            self.rfile.read()  # as long as the mount is there


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    asked: list[str]


class Guest:
    """A guest, as far as the daemon can tell."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.kernel = f"{folder}/kernel"
        self.allow = f"{folder}/mnt"
        self.socket = f"{folder}/agent.sock"
        os.mkdir(self.kernel)
        os.mkdir(self.allow)
        self.server = _Server(f"{folder}/nine", _Answer)
        self.server.asked = []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, str(AGENT), self.kernel, "--listen", f"unix:{self.socket}", "--allow", self.allow]
        command += ["--state", f"{self.folder}/state", "--server", f"unix:{self.folder}/nine", "--check-every", "60"]
        with open(f"{self.folder}/log", "ab") as log:
            self.process = subprocess.Popen(command, stderr=log)
        while not os.path.exists(self.socket):
            assert self.process.poll() is None, Path(self.folder, "log").read_text()
            os.sched_yield()

    def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(HUNG)
            self.process = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.socket)

    def mounted(self) -> list[str]:
        try:
            with open(f"{self.kernel}/mounts.json") as file:
                return [entry[1] for entry in json.loads(file.read() or "[]")]
        except FileNotFoundError:
            return []

    def close(self) -> None:
        self.end()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def guest(home: Home) -> Iterator[Guest]:
    guest = Guest(home.directory("guest"))
    guest.start()
    yield guest
    guest.close()


@pytest.fixture
def mapped(guest: Guest, daemon: Running) -> Running:
    """A daemon with a VM whose guest has an agent."""
    daemon.add_vm(agent=f"unix:{guest.socket}")
    return daemon


def wanted(guest: Guest, path: str, name: str = "project", **more: Any) -> NewMount:
    return NewMount(path=path, guest_path=f"{guest.allow}/{name}", **more)


def test_two_programs_have_one_share_and_one_mount(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    for owner in ("one", "two", "one"):
        mount = client.map("vm", wanted(guest, path, owner=owner))
        assert (mount.path, mount.guest_path, mount.state) == (path, f"{guest.allow}/project", "mounted")
    assert guest.mounted() == [f"{guest.allow}/project"]
    assert len(guest.server.asked) == 1
    (share,) = client.shares("vm")
    assert share.mounts == (mount.guest_path,)
    assert share.references == ()
    assert [each.owner for each in client.mounts("vm")[0].references] == ["one", "two"]
    assert client.vm("vm").mounts == 1
    client.unmap("vm", mount.guest_path, owner="one")
    assert guest.mounted()
    client.unmap("vm", mount.guest_path, owner="nobody")
    client.unmap("vm", mount.guest_path, owner="two")
    assert guest.mounted() == []
    assert (client.mounts("vm"), client.shares("vm")) == ([], [])
    with pytest.raises(errors.NotThere):
        client.unmap("vm", mount.guest_path, owner="two")


def test_what_cannot_be_mounted_leaves_neither_share_nor_lease(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    with pytest.raises(errors.MountRefused):
        client.map("vm", NewMount(path=path, guest_path="/etc/x", owner="job", lease=60))
    with pytest.raises(errors.InvalidOptions):
        client.map("vm", wanted(guest, f"{path}/missing", lease=60))
    with pytest.raises(errors.InvalidOptions):
        client.map("vm", NewMount(path=path, guest_path="relative"))
    assert (client.mounts("vm"), client.shares("vm"), guest.mounted()) == ([], [], [])
    with pytest.raises(errors.NotThere):
        client.renew("job")
    taken = client.map("vm", wanted(guest, path))
    with pytest.raises(errors.MountConflict, match="taken"):
        client.map("vm", wanted(guest, mapped.home.directory("other"), owner="other"))
    assert client.mounts("vm") == [taken]


def test_a_lease_that_ends_takes_mount_and_share_away_although_they_are_used(
    mapped: Running, guest: Guest, client: Client
) -> None:
    path = mapped.home.directory("project")
    client.map("vm", wanted(guest, path, owner="short", lease=10))
    client.map("vm", wanted(guest, path, owner="long", lease=100))
    Path(guest.kernel, "busy").write_text(f"{guest.allow}/project")
    client.map("vm", wanted(guest, path, "second", owner="short", lease=10))
    Path(guest.kernel, "busy").write_text(f"{guest.allow}/project\n{guest.allow}/second")
    with pytest.raises(errors.MountBusy):
        client.unmap("vm", f"{guest.allow}/second", owner="short")
    assert client.renew("long") == 1
    mapped.pass_time(10)
    assert guest.mounted() == [f"{guest.allow}/project"]
    mapped.pass_time(90)
    assert guest.mounted() == []
    assert (client.mounts("vm"), client.shares("vm")) == ([], [])
    kinds = [event.kind for event in client.events("0", follow=False) if event is not None]
    assert kinds.count("lease.ended") == 3


def test_a_guest_that_does_not_answer_keeps_no_directory(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    client.map("vm", wanted(guest, path, owner="job", lease=10))
    guest.end()
    mapped.call(lambda: _until(mapped, lambda machine: not machine.agent_connected))
    assert client.vm("vm").agent_state == "unreachable"
    assert mapped.daemon is not None
    keeper = mapped.daemon.service.keeper

    mapped.home.clock.now += 10
    mapped.call(lambda: _until(mapped, lambda machine: not machine.shares(), keeper._see_to_those_over))
    assert client.shares("vm") == []
    guest.start()
    mapped.call(keeper.settle)
    mapped.pass_time(10)
    assert guest.mounted() == []
    assert client.mounts("vm") == []


async def _until(daemon: Running, holds: Callable[[Machine], bool], first: Callable[[], None] = lambda: None) -> None:
    """Wait, in the daemon's own loop, until something holds that tells nobody; only the test's deadline ends that."""
    assert daemon.daemon is not None
    (machine,) = daemon.daemon.service.machines.values()
    first()
    while not holds(machine):  # noqa: ASYNC110  see above
        await asyncio.sleep(0.01)


def test_the_daemon_finds_its_mounts_again_and_the_guest_notices_nothing(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        client.map("vm", wanted(guest, path, owner="leased", lease=30))
        before = client.map("vm", wanted(guest, path, owner="held"))
    with home.running() as daemon, home.client() as client:
        (found,) = client.mounts("vm")
        assert {each.owner for each in found.references} == {"leased", "held"}
        daemon.call(lambda: _until(daemon, lambda _: _all_restored(daemon)))
        (found,) = client.mounts("vm")
        assert (found.state, found.share, found.path) == ("mounted", before.share, path)
        assert len(guest.server.asked) == 1
        daemon.pass_time(30)
        (found,) = client.mounts("vm")
        assert [each.owner for each in found.references] == ["held"]
        client.unmap("vm", found.guest_path, owner="held")
        assert (guest.mounted(), client.shares("vm")) == ([], [])


def _all_restored(daemon: Running) -> bool:
    assert daemon.daemon is not None
    return not any(daemon.daemon.service.mappings._restoring.values())


def test_what_is_given_back_before_the_guest_is_reached_again_stays_given_back(home: Home, guest: Guest) -> None:
    path = home.directory("project")
    with home.running() as daemon, home.client() as client:
        daemon.add_vm(agent=f"unix:{guest.socket}")
        client.map("vm", wanted(guest, path, owner="a", lease=30))
        client.map("vm", wanted(guest, home.directory("gone"), "gone", owner="b"))
    guest.end()
    os.rmdir(f"{home.folder}/gone")
    with home.running() as daemon, home.client() as client:
        assert {mount.state for mount in client.mounts("vm")} <= {"restoring", "reserved"}
        daemon.pass_time(30)
        held = {mount.guest_path for mount in client.mounts("vm") if mount.references}
        assert held <= {f"{guest.allow}/gone"}, "until the guest is seen to have lost it"
        assert [share.path for share in client.shares("vm") if share.path == path] == []


def test_a_vm_without_an_agent_says_so(daemon: Running, client: Client) -> None:
    daemon.add_vm()
    path = daemon.home.directory("project")
    with pytest.raises(errors.InvalidState, match="no agent"):
        client.map("vm", NewMount(path=path, guest_path="/run/uvmshare/x"))
    with pytest.raises(errors.InvalidState, match="no agent"):
        client.examine_guest("vm")
    assert client.mounts("vm") == []


def test_removing_a_vm_unmounts_what_the_guest_still_answers_for(mapped: Running, guest: Guest, client: Client) -> None:
    client.map("vm", wanted(guest, mapped.home.directory("project")))
    with pytest.raises(errors.StillInUse):
        client.remove_vm("vm")
    client.remove_vm("vm", force=True)
    assert guest.mounted() == []


def test_an_owner_that_is_gone_gives_mounts_and_shares_back(mapped: Running, guest: Guest, client: Client) -> None:
    path = mapped.home.directory("project")
    client.map("vm", wanted(guest, path, owner="job"))
    client.add_share("vm", NewShare(path=path, owner="job"))
    client.map("vm", wanted(guest, mapped.home.directory("other"), "other", owner="else"))
    client.release_owner("job")
    assert guest.mounted() == [f"{guest.allow}/other"]
    (share,) = client.shares("vm")
    assert share.mounts == (f"{guest.allow}/other",)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
def test_what_another_user_has_mounted_is_not_told(home: Home, guest: Guest, daemon: Running) -> None:
    alice = User(daemon, ALICE)
    os.chmod(guest.socket, 0o666)
    alice.add_vm(agent=f"unix:{guest.socket}")
    secret = home.directory("roots")
    with home.client() as root:
        root.map(f"{ALICE}:vm", wanted(guest, secret, read_only=True))
    assert alice.do(lambda client: client.mounts("vm")) == []
    assert alice.do(lambda client: client.shares("vm")) == []
    with pytest.raises(errors.MountConflict) as refused:
        alice.do(lambda client: client.map("vm", wanted(guest, alice.folder)))
    assert secret not in str(refused.value)
    with pytest.raises(errors.NotThere):
        alice.do(lambda client: client.unmap("vm", f"{guest.allow}/project"))
    assert guest.mounted() == [f"{guest.allow}/project"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users")
def test_an_agent_is_dialled_with_the_rights_of_the_vms_user(home: Home, guest: Guest, daemon: Running) -> None:
    alice = User(daemon, ALICE)
    os.chmod(guest.socket, 0o600)
    alice.add_vm(agent=f"unix:{guest.socket}")
    why: list[str] = []

    def refused(machine: Machine) -> bool:
        assert machine.agent is not None
        why[:] = [str(machine.agent._failure)]
        return machine.agent._failure is not None

    daemon.call(lambda: _until(daemon, refused))
    assert "ermission denied" in why[0]
    os.chmod(guest.socket, 0o666)
    assert alice.do(lambda client: client.map("vm", wanted(guest, alice.folder)).state) == "mounted"


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
    assert run(["doctor", "--vm", "deaf"]) == 1
    assert "no agent" in capfd.readouterr().out


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
